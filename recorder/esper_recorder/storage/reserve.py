"""Space kept free for the end of a run: on a full disk its last gaps and run.json can still be written.

Covers: a disk or a quota that fills up while the run is recorded, by whatever fills it.
Does not cover: another process that takes the space in the moment in which it is given free; file systems that need
space to delete a file.
"""

from __future__ import annotations

import contextlib
import os
from pathlib import Path

from esper_recorder.storage.safe_files import files_in, open_regular

GAP_BYTES = 32 * 1024
"""For a journal with the last gaps; a gap takes some hundred bytes, and alike ones are merged."""
_LEAST_MANIFEST_BYTES = 32 * 1024
_PREFIX = "reserve."


class Reserve:
    """One process's file in a run's folder, whose space its last writes take."""

    def __init__(self, folder: Path, rank: int) -> None:
        self._path = folder / f"{_PREFIX}{rank}"

    def fill(self, manifest_bytes: int) -> None:
        """Take the space, durably; run.json has that many bytes now, and is replaced by a whole second one.

        Raises OSError.
        """
        size = GAP_BYTES + max(_LEAST_MANIFEST_BYTES, 2 * manifest_bytes)
        descriptor = open_regular(self._path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(os.urandom(size))  # zeros may take no space: file systems compress them
                file.flush()
                os.fsync(file.fileno())
        except BaseException:
            self.release()
            raise

    def make_space_for_gaps(self) -> None:
        """Give free what the last gaps need. Raises OSError."""
        with contextlib.suppress(FileNotFoundError):
            descriptor = open_regular(self._path, os.O_WRONLY)
            try:
                os.ftruncate(descriptor, max(os.fstat(descriptor).st_size - GAP_BYTES, 0))
            finally:
                os.close(descriptor)

    def release(self) -> None:
        """Give all of it free. Raises OSError."""
        self._path.unlink(missing_ok=True)


def remove_reserves(folder: Path) -> None:
    """Remove what processes that were killed have left in a run's folder. Raises OSError."""
    for path in files_in(folder):
        if path.name.startswith(_PREFIX) and path.name.removeprefix(_PREFIX).isdigit():
            path.unlink(missing_ok=True)
