"""Esper's `events.jsonl` as runs: every line read is accounted for.

A file may hold several runs: one for each `TRAINING_STARTED` in each `group_id`. The mapping of events to rows is
`esper_recorder.esper.field_map`, as for the trainer's own backend. A line that is not an event, or repeats the
`event_id` of an earlier line, is kept whole in `raw_events`; so is each value that has no column.

A long file is read in blocks, which worker processes map in parallel. To place a block's events a worker needs the
clock as the lines before leave it: the reading process decodes the few of them that move it.
"""

from __future__ import annotations

import gc
import hashlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from array import array
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from esper_analytics.errors import DataError
from esper_analytics.importers.json_lines import InvalidJson, decode, line_text, whole_lines
from esper_analytics.importers.load_report import LoadReport
from esper_analytics.importers.run_writer import (
    ImportOutcome,
    Origin,
    RunWriter,
    by_update,
    data_errors,
    imported_run_id,
)
from esper_analytics.importers.sources import Progress, Source, base_name, find_sources, track_progress
from esper_recorder.contract.rules.ruleset import load_profile
from esper_recorder.contract.tables import columns
from esper_recorder.esper.field_map.event_batch import NO_EVENT, Block
from esper_recorder.esper.field_map.event_mapping import PlacedEvent, is_event, map_events
from esper_recorder.esper.field_map.run_facts import FACT_EVENTS, RunFacts
from esper_recorder.esper.field_map.update_clock import CLOCK_EVENTS, Clock, RunKey, run_name
from esper_recorder.storage.jsonable import to_jsonable
from esper_recorder.storage.manifest import Attempt, Manifest
from esper_recorder.storage.parquet import arrow_type

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
FORMAT = "esper-jsonl"
NO_EVENT_KIND = "(no event)"
_COMMON_NAMES = ("events", "telemetry")  # a run from such a file is named after its folder
_CLOCK_WORDS = tuple(f'"{kind}"'.encode() for kind in CLOCK_EVENTS)


def import_files(patterns: Sequence[str], to: Path, progress: Progress | None = None) -> list[ImportOutcome]:
    """Import the runs of Esper's files into the folder of runs `to`.

    Args:
        patterns: files, folders (every file below with one of the `ENDINGS` is read), or glob patterns.

    Raises:
        UsageError: there is no such file, or `to` cannot be written to.
        DataError: the disk does not take a run, or a worker process was killed.
    """
    files = find_sources(patterns, lambda name: name.endswith(ENDINGS), f"ending in {', '.join(ENDINGS)}")
    return [outcome for file, update in track_progress(files, progress) for outcome in import_file(file, to, update)]


def import_file(path: Path, to: Path, progress: Callable[[int], None] | None = None) -> list[ImportOutcome]:
    """Import the runs of one file; `progress` is called with the bytes read. Raises as `import_files`."""
    repeats: dict[int, int] = {}
    while True:
        with ExitStack() as stack:
            stack.enter_context(data_errors(path))
            file_pass = _FilePass(path, to, stack, repeats, progress)
            try:
                file_pass.load()
                if not file_pass.repeats_found:
                    return file_pass.publish()
            except BrokenProcessPool as error:
                message = f"A process that read {path} was killed from outside, perhaps because memory ran out."
                raise DataError(f"{message} Nothing of it was stored.") from error
            # Repeated lines must not have rows, and are found only when all were read: load again without them.
            repeats = file_pass.repeats_found


@dataclass(slots=True)
class _RunPart:
    """What a block of lines holds of one run."""

    first_line: int
    first_text: bytes
    facts: RunFacts = field(default_factory=RunFacts)
    tables: dict[str, pa.Table] = field(default_factory=dict)
    report: LoadReport = field(default_factory=LoadReport)


