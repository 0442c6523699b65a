"""Runs opened: what is read, what is left out and named, what a resumed run hides, what a folder does wrong."""

from __future__ import annotations

import json
import os
import shutil
from datetime import UTC, datetime

import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import esper_analytics as ea
from esper_analytics.catalog import cache
from esper_analytics.errors import DataError, UnknownRunError, UnknownTableError, UsageError
from esper_analytics.maintenance.compaction import compact
from esper_analytics.maintenance.recovery import recover
from esper_analytics.runs import VIEWS
from esper_recorder.contract.tables import TABLES, column_names
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import ParquetSink
from tests.builders import add_journal, add_part, complete_rows, run_id_of, write_run


def updates_of(runs, table="ppo_updates"):
    """The update numbers, as both engines have them."""
    from_frame = sorted(runs.table(table).collect()["update"])
    assert sorted(runs.sql(f"SELECT update FROM {table}")["update"]) == from_frame
    return from_frame


class TestOpening:
    def test_a_folder_of_runs_and_one_run_are_both_opened(self, tmp_path):
        a = write_run(tmp_path, "a", updates=[{}, {}])
        write_run(tmp_path, "b", updates=[{}])
        assert ea.open(tmp_path).ids == [run_id_of("a"), run_id_of("b")]
        assert ea.open(str(a)).ids == [run_id_of("a")]
        assert updates_of(ea.open(tmp_path)) == [1, 1, 2]
        assert updates_of(ea.open(a)) == [1, 2]

    def test_the_list_has_one_row_per_run(self, tmp_path):
        write_run(tmp_path, "a", updates=[{}, {}], total_updates=4, tables={"alarms": [{"rule": "x"}, {"rule": "y"}]})
        assert ea.open(tmp_path).list().to_dicts() == [
            {
                "run_id": run_id_of("a"),
                "trainer": "stable-baselines3 PPO",
                "started": datetime(2026, 1, 1, tzinfo=UTC),
                "updates": 2,
                "progress": 0.5,
                "ended": "finished",
                "alarms": 2,
                "complete": True,
            }
        ]

    @pytest.mark.parametrize("view", VIEWS)
    def test_every_view_exists_on_any_runs(self, tmp_path, view):
        write_run(tmp_path, "empty")
        runs = ea.open(tmp_path)
        frame = runs.table(view).collect()
        answer = runs.sql(f"SELECT * FROM {view}")
        assert answer.schema == frame.schema
        assert len(answer) == len(frame) == (1 if view == "runs" else 0)

    @pytest.mark.parametrize("table", TABLES)
    def test_a_table_has_the_contracts_columns_and_types_from_part_journal_and_nothing(self, tmp_path, table):
        empty = ea.open(write_run(tmp_path, "empty"))
        part = ea.open(write_run(tmp_path, "part", tables={table: [{}]}))
        journal = write_run(tmp_path, "journal")
        add_journal(journal, {table: complete_rows(table, [{}], run_id=journal.name)})
        expected = empty.table(table).collect().schema
        assert tuple(expected.names()) == column_names(table)
        for runs in (part, ea.open(journal)):
            assert runs.table(table).collect().schema == expected
            assert runs.sql(f"SELECT * FROM {table}").schema == expected
            assert len(runs.table(table).collect()) == 1

    def test_every_query_lists_the_folders_again(self, tmp_path):
        path = write_run(tmp_path, "a", updates=[{}])
        runs = ea.open(tmp_path)
        assert updates_of(runs) == [1]
        add_part(path, "ppo_updates", complete_rows("ppo_updates", [{"update": 2}], run_id=path.name), seq=2)
        write_run(tmp_path, "b", updates=[{"update": 7}])
        assert updates_of(runs) == [1, 2, 7]

    def test_a_column_that_a_part_predates_is_null(self, tmp_path):
        path = write_run(tmp_path, "a", updates=[{"ratio_max": 2.0, "loss": 1.0}])
        [part] = path.glob("ppo_updates/*")
        pq.write_table(pq.read_table(part).drop_columns(["loss"]), part)
        write_run(tmp_path, "b", updates=[{"ratio_max": 3.0, "loss": 5.0}])
        runs = ea.open(tmp_path)
        expected = [(2.0, None), (3.0, 5.0)]
        assert runs.sql("SELECT ratio_max, loss FROM ppo_updates ORDER BY 1").rows() == expected
        assert runs.table("ppo_updates").select("ratio_max", "loss").sort("ratio_max").collect().rows() == expected
        assert runs.problems == ()

    def test_narrow_and_dictionary_types_of_other_writers_are_cast(self, tmp_path):
        path = write_run(tmp_path, "a", updates=[{"ratio_max": 2.0, "epochs": 4}])
        [part] = path.glob("ppo_updates/*")
        table = pq.read_table(part)
        schema = table.schema
        for name, kind in (
            ("epochs", pa.int16()),
            ("ratio_max", pa.float32()),
            ("time", pa.timestamp("ms")),
            ("run_id", pa.dictionary(pa.int32(), pa.string())),
        ):
            schema = schema.set(schema.get_field_index(name), pa.field(name, kind))
        pq.write_table(table.cast(schema), part)
        runs = ea.open(tmp_path)
        names = "run_id", "epochs", "ratio_max", "time"
        expected = [(path.name, 4, 2.0, datetime(2026, 1, 1, 0, 0, 1, tzinfo=UTC))]
        assert runs.problems == ()
        assert runs.table("ppo_updates").select(names).collect().rows() == expected
        assert runs.sql(f"SELECT {', '.join(names)} FROM ppo_updates").rows() == expected

    def test_names_with_quotes_and_sql_in_them_are_only_names(self, tmp_path):
        root = tmp_path / 'it\'s "here"; DROP TABLE x; --*?[a]'
        write_run(root, "a", updates=[{}], folder="run'); SELECT 1; --")
        add_journal(next(root.iterdir()), {"gaps": complete_rows("gaps", [{}], run_id=run_id_of("a"))}, seq=2)
        runs = ea.open(root)
        assert updates_of(runs) == [1]
        assert updates_of(runs, "gaps") == [1]
        assert runs.connect().sql("SELECT * FROM ppo_updates").to_arrow_table().num_rows == 1


