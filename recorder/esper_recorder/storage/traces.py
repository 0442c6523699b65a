"""The profiler's traces in a run's folder."""

from __future__ import annotations

from pathlib import Path
from typing import Final

from esper_recorder.storage.safe_files import files_in

TRACES_FOLDER: Final = "traces"


def traces_of(folder: str | Path) -> list[str]:
    """List the traces of a run as sorted paths within its folder; empty if it has none or cannot be read."""
    try:
        names = sorted(path.name for path in files_in(Path(folder), TRACES_FOLDER) if not path.name.startswith("."))
    except OSError:
        return []
    return [f"{TRACES_FOLDER}/{name}" for name in names if name.endswith((".json", ".json.gz"))]
