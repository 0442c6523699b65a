"""What a report says, as data: drawn from a replay and the runs it looked at, before any page is written.

`findings` answers, for each run and in the order a person asks: what broke first, which incidents there were, what
other thresholds change, what the worst transitions were, what could not be judged, and what the recording lacks.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import polars as pl

from esper_analytics.facts import Difference, Exemplars, Findings, FirstFiring, Incident, RunFindings, Unjudged
from esper_analytics.plots import RunFrames
from esper_analytics.recording import recording_state
from esper_analytics.replay import Result, diff, live
from esper_analytics.replay.differences import difference
from esper_analytics.store import Runs
from esper_analytics.wording import count, duration, listed, moment, number, percent
from esper_recorder.contract.rule import Condition, Rule, Severity, Test
from esper_recorder.contract.rules import RuleSet

Against = Result | Literal["live"]

EXEMPLARS: Final = 8
"""Worst transitions shown."""

_MOVED: Final = ("ratio", "log_ratio", "approx_kl", "k1_sum", "k3_sum")


def findings(result: Result, against: Against | None = None) -> Findings:
    """Draw the findings from a replay.

    Args:
        result: the replay.
        against: another replay of the same runs, or `live`: the alarms the runs raised themselves.
    """
    changed = None
    if against is not None:
        changed = difference(live(result.runs), result.firings) if against == "live" else diff(against, result)
    listing = {row["run_id"]: row for row in result.runs.table("runs").collect().iter_rows(named=True)}
    names = Counter(row["name"] for row in listing.values())
    found = []
    for run_id, rules in result.rules_by_run.items():
        row = listing[run_id]
        name = row["name"] if names[row["name"]] == 1 else run_id
        found.append(_of_run(result, run_id, name, row, rules, changed))
    order = sorted(found, key=lambda run: -1 if run.severity is None else Severity(run.severity).rank, reverse=True)
    problems = [f"{problem.path}: {problem.reason}" for problem in result.runs.problems]
    return Findings(order, _name_of(against), problems)


def _of_run(
    result: Result, run_id: str, name: str, row: Mapping[str, Any], rules: RuleSet, changed: pl.DataFrame | None
) -> RunFindings:
    runs = result.runs[run_id]
    manifest = result.runs.manifest(run_id)
    incidents = result.incidents.filter(pl.col("run_id") == run_id)
    frames = RunFrames(
        name=name,
        updates=runs.table("ppo_updates").collect(),
        episodes=runs.table("episodes").collect(),
        incidents=incidents,
        rules=rules,
    )
    frame = frames.frame
    by_name = {rule.name: rule for rule in rules.rules}
    first = _first(result.firings.filter(pl.col("run_id") == run_id), by_name)
    found = [_incident(one, by_name, row["updates"]) for one in incidents.iter_rows(named=True)]
    unread, partly = _coverage(result.coverage.filter(pl.col("run_id") == run_id), by_name)
    severities = [Severity(incident.severity) for incident in found]
    worst = max(severities, key=lambda s: s.rank, default=None)
    ran_with = result.ran_with[run_id]
    last = frame.tail(1).to_dicts()[0] if frame.height else {}
    returns = frame.get_column("episode_return").drop_nulls() if "episode_return" in frame.columns else pl.Series([])
    return RunFindings(
        run_id=run_id,
        name=name,
        verdict=_verdict(frame.height, row, first, found, unread, len(rules.rules)),
        severity=None if worst is None else str(worst),
        ended=row["ended"],
        state=recording_state(runs, manifest, row, frame),
        complete=row["complete"],
        updates=row["updates"],
        steps=last.get("step"),
        progress=row["progress"],
        last_return=returns.item(-1) if len(returns) else None,
        trainer=row["trainer"] or "not told",
        started=moment(row["started"]),
        duration=duration(last.get("elapsed_s") if row["attempts"] == 1 else None),
        first=first,
        incidents=found,
        unread=unread,
        partly=partly,
        rules_count=len(rules.rules),
        exemplars=_exemplars(runs, found, by_name),
        differences=_differences(changed, run_id),
        config=_texts(manifest.config) if isinstance(manifest.config, Mapping) else {},
        versions=_texts(manifest.versions),
        host=manifest.host or "not told",
        platform=manifest.platform or "not told",
        level=manifest.level or "not told",
        definition=manifest.definition or "not told",
        rules=rules.name,
        rules_sha256=rules.sha256,
        overrides=_texts(rules.overrides),
        ran_with=_ran_with(ran_with, rules),
        frames=frames,
    )


# --- what broke -----------------------------------------------------------------------------------------------------


def _first(firings: pl.DataFrame, rules: Mapping[str, Rule]) -> list[FirstFiring]:
    """The first firing of each rule, in the order of time; of one update the severest first."""
    found: dict[str, FirstFiring] = {}
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
            evidence=rule.evidence,
        )
    return sorted(found.values(), key=lambda f: (f.update, -Severity(f.severity).rank))


def _incident(row: Mapping[str, Any], rules: Mapping[str, Rule], last: int) -> Incident:
    values = {name: row[name] for name in row if name != "run_id"}
    comparison = _comparison(rules[row["rule"]], row["peak_value"], row["threshold"])
    ended = "firing at the end" if row["last_update"] >= last else "not known: not looked at again"
    return Incident(**values, comparison=comparison, outcome="recovered" if row["recovered"] else ended)


def _reads(rule: Rule) -> str:
    """What a rule looks at: `ratio_max`, `drift of grad_norm`."""
    return " or ".join(dict.fromkeys(_signal(condition) for condition in rule.conditions))


def _signal(condition: Condition) -> str:
    name = condition.signal.describe().removeprefix("ppo_updates.").removeprefix("ppo_updates: ")
    if condition.drift is not None:
        return f"drift of {name}"
    return f"step of {name}" if condition.step else name


def _comparison(rule: Rule, value: float | None, threshold: float | None) -> str:
    """`9.35 > 5`; the sign is that of the rule's comparison, not of the numbers."""
    tests = {condition.test for condition in rule.conditions}
    if threshold is None or tests == {Test.NONFINITE}:
        return number(value) if value is not None else "not finite"
    if tests - {Test.NONFINITE} == {Test.ABOVE}:
        sign = ">"
    elif tests - {Test.NONFINITE} == {Test.BELOW}:
        sign = "<"
    else:
        sign = "against"
    # A rule that is kept after it fired goes on at values that are no longer beyond the threshold.
    beyond = value is not None and ((sign == ">" and value > threshold) or (sign == "<" and value < threshold))
    return f"{number(value)} {sign if beyond else 'against'} {number(threshold)}"


