"""Care for recordings: recovered, compacted, verified; killed in the middle of it, and read all the while."""

from __future__ import annotations

import json
import math
import random
import shutil
import subprocess
import sys
from pathlib import Path

import duckdb
import polars as pl
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import esper_analytics as ea
from esper_analytics.maintenance.compaction import compact, compact_run
from esper_analytics.maintenance.recovery import recover
from esper_analytics.maintenance.verification import verify
from esper_recorder.storage.arrow_batches import columns_to_table
from esper_recorder.storage.listing import list_row_files, parts_in
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import ParquetSink
from tests.builders import add_journal, add_part, complete_rows, write_run
from tests.support import esper

UPDATES = 12


def many_parts(root: Path, name: str = "run", *, ranks: tuple[int, ...] = (0,), **more) -> Path:
    """A run of 12 updates in 12 parts a table and rank, NaN and NULL in them; alarms in some of the parts only."""
    path = write_run(root, name, **more)
    for rank in ranks:
        for update in range(1, UPDATES + 1):
            row = {"update": update, "rank": rank, "loss": math.nan if update % 3 else None, "n": update}
            add_part(path, "ppo_updates", complete_rows("ppo_updates", [row], run_id=path.name), rank=rank, seq=update)
            if update in (3, 5, 11):
                alarm = {"update": update, "rank": rank, "rule": "kl"}
                add_part(path, "alarms", complete_rows("alarms", [alarm], run_id=path.name), rank=rank, seq=update)
    return path


def dead_run(root: Path) -> Path:
    """What a killed process leaves: parts, a torn journal, an unfinished part, an unfinished run.json."""
    path = many_parts(root, ended=None)
    rows = [{"update": update, "n": update} for update in (UPDATES + 1, UPDATES + 2)]
    journal = add_journal(path, {"ppo_updates": complete_rows("ppo_updates", rows, run_id=path.name)}, seq=UPDATES + 1)
    with journal.open("ab") as file:
        file.write(b"\xe5\x4a torn")
    (path / "ppo_updates" / ".part-a1-r0-000099.parquet.tmp").write_bytes(b"PAR1")
    (path / ".run.json.77.tmp").write_text("{")
    return path


def content(path: Path, table: str = "ppo_updates") -> list[tuple[object, ...]]:
    """(rank, update, n, loss as text) of every recorded row, asked of both engines."""
    runs = ea.open(path)
    columns = ["rank", "update"] + (["n", "loss"] if table == "ppo_updates" else ["rule"])
    names = ", ".join(f'"{name}"' for name in columns)
    from_frame = runs.table(f"{table}_all").select(columns).sort("rank", "update").collect()
    from_sql = runs.sql(f"SELECT {names} FROM {table}_all ORDER BY 1, 2")
    assert from_sql.equals(from_frame, null_equal=True)
    return [tuple(map(str, row)) for row in from_frame.iter_rows()]


def expected(last: int = UPDATES, ranks: tuple[int, ...] = (0,)) -> list[tuple[object, ...]]:
    def loss(update: int) -> str:
        return "nan" if update <= UPDATES and update % 3 else "None"

    return [(str(r), str(u), str(u), loss(u)) for r in ranks for u in range(1, last + 1)]


# --- recover ----------------------------------------------------------------------------------------------------------


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

    def test_a_damaged_journal_is_told_and_strict_ends_with_three(self, tmp_path):
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

    def test_a_folder_that_cannot_be_written_is_told(self, tmp_path, monkeypatch):
        dead_run(tmp_path)

        def denied(*_):
            raise PermissionError(13, "Permission denied")

        monkeypatch.setattr("esper_recorder.storage.rollover.write_part", denied)
        outcome = recover(tmp_path)
        assert outcome.frame["state"].to_list() == ["failed"]
        assert "Permission denied" in str(outcome.problems[0])


