"""The rows of one table, for SQL and for Polars: checked files of any layout, without superseded rows.

`TableScan` lists the files and journal rows of one moment. It gives them to DuckDB as the SELECT of a view and to
Polars as a LazyFrame, both with exactly the contract's columns and types: explicit casts, present names for renamed
columns, and NULL for a column that a file predates (`union_by_name` and its kin change types silently).

Min/max statistics of float columns ignore NaN, and DuckDB prunes by them: `WHERE isnan(x)` finds nothing and `max(x)`
is not NaN. Files that have them are read through an expression that DuckDB does not prune by. Our parts have none.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import polars as pl
import pyarrow as pa

from esper_analytics.catalog.footers import StoredColumn
from esper_analytics.catalog.rank_merge import merged_frame, merged_sql
from esper_recorder.contract.tables import Column, columns
from esper_recorder.storage.parquet import arrow_type

Cuts = tuple[tuple[int, int], ...]
"""(attempt, update): rows of the attempt from this update on are superseded."""

SQL_TYPES = {
    "int64": "BIGINT",
    "float64": "DOUBLE",
    "string": "VARCHAR",
    "bool": "BOOLEAN",
    "timestamp[us, UTC]": "TIMESTAMPTZ",
    "list<int64>": "BIGINT[]",
    "list<float64>": "DOUBLE[]",
    "list<string>": "VARCHAR[]",
}
_POLARS_TYPES: dict[str, pl.DataType] = {
    "int64": pl.Int64(),
    "float64": pl.Float64(),
    "string": pl.String(),
    "bool": pl.Boolean(),
    "timestamp[us, UTC]": pl.Datetime("us", "UTC"),
    "list<int64>": pl.List(pl.Int64()),
    "list<float64>": pl.List(pl.Float64()),
    "list<string>": pl.List(pl.String()),
}


@dataclass(frozen=True, slots=True)
class PartLayout:
    """What files have in common that are read by one expression."""

    present: tuple[StoredColumn, ...]
    float_statistics: bool
    cuts: Cuts
    ranks: bool = False
    """The rows are of several ranks, to be merged."""


@dataclass(slots=True)
class TableScan:
    """The files and journal rows of one table at one moment."""

    table: str
    files: dict[PartLayout, list[Path]] = field(default_factory=dict)
    journals: list[tuple[pa.Table, PartLayout]] = field(default_factory=list)
    heights: dict[Path, int] = field(default_factory=dict)
    """The number of rows of each part."""

    def add_part(self, path: Path, layout: PartLayout, rows: int) -> None:
        """Add a part whose footer was checked."""
        path = path.absolute()
        self.files.setdefault(layout, []).append(path)
        self.heights[path] = rows

    def add_journal(self, rows: pa.Table, *, cuts: Cuts, ranks: bool) -> None:
        """Add rows in memory that have all the contract's columns, as a journal's do."""
        present = tuple(StoredColumn(column.name, "", column.name) for column in columns(self.table))
        self.journals.append((rows, PartLayout(present, False, cuts, ranks)))

    @property
    def rows(self) -> int:
        """How many rows there are, superseded ones included."""
        return sum(self.heights.values()) + sum(int(journal.num_rows) for journal, _ in self.journals)

    def parts(self) -> list[tuple[PartLayout, Path, int]] | None:
        """List the parts with layout and number of rows; None if some rows are superseded, merged or in a journal."""
        if self.journals or any(
            layout != PartLayout(layout.present, layout.float_statistics, ()) for layout in self.files
        ):
            return None
        return [(layout, path, self.heights[path]) for layout, paths in self.files.items() for path in paths]

    def paths(self) -> list[Path]:
        """List the files a query over this table reads."""
        return [path for paths in self.files.values() for path in paths]

    def view(self, journal_tables: Sequence[str], *, superseded: bool) -> str:
        """Write the SELECT of the table's view, with or without superseded rows.

        Args:
            journal_tables: quoted names of tables with the rows of `journals`, in their order.
            superseded: also superseded rows, and those of each rank.
        """
        sources = [(layout, _read_parquet(paths)) for layout, paths in self.files.items()]
        sources += [(layout, name) for (_, layout), name in zip(self.journals, journal_tables, strict=True)]
        selects: list[str] = []
        of_ranks: list[str] = []  # selects whose rows are to be merged
        for layout, source in sources:
            stored = {column.name: column for column in layout.present}
            terms = [_sql_term(c, stored.get(c.name), layout.float_statistics) for c in columns(self.table)]
            select = f"SELECT {', '.join(terms)} FROM {source}{_sql_where(() if superseded else layout.cuts)}"
            (of_ranks if layout.ranks and not superseded else selects).append(select)
        if of_ranks:
            selects.append(merged_sql(self.table, "\nUNION ALL\n".join(of_ranks)))
        if not selects:
            terms = [_sql_term(c, None, False) for c in columns(self.table)]
            selects.append(f"SELECT {', '.join(terms)} WHERE false")
        return "\nUNION ALL\n".join(selects)

    def frame(self, *, superseded: bool, only: Collection[str] | None = None) -> pl.LazyFrame:
        """Scan the table as a LazyFrame, as `view` has it; `only` some of its columns, and attempt and update."""
        wanted = [c for c in columns(self.table) if only is None or c.name in only or c.name in ("attempt", "update")]
        sources = [(layout, _scan_parquet(layout, paths)) for layout, paths in self.files.items()]
        sources += [(layout, pl.DataFrame(journal).lazy()) for journal, layout in self.journals]
        frames: list[pl.LazyFrame] = []
        of_ranks: list[pl.LazyFrame] = []
        for layout, source in sources:
            merged = layout.ranks and not superseded
            stored = {column.name: column for column in layout.present}
            needed = columns(self.table) if merged else wanted
            rows = source.select(_polars_term(c, stored.get(c.name)) for c in needed)
            (of_ranks if merged else frames).append(rows if superseded else _without(layout.cuts, rows))
        if of_ranks:
            frames.append(merged_frame(self.table, pl.concat(of_ranks)).select(c.name for c in wanted))
        if not frames:
            return pl.LazyFrame(schema={c.name: polars_type(c) for c in wanted})
        return frames[0] if len(frames) == 1 else pl.concat(frames)


def identifier(name: str) -> str:
    """Quote a name for SQL."""
    return '"' + name.replace('"', '""') + '"'


def literal(text: str) -> str:
    """Quote a string for SQL."""
    return "'" + text.replace("'", "''") + "'"


def polars_type(column: Column) -> pl.DataType:
    """Return the Polars type of a contract column."""
    return _POLARS_TYPES[column.type]


def _sql_term(column: Column, found: StoredColumn | None, float_statistics: bool) -> str:
    name = identifier(column.name)
    if found is None:
        return f"NULL::{SQL_TYPES[column.type]} AS {name}"
    value = identifier(found.stored)
    if found.type != str(arrow_type(column)) or (float_statistics and column.is_float):
        value = (
            f"CAST({value} AS {SQL_TYPES[column.type]})"  # one that changes nothing costs the binding of every query
        )
    if float_statistics and column.type == "float64":
        # A cast alone, or adding zero, does not keep DuckDB from pruning by statistics that know no NaN; this does.
        value = f"CASE WHEN isnan({value}) THEN 'nan'::DOUBLE ELSE {value} END"
    return value if value == name else f"{value} AS {name}"


def _read_parquet(paths: Sequence[Path]) -> str:
    listed = ", ".join(literal(str(path)) for path in paths)
    return f"read_parquet([{listed}], hive_partitioning = false, union_by_name = false)"


def _sql_where(cuts: Cuts) -> str:
    if not cuts:
        return ""
    hidden = " OR ".join(f'("attempt" = {attempt} AND "update" >= {update})' for attempt, update in cuts)
    return f" WHERE ({hidden}) IS NOT TRUE"


def _scan_parquet(layout: PartLayout, paths: Sequence[Path]) -> pl.LazyFrame:
    statistics = not layout.float_statistics
    return pl.scan_parquet(list(paths), glob=False, hive_partitioning=False, use_statistics=statistics)


def _without(cuts: Cuts, rows: pl.LazyFrame) -> pl.LazyFrame:
    if not cuts:
        return rows
    hidden = pl.any_horizontal((pl.col.attempt == attempt) & (pl.col.update >= update) for attempt, update in cuts)
    return rows.filter(hidden.fill_null(False).not_())


def _polars_term(column: Column, found: StoredColumn | None) -> pl.Expr:
    kind = polars_type(column)
    if found is None:
        return pl.lit(None, dtype=kind).alias(column.name)
    value = pl.col(found.stored)
    if found.type.startswith("timestamp") and "tz=" not in found.type:
        value = value.cast(pl.Datetime("us")).dt.replace_time_zone("UTC")
    return value.cast(kind).alias(column.name)
