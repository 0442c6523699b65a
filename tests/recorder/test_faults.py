"""A training reaches the same weights whatever happens to its recording, and what was dropped is in `gaps`."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import shutil
import threading
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
import torch

import esper_recorder.recording as recorder_module
from esper_analytics.maintenance.recovery import recover
from esper_analytics.maintenance.verification import verify
from esper_recorder import Recorder
from esper_recorder.storage.manifest import how_it_ended, read_manifest
from esper_recorder.storage.reserve import Reserve
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import MemorySink, ParquetSink
from tests.recorder.storage.stored_updates import read_rows

UPDATES = 12


def train(recorder: Recorder | None = None, at: Mapping[int, Callable[[], None]] | None = None) -> list[float]:
    """A small training; what `at` names happens before that update. The weights it reaches."""
    torch.manual_seed(3)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for update in range(1, UPDATES + 1):
        (at or {}).get(update, lambda: None)()
        for _ in range(2):
            loss = model(torch.randn(16, 4)).square().mean()
            optimizer.zero_grad()
            loss.backward()
            if recorder is not None:
                recorder.minibatch(log_ratio=torch.full((16,), 0.01), advantages=torch.ones(16))
                recorder.gradients(total_norm=torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9))
            else:
                torch.nn.utils.clip_grad_norm_(model.parameters(), 1e9)
            optimizer.step()
        if recorder is not None:
            recorder.end_update(step=update)
            if update % 4:  # now and then several wait in the queue
                recorder.flush()
    if recorder is not None:
        recorder.close()
    return [*torch.nn.utils.parameters_to_vector(model.parameters()).tolist()]


@pytest.fixture(scope="module")
def weights() -> list[float]:
    return train()


@pytest.fixture
def rolling_always(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new journal at every update, so that a folder that went bad is met at once."""
    assert ParquetSink.__init__.__kwdefaults__ is not None
    monkeypatch.setitem(ParquetSink.__init__.__kwdefaults__, "roll_bytes", 1)


def updates_of(folder: Path) -> list[int]:
    return sorted(row["update"] for row in read_rows(folder, "ppo_updates"))


def updates_in_gaps(folder: Path) -> set[int]:
    gaps = read_rows(folder, "gaps")
    return {update for gap in gaps for update in range(gap["first_update"], gap["last_update"] + 1)}


def test_a_run_folder_removed_in_the_middle_costs_the_recording_and_says_so(tmp_path, weights, caplog):
    recorder = Recorder(tmp_path)
    assert recorder.path is not None
    folder = recorder.path
    with caplog.at_level(logging.WARNING, "esper_recorder"):
        assert train(recorder, {6: lambda: shutil.rmtree(folder)}) == weights
    assert not folder.exists()
    assert "no longer exists" in caplog.text
    assert "The recording is not complete" in caplog.text


def test_a_journal_folder_removed_in_the_middle_costs_its_updates_which_are_gaps(tmp_path, weights):
    recorder = Recorder(tmp_path)
    assert recorder.path is not None
    folder = recorder.path
    assert train(recorder, {6: lambda: shutil.rmtree(folder / "journal")}) == weights
    stored = updates_of(folder)
    assert stored[-1] == UPDATES and 6 in stored
    assert set(range(1, UPDATES + 1)) <= set(stored) | updates_in_gaps(folder)
    assert read_manifest(folder).attempts[0].dropped


def test_permission_lost_in_the_middle_and_given_back_costs_what_is_in_gaps(
    tmp_path, weights, monkeypatch, rolling_always
):
    """Root may write anywhere, so that the operating system refuses is put in the place where it would."""
    import esper_recorder.storage.sink as sink

    real = os.open
    denied = threading.Event()

    def guarded(path: Any, *args: Any, **kwargs: Any) -> int:
        if denied.is_set() and str(path).endswith((".journal", ".tmp")):
            raise PermissionError(13, "Permission denied", str(path))
        return int(real(path, *args, **kwargs))

    monkeypatch.setattr(os, "open", guarded)
    monkeypatch.setattr(sink, "_RETRY_SECONDS", 0.0)
    recorder = Recorder(tmp_path)
    assert recorder.path is not None
    folder = recorder.path
    assert train(recorder, {5: denied.set, 9: denied.clear}) == weights
    stored = updates_of(folder)
    assert {1, 2, 3, 9, 10, 11, 12} <= set(stored)
    assert not {6, 7} & set(stored)
    assert set(range(1, UPDATES + 1)) == set(stored) | updates_in_gaps(folder)
    assert "Permission denied" in str(read_manifest(folder).attempts[0].dropped.message)


