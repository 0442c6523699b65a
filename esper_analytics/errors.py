"""The errors that a user can act on, and the exit code of the command for each.

    EsperError
    ├── UsageError          2   invalid arguments
    │   ├── UnknownRunError     no run of that name
    │   ├── UnknownTableError   no table of that name
    │   └── QueryError          SQL that cannot be run, or asks for more than it may
    └── DataError           3   the data is damaged or incomplete, or nothing could be read

A message says what was asked, what there is, and what to do.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from enum import IntEnum
from pathlib import Path
from typing import Final

TIMEOUT: Final = "The query was stopped after {:g} s. Select less, or allow more time (timeout)."
"""The message for a query that took too long."""

NOT_UTF8: Final = "is not UTF-8, so that Arrow, DuckDB and Polars cannot open it: rename it"
"""The message for a path, to follow what it is."""


class ExitCode(IntEnum):
    """Exit codes of the command `esper`."""

    DONE = 0
    FOUND = 1
    """`--fail-on` was met."""
    USAGE = 2
    DATA = 3
    INTERRUPTED = 130


class EsperError(Exception):
    """A mistake, or a state of the data, that a user can act on."""

    exit_code = ExitCode.DATA


class UsageError(EsperError):
    """Invalid arguments: an unknown name, a path that does not exist, a value of the wrong kind."""

    exit_code = ExitCode.USAGE


class UnknownRunError(UsageError):
    """There is no run of this name."""


class UnknownTableError(UsageError):
    """There is no table of this name."""


class QueryError(UsageError):
    """SQL that cannot be run: it is wrong, not a SELECT, reads outside of RUNS, or exceeds its limits."""


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
