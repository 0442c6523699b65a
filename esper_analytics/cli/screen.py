"""A table drawn for a terminal: shortened and folded to its width, or a block a row where that is not enough.

Only here is anything left out of a value: times to the second, a long text cut with an ellipsis, and a run_id without
its time (which names the run as well) where the whole does not fit. Pipes, files and other formats have it all.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING, Any

from esper_analytics.catalog.discovery import short_id
from esper_analytics.formatting import cell, shortened
from esper_analytics.formatting import percent as percentage

if TYPE_CHECKING:
    import polars as pl

ROWS_ON_SCREEN = 1000
_LONGEST_WORD = 40  # what is longer may be broken anywhere
_SECONDS = ("started", "ended_at")  # the times of a run, which nobody reads to the millisecond
_GAPS = (2, 1)  # between columns; the narrower where the wider does not fit

# Where a text may go on in the next line: after a space and after what joins words in names and paths, not in a date.
_BREAK = re.compile(r"(?<=[\s_/,;])(?=[^\s_/,;])|(?<=[^\W\d]-)(?=\w)")


def draw(frame: pl.DataFrame, *, percent: Sequence[str] = (), whole: Sequence[str] = ()) -> None:
    """Draw a frame on the terminal that stdout is; see `output.show`."""
    from rich.console import Console

    console = Console(highlight=False)
    shown = frame.head(ROWS_ON_SCREEN)
    columns = [[_cell(value, name, percent) for value in shown[name]] for name in shown.columns]
    cut = False
    for position, name in enumerate(shown.columns):
        if name not in whole:
            shorter = [shortened(text) for text in columns[position]]
            cut |= shorter != columns[position]
            columns[position] = shorter
    names = shown.columns
    if "run_id" in names and sum(_wanted(names, columns)) + _GAPS[0] * (len(names) - 1) > console.width:
        columns[names.index("run_id")] = _short_ids(columns[names.index("run_id")])
    fixed = [name == "run_id" or dtype.is_numeric() for name, dtype in shown.schema.items()]
    for gap in _GAPS:
        widths = _fitting(names, columns, console.width - gap * (len(names) - 1), fixed=fixed)
        if widths is not None:
            _draw_table(console, shown, columns, widths, gap)
            break
    else:
        _draw_records(console, shown, columns)
    if frame.height > ROWS_ON_SCREEN:
        sys.stderr.write(f"The first {ROWS_ON_SCREEN} of {frame.height} rows; --format csv or -o FILE has them all.\n")
    if cut:
        sys.stderr.write("Long texts are shortened; --format json or -o FILE has the whole.\n")


def fold(text: str, width: int) -> list[str]:
    """A text as lines of at most `width` characters, broken inside a word only where the word is longer.

    >>> fold("clip_fraction_high", 9), fold("abcdef", 4)
    (['clip_', 'fraction_', 'high'], ['abcd', 'ef'])
    """
    lines = [""]
    for piece in _BREAK.split(text):
        if len(lines[-1]) + len(piece.rstrip()) > width and lines[-1]:
            lines.append("")
        while len(piece.rstrip()) > width:
            lines[-1], piece = piece[:width], piece[width:]
            lines.append("")
        lines[-1] += piece
    return [line.rstrip() for line in lines]


def _cell(value: Any, name: str, percent: Sequence[str]) -> str:
    if name in percent and isinstance(value, float):
        return percentage(value)
    if name in _SECONDS and isinstance(value, datetime):
        return cell(value.replace(microsecond=0)).replace("T", " ")
    return cell(value)


def _short_ids(ids: Sequence[str]) -> list[str]:
    """The run_ids without their times, unless two would be the same."""
    short = {one: short_id(one) for one in ids}
    return [short[one] for one in ids] if len(set(short.values())) == len(short) else list(ids)


# --- widths -----------------------------------------------------------------------------------------------------------


def _wanted(names: Sequence[str], columns: Sequence[Sequence[str]]) -> list[int]:
    """How wide each column is where nothing is folded."""
    return [max([len(name), *map(len, texts)]) for name, texts in zip(names, columns, strict=True)]


def _fitting(
    names: Sequence[str], columns: Sequence[Sequence[str]], width: int, *, fixed: Sequence[bool]
) -> list[int] | None:
    """A width for each column so that all fit; None where they cannot.

    Headings are folded first, then sentences, then names; of these the widest.
    """
    wanted = _wanted(names, columns)
    values = [max(map(len, texts), default=0) for texts in columns]
    prose = [not number and any(" " in text for text in texts) for texts, number in zip(columns, fixed, strict=True)]
    least = []
    for name, texts, number in zip(names, columns, fixed, strict=True):
        pieces = [len(text) if number else _longest_piece(text) for text in texts]
        least.append(max([_longest_piece(name), *pieces]))

    def willing(place: int) -> tuple[bool, bool, int]:
        return wanted[place] > values[place], prose[place], wanted[place]

    while sum(wanted) > width:
        slack = [place for place in range(len(names)) if wanted[place] > least[place]]
        if not slack:
            return None
        wanted[max(slack, key=willing)] -= 1
    return wanted


def _longest_piece(text: str) -> int:
    return max((min(len(piece.rstrip()), _LONGEST_WORD) for piece in _BREAK.split(text)), default=0)


# --- drawing ----------------------------------------------------------------------------------------------------------


def _draw_table(
    console: Any, frame: pl.DataFrame, columns: Sequence[Sequence[str]], widths: Sequence[int], gap: int
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0), show_edge=False)
    for (name, dtype), width in zip(frame.schema.items(), widths, strict=True):
        heading = Text("\n".join(fold(name, width)))
        table.add_column(heading, justify="right" if dtype.is_numeric() else "left", overflow="fold")
    for row in zip(*columns, strict=True):
        folded = ("\n".join(fold(text, width)) for text, width in zip(row, widths, strict=True))
        table.add_row(*(Text(text, style="dim" if text == "NULL" else "") for text in folded))
    console.print(table)


def _draw_records(console: Any, frame: pl.DataFrame, columns: Sequence[Sequence[str]]) -> None:
    """A wide table as one block a row, a line a column."""
    from rich.text import Text

    width = max(len(name) for name in frame.columns)
    for number, row in enumerate(zip(*columns, strict=True), 1):
        console.rule(Text(f"row {number}"), align="left", style="dim")
        for name, text in zip(frame.columns, row, strict=True):
            console.print(Text(f"{name.ljust(width)}  ", style="bold"), Text(text), sep="", soft_wrap=True)
