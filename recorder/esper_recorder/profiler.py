"""`torch.profiler` around a stretch of training, its traces kept in the run's folder.

    with Recorder("runs/", ...) as rec, profile(rec.path, active=3) as profiler:
        for update in range(n):
            ...
            profiler.step()

Traces lie in `<run>/traces/` and open in chrome://tracing or ui.perfetto.dev; the run's card and its report name them.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, schedule
from torch.profiler import profile as torch_profile

from esper_recorder.storage.atomic import check_writable
from esper_recorder.storage.traces import TRACES_FOLDER

log = logging.getLogger(__name__)


class ProfilerFolderError(OSError):
    """The traces cannot be written to the folder; the message says why."""


@contextmanager
def profile(
    folder: str | Path | None,
    *,
    name: str = "trace",
    wait: int = 1,
    warmup: int = 1,
    active: int = 3,
    repeat: int = 1,
    stacks: bool = False,
    shapes: bool = False,
    memory: bool = False,
) -> Iterator[torch_profile]:
    """Profile some steps; call `step()` on the yielded profiler after each.

    Args:
        folder: a run's folder (`Recorder.path`), or any other; None (a recorder at level OFF) writes no traces.
        name: first part of the traces' names, `<name>-<process>-<number>.json.gz`.
        wait, warmup, active, repeat: steps skipped, steps profiled and thrown away, steps kept, and how often.
        stacks: keep the Python stack of each operation, which slows down what is measured.
        shapes, memory: keep the shapes of inputs, and allocations.

    Raises:
        ProfilerFolderError: the folder cannot be made or written to. It is checked before anything is profiled.
    """
    target = None if folder is None else Path(folder) / TRACES_FOLDER
    if target is not None:
        _make_folder(target)
    written = 0

    def keep(profiler: torch_profile) -> None:
        nonlocal written
        if target is None:
            return
        written += 1
        path = target / f"{name}-{os.getpid()}-{written}.json.gz"
        try:
            profiler.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            log.error("The trace %s could not be written (%s). Training continues.", path, error)

    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    with torch_profile(
        activities=activities,
        schedule=schedule(wait=wait, warmup=warmup, active=active, repeat=repeat),
        on_trace_ready=keep,
        record_shapes=shapes,
        profile_memory=memory,
        with_stack=stacks,
    ) as profiler:
        yield profiler


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        check_writable(folder / "trace")
    except OSError as error:
        raise ProfilerFolderError(
            f"traces cannot be written to {folder}: {error.strerror or error}. Give a folder that can be written to"
        ) from error
