"""DuckDB's results as frames: unique column names, sums of integers as integers, times in UTC."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import polars as pl
import pyarrow as pa

from esper_analytics.errors import QueryError


def to_frame(table: pa.Table, types: Sequence[str]) -> pl.DataFrame:
    """Convert a result, given DuckDB's types of its columns. Raises QueryError for one that no frame can hold."""
    columns: dict[str, pl.Series] = {}
    for position, kind in enumerate(types):
        name = table.field(position).name
        unique, count = name, 1
        while unique in columns:
            unique, count = f"{name}_{count}", count + 1
        columns[unique] = _series(unique, table.column(position), kind)
    return pl.DataFrame(list(columns.values()))


def _series(name: str, column: pa.ChunkedArray, kind: str) -> pl.Series:
    if kind == "INTERVAL":
        return _intervals(name, column.to_pylist())
    try:
        series = pl.Series(name, pl.from_arrow(column))
    except (pl.exceptions.PolarsError, TypeError, ValueError):
        raise QueryError(
            f"The column {name} is of type {kind}, which a result cannot hold. CAST it to VARCHAR."
        ) from None
    if kind in ("HUGEINT", "UHUGEINT"):
        fits = series.cast(pl.Int64, strict=False)
        return fits if fits.null_count() == series.null_count() else series
    if isinstance(series.dtype, pl.Datetime) and series.dtype.time_zone:
        return series.dt.convert_time_zone("UTC")
    if series.dtype in (pl.Categorical, pl.Enum):
        return series.cast(pl.String)
    return series


def _intervals(name: str, values: list[Any]) -> pl.Series:
    if all(value is None or value.months == 0 for value in values):
        micros = [None if v is None else v.days * 86_400_000_000 + v.nanoseconds // 1000 for v in values]
        return pl.Series(name, micros, dtype=pl.Duration("us"))
    spelled = [None if v is None else f"{v.months} months {v.days} days {v.nanoseconds / 1e9:g} s" for v in values]
    return pl.Series(name, spelled, dtype=pl.String)
