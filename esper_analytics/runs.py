"""Recorded runs, opened: one folder or hundreds, a run still being written included.

    runs = open("runs/")
    runs.list()                    # one row per run
    runs.table("ppo_updates")      # polars.LazyFrame
    runs.sql("SELECT run_id, max(ratio_max) FROM ppo_updates GROUP BY 1")

Nothing is read before it is needed, and every query lists the folders again. A damaged or foreign file is left out and
named in `problems`; the rest is read. Rows that a resumed run recorded again supersede the earlier ones, and the rows
of several ranks are merged; `<table>_all` has all rows as recorded. The order of rows is not defined: sort as needed.
"""

from __future__ import annotations

import builtins
import fnmatch
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import polars as pl

from esper_analytics.catalog.cache import RETRIES, FileCache
from esper_analytics.catalog.discovery import Problem, RunEntry, find_runs
from esper_analytics.catalog.scan import TableScan
from esper_analytics.catalog.snapshot import scan_tables
from esper_analytics.catalog.summary import LIST_COLUMNS, RUNS_VIEW, run_rows
from esper_analytics.errors import DataError, QueryError, UnknownRunError, UnknownTableError
from esper_analytics.sql.confined import ConfinedConnection, Source, check_select, files_are_gone, views_named_in
from esper_analytics.sql.confined import connect as connect_to
from esper_analytics.sql.files import required_views, views
from esper_analytics.sql.named_queries import Value, bind, find_query
from esper_recorder.contract.rules.ruleset import MOST_BYTES
from esper_recorder.contract.suggest import closest, did_you_mean, suggest
from esper_recorder.contract.tables import TABLES
from esper_recorder.storage.listing import list_row_files
from esper_recorder.storage.manifest import Manifest
from esper_recorder.storage.parquet import can_be_read
from esper_recorder.storage.safe_files import check_folder, read_regular

if TYPE_CHECKING:
    import duckdb

ALL_ROWS = "_all"
VIEWS: tuple[str, ...] = (RUNS_VIEW, *TABLES, *views(), *(table + ALL_ROWS for table in TABLES))
"""Every name that `Runs.table` and SQL know."""

_Answer = TypeVar("_Answer")


def open(path: str | os.PathLike[str]) -> Runs:  # noqa: A001 - as in `esper_analytics.open`
    """Open RUNS: a folder of runs, or one run's folder.

    Raises:
        UsageError: there is no such folder.
        DataError: it holds no run that can be read.
    """
    return Runs(Path(path))


@dataclass(frozen=True, slots=True)
class RunTables:
    """Some columns of some tables of one run."""

    run_id: str
    scans: Mapping[str, TableScan]
    columns: Mapping[str, Collection[str]]

    def rows(self, table: str) -> int:
        """Count the recorded rows of a table, superseded ones included."""
        return self.scans[table].rows

    def frame(self, table: str) -> pl.LazyFrame:
        """Scan the rows that are not superseded."""
        return self.scans[table].frame(superseded=False, only=self.columns[table])


