"""Runs recorded at schema version 2, in tests/data/schema_2 with the script that recorded them, are read as ever."""

from __future__ import annotations

import json
import math
import shutil
from typing import Any

import pytest

import esper_analytics as ea
from tests.support import DATA

SCHEMA_2 = DATA / "schema_2"
RENAMED: dict[tuple[str, str], str] = {}
"""(table, column then) -> column now."""


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> ea.Runs:
    folder = tmp_path_factory.mktemp("schema_2") / "runs"
    shutil.copytree(SCHEMA_2 / "runs", folder)  # reading may make a lock file
    return ea.open(folder)


def as_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [as_json(v) for v in value]
    return value if isinstance(value, (int, float, bool, str)) or value is None else str(value)


def values_by_table(runs: ea.Runs) -> dict[str, list[dict[str, Any]]]:
    """Every value that is not NULL, row by row, of every table that holds rows."""
    expected = {}
    for table in json.loads((SCHEMA_2 / "rows.json").read_text(encoding="utf-8")):
        frame = runs.table(table).collect()
        expected[table] = sorted(
            ({k: as_json(v) for k, v in row.items() if v is not None} for row in frame.to_dicts()),
            key=lambda row: json.dumps(row, sort_keys=True),
        )
    return expected


def test_every_value_is_what_it_was_read_as_then(runs: ea.Runs) -> None:
    then = json.loads((SCHEMA_2 / "rows.json").read_text(encoding="utf-8"))
    expected = {
        table: sorted(
            ({RENAMED.get((table, k), k): v for k, v in row.items()} for row in rows),
            key=lambda row: json.dumps(row, sort_keys=True),
        )
        for table, rows in then.items()
    }
    assert values_by_table(runs) == expected


def test_replay_gives_the_alarms_they_were_recorded_with(runs: ea.Runs) -> None:
    firings = ea.replay(runs).firings
    alarms = runs.table("alarms").collect()
    assert alarms.height > 0
    columns = ["run_id", "update", "rule", "key"]
    told = {tuple(row) for row in alarms.select(columns).rows()}
    found = {tuple(row) for row in firings.select(columns).rows()}
    assert {(r, u, rule, k or "") for r, u, rule, k in found} == {(r, u, rule, k or "") for r, u, rule, k in told}
