"""A backend of Esper's telemetry hub that records runs, next to its JSONL or instead of it.

    hub.add_backend(HubBackend("runs/"))

Covers: the same tables as an import of the same run's `events.jsonl`, because both use `field_map`; `line` is the
line that an event would have in that file. One run per training, and per group of an A/B test.
Does not cover: events emitted twice have rows twice, where an import keeps a repeated line out. No rules run here:
Esper's detector raises its own alarms, which are recorded as events. The run keeps the text of the profile with Esper's
checks, and `esper replay` runs that or any other.
"""

from __future__ import annotations

import atexit
import functools
import logging
import os
import sys
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Concatenate, Final, ParamSpec

from esper_recorder.contract.rules.ruleset import load_profile
from esper_recorder.esper.field_map.event_batch import NO_EVENT, Block
from esper_recorder.esper.field_map.event_mapping import PlacedEvent, map_events
from esper_recorder.esper.field_map.event_values import json_text, plain, plain_event
from esper_recorder.esper.field_map.run_facts import FACT_EVENTS, RunFacts
from esper_recorder.esper.field_map.update_clock import Clock, RunKey, run_name
from esper_recorder.storage.gaps import QUEUE_FULL, REDUCE_FAILED
from esper_recorder.storage.interrupts import signals_deferred
from esper_recorder.storage.jsonable import describe_error, to_jsonable
from esper_recorder.storage.manifest import loaded_versions
from esper_recorder.storage.run_folder import RunFolder, keep_rules
from esper_recorder.storage.sink import ParquetSink
from esper_recorder.storage.update_content import Rows
from esper_recorder.storage.writer import Writer

log = logging.getLogger("esper_recorder")

P = ParamSpec("P")

MOST_WAITING: Final = 100_000
"""Events of a run that may wait for the disk, a few hundred MB; beyond that the newest are dropped."""
MOST_HELD: Final = 1000
SECONDS_HELD: Final = 1.0
"""Events go to the writer when the next batch begins, when this many are held, or the first for this long."""

CLOSE_SECONDS: Final = 300.0
"""How long `close` waits for the writer: ten times what a healthy disk takes for `MOST_WAITING` events."""

_ERROR_LENGTH: Final = 4000
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNFINISHED: Final = "the hub was closed before the training said that it was complete"


