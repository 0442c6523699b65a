"""The row files of run folders, listed again only if a folder has changed, and the footers of their parts, read once.

Files appear and vanish by name in a run's folder, so the folder's time shows whether there is anything new to find. It
is trusted only if it was old when the folder was listed: a change within the clock's last tick would not show. A run
with a journal is listed each time, for its rows grow inside the file.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from esper_analytics.catalog.discovery import RunEntry
from esper_analytics.catalog.footers import Footer, read_footer
from esper_analytics.errors import DataError
from esper_recorder.storage.listing import JOURNAL_FOLDER, RowFiles, list_row_files

RETRIES = 20
"""How often files that were compacted since they were listed are listed again."""
_OLD_NS = 2_000_000_000  # two seconds: the coarsest clock of a file system in use (FAT)

_Stamp = tuple[int, int, int]
"""Inode and the times of the last change of its content and of its metadata, in ns: a copy may set the former."""


@dataclass(frozen=True, slots=True)
class _Listing:
    stamps: Mapping[str, _Stamp | None]
    """Folder in the run's ("" for itself) -> its stamp when it was listed."""
    files: RowFiles


class FileCache:
    """Remembers the listings of run folders and the footers of their parts."""

    def __init__(self) -> None:
        self._listings: dict[Path, _Listing] = {}
        self._footers: dict[Path, tuple[tuple[int, int, int, str], Footer]] = {}

    def files(self, run: RunEntry, tables: Iterable[str]) -> tuple[RowFiles, dict[Path, Footer]]:
        """List the row files of a run as they are now, with the footers of the parts of some tables.

        Raises DataError if the folder cannot be listed.
        """
        for remaining in range(RETRIES, -1, -1):
            try:
                files = self._list(run.path, tables)
            except OSError as error:
                raise DataError(f"The run {run.run_id} cannot be read: {error}.") from error
            footers = {path: self._footer(run, path, table) for table in tables for path in files.parts.get(table, ())}
            if not remaining or not any(footer.gone for footer in footers.values()):
                break
        return files, footers

    def _list(self, folder: Path, tables: Iterable[str]) -> RowFiles:
        at = os.fspath(folder)
        listing = self._listings.get(folder)
        if listing is not None and all(
            _stamp(os.path.join(at, name)) == listing.stamps.get(name) for name in ("", JOURNAL_FOLDER, *tables)
        ):
            return listing.files
        began = time.time_ns()
        names = ["", JOURNAL_FOLDER]
        if folder.is_dir():
            names += [entry.name for entry in os.scandir(folder) if entry.is_dir(follow_symlinks=False)]
        stamps = {name: _stamp(os.path.join(at, name)) for name in names}
        files = list_row_files(folder)
        self._listings.pop(folder, None)
        old = all(stamp is None or max(stamp[1:]) < began - _OLD_NS for stamp in stamps.values())
        if old and not files.journals and not files.problems:  # a problem may be fixed inside the file
            self._listings[folder] = _Listing(stamps, files)
        return files

    def _footer(self, run: RunEntry, path: Path, table: str) -> Footer:
        try:
            status = path.lstat()
        except FileNotFoundError:
            return Footer(problem="it is gone", gone=True)
        except OSError as error:
            return Footer(problem=f"it cannot be read ({error.strerror or error})")
        stamp = (status.st_ino, status.st_size, status.st_mtime_ns, run.run_id)
        cached = self._footers.get(path)
        if cached is None or cached[0] != stamp:
            cached = self._footers[path] = (stamp, read_footer(path, table, run.run_id))
        return cached[1]


def _stamp(folder: str) -> _Stamp | None:
    try:
        status = os.stat(folder)
    except OSError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_ctime_ns
