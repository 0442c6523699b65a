"""The row files of run folders, looked for again only where a folder has changed.

Files come and go by name in a run's folder, so a folder's own time tells whether there is anything new to find. It is
trusted only where it was old already when the folder was listed: a change within the clock's last tick would not show.
A run with a journal is always looked through, for its rows grow inside the file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from esper_recorder.storage.listing import JOURNAL_FOLDER, RowFiles, list_row_files

_OLD_NS = 2_000_000_000
"""Two seconds: the coarsest clock of a file system in use (FAT)."""

_Stamp = tuple[int, int, int]
"""Inode, and when it was changed last (ns), as files come and go and as anything of it: a copy may set the former."""


@dataclass(frozen=True, slots=True)
class _Listing:
    stamps: Mapping[str, _Stamp | None]
    """Name of a folder in the run's ("" for itself) -> which it was and when it last changed."""
    files: RowFiles


class Listings:
    """Remembers what was found in run folders."""

    def __init__(self) -> None:
        self._known: dict[Path, _Listing] = {}

    def of(self, folder: Path, tables: Iterable[str]) -> RowFiles:
        """The row files of a run's folder as they are now, as far as these tables go."""
        known = self._known.get(folder)
        at = os.fspath(folder)
        if known is not None and all(
            _stamp(os.path.join(at, name)) == known.stamps.get(name) for name in ("", JOURNAL_FOLDER, *tables)
        ):
            return known.files
        began = time.time_ns()
        names = ["", JOURNAL_FOLDER]
        if folder.is_dir():
            names += [entry.name for entry in os.scandir(folder) if entry.is_dir()]
        stamps = {name: _stamp(os.path.join(at, name)) for name in names}
        files = list_row_files(folder)
        self._known.pop(folder, None)
        old = all(stamp is None or max(stamp[1:]) < began - _OLD_NS for stamp in stamps.values())
        if old and not files.journals and not files.problems:  # what is wrong with a file may be mended within it
            self._known[folder] = _Listing(stamps, files)
        return files


def _stamp(folder: str) -> _Stamp | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns
