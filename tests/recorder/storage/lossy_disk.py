"""What a folder holds after power is lost at any moment, on a disk that keeps only what was fsynced.

A file has the content of its last fsync, and a folder the entries of its last fsync. Deletions reach the disk at once:
the order that costs a program most which relies on a copy that it did not fsync.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


class LossyDisk:
    """Follows what is durable below a folder, and calls `check` after each fsync and each deletion."""

    def __init__(self, root: Path, check: Callable[[LossyDisk], None]) -> None:
        self.root = root
        self.check = check
        self._contents: dict[int, bytes] = {}
        self._entries: dict[int, dict[str, tuple[int, bool]]] = {root.stat().st_ino: {}}
        self._fsync, self._unlink = os.fsync, os.unlink

    def fsync(self, descriptor: int) -> None:
        """Stands in for `os.fsync`."""
        self._fsync(descriptor)
        path = Path(os.readlink(f"/proc/self/fd/{descriptor}"))
        if path != self.root and self.root not in path.parents:
            return
        inode = os.fstat(descriptor).st_ino
        if path.is_dir():
            self._entries[inode] = {e.name: (e.inode(), e.is_dir()) for e in os.scandir(path)}
        else:
            self._contents[inode] = path.read_bytes()
        self.check(self)

    def unlink(self, path: str | Path, **options: int) -> None:
        """Stands in for `os.unlink`."""
        path = Path(path)
        inside = self.root in path.parents
        inode = os.lstat(path).st_ino if inside else 0
        self._unlink(path, **options)
        if inside:
            self._entries.get(os.stat(path.parent).st_ino, {}).pop(path.name, None)
            self._contents.pop(inode, None)  # the number may be given to another file
            self.check(self)

    def write_survivors(self, target: Path) -> None:
        """Write what is left after power is lost now."""
        self._copy(self.root.stat().st_ino, target)

    def _copy(self, inode: int, target: Path) -> None:
        target.mkdir()
        for name, (child, is_folder) in self._entries.get(inode, {}).items():
            if is_folder:
                self._copy(child, target / name)
            else:
                (target / name).write_bytes(self._contents.get(child, b""))
