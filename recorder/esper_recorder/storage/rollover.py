"""From journal to Parquet parts: while a run is recorded, and after a crash.

Safe to interrupt at any point and to repeat: a part is there whole or not at all, a table that has its part is not
written again, and the journal goes only when all its parts are durable. Readers see every row once at every point.
"""

from __future__ import annotations

import contextlib
import logging
from dataclasses import dataclass
from pathlib import Path

from esper_recorder.storage.arrow_batches import to_table
from esper_recorder.storage.journal import JournalContent, read_journal
from esper_recorder.storage.listing import (
    DAMAGED_SUFFIX,
    JOURNAL_FOLDER,
    FileProblem,
    PartName,
    RowFileName,
    journals_in,
)
from esper_recorder.storage.lock import is_locked, maintaining
from esper_recorder.storage.manifest import MANIFEST_FILE, ManifestError, heartbeat_is_young, how_it_ended
from esper_recorder.storage.parquet import sync_folder, write_part

log = logging.getLogger("esper_recorder")


def roll(folder: Path, journal: Path) -> JournalContent:
    """Turn one closed journal of a run's folder into parts, one per table, and delete it.

    A damaged journal is kept beside them under another name. Returns what is to be told of the journal, without the
    rows, which are in the parts.

    Raises:
        OSError: the parts could not be written; the journal is still there.
        ValueError: the file is no journal.
    """
    name = RowFileName.of_journal(journal.name)
    if name is None:
        raise ValueError(f"{journal} is not named like a journal")
    content = read_journal(journal)
    while content.batches:  # each is let go of when its part is there
        table, batches = content.batches.popitem()
        part = folder / table / name.part
        if part.exists():
            continue
        rows = to_table(table, batches)
        if rows.num_rows:
            write_part(part, table, rows)
    sync_folder(folder)  # the table folders themselves may be new
    if content.damage:
        kept = journal.with_name(journal.name + DAMAGED_SUFFIX)
        journal.replace(kept)
        log.warning("%s was damaged in %d place(s); what could be read became parts", kept, len(content.damage))
    else:
        journal.unlink()
    with contextlib.suppress(FileNotFoundError):  # another rank that ended meanwhile has removed the empty folder
        sync_folder(journal.parent)
    return content


@dataclass(frozen=True, slots=True)
class Recovered:
    """What a recovery did to a run's folder."""

    live: bool = False
    """The run is being recorded, so nothing was done."""
    journals: int = 0
    """Journals that became parts."""
    rows: int = 0
    """Their committed rows."""
    torn_bytes: int = 0
    """Bytes after their last commits, of updates that were never whole: these cannot be recovered."""
    temporaries: int = 0
    """Unfinished files that were removed."""
    problems: tuple[FileProblem, ...] = ()
    """Journals that were damaged, or that no parts could be made of."""


def recover(folder: Path) -> Recovered:
    """Finish what a crash left in a run's folder: journals become parts, unfinished files go. Repeat it as you like.

    A folder that is being recorded to is left alone. Raises OSError where the folder cannot be written, or where
    another process maintains it.
    """
    with maintaining(folder):
        # Listed before asking who is live: what begins after the question makes files that are not in the lists.
        journals = journals_in(folder)
        temporaries = [(path, path.stat().st_mtime_ns) for path in unfinished_files(folder)]
        if is_live(folder):
            return Recovered(live=True)
        rows = torn = rolled = removed = 0
        problems: list[FileProblem] = []
        for _, path in sorted(journals.items()):
            try:
                content = roll(folder, path)
            except ValueError as error:
                problems.append(FileProblem(path, str(error)))
                continue
            rolled += 1
            rows += content.rows
            torn += content.bytes_ignored
            if content.damage:
                kept = path.with_name(path.name + DAMAGED_SUFFIX)
                lost = sum(damage.length for damage in content.damage)
                problems.append(FileProblem(kept, f"{lost} bytes of it were damaged; the rest became parts"))
        for path, written in temporaries:
            with contextlib.suppress(FileNotFoundError):
                if path.stat().st_mtime_ns == written:
                    path.unlink()
                    removed += 1
        with contextlib.suppress(OSError):  # not there, or it holds damaged journals
            (folder / JOURNAL_FOLDER).rmdir()
    return Recovered(False, rolled, rows, torn, removed, tuple(problems))


def is_live(folder: Path) -> bool:
    """Whether a run's folder is being recorded to, as far as its lock and heartbeat tell."""
    if is_locked(folder):
        return True
    try:
        return how_it_ended(folder) == "live"
    except ManifestError:
        return heartbeat_is_young(folder)


def unfinished_files(folder: Path) -> list[Path]:
    """The temporary files in a run's folder: being written, or left by a process that died while writing."""
    parts = [path for path in folder.glob("*/.part-*.tmp") if PartName.of(path.name[1:-4]) is not None]
    return sorted([*parts, *folder.glob(f".{MANIFEST_FILE}.*.tmp"), *folder.glob("rules/.*.tmp")])
