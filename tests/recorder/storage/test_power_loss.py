"""Every acknowledged update is found again, whatever fsync or deletion power is lost after."""

from __future__ import annotations

import itertools
import os
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from esper_recorder.storage.arrow_batches import to_table
from esper_recorder.storage.atomic import atomic_file
from esper_recorder.storage.journal import read_journal
from esper_recorder.storage.listing import journals_in, list_row_files
from esper_recorder.storage.parquet import PartWriter
from esper_recorder.storage.rollover import roll
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import ParquetSink
from tests.recorder.storage.lossy_disk import LossyDisk


def stored_updates(folder: Path) -> list[int]:
    files = list_row_files(folder)
    tables = [pq.read_table(part) for part in files.parts.get("ppo_updates", ())]
    if "ppo_updates" in files.journal_rows:
        tables.append(files.journal_rows["ppo_updates"])
    return sorted(update for table in tables for update in table.column("update").to_pylist())


class Recording:
    """A run that is recorded on a lossy disk: after each of its steps, every acknowledged update must survive."""

    def __init__(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root = tmp_path / "disk"
        self.root.mkdir()
        self.acknowledged: list[int] = []
        self.steps = 0
        self._copies = (tmp_path / f"after-{number}" for number in itertools.count(1))
        self.run: Path | None = None
        disk = LossyDisk(self.root, self._check)
        monkeypatch.setattr(os, "fsync", disk.fsync)
        monkeypatch.setattr(os, "unlink", disk.unlink)

    def _check(self, disk: LossyDisk) -> None:
        self.steps += 1
        if self.acknowledged:
            assert self.run is not None
            copy = next(self._copies)
            disk.write_survivors(copy)
            assert set(self.acknowledged) <= set(stored_updates(copy / self.run.relative_to(self.root))), self.steps

    def record(self, sink: ParquetSink, update: int) -> None:
        identity: dict[str, list[Any]] = {"run_id": [sink.folder.name], "attempt": [1], "rank": [0], "update": [update]}
        sink.write("ppo_updates", identity | {"n": [update]})
        sink.write("alarms", identity | {"rule": ["kl"]})
        sink.commit(update)


@pytest.fixture
def recording(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Recording:
    return Recording(tmp_path, monkeypatch)


def test_every_flushed_update_of_a_recording_survives_a_loss_of_power(recording):
    folder = RunFolder.create(recording.root / "new" / "runs", rules=(None, "x = 1\n"))
    recording.run = folder.path
    for start in (1, 4):
        sink = ParquetSink(folder.path, roll_bytes=1 << 30)
        for update in range(start, start + 3):
            recording.record(sink, update)
            sink.flush()
            recording.acknowledged.append(update)
        sink.close()
    folder.finish("finished")
    assert recording.steps > 20


@pytest.mark.parametrize("done", ["nothing", "one table", "both tables"])
def test_every_flushed_update_survives_a_loss_of_power_while_a_part_is_trusted_that_was_never_fsynced(recording, done):
    folder = RunFolder.create(recording.root)
    recording.run = folder.path
    sink = ParquetSink(folder.path)
    recording.record(sink, 1)
    sink.flush()
    recording.acknowledged.append(1)
    folder.release()
    [(name, journal)] = journals_in(folder.path).items()
    # A roll that was killed after its renames: the parts are there, their entries in the folders are not durable yet.
    for table in ("ppo_updates", "alarms")[: {"nothing": 0, "one table": 1, "both tables": 2}[done]]:
        rows = to_table(table, read_journal(journal).batches[table])
        (folder.path / table).mkdir()
        with atomic_file(folder.path / table / name.part) as file:
            part = PartWriter(file, rows.schema, compact=False)
            part.write(rows)
            part.finish(table)
            file.flush()
            os.fsync(file.fileno())
    roll(folder.path, journal)
    assert not journal.exists()
