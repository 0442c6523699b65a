"""What a row of `ppo_updates` costs: CPU time and bytes, beside other ways of writing the same values.

The rows are those of a real PPO training (Stable-Baselines3, CartPole-v1), repeated with every number changed a
little. They come at 1, 10 and 1000 a second; the seconds are simulated, so that what a writer does once a second or
once in ten minutes (the journal's fsync, making parts) is in proportion. Each writer runs in a separate process, in
turn, and is measured from the first row to the end of its `close`, all its threads.

The promises differ: a buffered file is never synced, and its buffer dies with its process; the recorder's rows survive
the process at once, and the loss of power after ten seconds (or one, if a hundred wait).

* `esper`: the recorder's sink. `bytes` is what lies on the disk at the end; `written` adds the journals that were
  deleted when they had become parts.
* `jsonl`: `json.dumps` to a buffered file, one line per row, NULL left out.
* `tensorboard`: torch's SummaryWriter, `add_scalar` for every number.
* `trackio`: `trackio.log` to its local database. It needs another Pillow than the one pinned here, so it runs in an
  separate environment (`make trackers`). If it cannot run, the result says why it was not measured.

    python benchmarks/bench_rows.py [--turns 5] [--rows 600 6000 10000] [--trackers-python PATH]
"""

from __future__ import annotations

import argparse
import gc
import itertools
import json
import os
import pickle
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from results_file import TRACKERS_PYTHON, write_result

RATES = (1, 10, 1000)
WRITERS = ("esper", "jsonl", "tensorboard", "trackio")
SLOW = {"tensorboard": 1_000, "trackio": 600}
"""Writers whose cost per row does not depend on the number of rows -> the number that is enough."""

Row = dict[str, Any]
Measurement = dict[str, float]


def real_rows(path: Path) -> None:
    """Record a real training and keep its rows of `ppo_updates`, NULL left out."""
    import warnings

    import pyarrow.parquet as pq
    import torch
    from stable_baselines3 import PPO

    from esper_recorder.sb3 import RecorderCallback

    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        model = PPO("MlpPolicy", "CartPole-v1", n_steps=128, seed=1, device="cpu")
        model.learn(20 * 128, callback=RecorderCallback(folder))
        [part] = Path(folder).glob("*/ppo_updates/*.parquet")
        recorded = pq.read_table(part).to_pylist()
    rows = [{k: v for k, v in row.items() if v is not None} for row in recorded]
    path.write_bytes(pickle.dumps(rows))


def many_rows(base: Sequence[Row], count: int, rate: int) -> Iterator[Row]:
    """Make `count` rows, `rate` a second, from some real ones."""
    chance = random.Random(1)
    start = datetime(2026, 1, 1, tzinfo=UTC)
    for number in range(1, count + 1):
        row = {
            k: v * (1 + 1e-3 * chance.gauss(0, 1)) if type(v) is float else v
            for k, v in base[number % len(base)].items()
        }
        row |= {"update": number, "time": start + timedelta(seconds=number / rate), "elapsed_s": number / rate}
        yield row


class Meter:
    """CPU time of this process while rows are written, and not while they are made."""

    def __init__(self) -> None:
        self.spent = 0.0

    def __enter__(self) -> None:
        self._began = time.process_time()

    def __exit__(self, *_: object) -> None:
        self.spent += time.process_time() - self._began


def blocks(rows: Iterator[Row]) -> Iterator[list[Row]]:
    """Group rows in small blocks: fresh from being made, as they are in a training."""
    while block := list(itertools.islice(rows, 50)):
        yield block


class _Clock:
    """Replaces the module `time` in the sink: seconds pass with the rows."""

    now = 0.0

    @classmethod
    def monotonic(cls) -> float:
        return cls.now


def write_esper(rows: Iterator[Row], folder: Path, rate: int) -> Measurement:
    from esper_recorder.storage import sink as sink_module

    vars(sink_module)["time"] = _Clock
    sink = sink_module.ParquetSink(folder)
    journal_bytes = size = number = 0
    meter = Meter()
    for block in blocks(rows):
        in_columns = [{name: [value] for name, value in row.items()} for row in block]
        with meter:
            for columns in in_columns:
                number += 1
                _Clock.now = number / rate
                sink.write("ppo_updates", columns)
                sink.commit(number)
                if sink._journal is not None:
                    size = sink._journal.size
                else:
                    journal_bytes += size
    journal_bytes += size if sink._journal is not None else 0
    with meter:
        sink.close()
    return {"cpu_s": meter.spent, "bytes": _bytes(folder), "written": _bytes(folder) + journal_bytes}


def write_jsonl(rows: Iterator[Row], folder: Path, rate: int) -> Measurement:
    dumps = json.dumps
    meter = Meter()
    with (folder / "rows.jsonl").open("w") as file:
        for block in blocks(rows):
            with meter:
                for row in block:
                    file.write(dumps({**row, "time": row["time"].isoformat()}) + "\n")
        with meter:
            file.flush()
    return {"cpu_s": meter.spent, "bytes": _bytes(folder)}


