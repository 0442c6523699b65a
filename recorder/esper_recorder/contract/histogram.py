"""Histogram bins by powers of two, and what they can and cannot say.

The edges are constants of the recording format: a histogram is only a list of counts, and these functions are its
axis. A bin holds its lower edge and not its upper one, by absolute value.
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
    """Lower edges of |log ratio| above zero, ascending: 2^-20 ... 2^5."""
    first, last = LOG_RATIO_EXPONENTS
    return tuple(2.0**e for e in range(first, last + 1))


def log_ratio_bin_count() -> int:
    """Bins of a log-ratio histogram: each side has one bin per edge and one below the first, and zero has its own."""
    return 2 * (len(log_ratio_edges()) + 1) + 1


def log_ratio_bins() -> tuple[tuple[float, float], ...]:
    """(lowest, highest) log ratio of each bin, from the most negative to the most positive.

    The middle bin is exactly zero, (0.0, 0.0). Outer bins reach to infinity, and hold the infinities.
    """
    edges = log_ratio_edges()
    positive = list(zip((0.0, *edges), (*edges, math.inf), strict=True))
    return (*((-high, -low) for low, high in reversed(positive)), (0.0, 0.0), *positive)


def gradient_edges() -> tuple[float, ...]:
    """Lower edges of |g| above zero, ascending: 2^-40 ... 2^16."""
    first, last = GRADIENT_EXPONENTS
    return tuple(2.0**e for e in range(first, last + 1))


def gradient_bin_count() -> int:
    """Bins of a gradient histogram: exactly zero, below the first edge, and one per edge."""
    return len(gradient_edges()) + 2


def count_ratios_above(counts: Sequence[int], ratio: float) -> tuple[int, int]:
    """How many transitions had a log ratio above log(ratio), as (at least, at most).

    `ratio` must be positive. The two differ by what is in the bin that holds log(ratio), and not at all for ratio 1.
    """
    return _count_beyond(counts, math.log(ratio), above=True)


def count_ratios_below(counts: Sequence[int], ratio: float) -> tuple[int, int]:
    """How many transitions had a log ratio below log(ratio), as (at least, at most); see `count_ratios_above`."""
    return _count_beyond(counts, math.log(ratio), above=False)


def _count_beyond(counts: Sequence[int], log_ratio: float, *, above: bool) -> tuple[int, int]:
    bins = log_ratio_bins()
    if len(counts) != len(bins):
        raise ValueError(f"a log-ratio histogram has {len(bins)} bins, not {len(counts)}")
    limit = log_ratio if above else -log_ratio
    surely = possibly = 0
    for count, (low, high) in zip(counts, bins, strict=True):
        if not above:
            low, high = -high, -low
        # A bin holds its edge nearer to zero, so below zero its low end is left out; zero is left out on both sides.
        low_end_left_out = -math.inf < low < 0 or low == 0 < high
        if low > limit or (low == limit and low_end_left_out):
            surely += count
        if high > limit:
            possibly += count
    return surely, possibly


def gradient_quantile(counts: Sequence[int], share: float) -> tuple[float, float] | None:
    """Between which absolute values a quantile of a gradient's numbers lies, as (at least, at most).

    The quantile lies between the elements of rank floor and ceil of share * (n - 1), smallest first; NaN is no number,
    infinities are the largest. None where there is no number.

    Args:
        counts: a gradient histogram.
        share: 0 for the smallest, 0.5 for the median, 1 for the largest.

    Raises:
        ValueError: `share` lies outside [0, 1], or `counts` is no gradient histogram.
    """
    if not 0.0 <= share <= 1.0:
        raise ValueError(f"a quantile lies at a share in [0, 1], and {share!r} does not")
    if len(counts) != gradient_bin_count():
        raise ValueError(f"a gradient histogram has {gradient_bin_count()} bins, not {len(counts)}")
    n = sum(counts)
    if not n:
        return None
    rank = share * (n - 1)
    edges = gradient_edges()
    low_ends, high_ends = (0.0, 0.0, *edges), (0.0, *edges, math.inf)
    return low_ends[_bin_of(counts, math.floor(rank))], high_ends[_bin_of(counts, math.ceil(rank))]


def _bin_of(counts: Sequence[int], rank: int) -> int:
    """The bin that holds the element of a rank, counted from 0."""
    return next(place for place, upto in enumerate(accumulate(counts)) if upto > rank)
