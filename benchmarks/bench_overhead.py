"""What recording costs a small Stable-Baselines3 training: PPO, CartPole-v1, MlpPolicy, one thread, on the CPU.

Several measures, because a shared machine is noisy:

* `calls`: CPU time inside the recorder's calls and the callback's in the training thread (making and closing the
  recorder included) plus the writer thread's, over the rest of the training's CPU time, in one and the same process;
  what asking for the time takes is taken off, once a call;
* `pairs`: CPU time of `learn()` with a recorder over that without, in fresh processes that take turns;
* `processes`: the same of the whole processes, which begin with seconds of imports.

    python benchmarks/bench_overhead.py [--pairs 15] [--steps 20480]

A training of 20,480 steps is ten PPO updates, so what a run costs once (its folder, its Parquet parts) weighs more here
than in a training of hours. That is 45 trainings of about 10 seconds each: 8 minutes, 10 on a busy machine.
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
    "known_rollout",
    "known_minibatch",
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
    """Train once in this process; returns CPU seconds of learn(), of the recorder's calls and of its writer thread."""
    import torch
    from stable_baselines3 import PPO

    from esper_recorder.recorder import Recorder
    from esper_recorder.sb3 import RecorderCallback, _UpdateListener
    from esper_recorder.writer import Writer

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    spent = {"calls": 0.0, "writer": 0.0}
    clock = clock_seconds()
    depth = [0]

    def timed(method: Any) -> Any:
        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            depth[0] += 1
            began = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                depth[0] -= 1
                if not depth[0]:  # the callback calls the recorder
                    spent["calls"] += time.thread_time() - began - clock

        return call

    for owner, names in (
        (Recorder, CALLS),
        (RecorderCallback, CALLBACK),
        (_UpdateListener, ("_record", "_record_known")),
    ):
        for name in names:
            setattr(owner, name, timed(getattr(owner, name)))
    write = Writer._run

    def run(self: Writer) -> None:
        write(self)
        spent["writer"] += time.thread_time()

    Writer._run = run  # type: ignore[method-assign]
    model = PPO("MlpPolicy", "CartPole-v1", seed=1, device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        callback = None if level == "none" else RecorderCallback(folder, level=level)
        began = time.process_time()
        model.learn(steps, callback=callback)
        total = time.process_time() - began
    return {"total": total, "process": time.process_time(), **spent}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20_480)
    parser.add_argument("--train", metavar="LEVEL", help="train once and print the times")
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps(train(arguments.train, arguments.steps)))
        return
    measured: dict[str, list[dict[str, float]]] = {level: [] for level in ("none", *LEVELS)}
    for turn in range(arguments.pairs):
        order = list(measured) if turn % 2 else list(reversed(measured))
        for level in order:
            command = [sys.executable, __file__, "--train", level, "--steps", str(arguments.steps)]
            measured[level].append(json.loads(subprocess.run(command, check=True, capture_output=True).stdout))
            print(f"{turn + 1}/{arguments.pairs} {level}", file=sys.stderr)
    rows = []
    for level in LEVELS:
        own = [(m["calls"] + m["writer"]) / (m["total"] - m["calls"] - m["writer"]) for m in measured[level]]
        with_and_without = list(zip(measured[level], measured["none"], strict=True))
        pairs = [a["total"] / b["total"] for a, b in with_and_without]
        processes = [a["process"] / b["process"] for a, b in with_and_without]
        rows.append(
            {
                "level": level,
                "calls": round(1 + statistics.median(own), 4),
                "pairs": round(statistics.median(pairs), 4),
                "pairs_quartiles": [round(q, 4) for q in statistics.quantiles(pairs, n=4)],
                "processes": round(statistics.median(processes), 4),
                "cpu_s_without": round(statistics.median(m["total"] for m in measured["none"]), 3),
            }
        )
        print(rows[-1])
    from results_file import write_result

    settings = {"pairs": arguments.pairs, "steps": arguments.steps, "n_steps": 2048, "threads": 1}
    print(write_result("overhead", settings, rows))


if __name__ == "__main__":
    main()
