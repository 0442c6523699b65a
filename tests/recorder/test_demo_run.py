"""The demo's recorder half: one run that learns and one that is wrecked, distinguished by what was recorded."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from esper_recorder import demo
from esper_recorder.contract.rules.evaluator import RuleEvaluator
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.storage.manifest import how_it_ended, read_manifest
from tests.recorder.storage.stored_updates import read_rows

pytestmark = pytest.mark.trains


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both runs, much shorter than the demo's own."""
    out = tmp_path_factory.mktemp("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["demo", "--out", str(out), "--steps", "7168"])
        demo.main()
    found = {path.name.split("-2")[0]: path for path in out.iterdir()}
    assert found.keys() == demo.RUNS.keys()
    return found


def test_both_runs_are_complete(runs: dict[str, Path]):
    for path in runs.values():
        assert how_it_ended(path) == "finished"
        manifest = read_manifest(path)
        assert manifest.config["learning_rate"] == demo.LEARNING_RATE
        assert manifest.rules_profile == "default"
        assert sorted(row["update"] for row in read_rows(path, "ppo_updates")) == list(range(1, 8))
        assert len(read_rows(path, "minibatches")) == 7 * 10 * 16
        assert read_rows(path, "gaps") == []


def test_both_runs_are_the_same_until_the_schedule_breaks_and_one_is_wrecked_from_then_on(runs: dict[str, Path]):
    # 7 updates of 1,024 steps: 4/7 of the training is done at update 4, the first one past the half.
    updates = {
        name: sorted(read_rows(path, "ppo_updates"), key=lambda row: row["update"]) for name, path in runs.items()
    }
    rates = [row["learning_rate"] for row in updates["wrecked"]]
    assert rates == [3e-4] * 3 + [pytest.approx(3e-2)] * 4
    columns = ("approx_kl", "ratio_max", "loss", "grad_norm")
    before = {name: [[row[c] for c in columns] for row in rows[:3]] for name, rows in updates.items()}
    assert before["healthy"] == before["wrecked"]
    # 0.5 is the threshold of kl_extreme, which fired within two updates of the break with the seeds 1, 2, 3 and 7.
    # The updates of a healthy run stayed below 0.02.
    peaks = {name: max(row["approx_kl"] for row in rows[3:]) for name, rows in updates.items()}
    assert peaks["healthy"] < 0.1 and peaks["wrecked"] > 0.5


def test_the_watcher_reports_the_wrecked_run_within_two_updates_and_nothing_critical_before(runs: dict[str, Path]):
    critical = {
        name: {row["update"] for row in read_rows(path, "alarms") if row["severity"] == "critical"}
        for name, path in runs.items()
    }
    assert critical["healthy"] == set()
    assert min(critical["wrecked"]) in (4, 5, 6)


@pytest.mark.parametrize("name", list(demo.RUNS))
def test_the_alarms_are_those_of_the_runs_own_rules_over_its_own_rows(runs: dict[str, Path], name: str):
    path = runs[name]
    manifest = read_manifest(path)
    rules = RuleSet.parse((path / "rules" / f"{manifest.rules_sha256}.toml").read_text(), name="kept")
    evaluator = RuleEvaluator(rules)
    tables = {table: read_rows(path, table) for table in rules.tables}
    expected = []
    for row in sorted(tables["ppo_updates"], key=lambda row: row["update"]):
        own = {table: [r for r in rows if r["update"] == row["update"]] for table, rows in tables.items()}
        expected += [
            (f.update, f.rule, f.key, f.severity, f.value)
            for f in evaluator.update(row["update"], row["progress"], own)
        ]
    alarms = [(r["update"], r["rule"], r["key"], r["severity"], r["value"]) for r in read_rows(path, "alarms")]
    assert sorted(map(repr, alarms)) == sorted(map(repr, expected))
    assert all(row["rules_sha256"] == manifest.rules_sha256 for row in read_rows(path, "alarms"))


def test_progress_is_printed_line_by_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", ["demo", "--out", str(tmp_path), "--steps", "1024"])
        demo.main()
    assert capsys.readouterr().out == "healthy 1024 1024\nwrecked 1024 1024\n"
