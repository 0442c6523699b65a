"""A run that was logged as scalars, in whatever format, as a run of ours with its load report."""

from __future__ import annotations

import bisect
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from esper_analytics.formatting import format_count, format_list
from esper_analytics.importers.library_tags import LIBRARIES, LibraryMatch, match_library
from esper_analytics.importers.load_report import LoadReport
from esper_analytics.importers.run_writer import ImportOutcome, Origin, RunWriter, data_errors, imported_run_id
from esper_analytics.importers.scalar_rows import MOST_STEPS, ScalarRows, Session, arrange
from esper_recorder.storage.jsonable import to_jsonable
from esper_recorder.storage.manifest import Attempt, Manifest


@dataclass(frozen=True, slots=True)
class RawEntry:
    """An entry without a column, kept as text in `raw_events`."""

    line: int
    kind: str
    """The kind of entry, for the load report."""
    text: str
    reason: str
    """One of those that `raw_events.reason` lists."""
    key: str = ""
    """The column it stood in; empty for a whole line."""


@dataclass(slots=True)
class ScalarRun:
    """What was read of one run."""

    format: str
    """The name of the command."""
    name: str
    source: Path
    identity: bytes = b""
    """What distinguishes the run from all others, and stays the same as it grows."""
    sha256: str = ""
    sessions: Sequence[Session] = ()
    """What each process logged, the oldest first."""
    started: datetime | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    by_line: bool = False
    raw: list[RawEntry] = field(default_factory=list)
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Kind of entry that no table is meant for -> how many."""
    damage: list[str] = field(default_factory=list)
    """What could not be read; each is a clause."""
    notes: list[str] = field(default_factory=list)

    def note_steps(self, unusable: int) -> None:
        """Add a note of values whose step cannot be one."""
        if unusable:
            steps, have = format_count(unusable, "value"), "has" if unusable == 1 else "have"
            self.notes.append(f"{steps} {have} no step: it is not a whole number from 0 to {MOST_STEPS}")


def import_run(run: ScalarRun, to: Path) -> ImportOutcome:
    """Write a run into the folder of runs `to`, unless it is empty.

    Raises:
        UsageError: `to` cannot be written to.
        DataError: the disk does not take it.
    """
    match = match_library({scalar.tag for session in run.sessions for scalar in session.scalars})
    rows = arrange(run.sessions, match, run.hyperparameters, by_line=run.by_line)
    report = _report(run, rows, match)
    entries = sum(len(session.scalars) for session in run.sessions) + len(run.raw)
    if not entries:
        return ImportOutcome("", "empty", report)
    run_id = imported_run_id(run.name, run.started, run.identity)
    total_steps = run.hyperparameters.get(match.library.total_steps or "") if match is not None else None
    manifest = Manifest(
        run_id=run_id,
        name=run.name,
        started=run.started,
        trainer={} if match is None else {"name": match.library.name},
        definition=None if match is None else match.library.definition,
        config=to_jsonable(run.hyperparameters) or None,
        total_steps=total_steps if isinstance(total_steps, int) and 0 <= total_steps <= MOST_STEPS else None,
        attempts=tuple(rows.attempts) or (Attempt(how="unknown"),),
    )
    with data_errors(run.source), RunWriter(to, run_id) as writer:
        for table, attempts in rows.columns.items():
            for attempt, columns in attempts.items():
                writer.write(table, columns, attempt=attempt)
        if run.raw:
            writer.write("raw_events", _raw_columns(run.raw, rows))
        return writer.publish(manifest, Origin(run.format, str(run.source), run.sha256, entries), report)


_BEFORE_AN_UPDATE = ("rollout/", "time/")  # what Stable-Baselines3 logs before its first update


def _report(run: ScalarRun, rows: ScalarRows, match: LibraryMatch | None) -> LoadReport:
    report = LoadReport(source=str(run.source), damage="; ".join(run.damage) or None, notes=list(run.notes))
    report.count("typed", rows.typed)
    report.count("kept", rows.kept)
    report.count("left_out", run.left_out)
    report.count("kept", Counter(raw.kind for raw in run.raw if raw.reason == "no_table"))
    report.count("rejected", Counter(raw.kind for raw in run.raw if raw.reason != "no_table"))
    report.reasons.update(raw.reason for raw in run.raw)
    if match is None and rows.kept:
        why = f"its tags match no known trainer ({format_list([library.name for library in LIBRARIES])})"
        if all(tag.startswith(_BEFORE_AN_UPDATE) for tag in rows.kept):
            groups = sorted({f"{tag.partition('/')[0]}/*" for tag in rows.kept})
            why = f"no update was logged yet, only {format_list(groups)}"
        report.notes.append(f"{why}, so every value is in `scalars`")
    if rows.repeated:
        report.notes.append(
            f"{format_count(rows.repeated, 'value')} of an update came again at the same step: the last is in "
            "`ppo_updates`, the earlier ones are in `scalars`"
        )
    if rows.superseded:
        report.notes.append(
            f"{format_count(rows.superseded, 'update')} made again after the training was resumed from an earlier "
            "point; the superseded rows are in `ppo_updates_all`"
        )
    return report


def _raw_columns(raw: Sequence[RawEntry], rows: ScalarRows) -> dict[str, list[Any]]:
    scalars = rows.columns.get("scalars", {}).get(1, {"line": [], "update": []})
    places = sorted(zip(scalars["line"], scalars["update"], strict=True))

    def update(line: int) -> int:
        """Return the update of the last scalar before a line."""
        before = bisect.bisect_right(places, line, key=lambda place: place[0])
        return int(places[before - 1][1]) if before else 1

    return {
        "update": [update(entry.line) for entry in raw],
        "line": [entry.line for entry in raw],
        "key": [entry.key for entry in raw],
        "event_type": [entry.kind for entry in raw],
        "reason": [entry.reason for entry in raw],
        "text": [entry.text for entry in raw],
    }