class _FilePass:
    """One pass over a file: blocks go to the workers, and their rows to the writer of each run."""

    def __init__(
        self,
        path: Path,
        root: Path,
        stack: ExitStack,
        repeats: Mapping[int, int],
        progress: Callable[[int], None] | None,
    ) -> None:
        self.source = Source(path)
        self.root = root
        self.repeats_found: dict[int, int] = {}
        self._stack = stack
        self._repeats = repeats
        self._progress = progress
        self._runs: dict[RunKey, _RunPart] = {}
        self._writers: dict[RunKey, RunWriter] = {}
        self._event_ids: list[pa.Table] = []
        self._sha256 = ""
        self._descriptor: int | None = None

    def load(self) -> None:
        """Read the file to its end, or to where it is damaged."""
        digest = hashlib.sha256()
        with _Workers() as workers:
            clock, line, offset = Clock(), 1, 0
            for block, last in whole_lines(self._hashed(digest)):
                place = None if self._descriptor is None else BlockPlace(self._descriptor, offset, len(block))
                for parts in workers.submit(block, place, line, deepcopy(clock), last, self._repeats):
                    self._add(parts)
                line += block.count(b"\n")
                offset += len(block)
                advance(clock, block)
                if self._progress is not None:
                    self._progress(self.source.bytes_read)
            for parts in workers.results():
                self._add(parts)
        self._sha256 = digest.hexdigest()
        if not self._repeats:
            self.repeats_found = _find_repeats(self._event_ids)

    def publish(self) -> list[ImportOutcome]:
        """Make the runs visible; a file without any event makes none."""
        if all(run.report.tallies.keys() <= {NO_EVENT_KIND} for run in self._runs.values()):
            report = LoadReport(source=str(self.source.path), damage=self.source.damage)
            for run in self._runs.values():
                report.join(run.report)
            if report.read and not report.damage:
                report.damage = "no line of it is an event of Esper"
            return [ImportOutcome("", "empty", report)]
        outcomes = []
        for number, (key, run) in enumerate(sorted(self._runs.items(), key=lambda item: item[1].first_line), 1):
            run.report.source = str(self.source.path)
            run.report.damage = self.source.damage
            origin = Origin(FORMAT, str(self.source.path), self._sha256, run.report.read, number)
            profile = run.facts.profile
            rules = None if profile is None else (profile, load_profile(profile).text)
            manifest = self._manifest(key, run.facts)
            outcomes.append(self._writers[key].publish(manifest, origin, run.report, rules=rules))
        return outcomes

    def _hashed(self, digest: Any) -> Iterator[bytes]:
        for block in self.source.blocks():
            if self._descriptor is None and self.source.descriptor is not None:
                # Workers may still read blocks after the source has closed its file.
                self._descriptor = os.dup(self.source.descriptor)
                self._stack.callback(os.close, self._descriptor)
            digest.update(block)
            yield block

    def _add(self, parts: Mapping[RunKey, _RunPart]) -> None:
        for key, part in parts.items():
            run = self._runs.get(key)
            if run is None:
                self._runs[key] = part
                run_id = imported_run_id(self._name(key), part.facts.started, part.first_text)
                self._writers[key] = self._stack.enter_context(RunWriter(self.root, run_id))
            else:
                run.facts.join(part.facts)
                run.report.join(part.report)
            for table, rows in part.tables.items():
                self._writers[key].write(table, rows)
            events = part.tables.get("events")
            if events is not None and "event_id" in events.schema.names and not self._repeats:
                self._event_ids.append(events.select(["line", "event_id"]))
            part.tables = {}

    def _name(self, key: RunKey) -> str:
        name = base_name(self.source.path)
        if name in _COMMON_NAMES:
            name = self.source.path.parent.name or name
        return run_name(name, key)

    def _manifest(self, key: RunKey, facts: RunFacts) -> Manifest:
        attempt = Attempt(
            started=facts.started,
            ended=facts.last_time if facts.finished else None,
            how="finished" if facts.finished else None,
            updates=facts.last_update,
        )
        return Manifest(
            run_id="",
            name=self._name(key),
            started=facts.started,
            trainer=facts.trainer(key[0]),
            definition="esper",
            config=None if facts.config is None else to_jsonable(facts.config),
            total_updates=facts.total_updates,
            attempts=(attempt,),
        )


