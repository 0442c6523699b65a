"""How fast Esper's JSON lines are imported, and how small they become, compared with DuckDB extracting the same fields.

DuckDB reads the lines once and writes a Parquet file per kind of event with every field that ever has a value there,
cast to its type: by a `json_extract_string` for each field, as views over such lines are written (`duckdb`), and by one
for all fields of a line, which parses it once (`duckdb_one_call`). The list of the fields is made beforehand and not
measured. DuckDB does less than the import: nothing is checked or accounted for, lists stay JSON text, and
a key that appears later is missed. Each measure runs in a fresh process, in turns; the best of several counts.

    python benchmarks/bench_import.py [--turns 5] [FILE.jsonl.zst ...]

Without files: those in the folder that ESPER_TEST_DATA names, else the small ones of the tests.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
_SQL_TYPES = {bool: "BOOLEAN", int: "HUGEINT", float: "DOUBLE"}  # the seeds of random streams need 64 bits unsigned

Fields = dict[tuple[str, str], dict[str, str]]
"""(event_type, kind) -> JSON path -> SQL type."""


def fields_of(path: Path) -> Fields:
    """Return the fields that have a value in some event of a file, also inside mappings; a list is one field."""
    fields: Fields = {}
    for line in path.read_text().splitlines():
        event = json.loads(line)
        data = event["data"] or {}
        _add(fields.setdefault((event["event_type"], str(data.get("kind", ""))), {}), "$", data)
    return fields


def _add(fields: dict[str, str], prefix: str, data: dict[str, Any]) -> None:
    for key, value in data.items():
        json_path = f'{prefix}."{key}"'
        if isinstance(value, dict):
            _add(fields, json_path, value)
        elif value is not None:
            kind = _SQL_TYPES.get(type(value), "VARCHAR")
            fields[json_path] = "DOUBLE" if fields.get(json_path) == "DOUBLE" else kind


def extract(path: Path, out: Path, fields: Fields, *, one_call: bool) -> None:
    """Write the fields of each kind of event as a Parquet file, with DuckDB.

    Args:
        one_call: extract all fields of a line in one `json_extract_string`; else one for each field, as views do.
    """
    import duckdb

    connection = duckdb.connect(config={"threads": 2})
    envelope = ("event_id", "event_type", "timestamp", "seed_id", "slot_id", "message", "severity", "group_id")
    columns = ", ".join(f"{name}: 'VARCHAR'" for name in envelope)
    connection.execute(
        f"CREATE TEMP TABLE lines AS SELECT * FROM read_json('{path}', format = 'newline_delimited', "
        f"columns = {{{columns}, epoch: 'BIGINT', data: 'JSON'}})"
    )
    for number, ((event_type, kind), types) in enumerate(fields.items()):
        paths = ", ".join(f"'{json_path}'" for json_path in types)
        extracted = f", json_extract_string(data, [{paths}]) AS v" if one_call else ", NULL AS v"
        casts = ""
        for place, (json_path, type_) in enumerate(types.items(), 1):
            value = f"v[{place}]" if one_call else f"json_extract_string(data, '{json_path}')"
            casts += f', CAST({value} AS {type_}) AS "{json_path[2:].replace(chr(34), "")}"'
        kept = f"event_type = '{event_type}'" + (f" AND json_extract_string(data, '$.kind') = '{kind}'" if kind else "")
        connection.execute(
            f"COPY (SELECT CAST(timestamp AS TIMESTAMPTZ) AS time, * EXCLUDE (timestamp, data, v){casts} FROM "
            f"(SELECT *{extracted} FROM lines WHERE {kept})) "
            f"TO '{out / f'{number}.parquet'}' (FORMAT parquet, COMPRESSION zstd)"
        )


def once(who: str, path: Path) -> dict[str, Any]:
    """Measure once, in this process: seconds, and bytes written."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        if who != "import":
            import duckdb  # noqa: F401 - its import is not measured

            fields = fields_of(path)
            began = time.perf_counter()
            extract(path, out, fields, one_call=who == "duckdb_one_call")
        else:
            from esper_analytics.importers.esper_jsonl import import_file

            began = time.perf_counter()
            [outcome] = import_file(path, out)
            assert not outcome.report.problems, outcome.report.problems
        seconds = time.perf_counter() - began
        return {"seconds": seconds, "bytes": sum(file.stat().st_size for file in out.rglob("*") if file.is_file())}


def main() -> None:
    """Measure, print and write the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--once", nargs=2, metavar=("WHO", "FILE"), help="used by the benchmark itself")
    arguments = parser.parse_args()
    if arguments.once:
        print(json.dumps(once(arguments.once[0], Path(arguments.once[1]))))
        return
    import pyarrow as pa
    from results_file import write_result

    folder = Path(os.environ.get("ESPER_TEST_DATA", ROOT / "tests" / "data"))
    files = arguments.files or sorted(folder.glob("*.jsonl.zst"))
    rows = []
    with tempfile.TemporaryDirectory() as temporary:
        for file in files:
            lines = Path(temporary) / file.name.removesuffix(".zst")
            lines.write_bytes(pa.input_stream(str(file), compression="detect").read())
            best: dict[str, dict[str, Any]] = {}
            for _ in range(arguments.turns):
                for who in ("import", "duckdb", "duckdb_one_call"):
                    command = [sys.executable, __file__, "--once", who, str(lines)]
                    done = subprocess.run(command, check=True, capture_output=True, text=True)
                    result = json.loads(done.stdout)
                    best[who] = min(best.get(who, result), result, key=lambda turn: turn["seconds"])
            size = lines.stat().st_size
            row = {
                "file": file.name,
                "jsonl_mb": round(size / 1e6, 1),
                "import_mb_per_s": round(size / 1e6 / best["import"]["seconds"], 1),
                "duckdb_mb_per_s": round(size / 1e6 / best["duckdb"]["seconds"], 1),
                "duckdb_one_call_mb_per_s": round(size / 1e6 / best["duckdb_one_call"]["seconds"], 1),
                "times_duckdb": round(best["duckdb"]["seconds"] / best["import"]["seconds"], 2),
                "times_duckdb_one_call": round(best["duckdb_one_call"]["seconds"] / best["import"]["seconds"], 2),
                "run_folder_mb": round(best["import"]["bytes"] / 1e6, 2),
                "times_smaller": round(size / best["import"]["bytes"], 1),
                "duckdb_parquet_mb": round(best["duckdb"]["bytes"] / 1e6, 2),
            }
            print(row)
            rows.append(row)
    print(write_result("import", {"turns": arguments.turns, "cores": 2, "statistic": "best of turns"}, rows))


if __name__ == "__main__":
    main()
