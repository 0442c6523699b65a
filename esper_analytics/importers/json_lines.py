"""JSON lines, read strictly where they are strict and tolerantly where trainers are not."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

import orjson


class NoJson(ValueError):
    """A line is no JSON text."""


def decode(line: bytes) -> Any:
    """The value of one line. The tokens NaN, Infinity and -Infinity, which are no JSON, are read as such.

    A whole number beyond 64 bits is read as a float. Raises NoJson.
    """
    try:
        return orjson.loads(line)
    except orjson.JSONDecodeError:
        pass
    try:
        text = line.decode()
        value = json.loads(text)
        if "\\ud" in text.lower():
            json.dumps(value, ensure_ascii=False).encode()  # half of a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise NoJson(str(error)) from error
    return value


def as_text(line: bytes) -> str:
    """A line as text; bytes that are no UTF-8 are written as `\\xff`."""
    return line.decode(errors="backslashreplace")


def whole_lines(blocks: Iterable[bytes]) -> Iterator[tuple[bytes, bool]]:
    """Blocks that end at the end of a line, and whether it is the end of the source, where the newline may lack."""
    rest = b""
    for block in blocks:
        end = block.rfind(b"\n") + 1
        if end:
            yield rest + block[:end], False
            rest = block[end:]
        else:
            rest += block
    yield rest, True
