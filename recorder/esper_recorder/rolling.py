"""From journal to Parquet parts: while a run is recorded, and after a crash.

Safe to interrupt at any point and to repeat: a part is there whole or not at all, a table that has its part is not
written again, and the journal goes only when all its parts are durable. Readers see every row once at every point.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from esper_recorder.batches import to_table
from esper_recorder.journal import read_journal
from esper_recorder.parquet import sync_folder, write_part
from esper_recorder.reading import DAMAGED_SUFFIX, JOURNAL_FOLDER, RowFileName

log = logging.getLogger("esper_recorder")


def roll(folder: Path, journal: Path) -> int:
    """Turn one closed journal of a run's folder into parts, one per table, and delete it.

    A damaged journal is kept beside them under another name. Returns the number of rows in the journal.

    Raises:
        OSError: the parts could not be written; the journal is still there.
        ValueError: the file is no journal.
    """
    name = RowFileName.of_journal(journal.name)
    if name is None:
        raise ValueError(f"{journal} is not named like a journal")
    content = read_journal(journal)
    for table, batches in content.batches.items():
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
    sync_folder(journal.parent)
    return content.rows


def recover(folder: Path) -> int:
    """Roll every journal a crash left in a run's folder, which nobody may be recording to. Returns the rows rolled."""
    rows = 0
    journals = folder / JOURNAL_FOLDER
    for path in sorted(journals.glob("*.journal")):
        if RowFileName.of_journal(path.name) is not None:
            rows += roll(folder, path)
    with contextlib.suppress(OSError):  # not there, or it holds damaged journals
        journals.rmdir()
    return rows
