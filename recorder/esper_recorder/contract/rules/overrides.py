"""Putting other numbers into rules, by `RULE.KEY`: what `--set ratio_explosion.above=3.0` and sweeps do."""

from __future__ import annotations

import tomllib
from collections.abc import Iterator, Mapping
from typing import Any, Final

from esper_recorder.contract.rules.location import Place
from esper_recorder.contract.rules.model import RuleError, Severity
from esper_recorder.contract.rules.rolling_mean import TrendOf
from esper_recorder.contract.rules.signal import Take
from esper_recorder.contract.suggest import suggest

Value = float | bool | str

_COUNTS: Final = {"for": 1, "min_n": 1, "warmup": 0, "window": 1}
_SWITCHES: Final = ("keep", "bias_correction", "signed")
_WORDS: Final = {"severity": tuple(Severity), "take": tuple(Take), "trend": tuple(TrendOf)}
_FIXED: Final = ("nonfinite", "step")
_LEVELS: Final = ("above", "below", "reset")


def change(text: str, values: Mapping[str, Any], name: str) -> tuple[dict[str, Any], dict[str, Value]]:
    """The rules of a text with other values, as raw data without the unit tests, and the values as they went in.

    Raises RuleError: an unknown rule or key, a value of the wrong kind.
    """
    data = tomllib.loads(text)
    data.pop("tests", None)  # they were written for the values that are replaced
    return data, {path: _put(data["rules"], path, value, name) for path, value in sorted(values.items())}


def read_value(text: str) -> Value:
    """A value as typed on a command line: a number, true or false, else the word itself."""
    if text in ("true", "false"):
        return text == "true"
    try:
        return float(text)
    except ValueError:
        return text


def _put(rules: dict[str, Any], path: str, value: Any, file: str) -> Value:
    name, _, key = path.partition(".")
    if not key:
        raise RuleError(f"{path!r} names no value; write RULE.KEY, such as {next(iter(rules))}.for")
    if name not in rules:
        raise RuleError(f"{file} has no rule {name!r}. {suggest(name, rules, kind='rules')}")
    slots = {path: (container, own, free) for path, container, own, free in _slots(rules[name])}
    if key not in slots:
        hint = suggest(key, sorted(slots), kind="values")
        raise RuleError(f"{file}, rule {name}: there is no value {key!r} to set. {hint}")
    container, own, free = slots[key]
    container[own] = _coerced(value, "" if free else own, Place(file, name, key))
    changed: Value = container[own]
    return changed


def _slots(raw: dict[str, Any], path: str = "") -> Iterator[tuple[str, dict[str, Any], str, bool]]:
    """(path, table that holds it, key in that table, the key is a name of the user's) for every settable value."""
    free = path.endswith((".phase.", ".key."))
    extra: tuple[str, ...] = ()
    if not path:
        extra = ("for", "keep", "severity")
    if not free and ("column" in raw or "expr" in raw) and ("above" in raw or "below" in raw) and "unless" not in path:
        extra = (*extra, "reset")
    if path.endswith("drift."):
        extra = ("momentum", "bias_correction", "warmup", "epsilon", "signed")
    for key in dict.fromkeys((*raw, *extra)):
        value = raw.get(key)
        if isinstance(value, dict):
            if key in _LEVELS and not free:
                yield f"{path}{key}", raw, key, False
            yield from _slots(value, f"{path}{key}.")
        elif isinstance(value, list):
            for number, item in enumerate(value, 1):
                if isinstance(item, dict):
                    yield from _slots(item, f"{path}{key}.{number}.")
        elif free or key in extra or key in _WORDS or (isinstance(value, int | float) and key not in _FIXED):
            yield f"{path}{key}", raw, key, free


def _coerced(value: Any, key: str, place: Place) -> Value:
    if key in _WORDS:
        return place.word(value, _WORDS[key])
    if key in _SWITCHES:
        return place.switch(value)
    if key in _COUNTS:
        if isinstance(value, float) and value.is_integer():
            value = int(value)
        return place.count(value, _COUNTS[key])
    return place.number(value)
