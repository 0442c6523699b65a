"""How `esper` parses its arguments, and how an error ends it: one message on stderr and an exit code."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup
from typer.exceptions import TyperException

from esper_analytics.cli.console import narrate
from esper_analytics.errors import EsperError, ExitCode, UsageError
from esper_analytics.formatting import printable

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Group(TyperGroup):
    """Turns an error that a user can act on into a message and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()  # a closed pipe must fail here, not at exit
            return result
        except EsperError as error:
            narrate(f"esper: {error}")
            ctx.exit(int(error.exit_code))
        except MemoryError:
            narrate("esper: The answer needs more memory than the command may use. Select less.")
            ctx.exit(int(ExitCode.USAGE))
        except KeyboardInterrupt:
            narrate("esper: interrupted")
            ctx.exit(int(ExitCode.INTERRUPTED))
        except BrokenPipeError:
            # The reader closed the pipe, as `head` does. Without this, Python's flush at exit fails again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(int(ExitCode.DONE))
        except TyperException as error:
            if hasattr(error, "message"):  # it repeats an argument
                error.message = printable(error.message)
            raise


class Command(TyperCommand):
    """Refuses an option that is given twice if only the last would count."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        options: list[Any] = self.make_parser(ctx).parse_args(args=list(args))[2]
        for option in dict.fromkeys(options):
            times = options.count(option)
            if times > 1 and option.param_type_name == "option" and not (option.multiple or option.is_flag):
                raise UsageError(f"{option.opts[-1]} is given {times} times, and only one counts. Give it once.")
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if not hasattr(error, "param_type"):  # which only the error for a missing parameter has
                raise
            raise UsageError(self._missing(ctx, error.param)) from error

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except Exception as error:
            # Polars reads pages without their checksums; if it fails, some part is damaged. It is loaded by then.
            if not type(error).__module__.startswith("polars.") or not isinstance(path := ctx.params.get("path"), Path):
                raise
            from esper_analytics.runs import damage_in

            raise damage_in(path, error) from error

    def _missing(self, ctx: Any, parameter: Any) -> str:
        """The message for a missing parameter: what it is, and an example."""
        argument = parameter.param_type_name == "argument"
        name = parameter.metavar if argument else f"{parameter.opts[0]} {parameter.metavar}"
        meaning = f" ({parameter.help.rstrip('.')})" if parameter.help else ""
        examples = [line for line in (self.epilog or "").splitlines() if line.startswith("esper ")]
        such_as = f" Such as: {examples[0]}" if examples else ""
        path = " ".join(["esper", *ctx.command_path.split()[1:]])  # whatever the program was started as
        return f"{path} needs {name}{meaning}.{such_as}"


class App(typer.Typer):
    """Commands, each with examples below its help."""

    def command(self, *args: Any, examples: Iterable[str] = (), **settings: Any) -> Callable[[_Function], _Function]:
        lines = [*examples]
        if lines:
            # Blank lines between them: the help joins adjacent lines to one paragraph.
            settings["epilog"] = "\n\n".join([f"Example{'s' if len(lines) > 1 else ''}:", *lines])
        return super().command(*args, cls=Command, **settings)