def _find_repeats(event_ids: Sequence[pa.Table]) -> dict[int, int]:
    """Return line -> the earlier line whose event_id it repeats."""
    if not event_ids:
        return {}
    events = pa.concat_tables(event_ids)
    events = events.filter(pc.is_valid(events.column("event_id")))
    lines, ids = (events.column(name).to_pylist() for name in ("line", "event_id"))
    if len(set(ids)) == len(ids):
        return {}
    first: dict[str, int] = {}
    repeats = {}
    for line, event_id in sorted(zip(lines, ids, strict=True)):
        if first.setdefault(event_id, line) != line:
            repeats[line] = first[event_id]
    return repeats


def advance(clock: Clock, block: bytes) -> None:
    """Move the clock past a block of lines; only those that may move it are decoded."""
    starts = set()
    for word in _CLOCK_WORDS:
        at = block.find(word)
        while at >= 0:
            starts.add(block.rfind(b"\n", 0, at) + 1)
            at = block.find(word, at + 1)
    for start in sorted(starts):
        end = block.find(b"\n", start)
        try:
            event = decode(block[start : end if end >= 0 else len(block)])
        except InvalidJson:
            continue
        if is_event(event) and event["event_type"] in CLOCK_EVENTS:
            clock.place(event)


# --- one block --------------------------------------------------------------------------------------------------------


class BlockPlace(NamedTuple):
    """Where a block lies in an open file: sent to a worker instead of the block, which is far larger."""

    descriptor: int
    offset: int
    length: int

    def read(self) -> bytes:
        """Return the block. Raises OSError if the file has become shorter."""
        block = os.pread(self.descriptor, self.length, self.offset)
        if len(block) < self.length:
            raise OSError("it became shorter while it was read")
        return block


def map_block(
    block: bytes | BlockPlace, first_line: int, clock: Clock, last: bool, repeats: Mapping[int, int]
) -> dict[RunKey, _RunPart]:
    """Return what some lines hold, by run.

    Args:
        block: whole lines, or their place; the last line of a file may lack its newline.
        first_line: the number of the first.
        clock: as the lines before leave it.
        last: whether the file ends with the block.
        repeats: lines to leave out -> the earlier line they repeat.
    """
    lines = (block if isinstance(block, bytes) else block.read()).split(b"\n")
    torn = len(lines) if last and lines[-1] else None
    if not lines[-1]:
        lines.pop()
    parts: dict[RunKey, _RunPart] = {}
    events: dict[RunKey, list[PlacedEvent]] = defaultdict(list)
    raw: dict[RunKey, list[dict[str, Any]]] = defaultdict(list)

    def part_of(key: RunKey, position: int) -> _RunPart:
        if key not in parts:
            parts[key] = _RunPart(first_line + position, lines[position])
        return parts[key]

    def reject(position: int, reason: str, kind: str | None) -> None:
        key, update = clock.collecting()
        report = part_of(key, position).report
        report.tally(kind or NO_EVENT_KIND).rejected += 1
        report.reasons[reason] += 1
        identity = {"line": first_line + position, "update": update, "key": "", "event_type": kind}
        raw[key].append({**identity, "reason": reason, "text": line_text(lines[position])})

    for position, line in enumerate(lines):
        try:
            event = decode(line)
        except InvalidJson:
            if not line.strip():
                part_of(clock.last, position).report.blank += 1
            else:
                reject(position, "torn" if position + 1 == torn else "not_json", None)
            continue
        if not is_event(event):
            reject(position, NO_EVENT, None)
            continue
        number = first_line + position
        if number in repeats:
            reject(position, "repeated", event["event_type"])
            continue
        training, update = clock.place(event)
        part = part_of(training.key, position)
        events[training.key].append(PlacedEvent(number, event, training, update))
        if event["event_type"] in FACT_EVENTS:
            part.facts.add(event, update)
    for key, part in parts.items():
        _finish(part, events[key], raw[key], lambda number: line_text(lines[number - first_line]))
    return parts


