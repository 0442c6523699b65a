"""What recording costs a Stable-Baselines3 training (PPO, one thread, on the CPU), beside what people log with instead.

Workloads, by how much an update does:

* `vectorized`: CartPole-v1, 8 environments of 128 steps, batch 256, 10 epochs: 40 minibatches an update, 12 parameter
  tensors. Most trainings are like it, and the ratios that README quotes are its;
* `tiny`: 8 environments of 16 steps, one minibatch, one epoch: what an update costs whatever its size;
* `large`: as `vectorized` with 50 linear layers and a million parameters, 5 epochs of batch 512: 10 minibatches;
* `single`: one environment of 2,048 steps, batch 64, 10 epochs, the library's defaults: 320 minibatches.

Loggers: the recorder at `normal` and `debug`; `tensorboard`, the library's own logging; `wandb`, the same synchronised
into an offline run of Weights & Biases, as its documentation has it for this library (if the interpreter given by
--trackers-python has it; see `make trackers`). They log less: a dozen scalars an update.

Two measures, each the median over pairs of fresh processes that take turns, with its quartiles:

* `learn`: CPU time of `learn()`, all threads, over that without a logger;
* `process`: CPU time of the whole process and its children, imports included, over that without.

And, of the recorder, in other processes, in which each call is timed and whose ratios are not used:

* `training_ms`, `writer_ms`: CPU time per update in the training thread (all calls of the recorder and its callback)
  and in the writer's, in which Parquet files, fsyncs and the rules are included;
* `once_ms`: of these, what a run costs but once: to open and to close it.

    python benchmarks/bench_overhead.py [--pairs 15] [--other-pairs 5] [--workloads vectorized tiny large single]
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections import defaultdict
from typing import Any, NamedTuple

from results_file import TRACKERS_PYTHON, write_result


class Workload(NamedTuple):
    """One kind of training: PPO's arguments, the environments, and how many updates are trained."""

    environments: int
    arguments: dict[str, Any]
    updates: int


WORKLOADS = {
    "vectorized": Workload(8, {"n_steps": 128, "batch_size": 256, "n_epochs": 10}, 60),
    "tiny": Workload(8, {"n_steps": 16, "batch_size": 128, "n_epochs": 1}, 500),
    "large": Workload(
        8,
        {"n_steps": 128, "batch_size": 512, "n_epochs": 5, "policy_kwargs": {"net_arch": [212] * 24}},
        20,
    ),
    "single": Workload(1, {"n_steps": 2048, "batch_size": 64, "n_epochs": 10}, 6),
}
RECORDER = ("normal", "debug")
LOGGERS = (*RECORDER, "tensorboard", "wandb")


def train(workload: str, logger: str, folder: str) -> dict[str, float]:
    """Train once in this process: CPU seconds of `learn()`."""
    import torch
    from stable_baselines3 import PPO
    from stable_baselines3.common.env_util import make_vec_env

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    environments, arguments, updates = WORKLOADS[workload]
    callback: Any = None
    logs = None
    if logger in RECORDER:
        from esper_recorder.sb3 import RecorderCallback

        callback = RecorderCallback(folder, level=logger)
    elif logger != "none":
        logs = folder
    if logger == "wandb":
        import wandb
        from wandb.integration.sb3 import WandbCallback

        wandb.init(project="overhead", dir=folder, mode="offline", sync_tensorboard=True)
        callback = WandbCallback()
    made = make_vec_env("CartPole-v1", n_envs=environments, seed=1)
    model = PPO("MlpPolicy", made, seed=1, device="cpu", tensorboard_log=logs, **arguments)
    steps = updates * environments * int(arguments["n_steps"])
    began = time.process_time()
    model.learn(steps, callback=callback)
    seconds = time.process_time() - began
    if logger == "wandb":
        wandb.finish()
    return {"learn": seconds}


def train_and_time_calls(workload: str, level: str, folder: str) -> dict[str, float]:
    """Train once in this process: CPU milliseconds per update in the training thread and in the writer's."""
    from esper_recorder.recorder import Recorder
    from esper_recorder.sb3 import RecorderCallback, _UpdateListener
    from esper_recorder.storage.sink import ParquetSink
    from esper_recorder.storage.writer import Writer

    calls: list[tuple[Any, tuple[str, ...]]] = [
        (
            Recorder,
            ("rollout", "minibatch", "gradients", "layers", "episode", "recurrent", "end_update", "close", "_on_step"),
        ),
        (
            RecorderCallback,
            ("_on_training_start", "_on_step", "_on_rollout_end", "_on_rollout_start", "_on_training_end"),
        ),
        (_UpdateListener, ("_record", "_record_positions", "_record_rollout")),
    ]
    spent: defaultdict[str, float] = defaultdict(float)
    depth = 0
    clock = _clock_seconds()

    def timed(owner: Any, name: str, what: str = "training") -> None:
        method = getattr(owner, name)

        @functools.wraps(method)
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal depth
            if what == "training" and depth:  # the callback calls the recorder, and its time counts already
                return method(*args, **kwargs)
            depth += what == "training"
            began = time.thread_time()
            try:
                return method(*args, **kwargs)
            finally:
                spent[what] += time.thread_time() - began - clock
                depth -= what == "training"

        setattr(owner, name, call)

    run = Writer._run

    def timed_run(self: Writer) -> None:
        run(self)
        spent["writer"] += time.thread_time()

    Writer._run = timed_run  # type: ignore[method-assign]
    for owner, name in ((RecorderCallback, "_on_training_start"), (Recorder, "close"), (ParquetSink, "close")):
        timed(owner, name, "once")
    for cls, names in calls:
        for name in names:
            timed(cls, name)
    train(workload, level, folder)
    updates = WORKLOADS[workload].updates
    return {
        "training_ms": 1e3 * spent["training"] / updates,
        "writer_ms": 1e3 * spent["writer"] / updates,
        "once_ms": 1e3 * spent["once"],
    }


