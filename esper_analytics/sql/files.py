"""The SQL files of `queries/`: views and named questions, each with a header that says what it is.

    -- What it answers, or "One row is ..." of a view.
    -- param NAME TYPE DEFAULT MEANING           of a question; `required` where it has no default
    -- columns of TABLE                          of a view: all the columns of a table, or of another view, in order
    -- column NAME TYPE UNIT MEANING; NULL: ...  of a view; the unit is `-` where one makes no sense

The first line that is no comment begins the SQL. The files are read from the package alone, whatever the folder a
command runs in holds.
"""

from __future__ import annotations

import functools
import re
from dataclasses import dataclass
from importlib import resources

from esper_analytics.catalog.scan import SQL_TYPES
from esper_analytics.catalog.summary import RUN_COLUMNS, RUNS_VIEW
from esper_recorder.contract.tables import SCHEMA_VERSION, TABLES, Column, Reducer, columns

REQUIRED = "required"
_PARAMETER = re.compile(r"param (\w+) (\S+) (\S+) (.+)")
_COLUMN = re.compile(r"column (\w+) (\S+) (\S+) (.+?)(?:; NULL: (.+))?")
_PASSED_ON = re.compile(r"columns of (\w+)")


@dataclass(frozen=True, slots=True)
class Parameter:
    """One value a question takes."""

    name: str
    type: str
    """VARCHAR, BIGINT, DOUBLE, BOOLEAN; RUN, a run named as in `runs["ID"]`; METRIC, a number of `ppo_updates`."""
    default: str
    """As text; `required` where it must be given, `NULL` where it may be left open."""
    meaning: str


@dataclass(frozen=True, slots=True)
class Question:
    """A named question."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    sql: str


@dataclass(frozen=True, slots=True)
class View:
    """A view over the tables of the contract."""

    name: str
    row: str
    """What one row is, as the end of the sentence "One row is ..."."""
    columns: tuple[Column, ...]
    sql: str

    @property
    def words(self) -> set[str]:
        """The words of its SQL: the names of what it is made of are among them."""
        return _words(self.sql)


@functools.cache
def questions() -> dict[str, Question]:
    """Every question, by name."""
    return {name: _question(name, text) for name, text in _files("")}


@functools.cache
def views() -> dict[str, View]:
    """Every view, by name, a view after those that it names."""
    texts = dict(_files("views"))
    found: dict[str, View] = {}
    while texts:
        ready = [name for name, text in texts.items() if not _words(text) & (texts.keys() - {name})]
        if not ready:
            raise ValueError(f"the views {', '.join(texts)} name each other")
        for name in ready:
            found[name] = _view(name, texts.pop(name), found)
    return found


def needed(named: frozenset[str]) -> tuple[View, ...]:
    """The views among these names, and those that they are made of, each after what it needs."""
    wanted = set(named)
    for view in reversed(views().values()):
        if view.name in wanted:
            wanted |= view.words
    return tuple(view for view in views().values() if view.name in wanted)


def columns_of(name: str) -> tuple[Column, ...]:
    """The columns of a table, of `runs` or of a view. Raises KeyError."""
    if name == RUNS_VIEW:
        return RUN_COLUMNS
    return columns(name) if name in TABLES else views()[name].columns


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", re.sub(r"--.*", "", text)))


def _files(folder: str) -> list[tuple[str, str]]:
    """(name, text) of the files of a folder, by name."""
    home = resources.files("esper_analytics.queries")
    entries = (home / folder if folder else home).iterdir()
    files = sorted((entry for entry in entries if entry.name.endswith(".sql")), key=lambda entry: entry.name)
    return [(entry.name.removesuffix(".sql"), entry.read_text(encoding="utf-8")) for entry in files]


def _header(text: str) -> tuple[list[str], str]:
    """The comment lines at the beginning, and the SQL. A line that is indented goes on with the one before."""
    lines = text.splitlines()
    end = next(place for place, line in enumerate(lines) if not line.startswith("--"))
    told: list[str] = []
    for line in lines[:end]:
        words = line.removeprefix("--")
        if words.startswith("   ") and told:
            told[-1] += f" {words.strip()}"
        else:
            told.append(words.strip())
    return told, "\n".join(lines[end:]).strip()


def _question(name: str, text: str) -> Question:
    told, sql = _header(text)
    parameters = [found for line in told if (found := _PARAMETER.fullmatch(line))]
    description = [line for line in told if not line.startswith("param ")]
    return Question(name, " ".join(description), tuple(Parameter(*found.groups()) for found in parameters), sql)


def _view(name: str, text: str, before: dict[str, View]) -> View:
    told, sql = _header(text)
    found: list[Column] = []
    for line in told[1:]:
        if (passed := _PASSED_ON.fullmatch(line)) is not None:
            found += before[passed[1]].columns if passed[1] in before else columns_of(passed[1])
        elif (own := _COLUMN.fullmatch(line)) is not None:
            found.append(_column(*own.groups()))
        else:
            raise ValueError(f"views/{name}.sql: {line!r} describes no column")
    return View(name, told[0].removeprefix("One row is ").rstrip("."), tuple(found), sql)


def _column(name: str, kind: str, unit: str, meaning: str, null: str | None) -> Column:
    of_contract = {sql: own for own, sql in SQL_TYPES.items()}
    return Column(
        name=name,
        type=of_contract[kind],
        meaning=meaning,
        unit="" if unit == "-" else unit,
        null=null or "never",
        reducer=Reducer.DERIVED,
        since=SCHEMA_VERSION,
    )
