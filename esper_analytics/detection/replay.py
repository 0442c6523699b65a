"""Replay: detection run again over recorded runs, with the rules they ran with or any others.

Covers: finished, live and resumed runs, one or thousands, each with its own rules or all with the same. Firings equal
the alarms a watcher with these rules raises, update by update.
Does not cover: updates or rows that were never recorded. They are counted in `coverage` and never taken for healthy.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

import polars as pl

from esper_analytics.detection.batching import evaluations
from esper_analytics.detection.engine import FIRING_COLUMNS, Evaluation
from esper_analytics.detection.incidents import INCIDENT_COLUMNS, incidents
from esper_analytics.detection.rules import Rules, Values, load_rules, recorded_rules, with_values
from esper_analytics.errors import UsageError
from esper_analytics.runs import Runs, damage_in
from esper_analytics.runs import open as open_runs
from esper_recorder.contract.rules.ruleset import RuleSet, Severity

NO_UPDATE: Final = "no update recorded"
"""The coverage reason of a run without updates."""

COVERAGE_COLUMNS: Final = {
    "run_id": pl.String,
    "rule": pl.String,
    "key": pl.String,
    "evaluated": pl.Int64,
    "abstained": pl.Int64,
    "reason": pl.String,
}


@dataclass(frozen=True, slots=True)
class Result:
    """What rules found in runs, with everything needed to reproduce it.

    Attributes:
        firings: run_id, update, rule, key, severity, value, threshold, phase, progress; by run and update.
        incidents: the firings folded: run_id, rule, key, severity, onset_update, last_update, updates, peak_update,
            peak_value, threshold, phase, recovered; by run and onset. Threshold and phase are those of the peak.
        coverage: one row per run, rule and key: how often it was evaluated (`evaluated`), how often it had no data
            (`abstained`) and why (`reason`, the most frequent first, with counts if there are several).
        runs: the runs that were replayed.
        rules_by_run: the rules each run was evaluated with.
        ran_with: (profile, sha256) of the rules each run was recorded with; None for a run recorded without rules.
    """

    firings: pl.DataFrame
    incidents: pl.DataFrame
    coverage: pl.DataFrame
    runs: Runs
    rules_by_run: Mapping[str, RuleSet]
    ran_with: Mapping[str, tuple[str | None, str] | None]

    @property
    def rules(self) -> RuleSet:
        """The rules, if all runs were evaluated with the same; otherwise read `rules_by_run`."""
        distinct = {rules.sha256: rules for rules in self.rules_by_run.values()}
        if len(distinct) != 1:
            raise UsageError("The runs were evaluated with different rules. Read rules_by_run instead.")
        return next(iter(distinct.values()))

    @property
    def never_evaluated(self) -> pl.DataFrame:
        """The rows of `coverage` whose rule had data at no update."""
        return self.coverage.filter(pl.col("evaluated") == 0)

    def worst(self) -> Severity | None:
        """Return the highest severity among the incidents; None without incidents."""
        severities = map(Severity, self.incidents.get_column("severity").unique())
        return max(severities, key=lambda severity: severity.rank, default=None)

    def reaches(self, severity: Severity) -> bool:
        """Whether an incident is at least this severe."""
        worst = self.worst()
        return worst is not None and worst.rank >= severity.rank

    def provenance(self) -> list[dict[str, Any]]:
        """One row per run: the rules it was evaluated with and those it ran with; enough to replay it identically."""
        rows = []
        for run_id, rules in self.rules_by_run.items():
            profile, sha256 = self.ran_with[run_id] or (None, None)
            rows.append(
                {
                    "run_id": run_id,
                    "rules": rules.name,
                    "sha256": rules.sha256,
                    "overrides": dict(rules.overrides),
                    "text": rules.text,
                    "ran_with": profile,
                    "ran_with_sha256": sha256,
                }
            )
        return rows


def replay(
    runs: Runs | str | os.PathLike[str],
    rules: Rules | None = None,
    *,
    values: Values | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Run detection again over recorded runs.

    Args:
        runs: the runs, or the folder that holds them.
        rules: a profile's name, a TOML file or a RuleSet. By default each run is evaluated with the rules it was
            recorded with, or with `default` if it ran without.
        values: other numbers, by RULE.FIELD, as in `RuleSet.with_values`.
        progress: called with the number of updates done and the total.

    Raises:
        UsageError: unknown rules, an unknown rule or field in `values`, or an invalid value.
        DataError: the rules of every run, or the rows of a part, cannot be read.
    """
    runs = runs if isinstance(runs, Runs) else open_runs(runs)
    manifests = runs.manifests()
    by_run = recorded_rules(runs) if rules is None else dict.fromkeys(manifests, load_rules(rules))
    distinct = {rule_set.sha256: rule_set for rule_set in by_run.values()}
    changed = {sha256: with_values(rule_set, values or {}) for sha256, rule_set in distinct.items()}
    by_run = {run_id: changed[rule_set.sha256] for run_id, rule_set in by_run.items() if run_id in manifests}
    firings, folded, coverage = [], [], []
    try:
        for evaluation in evaluations(runs, by_run, progress):
            firings.append(evaluation.firings.select(list(FIRING_COLUMNS)))
            folded.append(incidents(evaluation))
            coverage.append(_coverage(evaluation))
    except pl.exceptions.ComputeError as error:
        raise damage_in(runs.path, error) from error
    covered = {run_id for frame in coverage for run_id in frame.get_column("run_id").unique()}
    empty = [run_id for run_id in by_run if run_id not in covered]
    rows = [(run_id, rule.name, "", 0, 0, NO_UPDATE) for run_id in empty for rule in by_run[run_id].rules]
    coverage.append(pl.DataFrame(rows, schema=COVERAGE_COLUMNS, orient="row"))
    return Result(
        firings=_by_run(firings, FIRING_COLUMNS),
        incidents=_by_run(folded, INCIDENT_COLUMNS),
        coverage=_by_run(coverage, COVERAGE_COLUMNS),
        runs=runs,
        rules_by_run=by_run,
        ran_with={
            run_id: None if manifest.rules_sha256 is None else (manifest.rules_profile, manifest.rules_sha256)
            for run_id, manifest in manifests.items()
        },
    )


def _coverage(evaluation: Evaluation) -> pl.DataFrame:
    """Fold the engine's coverage to one row per series, its reasons as one text."""
    reason = pl.col("reason")
    counts = (reason + " (" + pl.col("abstained").cast(pl.String) + ")").str.join(", ")
    return (
        evaluation.coverage.group_by("run_id", "rule", "key", maintain_order=True)
        .agg(
            pl.col("evaluated").first(),
            pl.col("abstained").sum(),
            pl.when(pl.len() > 1).then(counts).otherwise(reason.first()).first().alias("reason"),
        )
        .select(list(COVERAGE_COLUMNS))
    )


def _by_run(frames: Sequence[pl.DataFrame], schema: Mapping[str, Any]) -> pl.DataFrame:
    """Concatenate the frames and sort by run, keeping the order within a run."""
    frame = pl.concat([pl.DataFrame(schema=schema), *frames])
    return frame if frame.get_column("run_id").is_sorted() else frame.sort("run_id", maintain_order=True)
