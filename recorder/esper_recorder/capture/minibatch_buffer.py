"""The ring that holds an update's minibatches until they are reduced together.

Reducing a minibatch where it is evaluated takes dozens of small tensor operations; copying it takes one. So a
minibatch is copied into a preallocated buffer on its own device, and the reductions run once per update over the
whole buffer. Where an update is larger than the buffer may grow, it is reduced in several pieces.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from esper_recorder.arguments import BadCall, FieldKey, HeadLayout, argument
from esper_recorder.reductions.minibatches import HeadFields, LossSettings, RatioSummary, reduce_minibatches
from esper_recorder.reductions.statistics import FAR, Valid, from_host, within
from esper_recorder.reductions.transitions import log_ratio_of

_NAN = float("nan")


@dataclass(slots=True)
class MinibatchNotes:
    """What is known of a minibatch on the host, beside its tensors."""

    minibatch: int
    epoch: int | None = None
    clip_range: float | None = None
    value_clip_range: float | None = None
    learning_rate: float | None = None
    entropy_max: float | None = None
    normalize: bool = False
    stepped: bool | None = None
    norm_seen: bool = False
    grad_norm: float | None = None
    """Where it is known on the host; else it is on the device."""


@dataclass(frozen=True, slots=True)
class Piece:
    """The reduced minibatches of (part of) an update; tensors are small and on the minibatches' device."""

    notes: tuple[MinibatchNotes, ...]
    reduced: tuple[RatioSummary, ...]
    """The joint ratio, then the heads; one scope a minibatch where `per_minibatch`, else one."""
    grad_norms: Tensor
    """[minibatches], without a meaning where none was seen."""
    per_minibatch: bool

    def tensors(self) -> dict[str, Tensor]:
        """All its tensors by name."""
        named = {f"{i}.{name}": x for i, one in enumerate(self.reduced) for name, x in one.tensors().items()}
        return named | {"grad_norms": self.grad_norms}

    def replaced(self, tensors: Mapping[str, Tensor]) -> Piece:
        """The same with other tensors, as `tensors` names them."""
        reduced = [
            one.replaced({name: tensors[f"{i}.{name}"] for name in one.tensors()}) for i, one in enumerate(self.reduced)
        ]
        return Piece(self.notes, tuple(reduced), tensors["grad_norms"], self.per_minibatch)


@dataclass(frozen=True, slots=True)
class Pushed:
    """Minibatches that came packed, as `esper_recorder.reduce` returned them."""

    notes: tuple[MinibatchNotes, ...]
    packed: Tensor
    """float64 [minibatches, length]"""
    per_minibatch: bool

    def tensors(self) -> dict[str, Tensor]:
        """Its tensor by name."""
        return {"packed": self.packed}


