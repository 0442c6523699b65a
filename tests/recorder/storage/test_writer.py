from __future__ import annotations

import logging
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
from pathlib import Path
from typing import Any

import pytest

from esper_recorder.storage.manifest import how_it_ended, read_manifest
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import MemorySink, ParquetSink, Sink
from esper_recorder.storage.writer import Writer
from tests.recorder.storage.stored_updates import read_rows, update_rows, updates_in, updates_in_gaps


class Gate(MemorySink):
    """A sink whose commits wait until the gate is opened."""

    def __init__(self) -> None:
        super().__init__()
        self.open = threading.Event()
        self.entered = threading.Event()

    def commit(self, update: int) -> None:
        self.entered.set()
        assert self.open.wait(60)
        super().commit(update)


def test_every_update_put_is_committed_in_order(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    writer = Writer(ParquetSink(folder.path), folder, capacity=1000)
    for update in range(1, 51):
        writer.put(update, lambda update=update: update_rows(update))  # type: ignore[misc]
    assert writer.flush()
    assert updates_in(folder.path) == list(range(1, 51))
    assert writer.close(how="finished")
    assert writer.close()
    assert (writer.committed, bool(writer.dropped), writer.closed) == (50, False, True)
    assert not writer.flush()
    writer.put(51, update_rows(51))
    assert updates_in(folder.path) == list(range(1, 51))
    folder.finish("finished", updates=50, dropped=writer.dropped)


def test_a_full_queue_drops_the_oldest_updates_and_one_gap_records_them(
    caplog: pytest.LogCaptureFixture,
) -> None:
    sink = Gate()
    writer = Writer(sink, capacity=3)
    writer.put(1, update_rows(1))
    assert sink.entered.wait(60)
    for update in range(2, 10):  # 1 is being written; 2..9 come, three may wait: 2..6 go
        writer.put(update, update_rows(update))
    assert (writer.dropped.updates, writer.dropped.rows) == (5, 5 * 4)
    sink.open.set()
    assert writer.close()
    assert sink.updates == [1, 7, 8, 9]
    (gap,) = sink.rows("gaps")
    recorded = {name: gap[name] for name in ("table_name", "reason", "first_update", "last_update", "rows", "update")}
    assert recorded == {
        "table_name": "*",
        "reason": "queue_full",
        "first_update": 2,
        "last_update": 6,
        "rows": 20,
        "update": 6,
    }
    assert gap["time"] is not None and gap["elapsed_s"] >= 0
    assert caplog.text.count("queue full") == 1
    assert "not complete: 5 dropped updates, 20 dropped rows (last: " in caplog.text


def test_the_rows_of_a_dropped_update_that_were_never_evaluated_are_not_known() -> None:
    sink = Gate()
    writer = Writer(sink, capacity=1)
    writer.put(1, update_rows(1))
    assert sink.entered.wait(60)
    for update in (2, 3):
        writer.put(update, lambda: update_rows(9))
    sink.open.set()
    writer.close()
    (gap,) = sink.rows("gaps")
    assert (gap["first_update"], gap["last_update"], gap["rows"]) == (2, 2, None)


def test_put_never_waits_for_a_sink_that_hangs_and_close_gives_up() -> None:
    sink = Gate()
    writer = Writer(sink, capacity=2)
    for update in range(1, 100):
        writer.put(update, update_rows(update))
    assert not writer.flush(timeout=0.05)
    assert not writer.close(timeout=0.05)
    assert "did not finish within 0.05 s" in str(writer.dropped.message)
    assert writer.dropped.updates >= 98  # at most one is in the sink's hands
    sink.open.set()
    assert writer.close(timeout=60)


class Broken(Sink):
    def __init__(self) -> None:
        self.tried = 0

    def write(self, table: str, columns: Any) -> None:
        self.tried += 1
        raise RuntimeError("out of order")

    def commit(self, update: int) -> None:
        raise RuntimeError("nor this")

    def tick(self) -> None:
        raise RuntimeError("nor this")

    def flush(self) -> None:
        raise SystemExit(3)

    def close(self, how: str | None = None, error: str | None = None) -> None:
        raise KeyboardInterrupt


def test_a_sink_that_raises_each_time_is_counted_and_logged_once(caplog: pytest.LogCaptureFixture) -> None:
    sink = Broken()
    writer = Writer(sink)
    for update in range(1, 31):
        writer.put(update, update_rows(update))
        assert writer.flush(60)
    assert writer.close()
    assert sink.tried >= 30 * 2
    assert (writer.committed, writer.dropped.updates) == (0, 30)
    assert writer.dropped.rows == 30 * 4  # each row once, although both its write and the commit failed
    assert caplog.text.count("Not everything can be recorded") == 1
    assert "RuntimeError: out of order" in caplog.text


def test_gaps_of_a_sink_that_works_again_are_stored_with_the_next_update() -> None:
    class Flaky(MemorySink):
        def commit(self, update: int) -> None:
            if 3 <= update <= 5:
                self._pending = []
                raise OSError(28, "No space left on device")
            super().commit(update)

    sink = Flaky()
    writer = Writer(sink)
    for update in range(1, 8):
        writer.put(update, update_rows(update), count=4)
        writer.flush()
    writer.close()
    assert sink.updates == [1, 2, 6, 7]
    (gap,) = sink.rows("gaps")
    assert (gap["first_update"], gap["last_update"], gap["rows"], gap["reason"]) == (3, 5, 12, "write_failed")
    assert "No space left on device" in gap["detail"]
    assert (writer.dropped.updates, writer.dropped.rows, writer.dropped.writes) == (3, 12, 3)


def test_rows_that_fit_no_table_cost_only_that_table() -> None:
    sink = MemorySink()
    writer = Writer(sink)
    writer.put(1, {**update_rows(1), "minibatches": {"update": [1, 1], "n": ["a", "b"]}})
    writer.put(2, {**update_rows(2), "minibatches": {"update": 5}})  # type: ignore[dict-item]
    writer.put(3, {**update_rows(3), "nonsense": {"update": [3]}})
    writer.close()
    assert sink.tables()["ppo_updates"] == 3 and sink.tables()["minibatches"] == 3
    gaps = sink.rows("gaps")
    assert [(gap["table_name"], gap["first_update"], gap["rows"]) for gap in gaps] == [
        ("minibatches", 1, 2),
        ("minibatches", 2, None),
        ("nonsense", 3, 1),
    ]
    assert (writer.dropped.updates, writer.dropped.rows, writer.dropped.writes) == (0, 3, 3)


def test_a_job_that_fails_is_a_gap_of_its_update() -> None:
    def job() -> dict[str, Any]:
        raise ZeroDivisionError("by zero")

    sink = MemorySink()
    writer = Writer(sink, identity=lambda update: {"run_id": "me", "attempt": 7, "update": update})
    writer.put(1, job)
    writer.put(2, lambda: 5)  # type: ignore[arg-type,return-value]
    writer.report_gap(3, "reduce_failed", detail="reported by the recorder")
    writer.report_gap(3, "reduce_failed", table="episodes", rows=2)
    writer.put(4, update_rows(4))
    writer.close()
    assert sink.updates[-1] == 4
    gaps = sink.rows("gaps")
    assert {gap["run_id"] for gap in gaps} == {"me"} and {gap["attempt"] for gap in gaps} == {7}
    assert updates_in_gaps(gap for gap in gaps if gap["table_name"] == "*") == {1, 2, 3}
    assert [gap["rows"] for gap in gaps if gap["table_name"] == "episodes"] == [2]
    assert (writer.committed, writer.dropped.updates, writer.dropped.rows) == (1, 3, 2)


def test_what_on_commit_returns_is_committed_with_the_update_and_its_failure_costs_only_alarms() -> None:
    def watch(update: int, rows: Any) -> Any:
        if update == 2:
            raise RuntimeError("a rule broke")
        return {"alarms": {"update": [update], "rule": ["r"]}, "minibatches": {"update": [update], "n": [9]}}

    sink = MemorySink()
    writer = Writer(sink, on_commit=watch)
    for update in (1, 2):
        writer.put(update, update_rows(update))
    writer.close()
    assert [row["update"] for row in sink.rows("alarms")] == [1]
    assert [(row["update"], row["n"]) for row in sink.rows("minibatches")] == [(1, None)] * 3 + [(1, 9)] + [
        (2, None)
    ] * 3
    (gap,) = sink.rows("gaps")
    assert (gap["table_name"], gap["reason"], gap["first_update"]) == ("alarms", "watch_failed", 2)
    assert writer.dropped.updates == 0


def test_calls_from_the_writers_own_thread_do_not_lock_up() -> None:
    answers = []

    def watch(update: int, rows: Any) -> None:
        answers.append((writer.flush(), writer.close()))

    writer = Writer(MemorySink(), on_commit=watch)
    writer.put(1, update_rows(1))
    assert writer.close(60)
    assert answers == [(False, False)]


def test_a_capacity_below_one_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one update"):
        Writer(MemorySink(), capacity=0)


def test_a_folder_removed_while_training_is_logged_and_training_continues(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = RunFolder.create(tmp_path)
    writer = Writer(ParquetSink(folder.path), folder)
    for update in range(1, 11):
        if update == 4:
            shutil.rmtree(folder.path)
        writer.put(update, update_rows(update))
        writer.flush()
    assert writer.close()
    with pytest.raises(FileNotFoundError):
        folder.finish("finished", dropped=writer.dropped)
    assert writer.dropped.rows == 10 * 4  # three from the deleted journal, seven that found no folder
    assert writer.dropped.updates == 7
    assert "was moved or deleted while the run was being recorded" in caplog.text
    assert not folder.path.exists()


def test_a_full_disk_is_reported_in_the_log_and_the_manifest_and_nothing_stored_is_doubled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, small_disk: Path
) -> None:
    folder = RunFolder.create(small_disk)
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(900_000))
    writer = Writer(ParquetSink(folder.path), folder)
    for update in range(1, 300):
        writer.put(update, update_rows(update))
        writer.flush()
    dropped = writer.dropped.updates
    assert dropped > 0
    ballast.unlink()
    writer.put(300, update_rows(300))
    writer.close(how="finished")
    folder.finish("finished", updates=300, dropped=writer.dropped)
    assert "Check that the disk has space" in caplog.text
    stored = updates_in(folder.path)
    missing = updates_in_gaps(read_rows(folder.path, "gaps"))
    assert set(stored) | missing == set(range(1, 301)) and not set(stored) & missing
    attempt = read_manifest(folder.path).last_attempt
    assert attempt is not None and attempt.dropped.updates == len(missing) == dropped


