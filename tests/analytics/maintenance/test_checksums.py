"""Bits that flip on the disk: the file is named, and no number that was not recorded is taken for one."""

from __future__ import annotations

import math
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from esper_analytics.maintenance.compaction import compact
from esper_analytics.maintenance.recovery import recover
from esper_analytics.maintenance.verification import verify
from esper_recorder.contract.tables import column_names
from esper_recorder.storage.listing import parts_in
from esper_recorder.storage.parquet import can_be_read
from tests.analytics.maintenance.recordings import UPDATES, content, expected, many_parts
from tests.builders import add_journal, add_part, complete_rows, write_run

FLIPS = 150


def flip(data: bytes, start: int, end: int, chance: random.Random) -> bytes:
    """1 to 3 random bits of a stretch of bytes, flipped."""
    changed = bytearray(data)
    for _ in range(chance.randint(1, 3)):
        changed[chance.randrange(start, end)] ^= 1 << chance.randrange(8)
    return bytes(changed)


def stored_rows(part: Path) -> str | None:
    """The rows as a reader that checks nothing gets them; None if it gets an error."""
    try:
        return str(pq.read_table(part).to_pylist())
    except (OSError, ValueError, pa.ArrowException):
        return None


def footer_start(data: bytes) -> int:
    return len(data) - 8 - int.from_bytes(data[-8:-4], "little")


def damage(part: Path) -> None:
    """Flip a bit in the values of the first column."""
    column = pq.read_metadata(part).row_group(0).column(0)
    place = column.data_page_offset + column.total_compressed_size - 1
    if column.dictionary_page_offset is not None:
        place += column.dictionary_page_offset - column.data_page_offset
    data = part.read_bytes()
    part.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    assert not can_be_read(part)


def test_verify_names_every_part_whose_rows_are_not_those_that_were_written(tmp_path):
    updates = [{"n": n, "ratio_max": n * 1.5, "loss": math.nan if n % 3 else None} for n in range(1, 60)]
    path = write_run(tmp_path, updates=updates)
    [part] = path.glob("ppo_updates/*")
    whole, rows = part.read_bytes(), stored_rows(part)
    chance = random.Random(1)
    unnoticed, silent = [], 0
    for number in range(FLIPS):
        part.write_bytes(flip(whole, 0, footer_start(whole), chance))
        read = stored_rows(part)
        if read == rows:
            continue
        silent += read is not None
        outcome = verify(tmp_path)
        named = any(problem.path == part for problem in outcome.problems)
        if not named or outcome.frame["complete"].item():
            unnoticed.append(number)
    assert unnoticed == []
    assert silent  # some of them a reader without checksums takes for the rows


def test_verify_names_a_part_with_a_flipped_bit_in_the_name_of_a_column(tmp_path):
    path = write_run(tmp_path, updates=[{}])
    [part] = path.glob("ppo_updates/*")
    whole = part.read_bytes()
    for name in column_names("ppo_updates")[4::8]:
        place = whole.index(name.encode(), footer_start(whole)) + len(name) - 1
        part.write_bytes(whole[:place] + bytes([whole[place] ^ 2]) + whole[place + 1 :])
        outcome = verify(tmp_path)
        assert any(p.path == part for p in outcome.problems), name
        assert not outcome.frame["complete"].item()


def test_compaction_leaves_a_damaged_part_alone_and_names_it(tmp_path):
    path = many_parts(tmp_path)
    parts = parts_in(path)[0]["ppo_updates"]
    damaged = next(file for name, file in parts.items() if name.first == 5)
    damage(damaged)
    before = damaged.read_bytes()
    outcome = compact(tmp_path)
    assert [(p.path, "damaged" in p.reason) for p in outcome.problems] == [(damaged, True)]
    assert damaged.read_bytes() == before
    left = sorted((name.first, name.last) for name in parts_in(path)[0]["ppo_updates"])
    assert left == [(1, 4), (5, 5), (6, UPDATES)]


def test_recovery_writes_a_damaged_part_again_from_its_journal(tmp_path):
    path = many_parts(tmp_path, ended=None)
    rows = complete_rows("ppo_updates", [{"update": n, "n": n} for n in (UPDATES + 1, UPDATES + 2)], run_id=path.name)
    add_journal(path, {"ppo_updates": rows}, seq=UPDATES + 1)
    damage(add_part(path, "ppo_updates", rows, seq=UPDATES + 1))
    assert recover(tmp_path).frame["state"].to_list() == ["recovered"]
    assert content(path) == expected(UPDATES + 2)
    assert verify(tmp_path).frame["missing"].item() == 0
