"""The bytes on disk, against files kept here: journal frames and part footers do not change by accident.

`python -m tests.recorder.storage.test_golden_bytes` writes the golden files again; read the difference before you
commit it.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from esper_recorder.contract.tables import SCHEMA_VERSION
from esper_recorder.storage.arrow_batches import columns_to_table
from esper_recorder.storage.journal import JournalWriter, read_journal
from esper_recorder.storage.parquet import write_part
from esper_recorder.storage.row_codec import Layout, PackedRow
from tests.recorder.storage.records import minibatch_record
from tests.support import GOLDEN

JOURNAL = GOLDEN / "journal.bin"
RECORDS = GOLDEN / "journal_records.bin"
FOOTER = GOLDEN / "part_footer.json"

LAYOUT = Layout(pa.schema([("update", pa.int64()), ("ratio_max", pa.float64()), ("stepped", pa.bool_())]))
BATCH = pa.record_batch(
    {"update": [1, 1], "minibatch": [1, 2], "ratio_max": [1.5, math.inf]},
    schema=pa.schema([("update", pa.int64()), ("minibatch", pa.int64()), ("ratio_max", pa.float64())]),
)


def packed_row(update: int, ratio_max: float, stepped: bool) -> PackedRow:
    """Eight bytes a value, then what does not fit into eight as JSON: here an empty list."""
    return PackedRow(LAYOUT, struct.pack("<qdq", update, ratio_max, stepped) + b"[]")


def write_journal(path: Path) -> None:
    journal = JournalWriter(path)
    journal.commit(1, [("ppo_updates", packed_row(1, math.nan, True)), ("minibatches", BATCH)])
    journal.commit(2, [("ppo_updates", packed_row(2, 1.25, False))])
    journal.close()


def frames(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """(kind, table number, payload) of each frame, read by the layout the module's docstring gives."""
    assert data[:8] == b"ESPERJ1\n"
    offset = 8
    while offset < len(data):
        marker, kind, zero, number, none, length, crc, own, last = struct.unpack_from("<HBBHHIIII", data, offset)
        assert (marker, zero, none, last) == (0x4AE5, 0, 0, 0)
        assert own == zlib.crc32(data[offset : offset + 16])
        payload = data[offset + 24 : offset + 24 + length]
        assert crc == zlib.crc32(payload)
        padding = -length % 8
        assert data[offset + 24 + length : offset + 24 + length + padding] == bytes(padding)
        yield kind, number, payload
        offset += 24 + length + padding
    assert offset == len(data)


def test_a_journal_of_today_is_the_golden_one_byte_for_byte(tmp_path: Path) -> None:
    write_journal(tmp_path / "journal")
    assert (tmp_path / "journal").read_bytes() == JOURNAL.read_bytes()


def test_the_golden_journal_holds_the_frames_its_format_describes() -> None:
    read = [
        (kind, number, payload if kind in (3, 4) else len(payload) > 0)
        for kind, number, payload in frames(JOURNAL.read_bytes())
    ]
    assert read == [
        (1, 0, True),  # the schema of the packed rows of ppo_updates
        (4, 0, struct.pack("<qdq", 1, math.nan, 1) + b"[]"),
        (1, 1, True),  # the schema of the minibatches
        (2, 1, True),
        (3, 0, struct.pack("<qq", 1, 3)),  # update 1, three rows
        (4, 0, struct.pack("<qdq", 2, 1.25, 0) + b"[]"),  # its schema was written before
        (3, 0, struct.pack("<qq", 2, 1)),
    ]


def test_the_golden_journal_reads_back() -> None:
    content = read_journal(JOURNAL)
    assert (content.updates, content.rows, content.damage, content.bytes_ignored) == ((1, 2), 4, (), 0)
    rows = pa.Table.from_batches(content.batches["ppo_updates"]).to_pylist()
    assert [(row["update"], row["stepped"]) for row in rows] == [(1, True), (2, False)]
    assert math.isnan(rows[0]["ratio_max"]) and rows[1]["ratio_max"] == 1.25
    assert pa.Table.from_batches(content.batches["minibatches"]).to_pydict() == BATCH.to_pydict()


