"""Esper's `events.jsonl` as runs: every line read is accounted for.

A file may hold several runs: one for each `TRAINING_STARTED` in each `group_id`. The mapping of an event to rows is
`esper_recorder.esper`, which the trainer's own backend shares. A line that is no event, or repeats the `event_id` of an
earlier line, is kept whole in `raw_events`; so is each value that no column takes.

A long file is read in blocks, which worker processes map side by side. Where a block's events belong follows from the
few lines before it that move the clock; the reading process looks for those.
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
from esper_analytics.importers.json_lines import NoJson, as_text, decode, whole_lines
from esper_analytics.importers.load_report import LoadReport
from esper_analytics.importers.run_writer import Origin, RunWriter, Stored, by_update, imported_run_id
from esper_analytics.importers.sources import Source, find_sources, plain_name
from esper_recorder.contract.rules.ruleset import load_profile
from esper_recorder.contract.tables import columns
from esper_recorder.esper.field_map.event_batch import NO_EVENT, Block
from esper_recorder.esper.field_map.event_mapping import PlacedEvent, is_event, map_events
from esper_recorder.esper.field_map.run_facts import FACT_EVENTS, RunFacts
from esper_recorder.esper.field_map.update_clock import CLOCK_EVENTS, Clock, RunKey
from esper_recorder.storage.manifest import Attempt, Manifest, to_jsonable
from esper_recorder.storage.parquet import arrow_type

ENDINGS = (".jsonl", ".jsonl.gz", ".jsonl.zst")
FORMAT = "esper-jsonl"
NO_EVENT_KIND = "(no event)"
_PLAIN_NAMES = ("events", "telemetry")  # a file of this name is told apart by its folder
_TURNING = tuple(f'"{kind}"'.encode() for kind in CLOCK_EVENTS)

Progress = Callable[[int, int], None]


def import_files(words: Sequence[str], root: Path, progress: Progress | None = None) -> list[tuple[Stored, LoadReport]]:
    """Import the files that `words` mean into the folder of runs `root`.

    Args:
        progress: called with the bytes read so far, of all files, and how many there are.

    Returns what became of each run, and its load report.

    Raises UsageError: a word means no file, or `root` cannot be written to. OSError: the disk is full.
    """
    paths = find_sources(words, ENDINGS)
    sizes = [path.stat().st_size for path in paths]
    imported: list[tuple[Stored, LoadReport]] = []
    for number, path in enumerate(paths):
        before = sum(sizes[:number])
        told = None if progress is None else lambda done, before=before: progress(before + done, sum(sizes))
        imported += import_file(path, root, told)
    return imported


def import_file(
    path: Path, root: Path, progress: Callable[[int], None] | None = None
) -> list[tuple[Stored, LoadReport]]:
    """Import one file; see `import_files`."""
    repeats: dict[int, int] = {}
    while True:
        with ExitStack() as stack:
            loading = _Loading(path, root, stack, repeats, progress)
            try:
                loading.load()
                if not loading.found_repeats:
                    return loading.publish()
            except BrokenProcessPool as error:
                message = f"A process that read {path} was ended from outside, perhaps for want of memory."
                raise DataError(f"{message} Nothing of it was stored.") from error
            except OSError as error:
                raise DataError(f"{path} could not be imported: {error}. Nothing of it was stored.") from error
            repeats = loading.found_repeats  # they must not have rows, so it is loaded again without them


@dataclass(slots=True)
class _Piece:
    """What a block of lines holds of one run."""

    first_line: int
    first_text: bytes
    facts: RunFacts = field(default_factory=RunFacts)
    tables: dict[str, pa.Table] = field(default_factory=dict)
    report: LoadReport = field(default_factory=LoadReport)


class _Loading:
    """One pass over a file: blocks to workers, what they make of them to the writers of the runs."""

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
        self.found_repeats: dict[int, int] = {}
        self._stack = stack
        self._repeats = repeats
        self._progress = progress
        self._runs: dict[RunKey, _Piece] = {}
        self._writers: dict[RunKey, RunWriter] = {}
        self._ids: list[pa.Table] = []
        self._sha256 = ""
        self._descriptor: int | None = None

    def load(self) -> None:
        """Read the file to its end, or to where it is damaged."""
        digest = hashlib.sha256()
        with _Workers() as workers:
            clock, line, offset = Clock(), 1, 0
            for block, last in whole_lines(self._hashed(digest)):
                place = None if self._descriptor is None else BlockPlace(self._descriptor, offset, len(block))
                for pieces in workers.hand_in(block, place, line, deepcopy(clock), last, self._repeats):
                    self._take(pieces)
                line += block.count(b"\n")
                offset += len(block)
                advance(clock, block)
                if self._progress is not None:
                    self._progress(self.source.taken)
            for pieces in workers.results():
                self._take(pieces)
        self._sha256 = digest.hexdigest()
        if not self._repeats:
            self.found_repeats = _repeats_of(self._ids)

    def publish(self) -> list[tuple[Stored, LoadReport]]:
        """Make the runs visible; a file without any event is none."""
        if all(run.report.tallies.keys() <= {NO_EVENT_KIND} for run in self._runs.values()):
            report = LoadReport(source=str(self.source.path), damage=self.source.damage)
            for run in self._runs.values():
                report.join(run.report)
            if report.read and not report.damage:
                report.damage = "no line of it is an event of Esper"
            return [(Stored("", "empty"), report)]
        published = []
        for number, (key, run) in enumerate(sorted(self._runs.items(), key=lambda item: item[1].first_line), 1):
            report = run.report
            report.source = str(self.source.path)
            report.damage = self.source.damage
            origin = Origin(FORMAT, str(self.source.path), self._sha256, report.read, number)
            profile = run.facts.profile
            rules = None if profile is None else (profile, load_profile(profile).text)
            manifest = self._manifest(key, run.facts)
            published.append((self._writers[key].publish(manifest, origin, report, rules=rules), report))
        return published

    def _hashed(self, digest: Any) -> Iterator[bytes]:
        for block in self.source.blocks():
            if self._descriptor is None and self.source.descriptor is not None:
                self._descriptor = os.dup(self.source.descriptor)  # the processes may be behind with reading
                self._stack.callback(os.close, self._descriptor)
            digest.update(block)
            yield block

    def _take(self, pieces: Mapping[RunKey, _Piece]) -> None:
        for key, piece in pieces.items():
            run = self._runs.get(key)
            if run is None:
                run = self._runs[key] = piece
                run_id = imported_run_id(self._name(key), piece.facts.started, piece.first_text)
                self._writers[key] = self._stack.enter_context(RunWriter(self.root, run_id))
            else:
                run.facts.join(piece.facts)
                run.report.join(piece.report)
            for table, rows in piece.tables.items():
                self._writers[key].write(table, rows)
            told = piece.tables.get("events")
            if told is not None and "event_id" in told.schema.names and not self._repeats:
                self._ids.append(told.select(["line", "event_id"]))
            piece.tables = {}

    def _name(self, key: RunKey) -> str:
        name = plain_name(self.source.path)
        if name in _PLAIN_NAMES:
            name = self.source.path.parent.name or name
        group, number = key
        return "-".join([name, *([group] if group != "default" else []), *([str(number)] if number > 1 else [])])

    def _manifest(self, key: RunKey, facts: RunFacts) -> Manifest:
        trainer = {"name": "esper", "generation": facts.generation, "group_id": key[0]}
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
            trainer=trainer,
            definition="esper",
            config=None if facts.config is None else to_jsonable(facts.config),
            total_updates=facts.total_updates,
            attempts=(attempt,),
        )


def _repeats_of(ids: Sequence[pa.Table]) -> dict[int, int]:
    """Line -> the earlier line whose event_id it repeats."""
    if not ids:
        return {}
    told = pa.concat_tables(ids)
    told = told.filter(pc.is_valid(told.column("event_id")))
    lines, event_ids = (told.column(name).to_pylist() for name in ("line", "event_id"))
    if len(set(event_ids)) == len(event_ids):
        return {}
    first: dict[str, int] = {}
    repeats = {}
    for line, event_id in sorted(zip(lines, event_ids, strict=True)):
        if first.setdefault(event_id, line) != line:
            repeats[line] = first[event_id]
    return repeats


def advance(clock: Clock, block: bytes) -> None:
    """Move the clock past a block of lines. Only those that may turn it are decoded."""
    starts = set()
    for word in _TURNING:
        at = block.find(word)
        while at >= 0:
            starts.add(block.rfind(b"\n", 0, at) + 1)
            at = block.find(word, at + 1)
    for start in sorted(starts):
        end = block.find(b"\n", start)
        try:
            event = decode(block[start : end if end >= 0 else len(block)])
        except NoJson:
            continue
        if is_event(event) and event["event_type"] in CLOCK_EVENTS:
            clock.place(event)


# --- one block --------------------------------------------------------------------------------------------------------


class BlockPlace(NamedTuple):
    """Where a block lies in a file that is open: handed to a process instead of it, which is far less to send."""

    descriptor: int
    offset: int
    length: int

    def read(self) -> bytes:
        """The block. Raises OSError where it is not there any more."""
        block = os.pread(self.descriptor, self.length, self.offset)
        if len(block) < self.length:
            raise OSError("it became shorter while it was read")
        return block


def map_block(
    block: bytes | BlockPlace, first_line: int, clock: Clock, last: bool, repeats: Mapping[int, int]
) -> dict[RunKey, _Piece]:
    """What some lines hold, by run.

    Args:
        block: whole lines, or where they are; the last of a file may lack its newline.
        first_line: the number of the first.
        clock: as the lines before have left it.
        last: the file ends with the block.
        repeats: lines to leave out -> the earlier line they repeat.
    """
    lines = (block if isinstance(block, bytes) else block.read()).split(b"\n")
    torn = len(lines) if last and lines[-1] else None
    if not lines[-1]:
        lines.pop()
    pieces: dict[RunKey, _Piece] = {}
    entries: dict[RunKey, list[PlacedEvent]] = {}
    raw: dict[RunKey, list[dict[str, Any]]] = {}

    def piece_of(key: RunKey, position: int) -> _Piece:
        if key not in pieces:
            pieces[key] = _Piece(first_line + position, lines[position])
        return pieces[key]

    def reject(position: int, reason: str, kind: str | None) -> None:
        key, update = clock.collecting()
        piece = piece_of(key, position)
        piece.report.of(kind or NO_EVENT_KIND).rejected += 1
        piece.report.reasons[reason] += 1
        raw.setdefault(key, []).append(
            {
                "line": first_line + position,
                "update": update,
                "key": "",
                "event_type": kind,
                "reason": reason,
                "text": as_text(lines[position]),
            }
        )

    for position, line in enumerate(lines):
        try:
            event = decode(line)
        except NoJson:
            if not line.strip():
                piece_of(clock.last, position).report.blank += 1
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
        if training.key not in entries:
            piece_of(training.key, position)
            entries[training.key] = []
        entries[training.key].append(PlacedEvent(number, event, training, update))
        if event["event_type"] in FACT_EVENTS:
            pieces[training.key].facts.add(event, update)
    for key, piece in pieces.items():
        _finish(piece, entries.get(key, []), raw.get(key, []), lambda number: as_text(lines[number - first_line]))
    return pieces


def _finish(
    piece: _Piece, entries: Sequence[PlacedEvent], raw: Sequence[Mapping[str, Any]], text_of: Callable[[int], str]
) -> None:
    """Rows and tallies of a run's events in a block."""
    mapped = map_events(entries)
    for name, counts in (("typed", mapped.typed), ("kept", mapped.kept), ("rejected", mapped.rejected)):
        for kind, count in counts.items():
            tally = piece.report.of(kind)
            setattr(tally, name, getattr(tally, name) + count)
    for kind, count in mapped.values_rejected.items():
        piece.report.of(kind).values_rejected += count
    piece.report.reasons.update(mapped.reasons)
    for block in mapped.blocks.get("raw_events", ()):
        if block["key"] == [""]:
            block["text"] = [text_of(line) for line in block["line"]]
    if raw:
        mapped.add("raw_events", {name: [row[name] for row in raw] for name in raw[0]})
    arrays: _Arrays = {}
    piece.tables = {table: _as_arrow(table, blocks, arrays) for table, blocks in mapped.blocks.items()}


