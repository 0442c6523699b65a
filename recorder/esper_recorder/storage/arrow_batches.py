"""Rows between the recorder and the disk: columns of Python values become Arrow batches, and batches whole tables.

A batch holds only the columns that were passed. The rest is NULL, and is added when batches become a table.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import TABLES, column_names, former_names, stored_names
from esper_recorder.storage.parquet import arrow_schema

_MANY_ROWS = 256
"""From here on converting column by column is faster than converting all columns of a type at once."""
_MISFIT = (pa.ArrowException, TypeError, ValueError, OverflowError)


def to_batch(table: str, data: Mapping[str, Sequence[Any]]) -> pa.RecordBatch:
    """Convert columns of equal length to an Arrow batch of the contract's types, in the contract's order.

    Args:
        data: column name -> values (None is NULL; NaN stays NaN). At least one column.

    Raises:
        KeyError: the table or a column is not declared.
        ValueError: the lengths differ, or a value does not fit its column (the message names it).
    """
    schema, groups = _layout(table, frozenset(data))
    if not data:
        raise ValueError(f"no columns were passed for table {table}")
    lengths = {name: len(values) for name, values in data.items()}
    rows = lengths[next(iter(lengths))]
    if any(length != rows for length in lengths.values()):
        listed = ", ".join(f"{name}: {length}" for name, length in lengths.items())
        raise ValueError(f"the columns for table {table} have different lengths ({listed})")
    if rows < _MANY_ROWS and not any(isinstance(values, pa.Array) for values in data.values()):
        try:
            return _convert_by_type(data, schema, groups, rows)
        except _MISFIT:
            pass  # converting column by column finds the one at fault
    return pa.RecordBatch.from_arrays([_convert(table, field, data[field.name]) for field in schema], schema=schema)


def to_table(table: str, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Join batches of one table; a column that a batch lacks is NULL.

    Columns that an older schema version named otherwise get their present names. Columns the contract does not declare
    (written by a newer version) are kept, after the declared ones.
    """
    # Many one-row batches of one schema: joining them first and widening once is far cheaper than batch by batch.
    pieces = [
        _renamed(table, pa.Table.from_batches(list(alike)).combine_chunks())
        for _, alike in itertools.groupby(batches, lambda batch: batch.schema)
    ]
    schema = arrow_schema(table) if table in TABLES else pa.schema([])
    for piece in pieces:
        declared = set(schema.names)
        for field in piece.schema:
            if field.name not in declared:
                schema = schema.append(field)
    return pa.concat_tables([_widen(piece, schema) for piece in pieces]) if pieces else schema.empty_table()


def columns_to_table(table: str, data: Mapping[str, Sequence[Any]]) -> pa.Table:
    """Convert columns to a table with all the contract's columns. Raises as `to_batch` does."""
    return to_table(table, [to_batch(table, data)] if data else [])


def row_count(data: Any) -> int | None:
    """Return the length of the longest column of a mapping of columns, or None if it is something else."""
    try:
        return max((len(values) for values in data.values()), default=0)
    except (AttributeError, TypeError):
        return None


def as_rows(columns: Mapping[str, Sequence[Any]], height: int) -> list[dict[str, Any]]:
    """Turn columns into one mapping per row; without columns the rows are there all the same."""
    if not columns:
        return [{} for _ in range(height)]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


_Groups = tuple[tuple[pa.DataType, tuple[str, ...]], ...]


@functools.lru_cache(maxsize=256)
def _layout(table: str, names: frozenset[str]) -> tuple[pa.Schema, _Groups]:
    """Return the schema of these columns in the contract's order, and the columns of each type."""
    if table not in TABLES:
        raise KeyError(f"the contract declares no table {table}")
    declared = column_names(table)
    if unknown := sorted(map(str, names.difference(declared))):
        hint = suggest(unknown[0], declared, kind="columns")
        raise KeyError(f"table {table} declares no column {', '.join(unknown)}. {hint}")
    schema = pa.schema([field for field in arrow_schema(table) if field.name in names])
    groups: dict[pa.DataType, list[str]] = {}
    for field in schema:
        groups.setdefault(field.type, []).append(field.name)
    return schema, tuple((type_, tuple(members)) for type_, members in groups.items())


def _convert(table: str, field: pa.Field, values: Any) -> pa.Array:
    try:
        if isinstance(values, pa.Array):
            return values if values.type == field.type else values.cast(field.type)
        return pa.array(values, type=field.type, from_pandas=False)
    except _MISFIT as error:
        raise ValueError(f"a value of {table}.{field.name} is not a {field.type}: {error}") from error


def _convert_by_type(
    data: Mapping[str, Sequence[Any]], schema: pa.Schema, groups: _Groups, rows: int
) -> pa.RecordBatch:
    # An update is often one row of a hundred columns: converting all columns of a type at once and slicing costs a
    # quarter of converting each.
    arrays: dict[str, pa.Array] = {}
    for type_, members in groups:
        joined = pa.array(list(itertools.chain.from_iterable(data[name] for name in members)), type=type_)
        for place, name in enumerate(members):
            arrays[name] = joined.slice(place * rows, rows)
    return pa.RecordBatch.from_arrays([arrays[name] for name in schema.names], schema=schema)


def _renamed(table: str, rows: pa.Table) -> pa.Table:
    """Rows of any schema version under the columns' present names."""
    if table not in TABLES or former_names(table).keys().isdisjoint(rows.column_names):
        return rows
    return rows.rename_columns({stored: name for name, stored in stored_names(table, rows.column_names).items()})


def _widen(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    present = set(rows.schema.names)
    columns = [
        rows.column(field.name).cast(field.type) if field.name in present else pa.nulls(rows.num_rows, type=field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
