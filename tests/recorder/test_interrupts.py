"""Ctrl-C and other signals within calls of the recorder, and calls from several threads."""

from __future__ import annotations

import json
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch

from esper_recorder import MemorySink, Recorder
from esper_recorder.storage.interrupts import signals_deferred
from esper_recorder.storage.manifest import how_it_ended, read_manifest
from tests.recorder.storage.stored_updates import read_rows


class Stop(Exception):
    """What the handler of a user raises."""


@pytest.fixture
def handlers() -> Iterator[list[int]]:
    """Handlers of two signals, which note them; the first raises as well."""
    seen: list[int] = []

    def raising(number: int, _: FrameType | None) -> None:
        seen.append(number)
        raise Stop

    def noting(number: int, _: FrameType | None) -> None:
        seen.append(number)

    before = {number: signal.getsignal(number) for number in (signal.SIGUSR1, signal.SIGUSR2)}
    signal.signal(signal.SIGUSR1, raising)
    signal.signal(signal.SIGUSR2, noting)
    signals_deferred.find_handlers()
    yield seen
    for number, handler in before.items():
        signal.signal(number, handler)
    signals_deferred.find_handlers()


class TestADeferral:
    def test_runs_the_handlers_after_the_block_in_the_order_of_the_signals(self, handlers: list[int]):
        within: list[list[int]] = []
        with pytest.raises(Stop), signals_deferred:
            signal.raise_signal(signal.SIGUSR1)
            signal.raise_signal(signal.SIGUSR2)
            signal.raise_signal(signal.SIGUSR1)  # as with the system's, a second one of the same number is the first
            within.append(list(handlers))
        assert (within, handlers) == ([[]], [signal.SIGUSR1, signal.SIGUSR2])

    def test_within_another_ends_with_the_outer_one(self, handlers: list[int]):
        with signals_deferred:
            with signals_deferred:
                signal.raise_signal(signal.SIGUSR2)
            assert handlers == []
        assert handlers == [signal.SIGUSR2]

    def test_leaves_the_handlers_as_they_were_also_after_an_exception(self, handlers: list[int]):
        before = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
        with pytest.raises(ZeroDivisionError), signals_deferred:
            raise ZeroDivisionError
        assert [signal.getsignal(number) for number in sorted(signal.valid_signals())] == before

    def test_does_nothing_in_another_thread(self, handlers: list[int]):
        states = []

        def enter() -> None:
            with signals_deferred:
                states.append(signal.getsignal(signal.SIGUSR2))

        thread = threading.Thread(target=enter)
        thread.start()
        thread.join()
        assert states == [signal.getsignal(signal.SIGUSR2)]

    def test_ends_a_wait_when_a_signal_comes(self, handlers: list[int]):
        waits = []

        def done(seconds: float) -> bool:
            waits.append(seconds)
            if len(waits) == 3:
                signal.raise_signal(signal.SIGUSR2)
            return False

        with signals_deferred:
            assert not signals_deferred.wait(done, None)
        assert len(waits) == 3 and handlers == [signal.SIGUSR2]


CALLS: dict[str, Callable[[Recorder, int], Any]] = {
    "rollout": lambda rec, i: rec.rollout(values=torch.zeros(4), returns=torch.ones(4)),
    "minibatch": lambda rec, i: rec.minibatch(index=torch.arange(4), log_ratio=torch.zeros(4), clip_range=0.2),
    "gradients": lambda rec, i: rec.gradients(total_norm=0.5),
    "episode": lambda rec, i: rec.episode(return_=1.0),
    "end_update": lambda rec, i: rec.end_update(step=i),
}


class Interrupter:
    """Sends itself Ctrl-C at the n-th line of the recorder's code that the main thread runs."""

    def __init__(self, line: int) -> None:
        self.lines, self._line = 0, line

    def __enter__(self) -> None:
        sys.settrace(self._trace)

    def __exit__(self, *_: object) -> None:
        sys.settrace(None)

    def _trace(self, frame: FrameType, event: str, _: Any) -> Any:
        if "esper_recorder" not in frame.f_code.co_filename or "interrupts.py" in frame.f_code.co_filename:
            return None
        if event == "line":
            self.lines += 1
            if self.lines == self._line:
                signal.raise_signal(signal.SIGINT)
        return self._trace


