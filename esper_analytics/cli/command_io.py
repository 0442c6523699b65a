"""What the commands of `esper` print and ask alike: formats, files, narration, progress.

Data goes to stdout, narration to stderr.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from esper_analytics.cli.command_line import Format, listed_words, one_of

if TYPE_CHECKING:
    import polars as pl

FormatOption = Annotated[
    Format | None,
    typer.Option(
        "--format",
        metavar="FORMAT",
        parser=one_of(Format, "There is no format {!r}.", "formats"),
        help=f"How the answer is written: {listed_words(Format)} (with -o). A table where nothing is said.",
    ),
]
OutputOption = Annotated[
    Path | None, typer.Option("-o", "--output", metavar="FILE", help="Write it to FILE; its ending tells the format.")
]
StrictOption = Annotated[bool, typer.Option("--strict", help="End with exit code 3 where anything had to be left out.")]


def emit(
    frame: pl.DataFrame,
    form: Format | None,
    output: Path | None,
    *,
    percent: Sequence[str] = (),
    whole: Sequence[str] = (),
) -> None:
    """Print an answer, or write it to a file and say so; `percent` and `whole` as in `output.show`."""
    from esper_analytics.cli.output import save, show

    name = None if form is None else form.value
    if output is None:
        show(frame, name, percent=percent, whole=whole)
    else:
        save(frame, output, name)
        tell(f"{frame.height} {'row' if frame.height == 1 else 'rows'} written to {output}")


def tell(text: str) -> None:
    """Say something beside the data."""
    typer.echo(text, err=True)


def print_lines(lines: Iterable[str]) -> None:
    """Print text lines as data."""
    for line in lines:
        sys.stdout.write(line + "\n")


def print_json(value: Any) -> None:
    """Print plain data as JSON."""
    import json

    from esper_analytics.cli.output import to_json

    print_lines([json.dumps(to_json(value), indent=2, ensure_ascii=False, allow_nan=False)])


@contextmanager
def progress_bar(unit: str) -> Iterator[Callable[[int, int], None] | None]:
    """Called with done and of how much: a bar on stderr that goes when it is done; None where that is no terminal."""
    if not sys.stderr.isatty():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (BarColumn(), MofNCompleteColumn(), TextColumn(unit), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(unit, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
