"""JSON lines, read with the tokens that trainers write and JSON does not have."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import orjson


class InvalidJson(ValueError):
    """A line is not JSON."""


def decode(line: bytes) -> Any:
    """Read the value of one line, with the tokens NaN, Infinity and -Infinity, which JSON does not have.

    An integer beyond 64 bits is read as a float. Raises InvalidJson.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:
        text = line.decode()
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is not text
    except (ValueError, RecursionError) as error:
        raise InvalidJson(str(error)) from error
    return value


def line_text(line: bytes) -> str:
    """Decode a line; bytes that are not UTF-8 are written as `\\xff`."""
    return line.decode(errors="backslashreplace")


_LONGEST_LINE = 16 * 2**20


def whole_lines(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Cut blocks at the end of a line; the last one, marked True, may lack its newline.

    A line longer than any event is cut into pieces, so that no more than that is held.
    """
    rest = b""
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end:
            yield rest + block[:end], False
            rest = block[end:]
        elif len(rest := rest + block) > _LONGEST_LINE:
            yield rest, False
            rest = b""
    yield rest, True
