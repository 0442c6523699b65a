"""`esper_recorder.reduce`: a minibatch reduced to one tensor, for training steps that Python does not run in.

A compiled or captured step cannot call a recorder: it returns the reduced minibatch as one more tensor, and
`Recorder.push` takes that outside. The tensor says itself what is in it: its first numbers are the layout, as text.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esper_recorder.arguments import BadCall, argument, check_log_ratio, flat_actions, head_fields
from esper_recorder.reductions.minibatches import HeadFields, LossSettings, RatioSummary, reduce_minibatches
from esper_recorder.reductions.ratios import EXEMPLARS

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
    normalize_advantages: bool = False,
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
        log_ratio, ..., heads: as for `Recorder.minibatch`; `index` and the ranges also as tensors on the device.
        pessimistic_value_clip: see `transition_statistics`; False for a value loss as Stable-Baselines3 has it.
        total_norm: gradient norm before clipping, as `Recorder.gradients` takes it.

    Returns:
        float64, one dimension; its length depends on what is given and not on the values.

    Raises:
        BadCall: what is given does not make a minibatch.
    """
    given = {
        "log_ratio": log_ratio,
        "new_log_prob": new_log_probs,
        "old_log_prob": old_log_probs,
        "advantage": advantages,
        "raw_advantage": raw_advantages,
        "entropy": entropy,
        "value": values,
        "value_target": returns,
        "old_value": old_values,
        "mask": mask,
        "entropy_max": entropy_max if isinstance(entropy_max, Tensor) else None,
    }
    fields: dict[Any, Tensor] = {name: x.detach().reshape(-1) for name, x in given.items() if x is not None}
    check_log_ratio(fields)
    first = next(iter(fields.values()))
    layouts, of_heads = head_fields(heads) if heads else ((), {})
    fields.update(of_heads)
    for key, x in fields.items():
        if x.shape != first.shape:
            raise BadCall(
                f"the tensors of a minibatch have different lengths: {argument(next(iter(fields)))} has "
                f"{first.shape[0]}, {argument(key)} has {x.shape[0]}"
            )
    n, device = first.shape[0], first.device
    dtype = torch.float64 if any(x.dtype == torch.float64 for x in fields.values()) else torch.float32
    wide = {key: x.to(dtype) for key, x in fields.items()}

    def number(x: Tensor | float | None) -> Tensor:
        if isinstance(x, Tensor):
            return x.detach().to(device=device, dtype=torch.float64).reshape(1)
        return torch.full((1,), torch.nan if x is None else float(x), dtype=torch.float64, device=device)

    own = {key: x[None] for key, x in wide.items() if isinstance(key, str)}
    valid = torch.ones((1, n), dtype=torch.bool, device=device)
    if "mask" in own:
        valid = own.pop("mask") != 0
    if entropy_max is not None and not isinstance(entropy_max, Tensor):
        own["entropy_max"] = number(entropy_max).expand(1, n)
    numbers = {"clip_range": clip_range, "value_clip_range": value_clip_range, "total_norm": total_norm}
    settings = LossSettings(
        clip_range=None if clip_range is None else number(clip_range),
        value_clip_range=None if value_clip_range is None else number(value_clip_range),
        pessimistic_value_clip=pessimistic_value_clip,
        normalize=torch.full((1,), normalize_advantages, dtype=torch.bool, device=device),
    )
    groups = []
    for layout in layouts:
        stacked = {f: torch.stack([wide[f, name] for name in layout.names])[None] for f in layout.fields}
        if layout.entropy_max is not None:
            bounds = torch.stack([number(bound) for bound in layout.entropy_max])
            stacked["entropy_max"] = bounds[None].expand(1, len(layout.names), n)
        groups.append(HeadFields(layout.names, stacked))
    flat = None if actions is None else flat_actions(actions, n)
    reduced = reduce_minibatches(
        own,
        groups,
        valid,
        settings,
        index=None if index is None else index.detach().reshape(1, n),
        actions=None if flat is None else flat[None],
        per_minibatch=True,
    )
    header = _header(
        tuple(own),
        tuple([(group.names, tuple(group.fields)) for group in groups]),
        tuple([name for name, x in numbers.items() if x is not None]),
        index is not None,
        None if flat is None else flat.shape[1],
        min(n, EXEMPLARS),
    )
    parts = [torch.full((1,), x, dtype=torch.float64, device=device) for x in header]
    parts += [number(x) for x in numbers.values()]
    parts += [x.to(torch.float64).reshape(-1) for group in reduced for x in group.tensors().values()]
    return torch.cat(parts)


@dataclass(frozen=True, slots=True)
class Unpacked:
    """Packed minibatches of one layout, on the host."""

    reduced: tuple[RatioSummary, ...]
    """One scope a minibatch."""
    numbers: Mapping[str, Tensor]
    """`clip_range`, `value_clip_range`, `total_norm`, those that were given: float64 [minibatches]."""


