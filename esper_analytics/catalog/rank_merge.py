"""The rows of several ranks as one row each, in SQL and in Polars with the same result.

Ranks merge in the order of their numbers, by the reducers of the contract (`contract.merge`); derived columns are
recomputed from the merged sums by the formulas of `contract.metrics`. Both are declared there once; here are the sets
of operators that apply them to SQL text and to Polars expressions.

A merged row has the lowest rank's number, and its metrics are `pooled` over the ranks, whatever the ranks' definition.
A row that only one rank recorded stays as recorded. A derived column whose sums are not recorded is NULL in a merged
row: means are never merged.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import polars as pl

from esper_recorder.contract import metrics
from esper_recorder.contract.histogram import log_ratio_bin_count
from esper_recorder.contract.merge import reduce
from esper_recorder.contract.tables import TABLES, AcrossRanks, Column, Reducer, columns, key_columns

_DERIVE: dict[str, Callable[..., dict[str, Any]]] = {
    "ppo_updates": metrics.derive_pooled,
    "minibatches": metrics.derive,
    "heads": metrics.derive_head,
    "recurrent_state": metrics.derive_state,
}


def merges(table: str) -> bool:
    """Return whether a table's rows of several ranks become one."""
    return TABLES[table].across_ranks is not AcrossRanks.APART


def _keys(table: str) -> list[str]:
    return [name for name in key_columns(table) if name != "rank"]


def _recomputed(table: str, row: dict[str, Any], o: _Sql | _Polars) -> dict[str, Any]:
    """Return column -> its value in a row of several ranks, for the columns that are not reduced."""
    formulas = _DERIVE[table](row, o) if table in _DERIVE else {}
    derived = {c.name: formulas.get(c.name) for c in columns(table) if c.reducer is Reducer.DERIVED}
    recomputed = {name: o.null if formula is None else formula for name, formula in derived.items()}
    return recomputed | ({"definition": o.pooled} if "definition" in row else {})


# --- SQL --------------------------------------------------------------------------------------------------------------


def merged_sql(table: str, source: str) -> str:
    """Write a SELECT of the contract's columns that merges the ranks in `source`, a SELECT of the same columns."""
    quoted = {column.name: f'"{column.name}"' for column in columns(table)}
    group = _keys(table)
    keys = ", ".join(quoted[name] for name in group)
    if TABLES[table].across_ranks is AcrossRanks.REPLICAS:
        first = f'row_number() OVER (PARTITION BY {keys} ORDER BY "rank") = 1'
        return f"SELECT {', '.join(quoted.values())} FROM ({source}) QUALIFY {first}"
    sql = _Sql()
    reduced = [
        name if column.name in group else f"{reduce(column, name, sql)} AS {name}"
        for column, name in zip(columns(table), quoted.values(), strict=True)
    ]
    recomputed = _recomputed(table, quoted, sql)
    terms = [
        f"CASE WHEN _ranks = 1 THEN {name} ELSE {recomputed[column]} END AS {name}" if column in recomputed else name
        for column, name in quoted.items()
    ]
    inner = f"SELECT {', '.join(reduced)}, count(*) AS _ranks FROM ({source}) GROUP BY {keys}"
    return f"SELECT {', '.join(terms)} FROM ({inner})"


class _Sql:
    """The operators of reducers and metrics over SQL text. The formulas' NULL is SQL's."""

    null = "NULL"
    pooled = "'pooled'"

    def first(self, name: str, column: Column) -> str:
        return f'first({name} ORDER BY "rank") FILTER (WHERE {name} IS NOT NULL)'

    def last(self, name: str, column: Column) -> str:
        return f'last({name} ORDER BY "rank") FILTER (WHERE {name} IS NOT NULL)'

    def sum(self, name: str, column: Column) -> str:
        return f'sum({name} ORDER BY "rank")::{"BIGINT" if column.type == "int64" else "DOUBLE"}'

    def sum_lists(self, name: str, column: Column) -> str:
        bins = (f"coalesce(sum({name}[{place}])::BIGINT, 0)" for place in range(1, log_ratio_bin_count() + 1))
        return f"CASE WHEN count({name}) > 0 THEN [{', '.join(bins)}] END"

    def min(self, name: str, column: Column, function: str = "min") -> str:
        if not column.is_float:
            return f"{function}({name})"
        only_nan = f"CASE WHEN count({name}) > 0 THEN 'nan'::DOUBLE END"
        return f"coalesce({function}({name}) FILTER (WHERE NOT isnan({name})), {only_nan})"

    def max(self, name: str, column: Column) -> str:
        return self.min(name, column, "max")

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


# --- Polars -----------------------------------------------------------------------------------------------------------


def merged_frame(table: str, frame: pl.LazyFrame) -> pl.LazyFrame:
    """Merge the ranks of a frame of the contract's columns."""
    keys = _keys(table)
    by_rank = frame.sort("rank", maintain_order=True)
    row = {column.name: pl.col(column.name) for column in columns(table)}
    if TABLES[table].across_ranks is AcrossRanks.REPLICAS:
        return by_rank.unique(subset=keys, keep="first", maintain_order=True).select(*row)
    polars = _Polars()
    reduced = [reduce(c, row[c.name], polars).alias(c.name) for c in columns(table) if c.name not in keys]
    recomputed = _recomputed(table, row, polars)
    one_rank = pl.col("_ranks") == 1
    return (
        by_rank.group_by(keys, maintain_order=True)
        .agg(*reduced, pl.len().alias("_ranks"))
        .select(
            pl.when(one_rank).then(value).otherwise(recomputed[name]).alias(name) if name in recomputed else value
            for name, value in row.items()
        )
    )


class _Polars:
    """The operators of reducers and metrics over Polars expressions. The formulas' NULL is Polars'."""

    null = pl.lit(None, dtype=pl.Float64)
    pooled = pl.lit("pooled")

    def first(self, value: pl.Expr, column: Column) -> pl.Expr:
        return value.drop_nulls().first()

    def last(self, value: pl.Expr, column: Column) -> pl.Expr:
        return value.drop_nulls().last()

    def sum(self, value: pl.Expr, column: Column) -> pl.Expr:
        return pl.when(value.count() > 0).then(value.sum())

    def sum_lists(self, value: pl.Expr, column: Column) -> pl.Expr:
        bins = [value.list.get(place, null_on_oob=True).sum() for place in range(log_ratio_bin_count())]
        return pl.when(value.count() > 0).then(pl.concat_list(bins))

    def min(self, value: pl.Expr, column: Column) -> pl.Expr:
        return self._or_nan(value.drop_nans().min(), value) if column.is_float else value.min()

    def max(self, value: pl.Expr, column: Column) -> pl.Expr:
        return self._or_nan(value.drop_nans().max(), value) if column.is_float else value.max()

    def _or_nan(self, extreme: pl.Expr, value: pl.Expr) -> pl.Expr:
        return pl.coalesce(extreme, pl.when(value.count() > 0).then(float("nan")))

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
