"""One threshold at many values: how many runs and updates fire at each, and how far the runs are from it."""

from __future__ import annotations

import dataclasses
import math
import os
from collections.abc import Callable, Sequence
from typing import Final

import numpy as np
import polars as pl

from esper_analytics.detection.replay import Rules, load_rules, replay
from esper_analytics.errors import UsageError
from esper_analytics.runs import Runs
from esper_analytics.runs import open as open_runs
from esper_recorder.contract.rules.model import Rule, Test
from esper_recorder.contract.rules.ruleset import RuleError, RuleSet
from esper_recorder.contract.suggest import suggest

SWEEP_COLUMNS: Final = {
    "value": pl.Float64,
    "runs": pl.Int64,
    "updates": pl.Int64,
    "share": pl.Float64,
    "first_run_id": pl.String,
    "first_update": pl.Int64,
    "margin_healthiest": pl.Float64,
    "margin_sickest": pl.Float64,
}

_MOST: Final = 100_000


def read_values(text: str) -> list[float]:
    """`START:STOP:STEP` (STOP included where a step meets it) or `a,b,c`. Raises UsageError."""
    try:
        parts = [float(part) for part in text.split(":" if ":" in text else ",")]
    except ValueError:
        parts = []
    if ":" not in text:
        if parts and not any(map(math.isnan, parts)):
            return parts
    elif len(parts) == 3 and all(map(math.isfinite, parts)) and parts[2] > 0 and parts[0] <= parts[1]:
        start, stop, step = parts
        count = math.floor((stop - start) / step * (1 + 1e-12) + 1e-9) + 1
        if count <= _MOST:
            return [start + place * step for place in range(count)]
        raise UsageError(f"--values {text} are {count:,} values. Take a larger step: at most {_MOST:,} are tried.")
    raise UsageError(f"--values {text} is not understood. Write START:STOP:STEP with STEP above 0, or a,b,c.")


def sweep(
    runs: Runs | str | os.PathLike[str],
    rules: Rules,
    *,
    rule: str,
    key: str,
    values: Sequence[float],
    progress: Callable[[int, int], None] | None = None,
) -> pl.DataFrame:
    """Replay one rule with each of many values of one of its numbers.

    Without a streak the signal is evaluated once and every value is held against it; otherwise each value is a replay
    of that rule.

    Args:
        runs: the runs, or the folder that holds them.
        rules: a profile's name, a TOML file or a RuleSet.
        rule: name of the rule.
        key: what is changed, as in `RULE.KEY` of `RuleSet.with_values`: `above`, `reset`, `drift.momentum`, ...
        values: the values, in any order.
        progress: called with the values done and the values to do.

    Returns:
        A row per value, in their order: value; runs and updates that fire; share of all updates; the run and update
        of the first firing (the smallest update, the first run_id of equals). Where `key` is the threshold itself,
        margin_healthiest and margin_sickest say how far the worst value of the healthiest and of the sickest run is
        beyond it: negative where it does not fire. NULL where nothing could be looked at, or `key` is no threshold.

    Raises:
        UsageError: unknown rules, rule or key, or a value that cannot be used.
    """
    loaded = load_rules(rules)
    runs = runs if isinstance(runs, Runs) else open_runs(runs)
    named = {one.name: one for one in loaded.rules}
    if rule not in named:
        raise UsageError(f"There is no rule {rule!r} in {loaded.name}. {suggest(rule, named, kind='rules')}")
    total = sum(run.rows("ppo_updates") for run in runs.by_run({"ppo_updates": ("update",)}))
    chosen = named[rule]
    if _at_once(chosen, key):
        rows = _held_against(runs, loaded, chosen, key, values, total)
        if progress is not None:
            progress(len(values), len(values))
    else:
        rows = []
        for done, value in enumerate(values, 1):
            firings = replay(runs, _only(_changed(loaded, rule, key, value), chosen)).firings
            rows.append(_row(value, firings.filter(pl.col("rule") == rule), total))
            if progress is not None:
                progress(done, len(values))
    return pl.DataFrame(rows, schema=SWEEP_COLUMNS, orient="row")


Row = tuple[float, int, int, float | None, str | None, int | None, float | None, float | None]


def _at_once(rule: Rule, key: str) -> bool:
    """Whether each update fires or not by its own value alone, held against the number that is changed."""
    (first, *others) = rule.conditions
    plain = rule.streak == 1 and not rule.keep and not others and first.reset is None
    return plain and first.test is not Test.NONFINITE and key == str(first.test)


def _changed(rules: RuleSet, rule: str, key: str, value: float) -> RuleSet:
    try:
        return rules.with_values({f"{rule}.{key}": value})
    except RuleError as error:
        raise UsageError(f"{error}.") from error


def _only(rules: RuleSet, rule: Rule) -> RuleSet:
    """The rule alone, and the one that it yields to."""
    kept = tuple(one for one in rules.rules if one.name in (rule.name, rule.yields_to))
    return dataclasses.replace(rules, content=dataclasses.replace(rules.content, rules=kept))


def _held_against(runs: Runs, rules: RuleSet, rule: Rule, key: str, values: Sequence[float], total: int) -> list[Row]:
    """Every value of the signal once, sorted; a threshold divides those that fire from the others."""
    up = rule.conditions[0].test is Test.ABOVE
    sign = 1.0 if up else -1.0
    for value in values:
        _changed(rules, rule.name, key, value)
        break
    open_ = _only(_changed(rules, rule.name, key, -math.inf if up else math.inf), rule)
    firings = replay(runs, open_).firings.filter(pl.col("rule") == rule.name)
    # an update fires where the worst of its keys does
    worst = (
        firings.with_columns((pl.col("value") * sign).alias("worst"))
        .group_by("run_id", "update")
        .agg(pl.col("worst").max())
        .sort("worst", "update", "run_id", descending=[True, False, False])
    )
    levels = worst.get_column("worst").to_numpy()
    by_run = worst.group_by("run_id").agg(pl.col("worst").max()).get_column("worst").sort().to_numpy()
    order = pl.DataFrame({"update": worst["update"], "run_id": worst["run_id"]}).with_row_index("at")
    rank = order.sort("update", "run_id").with_row_index("rank").sort("at").get_column("rank").to_numpy()
    earliest = np.minimum.accumulate(rank) if len(rank) else rank
    first = order.sort("update", "run_id")
    rows: list[Row] = []
    for value in values:
        fired = int(np.searchsorted(-levels, -(value * sign), side="left"))
        ran = len(by_run) - int(np.searchsorted(by_run, value * sign, side="right"))
        run_id = update = None
        if fired:
            update, run_id = first.row(int(earliest[fired - 1]))[1:]
        margins = (float(by_run[0]) - value * sign, float(by_run[-1]) - value * sign) if len(by_run) else (None, None)
        rows.append((float(value), ran, fired, fired / total if total else None, run_id, update, *margins))
    return rows


def _row(value: float, firings: pl.DataFrame, total: int) -> Row:
    updates = firings.select("update", "run_id").unique().sort("update", "run_id")
    update, run_id = updates.row(0) if updates.height else (None, None)
    share = updates.height / total if total else None
    return float(value), updates["run_id"].n_unique(), updates.height, share, run_id, update, None, None
