"""Every row says where it belongs: of which run, attempt, rank and update. From disk, as an analyst reads them."""

from __future__ import annotations

import math
from pathlib import Path

import polars as pl
import pytest
import torch

import esper_analytics as ea
from esper_analytics.maintenance.verification import verify
from esper_recorder import Recorder
from esper_recorder.arguments import FILLED
from esper_recorder.contract.tables import IDENTITY
from tests.recorder.storage.stored_updates import read_rows

UPDATES = 2
NOT_THE_RECORDERS = {"events", "raw_events"}
"""Filled by an importer, or by Esper's hub."""


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two updates at DEBUG with a row in every table that a recorder fills, and a row recorded by itself."""
    model = torch.nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    root = tmp_path_factory.mktemp("runs")
    with Recorder(root, name="whose", model=model, optimizer=optimizer, level="debug") as rec:
        for _ in range(UPDATES):
            rec.rollout(values=torch.zeros(4, 1), returns=torch.ones(4, 1))
            rec.recurrent(torch.zeros(1, 4), torch.zeros(1, 4))
            for _ in range(2):
                # Ratios of 20 at the head: above what `head_ratio_explosion` and `ratio_explosion` allow.
                log_ratio = torch.full((4,), math.log(20.0))
                rec.minibatch(log_ratio=log_ratio, heads={"op": {"log_ratio": log_ratio}}, epoch=1)
                model(torch.ones(4, 2)).sum().backward()
                optimizer.step()
            rec.minibatch()  # a gap
            rec.episode(return_=1.0)
            rec.row("slots", env=0, slot="r0c0")
            rec.end_update()
    assert rec.path is not None
    return rec.path


def test_no_row_of_any_table_is_without_its_identity(recorded: Path):
    for table in (FILLED - NOT_THE_RECORDERS) | {"slots"}:
        rows = read_rows(recorded, table)
        assert rows, f"nothing was recorded of {table}, so this test would not see it"
        for name in IDENTITY:
            assert all(row[name] is not None for row in rows), f"{table}.{name}"
        assert {row["update"] for row in rows} <= {1, 2}, table


def test_heads_are_found_by_their_update(recorded: Path):
    runs = ea.open(recorded.parent)
    found = runs.sql("SELECT run_id, update, head FROM heads ORDER BY update")
    assert found.rows() == [(recorded.name, update, "op") for update in (1, 2)]


def test_the_rules_of_heads_look_and_fire_live_as_in_the_replay(recorded: Path):
    runs = ea.open(recorded.parent)
    coverage = ea.replay(runs, "default").coverage.filter(pl.col("rule") == "head_ratio_explosion")
    assert coverage.select("key", "evaluated", "abstained").rows() == [("op", UPDATES, 0)]
    alarms = runs.sql("SELECT update, key FROM alarms WHERE rule = 'head_ratio_explosion' ORDER BY update")
    assert alarms.rows() == [(1, "op"), (2, "op")]


def test_the_parts_agree_with_their_names(recorded: Path):
    assert [str(problem) for problem in verify(recorded.parent).problems if problem.path.suffix == ".parquet"] == []
