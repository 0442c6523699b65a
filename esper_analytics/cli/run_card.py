"""One run's card, as `esper show` prints it: what ran, how it ended, what was recorded, what is missing, its rules."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from esper_analytics.formatting import format_value, shorten, text_table, to_json, to_text
from esper_analytics.importers.load_report import read_report
from esper_analytics.postmortem.recording import describe_recording
from esper_analytics.runs import Runs
from esper_recorder.storage.traces import traces_of

if TYPE_CHECKING:
    import polars as pl

_DRAWN_AS_TABLES = ("attempts", "gaps")
_IN_OTHER_SECTIONS = {"config", "versions", "rules_profile", "rules_sha256"}


def card_of(runs: Runs, run_id: str) -> dict[str, Any]:
    """Return the card as plain data; an incomplete run also says why, an imported one where it came from."""
    run = runs[run_id]
    row = run.table("runs").collect().row(0, named=True)
    run_id = row["run_id"]
    manifest = run.manifest(run_id)
    folder = run.folder(run_id)
    incomplete: list[str] = []
    if not row["complete"]:
        updates = run.table("ppo_updates").select("update", "interrupted").collect()
        incomplete = describe_recording(run, row, updates)
    card: dict[str, Any] = to_json(
        {
            "run": {name: value for name, value in row.items() if name not in _IN_OTHER_SECTIONS},
            "config": manifest.config,
            "versions": dict(manifest.versions),
            "rules": {"profile": row["rules_profile"], "sha256": row["rules_sha256"]},
            "tables": {table: rows for table, rows in run.rows_of(run_id).items() if rows},
            "attempts": [asdict(attempt) for attempt in manifest.attempts],
            "source": manifest.source or {},
            "load report": read_report(folder) or {},
            "traces": [str(folder / trace) for trace in traces_of(folder)],
            "gaps": run.table("gaps").sort("update", "table_name").collect().to_dicts(),
            "not complete": incomplete,
            "problems": [problem.message for problem in run.problems],
        }
    )
    return card


def card_frame(card: Mapping[str, Any]) -> pl.DataFrame:
    """Return the card as rows of (section, name, value), for formats of rows."""
    import polars as pl

    rows = [
        (section, name, None if value is None else to_text(value))
        for section, content in card.items()
        for name, value in _items(content)
    ]
    return pl.DataFrame(rows, schema={"section": pl.String, "name": pl.String, "value": pl.String}, orient="row")


def card_lines(card: Mapping[str, Any], longest: int | None = None) -> Iterator[str]:
    """Yield the card as lines of text; values longer than `longest` are shortened."""
    yield str(card["run"]["run_id"])
    for section, content in card.items():
        if section in _DRAWN_AS_TABLES and content:
            lines = _table(content, longest)
        elif section == "rules" and not content["sha256"]:
            lines = iter(["  none: it was recorded without rules"])
        elif not content and (section == "gaps" or (section == "problems" and not card["not complete"])):
            lines = iter(["  none"])
        else:
            lines = _named_values([*_items(content)], longest)
        text = [*lines]
        if text:
            yield from ("", section, *text)


def _named_values(items: Sequence[tuple[str, Any]], longest: int | None) -> Iterator[str]:
    width = max((len(name) for name, _ in items), default=0)
    for name, value in items:
        yield f"  {name.ljust(width)}  {_text(value, longest)}".rstrip()


def _table(rows: Sequence[Mapping[str, Any]], longest: int | None) -> Iterator[str]:
    """One line per row, under its column names; without the run_id and columns of NULLs."""
    names = [name for name in rows[0] if name != "run_id" and any(row[name] is not None for row in rows)]
    texts = [[_text(row[name], longest, null="") for name in names] for row in rows]
    return (f"  {line}" for line in text_table(names, lambda: texts, [False] * len(names)))


def _text(value: Any, longest: int | None, null: str = "NULL") -> str:
    text = format_value(value, null)
    return text if longest is None else shorten(text, longest)


def _items(content: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (name, value) of a section; names of nested values are joined by dots."""

    def nested(entries: Iterator[tuple[Any, Any]]) -> Iterator[tuple[str, Any]]:
        for name, value in entries:
            yield from _items(value, f"{prefix}.{name}" if prefix else str(name))

    if isinstance(content, Mapping):
        yield from nested(iter(content.items()))
    elif isinstance(content, list) and (not prefix or any(isinstance(value, Mapping) for value in content)):
        yield from nested(enumerate(content, 1))
    else:
        yield prefix, content
