"""How fast questions are answered in SQL: against DuckDB reading the JSON lines a run was imported from.

    ESPER_TEST_DATA=FOLDER python benchmarks/bench_sql.py [--runs 100] [--updates 1000] [--turns 5]

Two files of Esper's trainer (`esper_*.jsonl.zst` in ESPER_TEST_DATA; else the excerpts of the tests, which are smaller)
are imported. A run of so many updates is a file's content as often as it takes; the runs are copies of the two under
new ids, their JSON lines links to one file, so that DuckDB finds it in the page cache each time. What is compared takes
turns in one process; DuckDB reads the lines in two ways, `json_extract` on the whole line, and on the field `data` of a
line whose other fields are not parsed.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from results_file import write_result

import esper_analytics as ea
from esper_analytics.importers.esper_jsonl import import_file
from esper_recorder.storage.parquet import write_part

QUESTION = "SELECT run_id, max(ratio_max), avg(value_loss) FROM ppo_updates GROUP BY 1"
COPIES = Path(__file__).parents[1] / "tests" / "data"


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--runs", type=int, default=100)
    parser.add_argument("--updates", type=int, default=1000)
    parser.add_argument("--turns", type=int, default=5)
    arguments = parser.parse_args()
    sources = sorted(Path(os.environ.get("ESPER_TEST_DATA", COPIES)).glob("esper_*.jsonl.zst"))
    rows: list[dict[str, Any]] = []
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for source in sources:
            rows.append(one_run(root / source.name, source, arguments.turns))
        many = root / "many"
        many.mkdir()
        lines = [copies(many, source, arguments.runs // len(sources), arguments.updates) for source in sources]
        rows += many_runs(many, [path for paths in lines for path in paths], arguments.updates)
        rows.append(cold_start(many, arguments.turns))
    for row in rows:
        print(row)
    settings = vars(arguments) | {
        "sources": [source.name for source in sources],
        "statistic": "best of turns, four times as many for one run",
    }
    print(write_result("sql", settings, rows))


def one_run(folder: Path, source: Path, turns: int) -> dict[str, Any]:
    """One imported run against its JSON lines."""
    folder.mkdir()
    lines = folder / "events.jsonl"
    with pa.input_stream(str(source), compression="zstd") as stream, lines.open("wb") as file:
        shutil.copyfileobj(stream, file)
    import_file(lines, folder / "runs")
    runs = ea.open(folder / "runs")
    found = in_turns(
        4 * turns, {"ours": lambda: runs.sql(QUESTION), **of_json([lines], {"max": "ratio_max", "avg": "value_loss"})}
    )
    return {"measure": f"one run, {source.name}", "mb": round(lines.stat().st_size / 1e6, 1), **compared(found)}


def copies(root: Path, source: Path, count: int, updates: int) -> list[Path]:
    """So many runs of so many updates, and the JSON lines of each."""
    work = root.parent / f"work {source.name}"
    work.mkdir()
    text = pa.input_stream(str(source), compression="zstd").read()
    first = import_file(source, work / "runs")[0][0]
    imported = work / "runs" / first.run_id
    own = sum(pq.read_metadata(part).num_rows for part in (imported / "ppo_updates").glob("*.parquet"))
    times, rest = divmod(updates, own)
    lines = work / "events.jsonl"
    with lines.open("wb") as file:
        for _ in range(times):
            file.write(text)
        left = rest
        for line in text.splitlines(keepends=True):
            if not left:
                break
            file.write(line)
            left -= b'"PPO_UPDATE_COMPLETED"' in line
    tables = {
        table.name: repeated(pa.concat_tables(map(read_whole, sorted(table.glob("*.parquet")))), own, updates)
        for table in sorted(imported.iterdir())
        if any(table.glob("*.parquet"))
    }
    manifest = json.loads((imported / "run.json").read_text())
    paths = []
    for number in range(count):
        run_id = f"{manifest['name']}-20260101T000000Z-{number:06d}"
        folder = root / run_id
        for table, rows in tables.items():
            ids = pa.array([run_id]).take(pa.array([0] * rows.num_rows))
            renamed = rows.set_column(rows.schema.get_field_index("run_id"), rows.schema.field("run_id"), ids)
            write_part(folder / table / "part-a1-r0-000001.parquet", table, renamed, durable=False)
        shutil.copytree(imported / "rules", folder / "rules")
        (folder / "run.json").write_text(json.dumps(manifest | {"run_id": run_id}))
        path = root.parent / "lines" / f"{run_id}.jsonl"
        path.parent.mkdir(exist_ok=True)
        path.symlink_to(lines)
        paths.append(path)
    return paths


def read_whole(path: Path) -> pa.Table:
    """A part's rows."""
    return pq.ParquetFile(path).read()


