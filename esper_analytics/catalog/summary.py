"""One row per run, from its manifest and its rows: `Runs.list()` and the view `runs`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import polars as pl

from esper_analytics.catalog.discovery import RunEntry
from esper_analytics.catalog.scan import TableScan, polars_type
from esper_recorder.contract.tables import Column, Reducer
from esper_recorder.storage.manifest import how_it_ended

RUNS_VIEW = "runs"
RUNS_ROW = "one run"


def _column(name: str, kind: str, meaning: str, *, unit: str = "", null: str = "never") -> Column:
    return Column(name=name, type=kind, meaning=meaning, unit=unit, null=null, reducer=Reducer.FIRST, since=1)


_TIME = "timestamp[us, UTC]"
RUN_COLUMNS: tuple[Column, ...] = (
    _column("run_id", "string", "the run: name, start and random characters, unique"),
    _column("trainer", "string", "the software that trained", null="not reported"),
    _column("started", _TIME, "when the run began", null="not reported"),
    _column("updates", "int64", "number of the last recorded PPO update; 0 without any", unit="1"),
    _column("progress", "float64", "fraction of the training done at its end", unit="1", null="unknown total length"),
    _column("ended", "string", "`finished`, `raised`, `killed`, `live`, or `unknown` if an imported log does not say"),
    _column("alarms", "int64", "rows of `alarms`: firings while the run was recorded", unit="1"),
    _column(
        "complete",
        "bool",
        "every update up to the last is recorded, nothing was dropped, no file is damaged; false for a killed run, "
        "whose last rows are unknown",
    ),
    _column("name", "string", "the name of the run"),
    _column("ended_at", _TIME, "when the last attempt ended", null="live, or killed"),
    _column("error", "string", "the error that ended the run", null="no error ended it"),
    _column("attempts", "int64", "attempts: 1, and 1 more for each resume", unit="1"),
    _column("gaps", "int64", "rows of `gaps`: what should have been recorded and was not", unit="1"),
    _column("definition", "string", "whose definition the metrics follow", null="not reported"),
    _column("level", "string", "how much was recorded: `minimal`, `normal` or `debug`", null="not reported"),
    _column("rules_profile", "string", "profile of the rules it ran with", null="no rules, or rules of a file"),
    _column("rules_sha256", "string", "rules it ran with, kept in its `rules/`", null="no rules"),
    _column("total_updates", "int64", "planned updates", unit="1", null="not reported"),
    _column("total_steps", "int64", "planned environment steps", unit="steps", null="not reported"),
    _column("host", "string", "machine it was recorded on", null="not reported"),
    _column("config", "string", "the trainer's configuration as JSON, for `config->>'$.key'`", null="not reported"),
    _column("versions", "string", "versions of the software as JSON", null="not reported"),
    _column("folder", "string", "folder it is read from"),
)
_AS_IN_MANIFEST = (
    *("run_id", "name", "started", "definition", "level", "rules_profile", "rules_sha256"),
    *("total_updates", "total_steps", "host"),
)
LIST_COLUMNS = [column.name for column in RUN_COLUMNS[:8]]


def run_rows(runs: Sequence[RunEntry], scans: Mapping[str, TableScan], damaged: Collection[str]) -> pl.DataFrame:
    """Build the frame of the view `runs`.

    Args:
        runs: the runs.
        scans: their tables `ppo_updates`, `alarms` and `gaps`.
        damaged: run_ids of runs with a file that was left out.
    """
    updates = _by_run(
        scans["ppo_updates"]
        .frame(superseded=False)
        .group_by("run_id")
        .agg(
            pl.col.update.max().alias("last"),
            pl.col.update.n_unique().alias("distinct"),
            pl.col.progress.sort_by("update").drop_nulls().last().alias("progress"),
        )
    )
    alarms, gaps = _counts(scans["alarms"]), _counts(scans["gaps"])
    rows = [
        _row(
            run, updates.get(run.run_id, {}), alarms.get(run.run_id, 0), gaps.get(run.run_id, 0), run.run_id in damaged
        )
        for run in runs
    ]
    return pl.DataFrame(rows, schema={column.name: polars_type(column) for column in RUN_COLUMNS}, orient="row")


def _row(run: RunEntry, updates: Mapping[str, Any], alarms: int, gaps: int, damaged: bool) -> dict[str, Any]:
    manifest = run.manifest
    ended = how_it_ended(run.path, manifest)
    last = updates.get("last") or 0
    first = min((attempt.from_update for attempt in manifest.attempts), default=1)
    continuous = updates.get("distinct", 0) == max(last - first + 1, 0)
    dropped = any(attempt.dropped for attempt in manifest.attempts)
    attempt = manifest.last_attempt
    progress = updates.get("progress")
    if progress is None and manifest.total_updates:
        progress = last / manifest.total_updates
    trainer = manifest.trainer.get("name")
    return {name: getattr(manifest, name) for name in _AS_IN_MANIFEST} | {
        "trainer": None if trainer is None else str(trainer),
        "updates": last,
        "progress": progress,
        "ended": ended,
        "alarms": alarms,
        "complete": ended != "killed" and continuous and not (gaps or dropped or damaged),
        "ended_at": attempt.ended if attempt else None,
        "error": attempt.error if attempt else None,
        "attempts": len({attempt.attempt for attempt in manifest.attempts}),
        "gaps": gaps,
        "config": None if manifest.config is None else json.dumps(manifest.config, ensure_ascii=False),
        "versions": json.dumps(dict(manifest.versions), ensure_ascii=False) if manifest.versions else None,
        "folder": str(run.path),
    }


def _by_run(frame: pl.LazyFrame) -> dict[str, dict[str, Any]]:
    return {row["run_id"]: row for row in frame.collect().iter_rows(named=True)}


def _counts(scan: TableScan) -> dict[str, int]:
    counted = scan.frame(superseded=False).group_by("run_id").agg(pl.len().alias("rows"))
    return {run_id: row["rows"] for run_id, row in _by_run(counted).items()}
