"""Opens RUNS for a command, and finds the runs that `--run` names."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from esper_analytics.cli.console import narrate
from esper_analytics.errors import UsageError
from esper_analytics.formatting import format_list

if TYPE_CHECKING:
    from esper_analytics.runs import Runs


def open_runs(path: Path, names: Iterable[str] | None = None) -> Runs:
    """Open RUNS; only the runs of these names, if any are given."""
    from esper_analytics.runs import open as open_folder

    runs = open_folder(path)
    return runs.select(*resolve(runs, names)) if names else runs


def open_one_run(path: Path, name: str | None) -> tuple[Runs, str]:
    """Open RUNS and return the run of this name, or the only one. Raises UsageError if there are several."""
    runs = open_runs(path)
    if name:
        [run] = resolve(runs, [name])
        return runs, run
    if len(ids := runs.ids) == 1:
        return runs, ids[0]
    raise UsageError(f"There are {len(ids)} runs: {format_list(ids, most=8)}. Say which by --run ID.")


def resolve(runs: Runs, names: Iterable[str]) -> list[str]:
    """Replace names that several runs have by the newest run's id, and say so."""
    from esper_analytics.postmortem.recording import resolve_names

    resolved, notices = resolve_names(runs, names)
    narrate(*notices)
    return resolved
