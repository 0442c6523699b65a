"""The named questions of `queries/`: which there are, and the values they are asked with.

Values are bound as parameters of a prepared statement, never put into the text of the SQL.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

from esper_analytics.errors import UsageError
from esper_analytics.sql.files import REQUIRED, Parameter, Question, questions
from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import columns

if TYPE_CHECKING:
    import polars as pl

Value = str | float | None
_FLAGS = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}
_KINDS = {
    "BIGINT": "a whole number",
    "DOUBLE": "a number",
    "BOOLEAN": "true or false",
}


def question_named(name: str) -> Question:
    """A question. Raises UsageError with the near-by names."""
    try:
        return questions()[name]
    except KeyError:
        hint = suggest(name, questions(), kind="questions")
        raise UsageError(f"There is no question {name!r}. {hint}") from None


def questions_frame() -> pl.DataFrame:
    """A row a question: query, parameters with their defaults, and what it answers."""
    import polars as pl

    rows = [
        (found.name, ", ".join(f"{p.name}={p.default}" for p in found.parameters), found.description)
        for found in questions().values()
    ]
    return pl.DataFrame(rows, schema=["query", "parameters", "answers"], orient="row")


def described() -> list[dict[str, object]]:
    """Every question with its parameters, for whoever reads them all."""
    return [
        {
            "query": found.name,
            "answers": found.description,
            "parameters": [
                {"name": p.name, "type": p.type, "default": p.default, "meaning": p.meaning} for p in found.parameters
            ],
            "sql": found.sql,
        }
        for found in questions().values()
    ]


def read_words(words: Iterable[str]) -> dict[str, Value]:
    """The values of `KEY=VALUE` words. Raises UsageError for a word that is none, or a key given twice."""
    found: dict[str, Value] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals or not key:
            raise UsageError(f"{word!r} is no parameter. Write KEY=VALUE.")
        if key in found:
            raise UsageError(f"The parameter {key} is given twice, and only one counts. Give it once.")
        found[key] = value
    return found


def bound(question: Question, given: Mapping[str, Value], run_id_of: Callable[[str], str]) -> dict[str, object]:
    """A value of its type for each of a question's parameters.

    Args:
        question: the question.
        given: values, or their texts, by name.
        run_id_of: the run_id of a run's name; it raises UnknownRunError.

    Raises:
        UsageError: an unknown parameter, one that is missing, or one that is not of its type.
    """
    names = [parameter.name for parameter in question.parameters]
    for name in given:
        if name not in names:
            hint = suggest(name, names, kind="parameters") if names else "It takes none."
            raise UsageError(f"The question {question.name} has no parameter {name!r}. {hint}")
    return {p.name: _value(question, p, given.get(p.name, p.default), run_id_of) for p in question.parameters}


def _value(question: Question, parameter: Parameter, given: Value, run_id_of: Callable[[str], str]) -> object:
    if given == REQUIRED and parameter.default == REQUIRED:
        say = f"{parameter.name}={example(parameter)}"
        raise UsageError(f"The question {question.name} needs {parameter.name}: {parameter.meaning}. Say -p {say}.")
    if given is None or (given == "NULL" and parameter.default == "NULL"):
        return None
    text = str(given).strip()
    try:
        match parameter.type:
            case "BIGINT":
                return _within(int(text))
            case "DOUBLE":
                return _number(text)
            case "BOOLEAN":
                return _FLAGS[text.lower()]
            case "RUN":
                return run_id_of(text)
            case "METRIC":
                return _metric(text)
    except (ValueError, KeyError):
        kind = _KINDS[parameter.type]
        raise UsageError(f"{parameter.name} is {kind}, and {text!r} is none ({parameter.meaning}).") from None
    return str(given)


def _metric(name: str) -> str:
    numeric = [column.name for column in columns("ppo_updates") if column.type in ("int64", "float64", "bool")]
    if name not in numeric:
        hint = suggest(name, numeric, kind="columns")
        raise UsageError(f"ppo_updates has no numeric column {name!r}. {hint}")
    return name


def _number(text: str) -> float:
    number = float(text)
    if math.isnan(number):  # nothing is beyond it, and that is no answer
        raise ValueError(text)
    return number


def _within(number: int) -> int:
    if not -(2**63) <= number < 2**63:
        raise ValueError(number)
    return number


def example(parameter: Parameter) -> str:
    """A value of a parameter, to show how one is written."""
    return {"BIGINT": "10", "DOUBLE": "0.5", "BOOLEAN": "true", "RUN": "ID"}.get(parameter.type, "TEXT")
