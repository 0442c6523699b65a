"""Files changed at random, and everything that reads them: run in a child process by `test_soak`.

    python -m tests.soak_jobs FOLDER        jobs on stdin (`parts 17`), one line of JSON per job on stdout

A job changes one file of a run, or of what is imported, beside a sound run, and has commands read it. It fails if a
command ends by an exception, if the sound run is not read, or if a value is wrong and nothing says so.
"""

from __future__ import annotations

import json
import math
import os
import random
import resource
import shutil
import struct
import sys
import time
import traceback
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

import esper_analytics as ea
from esper_analytics.maintenance.verification import verify
from esper_recorder.contract.rules.ruleset import load_profile
from esper_recorder.contract.tables import columns
from esper_recorder.storage import journal
from esper_recorder.storage.arrow_batches import columns_to_table
from esper_recorder.storage.journal import read_journal
from esper_recorder.storage.parquet import write_part
from tests.builders import add_journal, run_id_of, write_run
from tests.crafted_manifests import VALUES
from tests.support import esper

UPDATES = 8
TABLES_WRITTEN = (
    *("ppo_updates", "minibatches", "heads", "ratio_histograms", "ratio_exemplars", "gradient_layers"),
    *("recurrent_state", "episodes", "alarms", "gaps", "scalars", "raw_events"),
)
SUSPECT = run_id_of("suspect")
SOUND = run_id_of("sound")
MEMORY = 2**30


# --- what is changed --------------------------------------------------------------------------------------------------


def row_of(table: str, update: int) -> dict[str, Any]:
    """A row with a value in every column."""
    values: dict[str, Any] = {
        "int64": update,
        "float64": 1.0 + update / 8,
        "string": "a text",
        "bool": True,
        "timestamp[us, UTC]": datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=update),
        "list<int64>": [update] * 87,
        "list<float64>": [0.5, math.nan],
        "list<string>": ["a", "b"],
    }
    row = {column.name: values[column.type] for column in columns(table)}
    named: dict[str, Any] = {"run_id": SUSPECT, "attempt": 1, "rank": 0, "update": update}
    if table == "gaps":
        named |= {"table_name": "*", "reason": "queue_full", "first_update": UPDATES + 1, "last_update": UPDATES + 2}
    if table == "alarms":
        named |= {"rule": "ratio_explosion", "severity": "critical", "key": ""}
    return row | named


def make_base(folder: Path) -> None:
    """Make two runs, and a file of each format that is imported."""
    rows = {table: [row_of(table, update) for update in range(1, UPDATES + 1)] for table in TABLES_WRITTEN}
    rows["gaps"] = rows["gaps"][:1]
    text = load_profile("default").text
    path = write_run(folder / "runs", "suspect", tables=rows, rules=text, profile="default")
    late = [row_of("ppo_updates", update) for update in range(UPDATES + 3, UPDATES + 9)]
    add_journal(path, {"ppo_updates": late, "minibatches": [row_of("minibatches", UPDATES + 3)]}, seq=9)
    (path / "load_report.json").write_text(json.dumps({"source": "x", "kinds": [{"kind": "a", "read": 1}]}))
    write_run(folder / "runs", "sound", updates=[{"ratio_max": 5.5, "approx_kl": 0.5}], total_updates=2)
    sources = folder / "sources"
    sources.mkdir()
    header = "time/total_timesteps,time/time_elapsed,time/iterations,rollout/ep_rew_mean,train/approx_kl,train/loss"
    lines = [f"{64 * n},{n},{n},{20.5 + n},{'' if n < 2 else 0.01 * n},{-0.5 / n}" for n in range(1, 20)]
    (sources / "progress.csv").write_text("\n".join([header, *lines, ""]))
    from tests.analytics.importers.event_logs import updates, write_log
    from tests.esper_files import ALL_KINDS, content

    write_log(sources / "tensorboard", [(t, s, v + s) for t, s, v in updates(*range(20, 400, 20))])
    (sources / "events.jsonl").write_bytes(b"".join(content(path) for path in ALL_KINDS))


def spoil_bytes(data: bytes, chance: random.Random, start: int = 0) -> bytes:
    """Change some bytes at random, from `start` on."""
    changed = bytearray(data)
    place = chance.randrange(start, max(len(data), start + 1))
    kind = chance.randrange(8)
    if kind < 3:
        for _ in range(chance.randint(1, 3)):
            changed[chance.randrange(start, len(data))] ^= 1 << chance.randrange(8)
    elif kind == 3:
        changed[place : place + chance.randint(1, 16)] = chance.randbytes(chance.randint(0, 16))
    elif kind == 4:
        del changed[place:]
    elif kind == 5:
        del changed[place : place + chance.randint(1, 200)]
    elif kind == 6:
        changed[place:place] = changed[chance.randrange(start, len(data)) :][: chance.randint(1, 4000)]
    else:
        width = chance.choice((1, 2, 4, 8))  # a number of another size
        value = chance.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2 ** (8 * width - 1) - 1))
        changed[place : place + width] = value.to_bytes(width, chance.choice(("little", "big")))
    return bytes(changed)


