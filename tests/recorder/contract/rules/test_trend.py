"""Drift, steps and rolling means, with the arithmetic written out."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pytest

from esper_recorder.contract.rules.ruleset import RuleError, RuleSet, load_profile
from esper_recorder.contract.rules.trend import Average, Drift, Previous, Rolling, RollingMean, TrendOf

PLAIN = Drift(momentum=0.9, epsilon=1e-8)


def push_all(accumulator: Average | Previous | RollingMean, values: Sequence[float | None]) -> list[float | None]:
    return [accumulator.push(value) for value in values]


class TestDrift:
    def test_the_average_starts_at_the_first_value_and_drift_is_from_the_average_before(self) -> None:
        # average 1.0; then 2.0 drifts by |2 - 1| / 1 and enters: 0.9 * 1 + 0.1 * 2 = 1.1; then 1.1 does not drift
        drifts = push_all(Average(PLAIN), [1.0, 2.0, 0.9 * 1.0 + (1 - 0.9) * 2.0])
        assert drifts[0] is None
        assert drifts[1] == pytest.approx(1.0, abs=1e-7)
        assert drifts[2] == 0.0

    def test_bias_correction_gives_the_first_value_no_extra_weight(self) -> None:
        # sum 0.1 * 1 = 0.1, weight 1 - 0.9 = 0.1: average 1.0. After 3.0: sum 0.9 * 0.1 + 0.1 * 3 = 0.39,
        # weight 1 - 0.81 = 0.19: average 2.0526...; without correction it would be 0.9 * 1 + 0.1 * 3 = 1.2
        average = Average(Drift(momentum=0.9, bias_correction=True))
        assert average.value is None
        drifts = push_all(average, [1.0, 3.0])
        assert average.value == pytest.approx(0.39 / 0.19)
        drifts += push_all(average, [0.39 / 0.19])
        assert drifts == [None, pytest.approx(2.0), pytest.approx(0.0, abs=1e-9)]

    @pytest.mark.parametrize("odd", [None, math.nan, math.inf, -math.inf])
    def test_a_missing_or_non_finite_value_neither_enters_nor_drifts(self, odd: float | None) -> None:
        with_odd = push_all(Average(PLAIN), [odd, 1.0, odd, odd, 2.0, odd, 3.0])
        assert [with_odd[i] for i in (1, 4, 6)] == push_all(Average(PLAIN), [1.0, 2.0, 3.0])
        assert [with_odd[i] for i in (0, 2, 3, 5)] == [None] * 4

    def test_warm_up_withholds_the_drift_of_values_that_enter(self) -> None:
        values = [1.0, 2.0, 4.0, 8.0]
        warmed = push_all(Average(Drift(momentum=0.9, warmup=2)), values)
        assert warmed == [None, None, None, push_all(Average(PLAIN), values)[3]]

    def test_an_average_of_zero_divides_by_epsilon_not_by_zero(self) -> None:
        assert push_all(Average(Drift(momentum=0.5, epsilon=0.5)), [0.0, 1.0]) == [None, 2.0]

    def test_drift_from_a_negative_average_is_relative_to_its_size(self) -> None:
        assert push_all(Average(Drift(momentum=0.5, epsilon=1e-12)), [-2.0, -1.0])[1] == pytest.approx(0.5)

    def test_a_signed_drift_is_negative_if_the_value_fell(self) -> None:
        # 3 against 2: (3 - 2) / 2 = 0.5, and the average is 2.5; 1 against that: -1.5 / 2.5 = -0.6. Of negative values
        # the size of the average counts: -3 against -2 has fallen.
        form = Drift(momentum=0.5, epsilon=1e-12, signed=True)
        assert push_all(Average(form), [2.0, 3.0, 1.0]) == [None, pytest.approx(0.5), pytest.approx(-0.6)]
        assert push_all(Average(form), [-2.0, -3.0]) == [None, pytest.approx(-0.5)]


def test_a_step_is_the_difference_to_the_last_finite_value() -> None:
    steps = push_all(Previous(), [1.0, 4.0, None, math.nan, math.inf, 2.0])
    assert steps == [None, 3.0, None, None, None, -2.0]


class TestRollingMean:
    def test_the_mean_includes_the_current_value_and_starts_with_fewer(self) -> None:
        mean = RollingMean(Rolling(3, TrendOf.CHANGE))
        # Means 1, 1.5, 2, 3: the fourth value pushes out the first.
        assert push_all(mean, [1.0, 2.0, 3.0, 4.0]) == [None, 0.5, 0.5, 1.0]

    def test_size_has_no_sign_and_drop_is_a_fraction(self) -> None:
        assert push_all(RollingMean(Rolling(2, TrendOf.SIZE)), [4.0, 2.0]) == [None, 1.0]
        assert push_all(RollingMean(Rolling(2, TrendOf.DROP)), [4.0, 2.0]) == [0.0, pytest.approx(1 / 3)]

    def test_a_drop_from_a_mean_that_is_not_positive_is_nan(self) -> None:
        drops = push_all(RollingMean(Rolling(2, TrendOf.DROP)), [0.0, -1.0])
        assert all(value is not None and math.isnan(value) for value in drops)

    def test_a_missing_or_non_finite_value_neither_enters_nor_has_a_trend(self) -> None:
        trends = push_all(RollingMean(Rolling(2)), [1.0, None, math.nan, math.inf, 2.0])
        assert trends == [None, None, None, None, 0.5]

    @pytest.mark.parametrize(
        ("text", "message"),
        [
            ("rolling = {}", "rolling.trend: is missing; it is one of change, size, drop"),
            ('rolling = { trend = "chang" }', "Did you mean change"),
            ('rolling = { trend = "drop", window = 0 }', "must be a whole number from 1 to 10,000"),
            ('rolling = { trend = "drop", widow = 3 }', "unknown key 'widow'"),
            ('rolling = { trend = "drop" }\ndrift = {}', "has both drift and rolling"),
        ],
    )
    def test_a_mistake_in_a_rules_file_is_an_error_that_names_it(self, text: str, message: str) -> None:
        with pytest.raises(RuleError, match=message):
            RuleSet.parse(f'[rules.r]\nseverity = "info"\ncolumn = "ratio_max"\nabove = 1\n{text}', "rules.toml")

    def test_its_window_can_be_set(self) -> None:
        changed = load_profile("esper-review").with_values({"plateau.rolling.window": 5})
        [rule] = [rule for rule in changed.rules if rule.name == "plateau"]
        assert rule.conditions[0].rolling == Rolling(5, TrendOf.SIZE)