NOT_YET = (
    *("if self._recording:", "with signals_deferred, self._turn:", "with signals_deferred:", "with self._turn:"),
    *("update = self._open", "before, grad_enabled = update.minibatches, torch.is_grad_enabled()", "try:"),
)
"""The lines of a guard that come before the call's work."""


def was_made(error: BaseException) -> bool:
    """Whether a call that was interrupted was made all the same: it had begun, or was over."""
    frames = traceback.extract_tb(error.__traceback__)
    last = frames[-1] if frames[-1].name != "_trace" else frames[-2]
    return not (last.filename.endswith("guards.py") and last.line in NOT_YET)


@pytest.mark.parametrize("name", CALLS)
def test_ctrl_c_at_any_line_of_a_call_comes_after_it_and_nothing_is_lost(tmp_path: Path, name: str):
    sink = MemorySink()
    rec = Recorder(tmp_path, sink=sink, rules=None)
    line, made, interrupts, update = 0, 0, 0, 0
    while True:
        update += 1
        line += 1 if line < 40 else 7
        interrupter = Interrupter(line)
        for call_name, call in CALLS.items():
            try:
                if call_name == name:
                    with interrupter:
                        call(rec, update)
                else:
                    call(rec, update)
            except KeyboardInterrupt as error:
                interrupts += 1
                assert torch.is_grad_enabled()
                if was_made(error):
                    made += 1
                else:  # it came before the call began: the loop makes it again
                    call(rec, update)
        if interrupter.lines < line:
            break
    rec.close()
    assert interrupts == update - 1 and made >= interrupts - 5, "a guard has up to five lines before it begins"
    rows = sink.rows("ppo_updates")
    assert [row["step"] for row in rows] == list(range(1, update + 1))
    assert {row["minibatch_count"] for row in rows} == {1}
    assert [row["update"] for row in sink.rows("episodes")] == list(range(1, update + 1))
    assert sink.rows("gaps") == [] and {row["grad_norm_max"] for row in rows} == {0.5}


def test_ctrl_c_at_any_line_of_the_constructor_leaves_no_run_that_is_live(tmp_path: Path):
    line, ended = 0, 0
    before = threading.active_count()
    while True:
        line += 29
        interrupter = Interrupter(line)
        try:
            with interrupter:
                rec = Recorder(tmp_path, rules=None)
        except KeyboardInterrupt:
            ended += 1
        else:
            rec.close()
            break
    assert interrupter.lines < line and ended == line // 29 - 1
    folders = [folder for folder in tmp_path.iterdir() if (folder / "run.json").exists()]
    assert folders and {how_it_ended(folder) for folder in folders} <= {"raised", "finished"}
    assert threading.active_count() == before


TRAINING = """
import json, os, random, signal, sys, threading, time, traceback, torch
from esper_recorder import Recorder

root, wanted, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
generator = random.Random(seed)
ready = True  # for the next signal
over = False

def interrupt():
    global ready
    while not over:
        time.sleep(generator.uniform(0.0, 0.02))
        if ready:
            ready = False
            os.kill(os.getpid(), signal.SIGINT)

rec = Recorder(root)
thread = threading.Thread(target=interrupt, daemon=True)
interrupts = within = lost = 0
call, before = "", 1
thread.start()
while interrupts < wanted:
    try:
        ready = True
        while True:
            for _ in range(3):
                call = "minibatch"
                rec.minibatch(log_ratio=torch.zeros(64), clip_range=0.2)
            call, before = "end_update", rec.update
            rec.end_update()
            time.sleep(0.005)
    except KeyboardInterrupt as error:
        interrupts += 1
        if "__exit__" in [frame.name for frame in traceback.extract_tb(error.__traceback__)]:
            within += 1  # the call was made, and then it was interrupted
            lost += call == "end_update" and rec.update == before
made = rec.update - 1
while True:
    try:
        ready = True
        rec.close()  # the signals continue
        over = True
        thread.join()
        break
    except KeyboardInterrupt:
        pass
print(json.dumps([str(rec.path), made, lost, within]))
"""


