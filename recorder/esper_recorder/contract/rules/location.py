"""Where in which file of rules a mistake is, and the checks that name the place."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from esper_recorder.contract.rules.model import RuleError
from esper_recorder.contract.suggest import closest, did_you_mean, suggest


class Place:
    """Where in which file we are, for errors."""

    def __init__(self, file: str, rule: str = "", path: str = "") -> None:
        self.file, self.rule, self.path = file, rule, path

    def at(self, key: str) -> Place:
        return Place(self.file, self.rule, f"{self.path}.{key}" if self.path else key)

    def error(self, message: str) -> RuleError:
        where = self.file + (f", rule {self.rule}" if self.rule else "") + (f", {self.path}" if self.path else "")
        return RuleError(f"{where}: {message}")

    def known(self, table: Any, allowed: Iterable[str]) -> dict[str, Any]:
        """The table, if it is one and has no other keys."""
        allowed = tuple(allowed)
        if not isinstance(table, dict):
            raise self.error(f"must be a table of {', '.join(allowed)}, not {table!r}")
        for key in table:
            if key not in allowed:
                raise self.error(f"unknown key {key!r}. {suggest(key, allowed, kind='keys allowed here')}")
        return table

    def number(self, value: Any) -> float:
        if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
            raise self.error(f"must be a number, not {shown(value)}")
        try:
            return float(value)
        except OverflowError:
            raise self.error("is too large a number") from None

    def count(self, value: Any, least: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise self.error(f"must be a whole number of at least {least}, not {shown(value)}")
        return value

    def switch(self, value: Any) -> bool:
        if not isinstance(value, bool):
            raise self.error(f"must be true or false, not {shown(value)}")
        return value

    def word(self, value: Any, allowed: Iterable[str]) -> str:
        allowed = tuple(allowed)
        if value not in allowed:
            hint = f". {did_you_mean(similar)}" if (similar := closest(value, allowed)) else ""
            raise self.error(f"must be one of {', '.join(allowed)}, not {shown(value)}{hint}")
        return str(value)


def shown(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else repr(value)