def spoil_text(data: bytes, chance: random.Random) -> bytes:
    """Change a text: bytes at random, or a value of it into one from a stranger."""
    if chance.random() < 0.3:
        return spoil_bytes(data, chance)
    tokens = [token for token in _tokens(data) if token[1] > token[0]]
    start, end = chance.choice(tokens)
    value = chance.choice((*VALUES, "1e300", "12345678901234567890", "-5", "null", "\t", "," * 50, "\n" * 5, "=cmd|1"))
    return data[:start] + value.encode() + data[end:]


def _tokens(data: bytes) -> list[tuple[int, int]]:
    """Places of the numbers, texts and words in a text."""
    import re

    return [match.span() for match in re.finditer(rb'"[^"\n]*"|-?[0-9][0-9.eE+-]*|[A-Za-z_]+', data)] or [
        (0, len(data))
    ]


NUMBERS = (0, 1, -1, 2**31, 300_000_000, 2**53 + 1, 2**62, 2**63 - 1, -(2**63))
FLOATS = (0.0, -1.0, math.nan, math.inf, -math.inf, 1e308, 5e-324, -1e-300)
WORDS = ("", "x", "\x1b[31m", "a\x00b", "\u202e", "<script>", "=1+1", "y" * 10_000, "critical", "ratio_explosion", "🙂")
TIMES = (datetime(1, 1, 1, tzinfo=UTC), datetime(9999, 12, 31, tzinfo=UTC), datetime(1970, 1, 1, tzinfo=UTC))


def spoil_rows(path: Path, table: str, chance: random.Random) -> None:
    """Write a part that is sound, of rows that are not."""
    rows = [row_of(table, update) for update in range(1, 5)]
    for _ in range(chance.randint(1, 12)):
        row = chance.choice(rows)
        column = chance.choice([column for column in columns(table) if column.name not in ("run_id",)])
        kinds: dict[str, Callable[[], Any]] = {
            "int64": lambda: chance.choice(NUMBERS),
            "float64": lambda: chance.choice(FLOATS),
            "string": lambda: chance.choice(WORDS),
            "bool": lambda: chance.choice((True, False)),
            "timestamp[us, UTC]": lambda: chance.choice(TIMES),
            "list<int64>": lambda: [chance.choice(NUMBERS) for _ in range(chance.choice((0, 1, 87, 1000)))],
            "list<float64>": lambda: [chance.choice(FLOATS) for _ in range(chance.choice((0, 1, 87)))],
            "list<string>": lambda: [chance.choice(WORDS) for _ in range(chance.choice((0, 1, 5)))],
        }
        row[column.name] = None if chance.random() < 0.2 else kinds[column.type]()
    write_part(path, table, columns_to_table(table, {name: [row[name] for row in rows] for name in rows[0]}))


# --- what reads it ----------------------------------------------------------------------------------------------------

COMMANDS: tuple[tuple[str, ...], ...] = (
    ("runs",),
    ("show", "--run", "suspect"),
    ("sql", "SELECT * FROM ppo_updates ORDER BY ALL"),
    ("sql", "SELECT * FROM minibatches_all"),
    ("sql", "SELECT * FROM runs"),
    ("query", "ratio_exceeded"),
    ("replay",),
    ("replay", "--rules", "esper-review", "--show", "coverage"),
    ("replay", "--against", "default"),
    ("forensics", "--run", "suspect", "--update", "3"),
    ("report", "-o", "report.json", "--rules", "default"),
    ("plot", "--run", "suspect", "-o", "a.png"),
    ("plot", "--run", "suspect", "--kind", "ratio", "-o", "b.png"),
    ("plot", "--run", "suspect", "--kind", "gradients", "-o", "c.png"),
    ("recover",),
    ("compact",),
)
SLOW = ("report", "plot")
ALLOWED = (0, 1, 2, 3, 4)


class Wrong(Exception):
    """A job found something that must not be."""


def command(runs: Path, arguments: tuple[str, ...]) -> str:
    """Run a command in this process; return what it printed. Raises Wrong."""
    words = [str(runs.parent / word) if word.endswith((".json", ".png")) else word for word in arguments[1:]]
    return call(arguments[0], runs, *words)


