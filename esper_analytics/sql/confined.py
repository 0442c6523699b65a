"""SQL over the views: one SELECT, confined to the files it was given, bounded in time and memory.

The statement is the only thing trusted less than the data: the connection is in memory, reads exactly the listed
files, loads no extension, spills nowhere, and its configuration is locked before the statement is bound. Views are
made for the names that occur as words in its text (DuckDB's own `get_table_names` fails on joins by USING and does
not look into `query('...')`); a name too many costs a listing, a hidden name is an unknown view.

What DuckDB does not bound by itself is bounded around it. A step that outgrows its `memory_limit`, such as
`list_sum(range(2000000000))`, meets a limit on the process's address space. A step that never looks whether it was
interrupted, such as `levenshtein` of two long texts, is left behind in its thread, and the answer is an error.
"""

from __future__ import annotations

import contextlib
import functools
import re
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from esper_analytics.catalog.scan import PartLayout, TableScan, identifier, literal
from esper_analytics.errors import QueryError
from esper_analytics.sql.files import View
from esper_analytics.sql.macros import MACROS
from esper_analytics.sql.memory_limit import bounded_growth, size_of
from esper_analytics.sql.query_errors import Asked, explained
from esper_analytics.sql.results import frame_of
from esper_recorder.contract.tables import column_names
from esper_recorder.storage.arrow_batches import to_table

Source = tuple[TableScan, bool] | pl.DataFrame | View
"""What a view is made of: a table's files (with or without superseded rows), rows held in memory, or other views."""

GRACE_S = 2.0
"""How long a query that was interrupted may take to end."""
_THREAD = "esper-sql"

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "python_enable_replacements": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
    "temp_directory": "",
}

# Words of queries that reach views other than by writing their names, or ask which there are.
_INDIRECT = re.compile(
    r"\b(show|describe|information_schema|pg_catalog|sqlite_master|query|query_table|json_execute_serialized_sql"
    r"|(duckdb|pg|pragma)_\w+)\b",
    re.IGNORECASE,
)
# Characters by which DuckDB takes a path for a pattern of paths. It has no way to say that a path is none.
_PATTERN = re.compile(r"[*?\[]")


def check(query: str) -> None:
    """Raise QueryError unless the text is exactly one statement of type SELECT."""
    try:
        statements = _parser().cursor().extract_statements(query)
    except duckdb.Error as error:
        raise explained(error, Asked(query)) from None
    if not statements:
        raise QueryError("There is no SQL statement to run. Write one SELECT.")
    if len(statements) > 1:
        raise QueryError(f"These are {len(statements)} statements; only one SELECT at a time is run.")
    try:
        kind = statements[0].type.name
    except ValueError:  # a kind of statement that DuckDB's Python has no name for
        raise QueryError("Only a SELECT is run here, and this is none. Recordings are read-only.") from None
    if kind == "MULTI":
        raise QueryError("Only one plain SELECT is run here; write a PIVOT as FROM (PIVOT ... ON column IN (...)).")
    if kind != "SELECT":
        raise QueryError(
            f"Only a SELECT is run here, and this is {_article(kind)} statement. Recordings are read-only."
        )


def views_named_in(query: str, views: Iterable[str]) -> list[str]:
    """The views whose names occur in the text; all of them where it may reach views without writing their names."""
    if _INDIRECT.search(query):
        return list(views)
    words = {word.lower() for word in re.findall(r"\w+", query)}
    return [view for view in views if view in words]


