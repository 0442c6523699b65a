"""What could not be recorded: counted, said once per cause in the log, kept until it can be stored as gaps rows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from esper_recorder.storage.manifest import Lost

log = logging.getLogger("esper_recorder")

QUEUE_FULL = "queue_full"
WRITE_FAILED = "write_failed"
REDUCE_FAILED = "reduce_failed"
BAD_CALL = "bad_call"
WATCH_FAILED = "watch_failed"
DEVICE_FAILED = "device_failed"

CALLS = frozenset({BAD_CALL, REDUCE_FAILED})
"""Reasons whose detail says which call it was: each is a cause of its own. A disk has one cause in changing words."""

ALL_TABLES = "*"
_MOST_GAPS = 1000
_MOST_DETAILS = 20
_FURTHER = f"further ones, of more than {_MOST_DETAILS} kinds"

_ADVICE = {
    QUEUE_FULL: "The disk (or sink) is slower than the training: record less (a lower level) or to a faster disk.",
    WRITE_FAILED: "Check that there is room, and that the run's folder is still there and may be written to.",
    REDUCE_FAILED: "Check what the call was given; if that is right, please report it with this message.",
    BAD_CALL: "Correct the call in the training loop, as its line in the log says: what it was to record is missing.",
    DEVICE_FAILED: "What had arrived on the host is recorded. CUDA_LAUNCH_BLOCKING=1 helps to find the failing call.",
    WATCH_FAILED: "The rows are stored, only live alarms are missing: replay the rules over the run to get them.",
}


@dataclass(slots=True)
class LostRows:
    """A stretch of updates whose rows (of one table, or `*`) are missing."""

    table: str
    reason: str
    first: int
    last: int
    rows: int | None
    detail: str | None


class Identity(Protocol):
    """The identity columns of a row of an update."""

    def __call__(self, update: int, /) -> Mapping[str, Any]: ...


class Losses:
    """The account of what was lost. Used by the training thread and the writer's."""

    def __init__(self) -> None:
        self.total = Lost()
        self._gaps: list[LostRows] = []
        self._told: dict[tuple[str, str | None], None] = {}  # in the order they came
        self._details: dict[str, set[str | None]] = {}
        self._lock = threading.RLock()

    def add(self, gap: LostRows, *, updates: int = 0, writes: int = 0, calls: int = 0) -> None:
        """Count a loss, keep it as a gap to be stored, and log it if it is the first of its cause."""
        self.keep(gap, updates=updates, writes=writes, calls=calls)
        self.tell(gap)

    def keep(self, gap: LostRows, *, updates: int = 0, writes: int = 0, calls: int = 0) -> None:
        """Count a loss and keep it as a gap to be stored.

        Of the causes of failed calls no more than some are told apart, lest one whose words change at every call fills
        the log and the disk.
        """
        with self._lock:
            self.count(gap.rows or 0, updates, writes, gap.detail or gap.reason, calls=calls)
            if gap.reason in CALLS:
                known = self._details.setdefault(gap.reason, set())
                if gap.detail not in known and len(known) >= _MOST_DETAILS:
                    gap.detail = _FURTHER
                else:
                    known.add(gap.detail)
            self._remember(gap)

    def tell(self, gap: LostRows) -> None:
        """Log a loss that was kept, if it is the first of its cause."""
        cause = _cause(gap)[1:]
        with self._lock:
            first = cause not in self._told
            self._told[cause] = None
        if first and gap.detail == _FURTHER:
            log.warning("More than %d kinds of %s: further ones are not logged.", _MOST_DETAILS, _plain(gap.reason))
        elif first:
            log.warning(
                "Not everything can be recorded, from update %d on: %s (%s). %s Training goes on.",
                gap.first,
                _plain(gap.reason),
                gap.detail or "no further detail",
                _ADVICE.get(gap.reason, ""),
            )

    def count(self, rows: int, updates: int, writes: int, message: str | None, *, calls: int = 0) -> None:
        """Count a loss that can no longer be stored as a gap."""
        with self._lock:
            was = self.total
            self.total = Lost(was.rows + rows, was.updates + updates, was.writes + writes, message, was.calls + calls)

    def advice(self) -> str:
        """What to do about the losses there were."""
        with self._lock:
            reasons = dict.fromkeys(reason for reason, _ in self._told)
        return " ".join(_ADVICE[reason] for reason in reasons if reason in _ADVICE)

    def waiting(self) -> bool:
        """Whether there are gaps that are not stored yet."""
        return bool(self._gaps)

    def take(self) -> list[LostRows]:
        """The gaps to be stored now; hand them to `put_back` where that fails."""
        with self._lock:
            gaps, self._gaps = self._gaps, []
        return gaps

    def put_back(self, gaps: list[LostRows]) -> None:
        with self._lock:
            newer, self._gaps = self._gaps, gaps
            for gap in newer:
                self._remember(gap)

    def _remember(self, gap: LostRows) -> None:
        # Stretches that touch become one, so that the list stays short while nothing can be stored.
        for known in reversed(self._gaps):
            if _cause(known) != _cause(gap):
                continue
            if known.last <= gap.first <= known.last + 1 or len(self._gaps) >= _MOST_GAPS:
                known.first, known.last = min(known.first, gap.first), max(known.last, gap.last)
                known.rows = None if known.rows is None or gap.rows is None else known.rows + gap.rows
                known.detail = gap.detail or known.detail
                return
            break
        self._gaps.append(gap)


def _cause(gap: LostRows) -> tuple[str, str, str | None]:
    return gap.table, gap.reason, gap.detail if gap.reason in CALLS else None


def _plain(reason: str) -> str:
    return reason.replace("_", " ")


def gap_columns(gaps: Sequence[LostRows], identity: Identity) -> dict[str, list[Any]]:
    """Gaps as rows of the table `gaps`."""
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
