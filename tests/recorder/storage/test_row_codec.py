from __future__ import annotations

import math
import random
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest

from esper_recorder.storage.arrow_batches import to_batch, to_table
from esper_recorder.storage.journal import JournalWriter, read_journal
from esper_recorder.storage.parquet import arrow_schema
from esper_recorder.storage.row_codec import pack_row, unpack_rows

NOON = datetime(2026, 1, 2, 12, 0, 0, 123_456, tzinfo=UTC)


def some_row(chance: random.Random) -> dict[str, list[Any]]:
    """One row of `ppo_updates`, a column in five NULL; NaN, infinities and odd texts among the values."""
    row: dict[str, list[Any]] = {}
    for field in arrow_schema("ppo_updates"):
        kind = str(field.type)
        if kind == "double":
            value: Any = chance.choice([math.nan, math.inf, -math.inf, -0.0, 1e-320, chance.gauss(0, 1e9)])
        elif kind == "int64":
            value = chance.choice([0, -1, 2**62, -(2**63)])
        elif kind == "bool":
            value = chance.random() < 0.5
        elif kind.startswith("timestamp"):
            value = chance.choice(
                [NOON, NOON.astimezone(timezone(timedelta(hours=5.5))), datetime(1969, 1, 1, tzinfo=UTC)]
            )
        elif kind == "string":
            value = chance.choice(["", "pooled", 'a "b" \n \u2028 ü'])
        else:
            value = chance.choice([[], ["loss", "entropy"]])
        row[field.name] = [None if chance.random() < 0.2 else value]
    return row


def test_a_packed_row_reads_back_as_the_arrow_batch_of_the_same_values() -> None:
    chance = random.Random(0)
    for _ in range(50):
        row = some_row(chance)
        packed = pack_row("ppo_updates", row)
        assert packed is not None
        unpacked = to_table("ppo_updates", [unpack_rows(packed.layout, [packed.data])])
        converted = to_table("ppo_updates", [to_batch("ppo_updates", row)])
        assert repr(unpacked.to_pylist()) == repr(converted.to_pylist())  # NaN equals NaN here


def test_rows_packed_and_not_keep_their_order_in_a_journal(tmp_path: Path) -> None:
    chance = random.Random(1)
    journal = JournalWriter(tmp_path / "a1-r0-000001.journal")
    batches = []
    for update in range(1, 41):
        row = some_row(chance) | {"update": [update]}
        batches.append(to_batch("ppo_updates", row))
        packed = pack_row("ppo_updates", row) if chance.random() < 0.7 else None
        journal.commit(update, [("ppo_updates", packed or batches[-1])])
    journal.close()
    content = read_journal(journal.path)
    assert (content.rows, content.updates, content.damage) == (40, tuple(range(1, 41)), ())
    read = to_table("ppo_updates", content.batches["ppo_updates"]).to_pylist()
    assert repr(read) == repr(to_table("ppo_updates", batches).to_pylist())


@pytest.mark.parametrize(
    "columns",
    [
        {"update": [1, 2], "n": [1, 2]},  # two rows
        {"update": [], "n": []},
        {"update": [1]},
        {"update": [1], "n": [1.5]},
        {"update": [1], "n": [2**63]},
        {"update": [1], "stopped_early": [1]},
        {"update": [1], "loss": ["high"]},
        {"update": [1], "definition": [5]},
        {"update": [1], "nonfinite_fields": [["a", None]]},
        {"update": [1], "time": [12.5]},
        {"update": [1], "time": [datetime(2026, 1, 1)]},  # which zone?
        {"update": [1], "rato_max": [1.0]},
    ],
)
def test_whatever_is_not_one_row_of_fitting_values_is_left_to_arrow(columns: dict[str, list[Any]]) -> None:
    assert pack_row("ppo_updates", columns) is None


def test_a_packed_row_that_is_cut_or_of_another_layout_is_an_error() -> None:
    packed = pack_row("ppo_updates", {"update": [1], "n": [5], "definition": ["pooled"]})
    assert packed is not None
    with pytest.raises(ValueError, match="shorter than its layout"):
        unpack_rows(packed.layout, [packed.data[:10]])
    with pytest.raises(ValueError):
        unpack_rows(packed.layout, [packed.data[:-3]])
    with pytest.raises(ValueError, match="fixed columns first"):
        type(packed.layout)(arrow_schema("ppo_updates"))


def test_a_list_that_the_trainer_keeps_filling_is_packed_as_it_was_each_time() -> None:
    fields: list[str] = []
    packed = []
    for name in ("loss", "entropy"):
        fields.append(name)
        row = pack_row("ppo_updates", {"update": [1], "n": [1], "nonfinite_fields": [fields]})
        assert row is not None
        packed.append(row)
    read = [unpack_rows(row.layout, [row.data]).to_pylist()[0]["nonfinite_fields"] for row in packed]
    assert read == [["loss"], ["loss", "entropy"]]
