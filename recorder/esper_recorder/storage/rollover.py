"""From journal to Parquet parts: while a run is recorded, and after a crash.

Covers: interruption at any point, and repetition. A part appears whole or not at all, a table that has its part is not
written again unless the part is damaged, and the journal goes only when all its parts are durable. Readers see every
row once at every point.

Does not cover: rows that a damaged journal no longer holds; the journal is kept beside the parts under another name.
"""

from __future__ import annotations

import contextlib
import logging
from pathlib import Path

from esper_recorder.storage.arrow_batches import to_table
from esper_recorder.storage.atomic import sync_folder
from esper_recorder.storage.journal import JournalContent, read_journal
from esper_recorder.storage.listing import DAMAGED_SUFFIX, RowFileName
from esper_recorder.storage.parquet import can_be_read, write_part
from esper_recorder.storage.safe_files import NotRegularError, check_folder, is_regular

log = logging.getLogger("esper_recorder")


def roll(folder: Path, journal: Path) -> JournalContent:
    """Turn one closed journal of a run's folder into parts, one per table, and delete it.

    Returns the journal's content without the batches, which are in the parts.

    Raises:
        OSError: the parts could not be written, or a link is in their way; the journal is still there.
        ValueError: the file is not a journal.
    """
    name = RowFileName.of_journal(journal.name)
    if name is None:
        raise ValueError(f"{journal} is not named like a journal")
    content = read_journal(journal)
    while content.batches:  # the memory of each is freed once its part is written
        table, batches = content.batches.popitem()
        part = folder / table / name.part
        check_folder(part.parent)
        if is_regular(part) and can_be_read(part):
            sync_folder(part.parent)  # whoever wrote it may have died between the rename and this
            continue
        if not is_regular(part) and (part.is_symlink() or part.exists()):
            raise NotRegularError(part, "in the way of a part, and is not a file")
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
