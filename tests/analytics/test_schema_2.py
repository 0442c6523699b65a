"""Runs recorded at schema version 2, in tests/data/schema_2 with the script that recorded them, are read as before.

The finished run has rows that were backfilled, in parts; the rows of the killed run are in its journal alone.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch

import esper_analytics as ea
from esper_analytics.maintenance.compaction import compact
from esper_analytics.maintenance.recovery import recover
from esper_analytics.maintenance.verification import verify
from esper_recorder import Recorder
from esper_recorder.contract.tables import TABLES, column_names, columns, former_names
from tests.builders import add_part, complete_rows, run_id_of, write_run
from tests.support import DATA

SCHEMA_2 = DATA / "schema_2"
RENAMED = {
    ("minibatches", "held_back"): "backfilled",
    ("minibatches", "advantage_positive_share"): "advantage_positive_fraction",
    ("ppo_updates", "advantage_positive_share"): "advantage_positive_fraction",
}
"""(table, column then) -> column now."""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(SCHEMA_2 / "runs", tmp_path / "runs"))


@pytest.fixture
def runs(folder: Path) -> ea.Runs:
    return ea.open(folder)


def as_json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return [as_json(v) for v in value]
    return value if isinstance(value, (int, float, bool, str)) or value is None else str(value)


def in_order(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return sorted(rows, key=lambda row: json.dumps(row, sort_keys=True))


def recorded_rows() -> dict[str, list[dict[str, Any]]]:
    """Every value that is not NULL as it was read at schema 2, under the column's present name."""
    then = json.loads((SCHEMA_2 / "rows.json").read_text(encoding="utf-8"))
    return {
        table: in_order([{RENAMED.get((table, k), k): v for k, v in row.items()} for row in rows])
        for table, rows in then.items()
    }


