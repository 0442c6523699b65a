"""`esper verify`: whether a recording is complete. Every file is read to its last row; nothing is changed.

A recording is complete if every row file can be read and its footer agrees with its rows, every process of the run
recorded updates 1..n without a hole that `gaps` does not explain, a crash or an interrupted compaction left nothing,
and no other folder holds the same run. A run that is being recorded is complete so far.

A flipped bit is noticed by the checksums of the pages.

Does not cover: parts of versions that wrote no checksums, whose damage may decode to other numbers.
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import polars as pl
import pyarrow as pa
import pyarrow.compute as pc

from esper_analytics.catalog.discovery import Problem, RunEntry, run_folders
from esper_analytics.catalog.footers import read_footer, whole_number
from esper_analytics.formatting import format_count
from esper_analytics.maintenance.outcome import MOVE, Outcome
from esper_recorder.contract.spans import Spans, count, join, spans_of, without
from esper_recorder.contract.tables import TABLES, columns, stored_names
from esper_recorder.storage.gaps import ALL_TABLES
from esper_recorder.storage.listing import RowFileName, RowFiles, list_row_files, unfinished_files
from esper_recorder.storage.manifest import LARGEST, how_it_ended, is_live
from esper_recorder.storage.parquet import open_part
from esper_recorder.storage.safe_files import files_in

_RECOVER = "`esper recover` finishes it"
_COMPACT = "`esper compact` removes what is left over"
_RESTORE = "Restore it from a copy, or move it away"
_KEEP_PART = "Leave it where it is: queries by update do not find these rows, but what they measured is in them"
_UPGRADE = "Upgrade esper-analytics to read it"
_KEEP_ONE = "Keep one of the two"
_REWRITE = "Write it again without them; this package reads it correctly all the same"
_BATCH_ROWS = 16_384
_IDENTITY = ["run_id", "attempt", "rank"]


def verify(root: Path, only: Collection[str] | None = None) -> Outcome:
    """Check every run under RUNS, or only those whose run_id is in `only`.

    The frame has run_id; how it ended; its last update; updates that are missing, summed over its ranks: those that
    `gaps` does not explain and those that it does; rows and files read; bytes after the last commits of its journals;
    the number of problems; whether it is complete; the folder. The problems say the rest.

    Raises UsageError and DataError, as `discovery.run_folders` does.
    """
    runs, problems = run_folders(root)
    if only is not None:
        runs = [run for run in runs if run.run_id in only]
        problems = [p for p in problems if any(p.path.is_relative_to(run.path) for run in runs)]
    problems += _copies(runs)
    rows = []
    for run in runs:
        check = _RunCheck(run)
        check.run_all()
        concerns = len(check.problems) + sum(problem.path == run.path for problem in problems)
        problems += check.problems
        rows.append(
            {
                "run_id": run.run_id,
                "ended": how_it_ended(run.path, run.manifest),
                "updates": check.last_update,
                "missing": min(check.missing, LARGEST),
                "explained_missing": min(check.explained_missing, LARGEST),
                "rows": check.rows,
                "files": check.files,
                "torn_bytes": check.torn_bytes,
                "problems": concerns,
                "complete": not concerns and not check.explained_missing,
                "folder": str(run.path),
            }
        )
    return Outcome(pl.DataFrame(rows), tuple(problems))


def _copies(runs: Sequence[RunEntry]) -> Iterator[Problem]:
    for run in runs:
        others = ", ".join(other.path.name for other in runs if other.run_id == run.run_id and other is not run)
        if others:
            yield Problem(run.path, f"the run {run.run_id} is in {others} too; the more complete is read", _KEEP_ONE)


@dataclass(slots=True)
class _PartContent:
    """What the rows of a part say, to be compared with its name and footer."""

    rows: int = 0
    updates: set[int] = field(default_factory=set)
    owners: set[tuple[Any, ...]] = field(default_factory=set)
    """(run_id, attempt, rank)"""
    anonymous: int = 0
    """Rows without run_id, attempt, rank or update."""

    def add(self, batch: pa.RecordBatch) -> None:
        self.rows += batch.num_rows
        self.updates.update(u for u in pc.unique(batch.column("update")).to_pylist() if u is not None)
        groups = pa.Table.from_batches([batch.select(_IDENTITY)]).group_by(_IDENTITY).aggregate([])
        self.owners.update(owner for owner in _tuples(groups, *_IDENTITY) if None not in owner)
        absent = [pc.is_null(batch.column(name)) for name in (*_IDENTITY, "update")]
        self.anonymous += pc.sum(functools.reduce(pc.or_, absent)).as_py() or 0

    def footer(self) -> dict[str, str]:
        """What the footer of these rows should say."""
        first, last = (min(self.updates), max(self.updates)) if self.updates else ("", "")
        return {"rows": str(self.rows), "first_update": str(first), "last_update": str(last)}


@dataclass(slots=True)
class _RunCheck:
    """The checks of one run's folder, and what they found."""

    run: RunEntry
    rows: int = 0
    files: int = 0
    torn_bytes: int = 0
    last_update: int = 0
    missing: int = 0
    explained_missing: int = 0
    problems: list[Problem] = field(default_factory=list)
    updates: dict[int, list[tuple[int, int]]] = field(default_factory=dict)
    """Rank -> (attempt, update) of its rows of `ppo_updates`."""
    gaps: dict[int, Spans] = field(default_factory=dict)
    """Rank -> updates that `gaps` explains."""

    def run_all(self) -> None:
        live = is_live(self.run.path)
        try:
            files = list_row_files(self.run.path)
        except OSError as error:
            self._problem(self.run.path, f"it cannot be listed ({error})")
            return
        for table, paths in files.parts.items():
            if table not in TABLES:
                self._problem(self.run.path / table, f"this version has no table {table}", _UPGRADE)
                continue
            for path in paths:
                self._check_part(table, path)
        self._check_journals(files, live)
        for path in () if live else unfinished_files(self.run.path):
            self._problem(path, "a file that a process died while writing", _RECOVER)
        for path in files.replaced:
            self._problem(path, "its rows are in a compacted part; an interrupted compaction left it", _COMPACT)
        for path in files.foreign:
            self._problem(path, "it is not named like a part", MOVE)
        for file in files.irregular:
            self._problem(file.path, file.reason, MOVE)
        self._check_rules()
        self._check_continuity(live)
        self._check_end(live)

    def _problem(self, path: Path, reason: str, advice: str = "") -> None:
        self.problems.append(Problem(path, reason, advice))

    # --- files --------------------------------------------------------------------------------------------------------

    def _check_part(self, table: str, path: Path) -> None:
        footer = read_footer(path, table, self.run.run_id, thoroughly=True)
        if footer.gone:
            return  # compacted meanwhile
        self.files += 1
        if footer.problem is not None:
            self._problem(path, footer.problem, _RESTORE)
            return
        content = _PartContent()
        try:
            with open_part(path) as file:
                metadata = file.metadata.metadata or {}
                names = file.schema_arrow.names
                for batch in file.iter_batches(_BATCH_ROWS):
                    content.add(batch)
                    self._note(table, pa.Table.from_batches([batch]))
        except (OSError, ValueError, pa.ArrowException) as error:
            self._problem(path, f"its footer can be read, but its rows cannot ({_first_line(error)})", _RESTORE)
            return
        self.rows += content.rows
        if lacking := _lacking_columns(table, names, metadata.get(b"esper_schema_version")):
            self._problem(path, f"it lacks columns that its schema version has: {', '.join(lacking)}", _RESTORE)
        name = RowFileName.of_part(path.name)
        expected = None if name is None else (self.run.run_id, *name.process)
        for run_id, attempt, rank in sorted(content.owners - {expected}, key=str):
            reason = "its name and folder are of another run, attempt or rank than its rows"
            self._problem(path, f"{reason}: run {run_id}, attempt {attempt}, rank {rank}", MOVE)
        if content.anonymous:
            have, are = ("does", "its") if content.anonymous == 1 else ("do", "their")
            rows = f"{format_count(content.anonymous, 'row')} of {content.rows}"
            self._problem(path, f"{rows} {have} not say {are} run, attempt, rank or update", _KEEP_PART)
        for key, value in content.footer().items():
            stated = metadata.get(f"esper_{key}".encode(), value.encode()).decode(errors="backslashreplace")
            if stated != value:
                what = key.replace("_", " ")
                self._problem(path, f"its footer says {what} {stated}, and it holds {value}", _RESTORE)
        if footer.float_statistics:
            reason = "float columns carry min/max statistics, by which other engines lose rows with NaN"
            self._problem(path, reason, _REWRITE)

    def _check_journals(self, files: RowFiles, live: bool) -> None:
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
        """Remember which updates were recorded, and which `gaps` explains."""
        if table == "ppo_updates":
            for rank, attempt, update in _tuples(rows, "rank", "attempt", "update"):
                if None not in (rank, attempt, update):
                    self.updates.setdefault(rank, []).append((attempt, update))
        elif table == "gaps":
            for rank, name, first, last in _tuples(rows, "rank", "table_name", "first_update", "last_update"):
                if name in (ALL_TABLES, "ppo_updates") and None not in (first, last):
                    self.gaps.setdefault(rank, []).append((first, last))

    # --- the run as a whole -------------------------------------------------------------------------------------------

    def _check_rules(self) -> None:
        sha256 = self.run.manifest.rules_sha256
        if sha256 is None:
            return
        if f"{Path(sha256).name}.toml" not in {path.name for path in files_in(self.run.path, "rules")}:
            self._problem(self.run.path, f"the text of the rules it ran with ({sha256[:12]}) is missing", _RESTORE)

    def _check_continuity(self, live: bool) -> None:
        """Every rank recorded the updates from the first to the last, once each."""
        manifest = self.run.manifest
        begin = min((attempt.from_update for attempt in manifest.attempts), default=1)
        cuts = dict(self.run.superseded_from())
        current: dict[int, Counter[int]] = {attempt.rank: Counter() for attempt in manifest.last_attempts}
        for rank, recorded in self.updates.items():
            current[rank] = Counter(u for attempt, u in recorded if attempt not in cuts or u < cuts[attempt])
        self.last_update = max((max(updates) for updates in current.values() if updates), default=0)
        for rank, updates in sorted(current.items()):
            who = f"rank {rank} recorded" if len(current) > 1 else "it holds"
            if doubled := [update for update, times in updates.items() if times > 1]:
                self._problem(
                    self.run.path, f"{who} updates {_ranges(spans_of(doubled))} twice", "Find the part that is a copy"
                )
            # Ranks of a live run are an update or two apart.
            last = max(updates, default=0) if live else self.last_update
            absent = without([(begin, last)] if begin <= last else [], spans_of(updates))
            unexplained = without(absent, join(self.gaps.get(rank, [])))
            explained = without(absent, unexplained)
            self.explained_missing += count(explained)
            self.missing += count(unexplained)
            if unexplained:
                reason = f"{who} no updates {_ranges(unexplained)}, and `gaps` does not say why"
                self._problem(self.run.path, reason, "They are lost; figures over these updates are incomplete")
            if explained:
                self._problem(self.run.path, f"{who} no updates {_ranges(explained)}, as `gaps` says")

    def _check_end(self, live: bool) -> None:
        manifest = self.run.manifest
        for attempt in manifest.attempts:
            if counts := attempt.dropped:
                who = f"attempt {attempt.attempt}, rank {attempt.rank}"
                reason = f"not everything of it was recorded ({who}): {counts}; the last error was: {counts.message}"
                self._problem(self.run.path, reason, "`gaps` lists it, as far as it could be written")
        killed = [str(attempt.rank) for attempt in manifest.last_attempts if attempt.how is None]
        if not live and (killed or not manifest.attempts):
            who = f"rank {', '.join(killed)} was" if killed and len(manifest.last_attempts) > 1 else "it was"
            self._problem(self.run.path, f"{who} killed: what it had not yet committed is lost")


def _lacking_columns(table: str, names: Sequence[str], version: bytes | None) -> list[str]:
    """Columns that a part of this schema version should have: a bit that flips in a name in the footer hides one."""
    stored = stored_names(table, names)
    since = whole_number(version)
    return [column.name for column in columns(table) if column.since <= since and column.name not in stored]


def _tuples(rows: pa.Table, *names: str) -> Iterator[tuple[Any, ...]]:
    absent = [None] * rows.num_rows
    columns = [rows.column(name).to_pylist() if name in rows.column_names else absent for name in names]
    return zip(*columns, strict=True)


def _ranges(spans: Spans, most: int = 5) -> str:
    """Write spans of numbers.

    >>> _ranges([(1, 3), (7, 7)])
    '1-3, 7'
    """
    shown = [f"{first}-{last}" if last > first else str(first) for first, last in spans[:most]]
    more = len(spans) - most
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