# --- compact ----------------------------------------------------------------------------------------------------------


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
        told = {k: v for k, v in file.metadata.metadata.items() if k.startswith(b"esper_")}
        assert told[b"esper_rows"] == b"12"
        assert (told[b"esper_first_update"], told[b"esper_last_update"]) == (b"1", b"12")
        found = pq.read_metadata(path / names[2]).row_group(0)
        columns = {found.column(i).path_in_schema: found.column(i) for i in range(found.num_columns)}
        assert not columns["loss"].is_stats_set and columns["update"].is_stats_set
        with duckdb.connect() as connection:  # a plain glob, by an engine that prunes by statistics
            glob = str(path / "ppo_updates" / "*.parquet")
            found = connection.execute(f"SELECT count(*) FROM '{glob}' WHERE isnan(loss)").fetchone()
        assert found == (2 * 8,)  # updates 1..12 but 3, 6, 9, 12, of two ranks
        assert compact(tmp_path).frame["state"].to_list() == ["nothing to do"]
        assert verify(tmp_path).problems == ()

    def test_parts_beyond_the_most_rows_stay_apart_and_a_second_compaction_finds_nothing(self, tmp_path):
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

    def test_a_column_that_older_parts_lack_is_null_and_a_newer_versions_part_is_left(self, tmp_path):
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

    def test_rows_that_cannot_be_read_are_found_before_anything_is_replaced(self, tmp_path):
        path = many_parts(tmp_path)
        part = path / "ppo_updates" / "part-a1-r0-000002.parquet"
        data = bytearray(part.read_bytes())
        data[4:200] = bytes(196)  # pages, not the footer
        part.write_bytes(bytes(data))
        outcome = compact(tmp_path)
        assert "could not be merged" in str(outcome.problems[0])
        assert len(parts_in(path)[0]["ppo_updates"]) == 12
        assert not [*path.rglob(".*.tmp")]

    def test_two_at_once_do_not_meet(self, tmp_path):
        from esper_recorder.storage.lock import maintenance_lock

        path = many_parts(tmp_path)
        with maintenance_lock(path):
            for outcome in (compact(tmp_path), recover(tmp_path)):
                assert outcome.frame["state"].to_list() == ["failed"]
                assert "another process recovers or compacts" in str(outcome.problems[0])


# --- killed in the middle of it ---------------------------------------------------------------------------------------

# Copies a run again and again, and lets a forked child work on the copy that is killed at its n-th step which touches
# the file system within the copy; until a child lives to the end. Prints the copies.
KILLED = """
import os, signal, shutil, sys
from pathlib import Path
from esper_analytics.maintenance.compaction import compact
from esper_analytics.maintenance.recovery import recover

work = {"compact": compact, "recover": recover}[sys.argv[1]]
template, out, stride = Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
step = 1
while True:
    copy = out / f"{sys.argv[1]}-{step}"
    shutil.copytree(template, copy / template.name)
    child = os.fork()
    if child == 0:
        left = step
        def hook(event, args):
            global left
            if event in ("open", "os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir"):
                if args and str(args[0]).startswith(str(copy)):
                    left -= 1
                    if left == 0:
                        os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        work(copy)
        os._exit(0)
    _, status = os.waitpid(child, 0)
    print(copy, os.waitstatus_to_exitcode(status), flush=True)
    if status == 0:
        break
    step += stride
"""


