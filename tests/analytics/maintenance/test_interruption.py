"""Maintenance that is killed at any step, repeated in any order, or raced by readers and a writer."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from esper_analytics.maintenance.compaction import compact
from esper_analytics.maintenance.recovery import recover
from esper_analytics.maintenance.verification import verify
from esper_recorder.storage.listing import parts_in
from tests.analytics.maintenance.recordings import UPDATES, content, dead_run, expected
from tests.builders import write_run
from tests.support import esper

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
    identity = {"run_id": [Path(sys.argv[1]).name], "attempt": [1], "rank": [0], "update": [update]}
    sink.write("ppo_updates", identity | {"n": [update]})
    sink.write("alarms", identity | {"rule": ["kl"]})
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


def test_rows_stay_the_same_through_any_order_of_maintenance(tmp_path):
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


def test_each_command_reports_a_folder_without_runs(tmp_path):
    (tmp_path / "empty").mkdir()
    for command in ("recover", "compact", "verify"):
        assert "no runs" in esper(command, tmp_path / "empty", code=3).stderr
        assert "There is no folder" in esper(command, tmp_path / "nowhere", code=2).stderr
