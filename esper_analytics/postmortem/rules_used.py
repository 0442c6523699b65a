"""Which rules a run was evaluated with, and what was changed in them, as text."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from esper_analytics.detection.replay import Result
from esper_analytics.formatting import format_list
from esper_recorder.contract.rules.describe import describe_value
from esper_recorder.contract.rules.model import Rule
from esper_recorder.contract.rules.ruleset import RuleError, RuleSet, load_profile, profiles


def describe_rules(rules: RuleSet, base: RuleSet | None = None) -> str:
    """Name the rules and every changed value: `default with ratio_explosion.above = 2 instead of 10`."""
    changes = []
    for path, value in rules.overrides.items():
        before = base_value(base, path)
        changes.append(f"{path} = {describe_value(value)}" + ("" if before is None else f" instead of {before}"))
    return f"{rules.name} with {format_list(changes, most=len(changes))}" if changes else rules.name


def base_rules(rules: RuleSet, result: Result, run_id: str) -> RuleSet | None:
    """Find the rules before values were changed in them: the shipped profile or the run's own; None if neither."""
    if not rules.overrides:
        return rules
    candidates = [load_profile(rules.name)] if rules.name in profiles() else []
    own = result.runs.rules_text(run_id)
    with suppress(RuleError):  # unreadable rules are not those the run was evaluated with
        candidates += [] if own is None else [RuleSet.parse(own[1], own[0] or rules.name)]
    for base in candidates:
        with suppress(RuleError):
            if base.with_values(rules.overrides).text == rules.text:
                return base
    return None


def base_value(base: RuleSet | None, path: str) -> str | None:
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


def evidence_of(rule: Rule, rules: RuleSet, base: RuleSet | None) -> str:
    """Return the rule's evidence; if its threshold was changed, say which one the evidence is for."""
    keys = [path.split(".") for path in rules.overrides]
    changed = [key for key in keys if key[0] == rule.name and {"above", "below"} & {*key[1:]}]
    if not changed or not rule.evidence:
        return rule.evidence
    before = base_value(base, ".".join(changed[0])) if len(changed) == 1 else None
    whose = "shipped" if base is not None and rules.name in profiles() else "original"
    return f"For the {whose} threshold{'' if before is None else f' {before}'}: {rule.evidence}"
