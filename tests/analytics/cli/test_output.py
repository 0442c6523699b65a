"""Formats: what is printed and saved is what was answered, NaN and NULL included."""

from __future__ import annotations

import csv
import io
import json
import math
import os
import pty
import re
import subprocess
import sys
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal

import polars as pl
import pyarrow.parquet as pq
import pytest

from esper_analytics.cli import output
from esper_analytics.errors import UsageError
from esper_analytics.formatting import to_json
from tests.builders import write_run

FRAME = pl.DataFrame(
    {
        "x": [1.0, math.nan, math.inf, -math.inf, None, 0.1234567891],
        "n": [1, 2, 3, 4, None, 6],
        "text": ["plain", 'quo"te, comma', "two\nlines", "", None, "a|b"],
        "time": [datetime(2026, 1, 2, 3, 4, 5, 678000, tzinfo=UTC)] * 5 + [None],
        "list": [[1.0, math.nan], [], None, [None], [2.0], [3.0]],
        "flag": [True, False, None, True, False, True],
    }
)


def printed(capsys, frame, name):
    output.show(frame, output.FORMATS[name])
    return capsys.readouterr().out


def test_csv_quotes_only_where_needed_and_keeps_empty_apart_from_null(capsys):
    text = printed(capsys, FRAME, "csv")
    assert text.splitlines()[:3] == [
        "x,n,text,time,list,flag",
        '1.0,1,plain,2026-01-02T03:04:05.678Z,"[1.0, ""NaN""]",true',
        'NaN,2,"quo""te, comma",2026-01-02T03:04:05.678Z,[],false',
    ]
    rows = list(csv.DictReader(io.StringIO(text)))
    assert [row["x"] for row in rows] == ["1.0", "NaN", "inf", "-inf", "", "0.1234567891"]
    assert [row["text"] for row in rows] == ["plain", 'quo"te, comma', "two\nlines", "", "", "a|b"]
    assert ',4,"",' in text  # an empty text is not NULL


def test_json_has_strings_for_nan_and_infinities(capsys):
    rows = json.loads(printed(capsys, FRAME, "json"), parse_constant=lambda word: pytest.fail(f"{word} is not JSON"))
    assert [row["x"] for row in rows] == [1.0, "NaN", "Infinity", "-Infinity", None, 0.1234567891]
    assert rows[0]["list"] == [1.0, "NaN"]
    assert rows[0]["time"] == "2026-01-02T03:04:05.678Z"
    assert rows[2]["text"] == "two\nlines"
    lines = printed(capsys, FRAME, "ndjson").splitlines()
    assert [json.loads(line) for line in lines] == rows


def test_json_without_rows_is_an_empty_list(capsys):
    assert json.loads(printed(capsys, FRAME.clear(), "json")) == []
    assert printed(capsys, FRAME.clear(), "ndjson") == ""


def test_dates_durations_decimals_and_bytes_are_strings_in_json():
    values = [date(2026, 1, 2), timedelta(seconds=90), Decimal("1.50"), b"\x01\xff"]
    assert to_json(values) == ["2026-01-02", "0:01:30", "1.50", "01ff"]


def test_markdown_escapes_pipes_and_line_breaks(capsys):
    lines = printed(capsys, FRAME.select("x", "text"), "markdown").splitlines()
    assert lines == [
        "| x | text |",
        "|---:|---|",
        "| 1 | plain |",
        '| NaN | quo"te, comma |',
        "| inf | two\\\\nlines |",
        "| -inf |  |",
        "| NULL | NULL |",
        "| 0.123457 | a\\|b |",
    ]


def test_a_table_in_a_pipe_has_one_line_per_row_without_control_characters(capsys):
    frame = pl.DataFrame({"name": ["a\x1b[31mred", "b"], "x": [1.5, None]})
    name = "a\\x1b[31mred"
    expected = [f"{'name':{len(name)}}     x", f"{name}   1.5", f"{'b':{len(name)}}  NULL"]
    assert printed(capsys, frame, "table").splitlines() == expected


def test_parquet_has_no_statistics_on_floats_and_keeps_nan(tmp_path):
    output.save(FRAME, tmp_path / "x.parquet")
    assert pl.read_parquet(tmp_path / "x.parquet").equals(FRAME, null_equal=True)
    group = pq.read_metadata(tmp_path / "x.parquet").row_group(0)
    stats = {group.column(i).path_in_schema: group.column(i).is_stats_set for i in range(group.num_columns)}
    assert stats["n"] and stats["text"]
    assert not stats["x"] and not stats["list.list.element"]


@pytest.mark.parametrize(
    ("name", "first"), [("x.csv", "x,n,"), ("x.json", "["), ("x.jsonl", '{"x"'), ("x.md", "| x |"), ("x.TXT", "   ")]
)
def test_the_suffix_of_a_file_selects_the_format(tmp_path, name, first):
    output.save(FRAME, tmp_path / name)
    assert (tmp_path / name).read_text().startswith(first)
    assert [p.name for p in tmp_path.iterdir()] == [name]


