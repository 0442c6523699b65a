from __future__ import annotations

import math
import os
import random
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

import esper_recorder.storage.joined_rows as joined_rows
from esper_recorder.storage.arrow_batches import to_batch, to_table
from esper_recorder.storage.journal import MAGIC, JournalWriter, parse_journal, read_journal
from esper_recorder.storage.row_codec import pack_row
from tests.recorder.storage.stored_updates import update_rows


def write_updates(journal: JournalWriter, first: int, last: int) -> None:
    for update in range(first, last + 1):
        journal.commit(update, [(table, to_batch(table, data)) for table, data in update_rows(update).items()])


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "a1-r0-000001.journal"


@pytest.fixture
def ten_updates(path: Path) -> bytes:
    journal = JournalWriter(path)
    write_updates(journal, 1, 10)
    journal.close()
    return path.read_bytes()


def test_what_is_committed_reads_back_by_table_while_the_journal_is_open(path: Path) -> None:
    journal = JournalWriter(path)
    write_updates(journal, 1, 4)
    content = read_journal(path)
    journal.close()
    assert content.updates == (1, 2, 3, 4)
    assert content.rows == 4 * (1 + 3)
    assert (content.bytes_ignored, content.damage) == (0, ())
    rows = to_table("minibatches", content.batches["minibatches"]).to_pylist()
    assert [row["update"] for row in rows] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    assert rows[1]["ratio_max"] == math.inf and rows[2]["ratio_max"] is None
    assert math.isnan(to_table("ppo_updates", content.batches["ppo_updates"]).to_pylist()[0]["loss"])


def test_a_large_batch_is_smaller_in_the_journal_and_reads_back_whole(path: Path) -> None:
    rows = 40_000
    data: dict[str, list[Any]] = {
        "update": [2] * rows,
        "ratio_mean": [0.5] * rows,
        "minibatch": list(range(rows)),
        "ratio_max": [1.5] * (rows - 2) + [math.inf, None],
        "stepped": [True] * rows,
    }
    batch = to_batch("minibatches", data)
    journal = JournalWriter(path)
    write_updates(journal, 1, 1)
    journal.commit(2, [("minibatches", batch)])
    journal.close()
    assert path.stat().st_size < batch.nbytes
    content = read_journal(path)
    assert (content.updates, content.rows, content.damage) == ((1, 2), 4 + rows, ())
    read = pa.Table.from_batches(content.batches["minibatches"])
    assert read.slice(read.num_rows - rows).select(batch.schema.names).to_pydict() == batch.to_pydict()


def test_an_empty_journal_and_one_cut_within_its_first_bytes_hold_nothing() -> None:
    for length in range(len(MAGIC) + 1):
        content = parse_journal(MAGIC[:length])
        assert (content.updates, content.batches, content.bytes_ignored) == ((), {}, 0)


def test_a_file_that_is_not_a_journal_is_refused_with_a_message(path: Path) -> None:
    path.write_bytes(b"PAR1" * 10)
    with pytest.raises(ValueError, match="is not a journal of esper-recorder"):
        read_journal(path)


def test_cut_anywhere_a_journal_gives_the_updates_committed_before_the_cut(ten_updates: bytes) -> None:
    ends = [parse_journal(ten_updates[:length]).bytes_read for length in range(0, len(ten_updates) + 1, 8)]
    commits = sorted(set(ends) - {0, len(MAGIC)})
    assert len(commits) == 10
    for length in random.Random(0).sample(range(len(ten_updates) + 1), 200):
        content = parse_journal(ten_updates[:length])
        whole = sum(end <= length for end in commits)
        assert content.updates == tuple(range(1, whole + 1))
        assert content.rows == 4 * whole
        assert content.bytes_read + content.bytes_ignored == length
        assert content.damage == ()


def test_zeros_after_the_last_commit_as_a_power_loss_leaves_them_are_ignored_and_counted(ten_updates: bytes) -> None:
    content = parse_journal(ten_updates + bytes(4096))
    assert content.updates == tuple(range(1, 11))
    assert (content.bytes_ignored, content.damage) == (4096, ())


