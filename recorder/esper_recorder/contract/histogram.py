"""Histogram bins by powers of two, and the questions their counts can answer.

A stored histogram is only a list of counts; the edges are constants of the recording format, and these functions are
its axis. By absolute value, a bin includes its lower edge and excludes its upper one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate

LOG_RATIO_EXPONENTS = (-20, 5)
"""Smallest and largest power of two of |log ratio| that is an edge: 9.5e-7 (below: rounding) to 32 (ratio 8e13)."""

GRADIENT_EXPONENTS = (-40, 16)
"""Smallest and largest power of two of |gradient| that is an edge: 9.1e-13 to 65,536."""


def log_ratio_edges() -> tuple[float, ...]:
    """Return the lower edges of |log ratio| above zero, ascending: 2^-20 ... 2^5."""
    first, last = LOG_RATIO_EXPONENTS
    return tuple(2.0**e for e in range(first, last + 1))


def log_ratio_bin_count() -> int:
    """Count the bins of a log-ratio histogram: per side one per edge and one below the first, and one for zero."""
    return 2 * (len(log_ratio_edges()) + 1) + 1


def log_ratio_bins() -> tuple[tuple[float, float], ...]:
    """Return the (lowest, highest) log ratio of each bin, from the most negative to the most positive.

    The middle bin is exactly zero, (0.0, 0.0). The outer bins extend to infinity and include the infinities.
    """
    edges = log_ratio_edges()
    positive = list(zip((0.0, *edges), (*edges, math.inf), strict=True))
    return (*((-high, -low) for low, high in reversed(positive)), (0.0, 0.0), *positive)


def gradient_edges() -> tuple[float, ...]:
    """Return the lower edges of |g| above zero, ascending: 2^-40 ... 2^16."""
    first, last = GRADIENT_EXPONENTS
    return tuple(2.0**e for e in range(first, last + 1))


def gradient_bin_count() -> int:
    """Count the bins of a gradient histogram: exactly zero, below the first edge, and one per edge."""
    return len(gradient_edges()) + 2


def count_ratios_above(counts: Sequence[int], ratio: float) -> tuple[int, int]:
    """Count the transitions with a log ratio above log(ratio), as (at least, at most).

    `ratio` must be positive. The bounds differ by the count of the bin that contains log(ratio); for ratio 1 they are
    equal.
    """
    return _count_above(log_ratio_bins(), counts, math.log(ratio))


def count_ratios_below(counts: Sequence[int], ratio: float) -> tuple[int, int]:
    """Count the transitions with a log ratio below log(ratio), as (at least, at most); see `count_ratios_above`."""
    mirrored = tuple((-high, -low) for low, high in log_ratio_bins())
    return _count_above(mirrored, counts, -math.log(ratio))


def _count_above(bins: Sequence[tuple[float, float]], counts: Sequence[int], limit: float) -> tuple[int, int]:
    if len(counts) != len(bins):
        raise ValueError(f"a log-ratio histogram has {len(bins)} bins, not {len(counts)}")
    surely = possibly = 0
    for count, (low, high) in zip(counts, bins, strict=True):
        # A bin includes its edge nearer to zero: below zero it excludes its low end. Zero is excluded on both sides.
        excludes_low = -math.inf < low < 0 or low == 0 < high
        if low > limit or (low == limit and excludes_low):
            surely += count
        if high > limit:
            possibly += count
    return surely, possibly


def gradient_quantile(counts: Sequence[int], fraction: float) -> tuple[float, float] | None:
    """Bound a quantile of a gradient's absolute values, as (at least, at most); None if there are no numbers.

    The quantile lies between the elements of rank floor and ceil of fraction * (n - 1), smallest first. NaN is not
    counted, infinities are the largest.

    Args:
        counts: a gradient histogram.
        fraction: 0 for the smallest, 0.5 for the median, 1 for the largest.

    Raises:
        ValueError: `fraction` lies outside [0, 1], or `counts` is not a gradient histogram.
    """
    if not 0.0 <= fraction <= 1.0:
        raise ValueError(f"the fraction of a quantile lies in [0, 1], and {fraction!r} does not")
    if len(counts) != gradient_bin_count():
        raise ValueError(f"a gradient histogram has {gradient_bin_count()} bins, not {len(counts)}")
    n = sum(counts)
    if not n:
        return None
    rank = fraction * (n - 1)
    edges = gradient_edges()
    low_ends, high_ends = (0.0, 0.0, *edges), (0.0, *edges, math.inf)
    return low_ends[_bin_of(counts, math.floor(rank))], high_ends[_bin_of(counts, math.ceil(rank))]


def _bin_of(counts: Sequence[int], rank: int) -> int:
    """Return the bin of the element with this rank, counted from 0."""
    return next(place for place, upto in enumerate(accumulate(counts)) if upto > rank)
