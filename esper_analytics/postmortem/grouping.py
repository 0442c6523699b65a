"""Incidents that are alike for many keys, and settings that are alike in many runs, told once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from esper_analytics.postmortem.model import Differing, Incident, IncidentGroup, RunFindings
from esper_recorder.contract.rules.model import Rule, Test


def grouped(incidents: Sequence[Incident], rules: Mapping[str, Rule]) -> list[IncidentGroup]:
    """Incidents of one rule with the same onset, end, firings and outcome as one, where they are of several keys."""
    groups: dict[tuple[Any, ...], list[Incident]] = {}
    for one in incidents:
        alike = (one.rule, one.severity, one.onset_update, one.last_update, one.updates, one.threshold, one.outcome)
        groups.setdefault(alike, []).append(one)
    found = []
    for group in groups.values():
        rule = rules[group[0].rule]
        keys = [one.key for one in group if one.key]
        what = f"{len(keys)} {rule.key or 'key'}s" if len(keys) > 1 else ""
        found.append(IncidentGroup(_worst(group, rule), keys, what))
    return found


def differing(runs: Sequence[RunFindings]) -> list[Differing]:
    """The settings that have two values or more, those that every run tells first; not told is no value."""
    told = [run for run in runs if run.config]
    found = []
    for key in dict.fromkeys(key for run in told for key in run.config):
        values: dict[str, list[str]] = {}
        for run in told:
            if key in run.config:
                values.setdefault(run.config[key], []).append(run.name)
        if len(values) > 1:
            silent = [run.name for run in told if key not in run.config]
            found.append(Differing(key, [*values.items(), *([("not told", silent)] if silent else [])]))
    return sorted(found, key=lambda one: "not told" in dict(one.values))


def _worst(group: Sequence[Incident], rule: Rule) -> Incident:
    """The incident with the peak furthest beyond the threshold; the first where there is no telling."""
    known = [one for one in group if one.peak_value is not None and one.peak_value == one.peak_value]
    tests = {condition.test for condition in rule.conditions}
    if not known or len(tests) != 1:
        return group[0]
    choose = min if Test.BELOW in tests else max
    return choose(known, key=lambda one: one.peak_value or 0.0)
