"""A bound on what a computation may add to the process's memory, whatever its own accounting misses."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Iterator
from pathlib import Path

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_UNITS |= {"KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}
SLACK = 2 * 2**30
"""For what is no data: stacks, arenas and libraries that are loaded meanwhile."""

_lock = threading.Lock()
_users = 0
_before: tuple[int, int] | None = None


def size_of(text: str) -> int | None:
    """An amount of memory in bytes; None for a text that is none.

    >>> size_of("4GB"), size_of("500 MiB"), size_of("lots")
    (4000000000, 524288000, None)
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?i?B)\s*", text, re.IGNORECASE)
    return None if found is None else int(float(found[1]) * _UNITS[found[2].upper()])


@contextlib.contextmanager
def bounded_growth(by: int) -> Iterator[None]:
    """Let the process's address space grow by no more than so many bytes, and some slack, while this is open.

    A limit is only ever lowered, and put back at the end; of several that are open at once the first one's holds until
    the last is closed. Where the system tells no address space or takes no limit, nothing is bounded.
    """
    _enter(by)
    try:
        yield
    finally:
        _leave()


def _enter(by: int) -> None:
    global _users, _before
    with _lock:
        _users += 1
        if _users > 1:
            return
        _before = None
        try:
            import resource

            pages = int(Path("/proc/self/statm").read_text().split()[0])
        except (ImportError, OSError):
            return
        soft, hard = resource.getrlimit(resource.RLIMIT_AS)
        wanted = pages * resource.getpagesize() + by + SLACK
        if soft == resource.RLIM_INFINITY or soft > wanted:
            resource.setrlimit(resource.RLIMIT_AS, (wanted, hard))
            _before = (soft, hard)


def _leave() -> None:
    global _users
    with _lock:
        _users -= 1
        if _users == 0 and _before is not None:
            import resource

            resource.setrlimit(resource.RLIMIT_AS, _before)
