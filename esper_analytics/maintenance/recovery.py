"""`esper recover`: journals of dead processes become parts, unfinished files go. Live runs are left alone."""

from __future__ import annotations

from pathlib import Path

import polars as pl

from esper_analytics.catalog.discovery import Problem, run_folders
from esper_analytics.maintenance.outcome import Outcome
from esper_recorder.storage.rollover import Recovered
from esper_recorder.storage.rollover import recover as recover_folder

_SCHEMA = {
    "run_id": pl.String,
    "state": pl.String,
    "journals": pl.Int64,
    "rows": pl.Int64,
    "torn_bytes": pl.Int64,
    "temporaries": pl.Int64,
    "folder": pl.String,
}
_DAMAGED = "Nothing more can be got from it; delete it once nobody wants to look at it"
_AGAIN = "Mend that and recover again; until then it is read from its journal"


def recover(root: Path) -> Outcome:
    """Recover every run under RUNS. Can be interrupted at any point, and repeated.

    The frame has a row a folder: run_id; state, which is `recovered`, `nothing to do`, `live` or `failed`; the number
    of journals that became parts, and of their rows; bytes of updates that were never whole and could not be
    recovered; unfinished files removed; the folder.

    Raises UsageError and DataError, as `folders.run_folders` does.
    """
    found, problems = run_folders(root)
    rows = []
    for run in found:
        state = "nothing to do"
        done = Recovered()
        try:
            done = recover_folder(run.path)
        except OSError as error:
            state = "failed"
            problems.append(Problem(run.path, f"it could not be recovered ({error})", _AGAIN, partly=True))
        if done.live:
            state = "live"
        elif done.journals or done.temporaries:
            state = "recovered"
        problems += (Problem(found.path, found.reason, _DAMAGED, partly=True) for found in done.problems)
        rows.append(
            (run.run_id, state, done.journals, done.rows, done.torn_bytes, done.temporaries, str(run.path)),
        )
    return Outcome(pl.DataFrame(rows, schema=_SCHEMA, orient="row"), tuple(problems))
