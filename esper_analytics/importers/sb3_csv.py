"""The progress.csv of Stable-Baselines3 in: each file is a run.

SB3 writes a row at each dump of its logger, and writes the file anew with a longer header when a name comes up for the
first time: rows of before have empty cells for it. An empty cell was not logged. The wall clock is not kept.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from esper_analytics.errors import UsageError
from esper_analytics.importers.load_report import LoadReport
from esper_analytics.importers.logged import Logged, Session
from esper_analytics.importers.run_writer import Stored
from esper_analytics.importers.scalar_runs import Raw, ScalarRun, store
from esper_analytics.importers.sources import Source, find_files, plain_name

FORMAT = "sb3-csv"
FILE = "progress.csv"

_NAMES = (FILE, f"{FILE}.gz", f"{FILE}.zst")
_STEP = "time/total_timesteps"
_ELAPSED = "time/time_elapsed"
_ITERATIONS = "time/iterations"
_GROUPS = ("time/", "train/", "rollout/", "eval/")

Progress = Callable[[int, int], None]


def import_files(words: Sequence[str], to: Path, progress: Progress | None = None) -> list[tuple[Stored, LoadReport]]:
    """Import the runs that progress.csv files hold.

    Args:
        words: files of any name, folders (every progress.csv below is read), or glob patterns.
        to: the folder of runs.
        progress: called with bytes read and of how many.

    Returns:
        For each run, what became of it and its load report.

    Raises:
        UsageError: there is no such file, or `to` cannot be written.
        DataError: the disk does not take a run.
    """
    files = find_files(words, lambda name: name in _NAMES, f"named {FILE}")
    sizes = [file.stat().st_size for file in files]
    imported = []
    for number, file in enumerate(files, 1):
        imported.append(store(_run(file), to))
        if progress is not None:
            progress(sum(sizes[:number]), sum(sizes))
    return imported


@dataclass(slots=True)
class _Content:
    """What one file holds."""

    values: list[Logged] = field(default_factory=list)
    raw: list[Raw] = field(default_factory=list)
    damage: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    first_row: str = ""
    """The cells of the first row that are not empty: they stay as they are when columns are added."""


def _run(file: Path) -> ScalarRun:
    content = _Content()
    data = b""
    try:
        source = Source(file)
        data = b"".join(source.blocks())
        if source.damage:
            content.damage.append(source.damage)
    except UsageError as error:
        content.damage.append(str(error).rstrip("."))
    if data:
        _read(data, content)
    name = file.parent.name if file.name in _NAMES else plain_name(file)
    return ScalarRun(
        format=FORMAT,
        name=name,
        source=file,
        identity=f"{name} {content.first_row}".encode(),
        sha256=hashlib.sha256(data).hexdigest(),
        sessions=[Session(content.values)],
        by_line=True,
        raw=content.raw,
        damage=content.damage,
        notes=content.notes,
    )


def _read(data: bytes, content: _Content) -> None:
    lines = data.decode("utf-8-sig", "backslashreplace").split("\n")
    header = _cells(lines[0]) or []
    if not any(name.startswith(_GROUPS) for name in header):
        content.damage.append(f"it is no {FILE} of Stable-Baselines3: its first line names no column such as {_STEP}")
        return
    if len(set(header)) < len(header):
        twice = next(name for name, times in Counter(header).items() if times > 1)
        content.damage.append(f"its first line names the column {twice} twice")
        return
    iterations: list[float] = []
    for number, line in enumerate(lines[1:], 2):
        if number == len(lines):
            if line:
                content.raw.append(Raw(number, "row", line, "torn"))
            break
        cells = _cells(line)
        if cells is None or len(cells) != len(header):
            content.raw.append(Raw(number, "row", line, "no_event"))
            continue
        row = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
        content.first_row = content.first_row or repr(sorted(row.items()))
        numbers = {name: _number(cell) for name, cell in row.items()}
        step, elapsed = numbers.get(_STEP), numbers.get(_ELAPSED)
        if (iteration := numbers.get(_ITERATIONS)) is not None:
            iterations.append(iteration)
        for name, value in numbers.items():
            if value is None:
                content.raw.append(Raw(number, name, row[name], "no_table", key=name))
            else:
                whole = int(step) if step is not None and step.is_integer() else None
                content.values.append(Logged(name, whole, value, number, elapsed=elapsed))
    if iterations and iterations[0] > 1:
        content.notes.append(
            f"it was logged once in {iterations[0]:.0f} iterations only (log_interval): updates are counted as they "
            "were logged"
        )


def _cells(line: str) -> list[str] | None:
    """The cells of a line; None where its quotes do not fit together."""
    try:
        return next(csv.reader([line.removesuffix("\r")], strict=True), [])
    except csv.Error:
        return None


def _number(cell: str) -> float | None:
    """The number in a cell; None where it holds a text."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None
