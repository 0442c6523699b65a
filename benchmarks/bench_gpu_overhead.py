"""What recording costs a training on a GPU: `examples/device_ppo.py`, time of an update with a recorder over without.

Fresh processes take turns. The clock runs from the start of rollout `WARM_UP` to the start of the last one, with the
device drained at both ends. A further pass at each level counts the host syncs that CUDA reports meanwhile; the example
makes none itself. Without a CUDA device it says "not measured" and writes nothing.

    python benchmarks/bench_gpu_overhead.py [--pairs 15] [--updates 60] [--n-envs 4096]
    python benchmarks/bench_gpu_overhead.py --device cpu --pairs 1 --updates 8 --n-envs 8    # tries the script out
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from examples import device_ppo

LEVELS = ("normal", "debug")
WARM_UP = 5


def train(level: str, updates: int, n_envs: int, device: str, *, count_syncs: bool) -> dict[str, Any]:
    """Train once in this process: seconds per update, host syncs, and the GPU's memory at its peak."""
    collect = device_ppo.collect
    begun = 0
    marks: list[float] = []
    mode = torch.cuda.set_sync_debug_mode if device == "cuda" else lambda mode: None

    def timed(*args: Any) -> Any:
        nonlocal begun
        begun += 1
        if begun in (WARM_UP, updates):
            mode("default")
            if device == "cuda":
                torch.cuda.synchronize()
            marks.append(time.perf_counter())
            if count_syncs and begun == WARM_UP:
                mode("warn")
        return collect(*args)

    device_ppo.collect = timed  # type: ignore[assignment]
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings(record=True) as met:
        warnings.simplefilter("always")
        device_ppo.train_ppo_vectorized(
            n_episodes=updates,
            n_envs=n_envs,
            max_epochs=32,
            device=device,
            use_telemetry=level != "none",
            level="normal" if level == "none" else level,
            runs=Path(folder),
        )
    return {
        "update_s": (marks[1] - marks[0]) / (updates - WARM_UP),
        "syncs": sum("synchronizing" in str(warning.message) for warning in met) if count_syncs else None,
        "gpu_mb": round(torch.cuda.max_memory_allocated() / 2**20, 1) if device == "cuda" else None,
    }


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--updates", type=int, default=60)
    parser.add_argument("--n-envs", type=int, default=4096)
    parser.add_argument("--device", default="cuda", choices=["cuda", "cpu"])
    parser.add_argument("--train", metavar="LEVEL", help="train once and print what it took")
    parser.add_argument("--count-syncs", action="store_true", help="with --train: count host syncs, and time nothing")
    arguments = parser.parse_args()
    if arguments.updates <= WARM_UP:
        parser.error(f"--updates is {arguments.updates}; the first {WARM_UP} are warm-up, give more")
    if arguments.device == "cuda" and not torch.cuda.is_available():
        print("overhead on a GPU: not measured, there is no CUDA device")
        return
    words = (arguments.updates, arguments.n_envs, arguments.device)
    if arguments.train:
        print(json.dumps(train(arguments.train, *words, count_syncs=arguments.count_syncs)))
        return

    def once(level: str, *more: str) -> dict[str, Any]:
        own = ["--updates", str(arguments.updates), "--n-envs", str(arguments.n_envs), "--device", arguments.device]
        command = [sys.executable, __file__, "--train", level, *own, *more]
        result: dict[str, Any] = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)
        return result

    measured: dict[str, list[dict[str, Any]]] = {level: [] for level in ("none", *LEVELS)}
    for turn in range(arguments.pairs):
        for level in list(measured) if turn % 2 else reversed(measured):
            measured[level].append(once(level))
            print(f"{turn + 1}/{arguments.pairs} {level}", file=sys.stderr)
    rows = []
    for level in LEVELS:
        ratios = [a["update_s"] / b["update_s"] for a, b in zip(measured[level], measured["none"], strict=True)]
        rows.append(
            {
                "level": level,
                "update": round(statistics.median(ratios), 4),
                "update_least_and_most": [round(min(ratios), 4), round(max(ratios), 4)],
                "update_ms_without": round(1000 * statistics.median(m["update_s"] for m in measured["none"]), 3),
                "host_syncs": once(level, "--count-syncs")["syncs"],
                "gpu_mb": measured[level][0]["gpu_mb"],
                "gpu_mb_without": measured["none"][0]["gpu_mb"],
            }
        )
        print(rows[-1])
    if arguments.device == "cpu":
        print("tried out on the CPU: no result is written")
        return
    from results_file import write_result

    settings = {"pairs": arguments.pairs, "updates": arguments.updates, "n_envs": arguments.n_envs, "n_steps": 32}
    print(write_result("gpu_overhead", settings, rows, gpu=torch.cuda.get_device_name()))


if __name__ == "__main__":
    main()
