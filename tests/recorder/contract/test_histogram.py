"""Log-ratio histograms: which bin a value is in, and bounds if a bin cannot decide."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from esper_recorder.contract.histogram import (
    count_ratios_above,
    count_ratios_below,
    gradient_bin_count,
    gradient_edges,
    log_ratio_bin_count,
    log_ratio_bins,
    log_ratio_edges,
)

EDGES = log_ratio_edges()


def bin_of(log_ratio: float) -> int:
    """The bin by its definition: the largest edge not above |log ratio|; exact zero in the middle; NaN in none."""
    side = sum(1 for edge in EDGES if edge <= abs(log_ratio))  # 0: below the first edge
    middle = len(EDGES) + 1
    if log_ratio == 0.0:
        return middle
    return middle + 1 + side if log_ratio > 0 else middle - 1 - side


def histogram(log_ratios: list[float]) -> list[int]:
    counts = [0] * log_ratio_bin_count()
    for value in log_ratios:
        if not math.isnan(value):
            counts[bin_of(value)] += 1
    return counts


class TestBins:
    def test_there_is_one_bin_per_edge_and_one_below_the_first_on_each_side_and_one_for_zero(self):
        # Edges 2^-20 ... 2^5 are 26; 26 + 1 bins a side; 2 * 27 + 1 = 55.
        assert len(EDGES) == 26
        assert (EDGES[0], EDGES[-1]) == (2.0**-20, 32.0)
        assert log_ratio_bin_count() == len(log_ratio_bins()) == 55

    def test_the_bins_join_without_a_gap_from_minus_to_plus_infinity(self):
        bins = log_ratio_bins()
        assert bins[0] == (-math.inf, -32.0)
        assert bins[26:29] == ((-(2.0**-20), -0.0), (0.0, 0.0), (0.0, 2.0**-20))
        assert bins[-1] == (32.0, math.inf)
        assert all(before[1] == after[0] for before, after in pairwise(bins))

    @pytest.mark.parametrize("value", [*EDGES, math.inf, 5e-324, 0.3, 31.999, 1e300])
    def test_every_value_lies_within_the_bin_it_is_counted_in(self, value):
        for signed in (value, -value):
            low, high = log_ratio_bins()[bin_of(signed)]
            assert low <= signed <= high

    def test_a_gradient_histogram_has_a_bin_for_zero_one_below_the_edges_and_one_per_edge(self):
        # 2^-40 ... 2^16 are 57 edges.
        assert len(gradient_edges()) == 57
        assert gradient_bin_count() == 59
        assert (gradient_edges()[0], gradient_edges()[-1]) == (2.0**-40, 65536.0)


class TestBounds:
    def test_the_bounds_agree_if_the_bin_of_the_threshold_is_empty(self):
        # log 3 = 1.0986 lies in [1, 2), which is empty; log ratios 2.5 and 40 are beyond it, 0.5 is not.
        assert count_ratios_above(histogram([0.5, 2.5, 40.0]), 3.0) == (2, 2)

    def test_values_in_the_bin_of_the_threshold_may_be_on_either_side(self):
        # 1.05 and 1.2 share the bin [1, 2) with log 3 = 1.0986: one of them is beyond it, which the bins do not show.
        assert count_ratios_above(histogram([1.05, 1.2, 2.5]), 3.0) == (1, 3)

    def test_the_ratios_on_either_side_of_one_are_known_exactly(self):
        counts = histogram([0.0, -0.0, 1e-30, -1e-30, -1e-9, 3.0])
        assert count_ratios_above(counts, 1.0) == (2, 2)
        assert count_ratios_below(counts, 1.0) == (2, 2)

    def test_a_value_on_the_threshold_is_not_beyond_it(self):
        # log(1/e) = -1 is an edge. Its own bin is (-2, -1], so what is above -1 is in the bins after it.
        assert count_ratios_above(histogram([-1.0, -0.75]), math.exp(-1)) == (1, 1)
        assert count_ratios_below(histogram([1.0, 0.75]), math.exp(1)) == (1, 1)
        # On its other side -1 shares its bin with what is below it.
        assert count_ratios_below(histogram([-1.0, -1.5]), math.exp(-1)) == (0, 2)
        assert count_ratios_above(histogram([1.0, 1.5]), math.exp(1)) == (0, 2)

    def test_infinite_log_ratios_are_in_the_outer_bins(self):
        counts = histogram([math.inf, -math.inf])
        assert count_ratios_above(counts, 2.0) == (1, 1)
        assert count_ratios_below(counts, 0.5) == (1, 1)
        # log 1e20 = 46: the last bin begins at 32.
        assert count_ratios_above(counts, 1e20) == (0, 1)

    def test_all_but_the_outer_bin_is_surely_below_an_infinite_ratio(self):
        assert count_ratios_below(histogram([math.inf, 40.0, 1.0]), math.inf) == (1, 3)
        assert count_ratios_above(histogram([math.inf, 40.0, 1.0]), math.inf) == (0, 0)

    def test_an_empty_histogram_has_nothing_beyond_any_ratio(self):
        assert count_ratios_above(histogram([math.nan]), 2.0) == (0, 0)

    def test_counts_on_another_axis_are_refused(self):
        with pytest.raises(ValueError, match="has 55 bins, not 3"):
            count_ratios_above([1, 2, 3], 2.0)

    @pytest.mark.parametrize("ratio", [0.0, -1.0])
    def test_a_ratio_that_is_not_positive_is_refused(self, ratio):
        with pytest.raises(ValueError):
            count_ratios_below(histogram([0.5]), ratio)


log_ratios = st.one_of(
    st.sampled_from([s * e for e in (*EDGES, 64.0, 2.0**-21, 0.0, math.inf) for s in (1, -1)]),
    st.floats(-3.0, 3.0),
    st.floats(allow_nan=True, allow_infinity=True),
)
thresholds = st.one_of(
    st.sampled_from([math.exp(s * e) for e in EDGES for s in (1, -1)] + [1.0]),
    st.floats(1e-6, 1e6),
)


@given(values=st.lists(log_ratios, max_size=40), ratio=thresholds)
@example(values=[1.0, -1.0, 0.0], ratio=math.e)
def test_the_bounds_contain_the_true_counts(values, ratio):
    counts, limit = histogram(values), math.log(ratio)
    above, below = sum(1 for v in values if v > limit), sum(1 for v in values if v < limit)
    low, high = count_ratios_above(counts, ratio)
    assert low <= above <= high
    low, high = count_ratios_below(counts, ratio)
    assert low <= below <= high


@given(values=st.lists(log_ratios, max_size=40), ratio=thresholds)
def test_the_bounds_differ_by_at_most_the_count_of_one_bin(values, ratio):
    counts = histogram(values)
    low, high = count_ratios_above(counts, ratio)
    assert high - low <= counts[bin_of(math.log(ratio))]


@given(values=st.lists(log_ratios, max_size=40))
def test_fewer_values_are_above_a_larger_threshold(values):
    counts = histogram(values)
    bounds = [count_ratios_above(counts, ratio) for ratio in (0.1, 0.5, 1.0, 1.5, 5.0, 1e9)]
    assert [low for low, _ in bounds] == sorted((low for low, _ in bounds), reverse=True)
    assert [high for _, high in bounds] == sorted((high for _, high in bounds), reverse=True)
