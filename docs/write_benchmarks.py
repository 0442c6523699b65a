"""Write docs/benchmarks.md from benchmarks/results. `--check` writes nothing and fails where it is out of date."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from generated import cell, write_or_check

PAGE = Path(__file__).with_name("benchmarks.md")
RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

HEAD = """\
# Measurements

Generated from `benchmarks/results/*.json` by `make docs`; do not edit it here. `make bench` measures anew: each script
says in its first lines what it measures and how. Speeds are ratios taken side by side in one run. No result here was
measured on a GPU: `bench_gpu_overhead.py` and the CUDA half of `bench_gradients.py` are ready for one.
"""


def page() -> str:
    """The whole page as Markdown."""
    return "\n".join([HEAD, *(_section(path) for path in sorted(RESULTS.glob("*.json")))])


def _section(path: Path) -> str:
    result = json.loads(path.read_text(encoding="utf-8"))
    machine, versions = result["machine"], result["versions"]
    where = f"{result['date']}, {machine['processor']}, {machine['cores']} cores, GPU {machine['gpu']}"
    with_what = ", ".join(f"{name} {version}" for name, version in versions.items())
    settings = ", ".join(f"{name} {_value(value)}" for name, value in result["settings"].items())
    about = f"{where}. {with_what}.\n\nSettings: {settings}."
    return f"## {result['benchmark']}\n\n{about}\n\n{_tables(result['rows'])}"


def _tables(rows: list[dict[str, Any]]) -> str:
    """Rows of the same columns that follow each other share a table."""
    lines: list[str] = []
    before: list[str] | None = None
    for row in rows:
        names = list(row)
        if names != before:
            lines += ["", "| " + " | ".join(names) + " |", "|---" * len(names) + "|"]
            before = names
        lines.append("| " + " | ".join(cell(_value(value)) for value in row.values()) + " |")
    return "\n".join(lines[1:]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(_value(one) for one in value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(one)}" for name, one in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    write_or_check(PAGE, page, "benchmarks/results")
