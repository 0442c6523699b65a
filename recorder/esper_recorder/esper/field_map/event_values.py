"""An event as Esper's trainer holds it in memory, made into what its JSONL line would say.

Events are taken as they come: mappings, dataclasses, or objects with the attributes of the envelope. Payloads
likewise; one with a `to_dict` says itself what it holds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Set
from datetime import datetime
from enum import Enum
from numbers import Integral, Real
from typing import Any, Final

ENVELOPE: Final = (
    *("event_id", "event_type", "timestamp", "seed_id", "slot_id", "epoch", "group_id", "message", "data"),
    "severity",
)
"""The keys of an event, in Esper's order."""


def plain_event(event: Any) -> dict[str, Any] | None:
    """The event as plain values; None for what names no event type. What the trainer changes later stays out of it."""
    told = _members(event)
    if told is None:
        told = {name: getattr(event, name) for name in ENVELOPE if hasattr(event, name)}
    kind = told.get("event_type")
    kind = kind.name if isinstance(kind, Enum) else kind
    if not isinstance(kind, str):
        return None
    return {str(key): plain(value) for key, value in told.items()} | {"event_type": str(kind)}


def plain(value: Any) -> Any:
    """The value as JSON would give it back: mappings, lists, texts, numbers, flags and None.

    A number keeps its value (NaN and infinities included); a time becomes ISO 8601 text, an enumeration's member its
    name or, where it is a text or a number itself, that; anything else its text, as Esper's own output writes it.
    """
    kind = type(value)
    if value is None or kind in (bool, int, float, str):
        return value
    if isinstance(value, Enum):
        return plain(value.value) if isinstance(value, str | int | float) else value.name
    if kind.__module__ == "numpy" and hasattr(value, "tolist"):
        return plain(value.tolist())
    if isinstance(value, str):
        return str(value)
    if isinstance(value, Integral):
        return int(value)
    if isinstance(value, Real):
        return float(value)
    if isinstance(value, datetime):
        return value.isoformat()
    members = _members(value)
    if members is not None:
        return {str(key): plain(inner) for key, inner in members.items()}
    if isinstance(value, list | tuple):
        return [plain(inner) for inner in value]
    if isinstance(value, Set):
        return sorted((plain(inner) for inner in value), key=str)
    return str(value)


def _members(value: Any) -> Mapping[Any, Any] | None:
    """What a mapping, or an object that stands for one, holds; None for any other."""
    if isinstance(value, Mapping):
        return value
    if isinstance(value, type):
        return None
    if callable(getattr(value, "to_dict", None)):
        told = value.to_dict()
        return told if isinstance(told, Mapping) else None
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return None
