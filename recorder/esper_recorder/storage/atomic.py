"""Write a file whole or not at all: every file of ours that replaces another, or that a reader may meet, goes this way.

Covers:
* An exception, Ctrl-C, a full disk or a killed process leaves the previous file (or none) under the final name.
* A durable file survives the loss of power once the block has ended: it is fsynced before the rename, its folder after.
* The temporary file is created exclusively: a link that lies under its name is removed, never followed.

Does not cover:
* Two processes that write one path: the last rename wins.
* The temporary file of a process that was killed. In a run's folder `esper recover` removes it.
* A folder that was just made: its entry in its parent is for whoever made it to fsync.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO


@contextlib.contextmanager
def atomic_file(path: Path, *, durable: bool = False) -> Iterator[BinaryIO]:
    """Open a file beside `path` for writing; it takes the place of `path` if the block ends without an exception.

    Args:
        path: the file to create or replace; its folder exists.
        durable: fsync the file and its folder, so that the result survives the loss of power.
    """
    temporary = temporary_path(path, os.getpid())
    try:
        with os.fdopen(_create(temporary), "wb") as file:
            yield file
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_folder(path.parent)


def temporary_path(path: Path, pid: int) -> Path:
    """Return the file that a process writes before it takes the place of `path`; a killed one leaves it behind."""
    return path.with_name(f".{path.name}.{pid}.tmp")


def sync_folder(folder: Path) -> None:
    """Make the entries of a folder durable: a rename is not until its folder is."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def make_folders(path: Path) -> None:
    """Make a folder and those above it that are missing, each durable in its parent; it may exist. Raises OSError."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in missing:
        sync_folder(folder.parent)


def check_writable(path: Path) -> None:
    """Raise OSError if no file can be made beside `path`, so that a command fails before its work and not after it."""
    with tempfile.TemporaryFile(dir=path.resolve().parent):
        pass


def _create(path: Path) -> int:
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except FileExistsError:  # left by a killed process that had this process's number
        path.unlink()
        return os.open(path, flags, 0o666)
