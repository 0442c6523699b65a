"""An output of Esper's telemetry hub that records runs as ours, beside or instead of its JSONL.

    hub.add_backend(HubBackend("runs/"))

The mapping of events to rows is the importer's: a run recorded this way and the same run's `events.jsonl` imported are
the same tables. `line` counts the events as they were emitted, which is the line the JSONL would have them in. One
difference: an event that is emitted twice is there twice, where an import counts a repeated line once.

Esper's own detector raises its alarms live and they are recorded as it raised them, so no rules run here; the run
keeps the text of the profile that has Esper's checks, and `esper replay` runs it or any other.
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
from esper_recorder.esper.field_map.update_clock import DEFAULT_GROUP, Clock, RunKey
from esper_recorder.storage.gaps import QUEUE_FULL, REDUCE_FAILED
from esper_recorder.storage.manifest import loaded_versions, to_jsonable
from esper_recorder.storage.run_folder import RunFolder, keep_rules
from esper_recorder.storage.sink import ParquetSink
from esper_recorder.storage.writer import Rows, Writer

log = logging.getLogger("esper_recorder")

P = ParamSpec("P")

MOST_WAITING: Final = 100_000
"""Events of a run that may wait for the disk, a few hundred MB. When there are more, the newest are dropped."""
EVENTS_AT_ONCE: Final = 1000
SECONDS_AT_ONCE: Final = 1.0
"""Events are handed to the writer when the next batch begins, when so many wait, or when the first has waited this
long."""

CLOSE_SECONDS: Final = 300.0
"""How long `close` waits for what still waits; a healthy disk takes a tenth of that for as many events as may."""

_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_UNFINISHED: Final = "the hub was closed before the training said that it was complete"


def _guarded(method: Callable[Concatenate[HubBackend, P], None]) -> Callable[Concatenate[HubBackend, P], None]:
    """One call at a time, none in a forked process, and no exception into the trainer."""

    @functools.wraps(method)
    def call(self: HubBackend, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if os.getpid() != self._pid:
            return
        try:
            with self._lock:
                method(self, *args, **kwargs)
        except Exception as error:
            self._failed(method.__name__, error)

    return call


class HubBackend:
    """Records what Esper's telemetry hub sends: a run for each training, one per group of an A/B test.

    Args:
        root: folder the runs' folders are made in; made if it is not there.
        name: first part of the runs' ids.
    """

    def __init__(self, root: str | Path, *, name: str = "esper") -> None:
        self.root = Path(root)
        self.name = name
        self._unread = 0  # events that reached no run
        self._lock = threading.RLock()
        self._pid = os.getpid()
        self._open: bool | None = None  # None before the first start
        self._clock = Clock()
        self._runs: dict[RunKey, _Run] = {}
        self._unwritable: set[RunKey] = set()
        self._line = 0
        self._told: set[str] = set()

    @property
    def dropped(self) -> int:
        """Events that are in no table: they could not be read, there is no folder, or too many waited for the disk."""
        return self._unread + sum(run.dropped for run in self._runs.values())

    @property
    def run_ids(self) -> tuple[str, ...]:
        """The runs made since `start`, in the order they began."""
        return tuple(run.folder.run_id for run in self._runs.values())

    @_guarded
    def start(self) -> None:
        """Begin, as the hub does before its first event (else `emit` does). What follows a `close` is other runs."""
        if not self._open:
            self._open = True
            self._clock, self._runs, self._unwritable, self._line = Clock(), {}, set(), 0
            atexit.register(_close_at_exit, weakref.ref(self))

    @_guarded
    def emit(self, event: Any) -> None:
        """Take an event: a mapping, a dataclass, or an object with the attributes of Esper's. It is copied."""
        if self._open is None:
            self.start()
        if not self._open:
            raise _NotRecorded("it was emitted after the hub was closed")
        self._line += 1
        told = plain_event(event)
        if told is None:
            key, update = self._clock.collecting()
            self._run(key).reject(self._line, update, event)
            return
        training, update = self._clock.place(told)
        self._run(training.key).take(PlacedEvent(self._line, told, training, update))

    def close(self) -> None:
        """Write what is left and end the runs: finished where the training said so. A second call does nothing."""
        # While an exception passes through the caller's `finally`, it is what ended the training.
        self._end(sys.exc_info()[1])

    def flush(self, timeout: float = 30.0) -> bool:
        """Wait until everything emitted so far is written; False if that took longer than `timeout` seconds."""
        with self._lock:
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
            run.close(_UNFINISHED if error is None else f"{type(error).__name__}: {error}")

    def _run(self, key: RunKey) -> _Run:
        run = self._runs.get(key)
        if run is None:
            for (group, _), before in self._runs.items():
                if group == key[0]:
                    before.close("the next training of the group began")
            if key in self._unwritable:
                raise _NotRecorded(f"there is no folder for its run under {self.root}")
            try:
                run = self._runs[key] = _Run(self.root, self._name(key), key)
            except OSError:
                self._unwritable.add(key)
                raise
        return run

    def _name(self, key: RunKey) -> str:
        group, number = key
        parts = [self.name, *([group] if group != DEFAULT_GROUP else []), *([str(number)] if number > 1 else [])]
        return "-".join(parts)

    def _failed(self, what: str, error: Exception) -> None:
        """Count an event that is lost, in its run's gaps too where there is one; tell the first of each kind."""
        run = self._runs.get(self._clock.last)
        if what == "emit":
            self._unread += 1
            if run is not None:
                detail = f"event: {type(error).__name__}: {error}"
                run.writer.report_gap(run.update, REDUCE_FAILED, table="events", rows=1, detail=detail)
        kind = f"{what}: {type(error).__name__}"
        if kind not in self._told:
            self._told.add(kind)
            log.warning("Not everything Esper's hub sends can be recorded (%s: %s).", kind, error, exc_info=error)


