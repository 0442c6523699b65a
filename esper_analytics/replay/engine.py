"""Rules run over whole tables at once, with the meaning of `esper_recorder.contract.evaluator`.

Comparisons, streaks and thresholds are column arithmetic; averages run through the contract's own accumulator. A
property test holds both evaluators to the same firings.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import polars as pl

from esper_analytics.replay.columns import above, below, nonfinite
from esper_analytics.replay.readings import REASONS, Readings, code
from esper_recorder.contract.ema import Average, Previous
from esper_recorder.contract.evaluator import gate_reason
from esper_recorder.contract.rule import Condition, Gate, Rule, Test, Threshold
from esper_recorder.contract.rules import RuleSet
from esper_recorder.contract.signals import UPDATE_TABLE, Reason

FIRING_COLUMNS: Final = {
    "run_id": pl.String,
    "update": pl.Int64,
    "rule": pl.String,
    "key": pl.String,
    "severity": pl.String,
    "value": pl.Float64,
    "threshold": pl.Float64,
    "phase": pl.String,
    "progress": pl.Float64,
}
COVERAGE_COLUMNS: Final = {
    "run_id": pl.String,
    "rule": pl.String,
    "key": pl.String,
    "evaluated": pl.Int64,
    "reason": pl.String,
    "abstained": pl.Int64,
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one rule set found in some runs.

    Attributes:
        firings: the columns of `FIRING_COLUMNS`, by run, update and the rules' order; then `looked`, how many times
            its series had looked up to then (counted from an arbitrary number), and `worse`, larger where the value
            is further beyond the threshold.
        coverage: the columns of `COVERAGE_COLUMNS`, a row per (run, rule, key, reason), and one with an empty reason
            where the rule never abstained; then `looked`, as above, at the end of the run.
    """

    firings: pl.DataFrame
    coverage: pl.DataFrame


def evaluate(rules: RuleSet, frames: Mapping[str, pl.LazyFrame]) -> Evaluation:
    """Run the rules over every run of the tables.

    Args:
        rules: what to look for.
        frames: by table, rows of one or more runs. A table not given was not recorded, nor a column not in it.
    """
    readings = Readings(rules, frames)
    found = [_evaluate(rule, readings) for rule in rules.rules]
    firings = pl.concat(
        [pl.DataFrame(schema=_FOUND), *(fired.with_columns(place=pl.lit(n)) for n, (fired, _) in enumerate(found))],
        how="diagonal_relaxed",
    )
    silent = {rule.name: rule.yields_to for rule in rules.rules if rule.yields_to is not None}
    if silent:
        loud = firings.select("run", "update", "key", pl.col("rule").alias("louder")).filter(
            pl.col("louder").is_in(list(silent.values()))
        )
        firings = firings.with_columns(
            pl.col("rule").replace_strict(silent, default=None, return_dtype=pl.String).alias("louder")
        ).join(loud, on=["run", "update", "key", "louder"], how="anti")
    number = pl.col("run").replace_strict(dict(enumerate(readings.runs)), return_dtype=pl.String).alias("run_id")
    firings = firings.sort("run", "update", "place", "key").select(
        number,
        *(pl.col(name).cast(type_) for name, type_ in FIRING_COLUMNS.items() if name != "run_id"),
        "looked",
        "worse",
    )
    coverage = pl.concat([pl.DataFrame(schema=_COVERED), *(covered for _, covered in found)], how="diagonal_relaxed")
    return Evaluation(firings, coverage.select(number, *list(COVERAGE_COLUMNS)[1:], "looked"))


_FOUND: Final = {
    "run": pl.UInt32,
    **{name: type_ for name, type_ in FIRING_COLUMNS.items() if name != "run_id"},
    "looked": pl.Int64,
    "worse": pl.Float64,
    "place": pl.Int32,
}
_COVERED: Final = {
    "run": pl.UInt32,
    **{name: type_ for name, type_ in COVERAGE_COLUMNS.items() if name != "run_id"},
    "looked": pl.Int64,
}
_FIRST_GATE: Final = len(REASONS) + 1  # codes from here on: the gates of the rule


