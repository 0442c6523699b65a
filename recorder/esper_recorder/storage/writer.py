"""The background thread between the trainer and the sink: the trainer never waits, and nothing is raised into it.

What cannot be stored is counted (`Writer.lost`), said once per cause in the log, and stored as a row of the table
`gaps` with the next update that can be.
"""

from __future__ import annotations

import atexit
import collections
import contextlib
import logging
import os
import threading
import time
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from esper_recorder.contract.rules.signal import UPDATE_TABLE
from esper_recorder.storage.arrow_batches import row_count
from esper_recorder.storage.gaps import (
    ALL_TABLES,
    CALLS,
    QUEUE_FULL,
    REDUCE_FAILED,
    WATCH_FAILED,
    WRITE_FAILED,
    Identity,
    Losses,
    LostRows,
    gap_columns,
)
from esper_recorder.storage.manifest import Lost
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import RowsLost, Sink

log = logging.getLogger("esper_recorder")

Columns = Mapping[str, Sequence[Any]]
Rows = Mapping[str, Columns]
"""table -> column -> values"""

CAPACITY = 64
TICK_SECONDS = 1.0
CLOSE_SECONDS = 30.0


@dataclass(slots=True)
class _Job:
    update: int
    rows: Rows | Callable[[], Rows]
    count: int | None

    def known_rows(self) -> int | None:
        if self.count is None and isinstance(self.rows, Mapping):
            return sum(row_count(columns) or 0 for columns in self.rows.values())
        return self.count


