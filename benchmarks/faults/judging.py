"""How good is a detection? Arithmetic on incidents and on what is known of the runs; it opens no run.

An incident is *because of the fault* if it began at or after the fault's onset and the control has none of its rule and
key. A fault is *harmful* if its run crashed or lost at least half of the return that its control gained. Intervals are
bootstraps of 95 %, over fault classes for faults (runs of a class are alike) and over runs for healthy ones.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, median
from typing import Any, Final, TypeVar

import numpy as np

from esper_recorder.contract.rules.ruleset import Severity
from faults.training import Manifest

LOST: Final = 0.5
"""Fraction of the control's gain whose loss makes a fault harmful."""

LEAST_GAIN: Final = 0.1
"""Fraction of its first return that a control must gain for a loss of it to mean anything."""

RESAMPLES: Final = 2000


@dataclass(frozen=True)
class Incident:
    """What the judge needs of an incident."""

    rule: str
    key: str
    severity: str
    onset: int

    @property
    def rank(self) -> int:
        """Of its severity."""
        return Severity(self.severity).rank


@dataclass(frozen=True)
class JudgedRun:
    """A faulty run and what was said of it.

    Attributes:
        harmful: None if that cannot be said, as the control gained next to nothing.
        latency: updates from the fault's onset to the first incident because of it that is a warning or worse.
        first_rule: the rule of that incident.
        causes: the causes a diagnosis named, the likeliest first; None without a diagnosis.
    """

    name: str
    cause: str
    key: str
    harmful: bool | None
    warned: bool
    critical: bool
    latency: int | None
    first_rule: str | None
    causes: tuple[str, ...] | None


@dataclass(frozen=True)
class Estimate:
    """A number with its interval, and how many it is of."""

    value: float
    low: float
    high: float
    n: int


def judge(
    manifest: Manifest,
    control: Manifest,
    incidents: Sequence[Incident],
    of_control: Sequence[Incident],
    causes: Sequence[str] | None = None,
) -> JudgedRun:
    """Judge what was said of a faulty run."""
    usual = {(incident.rule, incident.key) for incident in of_control}
    because = [i for i in incidents if i.onset >= manifest["onset"] and (i.rule, i.key) not in usual]
    loud = sorted((i for i in because if i.rank >= Severity.WARNING.rank), key=lambda i: (i.onset, -i.rank))
    return JudgedRun(
        manifest["name"],
        manifest["cause"],
        manifest["key"],
        is_harmful(manifest, control),
        bool(loud),
        any(i.rank >= Severity.CRITICAL.rank for i in because),
        loud[0].onset - manifest["onset"] if loud else None,
        loud[0].rule if loud else None,
        None if causes is None else tuple(causes),
    )


def is_harmful(manifest: Manifest, control: Manifest) -> bool | None:
    """Whether a fault cost what its control gained; None if the control gained too little to say."""
    if manifest["crashed"]:
        return True
    begin, end = _first_and_last(control)
    if end - begin <= LEAST_GAIN * abs(begin):
        return None
    return end - _first_and_last(manifest)[1] >= LOST * (end - begin)


