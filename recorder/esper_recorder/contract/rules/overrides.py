"""Other values for rules, by `RULE.FIELD`: what `--set ratio_explosion.above=3.0` and sweeps do."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from esper_recorder.contract.rules.location import Location
from esper_recorder.contract.rules.model import RuleError, Severity
from esper_recorder.contract.rules.signal import Take
from esper_recorder.contract.rules.trend import TrendOf
from esper_recorder.contract.suggest import suggest

Value = float | bool | str

_COUNTS: Final = {"for": 1, "min_n": 1, "warmup": 0, "window": 1}  # field -> its least value
_BOOLEANS: Final = ("keep", "bias_correction", "signed")
_CHOICES: Final = {"severity": tuple(Severity), "take": tuple(Take), "trend": tuple(TrendOf)}
_FIXED: Final = ("nonfinite", "step")
_LEVELS: Final = ("above", "below", "reset")


class _Field(NamedTuple):
    """A value that can be set: the table it is in, its key there, and whether that key is a phase or a series key."""

    table: dict[str, Any]
    key: str
    is_name: bool


def apply(text: str, values: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Value]]:
    """Replace values in the TOML text of rules.

    Returns:
        The data without the unit tests, which were written for the old values; and the new values as converted.

    Raises RuleError: an unknown rule or field, or a value of the wrong kind.
    """
    data = tomllib.loads(text)
    data.pop("tests", None)
    return data, {path: _replace(data["rules"], path, value, name) for path, value in sorted(values.items())}


def read_value(text: str) -> Value:
    """Convert a value typed on a command line: a number, true or false, else the text."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _replace(rules: dict[str, Any], path: str, value: Any, file: str) -> Value:
    name, _, key = path.partition(".")
    if not key:
        raise RuleError(f"{path!r} names no field; write RULE.FIELD, such as {next(iter(rules))}.for")
    if name not in rules:
        raise RuleError(f"{file} has no rule {name!r}. {suggest(name, rules, kind='rules')}")
    fields = dict(_fields(rules[name]))
    if key not in fields:
        hint = suggest(key, sorted(fields), kind="fields")
        raise RuleError(f"{file}, rule {name}: there is no field {key!r} to set. {hint}")
    field = fields[key]
    converted = _convert(value, "" if field.is_name else field.key, Location(file, name, key))
    field.table[field.key] = converted
    return converted


def _fields(raw: dict[str, Any], path: str = "") -> Iterator[tuple[str, _Field]]:
    """Yield every settable value by its path, those with a default included."""
    is_name = path.endswith((".phase.", ".key."))
    defaults: tuple[str, ...] = ()
    if not path:
        defaults = ("for", "keep", "severity")
    if not is_name and ("column" in raw or "expr" in raw) and ("above" in raw or "below" in raw):
        defaults = defaults if "unless" in path else (*defaults, "reset")
    if path.endswith("drift."):
        defaults = ("momentum", "bias_correction", "warmup", "epsilon", "signed")
    for key in dict.fromkeys((*raw, *defaults)):
        value = raw.get(key)
        if isinstance(value, dict):
            if key in _LEVELS and not is_name:
                yield f"{path}{key}", _Field(raw, key, False)
            yield from _fields(value, f"{path}{key}.")
        elif isinstance(value, list):
            for number, item in enumerate(value, 1):
                if isinstance(item, dict):
                    yield from _fields(item, f"{path}{key}.{number}.")
        elif is_name or key in defaults or key in _CHOICES or (isinstance(value, int | float) and key not in _FIXED):
            yield f"{path}{key}", _Field(raw, key, is_name)


def _convert(value: Any, key: str, location: Location) -> Value:
    if key in _CHOICES:
        return location.choice(value, _CHOICES[key])
    if key in _BOOLEANS:
        return location.boolean(value)
    if key in _COUNTS:
        whole = int(value) if isinstance(value, float) and value.is_integer() else value
        return location.count(whole, _COUNTS[key])
    return location.number(value)
