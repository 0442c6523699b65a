"""Writing files whole or not at all: an error, a full disk or Ctrl-C leaves what was there before."""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path


def check_place(path: Path) -> None:
    """Raises OSError where no file can be made beside the path: told before the work, not after it."""
    with tempfile.TemporaryFile(dir=path.resolve().parent):
        pass


@contextlib.contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """Write to the path that this gives, which has the same ending; it takes the file's place at the end."""
    temporary = path.with_name(f".{path.stem}.{os.getpid()}.tmp{path.suffix}")
    try:
        yield temporary
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
