"""Single values of Esper's events: objects as plain values, and plain values as columns hold them.

Covers: events and payloads as mappings, dataclasses, objects with the attributes of the envelope or with a `to_dict`;
the conversions that `event_kinds` names, each of which refuses a value by a ValueError; the check of a column's type.
Does not cover: which value goes where (`event_kinds`), or what becomes of a refused value (`event_batch`).
"""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import re
from collections.abc import Iterable, Mapping, Sequence, Set
from datetime import UTC, datetime, timedelta
from enum import Enum
from numbers import Integral, Real
from typing import Any, Final

from esper_recorder.storage.jsonable import encodable

EVENT_ATTRIBUTES: Final = (
    *("event_id", "event_type", "timestamp", "seed_id", "slot_id", "epoch", "group_id", "message", "data"),
    "severity",
)
"""The keys of an event, in Esper's order."""
EXACT_INTEGERS: Final = {"int64": 2**63 - 1, "float64": 2**53}
"""Contract type -> the largest integer that it holds exactly."""

_PYTHON_TYPES: Final[dict[str, frozenset[type]]] = {
    "int64": frozenset({int, type(None)}),
    "float64": frozenset({float, int, type(None)}),
    "string": frozenset({str, type(None)}),
    "bool": frozenset({bool, type(None)}),
}
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_TIMESTAMP_FORM: Final = "2026-01-01T00:00:00.000000+00:00"
_SECOND: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.", re.ASCII)


# --- objects as plain values ------------------------------------------------------------------------------------------


def plain_event(event: Any) -> dict[str, Any] | None:
    """Copy an event as plain values; None if it names no event type."""
    members = _members(event)
    if members is None:
        members = {name: getattr(event, name) for name in EVENT_ATTRIBUTES if hasattr(event, name)}
    event_type = members.get("event_type")
    event_type = event_type.name if isinstance(event_type, Enum) else event_type
    if not isinstance(event_type, str):
        return None
    values = {encodable(str(key)): plain(value) for key, value in members.items()}
    return values | {"event_type": encodable(str(event_type))}


def plain(value: Any) -> Any:
    """Return the value as a round trip through Esper's JSONL would: only mappings, lists, str, int, float, bool, None.

    Numbers keep their value, NaN and infinities included. A datetime becomes ISO 8601 text. An enumeration member
    becomes its value if that is text or a number, else its name. Anything else becomes its text.
    """
    kind = type(value)
    if kind is str:
        return encodable(value)
    if value is None or kind in (bool, int, float):
        return value
    if isinstance(value, Enum):
        return plain(value.value) if isinstance(value, str | int | float) else value.name
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, str):
        return encodable(str(value))
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, datetime):
        return value.isoformat()
    members = _members(value)
    if members is not None:
        return {encodable(str(key)): plain(member) for key, member in members.items()}
    if isinstance(value, list | tuple):
        return [plain(member) for member in value]
    if isinstance(value, Set):
        return sorted((plain(member) for member in value), key=str)
    return encodable(str(value))


def _members(value: Any) -> Mapping[Any, Any] | None:
    """The members of a mapping, a dataclass or an object with `to_dict`; None for any other object."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, type):
        return None
    if callable(getattr(value, "to_dict", None)):
        members = value.to_dict()
        return members if isinstance(members, Mapping) else None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None


def json_text(value: Any) -> str:
    """Write a value as JSON, with the tokens NaN and Infinity as Esper writes them."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply"


# --- plain values as columns hold them --------------------------------------------------------------------------------


def misfits(values: Sequence[Any], type_: str) -> list[int]:
    """The indices of the values that a column of a contract type cannot hold; None fits every column."""
    if type_.startswith("list<"):
        if set(map(type, values)) <= {type(None)}:
            return []
        element_type = type_[5:-1]
        return [
            index
            for index, value in enumerate(values)
            if value is not None and (type(value) is not list or None in value or misfits(value, element_type))
        ]
    allowed = _PYTHON_TYPES[type_]
    types = set(map(type, values))
    # Almost every column passes here: one set of types is far cheaper than a check of each value.
    if types <= allowed and (int not in types or _are_exact(values, EXACT_INTEGERS[type_])):
        return []
    return [
        index
        for index, value in enumerate(values)
        if type(value) not in allowed or (type(value) is int and not _are_exact([value], EXACT_INTEGERS[type_]))
    ]


def _are_exact(values: Iterable[Any], limit: int) -> bool:
    integers = [value for value in values if type(value) is int]
    return max(integers) <= limit and min(integers) >= -limit


def moment(value: Any) -> datetime:
    """Read a timestamp of Esper's, UTC if it names no zone. Raises ValueError for other text or a finer resolution."""
    if type(value) is not str or len(value) > len(_TIMESTAMP_FORM):
        raise ValueError(value)
    time = datetime.fromisoformat(value)
    if not 1900 < time.year < 2200:
        raise ValueError(value)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def microseconds(value: Any) -> int:
    """Read a timestamp as microseconds since 1970. Raises ValueError."""
    # Many events share a second: in the form that Esper writes, only the fraction is parsed for each of them.
    if type(value) is str and len(value) == len(_TIMESTAMP_FORM) and value[26:] == "+00:00":
        second, fraction = _second(value[:20]), value[20:26]
        if second is not None and fraction.isascii() and fraction.isdigit():
            return second + int(fraction)
    return (moment(value) - _EPOCH) // timedelta(microseconds=1)


@functools.lru_cache(maxsize=1024)
def _second(text: str) -> int | None:
    """The start of a second of UTC, for text such as `2026-01-01T00:00:00.`; None for any other form."""
    return microseconds(f"{text[:-1]}+00:00") if _SECOND.fullmatch(text) else None


def increment(value: Any) -> int:
    """Count from 1 what Esper counts from 0."""
    if type(value) is not int or abs(value) >= 2**62:
        raise ValueError(value)
    return value + 1


def digits(value: Any) -> str:
    """Write an integer as text: a seed may exceed 64 bits."""
    if type(value) is not int:
        raise ValueError(value)
    return str(value)


def number(value: Any) -> float:
    """Read a float, or text that is exactly how Python writes one."""
    if type(value) is float:
        return value
    if type(value) is not str or repr(float(value)) != value:
        raise ValueError(value)
    return float(value)


def seconds(milliseconds: Any) -> float:
    """Convert milliseconds to seconds."""
    if type(milliseconds) is not float and (type(milliseconds) is not int or abs(milliseconds) > 2**53):
        raise ValueError(milliseconds)
    return float(milliseconds) / 1000


def bits(flags: Any) -> list[int]:
    """Convert a list of booleans to ones and zeros."""
    if type(flags) is not list or any(type(flag) is not bool for flag in flags):
        raise ValueError(flags)
    return [int(flag) for flag in flags]


def integer(value: Any) -> int | None:
    """The value if it is an integer (and not a boolean), else None."""
    return value if type(value) is int else None


def fraction(part: Any, whole: Any) -> float | None:
    """`part / whole`, or None if one of them is not a number or `whole` is 0."""
    numbers = (int, float)
    return part / whole if type(part) in numbers and type(whole) in numbers and whole else None


def same(value: Any, other: Any) -> bool:
    """Whether two values have one type and are equal; NaN equals NaN."""
    return type(value) is type(other) and (value == other or (value != value and other != other))


def is_nonfinite(value: Any) -> bool:
    """Whether a value is a float that is NaN or infinite."""
    return type(value) is float and not math.isfinite(value)
