"""SQL over the views: one SELECT, confined to the files it was given, bounded in time and memory.

The statement is the only thing trusted less than the data: the connection is in memory, reads exactly the listed
files, loads no extension, spills nowhere, and its configuration is locked before the statement is bound. Views are
made for the names that occur as words in its text (DuckDB's own `get_table_names` fails on joins by USING and does
not look into `query('...')`); a name too many costs a listing, a hidden name is an unknown view.

Not covered: a scalar function that grows beyond `memory` in one step, such as `list_sum(range(2000000000))`, is
bounded by the process's own address space only; the command `esper` sets that limit, a notebook does not.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq

from esper_analytics.errors import DataError, QueryError, did_you_mean, near
from esper_analytics.scan import TableScan, identifier, literal
from esper_recorder.contract.tables import column_names

Source = tuple[TableScan, bool] | pl.DataFrame
"""What a view is made of: a table's files (with or without superseded rows), or rows held in memory."""

MACROS: dict[str, tuple[str, str]] = {
    "finite": ("finite(x)", "CASE WHEN isfinite(x) THEN x END"),
    "above": (
        "above(x, t)",
        "coalesce(x > t AND NOT isnan(CAST(x AS DOUBLE)) AND NOT isnan(CAST(t AS DOUBLE)), false)",
    ),
    "below": (
        "below(x, t)",
        "coalesce(x < t AND NOT isnan(CAST(x AS DOUBLE)) AND NOT isnan(CAST(t AS DOUBLE)), false)",
    ),
}
"""Name -> (signature, body) of the functions that compare as the rules do; documented in docs/sql.md."""

# Words of queries that reach views other than by writing their names, or ask which there are.
_INDIRECT = re.compile(
    r"\b(show|describe|information_schema|pg_catalog|sqlite_master|query|query_table|json_execute_serialized_sql"
    r"|(duckdb|pg|pragma)_\w+)\b",
    re.IGNORECASE,
)


def check(query: str) -> None:
    """Raise QueryError unless the text is exactly one statement of type SELECT."""
    try:
        with duckdb.connect(":memory:") as connection:
            statements = connection.extract_statements(query)
    except duckdb.Error as error:
        raise _explained(error, query, {}, (), "") from None
    if not statements:
        raise QueryError("There is no SQL statement to run. Write one SELECT.")
    if len(statements) > 1:
        raise QueryError(f"These are {len(statements)} statements; only one SELECT at a time is run.")
    kind = statements[0].type.name
    if kind != "SELECT":
        raise QueryError(
            f"Only a SELECT is run here, and this is {_article(kind)} statement. Recordings are read-only."
            if kind != "MULTI"
            else "Only one plain SELECT is run here; write a PIVOT as FROM (PIVOT ... ON column IN (...))."
        )


def views_named_in(query: str, views: Iterable[str]) -> list[str]:
    """The views whose names occur in the text; all of them where it may reach views without writing their names."""
    if _INDIRECT.search(query):
        return list(views)
    words = {word.lower() for word in re.findall(r"\w+", query)}
    return [view for view in views if view in words]


def run(
    query: str, sources: Mapping[str, Source], *, known: Sequence[str], timeout_s: float, memory: str
) -> pl.DataFrame:
    """The answer to one SELECT (`check` it first) over the views of `sources`.

    Args:
        known: every view's name, for the near-by names in an error.

    Raises:
        QueryError, DataError: as `Runs.sql` says.
    """
    settings: dict[str, str | bool | int | float | list[str]] = {
        "python_enable_replacements": "false",
        "autoload_known_extensions": "false",
        "autoinstall_known_extensions": "false",
        "allow_community_extensions": "false",
        "temp_directory": "",
    }
    with duckdb.connect(":memory:", config=settings) as connection:
        try:
            connection.execute(f"SET memory_limit = {literal(memory)}")
        except duckdb.Error:
            raise QueryError(f"{memory!r} is no amount of memory. Write it like 4GB or 500MB.") from None
        connection.execute("SET TimeZone = 'UTC'")
        paths = [path for source in sources.values() if isinstance(source, tuple) for path in source[0].paths()]
        allowed = ", ".join(literal(str(path)) for path in dict.fromkeys(paths))
        connection.execute(f"SET allowed_paths = [{allowed}]")
        connection.execute("SET enable_external_access = false")
        try:
            _make_views(connection, sources)
            connection.execute("SET lock_configuration = true")
            types, table = _bounded(connection, query, timeout_s)
        except (duckdb.Error, MemoryError) as error:
            told = _explained(_located(error, connection, query), query, sources, known, memory)
            # The engine's own words add nothing to a mistake in the query; to damaged data they do.
            raise told from (error if isinstance(told, DataError) else None)
    return _frame(table, types)


