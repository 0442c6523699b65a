"""How numbers and lists read in a report."""

from __future__ import annotations

import math

import pytest

from esper_analytics.formatting import count, duration, listed, number, percent, ranges


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "not measured"),
        (math.nan, "NaN"),
        (math.inf, "∞"),
        (-math.inf, "−∞"),
        (0.0, "0"),
        (-0.0, "0"),
        (3.0, "3"),
        (-2.5, "−2.5"),
        (523.145935, "523.1"),
        (123456.7, "123,457"),
        (1234567.0, "1,234,567"),
        (0.033167, "0.03317"),
        (8.21e-8, "8.21e-8"),
        (-8.21e-8, "−8.21e-8"),
        (3.6588e-42, "3.66e-42"),
        (5e300, "5e300"),
    ],
)
def test_a_number_reads_as_a_person_writes_it(value, text):
    assert number(value) == text


def test_things_are_counted_in_singular_and_plural():
    assert [count(n, "run") for n in (0, 1, 2, 1234)] == ["no runs", "1 run", "2 runs", "1,234 runs"]


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.170667, "17 %"),
        (0.0, "0 %"),
        (0.004, "0.4 %"),
        (1.0, "100 %"),
        (0.9999, "99.9 %"),
        (None, "an unknown share"),
    ],
)
def test_a_share_is_a_percentage_and_100_only_at_the_end(share, text):
    assert percent(share) == text


def test_a_list_ends_with_and():
    assert [listed(words) for words in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "none",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert listed(["a", "b", "c", "d"], most=2) == "a, b and 2 more"


def test_neighbouring_numbers_are_a_range():
    assert ranges([1, 2, 3, 5, 8, 9]) == "1–3, 5 and 8–9"


def test_a_duration_has_two_units_at_most():
    assert [duration(s) for s in (0.25, 19, 151, 7260, None)] == ["0.2 s", "19 s", "2 min 31 s", "2 h 1 min", "unknown"]
