"""Comparisons: strict, and never true of what was not measured or is not a number."""

from __future__ import annotations

import math

import pytest

from esper_recorder.contract.rules.compare import above, below, nonfinite


@pytest.mark.parametrize("value", [None, math.nan])
def test_nothing_measured_and_nan_are_neither_above_nor_below(value: float | None) -> None:
    assert not above(value, -math.inf)
    assert not below(value, math.inf)


@pytest.mark.parametrize("threshold", [None, math.nan])
def test_no_threshold_and_nan_are_never_passed(threshold: float | None) -> None:
    assert not above(1.0, threshold)
    assert not below(1.0, threshold)


def test_a_value_equal_to_the_threshold_is_neither_above_nor_below() -> None:
    assert not above(5.0, 5.0)
    assert not below(5.0, 5.0)
    assert above(math.nextafter(5.0, 6.0), 5.0)
    assert below(math.nextafter(5.0, 4.0), 5.0)


def test_infinities_compare_as_numbers_do() -> None:
    assert above(math.inf, 5.0)
    assert below(-math.inf, 5.0)
    assert not above(math.inf, math.inf)


def test_nonfinite_is_nan_and_both_infinities_but_not_what_was_not_measured() -> None:
    assert [nonfinite(v) for v in (math.nan, math.inf, -math.inf, 1e308, None)] == [True, True, True, False, False]
