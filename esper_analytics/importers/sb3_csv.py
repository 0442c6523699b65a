"""The progress.csv of Stable-Baselines3: each file is a run.

SB3 writes a row at each dump of its logger. When a name comes up for the first time it rewrites the file with a longer
header, and earlier rows have empty cells for it. An empty cell was not logged. The wall clock is not in the file.
"""

from __future__ import annotations

import csv
import hashlib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from esper_analytics.errors import UsageError
from esper_analytics.importers.run_writer import ImportOutcome
from esper_analytics.importers.scalar_rows import ScalarValue, Session, whole_step
from esper_analytics.importers.scalar_runs import RawEntry, ScalarRun, import_run
from esper_analytics.importers.sources import Progress, Source, base_name, find_sources, track_progress

FORMAT = "sb3-csv"
FILE = "progress.csv"

_NAMES = (FILE, f"{FILE}.gz", f"{FILE}.zst")
_STEP = "time/total_timesteps"
_ELAPSED = "time/time_elapsed"
_ITERATIONS = "time/iterations"
_GROUPS = ("time/", "train/", "rollout/", "eval/")


def import_files(patterns: Sequence[str], to: Path, progress: Progress | None = None) -> list[ImportOutcome]:
    """Import the runs of progress.csv files into the folder of runs `to`.

    Args:
        patterns: files of any name, folders (every progress.csv below is read), or glob patterns.

    Raises:
        UsageError: there is no such file, or `to` cannot be written to.
        DataError: the disk does not take a run.
    """
    files = find_sources(patterns, lambda name: name in _NAMES, f"named {FILE}")
    return [import_run(_read_run(file), to) for file, _ in track_progress(files, progress)]


def _read_run(file: Path) -> ScalarRun:
    name = file.parent.name if file.name in _NAMES else base_name(file)
    run = ScalarRun(FORMAT, name, file, by_line=True)
    data = b""
    try:
        source = Source(file)
        data = b"".join(source.blocks())
        if source.damage:
            run.damage.append(source.damage)
    except UsageError as error:
        run.damage.append(str(error).rstrip("."))
    run.sha256 = hashlib.sha256(data).hexdigest()
    scalars: list[ScalarValue] = []
    run.sessions = [Session(scalars)]
    if data:
        _read_lines(data.decode("utf-8-sig", "backslashreplace").split("\n"), run, scalars)
    return run


def _read_lines(lines: Sequence[str], run: ScalarRun, scalars: list[ScalarValue]) -> None:
    header = _cells(lines[0]) or []
    if not any(name.startswith(_GROUPS) for name in header):
        run.damage.append(f"it is not a {FILE} of Stable-Baselines3: its first line names no column such as {_STEP}")
        return
    if len(set(header)) < len(header):
        twice = next(name for name, times in Counter(header).items() if times > 1)
        run.damage.append(f"its first line names the column {twice} twice")
        return
    iterations: list[float] = []
    unusable_steps = 0
    first_row = ""
    for number, line in enumerate(lines[1:], 2):
        if number == len(lines):
            if line:
                run.raw.append(RawEntry(number, "row", line, "torn"))
            break
        cells = _cells(line)
        if cells is None or len(cells) != len(header):
            run.raw.append(RawEntry(number, "row", line, "no_event"))
            continue
        row = {name: cell for name, cell in zip(header, cells, strict=True) if cell != ""}
        first_row = first_row or repr(sorted(row.items()))
        numbers = {name: _number(cell) for name, cell in row.items()}
        logged, elapsed = numbers.get(_STEP), numbers.get(_ELAPSED)
        step = None if logged is None else whole_step(logged)
        unusable_steps += len(row) if logged is not None and step is None else 0
        if (iteration := numbers.get(_ITERATIONS)) is not None:
            iterations.append(iteration)
        for name, value in numbers.items():
            if value is None:
                run.raw.append(RawEntry(number, name, row[name], "no_table", key=name))
            else:
                scalars.append(ScalarValue(name, step, value, number, elapsed=elapsed))
    # Without its empty cells the first row stays the same when columns are added.
    run.identity = f"{run.name} {first_row}".encode()
    run.note_steps(unusable_steps)
    if iterations and iterations[0] > 1:
        run.notes.append(
            f"it was logged once in {iterations[0]:.0f} iterations only (log_interval): updates count as they were "
            "logged"
        )


def _cells(line: str) -> list[str] | None:
    """Split a line into its cells; None if its quotes do not match."""
    try:
        return next(csv.reader([line.removesuffix("\r")], strict=True), [])
    except csv.Error:
        return None


def _number(cell: str) -> float | None:
    """Read the number in a cell; None if it is text."""
    try:
        return None if "_" in cell else float(cell)
    except ValueError:
        return None
