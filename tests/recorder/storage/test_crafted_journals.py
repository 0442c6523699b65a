"""Frames of a journal with fitting checksums over what the recorder never writes: they are damage, and cost little."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

import esper_analytics as ea
from esper_recorder.storage import journal
from esper_recorder.storage.ipc_sizes import decompressed_size
from esper_recorder.storage.journal import MAGIC, parse_journal
from esper_recorder.storage.record_layout import BlockLayout, Noted, RecordLayout
from esper_recorder.storage.row_codec import pack_row
from esper_recorder.storage.update_record import UpdateRecord
from tests.builders import write_run
from tests.recorder.storage.records import minibatch_record

ROWS = 10**9


def journal_of(*frames: tuple[int, int, bytes | pa.Buffer]) -> bytes:
    """The bytes of a journal with these frames (kind, number, payload), committed."""
    committed = (*frames, (journal._COMMITTED, 0, journal._COMMIT.pack(1, 1)))
    return MAGIC + b"".join(bytes(piece) for frame in committed for piece in journal._frame(*frame))


def rows_of(table: str, batch: pa.RecordBatch, options: pa.ipc.IpcWriteOptions | None = None) -> bytes:
    """A journal with one batch of rows of a table."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=options) as stream:
        stream.write_batch(batch)
    stream_bytes, start = sink.getvalue(), batch.schema.serialize().size
    payload = stream_bytes.slice(start, stream_bytes.size - start - 8)
    schema = table.encode() + b"\0" + batch.schema.serialize().to_pybytes()
    return journal_of((journal._SCHEMA, 1, schema), (journal._ROWS, 1, payload))


@pytest.mark.parametrize(
    "column",
    [
        pa.nulls(ROWS),
        pa.RunEndEncodedArray.from_arrays(pa.array([ROWS], pa.int64()), pa.array([1.0])),
        pa.Array.from_buffers(pa.binary(0), ROWS, [None, pa.py_buffer(b"")]),
        pa.Array.from_buffers(pa.struct([]), ROWS, [None]),
    ],
    ids=["null", "run ends", "no bytes each", "no fields"],
)
def test_a_column_of_a_billion_rows_in_a_few_bytes_is_damage(column: pa.Array):
    data = rows_of("episodes", pa.RecordBatch.from_arrays([column], names=["env"]))
    assert len(data) < 2_000
    content = parse_journal(data)
    assert (content.rows, len(content.damage)) == (0, 2), "the schema, and the rows that need it"


def test_rows_compressed_more_than_the_recorder_can_are_damage():
    zeros = pa.array([0.0]).take(pa.nulls(10**6, pa.int64()).fill_null(0))
    batch = pa.RecordBatch.from_arrays([zeros], names=["episode_return"])
    data = rows_of("episodes", batch, pa.ipc.IpcWriteOptions(compression="zstd"))
    assert 256 * len(data) < 8 * 10**6
    [damage] = parse_journal(data).damage
    assert "declare 8000000 bytes of rows" in damage.reason


@given(
    rows=st.integers(0, 3_000),
    value=st.sampled_from([0.0, 1.5, None]),
    compression=st.sampled_from([None, "lz4", "zstd"]),
)
def test_the_size_of_a_batch_is_known_before_it_is_decompressed(
    rows: int, value: float | None, compression: str | None
):
    columns = {"a": pa.array([value] * rows, pa.float64()), "b": pa.array(range(rows), pa.int64())}
    batch = pa.RecordBatch.from_pydict(columns | {"c": pa.array(["x" * (i % 7) for i in range(rows)], pa.string())})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression=compression)) as stream:
        stream.write_batch(batch)
    reader = pa.ipc.MessageReader.open_stream(sink.getvalue())
    _, message = reader.read_next_message(), reader.read_next_message()
    # Buffers are padded: to 64 bytes in a message, or not at all if they are compressed.
    size = batch.nbytes
    assert size - 64 * 10 <= decompressed_size(message) <= size + 64 * 10


def test_a_record_nested_too_deep_is_damage():
    sound = minibatch_record(1, [1.5])
    record = UpdateRecord.pack(sound.layout, 1, 2, [1, 0.5, 100], sound.numbers)
    deep = b"[" * 100_000
    data = record.data.replace(b"[1,0.5,100]", deep)
    # The header says how long the values are: at 16 bytes from its start, and spaces fill up to a multiple of 8.
    data = data[:16] + len(deep).to_bytes(4, "little") + data[20:]
    crafted = UpdateRecord(record.layout, data)
    with pytest.raises(ValueError, match="nested too deep"):
        _ = crafted.values


def test_a_packed_row_nested_too_deep_costs_its_journal_and_no_other_run(tmp_path: Path):
    packed = pack_row("episodes", {"update": [1], "run_id": ["x"]})
    assert packed is not None
    head = packed.data[: packed.layout.fixed * 8]
    schema = b"episodes\0" + packed.layout.schema.serialize().to_pybytes()
    data = journal_of((journal._SCHEMA, 1, schema), (journal._PACKED, 1, head + b"[" * 100_000))
    with pytest.raises(ValueError, match="nested too deep"):
        parse_journal(data)
    write_run(tmp_path, "sound", updates=[{"ratio_max": 1.5}])
    crafted = write_run(tmp_path, "crafted", updates=[{"ratio_max": 2.5}])
    (crafted / "journal").mkdir()
    (crafted / "journal" / "a1-r0-000009.journal").write_bytes(data)
    runs = ea.open(tmp_path)
    assert sorted(runs.sql("SELECT ratio_max FROM ppo_updates").to_series().to_list()) == [1.5, 2.5]


def test_layers_without_numbers_are_few():
    count, steps = 4_000, 4_190
    block = BlockLayout(
        notes=(Noted.WHOLE, Noted.ABSENT, Noted.ABSENT),
        names=tuple(f"layer{i}" for i in range(count)),
        sizes=(1,) * count,
        has_grad=(False,) * count,
        parts=(),
    )
    layout = RecordLayout(run_id="r", attempt=1, rank=0, definition="pooled", columns=(), blocks=(block,))
    record = UpdateRecord.pack(layout, 1, 1, [1, 0.5], np.array([float(steps), *[1.0] * steps]))
    with pytest.raises(ValueError, match=f"of {1 + steps} numbers declares {count * steps} rows of layers"):
        record.check()
