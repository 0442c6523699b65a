"""One row in a few bytes: how the journal holds a table that gets one row per update.

Converting a row of a hundred columns to an Arrow batch only to write it costs more than everything else together. So a
single row of Python values is packed directly: 8 bytes for every number, flag and time that is not NULL, then the rest
(texts and lists) as JSON. The layout, an Arrow schema written once per file, says which columns these are. Reading
unpacks many rows at once into Arrow batches.
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
_LIST_ITEMS = {str, int, float}
_BYTES = 8
_MISFIT = (ValueError, TypeError, AttributeError, OverflowError, struct.error)
_CACHE_SIZE = 256


class Layout:
    """Which columns the packed rows of a table have, and in which order: fixed ones first."""

    def __init__(self, schema: pa.Schema) -> None:
        """Raises ValueError if a fixed column comes after one that is not."""
        self.schema = schema
        kinds = [_FIXED.get(field.type) for field in schema]
        self.fixed = sum(kind is not None for kind in kinds)
        if None in kinds[: self.fixed]:
            raise ValueError("a layout has its fixed columns first")
        self.pack = struct.Struct("<" + "".join(kind for kind in kinds if kind is not None)).pack
        self._last_rest: tuple[list[Any], bytes] = ([], b"[]")

    def pack_rest(self, values: list[Any]) -> bytes:
        """Encode texts and lists as JSON. Raises ValueError or TypeError for a value of the wrong type."""
        if values != self._last_rest[0]:  # mostly they are those of the row before: the run's id, a definition
            copies = [list(value) if isinstance(value, list) else value for value in values]
            for value, field in zip(copies, itertools.islice(self.schema, self.fixed, None), strict=True):
                flat_list = isinstance(value, list) and set(map(type, value)) <= _LIST_ITEMS
                if not flat_list and not isinstance(value, str):
                    raise ValueError(f"{value!r} is neither a text nor a list")
                pa.array([value], type=field.type)
            self._last_rest = (copies, json.dumps(copies, separators=(",", ":")).encode())
        return self._last_rest[1]


class _Packer(NamedTuple):
    """Packs rows that have the same columns and the same NULLs."""

    layout: Layout
    order: Callable[[Sequence[Any]], tuple[Any, ...]]
    """A row's values -> those that are not NULL, in the layout's order."""
    nulls: tuple[int, ...]
    """Places in the row."""
    times: tuple[int, ...]
    """Places in the layout."""
    flags: tuple[int, ...]
    """Places in the layout."""

    def pack(self, values: Sequence[Any]) -> PackedRow | None:
        """Pack one row; None if a flag is not a bool. Raises one of `_MISFIT` if another value does not fit."""
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


_last_packers: dict[tuple[str, tuple[str, ...]], _Packer] = {}
"""(table, columns) -> the packer of the last row: mostly the next has the same NULLs, and finding out costs more."""


def pack_row(table: str, columns: Mapping[str, Sequence[Any]]) -> PackedRow | None:
    """Pack the one row of some columns; None if it is not one row of values that fit, which is left to Arrow."""
    try:
        values = [value for (value,) in columns.values()]
        names = tuple(columns)
        packer = _last_packers.get((table, names))
        if packer is not None and all([values[place] is None for place in packer.nulls]):
            with contextlib.suppress(*_MISFIT):  # a value that was not NULL before and is now does not fit
                if (row := packer.pack(values)) is not None:
                    return row
        packer = _make_packer(table, names, bytes([value is not None for value in values]))
        if packer is None:
            return None
        if len(_last_packers) >= _CACHE_SIZE:
            _last_packers.clear()
        _last_packers[table, names] = packer
        return packer.pack(values)
    except _MISFIT:
        return None


def unpack_rows(layout: Layout, rows: Sequence[bytes]) -> pa.RecordBatch:
    """Unpack rows of one layout into an Arrow batch.

    Raises ValueError (Arrow's and JSON's are one) if they are not rows of this layout.
    """
    height, width = len(rows), layout.fixed
    numbers_and_flags = b"".join([row[: width * _BYTES] for row in rows])
    if len(numbers_and_flags) != height * width * _BYTES:
        raise ValueError("a packed row is shorter than its layout")
    arrays: list[pa.Array] = []
    words = array.array("q", numbers_and_flags)  # of any type: slicing takes every width-th eight bytes
    for place in range(width):
        kind = layout.schema.field(place).type
        column = pa.py_buffer(words[place::width])
        if kind == pa.bool_():
            arrays.append(pa.Array.from_buffers(pa.int64(), height, [None, column]).cast(kind))
        else:
            arrays.append(pa.Array.from_buffers(kind, height, [None, column]))
    texts = [row[width * _BYTES :] for row in rows]
    try:
        decoded = {text: json.loads(text) for text in set(texts)}
    except RecursionError as error:
        raise ValueError("a packed row has values nested too deep") from error
    rest = [decoded[text] for text in texts]
    for place, field in enumerate(itertools.islice(layout.schema, width, None)):
        arrays.append(pa.array([values[place] for values in rest], type=field.type))
    return pa.RecordBatch.from_arrays(arrays, schema=layout.schema)


@functools.lru_cache(maxsize=_CACHE_SIZE)
def _make_packer(table: str, names: tuple[str, ...], measured: bytes) -> _Packer | None:
    """Make the packer of these columns, NULL where `measured` is 0; None if they are too few or not declared."""
    if table not in TABLES or not set(names) <= set(column_names(table)):
        return None
    types = {name: arrow_schema(table).field(name).type for name in itertools.compress(names, measured)}
    if len(types) < 2:
        return None
    sequence = [name for name in column_names(table) if name in types]
    sequence.sort(key=lambda name: types[name] not in _FIXED)  # stable: else the contract's order
    return _Packer(
        _layout(table, tuple(sequence)),
        operator.itemgetter(*(names.index(name) for name in sequence)),
        tuple(place for place, present in enumerate(measured) if not present),
        tuple(place for place, name in enumerate(sequence) if types[name] == _TIME),
        tuple(place for place, name in enumerate(sequence) if types[name] == pa.bool_()),
    )


@functools.lru_cache(maxsize=_CACHE_SIZE)
def _layout(table: str, names: tuple[str, ...]) -> Layout:
    """Return the one layout of a sequence of columns, so that a journal holds its schema once."""
    return Layout(pa.schema([arrow_schema(table).field(name) for name in names]))
