"""DuckDB's errors in sentences: what was asked, what there is, where."""

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


@dataclass(frozen=True, slots=True)
class Asked:
    """What there is for an error to speak of.

    Attributes:
        query: the SELECT.
        columns: the columns of the views that were made for it.
        known: every view's name.
        paths: the files it may read.
        memory: how much it may use, as it was written; empty where nothing runs.
    """

    query: str
    columns: Mapping[str, Sequence[str]] = field(default_factory=dict)
    known: Sequence[str] = ()
    paths: Sequence[str] = ()
    memory: str = ""


def explained(error: BaseException, asked: Asked) -> QueryError | DataError:
    """DuckDB's error as a sentence: what was asked, what there is, where."""
    text = str(error)
    where = _position(text, asked.query)
    if isinstance(error, duckdb.OutOfMemoryException | MemoryError) or "bad_alloc" in text:
        limit = f"the {asked.memory} it may use" if asked.memory else "the memory there is"
        return QueryError(f"The query needs more than {limit}. Select fewer columns or rows, or aggregate earlier.")
    if isinstance(error, duckdb.PermissionException):
        found = re.search(r'"(.+?)"', text)
        what = f" ({found[1]})" if found else ""
        return QueryError(f"SQL here reads the recorded runs and nothing else: no other file or address{what}.")
    if "configuration has been locked" in text:
        return QueryError("SQL here cannot change how it is run: the configuration is locked.")
    if not isinstance(error, _OF_THE_WORDS) and (damaged := _damaged(asked.paths)) is not None:
        return DataError(f"{damaged} is damaged: its footer can be read, but its rows cannot.")
    if (found := _COLUMN.search(text)) is not None:
        name = next(group for group in found.groups() if group)
        return QueryError(f"There is no column {name}{where}. {_columns_hint(name, asked, text)}")
    if (found := _TABLE.search(text)) is not None:
        return QueryError(f"There is no view {found[1]}{where}. {suggest(found[1], asked.known, kind='views')}")
    if (found := _FUNCTION.search(text)) is not None:
        names = closest(found[1], MACROS, at_most=1) or ([found[2]] if found[2] else [])
        hint = f" {did_you_mean(names)}" if names else ""
        return QueryError(f"There is no function {found[1]}{where}.{hint}")
    told = f"{_first_line(text)}{where}."
    if isinstance(error, duckdb.ParserException):
        told += " One SELECT is expected, such as SELECT * FROM runs."
    return QueryError(told)


def _columns_hint(name: str, asked: Asked, text: str) -> str:
    bare = name.rsplit(".", 1)[-1]
    if similar := closest(bare, dict.fromkeys(itertools.chain.from_iterable(asked.columns.values()))):
        return did_you_mean(similar)
    if (offered := re.search(r"Candidate bindings: (.+)", text)) is not None:
        return f"Near it there are: {offered[1].replace(chr(34), '')}."
    return f"`esper tables {min(asked.columns, default='TABLE')}` lists the columns."


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
