"""Merging rows by the reducers the contract declares: minibatches of an update, devices, ranks.

`reduce` says once what each reducer does, over a set of operators: that of Python values is here, those of SQL and
Polars are in the analytics package.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Protocol

from esper_recorder.contract.tables import Column, Reducer


class ReducerOperators(Protocol):
    """Aggregations of a column's values that are not NULL; of none, NULL."""

    def first(self, values: Any, column: Column) -> Any: ...
    def last(self, values: Any, column: Column) -> Any: ...
    def sum(self, values: Any, column: Column) -> Any: ...
    def sum_lists(self, values: Any, column: Column) -> Any: ...

    def min(self, values: Any, column: Column) -> Any:
        """The smallest number; NaN if every value is NaN."""

    def max(self, values: Any, column: Column) -> Any:
        """The largest number; NaN if every value is NaN."""


def reduce(column: Column, values: Any, o: ReducerOperators) -> Any:
    """Reduce the values of a column by its reducer; a derived column, which has none, to its first value."""
    match column.reducer:
        case Reducer.SUM:
            return o.sum_lists(values, column) if column.type.startswith("list<") else o.sum(values, column)
        case Reducer.MIN:
            return o.min(values, column)
        case Reducer.MAX:
            return o.max(values, column)
        case Reducer.LAST:
            return o.last(values, column)
    return o.first(values, column)


class _Values:
    """Operators over a list of Python values."""

    def first(self, values: list[Any], column: Column) -> Any:
        return values[0]

    def last(self, values: list[Any], column: Column) -> Any:
        return values[-1]

    def sum(self, values: list[Any], column: Column) -> Any:
        return sum(values)

    def sum_lists(self, values: list[Any], column: Column) -> Any:
        return [sum(parts) for parts in zip(*values, strict=True)]

    def min(self, values: list[Any], column: Column) -> Any:
        return min((v for v in values if v == v), default=math.nan)

    def max(self, values: list[Any], column: Column) -> Any:
        return max((v for v in values if v == v), default=math.nan)


_VALUES = _Values()


def merge(columns: Iterable[Column], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Merge rows of one table, in the order they were recorded.

    NULL takes no part: a sum is over the measured rows, and NULL only if none was measured. Keys are those of the first
    row. Derived columns are left out, to be recomputed from the merged sums.
    """
    merged: dict[str, Any] = {}
    for column in columns:
        if column.reducer is Reducer.DERIVED:
            continue
        values = [v for row in rows if (v := row.get(column.name)) is not None]
        merged[column.name] = reduce(column, values, _VALUES) if values else None
    return merged