def write_tensorboard(rows: Iterator[Row], folder: Path, rate: int) -> Measurement:
    from torch.utils.tensorboard import SummaryWriter

    made = list(rows)  # its thread writes at any time, which is measured too
    began = time.process_time()
    writer = SummaryWriter(str(folder))
    for number, row in enumerate(made, 1):
        for name, value in row.items():
            if isinstance(value, int | float):
                writer.add_scalar(name, value, number)
    writer.close()
    return {"cpu_s": time.process_time() - began, "bytes": _bytes(folder)}


def write_trackio(rows: Iterator[Row], folder: Path, rate: int) -> Measurement:
    os.environ |= {"TRACKIO_DIR": str(folder), "HF_HUB_OFFLINE": "1", "GRADIO_ANALYTICS_ENABLED": "False"}
    import trackio

    made = list(rows)
    began = time.process_time()
    trackio.init(project="rows", name="run")
    for row in made:
        trackio.log({name: value for name, value in row.items() if isinstance(value, int | float)})
    trackio.finish()
    return {"cpu_s": time.process_time() - began, "bytes": _bytes(folder)}


WRITE: dict[str, Callable[[Iterator[Row], Path, int], Measurement]] = {
    "esper": write_esper,
    "jsonl": write_jsonl,
    "tensorboard": write_tensorboard,
    "trackio": write_trackio,
}


def _bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def measure(writer: str, base: Path, count: int, rate: int) -> Measurement:
    """Measure one writer in this process: CPU microseconds and bytes per row."""
    count = min(count, SLOW.get(writer, count))
    rows = many_rows(pickle.loads(base.read_bytes()), count, rate)
    with tempfile.TemporaryDirectory() as folder:
        if writer == "esper":
            first = many_rows(pickle.loads(base.read_bytes()), 2, rate)
            write_esper(first, Path(folder), rate)  # work done once per process: schemas, the first part
    gc.collect()
    gc.freeze()  # the collector should not visit the rows
    with tempfile.TemporaryDirectory() as folder:
        result = WRITE[writer](rows, Path(folder), rate)
    return {"cpu_us": result.pop("cpu_s") * 1e6 / count, **{name: value / count for name, value in result.items()}}


def run(python: str, writer: str, base: Path, count: int, rate: int) -> Measurement | str:
    """Measure one writer in a separate process. Returns the reason as text if that fails."""
    command = [python, "-W", "ignore", __file__, "--measure", writer, str(base), str(count), str(rate)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    except (OSError, subprocess.TimeoutExpired) as error:
        return str(error)
    if done.returncode:
        return (done.stderr.strip().splitlines() or ["it ended without a message"])[-1]
    measurement: Measurement = json.loads(done.stdout.strip().splitlines()[-1])
    return measurement


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--rows", type=int, nargs=len(RATES), default=[600, 6_000, 10_000], help="for each rate")
    parser.add_argument("--trackers-python", default=str(TRACKERS_PYTHON), help="interpreter that has trackio")
    parser.add_argument("--dry", action="store_true", help="print only")
    parser.add_argument("--measure", nargs=4, metavar=("WRITER", "BASE", "ROWS", "RATE"), help="one writer, once")
    arguments = parser.parse_args()
    if arguments.measure:
        writer, base, count, rate = arguments.measure
        print(json.dumps(measure(writer, Path(base), int(count), int(rate))))
        return
    measurements: dict[tuple[int, str], list[Measurement]] = {}
    absent: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "rows.pickle"
        real_rows(base)
        for turn in range(arguments.turns):
            for rate, count in zip(RATES, arguments.rows, strict=True):
                for writer in WRITERS if turn % 2 else reversed(WRITERS):
                    python = arguments.trackers_python if writer == "trackio" else sys.executable
                    measured = absent.get(writer) or run(python, writer, base, count, rate)
                    if isinstance(measured, str):
                        absent[writer] = measured
                    else:
                        measurements.setdefault((rate, writer), []).append(measured)
    rows: list[dict[str, Any]] = []
    for rate in RATES:
        middle: dict[str, Measurement] = {}
        for writer in WRITERS:
            if turns := measurements.get((rate, writer)):
                middle[writer] = {name: statistics.median(turn[name] for turn in turns) for name in turns[0]}
        for writer, values in middle.items():
            row = {"rows_per_second": rate, "writer": writer} | {k: round(v, 1) for k, v in values.items()}
            if writer != "jsonl":
                row |= {f"{k}_over_jsonl": round(values[k] / middle["jsonl"][k], 3) for k in ("cpu_us", "bytes")}
            rows.append(row)
            print(row)
    rows += [{"writer": writer, "not_measured": why} for writer, why in absent.items()]
    for writer, why in absent.items():
        print(f"{writer} was not measured: {why}")
    if not arguments.dry:
        settings = {"turns": arguments.turns, "rows": arguments.rows, "clock": "simulated"}
        print(write_result("rows", settings, rows))


if __name__ == "__main__":
    main()
