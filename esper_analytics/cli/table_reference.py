"""The tables and columns of the contract, as `esper tables` prints them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esper_analytics.catalog.summary import RUN_COLUMNS, RUNS_ROW, RUNS_VIEW
from esper_analytics.errors import UnknownTableError
from esper_analytics.sql.files import views
from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import TABLES, Column, columns, key_columns

if TYPE_CHECKING:
    import polars as pl

NAMES = (RUNS_VIEW, *TABLES, *views())


def describe_tables() -> list[dict[str, Any]]:
    """Describe every table with all its columns, as nested plain data."""
    return [
        {
            "table": name,
            "row": _row_of(name),
            "keys": [*_keys_of(name)],
            "all_rows": f"{name}_all" if name in TABLES else None,
            "columns": [_describe(column) for column in _columns_of(name)],
        }
        for name in NAMES
    ]


def tables_frame() -> pl.DataFrame:
    """One row per table: table, columns, keys, one row is."""
    import polars as pl

    rows = [(name, len(_columns_of(name)), ", ".join(_keys_of(name)), _row_of(name)) for name in NAMES]
    return pl.DataFrame(rows, schema=["table", "columns", "keys", "one row is"], orient="row")


def columns_frame(table: str) -> pl.DataFrame:
    """One row per column: column, type, unit, meaning, null, reducer, since. Raises UnknownTableError."""
    import polars as pl

    return pl.DataFrame([_describe(column) for column in _columns_of(table)])


def find_columns(word: str, table: str | None = None) -> pl.DataFrame:
    """Return the columns with a word in name or meaning, matches by name first: of one table, or of all."""
    import polars as pl

    sought = word.lower()
    matches = [
        {"table": name, **_describe(column)}
        for name in (NAMES if table is None else (table,))
        for column in _columns_of(name)
        if sought in column.name.lower() or sought in column.meaning.lower()
    ]
    matches.sort(key=lambda row: sought not in row["column"].lower())
    frame = pl.DataFrame(matches, schema=["table", *_describe(RUN_COLUMNS[0])], orient="row")
    return frame if table is None else frame.drop("table")


def _columns_of(table: str) -> tuple[Column, ...]:
    """The columns of a table, of its `_all`, of a view or of `runs`. Raises UnknownTableError."""
    if table == RUNS_VIEW:
        return RUN_COLUMNS
    if table in views():
        return views()[table].columns
    name = table.removesuffix("_all")
    if name not in TABLES:
        raise UnknownTableError(f"There is no table {table!r}. {suggest(table, NAMES, kind='tables')}")
    return columns(name)


def _row_of(table: str) -> str:
    if table == RUNS_VIEW:
        return RUNS_ROW
    return views()[table].row if table in views() else TABLES[table].row


def _keys_of(table: str) -> tuple[str, ...]:
    if table in views():
        return ()
    return ("run_id",) if table == RUNS_VIEW else key_columns(table)


def _describe(column: Column) -> dict[str, Any]:
    return {
        "column": column.name,
        "type": column.type,
        "unit": column.unit,
        "meaning": column.meaning,
        "null": column.null,
        "reducer": str(column.reducer),
        "since": column.since,
    }