class Confined:
    """A connection in memory with the views of `sources`, which reads their files and nothing else.

    It can be asked again and again, from several threads too, as long as the files are the same.
    """

    def __init__(self, sources: Mapping[str, Source], *, known: Sequence[str], memory: str) -> None:
        """Make the views, each of which stands after those it needs.

        Args:
            known: every view's name, for the near-by names in an error.
            memory: how much a query may use, such as 4GB.

        Raises:
            QueryError: `memory` is no amount of memory, or a file of the views is gone.
            DataError: a file of the views is damaged.
        """
        bytes_allowed = size_of(memory)
        if not bytes_allowed:
            raise QueryError(f"{memory!r} is no amount of memory. Write it like 4GB or 500MB.")
        self._bytes, self._memory = bytes_allowed, memory
        self._paths = [*dict.fromkeys(path for source in sources.values() for path in _paths(source))]
        self._asked = functools.partial(
            Asked,
            columns={name: _column_names(source) for name, source in sources.items()},
            known=known,
            paths=self._paths,
            memory=memory,
        )
        self._connection = duckdb.connect(":memory:", config=_SETTINGS | {"memory_limit": f"{self._bytes}B"})
        try:
            self._connection.execute("SET GLOBAL TimeZone = 'UTC'")
            self._connection.execute("SET GLOBAL parquet_metadata_cache = true")  # parts never change
            allowed = ", ".join(literal(path) for path in self._paths if not _PATTERN.search(path))
            self._connection.execute(f"SET allowed_paths = [{allowed}]")
            self._connection.execute("SET enable_external_access = false")
            _make_views(self._connection, sources)
            self._connection.execute("SET lock_configuration = true")
        except BaseException as error:
            self._connection.close()
            if isinstance(error, duckdb.Error):
                raise explained(error, self._asked("")) from error
            raise

    def answer(self, query: str, parameters: Mapping[str, Any] | None, *, timeout_s: float) -> pl.DataFrame:
        """The answer to one SELECT (`check` it first), `parameters` bound to its `$name`.

        It is computed in a thread, so that the caller can be interrupted at any time.

        Raises:
            QueryError, DataError: as `Runs.sql` says.
        """
        cursor = self._connection.cursor()
        outcome: list[tuple[list[str], pa.Table] | BaseException] = []

        def compute() -> None:
            try:
                with bounded_growth(self._bytes):
                    outcome.append(_computed(cursor, query, parameters))
            except BaseException as error:
                outcome.append(error)
            finally:
                cursor.close()

        worker = threading.Thread(target=compute, name=_THREAD, daemon=True)
        worker.start()
        try:
            worker.join(timeout_s)
        except BaseException:  # Ctrl-C
            _stop(cursor, worker)
            raise
        if worker.is_alive():
            raise QueryError(_stopped(timeout_s, _stop(cursor, worker)))
        [found] = outcome
        if isinstance(found, tuple):
            types, table = found
            if table.nbytes > self._bytes / 2:
                # Making a frame of it may take as much again, and Polars ends the process where it cannot.
                message = (
                    f"The answer takes {table.nbytes / 1e9:.1f} GB, more than half of the {self._memory} there is."
                )
                raise QueryError(f"{message} Ask for less of it, or give it more (memory).")
            return frame_of(table, types)
        if isinstance(found, duckdb.Error | MemoryError):
            told = explained(found, self._asked(query))
            # The engine's own words add nothing to a mistake in the query; to damaged data they do.
            raise told from (None if isinstance(told, QueryError) else found)
        raise found

    def close(self) -> None:
        """Let go of the connection, unless a query that cannot be stopped still computes on it."""
        with contextlib.suppress(duckdb.Error):
            self._connection.close()


def left_behind() -> bool:
    """Whether a query that was told to stop is still computing."""
    return any(thread.name == _THREAD for thread in threading.enumerate())


def files_are_gone(sources: Mapping[str, Source]) -> bool:
    """Whether a file of the views is not there any more: it was compacted since it was listed."""
    scans = [source[0] for source in sources.values() if isinstance(source, tuple)]
    return any(not path.exists() for scan in scans for path in scan.paths())


def connect(sources: Mapping[str, Source]) -> duckdb.DuckDBPyConnection:
    """A trusted connection with the views of `sources` and the macros.

    Raises QueryError or DataError where a file of the views is gone or damaged.
    """
    connection = duckdb.connect(":memory:")
    try:
        connection.execute("SET TimeZone = 'UTC'")
        _make_views(connection, sources)
    except BaseException as error:
        connection.close()
        if isinstance(error, duckdb.Error):
            paths = [path for source in sources.values() for path in _paths(source)]
            raise explained(error, Asked("", paths=paths)) from error
        raise
    return connection


