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

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path


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


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise UsageError if the path lies in a recorded run, or if the block fails to write it."""
    run = next((folder for folder in path.resolve().parents if (folder / "run.json").is_file()), None)
    if run is not None:
        raise UsageError(f"{path} lies in the recorded run {run.name}, which is not written to. Save it elsewhere.")
    try:
        yield
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error
