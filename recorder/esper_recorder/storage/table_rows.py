"""Rows of one table as columns that are found when they are asked for, and what is done with whole rows."""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import pyarrow as pa

from esper_recorder.contract import metrics
from esper_recorder.contract.tables import IDENTITY, columns
from esper_recorder.storage.columns import Array, ColumnArithmetic, NumberColumn, joined
from esper_recorder.storage.parquet import arrow_schema

Found = Any
"""A `NumberColumn` of numbers, or an Arrow array of texts or lists. Of a single row also a number."""

GIVEN: Final = frozenset((*IDENTITY, "backfilled"))
"""Columns that follow from the record that a row is of."""

_ARITHMETIC: Final = ColumnArithmetic()
_PYTHON: Final = {"int64": int, "float64": float, "bool": bool}


@dataclass(slots=True, weakref_slot=True)
class TableRows:
    """Rows of one table, of some updates.

    What finds a column may need others of the same rows. It refers to them weakly, so that megabytes of arrays do not
    wait for the garbage collector.
    """

    updates: Array
    """int64 [rows]: which of the updates each is of, ascending."""
    names: tuple[str, ...]
    """The columns that were measured, or may have been."""
    find: Callable[[str], Found | None]
    """From a name: the column; None if it was not measured."""
    identify: Callable[[str], Found | None] | None = None
    """Finds the columns in `GIVEN`, which are not a matter of the table."""
    _found: dict[str, Found | None] = field(default_factory=dict)

    @classmethod
    def of(cls, updates: Array, found: Mapping[str, Found | None]) -> TableRows:
        """Make rows of columns that are there."""
        return cls(updates, tuple(found), found.get)

    def get(self, name: str) -> Any:
        """Return a column, found once; None if it was not measured."""
        if name not in self._found:
            find = self.identify if self.identify is not None and name in GIVEN else self.find
            self._found[name] = find(name)
        return self._found[name]

    def take(self, places: Array) -> TableRows:
        """The rows at these places."""
        return TableRows(self.updates[places], self.names, lambda name: take(self.get(name), places))

    def terms(self, arithmetic: metrics.UpdateArithmetic = _ARITHMETIC) -> metrics.MetricTerms:
        """What formulas compute the metrics of these rows from."""
        return metrics.MetricTerms(weakref.proxy(self), arithmetic)

    def to_list(self, table: str, name: str, places: Array | None = None) -> list[Any] | None:
        """A column as Python values, of all rows or of those at some places; None if it was not measured."""
        column = self.get(name) if places is None else take(self.get(name), places)
        if column is None or isinstance(column, pa.Array):
            return None if column is None else column.to_pylist()
        type_ = _types(table)[name]
        if not isinstance(column, NumberColumn):
            return [_PYTHON[type_](column)]
        return column.to_list(type_)

    def to_batch(self, table: str) -> pa.RecordBatch:
        """All columns that were measured, in the contract's order and of its types."""
        fields, arrays = [], []
        for declared in arrow_schema(table):
            there = declared.name in self.names or declared.name in GIVEN
            column = self.get(declared.name) if there else None
            if isinstance(column, int | float):
                column = NumberColumn(np.array([column]))
            if column is not None:
                fields.append(declared)
                arrays.append(
                    column.to_arrow(_types(table)[declared.name]) if isinstance(column, NumberColumn) else column
                )
        return pa.RecordBatch.from_arrays(arrays, schema=pa.schema(fields))


@functools.cache
def _types(table: str) -> dict[str, str]:
    return {column.name: column.type for column in columns(table)}


def take(column: Found, places: Array) -> Found:
    """The values at these places."""
    if isinstance(column, pa.Array):
        return column.take(pa.array(places))
    return None if column is None else column.take(places)


def stack(pieces: Sequence[TableRows]) -> TableRows | None:
    """Join rows of one table: those of each update together, within it in the order of the pieces."""
    if len(pieces) < 2:
        return pieces[0] if pieces else None
    heights = [len(piece.updates) for piece in pieces]
    updates = np.concatenate([piece.updates for piece in pieces])
    order = np.argsort(updates, kind="stable")

    def find(name: str) -> Found | None:
        return take(_join([piece.get(name) for piece in pieces], heights), order)

    return TableRows(updates[order], _names(pieces), find)


def _names(pieces: Iterable[TableRows]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(name for piece in pieces for name in piece.names))


def _join(found: Sequence[Found | None], heights: Sequence[int]) -> Found | None:
    types = {column.type for column in found if isinstance(column, pa.Array)}
    if not types:
        return None if all(column is None for column in found) else joined(found, heights)
    (type_,) = types
    return pa.concat_arrays(
        [pa.nulls(n, type_) if column is None else column for column, n in zip(found, heights, strict=True)]
    )
