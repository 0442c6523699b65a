"""JSON files within bounds: whatever a stranger's file holds costs a message, and little time and memory.

Covers: size, number of values, nesting, text that is not UTF-8 or half of a surrogate pair, keys that come twice, and
numbers that JSON cannot hold, which are read as their text.
Does not cover: what the values mean; see `field_values`.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from pathlib import Path
from typing import Any

from esper_recorder.storage.safe_files import read_regular

MOST_BYTES = 16 * 2**20
MOST_VALUES = 1_000_000
DEEPEST = 100
_HALF_PAIR = re.compile(rb"\\u[dD][89abAB]|\\u[dD][c-fC-F]")


class JsonFileError(ValueError):
    """A file is not JSON, or exceeds the bounds; the message is a clause that says which."""


def read_json(path: Path) -> Any:
    """Read a JSON file.

    Raises:
        JsonFileError: it is not JSON, or exceeds the bounds.
        NotRegularError, TooLargeError, OSError: as `safe_files.read_regular`.
    """
    data = read_regular(path, MOST_BYTES)
    if not is_within_bounds(data):
        raise JsonFileError(f"it holds more than {MOST_VALUES:,} values")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise JsonFileError(f"it is not JSON: byte {error.start} is not UTF-8") from None
    try:
        value = json.loads(text, parse_float=_finite, parse_constant=str, object_pairs_hook=_unique)
    except JsonFileError:
        raise
    except ValueError as error:
        raise JsonFileError(f"it is not JSON ({error})") from None
    except RecursionError:
        raise JsonFileError(f"it is nested deeper than {DEEPEST}") from None
    _check_depth(value)
    if _HALF_PAIR.search(data) and not is_text(json.dumps(value, ensure_ascii=False)):
        raise JsonFileError("a text in it is half of a surrogate pair")
    return value


def is_within_bounds(data: bytes) -> bool:
    """Return whether a text of JSON is small enough to be read; it counts a comma in a text as a value."""
    return len(data) <= MOST_BYTES and sum(map(data.count, (b",", b"[", b"{"))) <= MOST_VALUES


def is_text(text: str) -> bool:
    """Return whether a string can be written as UTF-8: it has no half of a surrogate pair."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _finite(digits: str) -> float | str:
    """Read a number; beyond all floats it stays text, for infinity is nothing that JSON can hold."""
    number = float(digits)
    return number if number - number == 0 else digits


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        key = next(key for key, times in Counter(key for key, _ in pairs).items() if times > 1)
        raise JsonFileError(f"it has the key {ascii(key)[:100]} twice")
    return values


def _check_depth(value: Any) -> None:
    level = [value]
    for _ in range(DEEPEST + 1):
        level = [
            item
            for container in level
            if isinstance(container, dict | list)
            for item in (container.values() if isinstance(container, dict) else container)
        ]
        if not level:
            return
    raise JsonFileError(f"it is nested deeper than {DEEPEST}")