def _verdict(
    updates: int,
    row: Mapping[str, Any],
    first: Sequence[FirstFiring],
    incidents: Sequence[Incident],
    unread: Sequence[Unjudged],
    rules: int,
) -> str:
    if not updates:
        return "No PPO update was recorded, so nothing could be judged."
    sentences = []
    critical = sum(incident.severity == Severity.CRITICAL for incident in incidents)
    serious = [f for f in first if f.severity == Severity.CRITICAL]
    if serious:
        one = serious[0]
        sentences.append(f"The first thing that broke was {one.rule} at {_when(one)}: {_what(one)}.")
        sentences.append(f"{count(len(incidents), 'incident').capitalize()}, {critical} critical.")
        earlier = [f for f in first if f.update < one.update]
        if earlier:
            signs = listed([f"{f.rule} ({f.severity}) at update {f.update}" for f in earlier], most=3)
            sentences.append(f"Signs before that: {signs}.")
    elif first:
        one = first[0]
        sentences.append(f"Nothing critical in {count(updates, 'update')}.")
        began = f"the first was {one.rule} ({one.severity}) at {_when(one)}"
        sentences.append(f"{count(len(incidents), 'incident').capitalize()}; {began}.")
    elif len(unread) == rules:
        sentences.append(f"Nothing could be judged: not one of the {rules} rules found what it reads.")
    else:
        sentences.append(f"Nothing fired in {count(updates, 'update')}.")
    if unread and len(unread) < rules:
        names = listed([rule.rule for rule in unread], most=4)
        sentences.append(f"{len(unread)} of {rules} rules could never look: {names}.")
    if row["ended"] == "killed":
        sentences.append(f"The process was killed after update {row['updates']}.")
    elif row["ended"] == "raised":
        sentences.append(f"The training ended with an error after update {row['updates']}.")
    elif row["ended"] == "live":
        sentences.append(f"It is still running; this is how it stood at update {row['updates']}.")
    return " ".join(sentences)


def _when(firing: FirstFiring) -> str:
    known = [
        *([f"{percent(firing.progress)} of training"] if firing.progress is not None else []),
        *([f"phase {firing.phase}"] if firing.phase else []),
    ]
    return f"update {firing.update}" + (f" ({', '.join(known)})" if known else "")


def _what(firing: FirstFiring) -> str:
    keys = f" of {listed(firing.keys, most=3)}" if firing.keys else ""
    words = (
        firing.comparison.replace(" > ", ", above ").replace(" < ", ", below ").replace(" against ", ", held against ")
    )
    return f"{firing.reads}{keys} was {words}"


# --- the worst transitions ------------------------------------------------------------------------------------------