def _evaluate(rule: Rule, readings: Readings) -> tuple[pl.DataFrame, pl.DataFrame]:
    frame = _frame(rule, readings)
    frame = frame.with_columns(_gate_code(rule).alias("gate"))
    for i, condition in enumerate(rule.conditions):
        frame = _judge(frame, condition, i)
    frame = _combine(frame, rule).with_columns((pl.col("code") == 0).cum_sum().cast(pl.Int64).alias("looked"))
    fired = frame.filter(_fires(frame, rule)).select(
        "run",
        "update",
        pl.lit(rule.name).alias("rule"),
        "key",
        pl.lit(str(rule.severity)).alias("severity"),
        "value",
        "threshold",
        pl.col("phase").cast(pl.String),
        "progress",
        "looked",
        "worse",
    )
    return fired, _coverage(frame, rule, readings)


def _frame(rule: Rule, readings: Readings) -> pl.DataFrame:
    """One row per update and key, by run, key and update, with the readings `v0`, `r0`, ... and `gv0`, `gr0`, ..."""
    own = {f"u:{c.threshold.signal.column}" for c in rule.conditions if c.threshold and c.threshold.signal}
    of_update: list[pl.Expr] = []
    joined: list[tuple[pl.DataFrame, bool, str, str]] = []
    keys: list[pl.DataFrame] = []
    signals = [(condition.signal, f"v{i}", f"r{i}") for i, condition in enumerate(rule.conditions)]
    signals += [(gate.signal, f"gv{i}", f"gr{i}") for i, gate in enumerate(rule.unless)]
    for signal, value, reason in signals:
        if signal.table == UPDATE_TABLE:
            v, r = readings.of_update(signal)
            of_update += [v.alias(value), r.alias(reason)]
        else:
            read = readings.of(signal)
            joined.append((read, signal.key is not None, value, reason))
            if value.startswith("v") and rule.key is not None:
                keys.append(read.select("run", "update", "key"))
    frame = readings.updates.select("run", "update", "progress", "phase", *of_update, *sorted(own))
    if rule.key is None:
        frame = frame.with_columns(pl.lit("").alias("key"))
    else:
        every = keys[0] if len(keys) == 1 else pl.concat(keys).unique()
        frame = every.join(frame, on=["run", "update"], how="inner").sort("run", "key", "update")
    for read, keyed, value, reason in joined:
        on = ["run", "update", *(["key"] if keyed else [])]
        right = read.select(*on, pl.col("value").alias(value), pl.col("reason").alias(reason))
        frame = frame.join(right, on=on, how="left", maintain_order="left").with_columns(
            pl.col(reason).fill_null(code(Reason.NOT_RECORDED))
        )
    return frame


def _gate_code(rule: Rule) -> pl.Expr:
    result = pl.lit(0, pl.UInt8)
    for i, gate in reversed(list(enumerate(rule.unless))):
        state = _gate_state(gate, pl.col(f"gv{i}"), pl.col(f"gr{i}"), _FIRST_GATE + i)
        result = pl.when(state != 0).then(state).otherwise(result)
    return result.cast(pl.UInt8)


def _gate_state(gate: Gate, value: pl.Expr, reason: pl.Expr, closed: int) -> pl.Expr:
    unknown = reason != 0
    if gate.test is Test.NONFINITE:
        shut = nonfinite(value)
    else:
        unknown = unknown | value.is_nan().fill_null(True)
        level = pl.lit(gate.number, pl.Float64)
        shut = above(value, level) if gate.test is Test.ABOVE else below(value, level)
    return pl.when(unknown).then(code(Reason.GATE_UNKNOWN)).when(shut).then(closed).otherwise(0)


