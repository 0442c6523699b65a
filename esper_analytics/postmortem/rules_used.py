"""Which rules judged a run, and what was changed in them, in words."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from esper_analytics.detection.replay import Result
from esper_analytics.formatting import format_list, format_value
from esper_recorder.contract.rules.model import Rule
from esper_recorder.contract.rules.ruleset import RuleError, RuleSet, load_profile, profiles


def rules_name(rules: RuleSet) -> str:
    """The name with the values that were changed: `default with ratio_explosion.above = 3`."""
    changes = [f"{key} = {format_value(value, 'none')}" for key, value in rules.overrides.items()]
    return f"{rules.name} with {format_list(changes)}" if changes else rules.name


def in_words(rules: RuleSet, base: RuleSet | None) -> str:
    """The name, with every changed value: `default, with ratio_explosion.above = 2 instead of 10`."""
    changes = []
    for key, value in rules.overrides.items():
        before = value_at(base, key)
        instead = "" if before is None else f" instead of {before}"
        changes.append(f"{key} = {format_value(value, 'none')}{instead}")
    return f"{rules.name}, with {format_list(changes, most=len(changes))}" if changes else rules.name


def unchanged(rules: RuleSet, result: Result, run_id: str) -> RuleSet | None:
    """The rules before values were changed in them; None where they are not at hand."""
    if not rules.overrides:
        return rules
    candidates = [load_profile(rules.name)] if rules.name in profiles() else []
    own = result.runs.rules_text(run_id)
    with suppress(RuleError):  # rules that cannot be read are not what it was held against
        candidates += [] if own is None else [RuleSet.parse(own[1], own[0] or rules.name)]
    for base in candidates:
        try:
            if base.with_values(rules.overrides).text == rules.text:
                return base
        except RuleError:
            continue
    return None


def value_at(base: RuleSet | None, path: str) -> str | None:
    """What `RULE.KEY` was, in words; None where that is not known or it was not given."""
    if base is None:
        return None
    at: Any = tomllib.loads(base.text)["rules"]
    for key in path.split("."):
        if isinstance(at, list):
            at = at[int(key) - 1] if key.isdigit() and 0 < int(key) <= len(at) else None
        elif isinstance(at, Mapping):
            at = at.get(key)
        else:
            return None
    return None if at is None else _in_words(at)


def evidence_of(rule: Rule, rules: RuleSet, base: RuleSet | None) -> str:
    """The rule's evidence; where its threshold was changed, it says that it speaks of the one before."""
    changed = [key for key in rules.overrides if key.startswith(f"{rule.name}.") and {"above", "below"} & {*_keys(key)}]
    if not changed or not rule.evidence:
        return rule.evidence
    before = value_at(base, changed[0]) if len(changed) == 1 else None
    shipped = "shipped" if base is not None and rules.name in profiles() else "original"
    return f"Of the {shipped} threshold{'' if before is None else f' {before}'}: {rule.evidence}"


def _keys(path: str) -> list[str]:
    return path.split(".")[1:]


def _in_words(value: Any) -> str:
    if not isinstance(value, Mapping):
        return format_value(value)
    if "column" in value:
        times = f"{format_value(value.get('times', 1.0))} × {value['column']}"
        return times + (f" (else {format_value(value['otherwise'])})" if "otherwise" in value else "")
    by = next((key for key in ("phase", "key") if isinstance(value.get(key), Mapping)), None)
    if by is None:
        return "another"
    parts = [f"{name} {format_value(number, 'none')}" for name, number in value[by].items()]
    return f"one per {by} ({format_list(parts)})"
