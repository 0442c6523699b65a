"""Run folders for tests, written as the recorder writes them: a manifest, real Parquet parts, real journals.

    path = write_run(tmp_path, "a", updates=[{"ratio_max": 1.5}, {"ratio_max": float("nan")}], total_updates=10)

A row is a mapping of column name to value. What a row leaves out is filled in as follows, and NULL otherwise:
run_id, attempt 1, rank 0, update (its position among the rows of `updates`, else 1), time (one second per update from
`STARTED`), elapsed_s, and for `ppo_updates` also definition "pooled", and progress where `total_updates` is given.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from esper_recorder.contract.tables import SCHEMA_VERSION, column_names
from esper_recorder.storage.arrow_batches import columns_to_table, to_batch
from esper_recorder.storage.journal import JournalWriter
from esper_recorder.storage.parquet import write_part

STARTED = datetime(2026, 1, 1, tzinfo=UTC)

Row = Mapping[str, Any]


def run_id_of(name: str) -> str:
    """The run_id `write_run` gives a run of this name."""
    return f"{name}-20260101T000000Z-abc123"


def write_run(
    root: Path,
    name: str = "run",
    *,
    updates: Sequence[Row] = (),
    minibatches: Sequence[Row] = (),
    tables: Mapping[str, Sequence[Row]] | None = None,
    total_updates: int | None = None,
    ended: str | None = "finished",
    rules: str | None = None,
    profile: str | None = None,
    rows_per_part: int = 1_000_000,
    manifest: Mapping[str, Any] | None = None,
    folder: str | None = None,
) -> Path:
    """Write one run under `root` and return its folder, whose name is the run_id.

    Args:
        updates: rows of `ppo_updates`.
        minibatches: rows of `minibatches`.
        tables: rows of any table, by table name.
        total_updates: length of the training; also gives each update its progress.
        ended: `finished`, `raised`, or None for a run that was killed.
        rules: text of the rules the run ran with.
        profile: name of their profile.
        rows_per_part: the rows of a part.
        manifest: entries of `run.json` that replace the defaults.
        folder: name of the folder, if not the run_id.
    """
    run_id = (manifest or {}).get("run_id", run_id_of(name))
    rows_by_table: dict[str, list[Row]] = {
        "ppo_updates": list(updates),
        "minibatches": list(minibatches),
    }
    for table, rows in (tables or {}).items():
        rows_by_table.setdefault(table, []).extend(rows)
    path = root / (folder or run_id)
    path.mkdir(parents=True)
    last_update = 0
    attempts = {1}
    for table, rows in rows_by_table.items():
        filled = complete_rows(table, rows, run_id=run_id, total_updates=total_updates)
        for row in filled:
            last_update = max(last_update, row["update"] or 0)
            attempts.add(row["attempt"])
        for (attempt, rank), own in _by_process(filled).items():
            for seq, start in enumerate(range(0, len(own), rows_per_part), 1):
                add_part(path, table, own[start : start + rows_per_part], attempt=attempt, rank=rank, seq=seq)
    write_manifest(
        path,
        run_id=run_id,
        name=name,
        attempts=sorted(attempts),
        last_update=last_update,
        total_updates=total_updates,
        ended=ended,
        rules=rules,
        profile=profile,
        over=manifest or {},
    )
    return path


def complete_rows(
    table: str, rows: Iterable[Row], *, run_id: str, total_updates: int | None = None
) -> list[dict[str, Any]]:
    """Fill in the identity, time and progress that rows lack."""
    filled = []
    for position, row in enumerate(rows, 1):
        update = row.get("update", position if table == "ppo_updates" else 1)
        defaults: dict[str, Any] = {
            "run_id": run_id,
            "attempt": 1,
            "rank": 0,
            "update": update,
            "time": STARTED + timedelta(seconds=update or 0),
            "elapsed_s": float(update or 0),
        }
        if table == "ppo_updates":
            defaults["definition"] = "pooled"
            if total_updates:
                defaults["progress"] = update / total_updates
        filled.append({**defaults, **row})
    return filled


def add_part(path: Path, table: str, rows: Sequence[Row], *, attempt: int = 1, rank: int = 0, seq: int = 1) -> Path:
    """Write complete rows as one part of a run and return the part's path."""
    part = path / table / f"part-a{attempt}-r{rank}-{seq:06d}.parquet"
    write_part(part, table, columns_to_table(table, as_columns(table, rows)), durable=False)
    return part


