"""What the ranks of a distributed run recorded, as one row each: in SQL and in Polars, with the same answer.

Ranks are merged by the reducers that the contract declares, in the order of their numbers, as `contract.merge` merges
rows in Python; derived columns are computed anew from the merged sums by `contract.metrics`, whose formulas are here
given expressions instead of numbers. A merged row has the lowest rank's number. Its metrics are `pooled` over the
ranks, whatever the ranks' own definition; a row that one rank alone recorded is left as it is. A derived column whose
sums are not recorded is NULL in a merged row: a mean is never merged with a mean.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from esper_recorder.contract import metrics
from esper_recorder.contract.histogram import log_ratio_bin_count
from esper_recorder.contract.tables import TABLES, AcrossRanks, Column, Reducer, columns, key_columns

_DERIVE: dict[str, Callable[..., dict[str, Any]]] = {
    "ppo_updates": metrics.derive_pooled,
    "minibatches": metrics.derive,
    "heads": metrics.derive_head,
    "recurrent_state": metrics.derive_state,
}
_POOLED = "pooled"


def merges(table: str) -> bool:
    """Whether rows of a table are merged, or one taken for all, where several ranks recorded them."""
    return TABLES[table].across_ranks is not AcrossRanks.APART


def _keys(table: str) -> list[str]:
    return [name for name in key_columns(table) if name != "rank"]


# --- SQL --------------------------------------------------------------------------------------------------------------


def merged_sql(table: str, source: str) -> str:
    """A SELECT of the contract's columns that merges the ranks in `source`, a SELECT of the same columns."""
    keys = ", ".join(_quoted(name) for name in _keys(table))
    names = ", ".join(_quoted(column.name) for column in columns(table))
    if TABLES[table].across_ranks is AcrossRanks.REPLICAS:
        return f'SELECT {names} FROM ({source}) QUALIFY row_number() OVER (PARTITION BY {keys} ORDER BY "rank") = 1'
    reduced = ", ".join(f"{_sql_reduced(column)} AS {_quoted(column.name)}" for column in columns(table))
    derived = _derived(table, {c.name: _quoted(c.name) for c in columns(table)}, _Sql())
    terms = [_sql_final(column, derived.get(column.name)) for column in columns(table)]
    inner = f"SELECT {reduced}, count(*) AS _ranks FROM ({source}) GROUP BY {keys}"
    return f"SELECT {', '.join(terms)} FROM ({inner})"


def _sql_reduced(column: Column) -> str:
    name = _quoted(column.name)
    if column.name == "rank":
        return f"min({name})"
    if column.reducer is Reducer.KEY:
        return name
    if column.reducer is Reducer.SUM and column.type.startswith("list<"):
        bins = (f"coalesce(sum({name}[{place}])::BIGINT, 0)" for place in range(1, log_ratio_bin_count() + 1))
        return f"CASE WHEN count({name}) > 0 THEN [{', '.join(bins)}] END"
    if column.reducer is Reducer.SUM:
        return f'sum({name} ORDER BY "rank")::{"BIGINT" if column.type == "int64" else "DOUBLE"}'
    if column.reducer in (Reducer.MIN, Reducer.MAX):
        extreme = f"{column.reducer}({name})"
        if not column.is_float:
            return extreme
        nothing_else = f"CASE WHEN count({name}) > 0 THEN 'nan'::DOUBLE END"
        return f"coalesce({extreme} FILTER (WHERE NOT isnan({name})), {nothing_else})"
    place = "last" if column.reducer is Reducer.LAST else "first"
    return f'{place}({name} ORDER BY "rank") FILTER (WHERE {name} IS NOT NULL)'


def _sql_final(column: Column, derived: str | None) -> str:
    name = _quoted(column.name)
    if column.name == "definition":
        anew: str | None = f"'{_POOLED}'"
    elif column.reducer is Reducer.DERIVED:
        anew = derived
    else:
        return name
    return f"CASE WHEN _ranks = 1 THEN {name} ELSE {anew or 'NULL'} END AS {name}"