_Arrays = dict[tuple[int, str], pa.Array]
"""(id of the values, contract type) -> the array: rows of several tables share their line, time, environment."""


def _as_arrow(table: str, blocks: Sequence[Block], arrays: _Arrays) -> pa.Table:
    declared = {column.name: column for column in columns(table)}
    tables = []
    for block in blocks:
        made = []
        for name, values in block.items():
            key = (id(values), declared[name].type)
            if key not in arrays:
                arrays[key] = _array(values, arrow_type(declared[name]))
            made.append(arrays[key])
        tables.append(pa.Table.from_arrays(made, names=list(block)))
    # In order here, side by side, most of the part will be in order when it is put together.
    return by_update(pa.concat_tables(tables, promote_options="default").combine_chunks())


def _array(values: Sequence[Any], type_: pa.DataType) -> pa.Array:
    """Values of a column; several times faster than `pa.array` where all are numbers, or all are one."""
    first = values[0]
    code = _PACKED.get(type_)
    if code is not None and first is not None:
        with suppress(TypeError):  # there is a None further on
            return pa.Array.from_buffers(type_, len(values), [None, pa.py_buffer(array(code, values))])
    elif (first is None or type(first) is str) and values.count(first) == len(values):
        return pa.repeat(pa.scalar(first, type_), len(values))
    return pa.array(values, type=type_, from_pandas=False)


