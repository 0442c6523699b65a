"""What a report says, as plain data: `findings` fills it in, the templates show it, the JSON report is it."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from typing import Any

from esper_analytics.plots.figures import RunFrames
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
    """Why the shipped threshold is what it is; it says so where another was put in its place."""
    note: str
    """Which rule is silent where this one, or the one above it, fires."""


@dataclass(frozen=True, slots=True)
class Incident:
    """One row of `Result.incidents`, with what the rule reads."""

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
    """`no longer firing`, `firing at the end`, which rule took over, or that this one could not look again."""


@dataclass(frozen=True, slots=True)
class IncidentGroup:
    """Incidents of one rule that began, fired and ended alike for several keys, with the worst of their peaks."""

    incident: Incident
    keys: list[str]
    what: str
    """`10 layers`; empty for one key or none."""


@dataclass(frozen=True, slots=True)
class Difference:
    """What replaying with other rules changes for one rule and key."""

    rule: str
    key: str
    change: str
    updates: int
    first_update: int
    last_update: int


@dataclass(frozen=True, slots=True)
class Unjudged:
    """A rule that could not look at every update."""

    rule: str
    keys: list[str]
    severity: str
    reads: str
    evaluated: int
    abstained: int
    reason: str
    calm: bool
    """There was nothing to look at: the run is too short for it, or the rule does not apply to its actions."""


@dataclass(frozen=True, slots=True)
class Doubt:
    """A row of the view `run_confounders` that makes the verdict doubtful: an alarm of nothing, a blind rule.

    `updates`, `first_update` and `last_update` are None where it concerns the run as a whole.
    """

    confounder: str
    meaning: str
    updates: int | None
    first_update: int | None
    last_update: int | None
    rules: list[str]
    """The rules, fired or silent, that say nothing there."""


@dataclass(frozen=True, slots=True)
class Exemplars:
    """The transitions whose probability moved furthest in one update."""

    update: int
    why: str
    summary: str
    missing: str
    """A sentence where the value the rule fired on is not that of a transition shown."""
    rows: list[dict[str, Any]]


@dataclass(frozen=True, slots=True)
class RunFindings:
    """Everything a report says about one run."""

    run_id: str
    name: str
    verdict: str
    severity: str | None
    """The worst of its incidents."""
    ended: str
    """`finished`, `raised`, `interrupted` (Ctrl-C), `killed`, `live` or `unknown`."""
    error: str | None
    """What it raised, shortened."""
    state: list[str]
    """Sentences on how the run ended and what its recording lacks."""
    complete: bool
    updates: int
    steps: int | None
    progress: float | None
    last_return: float | None
    trainer: str
    started: str
    duration: str
    first: list[FirstFiring]
    incidents: list[Incident]
    grouped: list[IncidentGroup]
    """The same incidents, those that are alike for several keys as one."""
    unread: list[Unjudged]
    """Rules that never once could look."""
    partly: list[Unjudged]
    doubts: list[Doubt]
    rules_count: int
    exemplars: Exemplars | None
    differences: list[Difference]
    compared: bool
    """Whether there was something to compare with: a run without rules of its own has no live alarms."""
    config: dict[str, str]
    versions: dict[str, str]
    host: str
    platform: str
    level: str
    definition: str
    rules: str
    rules_sha256: str
    held_against: str
    """The rules in words: `default, with ratio_explosion.above = 2 instead of 10`."""
    overrides: dict[str, str]
    ran_with: str
    traces: list[str]
    """The profiler's traces in the run's folder."""
    ending: Ending
    frames: RunFrames = field(repr=False)

    @property
    def counts(self) -> dict[str, int]:
        """Incidents by severity, the worst first."""
        found = Counter(incident.severity for incident in self.incidents)
        return {str(severity): found[str(severity)] for severity in reversed(Severity)}

    @property
    def judged(self) -> bool:
        """Whether at least one rule could look at least once."""
        return self.updates > 0 and len({rule.rule for rule in self.unread}) < self.rules_count

    @property
    def broken(self) -> bool:
        """Something critical happened, or the training ended with an error."""
        return self.severity == Severity.CRITICAL or self.ended == "raised"

    @property
    def blind(self) -> list[Unjudged]:
        """The rules that never could look although they should have been able to."""
        return [one for one in self.unread if not one.calm]

    @property
    def calm(self) -> list[Unjudged]:
        """The rules that never looked, as there was nothing for them."""
        return [one for one in self.unread if one.calm]

    @property
    def broke(self) -> FirstFiring | None:
        """The first critical firing, else the first of any severity."""
        critical = [one for one in self.first if one.severity == Severity.CRITICAL]
        return next(iter([*critical, *self.first]), None)


@dataclass(frozen=True, slots=True)
class Differing:
    """A setting that is not the same in all runs."""

    key: str
    values: list[tuple[str, list[str]]]
    """(value, the names of the runs that have it)."""


@dataclass(frozen=True, slots=True)
class Findings:
    """Everything a report says."""

    runs: list[RunFindings]
    against: str | None
    differing: list[Differing]
    """The settings that are not the same in all runs."""
    problems: list[str]
    """Files that were left out, each with the reason."""
