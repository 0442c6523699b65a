"""`esper compact`: many small parts become few, and readers see every row once."""

from __future__ import annotations

import math

import duckdb
import polars as pl
import pyarrow.parquet as pq
import pytest

import esper_analytics as ea
from esper_analytics.maintenance.compaction import compact, compact_run
from esper_analytics.maintenance.recovery import recover
from esper_analytics.maintenance.verification import verify
from esper_recorder.storage.listing import list_row_files, parts_in
from tests.analytics.maintenance.recordings import UPDATES, content, expected, many_parts
from tests.builders import add_journal, complete_rows


class TestCompact:
    def test_many_parts_become_one_per_table_and_rank_with_the_same_rows_in_the_same_order(self, tmp_path):
        path = many_parts(tmp_path, ranks=(0, 1))
        before, alarms = content(path), content(path, "alarms")
        assert before == expected(ranks=(0, 1))
        [row] = compact(tmp_path).frame.to_dicts()
        assert (row["state"], row["parts_before"], row["parts"]) == ("compacted", 2 * (12 + 3), 4)
        assert row["bytes"] < row["bytes_before"]
        assert (content(path), content(path, "alarms")) == (before, alarms)
        names = sorted(str(p.relative_to(path)) for p in path.rglob("*.parquet"))
        assert names == [
            "alarms/part-a1-r0-000003-000011.parquet",
            "alarms/part-a1-r1-000003-000011.parquet",
            "ppo_updates/part-a1-r0-000001-000012.parquet",
            "ppo_updates/part-a1-r1-000001-000012.parquet",
        ]
        file = pq.ParquetFile(path / names[2])
        assert file.read(["update"])["update"].to_pylist() == list(range(1, 13))
        metadata = {k: v for k, v in file.metadata.metadata.items() if k.startswith(b"esper_")}
        assert metadata[b"esper_rows"] == b"12"
        assert (metadata[b"esper_first_update"], metadata[b"esper_last_update"]) == (b"1", b"12")
        group = pq.read_metadata(path / names[2]).row_group(0)
        columns = {group.column(i).path_in_schema: group.column(i) for i in range(group.num_columns)}
        assert not columns["loss"].is_stats_set and columns["update"].is_stats_set
        with duckdb.connect() as connection:  # a plain glob, by an engine that prunes by statistics
            glob = str(path / "ppo_updates" / "*.parquet")
            count = connection.execute(f"SELECT count(*) FROM '{glob}' WHERE isnan(loss)").fetchone()
        assert count == (2 * 8,)  # updates 1..12 but 3, 6, 9, 12, of two ranks
        assert compact(tmp_path).frame["state"].to_list() == ["nothing to do"]
        assert verify(tmp_path).problems == ()

    def test_parts_beyond_the_row_limit_stay_apart_and_a_second_compaction_does_nothing(self, tmp_path):
        path = many_parts(tmp_path)
        assert compact(tmp_path, most_rows=5).frame["state"].to_list() == ["compacted"]
        names = [name.part for name in sorted(parts_in(path)[0]["ppo_updates"])]
        assert names == [
            "part-a1-r0-000001-000005.parquet",
            "part-a1-r0-000006-000010.parquet",
            "part-a1-r0-000011-000012.parquet",
        ]
        assert compact(tmp_path, most_rows=5).frame["state"].to_list() == ["nothing to do"]
        assert compact(tmp_path).frame["parts"].to_list() == [2]  # compacted parts are compacted again
        assert content(path) == expected()

    def test_a_column_that_older_parts_lack_is_null_and_a_part_of_a_newer_version_stays(self, tmp_path):
        path = many_parts(tmp_path)
        folder = path / "ppo_updates"
        old = folder / "part-a1-r0-000001.parquet"
        pq.write_table(pq.read_table(old).drop_columns(["loss"]), old)
        newer = folder / "part-a1-r0-000006.parquet"
        table = pq.read_table(newer)
        pq.write_table(table.append_column("mood", [["bad"] * table.num_rows]), newer)
        before = [row[:3] for row in content(path)]
        compact(tmp_path)
        assert [row[:3] for row in content(path)] == before
        names = [name.part for name in sorted(parts_in(path)[0]["ppo_updates"])]
        assert names == [
            "part-a1-r0-000001-000005.parquet",
            "part-a1-r0-000006.parquet",
            "part-a1-r0-000007-000012.parquet",
        ]
        assert pq.read_table(newer)["mood"].to_pylist() == ["bad"]

    def test_a_damaged_part_and_a_waiting_journal_are_never_within_a_compacted_range(self, tmp_path):
        path = many_parts(tmp_path)
        (path / "ppo_updates" / "part-a1-r0-000004.parquet").write_bytes(b"PAR1 damaged")
        journal = complete_rows("ppo_updates", [{"update": 8, "n": 8, "loss": math.nan}], run_id=path.name)
        (path / "ppo_updates" / "part-a1-r0-000008.parquet").unlink()
        add_journal(path, {"ppo_updates": journal}, seq=8)  # a crash left it before its part was made
        before = content(path)
        assert len(before) == 11
        compact(tmp_path)
        assert content(path) == before
        names = {(name.first, name.last) for name in parts_in(path)[0]["ppo_updates"]}
        assert names == {(1, 3), (4, 4), (5, 7), (9, 12)}
        recover(tmp_path)
        compact(tmp_path)
        assert content(path) == before

    def test_a_part_whose_rows_cannot_be_read_is_neither_merged_nor_replaced(self, tmp_path):
        path = many_parts(tmp_path)
        part = path / "ppo_updates" / "part-a1-r0-000002.parquet"
        data = bytearray(part.read_bytes())
        data[4:200] = bytes(196)  # pages, not the footer
        part.write_bytes(bytes(data))
        outcome = compact(tmp_path)
        assert [problem.path for problem in outcome.problems] == [part]
        assert part.read_bytes() == bytes(data)
        assert [name.first for name in sorted(parts_in(path)[0]["ppo_updates"])] == [1, 2, 3]
        assert not [*path.rglob(".*.tmp")]

    def test_a_second_maintenance_of_one_folder_is_refused(self, tmp_path):
        from esper_recorder.storage.lock import maintenance_lock

        path = many_parts(tmp_path)
        with maintenance_lock(path):
            for outcome in (compact(tmp_path), recover(tmp_path)):
                assert outcome.frame["state"].to_list() == ["failed"]
                assert "another process recovers or compacts" in str(outcome.problems[0])


