"""How rows are printed and saved: one entry of `FORMATS` per format, from which choices, messages and help derive.

Covers: NaN and infinities survive in every format: `NaN`, `inf`, `-inf` in table, csv and markdown; the strings "NaN",
"Infinity", "-Infinity" in json and ndjson, which have no such numbers; parquet stores them. Times are UTC. NULL is
`NULL` in table and markdown, an empty field in csv (an empty text is `""`), null in json.

Does not cover: a terminal. Only there is a table shortened and folded to the width, or drawn as one block per row: its
times to the second, long texts cut, a run_id without its time. Pipes, files and other formats get the whole.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from esper_analytics.errors import UsageError, writing
from esper_analytics.formatting import (
    format_percent,
    format_value,
    json_text,
    markdown_table,
    printable,
    shorten,
    text_table,
    to_text,
)
from esper_recorder.storage.atomic import atomic_file

if TYPE_CHECKING:
    import polars as pl

ROWS_ON_TERMINAL = 1000


@dataclass(frozen=True, slots=True)
class OutputFormat:
    """One way of writing rows."""

    name: str
    suffixes: tuple[str, ...]
    """File endings that select this format if none is named."""
    lines: Callable[[pl.DataFrame], Iterable[str]] | None
    """The lines of the text, without their ends; None for a binary format."""


def show(frame: pl.DataFrame, form: OutputFormat, *, percent: Sequence[str] = (), whole: Sequence[str] = ()) -> None:
    """Print rows to stdout. Raises UsageError for a binary format.

    On a terminal a table is drawn to fit: the columns `percent` as percentages, texts shortened but those of `whole`.
    """
    if form.lines is None:
        raise UsageError(f"{form.name} is not text. Add -o FILE{form.suffixes[0]}.")
    if form is TABLE and sys.stdout.isatty():
        _draw(frame, percent, whole)
        return
    print_exactly(form.lines(frame))


def print_exactly(lines: Iterable[str]) -> None:
    """Print lines that a program may read: unchanged, but escaped on a terminal, which would act on them."""
    terminal = sys.stdout.isatty()
    for line in lines:
        sys.stdout.write((printable(line, keep="\t") if terminal else line) + "\n")


def save(frame: pl.DataFrame, path: Path, form: OutputFormat | None = None) -> None:
    """Write rows to a file, whole or not at all, in the format that its ending selects unless one is given.

    Raises UsageError if the ending selects none, or if the file cannot be written.
    """
    form = form or next((row for row in FORMATS.values() if path.suffix.lower() in row.suffixes), None)
    if form is None:
        raise UsageError(f"The ending of {path.name} selects no format. Add --format: {', '.join(FORMATS)}.")
    if form.lines is not None:
        save_lines(form.lines(frame), path)
        return
    with writing(path), atomic_file(path) as file:
        _write_parquet(frame, file)


def save_lines(lines: Iterable[str], path: Path) -> None:
    """Write text to a file, whole or not at all. Raises UsageError if it cannot be written."""
    with writing(path), atomic_file(path) as file:
        file.writelines(f"{line}\n".encode() for line in lines)


# --- formats ----------------------------------------------------------------------------------------------------------


def _csv(frame: pl.DataFrame) -> Iterable[str]:
    yield ",".join(_csv_field(name) for name in frame.columns)
    for row in frame.iter_rows():
        yield ",".join("" if value is None else _csv_field(to_text(value)) for value in row)


def _csv_field(text: str) -> str:
    if text == "" or any(character in text for character in ',"\n\r'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _json(frame: pl.DataFrame) -> Iterable[str]:
    if frame.is_empty():
        yield "[]"
        return
    yield "["
    for number, line in enumerate(_ndjson(frame), 1):
        yield line + ("," if number < frame.height else "")
    yield "]"


def _ndjson(frame: pl.DataFrame) -> Iterable[str]:
    for row in frame.iter_rows(named=True):
        yield json_text(row)


def _markdown(frame: pl.DataFrame) -> Iterable[str]:
    return markdown_table(frame.columns, _texts(frame), _numeric(frame))


def _aligned(frame: pl.DataFrame) -> Iterable[str]:
    return text_table(frame.columns, lambda: _texts(frame), _numeric(frame)) if frame.columns else ()


def _texts(frame: pl.DataFrame) -> Iterator[list[str]]:
    return ([format_value(value) for value in row] for row in frame.iter_rows())


def _numeric(frame: pl.DataFrame) -> list[bool]:
    return [dtype.is_numeric() for dtype in frame.dtypes]


def _write_parquet(frame: pl.DataFrame, file: BinaryIO) -> None:
    import polars as pl
    import pyarrow.parquet as pq

    from esper_recorder.storage.parquet import writer_options

    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    pq.write_table(table, file, **writer_options(table.schema))


TABLE = OutputFormat("table", (".txt",), _aligned)
JSON = OutputFormat("json", (".json",), _json)
MARKDOWN = OutputFormat("markdown", (".md",), _markdown)
FORMATS = {
    form.name: form
    for form in (
        TABLE,
        OutputFormat("csv", (".csv",), _csv),
        JSON,
        OutputFormat("ndjson", (".ndjson", ".jsonl"), _ndjson),
        MARKDOWN,
        OutputFormat("parquet", (".parquet",), None),
    )
}


# --- the terminal -----------------------------------------------------------------------------------------------------

_LONGEST_WORD = 40  # a longer one may be broken anywhere
_SECONDS = ("started", "ended_at")  # times that are read to the second
_GAPS = (2, 1)  # between columns; the narrower if the wider does not fit

# Where a text may be broken: after a space and after what joins words in names and paths, but not within a date.
_BREAK = re.compile(r"(?<=[\s_/,;])(?=[^\s_/,;])|(?<=[^\W\d]-)(?=\w)")


def _draw(frame: pl.DataFrame, percent: Sequence[str], whole: Sequence[str]) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    head = frame.head(ROWS_ON_TERMINAL)
    full = [[_terminal_cell(value, name, percent) for value in head[name]] for name in head.columns]
    names = [printable(name) for name in head.columns]
    columns = [
        texts if name in whole else [shorten(text) for text in texts] for name, texts in zip(names, full, strict=True)
    ]
    cut = columns != full
    if "run_id" in names and sum(_unfolded(names, columns)) + _GAPS[0] * (len(names) - 1) > console.width:
        columns[names.index("run_id")] = _short_ids(columns[names.index("run_id")])
    unbroken = [name == "run_id" or dtype.is_numeric() for name, dtype in head.schema.items()]
    for gap in _GAPS:
        widths = _fit(names, columns, console.width - gap * (len(names) - 1), unbroken)
        if widths is not None:
            _draw_table(console, head, columns, widths, gap)
            break
    else:
        _draw_records(console, names, columns)
    if frame.height > ROWS_ON_TERMINAL:
        sys.stderr.write(
            f"The first {ROWS_ON_TERMINAL} of {frame.height} rows; --format csv or -o FILE has them all.\n"
        )
    if cut:
        sys.stderr.write("Long texts are shortened; --format json or -o FILE has the whole.\n")


def _terminal_cell(value: Any, name: str, percent: Sequence[str]) -> str:
    if name in percent and isinstance(value, float):
        return format_percent(value)
    if name in _SECONDS and isinstance(value, datetime):
        return format_value(value.replace(microsecond=0)).replace("T", " ")
    return format_value(value)


def _short_ids(ids: Sequence[str]) -> list[str]:
    """Drop the time from run_ids, unless two would then be the same."""
    from esper_analytics.catalog.discovery import short_id

    short = {run_id: short_id(run_id) for run_id in ids}
    return [short[run_id] for run_id in ids] if len(set(short.values())) == len(short) else list(ids)


def _unfolded(names: Sequence[str], columns: Sequence[Sequence[str]]) -> list[int]:
    """The width of each column if nothing is folded."""
    return [max([len(name), *map(len, texts)]) for name, texts in zip(names, columns, strict=True)]


def _fit(
    names: Sequence[str], columns: Sequence[Sequence[str]], width: int, unbroken: Sequence[bool]
) -> list[int] | None:
    """Return a width for each column so that all fit; None if they cannot.

    Headings are folded first, then prose, then names; among these the widest.
    """
    widths = _unfolded(names, columns)
    values = [max(map(len, texts), default=0) for texts in columns]
    prose = [not fixed and any(" " in text for text in texts) for texts, fixed in zip(columns, unbroken, strict=True)]
    least = []
    for name, texts, fixed in zip(names, columns, unbroken, strict=True):
        pieces = [len(text) if fixed else _longest_piece(text) for text in texts]
        least.append(max([_longest_piece(name), *pieces]))

    def priority(column: int) -> tuple[bool, bool, int]:
        return widths[column] > values[column], prose[column], widths[column]

    while sum(widths) > width:
        foldable = [column for column in range(len(names)) if widths[column] > least[column]]
        if not foldable:
            return None
        widths[max(foldable, key=priority)] -= 1
    return widths


def _longest_piece(text: str) -> int:
    return max((min(len(piece.rstrip()), _LONGEST_WORD) for piece in _BREAK.split(text)), default=0)


def _fold(text: str, width: int) -> str:
    """Fold a text to lines of at most `width` characters; a word is broken only if it is longer.

    >>> _fold("clip_fraction_high", 9), _fold("abcdef", 4)
    ('clip_\\nfraction_\\nhigh', 'abcd\\nef')
    """
    lines = [""]
    for piece in _BREAK.split(text):
        if len(lines[-1]) + len(piece.rstrip()) > width and lines[-1]:
            lines.append("")
        while len(piece.rstrip()) > width:
            lines[-1], piece = piece[:width], piece[width:]
            lines.append("")
        lines[-1] += piece
    return "\n".join(line.rstrip() for line in lines)


def _draw_table(
    console: Any, frame: pl.DataFrame, columns: Sequence[Sequence[str]], widths: Sequence[int], gap: int
) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, gap - 1, 0, 0), show_edge=False)
    for name, number, width in zip(frame.columns, _numeric(frame), widths, strict=True):
        table.add_column(Text(_fold(printable(name), width)), justify="right" if number else "left", overflow="fold")
    for row in zip(*columns, strict=True):
        folded = [_fold(text, width) for text, width in zip(row, widths, strict=True)]
        table.add_row(*(Text(text, style="dim" if text == "NULL" else "") for text in folded))
    console.print(table)


def _draw_records(console: Any, names: Sequence[str], columns: Sequence[Sequence[str]]) -> None:
    """Draw a wide table as one block per row, with one line per column."""
    from rich.text import Text

    width = max(len(name) for name in names)
    for number, row in enumerate(zip(*columns, strict=True), 1):
        console.rule(Text(f"row {number}"), align="left", style="dim")
        for name, text in zip(names, row, strict=True):
            console.print(Text(f"{name.ljust(width)}  ", style="bold"), Text(text), sep="", soft_wrap=True)
