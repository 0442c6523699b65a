"""What `esper report` and `esper plot` do, as far as it is not printing."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final

import polars as pl

from esper_analytics.cli.replay_arguments import LIVE, read_settings
from esper_analytics.detection.replay import Result, replay
from esper_analytics.detection.rules import load_rules
from esper_analytics.errors import UsageError
from esper_analytics.plots import figures
from esper_analytics.plots.registry import PLOTS, SUFFIXES
from esper_analytics.postmortem.findings import Against
from esper_analytics.postmortem.render import check_path, report
from esper_analytics.runs import Runs
from esper_recorder.contract.suggest import suggest
from esper_recorder.storage.atomic import check_writable

KINDS: Final = tuple(PLOTS)


def report_for(
    runs: Runs, rules: str | None, settings: Iterable[str], against: str | None, path: Path, command: str
) -> Result:
    """Replay and write the report. Raises UsageError: words of the call are off."""
    check_path(path)
    values = read_settings(settings)
    before = None if against in (None, LIVE) else load_rules(str(against))
    result = replay(runs, rules, values=values)
    other: Against | None = "live" if against == LIVE else None if before is None else replay(runs, before)
    report(result, path, against=other, command=command)
    return result


def plot_for(
    runs: Runs, chosen: Sequence[str], kind: str, rules: str | None, settings: Iterable[str], path: Path
) -> None:
    """Draw one figure and save it.

    Raises UsageError: an unknown kind or suffix, too many runs, several where one must be named, or one that has not
    recorded what is to be drawn.
    """
    if kind not in KINDS:
        raise UsageError(f"There is no plot of kind {kind!r}. {suggest(kind, KINDS, kind='kinds')}")
    if path.suffix.lower() not in SUFFIXES:
        ending = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise UsageError(f"{path} {ending}; a plot is written to FILE{', FILE'.join(SUFFIXES)}.")
    try:
        check_writable(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error
    runs = runs.only(chosen) if chosen else runs
    ids = runs.ids
    most = len(figures.RUN_COLOURS)
    plot = PLOTS[kind]
    if not plot.many_runs and len(ids) > 1:
        what = "A post-mortem" if kind == "postmortem" else f"A plot of kind {kind}"
        raise UsageError(f"{what} is of one run, and there are {len(ids)}: {_some(ids)}. Say which by --run ID.")
    if plot.many_runs and len(ids) > most:
        raise UsageError(f"{len(ids)} runs are too many for one figure; it holds {most}. Say which by --run ID.")
    values = read_settings(settings)
    if plot.many_runs:
        figure = plot.draw([_frames(runs, run_id) for run_id in ids])
    else:
        frames = _frames(runs, ids[0], replay(runs, rules, values=values))
        figure = plot.draw(frames, *(runs[ids[0]].table(table).collect() for table in plot.tables))
    try:
        figures.save(figure, path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error


def _frames(runs: Runs, run_id: str, result: Result | None = None) -> figures.RunFrames:
    names = [runs.manifest(one).name for one in runs.ids]
    name = runs.manifest(run_id).name
    return figures.RunFrames(
        name=name if names.count(name) == 1 else run_id,
        label=figures.short_names({one: runs.manifest(one).name for one in runs.ids})[run_id],
        updates=runs[run_id].table("ppo_updates").collect(),
        episodes=runs[run_id].table("episodes").collect(),
        incidents=None if result is None else result.incidents.filter(pl.col("run_id") == run_id),
        rules=None if result is None else result.rules_by_run[run_id],
    )


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:8]) + (f" and {len(ids) - 8} more" if len(ids) > 8 else "")