def unpack(rows: Tensor) -> Unpacked:
    """Packed minibatches of equal layout, float64 [minibatches, length], on the host.

    Raises BadCall for a tensor that `reduce` did not make.
    """
    text, at = _text(rows[0].tolist())
    layout = json.loads(text)
    shape = _shape(text)
    numbers = {name: rows[:, at + i] for i, name in enumerate(_NUMBERS) if name in layout["numbers"]}
    at += len(_NUMBERS)
    found = []
    for one in shape:
        tensors = {}
        for name, like in one.tensors().items():
            size = like[0].numel()
            tensors[name] = rows[:, at : at + size].reshape(len(rows), *like.shape[1:]).to(like.dtype)
            at += size
        exemplars = tensors.get("exemplars")
        if exemplars is not None and one.exemplars is not None:
            place = one.exemplars.names.index("position")
            exemplars[..., place] = torch.arange(len(rows), dtype=torch.float64)[:, None, None]
        found.append(one.replaced(tensors))
    return Unpacked(tuple(found), numbers)


def same_layout(rows: Tensor) -> list[range]:
    """Stretches of packed minibatches [minibatches, length] that have one layout; most often they all do."""
    headers = [_text(row)[0] for row in rows.tolist()]
    starts = [i for i, header in enumerate(headers) if i == 0 or header != headers[i - 1]]
    return [range(a, b) for a, b in zip(starts, [*starts[1:], len(headers)], strict=True)]


def merge_scopes(reduced: RatioSummary) -> RatioSummary:
    """The scopes of each ratio as one: what is told of an update and not of each minibatch."""
    if reduced.exemplars is None:
        return reduced
    assert reduced.histogram is not None and reduced.histogram_nan is not None
    values = reduced.exemplars.values.transpose(0, 1).flatten(1, 2)  # [ratios, scopes * k, fields]
    severity = values[..., reduced.exemplars.names.index("severity")]
    order = severity.sort(dim=-1, descending=True, stable=True).indices[:, :EXEMPLARS]
    ratio = torch.arange(len(values))[:, None]
    tensors = reduced.tensors() | {
        "histogram": reduced.histogram.sum(dim=0, keepdim=True),
        "histogram_nan": reduced.histogram_nan.sum(dim=0, keepdim=True),
        "exemplars": values[ratio, order][None],
    }
    if reduced.actions is not None:
        tensors["actions"] = reduced.actions.transpose(0, 1).flatten(1, 2)[ratio, order][None]
    return reduced.replaced(tensors)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _header(
    fields: tuple[str, ...],
    heads: tuple[tuple[tuple[str, ...], tuple[str, ...]], ...],
    numbers: tuple[str, ...],
    index: bool,
    actions: int | None,
    k: int,
) -> tuple[float, ...]:
    """The layout as numbers: a magic one, the length of the text in bytes, and the text."""
    layout = {"fields": fields, "heads": heads, "numbers": numbers, "index": index, "actions": actions, "k": k}
    text = json.dumps(layout).encode()
    pieces = [text[i : i + _BYTES] for i in range(0, len(text), _BYTES)]
    return (_MAGIC, float(len(text)), *(float(int.from_bytes(piece, "little")) for piece in pieces))


def _text(numbers: Sequence[float]) -> tuple[str, int]:
    """The layout of a packed minibatch, and where it ends."""
    if len(numbers) < 3 or numbers[0] != _MAGIC:
        raise BadCall("what was pushed is not what esper_recorder.reduce returned")
    size = int(numbers[1])
    end = 2 + -(-size // _BYTES)
    pieces = [int(x).to_bytes(_BYTES, "little") for x in numbers[2:end]]
    last = size - _BYTES * (len(pieces) - 1)
    return b"".join([*pieces[:-1], pieces[-1][:last]]).decode(), end


@functools.lru_cache(maxsize=64)
def _shape(text: str) -> tuple[RatioSummary, ...]:
    """What minibatches of a layout are reduced to: the names and the shapes, of a minibatch of zeros."""
    layout = json.loads(text)
    n = layout["k"]
    zeros = torch.zeros(1, n)
    groups = [
        HeadFields(tuple(names), {f: torch.zeros(1, len(names), n) for f in fields})
        for names, fields in layout["heads"]
    ]
    one = torch.zeros(1, dtype=torch.float64)
    clip, value_clip = (one if name in layout["numbers"] else None for name in ("clip_range", "value_clip_range"))
    return reduce_minibatches(
        {name: zeros for name in layout["fields"]},
        groups,
        torch.ones(1, n, dtype=torch.bool),
        LossSettings(clip_range=clip, value_clip_range=value_clip, normalize=torch.zeros(1, dtype=torch.bool)),
        index=torch.zeros(1, n, dtype=torch.int64) if layout["index"] else None,
        actions=torch.zeros(1, n, layout["actions"]) if layout["actions"] is not None else None,
        per_minibatch=True,
    )