def _guarded(method: Callable[Concatenate[HubBackend, P], None]) -> Callable[Concatenate[HubBackend, P], None]:
    """Serialise calls, ignore those of a forked process, and keep exceptions from the trainer."""

    @functools.wraps(method)
    def call(self: HubBackend, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if os.getpid() != self._pid:
            return
        try:
            with signals_deferred, self._lock:
                method(self, *args, **kwargs)
        except Exception as error:
            self._failed(method.__name__, error)

    return call


class HubBackend:
    """Records what Esper's telemetry hub sends: one run per training, and per group of an A/B test.

    Args:
        root: the folder of runs; created if it is missing.
        name: first part of the runs' ids.
    """

    def __init__(self, root: str | Path, *, name: str = "esper") -> None:
        self.root = Path(root)
        self.name = name
        self._lost = 0  # events that reached no run
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._open: bool | None = None  # None before the first start
        self._clock = Clock()
        self._runs: dict[RunKey, _Run] = {}
        self._unwritable: set[RunKey] = set()
        self._line = 0
        self._logged: set[str] = set()

    @property
    def dropped(self) -> int:
        """Events in no table: unreadable, without a run folder, or dropped because too many waited for the disk."""
        return self._lost + sum(run.dropped for run in self._runs.values())

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The runs since `start`, in the order they began."""
        return tuple(run.folder.run_id for run in self._runs.values())

    @_guarded
    def start(self) -> None:
        """Begin new runs; the hub calls this before its first event, otherwise `emit` does."""
        if not self._open:
            self._open = True
            self._clock, self._runs, self._unwritable, self._line = Clock(), {}, set(), 0
            atexit.register(_close_at_exit, weakref.ref(self))

    @_guarded
    def emit(self, event: Any) -> None:
        """Record a copy of an event: a mapping, a dataclass, or an object with the attributes of Esper's."""
        if self._open is None:
            self.start()
        if not self._open:
            raise _NotRecorded("it was emitted after the hub was closed")
        self._line += 1
        copy = plain_event(event)
        if copy is None:
            key, update = self._clock.collecting()
            self._run(key).reject(self._line, update, event)
            return
        training, update = self._clock.place(copy)
        self._run(training.key).add(PlacedEvent(self._line, copy, training, update))

    def close(self) -> None:
        """Write what is left and end the runs: finished if the training was complete. A second call does nothing."""
        # In a `finally` of the caller, the exception passing through is what ended the training.
        self._end(sys.exc_info()[1])

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything emitted so far is written; False after `timeout` seconds."""
        with signals_deferred, self._lock:
            runs = [*self._runs.values()]
            for run in runs:
                run.hand_over()
        return all([run.writer.flush(timeout) for run in runs])

    @_guarded
    def _end(self, error: BaseException | None) -> None:
        if not self._open:
            return
        self._open = False
        for run in self._runs.values():
            run.close(_UNFINISHED if error is None else describe_error(error, _ERROR_LENGTH))

    def _run(self, key: RunKey) -> _Run:
        run = self._runs.get(key)
        if run is None:
            for (group, _), previous in self._runs.items():
                if group == key[0]:
                    previous.close("the next training of the group began")
            if key in self._unwritable:
                raise _NotRecorded(f"there is no folder for its run under {self.root}")
            try:
                run = self._runs[key] = _Run(self.root, run_name(self.name, key), key)
            except Exception:  # also if no thread can be started: another folder for each event would not help
                self._unwritable.add(key)
                raise
        return run

    def _failed(self, method: str, error: Exception) -> None:
        """Count a lost event, also in the gaps of its run if it has one; log the first failure of each kind."""
        run = self._runs.get(self._clock.last)
        if method == "emit":
            self._lost += 1
            if run is not None:
                detail = f"event: {describe_error(error)}"
                run.writer.report_gap(run.update, REDUCE_FAILED, table="events", rows=1, detail=detail)
        kind = f"{method}: {type(error).__name__}"
        if kind not in self._logged:
            self._logged.add(kind)
            message = "Not everything Esper's hub sends can be recorded (%s: %s)."
            log.warning(message, method, describe_error(error), exc_info=error)


class _NotRecorded(RuntimeError):
    """An event has no run; the message says why."""


class _Run:
    """One training: its folder, its writer, and the events that the writer does not have yet."""

    def __init__(self, root: Path, name: str, key: RunKey) -> None:
        self._group = key[0]
        self._facts = RunFacts()
        self._saved = RunFacts()  # those in run.json
        self._held: list[PlacedEvent] = []
        self._rejected: list[tuple[int, int, str]] = []  # line, update, text
        self._held_since = 0.0
        self._lock = threading.RLock()  # the writer's thread hands over events that were held long enough
        self._closed = False
        self._queued = 0  # events that the writer has not reached
        self.dropped = 0
        self.update = 1
        self.folder = RunFolder.create(
            root,
            name,
            trainer=self._facts.trainer(self._group),
            definition="esper",
            versions=loaded_versions(),
            level=None,
        )
        try:
            sink = ParquetSink(self.folder.path, self.folder.attempt, self.folder.rank)
            # The queue is bounded by its events and not by its items, see `_put`.
            self.writer = Writer(sink, self.folder, capacity=MOST_WAITING, heartbeat=self._beat)
        except Exception as error:
            self.folder.abandon(error)
            raise

    def add(self, event: PlacedEvent) -> None:
        """Add an event of this run."""
        with self._lock:
            if event.update > self.update and self._held:
                self.hand_over()
            self.update = max(self.update, event.update)
            self._hold()
            self._held.append(event)
            if event.event["event_type"] in FACT_EVENTS:
                self._facts.add(event.event, event.update)
                self._save_facts()
            if len(self._held) >= MOST_HELD:
                self.hand_over()

    def reject(self, line: int, update: int, event: Any) -> None:
        """Keep an object that is not an event."""
        with self._lock:
            self._hold()
            self._rejected.append((line, update, json_text(plain(event))))

    def hand_over(self) -> None:
        """Give the writer the events held; its thread makes the rows."""
        with self._lock:
            held, self._held = self._held, []
            rejected, self._rejected = self._rejected, []
            if held or rejected:
                self._put(held, rejected)

    def _put(self, events: list[PlacedEvent], rejected: list[tuple[int, int, str]]) -> None:
        count = len(events) + len(rejected)
        if self._queued + count > MOST_WAITING:
            self.dropped += count
            self.writer.report_gap(self.update, QUEUE_FULL, detail=f"{count} events: more than {MOST_WAITING} waited")
            return
        self._queued += count

        def rows() -> Rows:
            with self._lock:
                self._queued -= count
            return _rows(events, rejected, self._identity)

        self.writer.put(self.update, rows)

    def close(self, unfinished: str) -> None:
        """End the run, with `unfinished` as the reason if its training was not complete."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.hand_over()
        how, error = ("finished", None) if self._facts.finished else ("raised", unfinished)
        if not self.writer.close(CLOSE_SECONDS, how=how, error=error) and signals_deferred.waiting:
            return  # Ctrl-C: the run counts as killed, and what waited is recovered
        try:
            self.folder.finish(how, error=error, updates=self._facts.last_update, dropped=self.writer.dropped)
        except Exception as problem:
            log.error("The end of run %s could not be written: %s", self.folder.run_id, describe_error(problem))

    def _hold(self) -> None:
        if not self._held and not self._rejected:
            self._held_since = time.monotonic()

    def _beat(self) -> None:
        """Called by the writer's thread at least once a second."""
        self.folder.beat()
        with self._lock:
            if time.monotonic() - self._held_since >= SECONDS_HELD:
                self.hand_over()

    def _save_facts(self) -> None:
        """Write new facts about the run into run.json."""
        facts = self._facts
        if facts.config is self._saved.config and facts.generation == self._saved.generation:
            return
        fields: dict[str, Any] = {"trainer": facts.trainer(self._group), "total_updates": facts.total_updates}
        if facts.config is not None:
            fields["config"] = to_jsonable(facts.config)
        try:
            if facts.profile is not None:
                sha256 = keep_rules(self.folder.path, load_profile(facts.profile).text)
                fields |= {"rules_profile": facts.profile, "rules_sha256": sha256}
            self.folder.change(**fields)
        except OSError as error:  # the event itself is recorded, and the next one of its kind tries again
            log.warning("The facts about run %s cannot be written into its run.json: %s", self.folder.run_id, error)
            return
        self._saved = RunFacts(config=facts.config, generation=facts.generation)

    @property
    def _identity(self) -> dict[str, Any]:
        return {"run_id": self.folder.run_id, "attempt": self.folder.attempt, "rank": self.folder.rank}


def _rows(events: Sequence[PlacedEvent], rejected: Sequence[tuple[int, int, str]], identity: dict[str, Any]) -> Rows:
    """Map events of one run to rows by table; runs in the writer's thread."""
    mapped = map_events(events)
    if rejected:
        lines, updates, texts = zip(*rejected, strict=True)
        raw: Block = {"line": lines, "update": updates, "text": texts}
        count = len(lines)
        mapped.add("raw_events", {**raw, "key": [""] * count, "reason": [NO_EVENT] * count})
    return {table: _join(blocks, identity) for table, blocks in mapped.blocks.items()}


def _join(blocks: Sequence[Block], identity: dict[str, Any]) -> Block:
    """Join blocks of one table, in the order of the updates, and add the run's identity."""
    heights = [len(next(iter(block.values()))) for block in blocks]
    joined: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for block in blocks for name in block):
        parts = (block.get(name, [None] * height) for block, height in zip(blocks, heights, strict=True))
        joined[name] = [value for part in parts for value in part]
    updates = joined["update"]
    order = sorted(range(len(updates)), key=updates.__getitem__)
    rows: Block = {name: [values[index] for index in order] for name, values in joined.items()}
    if "time" in rows:
        rows["time"] = [None if us is None else _EPOCH + timedelta(microseconds=us) for us in rows["time"]]
    return {**rows, **{name: [value] * len(order) for name, value in identity.items()}}


def _close_at_exit(reference: weakref.ref[HubBackend]) -> None:
    backend = reference()
    if backend is not None:
        backend._end(getattr(sys, "last_value", None))  # the exception that ends the process
