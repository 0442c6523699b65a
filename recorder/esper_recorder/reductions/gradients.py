"""Statistics of gradients, one row per parameter tensor.

Every gradient is read in chunks of a fixed size, and a chunk is reduced by a fixed number of operations, whatever the
number of tensors in it: small tensors are copied side by side into a buffer, large ones are read in place. So nothing
the size of the model is allocated, and the number of launches grows with the chunks and not with the tensors.

On the host a chunk fits the cache, and each pass over it counts: the exponents, one byte of each number, are counted
first. That is the histogram, and says whether there is a zero, a NaN or an infinity to look for.

Covers: dense real gradients of any floating type and memory layout, and what a step changed in the weights.
Does not cover: a kernel that reads every gradient byte once. On a GPU a chunk takes about thirty launches, each of
which reads it; that is little work per step and far from the card's bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np
import torch
from torch import Tensor

from esper_recorder.contract.histogram import GRADIENT_EXPONENTS, gradient_bin_count
from esper_recorder.reductions.statistics import Statistics, from_host

CPU_CHUNK, DEVICE_CHUNK = 1 << 17, 1 << 21
"""Elements reduced at a time: they fit a CPU's cache, and keep a GPU busy."""

NAMES = (
    *("grad_nan", "grad_posinf", "grad_neginf", "grad_zero", "grad_sum", "grad_sum_sq", "grad_min", "grad_max"),
    *("weight_sum_sq", "step_sum_sq"),
)
"""The statistics of a layer; `step_sum_sq` is negative if it was not measured."""

MEASURED = (*NAMES[:8], "below", "above")
"""What `measure` returns: the statistics of a layer's gradient, and how many elements are below and above limits."""

_ROW = 64  # on a device each tensor of a chunk begins a row, so that a row belongs to one tensor
_MOST_STEPS = 64
_BINS = gradient_bin_count()


def layer_statistics(parameters: Sequence[Tensor]) -> tuple[Statistics, Tensor]:
    """Count and sum each parameter's gradient, named as in the table `gradient_layers`, and its histogram.

    Args:
        parameters: at least one, each with a dense gradient, of one device and one `precision`.

    Returns:
        statistics [layers, k] and histograms int64 [layers, bins].
    """
    reducer = LayerReducer(parameters)
    reducer.take(parameters)
    statistics, histograms = reducer.drain()
    return Statistics(statistics.names, statistics.values[0]), histograms[0]


@torch.no_grad()
def measure(tensors: Sequence[Tensor], *, below: float = 0.0, above: float = math.inf) -> Statistics:
    """Count and sum each tensor; nothing is kept from call to call.

    Args:
        tensors: dense and real, at least one, of one device and one `precision`.
        below, above: absolute values less than `below` and greater than `above` are counted, strictly; of float32 and
            half types the limits are those numbers rounded to float32.

    Returns:
        [tensors, k], named `MEASURED`.
    """
    widest = CPU_CHUNK if tensors[0].device.type == "cpu" else DEVICE_CHUNK
    chunk = min(widest, 2 * _ROW * max(_rows(tensors, _ROW), 1))  # a small model needs no more memory than itself
    return LayerReducer(tensors, chunk=chunk, keep_bytes=0).measure(tensors, below, above)


def precision(tensor: Tensor) -> torch.dtype:
    """Return the type that a tensor is reduced in: float64 if it has it, else float32."""
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


