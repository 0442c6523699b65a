"""The log-ratio histogram and the worst transitions."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from esper_recorder.contract.histogram import log_ratio_bins, log_ratio_edges
from esper_recorder.reductions.ratio_histogram import log_ratio_histogram, worst
from tests.recorder.reductions.arrays import number, rows_of_numbers

BINS = log_ratio_bins()


def bin_of(x: float) -> int:
    """The contract read literally: a bin holds its edge nearer to zero and not the other; zero is its own."""
    for i, (low, high) in enumerate(BINS):
        if low == high == x or (0 <= low < high and x > 0 and low <= x < high):
            return i
        if low < high <= 0 and x < 0 and low < x <= high:
            return i
        if math.isinf(x) and x in (low, high):
            return i
    raise AssertionError(f"{x} is in no bin")


def histogram(
    values: list[float], mask: list[bool] | None = None, dtype: torch.dtype = torch.float64
) -> tuple[list[int], int]:
    valid = torch.tensor([True] * len(values) if mask is None else mask, dtype=torch.bool)
    counts, nan = log_ratio_histogram(torch.tensor(values, dtype=dtype), valid)
    result: list[int] = counts.tolist()
    return result, int(nan)


@given(st.lists(st.tuples(number, st.booleans()), max_size=30))
def test_every_number_is_in_its_bin_of_the_contract(values: list[tuple[float, bool]]):
    counts, nan = histogram([v for v, _ in values], [m for _, m in values], torch.float32)
    expected = [0] * len(BINS)
    for v, counted in values:
        if counted and not math.isnan(v):
            expected[bin_of(v)] += 1
    assert counts == expected
    assert nan == sum(m and math.isnan(v) for v, m in values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_an_exact_power_of_two_is_in_the_bin_it_begins(sign: float, dtype: torch.dtype):
    middle = len(BINS) // 2
    for place, edge in enumerate(log_ratio_edges()):
        counts, _ = histogram([sign * edge], dtype=dtype)
        assert counts.index(1) == middle + int(sign) * (place + 2)
        assert counts.index(1) == bin_of(sign * edge)


def test_the_number_below_a_power_of_two_is_in_the_bin_before():
    middle = len(BINS) // 2
    for place, edge in enumerate(log_ratio_edges()):
        counts, _ = histogram([math.nextafter(edge, 0.0)])
        assert counts.index(1) == middle + place + 1


def test_both_zeros_are_in_the_middle_and_infinities_in_the_outer_bins():
    counts, nan = histogram([0.0, -0.0, math.inf, -math.inf, -math.inf, math.nan])
    assert (counts[len(BINS) // 2], counts[-1], counts[0], nan) == (2, 1, 2, 1)
    assert sum(counts) == 5


def test_no_transitions_leave_every_bin_empty():
    counts, nan = histogram([])
    assert (sum(counts), len(counts), nan) == (0, len(BINS), 0)


@given(rows_of_numbers(("log_ratio",)))
def test_rows_have_histograms_of_their_own_and_add_up(given_rows: tuple[dict[str, torch.Tensor], torch.Tensor]):
    fields, mask = given_rows
    x = fields["log_ratio"]
    counts, nan = log_ratio_histogram(x, mask)
    for row in range(x.shape[0]):
        own, own_nan = log_ratio_histogram(x[row], mask[row])
        assert counts[row].tolist() == own.tolist() and nan[row] == own_nan
    whole, whole_nan = log_ratio_histogram(x.reshape(-1), mask.reshape(-1))
    assert counts.sum(dim=0).tolist() == whole.tolist() and int(nan.sum()) == whole_nan
    assert int(counts.sum() + nan.sum()) == int(mask.sum())


class TestWorst:
    def of(self, values: list[float], k: int, mask: list[bool] | None = None) -> list[int]:
        valid = torch.tensor([True] * len(values) if mask is None else mask, dtype=torch.bool)
        places, severity = worst(torch.tensor(values), valid, k)
        return [p if s >= 0 else -1 for p, s in zip(places.tolist(), severity.tolist(), strict=True)]

    def test_nan_comes_first_then_infinities_then_by_size(self):
        assert self.of([0.5, math.inf, -3.0, math.nan, 2.0], 5) == [3, 1, 2, 4, 0]
        assert self.of([-math.inf, math.nan], 1) == [1]

    def test_the_sign_does_not_matter(self):
        assert self.of([1.0, -2.0, 1.5], 3) == [1, 2, 0]

    def test_padding_comes_last_whatever_it_holds(self):
        assert self.of([math.nan, 0.0, math.inf, 0.1], 4, [False, True, False, True]) == [3, 1, -1, -1]

    def test_a_log_ratio_of_zero_is_a_transition_and_not_padding(self):
        assert self.of([0.0], 3) == [0]

    def test_none_at_all(self):
        assert self.of([], 4) == []

    @given(st.lists(st.tuples(number, st.booleans()), max_size=30), st.integers(1, 20))
    def test_it_is_the_head_of_the_sorted_list(self, values: list[tuple[float, bool]], k: int):
        def rank(v: float) -> tuple[int, float]:
            return (2, 0.0) if math.isnan(v) else (1, 0.0) if math.isinf(v) else (0, abs(v))

        places, severity = worst(torch.tensor([v for v, _ in values]), torch.tensor([m for _, m in values]).bool(), k)
        found = [values[p] for p, s in zip(places.tolist(), severity.tolist(), strict=True) if s >= 0]
        expected = sorted((rank(v) for v, m in values if m), reverse=True)[:k]
        assert all(m for _, m in found)
        assert [rank(v) for v, _ in found] == expected
