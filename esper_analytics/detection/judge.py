"""One rule on one key, over all updates of a block: gates, trends, comparisons and streaks on NumPy arrays.

Covers: what `contract.rules.conditions` and the series of `contract.rules.evaluator` decide for one update. Does not
cover: reading signals (`block`), or which firings are inhibited (`engine`).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from esper_analytics.detection.arrays import Codes, Flags, Floats, Ints, code
from esper_analytics.detection.averages import averages_before, rolling_trends
from esper_recorder.contract.rules.conditions import new_trend
from esper_recorder.contract.rules.model import Condition, Gate, Rule, Test
from esper_recorder.contract.rules.signal import Reason
from esper_recorder.contract.rules.trend import TrendOf

FIRST_GATE = len(Reason) + 1
"""Codes from here on are the gates of the rule."""

Values = tuple[Floats, Codes | None]
"""One number per row, and the code of the reason if there is no number (None: every row has one)."""


@dataclass(slots=True)
class SeriesState:
    """What a series carries from one stretch of a run to the next."""

    streak: int = 0
    evaluated: int = 0
    accumulators: dict[int, Any] = field(default_factory=dict)
    """The accumulator of each condition with a trend, by the condition's position."""


@dataclass(frozen=True, slots=True)
class Judgement:
    """One condition, compared at every row."""

    breach: Flags
    reset: Flags | None
    """Rows beyond the reset level; None: all that are not a breach."""
    reasons: Codes | None
    value: Floats
    threshold: Floats | float
    """NaN if the condition has none."""


@dataclass(slots=True)
class SeriesResult:
    """The firings of a series in a block, and why it was not evaluated.

    Attributes:
        rows: the rows that fire.
        value, threshold: of each firing.
        signed_value: of each firing, the value signed so that larger is worse; infinite for a non-finite value.
        evaluation: of each firing, the number of the series' evaluation since the start of the run, from 1.
        reasons: the code of every row, 0 if it was evaluated; None if all were.
    """

    rows: Ints
    value: Floats
    threshold: Floats
    signed_value: Floats
    evaluation: Ints
    reasons: Codes | None

    def select(self, flags: Flags) -> SeriesResult:
        """Return some of the firings."""
        names = ("rows", "value", "threshold", "signed_value", "evaluation")
        return dataclasses.replace(self, **{name: getattr(self, name)[flags] for name in names})


def gate_codes(gates: Sequence[Gate], readings: Sequence[Values], height: int) -> Codes | None:
    """Return why a gate keeps each row from being evaluated; None if all gates are open everywhere."""
    codes: Codes | None = None
    # in reverse, since of several closed gates the first gives the reason
    for place, (gate, (value, reasons)) in reversed(list(enumerate(zip(gates, readings, strict=True)))):
        unknown = np.zeros(height, bool) if reasons is None else reasons != 0
        if gate.test is Test.NONFINITE:
            closed = ~np.isfinite(value) & ~unknown
        else:
            assert gate.number is not None  # only `nonfinite` has none
            unknown = unknown | np.isnan(value)
            closed = (value > gate.number if gate.test is Test.ABOVE else value < gate.number) & ~unknown
        if closed.any() or unknown.any():
            codes = np.zeros(height, np.uint8) if codes is None else codes
            codes[closed] = FIRST_GATE + place
            codes[unknown] = code(Reason.GATE_UNKNOWN)
    return codes


def apply_trend(
    condition: Condition,
    place: int,
    reading: Values,
    gate: Codes | None,
    begins: Sequence[int],
    states: list[SeriesState],
) -> Values:
    """Replace each value by its drift, step or rolling trend, with one accumulator per run.

    A value that is missing, not finite or behind a closed gate does not enter the accumulator.
    """
    value, reasons = reading
    finite = np.isfinite(value)
    usable = finite if reasons is None else finite & (reasons == 0)
    usable = usable if gate is None else usable & (gate == 0)
    rows = None if usable.all() else np.flatnonzero(usable)
    values = value if rows is None else value[rows]
    bounds = [*begins, len(value)] if rows is None else np.searchsorted(rows, [*begins, len(value)]).tolist()
    accumulators: list[Any] = [state.accumulators.setdefault(place, new_trend(condition)) for state in states]
    spans = zip(accumulators, bounds[:-1], bounds[1:], strict=True)
    trend = np.empty(len(values))
    warming = np.zeros(len(values), bool)
    if condition.drift is not None:
        before = averages_before(condition.drift, accumulators, values, bounds)
        warming = np.isnan(before)  # an average of finite values is a number, or has grown to an infinity
        change = values - before
        trend = (change if condition.drift.signed else np.abs(change)) / (np.abs(before) + condition.drift.epsilon)
    elif condition.rolling is not None:
        for mean, start, end in spans:
            if start < end and mean.mean is None and condition.rolling.trend is not TrendOf.DROP:
                warming[start] = True
            trend[start:end] = rolling_trends(condition.rolling, mean, values[start:end])
    else:
        for previous, start, end in spans:
            if start < end:
                warming[start] = previous.last is None
                trend[start] = values[start] - (math.nan if previous.last is None else previous.last)
                trend[start + 1 : end] = values[start + 1 : end] - values[start : end - 1]
                previous.push(float(values[end - 1]))
    if rows is None and not warming.any():
        return trend, reasons
    codes = np.where(finite, 0, code(Reason.NOT_FINITE)).astype(np.uint8)
    if reasons is not None:
        np.copyto(codes, reasons, where=reasons != 0)
    if rows is None:
        rows = np.arange(len(value))
    codes[rows[warming]] = code(Reason.WARMING_UP)
    every = np.full(len(value), math.nan)
    every[rows] = trend
    return every, codes