class LayerReducer:
    """Reduces the gradients and the weights of some parameters at one optimizer step after another.

    If all of them fit a chunk several times, steps are copied and reduced together: of a small model the launches cost
    more than the arithmetic.

    Args:
        parameters: at least one, of one device and one `precision`; they are not kept alive. Every call is given the
            same ones, or others of the same shapes.
        chunk: elements reduced at a time.
        keep_bytes: how large a copy of the weights may be; parameters are copied in order while they fit.
    """

    def __init__(self, parameters: Sequence[Tensor], *, chunk: int | None = None, keep_bytes: int = 64 << 20) -> None:
        first = parameters[0]
        self._layers = len(parameters)
        self._device, self._dtype = first.device, precision(first)
        host = first.device.type == "cpu"
        self._chunk = chunk or (CPU_CHUNK if host else DEVICE_CHUNK)
        row = 1 if host else _ROW
        self._kernel: _Kernel = (_HostKernel if host else _Kernel)(self._layers, self._chunk, self._dtype, first.device)
        self._large, batches = _split(parameters, self._chunk, row)
        width = max((row * _rows((parameters[i] for i in batch), row) for batch in batches), default=0)
        together = not self._large and len(batches) == 1
        steps = max(1, min(self._chunk // max(width, 1), _MOST_STEPS)) if together else 1
        self._steps = steps if together else 0  # 0: a step is reduced at once, as there is no buffer to keep it
        # What is beside the tensors in these is NaN, which no statistic includes.
        self._gradients, self._weights, self._changes = (
            torch.full((steps, width), torch.nan, dtype=self._dtype, device=self._device) for _ in range(3)
        )
        self._groups = [_Group(parameters, batch, row, steps, self._kernel) for batch in batches]
        self._staged = [group.views(self._gradients[0]) for group in self._groups]
        padding = [row * _rows([p], row) - p.numel() if p.numel() <= self._chunk // 2 else 0 for p in parameters]
        self._padding = from_host(padding, torch.float64, first.device)
        self._kept: list[Tensor] = []
        if together:
            (group,) = self._groups
            self._gradient_views, self._weight_views, self._change_views = (
                [group.views(rows) for rows in buffer] for buffer in (self._gradients, self._weights, self._changes)
            )
            self._weight_rows, self._change_rows = self._weights.unbind(), self._changes.unbind()
            self._then = self._before = torch.full_like(self._changes[0], torch.nan)
            self._kept = group.views(self._before)
        else:
            for p in parameters:
                keep_bytes -= p.numel() * p.element_size()
                if keep_bytes < 0:
                    break
                self._kept.append(torch.empty_like(p, requires_grad=False))
        self._compared = False  # whether there is something to compare with
        self._flags: list[bool] = []  # for each step taken, whether its change is known
        self._waiting = 0  # of them, those copied and not yet reduced
        self._done: list[_Totals] = []

    @property
    def holds_weights(self) -> bool:
        """Whether the weights of the newest `take` are still there, for `keep_taken`."""
        return self._steps > 0

    @torch.no_grad()
    def keep(self, parameters: Sequence[Tensor]) -> None:
        """Copy the weights before a step, for `changed` to compare with."""
        copy_all(self._kept, parameters[: len(self._kept)])
        if self._steps:
            self._then = self._before
        self._compared = True

    def keep_taken(self) -> None:
        """Compare with the weights of the newest `take`, without another copy; only if it `holds_weights`."""
        self._then, self._compared = self._weight_rows[self._waiting - 1], True

    @torch.no_grad()
    def take(self, parameters: Sequence[Tensor], *, after_step: bool = False) -> None:
        """Read the gradients and the weights.

        Args:
            after_step: these weights are those after the step that `keep` preceded: as if `changed` came first.
        """
        if after_step and (not self._steps or self._waiting == self._steps):
            self.changed(parameters)
        gradients = [g for p in parameters if (g := p.grad) is not None]
        self._flags.append(False)
        if not self._steps:
            totals = self._kernel.totals(self._layers)
            for chunk, segments in self._chunks(gradients):
                self._kernel.add(totals, chunk, segments)
            for chunk, segments in self._chunks(parameters):
                self._kernel.add_squares(totals.table[_WEIGHT], chunk, segments)
            self._done.append(totals)
            return
        if self._waiting == self._steps:
            self._reduce()
        copy_all(self._gradient_views[self._waiting], gradients)
        copy_all(self._weight_views[self._waiting], parameters)
        if after_step and self._compared:
            torch.sub(self._weight_rows[self._waiting], self._then, out=self._change_rows[self._waiting - 1])
            self._compared, self._flags[-2] = False, True
        self._waiting += 1

    @torch.no_grad()
    def changed(self, parameters: Sequence[Tensor]) -> None:
        """Compare the weights with those kept: what the step after the newest `take` changed."""
        if not self._compared:
            return
        self._compared, self._flags[-1] = False, True
        if not self._steps:
            kept = len(self._kept)
            for chunk, segments in self._chunks(parameters[:kept], self._kept):
                self._kernel.add_squares(self._done[-1].table[_STEP], chunk, segments)
            self._done[-1].table[_STEP, kept:] = -1
            return
        copy_all(self._change_views[self._waiting - 1], parameters)
        self._change_rows[self._waiting - 1].sub_(self._then)

    @torch.no_grad()
    def drain(self) -> tuple[Statistics, Tensor]:
        """Return the statistics of the steps since the last call, at least one, and forget them.

        Returns:
            statistics [steps, layers, k], named `NAMES`, and histograms int64 [steps, layers, bins].
        """
        if self._waiting:
            self._reduce()
        steps, flags = len(self._flags), self._flags
        table, bins = _finish(self._done, self._padding)
        self.forget()
        statistics = table.view(len(NAMES), steps, -1)
        if not all(flags):
            compared = from_host(flags, torch.bool, self._device)[:, None]
            statistics[_STEP] = torch.where(compared, statistics[_STEP], -1)
        return Statistics(NAMES, statistics.movedim(0, -1)), bins.view(steps, -1, _BINS)

    @torch.no_grad()
    def measure(self, tensors: Sequence[Tensor], below: float, above: float) -> Statistics:
        """See the function `measure`; tensors of the parameters' shapes. For a reducer that has read nothing yet."""
        totals = self._kernel.totals(self._layers)
        beyond = torch.zeros((2, self._layers), dtype=torch.float64, device=self._device)
        for chunk, segments in self._chunks(tensors):
            for piece in self._kernel.pieces(chunk):
                self._kernel.add(totals, piece, segments)
                size = piece.abs()
                for counts, condition in zip(beyond, (size < below, size > above), strict=True):
                    self._kernel.add_counts(counts, condition, segments)
        table, _ = _finish([totals], self._padding)
        return Statistics(MEASURED, torch.cat([table[:_WEIGHT], beyond]).t())

    def forget(self) -> None:
        """Forget the steps."""
        self._done, self._flags, self._waiting = [], [], 0

    def _reduce(self) -> None:
        """Reduce the steps that were copied, together."""
        steps, self._waiting = self._waiting, 0
        segments, totals = self._groups[0].segments(steps), self._kernel.totals(steps * self._layers)
        self._kernel.add(totals, self._gradients[:steps].view(-1), segments)
        self._kernel.add_squares(totals.table[_WEIGHT], self._weights[:steps].view(-1), segments)
        if any(self._flags):
            self._kernel.add_squares(totals.table[_STEP], self._changes[:steps].view(-1), segments)
        self._done.append(totals)

    def _chunks(
        self, tensors: Sequence[Tensor], less: Sequence[Tensor] | None = None
    ) -> Iterator[tuple[Tensor, _Segments]]:
        """Yield the first parameters' numbers, or differences, in chunks of one dimension, and their layers.

        A chunk is valid until the next one.
        """
        for group, targets in zip(self._groups, self._staged, strict=True):
            layers = [i for i in group.layers if i < len(tensors)]
            rows = self._gradients[0]
            if len(self._groups) > 1:
                rows.fill_(torch.nan)  # of another group's
            copy_all(targets[: len(layers)], [tensors[i] for i in layers])
            if less is not None:
                before = torch.full_like(rows, torch.nan)
                copy_all(group.views(before)[: len(layers)], [less[i] for i in layers])
                rows -= before
            yield rows[: group.width], group.segments(1)
        for i in self._large:
            if i >= len(tensors):
                break
            now = _flat(tensors[i])
            if less is None:
                yield now, self._kernel.whole(i)
                continue
            for start in range(0, now.shape[0], self._chunk):
                pieces = (x[start : start + self._chunk].to(self._dtype) for x in (now, _flat(less[i])))
                yield torch.sub(*pieces), self._kernel.whole(i)


def _split(parameters: Sequence[Tensor], chunk: int, row: int) -> tuple[list[int], list[list[int]]]:
    """Separate large parameters from the others, which are put in batches that fit a chunk, in order."""
    large: list[int] = []
    batches: list[list[int]] = []
    free = 0
    for i, p in enumerate(parameters):
        if p.numel() > chunk // 2:  # it would gain nothing from sharing a chunk
            large.append(i)
            continue
        size = row * _rows([p], row)
        if size > free or not batches:
            batches.append([])
            free = chunk
        batches[-1].append(i)
        free -= size
    return large, batches


def _rows(tensors: Iterable[Tensor], row: int) -> int:
    """Count the rows of the tensors, each of which begins one."""
    return sum(math.ceil(t.numel() / row) for t in tensors)


@dataclass(frozen=True, slots=True)
class _Segments:
    """Which layers the numbers of a chunk are of."""

    layers: Any
    """Of each segment, or on a device of each row of the chunk."""
    starts: Any = None
    """Where each segment begins, on the host; none is empty."""
    base: Any = None
    """On the host, of each number of several segments, the number of its segment times the exponents there are; on a
    device, of each row, where the bins of its layer begin, for an exponent of 0."""


class _Group:
    """Small tensors side by side in rows of a buffer, each of which begins a row."""

    def __init__(self, parameters: Sequence[Tensor], layers: list[int], row: int, steps: int, kernel: _Kernel) -> None:
        self.layers = layers
        self._shapes = [parameters[i].shape for i in layers]
        sizes = [row * _rows([parameters[i]], row) for i in layers]
        self._starts = [end - size for end, size in zip(accumulate(sizes), sizes, strict=True)]
        self.width = sum(sizes)
        self._segments = kernel.segments(layers, sizes, steps)

    def views(self, row: Tensor) -> list[Tensor]:
        """Views of a step's numbers in a buffer, one per tensor and in its shape."""
        places = zip(self._starts, self._shapes, strict=True)
        return [row[start : start + shape.numel()].view(shape) for start, shape in places]

    def segments(self, steps: int) -> _Segments:
        """Those of that many steps one after the other."""
        return self._segments[steps - 1]


@dataclass(frozen=True, slots=True)
class _Totals:
    """The totals of the chunks read so far, layer by layer."""

    table: Tensor
    """float64 [statistics, layers], in the order of `NAMES`."""
    bins: Tensor
    """int64 [layers, bins]: by power of two; zeros are in the second bin, NaN and infinities in the last."""


_SUM, _MIN, _WEIGHT, _STEP = (NAMES.index(name) for name in ("grad_sum", "grad_min", "weight_sum_sq", "step_sum_sq"))


def _finish(several: Sequence[_Totals], padding: Tensor) -> tuple[Tensor, Tensor]:
    """Concatenate totals: the statistics and the histograms of their layers.

    Args:
        padding: how many NaN stand beside the tensor of each layer in its rows.
    """
    table, bins = several[0].table, several[0].bins
    if len(several) > 1:
        table, bins = torch.cat([t.table for t in several], dim=1), torch.cat([t.bins for t in several])
    # In the order of the histogram: zeros do not belong in the second bin, nor NaN in the last.
    counted = torch.stack([table[3], table[0]], dim=-1).to(torch.int64)
    bins[:, 0] = counted[:, 0]
    bins[:, 1 :: _BINS - 2].sub_(counted)
    table[0].view(-1, len(padding)).sub_(padding)
    table[_MIN:_WEIGHT].masked_fill_(bins.sum(dim=-1) == 0, torch.nan)
    return table, bins


class _Kernel:
    """Reduces chunks of one type on one device, on any device.

    A chunk is rows of `_ROW` numbers, each of one layer, or all of one layer.
    """

    def __init__(self, layers: int, chunk: int, dtype: torch.dtype, device: torch.device) -> None:
        self._layers, self._chunk, self._dtype, self._device = layers, chunk, dtype, device
        self._bits, self._shift, self._codes = (
            (torch.int64, 52, 1 << 11) if dtype == torch.float64 else (torch.int32, 23, 1 << 8)
        )
        self._first, self._top = (e + self._codes // 2 - 1 for e in GRADIENT_EXPONENTS)
        self._every = torch.arange(layers, device=device)
        self._one = torch.ones(1, dtype=torch.int64, device=device)

    def totals(self, layers: int) -> _Totals:
        """Totals of nothing."""
        table = torch.zeros((len(NAMES), layers), dtype=torch.float64, device=self._device)
        table[_MIN].fill_(torch.inf)
        table[_MIN + 1].fill_(-torch.inf)
        return _Totals(table, torch.zeros((layers, _BINS), dtype=torch.int64, device=self._device))

    def segments(self, layers: list[int], sizes: list[int], steps: int) -> list[_Segments]:
        """The segments of tensors side by side, padded to these sizes: those of one step, of two, and so on."""
        of_row = [i for i, size in zip(layers, sizes, strict=True) for _ in range(size // _ROW)]
        one = from_host(of_row, torch.int64, self._device)
        every = (one + self._layers * torch.arange(steps, device=self._device)[:, None]).flatten()
        return [self._segments(every[: k * len(of_row)]) for k in range(1, steps + 1)]

    def whole(self, layer: int) -> _Segments:
        """The segment of a chunk that is of one layer."""
        return self._segments(self._every[layer : layer + 1])

    def _segments(self, layers: Tensor) -> _Segments:
        return _Segments(layers, base=(layers * _BINS - (self._first - 2))[:, None])

    def add(self, totals: _Totals, chunk: Tensor, segments: _Segments) -> None:
        """Add gradients: a chunk of several layers, or any number of one layer's."""
        for piece in self.pieces(chunk):
            self._add(totals, piece.view(len(segments.layers), -1), segments)

    def pieces(self, x: Tensor) -> Iterator[Tensor]:
        """Yield what is reduced at a time, in the type that it is reduced in."""
        for start in range(0, x.shape[0], self._chunk):
            yield x[start : start + self._chunk].to(self._dtype)

    def _add(self, totals: _Totals, x: Tensor, segments: _Segments) -> None:
        layers = segments.layers
        conditions = torch.stack([torch.isnan(x), x == torch.inf, x == -torch.inf, x == 0])
        wide = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0).to(torch.float64)
        sums = torch.stack([wide, wide * wide]).sum(dim=-1)
        counts = conditions.sum(dim=-1, dtype=torch.float64)
        totals.table[:_MIN].index_add_(1, layers, torch.cat([counts, sums]))
        lowest = torch.nan_to_num(x, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(dim=-1)
        highest = torch.nan_to_num(x, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(dim=-1)
        totals.table[_MIN].scatter_reduce_(0, layers, lowest.to(torch.float64), "amin")
        totals.table[_MIN + 1].scatter_reduce_(0, layers, highest.to(torch.float64), "amax")
        power = (x.view(self._bits) >> self._shift).bitwise_and_(self._codes - 1).clamp_(self._first - 1, self._top)
        places = (power + segments.base).flatten()
        # In one dimension, for which torch has an order-independent implementation on every device.
        totals.bins.view(-1).scatter_add_(0, places, self._one.expand(places.shape))

    def add_squares(self, sums: Tensor, chunk: Tensor, segments: _Segments) -> None:
        """Add the squares of the finite ones of such numbers to sums, float64 [layers]."""
        for piece in self.pieces(chunk):
            wide = torch.nan_to_num(piece, nan=0.0, posinf=0.0, neginf=0.0).to(torch.float64)
            sums.index_add_(0, segments.layers, wide.square_().view(len(segments.layers), -1).sum(dim=-1))

    def add_counts(self, counts: Tensor, condition: Tensor, segments: _Segments) -> None:
        """Add how many of such numbers meet a condition, to float64 [layers]."""
        found = condition.view(len(segments.layers), -1).sum(dim=-1, dtype=torch.float64)
        counts.index_add_(0, segments.layers, found)


class _HostKernel(_Kernel):
    """The same on the host, with as few passes over the numbers as there can be. A chunk is not padded."""

    def __init__(self, layers: int, chunk: int, dtype: torch.dtype, device: torch.device) -> None:
        super().__init__(layers, chunk, dtype, device)
        # Used again for each chunk: fresh memory costs more than the arithmetic.
        self._wide = torch.empty(chunk, dtype=torch.float64, device=device)
        self._shifted = np.empty(chunk, dtype=np.uint64 if dtype == torch.float64 else np.uint32)
        # A byte holds the exponent of a float32; the sign is what it does not hold.
        kind = torch.int64 if dtype == torch.float64 else torch.uint8
        self._exponents = torch.empty(chunk, dtype=kind, device=device)

    def segments(self, layers: list[int], sizes: list[int], steps: int) -> list[_Segments]:
        given = [(i, size) for i, size in zip(layers, sizes, strict=True) if size]
        one, lengths = (np.array([pair[j] for pair in given], dtype=np.int64) for j in (0, 1))
        every = (one + self._layers * np.arange(steps)[:, None]).ravel()
        starts = (np.cumsum(lengths) - lengths + sum(sizes) * np.arange(steps)[:, None]).ravel()
        base = np.repeat(np.arange(len(every)) * self._codes, np.tile(lengths, steps))
        n, width = len(given), sum(sizes)
        return [_Segments(every[: k * n], starts[: k * n], base[: k * width]) for k in range(1, steps + 1)]

    def whole(self, layer: int) -> _Segments:
        return _Segments(slice(layer, layer + 1), _FIRST)

    def add(self, totals: _Totals, chunk: Tensor, segments: _Segments) -> None:
        table, bins = totals.table.numpy(), totals.bins[:, 1:].numpy()
        lowest, highest = table[_MIN], table[_MIN + 1]
        at, starts = segments.layers, segments.starts
        for piece in self.pieces(chunk):
            x = piece.numpy()
            codes = self._codes_of(x, segments)
            bins[at] += codes[:, self._first - 1 : self._top + 1]
            bins[at, 0] += np.add.reduce(codes[:, : self._first - 1], axis=1)
            bins[at, -1] += np.add.reduce(codes[:, self._top + 1 :], axis=1)
            tiny, odd = np.logical_or.reduce(codes[:, :: self._codes - 1])  # has a zero or denormal; NaN or infinity
            if tiny:
                table[3, at] += np.add.reduceat(x == 0, starts, dtype=np.int64)
            low = high = x
            if odd:
                nan = np.isnan(x)
                for row, condition in enumerate((nan, x == np.inf, x == -np.inf)):
                    table[row, at] += np.add.reduceat(condition, starts, dtype=np.int64)
                low, high = np.where(nan, np.inf, x), np.where(nan, -np.inf, x)
                x = np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
            lowest[at] = np.minimum(lowest[at], np.minimum.reduceat(low, starts))
            highest[at] = np.maximum(highest[at], np.maximum.reduceat(high, starts))
            wide = self._wide_of(x)
            table[_SUM, at] += np.add.reduceat(wide.numpy(), starts)
            table[_SUM + 1, at] += _squared(wide, segments)

    def add_squares(self, sums: Tensor, chunk: Tensor, segments: _Segments) -> None:
        into = sums.numpy()
        for piece in self.pieces(chunk):
            x = piece.numpy()
            squares = _squared(self._wide_of(x), segments)
            if not np.isfinite(squares.sum()):
                finite = np.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0)
                squares = _squared(self._wide_of(finite), segments)
            into[segments.layers] += squares

    def add_counts(self, counts: Tensor, condition: Tensor, segments: _Segments) -> None:
        if len(condition):
            counts.numpy()[segments.layers] += np.add.reduceat(condition.numpy(), segments.starts, dtype=np.int64)

    def _codes_of(self, x: Any, segments: _Segments) -> Any:
        """Count the exponents of each segment: int64 [segments, codes]."""
        shifted, exponents = self._shifted[: len(x)], self._exponents[: len(x)]
        np.right_shift(x.view(shifted.dtype), self._shift, out=shifted)
        if self._dtype == torch.float64:
            np.bitwise_and(shifted, self._codes - 1, out=shifted)
        np.copyto(exponents.numpy(), shifted, casting="unsafe")
        if segments.base is not None:
            exponents = torch.from_numpy(segments.base + exponents.numpy())
        counts = torch.bincount(exponents, minlength=len(segments.starts) * self._codes)
        return counts.numpy().reshape(-1, self._codes)

    def _wide_of(self, x: Any) -> Tensor:
        wide = self._wide[: len(x)]
        np.copyto(wide.numpy(), x)
        return wide


_FIRST = np.zeros(1, dtype=np.int64)


def _squared(wide: Tensor, segments: _Segments) -> Any:
    """Sum the squares of each segment, and write over `wide`."""
    if segments.base is None:
        return torch.dot(wide, wide).numpy()  # NumPy's uses all cores, whatever torch may use
    return np.add.reduceat(np.square(wide.numpy(), out=wide.numpy()), segments.starts)


def copy_all(targets: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy each source into its target, in as few launches as possible.

    `torch._foreach_copy_` is what torch's optimizers use, and is not public: if it is missing or declines, the tensors
    are copied one by one.
    """
    together = getattr(torch, "_foreach_copy_", None)
    if together is not None and targets:
        try:
            together(list(targets), list(sources))
            return
        except (RuntimeError, TypeError):
            pass
    for target, source in zip(targets, sources, strict=True):
        target.copy_(source)


def _flat(x: Tensor) -> Tensor:
    """Flatten in the order of memory, which no statistic depends on; a copy only of what has gaps."""
    x = x.detach()
    if not x.is_contiguous():
        x = x.permute(sorted(range(x.dim()), key=x.stride, reverse=True))
    return x.reshape(-1)
