"""`esper recover`: journals of dead processes become parts, unfinished files go. Live runs are left alone.

Covers: interruption at any point, repetition, another recovery or compaction at the same time (refused).
Does not cover: updates that were never committed; their bytes are counted. Folders of another host whose heartbeat is
older than a minute although the process lives are taken for dead.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from esper_analytics.catalog.discovery import Problem, run_folders
from esper_analytics.maintenance.outcome import MOVE, Outcome
from esper_recorder.storage.listing import (
    DAMAGED_SUFFIX,
    JOURNAL_ERRORS,
    JOURNAL_FOLDER,
    FileProblem,
    irregular_files,
    journals_in,
    unfinished_files,
)
from esper_recorder.storage.lock import maintenance_lock
from esper_recorder.storage.manifest import is_live
from esper_recorder.storage.reserve import remove_reserves
from esper_recorder.storage.rollover import roll

_DAMAGED = "Nothing more can be read from it; delete it once nobody needs it"
_AGAIN = "Fix that and recover again; until then it is read from its journal"


def recover(root: Path) -> Outcome:
    """Recover every run under RUNS. Can be interrupted at any point, and repeated.

    The frame has run_id; state, which is `recovered`, `nothing to do`, `live` or `failed`; the number of journals that
    became parts, and of their rows; bytes of updates that were never whole and could not be recovered; unfinished files
    removed; the folder.

    Raises UsageError and DataError, as `discovery.run_folders` does.
    """
    runs, problems = run_folders(root)
    rows = []
    for run in runs:
        recovery = Recovery()
        problems += (Problem(file.path, file.reason, MOVE) for file in irregular_files(run.path))
        try:
            recovery = recover_run(run.path)
            state = recovery.state
        except OSError as error:
            state = "failed"
            problems.append(Problem(run.path, f"it could not be recovered ({error})", _AGAIN, partly=True))
        problems += (Problem(file.path, file.reason, _DAMAGED, partly=True) for file in recovery.problems)
        counts = {name: getattr(recovery, name) for name in ("journals", "rows", "torn_bytes", "temporaries")}
        rows.append({"run_id": run.run_id, "state": state, **counts, "folder": str(run.path)})
    return Outcome(pl.DataFrame(rows), tuple(problems))


@dataclass(slots=True)
class Recovery:
    """What was done to one run's folder."""

    live: bool = False
    """The run is being recorded, so nothing was done."""
    journals: int = 0
    """Journals that became parts."""
    rows: int = 0
    """Their committed rows."""
    torn_bytes: int = 0
    """Bytes after their last commits, of updates that were never whole."""
    temporaries: int = 0
    """Unfinished files that were removed."""
    problems: tuple[FileProblem, ...] = ()
    """Journals that were damaged, or that no parts could be made of."""

    @property
    def state(self) -> str:
        return "live" if self.live else "recovered" if self.journals or self.temporaries else "nothing to do"


def recover_run(folder: Path) -> Recovery:
    """Finish what a crash left in one run's folder, unless it is being recorded to.

    Raises OSError if the folder cannot be written, or another process maintains it.
    """
    recovery = Recovery()
    with maintenance_lock(folder):
        # Listed before the check for life: what begins after the check makes files that are not in the lists.
        journals = journals_in(folder)
        temporaries = [(path, path.lstat().st_mtime_ns) for path in unfinished_files(folder)]
        if is_live(folder):
            return Recovery(live=True)
        remove_reserves(folder)  # first, as it is space that parts may need
        for _, path in sorted(journals.items()):
            try:
                content = roll(folder, path)
            except OSError:
                raise
            except JOURNAL_ERRORS as error:
                recovery.problems += (FileProblem(path, str(error)),)
                continue
            recovery.journals += 1
            recovery.rows += content.rows
            recovery.torn_bytes += content.bytes_ignored
            if content.damage:
                size = sum(damage.length for damage in content.damage)
                kept = path.with_name(path.name + DAMAGED_SUFFIX)
                recovery.problems += (FileProblem(kept, f"{size} bytes of it were damaged; the rest became parts"),)
        for path, written in temporaries:
            with contextlib.suppress(FileNotFoundError):
                if path.lstat().st_mtime_ns == written:
                    path.unlink()
                    recovery.temporaries += 1
        with contextlib.suppress(OSError):  # it does not exist, or holds damaged journals
            (folder / JOURNAL_FOLDER).rmdir()
    return recovery