def write_records(path: Path) -> None:
    journal = JournalWriter(path)
    journal.commit(1, [minibatch_record(1, [1.5, math.inf])])
    journal.commit(2, [minibatch_record(2, [1.25]), ("minibatches", BATCH)])
    journal.close()


def test_a_journal_of_records_is_the_golden_one_byte_for_byte(tmp_path: Path) -> None:
    write_records(tmp_path / "journal")
    assert (tmp_path / "journal").read_bytes() == RECORDS.read_bytes()


def test_the_golden_records_are_the_frames_that_their_format_describes() -> None:
    read = list(frames(RECORDS.read_bytes()))
    assert [(kind, number) for kind, number, _ in read] == [(5, 0), (6, 0), (3, 0), (6, 0), (1, 1), (2, 1), (3, 0)]
    layout, record = json.loads(read[0][2]), read[1][2]
    assert (layout["version"], layout["batches"][0]["ratios"][0]["statistics"]) == (1, ["n", "ratio_max"])
    values = b"[1700000000000001,0.5,100]"
    assert struct.unpack_from("<qIIII", record) == (1, 3, 0, len(values), 0)
    assert record[24:56] == values.ljust(32)
    # The count of minibatches, their numbers as the bits of int64, their norms, then n and ratio_max of each.
    assert record[56:] == struct.pack("<dqqdddddd", 2.0, 1, 2, 0.0, 0.0, 10.0, 1.5, 10.0, math.inf)


def test_the_golden_records_read_back() -> None:
    content = read_journal(RECORDS)
    assert (content.updates, content.rows, content.damage, content.bytes_ignored) == ((1, 2), 1 + 2 + 1 + 1 + 2, (), 0)
    rows = pa.Table.from_batches(content.batches["minibatches"]).to_pylist()
    assert [(row["update"], row["minibatch"], row["ratio_max"]) for row in rows] == [
        *[(1, 1, 1.5), (1, 2, math.inf), (2, 1, 1.25)],
        *[(1, 1, 1.5), (1, 2, math.inf)],  # Arrow's, written after the records
    ]


def footer(path: Path) -> dict[str, Any]:
    """What a part's footer says, without what depends on the Parquet library's version."""
    file = pq.ParquetFile(path)
    group = file.metadata.row_group(0)
    columns = [group.column(place) for place in range(group.num_columns)]
    return {
        "metadata": {k.decode(): v.decode() for k, v in file.metadata.metadata.items() if k.startswith(b"esper_")},
        "rows": file.metadata.num_rows,
        "schema": {field.name: str(field.type) for field in file.schema_arrow},
        "compression": sorted({column.compression for column in columns}),
        "with_statistics": [column.path_in_schema for column in columns if column.is_stats_set],
    }


def write_golden_part(path: Path) -> None:
    rows: dict[str, list[Any]] = {
        "run_id": ["a", "a"],
        "update": [3, 4],
        "time": [datetime(2026, 1, 1, tzinfo=UTC)] * 2,
        "minibatch": [1, 1],
        "ratio_max": [1.5, math.nan],
        "stepped": [True, None],
    }
    write_part(path, "minibatches", columns_to_table("minibatches", rows))


def test_the_footer_of_a_part_is_the_golden_one(tmp_path: Path) -> None:
    write_golden_part(tmp_path / "part.parquet")
    assert footer(tmp_path / "part.parquet") == json.loads(FOOTER.read_text(encoding="utf-8"))


def test_the_golden_footer_is_of_this_schema_version() -> None:
    assert json.loads(FOOTER.read_text(encoding="utf-8"))["metadata"]["esper_schema_version"] == str(SCHEMA_VERSION)


if __name__ == "__main__":
    import tempfile

    JOURNAL.unlink(missing_ok=True)
    write_journal(JOURNAL)
    RECORDS.unlink(missing_ok=True)
    write_records(RECORDS)
    with tempfile.TemporaryDirectory() as folder:
        write_golden_part(Path(folder) / "part.parquet")
        FOOTER.write_text(json.dumps(footer(Path(folder) / "part.parquet"), indent=1) + "\n", encoding="utf-8")
    print(hashlib.sha256(JOURNAL.read_bytes()).hexdigest())