@dataclass(slots=True)
class MinibatchRing:
    """Minibatches of equal fields, copied and not yet reduced.

    Attributes:
        limit_bytes: how large the buffer may grow before it is reduced early.
        pessimistic_value_clip: see `transition_statistics`.
        per_minibatch: reduce histograms and exemplars for each minibatch instead of for the whole update.
    """

    limit_bytes: int = 64 << 20
    pessimistic_value_clip: bool = True
    per_minibatch: bool = False
    _names: tuple[FieldKey, ...] = ()
    _heads: tuple[HeadLayout, ...] = ()
    _given: tuple[Any, ...] = ()
    _rows: tuple[Tensor, ...] = ()
    _uniform: bool = False
    _buffer: Tensor | None = None
    _index: list[Tensor] = field(default_factory=list)
    _actions: list[Tensor] = field(default_factory=list)
    _norms: Tensor | None = None
    _lengths: list[int] = field(default_factory=list)
    _notes: list[MinibatchNotes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._lengths)

    def another(self) -> MinibatchRing:
        """An empty one that reduces as this one does."""
        return MinibatchRing(self.limit_bytes, self.pessimistic_value_clip, self.per_minibatch)

    @property
    def newest(self) -> tuple[tuple[FieldKey, ...], Tensor]:
        """The newest minibatch: names of its fields, and a view of their values, [fields, n]."""
        assert self._buffer is not None
        return self._names, self._buffer[len(self._lengths) - 1, :, : self._lengths[-1]]

    @property
    def last(self) -> MinibatchNotes | None:
        """The notes of the newest minibatch."""
        return self._notes[-1] if self._notes else None

    @property
    def norm_seen(self) -> bool:
        """Whether the newest minibatch's gradient norm was told."""
        return bool(self._notes) and self._notes[-1].norm_seen

    def fits(
        self,
        fields: Mapping[FieldKey, Tensor],
        n: int,
        notes: MinibatchNotes,
        *,
        heads: tuple[HeadLayout, ...] = (),
        index: Tensor | None = None,
        actions: Tensor | None = None,
    ) -> bool:
        """Whether a minibatch can be appended without reducing what is there first."""
        if not self._lengths:
            return True
        assert self._buffer is not None
        if _given(fields, notes, heads, index, actions) != self._given:
            return False
        rows, _, width = self._buffer.shape
        if len(self._lengths) < rows and n <= width:
            return True
        return self._bytes(2 * rows if len(self._lengths) == rows else rows, max(n, width)) <= self.limit_bytes

    def append(
        self,
        fields: Mapping[FieldKey, Tensor],
        n: int,
        notes: MinibatchNotes,
        *,
        heads: tuple[HeadLayout, ...] = (),
        index: Tensor | None = None,
        actions: Tensor | None = None,
    ) -> None:
        """Copy a minibatch in, one that `fits`.

        Args:
            fields: 1-d tensors of length n by name, of one device; the first minibatch decides which there are.
            heads: what of them are action heads', as `head_fields` lays them out.
            n: transitions, padding included.
            notes: what else is known.
            index: int64 [n], position of each transition in the rollout.
            actions: [n, size].

        Raises:
            BadCall: lengths or devices differ; the minibatch is not taken.
        """
        if not self._lengths or self._buffer is None or not self._has_room(n):
            self._reserve(fields, n)
        if not self._lengths:
            self._given = _given(fields, notes, heads, index, actions)
            self._heads = heads
        assert self._buffer is not None
        row = len(self._lengths)
        tensors = list(fields.values())
        if (
            not self._uniform  # copying would repeat a single element
            or (index is not None and index.shape[0] != n)
            or (actions is not None and actions.shape[0] != n)
        ):
            _check_lengths(fields, n, index, actions)
        with torch.no_grad():
            target = self._rows[row] if n == self._buffer.shape[2] else self._buffer[row, :, :n]
            if self._uniform:
                try:
                    torch.stack(tensors, out=target)
                except (RuntimeError, NotImplementedError):
                    _check_lengths(fields, n, index, actions)
                    raise
            else:
                for i, tensor in enumerate(tensors):
                    target[i].copy_(tensor)
            own_index = None if index is None else _sent(index, target.device).clone()
            own_actions = None if actions is None else _sent(actions, target.device).to(torch.float32, copy=True)
        if own_index is not None:
            self._index.append(own_index)
        if own_actions is not None:
            self._actions.append(own_actions)
        self._lengths.append(n)  # last, so that a minibatch that could not be copied is not there
        self._notes.append(notes)

    def set_grad_norm(self, norm: Tensor | float) -> None:
        """Note the total gradient norm of the newest minibatch's step."""
        if not self._notes:
            return
        assert self._norms is not None
        if isinstance(norm, Tensor) and norm.device.type != "cpu":
            self._norms[len(self._notes) - 1].copy_(norm.detach())
        else:
            self._notes[-1].grad_norm = float(norm)
        self._notes[-1].norm_seen = True

    def clear(self) -> None:
        """Forget the minibatches and keep the memory."""
        self._lengths.clear()
        self._notes.clear()
        self._index.clear()
        self._actions.clear()

    @torch.no_grad()
    def reduce(self) -> Piece | None:
        """Reduce all minibatches and forget them; None where there are none."""
        if not self._lengths:
            return None
        assert self._buffer is not None and self._norms is not None
        rows, width = len(self._lengths), max(*self._lengths, 1)
        view = self._buffer[:rows, :, :width]
        notes = tuple(self._notes)
        piece = reduce_held(
            {name: view[:, i] for i, name in enumerate(self._names) if isinstance(name, str)},
            self._head_fields(view),
            notes,
            self._lengths,
            index=_padded(self._index, width, -1),
            actions=_padded(self._actions, width, 0),
            grad_norms=self._norms[:rows],
            pessimistic_value_clip=self.pessimistic_value_clip,
            per_minibatch=self.per_minibatch,
        )
        self.clear()
        return piece

    def _head_fields(self, view: Tensor) -> list[HeadFields]:
        """The heads in the buffer: views, as the heads of a group lie side by side."""
        groups = []
        at = sum(isinstance(name, str) for name in self._names)
        for layout in self._heads:
            heads = len(layout.names)
            fields = {field: view[:, at + i * heads :][:, :heads] for i, field in enumerate(layout.fields)}
            at += heads * len(layout.fields)
            if layout.entropy_max is not None:
                bounds = from_host(layout.entropy_max, torch.float64, view.device)
                fields["entropy_max"] = bounds[:, None].expand(view.shape[0], heads, view.shape[2])
            groups.append(HeadFields(layout.names, fields))
        return groups

    def _has_room(self, n: int) -> bool:
        assert self._buffer is not None
        return len(self._lengths) < self._buffer.shape[0] and n <= self._buffer.shape[2]

    def _reserve(self, fields: Mapping[FieldKey, Tensor], n: int) -> None:
        buffer = self._buffer
        first = next(iter(fields.values()))
        dtype = torch.float64 if any(t.dtype == torch.float64 for t in fields.values()) else torch.float32
        self._uniform = all(t.dtype == dtype for t in fields.values())
        if not self._lengths and (
            buffer is None or tuple(fields) != self._names or buffer.device != first.device or buffer.dtype != dtype
        ):
            self._names = tuple(fields)
            self._buffer = torch.zeros((32, len(fields), max(n, 1)), dtype=dtype, device=first.device)
            self._norms = torch.full((32,), _NAN, dtype=torch.float64, device=first.device)
            self._rows = self._buffer.unbind()
            return
        assert buffer is not None and self._norms is not None
        rows, _, width = buffer.shape
        if len(self._lengths) == rows or n > width:
            rows = 2 * rows if len(self._lengths) == rows else rows
            self._buffer = _grown(buffer, (rows, buffer.shape[1], max(n, width)))
            self._norms = _grown(self._norms, (rows,))
            self._rows = self._buffer.unbind()

    def _bytes(self, rows: int, width: int) -> int:
        assert self._buffer is not None
        return rows * width * self._buffer.shape[1] * self._buffer.element_size()


