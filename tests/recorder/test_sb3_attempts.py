"""Runs and attempts of the Stable-Baselines3 adapter: one callback over several calls of `learn()`."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import esper_analytics as ea
from esper_recorder import Recorder
from esper_recorder.storage.manifest import how_it_ended, read_manifest
from tests.recorder.sb3_runs import TinyEnv, callback, ppo, rows
from tests.recorder.storage.stored_updates import read_rows

pytestmark = pytest.mark.trains

MANY_CALLS = """
import json, sys
from pathlib import Path
from typing import Any
from stable_baselines3 import PPO
from esper_recorder.sb3 import RecorderCallback
from tests.recorder.sb3_runs import TinyEnv

opened = 0

def count(event, arguments):
    global opened
    opened += event == "open"

def bytes_read():
    lines = Path("/proc/self/io").read_text().splitlines()
    return int(next(line for line in lines if line.startswith("rchar")).split()[1])

model = PPO("MlpPolicy", TinyEnv(), n_steps=16, batch_size=16, n_epochs=1, seed=1, device="cpu")
callback = RecorderCallback(sys.argv[1])
opens, read, sizes = [], [], []
sys.addaudithook(count)
for _ in range(24):
    before = opened, bytes_read()
    model.learn(16, callback=callback, reset_num_timesteps=False)
    opens.append(opened - before[0])
    read.append(bytes_read() - before[1])
    sizes.append((callback.path / "run.json").stat().st_size)
