"""Anything at all as what JSON and Arrow can hold: a trainer's config, the message of an error.

Covers: values that are nested deeply, contain themselves, have methods that raise, are changed by another thread
meanwhile, or are huge; texts that are not Unicode, such as a file name that is not UTF-8. Each costs itself alone.
Does not cover: methods that never return.
"""

from __future__ import annotations

import itertools
import reprlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esper_recorder.storage.json_files import is_text

MOST_VALUES = 100_000
MOST_CHARACTERS = 1_000_000
LONGEST_TEXT = 100_000
DEEPEST = 32
_LONGEST_NUMBER = 64  # bits
_ERROR_LENGTH = 500
_TRIES = 3


def to_jsonable(value: Any, *, texts: list[str] | None = None, limited: bool = True) -> Any:
    """Convert any value to one that JSON can hold; what it cannot hold (NaN included) becomes its text. Never raises.

    Args:
        texts: receives where in the value (`optimizer.betas[1]`) something became a text, was cut short or left out.
        limited: cut what exceeds `MOST_VALUES`, `MOST_CHARACTERS`, `LONGEST_TEXT` or `DEEPEST`.
    """
    return _Conversion([] if texts is None else texts, limited).convert(value, "", 0)


def encodable(text: str) -> str:
    """Return a text that UTF-8 can encode: surrogates, of which Python makes file names, are escaped."""
    return text if text.isascii() or is_text(text) else text.encode(errors="backslashreplace").decode()


def describe_error(error: BaseException, longest: int = _ERROR_LENGTH) -> str:
    """Return an error's type and message as encodable text, not longer than a page: it may contain a whole tensor."""
    try:
        message = str(error)
    except Exception as further:
        message = f"its message cannot be made: {type(further).__name__}"
    kind = type(error).__name__
    return encodable(f"{kind}: {message}" if message else kind)[:longest]


class _Conversion:
    """One conversion and what it may still store."""

    def __init__(self, texts: list[str], limited: bool) -> None:
        self._texts = texts
        self._limited = limited
        self._values, self._characters = MOST_VALUES, MOST_CHARACTERS
        self._within: list[int] = []  # ids of the containers around the value

    def convert(self, value: Any, key: str, depth: int) -> Any:
        """Convert one value, at `key` in the whole."""
        self._values -= 1
        try:
            return self._exactly(value, key, depth)
        except Exception:  # of the value's own methods
            return self._as_text(value, key)

    def _exactly(self, value: Any, key: str, depth: int) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, str):
            return self._text(str.__str__(value), key)
        if isinstance(value, int):
            return int(value) if value.bit_length() <= _LONGEST_NUMBER else self._noted(hex(value), key)
        if isinstance(value, float):
            return float(value) if value - value == 0 else self._noted(repr(float(value)), key)
        if isinstance(value, datetime):
            return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        if isinstance(value, Path):
            return self._text(str(value), key)
        if self._limited and depth >= DEEPEST:
            return self._as_text(value, key)
        if id(value) in self._within:
            return self._noted("... (it contains itself)", key)
        self._within.append(id(value))
        try:
            return self._container(value, key, depth)
        finally:
            self._within.pop()

    def _container(self, value: Any, key: str, depth: int) -> Any:
        if isinstance(value, Mapping):
            return self._mapping(self._taken(value.items, len(value), key), key, depth)
        if isinstance(value, list | tuple):
            items = self._taken(lambda: value, len(value), key)
            return [self.convert(item, f"{key}[{i}]", depth + 1) for i, item in enumerate(self._within_limits(items))]
        if isinstance(value, set | frozenset):
            items = self._taken(lambda: value, len(value), key)
            return sorted((self.convert(item, f"{key}[]", depth + 1) for item in self._within_limits(items)), key=str)
        if callable(getattr(value, "model_dump", None)) and not isinstance(value, type):  # pydantic's
            return self.convert(value.model_dump(mode="json"), key, depth + 1)
        if is_dataclass(value) and not isinstance(value, type):
            return self._mapping([(f.name, getattr(value, f.name, None)) for f in fields(value)], key, depth)
        return self._as_text(value, key)

    def _mapping(self, items: Iterable[tuple[Any, Any]], key: str, depth: int) -> dict[str, Any]:
        converted = {}
        for name, item in self._within_limits(items):
            text = self._name(name)
            converted[text] = self.convert(item, f"{key}.{text}" if key else text, depth + 1)
        return converted

    def _taken(self, items: Callable[[], Iterable[Any]], count: int, key: str) -> list[Any]:
        """Copy the items of a container at once, as another thread may change it; no more than there is space for."""
        most = max(self._values, 0) if self._limited else count
        if count > most:
            self._note(f"{key} (all but {most} of {count})")
        for _ in range(_TRIES - 1):
            try:
                return list(itertools.islice(items(), most))
            except RuntimeError:  # it changed while it was read
                continue
        return list(itertools.islice(items(), most))

    def _within_limits(self, items: Iterable[Any]) -> Iterator[Any]:
        for item in items:
            if self._limited and (self._values <= 0 or self._characters <= 0):
                return
            yield item

    def _name(self, name: Any) -> str:
        if not isinstance(name, str):
            try:
                name = str(name)
            except Exception:
                name = f"<{type(name).__name__}>"
        return self._cut(encodable(str.__str__(name)))

    def _text(self, text: str, key: str) -> str:
        stored = self._cut(encodable(text))
        return stored if stored == text else self._noted(stored, key)

    def _as_text(self, value: Any, key: str) -> str:
        """A value's `repr`, cut short."""
        try:
            # Not the repr of whole containers: those may be as deep, large or broken as what is in them.
            shown = reprlib.repr(value) if isinstance(value, Mapping | list | tuple | set | frozenset) else repr(value)
        except Exception as error:
            shown = f"<{type(value).__name__}, whose repr raises {type(error).__name__}>"
        return self._noted(self._cut(encodable(str.__str__(shown))), key)

    def _cut(self, text: str) -> str:
        if not self._limited:
            return text
        most = max(min(LONGEST_TEXT, self._characters), 0)
        self._characters -= min(len(text), most)
        return text if len(text) <= most else f"{text[: max(most - 40, 0)]}... ({len(text)} characters)"

    def _noted(self, text: str, key: str) -> str:
        self._note(key)
        return text

    def _note(self, key: str) -> None:
        self._texts.append(encodable(key) or "the whole of it")