class Hanging(MemorySink):
    """A sink that takes its first update and then hangs until it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.let_go = threading.Event()

    def commit(self, update: int) -> None:
        if self.updates:
            self.let_go.wait(60)
        super().commit(update)


def test_a_writer_that_hangs_delays_nothing_and_the_dropped_updates_are_gaps(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(Recorder, "flush", lambda self: None)
    sink = Hanging()
    recorder = Recorder(tmp_path, sink=sink)
    assert recorder._run is not None and recorder.path is not None
    recorder._run.writer._capacity = 3
    assert train(recorder, {UPDATES: sink.let_go.set}) == weights
    stored = set(sink.updates)
    gaps = sink.rows("gaps")
    dropped = {update for gap in gaps for update in range(gap["first_update"], gap["last_update"] + 1)}
    assert {gap["reason"] for gap in gaps} == {"queue_full"}
    assert dropped and not dropped & {row["update"] for row in sink.rows("ppo_updates")}
    assert stored | dropped == set(range(1, UPDATES + 1))
    assert read_manifest(recorder.path).attempts[0].dropped.updates == len(dropped)


def test_a_writer_that_hangs_to_the_end_is_given_up_and_run_json_counts_what_was_dropped(
    tmp_path, weights, monkeypatch
):
    from esper_recorder.storage.writer import Writer

    monkeypatch.setattr(Recorder, "flush", lambda self: None)
    close = Writer.close
    monkeypatch.setattr(Writer, "close", lambda self, timeout=0.2, **words: close(self, timeout, **words))
    sink = Hanging()
    recorder = Recorder(tmp_path, sink=sink)
    assert train(recorder) == weights
    sink.let_go.set()
    assert recorder.path is not None
    assert read_manifest(recorder.path).attempts[0].dropped.updates >= UPDATES - 3


class _Jumping(datetime):
    """A wall clock that is set back by a year and forward by ten, again and again."""

    calls = 0

    @classmethod
    def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
        cls.calls += 1
        return datetime(2026, 6, 1, tzinfo=UTC) + timedelta(days=(0, -365, 3650)[cls.calls % 3])


def test_a_clock_that_jumps_back_and_forth_changes_the_time_of_rows_and_nothing_else(tmp_path, weights, monkeypatch):
    monkeypatch.setattr(recorder_module, "datetime", _Jumping)
    recorder = Recorder(tmp_path)
    assert recorder.path is not None
    assert train(recorder) == weights
    rows = sorted(read_rows(recorder.path, "ppo_updates"), key=lambda row: row["update"])
    assert [row["update"] for row in rows] == list(range(1, UPDATES + 1))
    assert len({row["time"].year for row in rows}) > 1
    elapsed = [row["elapsed_s"] for row in rows]
    assert elapsed == sorted(elapsed) and elapsed[-1] < 600
    assert read_rows(recorder.path, "gaps") == []
    assert json.loads((recorder.path / "run.json").read_text())["attempts"][0]["how"] == "finished"


def fill(ballast: Path) -> None:
    """Take all space that a disk has left."""
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(4096))


def test_a_disk_that_fills_up_and_is_cleared_again_costs_what_is_in_gaps(
    small_disk, weights, monkeypatch, rolling_always
):
    import esper_recorder.storage.sink as sink

    monkeypatch.setattr(sink, "_RETRY_SECONDS", 0.0)
    recorder = Recorder(small_disk / "runs")
    assert recorder.path is not None
    folder = recorder.path
    ballast = small_disk / "ballast"
    assert train(recorder, {5: lambda: fill(ballast), 9: ballast.unlink}) == weights
    stored = updates_of(folder)
    assert {1, 2, 3, 10, 11, 12} <= set(stored)
    assert len(stored) < UPDATES
    assert set(range(1, UPDATES + 1)) == set(stored) | updates_in_gaps(folder)


@pytest.mark.parametrize("config", [None, ["x" * 1000] * 60], ids=["small run.json", "run.json of 60 KB"])
def test_a_disk_that_stays_full_costs_what_is_in_gaps_and_the_run_has_ended(
    small_disk, weights, monkeypatch, caplog, config
):
    recorder = Recorder(small_disk / "runs", config=config)
    assert recorder.path is not None
    folder = recorder.path

    def fill_at_once() -> None:
        assert recorder.flush()
        fill(small_disk / "ballast")

    assert train(recorder, {5: fill_at_once}) == weights
    stored = updates_of(folder)
    assert {1, 2, 3, 4} <= set(stored) and len(stored) < UPDATES
    assert set(range(1, UPDATES + 1)) == set(stored) | updates_in_gaps(folder)
    (attempt,) = read_manifest(folder).attempts
    assert (how_it_ended(folder), attempt.how) == ("finished", "finished")
    assert "No space left" in str(attempt.dropped.message)
    assert "could not be written" not in caplog.text
    assert [path.name for path in folder.iterdir() if path.name.startswith("reserve")] == []


def test_space_is_reserved_while_a_run_is_recorded_and_recover_removes_what_a_killed_one_left(tmp_path):
    with Recorder(tmp_path, rules=None) as recorder:
        assert recorder.path is not None
        reserve = recorder.path / "reserve.0"
        # 32 KiB for the last gaps and as much for run.json, which is smaller than that
        assert reserve.stat().st_size == 64 * 1024
        assert recover(tmp_path).frame["state"].to_list() == ["live"] and reserve.exists()
    assert not reserve.exists()
    killed = RunFolder.create(tmp_path, "killed")
    killed.release()
    assert (killed.path / "reserve.0").exists()
    assert "reserve" not in str([problem.reason for problem in verify(tmp_path).problems])
    assert recover(tmp_path).problems == ()
    assert not (killed.path / "reserve.0").exists()


def test_a_run_without_space_to_reserve_is_recorded_and_the_log_says_so(tmp_path, monkeypatch, caplog):
    def refuse(self: Any, _: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Reserve, "fill", refuse)
    with Recorder(tmp_path, rules=None) as recorder:
        recorder.end_update()
    assert recorder.path is not None and updates_of(recorder.path) == [1]
    assert "No space is reserved for the end of run" in caplog.text
