"""The averages that drift is taken against, for whole series at once and to the last bit those of `Average.push`.

An average is a chain: each takes one step from the one before, and floating-point sums in another order differ in their
last bits. What can be done side by side, on NumPy arrays, is to walk many chains in step. Different runs are different
chains. A long one is cut into pieces, each begun from an estimate of where the one before it ends; then every piece
whose estimate was off begins anew from the true end, until it meets its first walk: from there on the two are one. No
estimate is left in the result.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import accumulate, pairwise
from typing import Final

import numpy as np

from esper_analytics.detection.arrays import Floats, Ints
from esper_recorder.contract.rules.ema import Average, Drift, step

_WORTH: Final = 8
"""So many chains, and walking them in step is faster than one after the other."""

_SHORTEST: Final = 1024
"""No piece is shorter."""

_MEETS: Final = 20.0
"""Two walks from next to the same number meet within some so many divided by (1 - momentum) steps."""

_ROUNDS: Final = 4
"""Pieces begin anew so many times; if ends are still open then, the rest is walked one by one."""

_STRIDE: Final = 64
"""Whether two walks have met, or one has come to rest, is looked at every so many steps."""

_REPEATS: Final = 16
"""A series that changes less often than every so many values is walked by its stretches of one value."""


def held_against(form: Drift, averages: Sequence[Average], values: Floats, bounds: Sequence[int]) -> Floats:
    """Take in the values of several series and give the average that each is held against.

    Args:
        form: of all of them.
        averages: the state of each series; it goes on from there.
        values: one series after the other, all finite.
        bounds: where in `values` each begins, and the end of the last.

    Returns:
        One per value: the average before it enters, NaN where there is none yet.
    """
    shares = (1.0 - form.momentum) * values
    before = np.full(len(values), math.nan)
    spans = [(one, a, b) for one, (a, b) in zip(averages, pairwise(bounds), strict=True) if a < b]
    initials, steps = [], []
    for average, start, end in spans:
        begun = average.seen > 0
        first = shares[start] if form.bias_correction else values[start]
        initials.append(average.total if begun else float(first))
        steps.append(shares[start if begun else start + 1 : end])
    for (average, start, end), sums in zip(spans, _sums(form.momentum, initials, steps), strict=True):
        seen, count = average.seen, end - start
        before[end + 1 - len(sums) : end] = sums[:-1]
        if form.bias_correction:
            weights = np.full(count + 1, form.momentum)
            weights[0] = average.weight
            np.multiply.accumulate(weights, out=weights)
            before[start:end] /= 1.0 - weights[:-1]
            average.weight = float(weights[-1])
        before[start : start + min(max(form.warmup + 1 - seen, 0), count)] = math.nan
        average.seen, average.total = seen + count, float(sums[-1])
    return before


def _sums(momentum: float, initials: Sequence[float], steps: Sequence[Floats]) -> list[Floats]:
    """The chain of each series, its initial sum included."""
    longest = max(map(len, steps), default=0)
    if len(steps) < _WORTH or longest * len(steps) > 2 * sum(map(len, steps)):
        return [_chain(momentum, initial, own) for initial, own in zip(initials, steps, strict=True)]
    side_by_side = np.zeros((longest, len(steps)))
    for place, own in enumerate(steps):
        side_by_side[: len(own), place] = own
    sums = np.empty((longest + 1, len(steps)))
    sums[0] = initials
    _walk(momentum, sums, side_by_side)
    return [sums[: len(own) + 1, place] for place, own in enumerate(steps)]


def _walk(momentum: float, sums: Floats, steps: Floats) -> None:
    """From the first row of `sums`, one step a row."""
    total = sums[0]
    for place, own in enumerate(steps, 1):
        sums[place] = total = step(momentum, total, own)


def _chain(momentum: float, initial: float, steps: Floats) -> Floats:
    """One chain, its initial sum included."""
    changes = np.flatnonzero(steps[1:] != steps[:-1]) + 1
    if len(steps) > _STRIDE and len(changes) * _REPEATS < len(steps):
        return _with_rests(momentum, initial, steps, changes)
    length = max(_SHORTEST, math.ceil(_MEETS / (1.0 - momentum)))
    pieces = len(steps) // length
    if pieces < _WORTH:
        return np.array(_one_by_one(momentum, initial, steps))
    cut = pieces * length
    rows = steps[:cut].reshape(pieces, length)
    begun = _estimated(momentum, initial, rows)
    by_step = np.ascontiguousarray(rows.T)
    sums = np.empty((length + 1, pieces))
    sums[0] = begun
    _walk(momentum, sums, by_step)
    for _ in range(_ROUNDS):
        off = np.flatnonzero(sums[0, 1:] != sums[-1, :-1]) + 1
        if not len(off):
            break
        sums[:, off] = _anew(momentum, sums[-1, off - 1], by_step[:, off], sums[:, off])
    off = np.flatnonzero(~(sums[0, 1:] == sums[-1, :-1])) + 1  # NaN is never equal
    true = int(off[0]) if len(off) else pieces
    chain = np.empty(len(steps) + 1)
    chain[0] = initial
    chain[1 : true * length + 1] = sums[1:, :true].T.ravel()
    rest = true * length
    chain[rest:] = _one_by_one(momentum, float(chain[rest]), steps[rest:])
    return chain


def _with_rests(momentum: float, initial: float, steps: Floats, changes: Ints) -> Floats:
    """One chain of stretches that repeat a value: where a step leads to where it began, so do all that are alike.

    Rounding leaves many numbers at which a walk can rest, so walks from next to the same number need never meet.
    """
    chain = np.empty(len(steps) + 1)
    chain[0] = initial
    for start, end in pairwise([0, *changes.tolist(), len(steps)]):
        for at in range(start, end, _STRIDE):
            until = min(at + _STRIDE, end)
            chain[at : until + 1] = _one_by_one(momentum, float(chain[at]), steps[at:until])
            if chain[until] == chain[until - 1]:
                chain[until : end + 1] = chain[until]
                break
    return chain


def _estimated(momentum: float, initial: float, rows: Floats) -> list[float]:
    """About where each piece begins; exactly for the first."""
    length = rows.shape[1]
    gained = rows @ momentum ** np.arange(length - 1, -1, -1.0)
    kept = momentum**length
    return list(accumulate(gained[:-1].tolist(), lambda total, gain: kept * total + gain, initial=initial))


def _anew(momentum: float, begin: Floats, steps: Floats, before: Floats) -> Floats:
    """The walks from other beginnings: step by step until all meet what they were before."""
    sums = before.copy()
    sums[0] = begin
    for start in range(0, len(steps), _STRIDE):
        end = min(start + _STRIDE, len(steps))
        _walk(momentum, sums[start : end + 1], steps[start:end])
        if (sums[end] == before[end]).all():
            break
    return sums


def _one_by_one(momentum: float, initial: float, steps: Floats) -> list[float]:
    return list(accumulate(steps.tolist(), lambda total, own: step(momentum, total, own), initial=initial))
