"""The worst transitions of an update: those whose probability moved furthest, on the side the rule is about."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal

import polars as pl

from esper_analytics.formatting import format_number
from esper_analytics.postmortem.model import Exemplars, Incident
from esper_analytics.runs import Runs
from esper_recorder.contract.rules.model import Rule, Severity, Test

SHOWN: Final = 8
"""Worst transitions shown."""

_MOVED: Final = ("ratio", "log_ratio", "approx_kl", "k1_sum", "k3_sum", "clip_fraction", "clip_low", "clip_high")
_LARGEST: Final = {"ratio_max", "log_ratio_max"}
_SMALLEST: Final = {"ratio_min", "log_ratio_min"}

Side = Literal["above", "below"]


def worst_transitions(
    runs: Runs, incidents: Sequence[Incident], rules: Mapping[str, Rule], firings: pl.DataFrame
) -> Exemplars | None:
    """Those of the update where the first critical incident about the policy's move began, else the first milder one.

    None where no rule about the ratio, the KL or the clipping fired, or the update has no exemplars.
    """
    moved = [incident for incident in incidents if _about_the_move(rules[incident.rule])]
    for incident in sorted(moved, key=lambda i: i.severity != Severity.CRITICAL):
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
            return _exemplars(rows, incident, rules[incident.rule], firings)
    return None


def _exemplars(rows: pl.DataFrame, incident: Incident, rule: Rule, firings: pl.DataFrame) -> Exemplars:
    side = _side(rule)
    log_ratio = pl.col("log_ratio")
    own = rows
    if side is not None:
        own = rows.filter(log_ratio > 0 if side == "above" else log_ratio < 0).filter(log_ratio.is_not_nan())
        own = own if own.height else rows
        side = side if own.height < rows.height or _all(rows, side) else None
    shown = own.head(SHOWN)
    return Exemplars(
        update=incident.onset_update,
        why=f"where {incident.rule} began",
        summary=_summary(shown, own.height, rows.height, side),
        missing=_missing(rows, incident, rule, firings),
        rows=_shown(shown),
    )


def _about_the_move(rule: Rule) -> bool:
    """Whether the rule watches how far an update moved the policy."""
    return any(name.startswith(_MOVED) for condition in rule.conditions for name in condition.signal.inputs)


def _side(rule: Rule) -> Side | None:
    """On which side of ratio 1 the transitions are that made the rule fire; None for both."""
    if all(set(c.signal.inputs) <= _LARGEST and c.test is Test.ABOVE for c in rule.conditions):
        return "above"
    if all(set(c.signal.inputs) <= _SMALLEST and c.test is Test.BELOW for c in rule.conditions):
        return "below"
    return None


def _all(rows: pl.DataFrame, side: Side) -> bool:
    values = rows.get_column("log_ratio")
    return bool(((values > 0) & values.is_not_nan() if side == "above" else values < 0).all())


def _missing(rows: pl.DataFrame, incident: Incident, rule: Rule, firings: pl.DataFrame) -> str:
    """A sentence where the ratio that the rule fired on is not among the transitions that were kept."""
    column = rule.conditions[0].signal.column
    if len(rule.conditions) != 1 or column not in _LARGEST | _SMALLEST or rule.conditions[0].drift is not None:
        return ""
    fired = firings.filter(
        (pl.col("rule") == incident.rule)
        & (pl.col("key") == incident.key)
        & (pl.col("update") == incident.onset_update)
    ).get_column("value")
    value = fired.item(0) if len(fired) else None
    if value is None or math.isnan(value):
        return ""
    logs = [one for one in rows.get_column("log_ratio").to_list() if one is not None]
    kept = logs if column.startswith("log_") else [_exp(one) for one in logs]
    if any(one == value or math.isclose(one, value, rel_tol=1e-3, abs_tol=1e-12) for one in kept):
        return ""
    return (
        f"The value the rule fired on, {column} = {format_number(value)}, is not among them: what is kept are the "
        f"{rows.height} transitions that moved furthest in either direction."
    )


def _summary(shown: pl.DataFrame, own: int, kept: int, side: Side | None) -> str:
    """How many of what was kept are shown, and what they have in common."""
    n = shown.height
    if side is not None:
        likely = "more" if side == "above" else "less"
        whose = f"the furthest of the {own} that" if n < own else "those that"
        text = f"{n} of the {kept} worst transitions, {whose} had become {likely} likely"
        if own == kept:
            text = f"{n} of the {kept} worst transitions, all of which had become {likely} likely"
        facts = []
    else:
        text = f"{n} of the {kept} worst transitions" if n < kept else f"All {n} transitions that were kept"
        text = "The one transition that was kept" if kept == 1 else text
        log_ratios = shown.get_column("log_ratio")
        fell, rose = int((log_ratios < 0).sum()), int((log_ratios.is_not_nan() & (log_ratios > 0)).sum())
        facts = [f"{fell} had become less likely and {rose} more likely"]
        if n in (fell, rose):
            facts = [f"{'it' if n == 1 else 'all'} had become {'less' if fell else 'more'} likely"]
        if unusable := int(log_ratios.is_nan().sum()):
            facts.append(f"{unusable} had a ratio that is not a number")
    actions = [tuple(action) for action in shown.get_column("action").to_list() if action is not None]
    if actions and all(len(action) == 1 for action in actions):
        common, times = Counter(actions).most_common(1)[0]
        if n > 1 and times > 0.75 * n:
            facts.append(f"{'all' if times == n else times} took action {format_number(common[0])}")
    epochs = shown.get_column("epoch").drop_nulls()
    if len(epochs):
        low, high = int(epochs.min()), int(epochs.max())  # type: ignore[arg-type]
        facts.append(f"met in epoch {low}" if low == high else f"met in epochs {low} to {high}")
    return f"{text}: {'; '.join(facts)}." if facts else f"{text}."


def _shown(rows: pl.DataFrame) -> list[dict[str, Any]]:
    where = ("place", "epoch", "minibatch", "env", "env_step", "index", "action")
    names = (*where, "old_log_prob", "new_log_prob", "log_ratio", "advantage", "value", "value_target")
    return [
        {name: row[name] for name in names} | {"ratio": None if row["log_ratio"] is None else _exp(row["log_ratio"])}
        for row in rows.iter_rows(named=True)
    ]


def _exp(log_ratio: float) -> float:
    return math.inf if log_ratio > 709.0 else math.exp(log_ratio)
