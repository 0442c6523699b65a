"""A watcher that resumes a run continues from its visible rows, and so raises what a replay of the whole run finds."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import esper_analytics as ea
from esper_recorder.escalation import Escalation
from esper_recorder.levels import Level
from esper_recorder.storage.update_content import Columns, UpdateContent
from esper_recorder.watcher import Watcher
from tests.analytics.detection.random_cases import Case, cases
from tests.analytics.detection.test_two_evaluators import bits
from tests.builders import write_run

Updates = list[tuple[int, dict[str, list[dict[str, Any]]]]]


def check(case: Case, split: float) -> None:
    """The first run's updates are recorded by attempt 1, the last run's by attempt 2 from some update of the first."""
    runs = sorted(case.runs)
    first, second = case.runs[runs[0]], case.runs[runs[-1]]
    begins = 1 + round(split * first[-1][0])
    again = [(begins - second[0][0] + number, tables) for number, tables in second]
    with tempfile.TemporaryDirectory() as root:
        path = write_run(Path(root), tables=_rows(first, 1), manifest=_manifest(begins))
        watcher = Watcher(case.rules, Escalation(Level.NORMAL, None, 1))
        watcher.catch_up(path, 0, {1: 1, 2: begins})
        raised = [alarm for number, tables in again for alarm in _alarms(watcher, number, tables)]
    with tempfile.TemporaryDirectory() as root:
        both = {table: [*rows, *_rows(again, 2)[table]] for table, rows in _rows(first, 1).items()}
        write_run(Path(root), tables=both, manifest=_manifest(begins))
        fired = ea.replay(root, case.rules).firings.filter(pl.col("update") >= begins)
    found = [(row["update"], row["rule"], row["key"], bits(row["value"])) for row in fired.to_dicts()]
    assert found == raised, case.rules.text


def _rows(updates: Updates, attempt: int) -> dict[str, list[dict[str, Any]]]:
    tables = ("ppo_updates", "minibatches", "gradient_layers")
    return {
        table: [{"update": number, "attempt": attempt, **row} for number, own in updates for row in own[table]]
        for table in tables
    }


def _alarms(watcher: Watcher, number: int, tables: dict[str, list[dict[str, Any]]]) -> list[Any]:
    columns: dict[str, Columns] = {
        table: {"update": [number] * len(rows)} | {name: [row[name] for row in rows] for name in rows[0]}
        for table, rows in tables.items()
        if rows
    }
    raised = watcher.alarms(number, UpdateContent(columns)).tables.get("alarms", {})
    names = ("update", "rule", "key", "value")
    return [(u, r, k, bits(v)) for u, r, k, v in zip(*(raised.get(name, []) for name in names), strict=True)]


def _manifest(begins: int) -> dict[str, Any]:
    return {"attempts": [{"attempt": 1, "from_update": 1}, {"attempt": 2, "from_update": begins}]}


@given(cases(), st.floats(0, 1))
@settings(max_examples=15, suppress_health_check=list(HealthCheck))
def test_a_resumed_watcher_raises_what_the_replay_finds(case: Case, split: float) -> None:
    check(case, split)


@pytest.mark.slow
@given(cases(), st.floats(0, 1))
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_a_resumed_watcher_raises_what_the_replay_finds_in_a_hundred_runs(case: Case, split: float) -> None:
    check(case, split)