def add_journal(
    path: Path, tables: Mapping[str, Sequence[Row]], *, attempt: int = 1, rank: int = 0, seq: int = 1
) -> Path:
    """Write complete rows of any tables as a journal, one commit per update, and return the journal's path."""
    journal = path / "journal" / f"a{attempt}-r{rank}-{seq:06d}.journal"
    journal.parent.mkdir(exist_ok=True)
    writer = JournalWriter(journal)
    for update in sorted({row["update"] for rows in tables.values() for row in rows}):
        batches = []
        for table, rows in tables.items():
            if own := [row for row in rows if row["update"] == update]:
                batches.append((table, to_batch(table, as_columns(table, own))))
        writer.commit(update, batches)
    writer.close()
    return journal


def as_columns(table: str, rows: Sequence[Row]) -> dict[str, list[Any]]:
    """Rows as columns of the table; a column that no row names is left out, an undeclared one is an error."""
    unknown = sorted({name for row in rows for name in row} - set(column_names(table)))
    assert not unknown, f"{table} declares no column {', '.join(unknown)}"
    return {
        name: [row.get(name) for row in rows]
        for name in column_names(table)
        if any(name in row for row in rows) or not rows
    }


def write_manifest(
    path: Path,
    *,
    run_id: str,
    name: str = "run",
    attempts: Sequence[int] = (1,),
    last_update: int = 0,
    total_updates: int | None = None,
    ended: str | None = "finished",
    rules: str | None = None,
    profile: str | None = None,
    over: Mapping[str, Any] | None = None,
) -> None:
    """Write `run.json`, and the text of the rules beside it."""
    sha256 = None
    if rules is not None:
        sha256 = hashlib.sha256(rules.encode()).hexdigest()
        (path / "rules").mkdir(exist_ok=True)
        (path / "rules" / f"{sha256}.toml").write_text(rules)
    started = STARTED.isoformat()
    finished = (STARTED + timedelta(seconds=last_update)).isoformat()
    content: dict[str, Any] = {
        "format": 1,
        "schema_version": SCHEMA_VERSION,
        "run_id": run_id,
        "name": name,
        "started": started,
        "trainer": {"name": "stable-baselines3 PPO"},
        "definition": "pooled",
        "config": {"learning_rate": 3e-4, "seed": 1},
        "versions": {"esper_recorder": "0.1.0", "python": "3.11.0", "torch": "2.13.0"},
        "host": "elsewhere",
        "platform": "Linux",
        "level": "normal",
        "rules": {"profile": profile, "sha256": sha256},
        "total_updates": total_updates,
        "total_steps": None,
        "attempts": [
            {
                "attempt": attempt,
                "rank": 0,
                "pid": 1,
                "host": "elsewhere",
                "started": started,
                "from_update": 1,
                "ended": finished if ended and attempt == attempts[-1] else None,
                "how": ended if attempt == attempts[-1] else None,
                "error": "ValueError: wrecked" if ended == "raised" and attempt == attempts[-1] else None,
                "updates": last_update if ended and attempt == attempts[-1] else None,
                "lost": {"rows": 0, "writes": 0, "message": None},
            }
            for attempt in attempts
        ],
        **(over or {}),
    }
    (path / "run.json").write_text(json.dumps(content, indent=1))


def _by_process(rows: Sequence[dict[str, Any]]) -> dict[tuple[int, int], list[dict[str, Any]]]:
    groups: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["attempt"], row["rank"]), []).append(row)
    return groups
