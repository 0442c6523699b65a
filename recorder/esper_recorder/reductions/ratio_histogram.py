"""Log-ratio histograms and the worst transitions."""

from __future__ import annotations

import torch
from torch import Tensor

from esper_recorder.contract.histogram import LOG_RATIO_EXPONENTS, log_ratio_bin_count
from esper_recorder.reductions.statistics import Valid, exponent, wide_enough

EXEMPLARS = 16
"""The number of worst transitions that are kept."""

_ZERO_BIN = log_ratio_bin_count() // 2


def log_ratio_histogram(log_ratio: Tensor, valid: Valid) -> tuple[Tensor, Tensor]:
    """Count transitions per bin of the contract's log-ratio histogram, and those that are NaN.

    Args:
        log_ratio: [..., n], nats.
        valid: bool [..., n], or None, see `Valid`.

    Returns:
        counts int64 [..., bins] and NaN counts int64 [...].
    """
    x = wide_enough(log_ratio)
    first, last = LOG_RATIO_EXPONENTS
    distance = (exponent(x).clamp(first - 1, last) - (first - 2)).to(torch.int64)  # 1 is below the first edge
    bins = _ZERO_BIN + torch.where(x == 0, 0, torch.where(x > 0, distance, -distance))
    groups = x.shape[:-1].numel()
    base = torch.arange(groups, device=x.device).reshape(*x.shape[:-1], 1) * log_ratio_bin_count()
    # In one dimension, for which torch has an order-independent implementation on every device.
    counts = torch.zeros(groups * log_ratio_bin_count(), dtype=torch.int64, device=x.device)
    places = base + bins
    if valid is None:
        ones = torch.ones(1, dtype=torch.int64, device=x.device).expand(x.numel())
        nan_counts = torch.zeros(x.shape[:-1], dtype=torch.int64, device=x.device)
    else:
        nan = torch.isnan(x)
        counted = valid & ~nan
        places, ones = torch.where(counted, places, base), counted.to(torch.int64).flatten()
        nan_counts = (valid & nan).sum(dim=-1)
    counts = counts.scatter_add(0, places.flatten(), ones)
    return counts.reshape(*x.shape[:-1], log_ratio_bin_count()), nan_counts


def worst(log_ratio: Tensor, valid: Valid, k: int) -> tuple[Tensor, Tensor]:
    """Find the k transitions with the largest |log ratio| of the last dimension, NaN first, then infinities.

    Args:
        log_ratio: [..., n], nats.
        valid: bool [..., n], or None, see `Valid`.
        k: how many; fewer are returned if n is smaller.

    Returns:
        positions int64 [..., k] in `log_ratio`, worst first, and their severities: |log ratio|, infinite for NaN, the
        largest finite number for infinities, and -1 for a place that no valid transition was left for.
    """
    severity = log_ratio.abs()
    if valid is not None:
        size = torch.clamp(severity, max=torch.finfo(log_ratio.dtype).max)
        severity = torch.where(valid, torch.where(torch.isnan(log_ratio), torch.inf, size), -1)
    top = torch.topk(severity, min(k, severity.shape[-1]))
    return top.indices, top.values
