"""What qualifies a verdict although every rule was evaluated, from the view `run_confounders`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from esper_analytics.formatting import format_count, format_list
from esper_analytics.postmortem.model import Caveat
from esper_analytics.runs import Runs
from esper_recorder.contract.rules.model import Rule
from esper_recorder.contract.rules.ruleset import RuleSet

NAN_SENTINEL: Final = "nan_sentinel"
RATIO_BLIND: Final = "ratio_blind"
_SENTINEL_RULE: Final = "numerical_instability"
_RATIO_COLUMNS: Final = re.compile(r"(log_)?ratio_(max|min)|approx_kl(_k\d)?|clip_fraction")
_QUERY: Final = f"""
SELECT run_id, confounder, meaning, updates, first_update, last_update
FROM run_confounders
WHERE confounder IN ('{NAN_SENTINEL}', '{RATIO_BLIND}')
ORDER BY run_id, confounder
"""


def read_caveats(runs: Runs, rules_by_run: Mapping[str, RuleSet]) -> dict[str, list[Caveat]]:
    """Read the caveats of each run, each with the rules it concerns."""
    caveats: dict[str, list[Caveat]] = {run_id: [] for run_id in rules_by_run}
    for run_id, row in _rows(runs):
        if run_id in caveats:
            rules = [rule.name for rule in rules_by_run[run_id].rules if _concerns(row["confounder"], rule)]
            caveats[run_id].append(Caveat(**row, rules=rules))
    return caveats


def caveat_text(caveat: Caveat) -> str:
    """Write a caveat as text."""
    updates = f", {format_count(caveat.updates, 'update')}" if caveat.updates is not None else ""
    rules = f"; disregard {format_list(caveat.rules)} there" if caveat.rules else ""
    return f"Caveat ({caveat.confounder}{updates}): {caveat.meaning}{rules}."


def sweep_caveats(runs: Runs, rule: Rule) -> Iterator[str]:
    """Yield a line for each caveat that concerns a rule, over all runs that have it."""
    run_ids: dict[tuple[str, str], list[str]] = {}
    for run_id, row in _rows(runs):
        if _concerns(row["confounder"], rule):
            run_ids.setdefault((row["confounder"], row["meaning"]), []).append(run_id)
    for (confounder, meaning), ids in run_ids.items():
        yield f"{ids[0] if len(ids) == 1 else f'{len(ids)} runs'}: {confounder}: {meaning}"


def reads_ratios(rule: Rule) -> bool:
    """Whether a rule reads ratios or what is computed from them."""
    return any(_RATIO_COLUMNS.fullmatch(name) for condition in rule.conditions for name in condition.signal.inputs)


def _rows(runs: Runs) -> Iterator[tuple[str, dict[str, Any]]]:
    for row in runs.sql(_QUERY).iter_rows(named=True):
        yield row.pop("run_id"), row


def _concerns(confounder: str, rule: Rule) -> bool:
    return rule.name == _SENTINEL_RULE if confounder == NAN_SENTINEL else reads_ratios(rule)
