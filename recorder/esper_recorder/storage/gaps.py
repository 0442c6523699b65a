"""What could not be recorded: counted, logged once per cause, and kept until it can be stored as rows of `gaps`.

Covers: rows dropped by the queue, refused by the sink, or never made because a call or a reduction failed.
Does not cover: updates of a process that was killed before they were committed; nobody is left to record them.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from esper_recorder.storage.jsonable import encodable
from esper_recorder.storage.manifest import DropCounts

log = logging.getLogger("esper_recorder")

QUEUE_FULL = "queue_full"
WRITE_FAILED = "write_failed"
REDUCE_FAILED = "reduce_failed"
BAD_CALL = "bad_call"
WATCH_FAILED = "watch_failed"
DEVICE_FAILED = "device_failed"

CALLS = frozenset({BAD_CALL, REDUCE_FAILED})
"""Reasons whose detail names the call: each detail is a separate cause. A disk has one cause in changing words."""

ALL_TABLES = "*"
_MOST_GAPS = 1000
_MOST_DETAILS = 20
_FURTHER = f"further ones, of more than {_MOST_DETAILS} kinds"

_ADVICE = {
    QUEUE_FULL: "The disk (or sink) is slower than the training: record less (a lower level) or to a faster disk.",
    WRITE_FAILED: "Check that the disk has space, and that the run's folder still exists and may be written to.",
    REDUCE_FAILED: "Check the arguments of the call; if they are right, please report it with this message.",
    BAD_CALL: "Correct the call in the training loop, as its line in the log says: what it was to record is missing.",
    DEVICE_FAILED: "What had arrived on the host is recorded. CUDA_LAUNCH_BLOCKING=1 helps to find the failing call.",
    WATCH_FAILED: "The rows are stored, only live alarms are missing: replay the rules over the run to get them.",
}


@dataclass(slots=True)
class MissingRows:
    """A stretch of updates whose rows (of one table, or `*`) are missing."""

    table: str
    reason: str
    first: int
    last: int
    rows: int | None
    detail: str | None

    @property
    def cause(self) -> tuple[str, str | None]:
        """What is logged once."""
        return self.reason, self.detail if self.reason in CALLS else None

    def absorb(self, later: MissingRows) -> None:
        """Extend this gap by another of the same table and cause."""
        self.first, self.last = min(self.first, later.first), max(self.last, later.last)
        self.rows = None if self.rows is None or later.rows is None else self.rows + later.rows
        self.detail = later.detail or self.detail


class Identity(Protocol):
    """Returns the identity columns of a row of an update."""

    def __call__(self, update: int, /) -> Mapping[str, Any]: ...


class GapLog:
    """The gaps of one recording. Used by the training thread and the writer's."""

    def __init__(self) -> None:
        self.counts = DropCounts()
        self._gaps: list[MissingRows] = []
        self._logged: dict[tuple[str, str | None], None] = {}  # causes, in the order they came
        self._details: dict[str, set[str | None]] = {}
        self._lock = threading.RLock()

    def report(self, gap: MissingRows, *, updates: int = 0, writes: int = 0, calls: int = 0) -> None:
        """Add a gap, and log it if it is the first of its cause."""
        self.add(gap, updates=updates, writes=writes, calls=calls)
        self.log_once(gap)

    def add(self, gap: MissingRows, *, updates: int = 0, writes: int = 0, calls: int = 0) -> None:
        """Count a gap and keep it until it is stored.

        Only some causes of failed calls are kept apart: one whose message changes at every call must not fill the log
        and the disk.
        """
        with self._lock:
            gap.detail = None if gap.detail is None else encodable(gap.detail)  # or no gap could be stored
            self.count(gap.rows or 0, updates, writes, gap.detail or gap.reason, calls=calls)
            if gap.reason in CALLS:
                details = self._details.setdefault(gap.reason, set())
                if gap.detail not in details and len(details) >= _MOST_DETAILS:
                    gap.detail = _FURTHER
                else:
                    details.add(gap.detail)
            self._append(gap)

    def log_once(self, gap: MissingRows) -> None:
        """Log a gap if it is the first of its cause."""
        with self._lock:
            first = gap.cause not in self._logged
            self._logged[gap.cause] = None
        reason = gap.reason.replace("_", " ")
        if first and gap.detail == _FURTHER:
            log.warning("More than %d kinds of %s: further ones are not logged.", _MOST_DETAILS, reason)
        elif first:
            log.warning(
                "Not everything can be recorded, from update %d on: %s (%s). %s Training continues.",
                gap.first,
                reason,
                gap.detail or "no further detail",
                _ADVICE.get(gap.reason, ""),
            )

    def count(self, rows: int, updates: int, writes: int, message: str | None, *, calls: int = 0) -> None:
        """Count what is missing and can no longer be stored as a gap."""
        with self._lock:
            sums = self.counts
            self.counts = DropCounts(
                sums.rows + rows, sums.updates + updates, sums.writes + writes, message, sums.calls + calls
            )

    def advice(self) -> str:
        """Say what to do about the causes so far."""
        with self._lock:
            reasons = dict.fromkeys(reason for reason, _ in self._logged)
        return " ".join(_ADVICE[reason] for reason in reasons if reason in _ADVICE)

    def __bool__(self) -> bool:
        """Whether gaps wait to be stored."""
        return bool(self._gaps)

    def take(self) -> list[MissingRows]:
        """Remove and return the gaps to store now; pass them to `put_back` if that fails."""
        with self._lock:
            gaps, self._gaps = self._gaps, []
        return gaps

    def put_back(self, gaps: list[MissingRows]) -> None:
        """Keep gaps that could not be stored."""
        with self._lock:
            newer, self._gaps = self._gaps, gaps
            for gap in newer:
                self._append(gap)

    def _append(self, gap: MissingRows) -> None:
        # Stretches that touch become one, so that the list stays short while nothing can be stored.
        alike = (g for g in reversed(self._gaps) if (g.table, g.cause) == (gap.table, gap.cause))
        newest = next(alike, None)
        if newest and (newest.last <= gap.first <= newest.last + 1 or len(self._gaps) >= _MOST_GAPS):
            newest.absorb(gap)
        else:
            self._gaps.append(gap)


def gap_columns(gaps: Sequence[MissingRows], identity: Identity) -> dict[str, list[Any]]:
    """Convert gaps to columns of the table `gaps`."""
    columns: dict[str, list[Any]] = {}
    for gap in gaps:
        row = {
            **identity(gap.last),
            "table_name": gap.table,
            "reason": gap.reason,
            "first_update": gap.first,
            "last_update": gap.last,
            "rows": gap.rows,
            "detail": gap.detail,
        }
        for name, value in row.items():
            columns.setdefault(name, []).append(value)
    return columns
