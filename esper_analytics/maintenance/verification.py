"""`esper verify`: whether a recording is whole. Every file is read to its last row; nothing is changed.

A recording is whole when every row file can be read and its footer agrees with its rows, every process of the run
recorded updates 1..n without a hole that `gaps` does not tell, nothing is left of a crash or of an interrupted
compaction, and no other folder holds the same run. A run that is being recorded is whole so far.
"""

from __future__ import annotations

import functools
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from esper_analytics.catalog.discovery import FoundRun, Problem, run_folders
from esper_analytics.catalog.footers import read_footer
from esper_analytics.formatting import format_count
from esper_analytics.maintenance.outcome import Outcome
from esper_recorder.contract.tables import TABLES
from esper_recorder.storage.gaps import ALL_TABLES
from esper_recorder.storage.listing import PartName, RowFiles, list_row_files
from esper_recorder.storage.manifest import how_it_ended
from esper_recorder.storage.rollover import is_live, unfinished_files

_SCHEMA = {
    "run_id": pl.String,
    "ended": pl.String,
    "updates": pl.Int64,
    "missing": pl.Int64,
    "told_missing": pl.Int64,
    "rows": pl.Int64,
    "files": pl.Int64,
    "torn_bytes": pl.Int64,
    "problems": pl.Int64,
    "complete": pl.Boolean,
    "folder": pl.String,
}
_RECOVER = "`esper recover` finishes it"
_COMPACT = "`esper compact` removes what is left over"
_RESTORE = "Restore it from a copy, or move it away"
_MOVE = "Move it out of the run's folder"
_KEEP_PART = "Leave it where it is: queries by update do not find these rows, but what they measured is in them"
_UPGRADE = "Upgrade esper-analytics to read it"
_KEEP_ONE = "Keep one of the two"
_BATCH_ROWS = 16_384
_TOLD_TABLES = (ALL_TABLES, "ppo_updates")


def verify(root: Path, only: Collection[str] | None = None) -> Outcome:
    """Look through every run under RUNS, or through those whose run_id is one of `only`.

    The frame has a row a folder: run_id; how it ended; its last update; updates that are missing, summed over its
    ranks, those that `gaps` does not tell and those that it does; rows and files read; bytes after the last commits of
    its journals; the number of problems; whether it is complete; the folder. The problems say the rest.

    Raises UsageError and DataError, as `folders.run_folders` does.
    """
    found, problems = run_folders(root)
    if only is not None:
        found = [run for run in found if run.run_id in only]
        problems = [p for p in problems if any(p.path.is_relative_to(run.path) for run in found)]
    problems += _twice(found)
    rows = []
    for run in found:
        seen = _Seen(run)
        seen.look()
        own = [*seen.problems, *(p for p in problems if p.path == run.path)]
        problems += seen.problems
        complete = not own and not seen.told_missing
        ended = how_it_ended(run.path, run.manifest)
        numbers = (seen.last, seen.missing, seen.told_missing, seen.rows, seen.files, seen.torn_bytes, len(own))
        rows.append((run.run_id, ended, *numbers, complete, str(run.path)))
    return Outcome(pl.DataFrame(rows, schema=_SCHEMA, orient="row"), tuple(problems))


def _twice(found: Sequence[FoundRun]) -> Iterator[Problem]:
    by_id: dict[str, list[FoundRun]] = {}
    for run in found:
        by_id.setdefault(run.run_id, []).append(run)
    for run_id, runs in by_id.items():
        for run in runs if len(runs) > 1 else ():
            others = ", ".join(other.path.name for other in runs if other is not run)
            yield Problem(run.path, f"the run {run_id} is in {others} too; the more complete is read", _KEEP_ONE)