class TestSelection:
    @pytest.fixture
    def runs(self, tmp_path):
        write_run(tmp_path, "alpha", updates=[{}], folder="renamed")
        write_run(tmp_path, "alps", updates=[{}, {}])
        return ea.open(tmp_path)

    def test_a_run_is_selected_by_id_folder_or_a_beginning(self, runs):
        for name in (run_id_of("alpha"), "renamed", "alph"):
            assert runs[name].ids == [run_id_of("alpha")]
            assert updates_of(runs[name]) == [1]
        assert runs.select("alph", "alps").ids == runs.ids

    def test_a_run_is_selected_by_its_number_and_all_by_iteration(self, runs):
        assert [runs[0].ids, runs[-1].ids] == [[run_id] for run_id in runs.ids]
        assert [run.ids for run in runs] == [[run_id] for run_id in runs.ids]
        with pytest.raises(UnknownRunError, match=r"There is no run number 2\. There are 2, numbered from 0"):
            runs[2]

    def test_patterns_select_runs_by_id_folder_or_name(self, runs):
        assert runs.select("al*").ids == runs.select("*").ids == runs.ids
        assert runs.select("ren?med").ids == runs.select("alph[a]").ids == [run_id_of("alpha")]
        assert runs.select("alps", "alp?").ids == [run_id_of("alps")]
        assert updates_of(runs.select("al*")) == [1, 1, 2]

    def test_a_pattern_that_fits_no_run_ends_in_a_message_with_the_closest_names(self, runs):
        with pytest.raises(UnknownRunError, match=r"No run matches 'alpa\*'\. Did you mean alpha or alps\?"):
            runs.select("alps", "alpa*")
        with pytest.raises(UnknownRunError, match=r"There is no run 'alpa'\. Did you mean"):
            runs.select("alpa")

    def test_a_name_that_looks_like_a_pattern_is_first_a_name(self, tmp_path):
        write_run(tmp_path, "lr[1]")
        write_run(tmp_path, "lr1")
        assert ea.open(tmp_path).select("lr[1]").ids == [run_id_of("lr[1]")]

    def test_an_unknown_run_ends_in_a_message_with_the_closest_names(self, runs):
        with pytest.raises(UnknownRunError, match=r"There is no run 'alpa-20260101T.*Did you mean alpha-"):
            runs["alpa-20260101T000000Z-abc123"]

    @pytest.fixture
    def namesakes(self, tmp_path):
        for number, started in enumerate(["2026-01-02", "2026-01-03", "2026-01-01"], 1):
            manifest = {
                "started": f"{started}T00:00:00Z",
                "run_id": f"hot-{started.replace('-', '')}T000000Z-abcde{number}",
            }
            write_run(tmp_path, "hot", updates=[{}] * number, manifest=manifest)
        write_run(tmp_path, "hotter", updates=[{}])
        return ea.open(tmp_path)

    def test_of_several_runs_of_one_name_the_newest_is_selected(self, namesakes):
        newest = ["hot-20260103T000000Z-abcde2", "hot-20260102T000000Z-abcde1", "hot-20260101T000000Z-abcde3"]
        assert namesakes.of_name("hot") == newest
        assert namesakes["hot"].ids == newest[:1]
        assert updates_of(namesakes["hot"]) == [1, 2]
        assert namesakes.manifest("hot").run_id == newest[0]

    def test_a_name_comes_before_the_beginning_of_another(self, namesakes):
        assert namesakes["hotter"].ids == [run_id_of("hotter")]
        with pytest.raises(UnknownRunError, match="beginning of 4 runs"):
            namesakes["ho"]

    def test_a_run_is_selected_by_its_id_without_the_time(self, namesakes):
        assert namesakes["hot-abcde3"].ids == ["hot-20260101T000000Z-abcde3"]

    def test_a_beginning_of_two_runs_is_ambiguous(self, runs):
        with pytest.raises(UnknownRunError, match=r"beginning of 2 runs: alps-.*, alpha-.*Write more"):
            runs["al"]

    def test_an_unknown_table_ends_in_a_message_with_the_closest_names(self, runs):
        with pytest.raises(UnknownTableError, match=r"no table 'ppo_update'\. Did you mean ppo_updates"):
            runs.table("ppo_update")

    def test_a_run_whose_folder_was_deleted_is_named(self, runs, tmp_path):
        one = runs["renamed"]
        shutil.rmtree(tmp_path / "renamed")
        with pytest.raises(DataError, match="no longer in"):
            one.list()


