"""Files that Esper's own trainer wrote, of both generations of its payloads, single events, and imports of both.

`tests/data/esper_*` are the first updates of two real runs, cut down to the events that rules read. `all_kinds_*` are
the first batch of each run with all its events, and about two of every other kind. Whole files are in the folder
that the environment variable ESPER_TEST_DATA names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from esper_analytics.importers import esper_jsonl
from esper_analytics.importers.load_report import LoadReport
from esper_analytics.importers.run_writer import ImportOutcome
from tests.support import DATA

EXCERPTS = sorted(DATA.glob("esper_*.jsonl.zst"))
ALL_KINDS = sorted(DATA.glob("all_kinds_*.jsonl.zst"))
WHOLE = sorted(Path(os.environ["ESPER_TEST_DATA"]).glob("esper_*.jsonl.zst")) if "ESPER_TEST_DATA" in os.environ else []

Event = dict[str, Any]


def content(path: Path) -> bytes:
    """Read a file, decompressed."""
    data: bytes = pa.input_stream(str(path), compression="zstd").read()
    return data


def events(path: Path) -> list[Event]:
    """Read the events of a file without damage."""
    return [json.loads(line) for line in content(path).decode().splitlines()]


def event(kind: str, number: int = 1, data: Any = None, **envelope: Any) -> Event:
    """Make an event, sent in second `number` of 2026."""
    time = f"2026-01-01T00:00:{number:02d}+00:00"
    payload = {} if data is None else data
    return {"event_type": kind, "event_id": f"e{number}", "timestamp": time, "data": payload, **envelope}


def lines(*all_events: Event) -> str:
    """Write events as a file has them."""
    return "".join(json.dumps(event) + "\n" for event in all_events)


def import_runs(data: bytes | str, folder: Path, name: str = "events.jsonl") -> list[ImportOutcome]:
    """Import some content into `folder/runs`."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return esper_jsonl.import_file(path, folder / "runs")


def import_run(data: bytes | str, folder: Path, name: str = "events.jsonl") -> tuple[Path, LoadReport]:
    """Import the content of one run; return its run's folder and load report."""
    [outcome] = import_runs(data, folder, name)
    return folder / "runs" / outcome.run_id, outcome.report
