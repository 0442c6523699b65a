"""A sample of faults is trained, recorded and proved, by the script that trains them all."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
from faults.fault_class import FAULTS
from faults.plan import PlannedRun, faulty_run
from faults.proving import prove
from faults.training import Manifest, manifest_of, train_run

import esper_analytics as ea
from tests.support import ROOT, run_process

pytestmark = [pytest.mark.slow, pytest.mark.trains]

# One of each place where a chain begins, all trainers among them.
SAMPLE = (
    *(("nonfinite_observation", "script", "CartPole-v1", 2), ("reward_outlier", "sb3", "CartPole-v1", 2)),
    *(("advantage_sign", "sb3", "CartPole-v1", 1), ("old_log_probs_refreshed", "sb3", "CartPole-v1", 1)),
    *(("policy_gradient_sign", "script", "CartPole-v1", 1), ("step_skipped", "device", "poles", 1)),
    *(("learning_rate_jumps", "script", "Pendulum-v1", 2), ("resume_from_old_checkpoint", "script", "CartPole-v1", 2)),
)


def control(trainer: str, task: str) -> PlannedRun:
    return PlannedRun("plain", False, trainer, task, 101, "held-out", 1, "healthy", None, 3)


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("faults")


@pytest.mark.parametrize(("name", "trainer", "task", "onset"), SAMPLE)
def test_a_fault_is_injected_and_proved(out: Path, name: str, trainer: str, task: str, onset: int):
    run = faulty_run(FAULTS[name], trainer, task, 101, "held-out", onset=onset, updates=onset + 1)
    manifest, healthy = train_run(run, out), train_run(control(trainer, task), out)
    verdict = prove(manifest, healthy, out)
    assert verdict.proven, verdict


def test_the_recorded_run_does_not_name_its_fault(out: Path):
    run = faulty_run(FAULTS["advantage_sign"], "sb3", "CartPole-v1", 101, "held-out", onset=1, updates=2)
    folder = out / "runs" / train_run(run, out)["run_id"]
    assert "advantage_sign" not in (folder / "run.json").read_text()


@pytest.fixture(scope="module")
def manifest(out: Path) -> Manifest:
    return train_run(control("script", "CartPole-v1"), out)


class TestAHealthyRun:
    def test_it_proves_no_fault(self, out: Path, manifest: Manifest):
        mistaken = manifest | {"name": "advantage_sign"}
        verdict = prove(mistaken, manifest, out)
        assert not verdict.proven and verdict.problem == "the proof does not hold after the onset"

    def test_what_differs_before_the_onset_is_no_proof(self, out: Path, manifest: Manifest):
        run = faulty_run(FAULTS["learning_rate_jumps"], "script", "CartPole-v1", 101, "held-out", onset=2, updates=3)
        faulty = train_run(run, out)
        assert prove(faulty, manifest, out).proven
        first = manifest["witness"][0] | {"actor_step": 9.0}
        changed = manifest | {"witness": [first, *manifest["witness"][1:]]}
        assert "update 1, before the onset" in prove(faulty, changed, out).problem

    def test_its_witness_finds_nothing_wrong(self, manifest: Manifest):
        for row in manifest["witness"]:
            changes = {name: value for name, value in row.items() if name.endswith(("_change", "_nonfinite"))}
            assert changes and not any(changes.values())
            assert row["advantage_gap"] < 1e-5 and row["target_gap"] < 1e-6 and row["loss_gap"] < 1e-5
            assert row["transitions_trained"] == 512 and row["actor_step"] > 0 and row["critic_step"] > 0

    def test_it_is_trained_once(self, out: Path, manifest: Manifest):
        assert train_run(control("script", "CartPole-v1"), out) == manifest

    def test_it_is_trained_again_in_the_same_way_if_its_recording_is_gone(self, tmp_path: Path, manifest: Manifest):
        run = control("script", "CartPole-v1")
        again = train_run(run, tmp_path)
        assert again["witness"] == manifest["witness"]
        (tmp_path / "runs" / again["run_id"] / "run.json").unlink()
        assert manifest_of(run, tmp_path) is None
        third = train_run(run, tmp_path)
        assert [path.name for path in (tmp_path / "runs").iterdir()] == [third["run_id"]]


def test_what_was_trained_is_judged(out: Path):
    output = run_process(sys.executable, ROOT / "benchmarks" / "bench_detection.py", out, "--dry").stdout
    rows = [json.loads(line) for line in output.splitlines()]
    assert rows[-1]["healthy runs"] >= 3 and rows[-1]["faulty runs"] >= len(SAMPLE)
    assert rows[-1]["left out"] == 0
    assert [row["n"] for row in rows if row.get("measure") == "critical" and row["of"] == "all"] == [
        rows[-1]["faulty runs"]
    ]
    runs = ea.open(out / "runs")
    assert len(runs.list()) == len(list((out / "manifest").glob("*.json")))
    assert runs.table("gaps").collect().is_empty(), "the trainers call the recorder correctly"


def test_the_judge_asks_for_runs_if_there_are_none(tmp_path: Path):
    script = ROOT / "benchmarks" / "bench_detection.py"
    output = run_process(sys.executable, script, tmp_path, "--dry", code=1).stdout
    assert output.startswith(f"There are no finished runs in {tmp_path}. Train them: python benchmarks/train_faults.py")
