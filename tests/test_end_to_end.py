"""From a training to its analysis: recorded by one process, killed or without disk space, read by another."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import esper_analytics as ea
from tests.support import ESPER, run_process

pytestmark = pytest.mark.trains

# PPO on CartPole that prints each finished update, and the hash of its weights at the end.
TRAINER = """
import hashlib, logging, sys
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from esper_recorder.sb3 import RecorderCallback

torch.set_num_threads(1)
logging.basicConfig(level=logging.WARNING)
root, steps = sys.argv[1], int(sys.argv[2])

class PrintUpdates(BaseCallback):
    updates = -1
    def _on_rollout_start(self):
        self.updates += 1
        print("update", self.updates, flush=True)
    def _on_step(self):
        return True

model = PPO("MlpPolicy", "CartPole-v1", n_steps=128, n_epochs=2, seed=4, device="cpu")
callbacks = [PrintUpdates()] if root == "none" else [RecorderCallback(root, name="run"), PrintUpdates()]
model.learn(steps, callback=callbacks)
weights = b"".join(p.detach().numpy().tobytes() for p in model.policy.parameters())
print("weights", hashlib.sha256(weights).hexdigest(), flush=True)
"""


def train(root: Path | str, steps: int) -> tuple[str, str]:
    """Train to the end; return the hash of the weights and what was logged."""
    done = run_process(sys.executable, "-c", TRAINER, root, steps)
    return done.stdout.split("weights ")[1].strip(), done.stderr


class TestTheDemo:
    """`esper demo`: a run that learns and one that a broken learning rate schedule wrecks."""

    def replay(self, demo: Path, *options: str, code: int = 0) -> list[dict[str, Any]]:
        rows: list[dict[str, Any]] = json.loads(
            run_process(ESPER, "replay", demo / "runs", "--format", "json", *options, code=code).stdout
        )
        return rows

    def test_the_wrecked_run_is_found_and_the_healthy_one_has_nothing_critical(self, demo_folder):
        options = ("--rules", "default", "--fail-on", "critical")
        incidents = self.replay(demo_folder, *options, "--run", "wrecked", code=1)
        assert {"ratio_explosion", "kl_extreme"} <= {i["rule"] for i in incidents if i["severity"] == "critical"}
        incidents = self.replay(demo_folder, *options, "--run", "healthy")
        assert [i for i in incidents if i["severity"] == "critical"] == []

    def test_a_replay_with_a_runs_own_rules_gives_exactly_its_live_alarms(self, demo_folder):
        runs = ea.open(demo_folder / "runs")
        firings = ea.replay(runs, ea.load_rules("default")).firings
        alarms = runs.table("alarms").collect()
        columns = ["run_id", "update", "rule", "key", "severity", "value", "threshold", "phase", "progress"]
        order = ["run_id", "update", "rule", "key"]
        assert alarms.height > 5
        assert firings.select(columns).sort(order).equals(alarms.select(columns).sort(order))
        assert self.replay(demo_folder, "--against", "live", "--show", "diff") == []

    def test_another_threshold_changes_the_outcome_and_diff_lists_the_change_by_update(self, demo_folder):
        # Just below the highest ratio that the shipped threshold, 10, lets pass: at least that update is new, whatever
        # numbers the training gave on this CPU.
        ratios = ea.open(demo_folder / "runs")["wrecked"].table("ppo_updates").select("update", "ratio_max").collect()
        below = ratios.filter(pl.col("ratio_max") <= 10.0)
        threshold = 0.999 * max(below["ratio_max"].to_list())
        expected = below.filter(pl.col("ratio_max") > threshold)["update"].to_list()
        setting = f"ratio_explosion.above={threshold}"
        options = ("--rules", "default", "--set", setting, "--against", "default", "--show", "diff")
        changes = self.replay(demo_folder, "--run", "wrecked", *options)
        assert expected
        assert [(c["rule"], c["update"], c["change"]) for c in changes] == [
            ("ratio_explosion", update, "new") for update in sorted(expected)
        ]

    def test_the_first_minibatch_of_every_update_had_the_ratio_one(self, demo_folder):
        worst = ea.open(demo_folder / "runs").sql(
            "SELECT max(greatest(ratio_max - 1, 1 - ratio_min)) AS w FROM minibatches WHERE minibatch = 1"
        )
        assert worst["w"][0] < 1e-4


def test_a_killed_training_is_live_until_then_and_keeps_every_finished_update(tmp_path):
    command = [sys.executable, "-c", TRAINER, str(tmp_path / "runs"), "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        for line in trainer.stdout:
            if line.split() == ["update", "6"]:
                break
        time.sleep(1.0)  # the writer catches up
        seen_live = ea.open(tmp_path / "runs").list()
        os.kill(trainer.pid, signal.SIGKILL)
        trainer.wait()
    assert seen_live["ended"].to_list() == ["live"]
    assert seen_live["updates"][0] >= 6
    runs = ea.open(tmp_path / "runs")
    assert runs.list()["ended"].to_list() == ["killed"]
    updates = runs.table("ppo_updates").collect()["update"].sort().to_list()
    assert updates == list(range(1, len(updates) + 1))  # none missing, none twice
    assert len(updates) >= seen_live["updates"][0]
    # Two epochs of 128 / 64 minibatches: the tables of an update are complete together.
    minibatches = runs.sql('SELECT "update", count(*) AS n FROM minibatches GROUP BY 1 ORDER BY 1')
    assert minibatches["update"].to_list() == updates
    assert set(minibatches["n"]) == {4}
    run_process(ESPER, "replay", tmp_path / "runs")
    run_process(ESPER, "report", tmp_path / "runs", "-o", tmp_path / "report.md")
    assert "killed" in (tmp_path / "report.md").read_text()


def test_a_full_disk_does_not_stop_the_training_and_the_gap_is_logged(small_disk):
    # 60 updates; a disk of 1 MB, most of it taken, holds the first dozens.
    (small_disk / "other").write_bytes(bytes(600_000))
    with_recorder, logged = train(small_disk / "runs", 60 * 128)
    without, _ = train("none", 60 * 128)
    assert with_recorder == without
    assert "No space left" in logged
    assert "The recording is not complete" in logged
    runs = ea.open(small_disk / "runs")
    updates = runs.table("ppo_updates").collect()["update"].sort().to_list()
    assert 0 < len(updates) < 60
    assert len(set(updates)) == len(updates)
    assert runs.list()["complete"].to_list() == [False]


def test_a_folder_that_cannot_be_written_does_not_stop_the_training_and_is_logged(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder of runs should be")
    with_recorder, logged = train(tmp_path / "runs", 256)
    without, _ = train("none", 256)
    assert with_recorder == without
    assert str(tmp_path / "runs") in logged
    assert "Training continues" in logged


@pytest.mark.parametrize("arguments", [("runs",), ("replay",), ("sql", "SELECT 1"), ("report", "-o", "r.html")])
def test_an_empty_folder_and_a_missing_one_give_a_message(tmp_path, arguments):
    (tmp_path / "empty").mkdir()
    command, *rest = arguments
    for folder in ("empty", "nowhere"):
        done = run_process(ESPER, command, tmp_path / folder, *rest, code=None)
        assert done.returncode in (2, 3)
        assert done.stdout == ""
        assert folder in done.stderr
        assert "Traceback" not in done.stderr
