"""How numbers, times and lists read in a report."""

from __future__ import annotations

import math
from collections.abc import Sequence
from datetime import datetime, timedelta
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