def call(*arguments: object) -> str:
    result = esper(*arguments, code=None)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        lines = traceback.format_exception(result.exception)
        raise Wrong(f"{arguments[0]}: {''.join(lines)[-1500:]}")
    if result.exit_code not in ALLOWED or "Traceback" in result.output:
        raise Wrong(f"{arguments}: exit code {result.exit_code}: {result.output[-500:]}")
    return result.output


def read_runs(runs: Path, chance: random.Random) -> None:
    """Have a command read the runs, the sound one among them."""
    quick = [arguments for arguments in COMMANDS if arguments[0] not in SLOW]
    command(runs, chance.choice(quick if chance.random() < 0.8 else COMMANDS))
    answer = ea.open(runs).select(SOUND).table("ppo_updates").collect()
    if answer["ratio_max"].to_list() != [5.5]:
        raise Wrong("the sound run was not read")


def named(runs: Path) -> set[str]:
    """The files that verify has a problem with. Raises Wrong if it does not read the sound run."""
    outcome = verify(runs)
    if SOUND not in outcome.frame["run_id"].to_list():
        raise Wrong("verify did not read the sound run")
    return {str(problem.path) for problem in outcome.problems}


def stored(path: Path) -> list[Any] | None:
    """The rows of a part as a reader that checks nothing gets them; None if it gets an error."""
    try:
        return [repr(row) for row in pq.ParquetFile(path).read().to_pylist()]
    except (OSError, ValueError, KeyError, pa.ArrowException):  # KeyError: a time zone of no such name
        return None


def job_manifest(folder: Path, chance: random.Random) -> None:
    spoil(folder / "runs" / SUSPECT / "run.json", chance, spoil_text)
    named(folder / "runs")
    read_runs(folder / "runs", chance)


def job_rules(folder: Path, chance: random.Random) -> None:
    [path] = (folder / "runs" / SUSPECT / "rules").iterdir()
    spoil(path, chance, spoil_text)
    command(folder / "runs", ("replay",))
    call("rules", "check", path) if chance.random() < 0.5 else call("replay", folder / "runs", "--rules", path)


def job_report(folder: Path, chance: random.Random) -> None:
    spoil(folder / "runs" / SUSPECT / "load_report.json", chance, spoil_text)
    command(folder / "runs", ("show", "--run", "suspect"))


def job_part(folder: Path, chance: random.Random) -> None:
    """A part whose bytes change: if its rows do, verify names it."""
    path = chance.choice(sorted((folder / "runs" / SUSPECT).glob("*/part-*.parquet")))
    data, rows = path.read_bytes(), stored(path)
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")
    spoil(path, chance, lambda data, chance: spoil_bytes(data, chance, footer if chance.random() < 0.4 else 0))
    if path.read_bytes() == data:
        return
    problems = named(folder / "runs")
    if stored(path) != rows and str(path) not in problems:
        raise Wrong(f"{path.parent.name}/{path.name} holds other rows, and verify does not say so")
    read_runs(folder / "runs", chance)


def job_journal(folder: Path, chance: random.Random) -> None:
    """A journal whose bytes change: what is read of it was written, and verify says if that is not all."""
    path = folder / "runs" / SUSPECT / "journal" / "a1-r0-000009.journal"

    def rows() -> list[str]:
        batches = read_journal(path).batches
        return [repr((table, row)) for table in sorted(batches) for b in batches[table] for row in b.to_pylist()]

    before = rows()
    data = path.read_bytes()
    spoil(path, chance, spoil_bytes)
    if path.read_bytes() == data:
        return
    problems = named(folder / "runs")
    try:
        after = rows()
    except ValueError:
        after = []
    if not set(after) <= set(before) or len(set(after)) < len(after):
        raise Wrong("the journal gives rows that were not written to it")
    run_path = str(folder / "runs" / SUSPECT)
    if len(after) < len(before) and not {str(path), run_path} & problems:
        raise Wrong("the journal gives fewer rows, and verify does not say so")
    read_runs(folder / "runs", chance)


def job_frames(folder: Path, chance: random.Random) -> None:
    """A journal whose frames have fitting checksums, and one of them damaged content."""
    path = folder / "runs" / SUSPECT / "journal" / "a1-r0-000009.journal"
    data = path.read_bytes()
    frames = [frame for frame in journal._frames(data) if isinstance(frame, journal._Frame)]
    changed = chance.choice(frames)
    pieces: list[bytes] = [journal.MAGIC]
    for frame in frames:
        payload = data[frame.start : frame.start + frame.length]
        payload = spoil_bytes(payload, chance) if frame is changed else payload
        pieces += map(bytes, journal._frame(frame.kind, frame.number, payload))
    path.write_bytes(b"".join(pieces))
    named(folder / "runs")
    command(folder / "runs", chance.choice((("recover",), ("replay",), ("sql", "SELECT * FROM minibatches"))))


