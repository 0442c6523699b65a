"""One row as a few bytes: how the journal holds what an update adds to a table that gets one row an update.

Turning a row of a hundred columns into an Arrow batch, for it to be written, costs more than all else together. So a
single row of plain Python values is packed as it is: 8 bytes for every number, flag and time that is not NULL, and the
rest (texts and lists) as JSON after them. Which columns these are is its layout, an Arrow schema, told once per file.
Reading gives Arrow batches, many rows at once.
"""

from __future__ import annotations

import array
import contextlib
import functools
import itertools
import json
import operator
import struct
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any, NamedTuple

import pyarrow as pa

from esper_recorder.contract.tables import TABLES, column_names
from esper_recorder.storage.parquet import arrow_schema

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_TIME = pa.timestamp("us", tz="UTC")
_FIXED = {pa.float64(): "d", pa.int64(): "q", pa.bool_(): "q", _TIME: "q"}
_PLAIN = {str, int, float}
_BYTES = 8
_MISFIT = (ValueError, TypeError, AttributeError, OverflowError, struct.error)
_MOST_KNOWN = 256


class Layout:
    """Which columns the packed rows of a table have, and in which order: fixed ones first."""

    def __init__(self, schema: pa.Schema) -> None:
        """Take the layout's schema. Raises ValueError where a fixed column comes after one that is not."""
        self.schema = schema
        kinds = [_FIXED.get(field.type) for field in schema]
        self.fixed = sum(kind is not None for kind in kinds)
        if None in kinds[: self.fixed]:
            raise ValueError("a layout has its fixed columns first")
        self.pack = struct.Struct("<" + "".join(kind for kind in kinds if kind is not None)).pack
        self._rest: tuple[list[Any], bytes] = ([], b"[]")

    def pack_rest(self, values: list[Any]) -> bytes:
        """Texts and lists as JSON. Raises ValueError or TypeError for a value that is not of its column's type."""
        if values != self._rest[0]:  # mostly they are those of the row before: the run's id, a definition
            kept = [list(value) if isinstance(value, list) else value for value in values]
            for value, field in zip(kept, itertools.islice(self.schema, self.fixed, None), strict=True):
                if not isinstance(value, str) and not (isinstance(value, list) and set(map(type, value)) <= _PLAIN):
                    raise ValueError(f"{value!r} is neither a text nor a list")
                pa.array([value], type=field.type)
            self._rest = (kept, json.dumps(kept, separators=(",", ":")).encode())
        return self._rest[1]


class _Given(NamedTuple):
    """How the values of some columns, as they are given, become those of a layout."""

    layout: Layout
    order: Callable[[Sequence[Any]], tuple[Any, ...]]
    """Values as given -> those that are measured, as the layout has them."""
    absent: tuple[int, ...]
    """Places, as given, of those that are NULL."""
    times: tuple[int, ...]
    """Places in the layout."""
    flags: tuple[int, ...]
    """Places in the layout."""

    def pack(self, values: Sequence[Any]) -> PackedRow | None:
        """The row of these values; None where a flag is none. Raises one of `_MISFIT` where another value is off."""
        layout = self.layout
        row = list(self.order(values))
        for place in self.flags:
            if row[place] is not True and row[place] is not False:
                return None
        for place in self.times:
            row[place] = (row[place] - _EPOCH) // _MICROSECOND
        return PackedRow(layout, layout.pack(*row[: layout.fixed]) + layout.pack_rest(row[layout.fixed :]))


class PackedRow(NamedTuple):
    """A row of a table in the bytes of its layout."""

    layout: Layout
    data: bytes


_before: dict[tuple[str, tuple[str, ...]], _Given] = {}
"""(table, columns) -> how its last row was packed: mostly the next one has the same NULLs, and to look costs more."""


def pack_row(table: str, columns: Mapping[str, Sequence[Any]]) -> PackedRow | None:
    """The one row of some columns; None where they are not one row of plain values that fit, which Arrow may tell."""
    try:
        values = [value for (value,) in columns.values()]
        names = tuple(columns)
        given = _before.get((table, names))
        if given is not None and all([values[place] is None for place in given.absent]):
            with contextlib.suppress(*_MISFIT):  # what is NULL now and was not does not fit
                if (row := given.pack(values)) is not None:
                    return row
        given = _given(table, names, bytes([value is not None for value in values]))
        if given is None:
            return None
        if len(_before) >= _MOST_KNOWN:
            _before.clear()
        _before[table, names] = given
        return given.pack(values)
    except _MISFIT:
        return None


def unpack_rows(layout: Layout, rows: Sequence[bytes]) -> pa.RecordBatch:
    """Packed rows of one layout as one Arrow batch.

    Raises ValueError (of Arrow or JSON) where they are not rows of this layout.
    """
    height, width = len(rows), layout.fixed
    whole = b"".join([row[: width * _BYTES] for row in rows])
    if len(whole) != height * width * _BYTES:
        raise ValueError("a packed row is shorter than its layout")
    arrays: list[pa.Array] = []
    numbers = array.array("q", whole)  # of whatever type: slicing takes every width-th eight bytes
    for place in range(width):
        kind = layout.schema.field(place).type
        column = pa.py_buffer(numbers[place::width])
        if kind == pa.bool_():
            arrays.append(pa.Array.from_buffers(pa.int64(), height, [None, column]).cast(kind))
        else:
            arrays.append(pa.Array.from_buffers(kind, height, [None, column]))
    texts = [row[width * _BYTES :] for row in rows]
    read = {text: json.loads(text) for text in set(texts)}
    rest = [read[text] for text in texts]
    for place, field in enumerate(itertools.islice(layout.schema, width, None)):
        arrays.append(pa.array([values[place] for values in rest], type=field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=layout.schema)


@functools.lru_cache(maxsize=_MOST_KNOWN)
def _given(table: str, names: tuple[str, ...], measured: bytes) -> _Given | None:
    """How values of these columns are packed, NULL where `measured` is 0; None where that is not worth it or wrong."""
    if table not in TABLES or not set(names) <= set(column_names(table)):
        return None
    types = {name: arrow_schema(table).field(name).type for name in itertools.compress(names, measured)}
    if len(types) < 2:
        return None
    sequence = [name for name in column_names(table) if name in types]
    sequence.sort(key=lambda name: types[name] not in _FIXED)  # stable: else the contract's order
    return _Given(
        _layout(table, tuple(sequence)),
        operator.itemgetter(*(names.index(name) for name in sequence)),
        tuple(place for place, there in enumerate(measured) if not there),
        tuple(place for place, name in enumerate(sequence) if types[name] == _TIME),
        tuple(place for place, name in enumerate(sequence) if types[name] == pa.bool_()),
    )


@functools.lru_cache(maxsize=_MOST_KNOWN)
def _layout(table: str, names: tuple[str, ...]) -> Layout:
    """One layout for one sequence of columns, so that a journal tells it once."""
    return Layout(pa.schema([arrow_schema(table).field(name) for name in names]))
