"""`esper verify`: whatever a recording lacks is reported."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import esper_analytics as ea
from esper_analytics.catalog.discovery import run_folders
from esper_analytics.maintenance.compaction import compact
from esper_analytics.maintenance.verification import verify
from esper_recorder.storage.arrow_batches import columns_to_table
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import ParquetSink
from tests.analytics.maintenance.recordings import content, dead_run, expected, many_parts
from tests.builders import add_part, complete_rows, write_run
from tests.support import esper


class TestVerify:
    def problems(self, root: Path) -> list[str]:
        return [str(problem) for problem in verify(root).problems]

    def test_a_complete_run_has_no_problems(self, tmp_path):
        path = many_parts(tmp_path)
        result = esper("verify", tmp_path, "--strict", "--format", "json")
        assert result.stderr == ""
        assert json.loads(result.stdout) == [
            {
                "run_id": path.name,
                "ended": "finished",
                "updates": 12,
                "missing": 0,
                "explained_missing": 0,
                "rows": 12 + 3,
                "files": 12 + 3,
                "torn_bytes": 0,
                "problems": 0,
                "complete": True,
                "folder": str(path),
            }
        ]

    def test_a_killed_run_is_reported_with_all_that_it_left(self, tmp_path):
        path = dead_run(tmp_path)
        [row] = verify(tmp_path).frame.to_dicts()
        assert (row["ended"], row["updates"], row["torn_bytes"], row["complete"]) == ("killed", 14, 7, False)
        problems = "\n".join(self.problems(tmp_path))
        for words in ("killed", "never became parts", "7 bytes", ".part-a1-r0-000099.parquet.tmp", ".run.json.77.tmp"):
            assert words in problems
        assert esper("verify", path).stdout
        assert "(--strict)" in esper("verify", path, "--strict", code=3).stderr

    def test_missing_updates_are_reported_and_those_that_gaps_explains_count_apart(self, tmp_path):
        gaps = [{"update": 9, "table_name": "*", "reason": "queue_full", "first_update": 4, "last_update": 5}]
        path = many_parts(tmp_path, tables={"gaps": gaps})
        for update in (4, 5, 8):
            (path / "ppo_updates" / f"part-a1-r0-{update:06d}.parquet").unlink()
        [row] = verify(tmp_path).frame.to_dicts()
        assert (row["updates"], row["missing"], row["explained_missing"], row["complete"]) == (12, 1, 2, False)
        problems = "\n".join(self.problems(tmp_path))
        assert "no updates 8, and `gaps` does not say why" in problems
        assert "no updates 4-5, as `gaps` says" in problems

    def test_footers_that_disagree_with_their_rows_are_reported(self, tmp_path):
        path = many_parts(tmp_path)
        part = path / "ppo_updates" / "part-a1-r0-000003.parquet"
        metadata = pq.read_metadata(part).metadata
        rows = pq.read_table(part)
        with pq.ParquetWriter(part, rows.schema, write_statistics=False) as writer:
            writer.write_table(rows)
            writer.add_key_value_metadata(
                {k: v for k, v in metadata.items() if k.startswith(b"esper_")} | {b"esper_rows": b"2"}
            )
        shutil.copy(
            path / "ppo_updates" / "part-a1-r0-000005.parquet", path / "ppo_updates" / "part-a1-r0-000030.parquet"
        )
        other = complete_rows("alarms", [{"update": 1, "attempt": 7, "rule": "x"}], run_id=path.name)
        add_part(path, "alarms", other, seq=40)
        problems = "\n".join(self.problems(tmp_path))
        assert "its footer says rows 2, and it holds 1" in problems
        assert "updates 5 twice" in problems
        assert "attempt 7, rank 0" in problems

    def test_rows_without_an_identity_are_reported_with_the_advice_to_leave_them(self, tmp_path):
        path = many_parts(tmp_path)
        part = path / "ppo_updates" / "part-a1-r0-000003.parquet"
        rows = pq.read_table(part)
        metadata = pq.read_metadata(part).metadata
        rows = pa.concat_tables(
            [
                rows,
                *[
                    rows.set_column(rows.column_names.index(n), rows.field(n), pa.nulls(1, rows.field(n).type))
                    for n in ("run_id", "update")
                ],
            ]
        )
        with pq.ParquetWriter(part, rows.schema, write_statistics=False) as writer:
            writer.write_table(rows)
            footer = {k: v for k, v in metadata.items() if k.startswith(b"esper_")}
            writer.add_key_value_metadata(footer | {b"esper_rows": b"3"})
        [problem] = [line for line in self.problems(tmp_path) if part.name in line]
        assert "2 rows of 3 do not say their run, attempt, rank or update. Leave it where it is" in problem

    @pytest.mark.parametrize(
        ("counts", "expected_words"),
        [
            (
                {"calls": 2, "rows": 1, "message": "x is a list; give a tensor"},
                "(attempt 1, rank 0): 2 failed calls, 1 dropped row; the last error was: x is a list; give a tensor",
            ),
            (
                {"updates": 1, "writes": 3, "message": "OSError: disk full"},
                "(attempt 1, rank 0): 1 dropped update, 3 failed writes; the last error was: OSError: disk full",
            ),
        ],
    )
    def test_rows_that_the_recorder_dropped_are_reported(self, tmp_path, counts, expected_words):
        many_parts(tmp_path, manifest={"attempts": [{"attempt": 1, "rank": 0, "how": "finished", "lost": counts}]})
        [problem] = self.problems(tmp_path)
        assert f"not everything of it was recorded {expected_words}. `gaps` lists it" in problem

    def test_one_run_can_be_verified_alone(self, tmp_path):
        dead_run(tmp_path)
        whole = many_parts(tmp_path, "whole")
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "run.json").write_text("{")
        result = esper("verify", tmp_path, "--run", "whole", "--strict", "--format", "json")
        assert [row["run_id"] for row in json.loads(result.stdout)] == [whole.name]
        assert result.stderr == ""
        assert "(--strict)" in esper("verify", tmp_path, "--strict", code=3).stderr
        assert "whole" in esper("verify", tmp_path, "--run", "hole", code=2).stderr

    def test_damage_in_the_pages_and_in_the_footer_is_reported_with_the_file(self, tmp_path):
        path = dead_run(tmp_path)
        pages = path / "ppo_updates" / "part-a1-r0-000002.parquet"
        data = bytearray(pages.read_bytes())
        data[4:200] = bytes(196)
        pages.write_bytes(bytes(data))
        footer = path / "ppo_updates" / "part-a1-r0-000003.parquet"
        footer.write_bytes(footer.read_bytes()[:-9])
        problems = self.problems(tmp_path)
        assert any(pages.name in line and "its rows cannot" in line for line in problems)
        assert any(footer.name in line and "truncated" in line for line in problems)

    def test_float_statistics_foreign_files_copies_and_missing_rules_are_reported(self, tmp_path):
        path = many_parts(tmp_path, rules="# rules\n")
        part = path / "ppo_updates" / "part-a1-r0-000003.parquet"
        pq.write_table(columns_to_table("ppo_updates", pq.read_table(part).to_pydict()), part)
        (path / "ppo_updates" / "mine.parquet").write_bytes(part.read_bytes())
        next(path.glob("rules/*")).unlink()
        shutil.copytree(path, tmp_path / "copy")
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "run.json").write_text("{")
        problems = "\n".join(self.problems(tmp_path))
        for words in (
            "min/max statistics",
            "mine.parquet: it is not named",
            "text of the rules",
            "in copy too",
            "broken",
        ):
            assert words in problems
        assert verify(tmp_path).frame["complete"].to_list() == [False, False]

    def test_a_rank_that_was_killed_early_is_named(self, tmp_path):
        attempts = [{"attempt": 1, "rank": 0, "how": "finished"}, {"attempt": 1, "rank": 1}]
        path = many_parts(tmp_path, ranks=(0, 1), manifest={"attempts": attempts})
        for update in (11, 12):
            (path / "ppo_updates" / f"part-a1-r1-{update:06d}.parquet").unlink()
        problems = "\n".join(self.problems(tmp_path))
        assert "rank 1 recorded no updates 11-12" in problems
        assert "rank 1 was killed" in problems
        assert verify(tmp_path).frame["missing"].to_list() == [2]

    def test_what_an_interrupted_compaction_left_is_reported_and_read_once(self, tmp_path):
        path = many_parts(tmp_path)
        saved = (path / "ppo_updates" / "part-a1-r0-000005.parquet").read_bytes()
        compact(tmp_path)
        (path / "ppo_updates" / "part-a1-r0-000005.parquet").write_bytes(saved)
        assert content(path) == expected()
        [line] = self.problems(tmp_path)
        assert "an interrupted compaction left it" in line
        compact(tmp_path)
        assert self.problems(tmp_path) == []

    def test_a_run_that_is_being_recorded_is_complete_so_far(self, tmp_path):
        folder = RunFolder.create(tmp_path)
        sink = ParquetSink(folder.path)
        for update in (1, 2):
            sink.write("ppo_updates", {"run_id": [folder.run_id], "attempt": [1], "rank": [0], "update": [update]})
            sink.commit(update)
        sink.flush()
        [row] = verify(tmp_path).frame.to_dicts()
        assert (row["ended"], row["updates"], row["complete"]) == ("live", 2, True)
        sink.close()
        folder.release()


def test_the_work_of_verify_is_that_of_the_rows_not_of_the_numbers_in_them(tmp_path):
    gap = {"table_name": "*", "reason": "queue_full", "first_update": 11, "last_update": 2**62}
    far = [{"update": update} for update in (1, 2, 10, 300_000_000)]
    attempts = [{"attempt": n, "rank": 0, "from_update": n} for n in range(1, 5_001)]
    write_run(tmp_path, "far", updates=far, tables={"gaps": [{"update": 2, **gap}]})
    write_run(tmp_path, "often", updates=[{"update": 1}], manifest={"attempts": attempts})
    tracemalloc.start()
    outcome = verify(tmp_path)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 100_000_000
    [row] = outcome.frame.filter(pl.col("run_id").str.starts_with("far")).to_dicts()
    assert (row["updates"], row["missing"], row["explained_missing"]) == (300_000_000, 7, 300_000_000 - 11)
    runs = ea.open(tmp_path)
    assert runs.sql("SELECT count(*) AS n FROM ppo_updates")["n"].item() == 5  # update 1 of attempt 1 is before 2
    [entry] = [run for run in run_folders(tmp_path)[0] if "often" in run.run_id]
    assert entry.superseded_from() == tuple((n, n + 1) for n in range(1, 5_000))
