"""How numbers, times and lists read in a report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from typing import Any


def number(value: float | None, digits: int = 4) -> str:
    """A number as a person writes it; `not measured` where there is none.

    >>> number(523.145935), number(0.0000000821), number(3.0), number(float("nan")), number(1234567.0)
    ('523.1', '8.21e-8', '3', 'NaN', '1,234,567')
    """
    if value is None:
        return "not measured"
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == int(value) and abs(value) < 1e9:
        return f"{int(value):,}".replace("-", "−")
    if 1e-3 <= abs(value) < 1e6:
        text = f"{abs(value):.{digits}g}"
        text = f"{abs(value):,.0f}" if "e" in text or abs(value) >= 10**digits else text
    else:
        mantissa, exponent = f"{abs(value):.{digits - 2}e}".split("e")
        text = f"{mantissa.rstrip('0').rstrip('.')}e{int(exponent)}"
    return f"−{text}" if value < 0 else text


def setting(value: Any) -> str:
    """A setting's value as it would be written in a file of settings.

    >>> setting(0.0003), setting(None), setting(True), setting([1, 2])
    ('0.0003', 'none', 'true', '[1, 2]')
    """
    if isinstance(value, bool) or value is None:
        return {True: "true", False: "false", None: "none"}[value]
    return f"{value:g}" if isinstance(value, float) else str(value)


def count(n: int, one: str, many: str | None = None) -> str:
    """A number of things.

    >>> count(1, "incident"), count(0, "incident"), count(2, "was", "were")
    ('1 incident', 'no incidents', '2 were')
    """
    return f"{n:,} {one}" if n == 1 else f"{n:,} {many or one + 's'}" if n else f"no {many or one + 's'}"


def percent(share: float | None) -> str:
    """A share as a percentage.

    >>> percent(0.170667), percent(0.004), percent(1.0)
    ('17 %', '0.4 %', '100 %')
    """
    if share is None or not math.isfinite(share):
        return "an unknown share"
    if 0 < share < 0.01:
        return f"{100 * share:.1g} %"
    # What is not quite the end is not called it.
    return f"{math.floor(1000 * share) / 10:.1f} %" if 0.995 <= share < 1 else f"{100 * share:.0f} %"


def listed(words: Sequence[str], *, most: int = 6) -> str:
    """Words as a list in a sentence.

    >>> listed(["a"]), listed(["a", "b", "c"]), listed(list("abcd"), most=2)
    ('a', 'a, b and c', 'a, b and 2 more')
    """
    if len(words) > most:
        return f"{', '.join(words[:most])} and {len(words) - most} more"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}" if words else "none"


def ranges(numbers: Sequence[int], *, most: int = 6) -> str:
    """Ascending whole numbers as ranges.

    >>> ranges([1, 2, 3, 5, 8, 9])
    '1–3, 5 and 8–9'
    """
    spans: list[tuple[int, int]] = []
    for n in numbers:
        if spans and spans[-1][1] == n - 1:
            spans[-1] = (spans[-1][0], n)
        else:
            spans.append((n, n))
    return listed([str(a) if a == b else f"{a}–{b}" for a, b in spans], most=most)


def moment(value: datetime | None) -> str:
    """A time, UTC, to the second."""
    return "at an unknown time" if value is None else f"{value:%Y-%m-%d %H:%M:%S} UTC"


def duration(seconds: float | None) -> str:
    """A stretch of time.

    >>> duration(19.0), duration(151), duration(7260)
    ('19 s', '2 min 31 s', '2 h 1 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return "unknown"
    whole = timedelta(seconds=round(seconds))
    hours, rest = divmod(int(whole.total_seconds()), 3600)
    minutes, rest = divmod(rest, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if seconds >= 1 else f"{seconds:.1g} s"


LONGEST_TEXT = 100


def shortened(text: str, longest: int = LONGEST_TEXT) -> str:
    """A text of at most so many characters, its end replaced by an ellipsis.

    >>> shortened("a long story", 8)
    'a long…'
    """
    return text if len(text) <= longest else text[: max(longest - 1, 0)].rstrip() + "…"


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
