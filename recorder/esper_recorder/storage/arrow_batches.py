"""Rows between the recorder and the disk: columns of Python values to Arrow batches, and batches to whole tables.

A batch holds only the columns it was given; what a batch lacks is NULL, and is filled in when batches become a table.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pyarrow as pa

from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import TABLES, column_names
from esper_recorder.storage.parquet import arrow_schema

_MANY_ROWS = 256  # from here on converting column by column is the faster way


def to_batch(table: str, data: Mapping[str, Sequence[Any]]) -> pa.RecordBatch:
    """Columns of equal length as one Arrow batch of the contract's types, in the contract's order.

    Args:
        table: name of a table of the contract.
        data: column name -> values (None is NULL; NaN stays NaN). At least one column.

    Raises:
        KeyError: the table or a column is not declared.
        ValueError: the lengths differ, or a value does not fit its column (the column is named).
    """
    types = _types(table)
    unknown = [name for name in data if name not in types]
    if unknown:
        hint = suggest(unknown[0], types, kind="columns")
        raise KeyError(f"table {table} declares no column {', '.join(map(str, unknown))}. {hint}")
    if not data:
        raise ValueError(f"no columns were given for table {table}")
    names, schema, groups = _layout(table, frozenset(data))
    lengths = {len(values) for values in data.values()}
    if len(lengths) != 1:
        given = ", ".join(f"{name}: {len(values)}" for name, values in data.items())
        raise ValueError(f"the columns for table {table} have different lengths ({given})")
    rows = lengths.pop()
    if rows < _MANY_ROWS and not any(isinstance(values, pa.Array) for values in data.values()):
        try:
            return _grouped(data, names, schema, groups, rows)
        except (pa.ArrowException, TypeError, ValueError, OverflowError):
            pass  # column by column tells which one is at fault
    arrays = []
    for name in names:
        try:
            values = data[name]
            if isinstance(values, pa.Array):
                arrays.append(values if values.type == types[name] else values.cast(types[name]))
            else:
                arrays.append(pa.array(values, type=types[name], from_pandas=False))
        except (pa.ArrowException, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"a value of {table}.{name} is no {types[name]}: {error}") from error
    return pa.RecordBatch.from_arrays(arrays, schema=schema)


def to_table(table: str, batches: Iterable[pa.RecordBatch]) -> pa.Table:
    """Batches of one table as one Arrow table with the contract's columns; what a batch lacks is NULL.

    Columns the contract does not declare (written by a newer version) are kept, after the declared ones.
    """
    # Many one-row batches of one schema: joining them first and filling up once is far cheaper than batch by batch.
    runs: list[list[pa.RecordBatch]] = []
    for batch in batches:
        if runs and runs[-1][0].schema.equals(batch.schema):
            runs[-1].append(batch)
        else:
            runs.append([batch])
    schema = arrow_schema(table) if table in TABLES else pa.schema([])
    for run in runs:
        declared = set(schema.names)
        for field in run[0].schema:
            if field.name not in declared:
                schema = schema.append(field)
    tables = [_widened(pa.Table.from_batches(run).combine_chunks(), schema) for run in runs]
    return pa.concat_tables(tables) if tables else schema.empty_table()


def row_count(data: Any) -> int | None:
    """The number of rows in a mapping of columns (the longest column's length); None where it is no such thing."""
    try:
        return max((len(values) for values in data.values()), default=0)
    except (AttributeError, TypeError):
        return None


@functools.cache
def _types(table: str) -> dict[str, pa.DataType]:
    if table not in TABLES:
        raise KeyError(f"the contract declares no table {table}")
    return {field.name: field.type for field in arrow_schema(table)}


_Groups = tuple[tuple[pa.DataType, tuple[str, ...]], ...]


@functools.lru_cache(maxsize=256)
def _layout(table: str, given: frozenset[str]) -> tuple[tuple[str, ...], pa.Schema, _Groups]:
    types = _types(table)
    names = tuple(name for name in column_names(table) if name in given)
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(str(types[name]), []).append(name)
    schema = pa.schema([pa.field(name, types[name]) for name in names])
    return names, schema, tuple((types[members[0]], tuple(members)) for members in groups.values())


def _grouped(
    data: Mapping[str, Sequence[Any]], names: tuple[str, ...], schema: pa.Schema, groups: _Groups, rows: int
) -> pa.RecordBatch:
    # An update is often one row of a hundred columns: converting all columns of a type at once and slicing costs a
    # quarter of converting each.
    arrays: dict[str, pa.Array] = {}
    for type_, members in groups:
        values: list[Any] = []
        for name in members:
            values.extend(data[name])
        whole = pa.array(values, type=type_, from_pandas=False)
        for place, name in enumerate(members):
            arrays[name] = whole.slice(place * rows, rows)
    return pa.RecordBatch.from_arrays([arrays[name] for name in names], schema=schema)


def _widened(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    have = set(rows.schema.names)
    columns = [
        rows.column(field.name).cast(field.type) if field.name in have else pa.nulls(rows.num_rows, type=field.type)
        for field in schema
    ]
    return pa.Table.from_arrays(columns, schema=schema)
