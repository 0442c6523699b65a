"""Merging rows by the reducers the contract declares: minibatches of an update, devices, ranks."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from esper_recorder.contract.tables import Column, Reducer


def merge(columns: Iterable[Column], rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One row from several of the same table, in the order they were taken.

    NULL takes no part: a sum over measured rows is the sum of those, and NULL only where none was measured. `min` and
    `max` skip NaN unless there is nothing else. Keys are taken from the first row. Derived columns are left out: they
    are computed anew from the merged sums.
    """
    merged: dict[str, Any] = {}
    for column in columns:
        if column.reducer is Reducer.DERIVED:
            continue
        values = [v for row in rows if (v := row.get(column.name)) is not None]
        merged[column.name] = _reduce(column.reducer, values) if values else None
    return merged


def _reduce(reducer: Reducer, values: list[Any]) -> Any:
    if reducer is Reducer.SUM:
        if isinstance(values[0], list):
            return [sum(parts) for parts in zip(*values, strict=True)]
        return sum(values)
    if reducer is Reducer.LAST:
        return values[-1]
    if reducer in (Reducer.MIN, Reducer.MAX):
        numbers = [v for v in values if not (isinstance(v, float) and math.isnan(v))]
        if not numbers:
            return math.nan
        return min(numbers) if reducer is Reducer.MIN else max(numbers)
    return values[0]
