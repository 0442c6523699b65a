"""What the storage tests share: made-up updates, and reading a run's folder back."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from esper_recorder.storage.listing import RowFiles, list_row_files
from esper_recorder.storage.sink import Sink

MINIBATCHES = 3


def update_rows(update: int) -> dict[str, dict[str, list[Any]]]:
    """One update: a row of `ppo_updates` and three of `minibatches`."""
    return {
        "ppo_updates": {"run_id": ["r"], "update": [update], "n": [update * 10], "loss": [float("nan")]},
        "minibatches": {
            "run_id": ["r"] * MINIBATCHES,
            "update": [update] * MINIBATCHES,
            "minibatch": list(range(1, MINIBATCHES + 1)),
            "ratio_max": [1.0, float("inf"), None],
        },
    }


def put(sink: Sink, update: int) -> None:
    """Write and commit one update."""
    for table, data in update_rows(update).items():
        sink.write(table, data)
    sink.commit(update)


def read_rows(folder: Path, table: str, files: RowFiles | None = None) -> list[dict[str, Any]]:
    """All rows of a table, from its parts and from the journals."""
    files = list_row_files(folder) if files is None else files
    rows = [row for part in files.parts.get(table, ()) for row in pq.ParquetFile(part).read().to_pylist()]
    if table in files.journal_rows:
        rows += files.journal_rows[table].to_pylist()
    return rows


def updates_in(folder: Path) -> list[int]:
    """The updates of a run's folder, after checking that every table holds each exactly once."""
    files = list_row_files(folder)
    updates = Counter(row["update"] for row in read_rows(folder, "ppo_updates", files))
    minibatches = Counter(row["update"] for row in read_rows(folder, "minibatches", files))
    assert set(updates.values()) <= {1}, f"doubled: {[u for u, times in updates.items() if times > 1]}"
    assert minibatches == {update: MINIBATCHES for update in updates}
    return sorted(updates)


def updates_in_gaps(gaps: Iterable[Mapping[str, Any]]) -> set[int]:
    """The updates that rows of the table `gaps` span."""
    return {update for gap in gaps for update in range(gap["first_update"], gap["last_update"] + 1)}