def job_rows(folder: Path, chance: random.Random) -> None:
    table = chance.choice(TABLES_WRITTEN)
    [path, *_] = sorted((folder / "runs" / SUSPECT / table).glob("part-*"))
    spoil_rows(path, table, chance)
    named(folder / "runs")
    read_runs(folder / "runs", chance)


def job_csv(folder: Path, chance: random.Random) -> None:
    spoil(folder / "sources" / "progress.csv", chance, spoil_text)
    import_and_read(folder, "sb3-csv", folder / "sources" / "progress.csv", chance)


def job_events(folder: Path, chance: random.Random) -> None:
    spoil(folder / "sources" / "events.jsonl", chance, spoil_text)
    import_and_read(folder, "esper-jsonl", folder / "sources" / "events.jsonl", chance)


def job_tensorboard(folder: Path, chance: random.Random) -> None:
    """An event file: records carry checksums, so no value may be read that was not written."""
    from esper_analytics.importers.event_files import read_event_file
    from tests.analytics.importers.event_logs import framed

    [path] = (folder / "sources" / "tensorboard").iterdir()
    whole = read_event_file(path)
    written = {(scalar.tag, scalar.step, scalar.value) for scalar in whole.scalars}
    if chance.random() < 0.5:
        data = path.read_bytes()
        spoil(path, chance, spoil_bytes)
        file = read_event_file(path)
        if not {(scalar.tag, scalar.step, scalar.value) for scalar in file.scalars} <= written:
            raise Wrong("the event file gives values that were not written")
        shorter = data.startswith(path.read_bytes())  # at the end of a record: a log that is still written
        if len(file.scalars) < len(written) and not (file.damaged or file.torn_bytes or shorter):
            raise Wrong("the event file gives fewer values, and no damage")
    else:  # records with valid checksums of damaged content
        data = path.read_bytes()
        position, pieces = 0, []
        while position < len(data):
            length = struct.unpack("<Q", data[position : position + 8])[0]
            record = data[position + 12 : position + 12 + length]
            pieces.append(framed(spoil_bytes(record, chance) if chance.random() < 0.2 and record else record))
            position += length + 16
        path.write_bytes(b"".join(pieces))
    import_and_read(folder, "tensorboard", folder / "sources" / "tensorboard", chance)


def import_and_read(folder: Path, kind: str, source: Path, chance: random.Random) -> None:
    shutil.rmtree(folder / "runs" / SUSPECT)
    call("import", kind, source, "--to", folder / "runs")
    command(folder / "runs", chance.choice([c for c in COMMANDS if "suspect" not in c and c[0] not in SLOW]))
    named(folder / "runs")


JOBS: dict[str, tuple[Callable[[Path, random.Random], None], int]] = {
    "run.json": (job_manifest, 400),
    "journal": (job_journal, 200),
    "frames": (job_frames, 100),
    "part": (job_part, 500),
    "rows": (job_rows, 150),
    "rules.toml": (job_rules, 200),
    "load_report.json": (job_report, 50),
    "progress.csv": (job_csv, 250),
    "tfevents": (job_tensorboard, 250),
    "events.jsonl": (job_events, 100),
}
"""Kind -> the job and how many the soak has of it."""


def spoil(path: Path, chance: random.Random, change: Callable[[bytes, random.Random], bytes]) -> None:
    path.write_bytes(change(path.read_bytes(), chance))


def run(base: Path, kind: str, seed: int) -> dict[str, Any]:
    """Do one job in a copy of the base; return what went wrong, if anything did, and what it took."""
    folder = base.parent / f"job-{os.getpid()}"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(base, folder)
    began, error = time.process_time(), None
    try:
        JOBS[kind][0](folder, random.Random(f"{kind} {seed}"))
    except Wrong as wrong:
        error = str(wrong)
    except KeyboardInterrupt:
        raise
    except BaseException as raised:  # Polars' panics among them
        error = "".join(traceback.format_exception(raised))[-1500:]
    return {"kind": kind, "seed": seed, "error": error, "seconds": time.process_time() - began, "bytes": peak()}


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def main() -> None:
    base = Path(sys.argv[1])
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    for kind in JOBS:  # load everything once, so that what a job takes is its own
        run(base, kind, 0)
    print(json.dumps({"ready": peak()}), flush=True)
    for line in sys.stdin:
        kind, seed = line.split()
        print(json.dumps(run(base, kind, int(seed))), flush=True)


if __name__ == "__main__":
    main()
