"""Replaying rules over recorded runs, and what comes out of it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import polars as pl

from esper_analytics.detection.batching import evaluations
from esper_analytics.detection.diff import difference
from esper_analytics.detection.engine import FIRING_COLUMNS, Evaluation
from esper_analytics.detection.incidents import INCIDENT_COLUMNS, incidents
from esper_analytics.errors import DataError, UsageError
from esper_analytics.runs import Runs
from esper_analytics.runs import open as open_runs
from esper_recorder.contract.rules.ruleset import RuleError, RuleSet, Severity, load_file, load_profile, profiles
from esper_recorder.contract.rules.signal import UPDATE_TABLE

DEFAULT_PROFILE: Final = "default"
"""The rules for a run that ran with none."""

NO_UPDATE: Final = "no update recorded"
"""What coverage says of a run that has none."""

RESULT_COVERAGE: Final = {
    "run_id": pl.String,
    "rule": pl.String,
    "key": pl.String,
    "evaluated": pl.Int64,
    "abstained": pl.Int64,
    "reason": pl.String,
}

Rules = RuleSet | str | os.PathLike[str]


@dataclass(frozen=True, slots=True)
class Result:
    """What rules found in runs, with all it takes to get the same again.

    Attributes:
        firings: run_id, update, rule, key, severity, value, threshold, phase, progress; by run and update.
        incidents: the firings folded: run_id, rule, key, severity, onset_update, last_update, updates, peak_update,
            peak_value, threshold, phase, recovered; by run and onset. Threshold and phase are those of the peak.
        coverage: a row per run, rule and key: how often it looked (`evaluated`), how often it could not (`abstained`)
            and why (`reason`, the most frequent first, with counts where there are several).
        runs: the runs that were looked at.
        rules_by_run: the rules each run was held against.
        ran_with: (profile, sha256) of the rules each run itself ran with; None where it ran with none.
    """

    firings: pl.DataFrame
    incidents: pl.DataFrame
    coverage: pl.DataFrame
    runs: Runs
    rules_by_run: Mapping[str, RuleSet]
    ran_with: Mapping[str, tuple[str | None, str] | None]

    @property
    def rules(self) -> RuleSet:
        """The rules, where all runs were held against the same; see `rules_by_run` where they were not."""
        distinct = {rules.sha256: rules for rules in self.rules_by_run.values()}
        if len(distinct) != 1:
            raise UsageError("The runs were held against different rules; ask rules_by_run, or give rules to replay.")
        return next(iter(distinct.values()))

    @property
    def blind(self) -> pl.DataFrame:
        """The part of `coverage` of rules that never once could look."""
        return self.coverage.filter(pl.col("evaluated") == 0)

    def worst(self) -> Severity | None:
        """The severest of the incidents; None where there is none."""
        found = [Severity(name) for name in self.incidents.get_column("severity").unique()]
        return max(found, key=lambda severity: severity.rank, default=None)

    def provenance(self) -> list[dict[str, Any]]:
        """A row a run: what it was held against and what it ran with; enough to replay the same again."""
        rows = []
        for run_id, rules in self.rules_by_run.items():
            ran = self.ran_with[run_id]
            rows.append(
                {
                    "run_id": run_id,
                    "rules": rules.name,
                    "sha256": rules.sha256,
                    "overrides": dict(rules.overrides),
                    "text": rules.text,
                    "ran_with": None if ran is None else ran[0],
                    "ran_with_sha256": None if ran is None else ran[1],
                }
            )
        return rows


def load_rules(rules: Rules) -> RuleSet:
    """Rules by the name of a shipped profile, or from a TOML file of one's own; a RuleSet is given back.

    Raises:
        UsageError: no such profile and no such file, or the file is off; the message says where and how.
    """
    if isinstance(rules, RuleSet):
        return rules
    try:
        if isinstance(rules, str) and rules in profiles():
            return load_profile(rules)
        looks_like_a_file = not isinstance(rules, str) or rules.endswith(".toml") or os.sep in rules
        if looks_like_a_file or Path(rules).is_file():
            return load_file(Path(rules))
        return load_profile(os.fspath(rules))
    except RuleError as error:
        hint = f" There is a file {rules}.toml: write that." if Path(f"{rules}.toml").is_file() else ""
        raise UsageError(_sentence(error) + hint) from error


def rules_of_all(runs: Runs) -> RuleSet:
    """The rules all runs ran with; `default` where they ran with none, or with different ones.

    Raises DataError: they cannot be read.
    """
    texts = runs.rules_texts()
    distinct = set(texts.values())
    text = distinct.pop() if len(distinct) == 1 else None
    return load_rules(DEFAULT_PROFILE) if text is None else _own_rules(next(iter(texts)), *text)


def replay(
    runs: Runs | str | os.PathLike[str],
    rules: Rules | None = None,
    *,
    values: Mapping[str, float | bool | str] | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> Result:
    """Run detection again over recorded runs.

    Args:
        runs: the runs, or the folder that holds them.
        rules: a profile's name, a TOML file or a RuleSet; left out, each run is held against the rules it ran with,
            or against `default` where it ran with none.
        values: other numbers, by RULE.KEY, as in `RuleSet.with_values`.
        progress: called with the updates done and the updates to do.

    Raises:
        UsageError: unknown rules, an unknown rule or key in `values`, a value that is no number.
        DataError: a run's own rules cannot be read.
    """
    if not isinstance(runs, Runs):
        runs = open_runs(runs)
    ran_with, held = {}, {}
    given = load_rules(rules) if rules is not None else None
    default = load_rules(DEFAULT_PROFILE)
    texts = runs.rules_texts()
    parsed: dict[tuple[str | None, str], RuleSet] = {}
    for run_id, text in texts.items():
        ran_with[run_id] = None if text is None else (text[0], hashlib.sha256(text[1].encode()).hexdigest())
        if given is None and text is not None and text not in parsed:
            parsed[text] = _own_rules(run_id, *text)
        held[run_id] = given or (default if text is None else parsed[text])
    held = _with_values(held, values or {})
    firings, folded, coverage = [], [], []
    for found in evaluations(runs, held, progress):
        firings.append(found.firings.select(list(FIRING_COLUMNS)))
        folded.append(incidents(found))
        coverage.append(_covered(found))
    judged = {run_id for frame in coverage for run_id in frame.get_column("run_id").unique()}
    coverage.append(_nothing_recorded([run_id for run_id in held if run_id not in judged], held))
    return Result(
        firings=_by_run(firings, FIRING_COLUMNS),
        incidents=_by_run(folded, INCIDENT_COLUMNS),
        coverage=_by_run(coverage, RESULT_COVERAGE),
        runs=runs,
        rules_by_run=held,
        ran_with=ran_with,
    )


def live(runs: Runs) -> pl.DataFrame:
    """The alarms the runs raised while they were recorded: run_id, rule, key, update.

    Only those at updates that were recorded, for no other can be replayed; see `without_update`.

    Raises:
        UsageError: no run has rules of its own or alarms, so there is nothing to compare with.
    """
    silent = without_rules(runs)
    if silent and len(silent) == len(runs.ids):
        whose = f"{silent[0]} ran with no rules, so it has no alarms of its own"
        if len(silent) > 1:
            whose = f"None of the {len(silent)} runs ran with rules, so they have no alarms of their own"
        raise UsageError(f"{whose} to compare with. Compare with a profile, such as default.")
    return _alarms(runs).join(_recorded(runs), on=["run_id", "update"], how="semi")


def since_live(result: Result, alarms: pl.DataFrame) -> pl.DataFrame:
    """What `result` fires other than the live `alarms`, as `diff` has it, over the runs that had rules."""
    silent = without_rules(result.runs)
    return difference(alarms, result.firings.filter(~pl.col("run_id").is_in(silent)))


def without_rules(runs: Runs) -> list[str]:
    """The runs that ran with no rules and hold no alarms: that none was raised says nothing of them."""
    raised = set(_alarms(runs).get_column("run_id").unique())
    return [run for run, told in runs.manifests().items() if run not in raised and told.rules_sha256 is None]


def without_update(runs: Runs) -> pl.DataFrame:
    """The alarms of updates that were not recorded: run_id, rule, key, update.

    Esper tells an update's alarms before the update, so that a run may be killed between them; and it raises one where
    it makes no update at all.
    """
    return _alarms(runs).join(_recorded(runs), on=["run_id", "update"], how="anti")


def _alarms(runs: Runs) -> pl.DataFrame:
    return runs.table("alarms").select("run_id", "rule", pl.col("key").fill_null(""), "update").collect()


def _recorded(runs: Runs) -> pl.DataFrame:
    return runs.table(UPDATE_TABLE).select("run_id", "update").unique().collect()


def diff(before: Result, after: Result) -> pl.DataFrame:
    """The firings that came (`new`) and went (`gone`): run_id, rule, key, update, change; over the runs of both."""
    both = set(before.rules_by_run) & set(after.rules_by_run)
    frames = (result.firings.filter(pl.col("run_id").is_in(list(both))) for result in (before, after))
    return difference(*frames)


def _own_rules(run_id: str, profile: str | None, text: str) -> RuleSet:
    try:
        return RuleSet.parse(text, profile or f"the rules of {run_id}")
    except RuleError as error:
        raise DataError(f"The rules that {run_id} ran with cannot be used: {_sentence(error)} Give others.") from error


def _with_values(held: Mapping[str, RuleSet], values: Mapping[str, float | bool | str]) -> dict[str, RuleSet]:
    changed: dict[str, RuleSet] = {}  # one RuleSet per distinct text
    try:
        for rules in held.values():
            if rules.sha256 not in changed:
                changed[rules.sha256] = rules.with_values(values)
    except RuleError as error:
        raise UsageError(_sentence(error)) from error
    return {run_id: changed[rules.sha256] for run_id, rules in held.items()}


def _covered(found: Evaluation) -> pl.DataFrame:
    """The engine's coverage with one row per series, its reasons as words."""
    several = pl.len() > 1
    counted = pl.col("reason") + " (" + pl.col("abstained").cast(pl.String) + ")"
    return (
        found.coverage.group_by("run_id", "rule", "key", maintain_order=True)
        .agg(
            pl.col("evaluated").first(),
            pl.col("abstained").sum(),
            pl.when(several).then(counted.str.join(", ")).otherwise(pl.col("reason").first()).first().alias("reason"),
        )
        .select(list(RESULT_COVERAGE))
    )


def _nothing_recorded(run_ids: Sequence[str], held: Mapping[str, RuleSet]) -> pl.DataFrame:
    rows = [(run_id, rule.name, "", 0, 0, NO_UPDATE) for run_id in run_ids for rule in held[run_id].rules]
    return pl.DataFrame(rows, schema=RESULT_COVERAGE, orient="row")


def _by_run(frames: Sequence[pl.DataFrame], schema: Mapping[str, Any]) -> pl.DataFrame:
    """The rows of all, run by run; those of one run stay in their order."""
    frame = pl.concat([pl.DataFrame(schema=schema), *frames])
    return frame if frame.get_column("run_id").is_sorted() else frame.sort("run_id", maintain_order=True)


def _sentence(error: Exception) -> str:
    text = str(error)
    return text if text.endswith(("?", ".", "!")) else f"{text}."