class _NotRecorded(RuntimeError):
    """There is no run for an event to be in; the message says why."""


class _Run:
    """One training: its folder, its writer, and the events that are not with the writer yet."""

    def __init__(self, root: Path, name: str, key: RunKey) -> None:
        self._group = key[0]
        self._facts = RunFacts()
        self._told = RunFacts()
        self._waiting: list[PlacedEvent] = []
        self._rejected: list[tuple[int, int, str]] = []  # line, update, text
        self._since = 0.0
        self._lock = threading.RLock()  # the writer's thread hands over what has waited long enough
        self._closed = False
        self._queued = 0  # events that the writer has not come to
        self.dropped = 0
        self.update = 1
        self.folder = RunFolder.create(
            root, name, trainer=self._trainer(), definition="esper", versions=loaded_versions(), level=None
        )
        sink = ParquetSink(self.folder.path, self.folder.attempt, self.folder.rank)
        # What waits is bounded by its events, see `_put`.
        self.writer = Writer(sink, self.folder, capacity=MOST_WAITING, heartbeat=self._beat)

    def take(self, entry: PlacedEvent) -> None:
        """Take an event of this run."""
        with self._lock:
            if entry.update > self.update and self._waiting:
                self.hand_over()
            self.update = max(self.update, entry.update)
            self._wait()
            self._waiting.append(entry)
            if entry.event["event_type"] in FACT_EVENTS:
                self._facts.add(entry.event, entry.update)
                self._tell()
            if len(self._waiting) >= EVENTS_AT_ONCE:
                self.hand_over()

    def reject(self, line: int, update: int, event: Any) -> None:
        """Keep what is no event."""
        with self._lock:
            self._wait()
            self._rejected.append((line, update, json_text(plain(event))))

    def hand_over(self) -> None:
        """Give the writer what waits; it makes the rows."""
        with self._lock:
            waiting, self._waiting = self._waiting, []
            rejected, self._rejected = self._rejected, []
            if waiting or rejected:
                self._put(waiting, rejected)

    def _put(self, entries: list[PlacedEvent], rejected: list[tuple[int, int, str]]) -> None:
        count = len(entries) + len(rejected)
        if self._queued + count > MOST_WAITING:
            self.dropped += count
            detail = f"{count} events: more than {MOST_WAITING} waited"
            self.writer.report_gap(self.update, QUEUE_FULL, detail=detail)
            return
        self._queued += count

        def rows() -> Rows:
            with self._lock:
                self._queued -= count
            return _rows(entries, rejected, self._identity)

        self.writer.put(self.update, rows)

    def close(self, unfinished: str) -> None:
        """End the run, with `unfinished` as the reason where its training was not complete."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            self.hand_over()
        how, error = ("finished", None) if self._facts.finished else ("raised", unfinished)
        self.writer.close(CLOSE_SECONDS, how=how, error=error)
        try:
            self.folder.finish(how, error=error, updates=self._facts.last_update, dropped=self.writer.dropped)
        except OSError as problem:
            log.error("The end of run %s could not be written: %s", self.folder.run_id, problem)

    def _wait(self) -> None:
        if not self._waiting and not self._rejected:
            self._since = time.monotonic()

    def _beat(self) -> None:
        """What the writer's thread does once a second or more often."""
        self.folder.beat()
        with self._lock:
            if time.monotonic() - self._since >= SECONDS_AT_ONCE:
                self.hand_over()

    def _tell(self) -> None:
        """Write into run.json what the events told of the run as a whole, when it is new."""
        facts, told = self._facts, self._told
        if facts.config is told.config and facts.generation == told.generation:
            return
        fields: dict[str, Any] = {"trainer": self._trainer(), "total_updates": facts.total_updates}
        if facts.config is not None:
            fields["config"] = to_jsonable(facts.config)
        try:
            if facts.profile is not None:
                sha256 = keep_rules(self.folder.path, load_profile(facts.profile).text)
                fields |= {"rules_profile": facts.profile, "rules_sha256": sha256}
            self.folder.change(**fields)
        except OSError as error:  # the event itself is recorded; the next one of these tries again
            log.warning("What run %s is cannot be written into its run.json: %s", self.folder.run_id, error)
            return
        self._told = RunFacts(config=facts.config, generation=facts.generation)

    def _trainer(self) -> dict[str, Any]:
        return {"name": "esper", "generation": self._facts.generation, "group_id": self._group}

    @property
    def _identity(self) -> dict[str, Any]:
        return {"run_id": self.folder.run_id, "attempt": self.folder.attempt, "rank": self.folder.rank}