def test_a_compaction_between_any_two_steps_of_a_reader_changes_nothing_it_sees(tmp_path, monkeypatch):
    """The compaction, whole or half (its parts in place, nothing deleted), happens within the reader's listing."""
    import esper_recorder.storage.listing as reading
    from esper_analytics.catalog import discovery
    from esper_analytics.maintenance import compaction

    for place in range(8):
        for half in (False, True):
            path = many_parts(tmp_path / f"{place}-{half}")
            [run] = discovery.find_runs(path)[0]
            steps = 0

            def compact_now(run=run, half=half):
                with monkeypatch.context() as patch:
                    patch.undo()
                    if half:
                        patch.setattr(compaction, "_remove_replaced", lambda *_: False)
                    compact_run(run, 7)

            def stepping(real, place=place, compact_now=compact_now):
                def call(*args):
                    nonlocal steps
                    steps += 1
                    if steps == place + 1:
                        compact_now()
                    return real(*args)

                return call

            with monkeypatch.context() as patch:
                for name in ("journals_in", "parts_in", "_read_journals"):
                    patch.setattr(reading, name, stepping(getattr(reading, name)))
                files = list_row_files(path)
            rows = pl.concat([pl.read_parquet(part) for part in files.parts["ppo_updates"]])
            assert rows["update"].to_list() == list(range(1, 13)), (place, half)


@pytest.mark.parametrize("ask", ["sql", "connect"])
def test_a_query_runs_again_if_a_compaction_comes_between_the_listing_and_the_views(tmp_path, monkeypatch, ask):
    from esper_analytics.sql import confined as sql

    path = many_parts(tmp_path)
    create_views = sql._create_views

    def late(connection, sources):
        monkeypatch.setattr(sql, "_create_views", create_views)
        assert compact(tmp_path).frame["state"].to_list() == ["compacted"]
        create_views(connection, sources)

    monkeypatch.setattr(sql, "_create_views", late)
    runs = ea.open(path)
    query = "SELECT count(*), sum(n)::BIGINT FROM ppo_updates"
    answer = runs.sql(query).row(0) if ask == "sql" else runs.connect().execute(query).fetchone()
    assert answer == (UPDATES, UPDATES * (UPDATES + 1) // 2)
