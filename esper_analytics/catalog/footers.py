"""What a Parquet file's footer tells, checked before a query may read the file.

One damaged or foreign file must not fail a query over hundreds, nor be taken for what it is not: a file that is no
part of its table is named with the reason and left out. Columns the contract does not know (of a newer recorder) are
not read.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from esper_recorder.contract.tables import Column, columns, stored_names

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
    """What a query needs to know of one part."""

    rows: int = 0
    present: tuple[StoredColumn, ...] = ()
    """The contract's columns that the file has."""
    float_statistics: bool = False
    """A float column carries min/max statistics, which leave NaN out: engines that prune by them lose its rows."""
    last_update: int = 0
    """The highest update of its rows, as the recorder told; 0 where it did not."""
    problem: str | None = None
    """Why the file cannot be read as a part of its table."""
    gone: bool = False
    """It is not there any more: a compaction replaced it since it was listed."""


def read_footer(path: Path, table: str, run_id: str) -> Footer:
    """Read and check the footer of a file that should be a part of `table` of the run `run_id`. Never raises."""
    try:
        with pq.ParquetFile(path) as file:
            metadata, schema = file.metadata, file.schema_arrow
    except FileNotFoundError:
        return Footer(problem="it is gone", gone=True)
    except (OSError, pa.ArrowException) as error:
        reason = str(error).splitlines()[0].split(". ")[0].rstrip(".")
        return Footer(problem=f"it is truncated or no Parquet file ({reason})")
    problem, present, floats = _shape(table, schema.remove_metadata().serialize().to_pybytes())
    if problem is not None:
        return Footer(problem=problem)
    stranger = _other_run(metadata, run_id)
    if stranger is not None:
        return Footer(problem=f"it holds rows of another run, {stranger}")
    return Footer(
        rows=metadata.num_rows,
        present=present,
        float_statistics=_have_statistics(metadata, floats),
        last_update=_number((metadata.metadata or {}).get(b"esper_last_update")),
    )


def _number(text: bytes | None) -> int:
    return int(text) if text is not None and text.isdigit() else 0


@functools.lru_cache(256)
def _shape(table: str, serialized: bytes) -> tuple[str | None, tuple[StoredColumn, ...], frozenset[str]]:
    """What is wrong with a file of this schema, else the contract's columns it has and the stored names of the floats.

    The files of a table mostly have one schema, and looking at its columns is most of the work of reading a footer.
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
        return f"it is no part of {table}: it has no column {', '.join(missing)}"
    if len(set(schema.names)) != len(schema.names):
        return "it has two columns of one name"
    for name, column in declared.items():
        if not _fits(schema.field(name).type, column):
            return f"its column {name} is {schema.field(name).type} where {table} declares {column.type}"
    return None


def _fits(found: pa.DataType, column: Column) -> bool:
    """Whether every value of the file's type is a value of the column's."""
    if pa.types.is_dictionary(found):
        found = found.value_type
    if pa.types.is_null(found):
        return True
    if column.type.startswith("list<"):
        if not (pa.types.is_list(found) or pa.types.is_large_list(found)):
            return False
        return _fits_plain(found.value_type, column.type[5:-1])
    return _fits_plain(found, column.type)


def _fits_plain(found: pa.DataType, declared: str) -> bool:
    if pa.types.is_null(found):
        return True
    if declared == "int64":
        return bool(pa.types.is_integer(found)) and found != pa.uint64()
    if declared == "float64":
        return bool(pa.types.is_floating(found) or pa.types.is_integer(found))
    if declared == "string":
        return bool(pa.types.is_string(found) or pa.types.is_large_string(found) or pa.types.is_string_view(found))
    if declared == "bool":
        return bool(pa.types.is_boolean(found))
    return bool(pa.types.is_timestamp(found))


def _other_run(metadata: pq.FileMetaData, run_id: str) -> str | None:
    """A run_id in the file that is not the run's, as far as the footer tells."""
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for position in range(row_group.num_columns):
            column = row_group.column(position)
            if column.path_in_schema == "run_id":
                statistics = column.statistics if column.is_stats_set else None
                if statistics is not None and statistics.has_min_max:
                    for found in (statistics.min, statistics.max):
                        if isinstance(found, str) and found != run_id:
                            return found
                break
    return None


def _have_statistics(metadata: pq.FileMetaData, names: Collection[str]) -> bool:
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for position in range(row_group.num_columns):
            column = row_group.column(position)
            if column.path_in_schema.split(".", 1)[0] in names and (column.is_stats_set or column.has_column_index):
                return True
    return False
