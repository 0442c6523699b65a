"""Merging rows by the declared reducers."""

from __future__ import annotations

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_recorder.contract.merge import merge
from esper_recorder.contract.tables import TABLES, Column, Reducer, columns


def column(reducer: Reducer, name: str = "x", kind: str = "float64") -> Column:
    return Column(name=name, type=kind, meaning="", unit="1", null="", reducer=reducer, since=1)


def merged(reducer: Reducer, *values: object) -> object:
    kind = "list<int64>" if isinstance(values[0], list) else "float64"
    return merge([column(reducer, kind=kind)], [{"x": v} for v in values])["x"]


class TestReducers:
    def test_each_reducer_does_what_its_name_says(self):
        values = (3.0, 1.0, 2.0)
        assert merged(Reducer.SUM, *values) == 6.0
        assert merged(Reducer.MIN, *values) == 1.0
        assert merged(Reducer.MAX, *values) == 3.0
        assert merged(Reducer.FIRST, *values) == 3.0
        assert merged(Reducer.LAST, *values) == 2.0
        assert merged(Reducer.KEY, *values) == 3.0

    def test_histograms_are_added_bin_by_bin(self):
        assert merged(Reducer.SUM, [1, 0, 2], [0, 5, 1]) == [1, 5, 3]

    def test_histograms_on_different_axes_are_refused(self):
        with pytest.raises(ValueError):
            merged(Reducer.SUM, [1, 2], [1, 2, 3])

    def test_derived_columns_are_left_out(self):
        assert merge([column(Reducer.DERIVED, "kl"), column(Reducer.SUM, "n")], [{"kl": 1.0, "n": 2}]) == {"n": 2}

    def test_false_and_zero_are_values(self):
        assert merged(Reducer.LAST, True, False) is False
        assert merged(Reducer.FIRST, 0, 5) == 0
        assert merged(Reducer.MIN, 0.0, 5.0) == 0.0


class TestNull:
    @pytest.mark.parametrize("reducer", [r for r in Reducer if r is not Reducer.DERIVED])
    def test_null_is_ignored(self, reducer):
        assert merged(reducer, None, 4.0, None) == 4.0

    @pytest.mark.parametrize("reducer", [r for r in Reducer if r is not Reducer.DERIVED])
    def test_a_column_that_no_row_measured_stays_null(self, reducer):
        assert merged(reducer, None, None) is None
        assert merge([column(reducer)], [{}, {}]) == {"x": None}
        assert merge([column(reducer)], []) == {"x": None}


class TestNotFinite:
    @pytest.mark.parametrize("reducer", [Reducer.MIN, Reducer.MAX])
    def test_any_number_replaces_nan(self, reducer):
        assert merged(reducer, math.nan, 1.0, math.nan) == 1.0

    @pytest.mark.parametrize("reducer", [Reducer.MIN, Reducer.MAX])
    def test_without_a_number_the_result_is_nan(self, reducer):
        result = merged(reducer, math.nan, None, math.nan)
        assert isinstance(result, float) and math.isnan(result)

    def test_infinities_are_numbers(self):
        assert merged(Reducer.MAX, 1.0, math.inf) == math.inf
        assert merged(Reducer.MIN, 1.0, -math.inf) == -math.inf

    @pytest.mark.parametrize("reducer", [Reducer.FIRST, Reducer.LAST])
    def test_first_and_last_keep_a_nan(self, reducer):
        result = merged(reducer, math.nan)
        assert isinstance(result, float) and math.isnan(result)


@pytest.mark.parametrize("table", TABLES)
def test_a_merged_row_has_every_column_of_its_table_except_derived_ones(table):
    expected = [c.name for c in columns(table) if c.reducer is not Reducer.DERIVED]
    assert list(merge(columns(table), [{}])) == expected


@pytest.mark.parametrize("table", TABLES)
def test_a_single_row_is_unchanged(table):
    values = {"int64": 3, "float64": 0.5, "string": "a", "bool": True, "list<int64>": [1, 2], "list<float64>": [0.5]}
    row = {c.name: values.get(c.type, "other") for c in columns(table)}
    assert merge(columns(table), [row]) == {
        c.name: row[c.name] for c in columns(table) if c.reducer is not Reducer.DERIVED
    }


numbers = st.one_of(st.none(), st.integers(-100, 100).map(float), st.sampled_from([math.inf, math.nan]))


@given(rows=st.lists(st.tuples(numbers, numbers), min_size=1, max_size=8), cut=st.integers(0, 8), seed=st.integers())
def test_merging_in_two_stages_equals_merging_at_once(rows, cut, seed):
    """Minibatches within a rank and then ranks: the same as all minibatches. Sums here are of whole numbers: exact."""
    declared = [column(Reducer.MIN, "low"), column(Reducer.MAX, "high"), column(Reducer.SUM, "total")]
    dicts = [{"low": a, "high": a, "total": b if b is None or math.isfinite(b) else 1.0} for a, b in rows]
    random.Random(seed).shuffle(dicts)
    stages = [part for part in (dicts[:cut], dicts[cut:]) if part]
    once = merge(declared, dicts)
    twice = merge(declared, [merge(declared, part) for part in stages])
    assert repr(once) == repr(twice)  # NaN equals NaN here
