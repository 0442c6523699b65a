"""How answers are printed and saved: one row per format, everything else derived from the table.

Not a number and infinities survive in each: `NaN`, `inf`, `-inf` in table, csv and markdown; in json and ndjson, which
have no such numbers, the strings "NaN", "Infinity", "-Infinity"; parquet has them. Times are UTC. NULL is `NULL` in
table and markdown, an empty field in csv (an empty text is `""`), null in json.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any

from esper_analytics.errors import UsageError, did_you_mean

if TYPE_CHECKING:
    import polars as pl

ROWS_ON_SCREEN = 1000


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
    row = _format(name)
    within = next((folder for folder in path.resolve().parents if (folder / "run.json").is_file()), None)
    if within is not None:
        raise UsageError(f"{path} lies in the recorded run {within.name}, which is not written to. Save it elsewhere.")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        if row.text is None:
            _write_parquet(frame, temporary)
        else:
            with temporary.open("w", encoding="utf-8", newline="\n") as file:
                file.writelines(f"{line}\n" for line in row.text(frame))
        temporary.replace(path)
    except OSError as error:
        raise UsageError(f"{path} cannot be written: {error.strerror or error}.") from error
    finally:
        temporary.unlink(missing_ok=True)


def show(frame: pl.DataFrame, name: str | None = None) -> None:
    """Print a frame to stdout; a table is drawn for the screen where stdout is one.

    Raises UsageError for an unknown format, or one that is no text.
    """
    name = name or "table"
    row = _format(name)
    if row.text is None:
        raise UsageError(f"{name} is no text. Add -o FILE{row.suffixes[0]}.")
    if name == "table" and sys.stdout.isatty():
        _draw(frame)
        return
    for line in row.text(frame):
        sys.stdout.write(line + "\n")


def to_json(value: Any) -> Any:
    """A value as JSON can hold it; numbers that are none become "NaN", "Infinity", "-Infinity"."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, dict):
        return {str(key): to_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [to_json(inner) for inner in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    return _plain(value)


# --- formats ----------------------------------------------------------------------------------------------------------


def _csv(frame: pl.DataFrame) -> Iterable[str]:
    yield ",".join(_csv_field(name) for name in frame.columns)
    for row in frame.iter_rows():
        yield ",".join("" if value is None else _csv_field(_text(value)) for value in row)


def _csv_field(text: str) -> str:
    if text == "" or any(character in text for character in ',"\n\r'):
        return '"' + text.replace('"', '""') + '"'
    return text


def _json(frame: pl.DataFrame) -> Iterable[str]:
    lines = [*_ndjson(frame)]
    if not lines:
        return ["[]"]
    return ["[", *(line + "," for line in lines[:-1]), lines[-1], "]"]


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
    cells = [frame.columns, *([cell(value) for value in row] for row in frame.iter_rows())]
    if not frame.columns:
        return
    widths = [max(len(row[position]) for row in cells) for position in range(frame.width)]
    right = [dtype.is_numeric() for dtype in frame.dtypes]
    for row in cells:
        padded = (c.rjust(w) if r else c.ljust(w) for c, w, r in zip(row, widths, right, strict=True))
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


# --- cells ------------------------------------------------------------------------------------------------------------


def _text(value: Any) -> str:
    """A value in full, as csv has it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return repr(value) if math.isfinite(value) else _number(value)
    if isinstance(value, dict | list | tuple):
        return json.dumps(to_json(value), ensure_ascii=False)
    return str(_plain(value))


def cell(value: Any) -> str:
    """A value for the eye: floats to six digits, control characters made visible."""
    if value is None:
        return "NULL"
    if isinstance(value, float):
        return _number(value)
    if isinstance(value, list):
        return f"[{', '.join(cell(inner) for inner in value)}]"
    text = _text(value)
    return text if text.isprintable() else "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _number(value: float) -> str:
    if math.isnan(value):
        return "NaN"
    return f"{value:.6g}"


def _plain(value: Any) -> Any:
    if isinstance(value, datetime):
        moment = value.astimezone(UTC) if value.tzinfo else value
        kind = "milliseconds" if moment.microsecond % 1000 == 0 else "microseconds"
        text = moment.replace(tzinfo=None).isoformat(timespec=kind if moment.microsecond else "seconds")
        return text + ("Z" if value.tzinfo else "")
    if isinstance(value, date | time | Decimal | timedelta):
        return str(value)
    if isinstance(value, bytes):
        return value.hex()
    return value if isinstance(value, str | int) else str(value)


# --- the screen -------------------------------------------------------------------------------------------------------


def _draw(frame: pl.DataFrame) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    shown = frame.head(ROWS_ON_SCREEN)
    rows = [[cell(value) for value in row] for row in shown.iter_rows()]
    needed = sum(max([len(name), *(len(row[i]) for row in rows)]) + 3 for i, name in enumerate(frame.columns))
    if needed <= console.width or frame.width <= 2:
        _draw_table(console, shown, rows)
    else:
        _draw_records(console, shown, rows)
    if frame.height > ROWS_ON_SCREEN:
        sys.stderr.write(f"The first {ROWS_ON_SCREEN} of {frame.height} rows; --format csv or -o FILE has them all.\n")


def _draw_table(console: Any, frame: pl.DataFrame, rows: Sequence[Sequence[str]]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    for name, dtype in frame.schema.items():
        table.add_column(Text(name), justify="right" if dtype.is_numeric() else "left", overflow="fold")
    for row in rows:
        table.add_row(*(Text(text, style="dim" if text == "NULL" else "") for text in row))
    console.print(table)


def _draw_records(console: Any, frame: pl.DataFrame, rows: Sequence[Sequence[str]]) -> None:
    """A wide table as one block a row, a line a column."""
    from rich.text import Text

    width = max(len(name) for name in frame.columns)
    for number, row in enumerate(rows, 1):
        console.rule(Text(f"row {number}"), align="left", style="dim")
        for name, text in zip(frame.columns, row, strict=True):
            console.print(Text(f"{name.ljust(width)}  ", style="bold"), Text(text), sep="", soft_wrap=True)
