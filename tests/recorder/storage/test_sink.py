from __future__ import annotations

import contextlib
import logging
import math
import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pyarrow.parquet as pq
import pytest

import esper_recorder.storage.rollover as rollover
import esper_recorder.storage.sink as sink_module
from esper_analytics.maintenance.recovery import recover_run
from esper_recorder.contract.tables import TABLES, column_names
from esper_recorder.storage.journal import JournalWriter
from esper_recorder.storage.listing import JOURNAL_FOLDER, RowFileName, last_update, list_row_files
from esper_recorder.storage.sink import DroppedRowsError, MemorySink, ParquetSink, Sink
from tests.recorder.storage.stored_updates import put, read_rows, update_rows, updates_in


def journals(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / JOURNAL_FOLDER).glob("*"))


# --- in memory ------------------------------------------------------------------------------------------------------


def test_a_memory_sink_gives_rows_with_every_column_of_the_contract() -> None:
    sink = MemorySink()
    put(sink, 1)
    sink.write("ppo_updates", {"update": [2]})
    assert [row["update"] for row in sink.rows("ppo_updates")] == [1]  # update 2 is not complete
    sink.close("finished")
    rows = sink.rows("ppo_updates")
    assert tuple(rows[0]) == column_names("ppo_updates")
    assert math.isnan(rows[0]["loss"]) and rows[1]["loss"] is None
    assert (sink.updates, sink.closed) == ([1], ("finished", None))
    assert sink.rows("alarms") == []
    assert sink.tables() == {table: {"ppo_updates": 2, "minibatches": 3}.get(table, 0) for table in TABLES}


def test_a_user_defined_sink_needs_one_method() -> None:
    class Mine(Sink):
        def write(self, table: str, columns: Any) -> None:
            self.seen = table

    mine = Mine()
    put(mine, 1)
    mine.flush()
    mine.tick()
    mine.close()
    assert mine.seen == "minibatches"


# --- on disk --------------------------------------------------------------------------------------------------------


def test_committed_updates_are_read_at_once_and_become_parts_at_close(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path, attempt=2, rank=1)
    for update in range(1, 6):
        put(sink, update)
        assert updates_in(tmp_path) == list(range(1, update + 1))
    sink.write("ppo_updates", update_rows(6)["ppo_updates"])  # not committed: not there
    assert updates_in(tmp_path) == [1, 2, 3, 4, 5]
    before = {table: read_rows(tmp_path, table) for table in ("minibatches",)}
    sink.write("minibatches", update_rows(6)["minibatches"])
    sink.commit(6)
    sink.close("finished")
    sink.close("finished")
    assert not (tmp_path / JOURNAL_FOLDER).exists()
    assert [path.name for path in (tmp_path / "ppo_updates").iterdir()] == ["part-a2-r1-000001.parquet"]
    assert updates_in(tmp_path) == [1, 2, 3, 4, 5, 6]
    assert read_rows(tmp_path, "minibatches")[:15] == before["minibatches"]  # one answer from a journal and a part
    assert last_update(tmp_path) == 6


