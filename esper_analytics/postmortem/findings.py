"""What a report says, as data: drawn from a replay and the runs it looked at, before any page is written.

`findings` answers, for each run and in the order a person asks: what broke first, which incidents there were, what
other thresholds change, what the worst transitions were, what could not be judged, and what the recording lacks.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Set
from typing import Any, Literal

import polars as pl

from esper_analytics.detection.diff import diff, diff_with_live, live_alarms, runs_without_rules
from esper_analytics.detection.replay import Result
from esper_analytics.formatting import (
    format_count,
    format_duration,
    format_list,
    format_number,
    format_time,
    format_value,
)
from esper_analytics.plots.figures import RunFrames, short_names
from esper_analytics.postmortem.caveats import doubts_of, told_of
from esper_analytics.postmortem.exemplars import worst_transitions
from esper_analytics.postmortem.grouping import differing, grouped
from esper_analytics.postmortem.model import Difference, Doubt, Findings, FirstFiring, Incident, RunFindings, Unjudged
from esper_analytics.postmortem.notices import not_compared
from esper_analytics.postmortem.recording import ending_of, recording_state
from esper_analytics.postmortem.rules_used import evidence_of, in_words, rules_name, unchanged
from esper_analytics.postmortem.verdict import verdict
from esper_recorder.contract.rules.model import Condition, Rule, Severity, Test
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import UPDATE_TABLE, Reason
from esper_recorder.contract.tables import columns
from esper_recorder.storage.traces import traces_of

Against = Result | Literal["live"]


def findings(result: Result, against: Against | None = None) -> Findings:
    """Draw the findings from a replay.

    Args:
        result: the replay.
        against: another replay of the same runs, or `live`: the alarms the runs raised themselves.
    """
    changed = None
    if against is not None:
        changed = diff_with_live(result, live_alarms(result.runs)) if against == "live" else diff(against, result)
    listing = {row["run_id"]: row for row in result.runs.table("runs").collect().iter_rows(named=True)}
    names = Counter(row["name"] for row in listing.values())
    labels = short_names({run_id: row["name"] for run_id, row in listing.items()})
    doubts = doubts_of(result.runs)
    alone = set(runs_without_rules(result.runs)) if against == "live" else set()
    found = []
    for run_id, rules in result.rules_by_run.items():
        row = listing[run_id]
        name = row["name"] if names[row["name"]] == 1 else run_id
        own = told_of(doubts.get(run_id, ()), rules)
        found.append(_of_run(result, run_id, (name, labels[run_id]), row, rules, changed, own, run_id not in alone))
    order = sorted(found, key=_badness, reverse=True)
    problems = [problem.told for problem in result.runs.problems]
    problems += not_compared(result.runs) if against == "live" else ()
    return Findings(order, _name_of(against), differing(order), problems)


def _badness(run: RunFindings) -> tuple[bool, int]:
    return run.broken, -1 if run.severity is None else Severity(run.severity).rank


def _of_run(
    result: Result,
    run_id: str,
    names: tuple[str, str],
    row: Mapping[str, Any],
    rules: RuleSet,
    changed: pl.DataFrame | None,
    doubts: list[Doubt],
    compared: bool,
) -> RunFindings:
    runs, (name, label) = result.runs[run_id], names
    manifest = result.runs.manifest(run_id)
    incidents = result.incidents.filter(pl.col("run_id") == run_id)
    frames = RunFrames(
        name=name,
        label=label,
        updates=runs.table("ppo_updates").collect(),
        episodes=runs.table("episodes").collect(),
        incidents=incidents,
        rules=rules,
    )
    frame = frames.frame
    by_name = {rule.name: rule for rule in rules.rules}
    firings = result.firings.filter(pl.col("run_id") == run_id)
    base = unchanged(rules, result, run_id)
    evidence = {rule.name: evidence_of(rule, rules, base) for rule in rules.rules}
    first = _first(firings, by_name, evidence)
    after = _Later(frame, firings, by_name)
    found = [_incident(one, by_name, row["updates"], after) for one in incidents.iter_rows(named=True)]
    unread, partly = _coverage(result.coverage.filter(pl.col("run_id") == run_id), by_name, frame)
    ending = ending_of(row["ended"], manifest)
    severities = [Severity(incident.severity) for incident in found]
    worst = max(severities, key=lambda s: s.rank, default=None)
    ran_with = result.ran_with[run_id]
    last = frame.tail(1).to_dicts()[0] if frame.height else {}
    returns = frame.get_column("episode_return").drop_nulls() if "episode_return" in frame.columns else pl.Series([])
    return RunFindings(
        run_id=run_id,
        name=name,
        verdict=verdict(frame.height, row["updates"], ending, first, found, unread, len(rules.rules), doubts),
        severity=None if worst is None else str(worst),
        ended=ending.how,
        error=ending.error,
        state=recording_state(runs, manifest, row, frame, ending),
        complete=row["complete"],
        updates=row["updates"],
        steps=last.get("step"),
        progress=row["progress"],
        last_return=returns.item(-1) if len(returns) else None,
        trainer=row["trainer"] or "not told",
        started=format_time(row["started"]),
        duration=format_duration(last.get("elapsed_s") if row["attempts"] == 1 else None),
        first=first,
        incidents=found,
        grouped=grouped(found, by_name),
        unread=unread,
        partly=partly,
        doubts=doubts,
        rules_count=len(rules.rules),
        exemplars=worst_transitions(runs, found, by_name, firings),
        differences=_differences(changed, run_id),
        compared=compared,
        config=_texts(manifest.config) if isinstance(manifest.config, Mapping) else {},
        versions=_texts(manifest.versions),
        host=manifest.host or "not told",
        platform=manifest.platform or "not told",
        level=manifest.level or "not told",
        definition=manifest.definition or "not told",
        rules=rules.name,
        rules_sha256=rules.sha256,
        held_against=in_words(rules, base),
        overrides=_texts(rules.overrides),
        ran_with=_ran_with(ran_with, rules),
        traces=[str(result.runs.folder(run_id) / trace) for trace in traces_of(result.runs.folder(run_id))],
        ending=ending,
        frames=frames,
    )


# --- what broke -----------------------------------------------------------------------------------------------------


def _first(firings: pl.DataFrame, rules: Mapping[str, Rule], evidence: Mapping[str, str]) -> list[FirstFiring]:
    """The first firing of each rule, in the order of time; of one update the severest first."""
    found: dict[str, FirstFiring] = {}
    fired = set(firings.get_column("rule").unique())
    for row in firings.sort("update", maintain_order=True).iter_rows(named=True):
        known = found.get(row["rule"])
        if known is not None:
            if known.update == row["update"] and row["key"]:
                known.keys.append(row["key"])
            continue
        rule = rules[row["rule"]]
        found[row["rule"]] = FirstFiring(
            update=row["update"],
            progress=row["progress"],
            phase=row["phase"],
            rule=rule.name,
            keys=[row["key"]] if row["key"] else [],
            severity=row["severity"],
            reads=_reads(rule),
            comparison=_comparison(rule, row["value"], row["threshold"]),
            value=row["value"],
            threshold=row["threshold"],
            evidence=evidence[rule.name],
            note=_silence(rule, rules, fired),
        )
    return sorted(found.values(), key=lambda f: (f.update, -Severity(f.severity).rank))


def _silence(rule: Rule, rules: Mapping[str, Rule], fired: Set[str]) -> str:
    """Which rule is silent where another fires; told at the other where it never fired itself."""
    if rule.inhibited_by in fired:
        return f"{rule.name} stays silent while {rule.inhibited_by} fires."
    milder = [one.name for one in rules.values() if one.inhibited_by == rule.name and one.name not in fired]
    return (
        f"{format_list(milder)} stay{'s' if len(milder) == 1 else ''} silent while {rule.name} fires." if milder else ""
    )


class _Later:
    """Whether the rule that silences another took over right after it."""

    def __init__(self, frame: pl.DataFrame, firings: pl.DataFrame, rules: Mapping[str, Rule]) -> None:
        self._updates = frame.get_column("update").to_list()
        above = {rule.inhibited_by for rule in rules.values()} - {None}
        own = firings.filter(pl.col("rule").is_in(sorted(str(name) for name in above)))
        self._fired = set(own.select("rule", "key", "update").iter_rows())

    def took_over(self, rule: Rule, key: str, last: int) -> str | None:
        """The rule that fired at the next update."""
        following = next((update for update in self._updates if update > last), None)
        return rule.inhibited_by if (rule.inhibited_by, key, following) in self._fired else None


def _incident(row: Mapping[str, Any], rules: Mapping[str, Rule], last: int, later: _Later) -> Incident:
    values = {name: row[name] for name in row if name != "run_id"}
    rule = rules[row["rule"]]
    comparison = _comparison(rule, row["peak_value"], row["threshold"])
    outcome = "firing at the end" if row["last_update"] >= last else "not known: not looked at again"
    if other := later.took_over(rule, row["key"], row["last_update"]):
        outcome = f"gave way to {other}"
    elif row["recovered"]:
        outcome = "no longer firing"
    return Incident(**values, comparison=comparison, outcome=outcome)


def _reads(rule: Rule) -> str:
    """What a rule looks at: `ratio_max`, `drift of grad_norm`."""
    return " or ".join(dict.fromkeys(_signal(condition) for condition in rule.conditions))


def _signal(condition: Condition) -> str:
    name = condition.signal.describe().removeprefix("ppo_updates.").removeprefix("ppo_updates: ")
    if condition.drift is not None:
        return f"drift of {name}"
    if condition.rolling is not None:
        return f"{condition.rolling.trend} of {name} by its mean over {condition.rolling.window}"
    return f"step of {name}" if condition.step else name


def _comparison(rule: Rule, value: float | None, threshold: float | None) -> str:
    """`9.35 > 5`; the sign is that of the rule's comparison, not of the numbers."""
    tests = {condition.test for condition in rule.conditions}
    if threshold is None or tests == {Test.NONFINITE}:
        return format_number(value) if value is not None else "not finite"
    if tests - {Test.NONFINITE} == {Test.ABOVE}:
        sign = ">"
    elif tests - {Test.NONFINITE} == {Test.BELOW}:
        sign = "<"
    else:
        sign = "against"
    # A rule that is kept after it fired goes on at values that are no longer beyond the threshold.
    beyond = value is not None and ((sign == ">" and value > threshold) or (sign == "<" and value < threshold))
    return f"{format_number(value)} {sign if beyond else 'against'} {format_number(threshold)}"


