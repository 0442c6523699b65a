"""Drift against an exponential moving average, and steps, with the arithmetic written out."""

from __future__ import annotations

import math

import pytest

from esper_recorder.contract.rules.ema import Average, Drift, Previous

PLAIN = Drift(momentum=0.9, epsilon=1e-8)


def test_the_plain_form_starts_at_the_first_value_and_drifts_against_the_average_before() -> None:
    # average 1.0; then 2.0 drifts by |2 - 1| / 1 and enters: 0.9 * 1 + 0.1 * 2 = 1.1; then 1.1 does not drift
    drifts = Average(PLAIN).push_all([1.0, 2.0, 0.9 * 1.0 + (1 - 0.9) * 2.0])
    assert drifts[0] is None
    assert drifts[1] == pytest.approx(1.0, abs=1e-7)
    assert drifts[2] == 0.0


def test_bias_correction_weighs_the_first_values_no_more_than_their_share() -> None:
    # sum 0.1 * 1 = 0.1, weight 1 - 0.9 = 0.1: average 1.0. After 3.0: sum 0.9 * 0.1 + 0.1 * 3 = 0.39,
    # weight 1 - 0.81 = 0.19: average 2.0526...; the plain form would be at 0.9 * 1 + 0.1 * 3 = 1.2
    drifts = Average(Drift(momentum=0.9, bias_correction=True)).push_all([1.0, 3.0, 0.39 / 0.19])
    assert drifts[0] is None
    assert drifts[1] == pytest.approx(2.0)
    assert drifts[2] == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("odd", [None, math.nan, math.inf, -math.inf])
def test_what_is_missing_or_not_finite_neither_enters_nor_drifts(odd: float | None) -> None:
    with_it = Average(PLAIN).push_all([odd, 1.0, odd, odd, 2.0, odd, 3.0])
    without = Average(PLAIN).push_all([1.0, 2.0, 3.0])
    assert [with_it[i] for i in (1, 4, 6)] == without
    assert [with_it[i] for i in (0, 2, 3, 5)] == [None] * 4


def test_warm_up_withholds_the_drift_of_values_that_do_enter() -> None:
    values = [1.0, 2.0, 4.0, 8.0]
    warmed = Average(Drift(momentum=0.9, warmup=2)).push_all(values)
    assert warmed[:3] == [None, None, None]
    assert warmed[3] == Average(PLAIN).push_all(values)[3]


def test_one_value_at_a_time_gives_the_same_bits_as_all_at_once() -> None:
    values = [0.1, 0.7, 1e-9, None, 3e5, math.nan, 0.3, 0.2]
    for form in (PLAIN, Drift(momentum=0.99, bias_correction=True, warmup=1)):
        one_by_one = Average(form)
        assert [one_by_one.push(v) for v in values] == Average(form).push_all(values)


def test_an_average_of_zero_divides_by_epsilon_not_by_zero() -> None:
    assert Average(Drift(momentum=0.5, epsilon=0.5)).push_all([0.0, 1.0]) == [None, 2.0]


def test_a_negative_average_drifts_by_its_size() -> None:
    assert Average(Drift(momentum=0.5, epsilon=1e-12)).push_all([-2.0, -1.0])[1] == pytest.approx(0.5)


def test_a_step_is_the_difference_to_the_last_finite_value() -> None:
    assert Previous().push_all([1.0, 4.0, None, math.nan, math.inf, 2.0]) == [None, 3.0, None, None, None, -2.0]


def test_a_signed_drift_tells_a_fall_from_a_rise() -> None:
    # 3 against 2: (3 - 2) / 2 = 0.5, and the average is 2.5; 1 against that: -1.5 / 2.5 = -0.6. Of negative values the
    # size of the average counts: -3 against -2 has fallen.
    form = Drift(momentum=0.5, epsilon=1e-12, signed=True)
    assert Average(form).push_all([2.0, 3.0, 1.0]) == [None, pytest.approx(0.5), pytest.approx(-0.6)]
    assert Average(form).push_all([-2.0, -3.0]) == [None, pytest.approx(-0.5)]