def _first_and_last(manifest: Manifest) -> tuple[float, float]:
    """Mean return of the first and of the last quarter of the updates, in the environment's own rewards."""
    rows = manifest["witness"]
    quarter = max(len(rows) // 4, 1)
    returns = [row["true_return"] for row in rows]
    known = [value for value in returns if value is not None]
    if not known:
        return 0.0, 0.0
    first = [value for value in returns[:quarter] if value is not None] or known[:1]
    last = [value for value in returns[-quarter:] if value is not None] or known[-1:]
    return fmean(first), fmean(last)


_T = TypeVar("_T")


def rate(runs: Iterable[JudgedRun], says: Callable[[JudgedRun], bool]) -> Estimate:
    """Fraction of runs of which something was said, resampled by fault class."""
    by_class: dict[str, list[float]] = defaultdict(list)
    for run in runs:
        by_class[run.name].append(float(says(run)))
    groups = list(by_class.values())
    return _estimate(groups, lambda chosen: fmean(v for group in chosen for v in group), sum(map(len, groups)))


def false_incidents(counts: Sequence[tuple[int, int]]) -> Estimate:
    """Incidents per 1,000 updates, of (incidents, updates) of healthy runs."""

    def per_thousand(chosen: Sequence[tuple[int, int]]) -> float:
        return 1000 * sum(n for n, _ in chosen) / max(sum(updates for _, updates in chosen), 1)

    return _estimate(counts, per_thousand, len(counts))


def _estimate(groups: Sequence[_T], statistic: Callable[[Sequence[_T]], float], n: int) -> Estimate:
    if not groups:
        return Estimate(float("nan"), float("nan"), float("nan"), 0)
    random = np.random.default_rng(0)
    drawn = [statistic([groups[i] for i in random.integers(0, len(groups), len(groups))]) for _ in range(RESAMPLES)]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Estimate(statistic(groups), float(low), float(high), n)


def summary(runs: Sequence[JudgedRun], healthy: Mapping[str, Sequence[tuple[int, int]]]) -> list[dict[str, Any]]:
    """One row per measure and set of faults. `healthy`: (incidents, updates) of each healthy run, by severity."""
    sets = {
        "all": list(runs),
        "harmful": [run for run in runs if run.harmful],
        "harmless": [run for run in runs if not run.harmful],
    }
    measures: dict[str, Callable[[JudgedRun], bool]] = {
        "warning or worse": lambda run: run.warned,
        "critical": lambda run: run.critical,
    }
    if any(run.causes is not None for run in runs):
        measures["true cause first"] = lambda run: run.cause in (run.causes or ())[:1]
        measures["true cause among the first two"] = lambda run: run.cause in (run.causes or ())[:2]
    rows = [_row(name, kind, rate(chosen, says)) for kind, chosen in sets.items() for name, says in measures.items()]
    for kind, chosen in sets.items():
        latencies = [float(run.latency) for run in chosen if run.latency is not None]
        rows.append(_row("median latency", kind, _estimate(latencies, median, len(latencies))))
    rows += [
        _row(f"{severity} incidents per 1,000 updates", "healthy", false_incidents(counts))
        for severity, counts in healthy.items()
    ]
    return rows


def _row(measure: str, runs: str, estimate: Estimate) -> dict[str, Any]:
    numbers = {name: round(getattr(estimate, name), 4) for name in ("value", "low", "high")}
    return {"measure": measure, "of": runs, "n": estimate.n, **numbers}


def by_class(runs: Iterable[JudgedRun]) -> list[dict[str, Any]]:
    """One row per fault class."""
    groups: dict[str, list[JudgedRun]] = defaultdict(list)
    for run in runs:
        groups[run.name].append(run)
    rows = []
    for name, group in groups.items():
        rules = Counter(run.first_rule or "nothing" for run in group)
        latencies = [run.latency for run in group if run.latency is not None]
        rows.append(
            {
                "fault": name,
                "cause": group[0].cause,
                "runs": len(group),
                "harmful": sum(run.harmful is True for run in group),
                "warned": sum(run.warned for run in group),
                "critical": sum(run.critical for run in group),
                "latency": median(latencies) if latencies else None,
                "first rules": [f"{rule} {n}" for rule, n in rules.most_common(2)],
            }
        )
    return rows


def confusion(runs: Iterable[JudgedRun]) -> list[dict[str, Any]]:
    """One row per true cause and cause named first (without a diagnosis: the rule that fired first), with counts."""
    counts = Counter(
        (run.cause, (run.first_rule or "nothing") if run.causes is None else (*run.causes, "nothing")[0])
        for run in runs
    )
    return [{"true cause": cause, "said": said, "runs": n} for (cause, said), n in sorted(counts.items())]
