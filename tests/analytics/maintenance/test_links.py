"""A run of a stranger with links and special files under the names of its files: nothing outside is read or changed."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path

import pytest

import esper_analytics as ea
from esper_analytics.maintenance.compaction import compact
from esper_analytics.maintenance.recovery import recover
from esper_analytics.maintenance.verification import verify
from esper_recorder.storage.journal import JournalWriter, read_journal
from esper_recorder.storage.listing import list_row_files
from esper_recorder.storage.lock import acquire_lock, is_locked
from esper_recorder.storage.manifest import is_live
from esper_recorder.storage.run_folder import RunFolder, RunFolderError, keep_rules
from esper_recorder.storage.safe_files import NotRegularError, make_folder, open_regular
from esper_recorder.storage.sink import ParquetSink
from tests.analytics.maintenance.recordings import UPDATES, content, dead_run, expected
from tests.builders import write_run
from tests.support import esper

FILES = (
    "lock",
    "heartbeat",
    "load_report.json",
    ".run.json.78.tmp",
    "ppo_updates/part-a1-r0-000021.parquet",
    "ppo_updates/.part-a1-r0-000013.parquet.tmp",
    "ppo_updates/.part-a1-r0-000098.parquet.77.tmp",
    "heads/part-a1-r0-000001.parquet",
    "journal/a1-r0-000022.journal",
    f"rules/{'0' * 64}.toml",
    "rules/.x.tmp",
    "traces/trace.json",
)
FOLDERS = ("episodes", "rules", "traces", "minibatches")
COMMANDS = (
    ("recover",),
    ("compact",),
    ("verify",),
    ("runs",),
    ("sql", "SELECT count(*) FROM ppo_updates_all"),
    ("replay",),
    ("show", "run"),
)


def outside(folder: Path) -> Path:
    """A folder elsewhere with one file, of each kind that a link in a run may lead to."""
    source = dead_run(folder)
    (source / "ppo_updates" / ".part-a1-r0-000050.parquet.tmp").write_bytes(b"mine")
    (source / "private.tmp").write_bytes(b"mine")
    (source / ".private.tmp").write_bytes(b"mine")
    return source


def target(source: Path, name: str) -> Path:
    """The file outside that a link of this name does most harm with."""
    if name.endswith(".parquet"):
        return source / "ppo_updates" / "part-a1-r0-000012.parquet"
    if name.endswith(".journal"):
        return next((source / "journal").iterdir())
    return source / "private.tmp"


def tree(folder: Path) -> dict[str, object]:
    return {
        str(path.relative_to(folder)): (path.lstat().st_mtime_ns, path.read_bytes() if path.is_file() else None)
        for path in sorted(folder.rglob("*"))
    }


def put(path: Path, source: Path, kind: str) -> None:
    path.parent.mkdir(exist_ok=True)
    if kind == "fifo":
        os.mkfifo(path)
    else:
        path.symlink_to(target(source, path.name))


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_no_command_follows_a_link_or_waits_for_a_fifo_and_each_names_them(tmp_path, kind):
    source = outside(tmp_path / "elsewhere")
    path = dead_run(tmp_path / "runs")
    for name in FILES:
        put(path / name, source, kind)
    before = tree(source)
    for command, *more in COMMANDS:
        signal.alarm(100)  # whose default action ends the tests: an `open` that waits is not interrupted otherwise
        done = esper(command, path.parent, *more, code=None)
        signal.alarm(0)
        assert tree(source) == before, command
        assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
        if command in ("recover", "compact", "verify", "sql"):
            named = (done.stdout + done.stderr).replace("\n", "")
            assert [name for name in FILES if f"/{name}" not in named] == [], command
    assert content(path) == expected(UPDATES + 2)
    assert sum("not followed" in p.reason or "a FIFO" in p.reason for p in verify(path.parent).problems) == len(FILES)


def test_no_command_goes_into_a_linked_folder(tmp_path):
    source = outside(tmp_path / "elsewhere")
    path = dead_run(tmp_path / "runs")
    for name in FOLDERS:
        (path / name).symlink_to(source / "ppo_updates" if name != "rules" else source)
    before = tree(source)
    for work in (verify, recover, compact):
        problems = {problem.path for problem in work(path.parent).problems}
        assert {path / name for name in FOLDERS} <= problems, work
        assert tree(source) == before
    assert ea.open(path).sql("SELECT count(*) FROM episodes").item() == 0
    assert content(path) == expected(UPDATES + 2)


@pytest.mark.parametrize("name", ["ppo_updates", "journal"])
def test_rows_stay_in_their_journal_if_a_link_is_in_the_way_of_their_part(tmp_path, name):
    source = outside(tmp_path / "elsewhere")
    path = dead_run(tmp_path / "runs")
    journal = next((path / "journal").iterdir())
    if name == "journal":
        put(path / "ppo_updates" / "part-a1-r0-000013.parquet", source, "link")
    else:
        shutil.rmtree(path / name)
        (path / name).symlink_to(source / name)
    before = tree(source)
    outcome = recover(path.parent)
    assert outcome.frame["state"].to_list() == ["failed"]
    assert tree(source) == before
    assert read_journal(journal).updates == (UPDATES + 1, UPDATES + 2)


def test_journals_behind_a_linked_folder_are_neither_read_nor_consumed(tmp_path):
    source = outside(tmp_path / "elsewhere")
    path = dead_run(tmp_path / "runs")
    shutil.rmtree(path / "journal")
    (path / "journal").symlink_to(source / "journal")
    before = tree(source)
    for work in (verify, recover, compact):
        assert path / "journal" in {problem.path for problem in work(path.parent).problems}
        assert tree(source) == before
    assert content(path) == expected(UPDATES)


@pytest.mark.parametrize("kind", ["link", "fifo"])
def test_a_run_whose_manifest_is_a_link_or_a_fifo_is_left_out_and_the_others_are_read(tmp_path, kind):
    path = write_run(tmp_path, "a", updates=[{}])
    write_run(tmp_path, "b", updates=[{}])
    (path / "run.json").rename(tmp_path / "moved.json")
    if kind == "link":
        (path / "run.json").symlink_to(tmp_path / "moved.json")
    else:
        os.mkfifo(path / "run.json")
    runs = ea.open(tmp_path)
    assert runs.list()["run_id"].str.starts_with("b-").to_list() == [True]
    assert [problem.path for problem in runs.problems] == [path / "run.json"]
    for work in (recover, compact, verify):
        assert path / "run.json" in {problem.path for problem in work(tmp_path).problems}


def test_runs_may_be_reached_through_a_link_of_the_user(tmp_path):
    path = dead_run(tmp_path / "runs")
    (tmp_path / "link").symlink_to(path.parent)
    (tmp_path / "run").symlink_to(path)
    assert recover(tmp_path / "link").frame["state"].to_list() == ["recovered"]
    assert content(tmp_path / "run") == expected(UPDATES + 2)
    assert compact(tmp_path / "run").frame["state"].to_list() == ["compacted"]
    assert content(tmp_path / "link") == expected(UPDATES + 2)


def test_a_journal_cannot_name_a_folder_elsewhere_as_its_table(tmp_path):
    path = write_run(tmp_path / "runs", ended=None)
    (path / "journal").mkdir()
    journal = JournalWriter(path / "journal" / "a1-r0-000001.journal")
    rows = list_row_files(dead_run(tmp_path / "other")).journal_rows["ppo_updates"].to_batches()[0]
    journal.commit(1, [("../../elsewhere", rows)])
    journal.commit(2, [("ppo_updates", rows)])
    journal.close()
    assert any("were damaged" in problem.reason for problem in recover(path.parent).problems)
    assert not (tmp_path / "elsewhere").exists()


class TestResuming:
    def test_a_run_with_a_link_is_not_resumed(self, tmp_path):
        folder = RunFolder.create(tmp_path)
        folder.finish("finished")
        (folder.path / "episodes").symlink_to(tmp_path)
        with pytest.raises(RunFolderError, match=r"episodes: it is a link.*Move it out"):
            RunFolder.resume(tmp_path, folder.run_id)

    def test_a_run_that_is_a_link_is_not_resumed(self, tmp_path):
        folder = RunFolder.create(tmp_path / "elsewhere")
        folder.finish("finished")
        (tmp_path / folder.run_id).symlink_to(folder.path)
        with pytest.raises(RunFolderError, match="is a link, which is not followed"):
            RunFolder.resume(tmp_path, folder.run_id)

    @pytest.mark.parametrize("kind", ["link", "fifo"])
    def test_a_lock_or_heartbeat_that_is_no_file_is_not_opened(self, tmp_path, kind):
        path = write_run(tmp_path, ended=None)
        victim = tmp_path / "private.tmp"
        for name in ("lock", "heartbeat"):
            put(path / name, tmp_path, kind)
        with pytest.raises(NotRegularError, match="lock is a"):
            acquire_lock(path)
        assert not is_locked(path)
        assert not is_live(path)
        assert not victim.exists()

    def test_rules_are_not_written_into_a_linked_folder(self, tmp_path):
        (tmp_path / "run").mkdir()
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "run" / "rules").symlink_to(tmp_path / "elsewhere")
        with pytest.raises(NotRegularError, match="rules is a link"):
            keep_rules(tmp_path / "run", "x")
        assert list((tmp_path / "elsewhere").iterdir()) == []

    def test_a_sink_takes_no_name_that_a_link_has(self, tmp_path):
        path = write_run(tmp_path)
        put(path / "ppo_updates" / "part-a1-r0-000005.parquet", tmp_path, "link")
        (path / "journal").mkdir()
        (path / "journal" / "a1-r0-000007.journal").symlink_to(tmp_path / "private.tmp")
        sink = ParquetSink(path)
        sink.write("ppo_updates", {"run_id": [path.name], "attempt": [1], "rank": [0], "update": [1]})
        sink.commit(1)
        sink.close()
        assert (path / "ppo_updates" / "part-a1-r0-000008.parquet").is_file()


def test_what_is_no_file_is_refused_by_its_kind(tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "dangling").symlink_to(tmp_path / "nowhere")
    os.mkfifo(tmp_path / "fifo")
    for name, what in (("folder", "a folder"), ("dangling", "a link"), ("fifo", "a FIFO")):
        for flags in (os.O_RDONLY, os.O_RDWR | os.O_CREAT):
            with pytest.raises(NotRegularError, match=f"{name} is {what}"):
                open_regular(tmp_path / name, flags)
    make_folder(tmp_path / "folder")
    for name in ("dangling", "fifo"):
        with pytest.raises(NotRegularError, match=r"not a folder|not followed"):
            make_folder(tmp_path / name)
    with pytest.raises(NotRegularError, match="a device"):
        open_regular(Path("/dev/null"))
    assert not (tmp_path / "nowhere").exists()
