"""Write docs/benchmarks.md from benchmarks/results. `--check` writes nothing and fails if the page is out of date."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from generated import cell, write_or_check

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"

HEAD = """\
# Measurements

Generated from `benchmarks/results/*.json` by `make docs`; do not edit it here. `make bench` measures again: the first
lines of each script say what it measures and how. Ratios are of what was measured side by side in one run. No result
here was measured on a GPU: `bench_gpu_overhead.py` and the CUDA half of `bench_gradients.py` are ready for one.
"""

Rows = list[dict[str, Any]]


def page() -> str:
    """Return the whole page as Markdown."""
    results = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(RESULTS.glob("*.json"))]
    summary = ["| benchmark | shows | ratio |", "|---|---|---|"]
    for result in results:
        name = result["benchmark"]
        shows, ratio = SUMMARIES[name]
        summary.append(f"| [{name}](#{name}) | {shows} | {ratio(result['rows'])} |")
    return "\n".join([HEAD, "\n".join(summary) + "\n", *map(_section, results)])


def _range(rows: Rows, column: str) -> str:
    """The smallest and largest value of a column, over the rows that have it."""
    values = [row[column] for row in rows if column in row]
    low, high = _value(min(values)), _value(max(values))
    return low if low == high else f"{low} to {high}"


SUMMARIES: dict[str, tuple[str, Callable[[Rows], str]]] = {
    "detection": (
        "Runs with a known harmful fault that raised a warning or worse because of it, over all of them; no threshold "
        "was set on their seeds and tasks.",
        lambda rows: _range(
            [row for row in rows if (row.get("measure"), row.get("of")) == ("warning or worse", "harmful")], "value"
        ),
    ),
    "gradients": (
        "Statistics of all layers' gradients in one pass, against torch operations layer by layer.",
        lambda rows: f"{_range(rows, 'per_layer')} times as fast",
    ),
    "import": (
        "Esper's JSON lines imported, with every value checked, against DuckDB extracting the same fields one by one.",
        lambda rows: (
            f"{_range(rows, 'times_duckdb')} times as fast "
            f"({_range(rows, 'times_duckdb_one_call')} if DuckDB extracts them in one call)"
        ),
    ),
    "memory": (
        "Peak memory of a process at the last recorded update, over that after the first 10,000.",
        lambda rows: f"{rows[-1]['peak_rss_mb'] / rows[0]['peak_rss_mb']:.2f} times as much",
    ),
    "overhead": (
        "CPU time of a Stable-Baselines3 training (8 environments, 40 minibatches an update) with the recorder at its "
        "default level, over that without.",
        lambda rows: f"{rows[0]['process']:.4g} times as much",
    ),
    "replay": (
        "A million updates replayed with the rules of one profile, over only reading the columns they need.",
        lambda rows: f"{_range(rows, 'times_reading')} times as long",
    ),
    "rows": (
        "CPU time to record a row so that it survives a crash, over writing it as a line of JSON to a buffered file.",
        lambda rows: f"{_range([row for row in rows if row['writer'] == 'esper'], 'cpu_us_over_jsonl')} times as much",
    ),
    "sql": (
        "One SELECT over 100 imported runs, against DuckDB over the JSON lines they were imported from.",
        lambda rows: f"{_range([row for row in rows if 'first_seconds' in row], 'times_fields')} times as fast",
    ),
}
"""By benchmark: what its ratio shows, and that ratio."""


def _section(result: dict[str, Any]) -> str:
    machine, versions = result["machine"], result["versions"]
    where = f"{result['date']}, {machine['processor']}, {machine['cores']} cores, GPU {machine['gpu']}"
    packages = ", ".join(f"{name} {version}" for name, version in versions.items())
    settings = ", ".join(f"{name} {_value(value)}" for name, value in result["settings"].items())
    about = f"{where}. {packages}.\n\nSettings: {settings}."
    return f"## {result['benchmark']}\n\n{about}\n\n{_tables(result['rows'])}"


def _tables(rows: Rows) -> str:
    """Consecutive rows of the same columns share a table."""
    lines: list[str] = []
    columns: list[str] | None = None
    for row in rows:
        if list(row) != columns:
            columns = list(row)
            lines += ["", "| " + " | ".join(columns) + " |", "|---" * len(columns) + "|"]
        lines.append("| " + " | ".join(cell(_value(value)) for value in row.values()) + " |")
    return "\n".join(lines[1:]) + "\n"


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e5 else f"{value:,.0f}"
    if isinstance(value, list):
        return ", ".join(map(_value, value))
    if isinstance(value, dict):
        return ", ".join(f"{name} {_value(inner)}" for name, inner in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


if __name__ == "__main__":
    write_or_check({"benchmarks.md": page()}, "benchmarks/results")
