"""`esper_recorder.reduce`: a minibatch reduced to one tensor, for training steps that Python does not run in.

A compiled or captured step cannot call a recorder: it returns the reduced minibatch as one more tensor, and
`Recorder.push` records that outside of the step. The tensor describes itself: its first numbers are its layout.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from esper_recorder.arguments import (
    MINIBATCH_FIELDS,
    BadCall,
    MinibatchKind,
    check_alike,
    check_log_ratio,
    flat_actions,
    head_fields,
)
from esper_recorder.reductions.loss_statistics import clip_bounds
from esper_recorder.reductions.minibatches import HeadFields, LossSettings, RatioSummary, reduce_minibatches
from esper_recorder.reductions.ratio_histogram import EXEMPLARS

_MAGIC = 20_260_729.0
_BYTES = 6  # of text in each number: float64 holds whole numbers of 53 bits
_NUMBERS = ("clip_range", "value_clip_range", "total_norm")


def reduce(
    *,
    log_ratio: Tensor | None = None,
    new_log_probs: Tensor | None = None,
    old_log_probs: Tensor | None = None,
    advantages: Tensor | None = None,
    raw_advantages: Tensor | None = None,
    normalize_advantages: bool | None = None,
    entropy: Tensor | None = None,
    entropy_max: Tensor | float | None = None,
    values: Tensor | None = None,
    returns: Tensor | None = None,
    old_values: Tensor | None = None,
    mask: Tensor | None = None,
    clip_range: Tensor | float | None = None,
    value_clip_range: Tensor | float | None = None,
    pessimistic_value_clip: bool = True,
    index: Tensor | None = None,
    actions: Tensor | None = None,
    heads: Mapping[str, Mapping[str, Any]] | None = None,
    total_norm: Tensor | None = None,
) -> Tensor:
    """Reduce a minibatch to one tensor, which `Recorder.push` records as `Recorder.minibatch` records its tensors.

    A pure function: it compiles with `torch.compile(fullgraph=True)` and can be captured in a CUDA graph. Numbers
    become constants of the compiled step; give a tensor for what changes between steps.

    Args:
        log_ratio, ..., heads: as for `Recorder.minibatch`, but nothing comes from the rollout by index.
            `index` and the ranges may also be tensors on the device.
        pessimistic_value_clip: see `transition_statistics`; False for a value loss like Stable-Baselines3's.
        total_norm: gradient norm before clipping, as for `Recorder.gradients`.

    Returns:
        float64, one dimension; its length depends on which arguments are given and not on their values.

    Raises:
        BadCall: the arguments do not make a minibatch.
    """
    tensors = (log_ratio, new_log_probs, old_log_probs, advantages, raw_advantages, entropy, entropy_max)
    arguments = dict(zip(MINIBATCH_FIELDS, (*tensors, values, returns, old_values, mask), strict=True))
    fields = MinibatchKind(arguments).fields_of(arguments)
    check_log_ratio(fields)
    layouts, head_tensors = head_fields(heads) if heads else ((), {})
    fields.update(head_tensors)
    check_alike(fields)
    first = next(iter(fields.values()))
    n, device = first.shape[0], first.device
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in fields.values()) else torch.float32
    wide = {key: x.detach().to(dtype) for key, x in fields.items()}

    def number(x: Tensor | float | None) -> Tensor:
        if isinstance(x, Tensor):
            return x.detach().to(device=device, dtype=torch.float64).reshape(1)
        return torch.full((1,), torch.nan if x is None else float(x), dtype=torch.float64, device=device)

    joint = {key: x[None] for key, x in wide.items() if isinstance(key, str)}
    valid = torch.ones((1, n), dtype=torch.bool, device=device)
    if "mask" in joint:
        valid = joint.pop("mask") != 0
    if entropy_max is not None and "entropy_max" not in joint:
        joint["entropy_max"] = number(entropy_max).to(dtype).expand(1, n)
    groups = []
    for layout in layouts:
        stacked = {f: torch.stack([wide[f, name] for name in layout.names])[None] for f in layout.fields}
        if layout.entropy_max is not None:
            bounds = torch.stack([number(x) for x in layout.entropy_max]).to(dtype)
            stacked["entropy_max"] = bounds[None].expand(1, len(layout.names), n)
        groups.append(HeadFields(layout.names, stacked))
    numbers = {"clip_range": clip_range, "value_clip_range": value_clip_range, "total_norm": total_norm}
    flat = None if actions is None else flat_actions(actions, n)
    ratios = reduce_minibatches(
        joint,
        groups,
        valid,
        LossSettings(
            clip=None if clip_range is None else clip_bounds(number(clip_range)),
            value_clip_range=None if value_clip_range is None else number(value_clip_range),
            pessimistic_value_clip=pessimistic_value_clip,
            normalize=normalize_advantages,
        ),
        index=None if index is None else index.detach().reshape(1, n),
        actions=None if flat is None else flat[None],
        per_minibatch=True,
    )
    header = _header(
        tuple(joint),
        tuple([(group.names, tuple(group.fields)) for group in groups]),
        tuple([name for name, x in numbers.items() if x is not None]),
        normalize_advantages is not None,
        index is not None,
        None if flat is None else flat.shape[1],
        min(n, EXEMPLARS),
    )
    parts = [torch.full((1,), x, dtype=torch.float64, device=device) for x in header]
    parts += [number(x) for x in numbers.values()]
    parts += [x.to(torch.float64).reshape(-1) for ratio in ratios for x in ratio.tensors().values()]
    return torch.cat(parts)


def unpack(rows: Tensor) -> tuple[tuple[RatioSummary, ...], dict[str, Tensor]]:
    """Unpack minibatches of one layout, float64 [minibatches, length], on the host.

    Returns:
        The ratios, one scope per minibatch; and `clip_range`, `value_clip_range` and `total_norm`, those that were
        given, float64 [minibatches].

    Raises:
        BadCall: `reduce` did not return this tensor.
    """
    layout_text, at = _layout_text(rows[0].tolist())
    given = json.loads(layout_text)["numbers"]
    numbers = {name: rows[:, at + i] for i, name in enumerate(_NUMBERS) if name in given}
    at += len(_NUMBERS)
    ratios = []
    for template in _templates(layout_text):
        parts = {}
        for name, like in template.tensors().items():
            size = like[0].numel()
            parts[name] = rows[:, at : at + size].reshape(len(rows), *like.shape[1:]).to(like.dtype)
            at += size
        exemplars = parts.get("exemplars")
        if exemplars is not None and template.exemplars is not None:
            place = template.exemplars.names.index("position")
            exemplars[..., place] = torch.arange(len(rows), dtype=torch.float64)[:, None, None]
        ratios.append(template.replaced(parts))
    return tuple(ratios), numbers


def same_layout(rows: Tensor) -> list[range]:
    """Stretches of packed minibatches [minibatches, length] that have one layout; most often they all do."""
    headers = [_layout_text(row)[0] for row in rows.tolist()]
    starts = [i for i, header in enumerate(headers) if i == 0 or header != headers[i - 1]]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(headers)], strict=True)]


def merge_scopes(ratio: RatioSummary) -> RatioSummary:
    """Merge the scopes of each ratio: a histogram and exemplars of the update, not of each minibatch."""
    if ratio.exemplars is None:
        return ratio
    assert ratio.histogram is not None and ratio.histogram_nan is not None
    values = ratio.exemplars.values.transpose(0, 1).flatten(1, 2)  # [ratios, scopes * k, fields]
    severity = values[..., ratio.exemplars.names.index("severity")]
    order = severity.sort(dim=-1, descending=True, stable=True).indices[:, :EXEMPLARS]
    rows = torch.arange(len(values))[:, None]
    tensors = ratio.tensors() | {
        "histogram": ratio.histogram.sum(dim=0, keepdim=True),
        "histogram_nan": ratio.histogram_nan.sum(dim=0, keepdim=True),
        "exemplars": values[rows, order][None],
    }
    if ratio.actions is not None:
        tensors["actions"] = ratio.actions.transpose(0, 1).flatten(1, 2)[rows, order][None]
    return ratio.replaced(tensors)


def _header(
    fields: tuple[str, ...],
    heads: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...],
    numbers: tuple[str, ...],
    normalize: bool,
    index: bool,
    actions: int | None,
    k: int,
) -> tuple[float, ...]:
    """The layout as numbers: a magic one, the length of the text in bytes, and the text."""
    layout = {"fields": fields, "heads": heads, "numbers": numbers, "index": index, "actions": actions, "k": k}
    encoded = json.dumps(layout | {"normalize": normalize}).encode()
    pieces = [encoded[i : i + _BYTES] for i in range(0, len(encoded), _BYTES)]
    return (_MAGIC, float(len(encoded)), *(float(int.from_bytes(piece, "little")) for piece in pieces))


# What `torch.compiler.assume_constant_result` does, which loads the compiler: a second that most trainings never need.
_header._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _layout_text(numbers: Sequence[float]) -> tuple[str, int]:
    """The layout of a packed minibatch, and where it ends."""
    if len(numbers) < 3 or numbers[0] != _MAGIC:
        raise BadCall("what was pushed is not what esper_recorder.reduce returned")
    size = int(numbers[1])
    end = 2 + -(-size // _BYTES)
    pieces = [int(x).to_bytes(_BYTES, "little") for x in numbers[2:end]]
    last = size - _BYTES * (len(pieces) - 1)
    return b"".join([*pieces[:-1], pieces[-1][:last]]).decode(), end


@functools.lru_cache(maxsize=64)
def _templates(layout_text: str) -> tuple[RatioSummary, ...]:
    """The names and shapes that minibatches of a layout are reduced to: a minibatch of zeros, reduced."""
    layout = json.loads(layout_text)
    n = layout["k"]
    zeros, one = torch.zeros(1, n), torch.zeros(1, dtype=torch.float64)
    groups = [
        HeadFields(tuple(names), {f: torch.zeros(1, len(names), n) for f in fields})
        for names, fields in layout["heads"]
    ]
    return reduce_minibatches(
        {name: zeros for name in layout["fields"]},
        groups,
        torch.ones(1, n, dtype=torch.bool),
        LossSettings(
            clip=clip_bounds(one) if "clip_range" in layout["numbers"] else None,
            value_clip_range=one if "value_clip_range" in layout["numbers"] else None,
            normalize=True if layout["normalize"] else None,
        ),
        index=torch.zeros(1, n, dtype=torch.int64) if layout["index"] else None,
        actions=torch.zeros(1, n, layout["actions"]) if layout["actions"] is not None else None,
        per_minibatch=True,
    )
