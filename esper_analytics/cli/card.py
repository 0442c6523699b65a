"""One run's card, what `esper show` prints: who it was, how it ended, what is there, what is missing, its rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from esper_analytics.formatting import cell, shortened, to_json
from esper_analytics.importers.load_report import read_report
from esper_analytics.postmortem.recording import ending_of, recording_state
from esper_analytics.runs import Runs
from esper_recorder.storage.traces import traces_of

if TYPE_CHECKING:
    import polars as pl

    from esper_recorder.storage.manifest import Manifest

_TABLES = ("attempts", "gaps")


def card_of(runs: Runs, run_id: str) -> dict[str, Any]:
    """The card as plain data: run, config, versions, tables that hold rows, attempts, traces, gaps, rules, problems.

    Of a run that is not complete, also why.
    Of a run that was imported, also where it came from and what became of what was read.
    """
    run = runs[run_id]
    row = run.table("runs").collect().row(0, named=True)
    manifest = run.manifest(row["run_id"])
    told_apart = {"config", "versions", "rules_profile", "rules_sha256"}
    why = [] if row["complete"] else _why_incomplete(run, manifest, row)
    card = {
        "run": {name: value for name, value in row.items() if name not in told_apart},
        "config": manifest.config,
        "versions": dict(manifest.versions),
        "rules": {"profile": row["rules_profile"], "sha256": row["rules_sha256"]},
        "tables": {table: rows for table, rows in run.rows_of(row["run_id"]).items() if rows},
        "attempts": [asdict(attempt) for attempt in manifest.attempts],
        "source": manifest.source or {},
        "load report": read_report(run.folder(row["run_id"])) or {},
        "traces": [str(run.folder(row["run_id"]) / trace) for trace in traces_of(run.folder(row["run_id"]))],
        "gaps": run.table("gaps").sort("update", "table_name").collect().to_dicts(),
        "not complete": why,
        "problems": [problem.told for problem in run.problems],
    }
    plain: dict[str, Any] = to_json(card)
    return plain


def _why_incomplete(run: Runs, manifest: Manifest, row: Mapping[str, Any]) -> list[str]:
    updates = run.table("ppo_updates").select("update", "interrupted").collect()
    return recording_state(run, manifest, row, updates, ending_of(row["ended"], manifest))


def card_frame(card: Mapping[str, Any]) -> pl.DataFrame:
    """The card as rows of (section, name, value), for formats that hold rows."""
    import polars as pl

    rows = [
        (section, name, None if value is None else str(value))
        for section, content in card.items()
        for name, value in _items(content)
    ]
    return pl.DataFrame(rows, schema={"section": pl.String, "name": pl.String, "value": pl.String}, orient="row")


def card_lines(card: Mapping[str, Any], longest: int | None = None) -> Iterator[str]:
    """The card for the eye; values longer than `longest` are shortened."""
    run = card["run"]
    yield str(run["run_id"])
    for section, content in card.items():
        if section in _TABLES and content:
            yield ""
            yield section
            yield from _table(content, longest)
            continue
        items = [*_items(content)]
        if section == "rules" and not content["sha256"]:
            items = [("", "none: it was recorded without rules")]
        if not items and (section == "gaps" or (section == "problems" and not card["not complete"])):
            items = [("", "none")]
        if not items:
            continue
        yield ""
        yield section
        width = max(len(name) for name, _ in items)
        for name, value in items:
            text = cell(value) if longest is None else shortened(cell(value), longest)
            yield f"  {name.ljust(width)}  {text}".rstrip() if name else f"  {text}"


def _table(rows: Sequence[Mapping[str, Any]], longest: int | None) -> Iterator[str]:
    """A line a row, under the names of the columns that hold something and do not only name the run."""
    names = [name for name in rows[0] if name != "run_id" and any(row[name] is not None for row in rows)]
    texts = [[*names], *([cell(row[name]) if row[name] is not None else "" for name in names] for row in rows)]
    if longest is not None:
        texts = [[shortened(text, longest) for text in line] for line in texts]
    widths = [max(len(line[place]) for line in texts) for place in range(len(names))]
    for line in texts:
        yield ("  " + "  ".join(text.ljust(width) for text, width in zip(line, widths, strict=True))).rstrip()


def _items(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """(name, value) of what a section holds; what lies deeper is named with dots."""
    if isinstance(content, Mapping):
        for name, value in content.items():
            yield from _items(value, f"{prefix}.{name}" if prefix else str(name))
    elif isinstance(content, list) and any(isinstance(value, Mapping) for value in content):
        for number, value in enumerate(content, 1):
            yield from _items(value, f"{prefix}.{number}" if prefix else str(number))
    elif isinstance(content, list) and not prefix:
        for number, value in enumerate(content, 1):
            yield str(number), value
    else:
        yield prefix, content
