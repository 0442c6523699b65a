"""The commands `esper forensics`, `report` and `plot`: what went wrong, closely, as a whole and as a figure."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from esper_analytics.cli import options
from esper_analytics.cli.command_line import App
from esper_analytics.cli.console import emit, finish, narrate, print_json, print_lines
from esper_analytics.cli.output import JSON, MARKDOWN, TABLE, save_lines
from esper_analytics.cli.run_selection import open_one_run, open_runs, resolve
from esper_analytics.plots.registry import PLOTS

commands = App()


@commands.command(
    "forensics",
    examples=[
        "esper forensics runs/ --run hot",
        "esper forensics runs/ --run hot --update 12 --format markdown -o hot-12.md",
    ],
)
def examine_update(
    path: options.Runs,
    run: options.OneRun = None,
    update: Annotated[
        int | None,
        typer.Option(
            metavar="N", help="The update. Default: the onset of a ratio explosion, else of the worst incident."
        ),
    ] = None,
    form: options.Format = None,
    output: options.Output = None,
    strict: options.Strict = False,
) -> None:
    """What happened around a ratio explosion, or any incident: minibatches, worst transitions by head, layers."""
    from esper_analytics.postmortem.forensics import as_frame, as_lines, examine

    runs, run_id = open_one_run(path, run)
    forensics = examine(runs, run_id, update)
    markdown = form is MARKDOWN or (form is None and output is not None and output.suffix == ".md")
    if markdown and output is not None:
        save_lines(as_lines(forensics, markdown=True), output)
        narrate(f"written to {output}")
    elif output is None and form in (None, TABLE, MARKDOWN):
        print_lines(as_lines(forensics, markdown=markdown))
    elif output is None and form is JSON:
        print_json(asdict(forensics))
    else:
        emit(as_frame(forensics), form, output)
    finish(runs, strict)


@commands.command(
    "report",
    examples=["esper report runs/ -o report.html", "esper report runs/ --run hot --against esper-review -o hot.md"],
)
def write_report(
    path: options.Runs,
    output: Annotated[
        Path,
        typer.Option("-o", "--output", metavar="FILE", help="FILE.html, FILE.md (plots in a folder) or FILE.json."),
    ],
    run: options.SomeRuns = None,
    rules: options.Rules = None,
    values: options.Set = None,
    against: options.Against = None,
    strict: options.Strict = False,
) -> None:
    """A post-mortem: what broke first, incidents, curves, and what could not be evaluated."""
    from esper_analytics.cli.replay_arguments import narration
    from esper_analytics.cli.report_arguments import report_for
    from esper_analytics.postmortem.render import plots_folder

    runs = open_runs(path)
    names = resolve(runs, run or ())
    runs = runs.select(*names) if names else runs
    arguments = ["esper", "report", str(path), *(word for name in names for word in ("--run", name))]
    arguments += ["--rules", rules] if rules is not None else []
    arguments += [word for value in values or () for word in ("--set", value)]
    arguments += ["--against", against] if against is not None else []
    command = shlex.join([*arguments, "-o", str(output)])
    result = report_for(runs, rules, values or (), against, output, command)
    narrate(*narration(result))
    folder = plots_folder(output)
    plots = f", its plots to {folder}" if output.suffix.lower() == ".md" and folder.is_dir() else ""
    narrate(f"report written to {output}{plots}")
    finish(runs, strict)


@commands.command(
    "plot",
    examples=[
        "esper plot runs/ --run hot -o hot.png",
        "esper plot runs/ --run hot --kind ratio -o ratio.png",
        "esper plot runs/ --kind compare -o compare.svg",
    ],
)
def draw_plot(
    path: options.Runs,
    output: Annotated[Path, typer.Option("-o", "--output", metavar="FILE", help="FILE.png, FILE.svg or FILE.pdf.")],
    run: options.SomeRuns = None,
    kind: options.Kind = None,
    rules: options.Rules = None,
    values: options.Set = None,
    strict: options.Strict = False,
) -> None:
    """One figure of a run, or of several."""
    from esper_analytics.cli.report_arguments import plot_for
    from esper_analytics.postmortem.recording import describe_definitions

    runs = open_runs(path, run)
    plot = kind or PLOTS["postmortem"]
    plot_for(runs, plot, rules, values or (), output)
    narrate(f"plot written to {output}")
    if plot.many_runs and (mixed := describe_definitions(runs)) is not None:
        narrate(mixed)
    finish(runs, strict)
