"""Metrics of whole columns are those of the scalar formulas, row by row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_recorder.contract.metrics import Scalars, derive
from esper_recorder.storage.columns import ColumnArithmetic, column_of
from tests.recorder.contract.transitions import Transition, sums

NAMES = (*sums([Transition()]), "entropy_normalized_n", "entropy_normalized_sum")


@given(st.integers(0, 2**32 - 1), st.integers(1, 6), st.sampled_from([0.0, 0.1, 0.6]))
@settings(max_examples=200)
def test_derived_columns_are_the_scalar_formulas_row_by_row(seed: int, rows: int, odd: float):
    random = np.random.default_rng(seed)

    def cell(name: str) -> float | None:
        if name != "n" and random.random() < odd:  # the count of all there is to count is always known
            odd_ones = (None, 0.0, math.nan, math.inf, -1.0, 1e300)
            return odd_ones[random.integers(len(odd_ones))]
        whole = name == "n" or name.endswith(("_n", "_nan", "_posinf", "_neginf", "_count", "_nonfinite"))
        return float(random.integers(0, 9)) if whole else float(random.normal())

    table: list[dict[str, Any]] = [{name: cell(name) for name in NAMES} for _ in range(rows)]
    coefficients = {"entropy_coef": 0.01, "value_coef": None if odd else 0.5}
    columns = {name: column_of([row[name] for row in table]) for name in NAMES}
    with np.errstate(all="ignore"):
        derived = derive(columns | coefficients, ColumnArithmetic())
    for i, row in enumerate(table):
        expected = derive(row | coefficients)
        for name, value in expected.items():
            column = derived[name]
            ours = None if column is None else column.to_arrow("float64")[i].as_py()
            assert same(ours, value), name


def test_a_column_that_is_not_there_makes_its_metrics_not_there():
    derived = derive({"n": column_of([1.0])}, ColumnArithmetic())
    assert all(value is None for value in derived.values())


ODD = [None, 0.0, -4.0, 2.5, math.nan, math.inf]


@pytest.mark.parametrize("a", ODD)
@pytest.mark.parametrize("b", ODD)
@pytest.mark.parametrize("c", ODD)
def test_each_operation_is_the_scalars(a: float | None, b: float | None, c: float | None):
    vectors, scalars = ColumnArithmetic(), Scalars()
    x, y, z = column_of([a]), column_of([b]), column_of([c])
    with np.errstate(all="ignore"):
        pairs = [
            (vectors.subtract(x, y), scalars.subtract(a, b)),
            (vectors.multiply(x, y), scalars.multiply(a, b)),
            (vectors.divide(x, y), scalars.divide(a, b)),
            (vectors.divide(x, y, z), scalars.divide(a, b, c) if c is not None else None),
            (vectors.root(x), scalars.root(a)),
        ]
        if c is None or not c < 0:
            pairs.append((vectors.ratio(x, y, z), scalars.ratio(a, b, c)))
    for column, expected in pairs:
        assert same(column.to_arrow("float64").to_pylist()[0], expected)


def same(ours: float | None, expected: float | None) -> bool:
    """Equal to the last bit, NULL to NULL and NaN to NaN."""
    return repr(ours) == repr(expected) or ours == expected


def test_arrow_arrays_keep_null_and_nan_apart():
    values = column_of([1.0, None, math.nan]).to_arrow("float64").to_pylist()
    assert [repr(value) for value in values] == ["1.0", "None", "nan"]
    assert column_of([3.0, None]).to_arrow("int64").to_pylist() == [3, None]