def _clock_seconds() -> float:
    """What asking for the thread's time takes: every interval timed is longer by it."""
    began = time.thread_time()
    for _ in range(10_000):
        time.thread_time()
    return (time.thread_time() - began) / 10_000


def run(workload: str, logger: str, python: str, *, calls: bool = False) -> dict[str, float] | str:
    """Train in a fresh process. Returns what it measured, and the CPU time of its whole life; the reason if it fails.

    Of children that outlive it, such as a tracker's service, only what they did until they were waited for counts.
    """
    before = _children_seconds()
    with tempfile.TemporaryDirectory() as folder:
        command = [
            python,
            "-W",
            "ignore",
            __file__,
            "--train",
            workload,
            logger,
            folder,
            *(["--calls"] if calls else []),
        ]
        # A tracker must not look for an account of whoever runs this.
        environment = {**os.environ, "WANDB_MODE": "offline", "WANDB_SILENT": "true", "WANDB_CONFIG_DIR": folder}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
    measured: dict[str, float] = json.loads(done.stdout.strip().splitlines()[-1])
    return measured | {"process": _children_seconds() - before}


def _children_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def measure(workload: str, pairs: dict[str, int], trackers: str) -> list[dict[str, Any]]:
    """Measure one workload: a row per logger."""
    of: dict[str, list[dict[str, float]]] = {"none": [], **{logger: [] for logger in pairs}}
    absent: dict[str, str] = {}
    for turn in range(max(pairs.values())):
        due = ["none", *(logger for logger, count in pairs.items() if turn < count and logger not in absent)]
        for logger in due if turn % 2 else reversed(due):
            measured = run(workload, logger, trackers if logger == "wandb" else sys.executable)
            if isinstance(measured, str):
                absent[logger] = measured
            else:
                of[logger].append(measured)
                print(workload, logger, turn + 1, {k: round(v, 2) for k, v in measured.items()}, file=sys.stderr)
    rows: list[dict[str, Any]] = []
    for logger in pairs:
        row: dict[str, Any] = {"workload": workload, "logger": logger}
        if logger in absent:
            rows.append(row | {"not_measured": absent[logger]})
            continue
        for what in ("learn", "process"):
            ratios = [a[what] / b[what] for a, b in zip(of[logger], of["none"], strict=False)]
            row[what] = round(statistics.median(ratios), 4)
            row[f"{what}_quartiles"] = [round(q, 4) for q in statistics.quantiles(ratios, n=4)]
        row["pairs"] = len(of[logger])
        row["ms_per_update_without"] = round(
            1e3 * statistics.median(m["learn"] for m in of["none"]) / WORKLOADS[workload].updates, 2
        )
        if logger in RECORDER:
            timings = [run(workload, logger, sys.executable, calls=True) for _ in range(3)]
            for name in ("training_ms", "writer_ms", "once_ms"):
                row[name] = round(statistics.median(t[name] for t in timings if not isinstance(t, str)), 3)
        rows.append(row)
        print(row)
    return rows


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15, help="of the recorder, on the first workload")
    parser.add_argument("--other-pairs", type=int, default=5, help="of the other loggers and workloads")
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--loggers", nargs="+", choices=LOGGERS, default=list(LOGGERS))
    parser.add_argument("--trackers-python", default=str(TRACKERS_PYTHON), help="interpreter that has wandb")
    parser.add_argument("--dry", action="store_true", help="print only")
    parser.add_argument("--train", nargs=3, metavar=("WORKLOAD", "LOGGER", "FOLDER"), help="train once")
    parser.add_argument("--calls", action="store_true", help="time the recorder's calls of that training")
    arguments = parser.parse_args()
    if arguments.train:
        print(json.dumps((train_and_time_calls if arguments.calls else train)(*arguments.train)))
        return
    rows: list[dict[str, Any]] = []
    for workload in arguments.workloads:
        pairs = {
            logger: arguments.pairs if workload == "vectorized" and logger in RECORDER else arguments.other_pairs
            for logger in arguments.loggers
            if workload == "vectorized" or logger in RECORDER
        }
        rows += measure(workload, pairs, arguments.trackers_python)
    if not arguments.dry:
        updates = {name: workload.updates for name, workload in WORKLOADS.items()}
        print(write_result("overhead", {"threads": 1, "updates": updates}, rows))


if __name__ == "__main__":
    main()
