"""Rule sets: the shipped profiles, the files of users, and both with other values."""

from __future__ import annotations

import errno
import functools
import hashlib
from bisect import bisect_right
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

from esper_recorder.contract.rules import overrides, parser
from esper_recorder.contract.rules.model import Rule, RuleError, Severity
from esper_recorder.contract.rules.parser import RulesFile
from esper_recorder.contract.rules.signal import BACKFILLED, UPDATE_TABLE, Take
from esper_recorder.contract.rules.toml_writer import to_toml
from esper_recorder.contract.suggest import suggest

MOST_BYTES = 4 * 2**20
"""Size of the largest file of rules that is read."""

__all__ = ["Rule", "RuleError", "RuleSet", "Severity", "load_file", "load_profile", "profiles"]

_NOT_THE_FILES_FAULT = (errno.EMFILE, errno.ENFILE, errno.ENOMEM)


@dataclass(frozen=True, kw_only=True)
class RuleSet(RulesFile):
    """The rules of one file, with the text they were parsed from.

    Attributes:
        name: the profile's or the file's name.
        text: TOML that parses to this very rule set; what `sha256` is of.
        overrides: the values that `with_values` replaced, by `RULE.FIELD`.
    """

    name: str
    text: str
    overrides: Mapping[str, float | bool | str] = field(default_factory=dict)

    @staticmethod
    def parse(text: str, name: str = "rules") -> RuleSet:
        """Parse rules from TOML. Raises RuleError naming `name`, the rule, the key and what is allowed."""
        return RuleSet(**vars(parser.parse_text(text, name)), name=name, text=text)

    @functools.cached_property
    def sha256(self) -> str:
        """Hexadecimal SHA-256 of the text in UTF-8."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @functools.cached_property
    def tables(self) -> dict[str, frozenset[str]]:
        """Table -> the columns the rules read from it. Always includes `ppo_updates`."""
        needed: dict[str, frozenset[str]] = {UPDATE_TABLE: frozenset({"progress"})}
        for rule in self.rules:
            for signal in rule.signals:
                needed[signal.table] = needed.get(signal.table, frozenset()) | signal.columns
        if "minibatches" in needed:
            needed["minibatches"] |= {BACKFILLED}
        return needed

    @functools.cached_property
    def read_at_ends(self) -> frozenset[str]:
        """The tables of which the rules read no row of an update but the first and the last, in recorded order."""
        signals = [signal for rule in self.rules for signal in rule.signals]
        inner = {s.table for s in signals if s.take not in (Take.FIRST, Take.LAST) or s.key or s.where or s.min_n}
        return frozenset(self.tables) - inner - {UPDATE_TABLE}

    def phase(self, progress: float | None) -> str | None:
        """Return the phase at a progress; None if there are no phases or the progress is unknown."""
        if progress is None or not progress >= 0.0 or not self.phases:
            return None
        return self.phases[bisect_right(self.phases, progress, key=lambda phase: phase[1]) - 1][0]

    def with_values(self, values: Mapping[str, float | bool | str]) -> RuleSet:
        """Return the same rules with other values, by `RULE.FIELD`: `{"ratio_explosion.above": 3.0}`.

        A threshold per phase, per key or relative to a column is replaced as a whole by a number
        (`value_collapse.below`), or in part (`value_collapse.below.phase.warmup`); alternatives and gates are counted
        from 1 (`value_collapse.any_of.2.above`).

        Raises RuleError: an unknown rule or field, or a value of the wrong kind.
        """
        if not values:
            return self
        data, changes = overrides.apply(self.text, values, self.name)
        content = vars(parser.parse_data(data, self.name))
        return RuleSet(**content, name=self.name, text=to_toml(data), overrides={**self.overrides, **changes})


def profiles() -> tuple[str, ...]:
    """Return the names of the shipped rule sets, in alphabetical order."""
    return tuple(sorted(path.name[:-5] for path in _shipped().iterdir() if path.name.endswith(".toml")))


def load_profile(name: str) -> RuleSet:
    """Load a shipped rule set. Raises RuleError for an unknown name."""
    if name not in profiles():
        raise RuleError(f"there is no rule profile {name!r}. {suggest(name, profiles(), kind='profiles')}")
    return RuleSet.parse((_shipped() / f"{name}.toml").read_text(encoding="utf-8"), name)


def load_file(path: str | Path) -> RuleSet:
    """Load rules from a TOML file. Raises RuleError, or OSError if the system can open no file now."""
    path = Path(path)
    try:
        with path.open("rb") as file:
            data = file.read(MOST_BYTES + 1)
        if len(data) > MOST_BYTES:
            raise RuleError(f"{path} is not a file of rules: it has more than {MOST_BYTES:,} bytes")
        text = data.decode()
    except FileNotFoundError:
        raise RuleError(f"there is no file {path}") from None
    except UnicodeDecodeError:
        raise RuleError(f"{path} is not TOML: it is not UTF-8 text") from None
    except OSError as error:
        if error.errno in _NOT_THE_FILES_FAULT:
            raise
        raise RuleError(f"{path} cannot be read: {error.strerror or error}") from None
    return RuleSet.parse(text, path.name)


def load_rules(rules: str | Path) -> RuleSet:
    """Load a shipped profile by name, or a file by its path or a name ending in `.toml`. Raises RuleError."""
    if isinstance(rules, Path) or rules.endswith(".toml"):
        return load_file(rules)
    return load_profile(rules)


def _shipped() -> Any:
    return resources.files("esper_recorder.contract.rules") / "profiles"