# --- what could not be judged, and what is missing ------------------------------------------------------------------


def _coverage(
    coverage: pl.DataFrame, rules: Mapping[str, Rule], frame: pl.DataFrame
) -> tuple[list[Unjudged], list[Unjudged]]:
    """(rules that never could look, those that could not always), in the order of the rules."""
    found = []
    looked = dict(coverage.group_by("rule").agg(pl.col("evaluated").sum()).iter_rows())
    for (name, reason), rows in coverage.filter(pl.col("reason") != "").group_by("rule", "reason", maintain_order=True):
        rule = rules[str(name)]
        words, calm = (str(reason), False) if looked[rule.name] else _why_never(rule, str(reason), frame)
        found.append(
            Unjudged(
                rule=rule.name,
                keys=[key for key in rows.get_column("key") if key],
                severity=str(rule.severity),
                reads=_reads(rule),
                evaluated=int(rows.get_column("evaluated").sum()),
                abstained=int(rows.get_column("abstained").sum()),
                reason=words,
                calm=calm,
            )
        )
    place = {name: i for i, name in enumerate(rules)}
    found.sort(key=lambda one: place[one.rule])
    return [one for one in found if not looked[one.rule]], [one for one in found if looked[one.rule]]


def _why_never(rule: Rule, reason: str, frame: pl.DataFrame) -> tuple[str, bool]:
    """Why a rule never could look, and whether that is as it should be."""
    if Reason.NO_TABLE in reason:
        return reason, True
    if re.fullmatch(rf"{Reason.WARMING_UP}( \(\d+\))?", reason) and frame.height:
        return f"{reason}: {format_count(frame.height, 'update')} in the run are too few for it", True
    if not reason.startswith(Reason.NOT_MEASURED) or not _measured(frame, "entropy"):
        return reason, False
    declared = {column.name: column for column in columns(UPDATE_TABLE)}
    for condition in rule.conditions:
        for name in condition.signal.inputs if condition.signal.table == UPDATE_TABLE else ():
            null = declared[name].null if name in declared else ""
            if "not applicable to continuous actions" not in null or _measured(frame, name):
                return reason, False
            reason = f"not applicable or not measured; what NULL in {name} means: {null}"
    return reason, reason.startswith("not applicable or")


