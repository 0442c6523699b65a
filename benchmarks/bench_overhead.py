"""What recording costs a small Stable-Baselines3 training: PPO, CartPole-v1, MlpPolicy, one thread, on the CPU.

Several measures, because a shared machine is noisy:

* `calls`: CPU time inside the recorder's calls and the callback's in the training thread plus the writer thread's, over
  the rest of the training's CPU time, in one and the same process; what asking for the time takes is taken off. Of a
  training of 61,440 steps, 30 PPO updates, the median of three. All of the recorder's time counts, that which a run
  takes but once included. How much that is (making the recorder, closing it and the last Parquet parts, which hold the
  rows since the journal was last rolled) is reported as `once_s`, and the ratio without it as `calls_without_once`;
* `calls_short`: the same of the short trainings that follow, in which what a run costs once weighs more;
* `pairs`: CPU time of `learn()` with a recorder over that without, in fresh processes that take turns, each 20,480
  steps or ten updates;
* `processes`: the same of the whole processes, which begin with seconds of imports.

    python benchmarks/bench_overhead.py [--pairs 15] [--steps 20480] [--long-runs 3] [--long-steps 61440]

That is 45 trainings of about 10 seconds and 6 of about 28: 11 minutes, 13 on a busy machine.
"""

from __future__ import annotations

import argparse
import functools
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from typing import Any

LEVELS = ("normal", "debug")
CALLS = (
    "rollout",
    "minibatch",
    "gradients",
    "layers",
    "episode",
    "recurrent",
    "end_update",
    "close",
    "_on_step",
)
CALLBACK = ("_on_training_start", "_on_step", "_on_rollout_end", "_on_rollout_start", "_on_training_end")


def clock_seconds() -> float:
    """What asking for the thread's time takes: every interval timed is longer by it."""
    began = time.thread_time()
    for _ in range(10_000):
        time.thread_time()
    return (time.thread_time() - began) / 10_000


def train(level: str, steps: int) -> dict[str, float]:
    """Train once in this process; CPU seconds of learn(), the recorder's calls, its writer thread, and once a run."""
    import torch
    from stable_baselines3 import PPO

    from esper_recorder.recorder import Recorder
    from esper_recorder.sb3 import RecorderCallback, _UpdateListener
    from esper_recorder.storage.sink import ParquetSink
    from esper_recorder.storage.writer import Writer

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    spent = {"calls": 0.0, "writer": 0.0, "once": 0.0}
    clock = clock_seconds()
    inside = False

    def timed(method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:  # the callback calls the recorder, and its time counts already
                return method(*args, **kwargs)
            inside = True
            began = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                spent["calls"] += time.thread_time() - began - clock
                inside = False

        return call

    def once(method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            began = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                spent["once"] += time.thread_time() - began

        return call

    RecorderCallback._on_training_start = once(RecorderCallback._on_training_start)  # type: ignore[method-assign]
    Recorder.close = once(Recorder.close)  # type: ignore[method-assign]
    ParquetSink.close = once(ParquetSink.close)  # type: ignore[method-assign]

    for owner, names in (
        (Recorder, CALLS),
        (RecorderCallback, CALLBACK),
        (_UpdateListener, ("_record", "_record_positions", "_record_rollout")),
    ):
        for name in names:
            setattr(owner, name, timed(getattr(owner, name)))
    write = Writer._run

    def write_timed(self: Writer) -> None:
        write(self)
        spent["writer"] += time.thread_time()

    Writer._run = write_timed  # type: ignore[method-assign]
    model = PPO("MlpPolicy", "CartPole-v1", seed=1, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        callback = None if level == "none" else RecorderCallback(folder, level=level)
        began = time.process_time()
        model.learn(steps, callback=callback)
        total = time.process_time() - began
    return {"total": total, "process": time.process_time(), **spent}


def run(level: str, steps: int) -> dict[str, float]:
    """`train` in a fresh process."""
    command = [sys.executable, __file__, "--train", level, "--steps", str(steps)]
    found: dict[str, float] = json.loads(subprocess.run(command, check=True, capture_output=True).stdout)
    return found


def of_calls(measured: dict[str, float], without: float = 0.0) -> float:
    """1 + the recorder's CPU time, less `without` seconds of it, over that of the rest of the training."""
    own = measured["calls"] + measured["writer"]
    return 1 + (own - without) / (measured["total"] - own)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20_480)
    parser.add_argument("--long-runs", type=int, default=3)
    parser.add_argument("--long-steps", type=int, default=61_440)
    parser.add_argument("--train", metavar="LEVEL", help="train once and print the times")
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train(arguments.train, arguments.steps)))
        return
    measured: dict[str, list[dict[str, float]]] = {level: [] for level in ("none", *LEVELS)}
    long: dict[str, list[dict[str, float]]] = {level: [] for level in LEVELS}
    for turn in range(arguments.long_runs):
        for level in LEVELS:
            long[level].append(run(level, arguments.long_steps))
            print(f"long {turn + 1}/{arguments.long_runs} {level}", file=sys.stderr)
    for turn in range(arguments.pairs):
        order = list(measured) if turn % 2 else list(reversed(measured))
        for level in order:
            measured[level].append(run(level, arguments.steps))
            print(f"{turn + 1}/{arguments.pairs} {level}", file=sys.stderr)
    rows = []
    for level in LEVELS:
        with_and_without = list(zip(measured[level], measured["none"], strict=True))
        pairs = [a["total"] / b["total"] for a, b in with_and_without]
        processes = [a["process"] / b["process"] for a, b in with_and_without]
        rows.append(
            {
                "level": level,
                "calls": round(statistics.median(of_calls(m) for m in long[level]), 4),
                "calls_without_once": round(statistics.median(of_calls(m, m["once"]) for m in long[level]), 4),
                "once_s": round(statistics.median(m["once"] for m in long[level]), 4),
                "calls_short": round(statistics.median(of_calls(m) for m in measured[level]), 4),
                "pairs": round(statistics.median(pairs), 4),
                "pairs_quartiles": [round(q, 4) for q in statistics.quantiles(pairs, n=4)],
                "processes": round(statistics.median(processes), 4),
                "cpu_s_without": round(statistics.median(m["total"] for m in measured["none"]), 3),
            }
        )
        print(rows[-1])
    from results_file import write_result

    settings = {
        "pairs": arguments.pairs,
        "steps": arguments.steps,
        "long_runs": arguments.long_runs,
        "long_steps": arguments.long_steps,
        "n_steps": 2048,
        "threads": 1,
    }
    print(write_result("overhead", settings, rows))


if __name__ == "__main__":
    main()