class TestOneRun:
    def test_manifest_folder_rows_and_rules(self, tmp_path):
        path = write_run(tmp_path, "a", updates=[{}, {}], rules="[rule]\n", profile="default")
        runs = ea.open(tmp_path)
        assert runs.manifest("a").run_id == path.name
        assert runs.folder("a") == path
        assert runs.rows_of("a") == {**dict.fromkeys(TABLES, 0), "ppo_updates": 2}
        assert runs.rules_text("a") == ("default", "[rule]\n")

    def test_a_run_without_rules_has_none(self, tmp_path):
        write_run(tmp_path, "a")
        assert ea.open(tmp_path).rules_text("a") is None

    def test_rules_without_their_text_are_an_error(self, tmp_path):
        path = write_run(tmp_path, "a", rules="x = 1")
        shutil.rmtree(path / "rules")
        with pytest.raises(DataError, match=r"rules that a-.* ran with cannot be read"):
            ea.open(tmp_path).rules_text("a")


class TestResumedRuns:
    @pytest.fixture
    def runs(self, tmp_path):
        """Attempt 1 made updates 1-5; attempt 2 began again at 4 and made 4-6; attempt 3 at 6 and made 6."""
        attempts = [(1, 1), (2, 4), (3, 6)]
        rows = [{"update": u, "attempt": 1, "ratio_max": 1.0} for u in (1, 2, 3, 4, 5)]
        rows += [{"update": u, "attempt": 2, "ratio_max": 2.0} for u in (4, 5, 6)]
        rows += [{"update": 6, "attempt": 3, "ratio_max": 3.0}]
        described = [
            {"attempt": number, "from_update": start, "how": "finished" if number == 3 else None}
            for number, start in attempts
        ]
        write_run(tmp_path, "a", updates=rows, manifest={"attempts": described})
        write_run(tmp_path, "b", updates=[{}] * 6)
        return ea.open(tmp_path)

    def test_superseded_rows_are_hidden_and_kept_in_all(self, runs):
        one = runs["a"]
        seen = [(1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0), (6, 3.0)]
        assert one.sql("SELECT update, ratio_max FROM ppo_updates ORDER BY 1").rows() == seen
        assert one.table("ppo_updates").select("update", "ratio_max").sort("update").collect().rows() == seen
        assert updates_of(one, "ppo_updates_all") == [1, 2, 3, 4, 4, 5, 5, 6, 6]
        assert updates_of(runs["b"]) == updates_of(runs["b"], "ppo_updates_all") == [1, 2, 3, 4, 5, 6]

    def test_the_run_counts_as_complete(self, runs):
        assert runs.list()["complete"].to_list() == [True, True]

    def test_an_attempt_in_a_journal_supersedes_too(self, tmp_path):
        attempts = [{"attempt": 1, "from_update": 1}, {"attempt": 2, "from_update": 2}]
        path = write_run(tmp_path, "a", updates=[{}, {}, {}], manifest={"attempts": attempts})
        again = complete_rows("ppo_updates", [{"update": 2, "attempt": 2}], run_id=path.name)
        add_journal(path, {"ppo_updates": again}, attempt=2)
        assert updates_of(ea.open(tmp_path)) == [1, 2]
        assert updates_of(ea.open(tmp_path), "ppo_updates_all") == [1, 2, 2, 3]


