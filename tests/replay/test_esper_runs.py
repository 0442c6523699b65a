"""Replaying what Esper's trainer recorded gives back the alarms that it raised itself: none more, none less.

The files beside these tests are the first updates of two real runs, cut down to the events that count. Whole files are
looked for in the folder that the environment variable ESPER_TEST_DATA names.
"""

from __future__ import annotations

import csv
import io
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

import esper_analytics as ea
from esper_analytics.cli import app
from esper_recorder.contract.evaluator import RuleEvaluator
from esper_recorder.contract.rules import load_profile
from tests import esper_runs

EXCERPTS = sorted(esper_runs.DATA.glob("esper_*.jsonl.zst"))
WHOLE = sorted(Path(os.environ["ESPER_TEST_DATA"]).glob("esper_*.jsonl.zst")) if "ESPER_TEST_DATA" in os.environ else []

EXPECTED_OF_WHOLE = {
    "esper_2025-12_default": (400, {"value_collapse": 322}),
    "esper_2026-06_k1_default": (
        300,
        {"numerical_instability": 237, "gradient_norm_drift": 66, "entropy_collapse": 825},
    ),
}


def profile_of(path: Path) -> str:
    return next(profile for begins, profile in esper_runs.PROFILES.items() if path.name.startswith(begins))


def series(rows: Any) -> Counter[tuple[int, str, str]]:
    return Counter((row["update"], row["rule"], row["key"]) for row in rows)


def check(path: Path, folder: Path) -> None:
    """Both evaluators, from Python and from the command line, against what was raised live."""
    profile = profile_of(path)
    rows = esper_runs.tables(path)
    alarms = series(rows["alarms"])
    run = esper_runs.write(folder, path, profile)
    assert series(ea.replay(ea.open(run), profile).firings.to_dicts()) == alarms
    words = ["replay", str(run), "--rules", profile]
    fired = CliRunner().invoke(app, [*words, "--what", "firings", "--format", "csv"])
    told = [row | {"update": int(row["update"])} for row in csv.DictReader(io.StringIO(fired.stdout))]
    assert series(told) == alarms
    changed = CliRunner().invoke(app, [*words, "--against", "live", "--format", "ndjson"])
    assert (changed.exit_code, changed.stdout) == (0, "")
    assert series(row_by_row(profile, rows)) == alarms


def row_by_row(profile: str, rows: dict[str, esper_runs.Rows]) -> list[dict[str, Any]]:
    evaluator = RuleEvaluator(load_profile(profile))
    fired = []
    for own in rows["ppo_updates"]:
        update = own["update"]
        of_update = {table: [row for row in all_rows if row["update"] == update] for table, all_rows in rows.items()}
        for f in evaluator.update(update, own["progress"], of_update):
            fired.append({"update": f.update, "rule": f.rule, "key": f.key})
    return fired


@pytest.mark.parametrize("path", EXCERPTS, ids=lambda path: path.name)
def test_the_first_updates_of_a_real_run_give_back_its_own_alarms(path: Path, tmp_path: Path) -> None:
    assert esper_runs.tables(path)["alarms"], "nothing would be compared"
    check(path, tmp_path)


def test_both_generations_of_esper_are_among_the_excerpts() -> None:
    assert {profile_of(path) for path in EXCERPTS} == set(esper_runs.PROFILES.values())


@pytest.mark.skipif(not WHOLE, reason="ESPER_TEST_DATA names no folder with esper_*.jsonl.zst")
@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.name)
def test_a_whole_real_run_gives_back_its_own_alarms(path: Path, tmp_path: Path) -> None:
    rows = esper_runs.tables(path)
    expected = EXPECTED_OF_WHOLE.get(path.name.split(".")[0])
    if expected is not None:
        found = Counter(row["rule"] for row in rows["alarms"])
        assert (len(rows["ppo_updates"]), dict(found)) == expected
    check(path, tmp_path)
