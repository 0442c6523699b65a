"""What can go wrong for a person, and the exit code each ends the command with.

    EsperError
    ├── UsageError          2   the words of the call are off
    │   ├── UnknownRunError     no run of that name
    │   ├── UnknownTableError   no table of that name
    │   └── QueryError          SQL that cannot be run, or asks for more than it may
    └── DataError           3   the data is damaged or incomplete, or nothing could be read

A message is one or two sentences: what was asked, what there is, what to do.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from enum import IntEnum


class ExitCode(IntEnum):
    """What the command `esper` returns to its shell."""

    DONE = 0
    FOUND = 1
    """`--fail-on` was met."""
    USAGE = 2
    DATA = 3
    INTERRUPTED = 130


class EsperError(Exception):
    """A mistake or a state of the data that a person can do something about."""

    exit_code = ExitCode.DATA


class UsageError(EsperError):
    """The words of the call are off: an unknown name, a path that is not there, a value that does not fit."""

    exit_code = ExitCode.USAGE


class UnknownRunError(UsageError):
    """No run has this run_id."""


class UnknownTableError(UsageError):
    """No table has this name."""


class QueryError(UsageError):
    """SQL that cannot be run: wrong, not a question, outside of RUNS, or beyond its limits."""


class DataError(EsperError):
    """The data is damaged or incomplete, or nothing could be read."""


def near(word: str, names: Iterable[str], *, at_most: int = 3) -> list[str]:
    """The names a person who wrote `word` may have meant, the likeliest first."""
    by_lower = {name.lower(): name for name in names}
    asked = word.lower()
    close = difflib.get_close_matches(asked, by_lower, n=at_most, cutoff=0.6)
    close += [name for name in by_lower if asked and (name.startswith(asked) or asked in name) and name not in close]
    return [by_lower[name] for name in close[:at_most]]


def did_you_mean(word: str, names: Iterable[str], *, kind: str) -> str:
    """A sentence with the near-by names, or with all of them where none is near.

    >>> did_you_mean("ratio_mx", ["ratio_max", "update"], kind="columns")
    'Did you mean ratio_max?'
    """
    names = list(names)
    if close := near(word, names):
        return f"Did you mean {_either(close)}?"
    if not names:
        return f"There are no {kind}."
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"The {kind} are: {shown}."


def _either(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