class TestRunsBeingWritten:
    def test_a_journal_is_read_with_the_parts_and_replaced_by_its_own(self, tmp_path):
        path = write_run(tmp_path, "a", updates=[{}, {}], ended=None)
        newer = complete_rows("ppo_updates", [{"update": 3}], run_id=path.name)
        add_journal(path, {"ppo_updates": newer}, seq=2)
        runs = ea.open(tmp_path)
        assert updates_of(runs) == [1, 2, 3]
        journal_of_the_part = complete_rows("ppo_updates", [{"update": 1}, {"update": 2}], run_id=path.name)
        add_journal(path, {"ppo_updates": journal_of_the_part}, seq=1)
        assert updates_of(runs) == [1, 2, 3]

    def test_a_run_is_live_while_it_is_recorded_and_killed_after(self, tmp_path):
        folder = RunFolder.create(tmp_path, "a")
        assert ea.open(tmp_path).list()["ended"].to_list() == ["live"]
        folder.release()
        assert ea.open(tmp_path).list().select("ended", "complete").rows() == [("killed", False)]

    def test_a_torn_journal_gives_what_was_committed(self, tmp_path):
        path = write_run(tmp_path, "a", ended=None)
        rows = complete_rows("ppo_updates", [{}, {}], run_id=path.name)
        journal = add_journal(path, {"ppo_updates": rows})
        journal.write_bytes(journal.read_bytes()[:-10])
        assert updates_of(ea.open(tmp_path)) == [1]


