"""How the command `esper` reads its words, and how a mistake in them ends."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterable
from enum import StrEnum
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

from esper_analytics.errors import EsperError, ExitCode, UsageError, did_you_mean

_Function = TypeVar("_Function", bound=Callable[..., Any])


class Group(TyperGroup):
    """Turns what a person can do something about into a sentence and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except EsperError as error:
            typer.echo(f"esper: {error}", err=True)
            ctx.exit(int(error.exit_code))
        except MemoryError:
            typer.echo("esper: The answer needs more memory than the command may use. Ask for less of it.", err=True)
            ctx.exit(int(ExitCode.USAGE))
        except KeyboardInterrupt:
            typer.echo("esper: interrupted", err=True)
            ctx.exit(int(ExitCode.INTERRUPTED))
        except BrokenPipeError:
            # Whoever read our output has seen enough. Nothing may be flushed to it at exit either.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            ctx.exit(int(ExitCode.DONE))


class Command(TyperCommand):
    """Refuses an option that is given twice where only the last would count."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        given: list[Any] = self.make_parser(ctx).parse_args(args=list(args))[2]
        for option in dict.fromkeys(given):
            times = given.count(option)
            if times > 1 and option.param_type_name == "option" and not (option.multiple or option.is_flag):
                raise UsageError(f"{option.opts[-1]} is given {times} times, and only one counts. Give it once.")
        try:
            return super().parse_args(ctx, args)
        except typer.BadParameter as error:
            if not hasattr(error, "param_type"):  # which only one that is missing has
                raise
            raise UsageError(self._missing(ctx, error.param)) from error

    def _missing(self, ctx: Any, parameter: Any) -> str:
        """What a call lacks, and how it is written."""
        word = (
            parameter.metavar if parameter.param_type_name == "argument" else f"{parameter.opts[0]} {parameter.metavar}"
        )
        what = (parameter.help or "").rstrip(".")
        example = next((line for line in (self.epilog or "").splitlines() if line.startswith("esper ")), None)
        such = f" Such as: {example}" if example else ""
        path = " ".join(["esper", *ctx.command_path.split()[1:]])  # whatever the program was started as
        return f"{path} needs {word}{f' ({what})' if what else ''}.{such}"


class App(typer.Typer):
    """Commands, each with examples below its help."""

    def command(self, *args: Any, examples: Iterable[str] = (), **settings: Any) -> Callable[[_Function], _Function]:
        lines = [*examples]
        if lines:
            # An empty line between them: others are joined by the help.
            settings["epilog"] = "\n\n".join([f"Example{'s' if len(lines) > 1 else ''}:", *lines])
        return super().command(*args, cls=Command, **settings)


class Format(StrEnum):
    """The values of --format; `output` holds what they do."""

    table = "table"
    csv = "csv"
    json = "json"
    ndjson = "ndjson"
    markdown = "markdown"
    parquet = "parquet"


class Plot(StrEnum):
    """The values of --kind; `report_command` holds what they do."""

    postmortem = "postmortem"
    ratio = "ratio"
    gradients = "gradients"
    heads = "heads"
    phases = "phases"
    compare = "compare"


class What(StrEnum):
    """The values of --what; `replay.command` holds what they do."""

    incidents = "incidents"
    firings = "firings"
    coverage = "coverage"
    diff = "diff"


_Choice = TypeVar("_Choice", bound=StrEnum)


def one_of(choices: type[_Choice], unknown: str, kind: str) -> Callable[[str], _Choice]:
    """What reads an option's word. Raises UsageError with near-by words; `unknown` says what is wrong, of a `{}`."""

    def read(word: str) -> _Choice:
        try:
            return choices(word)
        except ValueError:
            raise UsageError(f"{unknown.format(word)} {did_you_mean(word, list(choices), kind=kind)}") from None

    return read


def listed_words(choices: type[StrEnum]) -> str:
    """The words of a choice, for a help text."""
    *first, last = choices
    return f"{', '.join(first)} or {last}"