def _judge(frame: pl.DataFrame, condition: Condition, i: int) -> pl.DataFrame:
    """Adds `hit`, `beyond`, `value`, `threshold`, `reason` and `worse` of one condition, each with its number."""
    value, reason = pl.col(f"v{i}"), pl.col(f"r{i}")
    if condition.test is Test.NONFINITE:
        hit = nonfinite(value)
        return frame.with_columns(
            hit.alias(f"hit{i}"),
            hit.not_().alias(f"beyond{i}"),
            pl.lit(None, pl.Float64).alias(f"t{i}"),
            pl.lit(float("inf")).alias(f"worse{i}"),
        )
    if condition.drift is not None or condition.step:
        frame = frame.with_columns(_moved(frame, condition, i)).with_columns(
            pl.when(reason != 0)
            .then(reason)
            .when(nonfinite(value))
            .then(code(Reason.NOT_FINITE))
            .when(pl.col(f"m{i}").is_null())
            .then(code(Reason.WARMING_UP))
            .otherwise(0)
            .cast(pl.UInt8)
            .alias(f"r{i}"),
            pl.col(f"m{i}").alias(f"v{i}"),
        )
    assert condition.threshold is not None  # only `nonfinite` has none
    threshold = pl.col(f"t{i}")
    frame = frame.with_columns(_threshold(condition.threshold).cast(pl.Float64).alias(f"t{i}")).with_columns(
        pl.when(reason != 0)
        .then(reason)
        .when(threshold.is_null() | threshold.is_nan())
        .then(code(Reason.NO_THRESHOLD))
        .when(value.is_nan())
        .then(code(Reason.NOT_FINITE))
        .otherwise(0)
        .cast(pl.UInt8)
        .alias(f"r{i}")
    )
    up = condition.test is Test.ABOVE
    hit = above(value, threshold) if up else below(value, threshold)
    if condition.reset is None:
        beyond = hit.not_()
    else:
        times, number = condition.reset.times, condition.reset.number
        level = pl.lit(number, pl.Float64) if number is not None else threshold * (times or 0.0)
        beyond = below(value, level) if up else above(value, level)
    return frame.with_columns(
        (hit & (reason == 0)).alias(f"hit{i}"),
        beyond.alias(f"beyond{i}"),
        (value if up else -value).alias(f"worse{i}"),
    )


def _threshold(threshold: Threshold) -> pl.Expr:
    otherwise = pl.lit(threshold.number, pl.Float64)
    if threshold.signal is not None:
        value = pl.col(f"u:{threshold.signal.column}").cast(pl.Float64)
        return pl.when(value.is_null()).then(otherwise).otherwise(value * threshold.times)
    if threshold.by == "number":
        return otherwise
    names = pl.col("phase" if threshold.by == "phase" else "key").cast(pl.String)
    return names.replace_strict(dict(threshold.values), default=otherwise, return_dtype=pl.Float64)


def _moved(frame: pl.DataFrame, condition: Condition, i: int) -> pl.Series:
    """Drift or step of each value, each series through an accumulator of its own."""
    usable = (pl.col("gate") == 0) & (pl.col(f"r{i}") == 0)
    values: list[float | None] = frame.select(pl.when(usable).then(pl.col(f"v{i}"))).to_series().to_list()
    starts = frame.select(_first_of_series().arg_true()).to_series().to_list()
    moved: list[float | None] = []
    for start, end in itertools.pairwise([*starts, len(values)]):
        state = Average(condition.drift) if condition.drift is not None else Previous()
        moved += state.push_all(values[start:end])
    return pl.Series(f"m{i}", moved, dtype=pl.Float64)


def _first_of_series() -> pl.Expr:
    """True in the first row of each run and key."""
    return ((pl.col("run") != pl.col("run").shift()) | (pl.col("key") != pl.col("key").shift())).fill_null(True)


def _combine(frame: pl.DataFrame, rule: Rule) -> pl.DataFrame:
    """Adds `code` (0 where the rule looked), `hit`, `beyond` and the `value`, `threshold` and `worse` to tell."""
    numbers = range(len(rule.conditions))
    gate = pl.col("gate")
    any_hit = pl.any_horizontal(f"hit{i}" for i in numbers)
    reason = pl.lit(0, pl.UInt8)
    told = {name: pl.col(f"{short}0") for name, short in _TOLD.items()}
    for i in reversed(numbers):
        reason = pl.when(pl.col(f"r{i}") != 0).then(pl.col(f"r{i}")).otherwise(reason)
        for name, short in _TOLD.items():
            told[name] = pl.when(pl.col(f"hit{i}")).then(pl.col(f"{short}{i}")).otherwise(told[name])
    looked = pl.when(gate != 0).then(gate).when(any_hit).then(0).otherwise(reason).cast(pl.UInt8)
    return frame.select(
        "run",
        "update",
        "key",
        "phase",
        "progress",
        looked.alias("code"),
        any_hit.alias("hit"),
        pl.all_horizontal(f"beyond{i}" for i in numbers).alias("beyond"),
        *(expression.alias(name) for name, expression in told.items()),
    )


