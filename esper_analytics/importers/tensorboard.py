"""TensorBoard event files in: every folder that holds event files is a run, as TensorBoard shows it.

Two kinds of folder inside a run's folder belong to that run: those of `SummaryWriter.add_hparams`, and those that
`SummaryWriter.add_scalars` makes for the curves of one tag. Several event files of one folder are the same training
taken up again.
"""

from __future__ import annotations

import ast
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from esper_analytics.importers.event_files import MARK, EventFile, need_tensorboard, read_event_file
from esper_analytics.importers.libraries import LIBRARIES
from esper_analytics.importers.load_report import LoadReport
from esper_analytics.importers.logged import Session, moment
from esper_analytics.importers.run_writer import Stored
from esper_analytics.importers.scalar_runs import Raw, ScalarRun, store
from esper_analytics.importers.sources import find_files

FORMAT = "tensorboard"

Progress = Callable[[int, int], None]


def import_files(words: Sequence[str], to: Path, progress: Progress | None = None) -> list[tuple[Stored, LoadReport]]:
    """Import the runs that event files hold.

    Args:
        words: event files, folders (every event file below is read), or glob patterns.
        to: the folder of runs.
        progress: called with bytes read and of how many.

    Returns:
        For each run, what became of it and its load report.

    Raises:
        UsageError: there is no such file, `to` cannot be written, or the package `tensorboard` is missing.
        DataError: the disk does not take a run.
    """
    need_tensorboard()
    folders: dict[Path, list[Path]] = {}
    for file in find_files(words, lambda name: MARK in name, f"whose name holds {MARK}"):
        folders.setdefault(file.parent, []).append(file)
    total = sum(_size(file) for files in folders.values() for file in files)
    done = 0
    parts: dict[Path, list[EventFile]] = {}
    imported = []
    # The deepest first: the parts of a run lie below its folder.
    for folder in sorted(folders, key=lambda path: (-len(path.parts), path)):
        files = []
        for file in folders[folder]:
            files.append(_read(file, None if progress is None else partial(_told, progress, done, total)))
            done += _size(file)
        above = next((path for path in folder.parents if path in folders), None)
        if above is not None and all(_is_part(file) for file in files):
            parts.setdefault(above, []).extend(map(_as_part, files))
        else:
            imported.append(store(_run(folder, files + parts.pop(folder, [])), to))
    return imported


def _told(progress: Progress, before: int, total: int, read: int) -> None:
    progress(before + read, total)


def _size(file: Path) -> int:
    try:
        return file.stat().st_size
    except OSError:
        return 0


def _read(file: Path, progress: Callable[[int], None] | None) -> EventFile:
    try:
        return read_event_file(file, progress)
    except OSError as error:
        return EventFile(file, "", unreadable=error.strerror or str(error))


def _run(folder: Path, files: Sequence[EventFile]) -> ScalarRun:
    """The run of a folder: its event files, the oldest first."""
    files = sorted(files, key=lambda file: (file.first_time is None, file.first_time, file.path))
    left_out: Counter[str] = Counter()
    hyperparameters: dict[str, Any] = {}
    raw = []
    for file in files:
        left_out += file.kept_out
        hyperparameters |= file.hparams
        for text in file.texts:
            raw.append(Raw(text.record, "text", text.text, "no_table", key=text.tag))
            if text.tag in _TABLES:
                hyperparameters |= _table(text.text)
    oldest = files[0]
    return ScalarRun(
        format=FORMAT,
        name=folder.name,
        source=folder,
        identity=f"{oldest.path.name} {oldest.first_time!r}".encode(),
        sha256=hashlib.sha256("".join(file.sha256 for file in files).encode()).hexdigest(),
        sessions=[Session(file.values, file.first_time) for file in files],
        started=moment(oldest.first_time),
        hyperparameters=hyperparameters,
        raw=raw,
        left_out=left_out,
        damage=[words for file in files for words in _damage(file)],
    )


def _damage(file: EventFile) -> list[str]:
    name, found = file.path.name, []
    if file.unreadable:
        found.append(f"{name} cannot be read ({file.unreadable})")
    if file.damaged and not file.records:
        found.append(f"{name} is no event file, or is damaged from its beginning to its end")
    elif file.damaged:
        stretches = "1 damaged stretch" if file.damaged == 1 else f"{file.damaged:,} damaged stretches"
        found.append(f"{name}: {stretches} of {file.skipped_bytes:,} bytes left out")
    if file.torn_bytes:
        found.append(f"{name}: the last record is cut off ({file.torn_bytes:,} bytes)")
    return found


# --- folders that belong to the run above -----------------------------------------------------------------------------


def _is_part(file: EventFile) -> bool:
    return bool(file.hparams) or _curves(file) is not None


def _as_part(file: EventFile) -> EventFile:
    """The file with the names that its values have in the run above."""
    if (tag := _curves(file)) is None:
        return file
    curve = file.path.parent.name.removeprefix(_as_folder(tag))
    return dataclasses.replace(file, values=[dataclasses.replace(v, tag=f"{tag}/{curve}") for v in file.values])


def _curves(file: EventFile) -> str | None:
    """The tag whose curve the file holds, if `add_scalars` made it: its only tag, and the folder is named after it."""
    tags = {one.tag for one in file.values}
    if len(tags) != 1:
        return None
    [tag] = tags
    return tag if file.path.parent.name.startswith(_as_folder(tag)) else None


def _as_folder(tag: str) -> str:
    return tag.replace("/", "_") + "_"


# --- hyperparameters --------------------------------------------------------------------------------------------------

_TABLES = {library.hyperparameters for library in LIBRARIES}


def _table(text: str) -> Mapping[str, Any]:
    """The rows of a Markdown table of two columns: name -> value."""
    rows = [line.strip().strip("|").partition("|") for line in text.splitlines()[2:] if line.strip().startswith("|")]
    return {name.strip(): _value(value.strip()) for name, _, value in rows if name.strip()}


def _value(text: str) -> Any:
    """A value as Python prints it; the text itself where it is none that JSON knows."""
    try:
        value = ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return text
    return value if value is None or isinstance(value, bool | int | float | str) else text
