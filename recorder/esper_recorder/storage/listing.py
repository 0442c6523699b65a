"""What rows a run's folder holds right now: its Parquet parts, and the rows that are only in journals yet.

A part replaces the journal of its attempt, rank and sequence number for its table. A compacted part names a range of
sequence numbers and replaces every part within it, whether those are still there or not. `list_row_files` looks at a
folder that other processes may be writing to and compacting, and gives one consistent state of it: every update
committed before the call is in it, each exactly once, and with all of its tables.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from esper_recorder.storage.arrow_batches import to_table
from esper_recorder.storage.journal import JournalContent, read_journal

JOURNAL_FOLDER = "journal"
NOT_TABLES = (JOURNAL_FOLDER, "rules")
DAMAGED_SUFFIX = ".damaged"

_PART = re.compile(r"part-a(\d+)-r(\d+)-(\d+)(?:-(\d+))?\.parquet")
_JOURNAL = re.compile(r"a(\d+)-r(\d+)-(\d+)\.journal")


_PATIENCE = 100


class RowFileName(NamedTuple):
    """The identity of a journal and of the parts that replace it."""

    attempt: int
    rank: int
    seq: int

    @property
    def part(self) -> str:
        return f"part-a{self.attempt}-r{self.rank}-{self.seq:06d}.parquet"

    @property
    def journal(self) -> str:
        return f"a{self.attempt}-r{self.rank}-{self.seq:06d}.journal"

    @classmethod
    def of_journal(cls, name: str) -> RowFileName | None:
        """The identity a journal's file name tells, or None for a name that is not a journal's."""
        match = _JOURNAL.fullmatch(name)
        return cls(*map(int, match.groups())) if match else None


class PartName(NamedTuple):
    """The identity of a part: it holds what the journals `first` to `last` of one process held of its table."""

    attempt: int
    rank: int
    first: int
    last: int

    @property
    def file(self) -> str:
        last = f"-{self.last:06d}" if self.compacted else ""
        return f"part-a{self.attempt}-r{self.rank}-{self.first:06d}{last}.parquet"

    @property
    def compacted(self) -> bool:
        """It replaces other parts."""
        return self.last > self.first

    @property
    def process(self) -> tuple[int, int]:
        """(attempt, rank) of the process that recorded it."""
        return self.attempt, self.rank

    def covers(self, other: PartName | RowFileName) -> bool:
        """Whether all rows of the other (a part of the same table, or a journal) are in this one."""
        first, last = (other.first, other.last) if isinstance(other, PartName) else (other.seq, other.seq)
        same = (self.attempt, self.rank) == (other.attempt, other.rank)
        return same and self.first <= first and last <= self.last

    @classmethod
    def of(cls, name: str) -> PartName | None:
        """The identity a part's file name tells, or None for a name that is not a part's."""
        match = _PART.fullmatch(name)
        if match is None:
            return None
        attempt, rank, first, last = match.groups()
        found = cls(int(attempt), int(rank), int(first), int(last or first))
        return found if last is None or found.compacted else None


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A file that could not be read, or not wholly."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class RowFiles:
    """One consistent state of the row files of a run."""

    parts: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """Table -> its parts, ordered by attempt, rank and sequence number. They have not been opened."""
    replaced: tuple[Path, ...] = ()
    """Parts whose rows are in a compacted part too: what a compaction that was interrupted left."""
    journal_rows: dict[str, pa.Table] = field(default_factory=dict)
    """Table -> rows that are in journals and in no part, with all the contract's columns."""
    journals: tuple[Path, ...] = ()
    """The journals `journal_rows` were read from."""
    strangers: tuple[Path, ...] = ()
    """Parquet files in table folders whose names are not a part's: a copy, a merged file, another program's."""
    problems: tuple[FileProblem, ...] = ()
    """Journals that are damaged or not ours; each with what was left out."""
    ranks: frozenset[int] = frozenset()
    """The ranks whose rows these are."""
    bytes_ignored: int = 0
    """Bytes after the last commit of the journals: an update being written, or what a crash left of one."""


