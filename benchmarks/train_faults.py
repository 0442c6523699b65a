"""Train the runs of the detection benchmark: every fault class, on every trainer and task, and the healthy runs.

    python benchmarks/train_faults.py --out ../fault-runs [--jobs 2] [--only nonfinite] [--plan]
    python benchmarks/train_faults.py --out check --check [--only advantage] [--trainer sb3]

What is finished already is left as it is, judged by its manifest, its recording and what it was made from; what was
interrupted is trained again. `--list` lists the fault classes, `--plan` the runs. `--check` trains each fault class
for a few updates, on the first task of each trainer or on those of `--task`, and checks the proof that the fault was
injected.
"""

from __future__ import annotations

import argparse
import multiprocessing
import sys
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, as_completed
from pathlib import Path

import torch
from faults.fault_class import TRAINERS
from faults.plan import PlannedRun, faulty_run, planned_runs, tasks_of
from faults.proving import prove
from faults.registry import FAULTS, SEEDS
from faults.tasks import TASKS
from faults.training import Manifest, manifest_of, manifests, train_run

CHECKED_MIDWAY = 3
"""Onset, in a check, of a fault that begins in the middle of a training."""


def one_thread() -> None:
    """Networks as small as these are trained fastest, and the same everywhere, on one core."""
    torch.set_num_threads(1)


def train(runs: list[PlannedRun], out: Path, jobs: int) -> list[str]:
    """Train what is missing, and return what went wrong."""
    (out / "unfinished").mkdir(parents=True, exist_ok=True)
    missing = [run for run in runs if manifest_of(run, out) is None]
    print(f"{len(runs)} runs, {len(missing)} to train", file=sys.stderr)
    if not missing:
        return []
    problems: list[str] = []
    began, total, done = time.monotonic(), sum(run.cost for run in missing), 0.0
    if jobs == 1:
        one_thread()
        for run in missing:
            problems += _result(run, train_run(run, out))
        return problems
    # Spawned, as torch must not be forked.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, mp_context=context, initializer=one_thread, max_tasks_per_child=20) as pool:
        futures = {pool.submit(train_run, run, out): run for run in sorted(missing, key=lambda run: -run.cost)}
        for future in as_completed(futures):
            run = futures[future]
            done += run.cost
            left = (time.monotonic() - began) * (total - done) / done
            error = future.exception()
            problems += [f"{run.key}: {error}"] if error is not None else _result(run, future.result())
            print(f"{100 * done / total:.0f} %, {left / 60:.0f} min left", file=sys.stderr)
    return problems


def _result(run: PlannedRun, manifest: Manifest) -> list[str]:
    crash = f", crashed: {manifest['crashed'][:90]}" if manifest["crashed"] else ""
    print(f"{run.key}: {manifest['seconds']:.1f} s{crash}", file=sys.stderr)
    return []


def check(out: Path, only: list[str], trainers: tuple[str, ...], tasks: list[str] | None) -> int:
    """Train each fault class briefly and print what its proof found; the number of those not proven.

    On the first task of each trainer, or on all of these tasks.
    """
    one_thread()
    failed = 0
    for fault in FAULTS.values():
        if not any(part in f"fault-{fault.name}" for part in only):
            continue
        pairs = list(tasks_of((t for t in fault.trainers if t in trainers), fault.tasks))
        first = dict(reversed(pairs))
        for trainer, task in (pair for pair in pairs if (pair[1] in tasks if tasks else first[pair[0]] == pair[1])):
            onset = 1 if fault.onset == 1 else CHECKED_MIDWAY
            updates = onset + fault.proof.within - 1
            run = faulty_run(fault, trainer, task, SEEDS["held-out"][0], "held-out", onset=onset, updates=updates)
            control = PlannedRun(fault.control, False, trainer, task, run.seed, run.half, 1, "healthy", None, 8)
            manifest = train_run(run, out)
            verdict = prove(manifest, train_run(control, out), out)
            failed += not verdict.proven
            said = "proven" if verdict.proven else f"NOT PROVEN: {verdict.problem}"
            proof = fault.proof
            crash = f" crashed: {manifest['crashed'][:60]}" if manifest["crashed"] else ""
            value = "no value" if verdict.value is None else f"{verdict.value:.4g}"
            print(
                f"{fault.name} ({trainer}, {task}): {proof.source} {proof.expression} = {value} "
                f"{proof.relation} {verdict.needed:.4g}: {said}{crash}",
                flush=True,
            )
    return failed


def list_faults() -> None:
    """Print every fault class."""
    for fault in FAULTS.values():
        where = ", ".join(fault.tasks or ("every task",))
        print(f"{fault.name} ({fault.cause}; {fault.chain}; from update {fault.onset}): {fault.description}")
        proof = f"{fault.proof.source}: {fault.proof.expression}"
        print(f"    {', '.join(fault.trainers)}; {where}; proved by {proof}")


def list_runs(runs: list[PlannedRun]) -> None:
    """Print every run, and how many there are."""
    for run in runs:
        print(run.key, run.half, run.cause)
    halves = Counter((run.half, "faulty" if run.faulty else "healthy") for run in runs)
    counts = ", ".join(f"{n} {kind} {half}" for (half, kind), n in sorted(halves.items()))
    print(f"{len(runs)} runs of {len(FAULTS)} fault classes: {counts}; {sum(run.cost for run in runs):.0f} units")


def main() -> int:
    """Train, check or list."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, help="folder for runs and manifests, outside of git")
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--only", action="append", help="only runs whose key has this in it; repeatable")
    parser.add_argument("--trainer", action="append", choices=TRAINERS, help="only this trainer; repeatable")
    parser.add_argument("--task", action="append", choices=list(TASKS), help="with --check: on this task; repeatable")
    parser.add_argument("--list", action="store_true", help="list the fault classes")
    parser.add_argument("--plan", action="store_true", help="list the runs")
    parser.add_argument("--check", action="store_true", help="train each fault class briefly and check its proof")
    arguments = parser.parse_args()
    trainers, only = tuple(arguments.trainer or TRAINERS), arguments.only or [""]
    planned = planned_runs()
    wanted = [run for run in planned if run.trainer in trainers and any(part in run.key for part in only)]
    # A faulty run is judged by its control.
    keys = {run.key for run in wanted} | {run.control for run in wanted}
    runs = [run for run in planned if run.key in keys]
    if arguments.list:
        list_faults()
        return 0
    if arguments.plan:
        list_runs(runs)
        return 0
    if arguments.out is None:
        parser.error("name a folder for the runs, outside of git: --out ../fault-runs")
    if not runs:
        parser.error(f"no run has {' or '.join(only)} in its key; --plan lists the runs")
    if arguments.check:
        failed = check(arguments.out, only, trainers, arguments.task)
        print(f"{failed} not proven")
        return int(failed > 0)
    problems = train(runs, arguments.out, arguments.jobs)
    print(f"{len(manifests(arguments.out))} finished runs in {arguments.out}")
    for problem in problems:
        print(problem, file=sys.stderr)
    return int(bool(problems))


if __name__ == "__main__":
    sys.exit(main())
