"""The memory limit of the command's process: printing an answer takes more than computing it.

A library must not lower the limits of the process that imports it: nothing happens unless `main` started the process.
"""

from __future__ import annotations

is_own_process = False
"""The process was started as the command `esper`, by `main`."""


def limit_memory(memory: str) -> None:
    """Lower the address space of the command's process to 8 GiB, or twice `memory` if that is more."""
    from esper_analytics.sql.memory_limit import size_of

    if not is_own_process:
        return
    try:
        import resource
    except ImportError:  # not on this platform
        return
    _, hard = resource.getrlimit(resource.RLIMIT_AS)
    limit = max(8 * 2**30, 2 * (size_of(memory) or 0))
    if hard == resource.RLIM_INFINITY or hard > limit:
        resource.setrlimit(resource.RLIMIT_AS, (limit, hard))
