"""The footers of Parquet files, checked before a query may read the files.

One damaged or foreign file must not fail a query over hundreds, nor be read as something else: a file that is not a
part of its table is named with the reason and left out. Columns the contract does not declare (of a newer recorder) are
not read.
"""

from __future__ import annotations

import functools
import re
import zoneinfo
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from esper_analytics.catalog.parquet_footer import read_chunks
from esper_recorder.contract.tables import Column, columns, stored_names

_RUN_ID = b"esper_run_id"
_IDENTITY = ("run_id", "attempt", "rank", "update")


class StoredColumn(NamedTuple):
    """A column of the contract as a file has it."""

    name: str
    type: str
    """The Arrow type."""
    stored: str
    """Its name in the file: that of an older schema version, if the column was renamed since."""


@dataclass(frozen=True, slots=True)
class Footer:
    """What a query needs to know about a part."""

    rows: int = 0
    present: tuple[StoredColumn, ...] = ()
    """The contract's columns that the file has."""
    float_statistics: bool = False
    """A float column carries min/max statistics, which ignore NaN: engines that prune by them lose its rows."""
    last_update: int = 0
    """The highest update of its rows as the recorder noted it; 0 if it did not."""
    problem: str | None = None
    """Why the file cannot be read as a part of its table."""
    gone: bool = False
    """It no longer exists: a compaction replaced it since it was listed."""


def read_footer(path: Path, table: str, run_id: str, *, thoroughly: bool = False) -> Footer:
    """Read and check the footer of a file that should be a part of `table` of the run `run_id`. Never raises.

    Args:
        thoroughly: check also what the recorder wrote for contradictions, which takes three times as long.
    """
    try:
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
        noted = metadata.metadata or {}
        problem, present, floats = _shape(table, schema.remove_metadata().serialize().to_pybytes())
        # What a part that the recorder wrote says of its statistics need not be read from them.
        chunks = read_chunks(path) if thoroughly or _RUN_ID not in noted else []
    except FileNotFoundError:
        return Footer(problem="it is gone", gone=True)
    except (OSError, ValueError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        return Footer(problem=f"it is truncated or not a Parquet file ({reason})")
    if problem is not None:
        return Footer(problem=problem)
    extremes = {value for chunk in chunks if chunk.column == "run_id" for value in chunk.extremes}
    for other in sorted({noted.get(_RUN_ID, run_id.encode()), *extremes} - {run_id.encode()}):
        return Footer(problem=f"it holds rows of another run, {other.decode(errors='backslashreplace')}")
    return Footer(
        rows=metadata.num_rows,
        present=present,
        float_statistics=any(chunk.has_extremes and chunk.column.split(".", 1)[0] in floats for chunk in chunks),
        last_update=whole_number(noted.get(b"esper_last_update")),
    )


def whole_number(text: bytes | None) -> int:
    """Read a number of a footer; 0 if it has none that a column could hold."""
    return int(text) if text is not None and text.isdigit() and len(text) <= 18 else 0


@functools.lru_cache(256)
def _shape(table: str, serialized: bytes) -> tuple[str | None, tuple[StoredColumn, ...], frozenset[str]]:
    """Return the problem of a file of this schema, else its columns of the contract and the stored names of the floats.

    The files of a table mostly share a schema, and checking its columns is most of the work of reading a footer.
    """
    schema = pa.ipc.read_schema(pa.py_buffer(serialized))
    stored = stored_names(table, schema.names)
    declared = [column for column in columns(table) if column.name in stored]
    problem = _misfit(table, schema, {stored[column.name]: column for column in declared})
    if problem is not None:
        return problem, (), frozenset()
    present = tuple(StoredColumn(c.name, str(schema.field(stored[c.name]).type), stored[c.name]) for c in declared)
    return None, present, frozenset(stored[column.name] for column in declared if column.is_float)


def _misfit(table: str, schema: pa.Schema, declared: Mapping[str, Column]) -> str | None:
    missing = [name for name in _IDENTITY if name not in schema.names]
    if missing:
        return f"it is not a part of {table}: it has no column {', '.join(missing)}"
    if len(set(schema.names)) != len(schema.names):
        return "it has two columns of one name"
    for name, column in declared.items():
        if not _fits(schema.field(name).type, column.type):
            return f"its column {name} is {schema.field(name).type} where {table} declares {column.type}"
    return None


def _fits(stored: pa.DataType, declared: str) -> bool:
    """Return whether every value of the stored type is a value of the declared one."""
    if pa.types.is_dictionary(stored):
        stored = stored.value_type
    if pa.types.is_null(stored):
        return True
    if declared.startswith("list<"):
        is_list = pa.types.is_list(stored) or pa.types.is_large_list(stored)
        return is_list and _fits(stored.value_type, declared[5:-1])
    if declared == "int64":
        return bool(pa.types.is_integer(stored)) and stored != pa.uint64()
    if declared == "float64":
        return bool(pa.types.is_floating(stored) or pa.types.is_integer(stored))
    if declared == "string":
        return bool(pa.types.is_string(stored) or pa.types.is_large_string(stored) or pa.types.is_string_view(stored))
    if declared == "bool":
        return bool(pa.types.is_boolean(stored))
    return bool(pa.types.is_timestamp(stored)) and _is_time_zone(stored.tz)


def _is_time_zone(name: str | None) -> bool:
    """Return whether a time zone exists; a flipped bit in the name of one makes engines fail at the first query."""
    if name is None or re.fullmatch(r"[+-]\d\d:\d\d", name):
        return True
    try:
        zoneinfo.ZoneInfo(name)
    except (OSError, ValueError, KeyError):  # KeyError: no zone has this name
        return False
    return True
