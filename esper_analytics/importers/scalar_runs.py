"""A run that was logged as scalars, from whatever file, made into a run of ours with its load report."""

from __future__ import annotations

import bisect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from typing import Any

from esper_analytics.errors import DataError
from esper_analytics.formatting import format_count, format_list
from esper_analytics.importers.libraries import LIBRARIES, recognise
from esper_analytics.importers.load_report import LoadReport
from esper_analytics.importers.logged import Arranged, Session, arrange
from esper_analytics.importers.run_writer import Origin, RunWriter, Stored, imported_run_id
from esper_recorder.storage.manifest import Attempt, Manifest, to_jsonable


@dataclass(frozen=True, slots=True)
class Raw:
    """Something that no column takes, kept as text in `raw_events`."""

    line: int
    kind: str
    """What kind of entry it is, for the load report."""
    text: str
    reason: str
    """As `raw_events.reason` lists them."""
    key: str = ""
    """The column it stood in; empty for a whole line."""


@dataclass(slots=True)
class ScalarRun:
    """What was read of one run."""

    format: str
    """The word of the command."""
    name: str
    source: Path
    identity: bytes
    """What tells the run from all others, and does not change as it grows."""
    sha256: str
    sessions: Sequence[Session]
    """What each process logged, the oldest first."""
    started: datetime | None = None
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    by_line: bool = False
    raw: Sequence[Raw] = ()
    left_out: Mapping[str, int] = field(default_factory=dict)
    """Kind of entry that no table is meant for -> how many."""
    damage: Sequence[str] = ()
    """What could not be read, as parts of a sentence."""
    notes: Sequence[str] = ()


def store(run: ScalarRun, to: Path) -> tuple[Stored, LoadReport]:
    """Write a run under `to`, where it holds any value.

    Raises:
        UsageError: `to` cannot be written to.
        DataError: the disk does not take it.
    """
    try:
        return _store(run, to)
    except OSError as error:
        raise DataError(f"{run.source} could not be imported: {error}. Nothing of it was stored.") from error


def _store(run: ScalarRun, to: Path) -> tuple[Stored, LoadReport]:
    found = recognise({one.tag for session in run.sessions for one in session.values})
    arranged = arrange(run.sessions, found, run.hyperparameters, by_line=run.by_line)
    report = _report(run, arranged, None if found is None else found.library.name)
    entries = sum(len(session.values) for session in run.sessions) + len(run.raw)
    if not entries:
        return Stored("", "empty"), report
    run_id = imported_run_id(run.name, run.started, run.identity)
    total_steps = found.library.total_steps if found is not None else None
    total = run.hyperparameters.get(total_steps) if total_steps else None
    manifest = Manifest(
        run_id=run_id,
        name=run.name,
        started=run.started,
        trainer={} if found is None else {"name": found.library.name},
        definition=None if found is None else found.library.definition,
        config=to_jsonable(run.hyperparameters) or None,
        total_steps=total if isinstance(total, int) else None,
        attempts=tuple(
            Attempt(
                attempt=one.attempt,
                started=one.started,
                from_update=one.from_update,
                ended=one.ended,
                how="unknown",
                updates=one.updates,
            )
            for one in arranged.stretches
        )
        or (Attempt(how="unknown"),),
    )
    with RunWriter(to, run_id) as writer:
        for table, attempts in arranged.columns.items():
            for attempt, columns in attempts.items():
                writer.write(table, columns, attempt=attempt)
        if run.raw:
            writer.write("raw_events", _raw_columns(run.raw, arranged))
        origin = Origin(run.format, str(run.source), run.sha256, entries)
        return writer.publish(manifest, origin, report), report


_BEFORE_AN_UPDATE = ("rollout/", "time/")  # what Stable-Baselines3 logs of a rollout before it has learned from it


def _report(run: ScalarRun, arranged: Arranged, library: str | None) -> LoadReport:
    report = LoadReport(source=str(run.source), damage="; ".join(run.damage) or None, notes=list(run.notes))
    for tag, number in arranged.typed.items():
        report.of(tag).typed += number
    for tag, number in arranged.kept.items():
        report.of(tag).kept += number
    for kind, number in run.left_out.items():
        report.of(kind).left_out += number
    for raw in run.raw:
        if raw.reason == "no_table":
            report.of(raw.kind).kept += 1
        else:
            report.of(raw.kind).rejected += 1
        report.reasons[raw.reason] += 1
    if library is None and arranged.kept:
        known = format_list([one.name for one in LIBRARIES])
        why = f"its tags are of no trainer that is known ({known})"
        if all(tag.startswith(_BEFORE_AN_UPDATE) for tag in arranged.kept):
            groups = sorted({f"{tag.partition('/')[0]}/*" for tag in arranged.kept})
            why = f"no update was logged yet, only {format_list(groups)}"
        report.notes.append(f"{why}, so every value is in `scalars`")
    if arranged.repeated:
        report.notes.append(
            f"{format_count(arranged.repeated, 'value')} of an update came again at the same step: the last one is in "
            "`ppo_updates`, those before are in `scalars`"
        )
    if arranged.superseded:
        report.notes.append(
            f"{format_count(arranged.superseded, 'update')} made again after the training was taken up from an earlier "
            "point; what that replaced is in `ppo_updates_all`"
        )
    return report


def _raw_columns(raw: Sequence[Raw], arranged: Arranged) -> dict[str, list[Any]]:
    scalars = arranged.columns.get("scalars", {}).get(1, {"line": [], "update": []})
    places = sorted(zip(scalars["line"], scalars["update"], strict=True))

    def update(line: int) -> int:
        """The update that the last scalar before it belongs to."""
        before = bisect.bisect_right(places, line, key=lambda place: place[0])
        return int(places[before - 1][1]) if before else 1

    return {
        "update": [update(one.line) for one in raw],
        "line": [one.line for one in raw],
        "key": [one.key for one in raw],
        "event_type": [one.kind for one in raw],
        "reason": [one.reason for one in raw],
        "text": [one.text for one in raw],
    }
