"""All checks of a profile as one call over a row: what fires, and what could not be looked at.

It is the evaluator of rules and the profile's own thresholds; nothing here knows a number.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from esper_recorder.contract.rules.describe import fires_where
from esper_recorder.contract.rules.evaluator import Coverage, RuleEvaluator
from esper_recorder.contract.rules.model import Rule, Severity, Test
from esper_recorder.contract.rules.ruleset import RuleSet, load_profile
from esper_recorder.contract.rules.signal import UPDATE_TABLE, Reason


@dataclass(frozen=True, slots=True)
class Anomaly:
    """One check that fired.

    Attributes:
        type: the rule's name.
        key: the layer or head it fired for; empty where it has none.
        detail: what was compared, as in `ratio_max = 6.935 > 5`.
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
    """One check that could not look, and why: never the same as one that found nothing."""

    type: str
    key: str
    reason: str


@dataclass(frozen=True, slots=True)
class AnomalyReport:
    """What all checks said of one update."""

    update: int
    anomalies: tuple[Anomaly, ...]
    abstained: tuple[Abstention, ...]

    @property
    def has_anomaly(self) -> bool:
        """Something fired."""
        return bool(self.anomalies)

    @property
    def details(self) -> dict[str, tuple[str, ...]]:
        """Anomaly type -> the detail of each anomaly of it: two of one type keep both."""
        found: dict[str, tuple[str, ...]] = {}
        for anomaly in self.anomalies:
            found[anomaly.type] = (*found.get(anomaly.type, ()), anomaly.detail)
        return found


class AnomalyDetector:
    """Every check of a profile, the drift of the gradient and the trends among them, over one run.

    Args:
        rules: what to check; the profile `esper-review` where not given.
    """

    def __init__(self, rules: RuleSet | None = None) -> None:
        self.rules = load_profile("esper-review") if rules is None else rules
        self._by_name = {rule.name: rule for rule in self.rules.rules}
        self._evaluator = RuleEvaluator(self.rules)
        self._update = 0
        self._seen: dict[tuple[str, str], Coverage] = {}

    def check_all(
        self, row: Mapping[str, Any], *, progress: float | None, tables: Mapping[str, Sequence[Mapping[str, Any]]]
    ) -> AnomalyReport:
        """Check the next update.

        Args:
            row: its row of `ppo_updates`, by column name. A column that is not there was not measured.
            progress: share of the training done; None where the length is not known, and then no check that goes by
                phase can look.
            tables: the update's rows of other tables, such as `recurrent_state`; {} where there are none.
        """
        if not isinstance(row, Mapping):
            raise TypeError(f"row is a {type(row).__name__}; give a mapping of column name to value")
        self._update += 1
        own = {**row, "progress": progress, "update": self._update}
        fired = self._evaluator.update(self._update, progress, {**tables, UPDATE_TABLE: [own]})
        anomalies = [
            Anomaly(
                one.rule,
                one.key,
                Severity(one.severity),
                one.value,
                one.threshold,
                one.phase,
                _detail(self._by_name[one.rule], one.key, one.value, one.threshold, one.phase),
            )
            for one in fired
        ]
        return AnomalyReport(self._update, tuple(anomalies), tuple(self._abstained()))

    def _abstained(self) -> list[Abstention]:
        """What abstained since the last call."""
        found = []
        seen = {(one.rule, one.key): one for one in self._evaluator.coverage()}
        for series, now in seen.items():
            before = self._seen.get(series)
            counted = {} if before is None else dict(before.abstained)
            if Reason.NO_TABLE not in now.abstained:  # its first row has come: until now there was none
                counted[Reason.NOT_RECORDED] = counted.pop(Reason.NO_TABLE, counted.get(Reason.NOT_RECORDED, 0))
            if sum(now.abstained.values()) > sum(counted.values()):
                grown = {reason: n - counted.get(reason, 0) for reason, n in now.abstained.items()}
                found.append(Abstention(*series, str(max(grown, key=lambda reason: grown[reason]))))
        self._seen = seen
        return found


def checks_in_words(rules: RuleSet) -> str:
    """A line a rule, with its numbers: what a docstring says of a profile."""
    return "\n".join(f"    * {rule.name} ({rule.severity}): {fires_where(rule)}" for rule in rules.rules)


# The numbers of the shipped profile, so that what is read here is what runs.
AnomalyDetector.__doc__ = (
    f"{AnomalyDetector.__doc__}\n    The checks of `esper-review`:\n\n{checks_in_words(load_profile('esper-review'))}\n"
)


def _detail(rule: Rule, key: str, value: float | None, threshold: float | None, phase: str | None) -> str:
    condition = rule.conditions[0]
    what = condition.signal.describe().removeprefix(f"{UPDATE_TABLE}.").removeprefix(f"{UPDATE_TABLE}: ")
    if len(rule.conditions) > 1:
        what = " or ".join(dict.fromkeys(one.signal.describe().removeprefix("ppo_updates.") for one in rule.conditions))
    if condition.drift is not None:
        what = f"drift of {what}"
    elif condition.rolling is not None:
        what = f"{condition.rolling.trend} of {what} by its mean"
    elif condition.step:
        what = f"step of {what}"
    where = f" of {key}" if key else ""
    shown = "not measured" if value is None else f"{value:.6g}"
    if condition.test is Test.NONFINITE or threshold is None or math.isnan(threshold):
        return f"{what}{where} = {shown}"
    sign = ">" if condition.test is Test.ABOVE else "<"
    by_phase = (
        f" (in {phase})" if phase and condition.threshold is not None and condition.threshold.by == "phase" else ""
    )
    return f"{what}{where} = {shown} {sign} {threshold:g}{by_phase}"
