"""Metrics of whole columns are those of the scalar formulas, row by row."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_recorder.capture.vectors import VectorArithmetic, vector_of
from esper_recorder.contract.metrics import Scalars, derive
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
    columns = {name: vector_of([row[name] for row in table]) for name in NAMES}
    derived = derive(columns | coefficients, VectorArithmetic())
    for i, row in enumerate(table):
        expected = derive(row | coefficients)
        for name, value in expected.items():
            column = derived[name]
            ours = None if column is None else column.to_arrow()[i].as_py()
            assert same(ours, value), name


def test_a_column_that_is_not_there_makes_its_metrics_not_there():
    derived = derive({"n": vector_of([1.0])}, VectorArithmetic())
    assert all(value is None for value in derived.values())


ODD = [None, 0.0, -4.0, 2.5, math.nan, math.inf]


@pytest.mark.parametrize("a", ODD)
@pytest.mark.parametrize("b", ODD)
@pytest.mark.parametrize("c", ODD)
def test_each_operation_is_the_scalars(a: float | None, b: float | None, c: float | None):
    vectors, scalars = VectorArithmetic(), Scalars()
    x, y, z = vector_of([a]), vector_of([b]), vector_of([c])
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
        assert same(column.to_arrow().to_pylist()[0], expected)


def same(ours: float | None, expected: float | None) -> bool:
    """Equal to the last bits (a vectorised root may round otherwise), NULL to NULL and NaN to NaN."""
    if ours is None or expected is None or math.isnan(ours) or math.isnan(expected):
        return repr(ours) == repr(expected)
    return math.isclose(ours, expected, rel_tol=1e-15)


def test_arrow_arrays_keep_null_and_nan_apart():
    assert [repr(v) for v in vector_of([1.0, None, math.nan]).to_arrow().to_pylist()] == ["1.0", "None", "nan"]
    assert vector_of([3.0, None]).to_arrow(whole=True).to_pylist() == [3, None]
