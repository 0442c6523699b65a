"""The arguments of `esper replay` as values, and what the command narrates about a replay."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import polars as pl

from esper_analytics.detection.diff import diff, diff_with_live, live_alarms
from esper_analytics.detection.replay import Result, replay
from esper_analytics.detection.rules import load_rules
from esper_analytics.errors import UsageError
from esper_analytics.formatting import format_count, format_list
from esper_analytics.runs import Runs
from esper_recorder.contract.rules.overrides import Value, read_value
from esper_recorder.contract.rules.signal import Reason

LIVE: Final = "live"
_MOST_NAMES: Final = 6
"""Rules (with their keys, if these are not more) named in a line."""


def read_settings(settings: Iterable[str]) -> dict[str, Value]:
    """Parse the values of `--set RULE.FIELD=VALUE`. Raises UsageError for one without `=` or given twice."""
    values: dict[str, Value] = {}
    for setting in settings:
        path, _, value = map(str.strip, setting.partition("="))
        if not path or not value:
            raise UsageError(f"--set {setting} has no value. Write it as RULE.FIELD=VALUE: ratio_explosion.above=3.0.")
        if path in values:
            raise UsageError(f"--set {path} is given twice. Give it once.")
        values[path] = read_value(value)
    return values


def replay_for(
    runs: Runs,
    rules: str | None,
    settings: Iterable[str],
    against: str | None,
    view: str,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pl.DataFrame, Result]:
    """Return the table to print, `incidents`, `firings`, `coverage` or `diff`, and the result it comes from.

    Raises UsageError: an argument is invalid.
    """
    if view == "diff" and against is None:
        raise UsageError("--show diff needs something to compare with. Add --against live, or a profile, or a file.")
    values = read_settings(settings)
    # everything that can be refused is read before the replay, which may take minutes
    other_rules = None if against in (None, LIVE) else load_rules(str(against))
    alarms = live_alarms(runs) if against == LIVE else None
    result = replay(runs, rules, values=values, progress=progress)
    if view != "diff":
        frame: pl.DataFrame = getattr(result, view)
        return frame, result
    if alarms is not None:
        return diff_with_live(result, alarms), result
    return diff(replay(runs, other_rules, progress=progress), result), result


def narration(result: Result) -> Iterator[str]:
    """Say which rules the runs were evaluated with, and which rules were never evaluated, one line per finding."""
    runs_by_rules: dict[str, list[str]] = {}
    for run_id, rules in result.rules_by_run.items():
        runs_by_rules.setdefault(rules.sha256, []).append(run_id)
    for sha256, run_ids in runs_by_rules.items():
        rules = result.rules_by_run[run_ids[0]]
        changed = "".join(f", {path} = {value}" for path, value in rules.overrides.items())
        yield f"{_runs(run_ids)}: rules {rules.name} (sha256 {sha256[:12]}{changed})"
    without_table = pl.col("reason").str.contains(Reason.NO_TABLE, literal=True)
    # Runs share a line if they differ only in how often a rule had no data, which says little beside why.
    lines: dict[tuple[str, str], dict[str, str]] = {}
    never = result.never_evaluated
    grouped = never.filter(~without_table).group_by("run_id", "reason", maintain_order=True).agg("rule", "key")
    for run_id, reason, rule_names, keys in grouped.iter_rows():
        names = [f"{name}{{{key}}}" if key else name for name, key in zip(rule_names, keys, strict=True)]
        names = list(dict.fromkeys(rule_names)) if len(names) > _MOST_NAMES else names
        why = re.sub(r" \(\d+\)", "", reason)
        lines.setdefault((why, format_list(names, most=_MOST_NAMES)), {})[run_id] = reason
    for (why, listed), reasons in lines.items():
        exact = why if len(reasons) > 1 else next(iter(reasons.values()))
        yield f"{_runs(list(reasons))}: never evaluated ({exact}): {listed}"
    yield from _unrecorded_tables(result, never.filter(without_table))


def _unrecorded_tables(result: Result, never: pl.DataFrame) -> Iterator[str]:
    """One line for all runs that lack the same tables: how many rules read only these."""
    lines: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for run_id, names in never.group_by("run_id", maintain_order=True).agg(pl.col("rule").unique()).iter_rows():
        rules = [rule for rule in result.rules_by_run[run_id].rules if rule.name in names]
        tables = sorted({condition.signal.table for rule in rules for condition in rule.conditions})
        lines.setdefault((len(rules), tuple(tables)), []).append(run_id)
    for (rules_count, tables_), run_ids in lines.items():
        verb = "records" if len(run_ids) == 1 else "record"
        yield f"{_runs(run_ids)} {verb} no {' and no '.join(tables_)}: {format_count(rules_count, 'rule')} had no data"


def _runs(run_ids: list[str]) -> str:
    return run_ids[0] if len(run_ids) == 1 else f"{len(run_ids)} runs"
