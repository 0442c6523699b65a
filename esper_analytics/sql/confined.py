"""SQL over the views: one SELECT, confined to the files of its views, bounded in time and memory.

The statement is trusted less than the data: the connection is in memory, reads exactly the listed files, loads no
extension, spills nowhere, and its configuration is locked before the statement is bound.

Covers:
* any statement but one SELECT, any file or address outside of the views, any change of a setting: refused;
* a query that runs too long: interrupted; a step that DuckDB does not interrupt, such as `levenshtein` of two long
  texts, is left behind in its thread;
* a query that needs more than DuckDB's `memory_limit`, and a result too large to convert.

Does not cover: one step that outgrows DuckDB's accounting, such as `list_sum(range(2000000000))`. The command `esper`
limits the address space of its process for that (`cli/process_limits.py`); a library must not.
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

from esper_analytics.catalog.scan import TableScan, identifier, literal
from esper_analytics.errors import TIMEOUT, QueryError
from esper_analytics.formatting import is_unicode
from esper_analytics.sql.files import View
from esper_analytics.sql.macros import MACROS
from esper_analytics.sql.query_errors import QueryContext, explain_error
from esper_analytics.sql.results import to_frame
from esper_recorder.contract.tables import column_names
from esper_recorder.storage.arrow_batches import to_table

Source = tuple[TableScan, bool] | pl.DataFrame | View
"""What a view is made of: a table's files (with or without superseded rows), rows in memory, or other views."""

GRACE_S = 2.0
"""How long an interrupted query may take to end."""

_SETTINGS: dict[str, str | bool | int | float | list[str]] = {
    "python_enable_replacements": "false",
    "autoload_known_extensions": "false",
    "autoinstall_known_extensions": "false",
    "allow_community_extensions": "false",
    "temp_directory": "",
}

# Words of queries that list views, or reach them without naming them.
_INDIRECT = re.compile(
    r"\b(show|describe|information_schema|pg_catalog|sqlite_master|query|query_table|json_execute_serialized_sql"
    r"|(duckdb|pg|pragma)_\w+)\b",
    re.IGNORECASE,
)
# DuckDB reads a path with one of these characters as a pattern of paths, and has no way to escape them.
_PATTERN = re.compile(r"[*?\[]")
_SIZE = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", re.IGNORECASE)
_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def size_in_bytes(text: str) -> int | None:
    """Parse an amount of memory; None if the text is not one.

    >>> size_in_bytes("4GB"), size_in_bytes("500 MiB"), size_in_bytes("lots")
    (4000000000, 524288000, None)
    """
    match = _SIZE.fullmatch(text)
    size = 0.0 if match is None else float(match[1]) * _UNITS[match[2].upper()]
    return int(size) if 1 <= size < 2**63 else None


def check_select(query: str) -> None:
    """Raise QueryError unless the text is exactly one statement of type SELECT."""
    if not is_unicode(query):
        raise QueryError("The SQL is not valid Unicode: it has half of a surrogate pair, or bytes that are not UTF-8.")
    try:
        statements = _parser().cursor().extract_statements(query)
    except duckdb.Error as error:
        raise explain_error(error, QueryContext(query)) from None
    if not statements:
        raise QueryError("There is no SQL statement to run. Write one SELECT.")
    if len(statements) > 1:
        raise QueryError(f"These are {len(statements)} statements; only one SELECT at a time is run.")
    try:
        kind = statements[0].type.name
    except ValueError:  # a kind of statement that DuckDB's Python package has no name for
        kind = "unknown"
    if kind == "MULTI":
        raise QueryError("Only one plain SELECT is run here; write a PIVOT as FROM (PIVOT ... ON column IN (...)).")
    if kind != "SELECT":
        article = "an" if kind[0] in "AEIOUu" else "a"
        statement = f"{article} {kind.replace('_', ' ')} statement"
        raise QueryError(f"Only a SELECT is run here, and this is {statement}. Recordings are read-only.")


