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

from esper_recorder.reading import JOURNAL_FOLDER, RowFiles, list_row_files

_OLD_NS = 2_000_000_000


@dataclass(frozen=True, slots=True)
class _Listing:
    times: Mapping[str, int | None]
    """Name of a folder in the run's ("" for itself) -> when it last changed."""
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
            _changed(os.path.join(at, name)) == known.times.get(name) for name in ("", JOURNAL_FOLDER, *tables)
        ):
            return known.files
        began = time.time_ns()
        names = ["", JOURNAL_FOLDER]
        if folder.is_dir():
            names += [entry.name for entry in os.scandir(folder) if entry.is_dir()]
        times = {name: _changed(os.path.join(at, name)) for name in names}
        files = list_row_files(folder)
        self._known.pop(folder, None)
        if not files.journals and all(changed is None or changed < began - _OLD_NS for changed in times.values()):
            self._known[folder] = _Listing(times, files)
        return files


def _changed(folder: str) -> int | None:
    try:
        return os.stat(folder).st_mtime_ns
    except OSError:
        return None
