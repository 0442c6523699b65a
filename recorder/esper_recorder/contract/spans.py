"""Sets of whole numbers as spans (first, last), ascending and apart: their cost is the spans', not the numbers'.

A file may say that update 300,000,000 was recorded, or that a gap lasts that long.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

Spans = list[tuple[int, int]]


def spans_of(numbers: Iterable[int]) -> Spans:
    """Return the spans of some numbers, in any order.

    >>> spans_of([9, 1, 2, 3, 5, 8, 3])
    [(1, 3), (5, 5), (8, 9)]
    """
    return join((number, number) for number in numbers)


def join(spans: Iterable[tuple[int, int]]) -> Spans:
    """Return the numbers that are in any of the spans, which may overlap and be in any order.

    >>> join([(5, 9), (1, 2), (3, 4), (7, 8), (20, 10)])
    [(1, 9)]
    """
    joined: Spans = []
    for first, last in sorted(span for span in spans if span[0] <= span[1]):
        if joined and first <= joined[-1][1] + 1:
            joined[-1] = joined[-1][0], max(last, joined[-1][1])
        else:
            joined.append((first, last))
    return joined


def without(spans: Sequence[tuple[int, int]], others: Sequence[tuple[int, int]]) -> Spans:
    """Return the numbers of some spans that are not in others.

    >>> without([(1, 10)], [(0, 0), (3, 4), (10, 30)])
    [(1, 2), (5, 9)]
    """
    rest: Spans = []
    place = 0
    for first, last in spans:
        while place and others[place - 1][1] >= first:
            place -= 1  # the last of them may reach into this span too
        while place < len(others) and others[place][0] <= last:
            if others[place][1] >= first:
                if first < others[place][0]:
                    rest.append((first, others[place][0] - 1))
                first = others[place][1] + 1
            place += 1
        if first <= last:
            rest.append((first, last))
    return rest


def count(spans: Iterable[tuple[int, int]]) -> int:
    """Return how many numbers are in spans.

    >>> count([(1, 3), (5, 5)])
    4
    """
    return sum(last - first + 1 for first, last in spans)
