"""A sweep: one number of one rule at many values, with the runs and updates that fire at each."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import polars as pl

from esper_analytics.detection.replay import replay
from esper_analytics.detection.rules import Rules, load_rules, with_values
from esper_analytics.errors import UsageError
from esper_analytics.runs import Runs
from esper_analytics.runs import open as open_runs
from esper_recorder.contract.rules.model import Rule, Test
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import UPDATE_TABLE
from esper_recorder.contract.suggest import suggest

SWEEP_COLUMNS: Final = {
    "value": pl.Float64,
    "runs": pl.Int64,
    "updates": pl.Int64,
    "updates_fraction": pl.Float64,
    "first_run_id": pl.String,
    "first_update": pl.Int64,
    "margin_min": pl.Float64,
    "margin_max": pl.Float64,
}

MOST_VALUES: Final = 100_000


def read_values(text: str) -> list[float]:
    """Parse `START:STOP:STEP` (STOP included if a step lands on it) or `a,b,c`. Raises UsageError."""
    try:
        parts = [float(part) for part in text.split(":" if ":" in text else ",")]
    except ValueError:
        parts = []
    if ":" not in text:
        if parts and not any(map(math.isnan, parts)):
            return parts
    elif len(parts) == 3 and all(map(math.isfinite, parts)) and parts[2] > 0 and parts[0] <= parts[1]:
        start, stop, step = parts
        # the slack counts a STOP that rounding puts just below the last step: 0:1:0.1
        count = math.floor((stop - start) / step * (1 + 1e-12) + 1e-9) + 1
        if count <= MOST_VALUES:
            return [start + place * step for place in range(count)]
        raise UsageError(f"--values {text} are {count:,} values; the limit is {MOST_VALUES:,}. Take a larger step.")
    raise UsageError(f"--values {text} is not understood. Write START:STOP:STEP with STEP above 0, or a,b,c.")


def sweep(
    runs: Runs | str | os.PathLike[str],
    rules: Rules,
    *,
    rule: str,
    field: str,
    values: Sequence[float],
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Replay one rule with each of many values of one of its numbers.

    A plain threshold costs one replay for all values; any other number costs one replay per value.

    Args:
        runs: the runs, or the folder that holds them.
        rules: a profile's name, a TOML file or a RuleSet.
        rule: name of the rule.
        field: the number to change, as in `RULE.FIELD` of `RuleSet.with_values`: `above`, `reset`, `drift.momentum`.
        values: the values, in any order.
        progress: called with the number of values done and the total.

    Returns:
        One row per value, in the given order: value; runs and updates that fire; updates_fraction, of all updates; run
        and update of the first firing (the smallest update, of equals the first run_id); margin_min and margin_max.
        A run's margin is how far its worst value lies beyond the threshold, negative if the rule does not fire;
        margin_min is the smallest over the runs with data and margin_max the largest. So every run fires if
        margin_min is positive, and none if margin_max is not. Margins are NULL without data, or if `field` is not a
        plain threshold.

    Raises:
        UsageError: unknown rules, rule or field, or an invalid value.
    """
    rule_set = load_rules(rules)
    runs = runs if isinstance(runs, Runs) else open_runs(runs)
    by_name = {candidate.name: candidate for candidate in rule_set.rules}
    if rule not in by_name:
        raise UsageError(f"There is no rule {rule!r} in {rule_set.name}. {suggest(rule, by_name, kind='rules')}")
    updates = sum(run.rows(UPDATE_TABLE) for run in runs.by_run({UPDATE_TABLE: ("update",)}))
    swept = by_name[rule]

    def fire(value: float) -> pl.DataFrame:
        changed = _only(with_values(rule_set, {f"{rule}.{field}": value}), swept)
        return replay(runs, changed).firings.filter(pl.col("rule") == rule)

    rows = []
    if _is_plain_threshold(swept, field):
        with_values(rule_set, {f"{rule}.{field}": value for value in values[:1]})  # refused here if it is not a number
        sign = 1.0 if field == Test.ABOVE else -1.0
        rows = _compare(fire(-sign * math.inf), sign, values)
        if progress is not None:
            progress(len(values), len(values))
    else:
        for done, value in enumerate(values, 1):
            fired = fire(value).select("update", "run_id").unique().sort("update", "run_id")
            update, run_id = fired.row(0) if fired.height else (None, None)
            rows.append((value, fired["run_id"].n_unique(), fired.height, run_id, update, None, None))
            if progress is not None:
                progress(done, len(values))
    names = [name for name in SWEEP_COLUMNS if name != "updates_fraction"]
    frame = pl.DataFrame(rows, schema={name: SWEEP_COLUMNS[name] for name in names}, orient="row")
    fraction = pl.col("updates") / updates if updates else pl.lit(None, pl.Float64)
    return frame.with_columns(fraction.alias("updates_fraction")).select(list(SWEEP_COLUMNS))


_Row = tuple[float, int, int, str | None, int | None, float | None, float | None]


def _is_plain_threshold(rule: Rule, field: str) -> bool:
    """Whether each update fires by its own value alone, compared with the number to change."""
    (first, *others) = rule.conditions
    stateless = rule.streak == 1 and not rule.keep and not others and first.reset is None
    return stateless and first.test is not Test.NONFINITE and field == str(first.test)


def _only(rules: RuleSet, rule: Rule) -> RuleSet:
    """Drop all rules but this one and the one that inhibits it."""
    kept = tuple(candidate for candidate in rules.rules if candidate.name in (rule.name, rule.inhibited_by))
    return dataclasses.replace(rules, rules=kept)


def _compare(firings: pl.DataFrame, sign: float, values: Sequence[float]) -> list[_Row]:
    """Compare values with the firings of a threshold that everything measured is beyond.

    Updates are sorted by their worst value, so those that fire at a threshold are a prefix of them, found by bisection.
    """
    by_update = firings.group_by("run_id", "update").agg((pl.col("value") * sign).max().alias("worst"))  # over its keys
    by_update = by_update.sort("worst", "update", "run_id", descending=[True, False, False])
    worst = by_update.get_column("worst").to_numpy()
    by_run = by_update.group_by("run_id").agg(pl.col("worst").max()).get_column("worst").sort().to_numpy()
    # of each prefix the earliest update: the smallest place in the order of time
    in_time = by_update.select(pl.arg_sort_by("update", "run_id")).to_series().to_numpy()
    earliest = in_time[np.minimum.accumulate(np.argsort(in_time))] if len(in_time) else in_time
    rows: list[_Row] = []
    for value in values:
        threshold = value * sign
        fired = int(np.searchsorted(-worst, -threshold, side="left"))
        runs = len(by_run) - int(np.searchsorted(by_run, threshold, side="right"))
        run_id, update, _ = by_update.row(int(earliest[fired - 1])) if fired else (None, None, None)
        margins = (float(by_run[0]) - threshold, float(by_run[-1]) - threshold) if len(by_run) else (None, None)
        rows.append((float(value), runs, fired, run_id, update, *margins))
    return rows