_PACKED = {pa.int64(): "q", pa.timestamp("us", tz="UTC"): "q", pa.float64(): "d"}


# --- worker processes -------------------------------------------------------------------------------------------------

_FORKS = sys.platform == "linux"


def _begin_worker() -> None:
    """What a worker process does first."""
    gc.disable()  # nothing here refers to itself, and looking for it takes a third of the time
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that reads
    threading.Thread(target=_end_with_parent, args=(os.getppid(),), daemon=True).start()


def _end_with_parent(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


class _Workers:
    """Maps blocks: in this process as long as there are few, else in as many processes as there are processors."""

    PATIENCE = 2
    """Blocks after which it is worth to start processes."""

    def __init__(self) -> None:
        self._processes = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1, 4)
        self._pool: ProcessPoolExecutor | None = None
        self._waiting: list[tuple[bytes, BlockPlace | None, tuple[Any, ...]]] = []
        self._running: list[Future[dict[RunKey, _Piece]]] = []

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def hand_in(self, block: bytes, place: BlockPlace | None, *told: Any) -> Iterator[dict[RunKey, _Piece]]:
        """Have `map_block` called; yields results, in the order of the blocks, as soon as enough are on their way.

        Args:
            place: where the block lies in an open file, if it does.
            told: what `map_block` takes besides.
        """
        self._waiting.append((block, place, told))
        if self._pool is None and self._processes > 1 and len(self._waiting) > self.PATIENCE:
            context = multiprocessing.get_context("fork" if _FORKS else "spawn")
            self._pool = ProcessPoolExecutor(self._processes, mp_context=context, initializer=_begin_worker)
        if self._pool is not None:
            for held, there, more in self._waiting:
                # A process that is forked has the file open too.
                self._running.append(self._pool.submit(map_block, there if there and _FORKS else held, *more))
            self._waiting.clear()
            while len(self._running) > 2 * self._processes:
                yield self._running.pop(0).result()

    def results(self) -> Iterator[dict[RunKey, _Piece]]:
        """What is still to come, in the order of the blocks."""
        while self._running:
            yield self._running.pop(0).result()
        while self._waiting:
            block, _, told = self._waiting.pop(0)
            yield map_block(block, *told)
