"""`esper recover`: what a crash left becomes parts."""

from __future__ import annotations

import shutil

from esper_analytics.maintenance.recovery import recover
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import ParquetSink
from tests.analytics.maintenance.recordings import UPDATES, content, dead_run, expected
from tests.support import esper


class TestRecover:
    def test_what_a_crash_left_becomes_parts_and_unfinished_files_go(self, tmp_path):
        path = dead_run(tmp_path)
        before = content(path)
        assert before == expected(UPDATES + 2)
        [row] = recover(tmp_path).frame.to_dicts()
        assert row == {
            "run_id": path.name,
            "state": "recovered",
            "journals": 1,
            "rows": 2,
            "torn_bytes": 7,
            "temporaries": 2,
            "folder": str(path),
        }
        assert content(path) == before
        assert not (path / "journal").exists()
        assert not [*path.rglob(".*.tmp")]
        [row] = recover(tmp_path).frame.to_dicts()
        assert (row["state"], row["journals"]) == ("nothing to do", 0)

    def test_a_live_run_is_left_alone_byte_for_byte(self, tmp_path):
        folder = RunFolder.create(tmp_path)
        sink = ParquetSink(folder.path)
        sink.write("ppo_updates", {"run_id": [folder.run_id], "attempt": [1], "rank": [0], "update": [1]})
        sink.commit(1)
        sink.flush()
        (folder.path / ".run.json.1.tmp").write_text("being written")
        before = {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file() and p.name != "lock"}
        assert recover(tmp_path).frame["state"].to_list() == ["live"]
        assert {p: p.read_bytes() for p in folder.path.rglob("*") if p.is_file() and p.name != "lock"} == before
        sink.close()
        folder.release()
        assert recover(tmp_path).frame["state"].to_list() == ["recovered"]  # the temporary file

    def test_a_damaged_journal_is_reported_and_strict_exits_with_3(self, tmp_path):
        path = dead_run(tmp_path)
        [journal] = path.glob("journal/*")
        data = bytearray(journal.read_bytes())
        data[data.find(path.name.encode())] ^= 1
        journal.write_bytes(bytes(data))
        (path / "journal" / "a1-r0-000050.journal").write_bytes(b"another program's")
        result = esper("recover", tmp_path, "--strict", code=3)
        assert "were damaged" in result.stderr
        assert "is not a journal of esper-recorder" in result.stderr

    def test_both_of_two_folders_with_one_run_are_recovered(self, tmp_path):
        path = dead_run(tmp_path)
        shutil.copytree(path, tmp_path / "copy")
        assert recover(tmp_path).frame["state"].to_list() == ["recovered", "recovered"]

    def test_a_folder_that_cannot_be_written_is_reported(self, tmp_path, monkeypatch):
        dead_run(tmp_path)

        def denied(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("esper_recorder.storage.rollover.write_part", denied)
        outcome = recover(tmp_path)
        assert outcome.frame["state"].to_list() == ["failed"]
        assert "Permission denied" in str(outcome.problems[0])