def _rows(entries: Sequence[PlacedEvent], rejected: Sequence[tuple[int, int, str]], identity: dict[str, Any]) -> Rows:
    """The rows of some events of one run, table by table. For the writer's thread."""
    mapped = map_events(entries)
    if rejected:
        lines, updates, texts = zip(*rejected, strict=True)
        count = len(lines)
        raw: Block = {"line": lines, "update": updates, "text": texts}
        mapped.add("raw_events", {**raw, "key": [""] * count, "reason": [NO_EVENT] * count})
    return {table: _joined(blocks, identity) for table, blocks in mapped.blocks.items()}


def _joined(blocks: Sequence[Block], identity: dict[str, Any]) -> Block:
    """Blocks of one table as one, in the order of the updates, with whose rows they are."""
    heights = [len(next(iter(block.values()))) for block in blocks]
    joined: dict[str, list[Any]] = {}
    for name in dict.fromkeys(name for block in blocks for name in block):
        parts = (block.get(name, [None] * height) for block, height in zip(blocks, heights, strict=True))
        joined[name] = [value for part in parts for value in part]
    updates = joined["update"]
    order = sorted(range(len(updates)), key=updates.__getitem__)
    rows: Block = {name: [values[place] for place in order] for name, values in joined.items()}
    if "time" in rows:
        rows["time"] = [None if us is None else _EPOCH + timedelta(microseconds=us) for us in rows["time"]]
    return {**rows, **{name: [value] * len(order) for name, value in identity.items()}}


def _close_at_exit(reference: weakref.ref[HubBackend]) -> None:
    backend = reference()
    if backend is not None:
        backend._end(getattr(sys, "last_value", None))  # the exception that ended the process
