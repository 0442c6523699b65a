"""Replaying what Esper's trainer recorded gives exactly the alarms that the trainer raised."""

from __future__ import annotations

import csv
import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import esper_analytics as ea
from esper_analytics.importers import esper_jsonl
from esper_recorder.contract.rules.evaluator import RuleEvaluator
from esper_recorder.contract.rules.ruleset import load_profile
from tests.esper_files import EXCERPTS, WHOLE, content, import_run
from tests.support import esper

PROFILES = {"esper_2025-12": "esper-2025-12", "esper_2026-06": "esper-2026-06"}
"""How a file's name begins -> the checks that ran in its trainer."""
EXPECTED_OF_WHOLE = {
    "esper_2025-12_default": (400, {"value_collapse": 322}),
    "esper_2026-06_k1_default": (
        300,
        {"numerical_instability": 237, "gradient_norm_drift": 66, "entropy_collapse": 825},
    ),
}


def profile_of(path: Path) -> str:
    return next(profile for begins, profile in PROFILES.items() if path.name.startswith(begins))


def series(rows: Any) -> Counter[tuple[int, str, str]]:
    return Counter((row["update"], row["rule"], row["key"]) for row in rows)


def check(path: Path, folder: Path) -> list[dict[str, Any]]:
    """Both evaluators, from Python and from the command line, compared with what was raised live; return the alarms."""
    profile = profile_of(path)
    [stored] = esper_jsonl.import_file(path, folder)
    assert stored.report.problems == []
    runs = ea.open(folder)
    assert runs.list()["run_id"].to_list() == [stored.run_id]
    rows = runs.table("alarms").collect().to_dicts()
    alarms = series(rows)
    assert alarms, "nothing would be compared"
    assert series(ea.replay(runs, profile).firings.to_dicts()) == alarms
    words = ["replay", str(folder)]  # with the rules the run ran with, which the import recognised
    fired = esper(*words, "--show", "firings", "--format", "csv")
    printed = [row | {"update": int(row["update"])} for row in csv.DictReader(io.StringIO(fired.stdout))]
    assert series(printed) == alarms
    assert f"rules {profile} " in fired.stderr
    changed = esper(*words, "--against", "live", "--format", "ndjson")
    assert changed.stdout == ""
    assert series(row_by_row(profile, runs)) == alarms
    return rows


def row_by_row(profile: str, runs: ea.Runs) -> list[dict[str, Any]]:
    evaluator = RuleEvaluator(load_profile(profile))
    tables = {
        name: runs.table(name).sort("update").collect().partition_by("update", as_dict=True)
        for name in ("ppo_updates", "heads", "recurrent_state")
    }
    fired = []
    for key, [own] in ((key, frame.to_dicts()) for key, frame in tables["ppo_updates"].items()):
        of_update = {name: frames[key].to_dicts() if key in frames else [] for name, frames in tables.items()}
        for f in evaluator.update(own["update"], own["progress"], of_update):
            fired.append({"update": f.update, "rule": f.rule, "key": f.key})
    return fired


@pytest.mark.parametrize("path", EXCERPTS, ids=lambda path: path.name)
def test_the_first_updates_of_a_real_run_give_back_its_own_alarms(path: Path, tmp_path: Path) -> None:
    check(path, tmp_path)


def test_both_generations_of_esper_are_among_the_excerpts() -> None:
    assert {profile_of(path) for path in EXCERPTS} == set(PROFILES.values())


@pytest.mark.skipif(not WHOLE, reason="ESPER_TEST_DATA names no folder with esper_*.jsonl.zst")
@pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.name)
def test_a_whole_real_run_gives_back_its_own_alarms(path: Path, tmp_path: Path) -> None:
    alarms = check(path, tmp_path)
    expected = EXPECTED_OF_WHOLE.get(path.name.split(".")[0])
    if expected is not None:
        updates = ea.open(tmp_path).table("ppo_updates").collect().height
        assert (updates, dict(Counter(row["rule"] for row in alarms))) == expected


@pytest.mark.parametrize("path", EXCERPTS, ids=lambda path: path.name)
def test_a_run_killed_between_an_update_and_its_alarms_is_compared_up_to_there(path: Path, tmp_path: Path) -> None:
    lines = content(path).splitlines(keepends=True)
    last_alarm = max(place for place, line in enumerate(lines) if b'"anomaly_type"' in line)
    batch = json.loads(lines[last_alarm])["data"]["batch"]
    torn = lines[last_alarm + 1][:100]
    folder, report = import_run(b"".join(lines[: last_alarm + 1]) + torn, tmp_path)
    assert report.read == last_alarm + 2
    runs = ea.open(folder)
    alone = runs.table("alarms").filter(pl.col("update") == batch).collect().height
    assert alone > 0, "nothing would be left out"
    assert sorted(set(ea.replay(runs).firings["update"])) == sorted(
        set(runs.table("alarms").filter(pl.col("update") < batch).collect()["update"])
    )
    changed = esper("replay", str(folder), "--against", "live", "--format", "ndjson")
    assert changed.stdout == ""
    alarms = "1 live alarm" if alone == 1 else f"{alone} live alarms"
    assert f"not compared: {alarms} of update {batch}, not in the recording" in changed.stderr


def test_a_sweep_uses_the_rules_all_runs_ran_with_else_the_default(tmp_path: Path) -> None:
    def sweep(folder: Path, rule: str) -> str:
        done = esper("sweep", str(folder), "--rule", rule, "--values", "0,9", "--format", "csv")
        assert len(done.stdout.splitlines()) == 3
        return done.stderr.splitlines()[-1]

    alike, mixed = tmp_path / "alike", tmp_path / "mixed"
    for path in EXCERPTS:
        esper_jsonl.import_file(path, mixed)
    esper_jsonl.import_file(EXCERPTS[0], alike)
    assert sweep(alike, "numerical_instability") == f"rules {profile_of(EXCERPTS[0])}"  # a rule `default` has not
    assert sweep(mixed, "ratio_explosion") == "rules default"
