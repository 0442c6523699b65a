"""The commands `esper rules list`, `show` and `check`."""

from __future__ import annotations

from typing import Annotated

import typer

from esper_analytics.cli import options
from esper_analytics.cli.command_line import App
from esper_analytics.cli.console import emit, narrate
from esper_analytics.cli.output import print_exactly
from esper_analytics.errors import ExitCode

commands = App(no_args_is_help=True, help="Rule profiles: list them, print one, check a file of rules.")


@commands.command("list", examples=["esper rules list"])
def list_profiles(form: options.Format = None, output: options.Output = None) -> None:
    """The shipped profiles."""
    from esper_analytics.detection.rules import profile_table

    emit(profile_table(), form, output)


@commands.command("show", examples=["esper rules show default > my.toml"])
def show_rules(rules: Annotated[str, typer.Argument(metavar="PROFILE", help="A profile's name, or a file.")]) -> None:
    """A profile's text, as a start for other rules."""
    from esper_analytics.detection.rules import load_rules

    print_exactly(load_rules(rules).text.removesuffix("\n").split("\n"))


@commands.command("check", examples=["esper rules check my.toml"])
def check_rules(
    rules: Annotated[str, typer.Argument(metavar="FILE", help="A TOML file of rules, or a profile's name.")],
    form: options.Format = None,
    output: options.Output = None,
) -> None:
    """Check a file of rules and run its unit tests. Exit code 1 if one fails."""
    from esper_analytics.detection.rules import run_unit_tests

    tests = run_unit_tests(rules)
    emit(tests, form, output)
    failed = int((~tests["passed"]).sum())
    narrate(f"{rules} is well-formed; {tests.height - failed} of {tests.height} tests pass")
    if failed:
        raise typer.Exit(int(ExitCode.FOUND))
