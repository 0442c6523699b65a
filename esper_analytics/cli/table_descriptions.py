"""The tables and columns as `esper tables` prints them: the contract's own words."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from esper_analytics.catalog.summary import RUN_COLUMNS, RUNS_ROW, RUNS_VIEW
from esper_analytics.errors import UnknownTableError, did_you_mean
from esper_analytics.sql.files import views
from esper_recorder.contract.tables import TABLES, Column, columns, key_columns

if TYPE_CHECKING:
    import polars as pl

NAMES = (RUNS_VIEW, *TABLES, *views())


def describe_tables() -> list[dict[str, Any]]:
    """Every table with all its columns, for whoever reads the schema as a whole."""
    return [
        {
            "table": name,
            "row": row_of(name),
            "keys": [*_keys(name)],
            "all_rows": f"{name}_all" if name in TABLES else None,
            "columns": [_described(column) for column in columns_of(name)],
        }
        for name in NAMES
    ]


def tables_frame() -> pl.DataFrame:
    """A row a table: table, columns, keys, row (what one row is)."""
    import polars as pl

    rows = [(name, len(columns_of(name)), ", ".join(_keys(name)), row_of(name)) for name in NAMES]
    return pl.DataFrame(rows, schema=["table", "columns", "keys", "one row is"], orient="row")


def columns_frame(table: str) -> pl.DataFrame:
    """A row a column: column, type, unit, meaning, null, reducer, since."""
    import polars as pl

    return pl.DataFrame([_described(column) for column in columns_of(table)])


def found_frame(word: str, table: str | None = None) -> pl.DataFrame:
    """The columns with a word in their name or meaning, names first: of one table as `columns_frame`, or of all."""
    import polars as pl

    rows = []
    for name in NAMES if table is None else (table,):
        for column in columns_of(name):
            sought = word.lower()
            if sought in column.name.lower() or sought in column.meaning.lower():
                rows.append({"table": name, **_described(column)})
    rows.sort(key=lambda row: word.lower() not in row["column"].lower())
    found = pl.DataFrame(rows, schema=["table", *_described(columns_of(NAMES[0])[0])], orient="row")
    return found if table is None else found.drop("table")


def columns_of(table: str) -> tuple[Column, ...]:
    """The columns of a table, of its `_all`, of a view or of `runs`. Raises UnknownTableError."""
    if table == RUNS_VIEW:
        return RUN_COLUMNS
    if table in views():
        return views()[table].columns
    name = table.removesuffix("_all")
    if name not in TABLES:
        raise UnknownTableError(f"There is no table {table!r}. {did_you_mean(table, NAMES, kind='tables')}")
    return columns(name)


def row_of(table: str) -> str:
    """What one row of a table is."""
    if table == RUNS_VIEW:
        return RUNS_ROW
    return views()[table].row if table in views() else TABLES[table.removesuffix("_all")].row


def _keys(table: str) -> tuple[str, ...]:
    if table in views():
        return ()
    return ("run_id",) if table == RUNS_VIEW else key_columns(table)


def _described(column: Column) -> dict[str, Any]:
    return {
        "column": column.name,
        "type": column.type,
        "unit": column.unit,
        "meaning": column.meaning,
        "null": column.null,
        "reducer": str(column.reducer),
        "since": column.since,
    }
