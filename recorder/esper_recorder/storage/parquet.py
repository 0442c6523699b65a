"""Parquet as this project writes it: the one home of Arrow schemas and of every part written to disk.

Float columns carry no min/max statistics. Parquet's statistics leave NaN out, so an engine that prunes by them
(DuckDB) loses the rows a forensic query is after: `WHERE isnan(x)` would find nothing.
"""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from esper_recorder.contract.tables import SCHEMA_VERSION, Column, columns

COMPACT_LEVEL = 3

_ARROW_TYPES: dict[str, pa.DataType] = {
    "int64": pa.int64(),
    "float64": pa.float64(),
    "string": pa.string(),
    "bool": pa.bool_(),
    "timestamp[us, UTC]": pa.timestamp("us", tz="UTC"),
    "list<int64>": pa.list_(pa.int64()),
    "list<float64>": pa.list_(pa.float64()),
    "list<string>": pa.list_(pa.string()),
}


def arrow_type(column: Column) -> pa.DataType:
    """The Arrow type of a contract column."""
    return _ARROW_TYPES[column.type]


@functools.cache
def arrow_schema(table: str) -> pa.Schema:
    """The Arrow schema of a table of the contract. Raises KeyError for an unknown table."""
    return pa.schema([pa.field(c.name, arrow_type(c)) for c in columns(table)])


def to_arrow(table: str, data: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Columns by name as an Arrow table of the contract's schema; a column not given is NULL.

    Raises:
        KeyError: the table, or a column, is not declared.
        pyarrow.ArrowInvalid, pyarrow.ArrowTypeError: a value does not fit its column, or lengths differ.
    """
    schema = arrow_schema(table)
    unknown = sorted(set(data) - set(schema.names))
    if unknown:
        raise KeyError(f"table {table} declares no column {', '.join(unknown)}")
    height = len(next(iter(data.values()), ()))
    arrays = [pa.array(data[f.name], type=f.type) if f.name in data else pa.nulls(height, type=f.type) for f in schema]
    return pa.Table.from_arrays(arrays, schema=schema)


def write_part(path: Path, table: str, data: pa.Table, *, durable: bool = True, compact: bool = False) -> None:
    """Write one part so that it is there whole or not at all: temporary name, fsync, rename, fsync of the folder.

    Args:
        path: `.../<table>/part-*.parquet`; its folder is made if need be.
        table: name of the table.
        data: rows of the contract's schema (or an older version of it).
        durable: False leaves out both fsyncs, where the rows are kept elsewhere until the part is.
        compact: take longer for a smaller file, where nobody waits for it.
    """
    with part_writer(path, table, data.schema, durable=durable, compact=compact) as part:
        part.write(data)


class PartWriter:
    """Takes the rows of one part, piece by piece."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, *, compact: bool) -> None:
        self._writer = pq.ParquetWriter(
            file,
            schema.remove_metadata(),
            compression="zstd",
            write_statistics=_columns_with_statistics(schema),
            use_dictionary=[f.name for f in schema if pa.types.is_string(f.type)],
            compression_level=COMPACT_LEVEL if compact else None,
        )
        self.rows = 0
        self._updates: list[int] = []  # the lowest and the highest so far

    def write(self, rows: pa.Table) -> None:
        """Append rows of the part's schema, as row groups of their own."""
        self._writer.write_table(rows)
        self.rows += rows.num_rows
        ends = pc.min_max(rows.column("update")).as_py().values()
        found = [*self._updates, *(end for end in ends if end is not None)]
        self._updates = [min(found), max(found)] if found else []

    def finish(self, table: str) -> None:
        """Write the footer."""
        first, last = self._updates or ("", "")
        metadata = {
            "esper_table": table,
            "esper_schema_version": str(SCHEMA_VERSION),
            "esper_rows": str(self.rows),
            "esper_first_update": str(first),
            "esper_last_update": str(last),
        }
        self._writer.add_key_value_metadata(metadata)
        self._writer.close()

    def abandon(self) -> None:
        """Let go of the file, which will not be a part."""
        with contextlib.suppress(Exception):
            self._writer.close()


@contextlib.contextmanager
def part_writer(
    path: Path, table: str, schema: pa.Schema, *, durable: bool = True, compact: bool = False
) -> Iterator[PartWriter]:
    """What `write_part` does, for rows that come piece by piece: the part is there once the block has ended well."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        with temporary.open("wb") as file:
            part = PartWriter(file, schema, compact=compact)
            try:
                yield part
            except BaseException:
                part.abandon()
                raise
            part.finish(table)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Make a folder's entries durable (a rename is not, before its folder is)."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _columns_with_statistics(schema: pa.Schema) -> list[str]:
    return [f.name for f in schema if not _holds_floats(f.type)]


def _holds_floats(type_: pa.DataType) -> bool:
    return bool(pa.types.is_floating(type_.value_type if pa.types.is_list(type_) else type_))
