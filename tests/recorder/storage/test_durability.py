"""The durability promise against real processes: killed at random moments, and read while they write."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from esper_analytics.maintenance.recovery import recover_run
from esper_recorder.storage.listing import list_row_files
from esper_recorder.storage.manifest import how_it_ended
from esper_recorder.storage.run_folder import RunFolder
from tests.recorder.storage.stored_updates import MINIBATCHES, put, read_rows, updates_in, updates_in_gaps

# Records updates until it dies, and prints each update once the writer has committed it.
TRAIN = """
import sys
from pathlib import Path
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import ParquetSink
from esper_recorder.storage.writer import Writer
from tests.recorder.storage.stored_updates import update_rows

root, roll_bytes, last = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
folder = RunFolder.create(root)
writer = Writer(ParquetSink(folder.path, roll_bytes=roll_bytes), folder, capacity=8)
print(folder.path, flush=True)
for update in range(1, last + 1):
    writer.put(update, update_rows(update))
    if update % 4 == 0 or last < 1000:
        writer.flush()
    print(writer.committed, flush=True)
writer.close(how="finished")
folder.finish("finished", updates=last, dropped=writer.dropped)
"""


@contextmanager
def training(root: Path, roll_bytes: int, last: int) -> Iterator[tuple[subprocess.Popen[bytes], Path, Path]]:
    """A training process, its run's folder, and the file it prints the number of committed updates to."""
    printed = root / "printed.txt"
    with printed.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(root / "runs"), str(roll_bytes), str(last)], stdout=out
        )
    try:
        while not printed.read_bytes().count(b"\n"):
            assert child.poll() is None
            time.sleep(0.005)
        yield child, Path(printed.read_text().splitlines()[0]), printed
    finally:
        child.kill()
        child.wait()


def committed(printed: Path) -> int:
    """The last whole number the process printed."""
    lines = printed.read_bytes().split(b"\n")[1:-1]
    return int(lines[-1]) if lines else 0


# Forks trainings, with the real Recorder, that each write down when they hand an update over; kills each at its moment.
# A seed's journals are rolled never (within these seconds), now and then, or at every update. The former records to the
# disk. Rolling makes a dozen fsyncs, for which a busy disk takes longer than an update: where the trainer must not run
# ahead it is done in memory, for what a SIGKILL leaves is the same there.
KILLS = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from esper_recorder import Recorder
from esper_recorder.storage.sink import ParquetSink

torch.set_num_threads(1)

def train(root, log, roll_bytes, pause):
    ParquetSink.__init__.__kwdefaults__["roll_bytes"] = roll_bytes
    recorder = Recorder(root, total_updates=1_000_000)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for update in range(1, 1_000_000):
        for _ in range(2):
            recorder.minibatch(log_ratio=0.01 * torch.randn(8), advantages=torch.randn(8), entropy=torch.rand(8))
        recorder.end_update(step=update)
        os.write(file, f"{update} {time.monotonic()}\\n".encode())
        time.sleep(pause)

pace, disk, memory = sys.argv[1:4]
for seed in map(int, sys.argv[4:]):
    chance = random.Random(seed)
    if pace == "outrun":
        roll_bytes, pause, root = 1, 0.0, disk
    else:
        roll_bytes, pause = chance.choice([(1, 0.1), (5_000, 0.1), (50_000, 0.05), (2**23, 0.02)])
        root = disk if roll_bytes == 2**23 else memory
    folder = Path(root, str(seed))
    folder.mkdir()
    log = folder / "log"
    child = os.fork()
    if child == 0:
        train(folder / "runs", log, roll_bytes, pause)
        os._exit(1)
    while not log.exists():
        time.sleep(0.001)
    while pace == "outrun" and log.read_bytes().count(b"\\n") < 300:
        time.sleep(0.01)
    time.sleep(chance.uniform(0.0, 0.1 if pace == "outrun" else 2.0))
    killed = time.monotonic()
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    print(folder, killed, flush=True)
"""


@dataclass(frozen=True)
class KilledTraining:
    """What a training that was killed had handed over, and what is stored of it."""

    name: str
    folder: Path
    handed_over: dict[int, float]
    """Update -> seconds before the kill."""
    stored: list[int]
    dropped: set[int]
    """Updates in the table `gaps`."""

    @property
    def older_than_a_second(self) -> set[int]:
        return {update for update, age in self.handed_over.items() if age > 1.0}


def kill(pace: str, disk: Path, memory: Path, seeds: Iterable[int]) -> Iterator[KilledTraining]:
    """Kill trainings at random moments. Of each, nothing is doubled, torn, or missing without a gap."""
    command = [sys.executable, "-c", KILLS, pace, str(disk), str(memory), *map(str, seeds)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for line in done.stdout.splitlines():
        root, killed = Path(line.split()[0]), float(line.split()[1])
        handed_over = [line.split() for line in (root / "log").read_text().splitlines()]
        [folder] = (root / "runs").iterdir()
        assert how_it_ended(folder) == "killed"
        files = list_row_files(folder)
        assert files.problems == ()
        stored = sorted(row["update"] for row in read_rows(folder, "ppo_updates", files))
        minibatches = sorted(row["update"] for row in read_rows(folder, "minibatches", files))
        gaps = read_rows(folder, "gaps", files)
        dropped = updates_in_gaps(gaps)
        last = max(stored, default=0)
        assert {gap["reason"] for gap in gaps} <= {"queue_full"}
        assert len(set(stored)) == len(stored), f"{root}: doubled"
        holes = set(range(1, last + 1)) - set(stored)
        assert holes == {update for update in dropped if update <= last}, f"{root}: holes that `gaps` does not explain"
        assert minibatches == [update for update in stored for _ in range(2)]
        yield KilledTraining(root.name, folder, {int(u): killed - float(at) for u, at in handed_over}, stored, dropped)
        recover_run(folder)
        assert not (folder / "journal").exists()
        assert sorted(row["update"] for row in read_rows(folder, "ppo_updates")) == stored
        resumed = RunFolder.resume(root / "runs", folder.name)
        assert (resumed.attempt, resumed.from_update) == (2, max(dropped | {last}) + 1)
        resumed.release()


@pytest.fixture
def memory(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory, or on the disk if memory has none."""
    held = Path("/dev/shm")
    if not os.access(held, os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir=held, prefix="esper-kills-") as folder:
        yield Path(folder)