def _measured(frame: pl.DataFrame, column: str) -> bool:
    return column in frame.columns and frame.get_column(column).null_count() < frame.height


# --- what it was held against ---------------------------------------------------------------------------------------


def _differences(changed: pl.DataFrame | None, run_id: str) -> list[Difference]:
    if changed is None:
        return []
    rows = (
        changed.filter(pl.col("run_id") == run_id)
        .group_by("rule", "key", "change", maintain_order=True)
        .agg(
            pl.col("update").n_unique().alias("updates"),
            pl.col("update").min().alias("first_update"),
            pl.col("update").max().alias("last_update"),
        )
    )
    return [Difference(**row) for row in rows.iter_rows(named=True)]


def _name_of(against: Against | None) -> str | None:
    if against is None:
        return None
    if against == "live":
        return "the alarms the runs raised themselves"
    names = {rules_name(rules) for rules in against.rules_by_run.values()}
    return format_list(sorted(names))


def _ran_with(ran_with: tuple[str | None, str] | None, rules: RuleSet) -> str:
    if ran_with is None:
        return "The run itself ran without rules."
    profile, sha256 = ran_with
    if sha256 == rules.sha256:
        return f"The run itself ran with the same rules ({profile})."
    return f"The run itself ran with other rules: {profile}, sha256 {sha256}."


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): format_value(value, "none") for key, value in values.items()}
