"""The minibatches of an open update, kept until they are reduced together.

Reducing each minibatch as its loss is computed would take dozens of small tensor operations; keeping it takes one copy.
Fields that the rollout already holds are not copied: they are looked up by index, for many minibatches at once.

Covers:
- minibatches of tensors, and those that a compiled step packed;
- fields, types, heads or devices that change within an update: minibatches of one layout are reduced together;
- updates that are larger than the memory to keep them: a part is reduced early;
- a device that fails: what has arrived on the host is kept.

Does not cover:
- minibatches of one update on several devices reduced together: each device's are a separate batch;
- an index without a rollout: it is recorded with the worst transitions, but no fields can be looked up by it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from esper_recorder.arguments import BadCall, FieldKey, HeadLayout, check_alike, check_log_ratio
from esper_recorder.capture.host_copies import DEVICES, HostCopy
from esper_recorder.capture.rollout import Rollout
from esper_recorder.reductions.gradients import copy_all
from esper_recorder.reductions.minibatches import HeadFields, LossSettings, RatioSummary, reduce_minibatches
from esper_recorder.reductions.statistics import Valid, from_host, to_device
from esper_recorder.storage.interrupts import signals_deferred


@dataclass(slots=True)
class MinibatchNotes:
    """What the host knows of a minibatch, apart from its tensors."""

    minibatch: int
    epoch: int | None = None
    clip_range: float | None = None
    value_clip_range: float | None = None
    learning_rate: float | None = None
    entropy_max: float | None = None
    normalize: bool | None = None
    """None if nobody said whether the loss normalises its advantages."""
    stepped: bool | None = None
    norm_seen: bool = False
    grad_norm: float | Tensor | None = None
    """A tensor if it is on a device; None if it was not recorded, or once the minibatch is reduced."""


@dataclass(frozen=True, slots=True)
class BatchSummary:
    """Minibatches of one layout, reduced: small tensors on the minibatches' device."""

    notes: tuple[MinibatchNotes, ...]
    ratios: tuple[RatioSummary, ...]
    """The joint ratio, then the heads; one scope per minibatch if `per_minibatch`, else one."""
    grad_norms: Tensor
    """float64 [minibatches]; without a meaning if no norm was seen."""
    per_minibatch: bool
    outside: Tensor | None = None
    """[minibatches]: how many transitions are left out because their index is outside the rollout; None if zero."""

    def tensors(self) -> dict[str, Tensor]:
        """All its tensors by name."""
        named = {f"{i}.{name}": x for i, ratio in enumerate(self.ratios) for name, x in ratio.tensors().items()}
        outside = {} if self.outside is None else {"outside": self.outside}
        return named | outside | {"grad_norms": self.grad_norms}

    def replaced(self, tensors: Mapping[str, Tensor]) -> BatchSummary:
        """The same with other tensors, named as `tensors` names them."""
        ratios = [
            ratio.replaced({name: tensors[f"{i}.{name}"] for name in ratio.tensors()})
            for i, ratio in enumerate(self.ratios)
        ]
        grad_norms, outside = tensors["grad_norms"], tensors.get("outside")
        return replace(self, ratios=tuple(ratios), grad_norms=grad_norms, outside=outside)


@dataclass(frozen=True, slots=True)
class PackedBatch:
    """Minibatches that a compiled step packed, as `esper_recorder.reduce` returned them."""

    notes: tuple[MinibatchNotes, ...]
    packed: Tensor
    """float64 [minibatches, length]"""
    grad_norms: Tensor
    """As for `BatchSummary`; a norm that is packed comes first."""
    per_minibatch: bool

    def tensors(self) -> dict[str, Tensor]:
        """All its tensors by name."""
        return {"packed": self.packed, "grad_norms": self.grad_norms}


class _Layout(NamedTuple):
    """Which fields and settings a minibatch has. Only minibatches of one layout are reduced together."""

    fields: tuple[FieldKey, ...]
    """Empty for a packed minibatch."""
    dtype: torch.dtype
    device: torch.device
    given: tuple[bool, ...] = ()
    """Which of its settings are not None."""
    heads: tuple[HeadLayout, ...] = ()
    index: Any = None
    """The type of its index, and a tensor's device."""
    actions: Any = None
    """Their device and the shape of each."""
    rollout: Rollout | None = None
    length: int = 0
    """Length of a packed minibatch; 0 otherwise."""


