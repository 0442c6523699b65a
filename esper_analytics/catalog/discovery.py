"""The run folders under RUNS: which can be read, and which of two that hold the same run is read."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow.parquet as pq

from esper_analytics.errors import NOT_UTF8, DataError, UsageError
from esper_analytics.formatting import is_unicode
from esper_recorder.contract.tables import SCHEMA_VERSION
from esper_recorder.storage.listing import journals_in, list_row_files, parts_in
from esper_recorder.storage.manifest import MANIFEST_FILE, Manifest, ManifestError, read_manifest

_RESTORE = f"Restore {MANIFEST_FILE} from a copy, or move the folder away"
_RESTORE_MANIFEST = f"Copy the run's {MANIFEST_FILE} into it, or move the folder away"
_RUN_ID = re.compile(r"(.+)-\d{8}T\d{6}Z(-[a-z0-9]{6})")


def short_id(run_id: str) -> str:
    """Shorten a run_id by its time.

    >>> short_id("hot-20260101T120000Z-x1y2z3"), short_id("another")
    ('hot-x1y2z3', 'another')
    """
    match = _RUN_ID.fullmatch(run_id)
    return run_id if match is None else match[1] + match[2]


@dataclass(frozen=True, slots=True)
class Problem:
    """Something under RUNS that is left out, or not wholly read."""

    path: Path
    reason: str
    advice: str = ""
    """What to do about it."""
    partly: bool = False
    """It is read in part, not left out."""

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}{f'. {self.advice}' if self.advice else ''}"

    @property
    def message(self) -> str:
        """The whole message."""
        return f"{'not wholly read' if self.partly else 'left out'}: {self}"


@dataclass(frozen=True, slots=True)
class RunEntry:
    """A run's folder and its manifest when it was listed."""

    path: Path
    manifest: Manifest

    @property
    def run_id(self) -> str:
        return self.manifest.run_id

    @property
    def short_id(self) -> str:
        """The run_id without its time."""
        return short_id(self.run_id)

    def superseded_from(self) -> tuple[tuple[int, int], ...]:
        """(attempt, update): rows of the attempt from this update on were recorded again by a later attempt."""
        starts: dict[int, int] = {}
        for attempt in self.manifest.attempts:
            starts[attempt.attempt] = min(attempt.from_update, starts.get(attempt.attempt, attempt.from_update))
        numbers = sorted(starts, reverse=True)
        later = itertools.accumulate((starts[number] for number in numbers), min)
        return tuple(sorted(zip(numbers[1:], later, strict=False)))


def find_runs(root: Path) -> tuple[list[RunEntry], list[Problem]]:
    """Find the runs of RUNS in the order of their folders' names, one folder each, and what is left out.

    Raises UsageError and DataError, as `run_folders` does.
    """
    entries, problems = run_folders(root)
    return list(_without_copies(entries, problems)), problems


def run_folders(root: Path) -> tuple[list[RunEntry], list[Problem]]:
    """List the folders of RUNS that can be read as a run's, in the order of their names, and those that cannot.

    Raises:
        UsageError: `root` does not exist, or is not a folder.
        DataError: it holds no run that can be read.
    """
    if not root.exists():
        raise UsageError(f"There is no folder {root}. {_siblings(root)}")
    if not root.is_dir():
        raise UsageError(f"{root} is a file. RUNS is a folder of runs, or one run's folder.")
    if not is_unicode(str(root.absolute())):
        raise UsageError(f"The path {root.absolute()} {NOT_UTF8}.")
    problems: list[Problem] = []
    entries: list[RunEntry] = []
    for folder in [root] if _has_manifest(root) else _candidates(root, problems):
        if not is_unicode(folder.name):
            problems.append(Problem(folder, f"its name {NOT_UTF8}"))
            continue
        try:
            manifest = read_manifest(folder)
        except ManifestError as error:
            path = folder / MANIFEST_FILE
            reason = f"it {str(error).removeprefix(f'{path} ')}"
            problems.append(Problem(path, reason, "" if "Upgrade" in reason else _RESTORE))
            continue
        if (manifest.schema_version or 0) > SCHEMA_VERSION:
            reason = f"recorded with schema version {manifest.schema_version}; this version knows {SCHEMA_VERSION}"
            advice = "Upgrade esper-analytics to read the newer columns"
            problems.append(Problem(folder / MANIFEST_FILE, reason, advice, partly=True))
        entries.append(RunEntry(folder, manifest))
    if not entries:
        raise DataError(_no_runs(root, problems))
    return entries, problems


def _candidates(root: Path, problems: list[Problem]) -> Iterator[Path]:
    for folder in sorted(root.iterdir()):
        if folder.name.startswith(".") or not folder.is_dir():
            continue
        if folder.is_symlink():
            if _has_manifest(folder):
                problems.append(Problem(folder, "it is a link, which is not followed", "Open the folder it leads to"))
        elif _has_manifest(folder):
            yield folder
        elif parts_in(folder)[0] or journals_in(folder):
            problems.append(Problem(folder, f"it holds recorded rows but no {MANIFEST_FILE}", _RESTORE_MANIFEST))


def _has_manifest(folder: Path) -> bool:
    """Return whether a folder holds a run.json, even an unreadable one: a link, or a special file."""
    path = folder / MANIFEST_FILE
    return path.is_symlink() or (path.exists() and not path.is_dir())


def _without_copies(entries: Iterable[RunEntry], problems: list[Problem]) -> Iterator[RunEntry]:
    """Keep one folder per run_id: of several with the same run, the one with the most rows."""
    by_id: dict[str, list[RunEntry]] = {}
    for run in entries:
        by_id.setdefault(run.run_id, []).append(run)
    for run_id, runs in by_id.items():
        if len(runs) > 1:
            # Of equals, the folder that is named like the run; then the order of names decides.
            rows = {run.path: _rows(run.path) for run in runs}
            runs.sort(key=lambda run: (-rows[run.path], run.path.name != run.run_id, run.path.name))
        yield runs[0]
        for copy in runs[1:]:
            reason = f"it holds the run {run_id} too; {runs[0].path.name} is as complete or more and is read instead"
            problems.append(Problem(copy.path, reason, "Keep one of the two"))


def _rows(folder: Path) -> int:
    files = list_row_files(folder)
    rows = int(sum(table.num_rows for table in files.journal_rows.values()))
    for paths in files.parts.values():
        for path in paths:
            try:
                rows += int(pq.read_metadata(path).num_rows)
            except (OSError, ValueError):
                continue
    return rows


def _no_runs(root: Path, problems: list[Problem]) -> str:
    if problems:
        return f"No run in {root} can be read. {problems[0].path.relative_to(root)}: {problems[0].reason}."
    if (root.parent / MANIFEST_FILE).is_file():
        return f"{root} is a folder inside a run. Give the run's folder, {root.parent}, or the folder of runs."
    below = sorted(path.parent.parent for path in root.glob(f"*/*/{MANIFEST_FILE}"))
    if below:
        return f"There are no runs in {root}, but there are in {below[0]}. Give that folder."
    return f"There are no runs in {root}: a run is a folder with a {MANIFEST_FILE}, as the recorder writes it."


def _siblings(root: Path) -> str:
    parent = root.parent
    if not parent.is_dir():
        return f"{parent} does not exist either."
    names = sorted(path.name for path in parent.iterdir() if path.is_dir() and not path.name.startswith("."))
    if not names:
        return f"{parent.resolve()} holds no folders."
    return f"In {parent.resolve()} there are: {', '.join(names[:8])}{', ...' if len(names) > 8 else ''}."
