"""The limits of a query's process, which hold whatever it does: time, and the memory that DuckDB does not bound.

The commands `esper sql` and `query` compute in a child process. The kernel ends it at its limit of time, and the
command says so. No thread could do that: DuckDB keeps Python's interpreter locked while it parses, and some of its
steps end neither on an interrupt nor soon.

Covers:
* listing, parsing, binding, running and converting: in seconds that pass, and `GRACE_S` for DuckDB to stop by itself;
* printing or saving the answer: what is left of the time, in seconds of CPU, since a reader such as `less` may wait;
* a step of a query that outgrows DuckDB's limit of memory, such as `list_sum(range(2000000000))`; printing a result.

Does not cover: a process that imports the library (not ours to limit or to end); opening RUNS, before the query; memory
on systems without `/proc`.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import typer

from esper_analytics.errors import TIMEOUT, QueryError
from esper_recorder.storage.atomic import temporary_path

GRACE_S = 1.0
"""How long the process may take beyond the limit of time: to stop by itself, or to write an answer that came late."""
SLACK = 2 * 2**30
"""For what is not data: stacks, arenas, and libraries loaded meanwhile."""
_PRINTING = 8 * 2**30  # printing a result takes more than computing it
_MOST_SECONDS = 1e9  # a timer takes no infinity

is_own_process = False
"""The process was started as the command `esper`, by `main`."""


def continue_in_child(timeout_s: float, output: Path | None) -> None:
    """Return in a child of the command's process; the command itself waits for it, and ends as the child ends.

    Call it before a library with threads is loaded: a fork keeps only one thread.

    Args:
        timeout_s: the limit of time, for the message.
        output: the file that the child writes; if the child is ended, nothing of it stays.
    """
    if not is_own_process:
        return
    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    signal.pthread_sigmask(signal.SIG_BLOCK, numbers)  # until both processes are ready for them
    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the terminal interrupts both, and the command ends the child
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        return
    for number in numbers:
        if signal.getsignal(number) == signal.SIG_DFL:  # not under nohup
            signal.signal(number, lambda number, _: sys.exit(128 + number))
    try:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, numbers)
        _, status = os.waitpid(child, 0)
    except BaseException:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):  # it has just ended
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        raise
    finally:
        if output is not None:
            with contextlib.suppress(OSError):
                temporary_path(output, child).unlink(missing_ok=True)
    _end_like(os.waitstatus_to_exitcode(status), timeout_s)


@contextlib.contextmanager
def limited(timeout_s: float, memory: str) -> Iterator[None]:
    """Bound the time and the address space of the command's process, in the block and afterwards.

    In the block it may take `timeout_s` and `GRACE_S`, and grow by `memory` and some slack. Afterwards it has the rest
    of the time in seconds of CPU, and 8 GiB, or twice `memory` if that is more, to write the result. A lower limit of
    memory that the process was started with stays.
    """
    if not is_own_process:
        yield
        return
    began = time.monotonic()
    for number in (signal.SIGALRM, signal.SIGPROF):
        signal.signal(number, signal.SIG_DFL)  # which ends the process
    signal.setitimer(signal.ITIMER_REAL, min(_MOST_SECONDS, timeout_s + GRACE_S))
    try:
        with bounded_memory(memory):
            yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        rest = timeout_s - (time.monotonic() - began)
        signal.setitimer(signal.ITIMER_PROF, min(_MOST_SECONDS, max(0, rest) + GRACE_S))


@contextlib.contextmanager
def bounded_memory(memory: str) -> Iterator[None]:
    """Bound the address space of this process: to what it has, `memory` and some slack; more after the block."""
    from esper_analytics.sql.confined import size_in_bytes

    size = size_in_bytes(memory)
    try:
        import resource

        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    except (ImportError, OSError):
        size = None
    if not size:
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


def _end_like(code: int, timeout_s: float) -> NoReturn:
    """End the command as its child ended: with its exit code, or with a message for the signal that ended it."""
    if code >= 0:
        raise typer.Exit(code)
    if -code == signal.SIGALRM:
        raise QueryError(TIMEOUT.format(timeout_s))
    if -code == signal.SIGPROF:
        raise QueryError(
            f"Writing the answer was stopped, since with the query it takes more than {timeout_s:g} s: what was "
            "printed is not all of it. Select less, or allow more time (timeout)."
        )
    raise QueryError(
        f"The query's process was ended by {signal.Signals(-code).name}, perhaps for want of memory. Select less."
    )
