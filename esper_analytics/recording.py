"""How a run ended and what its recording lacks, as sentences."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import polars as pl

from esper_analytics.store import Runs
from esper_analytics.wording import count, listed, percent, ranges
from esper_recorder.manifest import Manifest


def recording_state(runs: Runs, manifest: Manifest, row: Mapping[str, Any], frame: pl.DataFrame) -> list[str]:
    """How the run ended, and what its recording lacks."""
    last = row["updates"]
    sentences = [_ending(manifest, row)]
    attempts = len({attempt.attempt for attempt in manifest.attempts})
    if attempts > 1:
        begins = sorted({(a.attempt, a.from_update) for a in manifest.attempts})[1:]
        resumed = listed([f"update {start}" for _, start in begins])
        sentences.append(f"It was resumed {count(attempts - 1, 'time')}, from {resumed}.")
    there = set(frame.get_column("update").to_list()) if frame.height else set()
    start = min((attempt.from_update for attempt in manifest.attempts), default=1)
    missing = [update for update in range(start, last + 1) if update not in there] if len(there) < last else []
    if missing:
        sentences.append(f"{count(len(missing), 'update')} of {last} not recorded: {ranges(missing)}.")
    for gap in runs.table("gaps").sort("first_update", "table_name").collect().iter_rows(named=True):
        sentences.append(_gap(gap))
    for attempt in manifest.attempts:
        lost = attempt.lost
        if lost:
            own = f" (\u201c{lost.message}\u201d)" if lost.message else ""
            parts = [count(n, what) for n, what in ((lost.updates, "update"), (lost.rows, "row")) if n]
            parts += [f"{count(lost.writes, 'write')} failed"] if lost.writes else []
            sentences.append(f"The recorder says it lost: {listed(parts)}{own}.")
    return sentences


def _ending(manifest: Manifest, row: Mapping[str, Any]) -> str:
    last = row["updates"]
    upto = f"update {last}" + (f" ({percent(row['progress'])} of training)" if row["progress"] is not None else "")
    match row["ended"]:
        case "finished":
            return f"Finished at {upto}." if last else "Finished without a recorded update."
        case "raised":
            error = manifest.last_attempt.error if manifest.last_attempt else None
            return f"Ended with an error after {upto}: {error or 'not told'}."
        case "live":
            return f"Still running, or its process has not ended: recorded up to {upto}."
    return (
        f"Killed: its process told no end. Recorded up to {upto}; what came after, at most the update in progress and "
        "what was not yet on disk, is not known."
    )


def _gap(gap: Mapping[str, Any]) -> str:
    first, last = gap["first_update"], gap["last_update"]
    span = f"update {first}" if first == last else f"updates {first}–{last}"
    what = "all tables" if gap["table_name"] == "*" else gap["table_name"]
    rows = f", {count(gap['rows'], 'row')}" if gap["rows"] is not None else ""
    own = f" (\u201c{gap['detail']}\u201d)" if gap["detail"] else ""
    return f"Not recorded: {what}, {span}{rows}: {str(gap['reason']).replace('_', ' ')}{own}."