# --- processes ------------------------------------------------------------------------------------------------------


def run_child(code: str, root: Path, **kwargs: Any) -> subprocess.CompletedProcess[str]:
    head = """
        import os, signal, sys, time
        from esper_recorder.storage.run_folder import RunFolder
        from esper_recorder.storage.sink import ParquetSink
        from esper_recorder.storage.writer import Writer
        from tests.recorder.storage.stored_updates import update_rows
        folder = RunFolder.create(sys.argv[1])
        writer = Writer(ParquetSink(folder.path), folder, capacity=1000)
        for update in range(1, 21):
            writer.put(update, update_rows(update))
    """
    code = textwrap.dedent(head) + textwrap.dedent(code)
    return subprocess.run(
        [sys.executable, "-c", code, str(root)], capture_output=True, text=True, timeout=120, cwd=os.getcwd(), **kwargs
    )


def test_a_process_that_ends_without_closing_stores_what_was_put(tmp_path: Path) -> None:
    done = run_child("", tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = tmp_path.iterdir()
    assert updates_in(folder) == list(range(1, 21))
    assert not (folder / "journal").exists()
    assert how_it_ended(folder) == "killed"  # it did not record an end


def test_an_exception_and_ctrl_c_in_the_trainer_store_what_was_put(tmp_path: Path) -> None:
    for name, code, status in [
        ("raised", "raise RuntimeError('trainer')", 1),
        ("interrupted", "os.kill(os.getpid(), signal.SIGINT); time.sleep(60)", -signal.SIGINT),
        ("exited", "sys.exit(7)", 7),
    ]:
        root = tmp_path / name
        assert run_child(code, root).returncode == status
        (folder,) = root.iterdir()
        assert updates_in(folder) == list(range(1, 21))


def test_a_forked_child_writes_nothing_and_leaves_the_parents_run_alone(tmp_path: Path) -> None:
    code = """
        pid = os.fork()
        if pid == 0:
            for update in range(100, 200):
                writer.put(update, update_rows(update))
            assert not writer.flush()
            assert not writer.close()
            folder.beat()
            folder.finish("raised")
            sys.exit(0)                    # its at-exit functions run
        assert os.waitpid(pid, 0)[1] == 0
        import subprocess
        ask = "import sys; from esper_recorder.storage.manifest import how_it_ended; print(how_it_ended(sys.argv[1]))"
        assert subprocess.check_output([sys.executable, "-c", ask, str(folder.path)], text=True) == "live\\n"
        writer.put(21, update_rows(21))
        writer.close(how="finished")
        folder.finish("finished", updates=21)
    """
    done = run_child(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = tmp_path.iterdir()
    assert updates_in(folder) == list(range(1, 22))
    assert how_it_ended(folder) == "finished"


def test_many_forked_workers_at_once_do_not_hang(tmp_path: Path) -> None:
    code = """
        import multiprocessing
        def work(n):
            writer.put(n, update_rows(n))
            return writer.flush(1)
        with multiprocessing.get_context("fork").Pool(4) as pool:
            assert pool.map(work, range(100)) == [False] * 100
        writer.close()
    """
    done = run_child(code, tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    (folder,) = tmp_path.iterdir()
    assert updates_in(folder) == list(range(1, 21))


def test_the_log_names_the_recorder(caplog: pytest.LogCaptureFixture) -> None:
    writer = Writer(MemorySink())
    writer.report_gap(1, "reduce_failed", detail="x")
    writer.close()
    assert {record.name for record in caplog.records} == {"esper_recorder"}
    assert max(record.levelno for record in caplog.records) == logging.ERROR
