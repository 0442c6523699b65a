"""DuckDB's errors as messages: what was asked, what there is, and where."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from esper_analytics.errors import DataError, QueryError
from esper_analytics.sql.macros import MACROS
from esper_recorder.contract.suggest import closest, did_you_mean, suggest

_COLUMN = re.compile(r'Referenced column "(.+?)" not found|does not have a column named "(.+?)"|Column "(.+?)" in ')
_TABLE = re.compile(r'Table with name "?(.+?)"? does not exist')
_FUNCTION = re.compile(r"(?:\w+ )?Function with name (\S+) does not exist!(?:\nDid you mean \"(.+?)\")?")
_POSITION = re.compile(r"\n\s*\nLINE (\d+): (.*)\n(\s*)\^")

# Errors that the text of a query causes, whatever the files hold.
_OF_THE_TEXT = (duckdb.BinderException, duckdb.CatalogException, duckdb.ParserException, duckdb.ConversionException)


@dataclass(frozen=True, slots=True)
class QueryContext:
    """What a message about a failed query can refer to."""

    query: str
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    """View -> its columns, of the views the query was given."""
    views: Sequence[str] = ()
    """Every view's name."""
    paths: Sequence[str] = ()
    """The files it may read."""
    memory: str = ""
    """How much it may use, as it was written; empty if nothing runs."""


def explain_error(error: BaseException, context: QueryContext) -> QueryError | DataError:
    """Convert DuckDB's error to one of ours."""
    text = str(error)
    where = _position(text, context.query)
    if isinstance(error, duckdb.OutOfMemoryException | MemoryError) or "bad_alloc" in text:
        limit = f"the {context.memory} it may use" if context.memory else "the available memory"
        return QueryError(f"The query needs more than {limit}. Select fewer columns or rows, or aggregate earlier.")
    if isinstance(error, duckdb.PermissionException):
        match = re.search(r'"(.+?)"', text)
        what = f" ({match[1]})" if match else ""
        return QueryError(f"SQL here reads the recorded runs and nothing else: no other file or address{what}.")
    if "configuration has been locked" in text:
        return QueryError("SQL here cannot change how it is run: the configuration is locked.")
    if not isinstance(error, _OF_THE_TEXT) and (damaged := _damaged_file(context.paths)) is not None:
        return DataError(f"{damaged} is damaged: its footer can be read, but its rows cannot.")
    if (match := _COLUMN.search(text)) is not None:
        name = next(group for group in match.groups() if group)
        return QueryError(f"There is no column {name}{where}. {_columns_hint(name, context, text)}")
    if (match := _TABLE.search(text)) is not None:
        return QueryError(f"There is no view {match[1]}{where}. {suggest(match[1], context.views, kind='views')}")
    if (match := _FUNCTION.search(text)) is not None:
        names = closest(match[1], MACROS, at_most=1) or ([match[2]] if match[2] else [])
        hint = f" {did_you_mean(names)}" if names else ""
        return QueryError(f"There is no function {match[1]}{where}.{hint}")
    expected = (
        " One SELECT is expected, such as SELECT * FROM runs." if isinstance(error, duckdb.ParserException) else ""
    )
    return QueryError(f"{_first_line(text)}{where}.{expected}")


def _damaged_file(paths: Iterable[str]) -> str | None:
    """Find the first file whose rows cannot be read; DuckDB's error does not always name it."""
    for path in paths:
        try:
            pq.read_table(path)
        except (OSError, pa.ArrowException):
            return path
    return None


def _columns_hint(name: str, context: QueryContext, text: str) -> str:
    unqualified = name.rsplit(".", 1)[-1]
    if similar := closest(unqualified, dict.fromkeys(itertools.chain.from_iterable(context.columns.values()))):
        return did_you_mean(similar)
    if (candidates := re.search(r"Candidate bindings: (.+)", text)) is not None:
        return f"The closest are: {candidates[1].replace(chr(34), '')}."
    return f"`esper tables {min(context.columns, default='TABLE')}` lists the columns."


def _position(text: str, query: str) -> str:
    match = _POSITION.search(text)
    if match is None:
        return ""
    line, shown, margin = int(match[1]), match[2], len(match[3])
    lines = query.splitlines()
    column = margin - len(f"LINE {line}: ")
    if line <= len(lines) and lines[line - 1].rstrip() == shown.rstrip():
        return f" (line {line}, column {column + 1})"
    return f" (line {line}, near {shown[max(column, 0) : column + 20].strip()!r})"  # DuckDB shows part of a long line


def _first_line(text: str) -> str:
    line = text.split("\n", 1)[0]
    line = re.sub(r"^[A-Z][A-Za-z ]* Error: ", "", line)
    return (line[:1].upper() + line[1:]).rstrip(".!")
