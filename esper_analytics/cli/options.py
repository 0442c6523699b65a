"""The arguments and options that several commands share, as the types of a command's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from esper_analytics.cli.command_line import one_of
from esper_analytics.cli.output import FORMATS, OutputFormat
from esper_analytics.formatting import format_list
from esper_analytics.plots.registry import PLOTS, PlotKind
from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.rules.ruleset import profiles

VIEWS = ("incidents", "firings", "coverage", "diff")


def _choice(option: str, choices: Mapping[str, Any], unknown: str, kind: str, described: str) -> Any:
    """An option whose values are the names of `choices`; `{}` in the help text stands for them."""
    *first, last = choices
    text = described.format(f"{', '.join(first)} or {last}")
    return typer.Option(option, metavar=option.strip("-").upper(), parser=one_of(choices, unknown, kind), help=text)


def _rules(default: str) -> Any:
    text = f"A profile ({', '.join(profiles())}) or a TOML file. Default: {default}."
    return typer.Option("--rules", metavar="RULES", help=text)


def _against(more: str = "") -> Any:
    text = f"Compare with `live` (the run's own alarms), a profile or a TOML file{more}."
    return typer.Option("--against", metavar="RULES", help=text)


_NAMING = "its name or the start of its run_id"
_OF_SEVERAL_RUNS = format_list([name for name, plot in PLOTS.items() if plot.many_runs])
_SEVERITIES = {severity.value: severity for severity in Severity}

Runs = Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of runs, or one run's folder.")]
OneRun = Annotated[str | None, typer.Option("--run", metavar="ID", help=f"The run: {_NAMING}.")]
SomeRuns = Annotated[
    list[str] | None, typer.Option("--run", metavar="ID", help=f"Only this run: {_NAMING}; repeatable.")
]

Rules = Annotated[str | None, _rules("the rules each run ran with")]
CommonRules = Annotated[str | None, _rules("the rules all runs ran with, else default")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="RULE.FIELD=VALUE", help="Another number; repeatable.")]
Against = Annotated[str | None, _against()]
AgainstToDiff = Annotated[str | None, _against("; prints diff unless --show names another")]
View = Annotated[
    str | None,
    _choice(
        *("--show", {view: view for view in VIEWS}, "--show {} is not known.", "values"),
        "What is printed: {}. Default: incidents.",
    ),
]
FailOn = Annotated[
    Severity | None,
    _choice(
        *("--fail-on", _SEVERITIES, "There is no severity {!r}.", "severities"),
        "End with exit code 1 if an incident is at least this severe: {}.",
    ),
]
Kind = Annotated[
    PlotKind | None,
    _choice(
        *("--kind", PLOTS, "There is no plot of kind {!r}.", "kinds"),
        f"{{}}. Default: postmortem. Of several runs: {_OF_SEVERAL_RUNS}.",
    ),
]

Format = Annotated[
    OutputFormat | None,
    _choice(
        *("--format", FORMATS, "There is no format {!r}.", "formats"),
        "How the answer is written: {} (with -o). Default: table.",
    ),
]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it to FILE; its ending sets the format.")
]
Strict = Annotated[bool, typer.Option("--strict", help="End with exit code 3 if anything had to be left out.")]

Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Stop the query after this time.", min=0.001)]
Memory = Annotated[str, typer.Option(metavar="SIZE", help="Memory the query may use.")]