class TestRepeatedListing:
    """One `Runs` remembers what it found in folders that have not changed for a while."""

    def test_a_live_run_shows_its_new_rows_within_the_same_second(self, tmp_path):
        folder = RunFolder.create(tmp_path, "a")
        sink = ParquetSink(folder.path, roll_bytes=1_000_000)
        runs = ea.open(tmp_path)
        for update in range(1, 6):
            sink.write("ppo_updates", {"run_id": [folder.run_id], "attempt": [1], "rank": [0], "update": [update]})
            sink.commit(update)
            assert updates_of(runs) == [*range(1, update + 1)]
        sink.close()
        assert updates_of(runs) == [1, 2, 3, 4, 5]
        folder.release()

    def test_files_that_appear_in_or_vanish_from_a_cached_folder_are_noticed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cache, "_OLD_NS", -(10**18))  # every folder counts as unchanged for long
        path = write_run(tmp_path, "a", updates=[{}, {}], rows_per_part=1, ended=None)
        runs = ea.open(tmp_path)

        def rows(*updates):
            return complete_rows("ppo_updates", [{"update": update} for update in updates], run_id=path.name)

        assert updates_of(runs) == updates_of(runs) == [1, 2]
        add_part(path, "ppo_updates", rows(3), seq=3)
        assert updates_of(runs) == [1, 2, 3]
        add_journal(path, {"ppo_updates": rows(4)}, seq=4)
        assert updates_of(runs) == [1, 2, 3, 4]
        add_journal(path, {"ppo_updates": rows(5)}, seq=5)
        assert updates_of(runs) == [1, 2, 3, 4, 5]
        recover(tmp_path)
        assert updates_of(runs) == [1, 2, 3, 4, 5]
        compact(tmp_path)
        assert [part.name for part in path.glob("ppo_updates/*")] == ["part-a1-r0-000001-000005.parquet"]
        assert updates_of(runs) == [1, 2, 3, 4, 5]
        assert runs.table("alarms").collect().is_empty()
        add_part(path, "alarms", complete_rows("alarms", [{"rule": "kl"}], run_id=path.name), seq=5)
        assert runs.table("alarms").collect()["rule"].to_list() == ["kl"]

    def test_a_folder_that_replaces_a_cached_one_with_the_same_times_is_noticed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cache, "_OLD_NS", -(10**18))
        path = write_run(tmp_path, "a", updates=[{}])
        other = write_run(tmp_path / "elsewhere", "a", updates=[{}, {}], rows_per_part=1)
        for folder in (path, other):
            for name in ("ppo_updates", "."):
                os.utime(folder / name, (1.8e9, 1.8e9))
        runs = ea.open(path)
        assert updates_of(runs) == [1]
        path.rename(tmp_path / "away")
        other.rename(path)
        assert updates_of(runs) == [1, 2]

    def test_a_journal_that_may_be_read_again_is_read_again(self, tmp_path, monkeypatch):
        monkeypatch.setattr(cache, "_OLD_NS", -(10**18))
        path = write_run(tmp_path, "a", updates=[{}], ended=None)
        rows = complete_rows("ppo_updates", [{"update": 2}], run_id=path.name)
        journal = add_journal(path, {"ppo_updates": rows}, seq=2)
        whole = journal.read_bytes()
        journal.write_bytes(b"what is this")
        runs = ea.open(tmp_path)
        assert updates_of(runs) == [1]
        journal.write_bytes(whole)  # the folder itself does not change
        assert updates_of(runs) == [1, 2]


