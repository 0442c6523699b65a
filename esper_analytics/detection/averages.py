"""The moving averages of trends over whole series at once, bit-equal to one value after the other.

Covers: the EMA that drift is relative to, for many series, and rolling means. The accumulators of the contract hold the
state between blocks. Does not cover: missing and non-finite values, which the caller leaves out.

An EMA is a chain: each sum takes one step from the sum before, and adding in another order changes the last bits,
enough to flip a comparison with a threshold. What NumPy can do is to walk many chains side by side. Different runs are
different chains. A long chain is cut into pieces, each started from an estimate of where the piece before it ends; a
piece whose estimate was wrong is walked again from the true end, until it meets its first walk, and from there on the
two are equal. No estimate remains in the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

import numpy as np

from esper_analytics.detection.arrays import Floats, Ints
from esper_recorder.contract.rules.trend import Average, Drift, Rolling, RollingMean, TrendOf, next_sum

_MIN_CHAINS: Final = 8
"""With fewer chains, walking them side by side is slower than one after the other."""

_MIN_PIECE: Final = 1024
"""Steps in the shortest piece."""

_MEETING_STEPS: Final = 20.0
"""Two walks from almost the same number meet within this many steps divided by (1 - momentum)."""

_MAX_ROUNDS: Final = 4
"""How often pieces are walked again; if some ends still differ then, the rest is walked step by step."""

_CHECK_STEPS: Final = 64
"""How often a walk is checked for having met another one, or for having come to rest."""

_MIN_REPEATS: Final = 16
"""If fewer than one value in this many differs from the one before, a series is walked by its runs of equal values."""


def averages_before(form: Drift, averages: Sequence[Average], values: Floats, bounds: Sequence[int]) -> Floats:
    """Enter the values of several series and return the average that each value drifts from.

    Args:
        form: of all of them.
        averages: the accumulator of each series, which it continues from.
        values: one series after the other, all finite.
        bounds: where in `values` each series begins, and the end of the last.

    Returns:
        One per value: the average before it enters, NaN before the first.
    """
    terms = (1.0 - form.momentum) * values
    before = np.full(len(values), math.nan)
    series = [(average, a, b) for average, (a, b) in zip(averages, pairwise(bounds), strict=True) if a < b]
    initials, steps = [], []
    for average, start, end in series:
        first = terms[start] if form.bias_correction else values[start]
        initials.append(average.total if average.seen else float(first))
        steps.append(terms[start if average.seen else start + 1 : end])
    for (average, start, end), sums in zip(series, _chains(form.momentum, initials, steps), strict=True):
        before[end + 1 - len(sums) : end] = sums[:-1]
        if form.bias_correction:
            weights = np.full(end - start + 1, form.momentum)
            weights[0] = average.weight
            np.multiply.accumulate(weights, out=weights)
            before[start:end] /= 1.0 - weights[:-1]
            average.weight = float(weights[-1])
        before[start : start + min(max(form.warmup + 1 - average.seen, 0), end - start)] = math.nan
        average.seen, average.total = average.seen + end - start, float(sums[-1])
    return before


def rolling_trends(form: Rolling, accumulator: RollingMean, values: Floats) -> Floats:
    """Enter the values of one series and return the trend of each; NaN if the first has none.

    The terms of a mean are added oldest first, as `RollingMean` does.
    """
    if not len(values):
        return values
    kept = len(accumulator.values)
    padded = np.concatenate([np.zeros(form.window), list(accumulator.values), values])
    means = np.zeros(len(values))
    for back in range(form.window - 1, -1, -1):
        means += padded[form.window + kept - back :][: len(values)]
    means /= np.minimum(np.arange(kept + 1, kept + len(values) + 1), form.window)
    first = math.nan if accumulator.mean is None else accumulator.mean
    accumulator.values.extend(values[-form.window :].tolist())
    accumulator.mean = float(means[-1])
    if form.trend is TrendOf.DROP:
        return np.where(means > 0.0, (means - values) / means, math.nan)
    changes = np.diff(means, prepend=first)
    return np.abs(changes) if form.trend is TrendOf.SIZE else changes


def _chains(momentum: float, initials: Sequence[float], steps: Sequence[Floats]) -> list[Floats]:
    """Walk each chain; the result begins with its initial sum."""
    longest = max(map(len, steps), default=0)
    if len(steps) < _MIN_CHAINS or longest * len(steps) > 2 * sum(map(len, steps)):
        return [_chain(momentum, initial, terms) for initial, terms in zip(initials, steps, strict=True)]
    columns = np.zeros((longest, len(steps)))
    for place, terms in enumerate(steps):
        columns[: len(terms), place] = terms
    sums = _walk(momentum, np.array(initials), columns)
    return [sums[: len(terms) + 1, place] for place, terms in enumerate(steps)]


def _chain(momentum: float, initial: float, terms: Floats) -> Floats:
    """Walk one chain; the result begins with its initial sum."""
    changes = np.flatnonzero(terms[1:] != terms[:-1]) + 1
    if len(terms) > _CHECK_STEPS and len(changes) * _MIN_REPEATS < len(terms):
        return _chain_of_repeats(momentum, initial, terms, changes)
    length = max(_MIN_PIECE, math.ceil(_MEETING_STEPS / (1.0 - momentum)))
    pieces = len(terms) // length
    if pieces < _MIN_CHAINS:
        return np.array(_step_by_step(momentum, initial, terms))
    rows = terms[: pieces * length].reshape(pieces, length)
    columns = np.ascontiguousarray(rows.T)
    # about where each piece begins; exactly for the first
    gains, kept = rows @ momentum ** np.arange(length - 1, -1, -1.0), momentum**length
    begins = list(accumulate(gains[:-1].tolist(), lambda total, gain: kept * total + gain, initial=initial))
    sums = _walk(momentum, np.array(begins), columns)
    for _ in range(_MAX_ROUNDS):
        wrong = np.flatnonzero(sums[0, 1:] != sums[-1, :-1]) + 1
        if not len(wrong):
            break
        sums[:, wrong] = _walk_again(momentum, sums[-1, wrong - 1], columns[:, wrong], sums[:, wrong])
    wrong = np.flatnonzero(~(sums[0, 1:] == sums[-1, :-1])) + 1  # NaN equals nothing, so a piece with it is wrong
    right = int(wrong[0]) if len(wrong) else pieces
    chain = np.empty(len(terms) + 1)
    chain[0] = initial
    chain[1 : right * length + 1] = sums[1:, :right].T.ravel()
    chain[right * length :] = _step_by_step(momentum, float(chain[right * length]), terms[right * length :])
    return chain


def _chain_of_repeats(momentum: float, initial: float, terms: Floats, changes: Ints) -> Floats:
    """Walk a chain of runs of equal values: once a step leaves the sum unchanged, every further step of the run does.

    Rounding leaves many numbers at which a walk can rest, so that walks from almost the same number may never meet.
    """
    chain = np.empty(len(terms) + 1)
    chain[0] = initial
    for start, end in pairwise([0, *changes.tolist(), len(terms)]):
        for at in range(start, end, _CHECK_STEPS):
            until = min(at + _CHECK_STEPS, end)
            chain[at : until + 1] = _step_by_step(momentum, float(chain[at]), terms[at:until])
            if chain[until] == chain[until - 1]:
                chain[until : end + 1] = chain[until]
                break
    return chain


def _walk(momentum: float, begins: Floats, columns: Floats, sums: Floats | None = None) -> Floats:
    """Walk chains side by side, one per column; the first row of the sums is where they begin."""
    sums = np.empty((len(columns) + 1, len(begins))) if sums is None else sums
    sums[0] = total = begins
    for place, terms in enumerate(columns, 1):
        sums[place] = total = next_sum(momentum, total, terms)
    return sums


def _walk_again(momentum: float, begins: Floats, columns: Floats, before: Floats) -> Floats:
    """Walk chains from other beginnings, until all meet what they were before."""
    sums = before.copy()
    sums[0] = begins
    for start in range(0, len(columns), _CHECK_STEPS):
        end = min(start + _CHECK_STEPS, len(columns))
        _walk(momentum, sums[start], columns[start:end], sums[start : end + 1])
        if (sums[end] == before[end]).all():
            break
    return sums


def _step_by_step(momentum: float, initial: float, terms: Floats) -> list[float]:
    return list(accumulate(terms.tolist(), lambda total, term: next_sum(momentum, total, term), initial=initial))
