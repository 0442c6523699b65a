"""How values read as text.

Covers: prose (`format_number`, `format_percent`, `format_list`, ...), tables for the eye (`format_value`, `text_table`,
`markdown_table`), whole values for machines (`to_text` for csv, `to_json`, `json_text`), and texts of strangers, which
neither a terminal (`printable`) nor Markdown (`escape_markdown`) acts on.
Does not cover: fitting a table to a terminal (`cli.output`), the labels of an axis (`plots.drawing`).
"""

from __future__ import annotations

import itertools
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from datetime import UTC, datetime
from typing import Any, Final

from esper_recorder.contract.spans import spans_of

LONGEST_TEXT: Final = 100
"""Characters of a text on a screen."""

# --- prose ------------------------------------------------------------------------------------------------------------


def format_number(value: float | None, digits: int = 4) -> str:
    """Round a number for prose; None is `not measured`.

    >>> format_number(523.145935), format_number(0.0000000821), format_number(3.0), format_number(1234567.0)
    ('523.1', '8.21e-8', '3', '1,234,567')
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


def format_count(n: int, singular: str, plural: str | None = None) -> str:
    """Count things.

    >>> format_count(1, "incident"), format_count(0, "incident"), format_count(2, "was", "were")
    ('1 incident', 'no incidents', '2 were')
    """
    plural = plural or f"{singular}s"
    return f"{n:,} {singular if n == 1 else plural}" if n else f"no {plural}"


def format_percent(fraction: float | None) -> str:
    """Write a fraction as a percentage; only the whole is 100 %.

    >>> format_percent(0.170667), format_percent(0.004), format_percent(0.9999), format_percent(1.0)
    ('17 %', '0.4 %', '99.9 %', '100 %')
    """
    if fraction is None or not math.isfinite(fraction):
        return "unknown"
    if 0 < fraction < 0.01:
        return f"{100 * fraction:.1g} %"
    return f"{math.floor(1000 * fraction) / 10:.1f} %" if 0.995 <= fraction < 1 else f"{100 * fraction:.0f} %"


def format_list(items: Sequence[str], *, most: int = 6) -> str:
    """Join items with commas and `and`; beyond `most`, count the rest.

    >>> format_list(["a"]), format_list(["a", "b", "c"]), format_list(list("abcd"), most=2)
    ('a', 'a, b and c', 'a, b and 2 more')
    """
    if len(items) > most:
        return f"{', '.join(items[:most])} and {len(items) - most} more"
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}" if items else "none"


def format_ranges(numbers: Iterable[int], *, most: int = 6) -> str:
    """Join integers as ranges.

    >>> format_ranges([1, 2, 3, 5, 8, 9])
    '1–3, 5 and 8–9'
    """
    return format_spans(spans_of(numbers), most=most)


def format_spans(spans: Sequence[tuple[int, int]], *, most: int = 6) -> str:
    """Join spans (first, last)."""
    return format_list([str(a) if a == b else f"{a}–{b}" for a, b in spans], most=most)


def format_time(value: datetime | None) -> str:
    """Write a UTC time to the second."""
    return "at an unknown time" if value is None else f"{value:%Y-%m-%d %H:%M:%S} UTC"


def format_duration(seconds: float | None) -> str:
    """Write a duration in its two largest units.

    >>> format_duration(19.0), format_duration(151), format_duration(7260)
    ('19 s', '2 min 31 s', '2 h 1 min')
    """
    if seconds is None or not math.isfinite(seconds):
        return "unknown"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours:,} h {minutes} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s" if seconds >= 1 else f"{seconds:.1g} s"


def shorten(text: str, longest: int = LONGEST_TEXT) -> str:
    """Cut a text to `longest` characters, ending in an ellipsis.

    >>> shorten("a long story", 8)
    'a long…'
    """
    return text if len(text) <= longest else text[: max(longest - 1, 0)].rstrip() + "…"


# --- whole values, for machines ---------------------------------------------------------------------------------------


def to_json(value: Any) -> Any:
    """Convert a value to what JSON can hold; NaN and infinities become "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, datetime):
        utc = value.astimezone(UTC) if value.tzinfo else value
        unit = "milliseconds" if utc.microsecond % 1000 == 0 else "microseconds"
        text = utc.replace(tzinfo=None).isoformat(timespec=unit if utc.microsecond else "seconds")
        return text + ("Z" if value.tzinfo else "")
    return value.hex() if isinstance(value, bytes) else str(value)