def _bounded(connection: duckdb.DuckDBPyConnection, query: str, timeout_s: float) -> tuple[list[str], pa.Table]:
    """The answer's types and rows. It is computed in a thread, so that the caller can be interrupted at any time."""

    def answer() -> tuple[list[str], pa.Table]:
        relation = connection.sql(query)
        return [str(kind) for kind in relation.types], relation.to_arrow_table()

    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="esper-sql") as pool:
        answered = pool.submit(answer)
        try:
            return answered.result(timeout_s)
        except TimeoutError:
            connection.interrupt()
            message = f"The query was stopped after {timeout_s:g} s. Ask for less, or give it more time (timeout)."
            raise QueryError(message) from None
        except KeyboardInterrupt:
            connection.interrupt()
            raise


def files_are_gone(sources: Mapping[str, Source]) -> bool:
    """Whether a file of the views is not there any more: it was compacted since it was listed."""
    scans = [source[0] for source in sources.values() if isinstance(source, tuple)]
    return any(not path.exists() for scan in scans for path in scan.paths())


def connect(sources: Mapping[str, Source]) -> duckdb.DuckDBPyConnection:
    """A trusted connection with the views of `sources` and the macros."""
    connection = duckdb.connect(":memory:")
    connection.execute("SET TimeZone = 'UTC'")
    _make_views(connection, sources)
    return connection


def _make_views(connection: duckdb.DuckDBPyConnection, sources: Mapping[str, Source]) -> None:
    for signature, body in MACROS.values():
        connection.execute(f"CREATE MACRO {signature} AS {body}")
    held: dict[int, list[str]] = {}  # the journal rows of a scan, which two views may share
    for name, source in sources.items():
        if isinstance(source, pl.DataFrame):
            _hold(connection, name, source.to_arrow(compat_level=pl.CompatLevel.oldest()))
            continue
        scan, superseded = source
        if id(scan) not in held:
            held[id(scan)] = []
            for number, (journal, _) in enumerate(scan.journals):
                _hold(connection, table := f"journal {number} of {scan.table}", journal)
                held[id(scan)].append(identifier(table))
        connection.execute(f"CREATE VIEW {identifier(name)} AS {scan.view(held[id(scan)], superseded=superseded)}")


def _hold(connection: duckdb.DuckDBPyConnection, name: str, rows: pa.Table) -> None:
    """Copy rows into a table, so that no pointer into Python's memory stays reachable from SQL."""
    connection.register("_rows", rows)
    connection.execute(f"CREATE TABLE {identifier(name)} AS FROM _rows")
    connection.unregister("_rows")


# --- answers ----------------------------------------------------------------------------------------------------------


def _frame(table: pa.Table, types: Sequence[str]) -> pl.DataFrame:
    """DuckDB's answer as a frame: column names made unique, sums of integers as integers, times in UTC."""
    columns: dict[str, pl.Series] = {}
    for position, kind in enumerate(types):
        name = table.field(position).name
        unique, count = name, 1
        while unique in columns:
            unique, count = f"{name}_{count}", count + 1
        columns[unique] = _series(unique, table.column(position), kind)
    return pl.DataFrame(list(columns.values()))


def _series(name: str, column: pa.ChunkedArray, kind: str) -> pl.Series:
    if kind == "INTERVAL":
        return _intervals(name, column.to_pylist())
    try:
        series = pl.Series(name, pl.from_arrow(column))
    except (pl.exceptions.PolarsError, TypeError, ValueError):
        raise QueryError(
            f"The column {name} is of type {kind}, which an answer cannot hold. CAST it to VARCHAR."
        ) from None
    if kind in ("HUGEINT", "UHUGEINT"):
        fits = series.cast(pl.Int64, strict=False)
        return fits if fits.null_count() == series.null_count() else series
    if isinstance(series.dtype, pl.Datetime) and series.dtype.time_zone:
        return series.dt.convert_time_zone("UTC")
    if series.dtype in (pl.Categorical, pl.Enum):
        return series.cast(pl.String)
    return series


def _intervals(name: str, values: list[Any]) -> pl.Series:
    if all(value is None or value.months == 0 for value in values):
        micros = [None if v is None else v.days * 86_400_000_000 + v.nanoseconds // 1000 for v in values]
        return pl.Series(name, micros, dtype=pl.Duration("us"))
    spelled = [None if v is None else f"{v.months} months {v.days} days {v.nanoseconds / 1e9:g} s" for v in values]
    return pl.Series(name, spelled, dtype=pl.String)


# --- errors in sentences ----------------------------------------------------------------------------------------------

_COLUMN = re.compile(r'Referenced column "(.+?)" not found|does not have a column named "(.+?)"|Column "(.+?)" in ')
_TABLE = re.compile(r'Table with name "?(.+?)"? does not exist')
_FUNCTION = re.compile(r"(?:\w+ )?Function with name (\S+) does not exist!(?:\nDid you mean \"(.+?)\")?")
_POSITION = re.compile(r"\n\s*\nLINE (\d+): (.*)\n(\s*)\^")


# Errors that the words of a query cause, whatever the files hold.
_OF_THE_WORDS = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.ConversionException)


