"""The ring that holds an update's minibatches until they are reduced together.

Reducing a minibatch where it is evaluated takes dozens of small tensor operations; copying it takes one. So a
minibatch is copied into a preallocated buffer on its own device, and the reductions run once per update over the
whole buffer. Where an update is larger than the buffer may grow, it is reduced in several pieces.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from esper_recorder.reduce.packed import Packed, from_host
from esper_recorder.reduce.ratios import log_ratio_histogram, worst
from esper_recorder.reduce.transitions import Terms, terms, transition_statistics

EXEMPLARS = 16
"""How many of the worst transitions are kept."""

_NAN = float("nan")


_ARGUMENTS = {
    "new_log_prob": "new_log_probs",
    "old_log_prob": "old_log_probs",
    "advantage": "advantages",
    "raw_advantage": "raw_advantages",
    "value": "values",
    "value_target": "returns",
    "old_value": "old_values",
}
"""Field -> the argument of `Recorder.minibatch` it comes from, where they differ."""


class BadCall(ValueError):
    """What a training loop handed over cannot be recorded as it is; the message says why."""


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
    statistics: Packed
    """[minibatches, k]"""
    histogram: tuple[Tensor, Tensor]
    """Counts [bins] and NaN count [] of all its transitions; [minibatches, ...] where `per_minibatch`."""
    exemplars: Packed
    """[k, fields], worst first: `severity`, `position` (into `notes`), and the transition's fields."""
    actions: Tensor | None
    """[k, action size]"""
    grad_norms: Tensor
    """[minibatches], without a meaning where none was seen."""
    per_minibatch: bool


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
    _names: tuple[str, ...] = ()
    _given: tuple[Any, ...] = ()
    _rows: tuple[Tensor, ...] = ()
    _uniform: bool = False
    _buffer: Tensor | None = None
    _index: Tensor | None = None
    _actions: Tensor | None = None
    _norms: Tensor | None = None
    _lengths: list[int] = field(default_factory=list)
    _notes: list[MinibatchNotes] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self._lengths)

    def another(self) -> MinibatchRing:
        """An empty one that reduces as this one does."""
        return MinibatchRing(self.limit_bytes, self.pessimistic_value_clip, self.per_minibatch)

    @property
    def newest(self) -> tuple[tuple[str, ...], Tensor]:
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
        fields: Mapping[str, Tensor],
        n: int,
        notes: MinibatchNotes,
        *,
        index: Tensor | None = None,
        actions: Tensor | None = None,
    ) -> bool:
        """Whether a minibatch can be appended without reducing what is there first."""
        if not self._lengths:
            return True
        assert self._buffer is not None
        if _given(fields, notes, index, actions) != self._given:
            return False
        rows, _, width = self._buffer.shape
        if len(self._lengths) < rows and n <= width:
            return True
        return self._bytes(2 * rows if len(self._lengths) == rows else rows, max(n, width)) <= self.limit_bytes

    def append(
        self,
        fields: Mapping[str, Tensor],
        n: int,
        notes: MinibatchNotes,
        *,
        index: Tensor | None = None,
        actions: Tensor | None = None,
    ) -> None:
        """Copy a minibatch in, one that `fits`.

        Args:
            fields: 1-d tensors of length n by name, of one device; the first minibatch decides which there are.
            n: transitions, padding included.
            notes: what else is known.
            index: int64 [n], position of each transition in the rollout.
            actions: [n, size].

        Raises:
            BadCall: the lengths differ; the minibatch is not taken.
        """
        self._reserve(fields, n)
        if not self._lengths:
            self._given = _given(fields, notes, index, actions)
        assert self._buffer is not None
        row = len(self._lengths)
        tensors = list(fields.values())
        if not self._uniform or index is not None or actions is not None:
            _check_lengths(fields, n, index, actions)  # copying would repeat a single element
        with torch.no_grad():
            target = self._rows[row] if n == self._buffer.shape[2] else self._buffer[row, :, :n]
            if self._uniform:
                try:
                    torch.stack(tensors, out=target)
                except RuntimeError:
                    _check_lengths(fields, n, index, actions)
                    raise
            else:
                for i, tensor in enumerate(tensors):
                    target[i].copy_(tensor)
            if index is not None:
                self._index = self._sized(self._index, torch.int64, ())
                self._index[row, :n].copy_(index)
            else:
                self._index = None
            if actions is not None:
                self._actions = self._sized(self._actions, torch.float32, actions.shape[1:])
                self._actions[row, :n].copy_(actions)
            else:
                self._actions = None
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

    @torch.no_grad()
    def reduce(self) -> Piece | None:
        """Reduce all minibatches and forget them; None where there are none."""
        if not self._lengths:
            return None
        assert self._buffer is not None and self._norms is not None
        rows, width = len(self._lengths), max(max(self._lengths), 1)
        view = self._buffer[:rows, :, :width]
        fields = {name: view[:, i] for i, name in enumerate(self._names)}
        valid = self._valid(fields.pop("mask", None), rows, width)
        notes = tuple(self._notes)
        if "entropy_max" not in fields and all(m.entropy_max is not None for m in notes):
            fields["entropy_max"] = self._per_row([m.entropy_max for m in notes])[:, None].expand(rows, width)
        normalize = from_host([m.normalize for m in notes], torch.bool, view.device)
        t = terms(fields, valid=valid, normalize=normalize)
        statistics = transition_statistics(
            t,
            clip_range=self._known([m.clip_range for m in notes]),
            value_clip_range=self._known([m.value_clip_range for m in notes]),
            pessimistic_value_clip=self.pessimistic_value_clip,
        )
        if self.per_minibatch:
            histogram = log_ratio_histogram(t.log_ratio, valid)
        else:
            histogram = log_ratio_histogram(t.log_ratio.reshape(-1), valid.reshape(-1))
        exemplars, actions = self._exemplars(t, fields, rows, width)
        piece = Piece(notes, statistics, histogram, exemplars, actions, self._grad_norms(notes), self.per_minibatch)
        self.clear()
        return piece

    def _grad_norms(self, notes: Sequence[MinibatchNotes]) -> Tensor:
        assert self._norms is not None
        on_host = [m.grad_norm is not None for m in notes]
        norms = torch.tensor([m.grad_norm or 0.0 for m in notes], dtype=torch.float64, device="cpu")
        if all(known or not m.norm_seen for known, m in zip(on_host, notes, strict=True)):
            return norms
        device = self._norms.device
        known = from_host(on_host, torch.bool, device)
        return torch.where(known, from_host(norms.tolist(), torch.float64, device), self._norms[: len(notes)])

    def _exemplars(self, t: Terms, fields: Mapping[str, Tensor], rows: int, width: int) -> tuple[Packed, Tensor | None]:
        if self.per_minibatch:
            found = [worst(t.log_ratio[i], t.valid[i], EXEMPLARS) for i in range(rows)]
            places = torch.cat([positions + i * width for i, (positions, _) in enumerate(found)])
            severity = torch.cat([s for _, s in found])
        else:
            places, severity = worst(t.log_ratio.reshape(-1), t.valid.reshape(-1), EXEMPLARS)
        columns = {
            "severity": severity,
            "position": torch.div(places, width, rounding_mode="floor"),
            "log_ratio": t.log_ratio.reshape(-1)[places],
        }
        if self._index is not None:
            columns["index"] = self._index[:rows, :width].reshape(-1)[places]
        for name, tensor in (
            ("old_log_prob", fields.get("old_log_prob")),
            ("new_log_prob", fields.get("new_log_prob")),
            ("advantage", t.advantage),
            ("value", t.value),
            ("value_target", t.target),
        ):
            if tensor is not None:
                columns[name] = tensor.reshape(-1)[places]
        packed = Packed(tuple(columns), torch.stack([c.to(torch.float64) for c in columns.values()], dim=-1))
        actions = None if self._actions is None else self._actions[:rows, :width].flatten(0, 1)[places]
        return packed, actions

    def _valid(self, mask: Tensor | None, rows: int, width: int) -> Tensor:
        assert self._buffer is not None
        lengths = from_host(self._lengths, torch.int64, self._buffer.device)
        valid = torch.arange(width, device=self._buffer.device) < lengths[:, None]
        return valid if mask is None else valid & (mask != 0)

    def _per_row(self, values: list[Any]) -> Tensor:
        assert self._buffer is not None
        return from_host(values, torch.float64, self._buffer.device)

    def _known(self, values: list[float | None]) -> Tensor | None:
        if all(v is None for v in values):
            return None
        return self._per_row([_NAN if v is None else v for v in values])

    def _reserve(self, fields: Mapping[str, Tensor], n: int) -> None:
        buffer = self._buffer
        if self._lengths:
            assert buffer is not None
            if len(self._lengths) < buffer.shape[0] and n <= buffer.shape[2]:
                return
        first = next(iter(fields.values()))
        dtype = torch.float64 if any(t.dtype == torch.float64 for t in fields.values()) else torch.float32
        self._uniform = all(t.dtype == dtype for t in fields.values())
        if not self._lengths and (
            buffer is None or tuple(fields) != self._names or buffer.device != first.device or buffer.dtype != dtype
        ):
            self._names = tuple(fields)
            self._buffer = torch.zeros((32, len(fields), max(n, 1)), dtype=dtype, device=first.device)
            self._index = self._actions = None
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
            if self._index is not None:
                self._index = self._sized(self._index, self._index.dtype, ())
            if self._actions is not None:
                self._actions = self._sized(self._actions, self._actions.dtype, self._actions.shape[2:])

    def _sized(self, tensor: Tensor | None, dtype: torch.dtype, tail: tuple[int, ...]) -> Tensor:
        """A companion of the buffer: [rows, width, *tail]."""
        assert self._buffer is not None
        shape = (self._buffer.shape[0], self._buffer.shape[2], *tail)
        if tensor is None or tuple(tensor.shape[2:]) != tuple(tail):
            return torch.full(shape, -1, dtype=dtype, device=self._buffer.device)
        return tensor if tuple(tensor.shape) == shape else _grown(tensor, shape)

    def _bytes(self, rows: int, width: int) -> int:
        assert self._buffer is not None
        return rows * width * self._buffer.shape[1] * self._buffer.element_size()


