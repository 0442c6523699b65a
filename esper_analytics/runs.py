"""Recorded runs, opened: one folder or hundreds, one still being written included.

    runs = open("runs/")
    runs.list()                    # a row a run
    runs.table("ppo_updates")      # polars.LazyFrame
    runs.sql("SELECT run_id, max(ratio_max) FROM ppo_updates GROUP BY 1")

Nothing is read before it is asked for, and every question lists the folders anew. A damaged or foreign file is left
out and named in `problems`; the rest is read. Rows that a resumed run recorded again hide the earlier ones, and the
rows of several ranks are merged (see `ranks`); as they were recorded, all are in `<table>_all`. The order of rows is no
promise: sort by what you need.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import polars as pl

from esper_analytics.catalog.cache import Listings
from esper_analytics.catalog.discovery import FoundRun, Problem, find_runs
from esper_analytics.catalog.footers import Footer, read_footer
from esper_analytics.catalog.rank_merge import merges
from esper_analytics.catalog.scan import PartLayout, TableScan
from esper_analytics.catalog.summary import LIST_COLUMNS, RUNS_VIEW, run_rows
from esper_analytics.errors import DataError, QueryError, UnknownRunError, UnknownTableError
from esper_analytics.sql.confined import Confined, Source, check, files_are_gone, views_named_in
from esper_analytics.sql.confined import connect as connect_to
from esper_analytics.sql.files import needed, views
from esper_analytics.sql.named_queries import Value, bound, question_named
from esper_recorder.contract.suggest import closest, did_you_mean, suggest
from esper_recorder.contract.tables import TABLES
from esper_recorder.storage.listing import RowFileName, RowFiles
from esper_recorder.storage.manifest import Manifest, how_it_ended

if TYPE_CHECKING:
    import duckdb

ALL_ROWS = "_all"
VIEWS: tuple[str, ...] = (RUNS_VIEW, *TABLES, *views(), *(table + ALL_ROWS for table in TABLES))
"""Every name that `Runs.table` and SQL know."""


def open(path: str | os.PathLike[str]) -> Runs:  # noqa: A001 - as in `esper_analytics.open`
    """Open RUNS: a folder of runs, or one run's folder.

    Raises:
        UsageError: there is no such folder.
        DataError: it holds no run that can be read.
    """
    return Runs(Path(path))


_PATIENCE = 20  # how often files that were compacted since they were listed are looked for anew
_MOVE = "Move it out of the run's folder"
_RESTORE = "Restore it from a copy, or move it away"
_UPGRADE = "Upgrade esper-analytics to read it"

_Known = tuple[tuple[int, int, int, str], Footer]


@dataclass(frozen=True, slots=True)
class RunTables:
    """Some columns of some tables of one run."""

    run_id: str
    scans: Mapping[str, TableScan]
    only: Mapping[str, Collection[str]]

    def rows(self, table: str) -> int:
        """How many rows of a table were recorded, superseded ones included."""
        return self.scans[table].rows

    def frame(self, table: str) -> pl.LazyFrame:
        """The rows that count."""
        return self.scans[table].frame(superseded=False, only=self.only[table])


class Runs:
    """Some runs, to be asked questions. `runs["ID"]` is one of them.

    A run is named by its run_id, its folder's name, its name (of several runs of one name, the newest is meant), its
    name with the last characters of the run_id (`hot-x1y2z3`), or a beginning of the run_id that fits no other.
    """

    def __init__(
        self,
        path: Path,
        *,
        only: frozenset[str] | None = None,
        footers: dict[Path, _Known] | None = None,
        listings: Listings | None = None,
    ) -> None:
        self.path = path
        self._only = only
        self._footers: dict[Path, _Known] = {} if footers is None else footers
        self._listings = listings or Listings()
        self._met: dict[Problem, None] = {}
        self._confined: tuple[object, Confined] | None = None
        self._folders()

    def __repr__(self) -> str:
        return f"<Runs {self.path}: {len(self.ids)} run(s)>"

    # --- which runs there are ---------------------------------------------------------------------------------------

    @property
    def ids(self) -> builtins.list[str]:
        """The run_ids, in the order of their folders."""
        return [run.run_id for run in self._folders()]

    def __len__(self) -> int:
        return len(self._folders())

    def __getitem__(self, run_id: str) -> Runs:
        """One run, named as `Runs` says; of several runs of that name, the newest. Raises UnknownRunError."""
        return self.only([run_id])

    def only(self, run_ids: Iterable[str]) -> Runs:
        """Some of the runs, each named as in `runs["ID"]`. Raises UnknownRunError."""
        folders = self._folders()
        chosen = frozenset(_named(run_id, folders).run_id for run_id in run_ids)
        return Runs(self.path, only=chosen, footers=self._footers, listings=self._listings)

    def of_name(self, name: str) -> builtins.list[str]:
        """The run_ids of the runs of exactly this name, the newest first."""
        return [run.run_id for run in _of_name(name, self._folders())]

    def list(self) -> pl.DataFrame:
        """A row a run: run_id, trainer, started, updates, progress, ended, alarms, complete."""
        return self._runs_frame().select(LIST_COLUMNS)

    def manifest(self, run_id: str) -> Manifest:
        """What a run's `run.json` says. Raises UnknownRunError."""
        return _named(run_id, self._folders()).manifest

    def manifests(self) -> dict[str, Manifest]:
        """What every run's `run.json` says, by run_id, of one listing."""
        return {run.run_id: run.manifest for run in self._folders()}

    def folder(self, run_id: str) -> Path:
        """The folder a run is read from. Raises UnknownRunError."""
        return _named(run_id, self._folders()).path

    def rows_of(self, run_id: str) -> dict[str, int]:
        """Table -> number of rows recorded, superseded ones included, for one run."""
        scans, _ = self._scans(TABLES, [_named(run_id, self._folders())])
        return {table: scan.frame(superseded=True).select(pl.len()).collect().item() for table, scan in scans.items()}

    def rules_text(self, run_id: str) -> tuple[str | None, str] | None:
        """(profile, text) of the rules a run ran with; None where it ran with none.

        Raises:
            DataError: it ran with rules, but their text is not in its folder.
        """
        return _rules_text(_named(run_id, self._folders()))

    def rules_texts(self) -> dict[str, tuple[str | None, str] | None]:
        """What `rules_text` says, for every run. Raises DataError."""
        return {run.run_id: _rules_text(run) for run in self._folders()}

    # --- questions --------------------------------------------------------------------------------------------------

    def table(self, name: str) -> pl.LazyFrame:
        """The rows of a table, of its `_all`, of a view or of `runs`, over all runs as they are now.

        Raises UnknownTableError.
        """
        if name == RUNS_VIEW:
            return self._runs_frame().lazy()
        if name in views():
            return self.sql(f"SELECT * FROM {name}").lazy()
        table, superseded = _split(name)
        return self._scans([table], self._folders())[0][table].frame(superseded=superseded)

    def by_run(self, tables: Mapping[str, Collection[str]]) -> Iterator[RunTables]:
        """Some columns of some tables (and attempt and update), a run at a time, as the runs are now."""
        for run in self._folders():
            scans, _ = self._scans(tables, [run])
            yield RunTables(run.run_id, scans, tables)

    def sql(self, query: str, *, timeout_s: float = 60, memory: str = "4GB") -> pl.DataFrame:
        """The answer to one SELECT over the views, confined: it reads the recorded files and nothing else.

        Raises:
            QueryError: the SQL is wrong, is no single SELECT, or went beyond its limits.
            DataError: a recorded file turned out to be damaged.
        """
        return self._answer(query, None, timeout_s=timeout_s, memory=memory)

    def query(self, name: str, /, **parameters: Value) -> pl.DataFrame:
        """The answer to a named question; `esper query --list` has them all. Confined as `sql` is.

        Args:
            name: the question.
            parameters: its parameters by name, as values or as text; what is left out has its default.

        Raises:
            UsageError: there is no such question or parameter, one is missing, or is not of its type.
            QueryError, DataError: as of `sql`.
        """
        return self.asked(name, parameters)

    def asked(
        self, name: str, parameters: Mapping[str, Value], *, timeout_s: float = 60, memory: str = "4GB"
    ) -> pl.DataFrame:
        """The same as `query`, with limits of its own."""
        question = question_named(name)
        values = bound(question, parameters, lambda run: _named(run, self._folders()).run_id)
        return self._answer(question.sql, values, timeout_s=timeout_s, memory=memory)

    def _answer(
        self, query: str, values: Mapping[str, object] | None, *, timeout_s: float, memory: str
    ) -> pl.DataFrame:
        check(query)
        names = views_named_in(query, VIEWS)
        for again in range(_PATIENCE, -1, -1):
            sources = self._sources(names)
            try:
                return self._confined_to(sources, memory).answer(query, values, timeout_s=timeout_s)
            except BaseException as error:
                self._let_go()  # after running out of memory or time, a connection is not to be trusted
                if not again or not _compacted_meanwhile(error, sources):
                    raise
        raise AssertionError("the last try returns or raises")

    def _confined_to(self, sources: Mapping[str, Source], memory: str) -> Confined:
        """The connection of the last query, where it was to the same files."""
        key = _unchanged(sources, memory)
        confined = self._confined  # which another thread may let go of meanwhile
        if confined is None or key is None or confined[0] != key:
            self._let_go()
            confined = self._confined = (key, Confined(sources, known=VIEWS, memory=memory))
        return confined[1]

    def _let_go(self) -> None:
        """Forget the connection of the last query."""
        confined, self._confined = self._confined, None
        if confined is not None:
            confined[1].close()

    def connect(self) -> duckdb.DuckDBPyConnection:
        """A DuckDB connection of your own with every view, as the runs are now. Trusted: it is not confined."""
        for again in range(_PATIENCE, -1, -1):
            sources = self._sources(VIEWS)
            try:
                return connect_to(sources)
            except (DataError, QueryError, OSError) as error:
                if not again or not _compacted_meanwhile(error, sources):
                    raise
        raise AssertionError("the last try returns or raises")

    # --- what was left out ------------------------------------------------------------------------------------------

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything under RUNS that is left out or not wholly read; the footer of every file is looked at."""
        folders, problems = find_runs(self.path)
        if self._only is not None:
            folders, problems = self._folders(), []
        return (*problems, *self._scans(TABLES, folders)[1])

    @property
    def problems_met(self) -> tuple[Problem, ...]:
        """What the questions asked so far had to leave out."""
        return tuple(self._met)

    # --- within -----------------------------------------------------------------------------------------------------

    def _folders(self) -> builtins.list[FoundRun]:
        found, problems = find_runs(self.path)
        if self._only is None:
            self._met.update(dict.fromkeys(problems))
            return found
        chosen = [run for run in found if run.run_id in self._only]
        if missing := self._only - {run.run_id for run in chosen}:
            raise DataError(f"The run {min(missing)} is no longer in {self.path}.")
        return chosen

    def _scans(
        self, tables: Iterable[str], folders: Iterable[FoundRun]
    ) -> tuple[dict[str, TableScan], builtins.list[Problem]]:
        """The files of the tables at this moment, their footers checked, and what had to be left out."""
        scans = {table: TableScan(table) for table in tables}
        problems: builtins.list[Problem] = []
        for run in folders:
            files, footers = self._files(run, scans)
            cuts = run.superseded_from()
            problems += (Problem(found.path, found.reason, partly=True) for found in files.problems)
            problems += (Problem(path, "it is not named like a part", _MOVE) for path in files.foreign)
            for table in sorted(files.parts.keys() - TABLES.keys()):
                problems.append(Problem(run.path / table, f"this version knows no table {table}", _UPGRADE))
            several = len(files.ranks) > 1
            if "ppo_updates" in scans:
                problems += _uneven_ranks(run, files, footers)
            for table, scan in scans.items():
                ranks = several and merges(table)
                for path in files.parts.get(table, ()):
                    footer = footers[path]
                    if footer.problem is None:
                        layout = PartLayout(footer.present, footer.float_statistics, cuts, ranks)
                        scan.add_part(path, layout, footer.rows)
                    else:
                        problems.append(Problem(path, footer.problem, _RESTORE))
                if table in files.journal_rows:
                    scan.journals.append((files.journal_rows[table], PartLayout((), False, cuts, ranks)))
        self._met.update(dict.fromkeys(problems))
        return scans, problems

    def _files(self, run: FoundRun, tables: Iterable[str]) -> tuple[RowFiles, dict[Path, Footer]]:
        """The files of a run, and the footers of the parts of some tables: listed anew where a compaction came between.

        Raises DataError where the folder cannot be listed.
        """
        for again in range(_PATIENCE, -1, -1):
            try:
                files = self._listings.of(run.path, tables)
            except OSError as error:
                raise DataError(f"The run {run.run_id} cannot be read: {error}.") from error
            footers = {path: self._footer(run, path, table) for table in tables for path in files.parts.get(table, ())}
            if not again or not any(footer.gone for footer in footers.values()):
                return files, footers
        raise AssertionError("the last try returns")

    def _footer(self, run: FoundRun, path: Path, table: str) -> Footer:
        """The footer of a part. A part never changes once it is there, so it is read once."""
        try:
            linked = path.is_symlink() or path.parent.is_symlink()
            if linked and not path.resolve().is_relative_to(run.path.resolve()):
                return Footer(problem="a link that leads out of the run")
            status = path.stat()
        except FileNotFoundError:
            return Footer(problem="it is gone", gone=not path.is_symlink())
        except OSError as error:
            return Footer(problem=f"it cannot be read ({error.strerror or error})")
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, run.run_id)
        known = self._footers.get(path)
        if known is None or known[0] != stamp:
            known = self._footers[path] = (stamp, read_footer(path, table, run.run_id))
        return known[1]

    def _sources(self, names: Iterable[str]) -> dict[str, Source]:
        """What SQL needs to make the views of these names, and those that they are made of, in that order."""
        made = needed(frozenset(names))
        wanted = {*names}.union(*(view.words for view in made))
        names = [name for name in VIEWS if name in wanted and name not in views()]
        scans, _ = self._scans(dict.fromkeys(_split(name)[0] for name in names if name != RUNS_VIEW), self._folders())
        sources: dict[str, Source] = {}
        for name in names:
            if name == RUNS_VIEW:
                sources[name] = self._runs_frame()
            else:
                table, superseded = _split(name)
                sources[name] = (scans[table], superseded)
        return sources | {view.name: view for view in made}

    def _runs_frame(self) -> pl.DataFrame:
        folders = self._folders()
        scans, problems = self._scans(TABLES, folders)
        damaged = {r.run_id for r in folders for problem in problems if problem.path.is_relative_to(r.path)}
        return run_rows(folders, scans, damaged)


def _split(name: str) -> tuple[str, bool]:
    """(table, with superseded rows) of a table's or a view's name."""
    if name in TABLES:
        return name, False
    if name.endswith(ALL_ROWS) and name.removesuffix(ALL_ROWS) in TABLES:
        return name.removesuffix(ALL_ROWS), True
    raise UnknownTableError(f"There is no table {name!r}. {suggest(name, VIEWS, kind='tables')}")


def _uneven_ranks(run: FoundRun, files: RowFiles, footers: Mapping[Path, Footer]) -> Iterator[Problem]:
    """That the ranks of a run do not end at one update. While they run they are an update or two apart."""
    told = {attempt.rank for attempt in run.manifest.last_attempts}
    if len(files.ranks | told) < 2 or how_it_ended(run.path, run.manifest) == "live":
        return
    ends = dict.fromkeys(sorted(files.ranks | told), 0)
    for path in files.parts.get("ppo_updates", ()):
        if (name := RowFileName.of_part(path.name)) is not None:
            ends[name.rank] = max(ends[name.rank], footers[path].last_update)
    if (held := files.journal_rows.get("ppo_updates")) is not None:
        for rank, update in zip(held.column("rank").to_pylist(), held.column("update").to_pylist(), strict=True):
            ends[rank] = max(ends.get(rank, 0), update)
    if len(set(ends.values())) > 1:
        listed = ", ".join(f"rank {rank} to {end}" for rank, end in ends.items())
        reason = f"its ranks recorded different numbers of updates ({listed}); later updates are of the others alone"
        yield Problem(run.path, reason, partly=True)


def _compacted_meanwhile(error: BaseException, sources: Mapping[str, Source]) -> bool:
    """Whether a compaction after the listing is what made a question fail: it has to be asked anew."""
    return isinstance(error, DataError | QueryError | OSError) and files_are_gone(sources)


def _unchanged(sources: Mapping[str, Source], memory: str) -> object | None:
    """What is the same as long as the views need not be made anew; None where they must be for each query."""
    files: builtins.list[object] = [memory]
    for name, source in sources.items():
        if isinstance(source, tuple):
            scan, superseded = source
            if scan.journals:
                return None
            files.append((name, superseded, {layout: tuple(paths) for layout, paths in scan.files.items()}))
        elif isinstance(source, pl.DataFrame):
            return None
        else:
            files.append(name)
    return files


def _rules_text(run: FoundRun) -> tuple[str | None, str] | None:
    sha256 = run.manifest.rules_sha256
    if sha256 is None:
        return None
    path = run.path / "rules" / f"{Path(sha256).name}.toml"
    try:
        return run.manifest.rules_profile, path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        message = f"The rules that {run.run_id} ran with cannot be read from {path}: {error}. Give others."
        raise DataError(message) from error


def _named(asked: str, folders: list[FoundRun]) -> FoundRun:
    for run in folders:
        if asked == run.run_id:
            return run
    for run in folders:
        if asked == run.path.name:
            return run
    if namesakes := _of_name(asked, folders):
        return namesakes[0]
    begins = [run for run in folders if asked and (run.run_id.startswith(asked) or run.short_id == asked)]
    if len(begins) == 1:
        return begins[0]
    if begins:
        ids = ", ".join(run.run_id for run in begins[:8])
        raise UnknownRunError(f"{asked!r} is the beginning of {len(begins)} runs: {ids}. Write more of it.")
    names = closest(asked, {run.manifest.name for run in folders})
    hint = did_you_mean(names) if names else suggest(asked, [run.run_id for run in folders], kind="runs")
    raise UnknownRunError(f"There is no run {asked!r}. {hint}")


def _of_name(name: str, folders: Iterable[FoundRun]) -> list[FoundRun]:
    """The runs of exactly this name, the newest first."""
    long_ago = datetime.min.replace(tzinfo=UTC)
    alike = [run for run in folders if name and run.manifest.name == name]
    return sorted(alike, key=lambda run: (run.manifest.started or long_ago, run.run_id), reverse=True)