def test_parts_have_no_statistics_on_float_columns(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    put(sink, 1)
    sink.close()
    group = pq.ParquetFile(tmp_path / "ppo_updates" / "part-a1-r0-000001.parquet").metadata.row_group(0)
    by_name = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
    assert not by_name["loss"].is_stats_set
    assert by_name["update"].is_stats_set


def test_a_run_without_an_update_leaves_no_files(tmp_path: Path) -> None:
    ParquetSink(tmp_path).close("finished")
    assert list(tmp_path.iterdir()) == []
    assert list_row_files(tmp_path) == list_row_files(tmp_path / "nowhere")
    assert last_update(tmp_path) == 0


def test_an_update_without_rows_is_no_part(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    sink.commit(1)
    sink.write("alarms", {"update": []})
    sink.commit(2)
    sink.close()
    assert list_row_files(tmp_path).parts == {}


@pytest.mark.parametrize("limit", [{"roll_bytes": 1}, {"roll_seconds": 0.0}])
def test_a_journal_becomes_parts_by_size_and_by_age(tmp_path: Path, limit: dict[str, Any]) -> None:
    sink = ParquetSink(tmp_path, **limit)
    for update in (1, 2, 3):
        put(sink, update)
        assert journals(tmp_path) == []
    sink.close()
    assert updates_in(tmp_path) == [1, 2, 3]
    assert len(list_row_files(tmp_path).parts["minibatches"]) == 3


def test_a_second_sink_on_the_same_attempt_overwrites_nothing(tmp_path: Path) -> None:
    for update in (1, 2):
        sink = ParquetSink(tmp_path)
        put(sink, update)
        sink.close()
    assert updates_in(tmp_path) == [1, 2]


def test_a_refused_write_costs_only_its_own_rows(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    with pytest.raises(KeyError):
        sink.write("ppo_updates", {"update": [1], "nonsense": [1]})
    put(sink, 1)
    sink.close()
    assert updates_in(tmp_path) == [1]


class PowerCut(BaseException):
    """The process ends here."""


def test_cut_off_at_any_step_of_making_parts_no_row_is_missing_or_doubled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call that changes the disk while two tables become parts is, in turn, the last one that happens."""
    step = 0
    while True:
        folder = tmp_path / str(step)
        folder.mkdir()
        sink = ParquetSink(folder)
        for update in (1, 2, 3):
            put(sink, update)
        left = step

        def counted(real: Any) -> Any:
            def call(*args: Any, **kwargs: Any) -> Any:
                nonlocal left
                if left == 0:
                    raise PowerCut
                left -= 1
                return real(*args, **kwargs)

            return call

        with monkeypatch.context() as patch:
            for name in ("write_part", "sync_folder"):
                patch.setattr(rollover, name, counted(getattr(rollover, name)))
            patch.setattr(Path, "unlink", counted(Path.unlink))
            patch.setattr(Path, "replace", counted(Path.replace))
            try:
                sink.close()
                done = True
            except PowerCut:
                done = False
        assert updates_in(folder) == [1, 2, 3], f"cut off at step {step}"
        recover_run(folder)
        assert updates_in(folder) == [1, 2, 3]
        assert not (folder / JOURNAL_FOLDER).exists()
        if done:
            break
        step += 1
    assert step >= 6  # two parts written, two renamed, folders synced, the journal deleted


def test_a_killed_runs_torn_journal_is_recovered_up_to_its_last_commit(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    for update in (1, 2, 3):
        put(sink, update)
    (journal,) = (tmp_path / JOURNAL_FOLDER).iterdir()
    with journal.open("r+b") as file:
        file.truncate(journal.stat().st_size - 5)
    files = list_row_files(tmp_path)
    assert files.bytes_ignored > 0 and files.problems == ()
    assert updates_in(tmp_path) == [1, 2]
    assert recover_run(tmp_path).rows == 2 * 4
    assert updates_in(tmp_path) == [1, 2]
    assert list_row_files(tmp_path).bytes_ignored == 0


def test_a_damaged_journal_is_named_read_as_far_as_it_goes_and_kept(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    sink = ParquetSink(tmp_path)
    for update in (1, 2, 3):
        put(sink, update)
    (journal,) = (tmp_path / JOURNAL_FOLDER).iterdir()
    data = bytearray(journal.read_bytes())
    data[data.find(b"rrr")] ^= 1
    journal.write_bytes(bytes(data))
    (problem,) = list_row_files(tmp_path).problems
    assert problem.path == journal and "the checksum does not fit" in problem.reason
    with caplog.at_level(logging.WARNING, "esper_recorder"):
        recover_run(tmp_path)
    assert "was damaged in 1 place(s)" in caplog.text
    assert [row["update"] for row in read_rows(tmp_path, "minibatches")] == [2, 2, 2, 3, 3, 3]
    assert [row["update"] for row in read_rows(tmp_path, "ppo_updates")] == [1, 2, 3]
    (problem,) = list_row_files(tmp_path).problems
    assert problem.path.name == journal.name + ".damaged"


def test_foreign_files_are_reported_and_do_not_stop_the_rest(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    put(sink, 1)
    (tmp_path / JOURNAL_FOLDER / "a1-r0-000009.journal").write_bytes(b"not ours at all")
    (tmp_path / JOURNAL_FOLDER / "notes.txt").write_text("x")
    sink.close()
    copy = tmp_path / "ppo_updates" / "part-a1-r0-000001 (copy).parquet"
    shutil.copy(tmp_path / "ppo_updates" / "part-a1-r0-000001.parquet", copy)
    files = list_row_files(tmp_path)
    assert files.foreign == (copy,)
    assert [problem.path.name for problem in files.problems] == ["a1-r0-000009.journal"]
    assert updates_in(tmp_path) == [1]


def test_a_part_is_read_although_its_journal_was_overwritten_with_something_else(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    put(sink, 1)
    sink.close()
    (tmp_path / JOURNAL_FOLDER).mkdir()
    (tmp_path / JOURNAL_FOLDER / "a1-r0-000001.journal").write_bytes(b"not ours at all")
    assert updates_in(tmp_path) == [1]


def test_file_names_read_back_and_others_are_refused() -> None:
    name = RowFileName(12, 3, 1_234_567)
    assert RowFileName.of_journal(name.journal) == name
    assert RowFileName.of_part(name.part) == name
    merged = RowFileName(1, 0, 3, 12)
    assert merged.part == "part-a1-r0-000003-000012.parquet"
    assert RowFileName.of_part(merged.part) == merged
    for odd in (
        "part-a1-r0-1.parquet.tmp",
        ".part-a1-r0-000001.parquet.tmp",
        "a1-r0-000001.journal.damaged",
        "part-a1-r0-000002-000001.parquet",
        "",
    ):
        assert RowFileName.of_part(odd) is None
        assert RowFileName.of_journal(odd) is None


# --- disks that fail ------------------------------------------------------------------------------------------------


def test_on_a_full_disk_updates_are_refused_whole_and_accepted_again_once_there_is_space(
    small_disk: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sink_module, "_RETRY_SECONDS", 0.0)
    run = small_disk / "run"
    run.mkdir()
    ballast = small_disk / "ballast"
    ballast.write_bytes(bytes(1_000_000))
    sink = ParquetSink(run)
    accepted = []
    for update in range(1, 200):
        try:
            put(sink, update)
        except OSError as error:
            assert not isinstance(error, DroppedRowsError)
            continue
        accepted.append(update)
    assert 1 <= len(accepted) < 199
    assert updates_in(run) == accepted
    ballast.unlink()
    put(sink, 200)
    sink.close()
    assert updates_in(run) == [*accepted, 200]
    assert list_row_files(run).problems == ()
    assert not (run / JOURNAL_FOLDER).exists()


def test_a_file_size_limit_starts_a_new_journal_and_drops_nothing(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
    try:
        for update in range(1, 101):
            put(sink, update)
        sink.close()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert updates_in(tmp_path) == list(range(1, 101))
    assert len(list_row_files(tmp_path).parts["ppo_updates"]) > 1


def test_if_parts_cannot_be_written_the_rows_stay_in_journals_and_one_warning_is_logged(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rollover, "write_part", full)
    monkeypatch.setattr(sink_module, "_RETRY_SECONDS", 0.0)
    sink = ParquetSink(tmp_path, roll_bytes=1)
    for update in (1, 2, 3):
        put(sink, update)
        assert updates_in(tmp_path) == list(range(1, update + 1))
    sink.close()
    assert updates_in(tmp_path) == [1, 2, 3]
    assert caplog.text.count("No Parquet part could be made") == 1
    monkeypatch.undo()
    recover_run(tmp_path)
    assert updates_in(tmp_path) == [1, 2, 3] and journals(tmp_path) == []


@pytest.mark.parametrize(
    ("per_second", "seconds", "expected"),
    [
        (1, 30, [10, 20, 30]),  # every ten seconds
        (9, 30, [10, 20, 30]),  # 90 updates wait after ten seconds
        (50, 6, [2, 4, 6]),  # a hundred wait after two
        (1000, 3, [1, 2, 3]),  # far more than a hundred wait after one
    ],
)
def test_committed_updates_wait_ten_seconds_for_their_fsync_or_one_if_there_are_a_hundred(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, per_second: int, seconds: int, expected: list[int]
) -> None:
    now = 0.0
    synced: list[int] = []
    monkeypatch.setattr(sink_module, "time", SimpleNamespace(monotonic=lambda: now))
    sink = ParquetSink(tmp_path)
    put(sink, 0)
    monkeypatch.setattr(os, "fsync", lambda descriptor: synced.append(round(now)))
    for update in range(1, per_second * seconds + 1):
        now = update / per_second
        sink.write("ppo_updates", {"update": [update]})
        sink.commit(update)
    assert synced == expected
    now += 60.0
    put(sink, update + 1)
    assert synced == [*expected, seconds + 60], "after a pause there is nothing to wait for"


def test_an_fsync_that_fails_is_logged_and_the_rows_count_as_stored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def broken(self: Any) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(JournalWriter, "sync", broken)
    sink = ParquetSink(tmp_path, sync_seconds=0)
    for update in (1, 2):
        put(sink, update)
    sink.close()
    assert caplog.text.count("fsync failed") == 1
    assert updates_in(tmp_path) == [1, 2]


def test_a_journal_deleted_meanwhile_is_reported_with_its_rows_and_recording_continues(tmp_path: Path) -> None:
    sink = ParquetSink(tmp_path)
    put(sink, 1)
    put(sink, 2)
    shutil.rmtree(tmp_path / JOURNAL_FOLDER)
    with pytest.raises(DroppedRowsError) as dropped:
        put(sink, 3)
    assert (dropped.value.rows, dropped.value.first_update, dropped.value.last_update) == (8, 1, 2)
    assert dropped.value.stored
    put(sink, 4)
    sink.close()
    assert updates_in(tmp_path) == [3, 4]


def test_another_rank_may_remove_the_empty_journal_folder_at_any_step_and_nothing_is_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rank 1 rolls at every commit, while rank 0 ends: before rank 1's 1st, 2nd, ... call that needs the folder."""

    def rank_0_ends(folder: Path) -> None:
        with contextlib.suppress(OSError):
            (folder / JOURNAL_FOLDER).rmdir()

    removed = 0
    for place in range(12):
        folder = tmp_path / str(place)
        folder.mkdir()
        steps = 0

        def stepping(real: Any, folder: Path = folder, place: int = place) -> Any:
            def call(*given: Any, **named: Any) -> Any:
                nonlocal steps, removed
                if steps == place:
                    there = (folder / JOURNAL_FOLDER).exists()
                    rank_0_ends(folder)
                    removed += there and not (folder / JOURNAL_FOLDER).exists()
                steps += 1
                return real(*given, **named)

            return call

        with monkeypatch.context() as patch:
            patch.setattr(sink_module, "JournalWriter", stepping(JournalWriter))
            for name in ("read_journal", "sync_folder"):
                patch.setattr(rollover, name, stepping(getattr(rollover, name)))
            sink = ParquetSink(folder, rank=1, roll_bytes=1)
            for update in (1, 2):
                put(sink, update)
            sink.close()
        assert updates_in(folder) == [1, 2], place
    assert removed >= 3


def test_a_deleted_run_folder_is_reported_at_every_update_and_not_made_again(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    sink = ParquetSink(folder)
    put(sink, 1)
    shutil.rmtree(folder)
    with pytest.raises(DroppedRowsError) as dropped:
        put(sink, 2)
    assert (dropped.value.rows, dropped.value.stored) == (4, False)
    with pytest.raises(OSError, match="no longer exists"):
        put(sink, 3)
    folder.write_text("a file")
    with pytest.raises(OSError, match="no longer exists"):
        put(sink, 4)
    sink.close()
    assert folder.read_text() == "a file"