def _given(
    fields: Mapping[str, Tensor], notes: MinibatchNotes, index: Tensor | None, actions: Tensor | None
) -> tuple[Any, ...]:
    """What a minibatch brings. Those reduced together bring the same, so that what one lacks is not made up."""
    return (
        tuple(fields),
        tuple([t.dtype for t in fields.values()]),
        next(iter(fields.values())).device,
        notes.clip_range is None,
        notes.entropy_max is None,
        index is None,
        None if actions is None else tuple(actions.shape[1:]),
    )


def _check_lengths(fields: Mapping[str, Tensor], n: int, index: Tensor | None, actions: Tensor | None) -> None:
    lengths = {name: t.shape[0] for name, t in fields.items() if t.shape[0] != n}
    if index is not None and index.shape[0] != n:
        lengths["index"] = index.shape[0]
    if actions is not None and actions.shape[0] != n:
        lengths["actions"] = actions.shape[0]
    if lengths:
        first = next(iter(fields))
        odd = ", ".join(f"{_ARGUMENTS.get(name, name)} has {length}" for name, length in lengths.items())
        raise BadCall(
            f"the tensors of a minibatch have different lengths: {_ARGUMENTS.get(first, first)} has {n}, {odd}"
        )


def _grown(tensor: Tensor, shape: tuple[int, ...]) -> Tensor:
    larger = torch.zeros(shape, dtype=tensor.dtype, device=tensor.device)
    larger[tuple(slice(0, size) for size in tensor.shape)] = tensor
    return larger


def merge_exemplars(pieces: list[list[dict[str, Any]]]) -> Iterator[dict[str, Any]]:
    """The worst of several lists of exemplars, worst first: those of the pieces an update was reduced in."""
    rows = [row for piece in pieces for row in piece]
    rows.sort(key=lambda row: -row["severity"])
    yield from rows[:EXEMPLARS]
