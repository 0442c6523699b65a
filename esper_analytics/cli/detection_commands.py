"""The commands `esper replay` and `sweep`: detection again, with the same rules or others."""

from __future__ import annotations

from typing import Annotated

import typer

from esper_analytics.cli import options
from esper_analytics.cli.command_line import App
from esper_analytics.cli.console import emit, finish, narrate, progress_bar, terminal_width
from esper_analytics.cli.run_selection import open_runs
from esper_analytics.errors import ExitCode

commands = App()


@commands.command(
    "replay",
    examples=[
        "esper replay runs/ --run hot",
        "esper replay runs/ --rules esper-review --set ratio_explosion.above=2 --against esper-review",
    ],
)
def replay_rules(
    path: options.Runs,
    run: options.SomeRuns = None,
    rules: options.Rules = None,
    values: options.Set = None,
    against: options.AgainstToDiff = None,
    show: options.View = None,
    fail_on: options.FailOn = None,
    form: options.Format = None,
    output: options.Output = None,
    strict: options.Strict = False,
) -> None:
    """Run detection again, with these rules or others."""
    from esper_analytics.cli.replay_arguments import LIVE, narration, replay_for
    from esper_analytics.postmortem.recording import (
        describe_definitions,
        describe_empty,
        describe_endings,
        describe_not_compared,
    )

    runs = open_runs(path, run)
    view = show or ("incidents" if against is None else "diff")
    with progress_bar("updates") as progress:
        frame, result = replay_for(runs, rules, values or (), against, view, progress)
    emit(frame, form, output)
    if frame.is_empty():
        narrate(describe_empty(result, view))
    narrate(*narration(result))
    if against == LIVE and view == "diff":
        narrate(*describe_not_compared(runs))
    narrate(*describe_endings(runs, terminal_width()))
    if (mixed := describe_definitions(runs)) is not None:
        narrate(mixed)
    finish(runs, strict)
    if fail_on is not None and result.reaches(fail_on):
        raise typer.Exit(int(ExitCode.FOUND))


@commands.command("sweep", examples=["esper sweep runs/ --rule ratio_explosion --field above --values 1.5:10:0.5"])
def sweep_values(
    path: options.Runs,
    rule: Annotated[str, typer.Option("--rule", metavar="RULE", help="The rule.")],
    values: Annotated[str, typer.Option("--values", metavar="VALUES", help="START:STOP:STEP, or a,b,c.")],
    field: Annotated[
        str, typer.Option("--field", metavar="FIELD", help="Which of its numbers, such as above.")
    ] = "above",
    rules: options.CommonRules = None,
    run: options.SomeRuns = None,
    form: options.Format = None,
    output: options.Output = None,
    strict: options.Strict = False,
) -> None:
    """One threshold at many values: one row per value, with the runs and updates that fire."""
    from esper_analytics.detection.rules import common_rules, load_rules
    from esper_analytics.detection.sweep import read_values, sweep
    from esper_analytics.postmortem.caveats import sweep_caveats

    numbers = read_values(values)
    runs = open_runs(path, run)
    rule_set = common_rules(runs) if rules is None else load_rules(rules)
    with progress_bar("values") as progress:
        frame = sweep(runs, rule_set, rule=rule, field=field, values=numbers, progress=progress)
    emit(frame, form, output)
    swept = next(candidate for candidate in rule_set.rules if candidate.name == rule)
    narrate(*sweep_caveats(runs, swept), f"rules {rule_set.name}")
    finish(runs, strict)
