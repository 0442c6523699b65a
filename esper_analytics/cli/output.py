"""How answers are printed and saved: one row per format, everything else derived from the table.

Not a number and infinities survive in each: `NaN`, `inf`, `-inf` in table, csv and markdown; in json and ndjson, which
have no such numbers, the strings "NaN", "Infinity", "-Infinity"; parquet has them. Times are UTC. NULL is `NULL` in
table and markdown, an empty field in csv (an empty text is `""`), null in json.
"""

from __future__ import annotations

import itertools
import json
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from esper_analytics.errors import UsageError, did_you_mean
from esper_analytics.formatting import cell as cell
from esper_analytics.formatting import text_of
from esper_analytics.formatting import to_json as to_json
from esper_recorder.storage.atomic import whole_file

if TYPE_CHECKING:
    import polars as pl


@dataclass(frozen=True, slots=True)
class _Format:
    """One way of writing a frame."""

    suffixes: tuple[str, ...]
    """File endings that mean this format where none is named."""
    text: Callable[[pl.DataFrame], Iterable[str]] | None
    """The lines, without their ends; None for a format that is no text."""


def save(frame: pl.DataFrame, path: Path, name: str | None = None) -> None:
    """Write a frame to a file, whole or not at all. Without `name` the file's ending tells the format.

    Raises UsageError for an unknown format, and where the file cannot be written.
    """
    name = name or next((known for known, row in _FORMATS.items() if path.suffix.lower() in row.suffixes), None)
    if name is None:
        raise UsageError(f"{path.name} does not tell its format by its ending. Add --format: {', '.join(_FORMATS)}.")
    text = _format(name).text
    if text is not None:
        save_lines(text(frame), path)
        return
    with _whole(path) as temporary:
        _write_parquet(frame, temporary)


def save_lines(lines: Iterable[str], path: Path) -> None:
    """Write text to a file, whole or not at all. Raises UsageError where it cannot be written."""
    with _whole(path) as temporary, temporary.open("w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)


def show(
    frame: pl.DataFrame, name: str | None = None, *, percent: Sequence[str] = (), whole: Sequence[str] = ()
) -> None:
    """Print a frame to stdout; a table is drawn for the screen where stdout is one.

    Args:
        frame: the rows.
        name: the format; a table where none is named.
        percent: columns that are drawn on a screen as percentages.
        whole: columns whose texts are not shortened on a screen.

    Raises UsageError for an unknown format, or one that is no text.
    """
    name = name or "table"
    row = _format(name)
    if row.text is None:
        raise UsageError(f"{name} is no text. Add -o FILE{row.suffixes[0]}.")
    if name == "table" and sys.stdout.isatty():
        from esper_analytics.cli.screen import draw

        draw(frame, percent=percent, whole=whole)
        return
    for line in row.text(frame):
        sys.stdout.write(line + "\n")


@contextmanager
def _whole(path: Path) -> Iterator[Path]:
    """A file beside the one that is to be written. Raises UsageError where that cannot be, or lies in a run."""
    within = next((folder for folder in path.resolve().parents if (folder / "run.json").is_file()), None)
    if within is not None:
        raise UsageError(f"{path} lies in the recorded run {within.name}, which is not written to. Save it elsewhere.")
    try:
        with whole_file(path) as temporary:
            yield temporary
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error


# --- formats ----------------------------------------------------------------------------------------------------------


def _csv(frame: pl.DataFrame) -> Iterable[str]:
    yield ",".join(_csv_field(name) for name in frame.columns)
    for row in frame.iter_rows():
        yield ",".join("" if value is None else _csv_field(text_of(value)) for value in row)


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
        yield json.dumps(to_json(row), ensure_ascii=False, allow_nan=False)


def _markdown(frame: pl.DataFrame) -> Iterable[str]:
    def line(cells: Iterable[str]) -> str:
        escaped = (text.replace("|", "\\|") for text in cells)
        return f"| {' | '.join(escaped)} |"

    yield line(frame.columns)
    yield "|" + "|".join("---:" if dtype.is_numeric() else "---" for dtype in frame.dtypes) + "|"
    for row in frame.iter_rows():
        yield line(cell(value) for value in row)


def _plain_table(frame: pl.DataFrame) -> Iterable[str]:
    """Columns aligned by spaces, one line a row however wide: for pipes and files."""
    if not frame.columns:
        return
    widths = [len(name) for name in frame.columns]
    for row in frame.iter_rows():
        widths = [max(width, len(cell(value))) for width, value in zip(widths, row, strict=True)]
    right = [dtype.is_numeric() for dtype in frame.dtypes]
    # Twice over the rows, so that the text of a large answer is never held as a whole.
    cells = itertools.chain([frame.columns], ([cell(value) for value in row] for row in frame.iter_rows()))
    for line in cells:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(line, widths, right, strict=True))
        yield "  ".join(padded).rstrip()


def _write_parquet(frame: pl.DataFrame, path: Path) -> None:
    import polars as pl
    import pyarrow.parquet as pq

    # Statistics on float columns would hide NaN from whoever asks the file with DuckDB.
    plain = [name for name, dtype in frame.schema.items() if not (dtype.is_float() or dtype.is_nested())]
    table = frame.to_arrow(compat_level=pl.CompatLevel.oldest())
    pq.write_table(table, path, compression="zstd", write_statistics=plain)


_FORMATS: dict[str, _Format] = {
    "table": _Format((".txt",), _plain_table),
    "csv": _Format((".csv",), _csv),
    "json": _Format((".json",), _json),
    "ndjson": _Format((".ndjson", ".jsonl"), _ndjson),
    "markdown": _Format((".md",), _markdown),
    "parquet": _Format((".parquet",), None),
}
FORMATS = tuple(_FORMATS)


def _format(name: str) -> _Format:
    try:
        return _FORMATS[name]
    except KeyError:
        raise UsageError(f"There is no format {name!r}. {did_you_mean(name, _FORMATS, kind='formats')}") from None
