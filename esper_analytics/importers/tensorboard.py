"""TensorBoard event files: every folder that holds event files is a run, as TensorBoard shows it.

Two kinds of folder inside a run's folder belong to that run: those of `SummaryWriter.add_hparams`, and those that
`SummaryWriter.add_scalars` makes for the curves of one tag. Several event files of one folder are one training that was
resumed.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from esper_analytics.formatting import format_count
from esper_analytics.importers.event_files import MARK, EventFile, need_tensorboard, read_event_file
from esper_analytics.importers.library_tags import LIBRARIES
from esper_analytics.importers.run_writer import ImportOutcome
from esper_analytics.importers.scalar_rows import Session, utc_time
from esper_analytics.importers.scalar_runs import RawEntry, ScalarRun, import_run
from esper_analytics.importers.sources import Progress, find_sources, track_progress

FORMAT = "tensorboard"


def import_files(patterns: Sequence[str], to: Path, progress: Progress | None = None) -> list[ImportOutcome]:
    """Import the runs of event files into the folder of runs `to`.

    Args:
        patterns: event files, folders (every event file below is read), or glob patterns.

    Raises:
        UsageError: there is no such file, `to` cannot be written to, or the package `tensorboard` is missing.
        DataError: the disk does not take a run.
    """
    need_tensorboard()
    folders: dict[Path, list[Path]] = defaultdict(list)
    for path in find_sources(patterns, lambda name: MARK in name, f"whose name contains {MARK}"):
        folders[path.parent].append(path)
    # The deepest first: the parts of a run lie below its folder.
    ordered = sorted(folders, key=lambda folder: (-len(folder.parts), folder))
    progress_by_file = track_progress([path for folder in ordered for path in folders[folder]], progress)
    parts: dict[Path, list[EventFile]] = defaultdict(list)
    outcomes = []
    for folder in ordered:
        files = [_read(*next(progress_by_file)) for _ in folders[folder]]
        above = next((path for path in folder.parents if path in folders), None)
        if above is not None and all(_is_part(file) for file in files):
            parts[above] += map(_as_part, files)
        else:
            outcomes.append(import_run(_run(folder, files + parts.pop(folder, [])), to))
    next(progress_by_file, None)  # reports the end of the last file
    return outcomes


def _read(file: Path, progress: Callable[[int], None] | None) -> EventFile:
    try:
        return read_event_file(file, progress)
    except OSError as error:
        return EventFile(file, "", unreadable=error.strerror or str(error))


def _run(folder: Path, files: Sequence[EventFile]) -> ScalarRun:
    """Make the run of a folder from its event files."""
    files = sorted(files, key=lambda file: (file.first_time is None, file.first_time, file.path))
    left_out: Counter[str] = Counter()
    hyperparameters: dict[str, Any] = {}
    raw = []
    for file in files:
        left_out += file.left_out
        hyperparameters |= file.hparams
        for text in file.texts:
            raw.append(RawEntry(text.record, "text", text.text, "no_table", key=text.tag))
            if text.tag in _TABLES:
                hyperparameters |= _table(text.text)
    oldest = files[0]
    run = ScalarRun(
        format=FORMAT,
        name=folder.name,
        source=folder,
        identity=f"{oldest.path.name} {oldest.first_time!r}".encode(),
        sha256=hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest(),
        sessions=[Session(file.scalars, file.first_time) for file in files],
        started=utc_time(oldest.first_time),
        hyperparameters=hyperparameters,
        raw=raw,
        left_out=left_out,
        damage=[damage for file in files for damage in _damage(file)],
    )
    run.note_steps(sum(file.unusable_steps for file in files))
    return run


def _damage(file: EventFile) -> Iterator[str]:
    name = file.path.name
    if file.unreadable:
        yield f"{name} cannot be read ({file.unreadable})"
    if file.damaged and not file.records:
        yield f"{name} is not an event file, or is damaged from its beginning to its end"
    elif file.damaged:
        stretches = format_count(file.damaged, "damaged stretch", "damaged stretches")
        yield f"{name}: {stretches} of {file.skipped_bytes:,} bytes left out"
    if file.torn_bytes:
        yield f"{name}: the last record is cut off ({file.torn_bytes:,} bytes)"


# --- folders that belong to the run above -----------------------------------------------------------------------------


def _is_part(file: EventFile) -> bool:
    return bool(file.hparams) or _curves(file) is not None


def _as_part(file: EventFile) -> EventFile:
    """Give the values of a file the names they have in the run above."""
    if (tag := _curves(file)) is None:
        return file
    curve = file.path.parent.name.removeprefix(_as_folder(tag))
    return dataclasses.replace(file, scalars=[dataclasses.replace(s, tag=f"{tag}/{curve}") for s in file.scalars])


def _curves(file: EventFile) -> str | None:
    """Return the tag whose curve `add_scalars` wrote: the file's only tag, after which its folder is named."""
    tags = {scalar.tag for scalar in file.scalars}
    if len(tags) != 1:
        return None
    [tag] = tags
    return tag if file.path.parent.name.startswith(_as_folder(tag)) else None


def _as_folder(tag: str) -> str:
    return tag.replace("/", "_") + "_"


# --- hyperparameters --------------------------------------------------------------------------------------------------

_TABLES = {library.hyperparameters for library in LIBRARIES}


def _table(text: str) -> Mapping[str, Any]:
    """Read a Markdown table of two columns: name -> value."""
    rows = [line.strip().strip("|").partition("|") for line in text.splitlines()[2:] if line.strip().startswith("|")]
    return {name.strip(): _value(value.strip()) for name, _, value in rows if name.strip()}


def _value(text: str) -> Any:
    """Read a value as Python prints it; the text itself if JSON has no such value."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError, TypeError):
        return text
    return value if value is None or isinstance(value, bool | int | float | str) else text
