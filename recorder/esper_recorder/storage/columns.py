"""Columns with NULLs as NumPy arrays: what the numbers of many updates become before they are Arrow's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from esper_recorder.contract.tables import Column as Declared
from esper_recorder.contract.tables import Reducer

Array = np.ndarray[Any, Any]

_ARROW = {"int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}


@dataclass(slots=True)
class NumberColumn:
    """A column of numbers [n], and whether each is valid, bool [n], or NULL; None if none is NULL."""

    values: Array
    valid: Array | None = None

    def __len__(self) -> int:
        return len(self.values)

    @property
    def measured(self) -> Array:
        """bool [n]: whether a number is not NULL."""
        return np.ones(len(self.values), bool) if self.valid is None else self.valid

    def take(self, places: Array) -> NumberColumn:
        """The rows at these places."""
        return NumberColumn(self.values[places], None if self.valid is None else self.valid[places])

    def only(self) -> Any:
        """The number of a column of one row; None if it is NULL."""
        return self.values[0].item() if self.valid is None or self.valid[0] else None

    def to_list(self, type_: str) -> list[Any]:
        """The numbers as Python's of the contract's type int64, float64 or bool, and None for NULL."""
        if type_ == "int64":
            values: list[Any] = self._whole().tolist()
        else:
            values = (self.values != 0 if type_ == "bool" else self.values).tolist()
        if self.valid is None:
            return values
        return [x if valid else None for x, valid in zip(values, self.valid.tolist(), strict=True)]

    def to_arrow(self, type_: str) -> pa.Array:
        """Convert to an Arrow array of the contract's type int64, float64 or bool."""
        if type_ == "bool":
            values = np.packbits(self.values != 0, bitorder="little")
        elif type_ == "int64":
            values = self._whole()
        else:
            values = np.ascontiguousarray(self.values, dtype=np.float64)
        # Not pa.array, which looks for masked arrays and so imports a part of NumPy that nothing else needs.
        return pa.Array.from_buffers(_ARROW[type_], len(self.values), [bitmap(self.valid), pa.py_buffer(values)])

    def _whole(self) -> Array:
        values = self.values if self.valid is None else np.where(self.valid, self.values, 0)
        return np.ascontiguousarray(values.astype(np.int64, copy=False))


def bitmap(valid: Array | None) -> pa.Buffer | None:
    """Convert the validity of a column, bool [n], to Arrow's; None if all of it is valid."""
    return None if valid is None or valid.all() else pa.py_buffer(np.packbits(valid, bitorder="little"))


def lists(values: Array, type_: str, valid: Array | None = None) -> pa.Array:
    """A column of lists from [rows, length]; NULL where not valid."""
    rows, length = values.shape
    offsets = pa.py_buffer(np.arange(rows + 1, dtype=np.int32) * length)
    children = [NumberColumn(values.reshape(-1)).to_arrow(type_)]
    return pa.Array.from_buffers(pa.list_(_ARROW[type_]), rows, [bitmap(valid), offsets], children=children)


def column_of(values: Sequence[float | None]) -> NumberColumn:
    """Make a column of a list, None for NULL: of int64 if all are whole numbers of Python, else of float64."""
    measured = [v for v in values if v is not None]
    dtype = np.int64 if measured and all([type(v) is int for v in measured]) else np.float64
    if len(measured) == len(values):
        return NumberColumn(np.array(values, dtype=dtype))
    return NumberColumn(
        np.array([0 if v is None else v for v in values], dtype=dtype),
        np.array([v is not None for v in values], dtype=bool),
    )


def joined(columns: Sequence[NumberColumn | None], heights: Sequence[int]) -> NumberColumn:
    """Join columns one below the other; None is a column of NULLs of that height."""
    if len(columns) == 1 and columns[0] is not None:
        return columns[0]
    values = [np.zeros(n) if c is None else c.values for c, n in zip(columns, heights, strict=True)]
    valid = None
    if any(c is None or c.valid is not None for c in columns):
        valid = np.concatenate(
            [np.zeros(n, bool) if c is None else c.measured for c, n in zip(columns, heights, strict=True)]
        )
    return NumberColumn(np.concatenate(values), valid)


