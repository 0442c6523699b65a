"""Log-ratio histograms and the worst transitions."""

from __future__ import annotations

import torch
from torch import Tensor

from esper_recorder.contract.histogram import log_ratio_bin_count, log_ratio_edges
from esper_recorder.reduce.packed import from_host, wide_enough

_ZERO_BIN = log_ratio_bin_count() // 2


def log_ratio_histogram(log_ratio: Tensor, valid: Tensor, edges: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Transitions per bin of the contract's log-ratio histogram, and how many were NaN.

    Args:
        log_ratio: [..., n], nats.
        valid: bool [..., n].
        edges: `log_ratio_edges()` as a tensor on the device, to spare making it anew.

    Returns:
        counts int64 [..., bins] and NaN counts int64 [...].
    """
    x = wide_enough(log_ratio)
    if edges is None:
        edges = histogram_edges(x)
    nan = torch.isnan(x)
    distance = torch.bucketize(x.abs().contiguous(), edges, right=True) + 1  # it warns of other layouts
    bins = _ZERO_BIN + torch.where(x == 0, 0, torch.where(x > 0, distance, -distance))
    counted = valid & ~nan
    counts = torch.zeros((*x.shape[:-1], log_ratio_bin_count()), dtype=torch.int64, device=x.device)
    counts.scatter_add_(-1, torch.where(counted, bins, 0), counted.to(torch.int64))
    return counts, (valid & nan).sum(dim=-1)


def histogram_edges(like: Tensor) -> Tensor:
    """The contract's log-ratio edges as a tensor of the same type and device."""
    return from_host(log_ratio_edges(), like.dtype, like.device)


def worst(log_ratio: Tensor, valid: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """The k transitions with the largest |log ratio|, NaN first, then infinities.

    Args:
        log_ratio: [n], nats.
        valid: bool [n].
        k: how many; fewer are returned where n is smaller.

    Returns:
        positions int64 [k] in `log_ratio`, worst first, and their severities: |log ratio|, infinite for NaN, the
        largest finite number for infinities, and -1 for a place that had no valid transition left.
    """
    size = torch.clamp(log_ratio.abs(), max=torch.finfo(log_ratio.dtype).max)
    severity = torch.where(torch.isnan(log_ratio), torch.inf, size)
    severity = torch.where(valid, severity, -1)
    top = torch.topk(severity, min(k, severity.shape[-1]))
    return top.indices, top.values