def _exemplars(runs: Runs, incidents: Sequence[Incident], rules: Mapping[str, Rule]) -> Exemplars | None:
    """The worst transitions where the ratio first exploded, else where the first critical incident began."""
    serious = [i for i in incidents if i.severity == Severity.CRITICAL] or list(incidents)
    ratios = [i for i in serious if _about_ratio(rules[i.rule])]
    for incident in [*ratios, *serious]:
        rows = (
            runs.table("ratio_exemplars")
            .filter((pl.col("update") == incident.onset_update) & (pl.col("scope").fill_null("update") == "update"))
            .sort("head", "place")
            .collect()
        )
        if rows.height:
            heads = rows.get_column("head").fill_null("").unique().to_list()
            if len(heads) > 1:  # every head has its own worst; the joint ratio is what the loss used
                rows = rows.filter(pl.col("head").fill_null("") == ("" if "" in heads else sorted(heads)[0]))
            why = f"where {incident.rule} began"
            return Exemplars(incident.onset_update, why, _summary(rows), _shown(rows.head(EXEMPLARS)))
    return None


def _about_ratio(rule: Rule) -> bool:
    """Whether the rule watches how far an update moved the policy."""
    return any(name.startswith(_MOVED) for condition in rule.conditions for name in condition.signal.inputs)


def _summary(rows: pl.DataFrame) -> str:
    """What the worst transitions have in common."""
    log_ratios = rows.get_column("log_ratio")
    fell, rose = int((log_ratios < 0).sum()), int((log_ratios.is_not_nan() & (log_ratios > 0)).sum())
    text = f"Of the {rows.height} worst transitions, {fell} had become less likely and {rose} more likely"
    if rows.height in (fell, rose):
        text = f"All of the {rows.height} worst transitions had become {'less' if fell else 'more'} likely"
    if rows.height == 1:
        text = f"The one transition kept had become {'less' if fell else 'more' if rose else 'not less'} likely"
    unusable = int(log_ratios.is_nan().sum())
    if unusable:
        text += f"; {unusable} had a ratio that is not a number"
    actions = [tuple(action) for action in rows.get_column("action").to_list() if action is not None]
    if actions and all(len(action) == 1 for action in actions):
        common, times = Counter(actions).most_common(1)[0]
        if times > 0.75 * rows.height:
            text += f"; {'all' if times == rows.height else times} took action {number(common[0])}"
    epochs = rows.get_column("epoch").drop_nulls()
    if len(epochs):
        low, high = int(epochs.min()), int(epochs.max())  # type: ignore[arg-type]
        text += f"; they were met in epoch {low}" if low == high else f"; they were met in epochs {low} to {high}"
    return text + "."


def _shown(rows: pl.DataFrame) -> list[dict[str, Any]]:
    where = ("place", "epoch", "minibatch", "env", "env_step", "index", "action")
    names = (*where, "old_log_prob", "new_log_prob", "log_ratio", "advantage", "value", "value_target")
    return [
        {name: row[name] for name in names} | {"ratio": None if row["log_ratio"] is None else _exp(row["log_ratio"])}
        for row in rows.iter_rows(named=True)
    ]


def _exp(log_ratio: float) -> float:
    return math.inf if log_ratio > 709.0 else math.exp(log_ratio)


# --- what could not be judged, and what is missing ------------------------------------------------------------------


def _coverage(coverage: pl.DataFrame, rules: Mapping[str, Rule]) -> tuple[list[Unjudged], list[Unjudged]]:
    """(rules that never could look, those that could not always), in the order of the rules."""
    found = []
    for (name, reason), rows in coverage.filter(pl.col("reason") != "").group_by("rule", "reason", maintain_order=True):
        rule = rules[str(name)]
        found.append(
            Unjudged(
                rule=rule.name,
                keys=[key for key in rows.get_column("key") if key],
                severity=str(rule.severity),
                reads=_reads(rule),
                evaluated=int(rows.get_column("evaluated").sum()),
                abstained=int(rows.get_column("abstained").sum()),
                reason=str(reason),
            )
        )
    looked = dict(coverage.group_by("rule").agg(pl.col("evaluated").sum()).iter_rows())
    place = {name: i for i, name in enumerate(rules)}
    found.sort(key=lambda one: place[one.rule])
    return [one for one in found if not looked[one.rule]], [one for one in found if looked[one.rule]]


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
    return listed(sorted(names))


def rules_name(rules: RuleSet) -> str:
    """The name with the values that were changed: `default with ratio_explosion.above = 3`."""
    changes = [f"{key} = {_text(value)}" for key, value in rules.overrides.items()]
    return f"{rules.name} with {listed(changes)}" if changes else rules.name


def _ran_with(ran_with: tuple[str | None, str] | None, rules: RuleSet) -> str:
    if ran_with is None:
        return "The run itself ran without rules."
    profile, sha256 = ran_with
    if sha256 == rules.sha256:
        return f"The run itself ran with the same rules ({profile})."
    return f"The run itself ran with other rules: {profile}, sha256 {sha256}."


def _texts(values: Mapping[str, Any]) -> dict[str, str]:
    return {str(key): _text(value) for key, value in values.items()}


def _text(value: Any) -> str:
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)
