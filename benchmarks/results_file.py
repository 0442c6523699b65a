"""Writes a benchmark's result, with the machine and the versions it was measured on."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results"
TRACKERS_PYTHON = Path(__file__).parents[1] / ".venv-trackers" / "bin" / "python"
"""The interpreter of the environment that `make trackers` creates."""
_PACKAGES = ("esper-recorder", "torch", "stable-baselines3", "gymnasium", "pyarrow", "duckdb", "polars", "numpy")


def write_result(name: str, settings: dict[str, Any], rows: list[dict[str, Any]], *, gpu: str = "none") -> Path:
    """Write `results/<name>.json`: machine (with the GPU that was used), versions, date, settings and rows."""
    result = {
        "benchmark": name,
        "date": datetime.now(UTC).strftime("%Y-%m-%d"),
        "machine": {"processor": _processor(), "cores": os.cpu_count(), "system": platform.platform(), "gpu": gpu},
        "versions": {"python": platform.python_version()}
        | {package: importlib.metadata.version(package) for package in _PACKAGES},
        "settings": settings,
        "rows": rows,
    }
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(result, indent=1) + "\n")
    return path


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "unknown")