def killed_everywhere(template: Path, out: Path, work: str, stride: int) -> list[tuple[Path, int]]:
    command = [sys.executable, "-W", "ignore", "-c", KILLED, work, str(template), str(out), str(stride)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stderr
    lines = [line.rsplit(" ", 1) for line in done.stdout.splitlines()]
    return [(Path(path), int(status)) for path, status in lines]


def check_killed(tmp_path: Path, work: str, stride: int) -> None:
    template = dead_run(tmp_path / "template")
    again = {"compact": compact, "recover": recover}[work]
    ends = killed_everywhere(template, tmp_path, work, stride)
    assert [status for _, status in ends] == [-9] * (len(ends) - 1) + [0]
    assert len(ends) > 20 / stride
    for copy, _ in ends:
        assert content(copy) == expected(UPDATES + 2), copy
        again(copy)
        assert content(copy) == expected(UPDATES + 2), copy
        recover(copy)
        compact(copy)
        assert content(copy) == expected(UPDATES + 2), copy
        assert verify(copy).frame.select("missing", "torn_bytes", "problems").rows() == [(0, 0, 1)]  # it was killed
        assert [*(copy / template.name).rglob("*.tmp")] == []
        assert len(parts_in(copy / template.name)[0]["ppo_updates"]) == 1
        shutil.rmtree(copy)


@pytest.mark.parametrize(("work", "stride"), [("compact", 23), ("recover", 11)])
def test_killed_at_some_steps_nothing_is_lost_or_doubled_and_the_next_one_finishes(tmp_path, work, stride):
    check_killed(tmp_path, work, stride)


@pytest.mark.slow
@pytest.mark.parametrize("work", ["compact", "recover"])
def test_killed_at_every_step_nothing_is_lost_or_doubled_and_the_next_one_finishes(tmp_path, work):
    check_killed(tmp_path, work, 1)


# Records updates, each of them a part at once, until it has made them all; or compacts a run until it is killed.
WRITES = """
import sys, time
from pathlib import Path
from esper_recorder.storage.sink import ParquetSink
sink = ParquetSink(Path(sys.argv[1]), roll_bytes=1)
for update in range(1, int(sys.argv[2]) + 1):
    own = {"run_id": [Path(sys.argv[1]).name], "attempt": [1], "rank": [0], "update": [update]}
    sink.write("ppo_updates", own | {"n": [update]})
    sink.write("alarms", own | {"rule": ["kl"]})
    sink.commit(update)
sink.close()
"""
COMPACTS = """
import sys
from pathlib import Path
from esper_analytics.maintenance.compaction import compact
while True:
    compact(Path(sys.argv[1]), most_rows=40)
"""
# Asks for the updates in a loop, and says what is wrong with them; ends once it has seen the last.
READS = """
import sys
import esper_analytics as ea
engine, last = sys.argv[2], int(sys.argv[3])
reads = seen = 0
while seen < last:
    runs = ea.open(sys.argv[1])
    if engine == "duckdb":
        query = 'SELECT u."update" AS u, a."update" AS a FROM ppo_updates u FULL JOIN alarms a USING ("update")'
        both = runs.sql(query)
        updates, alarms = both["u"].drop_nulls().to_list(), both["a"].drop_nulls().to_list()
        assert sorted(updates) == sorted(alarms), "the tables of an update do not appear together"
    else:
        try:
            updates = runs.table("ppo_updates").collect()["update"].to_list()
        except (FileNotFoundError, OSError):
            continue  # a frame names its files; one of them was compacted since. It is an error, not a wrong answer.
    assert sorted(updates) == list(range(1, len(updates) + 1)), sorted(updates)
    assert len(updates) >= seen, "an update that was there is gone"
    seen = len(updates)
    reads += 1
print(reads)
"""


def race(tmp_path: Path, last: int) -> list[int]:
    path = write_run(tmp_path)

    def start(code: str, *words: object) -> subprocess.Popen[str]:
        command = [sys.executable, "-c", code, str(path), *map(str, words)]
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    compactor = start(COMPACTS)
    others = [start(READS, "duckdb", last), start(READS, "polars", last), start(WRITES, last)]
    try:
        answers = []
        for child in others:
            out, err = child.communicate(timeout=500)
            assert child.returncode == 0, err
            answers.append(out)
        assert compactor.poll() is None, compactor.communicate()[1]
    finally:
        for child in (*others, compactor):
            child.kill()
            child.communicate()
    assert [row[1] for row in content(path)] == [str(update) for update in range(1, last + 1)]
    return [int(answer) for answer in answers[:2]]


def test_two_engines_read_whole_updates_while_one_process_rolls_at_every_commit_and_another_compacts(tmp_path):
    assert all(reads >= 1 for reads in race(tmp_path, 60))


@pytest.mark.slow
def test_two_engines_read_whole_updates_through_a_thousand_rolls_and_compactions(tmp_path):
    assert all(reads >= 5 for reads in race(tmp_path, 1000))


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
                with monkeypatch.context() as own:
                    own.undo()
                    if half:
                        own.setattr(compaction, "_remove_replaced", lambda *_: False)
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
def test_a_compaction_between_the_listing_and_the_views_has_the_question_asked_anew(tmp_path, monkeypatch, ask):
    from esper_analytics.sql import confined as sql

    path = many_parts(tmp_path)
    make_views = sql._make_views

    def late(connection, sources):
        monkeypatch.setattr(sql, "_make_views", make_views)
        assert compact(tmp_path).frame["state"].to_list() == ["compacted"]
        make_views(connection, sources)

    monkeypatch.setattr(sql, "_make_views", late)
    runs = ea.open(path)
    query = "SELECT count(*), sum(n)::BIGINT FROM ppo_updates"
    answer = runs.sql(query).row(0) if ask == "sql" else runs.connect().execute(query).fetchone()
    assert answer == (UPDATES, UPDATES * (UPDATES + 1) // 2)


# --- verify -----------------------------------------------------------------------------------------------------------


class TestVerify:
    def found(self, root: Path) -> list[str]:
        return [str(problem) for problem in verify(root).problems]

    def test_a_whole_run_has_nothing_wrong(self, tmp_path):
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

    def test_a_killed_run_is_told_with_all_that_it_left(self, tmp_path):
        path = dead_run(tmp_path)
        [row] = verify(tmp_path).frame.to_dicts()
        assert (row["ended"], row["updates"], row["torn_bytes"], row["complete"]) == ("killed", 14, 7, False)
        told = "\n".join(self.found(tmp_path))
        for words in ("killed", "never became parts", "7 bytes", ".part-a1-r0-000099.parquet.tmp", ".run.json.77.tmp"):
            assert words in told
        assert esper("verify", path).stdout
        assert "(--strict)" in esper("verify", path, "--strict", code=3).stderr

    def test_a_hole_is_told_and_one_that_gaps_tells_counts_apart(self, tmp_path):
        gaps = [{"update": 9, "table_name": "*", "reason": "queue_full", "first_update": 4, "last_update": 5}]
        path = many_parts(tmp_path, tables={"gaps": gaps})
        for update in (4, 5, 8):
            (path / "ppo_updates" / f"part-a1-r0-{update:06d}.parquet").unlink()
        [row] = verify(tmp_path).frame.to_dicts()
        assert (row["updates"], row["missing"], row["explained_missing"], row["complete"]) == (12, 1, 2, False)
        told = "\n".join(self.found(tmp_path))
        assert "no updates 8, and `gaps` does not say why" in told
        assert "no updates 4-5, as `gaps` says" in told

    def test_footers_that_disagree_with_their_rows_are_told(self, tmp_path):
        path = many_parts(tmp_path)
        part = path / "ppo_updates" / "part-a1-r0-000003.parquet"
        told = pq.read_metadata(part).metadata
        rows = pq.read_table(part)
        with pq.ParquetWriter(part, rows.schema, write_statistics=False) as writer:
            writer.write_table(rows)
            writer.add_key_value_metadata(
                {k: v for k, v in told.items() if k.startswith(b"esper_")} | {b"esper_rows": b"2"}
            )
        shutil.copy(
            path / "ppo_updates" / "part-a1-r0-000005.parquet", path / "ppo_updates" / "part-a1-r0-000030.parquet"
        )
        other = complete_rows("alarms", [{"update": 1, "attempt": 7, "rule": "x"}], run_id=path.name)
        add_part(path, "alarms", other, seq=40)
        found = "\n".join(self.found(tmp_path))
        assert "its footer says rows 2, and it holds 1" in found
        assert "updates 5 twice" in found
        assert "attempt 7, rank 0" in found

    def test_rows_that_do_not_say_whose_they_are_are_told_and_not_to_be_moved_away(self, tmp_path):
        path = many_parts(tmp_path)
        part = path / "ppo_updates" / "part-a1-r0-000003.parquet"
        rows = pq.read_table(part)
        told = pq.read_metadata(part).metadata
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
            own = {k: v for k, v in told.items() if k.startswith(b"esper_")}
            writer.add_key_value_metadata(own | {b"esper_rows": b"3"})
        [problem] = [line for line in self.found(tmp_path) if part.name in line]
        assert "2 rows of 3 do not say their run, attempt, rank or update. Leave it where it is" in problem

    @pytest.mark.parametrize(
        ("lost", "words"),
        [
            (
                {"calls": 2, "rows": 1, "message": "x is a list; give a tensor"},
                "(attempt 1, rank 0): 2 failed calls, 1 dropped row; the last error was: x is a list; give a tensor",
            ),
            (
                {"updates": 1, "writes": 3, "message": "OSError: no room"},
                "(attempt 1, rank 0): 1 dropped update, 3 failed writes; the last error was: OSError: no room",
            ),
        ],
    )
    def test_what_the_recorder_says_it_lost_is_a_sentence(self, tmp_path, lost, words):
        many_parts(tmp_path, manifest={"attempts": [{"attempt": 1, "rank": 0, "how": "finished", "lost": lost}]})
        [problem] = self.found(tmp_path)
        assert f"not everything of it was recorded {words}. `gaps` lists it" in problem

    def test_one_run_can_be_looked_at_alone(self, tmp_path):
        dead_run(tmp_path)
        whole = many_parts(tmp_path, "whole")
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "run.json").write_text("{")
        result = esper("verify", tmp_path, "--run", "whole", "--strict", "--format", "json")
        assert [row["run_id"] for row in json.loads(result.stdout)] == [whole.name]
        assert result.stderr == ""
        assert "(--strict)" in esper("verify", tmp_path, "--strict", code=3).stderr
        assert "whole" in esper("verify", tmp_path, "--run", "hole", code=2).stderr

    def test_damage_in_the_pages_in_the_footer_and_in_a_journal_is_told_and_named(self, tmp_path):
        path = dead_run(tmp_path)
        pages = path / "ppo_updates" / "part-a1-r0-000002.parquet"
        data = bytearray(pages.read_bytes())
        data[4:200] = bytes(196)
        pages.write_bytes(bytes(data))
        footer = path / "ppo_updates" / "part-a1-r0-000003.parquet"
        footer.write_bytes(footer.read_bytes()[:-9])
        found = self.found(tmp_path)
        assert any(pages.name in line and "its rows cannot" in line for line in found)
        assert any(footer.name in line and "truncated" in line for line in found)

    def test_statistics_on_floats_strangers_copies_and_lost_rules_are_told(self, tmp_path):
        path = many_parts(tmp_path, rules="# rules\n")
        part = path / "ppo_updates" / "part-a1-r0-000003.parquet"
        pq.write_table(columns_to_table("ppo_updates", pq.read_table(part).to_pydict()), part)
        (path / "ppo_updates" / "mine.parquet").write_bytes(part.read_bytes())
        next(path.glob("rules/*")).unlink()
        shutil.copytree(path, tmp_path / "copy")
        (tmp_path / "broken").mkdir()
        (tmp_path / "broken" / "run.json").write_text("{")
        found = "\n".join(self.found(tmp_path))
        for words in (
            "min/max statistics",
            "mine.parquet: it is not named",
            "text of the rules",
            "in copy too",
            "broken",
        ):
            assert words in found
        assert verify(tmp_path).frame["complete"].to_list() == [False, False]

    def test_a_rank_that_was_killed_early_is_told_by_its_number(self, tmp_path):
        attempts = [{"attempt": 1, "rank": 0, "how": "finished"}, {"attempt": 1, "rank": 1}]
        path = many_parts(tmp_path, ranks=(0, 1), manifest={"attempts": attempts})
        for update in (11, 12):
            (path / "ppo_updates" / f"part-a1-r1-{update:06d}.parquet").unlink()
        found = "\n".join(self.found(tmp_path))
        assert "rank 1 recorded no updates 11-12" in found
        assert "rank 1 was killed" in found
        assert verify(tmp_path).frame["missing"].to_list() == [2]

    def test_what_an_interrupted_compaction_left_is_told_and_read_once(self, tmp_path):
        path = many_parts(tmp_path)
        saved = (path / "ppo_updates" / "part-a1-r0-000005.parquet").read_bytes()
        compact(tmp_path)
        (path / "ppo_updates" / "part-a1-r0-000005.parquet").write_bytes(saved)
        assert content(path) == expected()
        [line] = self.found(tmp_path)
        assert "an interrupted compaction left it" in line
        compact(tmp_path)
        assert self.found(tmp_path) == []

    def test_a_run_that_is_being_recorded_is_whole_so_far(self, tmp_path):
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


def test_runs_of_a_chance_mixture_stay_the_same_through_any_order_of_upkeep(tmp_path):
    for seed in range(4):
        chance = random.Random(seed)
        path = dead_run(tmp_path / str(seed))
        before = content(path)
        for _ in range(4):
            if chance.random() < 0.5:
                compact(path, most_rows=chance.choice([3, 5, 100]))
            else:
                recover(path)
            assert content(path) == before


def test_the_commands_say_a_sentence_for_a_folder_without_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    for command in ("recover", "compact", "verify"):
        assert "no runs" in esper(command, tmp_path / "empty", code=3).stderr
        assert "There is no folder" in esper(command, tmp_path / "nowhere", code=2).stderr