def last_sequence(folder: Path, attempt: int, rank: int) -> int:
    """The highest sequence number a process has used for a journal or a part; 0 where it has none."""
    numbers = [name.seq for name in journals_in(folder) if (name.attempt, name.rank) == (attempt, rank)]
    for found in parts_in(folder)[0].values():
        numbers += [name.last for name in found if name.process == (attempt, rank)]
    return max(numbers, default=0)


def list_row_files(folder: str | Path) -> RowFiles:
    """The row files of a run's folder, and the rows that are only in journals.

    A folder without rows (or that is not there) gives an empty result. Raises OSError where the folder is compacted
    over and over while it is listed.
    """
    for _ in range(_PATIENCE):
        found = _look(Path(folder))
        if found is not None:
            return found
    raise OSError(f"{folder} changed all the while it was listed; try again")


def _look(folder: Path) -> RowFiles | None:
    """One consistent state of a run's folder; None where a compaction moved files under the listing."""
    # The order makes it consistent without a lock. A writer seals journal n before it opens n + 1, and deletes a
    # journal only when all its parts are in place. So a journal that has a successor or a part in the first listings is
    # complete when it is read after them; one that is gone by then has all its parts; and a part of the first listing
    # whose journal is not in the second has all its sister parts by the last.
    #
    # A compaction puts the compacted part in place before it deletes what that replaces, and compacts no part that has
    # a journal. So a listing that lacks a part because it was deleted meanwhile is followed by one with a compacted
    # part that is not in it; where no compacted part came between the first listing and the last, nothing is missing.
    first = journals_in(folder)
    before, _ = parts_in(folder)
    begun = {RowFileName(*name.process, seq) for names in before.values() for name in names for seq in _ends(name)}
    contents, unreadable, problems = _read(first)
    second = journals_in(folder)
    parts, strangers = parts_in(folder)
    compacted = _compacted(parts)
    if compacted != _compacted(before) or (parts != before and compacted != _compacted(parts_in(folder)[0])):
        return None

    newest: dict[tuple[int, int], int] = {}
    for name in first:
        newest[name.attempt, name.rank] = max(name.seq, newest.get((name.attempt, name.rank), 0))
    horizon: dict[tuple[int, int], int] = {}  # journals born during the listing, and what follows them, are left out
    for name in second:
        if name not in first:
            horizon[name.attempt, name.rank] = min(name.seq, horizon.get((name.attempt, name.rank), name.seq))

    def by_parts(name: RowFileName) -> bool:
        """Whether the parts of this identity are read (and its journal for tables that have none)."""
        if name in contents:
            return name in begun or name.seq < newest[name.attempt, name.rank]
        if name in second:
            return name in unreadable
        until = horizon.get((name.attempt, name.rank))
        return (name in begun or name in first) and (until is None or name.seq < until)

    chosen: dict[str, tuple[Path, ...]] = {}
    replaced: list[Path] = []
    taken: dict[str, list[PartName]] = {}
    for table, found in sorted(parts.items()):
        ranges = [name for name in found if name.compacted]
        names: list[PartName] = []
        for part in sorted(found):
            if any(other.covers(part) for other in ranges if other != part):
                replaced.append(found[part])
            elif part.compacted or by_parts(RowFileName(*part.process, part.first)):
                names.append(part)
        if names:
            taken[table] = names
            chosen[table] = tuple(found[part] for part in names)
    batches: dict[str, list[pa.RecordBatch]] = {}
    for journal in sorted(contents):
        for table, rows in contents[journal].batches.items():
            if not any(part.covers(journal) for part in taken.get(table, ())):
                batches.setdefault(table, []).extend(rows)
    return RowFiles(
        parts=chosen,
        replaced=tuple(replaced),
        journal_rows={table: to_table(table, rows) for table, rows in sorted(batches.items())},
        journals=tuple(first[name] for name in sorted(contents)),
        strangers=strangers,
        problems=(*problems, *_set_aside(folder)),
        ranks=frozenset(j.rank for j in contents) | {part.rank for names in taken.values() for part in names},
        bytes_ignored=sum(content.bytes_ignored for content in contents.values()),
    )