def reduce_held(
    fields: dict[str, Tensor],
    heads: Sequence[HeadFields],
    notes: tuple[MinibatchNotes, ...],
    lengths: Sequence[int],
    *,
    index: Tensor | None = None,
    actions: Tensor | None = None,
    grad_norms: Tensor | None = None,
    pessimistic_value_clip: bool,
    per_minibatch: bool,
) -> Piece:
    """Reduce minibatches that lie side by side.

    Args:
        fields: tensors [minibatches, width] by name, those of `reduce_minibatches` and `mask`.
        heads: groups of action heads.
        notes: what is known of each minibatch.
        lengths: transitions of each; what lies beyond is without a meaning.
        index, actions: as for `reduce_minibatches`.
        grad_norms: float64 [minibatches], of those whose norm is not in the notes; None where all are.
        pessimistic_value_clip, per_minibatch: as for `MinibatchRing`.
    """
    first = next(iter(fields.values()))
    rows, width = first.shape
    device = first.device
    valid: Valid = None
    if heads or not _is_plain(fields, notes, lengths):
        valid = torch.arange(width, device=device) < from_host(lengths, torch.int64, device)[:, None]
        mask = fields.pop("mask", None)
        if mask is not None:
            valid = valid & (mask != 0)
    bounds = [m.entropy_max for m in notes if m.entropy_max is not None]
    if "entropy_max" not in fields and len(bounds) == len(notes):
        fields["entropy_max"] = from_host(bounds, torch.float64, device)[:, None].expand(rows, width)
    settings = LossSettings(
        clip_range=_known([m.clip_range for m in notes], device),
        value_clip_range=_known([m.value_clip_range for m in notes], device),
        pessimistic_value_clip=pessimistic_value_clip,
        normalize=from_host([m.normalize for m in notes], torch.bool, device),
    )
    reduced = reduce_minibatches(
        fields, heads, valid, settings, index=index, actions=actions, per_minibatch=per_minibatch
    )
    return Piece(notes, reduced, _grad_norms(notes, grad_norms), per_minibatch)


_FAR_LOG_RATIO = 40.0
"""Numbers up to `FAR` have finite products with a ratio of up to e^40, in float32 too."""


def _is_plain(fields: Mapping[str, Tensor], notes: Sequence[MinibatchNotes], lengths: Sequence[int]) -> bool:
    """Whether minibatches are such that `Valid` may be None. On a device nobody looks, as that would wait for it."""
    width = next(iter(fields.values())).shape[1]
    if "mask" in fields or min(lengths) < width or width < 2:  # a single one has no standard deviation
        return False
    if any(x.device.type != "cpu" for x in fields.values()):
        return False
    told = [m.clip_range for m in notes if m.clip_range is not None]
    if told and (len(told) < len(notes) or any(map(math.isnan, told))):
        return False
    log_ratio = log_ratio_of(fields)
    assert log_ratio is not None
    return all(within(x, FAR) for x in fields.values()) and within(log_ratio, _FAR_LOG_RATIO)


