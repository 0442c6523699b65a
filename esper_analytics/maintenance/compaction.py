"""`esper compact`: many small parts become few, without a moment at which a reader misses a row or sees one twice.

A compacted part is named after the range of sequence numbers it replaces (`part-a1-r0-000001-000040.parquet`), and
readers ignore every part within the range of another. So it appears, whole, in one step (a rename), and what it
replaces is deleted afterwards; an interruption between the two leaves files that nobody reads, which the next
compaction removes.

Covers: interruption at any point; a run that is being recorded (only parts whose journals are gone are touched);
readers of ours at any moment; parts that are damaged or of a newer version, which stay as they are.

Does not cover: whoever reads the parts by a plain glob sees rows twice while a compaction is under way.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from esper_analytics.catalog.discovery import Problem, RunEntry, run_folders
from esper_analytics.catalog.footers import read_footer
from esper_analytics.maintenance.outcome import MOVE, Outcome
from esper_recorder.contract.tables import SCHEMA_VERSION, TABLES, stored_names
from esper_recorder.storage.arrow_batches import to_table
from esper_recorder.storage.atomic import sync_folder
from esper_recorder.storage.listing import RowFileName, irregular_files, journals_in, parts_in, split_replaced
from esper_recorder.storage.lock import maintenance_lock
from esper_recorder.storage.parquet import arrow_schema, can_be_read, open_part, part_writer

MOST_ROWS = 1_000_000
"""Rows a compacted part may hold. Larger parts are left alone."""
_PIECE_BYTES = 32 * 2**20  # a row group's size in memory, and about what a compaction holds at once
_BATCH_ROWS = 16_384

_LEFT = "It stays unchanged; `esper verify` says more"


def compact(root: Path, *, most_rows: int = MOST_ROWS) -> Outcome:
    """Merge the small parts of every run under RUNS. Can be interrupted at any point, and repeated.

    The frame has run_id; state, which is `compacted`, `nothing to do` or `failed`; the number of parts and their bytes,
    before and after; the folder.

    Raises UsageError and DataError, as `discovery.run_folders` does.
    """
    runs, problems = run_folders(root)
    rows = []
    for run in runs:
        parts_before, bytes_before = _size(run.path)
        try:
            with maintenance_lock(run.path):
                changed, left = compact_run(run, most_rows)
            problems += left
            state = "compacted" if changed else "nothing to do"
        except OSError as error:
            state = "failed"
            problems.append(Problem(run.path, f"it could not be compacted ({error})", "Nothing is lost", partly=True))
        parts, size = _size(run.path)
        rows.append(
            {
                "run_id": run.run_id,
                "state": state,
                "parts_before": parts_before,
                "parts": parts,
                "bytes_before": bytes_before,
                "bytes": size,
                "folder": str(run.path),
            }
        )
    return Outcome(pl.DataFrame(rows), tuple(problems))


def compact_run(run: RunEntry, most_rows: int = MOST_ROWS) -> tuple[bool, list[Problem]]:
    """Merge the parts of one run. Returns whether anything changed, and what had to be left alone."""
    # What has a part now and no journal in the listing after is complete in the one after that: a writer makes parts
    # in the order of its journals, and deletes a journal once it has all its parts.
    newest: dict[tuple[int, int], int] = {}
    for parts in parts_in(run.path)[0].values():
        for name in parts:
            newest[name.process] = max(name.last, newest.get(name.process, 0))
    barriers: dict[tuple[int, int], list[int]] = defaultdict(list)
    for journal in sorted(journals_in(run.path)):
        barriers[journal.process].append(journal.first)
    changed = False
    problems = [Problem(file.path, file.reason, MOVE) for file in irregular_files(run.path)]
    for table, paths in sorted(parts_in(run.path)[0].items()):
        if table not in TABLES:
            continue
        processes: dict[tuple[int, int], list[RowFileName]] = defaultdict(list)
        for name in split_replaced(paths)[0]:
            if name.last <= newest.get(name.process, 0):
                processes[name.process].append(name)
        for process, names in processes.items():
            for group in _groups(run, table, {name: paths[name] for name in names}, barriers[process], most_rows):
                try:
                    for sound in _without_damaged(group, problems):
                        _merge(table, sound)
                        changed = True
                except (OSError, pa.ArrowException, ValueError) as error:
                    if isinstance(error, OSError) and error.errno is not None:
                        raise
                    reason = f"it could not be merged with the parts beside it ({error})"
                    problems.append(Problem(group[0].path, reason, _LEFT, partly=True))
        changed |= _remove_replaced(run, table)
    return changed, problems


@dataclass(frozen=True, slots=True)
class _Part:
    name: RowFileName
    path: Path
    rows: int


def _groups(
    run: RunEntry, table: str, parts: Mapping[RowFileName, Path], barriers: Sequence[int], most_rows: int
) -> Iterator[list[_Part]]:
    """Group adjacent parts of one process to be merged: two or more, of at most `most_rows` rows together.

    Args:
        parts: in order.
        barriers: sequence numbers of journals that wait for their parts; no group may span one.
    """
    group: list[_Part] = []
    for name, path in parts.items():
        part = _mergeable(run, table, name, path)
        apart = bool(group) and any(group[-1].name.last < seq <= name.first for seq in barriers)
        if part is None or apart or sum(p.rows for p in group) + part.rows > most_rows:
            if len(group) > 1:
                yield group
            group = []
        if part is not None and not any(name.first <= seq <= name.last for seq in barriers):
            group.append(part)
    if len(group) > 1:
        yield group


def _without_damaged(group: Sequence[_Part], problems: list[Problem]) -> Iterator[list[_Part]]:
    """Split a group at its damaged parts, so that no part spans one; add these to the problems."""
    sound: list[_Part] = []
    for part in group:
        if can_be_read(part.path):
            sound.append(part)
            continue
        problems.append(Problem(part.path, "it is damaged, so it was not merged with the parts beside it", _LEFT))
        if len(sound) > 1:
            yield sound
        sound = []
    if len(sound) > 1:
        yield sound


def _mergeable(run: RunEntry, table: str, name: RowFileName, path: Path) -> _Part | None:
    """Return the part if it can be read and holds nothing that this version does not know."""
    footer = read_footer(path, table, run.run_id, thoroughly=True)
    if footer.problem is not None:
        return None
    try:
        with pq.ParquetFile(path) as file:
            version = int((file.metadata.metadata or {}).get(b"esper_schema_version") or 0)
            names = file.schema_arrow.names
            if version > SCHEMA_VERSION or len(stored_names(table, names)) < len(names):
                return None
    except (OSError, pa.ArrowException, ValueError):
        return None
    return _Part(name, path, footer.rows)


def _merge(table: str, group: Sequence[_Part]) -> None:
    """Write one part of the rows of several, in their order."""
    first, last = group[0].name, group[-1].name
    target = group[0].path.with_name(RowFileName(*first.process, first.first, last.last).part)
    expected = sum(part.rows for part in group)
    with part_writer(target, table, arrow_schema(table), compact=True) as merged:
        for batches in _pieces([part.path for part in group]):
            merged.write(to_table(table, batches))
        if merged.rows != expected:
            raise ValueError(f"{merged.rows} rows were read, and the footers say {expected}")


def _pieces(paths: Sequence[Path]) -> Iterator[list[pa.RecordBatch]]:
    """Read the rows of some files in pieces, each for one row group."""
    batches: list[pa.RecordBatch] = []
    size = 0
    for path in paths:
        with open_part(path) as file:
            for batch in file.iter_batches(_BATCH_ROWS):
                batches.append(batch)
                size += batch.nbytes
                if size >= _PIECE_BYTES:
                    yield batches
                    batches, size = [], 0
    if batches:
        yield batches


def _remove_replaced(run: RunEntry, table: str) -> bool:
    """Delete the parts whose rows are in a compacted part that can be read."""
    paths = parts_in(run.path)[0].get(table, {})
    readable = [n for n in paths if n.compacted and read_footer(paths[n], table, run.run_id).problem is None]
    replaced = [n for n in paths if any(other.covers(n) for other in readable if other != n)]
    if not replaced:
        return False
    sync_folder(run.path / table)  # an interrupted compaction may have renamed its part without this
    for name in replaced:
        paths[name].unlink(missing_ok=True)
    return True


def _size(folder: Path) -> tuple[int, int]:
    """(number of parts, their bytes) in a run's folder."""
    paths = [path for names in parts_in(folder)[0].values() for path in names.values()]
    return len(paths), sum(path.stat().st_size for path in paths if path.exists())