class TestDamage:
    @pytest.fixture
    def path(self, tmp_path):
        return write_run(tmp_path, "a", updates=[{}, {}, {}], rows_per_part=1)

    def part(self, path, seq):
        return path / "ppo_updates" / f"part-a1-r0-{seq:06d}.parquet"

    def assert_left_out(self, runs, file, reason, *, left):
        assert updates_of(runs) == left
        [problem] = runs.problems
        assert problem.path == file
        assert reason in problem.reason
        assert problem in runs.problems_met
        assert problem.advice and problem.message.count("left out") == problem.message.count(str(file)) == 1
        assert runs.list()["complete"].to_list() == [False]

    @pytest.mark.parametrize("keep", [0, 3, 100, -1, -200])
    def test_a_truncated_part_is_named_and_the_rest_read(self, tmp_path, path, keep):
        file = self.part(path, 2)
        file.write_bytes(file.read_bytes()[:keep])
        self.assert_left_out(ea.open(tmp_path), file, "truncated or not a Parquet file", left=[1, 3])

    def test_a_foreign_parquet_file_under_a_parts_name(self, tmp_path, path):
        pq.write_table(pa.table({"x": [1], "update": [9]}), self.part(path, 2))
        self.assert_left_out(ea.open(tmp_path), self.part(path, 2), "it has no column run_id", left=[1, 3])

    def test_a_foreign_parquet_file_under_another_name(self, tmp_path, path):
        file = path / "ppo_updates" / "export.parquet"
        pq.write_table(pa.table({"x": [1]}), file)
        self.assert_left_out(ea.open(tmp_path), file, "not named like a part", left=[1, 2, 3])

    def test_a_column_of_another_type(self, tmp_path, path):
        table = pq.read_table(self.part(path, 2))
        position = table.schema.get_field_index("ratio_max")
        pq.write_table(table.set_column(position, "ratio_max", pa.array(["high"])), self.part(path, 2))
        reason = "column ratio_max is string where ppo_updates declares float64"
        self.assert_left_out(ea.open(tmp_path), self.part(path, 2), reason, left=[1, 3])

    def test_a_part_of_another_run(self, tmp_path, path):
        other = write_run(tmp_path / "other", "z", updates=[{}])
        shutil.copy(self.part(other, 1), self.part(path, 2))
        self.assert_left_out(ea.open(path), self.part(path, 2), f"rows of another run, {other.name}", left=[1, 3])

    def test_a_link(self, tmp_path, path):
        outside = tmp_path.parent / f"{tmp_path.name}-outside.parquet"
        shutil.move(self.part(path, 2), outside)
        self.part(path, 2).symlink_to(outside)
        self.assert_left_out(ea.open(tmp_path), self.part(path, 2), "a link, which is not followed", left=[1, 3])

    def test_a_table_this_version_does_not_know(self, tmp_path, path):
        (path / "dreams").mkdir()
        shutil.copy(self.part(path, 1), path / "dreams" / "part-a1-r0-000001.parquet")
        self.assert_left_out(ea.open(tmp_path), path / "dreams", "knows no table dreams", left=[1, 2, 3])

    def test_a_file_whose_rows_are_damaged_is_named_when_they_are_read(self, tmp_path, path):
        file = self.part(path, 2)
        data = bytearray(file.read_bytes())
        data[4:2000] = b"\xff" * 1996
        file.write_bytes(bytes(data))
        with pytest.raises(DataError, match=r"part-a1-r0-000002.parquet is damaged"):
            ea.open(tmp_path).sql("SELECT * FROM ppo_updates")

    def test_a_part_that_is_repaired_is_read(self, tmp_path, path):
        runs = ea.open(tmp_path)
        whole = self.part(path, 2).read_bytes()
        self.part(path, 2).write_bytes(whole[:100])
        assert updates_of(runs) == [1, 3]
        self.part(path, 2).write_bytes(whole)
        assert updates_of(runs) == [1, 2, 3]
        assert runs.problems == ()

    def test_a_manifest_that_is_not_json_leaves_its_run_out(self, tmp_path, path):
        write_run(tmp_path, "b", updates=[{}])
        (path / "run.json").write_text('{"format": 1, "run')
        runs = ea.open(tmp_path)
        assert runs.ids == [run_id_of("b")]
        [problem] = runs.problems
        assert problem.path == path / "run.json"
        assert problem.message.count(str(path)) == 1 and problem.message.count("left out") == 1
        assert problem.message.startswith(f"left out: {path / 'run.json'}: it is damaged: it is not JSON (")
        assert problem.message.endswith("). Restore run.json from a copy, or move the folder away")

    def test_parts_without_a_manifest_are_a_problem(self, tmp_path, path):
        write_run(tmp_path, "b", updates=[{}])
        (path / "run.json").unlink()
        [problem] = ea.open(tmp_path).problems
        assert problem.path == path
        assert "no run.json" in problem.reason

    def test_a_newer_schema_is_a_problem(self, tmp_path):
        write_run(tmp_path, "b", updates=[{}], manifest={"schema_version": 99})
        [problem] = ea.open(tmp_path).problems
        assert problem.message.startswith("not wholly read: ")
        assert "schema version 99" in problem.message and "Upgrade esper-analytics" in problem.message