def _finish(
    part: _RunPart, events: Sequence[PlacedEvent], raw: Sequence[Mapping[str, Any]], text_of: Callable[[int], str]
) -> None:
    """Map a run's events in a block, and count them."""
    rows = map_events(events)
    part.report.count("typed", rows.typed)
    part.report.count("kept", rows.kept)
    part.report.count("rejected", rows.rejected)
    part.report.count("values_rejected", rows.values_rejected)
    part.report.reasons.update(rows.reasons)
    for block in rows.blocks.get("raw_events", ()):
        if block["key"] == [""]:  # a whole event is kept as its line, to the byte
            block["text"] = [text_of(line) for line in block["line"]]
    if raw:
        rows.add("raw_events", {name: [row[name] for row in raw] for name in raw[0]})
    arrays: _Arrays = {}
    part.tables = {table: _as_arrow(table, blocks, arrays) for table, blocks in rows.blocks.items()}


_Arrays = dict[tuple[int, str], pa.Array]
"""(id of the values, contract type) -> the array: rows of several tables share their line, time, environment."""


def _as_arrow(table: str, blocks: Sequence[Block], arrays: _Arrays) -> pa.Table:
    declared = {column.name: column for column in columns(table)}
    tables = []
    for block in blocks:
        block_arrays = []
        for name, values in block.items():
            key = (id(values), declared[name].type)
            if key not in arrays:
                arrays[key] = _array(values, arrow_type(declared[name]))
            block_arrays.append(arrays[key])
        tables.append(pa.Table.from_arrays(block_arrays, names=list(block)))
    # Sorted here, in parallel, the rows are nearly sorted when a part is written.
    return by_update(pa.concat_tables(tables, promote_options="default").combine_chunks())


def _array(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """Make a column; several times faster than `pa.array` if all values are numbers, or all are the same."""
    first = values[0]
    code = _ARRAY_CODES.get(type_)
    if code is not None and first is not None:
        with suppress(TypeError):  # one of the values is None
            return pa.Array.from_buffers(type_, len(values), [None, pa.py_buffer(array(code, values))])
    elif (first is None or type(first) is str) and values.count(first) == len(values):
        return pa.repeat(pa.scalar(first, type_), len(values))
    return pa.array(values, type=type_, from_pandas=False)


_ARRAY_CODES = {pa.int64(): "q", pa.timestamp("us", tz="UTC"): "q", pa.float64(): "d"}


# --- worker processes -------------------------------------------------------------------------------------------------

_FORKS = sys.platform == "linux"


def _initialize_worker() -> None:
    gc.disable()  # nothing here is cyclic, and searching for cycles takes a third of the time
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that reads
    threading.Thread(target=_exit_with_parent, args=(os.getppid(),), daemon=True).start()


def _exit_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _Workers:
    """Maps blocks: in this process as long as there are few, then in one process per processor."""

    PATIENCE = 2
    """Blocks after which starting processes pays off."""

    def __init__(self) -> None:
        self._processes = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, 4)
        self._pool: ProcessPoolExecutor | None = None
        self._waiting: list[tuple[bytes, BlockPlace | None, tuple[Any, ...]]] = []
        self._running: list[Future[dict[RunKey, _RunPart]]] = []

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def submit(self, block: bytes, place: BlockPlace | None, *arguments: Any) -> Iterator[dict[RunKey, _RunPart]]:
        """Have `map_block` called; yield results in the order of the blocks, once enough blocks are in progress.

        Args:
            place: of the block in an open file, if it lies in one.
            arguments: the further arguments of `map_block`.
        """
        self._waiting.append((block, place, arguments))
        if self._pool is None and self._processes > 1 and len(self._waiting) > self.PATIENCE:
            context = multiprocessing.get_context("fork" if _FORKS else "spawn")
            self._pool = ProcessPoolExecutor(self._processes, mp_context=context, initializer=_initialize_worker)
        if self._pool is not None:
            for waiting_block, waiting_place, rest in self._waiting:
                # Only a forked process shares the open file.
                task = waiting_place if waiting_place and _FORKS else waiting_block
                self._running.append(self._pool.submit(map_block, task, *rest))
            self._waiting.clear()
            while len(self._running) > 2 * self._processes:
                yield self._running.pop(0).result()

    def results(self) -> Iterator[dict[RunKey, _RunPart]]:
        """Yield the remaining results, in the order of the blocks."""
        while self._running:
            yield self._running.pop(0).result()
        while self._waiting:
            block, _, arguments = self._waiting.pop(0)
            yield map_block(block, *arguments)