class Writer:
    """Takes each update's rows from the training thread and puts them into a sink from a thread of its own.

    Args:
        sink: used by the writer's thread only, from now on.
        folder: the run's folder, if there is one: its heartbeat is kept, and gaps rows carry its identity.
        capacity: updates that may wait; when one more comes the oldest goes, and a gap tells it.
        on_commit: called in the writer's thread with (update, its rows) just before they are committed; the rows it
            returns (alarms) are committed with them.
        identity: update -> the identity columns (run_id, attempt, rank, update, time, elapsed_s) of a gaps row.

    In a forked child every call does nothing. At interpreter exit the writer closes itself.
    """

    def __init__(
        self,
        sink: Sink,
        folder: RunFolder | None = None,
        *,
        capacity: int = CAPACITY,
        on_commit: Callable[[int, Rows], Rows | None] | None = None,
        identity: Identity | None = None,
        heartbeat: Callable[[], None] | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; at least one update must be able to wait")
        self.committed = 0
        """Updates committed so far."""
        self._sink = sink
        self._capacity = capacity
        self._on_commit = on_commit
        self._folder = folder
        self._identity = identity or self._own_identity
        self._heartbeat = heartbeat or (folder.beat if folder is not None else None)
        self._pid = os.getpid()
        self._began = time.monotonic()
        self._ready = threading.Condition()  # guards what follows
        self._queue: collections.deque[_Job] = collections.deque()
        self._taken = 0  # jobs put
        self._done = 0  # jobs committed or lost
        self._flushes: list[tuple[int, threading.Event]] = []
        self._losses = Losses()
        self._closing = False
        self._ended = False
        self._how: tuple[str | None, str | None] = (None, None)
        self._last_update = 0
        self._told: set[str] = set()  # upkeep that failed
        self._thread = threading.Thread(target=self._run, name="esper-recorder-writer", daemon=True)
        self._thread.start()
        _open_writers.add(self)

    def put(self, update: int, rows: Rows | Callable[[], Rows], *, count: int | None = None) -> None:
        """Hand over one update. Returns at once; never raises.

        Args:
            update: the update's number.
            rows: table -> column -> values, or a callable that gives it and is called in the writer's thread.
            count: number of rows, if known: a gap tells it should the update be dropped.
        """
        if os.getpid() != self._pid:
            return
        gap: LostRows | None = None
        with self._ready:
            if self._closing:
                return
            if len(self._queue) >= self._capacity:
                dropped = self._queue.popleft()
                self._done += 1
                # Kept before the writer can take a later update: what is stored with that tells of this hole.
                detail = f"more than {self._capacity} updates waited"
                gap = LostRows(ALL_TABLES, QUEUE_FULL, dropped.update, dropped.update, dropped.known_rows(), detail)
                self._losses.keep(gap, updates=1)
            self._queue.append(_Job(update, rows, count))
            self._taken += 1
            self._ready.notify_all()
        if gap is not None:
            self._losses.tell(gap)

    def lose(
        self, update: int, reason: str, *, table: str = ALL_TABLES, rows: int | None = None, detail: str | None = None
    ) -> None:
        """Tell a loss that happened before the rows came here: it is counted, logged and stored as a gap."""
        if os.getpid() != self._pid:
            return
        updates, calls = int(table == ALL_TABLES), int(reason in CALLS)
        self._losses.add(LostRows(table, reason, update, update, rows, detail), updates=updates, calls=calls)

    def flush(self, timeout: float | None = CLOSE_SECONDS) -> bool:
        """Wait until what was put so far is stored. False where that took longer, or the writer is closed."""
        if os.getpid() != self._pid or threading.current_thread() is self._thread:
            return False
        reached = threading.Event()
        with self._ready:
            if self._ended:
                return False
            self._flushes.append((self._taken, reached))
            self._ready.notify_all()
        return reached.wait(timeout)

    def close(self, timeout: float | None = CLOSE_SECONDS, *, how: str | None = None, error: str | None = None) -> bool:
        """Store what waits, close the sink and end the thread. Later calls do nothing.

        Returns False where `timeout` seconds were not enough; what was not stored by then is lost, and the log says so.
        """
        if os.getpid() != self._pid or threading.current_thread() is self._thread:
            return False
        with self._ready:
            first = not self._closing
            if first:
                self._closing = True
                self._how = (how, error)
            self._ready.notify_all()
        self._thread.join(timeout)
        ended = not self._thread.is_alive()
        if first:
            _open_writers.discard(self)
            if not ended:
                self._give_up(timeout)
            if self.lost:
                advice = self._losses.advice()
                log.error(
                    "The recording is not complete: %s (last: %s).%s The table `gaps` tells which, as far as it "
                    "could be written.",
                    self.lost,
                    self.lost.message,
                    f" {advice}" if advice else "",
                )
        return ended

    @property
    def lost(self) -> Lost:
        """What could not be stored so far."""
        return self._losses.total

    @property
    def closed(self) -> bool:
        return self._closing

    # --- the writer's thread ----------------------------------------------------------------------------------------

    def _run(self) -> None:
        while True:
            with self._ready:
                if not self._queue and not self._flushes and not self._closing:
                    self._ready.wait(TICK_SECONDS)
                job = self._queue.popleft() if self._queue else None
                finished = job is None and self._closing
            if job is not None:
                self._store(job)
                with self._ready:
                    self._done += 1
                job = None  # its tensors should not outlive it
            else:
                self._upkeep(self._sink.tick)
            if self._heartbeat is not None:
                with contextlib.suppress(OSError):  # a folder that is gone is told by the sink
                    self._heartbeat()
            if finished:
                break
            self._answer_flushes()
        if self._losses.waiting():
            self._store(_Job(self._last_update, {}, 0))
        self._upkeep(self._sink.close, *self._how)
        self._answer_flushes(force=True)

    def _upkeep(self, work: Callable[..., None], *args: Any) -> None:
        """Run the sink's own work, whose failure loses no rows unless it says so."""
        try:
            work(*args)
        except RowsLost as error:
            self._lose_stored(error)
        except BaseException as error:  # a guest's thread must not die of anything
            name = getattr(work, "__name__", "work")
            if name not in self._told:
                self._told.add(name)
                self._losses.count(0, 0, 1, _words(error))
                log.warning("The sink's %s failed: %s. Training goes on.", name, _words(error))

    def _store(self, job: _Job) -> None:
        update = self._last_update = job.update
        try:
            rows: dict[str, Columns] = dict(job.rows() if callable(job.rows) else job.rows)
        except BaseException as error:
            self._lose_update(update, REDUCE_FAILED, job.count, _words(error))
            rows = {}
        if rows and self._on_commit is not None:
            try:
                rows = _joined(rows, self._on_commit(update, rows) or {})
            except BaseException as error:
                self._losses.add(LostRows("alarms", WATCH_FAILED, update, update, None, _words(error)))
        stored = sum(self._write(update, table, columns) for table, columns in rows.items())
        gaps = self._losses.take()
        if not rows and not gaps:
            return
        try:
            if gaps:
                self._sink.write("gaps", gap_columns(gaps, self._identity))
        except BaseException as error:
            self._losses.put_back(gaps)
            self._losses.count(0, 0, 1, _words(error))
            gaps = []
        try:
            self._sink.commit(update)
        except BaseException as error:
            if isinstance(error, RowsLost):
                self._lose_stored(error)
                if error.stored:
                    self.committed += UPDATE_TABLE in rows
                    return
            self._losses.put_back(gaps)
            if rows:
                self._lose_update(update, WRITE_FAILED, stored, _words(error), writes=1)
            return
        self.committed += UPDATE_TABLE in rows

    def _write(self, update: int, table: str, columns: Columns) -> int:
        """Hand rows of one table to the sink. Returns how many it took."""
        try:
            self._sink.write(table, columns)
        except BaseException as error:
            self._losses.add(LostRows(table, WRITE_FAILED, update, update, row_count(columns), _words(error)), writes=1)
            return 0
        return row_count(columns) or 0

    def _own_identity(self, update: int) -> Mapping[str, Any]:
        own: dict[str, Any] = {"update": update, "time": datetime.now(UTC), "elapsed_s": time.monotonic() - self._began}
        if self._folder is not None:
            own |= {"run_id": self._folder.run_id, "attempt": self._folder.attempt, "rank": self._folder.rank}
        return own

    def _answer_flushes(self, force: bool = False) -> None:
        with self._ready:
            self._ended = force
            reached = [event for target, event in self._flushes if force or target <= self._done]
            if reached:
                self._flushes = [(t, event) for t, event in self._flushes if not force and t > self._done]
        if reached:
            if not force:
                self._upkeep(self._sink.flush)
            for event in reached:
                event.set()

    def _lose_stored(self, error: RowsLost) -> None:
        gap = LostRows(ALL_TABLES, WRITE_FAILED, error.first_update, error.last_update, error.rows, str(error))
        self._losses.add(gap, writes=1)

    def _lose_update(self, update: int, reason: str, rows: int | None, detail: str | None, writes: int = 0) -> None:
        self._losses.add(LostRows(ALL_TABLES, reason, update, update, rows, detail), updates=1, writes=writes)

    def _give_up(self, timeout: float | None) -> None:
        with self._ready:
            waiting = list(self._queue)
            self._queue.clear()
            self._done += len(waiting)
        rows = sum(job.known_rows() or 0 for job in waiting)
        self._losses.count(rows, len(waiting), 1, f"the sink did not finish within {timeout} s of closing")


_open_writers: weakref.WeakSet[Writer] = weakref.WeakSet()


def _close_all() -> None:
    for writer in list(_open_writers):
        writer.close()


atexit.register(_close_all)


def _joined(rows: dict[str, Columns], more: Rows) -> dict[str, Columns]:
    """The rows of both; where both hold rows of one table, those of `more` come after."""
    for table, columns in more.items():
        have = rows.get(table)
        if have is None:
            rows[table] = columns
            continue
        old, new = row_count(have) or 0, row_count(columns) or 0
        rows[table] = {
            name: [*have.get(name, [None] * old), *columns.get(name, [None] * new)] for name in {**have, **columns}
        }
    return rows


def _words(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}"[:500]