def compare(condition: Condition, reading: Values, threshold: Floats | float) -> Judgement:
    """Compare values (or drifts, steps, trends) with thresholds, NaN if there is not one."""
    value, reasons = reading
    if condition.test is Test.NONFINITE:
        breach = ~np.isfinite(value)
        return Judgement(breach if reasons is None else breach & (reasons == 0), None, reasons, value, math.nan)
    for flags, reason in ((np.isnan(threshold), Reason.NO_THRESHOLD), (np.isnan(value), Reason.NOT_FINITE)):
        if np.any(flags):
            reasons = np.zeros(len(value), np.uint8) if reasons is None else reasons.copy()
            reasons[flags & (reasons == 0)] = code(reason)
    above = condition.test is Test.ABOVE
    breach = value > threshold if above else value < threshold
    if reasons is not None:
        breach &= reasons == 0
    reset = None
    if condition.reset is not None:
        number = condition.reset.number
        level = threshold * (condition.reset.times or 0.0) if number is None else number
        reset = value < level if above else value > level
    return Judgement(breach, reset, reasons, value, threshold)


def combine(
    rule: Rule, judgements: Sequence[Judgement], gate: Codes | None, begins: Sequence[int], states: list[SeriesState]
) -> SeriesResult:
    """Join the alternatives of a rule, count its streaks and return what fires."""
    first, *others = judgements
    breach, reasons = first.breach, first.reasons
    for judgement in others:
        breach = breach | judgement.breach
        if judgement.reasons is not None:
            reasons = judgement.reasons if reasons is None else np.where(reasons != 0, reasons, judgement.reasons)
    if others and reasons is not None:
        reasons = np.where(breach, 0, reasons).astype(np.uint8)  # one breach is enough, whatever the others lack
    if gate is not None:
        reasons = gate if reasons is None else np.where(gate != 0, gate, reasons)
        breach = breach & (gate == 0)
    if reasons is not None and not reasons.any():
        reasons = None
    rows = np.flatnonzero(_fires(rule, judgements, breach, reasons, begins, states))
    value, threshold, signed_value = _at(rule.conditions[0], first, rows)
    unclaimed = ~first.breach[rows]
    for condition, judgement in zip(rule.conditions[1:], others, strict=True):  # the first that breaches is reported
        claimed = unclaimed & judgement.breach[rows]
        for array, part in zip((value, threshold, signed_value), _at(condition, judgement, rows), strict=True):
            array[claimed] = part[claimed]
        unclaimed &= ~claimed
    evaluation = _count_evaluations(rows, reasons, len(breach), begins, states)
    return SeriesResult(rows, value, threshold, signed_value, evaluation, reasons)


def _at(condition: Condition, judgement: Judgement, rows: Ints) -> tuple[Floats, Floats, Floats]:
    """Return value, threshold and signed value at some rows, as new arrays."""
    value = judgement.value[rows]
    threshold = judgement.threshold
    threshold = threshold[rows] if isinstance(threshold, np.ndarray) else np.full(len(rows), threshold)
    if condition.test is Test.NONFINITE:
        return value, threshold, np.full(len(rows), math.inf)
    return value, threshold, value.copy() if condition.test is Test.ABOVE else -value


def _fires(
    rule: Rule,
    judgements: Sequence[Judgement],
    breach: Flags,
    reasons: Codes | None,
    begins: Sequence[int],
    states: list[SeriesState],
) -> Flags:
    """Flag the rows that fire, and carry the streaks on in the states."""
    if rule.streak == 1 and not rule.keep:
        return breach
    reset = ~breach
    for judgement in judgements:
        if judgement.reset is not None:
            reset &= judgement.reset
    if reasons is not None:
        reset &= reasons == 0
    # A streak is the number of breaches since it last ended: at a reset, or before the run's first row, which adds to
    # the streak that was carried into the block.
    breaches = np.cumsum(breach, dtype=np.int64)
    ended_at = np.where(reset, breaches, np.iinfo(np.int64).min)
    first = np.array(begins, np.int64)
    carried = np.array([state.streak for state in states], np.int64)
    ended_at[first] = np.where(reset[first], breaches[first], breaches[first] - breach[first] - carried)
    streak = breaches - np.maximum.accumulate(ended_at)
    for state, end in zip(states, [*begins[1:], len(breach)], strict=True):
        state.streak = int(streak[end - 1])
    active = breach
    if rule.keep:
        active = ~reset if reasons is None else ~reset & (reasons == 0)
    fires: Flags = active & (streak >= rule.streak)
    return fires


def _count_evaluations(
    rows: Ints, reasons: Codes | None, height: int, begins: Sequence[int], states: list[SeriesState]
) -> Ints:
    """Number the evaluations of each run and return the numbers of some rows; the states carry the counts on."""
    bounds = np.array([*begins, height], np.int64)
    evaluated = np.arange(height + 1)
    if reasons is not None:
        evaluated = np.concatenate([[0], np.cumsum(reasons == 0, dtype=np.int64)])
    before = np.array([state.evaluated for state in states], np.int64) - evaluated[bounds[:-1]]
    for state, count in zip(states, np.diff(evaluated[bounds]).tolist(), strict=True):
        state.evaluated += count
    run = np.searchsorted(bounds, rows, side="right") - 1 if len(begins) > 1 else 0
    numbers: Ints = evaluated[rows + 1] + before[run]
    return numbers
