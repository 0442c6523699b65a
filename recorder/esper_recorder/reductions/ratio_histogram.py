"""Log-ratio histograms and the worst transitions."""

from __future__ import annotations

import torch
from torch import Tensor

from esper_recorder.contract.histogram import LOG_RATIO_EXPONENTS, log_ratio_bin_count
from esper_recorder.reductions.statistics import Valid, wide_enough

EXEMPLARS = 16
"""The number of worst transitions that are kept."""

_BINS = log_ratio_bin_count()
"""A further one takes what is not counted. That of zero is in the middle."""


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
    bits, shift, bias = (x.view(torch.int64), 52, 1023) if x.dtype == torch.float64 else (x.view(torch.int32), 23, 127)
    exponent = (bits >> shift) & (2 * bias + 1)
    distance = exponent.clamp(first - 1 + bias, last + bias) - (first - 2 + bias)  # 1 is below the first edge
    uncounted = torch.isnan(x) if valid is None else torch.isnan(x) | ~valid
    bins = (distance * x.sign()).to(torch.int64).masked_fill(uncounted, _BINS - _BINS // 2)
    groups = x.shape[:-1].numel()
    base = torch.arange(_BINS // 2, groups * (_BINS + 1), _BINS + 1, device=x.device).view(*x.shape[:-1], 1)
    # In one dimension, for which torch has an order-independent implementation on every device.
    counts = torch.zeros(groups * (_BINS + 1), dtype=torch.int64, device=x.device)
    ones = torch.ones(1, dtype=torch.int64, device=x.device).expand(x.numel())
    counts = counts.scatter_add(0, (base + bins).flatten(), ones).view(*x.shape[:-1], _BINS + 1)
    nan = counts[..., _BINS]
    return counts[..., :_BINS], nan if valid is None else nan - (~valid).sum(dim=-1)


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
    severity = torch.nan_to_num(log_ratio.abs(), nan=torch.inf, posinf=torch.finfo(log_ratio.dtype).max)
    if valid is not None:
        severity = torch.where(valid, severity, -1)
    top = torch.topk(severity, min(k, severity.shape[-1]))
    return top.indices, top.values