class MinibatchBuffer:
    """The minibatches of one update.

    Args:
        pessimistic_value_clip: see `transition_statistics`.
        per_minibatch: reduce histograms and exemplars of each minibatch instead of the whole update's.
        limit_bytes: memory that minibatches take while they are reduced together.
    """

    def __init__(
        self, *, pessimistic_value_clip: bool = True, per_minibatch: bool = False, limit_bytes: int = 64 << 20
    ) -> None:
        self._pessimistic_value_clip = pessimistic_value_clip
        self._per_minibatch = per_minibatch
        self._limit_bytes = limit_bytes
        self._reduced: list[BatchSummary | PackedBatch] = []
        self._copies: list[tuple[HostCopy, _Layout, MinibatchNotes, Any]] = []
        self._layout: _Layout | None = None
        self._lookups: tuple[str, ...] = ()
        self._copies_to_host = False
        self._capacity = self._width = 0  # how many minibatches, and of how many transitions, are reduced together
        self._kept: list[
            tuple[MinibatchNotes, Tensor, Any, Tensor | None]
        ] = []  # of one layout: values, index, actions

    def append(
        self,
        fields: tuple[FieldKey, ...],
        tensors: Sequence[Tensor],
        notes: MinibatchNotes,
        given: tuple[bool, ...] = (),
        heads: tuple[HeadLayout, ...] = (),
        index: Any = None,
        actions: Tensor | None = None,
        rollout: Rollout | None = None,
    ) -> None:
        """Copy a minibatch. Called without gradients.

        Args:
            fields: what the tensors are.
            tensors: one-dimensional, of one length and device.
            notes: what the host knows of it.
            given: which of its settings are not None: minibatches that differ in them are not reduced together.
            heads: the layouts of its action heads, whose fields come last, as `head_fields` returns them.
            index: position of each transition in the rollout: a tensor or NumPy array [n].
            actions: [n, size].
            rollout: has the fields that are not given, to be found by index.

        Raises:
            BadCall: the log ratio cannot be computed, or lengths or devices differ; the minibatch is not kept.
        """
        try:
            values = torch.stack(tensors)  # type: ignore[arg-type]
        except RuntimeError:
            check_alike(dict(zip(fields, tensors, strict=True)))
            raise
        n = values.shape[1]
        if (index is not None and index.shape[0] != n) or (actions is not None and actions.shape[0] != n):
            check_alike(dict(zip(fields, tensors, strict=True)), index=index, actions=actions)
        layout = (
            fields,
            values.dtype,
            values.device,
            given,
            heads,
            index.device if isinstance(index, Tensor) else type(index),
            None if actions is None else (actions.device, actions.shape[1:]),
            None if index is None else rollout,
            0,
        )
        if layout != self._layout or n > self._width or len(self._kept) >= self._capacity:
            with signals_deferred:  # it must not be left half done
                self._prepare_for(_Layout(*layout), n)
        kept_index = None if index is None else index.clone() if isinstance(index, Tensor) else index.copy()
        kept_actions = None if actions is None else actions.to(torch.float32, copy=True)
        self._kept.append((notes, values, kept_index, kept_actions))
        if self._copies_to_host and self._layout is not None:
            away = kept_index if isinstance(index, Tensor) else None
            self._copies.append((HostCopy(values, away), self._layout, notes, kept_index))

    def push(self, packed: Tensor, notes: MinibatchNotes) -> None:
        """Copy a minibatch that a compiled step packed: float64 [length]."""
        layout = _Layout((), packed.dtype, packed.device, length=packed.shape[0])
        if layout != self._layout or len(self._kept) >= self._capacity:
            self._prepare_for(layout, 1)
        self._kept.append((notes, packed.clone(), None, None))

    @property
    def newest(self) -> MinibatchNotes | None:
        """The newest minibatch that waits to be reduced."""
        return self._kept[-1][0] if self._kept else None

    def drain(self) -> list[BatchSummary | PackedBatch]:
        """Reduce what is there, and forget all of it."""
        self._close_batch()
        reduced, self._reduced = self._reduced, []
        self._copies.clear()
        return reduced

    def salvage(self) -> tuple[MinibatchBuffer, int]:
        """Return the minibatches that have arrived on the host, after the device failed, and how many there are.

        Action heads, actions and gradient norms that are only on the device are left out.
        """
        buffer = MinibatchBuffer(
            pessimistic_value_clip=self._pessimistic_value_clip,
            per_minibatch=self._per_minibatch,
            limit_bytes=self._limit_bytes,
        )
        rollouts: dict[int, Rollout | None] = {}
        arrived = 0
        for copy, layout, notes, index in self._copies:
            tensors = copy.arrived()
            if tensors is None or tensors[0] is None:
                continue
            joint = sum(isinstance(key, str) for key in layout.fields)  # heads come last
            fields, values = layout.fields[:joint], tensors[0].unbind()[:joint]
            rollout = layout.rollout
            if rollout is not None:
                rollout = rollouts.setdefault(id(rollout), rollout.on_host())
            on_host = isinstance(notes.grad_norm, float)
            known = replace(notes, norm_seen=on_host, grad_norm=notes.grad_norm if on_host else None)
            try:
                buffer.append(
                    fields,
                    values,
                    known,
                    layout.given,
                    index=index if tensors[1] is None else tensors[1],
                    rollout=rollout,
                )
            except BadCall:  # its rollout has not arrived
                continue
            arrived += 1
        return buffer, arrived

    def _prepare_for(self, layout: _Layout, n: int) -> None:
        """Set up for a minibatch of this layout and n transitions; first reduce what does not fit with it."""
        if layout != self._layout:
            lookups: tuple[str, ...] = ()
            if layout.rollout is not None:
                lookups = layout.rollout.missing_from(layout.fields, layout.device)
            if layout.fields:
                check_log_ratio({*layout.fields, *lookups})
                _check_devices(layout)
            self._close_batch()
            self._layout, self._lookups = layout, lookups
            self._copies_to_host = layout.device.type in DEVICES
        width = max(self._width, n) if self._kept else n
        most = self._capacity_for(width)
        if len(self._kept) >= most:
            self._close_batch()
            width, most = n, self._capacity_for(n)
        self._width, self._capacity = width, most

    def _capacity_for(self, width: int) -> int:
        """How many minibatches of a width are reduced together."""
        assert self._layout is not None
        layout = self._layout
        numbers = layout.length or width * (len(layout.fields) + len(self._lookups))
        index = 8 * width if layout.index is not type(None) else 0
        return max(self._limit_bytes // max(numbers * layout.dtype.itemsize + index, 1), 1)

    def _close_batch(self) -> None:
        if self._kept:
            self._reduced.append(self._reduce())
            self._kept.clear()

    @torch.no_grad()
    def _reduce(self) -> BatchSummary | PackedBatch:
        assert self._layout is not None
        layout = self._layout
        notes, values, indices, all_actions = zip(*self._kept, strict=True)
        grad_norms = _grad_norms(notes)
        if not layout.fields:
            return PackedBatch(notes, torch.stack(values), grad_norms, self._per_minibatch)
        lengths = [x.shape[1] for x in values]
        width = max(*lengths, 1)
        dtype = torch.promote_types(layout.dtype, torch.float32)
        if self._lookups and layout.rollout is not None:
            dtype = torch.promote_types(dtype, layout.rollout.dtype_of(self._lookups))
        whole = _side_by_side(values, lengths, width, 0).to(dtype)
        index = actions = None
        if indices[0] is not None:
            index = to_device(_index_side_by_side(indices, lengths, width), layout.device).to(torch.int64)
        if all_actions[0] is not None:
            by_size = [x.t() for x in all_actions]
            actions = to_device(_side_by_side(by_size, lengths, width, 0), layout.device).transpose(1, 2)
        fields = {name: whole[:, i] for i, name in enumerate(layout.fields) if isinstance(name, str)}
        present = outside = None
        if self._lookups and layout.rollout is not None and index is not None:
            from_rollout, present = layout.rollout.look_up(self._lookups, index, dtype)
            fields |= from_rollout
            outside = None if present is None else _outside(index, present, fields.get("mask"))
        ratios = reduce_minibatches(
            fields,
            _head_fields(whole, layout),
            _valid(fields, lengths, present, has_heads=bool(layout.heads)),
            _loss_settings(fields, notes, pessimistic_value_clip=self._pessimistic_value_clip),
            index=index,
            actions=actions,
            per_minibatch=self._per_minibatch,
        )
        return BatchSummary(notes, ratios, grad_norms, self._per_minibatch, outside)


def _loss_settings(
    fields: dict[str, Tensor], notes: Sequence[MinibatchNotes], *, pessimistic_value_clip: bool
) -> LossSettings:
    """What the losses were computed with; `entropy_max` becomes a field if it is a number."""
    first = next(iter(fields.values()))
    columns: dict[str, list[float]] = {}
    for name in ("clip_range", "value_clip_range", "entropy_max"):
        values = [getattr(m, name) for m in notes]
        if any(x is not None for x in values):
            columns[name] = [math.nan if x is None else x for x in values]
    limit = columns.pop("clip_range", None)
    clip = [] if limit is None else [limit, [1 - x for x in limit], [1 + x for x in limit]]
    table = from_host([*clip, *columns.values()], torch.float64, first.device)  # one transfer
    numbers = dict(zip(columns, table[len(clip) :], strict=True))
    if "entropy_max" in numbers and "entropy_max" not in fields:
        fields["entropy_max"] = numbers["entropy_max"].to(first.dtype)[:, None].expand(first.shape)
    flags = {m.normalize for m in notes}
    normalize: Tensor | bool | None = next(iter(flags))
    if len(flags) > 1:
        normalize = from_host([bool(m.normalize) for m in notes], torch.bool, first.device)
    return LossSettings(
        clip=table[:3] if clip else None,
        value_clip_range=numbers.get("value_clip_range"),
        pessimistic_value_clip=pessimistic_value_clip,
        normalize=normalize,
    )


def _valid(fields: dict[str, Tensor], lengths: Sequence[int], present: Tensor | None, *, has_heads: bool) -> Valid:
    """Which transitions count: those within the lengths, the mask, which is taken out of the fields, and `present`."""
    first = next(iter(fields.values()))
    mask = fields.pop("mask", None)
    valid = present if mask is None else mask != 0 if present is None else present & (mask != 0)
    if min(lengths) < first.shape[1] or (valid is None and has_heads):
        inside = (
            torch.arange(first.shape[1], device=first.device) < from_host(lengths, torch.int64, first.device)[:, None]
        )
        valid = inside if valid is None else inside & valid
    return valid


def _check_devices(layout: _Layout) -> None:
    """Raise BadCall if an index or actions cannot be sent to the minibatch's device without waiting."""
    away = {"index": layout.index, "actions": layout.actions and layout.actions[0]}
    for name, device in away.items():
        if isinstance(device, torch.device) and device.type != "cpu" and device != layout.device:
            raise BadCall(f"{name} is on {device}, the minibatch's tensors are on {layout.device}; move it there")


def _side_by_side(tensors: Sequence[Tensor], lengths: Sequence[int], width: int, filler: int) -> Tensor:
    """Tensors [..., n] of various n as one, [len(tensors), ..., width]."""
    if min(lengths) == width:
        return torch.stack(list(tensors))
    shape = (len(tensors), *tensors[0].shape[:-1], width)
    whole = torch.full(shape, filler, dtype=tensors[0].dtype, device=tensors[0].device)
    copy_all([row[..., :n] for row, n in zip(whole.unbind(), lengths, strict=True)], tensors)
    return whole


def _index_side_by_side(indices: Sequence[Any], lengths: Sequence[int], width: int) -> Tensor:
    """Indices as one, [len(indices), width], -1 beyond their lengths."""
    if isinstance(indices[0], Tensor):
        return _side_by_side(indices, lengths, width, -1)
    if min(lengths) < width:
        return _side_by_side([torch.from_numpy(array) for array in indices], lengths, width, -1)
    import numpy as np  # which the caller has, as these are its arrays; torch works without it

    return torch.from_numpy(np.concatenate(indices)).view(len(indices), width)


def _head_fields(whole: Tensor, layout: _Layout) -> list[HeadFields]:
    """The action heads' fields as views [minibatches, heads, n]: the heads of a group are adjacent."""
    groups = []
    at = sum(isinstance(name, str) for name in layout.fields)
    for head in layout.heads:
        heads = len(head.names)
        fields = {field: whole[:, at + i * heads :][:, :heads] for i, field in enumerate(head.fields)}
        at += heads * len(head.fields)
        if head.entropy_max is not None:
            bounds = from_host(head.entropy_max, whole.dtype, whole.device)
            fields["entropy_max"] = bounds[:, None].expand(whole.shape[0], heads, whole.shape[2])
        groups.append(HeadFields(head.names, fields))
    return groups


def _outside(index: Tensor, present: Tensor, mask: Tensor | None) -> Tensor:
    """How many transitions of each minibatch have an index that is neither in the rollout nor -1, for padding."""
    outside = ~present & (index != -1)
    return (outside if mask is None else outside & (mask != 0)).sum(dim=-1)


def _grad_norms(notes: Sequence[MinibatchNotes]) -> Tensor:
    """The gradient norms as one tensor, on the device that holds them; those on a device are taken off the notes."""
    on_device = {i: m.grad_norm for i, m in enumerate(notes) if isinstance(m.grad_norm, Tensor)}
    norms = [m.grad_norm if isinstance(m.grad_norm, float) else 0.0 for m in notes]
    if not on_device:
        return torch.tensor(norms, dtype=torch.float64, device="cpu")
    stacked = torch.stack(list(on_device.values())).to(torch.float64)
    for i in on_device:
        notes[i].grad_norm = None
    if len(on_device) == len(notes):
        return stacked
    places = from_host(list(on_device), torch.int64, stacked.device)
    return from_host(norms, torch.float64, stacked.device).index_copy(0, places, stacked)
