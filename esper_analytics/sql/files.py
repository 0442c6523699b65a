"""The SQL files of `queries/`, views and named queries, each with a header that describes it.

    -- What it answers; of a view: "One row is ...".
    -- param NAME TYPE DEFAULT MEANING           a parameter of a named query; `required` if it has no default
    -- columns of TABLE                          of a view: all columns of a table, or of another view, in order
    -- column NAME TYPE UNIT MEANING; NULL: ...  of a view; the unit is `-` for names and flags

A header line that is indented continues the one before; the first line that is not a comment begins the SQL. Files are
read from the installed package alone, whatever the working directory holds.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib import resources

from esper_analytics.catalog.scan import SQL_TYPES
from esper_analytics.catalog.summary import RUN_COLUMNS, RUNS_VIEW
from esper_recorder.contract.tables import SCHEMA_VERSION, Column, Reducer, columns

_COLUMN = re.compile(r"column (\w+) (\S+) (\S+) (.+?)(?:; NULL: (.+))?")
_COLUMNS_OF = re.compile(r"columns of (\w+)")
_CONTRACT_TYPES = {sql: declared for declared, sql in SQL_TYPES.items()}


@dataclass(frozen=True, slots=True)
class SqlFile:
    """A file of `queries/`."""

    name: str
    header: list[str]
    sql: str


@dataclass(frozen=True, slots=True)
class View:
    """A view over the tables of the contract."""

    name: str
    row: str
    """What one row is; completes "One row is ..."."""
    columns: tuple[Column, ...]
    sql: str

    @property
    def words(self) -> set[str]:
        """The words of its SQL, among them the names of the views it is made of."""
        return _words(self.sql)


def read_sql_files(folder: str = "") -> list[SqlFile]:
    """Read the SQL files of `queries/`, or of a folder in it, in the order of their names."""
    root = resources.files("esper_analytics.queries")
    entries = (root / folder if folder else root).iterdir()
    files = sorted((entry for entry in entries if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return [_sql_file(entry.name.removesuffix(".sql"), entry.read_text(encoding="utf-8")) for entry in files]


@functools.cache
def views() -> dict[str, View]:
    """Read every view, by name, each after the views it is made of."""
    files = {file.name: file for file in read_sql_files("views")}
    ordered: dict[str, View] = {}
    while files:
        ready = [name for name, file in files.items() if not _words(file.sql) & (files.keys() - {name})]
        if not ready:
            raise ValueError(f"the views {', '.join(files)} refer to each other")
        for name in ready:
            ordered[name] = _view(files.pop(name), ordered)
    return ordered


def required_views(names: frozenset[str]) -> tuple[View, ...]:
    """List the views among these names and those they are made of, each after what it needs."""
    wanted = set(names)
    for view in reversed(views().values()):
        if view.name in wanted:
            wanted |= view.words
    return tuple(view for view in views().values() if view.name in wanted)


def _words(sql: str) -> set[str]:
    return set(re.findall(r"\w+", re.sub(r"--.*", "", sql)))


def _sql_file(name: str, text: str) -> SqlFile:
    lines = text.splitlines()
    end = next(place for place, line in enumerate(lines) if not line.startswith("--"))
    header: list[str] = []
    for line in lines[:end]:
        content = line.removeprefix("--")
        if content.startswith("   ") and header:
            header[-1] += f" {content.strip()}"
        else:
            header.append(content.strip())
    return SqlFile(name, header, "\n".join(lines[end:]).strip())


def _view(file: SqlFile, before: dict[str, View]) -> View:
    declared: list[Column] = []
    for line in file.header[1:]:
        if (match := _COLUMNS_OF.fullmatch(line)) is not None:
            table = match[1]
            known = before[table].columns if table in before else RUN_COLUMNS if table == RUNS_VIEW else columns(table)
            declared += known
        elif (match := _COLUMN.fullmatch(line)) is not None:
            name, kind, unit, meaning, null = match.groups()
            unit = "" if unit == "-" else unit
            column = Column(
                name, _CONTRACT_TYPES[kind], meaning, unit, null or "never", Reducer.DERIVED, SCHEMA_VERSION
            )
            declared.append(column)
        else:
            raise ValueError(f"views/{file.name}.sql: {line!r} does not describe a column")
    return View(file.name, file.header[0].removeprefix("One row is ").rstrip("."), tuple(declared), file.sql)