def test_any_flipped_byte_is_reported_as_damage_or_as_a_tail_and_costs_one_frame_at_most(ten_updates: bytes) -> None:
    whole = parse_journal(ten_updates)
    chance = random.Random(1)
    for place in chance.sample(range(len(MAGIC), len(ten_updates)), 300):
        data = bytearray(ten_updates)
        data[place] ^= 1 << chance.randrange(8)
        content = parse_journal(bytes(data))
        if content.rows != whole.rows or content.updates != whole.updates:
            # A damaged schema takes all rows of its table with it; any other frame only itself (and a last commit the
            # update before it).
            assert content.damage or content.bytes_ignored
        for table, batches in content.batches.items():
            assert {row["run_id"] for batch in batches for row in batch.to_pylist()} == {"r"}, table
        assert set(content.updates) <= set(whole.updates)


def test_a_flipped_byte_in_the_rows_of_one_table_leaves_all_other_rows(ten_updates: bytes) -> None:
    last_run_id = ten_updates.rfind(b"rrr")  # the run_id of the three minibatches of update 10
    first_run_id = ten_updates.find(b"rrr")
    assert 0 < first_run_id < last_run_id
    data = bytearray(ten_updates)
    data[first_run_id] ^= 1
    content = parse_journal(bytes(data))
    assert content.updates == tuple(range(1, 11))
    assert [damage.reason for damage in content.damage] == ["the checksum does not fit"]
    assert sum(batch.num_rows for batch in content.batches["ppo_updates"]) == 10
    assert sum(batch.num_rows for batch in content.batches["minibatches"]) == 10 * 3 - 3


def test_a_stretch_of_garbage_in_the_middle_is_skipped_and_reported(ten_updates: bytes) -> None:
    middle = len(ten_updates) // 2
    data = ten_updates[:middle] + bytes(1000) + ten_updates[middle + 1000 :]
    content = parse_journal(data)
    assert content.damage
    assert 1 in content.updates and 10 in content.updates
    assert 0 < content.rows < 40