class TestCopies:
    def test_of_two_folders_with_one_run_the_more_complete_is_read_and_the_other_named(self, tmp_path):
        path = write_run(tmp_path, "a", updates=[{}, {}], rows_per_part=1)
        copy = tmp_path / "a-copy-of-it"
        shutil.copytree(path, copy)
        (path / "ppo_updates" / "part-a1-r0-000002.parquet").unlink()
        runs = ea.open(tmp_path)
        assert updates_of(runs) == [1, 2]
        assert runs.folder("a") == copy
        [problem] = runs.problems
        assert problem.path == path
        assert "holds the run" in problem.reason

    def test_of_equal_copies_the_one_named_like_the_run_is_read(self, tmp_path):
        path = write_run(tmp_path, "a", updates=[{}, {}])
        shutil.copytree(path, tmp_path / "0-backup")
        runs = ea.open(tmp_path)
        assert updates_of(runs) == [1, 2]
        assert runs.folder("a") == path

    def test_a_renamed_folder_is_read_as_its_run(self, tmp_path):
        write_run(tmp_path, "a", updates=[{}]).rename(tmp_path / "the good one")
        assert ea.open(tmp_path).ids == [run_id_of("a")]
        assert updates_of(ea.open(tmp_path)) == [1]


class TestFoldersWithoutRuns:
    def test_a_folder_that_does_not_exist_names_its_siblings(self, tmp_path):
        write_run(tmp_path / "runs", "a")
        with pytest.raises(UsageError, match=r"There is no folder .*rusn\. In .* there are: runs\."):
            ea.open(tmp_path / "rusn")

    def test_a_file_is_not_a_folder(self, tmp_path):
        (tmp_path / "x").touch()
        with pytest.raises(UsageError, match="is a file"):
            ea.open(tmp_path / "x")

    def test_a_folder_without_runs(self, tmp_path):
        with pytest.raises(DataError, match=r"There are no runs in .*run\.json"):
            ea.open(tmp_path)

    def test_runs_one_level_down_are_pointed_to(self, tmp_path):
        write_run(tmp_path / "ppo", "a")
        with pytest.raises(DataError, match=r"but there are in .*ppo"):
            ea.open(tmp_path)

    def test_a_folder_inside_a_run_is_recognised(self, tmp_path):
        path = write_run(tmp_path, "a", updates=[{}])
        with pytest.raises(DataError, match="inside a run"):
            ea.open(path / "ppo_updates")

    def test_unreadable_runs_alone_are_an_error_with_the_reason(self, tmp_path):
        path = write_run(tmp_path, "a")
        (path / "run.json").write_text("[]")
        with pytest.raises(DataError, match=r"No run in .* can be read\. a-.*/run\.json: it is not the manifest"):
            ea.open(tmp_path)


class TestComplete:
    def complete(self, tmp_path):
        return ea.open(tmp_path).list()["complete"].to_list()

    def test_a_missing_update_is_incomplete(self, tmp_path):
        write_run(tmp_path, "a", updates=[{"update": 1}, {"update": 3}])
        assert self.complete(tmp_path) == [False]

    def test_a_gap_is_incomplete(self, tmp_path):
        write_run(tmp_path, "a", updates=[{}], tables={"gaps": [{"table_name": "*", "reason": "queue_full"}]})
        assert self.complete(tmp_path) == [False]

    def test_dropped_rows_make_a_run_incomplete(self, tmp_path):
        attempt = {"attempt": 1, "how": "finished", "lost": {"rows": 3}}
        write_run(tmp_path, "a", updates=[{}], manifest={"attempts": [attempt]})
        assert self.complete(tmp_path) == [False]

    def test_a_run_that_raised_is_complete_if_nothing_is_missing(self, tmp_path):
        write_run(tmp_path, "a", updates=[{}], ended="raised")
        assert self.complete(tmp_path) == [True]

    def test_two_ranks_are_one_run(self, tmp_path):
        rows = [{"update": u, "rank": r} for r in (0, 1) for u in (1, 2)]
        write_run(tmp_path, "a", updates=rows)
        assert self.complete(tmp_path) == [True]


def test_the_configuration_is_json_for_sql(tmp_path):
    write_run(tmp_path, "a", manifest={"config": {"lr": 0.5, "net": [64, 64]}})
    runs = ea.open(tmp_path)
    assert runs.sql("SELECT (config->>'$.lr')::DOUBLE FROM runs").item() == 0.5
    assert json.loads(runs.table("runs").select(pl.col.config).collect().item()) == {"lr": 0.5, "net": [64, 64]}