@dataclass(slots=True)
class _Seen:
    """What a look through one run's folder found."""

    run: FoundRun
    rows: int = 0
    files: int = 0
    torn_bytes: int = 0
    last: int = 0
    missing: int = 0
    told_missing: int = 0
    problems: list[Problem] = field(default_factory=list)
    updates: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Rank -> (attempt, update) of its rows of `ppo_updates`."""
    gaps: dict[int, set[int]] = field(default_factory=dict)
    """Rank -> updates that `gaps` tells of."""

    def look(self) -> None:
        live = is_live(self.run.path)
        try:
            files = list_row_files(self.run.path)
        except OSError as error:
            self._problem(self.run.path, f"it cannot be listed ({error})", "")
            return
        for table, paths in files.parts.items():
            if table not in TABLES:
                self._problem(self.run.path / table, f"this version knows no table {table}", _UPGRADE)
                continue
            for path in paths:
                self._part(table, path)
        self._journals(files, live)
        if not live:
            for path in unfinished_files(self.run.path):
                self._problem(path, "a file that a process died while writing", _RECOVER)
        for path in files.replaced:
            self._problem(path, "its rows are in a compacted part; an interrupted compaction left it", _COMPACT)
        for path in files.strangers:
            self._problem(path, "it is not named like a part", _MOVE)
        self._rules()
        self._continuity(live)
        self._ends(live)

    def _problem(self, path: Path, reason: str, advice: str) -> None:
        self.problems.append(Problem(path, reason, advice))

    # --- files --------------------------------------------------------------------------------------------------------

    def _part(self, table: str, path: Path) -> None:
        footer = read_footer(path, table, self.run.run_id)
        if footer.gone:
            return  # compacted meanwhile
        self.files += 1
        if footer.problem is not None:
            self._problem(path, footer.problem, _RESTORE)
            return
        try:
            told, rows, updates, identities, nameless = self._read(table, path)
        except (OSError, pa.ArrowException) as error:
            self._problem(path, f"its footer can be read, but its rows cannot ({_first_line(error)})", _RESTORE)
            return
        self.rows += rows
        name = PartName.of(path.name)
        expected = None if name is None else (self.run.run_id, name.attempt, name.rank)
        for found in sorted(identities - {expected}, key=str):
            whose = f"run {found[0]}, attempt {found[1]}, rank {found[2]}"
            self._problem(path, f"its name and folder tell another run, attempt or rank than its rows: {whose}", _MOVE)
        if nameless:
            have, are = ("does", "its") if nameless == 1 else ("do", "their")
            reason = f"{format_count(nameless, 'row')} of {rows} {have} not say {are} run, attempt, rank or update"
            self._problem(path, reason, _KEEP_PART)
        first, last = (str(min(updates)), str(max(updates))) if updates else ("", "")
        counted = {b"esper_rows": str(rows), b"esper_first_update": first, b"esper_last_update": last}
        for key, value in counted.items():
            if key in told and told[key].decode() != value:
                what = key.decode().removeprefix("esper_").replace("_", " ")
                self._problem(path, f"its footer tells {what} {told[key].decode()}, and it holds {value}", _RESTORE)
        if footer.float_statistics:
            reason = "float columns carry min/max statistics, by which other engines lose rows with NaN"
            self._problem(path, reason, "Write it anew without them; this package reads it right as it is")

    def _read(self, table: str, path: Path) -> tuple[Mapping[bytes, bytes], int, set[int], set[tuple[Any, ...]], int]:
        """Footer's metadata, rows, updates and (run_id, attempt, rank) of a part that is read to its end; and how many
        of its rows lack one of these."""
        rows = nameless = 0
        updates: set[int] = set()
        identities: set[tuple[Any, ...]] = set()
        with pq.ParquetFile(path) as file:
            told = file.metadata.metadata or {}
            for batch in file.iter_batches(_BATCH_ROWS):
                rows += batch.num_rows
                updates.update(u for u in pc.unique(batch.column("update")).to_pylist() if u is not None)
                columns = [batch.column(name) for name in ("run_id", "attempt", "rank")]
                whose = pa.table(columns, names=["run_id", "attempt", "rank"]).group_by(["run_id", "attempt", "rank"])
                told_by_rows = [tuple(row.values()) for row in whose.aggregate([]).to_pylist()]
                identities.update(whole for whole in told_by_rows if None not in whole)
                absent = [pc.is_null(column) for column in (*columns, batch.column("update"))]
                nameless += pc.sum(functools.reduce(pc.or_, absent)).as_py() or 0
                self._note(table, pa.Table.from_batches([batch]))
        return told, rows, updates, identities, nameless

    def _journals(self, files: RowFiles, live: bool) -> None:
        self.files += len(files.journals)
        self.problems += (Problem(p.path, p.reason, "" if live else _RECOVER, partly=True) for p in files.problems)
        for table, rows in files.journal_rows.items():
            self.rows += rows.num_rows
            self._note(table, rows)
        if live:
            return
        self.torn_bytes = files.bytes_ignored
        for path in files.journals:
            self._problem(path, "a journal that never became parts; only this package reads its rows", _RECOVER)
        if self.torn_bytes:
            reason = f"{self.torn_bytes} bytes at the end of its journals are of an update that was never whole"
            self._problem(self.run.path, reason, "They are lost")

    def _note(self, table: str, rows: pa.Table) -> None:
        """Keep what continuity is judged by."""
        if table == "ppo_updates":
            for rank, attempt, update in _tuples(rows, "rank", "attempt", "update"):
                if None not in (rank, attempt, update):
                    self.updates.setdefault(rank, []).append((attempt, update))
        elif table == "gaps":
            for rank, of, first, last in _tuples(rows, "rank", "table_name", "first_update", "last_update"):
                if of in _TOLD_TABLES and first is not None and last is not None:
                    self.gaps.setdefault(rank, set()).update(range(first, last + 1))

    # --- the run as a whole -------------------------------------------------------------------------------------------

    def _rules(self) -> None:
        sha256 = self.run.manifest.rules_sha256
        if sha256 is not None and not (self.run.path / "rules" / f"{Path(sha256).name}.toml").is_file():
            self._problem(self.run.path, f"the text of the rules it ran with ({sha256[:12]}) is not there", _RESTORE)

    def _continuity(self, live: bool) -> None:
        """Updates from the first to the last, once each, by every rank."""
        attempts = self.run.manifest.attempts
        cuts = dict(self.run.superseded_from())
        begin = min((attempt.from_update for attempt in attempts), default=1)
        current: dict[int, list[int]] = {a.rank: [] for a in self.run.manifest.last_attempts}
        for rank, recorded in sorted(self.updates.items()):
            current[rank] = sorted(u for attempt, u in recorded if not (attempt in cuts and u >= cuts[attempt]))
        self.last = max((updates[-1] for updates in current.values() if updates), default=0)
        for rank, updates in sorted(current.items()):
            who = f"rank {rank} recorded" if len(current) > 1 else "it holds"
            doubled = sorted({a for a, b in pairwise(updates) if a == b})
            if doubled:
                self._problem(self.run.path, f"{who} updates {_ranges(doubled)} twice", "Find the part that is a copy")
            # Ranks of a live run are an update or two apart.
            last = (updates[-1] if updates else 0) if live else self.last
            absent = set(range(begin, last + 1)) - set(updates)
            told = absent & self.gaps.get(rank, set())
            self.told_missing += len(told)
            self.missing += len(absent - told)
            if absent - told:
                reason = f"{who} no updates {_ranges(sorted(absent - told))}, and `gaps` does not tell why"
                self._problem(self.run.path, reason, "They are lost; figures over these updates are incomplete")
            if told:
                self._problem(self.run.path, f"{who} no updates {_ranges(sorted(told))}, as `gaps` tells", "")

    def _ends(self, live: bool) -> None:
        attempts = self.run.manifest.attempts
        lost = [attempt for attempt in attempts if attempt.lost]
        for attempt in lost:
            loss = attempt.lost
            who = f"attempt {attempt.attempt}, rank {attempt.rank}"
            reason = f"not everything of it was recorded ({who}): {loss}; the last error was: {loss.message}"
            self._problem(self.run.path, reason, "`gaps` tells which, as far as it could be written")
        if live:
            return
        killed = [a for a in self.run.manifest.last_attempts if a.how is None]
        if killed or not attempts:
            ranks = ", ".join(str(a.rank) for a in killed)
            who = f"rank {ranks} was" if len(self.run.manifest.last_attempts) > 1 and killed else "it was"
            self._problem(self.run.path, f"{who} killed: what it had not yet committed is lost", "")


def _tuples(rows: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    absent = [None] * rows.num_rows
    columns = [rows.column(name).to_pylist() if name in rows.column_names else absent for name in names]
    return zip(*columns, strict=True)


def _ranges(numbers: Sequence[int], most: int = 5) -> str:
    """Whole numbers in ascending order, stretches joined.

    >>> _ranges([1, 2, 3, 7])
    '1-3, 7'
    """
    stretches: list[list[int]] = []
    for number in numbers:
        if stretches and number == stretches[-1][1] + 1:
            stretches[-1][1] = number
        else:
            stretches.append([number, number])
    shown = [f"{first}-{last}" if last > first else str(first) for first, last in stretches[:most]]
    more = len(stretches) - most
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
