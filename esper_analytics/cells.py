"""One value as text: in full, for the eye, and as JSON can hold it."""

from __future__ import annotations

import json
import math
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any


def to_json(value: Any) -> Any:
    """A value as JSON can hold it; numbers that are none become "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _plain(value)


def text_of(value: Any) -> str:
    """A value in full, as csv has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else _number(value)
    if isinstance(value, dict | list | tuple):
        return json.dumps(to_json(value), ensure_ascii=False)
    return str(_plain(value))


def cell(value: Any) -> str:
    """A value for the eye: floats to six digits, control characters made visible."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list):
        return f"[{', '.join(cell(inner) for inner in value)}]"
    text = text_of(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{value:.6g}"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        moment = value.astimezone(UTC) if value.tzinfo else value
        kind = "milliseconds" if moment.microsecond % 1000 == 0 else "microseconds"
        text = moment.replace(tzinfo=None).isoformat(timespec=kind if moment.microsecond else "seconds")
        return text + ("Z" if value.tzinfo else "")
    if isinstance(value, date | time | Decimal | timedelta):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str | int) else str(value)