def test_a_commit_that_fails_leaves_nothing_and_the_next_one_works(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal = JournalWriter(path)
    write_updates(journal, 1, 2)
    real = os.write

    def half_then_full(descriptor: int, data: memoryview) -> int:
        if len(data) > 100:
            return real(descriptor, data[:100])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", half_then_full)
    with pytest.raises(OSError, match="No space left"):
        write_updates(journal, 3, 3)
    monkeypatch.setattr(os, "write", real)
    assert read_journal(path).bytes_ignored == 0
    write_updates(journal, 4, 4)
    journal.close()
    content = read_journal(path)
    assert (content.updates, content.bytes_ignored, content.damage) == ((1, 2, 4), 0, ())


def test_a_new_set_of_columns_for_a_table_gets_a_separate_schema_and_both_become_one_table(path: Path) -> None:
    journal = JournalWriter(path)
    journal.commit(1, [("ppo_updates", to_batch("ppo_updates", {"update": [1], "n": [5]}))])
    journal.commit(2, [("ppo_updates", to_batch("ppo_updates", {"update": [2], "loss": [0.5]}))])
    journal.commit(3, [("ppo_updates", to_batch("ppo_updates", {"update": [3], "n": [7]}))])
    journal.close()
    rows = to_table("ppo_updates", read_journal(path).batches["ppo_updates"]).to_pylist()
    assert [(r["update"], r["n"], r["loss"]) for r in rows] == [(1, 5, None), (2, None, 0.5), (3, 7, None)]


@pytest.mark.parametrize("chunk", [1, 2, 7, 1024])
def test_rows_of_several_sets_of_columns_keep_their_order_and_become_few_batches(
    path: Path, monkeypatch: pytest.MonkeyPatch, chunk: int
) -> None:
    """Packed rows, batches of 0 to 3 rows, with and without a column, one after the other and mixed."""
    monkeypatch.setattr(joined_rows, "_CHUNK", chunk)
    chance = random.Random(chunk)
    journal = JournalWriter(path)
    expected: list[tuple[int, float | None, int | None]] = []
    for update in range(60):
        rows = chance.choice([0, 1, 1, 1, 2, 3])
        losses = [chance.choice([None, 0.5, math.inf]) for _ in range(rows)]
        data: dict[str, list[Any]] = {"update": [update] * rows, "loss": losses}
        if chance.random() < 0.3:
            data["n"] = list(range(rows))
        journal.commit(update, [("ppo_updates", pack_row("ppo_updates", data) or to_batch("ppo_updates", data))])
        expected += zip([update] * rows, losses, data.get("n", [None] * rows), strict=True)
    journal.close()
    content = read_journal(path)
    batches = content.batches["ppo_updates"]
    read = to_table("ppo_updates", batches).select(["update", "loss", "n"]).to_pylist()
    assert [tuple(row.values()) for row in read] == expected
    assert content.rows == len(expected)
    assert len(batches) <= math.ceil(60 / chunk)


def test_a_schema_that_takes_the_place_of_another_has_its_own_number(path: Path) -> None:
    """One table's columns change their type and back; another table's come after."""
    whole = pa.record_batch({"update": pa.array([1], pa.int64())})
    real = pa.record_batch({"update": pa.array([2.5], pa.float64())})
    other = pa.record_batch({"rule": ["kl"]})
    journal = JournalWriter(path)
    for update, (table, batch) in enumerate([("a", whole), ("a", real), ("b", other), ("a", real), ("b", other)], 1):
        journal.commit(update, [(table, batch)])
    journal.close()
    content = read_journal(path)
    assert content.damage == ()
    assert [row["rule"] for batch in content.batches["b"] for row in batch.to_pylist()] == ["kl", "kl"]
    assert [row["update"] for batch in content.batches["a"] for row in batch.to_pylist()] == [1, 2.5, 2.5]


def test_a_column_a_newer_version_wrote_is_kept_after_the_declared_ones(path: Path) -> None:
    journal = JournalWriter(path)
    journal.commit(1, [("alarms", pa.RecordBatch.from_pydict({"update": [1], "mood": ["bad"]}))])
    journal.close()
    table = to_table("alarms", read_journal(path).batches["alarms"])
    assert table.column_names[-1] == "mood"
    assert table.column("mood").to_pylist() == ["bad"]


def test_a_batch_names_the_column_whose_value_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"a value of ppo_updates\.n is not a int64"):
        to_batch("ppo_updates", {"update": [1], "n": ["many"]})
    with pytest.raises(ValueError, match=r"a value of ppo_updates\.n is not a int64"):
        to_batch("ppo_updates", {"update": [1], "n": [float("nan")]})


def test_a_batch_of_an_unknown_column_table_or_of_uneven_columns_is_refused_with_a_message() -> None:
    with pytest.raises(KeyError, match=r"declares no column rato_max. Did you mean ratio_max"):
        to_batch("ppo_updates", {"update": [1], "rato_max": [1.0]})
    with pytest.raises(KeyError, match="declares no table ppo_update"):
        to_batch("ppo_update", {"update": [1]})
    with pytest.raises(ValueError, match="different lengths"):
        to_batch("ppo_updates", {"update": [1], "n": [1, 2]})
    with pytest.raises(ValueError, match="no columns were passed"):
        to_batch("ppo_updates", {})


@pytest.mark.parametrize("rows", [0, 1, 7, 300])
def test_a_batch_holds_what_converting_column_by_column_gives(rows: int) -> None:
    chance = random.Random(rows)
    data: dict[str, list[Any]] = {
        "update": list(range(rows)),
        "n": [None if chance.random() < 0.3 else chance.randrange(9) for _ in range(rows)],
        "loss": [chance.choice([None, math.inf, 0.5, -1.0]) for _ in range(rows)],
        "ratio_max": [chance.choice([None, 1.5]) for _ in range(rows)],
        "stopped_early": [chance.choice([None, True, False]) for _ in range(rows)],
        "definition": [chance.choice([None, "sb3", ""]) for _ in range(rows)],
    }
    assert to_batch("ppo_updates", data).to_pydict() == data
