"""What a report says, as data: drawn from a replay and its runs before any page is written.

`findings` answers, for each run and in the order a person asks: what failed first, which incidents there were, what
other thresholds change, what the worst transitions were, which rules had no data, and what the recording lacks.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise
from typing import Any, Literal

import polars as pl

from esper_analytics.detection.diff import diff, diff_with_live, live_alarms, runs_without_rules
from esper_analytics.detection.replay import Result
from esper_analytics.errors import DataError
from esper_analytics.formatting import (
    format_count,
    format_duration,
    format_list,
    format_number,
    format_time,
    format_value,
)
from esper_analytics.plots.run_frames import RunFrames, short_names
from esper_analytics.postmortem.caveats import read_caveats
from esper_analytics.postmortem.exemplars import worst_transitions
from esper_analytics.postmortem.model import Findings, FirstFiring, Incident, IncidentGroup, RuleCoverage, RunFindings
from esper_analytics.postmortem.recording import describe_not_compared, describe_recording, ending_of
from esper_analytics.postmortem.verdict import verdict
from esper_analytics.runs import Runs
from esper_recorder.contract.rules.describe import describe_comparison, describe_inputs, describe_value
from esper_recorder.contract.rules.model import Rule, Severity, Test
from esper_recorder.contract.rules.ruleset import RuleError, RuleSet, load_profile, profiles
from esper_recorder.contract.rules.signal import UPDATE_TABLE, Reason
from esper_recorder.contract.tables import columns
from esper_recorder.storage.traces import traces_of

Against = Result | Literal["live"]

NOT_RECORDED = "not recorded"


def findings(result: Result, against: Against | None = None) -> Findings:
    """Draw the findings from a replay.

    Args:
        result: the replay.
        against: another replay of the same runs, or `live`: the alarms the runs raised themselves.
    """
    changes: pl.DataFrame | None = None
    not_compared: set[str] = set()
    if against == "live":
        changes, not_compared = diff_with_live(result, live_alarms(result.runs)), set(runs_without_rules(result.runs))
    elif against is not None:
        changes = diff(against, result)
    listing = {row["run_id"]: row for row in result.runs.table("runs").collect().iter_rows(named=True)}
    names = short_names({run_id: row["name"] for run_id, row in listing.items()})
    caveats = read_caveats(result.runs, result.rules_by_run)
    runs = []
    for run_id in result.rules_by_run:
        run = replace(
            _run_findings(result, names[run_id], listing[run_id]),
            caveats=caveats[run_id],
            differences=[] if changes is None else _differences(changes.filter(pl.col("run_id") == run_id)),
            compared=run_id not in not_compared,
        )
        runs.append(replace(run, verdict=verdict(run)))
    runs.sort(key=lambda run: (run.failed, -1 if run.severity is None else Severity(run.severity).rank), reverse=True)
    problems = [problem.message for problem in result.runs.problems]
    problems += describe_not_compared(result.runs) if against == "live" else ()
    return Findings(runs, _against_text(against), _differing_settings(runs), problems)


def run_frames(runs: Runs, run_id: str, name: str, result: Result | None = None) -> RunFrames:
    """Read what the figures of one run are drawn from, with the incidents of a replay if there is one."""
    run = runs[run_id]
    return RunFrames(
        name=name,
        updates=run.table("ppo_updates").collect(),
        episodes=run.table("episodes").collect(),
        incidents=None if result is None else result.incidents.filter(pl.col("run_id") == run_id),
        rules=None if result is None else result.rules_by_run[run_id],
    )


def _run_findings(result: Result, name: str, row: Mapping[str, Any]) -> RunFindings:
    """Everything about one run but its verdict, its caveats and what other rules change."""
    run_id = row["run_id"]
    runs, manifest, rules = result.runs[run_id], result.runs.manifest(run_id), result.rules_by_run[run_id]
    frames = run_frames(result.runs, run_id, name, result)
    frame = frames.frame
    by_name = {rule.name: rule for rule in rules.rules}
    of_run = pl.col("run_id") == run_id
    firings = result.firings.filter(of_run)
    base = _base_rules(rules, result, run_id)
    evidence = {rule.name: _evidence_of(rule, rules, base) for rule in rules.rules}
    incidents = _incidents(result.incidents.filter(of_run), firings, by_name, frame, row["updates"])
    never, partly = _coverage(result.coverage.filter(of_run), by_name, frame)
    ending = ending_of(row["ended"], manifest)
    worst = max((Severity(incident.severity) for incident in incidents), key=lambda s: s.rank, default=None)
    last = frame.tail(1).to_dicts()[0] if frame.height else {}
    returns = frame.get_column("episode_return").drop_nulls() if "episode_return" in frame.columns else pl.Series([])
    folder = result.runs.folder(run_id)
    return RunFindings(
        run_id=run_id,
        name=name,
        severity=None if worst is None else str(worst),
        ended=ending.how,
        error=ending.error,
        recording=describe_recording(runs, row, frames.updates),
        complete=row["complete"],
        updates=row["updates"],
        steps=last.get("step"),
        progress=row["progress"],
        last_return=returns.item(-1) if len(returns) else None,
        trainer=row["trainer"] or NOT_RECORDED,
        started=format_time(row["started"]),
        duration=format_duration(last.get("elapsed_s") if row["attempts"] == 1 else None),
        first_firings=_first_firings(firings, by_name, evidence),
        incidents=incidents,
        grouped=_group(incidents, by_name),
        never_evaluated=never,
        partly_evaluated=partly,
        rules_count=len(rules.rules),
        exemplars=worst_transitions(runs, incidents, by_name, firings),
        config=_texts(manifest.config) if isinstance(manifest.config, Mapping) else {},
        versions=_texts(manifest.versions),
        host=manifest.host or NOT_RECORDED,
        platform=manifest.platform or NOT_RECORDED,
        level=manifest.level or NOT_RECORDED,
        definition=manifest.definition or NOT_RECORDED,
        rules=rules.name,
        rules_sha256=rules.sha256,
        evaluated_with=_describe_rules(rules, base),
        overrides=_texts(rules.overrides),
        recorded_with=_recorded_with(result.ran_with[run_id], rules),
        traces=[str(folder / trace) for trace in traces_of(folder)],
        ending=ending,
        frames=frames,
    )


# --- what failed ------------------------------------------------------------------------------------------------------


def _first_firings(firings: pl.DataFrame, rules: Mapping[str, Rule], evidence: Mapping[str, str]) -> list[FirstFiring]:
    """The first firing of each rule by update; within an update the most severe first."""
    first: dict[str, FirstFiring] = {}
    fired = set(firings.get_column("rule").unique())
    for row in firings.sort("update", maintain_order=True).iter_rows(named=True):
        rule = rules[row["rule"]]
        if rule.name in first:
            if first[rule.name].update == row["update"] and row["key"]:
                first[rule.name].keys.append(row["key"])
            continue
        first[rule.name] = FirstFiring(
            update=row["update"],
            progress=row["progress"],
            phase=row["phase"],
            rule=rule.name,
            keys=[row["key"]] if row["key"] else [],
            severity=row["severity"],
            reads=describe_inputs(rule),
            comparison=describe_comparison(rule, row["value"], row["threshold"], format_number),
            value=row["value"],
            threshold=row["threshold"],
            evidence=evidence[rule.name],
            note=_inhibition(rule, rules.values(), fired),
        )
    return sorted(first.values(), key=lambda firing: (firing.update, -Severity(firing.severity).rank))


def _inhibition(rule: Rule, rules: Iterable[Rule], fired: Set[str]) -> str:
    """Return a note on inhibition, for the inhibited rule, or for the inhibiting one if the other never fired."""
    if rule.inhibited_by in fired:
        return f"{rule.name} is inhibited while {rule.inhibited_by} fires."
    inhibited = [other.name for other in rules if other.inhibited_by == rule.name and other.name not in fired]
    is_are = "is" if len(inhibited) == 1 else "are"
    return f"{format_list(inhibited)} {is_are} inhibited while {rule.name} fires." if inhibited else ""


def _incidents(
    incidents: pl.DataFrame, firings: pl.DataFrame, rules: Mapping[str, Rule], frame: pl.DataFrame, last: int
) -> list[Incident]:
    following = dict(pairwise(frame.get_column("update")))
    fired = set(firings.select("rule", "key", "update").iter_rows())
    described = []
    for row in incidents.drop("run_id").iter_rows(named=True):
        rule = rules[row["rule"]]
        outcome = "firing at the end" if row["last_update"] >= last else "unknown: not evaluated again"
        if (rule.inhibited_by, row["key"], following.get(row["last_update"])) in fired:
            outcome = f"inhibited by {rule.inhibited_by}"
        elif row["recovered"]:
            outcome = "recovered"
        comparison = describe_comparison(rule, row["peak_value"], row["threshold"], format_number)
        described.append(Incident(**row, comparison=comparison, outcome=outcome))
    return described


def _group(incidents: Sequence[Incident], rules: Mapping[str, Rule]) -> list[IncidentGroup]:
    """Fold incidents of one rule with the same onset, end, firings and outcome for several keys into one."""
    groups: dict[tuple[Any, ...], list[Incident]] = {}
    for i in incidents:
        course = (i.rule, i.severity, i.onset_update, i.last_update, i.updates, i.threshold, i.outcome)
        groups.setdefault(course, []).append(i)
    folded = []
    for group in groups.values():
        rule = rules[group[0].rule]
        keys = [incident.key for incident in group if incident.key]
        what = f"{len(keys)} {rule.key or 'key'}s" if len(keys) > 1 else ""
        folded.append(IncidentGroup(_worst_peak(group, rule), keys, what))
    return folded


def _worst_peak(group: Sequence[Incident], rule: Rule) -> Incident:
    """The incident whose peak is furthest beyond the threshold; the first if the peaks do not compare."""
    finite = [i for i in group if i.peak_value is not None and i.peak_value == i.peak_value]  # NaN is not itself
    tests = {condition.test for condition in rule.conditions}
    if not finite or len(tests) != 1:
        return group[0]
    choose = min if Test.BELOW in tests else max
    return choose(finite, key=lambda incident: incident.peak_value or 0.0)


# --- which rules had no data ------------------------------------------------------------------------------------------


def _coverage(
    coverage: pl.DataFrame, rules: Mapping[str, Rule], frame: pl.DataFrame
) -> tuple[list[RuleCoverage], list[RuleCoverage]]:
    """Return (rules never evaluated, rules evaluated at some updates but not all), in the order of the rules."""
    never: list[RuleCoverage] = []
    partly: list[RuleCoverage] = []
    evaluated = dict(coverage.group_by("rule").agg(pl.col("evaluated").sum()).iter_rows())
    groups = coverage.filter(pl.col("reason") != "").group_by("rule", "reason", maintain_order=True)
    place = {name: i for i, name in enumerate(rules)}
    for (name, reason), rows in sorted(groups, key=lambda group: place[str(group[0][0])]):
        rule = rules[str(name)]
        text, expected = (str(reason), False) if evaluated[name] else _why_never(rule, str(reason), frame)
        (partly if evaluated[name] else never).append(
            RuleCoverage(
                rule=rule.name,
                keys=[key for key in rows["key"] if key],
                severity=str(rule.severity),
                reads=describe_inputs(rule),
                evaluated=int(rows["evaluated"].sum()),
                abstained=int(rows["abstained"].sum()),
                reason=text,
                expected=expected,
            )
        )
    return never, partly


def _why_never(rule: Rule, reason: str, frame: pl.DataFrame) -> tuple[str, bool]:
    """Why a rule was never evaluated, and whether that is expected of this run."""
    if Reason.NO_TABLE in reason:
        return reason, True
    if re.fullmatch(rf"{Reason.WARMING_UP}( \(\d+\))?", reason) and frame.height:
        return f"{reason}: the run is too short, with {format_count(frame.height, 'update')}", True
    if not reason.startswith(Reason.NOT_MEASURED) or not _measured(frame, "entropy"):
        return reason, False
    declared = {column.name: column for column in columns(UPDATE_TABLE)}
    for condition in rule.conditions:
        for name in condition.signal.inputs if condition.signal.table == UPDATE_TABLE else ():
            null = declared[name].null if name in declared else ""
            if "not applicable to continuous actions" not in null or _measured(frame, name):
                return reason, False
            reason = f"not applicable or not measured; NULL in {name} means: {null}"
    return reason, reason.startswith("not applicable or")


def _measured(frame: pl.DataFrame, column: str) -> bool:
    return column in frame.columns and frame.get_column(column).null_count() < frame.height


# --- the rules ------------------------------------------------------------------------------------------------------


def _describe_rules(rules: RuleSet, base: RuleSet | None = None) -> str:
    """Name the rules and every changed value: `default with ratio_explosion.above = 2 instead of 10`."""
    changes = []
    for path, value in rules.overrides.items():
        before = _base_value(base, path)
        changes.append(f"{path} = {describe_value(value)}" + ("" if before is None else f" instead of {before}"))
    return f"{rules.name} with {format_list(changes, most=len(changes))}" if changes else rules.name


def _base_rules(rules: RuleSet, result: Result, run_id: str) -> RuleSet | None:
    """Find the rules before values were changed in them: the shipped profile or the run's own; None if neither."""
    if not rules.overrides:
        return rules
    candidates = [load_profile(rules.name)] if rules.name in profiles() else []
    with suppress(RuleError, DataError):  # unreadable rules are not those the run was evaluated with
        recorded = result.runs.rules_text(run_id)
        candidates += [] if recorded is None else [RuleSet.parse(recorded[1], recorded[0] or rules.name)]
    for base in candidates:
        with suppress(RuleError):
            if base.with_values(rules.overrides).text == rules.text:
                return base
    return None


