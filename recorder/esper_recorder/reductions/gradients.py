"""Statistics of gradients, one row per parameter tensor.

Every gradient is read in chunks of a fixed size, and a chunk is reduced by a fixed number of operations, whatever the
number of tensors in it: small tensors are copied side by side into a buffer, large ones are read in place. So nothing
the size of the model is allocated, and the number of launches grows with the chunks and not with the tensors.

Within a chunk the classes of a number (NaN, infinite, zero, its power of two) are read from its bits by whole-number
arithmetic: on a CPU a comparison of floats costs several times as much.

Covers: dense real gradients of any floating type and memory layout, and what a step changed in the weights.
Does not cover: a kernel that reads every gradient byte once. On a GPU a chunk takes about forty launches, each of which
reads it; that is little work per step and far from the card's bandwidth.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor

from esper_recorder.contract.histogram import GRADIENT_EXPONENTS, gradient_bin_count
from esper_recorder.reductions.statistics import Statistics, from_host

CPU_CHUNK, DEVICE_CHUNK = 1 << 16, 1 << 21
"""Elements reduced at a time: they fit a CPU's cache, and keep a GPU busy."""

NAMES = (
    *("grad_nan", "grad_posinf", "grad_neginf", "grad_zero", "grad_sum", "grad_sum_sq", "grad_min", "grad_max"),
    *("weight_sum_sq", "step_sum_sq"),
)
"""The statistics of a layer; `step_sum_sq` is negative if it was not measured."""

MEASURED = (*NAMES[:8], "below", "above")
"""What `measure` returns: the statistics of a layer's gradient, and how many elements are below and above limits."""

