"""Spans of whole numbers, against sets of them."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from esper_recorder.contract.spans import count, join, spans_of, without

NUMBERS = st.sets(st.integers(-5, 40))
SPANS = st.lists(st.tuples(st.integers(-5, 40), st.integers(-5, 40)))


def numbers_in(spans: list[tuple[int, int]]) -> set[int]:
    return {number for first, last in spans for number in range(first, last + 1)}


@given(NUMBERS, SPANS)
def test_spans_hold_the_numbers_of_the_sets_they_stand_for(numbers: set[int], spans: list[tuple[int, int]]) -> None:
    ours, others = spans_of(numbers), join(spans)
    assert numbers_in(ours) == numbers and count(ours) == len(numbers)
    assert numbers_in(others) == numbers_in(spans)
    assert numbers_in(without(ours, others)) == numbers - numbers_in(spans)
    assert all(a[1] + 1 < b[0] for a, b in itertools.pairwise(others))  # ascending and apart


def test_a_span_costs_the_same_however_long_it_is() -> None:
    assert without([(1, 2**62)], [(7, 7)]) == [(1, 6), (8, 2**62)]