# --- within -----------------------------------------------------------------------------------------------------------


@functools.cache
def _parser() -> duckdb.DuckDBPyConnection:
    """A connection that runs nothing: it tells the statements of a text."""
    return duckdb.connect(":memory:", config=_SETTINGS)


def _computed(
    cursor: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, Any] | None
) -> tuple[list[str], pa.Table]:
    """The answer's types and rows."""
    try:
        relation = cursor.sql(query, params=dict(parameters) if parameters else None)
        return [str(kind) for kind in relation.types], relation.to_arrow_table()
    except (duckdb.BinderException, duckdb.CatalogException):
        # Raises the same with its position, which DuckDB tells for `execute` only.
        cursor.execute(query, dict(parameters) if parameters else None)
        raise


def _stop(cursor: duckdb.DuckDBPyConnection, worker: threading.Thread) -> bool:
    """Interrupt a query; whether it has ended."""
    cursor.interrupt()
    worker.join(GRACE_S)
    return not worker.is_alive()


def _stopped(timeout_s: float, ended: bool) -> str:
    if ended:
        return f"The query was stopped after {timeout_s:g} s. Ask for less, or give it more time (timeout)."
    return (
        f"The query was given up after {timeout_s:g} s, in the middle of one step that DuckDB does not interrupt: in "
        "Python it goes on in the background until that step ends. Ask for less."
    )


def _make_views(connection: duckdb.DuckDBPyConnection, sources: Mapping[str, Source]) -> None:
    for signature, body in MACROS.values():
        connection.execute(f"CREATE MACRO {signature} AS {body}")
    held: dict[int, TableScan] = {}  # scans without what must be held in memory, which two views may share
    names: dict[int, list[str]] = {}
    for name, source in sources.items():
        if isinstance(source, pl.DataFrame):
            _hold(connection, name, source.to_arrow(compat_level=pl.CompatLevel.oldest()))
        elif isinstance(source, View):
            connection.execute(f"CREATE VIEW {identifier(name)} AS {source.sql}")
        else:
            scan, superseded = source
            if id(scan) not in held:
                readable = held[id(scan)] = _with_plain_paths(scan)
                names[id(scan)] = []
                for number, (rows, _) in enumerate(readable.journals):
                    _hold(connection, table := f"journal {number} of {scan.table}", rows)
                    names[id(scan)].append(identifier(table))
            text = held[id(scan)].view(names[id(scan)], superseded=superseded)
            connection.execute(f"CREATE VIEW {identifier(name)} AS {text}")


def _with_plain_paths(scan: TableScan) -> TableScan:
    """The scan, with the rows of files whose paths DuckDB would take for patterns in memory, as a journal's are."""
    if not any(_PATTERN.search(str(path)) for path in scan.paths()):
        return scan
    plain = TableScan(scan.table, journals=[*scan.journals])
    for layout, paths in scan.files.items():
        for path in paths:
            if _PATTERN.search(str(path)):
                rows = pq.ParquetFile(path).read(columns=[column.stored for column in layout.present])
                held = to_table(scan.table, rows.to_batches())
                plain.journals.append((held, PartLayout((), False, layout.cuts, layout.ranks)))
            else:
                plain.add_part(path, layout, scan.heights[path])
    return plain


def _hold(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """Copy rows into a table, so that no pointer into Python's memory stays reachable from SQL."""
    connection.register("_rows", rows)
    connection.execute(f"CREATE TABLE {identifier(name)} AS FROM _rows")
    connection.unregister("_rows")


def _paths(source: Source) -> list[str]:
    paths = source[0].paths() if isinstance(source, tuple) else []
    return [str(path) for path in paths]


def _column_names(source: Source) -> Sequence[str]:
    if isinstance(source, tuple):
        return column_names(source[0].table)
    return source.columns if isinstance(source, pl.DataFrame) else [column.name for column in source.columns]


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind.replace('_', ' ')}"