_TOLD: Final = {"value": "v", "threshold": "t", "worse": "worse"}


def _fires(frame: pl.DataFrame, rule: Rule) -> pl.Expr:
    looked = pl.col("code") == 0
    hit = looked & pl.col("hit")
    if rule.streak == 1 and not rule.keep:
        return hit
    end = looked & pl.col("beyond") & pl.col("hit").not_()
    hits = hit.cum_sum().cast(pl.Int64)
    # hits counted up to where the streak last began anew: at the series' first row, or where a value was beyond reset
    before = pl.when(end).then(hits).when(_first_of_series()).then(hits - hit.cast(pl.Int64)).forward_fill()
    streak = hits - before
    lasting = looked & pl.col("beyond").not_() if rule.keep else hit
    return (streak >= rule.streak) & (hit | lasting)


def _coverage(frame: pl.DataFrame, rule: Rule, readings: Readings) -> pl.DataFrame:
    texts = {0: "", **{code(reason): str(reason) for reason in REASONS}}
    texts |= {_FIRST_GATE + i: gate_reason(gate) for i, gate in enumerate(rule.unless)}
    counts = frame.group_by("run", "key", "code").agg(pl.len().cast(pl.Int64).alias("count"))
    series = frame.group_by("run", "key").agg(
        pl.col("update").min().alias("since"),
        pl.len().cast(pl.Int64).alias("rows"),
        (pl.col("code") == 0).sum().cast(pl.Int64).alias("evaluated"),
        pl.col("looked").last().alias("looked"),
    )
    spans = readings.updates.group_by("run").agg(
        pl.len().cast(pl.Int64).alias("updates"), pl.col("update").max().alias("last")
    )
    if rule.key is None:
        series = series.with_columns(pl.lit(1, pl.Int64).alias("since"))
    unseen = spans.join(series, on="run", how="anti").select(
        "run",
        pl.lit("").alias("key"),
        pl.lit(1, pl.Int64).alias("since"),
        pl.lit(0, pl.Int64).alias("rows"),
        pl.lit(0, pl.Int64).alias("evaluated"),
        pl.lit(0, pl.Int64).alias("looked"),
    )
    series = pl.concat([series.select(unseen.columns), unseen], how="vertical_relaxed").join(spans, on="run")
    later = (
        series.join(readings.updates.select("run", "update"), on="run")
        .filter(pl.col("update") >= pl.col("since"))
        .group_by("run", "key")
        .agg(pl.len().cast(pl.Int64).alias("there"))
        if rule.key is not None
        else series.select("run", "key", pl.col("updates").alias("there"))
    )
    series = series.join(later, on=["run", "key"], how="left").with_columns(pl.col("there").fill_null(0))
    absent = series.select("run", "key", (pl.col("there") - pl.col("rows")).alias("count"), _code(Reason.NOT_RECORDED))
    lost = series.select(
        "run", "key", (pl.col("last") - pl.col("since") + 1 - pl.col("there")).alias("count"), _code(Reason.GAP)
    )
    abstained = (
        pl.concat([counts.filter(pl.col("code") != 0).select(absent.columns), absent, lost], how="vertical_relaxed")
        .filter(pl.col("count") > 0)
        .group_by("run", "key", "code")
        .agg(pl.col("count").sum())
    )
    return (
        series.join(abstained, on=["run", "key"], how="left")
        .select(
            "run",
            pl.lit(rule.name).alias("rule"),
            "key",
            "evaluated",
            pl.col("code").fill_null(0).replace_strict(texts, return_dtype=pl.String).alias("reason"),
            pl.col("count").fill_null(0).alias("abstained"),
            "looked",
        )
        .sort("run", "key", "abstained", "reason", descending=[False, False, True, False])
    )


def _code(reason: Reason) -> pl.Expr:
    return pl.lit(code(reason), pl.UInt8).alias("code")