def repeated(rows: pa.Table, own: int, updates: int) -> pa.Table:
    """Rows of so many updates: those of `own` updates again and again, numbered on."""
    place = rows.schema.get_field_index("update")
    pieces = []
    for turn in range(-(-updates // own)):
        number = pc.add(rows.column("update"), turn * own)
        pieces.append(
            rows.set_column(place, rows.schema.field("update"), number).filter(pc.less_equal(number, updates))
        )
    return pa.concat_tables(pieces)


def many_runs(root: Path, lines: list[Path], updates: int) -> list[dict[str, Any]]:
    """One question, and every PPO column, of many runs against all their JSON lines."""
    runs = ea.open(root)
    size = sum(path.stat().st_size for path in lines)
    label = f"{len(lines)} runs of {updates:,} updates"
    began = time.perf_counter()
    runs.sql(QUESTION)
    first = time.perf_counter() - began
    ours = in_turns(5, {"ours": lambda: runs.sql(QUESTION)})
    theirs = in_turns(1, of_json(lines, {"max": "ratio_max", "avg": "value_loss"}))
    rows = [
        {
            "measure": label,
            "gb": round(size / 1e9, 2),
            **compared(ours | theirs),
            "first_seconds": round(first, 3),
        }
    ]
    everything = every_column(runs)
    ours = in_turns(3, {"ours": lambda: runs.sql(everything)})
    keys = keys_of(lines)
    theirs = in_turns(1, {"fields": functools.partial(every_key, lines, keys)})
    measure = f"every number of the PPO updates of {label}"
    rows.append({"measure": measure, "keys": len(keys), **compared(ours | theirs)})
    return rows


def every_column(runs: ea.Runs) -> str:
    """The largest of each number recorded, per run, in all the tables that an update is imported to."""
    parts = []
    tables = {"ppo_updates": "", "esper_updates": "", "heads": ", head", "recurrent_state": ", layer, kind"}
    for table, keys in tables.items():
        frame = runs.table(table).collect()
        names = [name for name in frame.columns if frame[name].dtype.is_numeric() and frame[name].count()]
        largest = ", ".join(f'max("{name}") AS "{table} {name}"' for name in names)
        parts.append(f"(SELECT run_id{keys}, {largest} FROM {table} GROUP BY ALL) AS {table}")
    return f"SELECT * FROM {parts[0]} " + " ".join(f"LEFT JOIN {part} USING (run_id)" for part in parts[1:])


def every_key(lines: list[Path], keys: list[str]) -> object:
    """DuckDB's way of the same, each line's fields parsed once for all keys."""
    paths = ", ".join(f"'$.{key}'" for key in keys)
    listed = ", ".join(f"'{path}'" for path in lines)
    terms = ", ".join(f"max(CAST(found[{place}] AS DOUBLE))" for place in range(1, len(keys) + 1))
    shape = "{event_type: 'VARCHAR', data: 'JSON'}"
    source = f"read_json([{listed}], format = 'newline_delimited', columns = {shape}, filename = true)"
    return duckdb.execute(
        f"SELECT filename, {terms} FROM (SELECT filename, json_extract(data, [{paths}]) AS found FROM {source} "
        "WHERE event_type = 'PPO_UPDATE_COMPLETED') GROUP BY 1"
    ).fetchall()


def keys_of(lines: list[Path]) -> list[str]:
    """The keys of numbers in the updates of these files."""
    keys: dict[str, None] = {}
    for path in {path.resolve() for path in lines}:
        with path.open("rb") as file:
            line = next(line for line in file if b'"PPO_UPDATE_COMPLETED"' in line)
        data = json.loads(line)["data"]
        keys.update(dict.fromkeys(k for k, v in data.items() if isinstance(v, int | float) and not isinstance(v, bool)))
    return list(keys)


def of_json(lines: list[Path], asked: dict[str, str]) -> dict[str, Callable[[], object]]:
    """DuckDB over JSON lines in two ways: how each is called."""
    connection = duckdb.connect()
    listed = ", ".join(f"'{path}'" for path in lines)

    def ask(way: str) -> object:
        base = "json" if way == "line" else "data"
        prefix = "$.data." if way == "line" else "$."
        terms = [
            f"{function}(CAST(json_extract({base}, '{prefix}{key}') AS DOUBLE))" for function, key in asked.items()
        ]
        source = f"read_json_objects([{listed}], filename = true)"
        kind = "json_extract_string(json, '$.event_type')"
        if way == "fields":
            shape = "{event_type: 'VARCHAR', data: 'JSON'}"
            source = f"read_json([{listed}], format = 'newline_delimited', columns = {shape}, filename = true)"
            kind = "event_type"
        where = f"WHERE {kind} = 'PPO_UPDATE_COMPLETED'"
        return connection.execute(f"SELECT filename, {', '.join(terms)} FROM {source} {where} GROUP BY 1").fetchall()

    return {way: functools.partial(ask, way) for way in ("line", "fields")}


def in_turns(turns: int, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """The best time of each call, all of them called in turn."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(turns):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def compared(found: dict[str, float]) -> dict[str, Any]:
    """Seconds, and how many times ours the others take."""
    seconds = {f"{name}_seconds": round(value, 5) for name, value in found.items()}
    return seconds | {f"times_{name}": round(v / found["ours"], 1) for name, v in found.items() if name != "ours"}


def cold_start(root: Path, turns: int) -> dict[str, Any]:
    """The command's first answer, in a process of its own, against importing DuckDB alone."""
    esper = str(Path(sys.executable).with_name("esper"))
    calls = {"duckdb": [sys.executable, "-c", "import duckdb"], "sql": [esper, "sql", str(root), QUESTION]}
    calls["runs"] = [esper, "sql", str(root), "SELECT * FROM runs"]
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, words in calls.items():
            began = time.perf_counter()
            subprocess.run(words, check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    middle = {name: statistics.median(own) for name, own in times.items()}
    return {
        "measure": f"esper sql, cold start, {len(list(root.iterdir()))} runs",
        "duckdb_seconds": round(middle["duckdb"], 3),
        "more_seconds": round(middle["sql"] - middle["duckdb"], 3),
        "more_seconds_for_the_view_runs": round(middle["runs"] - middle["duckdb"], 3),
        "statistic": "median of turns",
    }


if __name__ == "__main__":
    main()
