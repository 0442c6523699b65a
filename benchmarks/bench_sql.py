"""How fast SQL is answered, against DuckDB reading the JSON lines that the runs were imported from.

    ESPER_TEST_DATA=FOLDER python benchmarks/bench_sql.py [--runs 100] [--updates 1000] [--turns 5]

Two files of Esper's trainer (`esper_*.jsonl.zst` in ESPER_TEST_DATA, else the smaller excerpts of the tests) are
imported. A run of N updates repeats a file's content until it has N; the runs are copies of the two under new ids,
their JSON lines links to one file, so that DuckDB finds it in the page cache. The candidates take turns in one process.
DuckDB reads the lines in two ways: `json_extract` on the whole line (`line`), and on the field `data` of a line whose
other fields are not parsed (`fields`).
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

QUERY = "SELECT run_id, max(ratio_max), avg(value_loss) FROM ppo_updates GROUP BY 1"
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
        lines = [copy_runs(many, source, arguments.runs // len(sources), arguments.updates) for source in sources]
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
    """Measure one imported run against its JSON lines."""
    folder.mkdir()
    lines = folder / "events.jsonl"
    with pa.input_stream(str(source), compression="zstd") as stream, lines.open("wb") as file:
        shutil.copyfileobj(stream, file)
    import_file(lines, folder / "runs")
    runs = ea.open(folder / "runs")
    times = in_turns(
        4 * turns, {"ours": lambda: runs.sql(QUERY), **json_readers([lines], {"max": "ratio_max", "avg": "value_loss"})}
    )
    return {"measure": f"one run, {source.name}", "mb": round(lines.stat().st_size / 1e6, 1), **compare(times)}


def copy_runs(root: Path, source: Path, count: int, updates: int) -> list[Path]:
    """Write `count` runs of `updates` updates; return the paths of their JSON lines."""
    work = root.parent / f"work {source.name}"
    work.mkdir()
    text = pa.input_stream(str(source), compression="zstd").read()
    first = import_file(source, work / "runs")[0]
    imported = work / "runs" / first.run_id
    recorded = sum(pq.read_metadata(part).num_rows for part in (imported / "ppo_updates").glob("*.parquet"))
    times, rest = divmod(updates, recorded)
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
        table.name: repeat(pa.concat_tables(map(read_whole, sorted(table.glob("*.parquet")))), recorded, updates)
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
    """Read a part."""
    return pq.ParquetFile(path).read()


def repeat(rows: pa.Table, recorded: int, updates: int) -> pa.Table:
    """Repeat the rows of `recorded` updates until there are `updates` of them, numbered consecutively."""
    index = rows.schema.get_field_index("update")
    pieces = []
    for turn in range(-(-updates // recorded)):
        update = pc.add(rows.column("update"), turn * recorded)
        numbered = rows.set_column(index, rows.schema.field("update"), update)
        pieces.append(numbered.filter(pc.less_equal(update, updates)))
    return pa.concat_tables(pieces)


def many_runs(root: Path, lines: list[Path], updates: int) -> list[dict[str, Any]]:
    """Measure one query, and one over every PPO column, of many runs against all their JSON lines."""
    runs = ea.open(root)
    size = sum(path.stat().st_size for path in lines)
    label = f"{len(lines)} runs of {updates:,} updates"
    began = time.perf_counter()
    runs.sql(QUERY)
    first = time.perf_counter() - began
    ours = in_turns(5, {"ours": lambda: runs.sql(QUERY)})
    theirs = in_turns(1, json_readers(lines, {"max": "ratio_max", "avg": "value_loss"}))
    rows = [
        {
            "measure": label,
            "gb": round(size / 1e9, 2),
            **compare(ours | theirs),
            "first_seconds": round(first, 3),
        }
    ]
    everything = every_column(runs)
    ours = in_turns(3, {"ours": lambda: runs.sql(everything)})
    keys = keys_of(lines)
    theirs = in_turns(1, {"fields": functools.partial(every_key, lines, keys)})
    measure = f"every number of the PPO updates of {label}"
    rows.append({"measure": measure, "keys": len(keys), **compare(ours | theirs)})
    return rows


def every_column(runs: ea.Runs) -> str:
    """SQL for the maximum of each recorded number, per run, in all the tables that an update is imported to."""
    parts = []
    tables = {"ppo_updates": "", "esper_updates": "", "heads": ", head", "recurrent_state": ", layer, kind"}
    for table, keys in tables.items():
        frame = runs.table(table).collect()
        names = [name for name in frame.columns if frame[name].dtype.is_numeric() and frame[name].count()]
        largest = ", ".join(f'max("{name}") AS "{table} {name}"' for name in names)
        parts.append(f"(SELECT run_id{keys}, {largest} FROM {table} GROUP BY ALL) AS {table}")
    return f"SELECT * FROM {parts[0]} " + " ".join(f"LEFT JOIN {part} USING (run_id)" for part in parts[1:])


def every_key(lines: list[Path], keys: list[str]) -> object:
    """Read the same numbers with DuckDB, parsing each line once for all keys."""
    paths = ", ".join(f"'$.{key}'" for key in keys)
    listed = ", ".join(f"'{path}'" for path in lines)
    terms = ", ".join(f"max(CAST(fields[{index}] AS DOUBLE))" for index in range(1, len(keys) + 1))
    shape = "{event_type: 'VARCHAR', data: 'JSON'}"
    source = f"read_json([{listed}], format = 'newline_delimited', columns = {shape}, filename = true)"
    return duckdb.execute(
        f"SELECT filename, {terms} FROM (SELECT filename, json_extract(data, [{paths}]) AS fields FROM {source} "
        "WHERE event_type = 'PPO_UPDATE_COMPLETED') GROUP BY 1"
    ).fetchall()


def keys_of(lines: list[Path]) -> list[str]:
    """Return the keys of the numeric fields in the updates of these files."""
    keys: dict[str, None] = {}
    for path in {path.resolve() for path in lines}:
        with path.open("rb") as file:
            line = next(line for line in file if b'"PPO_UPDATE_COMPLETED"' in line)
        data = json.loads(line)["data"]
        keys.update(dict.fromkeys(k for k, v in data.items() if isinstance(v, int | float) and not isinstance(v, bool)))
    return list(keys)


def json_readers(lines: list[Path], aggregates: dict[str, str]) -> dict[str, Callable[[], object]]:
    """Return the two ways of DuckDB to read JSON lines, by name."""
    connection = duckdb.connect()
    listed = ", ".join(f"'{path}'" for path in lines)

    def read(way: str) -> object:
        base = "json" if way == "line" else "data"
        prefix = "$.data." if way == "line" else "$."
        terms = [
            f"{function}(CAST(json_extract({base}, '{prefix}{key}') AS DOUBLE))" for function, key in aggregates.items()
        ]
        source = f"read_json_objects([{listed}], filename = true)"
        kind = "json_extract_string(json, '$.event_type')"
        if way == "fields":
            shape = "{event_type: 'VARCHAR', data: 'JSON'}"
            source = f"read_json([{listed}], format = 'newline_delimited', columns = {shape}, filename = true)"
            kind = "event_type"
        where = f"WHERE {kind} = 'PPO_UPDATE_COMPLETED'"
        return connection.execute(f"SELECT filename, {', '.join(terms)} FROM {source} {where} GROUP BY 1").fetchall()

    return {way: functools.partial(read, way) for way in ("line", "fields")}


def in_turns(turns: int, calls: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Return the best time of each call; the calls take turns."""
    best = dict.fromkeys(calls, float("inf"))
    for _ in range(turns):
        for name, call in calls.items():
            began = time.perf_counter()
            call()
            best[name] = min(best[name], time.perf_counter() - began)
    return best


