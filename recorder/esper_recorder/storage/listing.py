"""The rows of a run's folder at one moment: its Parquet parts, and the rows that are only in journals yet.

A part replaces the journal of its attempt, rank and sequence number for its table. A compacted part names a range of
sequence numbers and replaces every part within it, deleted or not. `list_row_files` reads a folder that other processes
may be writing to and compacting, and returns one consistent state of it: every update committed before the call is in
it, each exactly once, and with all of its tables.
"""

from __future__ import annotations

import itertools
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from esper_recorder.storage.arrow_batches import to_table
from esper_recorder.storage.journal import JournalContent, read_journal
from esper_recorder.storage.manifest import MANIFEST_FILE
from esper_recorder.storage.safe_files import files_in, folders_in, irregular_in

JOURNAL_FOLDER = "journal"
NOT_TABLES = (JOURNAL_FOLDER, "rules")
DAMAGED_SUFFIX = ".damaged"

_N = "([0-9]{1,18})"  # a number that a column holds
_PART = re.compile(rf"part-a{_N}-r{_N}-{_N}(?:-{_N})?\.parquet")
_JOURNAL = re.compile(rf"a{_N}-r{_N}-{_N}\.journal")
_UNFINISHED_PART = re.compile(rf"\.({_PART.pattern})(?:\.\d+)?\.tmp")
_TRIES = 100
JOURNAL_ERRORS = (OSError, ValueError, TypeError, LookupError, struct.error, pa.ArrowException)
"""What reading a journal may raise: a stranger's frames may have fitting checksums and hold anything."""


@dataclass(frozen=True, order=True, slots=True)
class RowFileName:
    """The identity of a journal, or of a part with the rows of the journals `first` to `last` of one process."""

    attempt: int
    rank: int
    first: int
    last: int = 0
    """`first` if it is not passed."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "last", self.last or self.first)

    @property
    def part(self) -> str:
        """The part's file name."""
        last = f"-{self.last:06d}" if self.compacted else ""
        return f"part-a{self.attempt}-r{self.rank}-{self.first:06d}{last}.parquet"

    @property
    def journal(self) -> str:
        """The journal's file name."""
        return f"a{self.attempt}-r{self.rank}-{self.first:06d}.journal"

    @property
    def compacted(self) -> bool:
        """Whether it is a part that replaces other parts."""
        return self.last > self.first

    @property
    def process(self) -> tuple[int, int]:
        """(attempt, rank) of the process that recorded it."""
        return self.attempt, self.rank

    def covers(self, other: RowFileName) -> bool:
        """Whether all rows of the other (a part of the same table, or a journal) are in this one."""
        return self.process == other.process and self.first <= other.first and other.last <= self.last

    @classmethod
    def of_journal(cls, name: str) -> RowFileName | None:
        """Parse a journal's file name; None if it is another file's."""
        match = _JOURNAL.fullmatch(name)
        return cls(*map(int, match.groups())) if match else None

    @classmethod
    def of_part(cls, name: str) -> RowFileName | None:
        """Parse a part's file name; None if it is another file's."""
        match = _PART.fullmatch(name)
        if match is None or (match[4] and int(match[4]) <= int(match[3])):
            return None
        return cls(*map(int, match.groups(default=0)))


def split_replaced(parts: Iterable[RowFileName]) -> tuple[list[RowFileName], list[RowFileName]]:
    """Separate the parts of one table from those whose rows are in a compacted one; both in order."""
    current: list[RowFileName] = []
    replaced: list[RowFileName] = []
    until: dict[tuple[int, int], int] = {}
    """Process -> the highest number in the compacted parts so far, which begin at or before the part at hand."""
    for name in sorted(parts, key=lambda name: (name.process, name.first, -name.last)):
        (replaced if name.last <= until.get(name.process, 0) else current).append(name)
        if name.compacted:
            until[name.process] = max(name.last, until.get(name.process, 0))
    return current, replaced


@dataclass(frozen=True, slots=True)
class FileProblem:
    """A file that cannot be read, or only in part."""

    path: Path
    reason: str


