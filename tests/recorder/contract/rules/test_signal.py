"""Signals: one value per update and key, or the reason for its absence."""

from __future__ import annotations

import math
from typing import Any

import pytest

from esper_recorder.contract.rules.expression import Expression
from esper_recorder.contract.rules.signal import Reason, Signal, Take, total


def read(take: Take, *values: Any, **more: Any) -> Any:
    """Read minibatches 1, 2, ... with these values."""
    rows = [{"minibatch": place, "ratio_max": value} for place, value in enumerate(values, 1)]
    return Signal("minibatches", "ratio_max", take=take, **more).read(rows)[""]


def test_first_and_last_follow_the_minibatch_not_the_order_of_the_rows() -> None:
    rows = [{"minibatch": 2, "ratio_max": 2.0}, {"minibatch": 1, "ratio_max": 1.0}, {"minibatch": 3, "ratio_max": 3.0}]
    assert Signal("minibatches", "ratio_max", take=Take.FIRST).read(rows) == {"": 1.0}
    assert Signal("minibatches", "ratio_max", take=Take.LAST).read(rows) == {"": 3.0}


def test_first_is_the_first_row_even_if_it_is_null() -> None:
    assert read(Take.FIRST, None, 2.0) is Reason.NOT_MEASURED


def test_max_and_min_ignore_null_and_nan_unless_there_is_no_number() -> None:
    assert read(Take.MAX, None, math.nan, 2.0, 3.0) == 3.0
    assert read(Take.MIN, None, math.nan, 2.0, 3.0) == 2.0
    assert math.isnan(read(Take.MAX, None, math.nan))
    assert read(Take.MAX, None, None) is Reason.NOT_MEASURED


def test_a_sum_ignores_null_but_not_nan() -> None:
    assert read(Take.SUM, 1.0, None, 2.0) == 3.0
    assert math.isnan(read(Take.SUM, 1.0, math.nan))
    assert read(Take.SUM, None) is Reason.NOT_MEASURED


def test_a_mean_ignores_null_but_not_nan() -> None:
    assert read(Take.MEAN, 1.0, None, 2.0) == 1.5
    assert math.isnan(read(Take.MEAN, 1.0, math.nan))
    assert read(Take.MEAN, None) is Reason.NOT_MEASURED


def test_only_refuses_a_second_row() -> None:
    assert read(Take.ONLY, 1.0) == 1.0
    assert read(Take.ONLY, 1.0, 1.0) is Reason.SEVERAL_ROWS
    assert read(Take.ONLY) is Reason.NOT_RECORDED


def test_rows_with_too_few_transitions_are_ignored() -> None:
    signal = Signal("minibatches", "ratio_max", take=Take.MAX, min_n=32)
    rows: list[dict[str, Any]] = [
        {"n": 31, "ratio_max": 9.0},
        {"n": 32, "ratio_max": 1.0},
        {"n": None, "ratio_max": 8.0},
    ]
    assert signal.read(rows) == {"": 1.0}
    assert signal.read(rows[:1]) == {"": Reason.TOO_FEW}


def test_each_key_has_its_own_value_and_null_is_the_empty_key() -> None:
    rows: list[dict[str, Any]] = [
        {"layer": "a", "grad_norm": 1.0},
        {"layer": None, "grad_norm": 2.0},
        {"layer": "b", "grad_norm": None},
        {"layer": "a", "grad_norm": 3.0},
    ]
    signal = Signal("gradient_layers", "grad_norm", take=Take.MAX, key="layer")
    assert signal.read(rows) == {"a": 3.0, "": 2.0, "b": Reason.NOT_MEASURED}
    assert signal.read([]) == {}


def test_an_expression_is_evaluated_row_by_row() -> None:
    signal = Signal("minibatches", expression=Expression("ratio_max - ratio_min"), take=Take.MAX)
    rows: list[dict[str, Any]] = [{"ratio_max": 2.0, "ratio_min": 1.5}, {"ratio_max": 1.1, "ratio_min": 0.1}]
    assert signal.read(rows) == {"": 1.0}


@pytest.mark.parametrize("values", [[0.1] * 10, [1e308, 1e308, -1e308], [1e16, 1.0, -1e16], [1.5, -2.5, 1e-300]])
def test_a_total_does_not_depend_on_the_order(values: list[float]) -> None:
    assert total(values) == total(values[::-1]) == total(sorted(values))


def test_a_total_of_both_infinities_is_nan() -> None:
    assert math.isnan(total([math.inf, 1.0, -math.inf]))
    assert total([math.inf, 1.0]) == math.inf