class Runs:
    """The runs under RUNS, or some of them. `runs["ID"]` and `runs[0]` are one; iterating gives one after the other.

    A run is named by its run_id, its folder's name, its name (the newest of several), its name with the last characters
    of the run_id (`hot-x1y2z3`), or a unique beginning of the run_id.
    """

    def __init__(self, path: Path, *, selected: frozenset[str] | None = None, files: FileCache | None = None) -> None:
        self.path = path
        self._selected = selected
        self._files = files or FileCache()
        self._problems: dict[Problem, None] = {}
        self._connection: tuple[object, ConfinedConnection] | None = None
        self._entries()

    def __repr__(self) -> str:
        return f"<Runs {self.path}: {len(self)} run(s)>"

    # --- which runs there are ---------------------------------------------------------------------------------------

    @property
    def ids(self) -> builtins.list[str]:
        """The run_ids, in the order of their folders."""
        return [run.run_id for run in self._entries()]

    def __len__(self) -> int:
        return len(self._entries())

    def __iter__(self) -> Iterator[Runs]:
        return (self._of([run_id]) for run_id in self.ids)

    def __getitem__(self, run: str | int) -> Runs:
        """Select one run, by name or by its place in `ids`. Raises UnknownRunError."""
        entries = self._entries()
        if isinstance(run, str):
            return self._of([_find(run, entries).run_id])
        if not -len(entries) <= run < len(entries):
            raise UnknownRunError(f"There is no run number {run}. There are {len(entries)}, numbered from 0.")
        return self._of([entries[run].run_id])

    def select(self, *names: str) -> Runs:
        """Select some of the runs, by name as in `runs["ID"]` or by pattern: `runs.select("cold", "lr0.05*")`.

        A pattern with `*`, `?` or `[...]` matches run_ids, names of folders and names of runs.

        Raises:
            UnknownRunError: a name or pattern fits no run.
        """
        entries = self._entries()
        return self._of(run.run_id for name in names for run in _match(name, entries))

    def of_name(self, name: str) -> builtins.list[str]:
        """List the run_ids of the runs of exactly this name, the newest first."""
        return [run.run_id for run in _namesakes(name, self._entries())]

    def list(self) -> pl.DataFrame:
        """List the runs, one row each: run_id, trainer, started, updates, progress, ended, alarms, complete."""
        return self._runs_frame().select(LIST_COLUMNS)

    def manifest(self, run_id: str) -> Manifest:
        """Return the content of a run's `run.json`. Raises UnknownRunError."""
        return _find(run_id, self._entries()).manifest

    def manifests(self) -> dict[str, Manifest]:
        """Return the content of every run's `run.json`, by run_id, of one listing."""
        return {run.run_id: run.manifest for run in self._entries()}

    def folder(self, run_id: str) -> Path:
        """Return the folder a run is read from. Raises UnknownRunError."""
        return _find(run_id, self._entries()).path

    def rows_of(self, run_id: str) -> dict[str, int]:
        """Count the recorded rows of one run, by table, superseded ones included. Raises UnknownRunError."""
        scans = self._scan(TABLES, [_find(run_id, self._entries())])
        return {table: scan.frame(superseded=True).select(pl.len()).collect().item() for table, scan in scans.items()}

    def rules_text(self, run_id: str) -> tuple[str | None, str] | None:
        """Return (profile, text) of the rules a run ran with; None if it ran without.

        Raises:
            DataError: it ran with rules, but their text is not in its folder.
        """
        return _rules_text(_find(run_id, self._entries()))

    def rules_texts(self) -> builtins.list[tuple[RunEntry, tuple[str | None, str] | DataError | None]]:
        """Return every run with its `rules_text`, or with the error that this would raise."""
        return [(run, _rules_text_or_error(run)) for run in self._entries()]

    # --- queries ----------------------------------------------------------------------------------------------------

    def table(self, name: str) -> pl.LazyFrame:
        """Scan a table, its `_all`, a view or `runs`, over all runs as they are now.

        Raises UnknownTableError.
        """
        if name == RUNS_VIEW:
            return self._runs_frame().lazy()
        if name in views():
            return self.sql(f"SELECT * FROM {name}").lazy()
        table, superseded = _split(name)
        return self._scan([table], self._entries())[table].frame(superseded=superseded)

    def by_run(self, tables: Mapping[str, Collection[str]]) -> Iterator[RunTables]:
        """Scan some columns of some tables (and attempt and update), one run at a time, as the runs are now."""
        for run in self._entries():
            yield RunTables(run.run_id, self._scan(tables, [run]), tables)

    def sql(self, query: str, *, timeout_s: float = 60, memory: str = "4GB") -> pl.DataFrame:
        """Run one SELECT over the views, confined: it reads the recorded files and nothing else.

        Raises:
            QueryError: the SQL is wrong, is not a single SELECT, or exceeds its limits.
            DataError: a recorded file turned out to be damaged.
        """
        return self._run_sql(query, None, timeout_s=timeout_s, memory=memory)

    def query(self, name: str, /, **parameters: Value) -> pl.DataFrame:
        """Run a named query, confined like `sql`; `esper query --list` has them all.

        Args:
            name: of the query.
            parameters: its parameters, as values or as text; what is left out has its default.

        Raises:
            UsageError: the query or a parameter is unknown, or a parameter is missing or not of its type.
            QueryError, DataError: as `sql` does.
        """
        return self.run_query(name, parameters)

    def run_query(
        self, name: str, parameters: Mapping[str, Value], *, timeout_s: float = 60, memory: str = "4GB"
    ) -> pl.DataFrame:
        """Run a named query with limits of time and memory."""
        query = find_query(name)
        values = bind(query, parameters, lambda run: _find(run, self._entries()).run_id)
        return self._run_sql(query.sql, values, timeout_s=timeout_s, memory=memory)

    def connect(self) -> duckdb.DuckDBPyConnection:
        """Open a DuckDB connection with every view, as the runs are now. Trusted: it is not confined."""
        return _retry(lambda: self._sources(VIEWS), connect_to)

    def _run_sql(
        self, query: str, values: Mapping[str, object] | None, *, timeout_s: float, memory: str
    ) -> pl.DataFrame:
        if not timeout_s > 0:
            raise QueryError(f"A query cannot have {timeout_s} s. Give a number of seconds above 0 (timeout).")
        check_select(query)
        names = views_named_in(query, VIEWS)

        def run(sources: Mapping[str, Source]) -> pl.DataFrame:
            try:
                return self._confined(sources, memory).run(query, values, timeout_s=timeout_s)
            except BaseException:
                self._close()  # after running out of memory or time, a connection is not to be trusted
                raise

        return _retry(lambda: self._sources(names), run)

    def _confined(self, sources: Mapping[str, Source], memory: str) -> ConfinedConnection:
        """Return the connection of the last query if it was to the same files, else a new one."""
        key = _connection_key(sources, memory)
        current = self._connection  # another thread may close it meanwhile
        if current is None or key is None or current[0] != key:
            self._close()
            current = self._connection = (key, ConfinedConnection(sources, views=VIEWS, memory=memory))
        return current[1]

    def _close(self) -> None:
        current, self._connection = self._connection, None
        if current is not None:
            current[1].close()

    # --- what was left out ------------------------------------------------------------------------------------------

    @property
    def problems(self) -> tuple[Problem, ...]:
        """Everything under RUNS that is left out or not wholly read; checks the footer of every file."""
        problems = find_runs(self.path)[1] if self._selected is None else []
        return (*problems, *scan_tables(TABLES, self._entries(), self._files)[1])

    @property
    def problems_met(self) -> tuple[Problem, ...]:
        """What the queries so far had to leave out."""
        return tuple(self._problems)

    def leave_out(self, problem: Problem) -> None:
        """Add to `problems_met` what a caller had to leave out."""
        self._problems[problem] = None

    # --- internals --------------------------------------------------------------------------------------------------

    def _of(self, run_ids: Iterable[str]) -> Runs:
        return Runs(self.path, selected=frozenset(run_ids), files=self._files)

    def _entries(self) -> builtins.list[RunEntry]:
        entries, problems = find_runs(self.path)
        if self._selected is None:
            self._problems.update(dict.fromkeys(problems))
            return entries
        selected = [run for run in entries if run.run_id in self._selected]
        if missing := self._selected - {run.run_id for run in selected}:
            raise DataError(f"The run {min(missing)} is no longer in {self.path}.")
        return selected

    def _scan(self, tables: Iterable[str], runs: Iterable[RunEntry]) -> dict[str, TableScan]:
        scans, problems = scan_tables(tables, runs, self._files)
        self._problems.update(dict.fromkeys(problems))
        return scans

    def _sources(self, names: Iterable[str]) -> dict[str, Source]:
        """Return what SQL needs to create the views of these names and those they are made of, in order."""
        made = required_views(frozenset(names))
        wanted = {*names}.union(*(view.words for view in made))
        names = [name for name in VIEWS if name in wanted and name not in views()]
        tables = dict.fromkeys(_split(name)[0] for name in names if name != RUNS_VIEW)
        scans = self._scan(tables, self._entries())
        sources: dict[str, Source] = {}
        for name in names:
            if name == RUNS_VIEW:
                sources[name] = self._runs_frame()
            else:
                table, superseded = _split(name)
                sources[name] = (scans[table], superseded)
        return sources | {view.name: view for view in made}

    def _runs_frame(self) -> pl.DataFrame:
        entries = self._entries()
        scans, problems = scan_tables(TABLES, entries, self._files)
        self._problems.update(dict.fromkeys(problems))
        damaged = {run.run_id for run in entries for problem in problems if problem.path.is_relative_to(run.path)}
        return run_rows(entries, scans, damaged)


