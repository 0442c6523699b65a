"""Records of updates: their rows are the same alone and beside others, and what somebody made up is refused."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_recorder.storage.joined_rows import JoinedRows
from esper_recorder.storage.journal import JournalWriter, read_journal
from esper_recorder.storage.record_layout import RecordLayout
from esper_recorder.storage.update_content import UpdateContent
from esper_recorder.storage.update_record import Contents, UpdateRecord
from tests.recorder.storage.records import LAYOUT, minibatch_record, random_layout, random_record

seeds = st.integers(0, 2**32 - 1)


def rows_of(records: list[UpdateRecord]) -> dict[str, list[dict[str, Any]]]:
    """The rows of records that are decoded together, by table."""
    joined = JoinedRows()
    joined.add([(0, record) for record in records])
    return {
        table: [row for batch in batches for row in batch.to_pylist()] for table, batches in joined.batches().items()
    }


def without_null(row: dict[str, Any]) -> str:
    """A row as text, in which NaN equals NaN."""
    return repr(sorted((name, value) for name, value in row.items() if value is not None))


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_the_rows_of_an_update_are_the_same_whatever_is_decoded_beside_it(seed: int):
    chance = random.Random(seed)
    layouts = [random_layout(chance) for _ in range(2)]
    records = []
    for update in range(1, 8):
        record = random_record(chance, chance.choice(layouts), update)
        record.check()
        contents = chance.choice([Contents.ALL, Contents.ALL, Contents.WITHOUT_MINIBATCHES])
        records.append(record if contents is Contents.ALL else record.standing_for(contents))
    together = rows_of(records)
    alone: dict[str, list[dict[str, Any]]] = {}
    for record in records:
        for table, rows in rows_of([record]).items():
            alone.setdefault(table, []).extend(rows)
    assert {table: list(map(without_null, rows)) for table, rows in together.items()} == {
        table: list(map(without_null, rows)) for table, rows in alone.items()
    }


@given(seeds)
@settings(max_examples=30, deadline=None)
def test_a_layout_reads_back_from_its_json(seed: int):
    layout = random_layout(random.Random(seed))
    assert RecordLayout.from_json(layout.to_json()) == layout


def test_the_values_of_a_record_are_those_of_its_minibatches():
    record = minibatch_record(3, [1.5, math.nan, 1.25])
    record.check()
    rows = rows_of([record])
    (update,) = rows["ppo_updates"]
    assert (update["run_id"], update["update"], update["step"], update["definition"]) == ("r", 3, 300, "pooled")
    assert (update["n"], update["ratio_max"], update["minibatch_count"]) == (30, 1.5, 3)
    assert [row["minibatch"] for row in rows["minibatches"]] == [1, 2, 3]
    assert [row["update"] for row in rows["minibatches"]] == [3, 3, 3]
    assert record.rows == 1 + 3
    assert record.standing_for(Contents.LEAD_UP).rows == 3
    assert record.standing_for(Contents.WITHOUT_MINIBATCHES).rows == 1
    assert [row["backfilled"] for row in rows_of([record.standing_for(Contents.LEAD_UP)])["minibatches"]] == [True] * 3


def test_a_row_is_there_although_no_column_that_is_read_was_measured():
    content = UpdateContent({"epochs": {"update": [3, 3]}}, [minibatch_record(3, [1.5, 1.25, 1.0])])
    assert content.read("ppo_updates", ["progress"]) == [{}]
    assert content.read("minibatches", ["stepped"]) == [{}] * 3
    assert content.read("minibatches", ["ratio_max"], ends=True) == [{"ratio_max": 1.5}, {"ratio_max": 1.0}]
    assert content.read("epochs", ["val_accuracy"]) == [{}, {}]
    assert content.read("heads", ["head"]) == content.read("alarms", ["rule"]) == []


def test_an_epoch_beyond_what_float64_counts_is_stored_as_it_is():
    layout = RecordLayout.from_json(LAYOUT.to_json().replace(b'"notes":[1,0,', b'"notes":[1,1,'))
    numbers = np.concatenate(
        [[1.0], np.array([1, 2**62 - 1]).view(np.float64), [0.0], [10.0, 1.5]],
    )
    record = UpdateRecord.pack(layout, 1, 2, [0, 0.0, 2**63 - 1], numbers)
    record.check()
    rows = rows_of([record])
    assert rows["minibatches"][0]["epoch"] == 2**62 - 1
    assert rows["ppo_updates"][0]["step"] == 2**63 - 1


def _paths(data: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    inner = data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ()
    return [path, *[found for key, value in inner for found in _paths(value, (*path, key))]]


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_a_layout_that_somebody_changed_is_refused_or_read_and_nothing_else_happens(seed: int):
    chance = random.Random(seed)
    layout = random_layout(chance)
    data = json.loads(layout.to_json())
    path = chance.choice([p for p in _paths(data) if p])
    holder = data
    for key in path[:-1]:
        holder = holder[key]
    odd: list[Any] = [None, -1, 0, 2, 2**40, 2**70, 1.5, True, "", "n", [], {}, ["n", "n"], [[0, 0, True]], "\ud800"]
    if isinstance(holder, dict) and chance.random() < 0.3:
        del holder[path[-1]]
    else:
        holder[path[-1]] = chance.choice(odd)
    record = random_record(chance, layout, 1)
    try:
        changed = UpdateRecord(RecordLayout.from_json(json.dumps(data).encode()), record.data)
        changed.check()
    except ValueError:
        return
    rows_of([changed])


@given(seeds)
@settings(max_examples=100, deadline=None)
def test_a_record_that_somebody_changed_is_refused_or_read_and_nothing_else_happens(seed: int):
    chance = random.Random(seed)
    record = random_record(chance, random_layout(chance), 1)
    data = bytearray(record.data)
    for _ in range(chance.randint(1, 20)):
        place = chance.randrange(len(data)) & ~7 if chance.random() < 0.5 else chance.randrange(32)
        odd = [math.nan, math.inf, 1e300, -1.0, 2.0**40, 0.0, 5e-324]
        data[place : place + 8] = np.float64(chance.choice(odd)).tobytes()
    changed = UpdateRecord(record.layout, bytes(data[: chance.choice([len(data), chance.randrange(len(data) + 1)])]))
    try:
        changed.check()
    except ValueError:
        return
    rows_of([changed])


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        (b'"version":1', b'"version":2', "version 2"),
        (b'"ratio_max"', b'"ratio_mix"', "declares no column 'ratio_mix'"),
        (b'"pooled"', b'"sbx"', "definition 'sbx'"),
        (b'"run_id":"r"', b'"run_id":7', "7 is not a str"),
        (b'{"version"', b'["version"', "Expecting"),
    ],
)
def test_a_layout_of_another_version_is_damage_that_is_explained(tmp_path: Path, old: bytes, new: bytes, words: str):
    with pytest.raises(ValueError, match=words):
        RecordLayout.from_json(LAYOUT.to_json().replace(old, new))


def test_a_damaged_record_costs_itself_and_a_damaged_layout_its_records(tmp_path: Path):
    path = tmp_path / "a1-r0-000001.journal"
    journal = JournalWriter(path)
    for update in (1, 2, 3):
        journal.commit(update, [minibatch_record(update, [1.5])])
    journal.close()
    data = path.read_bytes()
    assert read_journal(path).updates == (1, 2, 3)
    assert data.count(b'"version":1') == 1  # the layout is written once
    for needle, kept in ((np.float64(1.5).tobytes(), [2, 3]), (b'"run_id":"r"', [])):
        damaged = bytearray(data)
        damaged[data.find(needle)] ^= 1
        path.write_bytes(damaged)
        content = read_journal(path)
        stored = [row["update"] for batch in content.batches.get("ppo_updates", ()) for row in batch.to_pylist()]
        assert stored == kept and content.updates == (1, 2, 3)
        assert "the checksum does not fit" in {damage.reason for damage in content.damage}
