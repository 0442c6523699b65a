"""All checks of a profile in one call per update: what fires, and what had no data.

A front end of the rule evaluator without numbers: the thresholds are the profile's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esper_recorder.contract.rules.describe import describe_comparison, describe_inputs, describe_rules
from esper_recorder.contract.rules.evaluator import Coverage, Firing, RuleEvaluator
from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.rules.ruleset import RuleSet, load_profile
from esper_recorder.contract.rules.signal import UPDATE_TABLE, Reason


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One check that fired.

    Attributes:
        type: the rule's name.
        key: the layer or head it fired for; empty if the rule has no key.
        detail: the comparison, such as `ratio_max = 6.935 > 5`.
    """

    type: str
    key: str
    severity: Severity
    value: float | None
    threshold: float | None
    phase: str | None
    detail: str


@dataclass(frozen=True, slots=True)
class Abstention:
    """One check that had no data, and why: never the same as one that did not fire."""

    type: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class AnomalyReport:
    """The results of all checks for one update."""

    update: int
    anomalies: tuple[Anomaly, ...]
    abstained: tuple[Abstention, ...]

    @property
    def has_anomaly(self) -> bool:
        """Whether a check fired."""
        return bool(self.anomalies)

    @property
    def details(self) -> dict[str, tuple[str, ...]]:
        """Anomaly type -> the detail of each anomaly of that type."""
        details: dict[str, tuple[str, ...]] = {}
        for anomaly in self.anomalies:
            details[anomaly.type] = (*details.get(anomaly.type, ()), anomaly.detail)
        return details


class AnomalyDetector:
    """Every check of a profile over one run, gradient drift and trends included.

    Args:
        rules: the checks; by default the profile `esper-review`. The property `checks` lists them.
    """

    def __init__(self, rules: RuleSet | None = None) -> None:
        self.rules = load_profile("esper-review") if rules is None else rules
        self._by_name = {rule.name: rule for rule in self.rules.rules}
        self._evaluator = RuleEvaluator(self.rules)
        self._update = 0
        self._covered: dict[tuple[str, str], Coverage] = {}

    @property
    def checks(self) -> str:
        """One line per check, with its severity and thresholds."""
        return describe_rules(self.rules.rules)

    def check_all(
        self, row: Mapping[str, Any], *, progress: float | None, tables: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> AnomalyReport:
        """Check the next update.

        Args:
            row: its row of `ppo_updates`, by column name. A missing column was not measured.
            progress: fraction of the training done; None if the length is unknown, and then checks with a threshold
                per phase abstain.
            tables: the update's rows of other tables, such as `recurrent_state`; {} without any.
        """
        if not isinstance(row, Mapping):
            raise TypeError(f"row is a {type(row).__name__}; give a mapping of column name to value")
        self._update += 1
        update_row = {**row, "progress": progress, "update": self._update}
        firings = self._evaluator.update(self._update, progress, {**tables, UPDATE_TABLE: [update_row]})
        return AnomalyReport(self._update, tuple(map(self._anomaly, firings)), tuple(self._new_abstentions()))

    def _anomaly(self, firing: Firing) -> Anomaly:
        rule = self._by_name[firing.rule]
        threshold = rule.conditions[0].threshold
        detail = describe_inputs(rule) + (f" of {firing.key}" if firing.key else "")
        detail += f" = {describe_comparison(rule, firing.value, firing.threshold)}"
        if firing.phase and threshold is not None and threshold.by == "phase":
            detail += f" (in {firing.phase})"
        severity = Severity(firing.severity)
        return Anomaly(rule.name, firing.key, severity, firing.value, firing.threshold, firing.phase, detail)

    def _new_abstentions(self) -> list[Abstention]:
        """Return the series that abstained since the last call, with the reason counted most since then."""
        abstentions = []
        covered = {(series.rule, series.key): series for series in self._evaluator.coverage()}
        for series, now in covered.items():
            counts = dict(self._covered[series].abstained) if series in self._covered else {}
            if Reason.NO_TABLE not in now.abstained:  # its first row has come: NO_TABLE becomes NOT_RECORDED
                counts[Reason.NOT_RECORDED] = counts.pop(Reason.NO_TABLE, counts.get(Reason.NOT_RECORDED, 0))
            added = {reason: n - counts.get(reason, 0) for reason, n in now.abstained.items()}
            if sum(now.abstained.values()) > sum(counts.values()):
                abstentions.append(Abstention(*series, str(max(added, key=added.__getitem__))))
        self._covered = covered
        return abstentions
