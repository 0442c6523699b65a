"""An imported run appears as a whole or not at all, and the same source is not imported twice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

import esper_analytics as ea
from esper_analytics.errors import UsageError
from esper_analytics.importers.load_report import LoadReport, Tally, read_report
from esper_analytics.importers.run_writer import ImportOutcome, Origin, RunWriter, imported_run_id
from esper_recorder.storage.manifest import Attempt, Manifest, read_manifest

STARTED = datetime(2026, 1, 1, tzinfo=UTC)
RUN_ID = imported_run_id("a run", STARTED, b"first line")


def store(
    root: Path, updates: int, sha256: str, *, run_id: str = RUN_ID, rules: tuple[str | None, str] | None = None
) -> ImportOutcome:
    manifest = Manifest(run_id=run_id, name="a run", started=STARTED, attempts=(Attempt(how="finished"),))
    report = LoadReport(source="there", tallies={"line": Tally(typed=updates)})
    with RunWriter(root, run_id) as writer:
        writer.write("ppo_updates", {"update": [*range(1, updates + 1)], "definition": ["x"] * updates})
        return writer.publish(manifest, Origin("test", "there", sha256, updates), report, rules=rules)


def test_the_run_id_depends_on_the_beginning_alone():
    assert imported_run_id("a run", STARTED, b"first line") == RUN_ID
    assert RUN_ID.startswith("a-run-20260101T000000Z-")
    assert imported_run_id("a run", STARTED, b"another") != RUN_ID
    assert imported_run_id("/..", None, b"").startswith("run-00000000T000000Z-")


def test_a_published_run_is_read_like_any_other(tmp_path):
    outcome = store(tmp_path, 3, "s", rules=("default", "[rules]\n"))
    assert (outcome.run_id, outcome.status) == (RUN_ID, "imported")
    runs = ea.open(tmp_path)
    assert runs.table("ppo_updates").select("run_id", "attempt", "rank", "update").collect().rows() == [
        (RUN_ID, 1, 0, update) for update in (1, 2, 3)
    ]
    assert runs.list()["ended"].to_list() == ["finished"]
    manifest = read_manifest(tmp_path / RUN_ID)
    assert manifest.source is not None and manifest.source["sha256"] == "s"
    assert runs.rules_text(RUN_ID) == ("default", "[rules]\n")
    report = read_report(tmp_path / RUN_ID)
    assert report is not None and (report["read"], report["rows"]) == (3, {"ppo_updates": 3})
    assert sorted(path.name for path in tmp_path.iterdir()) == [RUN_ID]


def test_the_same_content_is_left_alone_and_a_grown_one_replaces_the_run(tmp_path):
    store(tmp_path, 2, "s")
    before = (tmp_path / RUN_ID / "run.json").stat().st_mtime_ns
    assert store(tmp_path, 2, "s").status == "unchanged"
    assert (tmp_path / RUN_ID / "run.json").stat().st_mtime_ns == before
    assert store(tmp_path, 5, "t").status == "replaced"
    assert ea.open(tmp_path).table("ppo_updates").collect().height == 5
    assert store(tmp_path, 4, "u").status == "shorter"
    assert ea.open(tmp_path).table("ppo_updates").collect().height == 5
    assert sorted(path.name for path in tmp_path.iterdir()) == [RUN_ID]


def test_a_run_whose_folder_was_renamed_is_replaced_in_place(tmp_path):
    store(tmp_path, 2, "s")
    (tmp_path / RUN_ID).rename(tmp_path / "mine")
    assert store(tmp_path, 3, "t").status == "replaced"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["mine"]


def test_a_failed_import_leaves_nothing_and_the_earlier_run_stays(tmp_path):
    store(tmp_path, 2, "s")
    with pytest.raises(RuntimeError), RunWriter(tmp_path, RUN_ID) as writer:
        writer.write("ppo_updates", {"update": [1], "definition": ["x"]})
        raise RuntimeError
    assert sorted(path.name for path in tmp_path.iterdir()) == [RUN_ID]
    assert ea.open(tmp_path).table("ppo_updates").collect().height == 2


KILLED = """
import sys, time
from pathlib import Path
from esper_analytics.importers import run_writer
run_writer.PART_BYTES = 1
writer = run_writer.RunWriter(Path(sys.argv[1]), sys.argv[2])
writer.write("ppo_updates", {"update": [1], "definition": ["x"]})
print("written", flush=True)
time.sleep(60)
"""


def test_the_remains_of_a_killed_import_are_invisible_and_removed_by_the_next(tmp_path):
    command = [sys.executable, "-c", KILLED, str(tmp_path), RUN_ID]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
        assert child.stdout is not None and child.stdout.readline() == "written\n"
        [hidden] = tmp_path.iterdir()
        assert [*hidden.glob("ppo_updates/part-*.parquet")], "it would have left nothing anyway"
        store(tmp_path, 1, "other", run_id="other-20260101T000000Z-aaaaaa")
        assert hidden.exists(), "an import at work was disturbed"
        os.kill(child.pid, signal.SIGKILL)
    assert ea.open(tmp_path).ids == ["other-20260101T000000Z-aaaaaa"]
    store(tmp_path, 2, "s")
    assert not hidden.exists()
    assert len(ea.open(tmp_path)) == 2


def test_rows_out_of_order_are_stored_in_the_order_of_their_updates(tmp_path):
    manifest = Manifest(run_id=RUN_ID)
    with RunWriter(tmp_path, RUN_ID) as writer:
        writer.write(
            "scalars", {"update": [2, 1, 2, None], "name": ["a", "b", "c", "d"], "value": [1.0, 2.0, 3.0, 4.0]}
        )
        writer.publish(manifest, Origin("test", "there", "s", 4), LoadReport())
    [part] = tmp_path.glob("*/scalars/*.parquet")
    import pyarrow.parquet as pq

    assert pq.read_table(part).column("name").to_pylist() == ["b", "a", "c", "d"]
    assert pq.read_metadata(part).metadata[b"esper_last_update"] == b"2"


def test_a_run_cannot_be_imported_into_the_folder_of_another_run(tmp_path):
    store(tmp_path, 1, "s")
    with pytest.raises(UsageError, match="is one run's folder"):
        RunWriter(tmp_path / RUN_ID, "b")
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="cannot be written to"):
        RunWriter(tmp_path / "file", "b")


def test_a_run_behind_a_link_is_not_replaced_and_links_named_like_remains_stay(tmp_path):
    outside = tmp_path / "outside"
    store(outside, 2, "s")
    root = tmp_path / "runs"
    root.mkdir()
    (root / RUN_ID).symlink_to(outside / RUN_ID)
    (root / ".import-a.before").symlink_to(outside)
    with pytest.raises(OSError, match="is a link, which is not followed"):
        store(root, 3, "longer")
    assert len(ea.open(outside / RUN_ID).table("ppo_updates").collect()) == 2
    assert sorted(path.name for path in root.iterdir()) == [".import-a.before", RUN_ID]


def test_a_source_that_a_stranger_wrote_into_run_json_is_no_count_of_entries(tmp_path):
    store(tmp_path, 2, "s")
    path = tmp_path / RUN_ID / "run.json"
    path.write_text(path.read_text().replace('"entries": 2', '"entries": "many"'))
    assert store(tmp_path, 3, "t").status == "replaced"
