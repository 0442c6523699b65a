"""What could not be recorded: counted, said once per reason in the log, kept until it can be stored as gaps rows."""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from esper_recorder.manifest import Lost

log = logging.getLogger("esper_recorder")

QUEUE_FULL = "queue_full"
WRITE_FAILED = "write_failed"
REDUCE_FAILED = "reduce_failed"
BAD_CALL = "bad_call"
WATCH_FAILED = "watch_failed"
DEVICE_FAILED = "device_failed"

ALL_TABLES = "*"
_MOST_GAPS = 1000

_ADVICE = {
    QUEUE_FULL: "The disk (or sink) is slower than the training: record less (a lower level) or to a faster disk.",
    WRITE_FAILED: "Check that there is room, and that the run's folder is still there and may be written to.",
    REDUCE_FAILED: "Check what the call was given; if that is right, please report it with this message.",
    BAD_CALL: "Correct the call in the training loop: what it was to record is not measured.",
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
        self._told: set[str] = set()
        self._lock = threading.RLock()

    def add(self, gap: LostRows, *, updates: int = 0, writes: int = 0) -> None:
        """Count a loss, keep it as a gap to be stored, and log it if it is the first for its reason."""
        self.keep(gap, updates=updates, writes=writes)
        self.tell(gap)

    def keep(self, gap: LostRows, *, updates: int = 0, writes: int = 0) -> None:
        """Count a loss and keep it as a gap to be stored."""
        with self._lock:
            self.count(gap.rows or 0, updates, writes, gap.detail or gap.reason)
            self._remember(gap)

    def tell(self, gap: LostRows) -> None:
        """Log a loss if it is the first for its reason."""
        with self._lock:
            first = gap.reason not in self._told
            self._told.add(gap.reason)
        if first:
            log.warning(
                "Not everything can be recorded, from update %d on: %s (%s). %s Training goes on.",
                gap.first,
                gap.reason.replace("_", " "),
                gap.detail or "no further detail",
                _ADVICE.get(gap.reason, ""),
            )

    def count(self, rows: int, updates: int, writes: int, message: str | None) -> None:
        """Count a loss that can no longer be stored as a gap."""
        with self._lock:
            total = self.total
            self.total = Lost(total.rows + rows, total.updates + updates, total.writes + writes, message)

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
            if (known.table, known.reason) != (gap.table, gap.reason):
                continue
            if known.last <= gap.first <= known.last + 1 or len(self._gaps) >= _MOST_GAPS:
                known.first, known.last = min(known.first, gap.first), max(known.last, gap.last)
                known.rows = None if known.rows is None or gap.rows is None else known.rows + gap.rows
                known.detail = gap.detail or known.detail
                return
            break
        self._gaps.append(gap)


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
