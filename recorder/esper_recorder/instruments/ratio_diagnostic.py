"""What made a ratio explode, from the tensors of a minibatch, at one transfer to the host."""

from __future__ import annotations

from collections.abc import Mapping
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
    """Say which transitions, and which head, made the ratio explode or collapse.

    The worst transitions are those the recorder stores, by the same reduction. Call it before an early stop leaves the
    update, or not at all: a recorded run holds them for every update, however it ended.

    Args:
        log_ratio: of any shape; or `new_log_probs` and `old_log_probs` of one. Those of the following are of it too.
        advantages: told with each transition.
        actions: of that shape, or with one more dimension.
        mask: False or 0 on padding, which is left out.
        index: position of each transition in the rollout.
        heads: name -> `log_ratio`, or `new_log_probs` and `old_log_probs`; `mask` where the head's choice mattered.
        above, below: what counts as exploded and collapsed, strictly.

    Raises:
        ValueError: neither a log ratio nor two log-probabilities, tensors of different lengths, a head with an unknown
            key.
    """
    given = {
        "log_ratio": log_ratio,
        "new_log_prob": new_log_probs,
        "old_log_prob": old_log_probs,
        "advantage": advantages,
    }
    fields = {name: x.detach().reshape(1, -1) for name, x in given.items() if x is not None}
    check_log_ratio(fields)
    n = next(iter(fields.values())).shape[1]
    layouts, of_heads = head_fields(heads or {})
    _check(n, {**fields, **of_heads, "mask": mask, "index": index})
    first = next(iter(fields.values()))
    valid = torch.ones_like(first, dtype=torch.bool) if mask is None else mask.reshape(1, -1) != 0
    groups = [
        HeadFields(
            layout.names,
            {name: torch.stack([of_heads[name, head] for head in layout.names])[None] for name in layout.fields},
        )
        for layout in layouts
        if set(layout.fields) & {"log_ratio", "new_log_prob"}
    ]
    chosen = None if actions is None else flat_actions(actions, n)
    if chosen is not None and chosen.shape[0] != n:
        raise BadCall(f"the tensors have different lengths: the log ratio has {n}, actions has {tuple(chosen.shape)}")
    reduced = reduce_minibatches(
        fields,
        groups,
        valid,
        LossSettings(),
        index=None if index is None else index.reshape(1, -1),
        actions=None if chosen is None else chosen[None],
    )
    host = Transfer({f"{i}.{name}": x for i, one in enumerate(reduced) for name, x in one.tensors().items()}).wait()
    ratios = []
    for i, one in enumerate(reduced):
        ratios += _ratios(one.replaced({name: host[f"{i}.{name}"] for name in one.tensors()}))
    return RatioDiagnostic(tuple(ratios), above, below)


def _check(n: int, tensors: Mapping[Any, Tensor | None]) -> None:
    odd = {name: x.numel() for name, x in tensors.items() if x is not None and x.numel() != n}
    if odd:
        told = ", ".join(f"{argument(name)} has {k}" for name, k in odd.items())
        raise BadCall(f"the tensors have different lengths: the log ratio has {n}, {told}")


def _ratios(one: RatioSummary) -> list[RatioOfHead]:
    """One for each ratio that was reduced."""
    assert one.exemplars is not None  # each has a log ratio
    found = []
    for place, name in enumerate(one.names):
        row = dict(zip(one.statistics.names, one.statistics.values[0, place].tolist(), strict=True))
        if not row["n"]:
            row |= {"ratio_min": None, "ratio_max": None}
        exemplars = []
        for k, values in enumerate(one.exemplars.values[0, place].tolist()):
            exemplar: dict[str, Any] = dict(zip(one.exemplars.names, values, strict=True))
            if exemplar["severity"] < 0:  # padding: there were fewer transitions than places
                continue
            if one.actions is not None:
                exemplar["action"] = one.actions[0, place, k].tolist()
            exemplars.append(exemplar)
        found.append(ratio_of_head(name, row, exemplars))
    return found
