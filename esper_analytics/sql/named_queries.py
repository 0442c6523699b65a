"""The named queries of `queries/` and the values of their parameters.

Values are bound as parameters of a prepared statement, never put into the text of the SQL.
"""

from __future__ import annotations

import dataclasses
import functools
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from esper_analytics.errors import UsageError
from esper_analytics.sql.files import read_sql_files
from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import columns

if TYPE_CHECKING:
    import polars as pl

Value = str | float | None
REQUIRED = "required"
_PARAMETER = re.compile(r"param (\w+) (\S+) (\S+) (.+)")
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KINDS = {"BIGINT": "a whole number", "DOUBLE": "a number", "BOOLEAN": "true or false"}
_EXAMPLES = {"BIGINT": "10", "DOUBLE": "0.5", "BOOLEAN": "true", "RUN": "ID"}


@dataclass(frozen=True, slots=True)
class Parameter:
    """One parameter of a named query."""

    name: str
    type: str
    """VARCHAR, BIGINT, DOUBLE, BOOLEAN; RUN, a run named as in `runs["ID"]`; METRIC, a number of `ppo_updates`."""
    default: str
    """As text; `required` without a default, `NULL` if it may be left open."""
    meaning: str


@dataclass(frozen=True, slots=True)
class NamedQuery:
    """A SELECT with a name, a description and parameters."""

    name: str
    description: str
    parameters: tuple[Parameter, ...]
    sql: str


@functools.cache
def named_queries() -> dict[str, NamedQuery]:
    """Read every named query, by name."""
    queries = {}
    for file in read_sql_files():
        parameters = tuple(Parameter(*found.groups()) for line in file.header if (found := _PARAMETER.fullmatch(line)))
        description = " ".join(line for line in file.header if not line.startswith("param "))
        queries[file.name] = NamedQuery(file.name, description, parameters, file.sql)
    return queries


def find_query(name: str) -> NamedQuery:
    """Find the query of this name. Raises UsageError with the closest names."""
    if name not in named_queries():
        raise UsageError(f"There is no query {name!r}. {suggest(name, named_queries(), kind='queries')}")
    return named_queries()[name]


def queries_frame() -> pl.DataFrame:
    """List the named queries, one row each: name, parameters with defaults, and what it answers."""
    import polars as pl

    rows = [
        (query.name, ", ".join(f"{p.name}={p.default}" for p in query.parameters), query.description)
        for query in named_queries().values()
    ]
    return pl.DataFrame(rows, schema=["query", "parameters", "answers"], orient="row")


def describe_queries() -> list[dict[str, object]]:
    """Describe every named query with its parameters and SQL, as nested plain data."""
    return [
        {
            "query": query.name,
            "answers": query.description,
            "parameters": [dataclasses.asdict(parameter) for parameter in query.parameters],
            "sql": query.sql,
        }
        for query in named_queries().values()
    ]


def parse_parameters(arguments: Iterable[str]) -> dict[str, Value]:
    """Parse `KEY=VALUE` arguments. Raises UsageError for another form, or for a key given twice."""
    values: dict[str, Value] = {}
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if not equals or not key:
            raise UsageError(f"{argument!r} is not a parameter. Write KEY=VALUE.")
        if key in values:
            raise UsageError(f"The parameter {key} is given twice, and only one counts. Give it once.")
        values[key] = value
    return values


def bind(query: NamedQuery, values: Mapping[str, Value], run_id_of: Callable[[str], str]) -> dict[str, object]:
    """Convert values, or their texts, to the types of a query's parameters; what is left out gets its default.

    Args:
        query: the query.
        values: by parameter name.
        run_id_of: the run_id of a run's name; raises UnknownRunError.

    Raises:
        UsageError: a parameter is unknown, missing, or not of its type.
    """
    names = [parameter.name for parameter in query.parameters]
    for name in values:
        if name not in names:
            hint = suggest(name, names, kind="parameters") if names else "It takes none."
            raise UsageError(f"The query {query.name} has no parameter {name!r}. {hint}")
    return {p.name: _convert(query, p, values.get(p.name, p.default), run_id_of) for p in query.parameters}


def example(parameter: Parameter) -> str:
    """Return a value of the parameter's type, to show how one is written."""
    return _EXAMPLES.get(parameter.type, "TEXT")


def _convert(query: NamedQuery, parameter: Parameter, value: Value, run_id_of: Callable[[str], str]) -> object:
    if value == REQUIRED and parameter.default == REQUIRED:
        argument = f"-p {parameter.name}={example(parameter)}"
        raise UsageError(f"The query {query.name} needs {parameter.name}: {parameter.meaning}. Add {argument}.")
    if value is None or (value == "NULL" and parameter.default == "NULL"):
        return None
    text = str(value).strip()
    try:
        match parameter.type:
            case "BIGINT":
                return _bigint(text)
            case "DOUBLE":
                return _double(text)
            case "BOOLEAN":
                return _FLAGS[text.lower()]
            case "RUN":
                return run_id_of(text)
            case "METRIC":
                return _metric(text)
    except (ValueError, KeyError):
        kind = _KINDS[parameter.type]
        raise UsageError(f"{parameter.name} must be {kind}, not {text!r} ({parameter.meaning}).") from None
    return str(value)


def _metric(name: str) -> str:
    numeric = [column.name for column in columns("ppo_updates") if column.type in ("int64", "float64", "bool")]
    if name not in numeric:
        hint = suggest(name, numeric, kind="columns")
        raise UsageError(f"ppo_updates has no numeric column {name!r}. {hint}")
    return name


def _double(text: str) -> float:
    number = float(text)
    if math.isnan(number):  # nothing is ever beyond it: an empty answer would look like a healthy run
        raise ValueError(text)
    return number


def _bigint(text: str) -> int:
    number = int(text)
    if not -(2**63) <= number < 2**63:
        raise ValueError(text)
    return number