def check_killed_in_step(tmp_path: Path, memory: Path, seeds: Sequence[int]) -> None:
    killed = list(kill("followed", tmp_path, memory, seeds))
    assert len(killed) == len(seeds)
    assert any(training.older_than_a_second for training in killed)
    for training in killed:
        missing = training.older_than_a_second - set(training.stored)
        assert not missing, f"seed {training.name}: older than a second, and missing"
        assert not training.dropped, f"seed {training.name}: dropped at a pace that can be followed"


def test_killed_at_five_random_moments_no_row_older_than_a_second_is_missing_and_none_is_doubled(
    tmp_path: Path, memory: Path
) -> None:
    check_killed_in_step(tmp_path, memory, range(5))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_a_hundred_random_moments_no_row_older_than_a_second_is_missing_and_none_is_doubled(
    tmp_path: Path, memory: Path
) -> None:
    check_killed_in_step(tmp_path, memory, range(100, 200))


def test_killed_while_it_outruns_the_disk_the_missing_updates_are_exactly_those_in_gaps(
    tmp_path: Path, memory: Path
) -> None:
    """A part at every update, and no pause between updates: most of them are dropped."""
    [training] = kill("outrun", tmp_path, memory, [1])
    assert training.stored and training.dropped


def test_a_reader_never_misses_or_doubles_an_update_while_the_writer_makes_parts_at_every_commit(
    tmp_path: Path,
) -> None:
    """`roll_bytes=1`: each commit opens a journal, writes two parts and deletes it, while we read as fast as we can."""
    reads = seen = 0
    with training(tmp_path, roll_bytes=1, last=150) as (child, folder, printed):
        while child.poll() is None:
            sure = committed(printed)
            stored = updates_in(folder)
            assert stored == list(range(1, len(stored) + 1))
            assert sure <= len(stored)
            assert len(stored) >= seen, "an update that was there is gone"
            seen = len(stored)
            reads += 1
        assert child.returncode == 0
        assert updates_in(folder) == list(range(1, 151))
    assert reads >= 3


def test_a_reader_racing_a_writer_that_rolls_now_and_then_sees_whole_updates_only(tmp_path: Path) -> None:
    reads = 0
    with training(tmp_path, roll_bytes=20_000, last=400) as (child, folder, printed):
        while child.poll() is None:
            sure = committed(printed)
            stored = updates_in(folder)
            assert stored == list(range(1, len(stored) + 1))
            assert sure <= len(stored)
            reads += 1
        assert child.returncode == 0
    assert reads >= 3
    assert updates_in(folder) == list(range(1, 401))


def test_a_reader_between_any_two_steps_of_the_writer_sees_one_consistent_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The writer acts within the reader's listing, at each place; journals are rolled at once, sometimes, or never."""
    import esper_recorder.storage.listing as listing
    from esper_recorder.storage.sink import ParquetSink

    case = 0
    for place in range(6):  # before the 1st .. 6th of the reader's steps; the 6th is taken where parts came meanwhile
        for before in (0, 2):
            for during in (1, 3):
                for roll_bytes in (1, 4_000, 2**25):
                    case += 1
                    folder = tmp_path / str(case)
                    folder.mkdir()
                    sink = ParquetSink(folder, roll_bytes=roll_bytes)
                    update = 0

                    def train(count: int, sink: ParquetSink = sink) -> None:
                        nonlocal update
                        for _ in range(count):
                            update += 1
                            put(sink, update)

                    train(before)
                    steps = 0

                    def stepping(real, place=place, during=during):
                        def call(*args):
                            nonlocal steps
                            if steps == place:
                                train(during)
                            steps += 1
                            return real(*args)

                        return call

                    with monkeypatch.context() as patch:
                        for name in ("journals_in", "parts_in", "_read_journals"):
                            patch.setattr(listing, name, stepping(getattr(listing, name)))
                        files = list_row_files(folder)
                    updates = [row["update"] for row in read_rows(folder, "ppo_updates", files)]
                    minibatches = [row["update"] for row in read_rows(folder, "minibatches", files)]
                    assert updates == list(range(1, len(updates) + 1))
                    assert minibatches == [u for u in updates for _ in range(MINIBATCHES)]
                    assert before <= len(updates) <= update
                    sink.close()
                    assert updates_in(folder) == list(range(1, update + 1))
