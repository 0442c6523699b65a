"""The command `esper`: its version, its groups of commands and the entry point.

Covers: data goes to stdout, narration to stderr; an error ends with one message and an exit code of `errors.ExitCode`;
`--help` loads no engine, since each command imports what it needs when it runs.

Does not cover: logic. A command opens RUNS, calls one function of another package and prints what that returns.
"""

from __future__ import annotations

from typing import Annotated

import typer

from esper_analytics.cli import (
    browse_commands,
    demo_command,
    detection_commands,
    import_commands,
    maintenance_commands,
    postmortem_commands,
    process_limits,
    rules_commands,
    sql_commands,
)
from esper_analytics.cli.command_line import App, Group
from esper_analytics.cli.console import print_lines
from esper_analytics.errors import ExitCode

_SUMMARY = "SQL, anomaly replay and post-mortems for recorded PPO training runs."

app = App(
    cls=Group,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=_SUMMARY,
)
app.add_typer(browse_commands.commands)
app.add_typer(sql_commands.commands)
app.add_typer(detection_commands.commands)
app.add_typer(rules_commands.commands, name="rules")
app.add_typer(postmortem_commands.commands)
app.add_typer(import_commands.commands, name="import")
app.add_typer(maintenance_commands.commands)
app.add_typer(demo_command.commands)


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print_lines(f"{name} {version(name)}" for name in ("esper-analytics", "esper-recorder"))
        raise typer.Exit(int(ExitCode.DONE))


@app.callback(help=_SUMMARY)
def _options(
    version: Annotated[
        bool,
        typer.Option("--version", help="Show the versions and exit.", is_eager=True, callback=_print_version),
    ] = False,
) -> None: ...


def main() -> None:
    """Run the command `esper`."""
    process_limits.is_own_process = True
    app(prog_name="esper")


if __name__ == "__main__":
    main()