def damage_in(path: Path, error: Exception) -> DataError:
    """Explain an error of Polars, which does not name the part under RUNS that it could not read."""
    for run in find_runs(path)[0]:
        for parts in list_row_files(run.path).parts.values():
            for part in parts:
                if not _is_readable(part):
                    return DataError(f"{part} is damaged: its rows cannot be read. Restore it, or move it away.")
    return DataError(f"A part in {path} cannot be read ({error}). `esper verify` may say which.")


def _is_readable(part: Path) -> bool:
    try:
        pl.scan_parquet(part, glob=False, hive_partitioning=False).collect()
    except pl.exceptions.PolarsError:
        return False
    return can_be_read(part)


def _split(name: str) -> tuple[str, bool]:
    """Split a name into (table, with superseded rows). Raises UnknownTableError."""
    table = name.removesuffix(ALL_ROWS)
    if table not in TABLES:
        raise UnknownTableError(f"There is no table {name!r}. {suggest(name, VIEWS, kind='tables')}")
    return table, table != name


def _retry(list_sources: Callable[[], dict[str, Source]], read: Callable[[Mapping[str, Source]], _Answer]) -> _Answer:
    """Read the files of one listing; list again if a compaction removed some of them meanwhile."""
    for _ in range(RETRIES):
        sources = list_sources()
        try:
            return read(sources)
        except (DataError, QueryError, OSError):
            if not files_are_gone(sources):
                raise
    return read(list_sources())


