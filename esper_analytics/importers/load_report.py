"""What became of everything an import read: counted by kind, kept beside the run, printed as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper_analytics.formatting import format_count
from esper_recorder.storage.atomic import atomic_file
from esper_recorder.storage.json_files import read_json

if TYPE_CHECKING:
    import polars as pl

REPORT_FILE = "load_report.json"


@dataclass(slots=True)
class Tally:
    """How many entries of one kind were read, and where they went: read = typed + kept + rejected + left_out."""

    typed: int = 0
    """Entries that are in columns made for them."""
    kept: int = 0
    """Entries of a known kind without columns, kept as they are (in `raw_events` or `scalars`)."""
    rejected: int = 0
    """Entries that could not be understood; in `raw_events` with their line and the reason."""
    left_out: int = 0
    """Entries that no table is meant for: histograms, images, hyperparameters (which are in `run.json`)."""
    values_rejected: int = 0
    """Single values of typed entries that fitted no column; in `raw_events` too."""

    @property
    def read(self) -> int:
        return self.typed + self.kept + self.rejected + self.left_out


REPORT_COLUMNS = ("run_id", "kind", "read", *(column.name for column in fields(Tally)))


@dataclass(slots=True)
class LoadReport:
    """What became of the entries (lines, events, scalars) of one run of a source."""

    source: str = ""
    tallies: dict[str, Tally] = field(default_factory=dict)
    """By kind of entry."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Rows of `raw_events` by reason."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows written, by table."""
    blank: int = 0
    """Empty lines, which are not counted among the entries."""
    damage: str | None = None
    """Why the source, or a part of it, could not be read."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the rows should know, though nothing is missing; each is a clause."""

    def tally(self, kind: str) -> Tally:
        """Return the tally of a kind of entry, to add to."""
        return self.tallies.setdefault(kind, Tally())

    def count(self, outcome: str, entries: Mapping[str, int]) -> None:
        """Add entries, by kind, to one count of their tallies."""
        for kind, number in entries.items():
            tally = self.tally(kind)
            setattr(tally, outcome, getattr(tally, outcome) + number)

    def join(self, later: LoadReport) -> None:
        """Add the entries of another part of the same source."""
        for kind, tally in later.tallies.items():
            for name, number in asdict(tally).items():
                self.count(name, {kind: number})
        self.reasons.update(later.reasons)
        self.blank += later.blank

    @property
    def read(self) -> int:
        return sum(tally.read for tally in self.tallies.values())

    @property
    def problems(self) -> list[str]:
        """What did not arrive in a column, or not at all; each is a clause."""
        rejected = sum(tally.rejected for tally in self.tallies.values())
        values = sum(tally.values_rejected for tally in self.tallies.values())
        problems = []
        if rejected:
            problems.append(f"{rejected:,} of {format_count(self.read, 'entry', 'entries')} not understood")
        if values:
            problems.append(f"{format_count(values, 'value')} without a column")
        if self.damage:
            problems.append(self.damage)
        return problems

    def records(self) -> list[dict[str, Any]]:
        """Return one row per kind of entry, as `REPORT_COLUMNS` without the run_id; the most frequent first."""
        kinds = sorted(self.tallies.items(), key=lambda item: (-item[1].read, item[0]))
        return [{"kind": kind, "read": tally.read, **asdict(tally)} for kind, tally in kinds]

    def to_json(self) -> dict[str, Any]:
        """Return the report as `load_report.json` holds it."""
        return {
            "source": self.source,
            "read": self.read,
            "blank": self.blank,
            "damage": self.damage,
            "notes": self.notes,
            "kinds": self.records(),
            "reasons": dict(sorted(self.reasons.items())),
            "rows": dict(sorted(self.rows.items())),
        }


def report_frame(reports: Mapping[str, LoadReport]) -> pl.DataFrame:
    """Return the reports of some runs, by run_id, as one frame: one row per run and kind of entry."""
    import polars as pl

    rows = [{"run_id": run_id, **record} for run_id, report in reports.items() for record in report.records()]
    types = {name: pl.String if name in ("run_id", "kind") else pl.Int64 for name in REPORT_COLUMNS}
    return pl.DataFrame(rows, schema=types, orient="row")


def write_report(folder: Path, report: LoadReport) -> None:
    """Write a run's `load_report.json`, durably. Raises OSError."""
    text = json.dumps(report.to_json(), indent=1, ensure_ascii=False, allow_nan=False)
    with atomic_file(folder / REPORT_FILE, durable=True) as file:
        file.write(f"{text}\n".encode())


def read_report(folder: Path) -> dict[str, Any] | None:
    """Return a run's load report as plain data; None if the run was not imported, or the file cannot be read."""
    try:
        data = read_json(folder / REPORT_FILE)
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
