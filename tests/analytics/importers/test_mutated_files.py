"""Files damaged at random are imported without an error, and what is counted is what is in them.

The counts that an import has to match are made here from the damaged lines alone, with the standard library.
"""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from tests.esper_files import ALL_KINDS, content, import_runs

FEW, MANY, PART = 40, 2_000, 500
OWN_ROW = {  # kinds of event that make exactly one row of this table
    "EPOCH_COMPLETED": "epochs",
    "PPO_UPDATE_COMPLETED": "ppo_updates",
    "EPISODE_OUTCOME": "episodes",
    "BATCH_EPOCH_COMPLETED": "batches",
    "MORPHOLOGY_CAUSAL_LOG": "morphology",
    "TAMIYO_INITIATED": "host_stabilizations",
}


def cut_line(data: bytearray, dice: random.Random) -> None:
    start = dice.randrange(len(data))
    del data[start : start + dice.randrange(1, 3_000)]


def cut_off(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


def drop_line(data: bytearray, dice: random.Random) -> None:
    rows = data.split(b"\n")
    rows.pop(dice.randrange(len(rows)))
    data[:] = b"\n".join(rows)


def swap_lines(data: bytearray, dice: random.Random) -> None:
    rows = data.split(b"\n")
    one, other = dice.randrange(len(rows)), dice.randrange(len(rows))
    rows[one], rows[other] = rows[other], rows[one]
    data[:] = b"\n".join(rows)


def double_line(data: bytearray, dice: random.Random) -> None:
    rows = data.split(b"\n")
    rows.insert(dice.randrange(len(rows)), dice.choice(rows))
    data[:] = b"\n".join(rows)


def flip_bytes(data: bytearray, dice: random.Random) -> None:
    for _ in range(dice.randrange(1, 60)):
        data[dice.randrange(len(data))] = dice.randrange(256)


def change_digits(data: bytearray, dice: random.Random) -> None:
    """Damage that leaves most lines well-formed: other digits, signs and letters."""
    for _ in range(dice.randrange(1, 200)):
        place = dice.randrange(len(data))
        if data[place : place + 1].isalnum():
            data[place] = dice.choice(b"0123456789-.eaNtf")


def insert_line(data: bytearray, dice: random.Random) -> None:
    rows = data.split(b"\n")
    strange = (b"", b"{}", b"null", b"[[[[", b'{"event_type":"PPO_UPDATE_COMPLETED"}', b"\x00\xff", b"NaN", b'"')
    rows.insert(dice.randrange(len(rows)), bytearray(dice.choice(strange)))
    data[:] = b"\n".join(rows)


MUTATIONS = (cut_line, cut_off, drop_line, swap_lines, double_line, flip_bytes, change_digits, insert_line)


def mutated(seed: int, originals: list[bytes]) -> bytes:
    dice = random.Random(seed)
    rows = dice.choice(originals).split(b"\n")
    start = dice.randrange(len(rows) - 30)
    data = bytearray(b"\n".join([rows[0], *rows[start : start + 30]]) + b"\n")
    for _ in range(dice.randrange(1, 4)):
        if data:
            dice.choice(MUTATIONS)(data, dice)
    return bytes(data)


@dataclass
class Expected:
    """What is in a file, by a reading that has nothing in common with the import's."""

    lines: int = 0
    no_events: int = 0
    events: Counter[str] = field(default_factory=Counter)
    repeated: int = 0


def expected_of(data: bytes) -> Expected:
    expected = Expected()
    seen = set()
    for line in data.split(b"\n"):
        if not line.strip():
            continue
        expected.lines += 1
        try:
            event = json.loads(line.decode())
            json.dumps(event, ensure_ascii=False).encode()
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict) or not isinstance(event.get("event_type"), str):
            expected.no_events += 1
            continue
        event_id = event.get("event_id")
        if isinstance(event_id, str) and event_id in seen:
            expected.repeated += 1
            continue
        if isinstance(event_id, str):
            seen.add(event_id)
        expected.events[event["event_type"]] += 1
    return expected


def check(seed: int, originals: list[bytes], folder: Path) -> None:
    data = mutated(seed, originals)
    expected = expected_of(data)
    reports = [outcome.report for outcome in import_runs(data, folder)]
    assert sum(report.read for report in reports) == expected.lines, seed
    rows: Counter[str] = Counter()
    for part in (folder / "runs").glob("*/*/part-*.parquet"):
        rows[part.parent.name] += pq.read_metadata(part).num_rows
    if not expected.events:
        assert not rows, seed  # a file without any event makes no run
        return
    assert rows == sum((Counter(report.rows) for report in reports), Counter()), seed
    assert rows["events"] == expected.events.total(), seed
    typed: Counter[str] = Counter()
    reasons: Counter[str] = Counter()
    for report in reports:
        reasons.update(report.reasons)
        for kind, tally in report.tallies.items():
            typed[kind] += tally.typed
            assert tally.read == tally.typed + tally.kept + tally.rejected
    assert rows["raw_events"] == reasons.total(), seed
    assert reasons["not_json"] + reasons["torn"] + reasons["no_event"] == expected.no_events, seed
    assert reasons["repeated"] == expected.repeated, seed
    for kind, table in OWN_ROW.items():
        assert rows[table] == typed[kind] == expected.events[kind], (seed, kind)


def check_all(seeds: range, folder: Path) -> None:
    originals = [content(path) for path in ALL_KINDS]
    for seed in seeds:
        check(seed, originals, folder / str(seed))


def test_the_mutations_leave_few_files_as_they_were(tmp_path: Path) -> None:
    originals = [content(path) for path in ALL_KINDS]
    expected = [expected_of(mutated(seed, originals)) for seed in range(FEW)]
    assert sum(one.no_events > 0 for one in expected) > FEW / 4
    assert sum(one.repeated > 0 for one in expected) > FEW / 20


def test_damaged_files_are_imported_with_the_counts_that_are_in_them(tmp_path: Path) -> None:
    check_all(range(FEW), tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("first", range(FEW, FEW + MANY, PART))
def test_two_thousand_damaged_files_are_imported_with_the_counts_that_are_in_them(first: int, tmp_path: Path) -> None:
    check_all(range(first, first + PART), tmp_path)
