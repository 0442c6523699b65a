"""How fast rules are replayed: one long run, row by row, a sweep of a threshold, and many runs.

Every measure is taken in a process of its own, the best of several; what is compared takes turns.

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


def read_columns(runs: Any, profile: str) -> None:
    """Read the columns that the rules of a profile need, and do nothing with them."""
    from esper_recorder.contract.rules import load_profile

    for table, names in load_profile(profile).tables.items():
        runs.table(table).select("update", *sorted(names - {"run_id", "update"})).collect()


def measure(what: str, folder: str, turns: int) -> dict[str, Any]:
    """One measure, in this process."""
    import esper_analytics as ea

    runs = ea.open(folder)
    values = [1.5 + place * 0.005 for place in range(1000)]
    calls: dict[str, Callable[[], object]] = {
        "read": lambda: read_columns(runs, PROFILE),
        "replay": lambda: ea.replay(runs, PROFILE),
        "default": lambda: ea.replay(runs, "default"),
        "sweep": lambda: ea.sweep(runs, PROFILE, rule="ratio_explosion", key="above", values=values),
    }
    words = what.split("+")
    best = dict.fromkeys(words, float("inf"))
    for _ in range(turns):
        for word in words:
            began = time.perf_counter()
            calls[word]()
            best[word] = min(best[word], time.perf_counter() - began)
    return {**best, "peak_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def row_by_row(folder: str, updates: int) -> float:
    """Microseconds an update of the evaluator that runs in the trainer."""
    import polars as pl

    import esper_analytics as ea
    from esper_recorder.contract.evaluator import RuleEvaluator
    from esper_recorder.contract.rules import load_profile

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
            own = rows[update]
            evaluator.update(update, own["ppo_updates"][0]["progress"], own)
        best = min(best, time.perf_counter() - began)
    return best / updates * 1e6


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "FOLDER"), help="used by the benchmark itself")
    parser.add_argument("--rows", metavar="FOLDER", help="used by the benchmark itself")
    arguments = parser.parse_args()
    if arguments.measure:
        print(json.dumps(measure(arguments.measure[0], arguments.measure[1], arguments.turns)))
        return
    if arguments.rows:
        print(json.dumps(row_by_row(arguments.rows, 20_000)))
        return
    from replay_runs import esper_run, plain_run
    from results_file import write_result

    def ask(*words: str) -> Any:
        environment = os.environ | {"POLARS_MAX_THREADS": "2"}
        command = [sys.executable, __file__, "--turns", str(arguments.turns), *words]
        done = subprocess.run(command, check=True, capture_output=True, text=True, env=environment)
        return json.loads(done.stdout)

    updates = arguments.updates
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        esper_run(root / "long", "long", updates)
        esper_run(root / "short", "short", updates // 10)
        plain_run(root / "one", "one", updates)
        for number in range(1000):
            plain_run(root / "many", f"run{number:04d}", updates // 1000)
        long = ask("--measure", "read+replay", str(root / "long"))
        rows_us = ask("--rows", str(root / "short"))
        swept = ask("--measure", "replay+sweep", str(root / "short"))
        one, many = (ask("--measure", "default", str(root / name)) for name in ("one", "many"))
    rows = [
        {
            "measure": f"{PROFILE}, {updates:,} updates",
            "updates_per_s": round(updates / long["replay"]),
            "seconds": round(long["replay"], 3),
            "times_reading": round(long["replay"] / long["read"], 2),
            "peak_mb": round(long["peak_mb"]),
        },
        {"measure": f"{PROFILE}, row by row", "us_per_update": round(rows_us, 1)},
        {
            "measure": f"sweep of 1,000 values over {updates // 10:,} updates",
            "seconds": round(swept["sweep"], 3),
            "times_replay": round(swept["sweep"] / swept["replay"], 2),
        },
        {
            "measure": f"default, 1,000 runs of {updates // 1000:,} updates",
            "seconds": round(many["default"], 3),
            "peak_mb": round(many["peak_mb"]),
            "times_one_run": round(many["default"] / one["default"], 2),
            "one_run_seconds": round(one["default"], 3),
            "one_run_peak_mb": round(one["peak_mb"]),
        },
    ]
    for row in rows:
        print(row)
    settings = {"updates": updates, "turns": arguments.turns, "threads": 2, "heads": 8, "statistic": "best of turns"}
    print(write_result("replay", settings, rows))


if __name__ == "__main__":
    main()
