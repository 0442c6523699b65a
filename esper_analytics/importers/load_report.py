"""What became of everything an import read: counted by kind, kept beside the run, printed as a table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper_recorder.storage.atomic import atomic_file

if TYPE_CHECKING:
    import polars as pl

REPORT_FILE = "load_report.json"


@dataclass(slots=True)
class Tally:
    """How many entries of one kind were read, and where they went: read = typed + kept + rejected + left_out."""

    typed: int = 0
    """Entries that are in the columns made for them."""
    kept: int = 0
    """Entries of a known kind that has no columns, kept as they are (in `raw_events` or `scalars`)."""
    rejected: int = 0
    """Entries that could not be understood; in `raw_events` with their line and the reason."""
    left_out: int = 0
    """Entries that no table is meant for: histograms, images, hyperparameters (which are in `run.json`)."""
    values_rejected: int = 0
    """Single values of typed entries that fitted no column; in `raw_events` too."""

    @property
    def read(self) -> int:
        return self.typed + self.kept + self.rejected + self.left_out

    def add(self, other: Tally) -> None:
        """Count what another part of the same source holds."""
        self.typed += other.typed
        self.kept += other.kept
        self.rejected += other.rejected
        self.left_out += other.left_out
        self.values_rejected += other.values_rejected


@dataclass(slots=True)
class LoadReport:
    """What became of the entries (lines, events, scalars) of one run of a source."""

    source: str = ""
    tallies: dict[str, Tally] = field(default_factory=dict)
    """By kind of entry."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Why something is in `raw_events`: reason -> rows."""
    rows: dict[str, int] = field(default_factory=dict)
    """Rows written, by table."""
    blank: int = 0
    """Empty lines, which say nothing and are not counted among the entries."""
    damage: str | None = None
    """Why the source could not be read to its end, or not all of it."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the rows should know, though nothing was lost by it; parts of a sentence."""

    def of(self, kind: str) -> Tally:
        """The tally of a kind of entry."""
        return self.tallies.setdefault(kind, Tally())

    def join(self, later: LoadReport) -> None:
        """Count what another part of the same source holds."""
        for kind, tally in later.tallies.items():
            self.of(kind).add(tally)
        self.reasons.update(later.reasons)
        self.blank += later.blank

    @property
    def read(self) -> int:
        return sum(tally.read for tally in self.tallies.values())

    @property
    def losses(self) -> list[str]:
        """What did not arrive in a column, or is not there at all, as parts of a sentence; empty where nothing is."""
        rejected = sum(tally.rejected for tally in self.tallies.values())
        values = sum(tally.values_rejected for tally in self.tallies.values())
        parts = []
        if rejected:
            parts.append(f"{rejected:,} of {self.read:,} {'entry' if self.read == 1 else 'entries'} not understood")
        if values:
            parts.append(f"{values:,} {'value' if values == 1 else 'values'} without a column")
        if self.damage:
            parts.append(self.damage)
        return parts

    def records(self) -> list[dict[str, Any]]:
        """A row per kind of entry, as `REPORT_COLUMNS` without the run_id; the most frequent first."""
        kinds = sorted(self.tallies.items(), key=lambda item: (-item[1].read, item[0]))
        return [
            {
                "kind": kind,
                "read": tally.read,
                "typed": tally.typed,
                "kept": tally.kept,
                "rejected": tally.rejected,
                "left_out": tally.left_out,
                "values_rejected": tally.values_rejected,
            }
            for kind, tally in kinds
        ]

    def to_json(self) -> dict[str, Any]:
        """The report as plain data, as `load_report.json` holds it."""
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


REPORT_COLUMNS = ("run_id", "kind", "read", "typed", "kept", "rejected", "left_out", "values_rejected")


def report_frame(reports: Mapping[str, LoadReport]) -> pl.DataFrame:
    """The reports of some runs, by run_id, as one frame: a row per run and kind of entry."""
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
    """A run's load report as plain data; None where it was not imported, or the file cannot be read."""
    try:
        data = json.loads((folder / REPORT_FILE).read_bytes())
    except (OSError, ValueError):
        return None
    return data if isinstance(data, dict) else None