def _ends(name: PartName) -> tuple[int, ...]:
    return (name.first, name.last) if name.compacted else (name.first,)


def _compacted(parts: dict[str, dict[PartName, Path]]) -> set[tuple[str, PartName]]:
    return {(table, name) for table, names in parts.items() for name in names if name.compacted}


def last_update(folder: str | Path) -> int:
    """The highest update of which a run's folder holds rows; 0 where it holds none.

    Episodes do not count: the last ones may be of a rollout that no update followed. Parts that cannot be read are
    passed over, as is a journal's torn tail.
    """
    for _ in range(_PATIENCE):
        files = list_row_files(folder)
        files.parts.pop("episodes", None)
        files.journal_rows.pop("episodes", None)
        found = [int(pc.max(rows.column("update")).as_py() or 0) for rows in files.journal_rows.values()]
        try:
            found += [_last_update(path) for path in itertools.chain.from_iterable(files.parts.values())]
        except FileNotFoundError:
            continue  # compacted since it was listed
        return max(found, default=0)
    raise OSError(f"{folder} changed all the while it was read; try again")


def _last_update(part: Path) -> int:
    try:
        metadata = pq.read_metadata(part).metadata or {}
        return int(metadata.get(b"esper_last_update") or 0)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException):
        return 0


def journals_in(folder: Path) -> dict[RowFileName, Path]:
    """The journals in a run's folder right now."""
    found: dict[RowFileName, Path] = {}
    for path in _entries(folder / JOURNAL_FOLDER):
        name = RowFileName.of_journal(path.name)
        if name is not None:
            found[name] = path
    return found


def parts_in(folder: Path) -> tuple[dict[str, dict[PartName, Path]], tuple[Path, ...]]:
    """Table -> its parts right now, and the Parquet files whose names are not a part's."""
    parts: dict[str, dict[PartName, Path]] = {}
    strangers: list[Path] = []
    for table in _entries(folder):
        if table.name in NOT_TABLES or table.name.startswith(".") or not table.is_dir():
            continue
        for path in _entries(table):
            name = PartName.of(path.name)
            if name is not None:
                parts.setdefault(table.name, {})[name] = path
            elif path.suffix == ".parquet" and not path.name.startswith("."):
                strangers.append(path)
    return parts, tuple(sorted(strangers))


def _read(
    journals: dict[RowFileName, Path],
) -> tuple[dict[RowFileName, JournalContent], set[RowFileName], list[FileProblem]]:
    """What the journals hold, which could not be read, and what is wrong with any; one that is gone is left out."""
    contents: dict[RowFileName, JournalContent] = {}
    unreadable: set[RowFileName] = set()
    problems: list[FileProblem] = []
    for name, path in sorted(journals.items()):
        if _leads_out(path):
            unreadable.add(name)
            problems.append(FileProblem(path, "a link that leads out of the run; it is not followed"))
            continue
        try:
            content = contents[name] = read_journal(path)
        except FileNotFoundError:
            continue  # it has become parts
        except (OSError, ValueError) as error:
            unreadable.add(name)
            problems.append(FileProblem(path, str(error)))
            continue
        if content.damage:
            size = sum(damage.length for damage in content.damage)
            where = content.damage[0]
            reason = (
                f"{size} bytes in {len(content.damage)} place(s) are damaged, the first at byte {where.offset} "
                f"({where.reason}); the rows in them are left out"
            )
            problems.append(FileProblem(path, reason))
    return contents, unreadable, problems


def _leads_out(journal: Path) -> bool:
    """Whether a journal is a link, or lies in one, to a place outside of its run's folder."""
    if not (journal.is_symlink() or journal.parent.is_symlink()):
        return False
    return not journal.resolve().is_relative_to(journal.parent.parent.resolve())


def _set_aside(folder: Path) -> Iterator[FileProblem]:
    """The damaged journals that were kept when what could be read of them became parts."""
    for path in sorted(_entries(folder / JOURNAL_FOLDER)):
        if path.name.endswith(DAMAGED_SUFFIX):
            yield FileProblem(path, "a damaged journal; what could be read of it is in the parts")


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
