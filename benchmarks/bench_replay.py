"""Speed of replay: one long run, row by row, a sweep of a threshold, and many runs. Takes at most five minutes.

Each measure runs in a fresh process on two threads; candidates take turns, and the best turn counts. One run and many
are each opened and replayed once per process: reading manifests, and the peak memory, are those of a first replay.

    python benchmarks/bench_replay.py [--updates 1000000] [--turns 5]
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

PROFILE = "esper-2026-06"
THREADS = 2
RUNS = 1000


def read_columns(runs: Any, profile: str) -> None:
    """Read the columns that the rules of a profile need."""
    from esper_recorder.contract.rules.ruleset import load_profile

    for table, names in load_profile(profile).tables.items():
        runs.table(table).select("update", *sorted(names - {"run_id", "update"})).collect()


def measure(what: str, folder: str, turns: int) -> dict[str, Any]:
    """Measure one or more calls in this process: the best time of some turns each, and the peak memory."""
    import esper_analytics as ea

    values = [1.5 + place * 0.005 for place in range(1000)]
    runs = ea.open(folder)
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: read_columns(runs, PROFILE),
        "replay": lambda: ea.replay(runs, PROFILE),
        "default": lambda: ea.replay(ea.open(folder), "default"),
        "sweep": lambda: ea.sweep(runs, PROFILE, rule="ratio_explosion", field="above", values=values),
    }
    best = dict.fromkeys(what.split("+"), float("inf"))
    for _ in range(turns):
        for name in best:
            began = time.perf_counter()
            calls[name]()
            best[name] = min(best[name], time.perf_counter() - began)
    return {**best, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def row_by_row(folder: str, updates: int) -> float:
    """Measure the evaluator that runs in the trainer, in microseconds per update."""
    import polars as pl

    import esper_analytics as ea
    from esper_recorder.contract.rules.evaluator import RuleEvaluator
    from esper_recorder.contract.rules.ruleset import load_profile

    runs, rules = ea.open(folder), load_profile(PROFILE)
    rows: list[dict[str, list[dict[str, Any]]]] = [{} for _ in range(updates + 1)]
    for table, names in rules.tables.items():
        frame = runs.table(table).filter(pl.col("update") <= updates).select("update", *sorted(names - {"update"}))
        for row in frame.collect().to_dicts():
            rows[row["update"]].setdefault(table, []).append(row)
    best = float("inf")
    for _ in range(3):
        evaluator = RuleEvaluator(rules)
        began = time.perf_counter()
        for update in range(1, updates + 1):
            evaluator.update(update, rows[update]["ppo_updates"][0]["progress"], rows[update])
        best = min(best, time.perf_counter() - began)
    return best / updates * 1e6


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help="for the benchmark's own processes")
    parser.add_argument("--rows", metavar="FOLDER", help="for the benchmark's own processes")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], arguments.measure[1], arguments.turns)))
        return
    if arguments.rows:
        print(json.dumps(row_by_row(arguments.rows, arguments.updates)))
        return
    from replay_runs import HEADS, esper_run, plain_run
    from results_file import write_result

    def run(turns: int, *arguments: str) -> Any:
        environment = os.environ | {"POLARS_MAX_THREADS": str(THREADS)}
        command = [sys.executable, __file__, "--turns", str(turns), *arguments]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=environment)
        return json.loads(done.stdout)

    updates, turns = arguments.updates, arguments.turns
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        esper_run(root / "long", "long", updates)
        esper_run(root / "short", "short", updates // 10)
        plain_run(root / "one", "one", updates)
        for number in range(RUNS):
            plain_run(root / "many", f"run{number:04d}", updates // RUNS)
        long = run(turns, "--measure", "read+replay", str(root / "long"))
        by_row = run(1, "--rows", str(root / "short"), "--updates", str(min(20_000, updates // 10)))
        swept = run(turns, "--measure", "replay+sweep", str(root / "short"))
        first: dict[str, list[Any]] = {"one": [], "many": []}
        for _ in range(turns):
            for name, measurements in first.items():
                measurements.append(run(1, "--measure", "default", str(root / name)))
    one, many = (min(entry["default"] for entry in first[name]) for name in ("one", "many"))
    peak, one_peak = (max(entry["peak_mb"] for entry in first[name]) for name in ("many", "one"))
    rows = [
        {
            "measure": f"{PROFILE} over {updates:,} updates",
            "goal": "at least 1,000,000 updates per second, and at most 5 times the reading of the columns",
            "updates_per_s": round(updates / long["replay"]),
            "times_reading": round(long["replay"] / long["read"], 2),
            "seconds": round(long["replay"], 3),
            "peak_mb": round(long["peak_mb"]),
            "met": updates / long["replay"] >= 1_000_000 and long["replay"] <= 5 * long["read"],
        },
        {
            "measure": f"{PROFILE} row by row",
            "goal": "at most 50 us per update",
            "us_per_update": round(by_row, 1),
            "met": by_row <= 50,
        },
        {
            "measure": f"sweep of 1,000 values over {updates // 10:,} updates",
            "goal": "at most 10 times one replay",
            "times_replay": round(swept["sweep"] / swept["replay"], 2),
            "seconds": round(swept["sweep"], 3),
            "met": swept["sweep"] <= 10 * swept["replay"],
        },
        {
            "measure": f"default over {RUNS:,} runs of {updates // RUNS:,} updates",
            "goal": f"at most 1,024 MB, and 3 times one run of {updates:,} updates",
            "peak_mb": round(peak),
            "times_one_run": round(many / one, 2),
            "seconds": round(many, 3),
            "one_run_seconds": round(one, 3),
            "one_run_peak_mb": round(one_peak),
            "met": peak <= 1024 and many <= 3 * one,
        },
    ]
    for row in rows:
        print(row)
    settings = {
        "updates": updates,
        "runs": RUNS,
        "turns": turns,
        "threads": THREADS,
        "heads": len(HEADS),
        "statistic": "best of turns; the highest peak",
    }
    print(write_result("replay", settings, rows))


if __name__ == "__main__":
    main()
