"""What the commands print: answers on stdout; narration, problems and progress on stderr."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from esper_analytics.cli.output import TABLE, OutputFormat, save, show
from esper_analytics.errors import DataError
from esper_analytics.formatting import json_text, printable

if TYPE_CHECKING:
    import polars as pl

    from esper_analytics.maintenance.outcome import Outcome
    from esper_analytics.runs import Runs


# --- answers ----------------------------------------------------------------------------------------------------------


def emit(
    frame: pl.DataFrame,
    form: OutputFormat | None,
    output: Path | None,
    *,
    percent: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """Print rows, or write them to a file and say so; `percent` and `whole` as for `output.show`."""
    if output is None:
        show(frame, form or TABLE, percent=percent, whole=whole)
    else:
        save(frame, output, form)
        narrate(f"{frame.height} {'row' if frame.height == 1 else 'rows'} written to {output}")


def print_lines(lines: Iterable[str]) -> None:
    """Print lines of text to stdout; what a terminal would act on is escaped."""
    for line in lines:
        sys.stdout.write(printable(line) + "\n")


def print_json(value: Any) -> None:
    """Print a value to stdout as JSON."""
    sys.stdout.write(json_text(value, indent=2) + "\n")


# --- narration and problems -------------------------------------------------------------------------------------------


def narrate(*lines: str) -> None:
    """Print lines of text to stderr; what a terminal would act on is escaped."""
    for line in lines:
        typer.echo(printable(line), err=True)


def finish(runs: Runs, strict: bool) -> None:
    """Report what had to be left out of the answer. Raises DataError for it if `strict`."""
    problems = runs.problems_met
    narrate(*(problem.message for problem in problems))
    if problems and strict:
        raise DataError(f"{len(problems)} {'thing' if len(problems) == 1 else 'things'} had to be left out (--strict).")


def conclude(outcome: Outcome, form: OutputFormat | None, output: Path | None, strict: bool) -> None:
    """Print the outcome of maintenance and report its problems. Raises DataError for them if `strict`."""
    emit(outcome.frame, form, output)
    problems = outcome.problems
    narrate(*map(str, problems))
    if problems and strict:
        described = "is 1 problem" if len(problems) == 1 else f"are {len(problems)} problems"
        raise DataError(f"There {described} (--strict).")


def terminal_width() -> int:
    """Return the width of stderr in characters; 1000 if it is not a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    return console.width if console.is_terminal else 1000


# --- progress ---------------------------------------------------------------------------------------------------------


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], None] | None]:
    """Yield a function of (done, total) that draws a bar on stderr; None if that is not a terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    with progress_bars(unit, transient=True) as draw:
        yield lambda done, total: draw(unit, done, total)


@contextmanager
def progress_bars(unit: str, *, transient: bool = False) -> Iterator[Callable[[str, int, int], None]]:
    """Yield a function of (name, done, total): a bar per name on stderr, or without a terminal a line at its end."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = (TextColumn("  {task.description}", markup=False), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=console, disable=not console.is_terminal, transient=transient) as bars:
        tasks: dict[str, Any] = {}

        def draw(name: str, done: int, total: int) -> None:
            if name not in tasks:
                tasks[name] = bars.add_task(printable(name), total=total)
            bars.update(tasks[name], completed=done, total=total)
            if done >= total and not console.is_terminal:
                narrate(f"  {name}: {done:,} of {total:,} {unit}")

        yield draw
