"""Comparisons of a condition: strict, and never true of what was not measured or is not a number."""

from __future__ import annotations

import math

import pytest

from esper_recorder.contract.rules.conditions import BREACH, compile_condition
from esper_recorder.contract.rules.model import Condition, Test, Threshold
from esper_recorder.contract.rules.signal import Reading, Reason, Signal

SIGNAL = Signal("ppo_updates", "ratio_max")
RELATIVE = Signal("ppo_updates", "target_kl")


def outcome(test: Test, reading: Reading, threshold: float | None) -> int | Reason:
    """Evaluate a condition whose threshold is a column, which may be NULL (None) or NaN."""
    condition = Condition(SIGNAL, test, None if test is Test.NONFINITE else Threshold(by="column", signal=RELATIVE))
    readings = [reading, Reason.NOT_MEASURED if threshold is None else threshold]
    result = compile_condition(condition, {SIGNAL: 0, RELATIVE: 1})(reading, None, readings, None, "")
    return result if isinstance(result, Reason) else result[0]


def above(value: Reading, threshold: float | None) -> bool:
    return outcome(Test.ABOVE, value, threshold) == BREACH


def below(value: Reading, threshold: float | None) -> bool:
    return outcome(Test.BELOW, value, threshold) == BREACH


@pytest.mark.parametrize("test", [Test.ABOVE, Test.BELOW])
def test_null_and_nan_are_neither_above_nor_below(test: Test) -> None:
    threshold = -math.inf if test is Test.ABOVE else math.inf
    assert outcome(test, Reason.NOT_MEASURED, threshold) is Reason.NOT_MEASURED
    assert outcome(test, math.nan, threshold) is Reason.NOT_FINITE


@pytest.mark.parametrize("test", [Test.ABOVE, Test.BELOW])
@pytest.mark.parametrize("threshold", [None, math.nan])
def test_a_threshold_of_null_or_nan_is_never_breached(test: Test, threshold: float | None) -> None:
    assert outcome(test, 1.0, threshold) is Reason.NO_THRESHOLD


def test_a_value_at_the_threshold_is_neither_above_nor_below() -> None:
    assert not above(5.0, 5.0)
    assert not below(5.0, 5.0)
    assert above(math.nextafter(5.0, 6.0), 5.0)
    assert below(math.nextafter(5.0, 4.0), 5.0)


def test_infinities_compare_as_numbers_do() -> None:
    assert above(math.inf, 5.0)
    assert below(-math.inf, 5.0)
    assert not above(math.inf, math.inf)


def test_nonfinite_is_nan_and_both_infinities_but_not_null() -> None:
    values = (math.nan, math.inf, -math.inf, 1e308)
    assert [outcome(Test.NONFINITE, value, None) == BREACH for value in values] == [True, True, True, False]
    assert outcome(Test.NONFINITE, Reason.NOT_MEASURED, None) is Reason.NOT_MEASURED
