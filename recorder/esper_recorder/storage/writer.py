"""The background thread between the trainer and the sink.

Covers:
* The trainer never waits for the disk: `put` returns at once, and drops the oldest update if the queue is full.
* Nothing is raised into the trainer, whatever the sink, the rules or a reduction raise.
* What is not stored is counted (`Writer.dropped`), logged once per cause, and stored as a row of the table `gaps` with
  the next update that can be.
* An interpreter that exits without `close` stores what waits; a forked child stores nothing.

Does not cover: a process that is killed loses what waits in the queue, and no gap says so.
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
from collections.abc import Callable, Mapping
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
    GapLog,
    Identity,
    MissingRows,
    gap_columns,
)
from esper_recorder.storage.interrupts import signals_deferred
from esper_recorder.storage.jsonable import describe_error
from esper_recorder.storage.manifest import DropCounts
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import DroppedRowsError, RecordSink, Sink
from esper_recorder.storage.update_content import Columns, Rows, UpdateContent, columns_of
from esper_recorder.storage.update_record import UpdateRecord

log = logging.getLogger("esper_recorder")

Content = Rows | UpdateContent
CAPACITY = 64
TICK_SECONDS = 1.0
CLOSE_SECONDS = 30.0


@dataclass(slots=True)
class _Job:
    update: int
    rows: Content | Callable[[], Content]
    count: int | None

    def row_count(self) -> int | None:
        """The number of rows, if it is known without making them."""
        if self.count is None and not callable(self.rows):
            return UpdateContent.of(self.rows).row_count()
        return self.count


class Writer:
    """Takes each update's rows from the training thread and puts them into a sink from a separate thread.

    Args:
        sink: used by the writer's thread only, from now on.
        folder: the run's folder, if there is one: its heartbeat is kept, and gaps rows carry its identity.
        capacity: updates that may wait; one more drops the oldest, which becomes a gap.
        on_commit: called in the writer's thread with (update, its content) just before it is committed; the rows it
            returns (alarms) are committed with it.
        identity: update -> the identity columns (run_id, attempt, rank, update, time, elapsed_s) of a gaps row.
        heartbeat: called about once a second; the folder's by default.
        make_space: called before the last gaps are stored, on what may be a full disk; the folder's by default.
        gaps: those of the writer that this one continues.

    In a forked child every call does nothing. At interpreter exit the writer closes itself.
    """

    def __init__(
        self,
        sink: Sink,
        folder: RunFolder | None = None,
        *,
        capacity: int = CAPACITY,
        on_commit: Callable[[int, UpdateContent], Content | None] | None = None,
        identity: Identity | None = None,
        heartbeat: Callable[[], None] | None = None,
        make_space: Callable[[], None] | None = None,
        gaps: GapLog | None = None,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"capacity is {capacity}; at least one update must be able to wait")
        self.committed = 0
        """Updates committed so far."""
        self._sink = sink
        self._capacity = capacity
        self._on_commit = on_commit
        self._folder = folder
        self._identity = identity or self._folder_identity
        self._heartbeat = heartbeat or (folder.beat if folder is not None else None)
        self._make_space = make_space or (folder.make_space_for_gaps if folder is not None else None)
        self._pid = os.getpid()
        self._began = time.monotonic()
        self._ready = threading.Condition()  # guards what follows
        self._queue: collections.deque[_Job] = collections.deque()
        self._accepted = 0  # jobs put
        self._done = 0  # jobs committed or dropped
        self._flushes: list[tuple[int, threading.Event]] = []
        self._gaps = gaps or GapLog()
        self._dropped_before = self._gaps.counts
        self._closing = False
        self._ended = False
        self._how: tuple[str | None, str | None] = (None, None)
        self._last_update = 0
        self._failed_work: set[str] = set()  # the sink's, by name
        self._thread = threading.Thread(target=self._run, name="esper-recorder-writer", daemon=True)
        self._thread.start()
        _open_writers.add(self)

    def put(self, update: int, rows: Content | Callable[[], Content], *, count: int | None = None) -> None:
        """Hand over one update. Returns at once; never raises.

        Args:
            rows: table -> column -> values, or an `UpdateContent`; or a callable that returns one of them and is
                called in the writer's thread.
            count: number of rows, if known: a gap says it should the update be dropped.
        """
        if os.getpid() != self._pid:
            return
        gap: MissingRows | None = None
        with self._ready:
            if self._closing:
                return
            if len(self._queue) >= self._capacity:
                dropped = self._queue.popleft()
                self._done += 1
                # Added before the writer can take a later update, so that the gap is stored with that one.
                detail = f"more than {self._capacity} updates waited"
                gap = MissingRows(ALL_TABLES, QUEUE_FULL, dropped.update, dropped.update, dropped.row_count(), detail)
                self._gaps.add(gap, updates=1)
            self._queue.append(_Job(update, rows, count))
            self._accepted += 1
            self._ready.notify_all()
        if gap is not None:
            self._gaps.log_once(gap)

    def report_gap(
        self,
        update: int,
        reason: str,
        *,
        table: str = ALL_TABLES,
        rows: int | None = None,
        detail: str | None = None,
        first: int | None = None,
    ) -> None:
        """Report rows that were dropped before they came here: they are counted, logged and stored as a gap.

        It reaches from the update `first` to `update`, if it is of more than one.
        """
        if os.getpid() != self._pid:
            return
        updates, calls = int(table == ALL_TABLES), int(reason in CALLS)
        gap = MissingRows(table, reason, first or update, update, rows, detail)
        self._gaps.report(gap, updates=updates, calls=calls)

    def flush(self, timeout: float | None = CLOSE_SECONDS) -> bool:
        """Wait until what was put so far is stored. Returns False after `timeout`, or if the writer is closed."""
        if os.getpid() != self._pid or threading.current_thread() is self._thread:
            return False
        reached = threading.Event()
        with signals_deferred:
            with self._ready:
                if self._ended:
                    return False
                self._flushes.append((self._accepted, reached))
                self._ready.notify_all()
            return signals_deferred.wait(reached.wait, timeout)

    def close(self, timeout: float | None = CLOSE_SECONDS, *, how: str | None = None, error: str | None = None) -> bool:
        """Store what waits, close the sink and end the thread. Later calls do nothing.

        Returns False if `timeout` seconds were not enough; what was not stored by then is dropped, and the log says so.
        A signal, such as Ctrl-C, ends the waiting as well: a later call continues it.
        """
        if os.getpid() != self._pid or threading.current_thread() is self._thread:
            return False
        with signals_deferred:
            with self._ready:
                if not self._closing:
                    self._closing = True
                    self._how = (how, error)
                self._ready.notify_all()
            ended = signals_deferred.wait(self._has_ended, timeout)
            if (ended or not signals_deferred.waiting) and self in _open_writers:
                _open_writers.discard(self)
                if not ended:
                    self._give_up(timeout)
                self._log_dropped()
        return ended

    def _has_ended(self, timeout: float) -> bool:
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def gaps(self) -> GapLog:
        """For the writer that continues this one."""
        return self._gaps

    @property
    def dropped(self) -> DropCounts:
        """What could not be stored so far."""
        return self._gaps.counts

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
                self._maintain(self._sink.tick)
            if self._heartbeat is not None:
                with contextlib.suppress(OSError):  # the sink reports a folder that is gone
                    self._heartbeat()
            if finished:
                break
            self._answer_flushes()
        if self._gaps:
            if self._make_space is not None:
                self._maintain(self._make_space)
            self._store(_Job(self._last_update, {}, 0))
        self._maintain(self._sink.close, *self._how)
        self._answer_flushes(force=True)

    def _maintain(self, work: Callable[..., None], *args: Any) -> None:
        """Let the sink do periodic work, whose failure drops no rows unless it says so."""
        try:
            work(*args)
        except DroppedRowsError as error:
            self._report_dropped(error)
        except BaseException as error:  # this thread runs in someone else's process: it must not die of anything
            name = getattr(work, "__name__", "work")
            if name not in self._failed_work:
                self._failed_work.add(name)
                self._gaps.count(0, 0, 1, describe_error(error))
                log.warning("The sink's %s failed: %s. Training continues.", name, describe_error(error))

    def _store(self, job: _Job) -> None:
        update = self._last_update = job.update
        try:
            content = UpdateContent.of(job.rows() if callable(job.rows) else job.rows)
        except BaseException as error:
            self._gaps.report(
                MissingRows(ALL_TABLES, REDUCE_FAILED, update, update, job.count, describe_error(error)), updates=1
            )
            content = UpdateContent()
        if content and self._on_commit is not None:
            try:
                content.add(self._on_commit(update, content) or {})
            except BaseException as error:
                self._gaps.report(MissingRows("alarms", WATCH_FAILED, update, update, None, describe_error(error)))
        rows = bool(content)
        stored = sum([self._write_record(update, record) for record in content.records])
        stored += sum([self._write(update, table, columns) for table, columns in content.tables.items()])
        gaps = self._gaps.take()
        if not rows and not gaps:
            return
        try:
            if gaps:
                self._sink.write("gaps", gap_columns(gaps, self._identity))
        except BaseException as error:
            self._gaps.put_back(gaps)
            self._gaps.count(0, 0, 1, describe_error(error))
            gaps = []
        try:
            self._sink.commit(update)
        except BaseException as error:
            if isinstance(error, DroppedRowsError):
                self._report_dropped(error)
            if not isinstance(error, DroppedRowsError) or not error.stored:
                self._gaps.put_back(gaps)
                if rows:
                    gap = MissingRows(ALL_TABLES, WRITE_FAILED, update, update, stored, describe_error(error))
                    self._gaps.report(gap, updates=1, writes=1)
                return
        self.committed += bool(content.records) or UPDATE_TABLE in content.tables

    def _write_record(self, update: int, record: UpdateRecord) -> int:
        """Pass a record to the sink, as rows if it takes no records. Returns how many rows it accepted."""
        sink = self._sink
        try:
            if not isinstance(sink, RecordSink):
                return sum([self._write(update, table, columns) for table, columns in columns_of(record)])
            sink.write_record(record)
        except BaseException as error:
            gap = MissingRows(ALL_TABLES, WRITE_FAILED, update, update, record.rows, describe_error(error))
            self._gaps.report(gap, updates=1, writes=1)
            return 0
        return record.rows

    def _write(self, update: int, table: str, columns: Columns) -> int:
        """Pass rows of one table to the sink. Returns how many it accepted."""
        rows = row_count(columns)
        try:
            self._sink.write(table, columns)
        except BaseException as error:
            self._gaps.report(MissingRows(table, WRITE_FAILED, update, update, rows, describe_error(error)), writes=1)
            return 0
        return rows or 0

    def _report_dropped(self, error: DroppedRowsError) -> None:
        gap = MissingRows(ALL_TABLES, WRITE_FAILED, error.first_update, error.last_update, error.rows, str(error))
        self._gaps.report(gap, writes=1)

    def _folder_identity(self, update: int) -> Mapping[str, Any]:
        now = {"update": update, "time": datetime.now(UTC), "elapsed_s": time.monotonic() - self._began}
        if self._folder is None:
            return now
        return {"run_id": self._folder.run_id, "attempt": self._folder.attempt, "rank": self._folder.rank, **now}

    def _answer_flushes(self, force: bool = False) -> None:
        with self._ready:
            self._ended = force
            reached = [event for target, event in self._flushes if force or target <= self._done]
            if reached:
                self._flushes = [(t, event) for t, event in self._flushes if not force and t > self._done]
        if reached:
            if not force:
                self._maintain(self._sink.flush)
            for event in reached:
                event.set()

    def _log_dropped(self) -> None:
        if self.dropped != self._dropped_before:
            advice = self._gaps.advice()
            log.error(
                "The recording is not complete: %s (last: %s).%s The table `gaps` lists them, as far as it could be "
                "written.",
                self.dropped,
                self.dropped.message,
                f" {advice}" if advice else "",
            )

    def _give_up(self, timeout: float | None) -> None:
        with self._ready:
            waiting = list(self._queue)
            self._queue.clear()
            self._done += len(waiting)
        rows = sum(job.row_count() or 0 for job in waiting)
        self._gaps.count(rows, len(waiting), 1, f"the sink did not finish within {timeout} s of closing")


_open_writers: weakref.WeakSet[Writer] = weakref.WeakSet()


def _close_all() -> None:
    for writer in list(_open_writers):
        writer.close()


atexit.register(_close_all)
