"""The lock of a run's folder, by which a run that is being recorded is told from one that was killed.

It is free at once when its process dies. POSIX drops a process's locks on a file when the process closes any
descriptor of that file, so every opening of a lock file goes through this module: one that this process holds is known
by its inode and is not opened again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

LOCK_FILE = "lock"
_CHANGING = 1 << 30
"""The byte that is held while run.json is changed; those before it are the ranks'."""

_guard = threading.Lock()
_held: dict[tuple[int, int], int] = {}  # (device, inode) of a lock file -> descriptor


def _forget_in_child() -> None:
    # Locks are not inherited by a forked child, and closing the inherited descriptors leaves the parent's in place.
    global _guard
    _guard = threading.Lock()
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def is_locked(folder: Path) -> bool:
    """Whether a process on this host is recording to the run's folder."""
    path = folder / LOCK_FILE
    with _guard:
        try:
            if _inode(path) in _held:
                return True
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError:
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:
            return False  # a file system without locks: the heartbeat has to tell
        finally:
            os.close(descriptor)
    return False


def acquire_lock(folder: Path, rank: int = 0) -> int | None:
    """Take the recording lock of a run's folder: one byte of the file for each rank.

    Returns the descriptor to hand to `release_lock`, or None where another recorder (in this process or another) holds
    it. Raises OSError where the file cannot be made or locked.
    """
    path = folder / LOCK_FILE
    patience = 10
    while True:
        with _guard:
            if path.exists() and _inode(path) in _held:
                return None
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
            except (BlockingIOError, PermissionError):
                os.close(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            else:
                _held[_inode(descriptor)] = descriptor
                return descriptor
        patience -= 1
        if not patience:
            return None
        time.sleep(0.02)  # a reader asking who is live holds a shared lock for a moment


def release_lock(descriptor: int) -> None:
    """Give the recording lock back. Does nothing for a descriptor that is not held."""
    with _guard:
        for inode, held in list(_held.items()):
            if held == descriptor:
                del _held[inode]
                os.close(descriptor)


@contextlib.contextmanager
def changing(descriptor: int) -> Iterator[None]:
    """Keep the other ranks that record to the run from changing run.json meanwhile. Raises OSError."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, _CHANGING)
    try:
        yield
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, _CHANGING)


@contextlib.contextmanager
def maintaining(folder: Path) -> Iterator[None]:
    """Keep other maintenance (recovery, compaction) off a run's folder meanwhile. It keeps nobody from recording.

    Raises OSError where another process maintains the folder, or where it is not there.
    """
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OSError(f"another process recovers or compacts {folder} right now") from None
        except OSError:
            pass  # a file system without locks; two at once would do the same work twice
        yield
    finally:
        os.close(descriptor)


def _inode(file: Path | int) -> tuple[int, int]:
    status = os.stat(file)
    return status.st_dev, status.st_ino
