"""Open and list the files of a run's folder without leaving it: no link is followed, and nothing but files is read.

A run may come from a stranger. A link in it, named like a file of ours, would make maintenance overwrite or delete its
target, and a query read it; a FIFO would keep a reader waiting for ever.

Covers: links (symbolic ones), FIFOs, sockets and devices, under every name in a run's folder and in the folders in it.

Does not cover:
* Links above the run's folder, and the path of a run that the user passes: those are the user's own.
* Hard links, which are files like others; a process that replaces a folder by a link while it is being read.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path

_KINDS = (
    (stat.S_ISLNK, "a link, which is not followed"),
    (stat.S_ISDIR, "a folder, not a file"),
    (stat.S_ISFIFO, "a FIFO, not a file"),
    (stat.S_ISSOCK, "a socket, not a file"),
)


class NotRegularError(OSError):
    """A path is a link or a special file, so it is not opened; the message says which."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(f"{path} is {what}")
        self.path = path
        self.what = what


class TooLargeError(OSError):
    """A file is larger than it may be, so it is not read; the message says how large."""


def is_regular(path: Path) -> bool:
    """Return whether a path is a regular file; a link is not."""
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except OSError:
        return False


def open_regular(path: Path, flags: int = os.O_RDONLY) -> int:
    """Open a regular file and return its descriptor; never wait for one that is something else.

    Raises:
        NotRegularError: it is a link, a special file or a folder.
        OSError: it does not exist, or cannot be opened.
    """
    try:
        _check(path, path.lstat().st_mode)  # opening a device may have effects
    except FileNotFoundError:
        if not flags & os.O_CREAT:
            raise
    try:
        descriptor = os.open(path, flags | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, 0o666)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise NotRegularError(path, _KINDS[0][1]) from error
        raise
    try:
        _check(path, os.fstat(descriptor).st_mode)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def read_regular(path: Path, most_bytes: int | None = None) -> bytes:
    """Read a regular file.

    Raises:
        TooLargeError: it has more than `most_bytes`.
        NotRegularError, OSError: as `open_regular`.
    """
    with os.fdopen(open_regular(path), "rb") as file:
        if most_bytes is None:
            return file.read()
        data = file.read(most_bytes + 1)
        if len(data) > most_bytes:
            size = max(os.fstat(file.fileno()).st_size, len(data))
            raise TooLargeError(f"{path} has {size:,} bytes, and at most {most_bytes:,} are read")
        return data


def check_folder(folder: Path) -> None:
    """Raise NotRegularError if a folder within a run is a link or no folder; one that does not exist yet is fine."""
    try:
        mode = folder.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISDIR(mode):
        raise NotRegularError(folder, "a link, which is not followed" if stat.S_ISLNK(mode) else "not a folder")


def make_folder(folder: Path) -> None:
    """Make a folder within a run if it does not exist.

    Raises:
        NotRegularError: it is a link, or no folder.
        OSError: it cannot be made.
    """
    check_folder(folder)
    folder.mkdir(exist_ok=True)


def files_in(run: Path, folder: str = "") -> list[Path]:
    """List the regular files of a run's folder, or of a folder in it; none if it does not exist or is a link."""
    return [Path(entry.path) for entry in _entries(run, folder) if entry.is_file(follow_symlinks=False)]


def folders_in(run: Path) -> list[Path]:
    """List the folders of a run's folder, links left out; none if it does not exist."""
    return [Path(entry.path) for entry in _entries(run) if entry.is_dir(follow_symlinks=False)]


def irregular_in(run: Path) -> Iterator[tuple[Path, str]]:
    """The links and special files in a run's folder and in the folders in it, each with what it is."""
    for folder in ("", *(path.name for path in folders_in(run))):
        for entry in _entries(run, folder):
            if not entry.is_dir(follow_symlinks=False) and not entry.is_file(follow_symlinks=False):
                try:
                    yield Path(entry.path), _kind(entry.stat(follow_symlinks=False).st_mode)
                except FileNotFoundError:
                    continue  # renamed or deleted since it was listed


def _entries(run: Path, folder: str = "") -> list[os.DirEntry[str]]:
    path = run / folder
    if folder and path.is_symlink():
        return []
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except (FileNotFoundError, NotADirectoryError):
        return []


def _check(path: Path, mode: int) -> None:
    if not stat.S_ISREG(mode):
        raise NotRegularError(path, _kind(mode))


def _kind(mode: int) -> str:
    return next((what for is_kind, what in _KINDS if is_kind(mode)), "a device, not a file")
