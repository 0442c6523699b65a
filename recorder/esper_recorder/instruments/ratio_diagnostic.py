"""What made a ratio explode, from the tensors of a minibatch, with one transfer to the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from esper_recorder.arguments import BadCall, argument, check_log_ratio, flat_actions, head_fields
from esper_recorder.capture.transfer import Transfer
from esper_recorder.contract.worst_transitions import ABOVE, BELOW, RatioDiagnostic, RatioOfHead, ratio_of_head
from esper_recorder.reductions.minibatches import HeadFields, LossSettings, RatioSummary, reduce_minibatches


@torch.no_grad()
def diagnose_ratios(
    *,
    log_ratio: Tensor | None = None,
    new_log_probs: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    advantages: Tensor | None = None,
    actions: Tensor | None = None,
    mask: Tensor | None = None,
    index: Tensor | None = None,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
    above: float = ABOVE,
    below: float = BELOW,
) -> RatioDiagnostic:
    """Find the transitions, and the head, that made the ratio explode or collapse.

    The worst transitions are those the recorder stores, by the same reduction. A recorded run has them for every
    update, so call this only if there is no recorder, and before an early stop leaves the update.

    Args:
        log_ratio: of any shape, like all that follow; or `new_log_probs` and `old_log_probs`.
        advantages: reported with each transition.
        actions: of that shape, or with one more dimension.
        mask: False or 0 on padding, which is left out.
        index: position of each transition in the rollout.
        heads: name -> `log_ratio`, or `new_log_probs` and `old_log_probs`; `mask` if the head's choice does not always
            matter.
        above, below: the thresholds of explosion and collapse, strict.

    Raises:
        ValueError: neither a log ratio nor two log-probabilities, tensors of different lengths, a head with an unknown
            key.
    """
    tensors = {
        "log_ratio": log_ratio,
        "new_log_prob": new_log_probs,
        "old_log_prob": old_log_probs,
        "advantage": advantages,
    }
    fields = {name: x.detach().reshape(1, -1) for name, x in tensors.items() if x is not None}
    check_log_ratio(fields)
    first = next(iter(fields.values()))
    n = first.shape[1]
    layouts, by_head = head_fields(heads or {})
    _check_lengths(n, {**fields, **by_head, "mask": mask, "index": index})
    groups = [
        HeadFields(
            layout.names,
            {name: torch.stack([by_head[name, head] for head in layout.names])[None] for name in layout.fields},
        )
        for layout in layouts
        if set(layout.fields) & {"log_ratio", "new_log_prob"}
    ]
    rows_of_actions = None if actions is None else flat_actions(actions, n)
    if rows_of_actions is not None and rows_of_actions.shape[0] != n:
        shape = tuple(rows_of_actions.shape)
        raise BadCall(f"the tensors have different lengths: the log ratio has {n}, actions has {shape}")
    summaries = reduce_minibatches(
        fields,
        groups,
        torch.ones_like(first, dtype=torch.bool) if mask is None else mask.reshape(1, -1) != 0,
        LossSettings(),
        index=None if index is None else index.reshape(1, -1),
        actions=None if rows_of_actions is None else rows_of_actions[None],
    )
    sent = {f"{i}.{name}": x for i, summary in enumerate(summaries) for name, x in summary.tensors().items()}
    host = Transfer(sent).wait()
    ratios: list[RatioOfHead] = []
    for i, summary in enumerate(summaries):
        ratios += _ratios(summary.replaced({name: host[f"{i}.{name}"] for name in summary.tensors()}))
    return RatioDiagnostic(tuple(ratios), above, below)


def _check_lengths(n: int, tensors: Mapping[Any, Tensor | None]) -> None:
    wrong = {name: x.numel() for name, x in tensors.items() if x is not None and x.numel() != n}
    if wrong:
        lengths = ", ".join(f"{argument(name)} has {length}" for name, length in wrong.items())
        raise BadCall(f"the tensors have different lengths: the log ratio has {n}, {lengths}")


def _ratios(summary: RatioSummary) -> Iterator[RatioOfHead]:
    """Yield each ratio of a summary on the host."""
    assert summary.exemplars is not None  # each has a log ratio
    for place, name in enumerate(summary.names):
        row = dict(zip(summary.statistics.names, summary.statistics.values[0, place].tolist(), strict=True))
        if not row["n"]:
            row |= {"ratio_min": None, "ratio_max": None}
        exemplars = []
        for k, values in enumerate(summary.exemplars.values[0, place].tolist()):
            exemplar: dict[str, Any] = dict(zip(summary.exemplars.names, values, strict=True))
            if exemplar["severity"] < 0:  # padding: there were fewer transitions than places
                continue
            if summary.actions is not None:
                exemplar["action"] = summary.actions[0, place, k].tolist()
            exemplars.append(exemplar)
        yield ratio_of_head(name, row, exemplars)
