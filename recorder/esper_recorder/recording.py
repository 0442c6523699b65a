"""Where a recorder's rows go: the run's folder, its watcher and its writer."""

from __future__ import annotations

import functools
import logging
import time
from datetime import UTC, datetime
from typing import Any

from esper_recorder.alarms import Announcer
from esper_recorder.capture.closed_update import ClosedUpdate, other_rows, pack
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.escalation import Escalation
from esper_recorder.storage.gaps import GapLog
from esper_recorder.storage.interrupts import signals_deferred
from esper_recorder.storage.jsonable import describe_error
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import ParquetSink, Sink
from esper_recorder.storage.update_content import UpdateContent
from esper_recorder.storage.writer import Writer
from esper_recorder.watcher import Watcher

log = logging.getLogger("esper_recorder")


class Recording:
    """One attempt of a run, while it is recorded."""

    def __init__(
        self,
        folder: RunFolder,
        rules: RuleSet | None,
        escalation: Escalation,
        announcer: Announcer,
        sink: Sink | None,
        *,
        resumed: bool,
    ) -> None:
        self.folder = folder
        self.announcer = announcer
        self._end: tuple[str, str | None] | None = None
        self._closed = False
        self._escalation = escalation
        self._started = time.monotonic()
        self._committed = 0  # before the present writer
        watcher = None if rules is None else Watcher(rules, escalation, announcer)
        if watcher is not None and resumed:
            _catch_up(folder, watcher)
        self._on_commit = None if watcher is None else watcher.alarms
        self._sink = sink or ParquetSink(folder.path, folder.attempt, folder.rank)
        self.writer = self._new_writer()

    def reopen(self, **fields: Any) -> bool:
        """Continue the attempt after `close`, see `RunFolder.reopen`; False if that is impossible.

        It costs the same however much was recorded: nothing of that is read again.
        """
        if not self._closed or not isinstance(self._sink, ParquetSink) or not self.folder.reopen(**fields):
            return False
        try:
            writer = self._new_writer(self.writer.gaps)
        except Exception as error:  # no thread can be started
            self.folder.abandon(error)
            return False
        self._sink.reopen()
        self._committed += self.writer.committed
        self.writer, self._end, self._closed = writer, None, False
        self.announcer.should_stop = False
        return True

    def _new_writer(self, gaps: GapLog | None = None) -> Writer:
        return Writer(
            self._sink,
            on_commit=self._on_commit,
            identity=self.identity,
            heartbeat=self.folder.beat,
            make_space=self.folder.make_space_for_gaps,
            gaps=gaps,
        )

    def identity(self, update: int) -> dict[str, Any]:
        """The columns that all rows of an update have."""
        return {
            "run_id": self.folder.run_id,
            "attempt": self.folder.attempt,
            "rank": self.folder.rank,
            "update": update,
            "time": datetime.now(UTC),
            "elapsed_s": time.monotonic() - self._started,
        }

    def put(self, update: ClosedUpdate) -> None:
        """Hand an update to the writer, whose thread packs it."""
        self.writer.put(update.identity["update"], functools.partial(self._content, update))

    def end(self, how: str, error: str | None) -> None:
        """Say how the run ended; nothing follows but `close`."""
        self._end = how, error

    def close(self) -> None:
        """Write what waits, and how the run ended. A signal ends the waiting; a later call continues it."""
        if self._closed or self._end is None:
            return
        how, error = self._end
        try:
            if not self.writer.close(how=how, error=error) and signals_deferred.waiting:
                return
            self._closed = True
            updates = self._committed + self.writer.committed
            self.folder.finish(how, error=error, updates=updates, dropped=self.writer.dropped)
        except Exception as problem:
            log.error("The end of run %s could not be written: %s", self.folder.run_id, describe_error(problem))

    def _content(self, update: ClosedUpdate) -> UpdateContent:
        """What an update stores at its level."""
        content = UpdateContent(other_rows(update))
        if update.columns is not None:
            content.records.append(self._escalation.stored(pack(update), update.level))
        return content


def _catch_up(folder: RunFolder, watcher: Watcher) -> None:
    try:
        starts = {a.attempt: a.from_update for a in folder.manifest.attempts}
        watcher.catch_up(folder.path, folder.rank, starts)
    except Exception as error:
        log.warning("The rules watch run %s as if it began here; its past cannot be read: %s", folder.run_id, error)
