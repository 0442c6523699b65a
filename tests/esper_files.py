"""Files that Esper's own trainer wrote, of both generations of its payloads, and what imports make of them.

`tests/data/esper_*` are the first updates of two real runs, cut down to the events that rules read. `all_kinds_*` are
the first batch of each run with all its events, and two or so of every other kind. Whole files are looked for in the
folder that the environment variable ESPER_TEST_DATA names.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pyarrow as pa

from esper_analytics.importers import esper_jsonl
from esper_analytics.importers.load_report import LoadReport
from esper_analytics.importers.run_writer import Stored

DATA = Path(__file__).parent / "data"
EXCERPTS = sorted(DATA.glob("esper_*.jsonl.zst"))
ALL_KINDS = sorted(DATA.glob("all_kinds_*.jsonl.zst"))
WHOLE = sorted(Path(os.environ["ESPER_TEST_DATA"]).glob("esper_*.jsonl.zst")) if "ESPER_TEST_DATA" in os.environ else []

Event = dict[str, Any]


def content(path: Path) -> bytes:
    """A file, decompressed."""
    data: bytes = pa.input_stream(str(path), compression="zstd").read()
    return data


def events(path: Path) -> list[Event]:
    """The events of a file without damage."""
    return [json.loads(line) for line in content(path).decode().splitlines()]


def imported(data: bytes | str, folder: Path, name: str = "events.jsonl") -> tuple[Path, LoadReport]:
    """Some content, of one run, imported: its run's folder and load report."""
    [(stored, report)] = imports(data, folder, name)
    return folder / "runs" / stored.run_id, report


def imports(data: bytes | str, folder: Path, name: str = "events.jsonl") -> list[tuple[Stored, LoadReport]]:
    """Some content, imported into `folder/runs`."""
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data if isinstance(data, bytes) else data.encode())
    return esper_jsonl.import_file(path, folder / "runs")


def lines(*all_events: Event) -> str:
    """Events as a file."""
    return "".join(json.dumps(event) + "\n" for event in all_events)