def compare(times: dict[str, float]) -> dict[str, Any]:
    """Return the seconds, and the time of the others over ours."""
    seconds = {f"{name}_seconds": round(value, 5) for name, value in times.items()}
    return seconds | {f"times_{name}": round(v / times["ours"], 1) for name, v in times.items() if name != "ours"}


def cold_start(root: Path, turns: int) -> dict[str, Any]:
    """Measure the command's first answer, in a fresh process, against importing DuckDB alone."""
    esper = str(Path(sys.executable).with_name("esper"))
    calls = {"duckdb": [sys.executable, "-c", "import duckdb"], "sql": [esper, "sql", str(root), QUERY]}
    calls["runs"] = [esper, "sql", str(root), "SELECT * FROM runs"]
    times: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(turns):
        for name, words in calls.items():
            began = time.perf_counter()
            subprocess.run(words, check=True, capture_output=True)
            times[name].append(time.perf_counter() - began)
    middle = {name: statistics.median(seconds) for name, seconds in times.items()}
    return {
        "measure": f"esper sql, cold start, {len(list(root.iterdir()))} runs",
        "duckdb_seconds": round(middle["duckdb"], 3),
        "more_seconds": round(middle["sql"] - middle["duckdb"], 3),
        "more_seconds_for_the_view_runs": round(middle["runs"] - middle["duckdb"], 3),
        "statistic": "median of turns",
    }


if __name__ == "__main__":
    main()