def _connection_key(sources: Mapping[str, Source], memory: str) -> object | None:
    """Return what stays the same as long as the views need not be created again; None if each query needs new ones."""
    key: list[object] = [memory]
    for name, source in sources.items():
        if isinstance(source, tuple):
            scan, superseded = source
            if scan.journals:
                return None
            key.append((name, superseded, {layout: tuple(paths) for layout, paths in scan.files.items()}))
        elif isinstance(source, pl.DataFrame):
            return None
        else:
            key.append(name)
    return key


def _rules_text(run: RunEntry) -> tuple[str | None, str] | None:
    sha256 = run.manifest.rules_sha256
    if sha256 is None:
        return None
    path = run.path / "rules" / f"{Path(sha256).name}.toml"
    try:
        check_folder(path.parent)
        return run.manifest.rules_profile, read_regular(path, MOST_BYTES).decode()
    except (OSError, UnicodeDecodeError) as error:
        message = f"The rules that {run.run_id} ran with cannot be read from {path}: {error}. Give others."
        raise DataError(message) from error


def _rules_text_or_error(run: RunEntry) -> tuple[str | None, str] | DataError | None:
    try:
        return _rules_text(run)
    except DataError as error:
        return error


def _match(name: str, entries: list[RunEntry]) -> list[RunEntry]:
    """Find the runs that a name or a pattern fits. Raises UnknownRunError."""
    try:
        return [_find(name, entries)]
    except UnknownRunError:
        if not any(character in name for character in "*?["):
            raise
    matches = [
        run
        for run in entries
        if any(fnmatch.fnmatchcase(text, name) for text in (run.run_id, run.path.name, run.manifest.name))
    ]
    if not matches:
        names = dict.fromkeys(run.manifest.name for run in entries)
        raise UnknownRunError(f"No run matches {name!r}. {suggest(name, names, kind='runs')}")
    return matches


def _find(name: str, entries: list[RunEntry]) -> RunEntry:
    """Find the run of this name; see `Runs`. Raises UnknownRunError."""
    exact = [run for run in entries if run.run_id == name] or [run for run in entries if run.path.name == name]
    if exact := exact or _namesakes(name, entries):
        return exact[0]
    begins = [run for run in entries if name and (run.run_id.startswith(name) or run.short_id == name)]
    if len(begins) == 1:
        return begins[0]
    if begins:
        ids = ", ".join(run.run_id for run in begins[:8])
        raise UnknownRunError(f"{name!r} is the beginning of {len(begins)} runs: {ids}. Write more of it.")
    names = closest(name, {run.manifest.name for run in entries})
    hint = did_you_mean(names) if names else suggest(name, [run.run_id for run in entries], kind="runs")
    raise UnknownRunError(f"There is no run {name!r}. {hint}")


def _namesakes(name: str, entries: Iterable[RunEntry]) -> list[RunEntry]:
    """List the runs of exactly this name, the newest first."""
    long_ago = datetime.min.replace(tzinfo=UTC)
    same_name = [run for run in entries if name and run.manifest.name == name]
    return sorted(same_name, key=lambda run: (run.manifest.started or long_ago, run.run_id), reverse=True)
