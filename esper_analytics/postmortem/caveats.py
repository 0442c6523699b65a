"""What makes a verdict doubtful though every rule did its work, in the words of the view `run_confounders`."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from typing import Any, Final

from esper_analytics.formatting import format_count, format_list
from esper_analytics.postmortem.model import Doubt
from esper_analytics.runs import Runs
from esper_recorder.contract.rules.model import Rule
from esper_recorder.contract.rules.ruleset import RuleSet

NAN_SENTINEL: Final = "nan_sentinel"
RATIO_BLIND: Final = "ratio_blind"
_ALARM_OF_THE_SENTINEL: Final = "numerical_instability"
_OF_RATIOS: Final = re.compile(r"(log_)?ratio_(max|min)|approx_kl(_k\d)?|clip_fraction")
_QUERY: Final = f"""
SELECT run_id, confounder, meaning, updates, first_update, last_update
FROM run_confounders
WHERE confounder IN ('{NAN_SENTINEL}', '{RATIO_BLIND}')
ORDER BY run_id, confounder
"""


def reads_ratios(rule: Rule) -> bool:
    """Whether a rule looks at ratios or at what is computed from them."""
    return any(_OF_RATIOS.fullmatch(name) for condition in rule.conditions for name in condition.signal.inputs)


def doubts_of(runs: Runs) -> dict[str, list[dict[str, Any]]]:
    """The rows of the view that make a verdict doubtful, by run."""
    found: dict[str, list[dict[str, Any]]] = {}
    for row in runs.sql(_QUERY).iter_rows(named=True):
        found.setdefault(row.pop("run_id"), []).append(row)
    return found


def told_of(rows: Iterable[dict[str, Any]], rules: RuleSet) -> list[Doubt]:
    """The doubts of one run, each with the rules of `rules` that it concerns."""
    return [Doubt(**row, rules=[rule.name for rule in rules.rules if _concerns(row, rule)]) for row in rows]


def sentence(doubt: Doubt) -> str:
    """A doubt as a sentence."""
    where = f", {format_count(doubt.updates, 'update')}" if doubt.updates is not None else ""
    says = "says" if len(doubt.rules) == 1 else "say"
    end = f"; there, {format_list(doubt.rules)} {says} nothing" if doubt.rules else ""
    return f"Read with care ({doubt.confounder}{where}): {doubt.meaning}{end}."


def warnings(runs: Runs, rule: Rule) -> Iterator[str]:
    """A line for each doubt that a rule's answer over some runs is to be read with."""
    alike: dict[tuple[str, str], list[str]] = {}
    for run_id, rows in doubts_of(runs).items():
        for row in rows:
            if _concerns(row, rule):
                alike.setdefault((row["confounder"], row["meaning"]), []).append(run_id)
    for (confounder, meaning), run_ids in alike.items():
        yield f"{run_ids[0] if len(run_ids) == 1 else f'{len(run_ids)} runs'}: {confounder}: {meaning}"


def _concerns(row: dict[str, Any], rule: Rule) -> bool:
    if row["confounder"] == NAN_SENTINEL:
        return rule.name == _ALARM_OF_THE_SENTINEL
    return reads_ratios(rule)
