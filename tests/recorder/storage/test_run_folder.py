from __future__ import annotations

import json
import os
import random
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pytest

from esper_recorder.storage.lock import acquire_lock, is_locked, release_lock
from esper_recorder.storage.manifest import DropCounts, ManifestError, how_it_ended, read_manifest
from esper_recorder.storage.run_folder import RunFolder, RunFolderError
from esper_recorder.storage.sink import ParquetSink
from tests.recorder.storage.stored_updates import put

Run = Callable[..., str]

ASK = "import sys; from esper_recorder.storage.manifest import how_it_ended; print(how_it_ended(sys.argv[1]))"

HOLD = """
import sys, time
from esper_recorder.storage.run_folder import RunFolder
folder = RunFolder.create(sys.argv[1], "held")
print(folder.path, flush=True)
time.sleep(60)
"""


def start_holder(root: Path) -> tuple[subprocess.Popen[str], Path]:
    child = subprocess.Popen([sys.executable, "-c", HOLD, str(root)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    return child, Path(child.stdout.readline().strip())


def kill(child: subprocess.Popen[str]) -> None:
    child.kill()
    child.wait()
    assert child.stdout is not None
    child.stdout.close()


def test_a_new_run_has_a_manifest_that_reads_back(tmp_path: Path) -> None:
    folder = RunFolder.create(
        tmp_path / "deep" / "runs",
        "my run/1",
        trainer={"name": "script"},
        config={"lr": 3e-4, "bad": float("nan"), "path": Path("x"), "deep": [{1: {2, 1}}]},
        rules=("default", "[rule]\n"),
        total_updates=10,
    )
    manifest = read_manifest(folder.path)
    assert folder.run_id == folder.path.name == manifest.run_id
    assert folder.run_id.startswith("my-run-1-")
    assert manifest.config == {"lr": 3e-4, "bad": "nan", "path": "x", "deep": [{"1": [1, 2]}]}
    assert manifest.rules_profile == "default"
    assert (folder.path / "rules" / f"{manifest.rules_sha256}.toml").read_text() == "[rule]\n"
    attempt = manifest.last_attempt
    assert attempt is not None
    assert (attempt.attempt, attempt.from_update, attempt.pid, attempt.how) == (1, 1, os.getpid(), None)
    assert how_it_ended(folder.path) == "live"
    folder.finish("finished", updates=3, dropped=DropCounts(rows=2, writes=1, message="disk full"))
    ended = read_manifest(folder.path).last_attempt
    assert ended is not None
    assert (ended.how, ended.updates) == ("finished", 3)
    assert ended.dropped == DropCounts(rows=2, writes=1, message="disk full")
    assert how_it_ended(folder.path) == "finished"


def test_run_json_has_the_agreed_keys(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.finish("raised", error="ValueError: no")
    data = json.loads((folder.path / "run.json").read_text())
    assert data["format"] == 1 and data["rules"] == {"profile": None, "sha256": None}
    assert set(data) == {
        *("format", "schema_version", "run_id", "name", "started", "trainer", "definition", "config", "versions"),
        *("host", "platform", "level", "rules", "total_updates", "total_steps", "source", "attempts"),
    }
    assert set(data["attempts"][0]) == {
        *("attempt", "rank", "pid", "host", "started", "from_update", "ended", "how", "error", "updates", "lost"),
    }
    assert how_it_ended(folder.path) == "raised"


def test_run_names_leave_the_trainers_random_streams_alone(tmp_path: Path) -> None:
    random.seed(5)
    before = random.getstate()
    RunFolder.create(tmp_path).release()
    assert random.getstate() == before


def test_a_name_of_only_odd_characters_still_gives_a_folder(tmp_path: Path) -> None:
    for name in ("", "...", "äö", "../../etc", "x" * 500):
        folder = RunFolder.create(tmp_path, name)
        assert folder.path.parent == tmp_path
        folder.release()


def test_two_processes_with_the_same_name_in_the_same_second_get_two_folders(tmp_path: Path) -> None:
    children = [start_holder(tmp_path) for _ in range(2)]
    folders = {path for _, path in children}
    for child, _ in children:
        kill(child)
    assert len(folders) == 2
    assert len({read_manifest(path).run_id for path in folders}) == 2


def test_a_taken_folder_name_is_tried_again_with_other_characters(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn = iter("aaaaaa" + "aaaaaa" + "bbbbbb")
    monkeypatch.setattr("esper_recorder.storage.run_folder.secrets.choice", lambda letters: next(drawn))
    now = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    from esper_recorder.storage.run_folder import _make_folder

    assert _make_folder(tmp_path, "run", now).name == "run-20260102T030405Z-aaaaaa"
    assert _make_folder(tmp_path, "run", now).name == "run-20260102T030405Z-bbbbbb"


def test_a_run_is_live_while_its_process_lives_and_killed_at_once_after_sigkill(tmp_path: Path) -> None:
    child, path = start_holder(tmp_path)
    try:
        for _ in range(3):  # asking does not take the lock away
            assert how_it_ended(path) == "live"
    finally:
        kill(child)
    assert how_it_ended(path) == "killed"


def test_asking_in_the_recording_process_does_not_drop_its_lock(tmp_path: Path, run_python: Run) -> None:
    folder = RunFolder.create(tmp_path)
    for _ in range(3):
        assert how_it_ended(folder.path) == "live"
    assert run_python(ASK, str(folder.path)).strip() == "live"
    folder.release()
    assert run_python(ASK, str(folder.path)).strip() == "killed"


def test_a_copy_of_a_live_run_is_not_live(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path / "runs")
    shutil.copytree(folder.path, tmp_path / "copy")
    assert how_it_ended(tmp_path / "copy") == "killed"
    assert how_it_ended(folder.path) == "live"
    folder.release()


def test_a_forked_child_neither_holds_nor_drops_the_lock(tmp_path: Path, run_python: Run) -> None:
    folder = RunFolder.create(tmp_path)
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            folder.finish("finished")  # must do nothing
            folder.release()
            status = 0 if is_locked(folder.path) else 2  # opens and closes the lock file: another process's affair
        finally:
            os._exit(status)
    assert os.waitpid(pid, 0)[1] == 0
    assert run_python(ASK, str(folder.path)).strip() == "live"
    folder.release()


def test_on_another_host_a_young_heartbeat_is_life_and_an_old_or_future_one_is_not(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.release()
    path = folder.path / "run.json"
    path.write_text(path.read_text().replace(f'"{socket.gethostname()}"', '"elsewhere"'))
    assert how_it_ended(folder.path) == "live"
    for shift in (-3600, 3600):  # old; or left from before the clock was set back
        os.utime(folder.path / "heartbeat", (time.time() + shift,) * 2)
        assert how_it_ended(folder.path) == "killed"
    (folder.path / "heartbeat").unlink()
    assert how_it_ended(folder.path) == "killed"


def test_a_broken_manifest_is_reported_with_the_reason(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"run\.json does not exist, so .* is not a run's folder"):
        read_manifest(tmp_path)
    for text, words in [
        ("", "it is not JSON"),
        ('{"format": 1, "run_id": "a', "it is not JSON"),
        ("\x00" * 20, "it is not JSON"),
        ("[1]", "it has no run_id"),
        ('{"format": 1}', "it has no run_id"),
        ('{"format": 9, "run_id": "a"}', "Upgrade esper-recorder"),
        ('{"run_id": "a", "started": "yesterday"}', "is damaged"),
        ('{"run_id": "a", "attempts": [5]}', "is damaged"),
        ('{"run_id": "a", "attempts": 5}', "is damaged"),
    ]:
        (tmp_path / "run.json").write_text(text)
        with pytest.raises(ManifestError, match=words):
            read_manifest(tmp_path)


def test_a_manifest_with_only_a_run_id_is_read_and_unknown_keys_are_ignored(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"run_id": "a", "colour": "red"}')
    manifest = read_manifest(tmp_path)
    assert (manifest.run_id, manifest.attempts, manifest.config) == ("a", (), None)
    assert how_it_ended(tmp_path, manifest) == "killed"


def test_a_resumed_run_opens_the_next_attempt_after_the_last_recorded_update(tmp_path: Path) -> None:
    first = RunFolder.create(tmp_path, config={"a": 1}, rules=("default", "x = 1"))
    sink = ParquetSink(first.path, first.attempt)
    for update in (1, 2, 3):
        put(sink, update)
    first.release()  # as if it had been killed: no end is written, the rows are in the journal
    second = RunFolder.resume(tmp_path, first.run_id)
    assert (second.attempt, second.from_update, second.path) == (2, 4, first.path)
    assert second.manifest.config == {"a": 1} and second.manifest.rules_profile == "default"
    second.finish("finished")
    third = RunFolder.resume(tmp_path, first.run_id, from_update=2, rules=(None, "y = 2"))
    assert (third.attempt, third.from_update) == (3, 2)
    third.finish("raised", error="boom")
    manifest = read_manifest(first.path)
    assert [(a.attempt, a.from_update, a.how) for a in manifest.attempts] == [
        (1, 1, None),
        (2, 4, "finished"),
        (3, 2, "raised"),
    ]
    assert manifest.rules_profile is None
    assert len(list((first.path / "rules").iterdir())) == 2


def test_a_run_that_cannot_be_resumed_says_why(tmp_path: Path) -> None:
    with pytest.raises(RunFolderError, match="holds no runs"):
        RunFolder.resume(tmp_path, "nope")
    folder = RunFolder.create(tmp_path, "walker")
    with pytest.raises(RunFolderError, match=f"Did you mean {folder.run_id}"):
        RunFolder.resume(tmp_path, folder.run_id[:-1] + "?")
    with pytest.raises(RunFolderError, match="updates count from 1"):
        RunFolder.resume(tmp_path, folder.run_id, from_update=0)
    with pytest.raises(RunFolderError, match=f"still being recorded by process {os.getpid()}"):
        RunFolder.resume(tmp_path, folder.run_id)
    assert how_it_ended(folder.path) == "live"
    folder.finish("finished")
    with pytest.raises(ValueError, match="finished or raised"):
        RunFolder.resume(tmp_path, folder.run_id).finish("well")


def test_a_run_recorded_by_another_process_cannot_be_resumed(tmp_path: Path) -> None:
    child, path = start_holder(tmp_path)
    try:
        with pytest.raises(RunFolderError, match=f"still being recorded by process {child.pid}"):
            RunFolder.resume(tmp_path, path.name)
    finally:
        kill(child)
    resumed = RunFolder.resume(tmp_path, path.name)
    assert resumed.attempt == 2
    resumed.release()


def test_a_renamed_folder_is_found_by_its_run_id(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    folder.finish("finished")
    folder.path.rename(tmp_path / "best-one")
    resumed = RunFolder.resume(tmp_path, folder.run_id)
    assert (resumed.path.name, resumed.run_id) == ("best-one", folder.run_id)
    resumed.release()


def test_ranks_lock_side_by_side_and_any_of_them_keeps_the_run_live(tmp_path: Path) -> None:
    lock = acquire_lock(tmp_path, 0)
    assert lock is not None
    assert acquire_lock(tmp_path, 0) is None
    release_lock(lock)
    release_lock(lock)
    assert not is_locked(tmp_path)


def test_a_run_whose_folder_is_gone_cannot_record_its_end_and_releases_the_lock(tmp_path: Path) -> None:
    folder = RunFolder.create(tmp_path)
    shutil.rmtree(folder.path)
    with pytest.raises(FileNotFoundError):
        folder.finish("finished")
    assert not folder.path.exists()
    folder.finish("finished")  # nothing more happens


def test_a_folder_that_cannot_be_made_raises_oserror(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError):
        RunFolder.create(tmp_path / "file")
