"""Footers are read without pyarrow's objects that abort the process, and say the same of sound files."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from esper_analytics.catalog.footers import read_footer
from esper_analytics.catalog.parquet_footer import FooterError, read_chunks
from tests.builders import run_id_of, write_run
from tests.support import run_process

NAN = math.nan


def write(path: Path, **options) -> Path:
    rows = pa.table(
        {
            "run_id": pa.array(["a", "b", "c"], pa.string()),
            "n": pa.array([1.5, float("nan"), None]),
            "lists": pa.array([[1], [], None], pa.list_(pa.int64())),
            "structs": pa.array([{"x": 1, "y": [{"z": True}]}, None, {"x": 2, "y": None}]),
        }
    )
    pq.write_table(rows, path, row_group_size=2, **options)
    return path


@pytest.mark.parametrize(
    "options", [{}, {"write_statistics": ["run_id"]}, {"write_page_index": True}, {"version": "1.0"}]
)
def test_of_a_sound_file_it_says_what_pyarrow_says(tmp_path, options):
    path = write(tmp_path / "part.parquet", **options)
    metadata = pq.read_metadata(path)
    theirs = [
        metadata.row_group(group).column(place)
        for group in range(metadata.num_row_groups)
        for place in range(metadata.num_columns)
    ]
    chunks = read_chunks(path)
    assert len(chunks) == len(theirs) == 2 * 5
    for chunk, column in zip(chunks, theirs, strict=True):
        assert chunk.column == column.path_in_schema
        has = (column.is_stats_set and column.statistics.has_min_max) or column.has_column_index
        assert chunk.has_extremes == bool(has), chunk.column
        if chunk.column == "run_id":
            assert chunk.extremes == (column.statistics.min.encode(), column.statistics.max.encode())


@pytest.mark.parametrize("rows", [3000, 0])
def test_what_other_writers_write_is_sound(tmp_path, rows):
    frame = pl.DataFrame({"run_id": ["a", None, "b"] * 1000, "n": [1.5, NAN, None] * 1000, "l": [[1], [], None] * 1000})
    frame = frame.head(rows)
    names = ["run_id", "n", "l.list.element"]
    polars: list[dict[str, Any]] = [{}, {"compression": "uncompressed"}, {"row_group_size": 100}]
    for options in polars:
        frame.write_parquet(tmp_path / "file", **options)
        assert [chunk.column for chunk in read_chunks(tmp_path / "file")][:3] == (names if rows else [])
    for more in ("", ", compression zstd", ", parquet_version v2"):
        duckdb.sql(f"COPY (FROM frame) TO '{tmp_path}/file' (FORMAT parquet{more})")
        assert len(read_chunks(tmp_path / "file")) % 3 == 0
    pyarrow: list[dict[str, Any]] = [{"use_dictionary": False}, {"data_page_version": "2.0"}, {"store_schema": False}]
    for options in pyarrow:
        pq.write_table(frame.to_arrow(), tmp_path / "file", row_group_size=700, **options)
        assert len(read_chunks(tmp_path / "file")) % 3 == 0


FLIP_EVERY_BIT = """
import sys
from collections import Counter
from pathlib import Path
from esper_analytics.catalog.footers import read_footer

part, run_id, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
data = part.read_bytes()
start = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
outcomes = Counter()
for bit in range(0, 8 * (len(data) - 8 - start), step):
    changed = bytearray(data)
    changed[start + bit // 8] ^= 1 << bit % 8
    part.write_bytes(changed)
    outcomes[read_footer(part, part.parent.name, run_id, thoroughly=True).problem is None] += 1
print(outcomes[True], outcomes[False])
"""


@pytest.mark.parametrize("step", [41, pytest.param(5, marks=pytest.mark.slow)])
def test_no_bit_of_a_footer_ends_the_process_that_reads_it(tmp_path, step):
    path = write_run(tmp_path, tables={"gaps": [{"table_name": "*", "first_update": 1, "last_update": 2}]})
    [part] = path.glob("gaps/*")
    done = run_process(sys.executable, "-c", FLIP_EVERY_BIT, part, run_id_of("run"), step)
    sound, damaged = map(int, done.stdout.split())
    assert damaged > sound > 0, (sound, damaged)


@given(footer=st.binary(max_size=200))
def test_any_bytes_are_a_footer_or_an_error(tmp_path_factory, footer):
    path = tmp_path_factory.mktemp("footer") / "part.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(FooterError):
        read_chunks(path)


@pytest.mark.parametrize(
    "footer",
    [
        b"\x19\xfc\xff\xff\xff\xff\x0f",  # field 1: a list of 4 billion structs
        b"\x19\xf1\xff\xff\xff\xff\x0f" + b"\x01" * 50,  # of 4 billion truth values
        b"\x18\xff\xff\xff\xff\x7f",  # a text of 32 GB
        b"\x1c" * 5000,  # a struct in a struct in a struct
        b"\x19" * 5000,
        b"\x15" + b"\xff" * 5000,  # a number without an end
    ],
)
def test_a_size_that_is_only_declared_costs_nothing(tmp_path, footer):
    path = tmp_path / "part.parquet"
    path.write_bytes(b"PAR1" + footer + len(footer).to_bytes(4, "little") + b"PAR1")
    with pytest.raises(FooterError, match="footer"):
        read_chunks(path)
    assert read_footer(path, "gaps", "a", thoroughly=True).problem is not None


def test_a_part_of_another_run_is_named_by_what_the_recorder_noted(tmp_path):
    path = write_run(tmp_path, updates=[{}])
    [part] = path.glob("ppo_updates/*")
    assert pq.read_metadata(part).metadata[b"esper_run_id"] == path.name.encode()
    assert read_footer(part, "ppo_updates", path.name).problem is None
    for thoroughly in (False, True):
        problem = read_footer(part, "ppo_updates", "another", thoroughly=thoroughly).problem
        assert problem == f"it holds rows of another run, {path.name}"


@pytest.mark.parametrize(("zone", "sound"), [("UTC", True), ("+02:00", True), ("Europe/Berlin", True), ("UPC", False)])
def test_a_time_zone_that_does_not_exist_is_a_problem(tmp_path, zone, sound):
    part = tmp_path / "part.parquet"
    rows = {
        "run_id": ["a"],
        "attempt": [1],
        "rank": [0],
        "update": [1],
        "time": pa.array([0], pa.timestamp("us", zone)),
    }
    pq.write_table(pa.table(rows), part)
    assert (read_footer(part, "gaps", "a").problem is None) is sound