_ROW = 64  # each tensor of a chunk begins a row, so that a row belongs to one tensor
_BINS = 64  # of which `gradient_bin_count()` are used
_MOST_STEPS = 64


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
    chunk = min(widest, 2 * _ROW * max(_rows(tensors), 1))  # a small model needs no more memory than itself
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
        self._chunk = chunk or (CPU_CHUNK if first.device.type == "cpu" else DEVICE_CHUNK)
        self._device, self._dtype = first.device, precision(first)
        self._sizes = from_host([p.numel() for p in parameters], torch.int64, first.device)
        self._work = _Workspace(self._chunk, self._dtype, self._device)
        self._large, batches = _split(parameters, self._chunk)
        rows = max((_rows(parameters[i] for i in batch) for batch in batches), default=0)
        together = not self._large and len(batches) == 1
        steps = max(1, min(self._chunk // (_ROW * max(rows, 1)), _MOST_STEPS)) if together else 1
        self._steps = steps if together else 0  # 0: a step is reduced at once, as there is no buffer to keep it
        # What is beside the tensors in these is NaN, which no statistic includes.
        self._gradients, self._weights, self._changes = (
            torch.full((steps, rows, _ROW), torch.nan, dtype=self._dtype, device=self._device) for _ in range(3)
        )
        self._groups = [_Group(parameters, batch, self._device) for batch in batches]
        self._staged = [group.views(self._gradients[0]) for group in self._groups]
        self._kept: list[Tensor] = []
        if together:
            (group,) = self._groups
            self._gradient_views, self._weight_views, self._change_views = (
                [group.views(rows) for rows in buffer] for buffer in (self._gradients, self._weights, self._changes)
            )
            self._weight_rows, self._change_rows = self._weights.unbind(), self._changes.unbind()
            self._then = self._before = torch.full_like(self._changes[0], torch.nan)
            self._kept = group.views(self._before)
            self._layer_of_row = (
                group.layer_of_row + len(parameters) * torch.arange(steps, device=self._device)[:, None]
            )
        if not together:
            for p in parameters:
                keep_bytes -= p.numel() * p.element_size()
                if keep_bytes < 0:
                    break
                self._kept.append(torch.empty_like(p, requires_grad=False))
        self._compared = False  # whether there is something to compare with
        self._places = torch.arange(len(parameters), device=self._device)
        self._flags: list[bool] = []  # for each step taken, whether its change is known
        self._waiting = 0  # of them, those copied and not yet reduced
        self._done: list[tuple[_Totals, Tensor, Tensor]] = []

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
            totals = _Totals.zeros(self._layers, self._dtype, self._device)
            for chunk, layers in self._chunks(gradients):
                totals.add(chunk, layers, self._work)
            squares = self._squares(self._chunks(parameters), self._layers)
            self._done.append((totals, squares, torch.full_like(squares, -1)))
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
            squares = self._squares(self._chunks(parameters[:kept], self._kept), self._layers)
            squares[kept:] = -1
            self._done[-1][2].copy_(squares)
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
        totals, weights, changes = zip(*self._done, strict=True)
        compared = from_host(self._flags, torch.bool, self._device)[:, None]
        changed = torch.where(compared, torch.cat(changes).view(len(self._flags), -1), -1)
        steps = len(self._flags)
        values, bins = _Totals.joined(totals).finish(self._sizes.repeat(steps))
        statistics = torch.stack([*values, torch.cat(weights), changed.flatten()], dim=-1)
        self.forget()
        return Statistics(NAMES, statistics.view(steps, -1, len(NAMES))), bins.view(steps, -1, bins.shape[-1])

    @torch.no_grad()
    def measure(self, tensors: Sequence[Tensor], below: float, above: float) -> Statistics:
        """See the function `measure`; tensors of the parameters' shapes. For a reducer that has read nothing yet."""
        totals = _Totals.zeros(self._layers, self._dtype, self._device)
        beyond = torch.zeros((self._layers, 2), dtype=torch.float64, device=self._device)
        for chunk, layers in self._chunks(tensors):
            totals.add(chunk, layers, self._work)
            size = torch.abs(chunk, out=self._work.floats(chunk))
            counts = torch.stack([(size < below).sum(dim=-1), (size > above).sum(dim=-1)], dim=-1)
            beyond.index_add_(0, layers, counts.to(torch.float64))
        values, _ = totals.finish(self._sizes)
        return Statistics(MEASURED, torch.stack([*values, *beyond.unbind(dim=-1)], dim=-1))

    def forget(self) -> None:
        """Forget the steps."""
        self._done, self._flags, self._waiting = [], [], 0

    def _reduce(self) -> None:
        """Reduce the steps that were copied, together."""
        steps, self._waiting = self._waiting, 0
        layers, count = self._layer_of_row[:steps].flatten(), steps * self._layers
        totals = _Totals.zeros(count, self._dtype, self._device)
        totals.add(self._gradients[:steps].flatten(0, 1), layers, self._work)
        weights, changes = (
            self._squares([(buffer[:steps].flatten(0, 1), layers)], count) for buffer in (self._weights, self._changes)
        )
        self._done.append((totals, weights, changes))

    def _squares(self, chunks: Iterable[tuple[Tensor, Tensor]], layers: int) -> Tensor:
        """Sum the squares of each layer's finite numbers: float64 [layers]."""
        squares = torch.zeros(layers, dtype=torch.float64, device=self._device)
        for chunk, of in chunks:
            floats, wide = self._work.floats(chunk), self._work.wide(chunk)
            wide.copy_(torch.nan_to_num(chunk, nan=0.0, posinf=0.0, neginf=0.0, out=floats))
            squares.index_add_(0, of, wide.square_().sum(dim=-1))
        return squares

    def _chunks(
        self, tensors: Sequence[Tensor], less: Sequence[Tensor] | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the first parameters' numbers, or differences, in chunks: rows [r, c] and their layers, int64 [r].

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
            yield rows[: len(group.layer_of_row)], group.layer_of_row
        for i in self._large:
            if i >= len(tensors):
                break
            now, then = _flat(tensors[i]), None if less is None else _flat(less[i])
            for start in range(0, now.shape[0], self._chunk):
                piece = now[start : start + self._chunk].to(self._dtype)
                if then is not None:
                    piece = piece - then[start : start + self._chunk].to(self._dtype)
                yield piece[None], self._places[i : i + 1]


def _split(parameters: Sequence[Tensor], chunk: int) -> tuple[list[int], list[list[int]]]:
    """Separate large parameters from the others, which are put in batches that fit a chunk, in order."""
    large: list[int] = []
    batches: list[list[int]] = []
    free = 0
    for i, p in enumerate(parameters):
        if p.numel() > chunk // 2:  # it would gain nothing from sharing a chunk
            large.append(i)
            continue
        size = _ROW * _rows([p])
        if size > free or not batches:
            batches.append([])
            free = chunk
        batches[-1].append(i)
        free -= size
    return large, batches


def _rows(tensors: Iterable[Tensor]) -> int:
    """Count the rows of the tensors, each of which begins one."""
    return sum(math.ceil(t.numel() / _ROW) for t in tensors)


class _Group:
    """Small tensors side by side in rows of a buffer, each of which begins a row."""

    def __init__(self, parameters: Sequence[Tensor], layers: list[int], device: torch.device) -> None:
        self.layers = layers
        self._shapes = [parameters[i].shape for i in layers]
        heights = [_rows([parameters[i]]) for i in layers]
        self._starts = [_ROW * (end - height) for end, height in zip(accumulate(heights), heights, strict=True)]
        of_row = [i for i, height in zip(layers, heights, strict=True) for _ in range(height)]
        self.layer_of_row = from_host(of_row, torch.int64, device)

    def views(self, rows: Tensor) -> list[Tensor]:
        """Views of a buffer's rows, one per tensor and in its shape."""
        flat = rows.view(-1)
        places = zip(self._starts, self._shapes, strict=True)
        return [flat[start : start + shape.numel()].view(shape) for start, shape in places]


class _Workspace:
    """Memory that each chunk's reduction uses again: fresh memory costs more than the arithmetic."""

    def __init__(self, chunk: int, dtype: torch.dtype, device: torch.device) -> None:
        whole = torch.int64 if dtype == torch.float64 else torch.int32
        self.ones = torch.ones(chunk, dtype=torch.int64, device=device)
        self._floats = torch.empty(chunk, dtype=dtype, device=device)
        self._wide = torch.empty(chunk, dtype=torch.float64, device=device)
        self._places = torch.empty(chunk, dtype=torch.int64, device=device)
        self._whole = torch.empty((4, chunk), dtype=whole, device=device)

    def floats(self, like: Tensor) -> Tensor:
        return self._floats[: like.numel()].view(like.shape)

    def wide(self, like: Tensor) -> Tensor:
        return self._wide[: like.numel()].view(like.shape)

    def places(self, like: Tensor) -> Tensor:
        return self._places[: like.numel()].view(like.shape)

    def whole(self, like: Tensor) -> tuple[Tensor, ...]:
        """Four of them."""
        return self._whole[:, : like.numel()].view(4, *like.shape).unbind()


@dataclass(frozen=True, slots=True)
class _Totals:
    """The totals of the chunks read so far, layer by layer."""

    sums: Tensor
    """float64 [layers, 6]: sum, sum of squares, minus the numbers of zeros, NaN, infinities and negative infinities."""
    lowest: Tensor
    highest: Tensor
    bins: Tensor
    """int64 [layers * _BINS]: by power of two; zeros count as the smallest, NaN and infinities as the largest."""

    @classmethod
    def zeros(cls, layers: int, dtype: torch.dtype, device: torch.device) -> _Totals:
        return cls(
            torch.zeros((layers, 6), dtype=torch.float64, device=device),
            torch.full((layers,), torch.inf, dtype=dtype, device=device),
            torch.full((layers,), -torch.inf, dtype=dtype, device=device),
            torch.zeros(layers * _BINS, dtype=torch.int64, device=device),
        )

    @classmethod
    def joined(cls, several: Sequence[_Totals]) -> _Totals:
        """Concatenate the layers of several."""
        fields = ("sums", "lowest", "highest", "bins")
        return cls(*(torch.cat([getattr(totals, name) for totals in several]) for name in fields))

    def add(self, x: Tensor, layers: Tensor, work: _Workspace) -> None:
        """Add a chunk: rows [r, c] of numbers and the layer of each row, int64 [r]."""
        bits, shift, infinity = (
            (x.view(torch.int64), 52, 0x7FF) if x.dtype == torch.float64 else (x.view(torch.int32), 23, 0xFF)
        )
        last = 8 * x.element_size() - 1
        floats, wide, places = work.floats(x), work.wide(x), work.places(x)
        magnitude, power, mask, nan = work.whole(x)
        torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0, out=floats)
        wide.copy_(floats)
        sums = [wide.sum(dim=-1), wide.square_().sum(dim=-1)]
        torch.nan_to_num(x, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf, out=floats)
        self.lowest.scatter_reduce_(0, layers, floats.amin(dim=-1), "amin")
        torch.nan_to_num(x, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf, out=floats)
        self.highest.scatter_reduce_(0, layers, floats.amax(dim=-1), "amax")
        # Masks are -1 where true and 0 where not: the sign of a difference, spread over all bits.
        torch.bitwise_and(bits, (1 << last) - 1, out=magnitude)
        torch.bitwise_right_shift(magnitude, shift, out=power)
        torch.sub(magnitude, 1, out=mask).bitwise_right_shift_(last)  # zero
        sums.append(mask.sum(dim=-1, dtype=mask.dtype))
        torch.sub(infinity << shift, magnitude, out=nan).bitwise_right_shift_(last)
        sums.append(nan.sum(dim=-1, dtype=mask.dtype))
        torch.sub(infinity - 1, power, out=mask).bitwise_right_shift_(last)  # not finite
        sums.append(mask.sum(dim=-1, dtype=mask.dtype))
        torch.bitwise_right_shift(bits, last, out=magnitude)  # the sign
        mask.bitwise_xor_(nan).bitwise_and_(magnitude)  # -infinity
        sums.append(mask.sum(dim=-1, dtype=mask.dtype))
        self.sums.index_add_(0, layers, torch.stack([s.to(torch.float64) for s in sums], dim=-1))
        first, top = (e + (infinity >> 1) for e in GRADIENT_EXPONENTS)
        power.clamp_(first - 1, top)
        places.copy_(power)
        places += (layers * _BINS - (first - 2))[:, None]
        self.bins.scatter_add_(0, places.view(-1), work.ones[: places.numel()])

    def finish(self, sizes: Tensor) -> tuple[list[Tensor], Tensor]:
        """Compute the first statistics of `NAMES`, float64 [layers] each, and histograms int64 [layers, bins].

        `sizes` has the number of each layer's elements.
        """
        total, total_sq, *masks = self.sums.unbind(dim=-1)
        zero, nan, nonfinite, negative_infinity = (m.abs() for m in masks)
        bins = self.bins.view(-1, _BINS)[:, : gradient_bin_count()].clone()
        bins[:, 0] = zero.to(torch.int64)
        bins[:, 1] -= bins[:, 0]
        bins[:, -1] -= nan.to(torch.int64)
        # What fills up a row is NaN too: those are the NaN in excess of the layer's elements.
        numbers = bins.sum(dim=-1)
        values = [
            sizes - numbers,
            nonfinite - nan - negative_infinity,
            negative_infinity,
            zero,
            total,
            total_sq,
            torch.where(numbers > 0, self.lowest, torch.nan),
            torch.where(numbers > 0, self.highest, torch.nan),
        ]
        return [v.to(torch.float64) for v in values], bins


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
