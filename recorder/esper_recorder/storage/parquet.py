"""Parquet as this project writes it: the Arrow schemas, and every part that reaches the disk.

Float columns carry no min/max statistics. Parquet's statistics leave NaN out, so an engine that prunes by them
(DuckDB) drops the very rows a forensic query looks for: `WHERE isnan(x)` would find nothing.

Every page carries a checksum: a bit that flips on the disk mostly decodes to another number, without an error.
"""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from esper_recorder.contract.tables import SCHEMA_VERSION, Column, columns
from esper_recorder.storage.atomic import atomic_file
from esper_recorder.storage.safe_files import make_folder

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
    """Return the Arrow type of a contract column."""
    return _ARROW_TYPES[column.type]


@functools.cache
def arrow_schema(table: str) -> pa.Schema:
    """Return the Arrow schema of a contract table. Raises KeyError for an unknown table."""
    return pa.schema([pa.field(c.name, arrow_type(c)) for c in columns(table)])


def open_part(path: Path) -> pq.ParquetFile:
    """Open a part so that reading a page whose checksum does not fit raises OSError. Raises OSError, ArrowException."""
    return pq.ParquetFile(path, page_checksum_verification=True)


def can_be_read(path: Path) -> bool:
    """Return whether all rows of a part can be read."""
    try:
        with open_part(path) as part:
            return int(part.metadata.num_rows) == sum(int(batch.num_rows) for batch in part.iter_batches())
    except (OSError, ValueError, pa.ArrowException):
        return False


def writer_options(schema: pa.Schema) -> dict[str, Any]:
    """Return the options of pyarrow's Parquet writer for every file of ours; see above."""
    return {
        "compression": "zstd",
        "write_statistics": [field.name for field in schema if not _holds_floats(field.type)],
        "use_dictionary": [field.name for field in schema if pa.types.is_string(field.type)],
        "write_page_checksum": True,
    }


def write_part(path: Path, table: str, data: pa.Table, *, durable: bool = True, compact: bool = False) -> None:
    """Write rows as one part, whole or not at all; the arguments are those of `part_writer`."""
    with part_writer(path, table, data.schema, durable=durable, compact=compact) as part:
        part.write(data)


@contextlib.contextmanager
def part_writer(
    path: Path, table: str, schema: pa.Schema, *, durable: bool = True, compact: bool = False
) -> Iterator[PartWriter]:
    """Write one part in pieces; it appears, whole, if the block ends without an exception.

    Args:
        path: `.../<table>/part-*.parquet`; its folder is made if needed, and must not be a link.
        schema: the contract's, of this version or an older one.
        durable: False skips the fsyncs, for rows that are kept elsewhere until the part is durable.
        compact: spend more time on a smaller file.
    """
    make_folder(path.parent)
    with atomic_file(path, durable=durable) as file:
        part = PartWriter(file, schema, compact=compact)
        try:
            yield part
        except BaseException:
            part.abandon()
            raise
        part.finish(table)


class PartWriter:
    """Appends rows to one part."""

    def __init__(self, file: BinaryIO, schema: pa.Schema, *, compact: bool) -> None:
        self._writer = pq.ParquetWriter(
            file,
            schema.remove_metadata(),
            compression_level=COMPACT_LEVEL if compact else None,
            **writer_options(schema),
        )
        self.rows = 0
        self._updates: list[int] = []  # the lowest and the highest so far
        self._run_ids: set[str | None] = set()

    def write(self, rows: pa.Table) -> None:
        """Append rows of the part's schema as separate row groups."""
        self._writer.write_table(rows)
        self.rows += rows.num_rows
        lowest, highest = pc.min_max(rows.column("update")).as_py().values()
        self._run_ids.update(pc.unique(rows.column("run_id")).to_pylist())
        if lowest is not None:
            ends = [*self._updates, lowest, highest]
            self._updates = [min(ends), max(ends)]

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
        if len(self._run_ids) == 1 and (run_id := next(iter(self._run_ids))) is not None:
            metadata["esper_run_id"] = run_id
        self._writer.add_key_value_metadata(metadata)
        self._writer.close()

    def abandon(self) -> None:
        """Close the file, which will not become a part."""
        with contextlib.suppress(Exception):
            self._writer.close()


def _holds_floats(type_: pa.DataType) -> bool:
    nested = (type_.field(position).type for position in range(type_.num_fields))
    return bool(pa.types.is_floating(type_)) or any(map(_holds_floats, nested))