def interrupted_training(root: Path, run_python: Callable[..., str], interrupts: int, seed: int) -> int:
    """Check a training with that many interrupts; return how many came within a call."""
    line = run_python(TRAINING, str(root), str(interrupts), str(seed)).splitlines()[-1]
    path, made, lost, within = json.loads(line)
    updates = {row["update"] for row in read_rows(Path(path), "ppo_updates")}
    gaps = [gap for gap in read_rows(Path(path), "gaps") if gap["table_name"] == "*"]
    missing = {update for gap in gaps for update in range(gap["first_update"], gap["last_update"] + 1)}
    assert lost == 0
    assert not updates & missing
    # `close` ends one more if the last interrupt came after a minibatch.
    assert updates | missing in ({*range(1, made + 1)}, {*range(1, made + 2)})
    (attempt,) = read_manifest(Path(path)).attempts
    assert attempt.how == "finished"
    return int(within)


@pytest.mark.slow
def test_trainings_interrupted_hundreds_of_times_keep_every_update_and_end(
    tmp_path: Path, run_python: Callable[..., str]
):
    within = sum(interrupted_training(tmp_path / str(seed), run_python, 300, seed) for seed in range(5))
    assert within >= 100, "enough of them came within a call"


def test_a_handler_that_raises_is_not_swallowed_by_a_call(tmp_path: Path, handlers: list[int]):
    """A time limit of the trainer, by `signal.alarm`, is not an error of the recorder's."""
    sink = MemorySink()
    rec = Recorder(tmp_path, sink=sink, rules=None)
    rec.minibatch(log_ratio=torch.zeros(3))

    class Signalling:
        def __index__(self) -> int:
            signal.raise_signal(signal.SIGUSR1)
            return 7

    with pytest.raises(Stop):
        rec.end_update(step=Signalling())  # type: ignore[arg-type]
    rec.close()
    assert [(row["update"], row["step"]) for row in sink.rows("ppo_updates")] == [(1, 7)]
    assert sink.rows("gaps") == []


def test_ctrl_c_while_close_waits_ends_the_waiting_and_a_second_close_finishes(tmp_path: Path):
    class Slow(MemorySink):
        def __init__(self) -> None:
            super().__init__()
            self.reached, self.let_go = threading.Event(), threading.Event()

        def commit(self, update: int) -> None:
            self.reached.set()
            self.let_go.wait(60)
            super().commit(update)

    sink = Slow()
    rec = Recorder(tmp_path, sink=sink, rules=None)
    rec.minibatch(log_ratio=torch.zeros(3))
    rec.end_update()
    sink.reached.wait(60)
    timer = threading.Timer(0.1, signal.raise_signal, [signal.SIGINT])
    timer.start()
    with pytest.raises(KeyboardInterrupt):
        rec.close()
    timer.join()
    assert rec.path is not None and read_manifest(rec.path).attempts[0].how is None
    sink.let_go.set()
    rec.close()
    assert read_manifest(rec.path).attempts[0].how == "finished"
    assert sink.updates == [1] and sink.closed == ("finished", None)


class TestThreads:
    def test_take_turns_and_lose_nothing(self, tmp_path: Path):
        sink = MemorySink()
        rec = Recorder(tmp_path, sink=sink, rules=None)
        assert rec._run is not None
        rec._run.writer._capacity = 1000
        together = threading.Barrier(4)

        def train() -> None:
            together.wait()
            for _ in range(50):
                rec.minibatch(log_ratio=torch.zeros(3), clip_range=0.2)
                rec.episode(return_=1.0)
                rec.end_update()

        threads = [threading.Thread(target=train) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        rec.close()
        rows = sink.rows("ppo_updates")
        assert [row["update"] for row in rows] == list(range(1, 4 * 50 + 1))
        assert sum(row["n"] or 0 for row in rows) == 4 * 50 * 3
        assert len(sink.rows("episodes")) == 4 * 50 and sink.rows("gaps") == []
