"""The profiler's traces in a run's folder: where they are, for who lists them."""

from __future__ import annotations

from pathlib import Path
from typing import Final

TRACES_FOLDER: Final = "traces"


def traces_of(folder: str | Path) -> list[str]:
    """The traces in a run's folder, as paths within it, by name; none where it has none or cannot be read."""
    try:
        names = sorted(path.name for path in (Path(folder) / TRACES_FOLDER).iterdir() if not path.name.startswith("."))
    except OSError:
        return []
    return [f"{TRACES_FOLDER}/{name}" for name in names if name.endswith((".json", ".json.gz"))]
