"""What `esper replay` and `esper rules` do, as far as it is not printing."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Final

import polars as pl

from esper_analytics.detection.replay import Result, diff, live, load_rules, replay, since_live
from esper_analytics.errors import UsageError
from esper_analytics.runs import Runs
from esper_recorder.contract.rules.overrides import Value, read_value
from esper_recorder.contract.rules.ruleset import RuleError, Severity, load_profile, profiles
from esper_recorder.contract.rules.signal import Reason
from esper_recorder.contract.rules.unit_tests import read_tests
from esper_recorder.contract.suggest import suggest

LIVE: Final = "live"
_MOST_KEYS: Final = 6
"""Keys named one by one in a line; of more, the rules alone."""

WHATS: Final = ("incidents", "firings", "coverage", "diff")


def read_settings(settings: Iterable[str]) -> dict[str, Value]:
    """The values of `--set RULE.KEY=VALUE`. Raises UsageError for one without a `=`, or given twice."""
    values: dict[str, Value] = {}
    for setting in settings:
        path, equals, value = setting.partition("=")
        path = path.strip()
        if not equals or not path or not value.strip():
            raise UsageError(f"--set {setting} has no value. Write it as RULE.KEY=VALUE: ratio_explosion.above=3.0.")
        if path in values:
            raise UsageError(f"--set {path} is given twice. Give it once.")
        values[path] = read_value(value.strip())
    return values


def replay_for(
    runs: Runs,
    rules: str | None,
    settings: Iterable[str],
    against: str | None,
    what: str | None,
    progress: Callable[[int, int], None] | None = None,
) -> tuple[pl.DataFrame, Result]:
    """The table to print, and the whole result behind it.

    Raises UsageError: words of the call are off.
    """
    what = what or ("incidents" if against is None else "diff")
    if what not in WHATS:
        raise UsageError(f"--show {what} is not known. {suggest(what, WHATS, kind='views')}")
    if what == "diff" and against is None:
        raise UsageError("--show diff needs something to compare with. Add --against live, or a profile, or a file.")
    values = read_settings(settings)
    before_rules = None if against in (None, LIVE) else load_rules(str(against))
    alarms = live(runs) if against == LIVE else None
    result = replay(runs, rules, values=values, progress=progress)
    if what != "diff":
        tables: Mapping[str, pl.DataFrame] = {
            "incidents": result.incidents,
            "firings": result.firings,
            "coverage": result.coverage,
        }
        return tables[what], result
    if alarms is not None:
        return since_live(result, alarms), result
    return diff(replay(runs, before_rules, progress=progress), result), result


def narration(result: Result) -> Iterator[str]:
    """What to say beside the table: the rules that were held against, and those that never could look."""
    held: dict[str, list[str]] = {}
    for run_id, rules in result.rules_by_run.items():
        held.setdefault(rules.sha256, []).append(run_id)
    for sha256, run_ids in held.items():
        rules = result.rules_by_run[run_ids[0]]
        changed = "".join(f", {path} = {value}" for path, value in rules.overrides.items())
        runs = run_ids[0] if len(run_ids) == 1 else f"{len(run_ids)} runs"
        yield f"{runs}: rules {rules.name} (sha256 {sha256[:12]}{changed})"
    blind = result.blind
    unrecorded = pl.col("reason").str.contains(Reason.NO_TABLE, literal=True)
    alike: dict[tuple[str, str], dict[str, str]] = {}
    for run_id, reason, names, keys in _by_run(blind.filter(~unrecorded)):
        shown = list(dict.fromkeys(names)) if len(names) > _MOST_KEYS else _with_keys(names, keys)
        listed = ", ".join(shown[:6]) + (f" and {len(shown) - 6} more" if len(shown) > 6 else "")
        # How often it could not look differs from run to run, and says little beside why.
        alike.setdefault((re.sub(r" \(\d+\)", "", reason), listed), {})[run_id] = reason
    for (why, listed), reasons in alike.items():
        [(run_id, reason), *others] = reasons.items()
        runs, told = (f"{len(reasons)} runs", why) if others else (run_id, reason)
        yield f"{runs}: never could look ({told}): {listed}"
    yield from _unrecorded(result, blind.filter(unrecorded))


def _with_keys(names: Sequence[str], keys: Sequence[str]) -> list[str]:
    return [f"{name}{{{key}}}" if key else name for name, key in zip(names, keys, strict=True)]


def _by_run(blind: pl.DataFrame) -> Iterable[tuple[str, str, list[str], list[str]]]:
    return blind.group_by("run_id", "reason", maintain_order=True).agg("rule", pl.col("key")).iter_rows()


def _unrecorded(result: Result, blind: pl.DataFrame) -> Iterator[str]:
    """A line for the runs that record the same tables: how many rules read none of them, and so say nothing."""
    alike: dict[tuple[int, tuple[str, ...]], list[str]] = {}
    for run_id, names in blind.group_by("run_id", maintain_order=True).agg(pl.col("rule").unique()).iter_rows():
        rules = [rule for rule in result.rules_by_run[run_id].rules if rule.name in names]
        tables = sorted({condition.signal.table for rule in rules for condition in rule.conditions})
        alike.setdefault((len(rules), tuple(tables)), []).append(run_id)
    for (rules_count, unrecorded), run_ids in alike.items():
        runs, records = (run_ids[0], "records") if len(run_ids) == 1 else (f"{len(run_ids)} runs", "record")
        rules_say = "1 rule on that says" if rules_count == 1 else f"{rules_count} rules on that say"
        yield f"{runs} {records} no {' and no '.join(unrecorded)}: the {rules_say} nothing"


def meets(result: Result, severity: Severity) -> bool:
    """There is an incident of this severity or a worse one."""
    worst = result.worst()
    return worst is not None and worst.rank >= severity.rank


def profiles_frame() -> pl.DataFrame:
    """A row per shipped profile: profile, rules, tests, sha256, description."""
    rows = []
    for name in profiles():
        rules = load_profile(name)
        description = " ".join(rules.description.split())
        rows.append((name, len(rules.rules), len(rules.tests), rules.sha256, description))
    names = ("profile", "rules", "tests", "sha256", "description")
    return pl.DataFrame(rows, schema=names, orient="row")


def check_frame(rules: str) -> pl.DataFrame:
    """A row per unit test of a file (or profile): test, passed, problem.

    Raises UsageError: there is no such file, or it or a test in it is off.
    """
    loaded = load_rules(rules)
    try:
        tests = read_tests(loaded)
    except RuleError as error:
        raise UsageError(f"{error}.") from error
    rows = [(test.name, not problems, "; ".join(problems)) for test in tests for problems in [test.run(loaded)]]
    return pl.DataFrame(rows, schema={"test": pl.String, "passed": pl.Boolean, "problem": pl.String}, orient="row")
