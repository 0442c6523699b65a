"""Judging a reading: for each condition and gate a function made for it once, that meets every update.

Readings are floats or reasons, thresholds numbers, so the comparisons of `compare` come down to `>` and `<`: with NaN
both are false.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from operator import gt, lt
from typing import Any, Final

from esper_recorder.contract.rules.ema import Average, Previous
from esper_recorder.contract.rules.model import Condition, Gate, Test, Threshold
from esper_recorder.contract.rules.rolling_mean import RollingMean
from esper_recorder.contract.rules.signal import Reading, Reason, Signal

HIT: Final = 1
BEYOND: Final = 2
HELD: Final = 3

Judgement = tuple[int, float, float | None]
"""HIT, BEYOND (the reset level) or HELD (neither); the value, as transformed; the threshold."""

State = Average | Previous | RollingMean | None
"""What a condition keeps of the values before."""

Readings = Sequence[Any]
"""What each signal of a rule set reads at one update; a rule knows the places of its own."""

Judge = Callable[[Reading, State, Readings, str | None, str], Judgement | Reason]
"""From the signal's reading, the state, all readings, the phase and the key."""

GateKeeper = Callable[[Reading], str | None]
"""From the gate's reading: why the rule does not look, or None where the gate is open."""


def new_state(condition: Condition) -> State:
    """The state a series begins with."""
    if condition.drift is not None:
        return Average(condition.drift)
    if condition.rolling is not None:
        return RollingMean(condition.rolling)
    return Previous() if condition.step else None


def judge(condition: Condition, places: Mapping[Signal, int]) -> Judge:
    """What a condition says of a reading.

    Args:
        condition: the condition.
        places: where in the readings each signal of `ppo_updates` is found.
    """
    if condition.test is Test.NONFINITE:
        return _judge_nonfinite
    assert condition.threshold is not None  # only `nonfinite` has none
    hits, passes = (gt, lt) if condition.test is Test.ABOVE else (lt, gt)
    reset, moves, isfinite = condition.reset, condition.moves, math.isfinite
    threshold_of = _threshold(condition.threshold, places)
    fixed = condition.threshold.number if condition.threshold.by == "number" else None

    def judge_value(
        reading: Reading, state: State, readings: Readings, phase: str | None, key: str
    ) -> Judgement | Reason:
        if not isinstance(reading, float):
            return reading
        value = reading
        if moves:
            if not isfinite(value):
                return Reason.NOT_FINITE
            moved = state.push(value)  # type: ignore[union-attr]  # what moves has a state
            if moved is None:
                return Reason.WARMING_UP
            value = moved
        threshold = fixed if fixed is not None else threshold_of(readings, phase, key)
        if threshold is None or threshold != threshold:
            return Reason.NO_THRESHOLD
        if hits(value, threshold):
            return (HIT, value, threshold)
        if value != value:
            return Reason.NOT_FINITE
        if reset is None:
            return (BEYOND, value, threshold)
        level = reset.number if reset.number is not None else threshold * (reset.times or 0.0)
        return (BEYOND if passes(value, level) else HELD, value, threshold)

    return judge_value


def _judge_nonfinite(
    reading: Reading, state: State, readings: Readings, phase: str | None, key: str
) -> Judgement | Reason:
    if not isinstance(reading, float):
        return reading
    return (BEYOND if math.isfinite(reading) else HIT, reading, None)


def _threshold(
    threshold: Threshold, places: Mapping[Signal, int]
) -> Callable[[Readings, str | None, str], float | None]:
    """The threshold at an update; None where there is none."""
    otherwise, values, times = threshold.number, threshold.values, threshold.times
    if threshold.signal is not None:
        place = places[threshold.signal]

        def of_column(readings: Readings, phase: str | None, key: str) -> float | None:
            value = readings[place]
            return value * times if isinstance(value, float) else otherwise

        return of_column
    if threshold.by == "phase":
        return lambda readings, phase, key: otherwise if phase is None else values.get(phase, otherwise)
    return lambda readings, phase, key: values.get(key, otherwise)


def gate_keeper(gate: Gate) -> GateKeeper:
    """Whether a gate is closed."""
    reason, test = gate_reason(gate), gate.test
    number = math.nan if gate.number is None else gate.number  # `nonfinite` has none
    shuts = gt if test is Test.ABOVE else lt

    def keep_nonfinite(reading: Reading) -> str | None:
        if not isinstance(reading, float):
            return Reason.GATE_UNKNOWN
        return None if math.isfinite(reading) else reason

    def keep(reading: Reading) -> str | None:
        if not isinstance(reading, float) or reading != reading:
            return Reason.GATE_UNKNOWN
        return reason if shuts(reading, number) else None

    return keep_nonfinite if test is Test.NONFINITE else keep


def gate_reason(gate: Gate) -> str:
    """What coverage says where this gate is closed."""
    return f"{Reason.NOT_APPLICABLE}: {gate.describe()}"