@dataclass(frozen=True, slots=True)
class RowFiles:
    """One consistent state of the row files of a run."""

    parts: dict[str, tuple[Path, ...]] = field(default_factory=dict)
    """Table -> its parts, ordered by attempt, rank and sequence number. They have not been opened."""
    replaced: tuple[Path, ...] = ()
    """Parts whose rows are in a compacted part too, left by a compaction that was interrupted."""
    journal_rows: dict[str, pa.Table] = field(default_factory=dict)
    """Table -> rows that are in journals and in no part, with all the contract's columns."""
    journals: tuple[Path, ...] = ()
    """The journals `journal_rows` were read from."""
    foreign: tuple[Path, ...] = ()
    """Parquet files in table folders whose names are not a part's: a copy, a merged file, another program's."""
    problems: tuple[FileProblem, ...] = ()
    """Journals that are damaged or not ours; each with what was left out."""
    irregular: tuple[FileProblem, ...] = ()
    """Links and special files in the folder: they are not read, whatever their names are."""
    ranks: frozenset[int] = frozenset()
    """The ranks whose rows these are."""
    bytes_ignored: int = 0
    """Bytes after the last commit of the journals: an update being written, or what a crash left of one."""


def last_sequence(folder: Path, attempt: int, rank: int) -> int:
    """Return the highest sequence number a process has used for a journal or a part; 0 if it has used none."""
    irregular = (path.name for path, _ in irregular_in(folder))  # their names are taken too
    taken = (RowFileName.of_journal(name) or RowFileName.of_part(name) for name in irregular)
    names = itertools.chain(journals_in(folder), *parts_in(folder)[0].values(), taken)
    return max((name.last for name in names if name and name.process == (attempt, rank)), default=0)


def list_row_files(folder: str | Path) -> RowFiles:
    """List the row files of a run's folder, and read the rows that are only in journals.

    A folder that is missing or has no rows gives an empty result. Raises OSError if the folder is compacted over and
    over while it is listed.
    """
    for _ in range(_TRIES):
        files = _list_once(Path(folder))
        if files is not None:
            return files
    raise OSError(f"{folder} changed all the while it was listed; try again")


def _list_once(folder: Path) -> RowFiles | None:
    """List one consistent state of a run's folder; None if a compaction moved files meanwhile."""
    # The order makes it consistent without a lock. A writer seals journal n before it opens n + 1, and deletes a
    # journal only when all its parts are in place. So a journal that has a successor or a part in the first listings is
    # complete when it is read after them; one that is gone by then has all its parts; and a part of the first listing
    # whose journal is not in the second has all its sister parts by the last.
    #
    # A compaction puts the compacted part in place before it deletes what that replaces, and compacts no part that has
    # a journal. So if a listing misses a part that was deleted meanwhile, a later listing shows a compacted part that
    # the earlier one did not. If no compacted part appears between the first and the last listing, nothing is missing.
    first = journals_in(folder)
    before, _ = parts_in(folder)
    ends = ((*name.process, seq) for names in before.values() for name in names for seq in (name.first, name.last))
    has_parts = {RowFileName(*end) for end in ends}
    contents, unreadable, problems = _read_journals(first)
    second = journals_in(folder)
    parts, foreign = parts_in(folder)
    compacted = _compacted(parts)
    if compacted != _compacted(before) or (parts != before and compacted != _compacted(parts_in(folder)[0])):
        return None

    newest: dict[tuple[int, int], int] = {}
    for name in first:
        newest[name.process] = max(name.first, newest.get(name.process, 0))
    # Journals created during the listing, and those that follow them, are left out.
    first_new_journal: dict[tuple[int, int], int] = {}
    for name in second.keys() - first.keys():
        first_new_journal[name.process] = min(name.first, first_new_journal.get(name.process, name.first))

    def read_from_parts(name: RowFileName) -> bool:
        """Whether the parts of this identity are read (and its journal only for tables that have no part)."""
        if name in contents:
            return name in has_parts or name.first < newest[name.process]
        if name in second:
            return name in unreadable
        until = first_new_journal.get(name.process)
        return (name in has_parts or name in first) and (until is None or name.first < until)

    chosen: dict[str, list[RowFileName]] = {}
    replaced: list[Path] = []
    for table, paths in sorted(parts.items()):
        current, superfluous = split_replaced(paths)
        replaced += (paths[name] for name in superfluous)
        current = [n for n in current if n.compacted or read_from_parts(RowFileName(*n.process, n.first))]
        if current:
            chosen[table] = current
    batches: dict[str, list[pa.RecordBatch]] = {}
    for journal in sorted(contents):
        for table, rows in contents[journal].batches.items():
            if not any(part.covers(journal) for part in chosen.get(table, ())):
                batches.setdefault(table, []).extend(rows)
    return RowFiles(
        parts={table: tuple(parts[table][name] for name in names) for table, names in chosen.items()},
        replaced=tuple(replaced),
        journal_rows={table: to_table(table, rows) for table, rows in sorted(batches.items())},
        journals=tuple(first[name] for name in sorted(contents)),
        foreign=foreign,
        problems=(*problems, *_set_aside(folder)),
        irregular=irregular_files(folder),
        ranks=frozenset(j.rank for j in contents) | {name.rank for names in chosen.values() for name in names},
        bytes_ignored=sum(content.bytes_ignored for content in contents.values()),
    )