def rows_read(read: Callable[[str], list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    """The same of the tables that `read` gives."""
    return {
        table: in_order([{k: as_json(v) for k, v in row.items() if v is not None} for row in read(table)])
        for table in recorded_rows()
    }


def by_frame(folder: Path) -> dict[str, list[dict[str, Any]]]:
    runs = ea.open(folder)
    return rows_read(lambda table: runs.table(table).collect().to_dicts())


def by_sql(folder: Path) -> dict[str, list[dict[str, Any]]]:
    runs = ea.open(folder)
    return rows_read(lambda table: runs.sql(f"SELECT * FROM {table}").to_dicts())


def test_the_renamed_columns_are_those_the_contract_declares() -> None:
    assert {(t, then): now for t in TABLES for then, now in former_names(t).items()} == RENAMED


def test_no_former_name_is_the_name_of_another_column() -> None:
    for table in TABLES:
        assert former_names(table).keys().isdisjoint(column_names(table))
        assert len(former_names(table)) == sum(column.renamed_from is not None for column in columns(table))


@pytest.mark.parametrize("read", [by_frame, by_sql])
def test_every_value_is_read_as_it_was_then(folder: Path, read: Callable[[Path], Any]) -> None:
    assert sum(bool(row.get("backfilled")) for row in recorded_rows()["minibatches"]) > 0
    assert read(folder) == recorded_rows()


def test_recovered_and_compacted_runs_have_files_of_the_present_schema(folder: Path) -> None:
    for run in folder.iterdir():
        for part in run.glob("minibatches/*.parquet"):  # a second part of half the rows, so that there are two to merge
            shutil.copy(part, part.with_name("part-a2-r0-000001.parquet"))
            shutil.copy(part, part.with_name("part-a2-r0-000002.parquet"))
    recover(folder)
    before = by_frame(folder)
    compact(folder)
    assert by_frame(folder) == by_sql(folder) == before
    rewritten = [
        *folder.glob("finished*/minibatches/part-a2-r0-000001-000002.parquet"),
        *folder.glob("killed*/*/*.parquet"),
    ]
    assert len(rewritten) > 5
    for part in rewritten:
        metadata, names = pq.read_metadata(part).metadata, pq.read_schema(part).names
        assert metadata[b"esper_schema_version"] == b"3"
        assert names == list(column_names(part.parent.name))


def test_recovery_of_the_killed_run_loses_nothing(folder: Path) -> None:
    recover(folder)
    assert not any(folder.glob("*/journal/*.journal"))
    assert by_frame(folder) == by_sql(folder) == recorded_rows()
    assert verify(folder).frame["explained_missing"].sum() == 0


def test_replay_gives_the_alarms_they_were_recorded_with(runs: ea.Runs) -> None:
    columns = ["run_id", "update", "rule", "key"]
    alarms = runs.table("alarms").collect().select(columns)
    assert alarms.height > 0
    firings = ea.replay(runs).firings.select(columns)
    assert set(firings.fill_null("").rows()) == set(alarms.fill_null("").rows())


RULES = """
[rules.column]
severity = "info"
column = "{positive}"
below = 0.5
[rules.expression]
severity = "info"
expr = "1 - {positive} if {positive} < 0.5 else 0.0"
above = 0.5
[rules.minibatches]
severity = "info"
table = "minibatches"
take = "first"
column = "{positive}"
below = 0.5
unless = {{table = "ppo_updates", column = "{positive}", below = 0.0}}
[rules.relative]
severity = "info"
column = "clip_fraction"
above = {{column = "{positive}", times = 0.1}}
"""


def test_rules_that_name_a_column_as_it_was_then_replay(folder: Path) -> None:
    now, then = (RULES.format(positive=f"advantage_positive_{word}") for word in ("fraction", "share"))
    rules = folder.parent / "now.toml"
    rules.write_text(now, encoding="utf-8")
    expected = ea.replay(ea.open(folder), rules).firings
    assert set(expected["rule"]) == {"column", "expression", "minibatches", "relative"}
    for run in folder.iterdir():  # each ran with rules of then
        manifest = json.loads((run / "run.json").read_text(encoding="utf-8"))
        manifest["rules"]["sha256"] = hashlib.sha256(then.encode()).hexdigest()
        (run / "run.json").write_text(json.dumps(manifest), encoding="utf-8")
        (run / "rules" / f"{manifest['rules']['sha256']}.toml").write_text(then, encoding="utf-8")
    assert ea.replay(ea.open(folder)).firings.equals(expected)


def test_a_run_of_then_is_resumed_with_its_streaks(folder: Path) -> None:
    rules = folder.parent / "rules.toml"
    signal = (
        'severity = "info"\ntable = "minibatches"\ntake = "last"\ncolumn = "advantage_positive_fraction"\nabove = -1.0'
    )
    rules.write_text(f"[rules.two]\n{signal}\nfor = 2\n[rules.three]\n{signal}\nfor = 3\n", encoding="utf-8")
    (run,) = folder.glob("finished*")
    with Recorder(folder, resume=run.name, from_update=5, rules=rules) as recorder:
        recorder.minibatch(log_ratio=torch.tensor([0.0, 0.1]), advantages=torch.tensor([1.0, -1.0]))
        recorder.end_update(step=80)
    # Update 4 counts; the minibatches of 1 to 3 were backfilled, and rules never evaluate those.
    alarms = ea.open(run).table("alarms").collect().filter(update=5)
    assert set(alarms["rule"]) == {"two"}


def test_a_file_with_both_names_of_a_column_is_read_by_the_present_one(tmp_path: Path) -> None:
    run = write_run(tmp_path)
    rows = complete_rows("minibatches", [{"minibatch": 1, "backfilled": True}], run_id=run_id_of("run"))
    part = add_part(run, "minibatches", rows)
    table = pq.read_table(part)
    both = table.append_column("held_back", table["stepped"])  # NULL
    pq.write_table(both, part, write_statistics=["run_id"])
    runs = ea.open(run)
    assert runs.table("minibatches").collect()["backfilled"].to_list() == [True]
    assert runs.sql("SELECT backfilled FROM minibatches").rows() == [(True,)]
