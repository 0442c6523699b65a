"""Signals read from whole tables: for each (run, update, key) a value, or the code of the reason why there is none."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Final

import polars as pl

from esper_analytics.replay.columns import compiled
from esper_recorder.contract.rules import RuleSet
from esper_recorder.contract.signals import UPDATE_TABLE, Reason, Signal, Take, order_columns, total
from esper_recorder.contract.tables import columns

REASONS: Final = tuple(Reason)
"""A reason's code is its place here, plus one; 0 means there is a value."""


def code(reason: Reason) -> int:
    """The code of a reason."""
    return REASONS.index(reason) + 1


class Readings:
    """The tables of some runs, as far as a rule set reads them.

    Attributes:
        runs: run_id of each run that has updates, in alphabetical order; a run's number is its place.
        updates: one row per (run, update), in that order: `run`, `update`, `progress`, `phase` and, as `u:NAME`, the
            columns of `ppo_updates` that the rules read.
    """

    def __init__(self, rules: RuleSet, frames: Mapping[str, pl.LazyFrame]) -> None:
        needed = rules.tables
        own = sorted(needed[UPDATE_TABLE])
        frame = _select(frames[UPDATE_TABLE], UPDATE_TABLE, ("run_id", "update", *own))
        self.runs: tuple[str, ...] = tuple(frame.get_column("run_id").unique().sort())
        self._numbers = pl.Enum(self.runs)
        updates = self._numbered(frame).unique(("run", "update"), keep="first", maintain_order=True)
        self.updates = updates.sort("run", "update").select(
            "run",
            "update",
            pl.col("progress").cast(pl.Float64),
            _phase(rules).alias("phase"),
            *(pl.col(name).alias(f"u:{name}") for name in own),
        )
        self._tables = {
            table: self._numbered(_select(frames[table], table, ("run_id", "update", *sorted(names))))
            for table, names in needed.items()
            if table != UPDATE_TABLE and table in frames
        }
        self._known: dict[Signal, pl.DataFrame] = {}

    def of_update(self, signal: Signal) -> tuple[pl.Expr, pl.Expr]:
        """Value and reason code of a signal of `ppo_updates`, as expressions over `updates`."""
        assert signal.table == UPDATE_TABLE
        value = _value(signal, "u:")
        reason = pl.when(value.is_null()).then(code(Reason.NOT_MEASURED)).otherwise(0)
        if signal.min_n is not None:
            enough = (pl.col("u:n") >= signal.min_n).fill_null(False)
            value = pl.when(enough).then(value)
            reason = pl.when(enough).then(reason).otherwise(code(Reason.TOO_FEW))
        return value, reason.cast(pl.UInt8)

    def of(self, signal: Signal) -> pl.DataFrame:
        """`run`, `update`, `key` ("" without a key column), `value`, `reason`: a row where the table has rows."""
        if signal not in self._known:
            self._known[signal] = self._read(signal)
        return self._known[signal]

    def _numbered(self, frame: pl.DataFrame) -> pl.DataFrame:
        number = pl.col("run_id").cast(pl.String).cast(self._numbers, strict=False).to_physical().cast(pl.UInt32)
        return frame.with_columns(number.alias("run")).filter(pl.col("run").is_not_null()).drop("run_id")

    def _read(self, signal: Signal) -> pl.DataFrame:
        if signal.table not in self._tables:
            return pl.DataFrame(schema=_READING)
        key = pl.lit("") if signal.key is None else pl.col(signal.key).cast(pl.String).fill_null("")
        order = [f"o:{name}" for name in order_columns(signal)]
        table = self._tables[signal.table]
        enough = table if signal.min_n is None else table.filter((pl.col("n") >= signal.min_n).fill_null(False))
        frame = enough.select(
            "run",
            "update",
            key.alias("key"),
            _value(signal).alias("value"),
            *(pl.col(name.removeprefix("o:")).alias(name) for name in order),
        )
        if order:
            frame = frame.sort(order, nulls_last=False, maintain_order=True)
        series = ["run", "update", "key"]
        taken = frame.group_by(series).agg(_taken(signal).alias("value"), pl.len().alias("rows"))
        if signal.min_n is not None:
            every = table.select("run", "update", key.alias("key")).unique()
            taken = every.join(taken, on=series, how="left").with_columns(pl.col("rows").fill_null(0))
        if taken.schema["value"] == pl.List:  # floats are added up as the watcher adds them, exactly rounded
            sums = [total(values) if values else None for values in taken.get_column("value").to_list()]
            taken = taken.with_columns(pl.Series("value", sums, dtype=pl.Float64))
        reason = (
            pl.when(pl.col("rows") == 0)
            .then(code(Reason.TOO_FEW))
            .when(pl.lit(signal.take is Take.ONLY) & (pl.col("rows") > 1))
            .then(code(Reason.SEVERAL_ROWS))
            .when(pl.col("value").is_null())
            .then(code(Reason.NOT_MEASURED))
            .otherwise(0)
            .cast(pl.UInt8)
        )
        value = pl.when(reason == 0).then(pl.col("value"))
        return taken.select("run", "update", "key", value.alias("value"), reason.alias("reason"))


def _taken(signal: Signal) -> pl.Expr:
    """The value that stands for the rows of a group; for an exact sum, the list of them."""
    value = pl.col("value")
    only_nan = pl.when(value.is_nan().any()).then(math.nan)
    match signal.take:
        case Take.FIRST | Take.ONLY:
            return value.first()
        case Take.LAST:
            return value.last()
        case Take.MAX:
            return pl.coalesce(value.fill_nan(None).max(), only_nan)
        case Take.MIN:
            return pl.coalesce(value.fill_nan(None).min(), only_nan)
        case Take.SUM if _whole(signal):
            return pl.when(value.count() > 0).then(value.sum())
    return value.drop_nulls().implode()


_READING: Final = {
    "run": pl.UInt32,
    "update": pl.Int64,
    "key": pl.String,
    "value": pl.Float64,
    "reason": pl.UInt8,
}


def _select(frame: pl.LazyFrame, table: str, names: tuple[str, ...]) -> pl.DataFrame:
    """The columns, NULL where the frame has none."""
    types = {c.name: _TYPES[c.type] for c in columns(table) if c.name in names}
    there = frame.collect_schema().names()
    wanted = [pl.col(n) if n in there else pl.lit(None, types[n]).alias(n) for n in dict.fromkeys(names)]
    return frame.select(wanted).with_columns(pl.col("run_id").cast(pl.String)).collect()


_TYPES: Final = {"int64": pl.Int64, "float64": pl.Float64, "bool": pl.Boolean, "string": pl.String}


def _value(signal: Signal, prefix: str = "") -> pl.Expr:
    if signal.expression is not None:
        return compiled(signal.expression, prefix)
    return pl.col(f"{prefix}{signal.column}").cast(pl.Float64)


def _whole(signal: Signal) -> bool:
    """Its values are whole numbers, whose sum does not depend on the order."""
    return any(c.name == signal.column and c.type in ("int64", "bool") for c in columns(signal.table))


def _phase(rules: RuleSet) -> pl.Expr:
    names = pl.Enum([name for name, _ in rules.phases])
    progress = pl.col("progress").cast(pl.Float64)
    phase = pl.lit(None, pl.String)
    for name, start in rules.phases:
        phase = pl.when((progress >= start) & progress.is_not_nan()).then(pl.lit(name)).otherwise(phase)
    return phase.cast(names)
