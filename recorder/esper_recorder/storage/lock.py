"""The lock of a run's folder: it separates a run that is being recorded from one whose process was killed.

Covers: the lock is free at once when its process dies; ranks lock side by side; run.json is changed by one rank at a
time; one process at a time recovers or compacts a folder; a forked child neither holds nor drops its parent's lock.

Does not cover: other hosts, for which there is the heartbeat; file systems without locks, where nothing is ever locked.

POSIX drops a process's locks on a file when the process closes any descriptor of that file. So every opening of a lock
file goes through this module, and a file that this process has locked (by its inode) is not opened again.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from esper_recorder.storage.safe_files import open_regular

LOCK_FILE = "lock"
_MANIFEST_BYTE = 1 << 30
"""The byte locked while run.json is changed; those before it are the ranks'."""
_TRIES = 10

_guard = threading.Lock()
_locked: dict[tuple[int, int], int] = {}  # (device, inode) of a lock file -> descriptor


def _forget_in_child() -> None:
    # Locks are not inherited by a forked child, and closing the inherited descriptors leaves the parent's in place.
    global _guard
    _guard = threading.Lock()
    for descriptor in _locked.values():
        os.close(descriptor)
    _locked.clear()


os.register_at_fork(after_in_child=_forget_in_child)


def is_locked(folder: Path) -> bool:
    """Return whether a process on this host is recording to the run's folder."""
    path = folder / LOCK_FILE
    with _guard:
        try:
            if _inode(path) in _locked:
                return True
            descriptor = open_regular(path)
        except OSError:
            return False
        try:
            fcntl.lockf(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except (BlockingIOError, PermissionError):
            return True
        except OSError:
            return False  # a file system without locks: the heartbeat has to do
        finally:
            os.close(descriptor)
    return False


def acquire_lock(folder: Path, rank: int = 0) -> int | None:
    """Take the recording lock of a run's folder: one byte of the file for each rank.

    Returns the descriptor for `release_lock`, or None if another recorder (in this process or another) has the lock.
    Raises OSError if the file cannot be made or locked, or is a link or a special file.
    """
    path = folder / LOCK_FILE
    for attempt in range(_TRIES):
        if attempt:
            time.sleep(0.02)  # a reader that checks for life holds a shared lock for a moment
        with _guard:
            with contextlib.suppress(FileNotFoundError):
                if _inode(path) in _locked:
                    return None
            descriptor = open_regular(path, os.O_RDWR | os.O_CREAT)
            try:
                fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, 1, rank)
            except (BlockingIOError, PermissionError):
                os.close(descriptor)
            except BaseException:
                os.close(descriptor)
                raise
            else:
                _locked[_inode(descriptor)] = descriptor
                return descriptor
    return None


def release_lock(descriptor: int) -> None:
    """Give the recording lock back. Does nothing for a descriptor that is not locked."""
    with _guard:
        for inode, locked in list(_locked.items()):
            if locked == descriptor:
                del _locked[inode]
                os.close(descriptor)


@contextlib.contextmanager
def manifest_lock(descriptor: int) -> Iterator[None]:
    """Keep the other ranks that record to the run from changing run.json meanwhile. Raises OSError."""
    fcntl.lockf(descriptor, fcntl.LOCK_EX, 1, _MANIFEST_BYTE)
    try:
        yield
    finally:
        fcntl.lockf(descriptor, fcntl.LOCK_UN, 1, _MANIFEST_BYTE)


@contextlib.contextmanager
def maintenance_lock(folder: Path) -> Iterator[None]:
    """Keep other maintenance (recovery, compaction) off a run's folder meanwhile; recording continues.

    Raises OSError if another process maintains the folder, or it does not exist.
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
    status = os.fstat(file) if isinstance(file, int) else os.lstat(file)
    return status.st_dev, status.st_ino