class TestRefusals:
    def test_an_unknown_suffix_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match=r"ending of x\.xlsx selects no format.*table, csv"):
            output.save(FRAME, tmp_path / "x.xlsx")

    def test_parquet_is_not_printed(self):
        with pytest.raises(UsageError, match=r"Add -o FILE\.parquet"):
            output.show(FRAME, output.FORMATS["parquet"])

    def test_a_missing_folder_is_refused(self, tmp_path):
        with pytest.raises(UsageError, match="cannot be written: No such file"):
            output.save(FRAME, tmp_path / "not" / "x.csv")

    def test_a_recorded_run_is_not_written_to(self, tmp_path):
        path = write_run(tmp_path, "a", updates=[{}])
        [part] = path.glob("ppo_updates/*")
        with pytest.raises(UsageError, match="lies in the recorded run"):
            output.save(FRAME, part)


SHOW = "import sys, polars as pl; from esper_analytics.cli import output; output.show(pl.DataFrame({}), output.TABLE)"


def on_a_terminal(frame: str, columns: int, code: str = SHOW) -> str:
    """Return what `show` draws on a terminal of this width."""
    reader, end = pty.openpty()
    code = code.format(frame)
    environment = {**os.environ, "COLUMNS": str(columns), "TERM": "xterm"}
    process = subprocess.Popen([sys.executable, "-c", code], stdout=end, env=environment)
    os.close(end)
    text = b""
    while True:
        try:
            piece = os.read(reader, 65536)
        except OSError:  # the terminal's other end is closed
            break
        text += piece
        if not piece:
            break
    os.close(reader)
    assert process.wait(timeout=60) == 0
    return re.sub(r"\x1b\[[0-9;]*m", "", text.decode()).replace("\r\n", "\n")


def test_a_wide_answer_on_a_terminal_is_one_block_per_row():
    drawn = on_a_terminal("{f'column_{i}': [i, None] for i in range(40)}", 80)
    assert "row 1" in drawn and "row 2" in drawn
    assert "column_39  39" in drawn and "column_39  NULL" in drawn
    assert max(len(line) for line in drawn.splitlines()) <= 80


RUN_IDS = "['hot-20260101T120000Z-abc123', 'hot-20260102T120000Z-abc124']"


def test_columns_that_do_not_fit_a_terminal_are_folded():
    frame = (
        f"{{'run_id': {RUN_IDS}, 'peak_update': [1, 2], 'rule': ['ratio_explosion'] * 2, 'what': ['one or two'] * 2}}"
    )
    lines = on_a_terminal(frame, 34).splitlines()
    assert "".join(lines[1].split()) == "run_idupdaterulewhat"
    assert lines[3].split() == ["hot-abc123", "1", "ratio_", "one"]
    assert max(map(len, lines)) <= 34


def test_a_run_id_is_shortened_only_if_necessary_and_stays_unambiguous():
    frame = "{'run_id': %s, 'x': ['%s'] * 2}"
    assert "hot-20260101T120000Z-abc123" in on_a_terminal(frame % (RUN_IDS, "fits"), 80)
    assert "hot-abc123 " in on_a_terminal(frame % (RUN_IDS, "x " * 40), 80)
    same = RUN_IDS.replace("124", "123")
    assert "hot-20260102T120000Z-abc123" in on_a_terminal(frame % (same, "x " * 40), 80)


def test_a_long_text_on_a_terminal_is_one_shortened_line():
    drawn = on_a_terminal("{'error': ['ValueError: bad ' + 'tensor\\n' * 50]}", 160)
    [line] = [line for line in drawn.splitlines() if "ValueError" in line]
    assert line.rstrip().endswith("…") and len(line.rstrip()) <= 100


def test_a_long_text_is_whole_in_a_pipe(capsys):
    text = "x" * 500
    for name in ("table", "csv", "markdown"):
        assert text in printed(capsys, pl.DataFrame({"error": [text]}), name)


def test_times_of_a_run_and_fractions_are_short_on_a_terminal():
    frame = "{'started': [__import__('datetime').datetime(2026, 1, 2, 3, 4, 5, 678000)], 'progress': [0.25]}"
    keep = SHOW.replace(
        "output.show(pl.DataFrame({}), output.TABLE)",
        "output.show(pl.DataFrame({}), output.TABLE, percent=('progress',))",
    )
    drawn = on_a_terminal(frame, 80, keep)
    assert "2026-01-02 03:04:05 " in drawn and "25 %" in drawn


def test_a_narrow_answer_on_a_terminal_is_a_table():
    drawn = on_a_terminal("{'run': ['[red]a', 'b'], 'x': [float('nan'), 2.0]}", 80)
    assert "row 1" not in drawn
    assert "[red]a" in drawn and "NaN" in drawn