print(json.dumps([opens, read, sizes]))
"""


class TestLearningOn:
    def test_learning_on_continues_the_attempt(self, tmp_path: Path):
        model = ppo()
        recorded = callback(tmp_path)
        model.learn(64, callback=recorded)
        first = recorded.run_id
        assert recorded.path is not None and how_it_ended(recorded.path) == "finished"
        model.learn(64, callback=recorded, reset_num_timesteps=False)
        assert recorded.run_id == first
        assert [(r["attempt"], r["update"], r["step"]) for r in rows(recorded, "ppo_updates")] == [
            (1, 1, 32),
            (1, 2, 64),
            (1, 3, 96),
            (1, 4, 128),
        ]
        # Of 64 steps, and then of the 128 that the training is known to have: 96 / 128.
        assert [r["progress"] for r in rows(recorded, "ppo_updates")] == [0.5, 1.0, 0.75, 1.0]
        manifest = read_manifest(recorded.path)
        assert [(a.attempt, a.how, a.updates) for a in manifest.attempts] == [(1, "finished", 4)]
        assert manifest.total_steps == 128 and how_it_ended(recorded.path) == "finished"
        assert [r["elapsed_s"] for r in rows(recorded, "ppo_updates")] == sorted(
            r["elapsed_s"] for r in rows(recorded, "ppo_updates")
        )
        assert ea.open(tmp_path).list()["complete"].to_list() == [True]
        assert len({r["episode"] for r in rows(recorded, "episodes")}) == len(rows(recorded, "episodes"))

    def test_progress_is_that_of_the_whole_training_where_its_length_is_given(self, tmp_path: Path):
        model = ppo()
        recorded = callback(tmp_path, total_steps=256)
        for _ in range(4):
            model.learn(32, callback=recorded, reset_num_timesteps=False)
        assert [r["progress"] for r in rows(recorded, "ppo_updates")] == [1 / 8, 2 / 8, 3 / 8, 4 / 8]

    def test_learning_from_zero_again_begins_another_run(self, tmp_path: Path):
        model = ppo()
        recorded = callback(tmp_path)
        model.learn(32, callback=recorded)
        model.learn(32, callback=recorded, reset_num_timesteps=False)
        model.learn(32, callback=recorded)
        runs = sorted(tmp_path.iterdir(), key=lambda run: len(read_rows(run, "ppo_updates")))
        assert [len(read_rows(run, "ppo_updates")) for run in runs] == [1, 2]
        assert recorded.path == runs[0]

    def test_a_run_that_another_process_resumed_meanwhile_gets_another_attempt(self, tmp_path: Path):
        model = ppo()
        recorded = callback(tmp_path)
        model.learn(32, callback=recorded)
        with Recorder(tmp_path, resume=recorded.run_id, rules=None) as other:
            other.end_update()
        model.learn(32, callback=recorded, reset_num_timesteps=False)
        assert [(r["attempt"], r["update"]) for r in rows(recorded, "ppo_updates")] == [(1, 1), (2, 2), (3, 3)]

    def test_another_model_gets_another_attempt(self, tmp_path: Path):
        recorded = callback(tmp_path)
        ppo().learn(32, callback=recorded)
        ppo().learn(32, callback=recorded, reset_num_timesteps=False)
        assert [(r["attempt"], r["update"]) for r in rows(recorded, "ppo_updates")] == [(1, 1), (2, 2)]

    def test_a_run_json_damaged_meanwhile_begins_another_run_and_not_an_error(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        model = ppo()
        recorded = callback(tmp_path)
        model.learn(32, callback=recorded)
        first = recorded.path
        assert first is not None
        (first / "run.json").write_text("{")
        model.learn(32, callback=recorded, reset_num_timesteps=False)
        assert recorded.path != first and len(rows(recorded, "ppo_updates")) == 1
        assert "The run is not continued but another begins" in caplog.text

    @pytest.mark.slow
    def test_a_later_call_opens_and_reads_no_more_than_an_early_one(
        self, tmp_path: Path, run_python: Callable[..., str]
    ):
        opens, read, sizes = json.loads(run_python(MANY_CALLS, str(tmp_path)).splitlines()[-1])
        early, late = slice(2, 10), slice(16, 24)
        # A heartbeat, every 5 seconds, is one more.
        assert max(opens[late]) <= max(opens[early]) + 1
        assert sum(read[late]) <= 1.1 * sum(read[early])
        assert sizes[-1] <= sizes[2] + 100, "the numbers of steps and updates in run.json have more digits"
        (run,) = tmp_path.iterdir()
        assert len(read_manifest(run).attempts) == 1 and len(read_rows(run, "ppo_updates")) == 24

    def test_learning_on_after_the_run_was_deleted_begins_another(self, tmp_path: Path):
        model = ppo()
        recorded = callback(tmp_path)
        model.learn(32, callback=recorded)
        first = recorded.path
        assert first is not None
        shutil.rmtree(first)
        model.learn(32, callback=recorded, reset_num_timesteps=False)
        assert recorded.path != first and len(rows(recorded, "ppo_updates")) == 1


class Unreadable(TinyEnv):
    @property
    def spec(self) -> Any:
        raise RuntimeError("no spec")

    @spec.setter
    def spec(self, value: Any) -> None:
        pass


class TestTheStart:
    @pytest.mark.parametrize("config", [{"note": 1}, Path("a"), ["b"], object(), Unreadable])
    def test_whatever_the_config_is_the_training_is_recorded(self, tmp_path: Path, config: Any):
        recorded = callback(tmp_path, config=config)
        ppo().learn(32, callback=recorded)
        assert len(rows(recorded, "ppo_updates")) == 1 and recorded.path is not None
        kept = read_manifest(recorded.path).config
        assert kept["n_steps"] == 32 and ("note" in kept or "config" in kept)

    def test_hyperparameters_and_an_environment_that_cannot_be_read_cost_themselves(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        def schedule(remaining: float) -> float:
            if remaining == 1.0:
                raise RuntimeError("not at the start")
            return 0.2

        model = ppo(env=Unreadable())
        model.clip_range_vf = schedule
        recorded = callback(tmp_path)
        model.learn(32, callback=recorded)
        assert recorded.run_id is not None and recorded.run_id.startswith("PPO-2")
        assert len(rows(recorded, "ppo_updates")) == 1
        assert "run.json has no hyperparameters: RuntimeError: not at the start" in caplog.text
