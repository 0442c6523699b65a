"""Statistics of gradients, one row per parameter tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from esper_recorder.contract.histogram import GRADIENT_EXPONENTS, gradient_bin_count
from esper_recorder.reduce.packed import Collector, Packed, count, count_nonfinite, extremes, finite_sums, wide_enough


def layer_statistics(parameters: Sequence[Tensor]) -> tuple[Packed, Tensor]:
    """Counts and sums of each parameter's gradient, named as in the table `gradient_layers`, and its histogram.

    Args:
        parameters: parameters that have a dense gradient, at least one, on one device.

    Returns:
        statistics [layers, k] and histograms int64 [layers, bins].
    """
    packed, histograms = zip(*(_one_layer(p) for p in parameters), strict=True)
    return Packed(packed[0].names, torch.stack([p.values for p in packed])), torch.stack(histograms)


def gradient_histogram(gradient: Tensor) -> Tensor:
    """Elements per bin by |g|: exactly zero, below 2^-40, then one bin per power of two up to 2^16 and above.

    Args:
        gradient: any shape. NaN is in no bin; infinities are in the last one.

    Returns:
        int64 [bins], as laid out by `histogram.gradient_edges()`.
    """
    x = gradient.flatten().abs()
    first, last = GRADIENT_EXPONENTS
    exponent = torch.frexp(x).exponent.to(torch.int64) - 1  # frexp's mantissa is in [1/2, 1)
    bins = torch.clamp(exponent - first, -1, last - first) + 2
    bins = torch.where(x == 0, 0, torch.where(x == torch.inf, gradient_bin_count() - 1, bins))
    number = ~torch.isnan(x)
    counts = torch.zeros(gradient_bin_count(), dtype=torch.int64, device=x.device)
    return counts.scatter_add_(0, torch.where(number, bins, 0), number.to(torch.int64))


def _one_layer(parameter: Tensor) -> tuple[Packed, Tensor]:
    assert parameter.grad is not None
    gradient = wide_enough(parameter.grad.detach()).flatten()
    weight = wide_enough(parameter.detach()).flatten()
    everything = torch.ones_like(gradient, dtype=torch.bool)
    out = Collector()
    count_nonfinite(out, "grad", gradient, everything)
    total, total_sq = finite_sums(gradient, everything)
    lowest, highest = extremes(gradient, everything)
    out.add("grad_zero", count(gradient == 0))
    out.add("grad_sum", total)
    out.add("grad_sum_sq", total_sq)
    out.add("grad_min", lowest)
    out.add("grad_max", highest)
    out.add("weight_sum_sq", finite_sums(weight, everything)[1])
    return out.pack(), gradient_histogram(gradient)
