"""The whole road on real trainings: recorded by one process, watched, killed or starved of disk, asked by another."""

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

ESPER = Path(sys.executable).with_name("esper")

# PPO on CartPole that reports each update it has finished, and says at the end what its weights are.
TRAINER = """
import hashlib, logging, sys
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from esper_recorder.sb3 import RecorderCallback

torch.set_num_threads(1)
logging.basicConfig(level=logging.WARNING)
root, steps = sys.argv[1], int(sys.argv[2])

class Tell(BaseCallback):
    updates = -1
    def _on_rollout_start(self):
        self.updates += 1
        print("update", self.updates, flush=True)
    def _on_step(self):
        return True

model = PPO("MlpPolicy", "CartPole-v1", n_steps=128, n_epochs=2, seed=4, device="cpu")
callbacks = [Tell()] if root == "none" else [RecorderCallback(root, name="run"), Tell()]
model.learn(steps, callback=callbacks)
weights = b"".join(p.detach().numpy().tobytes() for p in model.policy.parameters())
print("weights", hashlib.sha256(weights).hexdigest(), flush=True)
"""


def esper(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([ESPER, *words], capture_output=True, text=True, check=False, timeout=120)


def train(root: Path | str, steps: int) -> tuple[str, str]:
    """Train to the end; the hash of the weights and what was logged."""
    command = [sys.executable, "-c", TRAINER, str(root), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return done.stdout.split("weights ")[1].strip(), done.stderr


class TestTheDemo:
    """`esper demo`: a run that learns and one that a learning rate of 0.03 wrecks."""

    def replay(self, demo: Path, *words: str) -> tuple[int, list[dict[str, Any]]]:
        done = esper("replay", demo / "runs", "--format", "json", *words)
        assert done.returncode in (0, 1), done.stderr
        return done.returncode, json.loads(done.stdout)

    def test_the_wrecked_run_is_found_and_the_healthy_one_has_nothing_critical(self, demo_folder):
        status, incidents = self.replay(demo_folder, "--rules", "default", "--run", "wrecked", "--fail-on", "critical")
        assert status == 1
        assert {"ratio_explosion", "kl_extreme"} <= {i["rule"] for i in incidents if i["severity"] == "critical"}
        status, incidents = self.replay(demo_folder, "--rules", "default", "--run", "healthy", "--fail-on", "critical")
        assert status == 0
        assert [i for i in incidents if i["severity"] == "critical"] == []

    def test_a_replay_with_the_runs_own_rules_gives_back_exactly_the_alarms_raised_while_it_was_recorded(
        self, demo_folder
    ):
        runs = ea.open(demo_folder / "runs")
        firings = ea.replay(runs, ea.load_rules("default")).firings
        alarms = runs.table("alarms").collect()
        columns = ["run_id", "update", "rule", "key", "severity", "value", "threshold", "phase", "progress"]
        order = ["run_id", "update", "rule", "key"]
        assert alarms.height > 10
        assert firings.select(columns).sort(order).equals(alarms.select(columns).sort(order))
        assert self.replay(demo_folder, "--against", "live", "--show", "diff") == (0, [])

    def test_another_threshold_changes_the_outcome_and_the_change_is_listed_update_by_update(self, demo_folder):
        ratios = ea.open(demo_folder / "runs")["wrecked"].table("ppo_updates").select("update", "ratio_max").collect()
        expected = ratios.filter(pl.col("ratio_max") > 3.0, pl.col("ratio_max") <= 10.0)["update"].to_list()
        words = ("--rules", "default", "--set", "ratio_explosion.above=3", "--against", "default", "--show", "diff")
        _, changes = self.replay(demo_folder, "--run", "wrecked", *words)
        assert expected
        assert [(c["rule"], c["update"], c["change"]) for c in changes] == [
            ("ratio_explosion", update, "new") for update in sorted(expected)
        ]

    def test_the_first_minibatch_of_every_update_had_the_ratio_one(self, demo_folder):
        worst = ea.open(demo_folder / "runs").sql(
            "SELECT max(greatest(ratio_max - 1, 1 - ratio_min)) AS w FROM minibatches WHERE minibatch = 1"
        )
        assert worst["w"][0] < 1e-4


def test_a_training_killed_half_way_is_live_until_then_and_keeps_every_update_it_had_finished(tmp_path):
    command = [sys.executable, "-c", TRAINER, str(tmp_path / "runs"), "1000000"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as trainer:
        assert trainer.stdout is not None
        for line in trainer.stdout:
            if line.split() == ["update", "6"]:
                break
        time.sleep(1.0)  # what waited to be written then is written
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
    # Two epochs of 128 / 64 minibatches: all tables of an update are there together.
    minibatches = runs.sql('SELECT "update", count(*) AS n FROM minibatches GROUP BY 1 ORDER BY 1')
    assert minibatches["update"].to_list() == updates
    assert set(minibatches["n"]) == {4}
    shown = esper("replay", tmp_path / "runs")
    assert shown.returncode == 0, shown.stderr
    report = esper("report", tmp_path / "runs", "-o", tmp_path / "report.md")
    assert report.returncode == 0, report.stderr
    assert "killed" in (tmp_path / "report.md").read_text()


def test_a_disk_that_fills_up_while_training_stops_nothing_and_the_loss_is_told(small_disk):
    # 60 updates; a disk of 1 MB holds the first dozen.
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


def test_a_folder_that_cannot_be_written_stops_no_training_and_is_told(tmp_path):
    (tmp_path / "runs").write_text("a file where the folder of runs should be")
    with_recorder, logged = train(tmp_path / "runs", 256)
    without, _ = train("none", 256)
    assert with_recorder == without
    assert str(tmp_path / "runs") in logged
    assert "Training goes on" in logged


@pytest.mark.parametrize("words", [("runs",), ("replay",), ("sql", "SELECT 1"), ("report", "-o", "r.html")])
def test_an_empty_folder_and_one_that_is_not_there_meet_a_sentence(tmp_path, words):
    (tmp_path / "empty").mkdir()
    command, *rest = words
    for folder in ("empty", "nowhere"):
        done = esper(command, tmp_path / folder, *rest)
        assert done.returncode in (2, 3)
        assert done.stdout == ""
        assert folder in done.stderr
        assert "Traceback" not in done.stderr