def views_named_in(query: str, views: Iterable[str]) -> list[str]:
    """List the views whose names occur in the text; all views if it may reach them without naming them.

    DuckDB's `get_table_names` fails on joins by USING and does not look into `query('...')`. Here a superfluous name
    costs a listing, and a hidden one is an unknown view.
    """
    if _INDIRECT.search(query):
        return list(views)
    mentioned = {word.lower() for word in re.findall(r"\w+", query)}
    return [view for view in views if view in mentioned]


class ConfinedConnection:
    """A connection in memory with the views of `sources`, which reads their files and nothing else.

    It can run any number of queries, from several threads too, as long as the files stay the same.
    """

    def __init__(self, sources: Mapping[str, Source], *, views: Sequence[str], memory: str) -> None:
        """Create the views.

        Args:
            sources: by the name of the view, each after those it needs.
            views: every view's name, for suggestions in an error.
            memory: how much a query may use, such as 4GB.

        Raises:
            QueryError: `memory` is not an amount of memory, or a file of the views is gone.
            DataError: a file of the views is damaged.
        """
        size = size_in_bytes(memory)
        if not size:
            raise QueryError(f"{memory!r} is not an amount of memory. Write it like 4GB or 500MB.")
        self._bytes, self._memory = size, memory
        paths = [*dict.fromkeys(path for source in sources.values() for path in _paths(source))]
        columns = {name: _column_names(source) for name, source in sources.items()}
        self._context = functools.partial(QueryContext, columns=columns, views=views, paths=paths, memory=memory)
        self._connection = duckdb.connect(":memory:", config=_SETTINGS | {"memory_limit": f"{self._bytes}B"})
        try:
            self._connection.execute("SET GLOBAL TimeZone = 'UTC'")
            self._connection.execute("SET GLOBAL parquet_metadata_cache = true")  # parts never change
            allowed = ", ".join(literal(path) for path in paths if not _PATTERN.search(path))
            self._connection.execute(f"SET allowed_paths = [{allowed}]")
            self._connection.execute("SET enable_external_access = false")
            _create_views(self._connection, sources)
            self._connection.execute("SET lock_configuration = true")
        except BaseException as error:
            self._connection.close()
            if isinstance(error, duckdb.Error):
                raise explain_error(error, self._context("")) from error
            raise

    def run(self, query: str, parameters: Mapping[str, Any] | None, *, timeout_s: float) -> pl.DataFrame:
        """Run one SELECT that passed `check_select`, with `parameters` bound to its `$name`. Raises as `Runs.sql` does.

        It runs in a thread, so that the caller can be interrupted at any time.
        """
        cursor = self._connection.cursor()
        outcome: list[tuple[list[str], pa.Table] | BaseException] = []

        def compute() -> None:
            try:
                outcome.append(_fetch(cursor, query, parameters))
            except BaseException as error:
                outcome.append(error)
            finally:
                cursor.close()

        worker = threading.Thread(target=compute, name="esper-sql", daemon=True)
        worker.start()
        try:
            worker.join(min(timeout_s, threading.TIMEOUT_MAX))
        except BaseException:  # Ctrl-C
            _stop(cursor, worker)
            raise
        if worker.is_alive():
            raise QueryError(_timeout_message(timeout_s, ended=_stop(cursor, worker)))
        [result] = outcome
        if isinstance(result, duckdb.Error | MemoryError):
            error = explain_error(result, self._context(query))
            # The engine's text adds nothing to a mistake in the query; to damaged data it does.
            raise error from (None if isinstance(error, QueryError) else result)
        if isinstance(result, BaseException):
            raise result
        types, table = result
        if table.nbytes > self._bytes / 2:
            # Converting it to a frame may take as much again, and Polars ends the process if it cannot.
            size = f"{table.nbytes / 1e9:.1f} GB"
            message = f"The result takes {size}, more than half of the {self._memory} it may use."
            raise QueryError(f"{message} Select less, or allow more (memory).")
        return to_frame(table, types)

    def close(self) -> None:
        """Close the connection, unless a query that cannot be stopped still runs on it."""
        with contextlib.suppress(duckdb.Error):
            self._connection.close()


def files_are_gone(sources: Mapping[str, Source]) -> bool:
    """Return whether a file of the views no longer exists, because it was compacted since it was listed."""
    scans = [source[0] for source in sources.values() if isinstance(source, tuple)]
    return any(not path.exists() for scan in scans for path in scan.paths())


