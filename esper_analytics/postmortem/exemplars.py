"""The worst transitions of an update: those whose probability moved furthest, on the side its rule is about."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Final, Literal

import polars as pl

from esper_analytics.formatting import format_number
from esper_analytics.postmortem.model import Exemplars, Incident
from esper_analytics.runs import Runs
from esper_recorder.contract.rules.model import Rule, Severity, Test
from esper_recorder.contract.worst_transitions import JOINT, WorstTransition, ratio_of_head

SHOWN: Final = 8
"""Worst transitions shown."""

_POLICY_CHANGE: Final = (
    "ratio",
    "log_ratio",
    "approx_kl",
    "k1_sum",
    "k3_sum",
    "clip_fraction",
    "clip_low",
    "clip_high",
)
_LARGEST: Final = {"ratio_max", "log_ratio_max"}
_SMALLEST: Final = {"ratio_min", "log_ratio_min"}

Side = Literal["more", "less"]


def exemplars_by_head(run: Runs, update: int) -> dict[str, list[dict[str, Any]]]:
    """Read the rows of `ratio_exemplars` of one update, by head; `JOINT` is the joint ratio."""
    of_update = (pl.col("update") == update) & (pl.col("scope").fill_null("update") == "update")
    by_head: dict[str, list[dict[str, Any]]] = {}
    for row in run.table("ratio_exemplars").filter(of_update).collect().iter_rows(named=True):
        by_head.setdefault(row["head"] or JOINT, []).append(row)
    return by_head


def worst_transitions(
    run: Runs, incidents: Sequence[Incident], rules: Mapping[str, Rule], firings: pl.DataFrame
) -> Exemplars | None:
    """Return those at the onset of the first critical incident about the policy's change, else the first milder one.

    None if no rule about ratios, KL or clipping fired, or no such update has exemplars.
    """
    relevant = [incident for incident in incidents if reads_policy_change(rules[incident.rule])]
    for incident in sorted(relevant, key=lambda i: i.severity != Severity.CRITICAL):
        by_head = exemplars_by_head(run, incident.onset_update)
        # Every head has its own worst transitions; the joint ratio is what the loss used.
        head = JOINT if JOINT in by_head else min(by_head, default=JOINT)
        if worst := ratio_of_head(head, {}, by_head.get(head, ())).worst:
            return _exemplars(worst, incident, rules[incident.rule], firings)
    return None


def _exemplars(worst: Sequence[WorstTransition], incident: Incident, rule: Rule, firings: pl.DataFrame) -> Exemplars:
    side = _side(rule)
    on_side = [transition for transition in worst if side is not None and _became(transition) == side]
    if not on_side:  # the rule reads both sides, or nothing was recorded on its own
        side, on_side = None, list(worst)
    shown = on_side[:SHOWN]
    return Exemplars(
        update=incident.onset_update,
        why=f"at the onset of {incident.rule}",
        summary=_summary(shown, len(on_side), len(worst), side),
        missing=_missing(worst, incident, rule, firings),
        rows=[asdict(transition) | {"ratio": transition.ratio} for transition in shown],
    )


def reads_policy_change(rule: Rule) -> bool:
    """Whether a rule reads how far an update moved the policy."""
    return any(name.startswith(_POLICY_CHANGE) for condition in rule.conditions for name in condition.signal.inputs)


def _side(rule: Rule) -> Side | None:
    """Whether the rule fires for actions that became more or less likely; None for both."""
    if all(set(c.signal.inputs) <= _LARGEST and c.test is Test.ABOVE for c in rule.conditions):
        return "more"
    if all(set(c.signal.inputs) <= _SMALLEST and c.test is Test.BELOW for c in rule.conditions):
        return "less"
    return None


def _became(transition: WorstTransition) -> Side | None:
    return "more" if transition.log_ratio > 0 else "less" if transition.log_ratio < 0 else None


def _missing(worst: Sequence[WorstTransition], incident: Incident, rule: Rule, firings: pl.DataFrame) -> str:
    """Say so if the ratio that the rule fired on is not among the recorded transitions."""
    column = rule.conditions[0].signal.column
    if len(rule.conditions) != 1 or column not in _LARGEST | _SMALLEST or rule.conditions[0].drift is not None:
        return ""
    onset = {"rule": incident.rule, "key": incident.key, "update": incident.onset_update}
    fired = firings.filter(**onset).get_column("value")
    value = fired.item(0) if len(fired) else None
    if value is None or math.isnan(value):
        return ""
    recorded = [t.log_ratio if column.startswith("log_") else t.ratio for t in worst]
    # Equal infinities are close to each other.
    if any(math.isclose(ratio, value, rel_tol=1e-3, abs_tol=1e-12) for ratio in recorded):
        return ""
    return (
        f"The value that fired, {column} = {format_number(value)}, is not among them: recorded are the {len(worst)} "
        "transitions that moved furthest in either direction."
    )


def _summary(shown: Sequence[WorstTransition], on_side: int, recorded: int, side: Side | None) -> str:
    """Say how many of the recorded transitions are shown, and what they have in common."""
    n = len(shown)
    facts = []
    if side is not None:
        text = f"{n} of the {recorded} worst transitions, "
        text += (
            "all of which"
            if on_side == recorded
            else f"the furthest of {on_side} that"
            if n < on_side
            else "those that"
        )
        text += f" became {side} likely"
    else:
        text = f"{n} of the {recorded} worst transitions" if n < recorded else f"All {n} recorded transitions"
        text = "The one recorded transition" if recorded == 1 else text
        became = Counter(_became(transition) for transition in shown)
        whole = next((way for way in ("less", "more") if became[way] == n), None)
        if whole is not None:
            facts.append(f"{'it' if n == 1 else 'all'} became {whole} likely")
        else:
            facts.append(f"{became['less']} became less likely and {became['more']} more likely")
        if unusable := sum(math.isnan(transition.log_ratio) for transition in shown):
            facts.append(f"{unusable} with a ratio of NaN")
    actions = [transition.action for transition in shown if transition.action is not None]
    if n > 1 and actions and all(len(action) == 1 for action in actions):
        common, times = Counter(actions).most_common(1)[0]
        if times > 0.75 * n:
            facts.append(f"{'all' if times == n else times} took action {format_number(common[0])}")
    epochs = [transition.epoch for transition in shown if transition.epoch is not None]
    if epochs:
        low, high = min(epochs), max(epochs)
        facts.append(f"from epoch {low}" if low == high else f"from epochs {low} to {high}")
    return f"{text}: {'; '.join(facts)}." if facts else f"{text}."
