"""How numbers, lists, values and tables read as text."""

from __future__ import annotations

import math

import pytest

from esper_analytics.formatting import (
    format_count,
    format_duration,
    format_list,
    format_number,
    format_percent,
    format_ranges,
    format_value,
    markdown_table,
    text_table,
    to_text,
)


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
    assert format_number(value) == text


def test_things_are_counted_in_singular_and_plural():
    assert [format_count(n, "run") for n in (0, 1, 2, 1234)] == ["no runs", "1 run", "2 runs", "1,234 runs"]


@pytest.mark.parametrize(
    ("fraction", "text"),
    [
        (0.170667, "17 %"),
        (0.0, "0 %"),
        (0.004, "0.4 %"),
        (1.0, "100 %"),
        (0.9999, "99.9 %"),
        (None, "unknown"),
    ],
)
def test_a_fraction_is_a_percentage_and_only_the_whole_is_100_percent(fraction, text):
    assert format_percent(fraction) == text


def test_a_list_ends_with_and():
    assert [format_list(items) for items in ([], ["a"], ["a", "b"], ["a", "b", "c"])] == [
        "none",
        "a",
        "a and b",
        "a, b and c",
    ]
    assert format_list(["a", "b", "c", "d"], most=2) == "a, b and 2 more"


def test_adjacent_numbers_are_a_range():
    assert format_ranges([1, 2, 3, 5, 8, 9]) == "1–3, 5 and 8–9"


def test_a_duration_has_two_units_at_most():
    assert [format_duration(s) for s in (0.25, 19, 151, 7260, None)] == [
        "0.2 s",
        "19 s",
        "2 min 31 s",
        "2 h 1 min",
        "unknown",
    ]


TEXTS = [["a|b", "1"], ["c", "100"]]


def test_a_text_table_aligns_its_columns():
    assert [*text_table(["name", "n"], lambda: TEXTS, [False, True])] == ["name    n", "a|b     1", "c     100"]


def test_a_markdown_table_escapes_what_would_end_a_cell():
    assert [*markdown_table(["name", "n"], TEXTS, [False, True])] == [
        "| name | n |",
        "|---|---:|",
        "| a\\|b | 1 |",
        "| c | 100 |",
    ]


@pytest.mark.parametrize(
    ("value", "seen", "whole"),
    [
        (True, "true", "true"),
        (0.1 + 0.2, "0.3", "0.30000000000000004"),
        (math.nan, "NaN", "NaN"),
        (-math.inf, "-inf", "-inf"),
        ([1.0, None], "[1, NULL]", "[1.0, null]"),
        ("a\x1b", "a\\x1b", "a\x1b"),
    ],
)
def test_a_value_is_short_for_the_eye_and_whole_for_machines(value, seen, whole):
    assert (format_value(value), to_text(value)) == (seen, whole)
