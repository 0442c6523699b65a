"""Log-ratio histograms and the worst transitions."""

from __future__ import annotations

import torch
from torch import Tensor

from esper_recorder.contract.histogram import LOG_RATIO_EXPONENTS, log_ratio_bin_count
from esper_recorder.reductions.packed import exponent, wide_enough

EXEMPLARS = 16
"""How many of the worst transitions are kept."""

_ZERO_BIN = log_ratio_bin_count() // 2


def log_ratio_histogram(log_ratio: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """Transitions per bin of the contract's log-ratio histogram, and how many were NaN.

    Args:
        log_ratio: [..., n], nats.
        valid: bool [..., n].

    Returns:
        counts int64 [..., bins] and NaN counts int64 [...].
    """
    x = wide_enough(log_ratio)
    first, last = LOG_RATIO_EXPONENTS
    nan = torch.isnan(x)
    distance = (exponent(x).clamp(first - 1, last) - (first - 2)).to(torch.int64)  # 1 is below the first edge
    bins = _ZERO_BIN + torch.where(x == 0, 0, torch.where(x > 0, distance, -distance))
    counted = valid & ~nan
    groups = x.shape[:-1].numel()
    base = torch.arange(groups, device=x.device).reshape(*x.shape[:-1], 1) * log_ratio_bin_count()
    # In one dimension, where torch has an order-independent way on every device.
    counts = torch.zeros(groups * log_ratio_bin_count(), dtype=torch.int64, device=x.device)
    counts = counts.scatter_add(0, torch.where(counted, base + bins, base).flatten(), counted.to(torch.int64).flatten())
    return counts.reshape(*x.shape[:-1], log_ratio_bin_count()), (valid & nan).sum(dim=-1)


def worst(log_ratio: Tensor, valid: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k transitions with the largest |log ratio| of the last dimension, NaN first, then infinities.

    Args:
        log_ratio: [..., n], nats.
        valid: bool [..., n].
        k: how many; fewer are returned where n is smaller.

    Returns:
        positions int64 [..., k] in `log_ratio`, worst first, and their severities: |log ratio|, infinite for NaN, the
        largest finite number for infinities, and -1 for a place that had no valid transition left.
    """
    size = torch.clamp(log_ratio.abs(), max=torch.finfo(log_ratio.dtype).max)
    severity = torch.where(torch.isnan(log_ratio), torch.inf, size)
    severity = torch.where(valid, severity, -1)
    top = torch.topk(severity, min(k, severity.shape[-1]))
    return top.indices, top.values
