"""The arguments of `esper report` and `esper plot`, checked before the work and carried out."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from esper_analytics.cli.replay_arguments import LIVE, read_settings
from esper_analytics.detection.replay import Result, replay
from esper_analytics.detection.rules import load_rules
from esper_analytics.errors import UsageError, writing
from esper_analytics.formatting import format_list
from esper_analytics.plots import figures
from esper_analytics.plots.registry import SUFFIXES, PlotKind
from esper_analytics.plots.run_frames import short_names
from esper_analytics.postmortem.findings import Against, run_frames
from esper_analytics.postmortem.render import check_path, report
from esper_analytics.runs import Runs
from esper_recorder.storage.atomic import check_writable


def report_for(
    runs: Runs, rules: str | None, settings: Iterable[str], against: str | None, path: Path, command: str
) -> Result:
    """Replay and write the report. Raises UsageError: an argument is invalid."""
    check_path(path)
    values = read_settings(settings)
    other_rules = None if against in (None, LIVE) else load_rules(str(against))
    result = replay(runs, rules, values=values)
    other: Against | None = "live" if against == LIVE else None if other_rules is None else replay(runs, other_rules)
    report(result, path, against=other, command=command)
    return result


def plot_for(runs: Runs, plot: PlotKind, rules: str | None, settings: Iterable[str], path: Path) -> None:
    """Draw one figure and save it.

    Raises UsageError: an unknown suffix, too many runs, several for a plot of one, or one that has not recorded what
    the plot shows.
    """
    if path.suffix.lower() not in SUFFIXES:
        ending = f"ends in {path.suffix}" if path.suffix else "has no ending"
        raise UsageError(f"{path} {ending}; a plot is written to FILE{', FILE'.join(SUFFIXES)}.")
    with writing(path):
        check_writable(path)
    ids, most = runs.ids, len(figures.RUN_COLOURS)
    if not plot.many_runs and len(ids) > 1:
        what = "A post-mortem" if plot.name == "postmortem" else f"A plot of kind {plot.name}"
        listed = format_list(ids, most=8)
        raise UsageError(f"{what} is of one run, and there are {len(ids)}: {listed}. Say which by --run ID.")
    if plot.many_runs and len(ids) > most:
        raise UsageError(f"{len(ids)} runs are too many for one figure; it holds {most}. Say which by --run ID.")
    values = read_settings(settings)
    names = short_names({run_id: runs.manifest(run_id).name for run_id in ids})
    if plot.many_runs:
        figure = plot.draw([run_frames(runs, run_id, names[run_id]) for run_id in ids])
    else:
        frames = run_frames(runs, ids[0], names[ids[0]], replay(runs, rules, values=values))
        figure = plot.draw(frames, *(runs.table(table).drop_nulls("update").collect() for table in plot.tables))
    with writing(path):
        figures.save(figure, path)
