"""One row per run: what the manifests say, and what the rows add up to. It is `Runs.list()` and the view `runs`."""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import polars as pl

from esper_analytics.catalog.discovery import FoundRun
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
    _column("trainer", "string", "the software that trained", null="not told"),
    _column("started", _TIME, "when the run began", null="not told"),
    _column("updates", "int64", "number of the last PPO update recorded; 0 where there is none", unit="1"),
    _column(
        "progress", "float64", "share of the training done at its last update", unit="1", null="the length was not told"
    ),
    _column(
        "ended", "string", "`finished`, `raised`, `killed`, `live`, or `unknown` for an imported run that did not tell"
    ),
    _column("alarms", "int64", "rows of `alarms`: firings while the run was recorded", unit="1"),
    _column(
        "complete",
        "bool",
        "every update up to the last is recorded, nothing was lost, no file is damaged; no for a run that was killed, "
        "whose last rows nobody knows",
    ),
    _column("name", "string", "the name the run was given"),
    _column("ended_at", _TIME, "when the last attempt ended", null="it is live, or was killed"),
    _column("error", "string", "the error that ended the run", null="it did not end by one"),
    _column("attempts", "int64", "attempts: 1 and one more for each time it was resumed", unit="1"),
    _column("gaps", "int64", "rows of `gaps`: stretches that were to be recorded and were not", unit="1"),
    _column("definition", "string", "whose definition the metrics follow", null="not told"),
    _column("level", "string", "how much was recorded", null="not told"),
    _column("rules_profile", "string", "profile of the rules it ran with", null="none, or rules of a file"),
    _column("rules_sha256", "string", "the rules it ran with, kept in its `rules/`", null="it ran with none"),
    _column("total_updates", "int64", "updates the training was to have", unit="1", null="not told"),
    _column("total_steps", "int64", "environment steps the training was to have", unit="steps", null="not told"),
    _column("host", "string", "machine it was recorded on", null="not told"),
    _column("config", "string", "the trainer's configuration as JSON, for `config->>'$.key'`", null="not told"),
    _column("versions", "string", "versions of the software as JSON", null="not told"),
    _column("folder", "string", "folder it is read from"),
)
LIST_COLUMNS = [column.name for column in RUN_COLUMNS[:8]]


def run_rows(folders: Sequence[FoundRun], scans: Mapping[str, TableScan], damaged: Collection[str]) -> pl.DataFrame:
    """The frame of the view `runs`.

    Args:
        folders: the runs.
        scans: the tables `ppo_updates`, `alarms` and `gaps` of these runs.
        damaged: run_ids of which a file was left out.
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
    alarms = _counts(scans["alarms"])
    gaps = _counts(scans["gaps"])
    rows = []
    for run in folders:
        seen = updates.get(run.run_id, {})
        rows.append(_row(run, seen, alarms.get(run.run_id, 0), gaps.get(run.run_id, 0), run.run_id in damaged))
    return pl.DataFrame(rows, schema={column.name: polars_type(column) for column in RUN_COLUMNS}, orient="row")


def _row(run: FoundRun, seen: Mapping[str, Any], alarms: int, gaps: int, damaged: bool) -> dict[str, Any]:
    manifest = run.manifest
    ended = how_it_ended(run.path, manifest)
    last = seen.get("last") or 0
    first = min((attempt.from_update for attempt in manifest.attempts), default=1)
    whole = seen.get("distinct", 0) == max(last - first + 1, 0)
    lost = any(attempt.dropped for attempt in manifest.attempts)
    attempt = manifest.last_attempt
    progress = seen.get("progress")
    if progress is None and manifest.total_updates:
        progress = last / manifest.total_updates
    trainer = manifest.trainer.get("name")
    return {
        "run_id": run.run_id,
        "trainer": None if trainer is None else str(trainer),
        "started": manifest.started,
        "updates": last,
        "progress": progress,
        "ended": ended,
        "alarms": alarms,
        "complete": ended != "killed" and whole and not (gaps or lost or damaged),
        "name": manifest.name,
        "ended_at": attempt.ended if attempt else None,
        "error": attempt.error if attempt else None,
        "attempts": len({attempt.attempt for attempt in manifest.attempts}),
        "gaps": gaps,
        "definition": manifest.definition,
        "level": manifest.level,
        "rules_profile": manifest.rules_profile,
        "rules_sha256": manifest.rules_sha256,
        "total_updates": manifest.total_updates,
        "total_steps": manifest.total_steps,
        "host": manifest.host,
        "config": None if manifest.config is None else json.dumps(manifest.config, ensure_ascii=False),
        "versions": json.dumps(dict(manifest.versions), ensure_ascii=False) if manifest.versions else None,
        "folder": str(run.path),
    }


def _by_run(frame: pl.LazyFrame) -> dict[str, dict[str, Any]]:
    return {row["run_id"]: row for row in frame.collect().iter_rows(named=True)}


def _counts(scan: TableScan) -> dict[str, int]:
    counted = scan.frame(superseded=False).group_by("run_id").agg(pl.len().alias("rows"))
    return {run_id: row["rows"] for run_id, row in _by_run(counted).items()}
