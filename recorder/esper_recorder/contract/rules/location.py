"""A location in a rules file, and the checks of the values there: every error names file, rule and key."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from esper_recorder.contract.rules.model import RuleError
from esper_recorder.contract.suggest import closest, did_you_mean, suggest

MOST = 1_000_000_000
"""The most updates, or rows, that a rule may count."""


class Location:
    """A location in a rules file. Each check returns the value, converted, or raises RuleError."""

    def __init__(self, file: str, rule: str = "", path: str = "") -> None:
        self.file, self.rule, self.path = file, rule, path

    def at(self, key: str) -> Location:
        """Return the location of a key below."""
        return Location(self.file, self.rule, f"{self.path}.{key}" if self.path else key)

    def error(self, message: str) -> RuleError:
        """Return an error that names the location."""
        rule = f", rule {self.rule[:100]}" if self.rule else ""
        path = f", {self.path[:200]}" if self.path else ""
        return RuleError(f"{self.file}{rule}{path}: {message[:1000]}")

    def table(self, value: Any, allowed: Iterable[str]) -> dict[str, Any]:
        """Check for a table without other keys than those allowed."""
        allowed = tuple(allowed)
        if not isinstance(value, dict):
            raise self.error(f"must be a table of {', '.join(allowed)}, not {as_toml(value)}")
        for key in value:
            if key not in allowed:
                raise self.error(f"unknown key {key!r}. {suggest(key, allowed, kind='keys allowed here')}")
        return value

    def number(self, value: Any) -> float:
        """Check for a number that is not NaN."""
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise self.error(f"must be a number, not {as_toml(value)}")
        try:
            number = float(value)
        except OverflowError:
            raise self.error("is too large a number") from None
        if math.isnan(number):
            raise self.error("must be a number, not nan")
        return number

    def count(self, value: Any, least: int, most: int = MOST) -> int:
        """Check for a whole number from `least` to `most`."""
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise self.error(f"must be a whole number from {least} to {most:,}, not {as_toml(value)}")
        return value

    def boolean(self, value: Any) -> bool:
        """Check for true or false."""
        if not isinstance(value, bool):
            raise self.error(f"must be true or false, not {as_toml(value)}")
        return value

    def text(self, value: Any, meaning: str = "") -> str:
        """Check for text."""
        if not isinstance(value, str):
            raise self.error(f"must be text{meaning and f': {meaning}'}, not {as_toml(value)}")
        return value

    def choice(self, value: Any, allowed: Iterable[str]) -> str:
        """Check for one of a few words."""
        allowed = tuple(allowed)
        if value not in allowed:
            hint = f". {did_you_mean(similar)}" if (similar := closest(value, allowed)) else ""
            raise self.error(f"must be one of {', '.join(allowed)}, not {as_toml(value)}{hint}")
        return str(value)


def as_toml(value: Any) -> str:
    """Write a value as a rules file would, a long one not to its end."""
    text = str(value).lower() if isinstance(value, bool) else repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."