def _base_value(base: RuleSet | None, path: str) -> str | None:
    """Write the value at `RULE.FIELD` before it was changed; None if it is unknown or had none."""
    at: Any = None if base is None else tomllib.loads(base.text)["rules"]
    for key in path.split("."):
        if isinstance(at, list):
            at = at[int(key) - 1] if key.isdigit() and 0 < int(key) <= len(at) else None
        elif isinstance(at, Mapping):
            at = at.get(key)
        else:
            return None
    return None if at is None else describe_value(at)


def _evidence_of(rule: Rule, rules: RuleSet, base: RuleSet | None) -> str:
    """Return the rule's evidence; if its threshold was changed, say which one the evidence is for."""
    keys = [path.split(".") for path in rules.overrides]
    changed = [key for key in keys if key[0] == rule.name and {"above", "below"} & {*key[1:]}]
    if not changed or not rule.evidence:
        return rule.evidence
    before = _base_value(base, ".".join(changed[0])) if len(changed) == 1 else None
    whose = "shipped" if base is not None and rules.name in profiles() else "original"
    return f"For the {whose} threshold{'' if before is None else f' {before}'}: {rule.evidence}"


# --- other rules, other runs ------------------------------------------------------------------------------------------


def _differences(changes: pl.DataFrame) -> list[dict[str, Any]]:
    update = pl.col("update")
    spans = {"updates": update.n_unique(), "first_update": update.min(), "last_update": update.max()}
    return changes.group_by("rule", "key", "change", maintain_order=True).agg(**spans).to_dicts()