def _compacted(parts: dict[str, dict[RowFileName, Path]]) -> set[tuple[str, RowFileName]]:
    return {(table, name) for table, names in parts.items() for name in names if name.compacted}


def last_update(folder: str | Path) -> int:
    """Return the highest update that a run's folder holds rows of; 0 if it holds none.

    Episodes do not count: the last ones may be of a rollout that no update followed. Parts that cannot be read are
    skipped, as is a journal's torn tail.
    """
    for _ in range(_TRIES):
        files = list_row_files(folder)
        updates = [
            int(pc.max(rows.column("update")).as_py() or 0)
            for table, rows in files.journal_rows.items()
            if table != "episodes"
        ]
        parts = [path for table, paths in files.parts.items() if table != "episodes" for path in paths]
        try:
            return max([*updates, *map(_last_update_of_part, parts)], default=0)
        except FileNotFoundError:
            continue  # compacted since it was listed
    raise OSError(f"{folder} changed all the while it was read; try again")


def _last_update_of_part(part: Path) -> int:
    try:
        metadata = pq.read_metadata(part).metadata or {}
        return int(metadata.get(b"esper_last_update") or 0)
    except FileNotFoundError:
        raise
    except (OSError, ValueError, pa.ArrowException):
        return 0


def journals_in(folder: Path) -> dict[RowFileName, Path]:
    """List the journals in a run's folder."""
    named = ((RowFileName.of_journal(path.name), path) for path in files_in(folder, JOURNAL_FOLDER))
    return {name: path for name, path in named if name is not None}


def parts_in(folder: Path) -> tuple[dict[str, dict[RowFileName, Path]], tuple[Path, ...]]:
    """List the parts of each table, and the Parquet files whose names are not a part's."""
    parts: dict[str, dict[RowFileName, Path]] = {}
    foreign: list[Path] = []
    for table in folders_in(folder):
        if table.name in NOT_TABLES or table.name.startswith("."):
            continue
        for path in files_in(folder, table.name):
            name = RowFileName.of_part(path.name)
            if name is not None:
                parts.setdefault(table.name, {})[name] = path
            elif path.suffix == ".parquet" and not path.name.startswith("."):
                foreign.append(path)
    return parts, tuple(sorted(foreign))


def unfinished_files(folder: Path) -> list[Path]:
    """List the temporary files in a run's folder: being written, or left by a process that died while writing."""
    parts = (path for table in folders_in(folder) for path in files_in(folder, table.name))
    unfinished = [path for path in parts if _UNFINISHED_PART.fullmatch(path.name)]
    unfinished += (path for path in files_in(folder) if fnmatch(path.name, f".{MANIFEST_FILE}.*.tmp"))
    unfinished += (path for path in files_in(folder, "rules") if fnmatch(path.name, ".*.tmp"))
    return sorted(unfinished)


def irregular_files(folder: Path) -> tuple[FileProblem, ...]:
    """List the links and special files in a run's folder, which nothing opens."""
    return tuple(FileProblem(path, f"it is {what}") for path, what in sorted(irregular_in(folder)))


def _read_journals(
    journals: dict[RowFileName, Path],
) -> tuple[dict[RowFileName, JournalContent], set[RowFileName], list[FileProblem]]:
    """Read journals: their contents, which could not be read, and the problems. One that is gone is left out."""
    contents: dict[RowFileName, JournalContent] = {}
    unreadable: set[RowFileName] = set()
    problems: list[FileProblem] = []
    for name, path in sorted(journals.items()):
        try:
            content = contents[name] = read_journal(path)
        except FileNotFoundError:
            continue  # it has become parts
        except JOURNAL_ERRORS as error:
            unreadable.add(name)
            problems.append(FileProblem(path, str(error)))
            continue
        if content.damage:
            size = sum(damage.length for damage in content.damage)
            start = content.damage[0]
            reason = (
                f"{size} bytes in {len(content.damage)} place(s) are damaged, the first at byte {start.offset} "
                f"({start.reason}); the rows in them are left out"
            )
            problems.append(FileProblem(path, reason))
    return contents, unreadable, problems


def _set_aside(folder: Path) -> Iterator[FileProblem]:
    """Damaged journals, kept after their readable rows became parts."""
    for path in sorted(files_in(folder, JOURNAL_FOLDER)):
        if path.name.endswith(DAMAGED_SUFFIX):
            yield FileProblem(path, "a damaged journal; what could be read of it is in the parts")
