"""Conditions and gates, each compiled once into a function that is called for every update.

Comparisons are strict, and with NaN always false; a reading without a number is a `Reason`, and is passed on.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import gt, lt
from typing import Any, Final

from esper_recorder.contract.rules.describe import describe_gate
from esper_recorder.contract.rules.model import Condition, Gate, Test, Threshold
from esper_recorder.contract.rules.signal import Reading, Reason, Signal
from esper_recorder.contract.rules.trend import Average, Previous, RollingMean

BREACH: Final = 1  # beyond the threshold
RESET: Final = 2  # beyond the reset level: the streak ends
HOLD: Final = 3  # between the two: the streak stays

Outcome = tuple[int, float, float | None]
"""BREACH, RESET or HOLD; the value (a drift, step or trend if the condition has one); the threshold."""

Trend = Average | Previous | RollingMean | None
"""The accumulator of a condition on a drift, step or rolling mean."""

Readings = Sequence[Any]
"""What each signal of a rule set reads at one update; a rule knows the positions of its signals."""

Check = Callable[[Reading, Trend, Readings, str | None, str], Outcome | Reason]
"""From the signal's reading, the accumulator, all readings, the phase and the key."""

GateCheck = Callable[[Reading], str | None]
"""From the gate's reading: why the rule is not evaluated; None if the gate is open."""


def new_trend(condition: Condition) -> Trend:
    """Return a new accumulator for one series of a condition."""
    if condition.drift is not None:
        return Average(condition.drift)
    if condition.rolling is not None:
        return RollingMean(condition.rolling)
    return Previous() if condition.step else None


def compile_condition(condition: Condition, positions: Mapping[Signal, int]) -> Check:
    """Return the function that evaluates a condition.

    Args:
        condition: the condition.
        positions: signal -> its position in the readings.
    """
    if condition.threshold is None:
        return _check_nonfinite
    breaches, passes = (gt, lt) if condition.test is Test.ABOVE else (lt, gt)
    reset, has_trend, isfinite = condition.reset, condition.has_trend, math.isfinite
    threshold_at = _compile_threshold(condition.threshold, positions)
    fixed = condition.threshold.number if condition.threshold.by == "number" else None

    def check(reading: Reading, trend: Trend, readings: Readings, phase: str | None, key: str) -> Outcome | Reason:
        if not isinstance(reading, float):
            return reading
        value = reading
        if has_trend:
            if not isfinite(value):
                return Reason.NOT_FINITE
            moved = trend.push(value)  # type: ignore[union-attr]  # `new_trend` made one
            if moved is None:
                return Reason.WARMING_UP
            value = moved
        threshold = fixed if fixed is not None else threshold_at(readings, phase, key)
        if threshold is None or threshold != threshold:
            return Reason.NO_THRESHOLD
        if breaches(value, threshold):
            return (BREACH, value, threshold)
        if value != value:
            return Reason.NOT_FINITE
        if reset is None:
            return (RESET, value, threshold)
        level = reset.number if reset.number is not None else threshold * (reset.times or 0.0)
        return (RESET if passes(value, level) else HOLD, value, threshold)

    return check


def _check_nonfinite(
    reading: Reading, trend: Trend, readings: Readings, phase: str | None, key: str
) -> Outcome | Reason:
    if not isinstance(reading, float):
        return reading
    return (RESET if math.isfinite(reading) else BREACH, reading, None)


def _compile_threshold(
    threshold: Threshold, positions: Mapping[Signal, int]
) -> Callable[[Readings, str | None, str], float | None]:
    otherwise, values, times = threshold.number, threshold.values, threshold.times
    if threshold.signal is not None:
        position = positions[threshold.signal]

        def relative(readings: Readings, phase: str | None, key: str) -> float | None:
            value = readings[position]
            return value * times if isinstance(value, float) else otherwise

        return relative
    if threshold.by == "phase":
        return lambda readings, phase, key: otherwise if phase is None else values.get(phase, otherwise)
    return lambda readings, phase, key: values.get(key, otherwise)


def compile_gate(gate: Gate) -> GateCheck:
    """Return the function that says whether a gate is closed."""
    reason, test = closed_reason(gate), gate.test
    number = math.nan if gate.number is None else gate.number  # `nonfinite` has none
    closes = gt if test is Test.ABOVE else lt

    def check_nonfinite(reading: Reading) -> str | None:
        if not isinstance(reading, float):
            return Reason.GATE_UNKNOWN
        return None if math.isfinite(reading) else reason

    def check(reading: Reading) -> str | None:
        if not isinstance(reading, float) or reading != reading:
            return Reason.GATE_UNKNOWN
        return reason if closes(reading, number) else None

    return check_nonfinite if test is Test.NONFINITE else check


def closed_reason(gate: Gate) -> str:
    """Return the reason that coverage gives if this gate is closed."""
    return f"{Reason.NOT_APPLICABLE}: {describe_gate(gate)}"