class _Sql:
    """Arithmetic of the metrics over SQL expressions. The formulas' NULL is SQL's."""

    def subtract(self, a: Any, b: Any) -> Any:
        return None if a is None or b is None else f"({a} - {b})"

    def multiply(self, a: Any, b: Any) -> Any:
        return None if a is None or b is None else f"({a} * {b})"

    def divide(self, a: Any, b: Any, of: Any = None) -> Any:
        if a is None or b is None:
            return None
        unknown = f"{a} IS NULL OR {b} IS NULL OR coalesce({b if of is None else of}, {b}) = 0"
        return f"(CASE WHEN {unknown} THEN NULL WHEN {b} = 0 THEN 'nan'::DOUBLE ELSE {a} / {b} END)"

    def root(self, a: Any) -> Any:
        return None if a is None else f"(CASE WHEN {a} < 0 THEN 0 ELSE sqrt({a}) END)"

    def ratio(self, a: Any, b: Any, least: Any) -> Any:
        if a is None or b is None or least is None:
            return None
        unknown = f"{a} IS NULL OR {b} IS NULL OR {least} IS NULL"
        above = f"{b} > {least} AND NOT isnan({b}) AND NOT isnan({least})"
        return f"(CASE WHEN {unknown} THEN NULL WHEN {above} THEN {a} / {b} ELSE 'nan'::DOUBLE END)"

    def choose(self, known: Any, then: Any, otherwise: Any) -> Any:
        return f"(CASE WHEN {known} IS NOT NULL THEN {then} ELSE {otherwise} END)"


def _quoted(name: str) -> str:
    return f'"{name}"'


# --- Polars -----------------------------------------------------------------------------------------------------------


def merged_frame(table: str, frame: pl.LazyFrame) -> pl.LazyFrame:
    """A frame of the contract's columns with its ranks merged."""
    keys = _keys(table)
    by_rank = frame.sort("rank", maintain_order=True)
    names = [column.name for column in columns(table)]
    if TABLES[table].across_ranks is AcrossRanks.REPLICAS:
        return by_rank.unique(subset=keys, keep="first", maintain_order=True).select(names)
    reduced = [_polars_reduced(c) for c in columns(table) if c.name == "rank" or c.reducer is not Reducer.KEY]
    merged = by_rank.group_by(keys, maintain_order=True).agg(*reduced, pl.len().alias("_ranks"))
    derived = _derived(table, {name: pl.col(name) for name in names}, _Polars())
    return merged.select(_polars_final(column, derived.get(column.name)) for column in columns(table))


def _polars_reduced(column: Column) -> pl.Expr:
    value = pl.col(column.name)
    measured = value.count() > 0
    if column.name == "rank":
        return value.min()
    if column.reducer is Reducer.SUM and column.type.startswith("list<"):
        bins = [value.list.get(place, null_on_oob=True).sum() for place in range(log_ratio_bin_count())]
        return pl.when(measured).then(pl.concat_list(bins)).alias(column.name)
    if column.reducer is Reducer.SUM:
        return pl.when(measured).then(value.sum()).alias(column.name)
    if column.reducer in (Reducer.MIN, Reducer.MAX):
        numbers = value.drop_nans() if column.is_float else value
        extreme = numbers.min() if column.reducer is Reducer.MIN else numbers.max()
        if column.is_float:
            extreme = pl.coalesce(extreme, pl.when(measured).then(float("nan")))
        return extreme.alias(column.name)
    there = value.drop_nulls()
    return there.last() if column.reducer is Reducer.LAST else there.first()


def _polars_final(column: Column, derived: Any) -> pl.Expr:
    value = pl.col(column.name)
    if column.name == "definition":
        anew = pl.lit(_POOLED)
    elif column.reducer is Reducer.DERIVED:
        anew = pl.lit(None, dtype=pl.Float64) if derived is None else derived
    else:
        return value
    return pl.when(pl.col("_ranks") == 1).then(value).otherwise(anew).alias(column.name)


class _Polars:
    """Arithmetic of the metrics over Polars expressions. The formulas' NULL is Polars'."""

    def subtract(self, a: Any, b: Any) -> Any:
        return None if a is None or b is None else a - b

    def multiply(self, a: Any, b: Any) -> Any:
        return None if a is None or b is None else a * b

    def divide(self, a: Any, b: Any, of: Any = None) -> Any:
        if a is None or b is None:
            return None
        counted = b if of is None else pl.coalesce(of, b)
        unknown = a.is_null() | b.is_null() | (counted == 0)
        return pl.when(unknown).then(None).when(b == 0).then(float("nan")).otherwise(a / b)

    def root(self, a: Any) -> Any:
        return None if a is None else pl.when(a < 0).then(0.0).otherwise(a.sqrt())

    def ratio(self, a: Any, b: Any, least: Any) -> Any:
        if a is None or b is None or least is None:
            return None
        unknown = a.is_null() | b.is_null() | least.is_null()
        above = (b > least) & b.is_not_nan() & least.is_not_nan()
        return pl.when(unknown).then(None).when(above).then(a / b).otherwise(float("nan"))

    def choose(self, known: Any, then: Any, otherwise: Any) -> Any:
        return pl.when(known.is_not_null()).then(then).otherwise(otherwise)


def _derived(table: str, row: dict[str, Any], arithmetic: Any) -> dict[str, Any]:
    """Derived column -> its formula over the merged columns, where there is one."""
    derive = _DERIVE.get(table)
    return {} if derive is None else derive(row, arithmetic)