def json_text(value: Any, indent: int | None = None) -> str:
    """Write a value as JSON in which what is not printable is escaped, so that it is both exact and safe to print.

    >>> json_text({"é": "\x9b", "x": float("nan")})
    '{"é": "\\\\u009b", "x": "NaN"}'
    """
    text = json.dumps(to_json(value), indent=indent, ensure_ascii=False, allow_nan=False)
    if text.replace("\n", "").isprintable():
        return text
    return "".join(c if c == "\n" or c.isprintable() else json.dumps(c)[1:-1] for c in text)


def to_text(value: Any) -> str:
    """Write a value in full, as csv has it; half of a surrogate pair, which no file can hold, is escaped."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else _six_digits(value)
    text = (
        json.dumps(to_json(value), ensure_ascii=False)
        if isinstance(value, dict | list | tuple)
        else str(to_json(value))
    )
    return text if is_unicode(text) else text.encode(errors="backslashreplace").decode()


def is_unicode(text: str) -> bool:
    """Return whether a text can be encoded: a file name or an argument that is not UTF-8 cannot."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


# --- texts of strangers -----------------------------------------------------------------------------------------------

_MARKUP = re.compile(r"[\\`*\[\]|~]|(?<!\w)_|_(?!\w)|&(?=#|\w+;)|<(?=[A-Za-z/!?])")
_ENTITIES = {"&": "&amp;", "<": "&lt;"}
# What makes a block of a line that begins with it: a heading, a quote, a list, a rule.
_BLOCK = re.compile(r"\s*(?:\d{1,9}(?=[.)](?:\s|$))|(?=#{1,6}(?:\s|$)|>|[-+](?:\s|$)|[-=]{2}))")


def printable(text: str, keep: str = "") -> str:
    """Escape what a terminal acts on or hides: control and formatting characters, line breaks, half surrogate pairs.

    >>> printable("a\x1b[2J\u202eb\nc"), printable("a\nb", keep="\n")
    ('a\\\\x1b[2J\\\\u202eb\\\\nc', 'a\\nb')
    """
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep else repr(c)[1:-1] for c in text)


def escape_markdown(text: str) -> str:
    """Escape a text so that Markdown, and the HTML it becomes, show it literally on one line, wherever it stands.

    >>> escape_markdown("![x](http://y)"), escape_markdown("<script>"), escape_markdown("# 1|2")
    ('!\\\\[x\\\\](http://y)', '&lt;script>', '\\\\# 1\\\\|2')
    """
    text = printable(re.sub(r"[\r\n\t]+", " ", text))
    text = _MARKUP.sub(lambda match: _ENTITIES.get(match[0], "\\" + match[0]), text)
    block = _BLOCK.match(text)
    return text if block is None else f"{block[0]}\\{text[block.end() :]}"


# --- tables, for the eye ----------------------------------------------------------------------------------------------


def format_value(value: Any, null: str = "NULL") -> str:
    """Write a value for the eye: floats to six digits, control characters escaped.

    >>> format_value(0.1 + 0.2), format_value([True, None]), format_value(None, "none")
    ('0.3', '[true, NULL]', 'none')
    """
    if value is None:
        return null
    if isinstance(value, float):
        return _six_digits(value)
    if isinstance(value, list | tuple):
        return f"[{', '.join(format_value(inner, null) for inner in value)}]"
    return printable(to_text(value))


def _six_digits(value: float) -> str:
    return "NaN" if math.isnan(value) else f"{value:.6g}"


def text_table(
    header: Sequence[str], rows: Callable[[], Iterable[Sequence[str]]], right: Sequence[bool]
) -> Iterator[str]:
    """Align columns with spaces, one printable line per row however wide.

    Args:
        header: the columns' names.
        rows: returns the rows, printable; called twice, so that the text of a large table is never held as a whole.
        right: which columns are right-aligned.
    """
    header = [printable(name) for name in header]
    widths = [len(name) for name in header]
    for row in rows():
        widths = [max(width, len(text)) for width, text in zip(widths, row, strict=True)]
    for row in itertools.chain([header], rows()):
        padded = (t.rjust(w) if r else t.ljust(w) for t, w, r in zip(row, widths, right, strict=True))
        yield "  ".join(padded).rstrip()


def markdown_table(header: Sequence[str], rows: Iterable[Sequence[str]], right: Sequence[bool]) -> Iterator[str]:
    """Write a Markdown table, in whose cells nothing is markup; `right` as in `text_table`."""
    rule = ["---:" if number else "---" for number in right]
    for place, row in enumerate(itertools.chain([header], rows)):
        yield f"| {' | '.join(map(escape_markdown, row))} |"
        if place == 0:
            yield f"|{'|'.join(rule)}|"
