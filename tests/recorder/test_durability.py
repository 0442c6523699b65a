"""The durability promise against real processes: killed at random moments, and read while they write."""

from __future__ import annotations

import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from esper_recorder.manifest import how_it_ended
from esper_recorder.reading import list_row_files
from esper_recorder.rolling import recover
from esper_recorder.run_folder import RunFolder
from tests.recorder.storage import MINIBATCHES, read_rows, update_rows, updates_in

# Records updates until it dies, and prints each update once the writer has committed it.
TRAIN = """
import sys
from pathlib import Path
from esper_recorder.run_folder import RunFolder
from esper_recorder.sink import ParquetSink
from esper_recorder.writer import Writer
from tests.recorder.storage import update_rows

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
folder.finish("finished", updates=last, lost=writer.lost)
"""


@contextmanager
def training(root: Path, roll_bytes: int, last: int) -> Iterator[tuple[subprocess.Popen[bytes], Path, Path]]:
    """A training process, its run's folder, and the file it prints the number of committed updates to."""
    told = root / "told.txt"
    with told.open("wb") as out:
        child = subprocess.Popen(
            [sys.executable, "-c", TRAIN, str(root / "runs"), str(roll_bytes), str(last)], stdout=out
        )
    try:
        while not told.read_bytes().count(b"\n"):
            assert child.poll() is None
            time.sleep(0.005)
        yield child, Path(told.read_text().splitlines()[0]), told
    finally:
        child.kill()
        child.wait()


def committed(told: Path) -> int:
    """The last whole number the process printed."""
    lines = told.read_bytes().split(b"\n")[1:-1]
    return int(lines[-1]) if lines else 0


def kill_and_check(root: Path, chance: random.Random) -> None:
    root.mkdir()
    roll_bytes = chance.choice([1, 5_000, 50_000, 2**25])
    with training(root, roll_bytes, 1_000_000) as (child, folder, told):
        assert how_it_ended(folder) == "live"
        time.sleep(chance.uniform(0.0, 0.6))
        child.kill()
        child.wait()
        sure = committed(told)
        assert how_it_ended(folder) == "killed"
        stored = updates_in(folder)
        assert list_row_files(folder).problems == ()
        # What the process knew to be committed is there; what came after may be, in order and whole.
        assert stored == list(range(1, len(stored) + 1))
        assert len(stored) >= sure
        recover(folder)
        assert updates_in(folder) == stored
        assert not (folder / "journal").exists()
        resumed = RunFolder.resume(root / "runs", folder.name)
        assert (resumed.attempt, resumed.from_update) == (2, len(stored) + 1)
        resumed.release()


@pytest.mark.parametrize("seed", range(5))
def test_killed_at_a_random_moment_every_committed_update_is_there_exactly_once(tmp_path: Path, seed: int) -> None:
    kill_and_check(tmp_path / "a", random.Random(seed))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_killed_at_a_hundred_random_moments_every_committed_update_is_there_exactly_once(tmp_path: Path) -> None:
    for seed in range(100, 200):
        kill_and_check(tmp_path / str(seed), random.Random(seed))


def test_a_reader_never_misses_or_doubles_an_update_while_the_writer_makes_parts_at_every_commit(
    tmp_path: Path,
) -> None:
    """`roll_bytes=1`: each commit opens a journal, writes two parts and deletes it, while we read as fast as we can."""
    reads = seen = 0
    with training(tmp_path, roll_bytes=1, last=150) as (child, folder, told):
        while child.poll() is None:
            sure = committed(told)
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
    with training(tmp_path, roll_bytes=20_000, last=400) as (child, folder, told):
        while child.poll() is None:
            sure = committed(told)
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
    import esper_recorder.reading as reading
    from esper_recorder.sink import ParquetSink

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
                            for table, data in update_rows(update).items():
                                sink.write(table, data)
                            sink.commit(update)

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
                        for name in ("journals_in", "parts_in", "_read"):
                            patch.setattr(reading, name, stepping(getattr(reading, name)))
                        files = list_row_files(folder)
                    updates = [row["update"] for row in read_rows(folder, "ppo_updates", files)]
                    minibatches = [row["update"] for row in read_rows(folder, "minibatches", files)]
                    assert updates == list(range(1, len(updates) + 1))
                    assert minibatches == [u for u in updates for _ in range(MINIBATCHES)]
                    assert before <= len(updates) <= update
                    sink.close()
                    assert updates_in(folder) == list(range(1, update + 1))
