"""One rule on one key, over all updates of a block: comparisons, averages and streaks on NumPy arrays.

NumPy compares as Python does: with NaN a comparison is false. What is NULL is NaN here, with a code beside it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from esper_analytics.detection.arrays import Codes, Flags, Floats, Ints, code
from esper_analytics.detection.averages import held_against
from esper_recorder.contract.rules.ema import Average, Previous
from esper_recorder.contract.rules.model import Condition, Gate, Rule, Test
from esper_recorder.contract.rules.rolling_mean import Rolling, RollingMean, TrendOf
from esper_recorder.contract.rules.signal import Reason

FIRST_GATE = len(Reason) + 1
"""Codes from here on: the gates of the rule."""

Values = tuple[Floats, Codes | None]
"""One number per row, and the code of the reason where there is none (None: everywhere there is one)."""


@dataclass(slots=True)
class State:
    """What a series carries from one stretch of a run to the next."""

    streak: int = 0
    looked: int = 0
    averages: dict[int, Average] = field(default_factory=dict)
    """By the place of the condition, as `previous` is."""
    previous: dict[int, Previous] = field(default_factory=dict)
    means: dict[int, RollingMean] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Judged:
    """A condition, judged: hits, values beyond the reset level, and what is told where it fires."""

    hit: Flags
    beyond: Flags | None
    """None: all that is no hit."""
    reasons: Codes | None
    value: Floats
    threshold: Floats | float
    """NaN where the condition has none."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a series came to.

    Attributes:
        at: the rows that fire.
        value, threshold, worse, looked: of each of them; `looked` counts the looks of the series up to there.
        reasons: the code of every row, 0 where the rule looked; None where it always did.
    """

    at: Ints
    value: Floats
    threshold: Floats
    worse: Floats
    looked: Ints
    reasons: Codes | None


def gate_codes(gates: Sequence[Gate], readings: Sequence[Values], height: int) -> Codes | None:
    """Why each row is not looked at because of a gate; None where all gates are open everywhere."""
    codes: Codes | None = None
    for place, (gate, (value, reasons)) in reversed(list(enumerate(zip(gates, readings, strict=True)))):
        unknown = np.zeros(height, bool) if reasons is None else reasons != 0
        if gate.test is Test.NONFINITE:
            shut = ~np.isfinite(value) & ~unknown
        else:
            assert gate.number is not None  # only `nonfinite` has none
            unknown = unknown | np.isnan(value)
            shut = value > gate.number if gate.test is Test.ABOVE else value < gate.number
            shut &= ~unknown
        if not (shut.any() or unknown.any()):
            continue
        codes = np.zeros(height, np.uint8) if codes is None else codes
        codes[shut] = FIRST_GATE + place
        codes[unknown] = code(Reason.GATE_UNKNOWN)
    return codes


def moved(
    condition: Condition, place: int, reading: Values, gate: Codes | None, begins: Sequence[int], states: list[State]
) -> Values:
    """Drift, step or trend of each value, each run through an accumulator of its own."""
    value, reasons = reading
    finite = np.isfinite(value)
    usable = finite if reasons is None else finite & (reasons == 0)
    usable = usable if gate is None else usable & (gate == 0)
    rows = None if usable.all() else np.flatnonzero(usable)
    values = value if rows is None else value[rows]
    bounds = [*begins, len(value)] if rows is None else np.searchsorted(rows, [*begins, len(value)]).tolist()
    first = np.zeros(len(values), bool)  # values that have no trend, as nothing was before them
    if condition.rolling is not None:
        told = np.empty(len(values))
        for state, start, end in zip(states, bounds[:-1], bounds[1:], strict=True):
            mean = state.means.setdefault(place, RollingMean(condition.rolling))
            if start < end and mean.mean is None and condition.rolling.trend is not TrendOf.DROP:
                first[start] = True
            told[start:end] = _trends(condition.rolling, mean, values[start:end])
    elif condition.drift is not None:
        averages = [state.averages.setdefault(place, Average(condition.drift)) for state in states]
        told = held_against(condition.drift, averages, values, bounds)
    else:
        told = np.empty(len(values))
        for state, start, end in zip(states, bounds[:-1], bounds[1:], strict=True):
            previous = state.previous.setdefault(place, Previous())
            if start < end:
                told[start] = math.nan if previous.last is None else previous.last
                told[start + 1 : end] = values[start : end - 1]
                previous.push(float(values[end - 1]))
    warming = np.isnan(told)  # an average and a value before are finite, or have grown to an infinity
    if condition.rolling is not None:
        warming, result = first, told
    elif condition.drift is not None:
        change = values - told
        result = (change if condition.drift.signed else np.abs(change)) / (np.abs(told) + condition.drift.epsilon)
    else:
        result = values - told
    if rows is None and not warming.any():
        return result, reasons
    codes = np.where(finite, 0, code(Reason.NOT_FINITE)).astype(np.uint8)
    if reasons is not None:
        np.copyto(codes, reasons, where=reasons != 0)
    at = np.arange(len(value)) if rows is None else rows
    codes[at[warming]] = code(Reason.WARMING_UP)
    full = result
    if rows is not None:
        full = np.full(len(value), math.nan)
        full[rows] = result
    return full, codes


def _trends(form: Rolling, state: RollingMean, values: Floats) -> Floats:
    """The trend of each value; NaN for a first one that has none. The terms of a mean are added as by `state`."""
    if not len(values):
        return values
    kept = len(state.values)
    padded = np.concatenate([np.zeros(form.window), list(state.values), values])
    means = np.zeros(len(values))
    for back in range(form.window - 1, -1, -1):
        means += padded[form.window + kept - back :][: len(values)]
    means /= np.minimum(np.arange(kept + 1, kept + len(values) + 1), form.window)
    before = np.concatenate([[math.nan if state.mean is None else state.mean], means[:-1]])
    state.values.extend(values[-form.window :].tolist())
    state.mean = float(means[-1])
    trends: Floats = means - before
    if form.trend is TrendOf.DROP:
        trends = np.where(means > 0.0, (means - values) / means, math.nan)
    elif form.trend is TrendOf.SIZE:
        trends = np.abs(trends)
    return trends


def judge(condition: Condition, reading: Values, threshold: Floats | float) -> Judged:
    """Hold values (drifts, steps) against thresholds, NaN where there is none."""
    value, reasons = reading
    if condition.test is Test.NONFINITE:
        hit = ~np.isfinite(value)
        return Judged(hit if reasons is None else hit & (reasons == 0), None, reasons, value, math.nan)
    lacking = np.isnan(threshold)
    codes = reasons
    if np.any(lacking):
        codes = np.zeros(len(value), np.uint8) if codes is None else codes.copy()
        codes[lacking & (codes == 0)] = code(Reason.NO_THRESHOLD)
    nan = np.isnan(value)
    if nan.any():
        codes = np.zeros(len(value), np.uint8) if codes is None else codes.copy()
        codes[nan & (codes == 0)] = code(Reason.NOT_FINITE)
    up = condition.test is Test.ABOVE
    hit = value > threshold if up else value < threshold
    if codes is not None:
        hit &= codes == 0
    beyond = None
    if condition.reset is not None:
        times, number = condition.reset.times, condition.reset.number
        level = number if number is not None else threshold * (times or 0.0)
        beyond = value < level if up else value > level
    return Judged(hit, beyond, codes, value, threshold)


def combine(
    rule: Rule, judged: Sequence[Judged], gate: Codes | None, begins: Sequence[int], states: list[State]
) -> Found:
    """Alternatives into one, streaks, and what fires."""
    height = len(judged[0].hit)
    hit = judged[0].hit if len(judged) == 1 else np.logical_or.reduce([one.hit for one in judged])
    reasons = judged[0].reasons
    if len(judged) > 1:
        for one in judged[1:]:
            if one.reasons is not None:
                reasons = one.reasons if reasons is None else np.where(reasons != 0, reasons, one.reasons)
        if reasons is not None:
            reasons = np.where(hit, 0, reasons).astype(np.uint8)
    if gate is not None:
        reasons = gate if reasons is None else np.where(gate != 0, gate, reasons)
        hit = hit & (gate == 0)
    if reasons is not None and not reasons.any():
        reasons = None
    fires = _fires(rule, judged, hit, reasons, begins, states)
    at = np.flatnonzero(fires)
    looked = _looked(at, reasons, height, begins, states)
    if len(judged) == 1:
        return Found(at, *_told(rule.conditions[0], judged[0], at), looked, reasons)
    value, threshold, worse = (part.copy() for part in _told(rule.conditions[0], judged[0], at))
    open_ = ~judged[0].hit[at]
    for condition, one in zip(rule.conditions[1:], judged[1:], strict=True):
        own = open_ & one.hit[at]
        for whole, part in zip((value, threshold, worse), _told(condition, one, at), strict=True):
            whole[own] = part[own]
        open_ &= ~own
    return Found(at, value, threshold, worse, looked, reasons)


def _told(condition: Condition, one: Judged, at: Ints) -> tuple[Floats, Floats, Floats]:
    value = one.value[at]
    threshold = one.threshold[at] if isinstance(one.threshold, np.ndarray) else np.full(len(at), one.threshold)
    if condition.test is Test.NONFINITE:
        return value, threshold, np.full(len(at), math.inf)
    return value, threshold, value if condition.test is Test.ABOVE else -value


def _fires(
    rule: Rule, judged: Sequence[Judged], hit: Flags, reasons: Codes | None, begins: Sequence[int], states: list[State]
) -> Flags:
    if rule.streak == 1 and not rule.keep:
        return hit
    if all(one.beyond is None for one in judged):
        beyond = ~hit
    else:
        beyond = ~hit & np.logical_and.reduce([~one.hit if one.beyond is None else one.beyond for one in judged])
    if reasons is not None:
        beyond &= reasons == 0
    # hits counted up to where the streak last began anew: at the series' first row, or where a value was beyond reset
    hits = np.cumsum(hit, dtype=np.int64)
    before = np.where(beyond, hits, np.iinfo(np.int64).min)
    first = np.array(begins, np.int64)
    carried = np.array([state.streak for state in states], np.int64)
    anew = beyond[first]
    before[first] = np.where(anew, hits[first], hits[first] - hit[first] - carried)
    streak = hits - np.maximum.accumulate(before)
    for state, end in zip(states, [*begins[1:], len(hit)], strict=True):
        state.streak = int(streak[end - 1])
    lasting = hit
    if rule.keep:
        lasting = ~beyond if reasons is None else ~beyond & (reasons == 0)
    fires: Flags = lasting & (streak >= rule.streak)
    return fires


def _looked(at: Ints, reasons: Codes | None, height: int, begins: Sequence[int], states: list[State]) -> Ints:
    """How often the series had looked at each of the rows; takes the looks into the states."""
    first = np.array([*begins, height], np.int64)
    carried = np.array([state.looked for state in states], np.int64)
    segment = np.searchsorted(first, at, side="right") - 1 if len(begins) > 1 else np.zeros(len(at), np.int64)
    if reasons is None:
        counted, own = at + 1, np.diff(first)
        before = first[:-1]
    else:
        looks = np.concatenate([[0], np.cumsum(reasons == 0, dtype=np.int64)])
        counted, own, before = looks[at + 1], np.diff(looks[first]), looks[first[:-1]]
    for state, count in zip(states, own.tolist(), strict=True):
        state.looked += count
    result: Ints = counted - before[segment] + carried[segment]
    return result