def _grad_norms(notes: Sequence[MinibatchNotes], on_device: Tensor | None) -> Tensor:
    on_host = [m.grad_norm is not None for m in notes]
    norms = torch.tensor([m.grad_norm or 0.0 for m in notes], dtype=torch.float64, device="cpu")
    if on_device is None or all(known or not m.norm_seen for known, m in zip(on_host, notes, strict=True)):
        return norms
    device = on_device.device
    known = from_host(on_host, torch.bool, device)
    return torch.where(known, from_host(norms.tolist(), torch.float64, device), on_device)


def _known(values: list[float | None], device: torch.device) -> Tensor | None:
    if all(v is None for v in values):
        return None
    return from_host([_NAN if v is None else v for v in values], torch.float64, device)


class PackedRing:
    """Minibatches that came packed, copied into a buffer that is used again for each update."""

    def __init__(self) -> None:
        self._buffer: Tensor | None = None
        self._notes: list[MinibatchNotes] = []

    def __len__(self) -> int:
        return len(self._notes)

    def fits(self, packed: Tensor) -> bool:
        """Whether it can be appended without taking out what is there first."""
        return not self._notes or (
            self._buffer is not None
            and packed.shape[0] == self._buffer.shape[1]
            and packed.device == self._buffer.device
        )

    @torch.no_grad()
    def append(self, packed: Tensor, notes: MinibatchNotes) -> None:
        """Copy one in, one that `fits`: float64 [length]."""
        buffer, row = self._buffer, len(self._notes)
        if buffer is None or packed.shape[0] != buffer.shape[1] or packed.device != buffer.device:
            buffer = torch.zeros((32, packed.shape[0]), dtype=torch.float64, device=packed.device)
        elif row == buffer.shape[0]:
            buffer = _grown(buffer, (2 * row, buffer.shape[1]))
        buffer[row].copy_(packed)
        self._buffer = buffer
        self._notes.append(notes)

    def take(self, *, per_minibatch: bool) -> Pushed | None:
        """What is there, None where nothing is; the ring is empty then."""
        if not self._notes or self._buffer is None:
            return None
        notes, self._notes = tuple(self._notes), []
        return Pushed(notes, self._buffer[: len(notes)].clone(), per_minibatch)

    def clear(self) -> None:
        """Forget the minibatches and keep the memory."""
        self._notes.clear()


def _given(
    fields: Mapping[FieldKey, Tensor],
    notes: MinibatchNotes,
    heads: tuple[HeadLayout, ...],
    index: Tensor | None,
    actions: Tensor | None,
) -> tuple[Any, ...]:
    """What a minibatch brings. Those reduced together bring the same, so that what one lacks is not made up."""
    return (
        tuple(fields),
        tuple([t.dtype for t in fields.values()]),
        next(iter(fields.values())).device,
        notes.clip_range is None,
        notes.entropy_max is None,
        heads,
        index is None,
        None if actions is None else tuple(actions.shape[1:]),
    )


def _check_lengths(fields: Mapping[FieldKey, Tensor], n: int, index: Tensor | None, actions: Tensor | None) -> None:
    lengths = {argument(name): t.shape[0] for name, t in fields.items() if t.shape[0] != n}
    if index is not None and index.shape[0] != n:
        lengths["index"] = index.shape[0]
    if actions is not None and actions.shape[0] != n:
        lengths["actions"] = actions.shape[0]
    first, like = next(iter(fields.items()))
    if lengths:
        odd = ", ".join(f"{name} has {length}" for name, length in lengths.items())
        raise BadCall(f"the tensors of a minibatch have different lengths: {argument(first)} has {n}, {odd}")
    away = [f"{argument(name)} is on {t.device}" for name, t in fields.items() if t.device != like.device]
    if away:
        raise BadCall(
            f"the tensors of a minibatch are on different devices: {argument(first)} is on {like.device}, "
            f"{', '.join(away)}; move them to one"
        )


def _sent(x: Tensor, device: torch.device) -> Tensor:
    """A tensor of the host on its way to a device, without waiting for it."""
    if x.device.type != "cpu" or device.type != "cuda":
        return x
    return x.pin_memory().to(device, non_blocking=True)


def _padded(tensors: Sequence[Tensor], width: int, value: int) -> Tensor | None:
    """Tensors [n, ...] as one, [len(tensors), width, ...]; None where there are none."""
    if not tensors:
        return None
    if all(x.shape[0] == width for x in tensors):
        return torch.stack(list(tensors))
    whole = torch.full(
        (len(tensors), width, *tensors[0].shape[1:]), value, dtype=tensors[0].dtype, device=tensors[0].device
    )
    for row, x in zip(whole, tensors, strict=True):
        row[: x.shape[0]].copy_(x)
    return whole


def _grown(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    larger = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    larger[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return larger