def _against_text(against: Against | None) -> str | None:
    if against is None or against == "live":
        return None if against is None else "the alarms the runs raised themselves"
    return format_list(sorted({_describe_rules(rules) for rules in against.rules_by_run.values()}))


def _recorded_with(ran_with: tuple[str | None, str] | None, rules: RuleSet) -> str:
    if ran_with is None:
        return "Recorded without rules."
    profile, sha256 = ran_with
    if sha256 == rules.sha256:
        return f"Recorded with the same rules ({profile})."
    return f"Recorded with other rules: {profile}, sha256 {sha256}."


def _differing_settings(runs: Sequence[RunFindings]) -> dict[str, dict[str, list[str]]]:
    """The settings with two values or more, those that every run recorded first; an absent one is not a value."""
    configured = [run for run in runs if run.config]
    differing: dict[str, dict[str, list[str]]] = {}
    for key in dict.fromkeys(key for run in configured for key in run.config):
        values: dict[str, list[str]] = {}
        for run in sorted(configured, key=lambda run: key not in run.config):
            values.setdefault(run.config.get(key, NOT_RECORDED), []).append(run.name)
        if len(set(values) - {NOT_RECORDED}) > 1:
            differing[key] = values
    return dict(sorted(differing.items(), key=lambda item: NOT_RECORDED in item[1]))


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): format_value(value, "none") for key, value in values.items()}
