"""The arguments and options that several commands share, as the types of a command's parameters."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from esper_analytics.cli.output import FORMATS, OutputFormat
from esper_analytics.errors import UsageError
from esper_analytics.formatting import format_list
from esper_analytics.plots.registry import PLOTS, PlotKind
from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.rules.ruleset import profiles
from esper_recorder.contract.suggest import suggest

VIEWS = ("incidents", "firings", "coverage", "diff")
_NAMING = "its name or the start of its run_id"


def _choice(name: str, choices: Mapping[str, Any], kind: str, unknown: str, described: str) -> Any:
    """An option whose values are the names of `choices`.

    Args:
        name: the option.
        choices: name -> value.
        kind: what the choices are, in the plural.
        unknown: the message for another name, with `{}` for that name.
        described: the help, with `{}` for all names.
    """

    def parse(choice: str) -> Any:
        if choice not in choices:
            raise UsageError(f"{unknown.format(choice)} {suggest(choice, choices, kind=kind)}")
        return choices[choice]

    *first, last = choices
    text = described.format(f"{', '.join(first)} or {last}")
    metavar = kind.replace("ies", "ys").removesuffix("s").upper()
    return typer.Option(name, metavar=metavar, parser=parse, help=text)


def _rules(name: str, described: str) -> Any:
    return typer.Option(name, metavar="RULES", help=described)


_ALL_RULES = f"A profile ({', '.join(profiles())}) or a TOML file. Default: the rules"
_AGAINST = "Compare with `live` (the run's own alarms), a profile or a TOML file"
_SEVERITIES = {severity.value: severity for severity in Severity}
_MANY = format_list([name for name, plot in PLOTS.items() if plot.many_runs])

_VIEW = _choice(
    "--show", {v: v for v in VIEWS}, "views", "--show {} is not known.", "What is printed: {}. Default: incidents."
)
_SEVERITY = "End with exit code 1 if an incident is at least this severe: {}."
_FAIL_ON = _choice("--fail-on", _SEVERITIES, "severities", "There is no severity {!r}.", _SEVERITY)
_PLOT = f"{{}}. Default: postmortem. Of several runs: {_MANY}."
_KIND = _choice("--kind", PLOTS, "kinds", "There is no plot of kind {!r}.", _PLOT)
_WRITTEN = (
    "How the answer is written: {} (with -o). Default: table. "
    "A csv has texts as they are: a spreadsheet computes those that begin with = + - or @."
)
_FORMAT = _choice("--format", FORMATS, "formats", "There is no format {!r}.", _WRITTEN)

Runs = Annotated[Path, typer.Argument(metavar="RUNS", help="A folder of runs, or one run's folder.")]
OneRun = Annotated[str | None, typer.Option("--run", metavar="ID", help=f"The run: {_NAMING}.")]
SomeRuns = Annotated[
    list[str] | None, typer.Option("--run", metavar="ID", help=f"Only this run: {_NAMING}; repeatable.")
]
Rules = Annotated[str | None, _rules("--rules", f"{_ALL_RULES} each run ran with.")]
CommonRules = Annotated[str | None, _rules("--rules", f"{_ALL_RULES} all runs ran with, else default.")]
Set = Annotated[list[str] | None, typer.Option("--set", metavar="RULE.FIELD=VALUE", help="Another number; repeatable.")]
Against = Annotated[str | None, _rules("--against", f"{_AGAINST}.")]
AgainstToDiff = Annotated[str | None, _rules("--against", f"{_AGAINST}; prints diff unless --show names another.")]
View = Annotated[str | None, _VIEW]
FailOn = Annotated[Severity | None, _FAIL_ON]
Kind = Annotated[PlotKind | None, _KIND]
Format = Annotated[OutputFormat | None, _FORMAT]
Output = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it to FILE; its ending sets the format.")
]
Strict = Annotated[bool, typer.Option("--strict", help="End with exit code 3 if anything had to be left out.")]
Timeout = Annotated[float, typer.Option(metavar="SECONDS", help="Stop the query after this time.", min=0.001)]
Memory = Annotated[str, typer.Option(metavar="SIZE", help="Memory the query may use.")]
