"""What a report says, as plain data: `findings` fills it in, the templates show it, the JSON report is it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from esper_analytics.plots.run_frames import RunFrames
from esper_analytics.postmortem.recording import Ending
from esper_recorder.contract.rules.model import Severity


@dataclass(frozen=True, slots=True)
class FirstFiring:
    """The first time a rule fired, with the keys it fired for then."""

    update: int
    progress: float | None
    phase: str | None
    rule: str
    keys: list[str]
    severity: str
    reads: str
    comparison: str
    value: float | None
    threshold: float | None
    evidence: str
    """The reason for the shipped threshold; it names that threshold if another was set."""
    note: str
    """Which rule inhibits this one, or is inhibited by it."""


@dataclass(frozen=True, slots=True)
class Incident:
    """A row of `Result.incidents`."""

    rule: str
    key: str
    severity: str
    onset_update: int
    last_update: int
    updates: int
    peak_update: int
    peak_value: float | None
    threshold: float | None
    comparison: str
    phase: str | None
    recovered: bool
    outcome: str
    """`recovered`, `firing at the end`, which rule inhibited it, or that it was not evaluated again."""


@dataclass(frozen=True, slots=True)
class IncidentGroup:
    """Incidents of one rule with the same course for several keys, represented by the one with the worst peak."""

    incident: Incident
    keys: list[str]
    what: str
    """`10 layers`; empty for one key or none."""


@dataclass(frozen=True, slots=True)
class RuleCoverage:
    """A rule that was not evaluated at every update."""

    rule: str
    keys: list[str]
    severity: str
    reads: str
    evaluated: int
    abstained: int
    reason: str
    expected: bool
    """The run is too short for the rule, or the rule does not apply to it."""


@dataclass(frozen=True, slots=True)
class Caveat:
    """A row of the view `run_confounders` that qualifies the verdict.

    `updates`, `first_update` and `last_update` are None if it concerns the run as a whole.
    """

    confounder: str
    meaning: str
    updates: int | None
    first_update: int | None
    last_update: int | None
    rules: list[str]
    """The rules that prove nothing there, whether they fire or not."""


@dataclass(frozen=True, slots=True)
class Exemplars:
    """The transitions of one update whose probability moved furthest."""

    update: int
    why: str
    summary: str
    missing: str
    """Says so if the value that fired is not that of a recorded transition."""
    rows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFindings:
    """Everything a report says about one run."""

    run_id: str
    name: str
    verdict: str = ""
    severity: str | None
    """The worst of its incidents."""
    ended: str
    """`finished`, `raised`, `interrupted` (Ctrl-C), `killed`, `live` or `unknown`."""
    error: str | None
    """What it raised, shortened."""
    recording: list[str]
    """How the run ended and what its recording lacks."""
    complete: bool
    updates: int
    steps: int | None
    progress: float | None
    last_return: float | None
    trainer: str
    started: str
    duration: str
    first_firings: list[FirstFiring]
    incidents: list[Incident]
    grouped: list[IncidentGroup] = field(repr=False)
    """The same incidents, one per rule and course."""
    never_evaluated: list[RuleCoverage]
    partly_evaluated: list[RuleCoverage]
    caveats: list[Caveat] = field(default_factory=list)
    rules_count: int
    exemplars: Exemplars | None
    differences: list[dict[str, Any]] = field(default_factory=list)
    """What other rules change: rule, key, change (`new`, `gone`), updates, first_update, last_update."""
    compared: bool = True
    """False if there was nothing to compare with: a run without rules has no live alarms."""
    config: dict[str, str]
    versions: dict[str, str]
    host: str
    platform: str
    level: str
    definition: str
    rules: str
    rules_sha256: str
    evaluated_with: str
    """The rules as text: `default with ratio_explosion.above = 2 instead of 10`."""
    overrides: dict[str, str]
    recorded_with: str
    """Which rules the run itself ran with."""
    traces: list[str]
    """The profiler's traces in the run's folder."""
    ending: Ending
    frames: RunFrames = field(repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Incidents by severity, the worst first."""
        counts = Counter(incident.severity for incident in self.incidents)
        return {str(severity): counts[str(severity)] for severity in reversed(Severity)}

    @property
    def evaluated(self) -> bool:
        """Whether at least one rule was evaluated at least once."""
        return self.updates > 0 and len({rule.rule for rule in self.never_evaluated}) < self.rules_count

    @property
    def failed(self) -> bool:
        """Whether something critical happened, or the training ended with an error."""
        return self.severity == Severity.CRITICAL or self.ended == "raised"

    @property
    def without_data(self) -> list[RuleCoverage]:
        """The rules that had no data although they apply."""
        return [rule for rule in self.never_evaluated if not rule.expected]

    @property
    def not_applicable(self) -> list[RuleCoverage]:
        """The rules that do not apply to this run."""
        return [rule for rule in self.never_evaluated if rule.expected]

    @property
    def first_failure(self) -> FirstFiring | None:
        """The first critical firing, else the first of any severity."""
        critical = [firing for firing in self.first_firings if firing.severity == Severity.CRITICAL]
        return next(iter([*critical, *self.first_firings]), None)


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything a report says."""

    runs: list[RunFindings]
    """The worst first."""
    against: str | None
    settings: dict[str, dict[str, list[str]]]
    """The settings that differ: the names of the runs by value by setting."""
    problems: list[str]
    """Files that were left out, each with the reason."""
