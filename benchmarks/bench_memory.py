"""Whether the recorder's memory grows: peak resident memory of one process that records very many updates.

Every eighth update holds a minibatch and a finished episode, each is watched by the default rules, and all go through
the journal into Parquet parts. The trainer waits for the writer now and then, so that nothing is dropped. What counts
is the growth after the first 10 000 updates.

    python benchmarks/bench_memory.py [--updates 1000000]
"""

from __future__ import annotations

import argparse
import resource
import sys
import tempfile
import time
from pathlib import Path

import torch

from esper_recorder import Recorder
from esper_recorder.storage.manifest import read_manifest

WARM_UP = 10_000
MINIBATCH_EVERY = 8
WAIT_EVERY = 32


def record(root: Path, updates: int) -> list[dict[str, float]]:
    """Record `updates` updates under `root`; the peak memory when the warm-up, each tenth and the whole were done."""
    looks = {min(WARM_UP, updates), *(updates * tenth // 10 for tenth in range(1, 11))}
    rows: list[dict[str, float]] = []
    log_ratio = torch.linspace(-0.1, 0.1, 8)
    with Recorder(root, name="memory", total_updates=updates) as rec:
        for update in range(1, updates + 1):
            if update % MINIBATCH_EVERY == 0:
                rec.minibatch(log_ratio=log_ratio, advantages=log_ratio, clip_range=0.2, epoch=1)
                rec.episode(return_=1.0, length=10)
            rec.end_update(step=update)
            if update % WAIT_EVERY == 0:
                rec.flush()
            if update in looks:
                rec.flush()
                rows.append({"updates": update, "peak_rss_mb": round(_peak_mb(), 1)})
                print(rows[-1], file=sys.stderr)
    assert rec.path is not None
    (attempt,) = read_manifest(rec.path).attempts
    if attempt.updates != updates or attempt.dropped:
        raise SystemExit(f"only {attempt.updates} of {updates} updates were recorded ({attempt.dropped}): no result")
    return rows


def _peak_mb() -> float:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kilobytes; bytes on macOS
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=1_000_000)
    parser.add_argument("--dry", action="store_true", help="write no result")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        rows = record(Path(folder), arguments.updates)
    warm = next(row for row in rows if row["updates"] >= min(WARM_UP, arguments.updates))
    growth = round(rows[-1]["peak_rss_mb"] - warm["peak_rss_mb"], 1)
    print(f"peak memory grew by {growth} MB after the first {warm['updates']} of {arguments.updates} updates")
    if not arguments.dry:
        from results_file import write_result

        settings = {
            "updates": arguments.updates,
            "minibatch_every": MINIBATCH_EVERY,
            "wait_every": WAIT_EVERY,
            "seconds": round(time.perf_counter() - began),
            "growth_after_warm_up_mb": growth,
        }
        print(write_result("memory", settings, rows))


if __name__ == "__main__":
    main()