def _damaged(paths: Iterable[str]) -> str | None:
    """The first of the files whose rows cannot be read. DuckDB's own error does not always name it."""
    for path in paths:
        try:
            pq.read_table(path)
        except (OSError, pa.ArrowException):
            return path
    return None


def _located(error: BaseException, connection: duckdb.DuckDBPyConnection, query: str) -> BaseException:
    """The same error with its position, which DuckDB tells for `execute` only. Binding fails before anything runs."""
    if isinstance(error, duckdb.BinderException | duckdb.CatalogException):
        try:
            connection.execute(query)
        except duckdb.Error as located:
            return located
    return error


def _explained(
    error: BaseException, query: str, sources: Mapping[str, Source], known: Sequence[str], memory: str
) -> QueryError | DataError:
    """DuckDB's error as a sentence: what was asked, what there is, where."""
    text = str(error)
    where = _position(text, query)
    paths = [str(path) for source in sources.values() if isinstance(source, tuple) for path in source[0].paths()]
    if isinstance(error, duckdb.OutOfMemoryException | MemoryError) or "bad_alloc" in text:
        limit = f"the {memory} it may use" if memory else "the memory there is"
        return QueryError(f"The query needs more than {limit}. Select fewer columns or rows, or aggregate earlier.")
    if isinstance(error, duckdb.PermissionException):
        found = re.search(r'"(.+?)"', text)
        what = f" ({found[1]})" if found else ""
        return QueryError(f"SQL here reads the recorded runs and nothing else: no other file or address{what}.")
    if "configuration has been locked" in text:
        return QueryError("SQL here cannot change how it is run: the configuration is locked.")
    if not isinstance(error, _OF_THE_WORDS) and (damaged := _damaged(paths)) is not None:
        return DataError(f"{damaged} is damaged: its footer can be read, but its rows cannot.")
    if (found := _COLUMN.search(text)) is not None:
        name = next(group for group in found.groups() if group)
        return QueryError(f"There is no column {name}{where}. {_columns_hint(name, sources, text)}")
    if (found := _TABLE.search(text)) is not None:
        return QueryError(f"There is no view {found[1]}{where}. {did_you_mean(found[1], known, kind='views')}")
    if (found := _FUNCTION.search(text)) is not None:
        hint = near(found[1], MACROS) or ([found[2]] if found[2] else [])
        return QueryError(f"There is no function {found[1]}{where}.{f' Did you mean {hint[0]}?' if hint else ''}")
    told = f"{_first_line(text)}{where}."
    if isinstance(error, duckdb.ParserException):
        told += " One SELECT is expected, such as SELECT * FROM runs."
    return QueryError(told)


def _columns_hint(name: str, sources: Mapping[str, Source], text: str) -> str:
    names: dict[str, None] = {}
    for source in sources.values():
        names.update(
            dict.fromkeys(source.columns if isinstance(source, pl.DataFrame) else column_names(source[0].table))
        )
    bare = name.rsplit(".", 1)[-1]
    if close := near(bare, names):
        return did_you_mean(bare, close, kind="columns")
    if (offered := re.search(r"Candidate bindings: (.+)", text)) is not None:
        return f"Near it there are: {offered[1].replace(chr(34), '')}."
    tables = " ".join(sorted({s[0].table for s in sources.values() if isinstance(s, tuple)})) or "TABLE"
    return f"`esper tables {tables.split()[0]}` lists the columns."


def _position(text: str, query: str) -> str:
    found = _POSITION.search(text)
    if found is None:
        return ""
    line, shown, margin = int(found[1]), found[2], len(found[3])
    lines = query.splitlines()
    column = margin - len(f"LINE {line}: ")
    if line <= len(lines) and lines[line - 1].rstrip() == shown.rstrip():
        return f" (line {line}, column {column + 1})"
    return f" (line {line}, near {shown[max(column, 0) : column + 20].strip()!r})"


def _first_line(text: str) -> str:
    line = text.split("\n", 1)[0]
    line = re.sub(r"^[A-Z][A-Za-z ]* Error: ", "", line)
    return (line[:1].upper() + line[1:]).rstrip(".!")


def _article(kind: str) -> str:
    return f"{'an' if kind[0] in 'AEIOU' else 'a'} {kind.replace('_', ' ')}"
