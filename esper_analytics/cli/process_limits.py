"""The memory limits of the command's process, for what DuckDB and Polars do not bound.

Covers: a step of a query that outgrows DuckDB's limit, such as `list_sum(range(2000000000))`; printing a result.
Does not cover: a process that imports the library (its limits are not ours to lower); systems without `/proc`.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path

SLACK = 2 * 2**30
"""For what is not data: stacks, arenas, and libraries loaded meanwhile."""
_PRINTING = 8 * 2**30  # printing a result takes more than computing it

is_own_process = False
"""The process was started as the command `esper`, by `main`."""


@contextlib.contextmanager
def bounded_memory(memory: str) -> Iterator[None]:
    """Bound the address space of the command's process: in the block it may grow by `memory` and some slack.

    After the block it may have 8 GiB, or twice `memory` if that is more, to print the result. A lower limit that the
    process was started with stays.
    """
    from esper_analytics.sql.confined import size_in_bytes

    size = size_in_bytes(memory)
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):
        size = None
    if not (is_own_process and size):
        yield
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)

    def limit(size: int) -> None:
        lower = size if soft == resource.RLIM_INFINITY else min(size, soft)
        resource.setrlimit(resource.RLIMIT_AS, (lower, hard))

    limit(pages * resource.getpagesize() + size + SLACK)
    try:
        yield
    finally:
        limit(max(_PRINTING, 2 * size))