class ColumnArithmetic:
    """`contract.metrics.UpdateArithmetic` of columns and numbers. Called with NumPy's floating-point errors ignored."""

    def subtract(self, a: Any, b: Any) -> Any:
        return self._combine(a, b, np.subtract)

    def multiply(self, a: Any, b: Any) -> Any:
        return self._combine(a, b, np.multiply)

    def divide(self, a: Any, b: Any, of: Any = None) -> Any:
        if a is None or b is None:
            return None
        counted = b if of is None else of
        values = a.values / b.values
        values[b.values == 0] = np.nan
        valid = _both(_both(_both(a.valid, b.valid), counted.valid), counted.values != 0)
        return NumberColumn(values, valid)

    def root(self, a: Any) -> Any:
        return None if a is None else NumberColumn(np.sqrt(np.where(a.values <= 0.0, 0.0, a.values)), a.valid)

    def ratio(self, a: Any, b: Any, least: Any) -> Any:
        if a is None or b is None or least is None:
            return None
        values = np.where((b.values > least.values) & (b.values != 0), a.values / b.values, np.nan)
        return NumberColumn(values, _both(_both(a.valid, b.valid), least.valid))

    def choose(self, measured: Any, then: Any, otherwise: Any) -> Any:
        if measured is None:
            return otherwise
        if measured.valid is None:
            return then
        (then, otherwise) = (
            c or NumberColumn(np.zeros(len(measured)), np.zeros(len(measured), bool)) for c in (then, otherwise)
        )
        return NumberColumn(
            np.where(measured.valid, then.values, otherwise.values),
            np.where(measured.valid, then.measured, otherwise.measured),
        )

    @staticmethod
    def _combine(a: Any, b: Any, operation: Any) -> Any:
        if a is None or b is None:
            return None
        if isinstance(a, NumberColumn) and isinstance(b, NumberColumn):
            return NumberColumn(operation(a.values, b.values), _both(a.valid, b.valid))
        if isinstance(a, NumberColumn):
            return NumberColumn(operation(a.values, b), a.valid)
        if isinstance(b, NumberColumn):
            return NumberColumn(operation(a, b.values), b.valid)
        return operation(a, b)


def _both(a: Array | None, b: Array | None) -> Array | None:
    if a is None or a is b:
        return b
    return a if b is None else a & b


def reduced(declared: Declared, column: NumberColumn, starts: Array) -> NumberColumn:
    """Merge the rows of each group by the column's reducer, as `contract.merge` does: NULL takes no part.

    A sum adds in the order of the rows, and is the same whatever groups are beside it.

    Args:
        declared: its reducer is a sum, an extreme, the first or the last.
        column: the rows of each group are adjacent.
        starts: the first row of each group, ascending; none is empty.
    """
    values, valid = column.values, column.valid
    counted = None if valid is None or valid.all() else np.logical_or.reduceat(valid, starts)
    match declared.reducer:
        case Reducer.SUM:
            if counted is not None:
                values = np.where(column.measured, values, 0.0)
            return NumberColumn(np.add.reduceat(values, starts), counted)
        case Reducer.MIN | Reducer.MAX:
            reduce, worst = (np.minimum, np.inf) if declared.reducer is Reducer.MIN else (np.maximum, -np.inf)
            number = ~np.isnan(values)
            if counted is not None:
                number &= column.measured
            elif number.all():
                return NumberColumn(reduce.reduceat(values, starts))
            extreme = reduce.reduceat(np.where(number, values, worst), starts)
            return NumberColumn(np.where(np.logical_or.reduceat(number, starts), extreme, np.nan), counted)
        case Reducer.LAST:
            places = np.where(column.measured, np.arange(len(values)), -1)
            return NumberColumn(values[np.maximum.reduceat(places, starts)], counted)
    raise ValueError(f"{declared.name} has no reducer of numbers")  # FIRST: no number of ours has it