def connect(sources: Mapping[str, Source]) -> duckdb.DuckDBPyConnection:
    """Open a trusted connection with the views of `sources`. Raises QueryError or DataError for unreadable files."""
    connection = duckdb.connect(":memory:")
    try:
        connection.execute("SET TimeZone = 'UTC'")
        _create_views(connection, sources)
    except BaseException as error:
        connection.close()
        if isinstance(error, duckdb.Error):
            paths = [path for source in sources.values() for path in _paths(source)]
            raise explain_error(error, QueryContext("", paths=paths)) from error
        raise
    return connection


# --- within -----------------------------------------------------------------------------------------------------------


@functools.cache
def _parser() -> duckdb.DuckDBPyConnection:
    """Open a connection that only parses."""
    return duckdb.connect(":memory:", config=_SETTINGS)


def _fetch(
    cursor: duckdb.DuckDBPyConnection, query: str, parameters: Mapping[str, Any] | None
) -> tuple[list[str], pa.Table]:
    """Run a query; return the types and rows of its result."""
    try:
        relation = cursor.sql(query, params=dict(parameters) if parameters else None)
        return [str(kind) for kind in relation.types], relation.to_arrow_table()
    except (duckdb.BinderException, duckdb.CatalogException):
        # Raises the same with its position, which DuckDB reports for `execute` only.
        cursor.execute(query, dict(parameters) if parameters else None)
        raise
    except pa.ArrowException as error:
        raise QueryError(
            f"A column of the answer cannot be passed on ({error}). Unnest it, or CAST it to VARCHAR."
        ) from error


def _stop(cursor: duckdb.DuckDBPyConnection, worker: threading.Thread) -> bool:
    """Interrupt a query; return whether it has ended."""
    cursor.interrupt()
    worker.join(GRACE_S)
    return not worker.is_alive()


def _timeout_message(timeout_s: float, *, ended: bool) -> str:
    message = TIMEOUT.format(timeout_s)
    return message if ended else f"{message} DuckDB does not interrupt this step: it continues in the background."


def _create_views(connection: duckdb.DuckDBPyConnection, sources: Mapping[str, Source]) -> None:
    for signature, body in MACROS.values():
        connection.execute(f"CREATE MACRO {signature} AS {body}")
    loaded: dict[int, tuple[TableScan, list[str]]] = {}  # by scan, which the views of a table and its `_all` share
    for name, source in sources.items():
        if isinstance(source, pl.DataFrame):
            _create_table(connection, name, source.to_arrow(compat_level=pl.CompatLevel.oldest()))
        elif isinstance(source, View):
            connection.execute(f"CREATE VIEW {identifier(name)} AS {source.sql}")
        else:
            scan, superseded = source
            if id(scan) not in loaded:
                readable = _load_patterns(scan)
                tables = [f"journal {number} of {scan.table}" for number in range(len(readable.journals))]
                for table, (rows, _) in zip(tables, readable.journals, strict=True):
                    _create_table(connection, table, rows)
                loaded[id(scan)] = readable, [identifier(table) for table in tables]
            readable, journal_tables = loaded[id(scan)]
            select = readable.view(journal_tables, superseded=superseded)
            connection.execute(f"CREATE VIEW {identifier(name)} AS {select}")


def _load_patterns(scan: TableScan) -> TableScan:
    """Load files whose paths DuckDB would read as patterns into memory, like a journal's rows."""
    if not any(_PATTERN.search(str(path)) for path in scan.paths()):
        return scan
    readable = TableScan(scan.table, journals=[*scan.journals])
    for layout, paths in scan.files.items():
        for path in paths:
            if _PATTERN.search(str(path)):
                rows = pq.ParquetFile(path).read(columns=[column.stored for column in layout.present])
                readable.add_journal(to_table(scan.table, rows.to_batches()), cuts=layout.cuts, ranks=layout.ranks)
            else:
                readable.add_part(path, layout, scan.heights[path])
    return readable


def _create_table(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """Copy rows into a table; a registered view would leave a pointer into Python's memory reachable from SQL."""
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
