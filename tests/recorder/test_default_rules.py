"""The default rules on trainings that go well and on one that does not: real ones, of Stable-Baselines3."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from esper_recorder.sb3 import RecorderCallback
from tests.recorder.storage.stored_updates import read_rows

pytestmark = pytest.mark.trains

ZOO_CARTPOLE = {"n_steps": 32, "batch_size": 256, "gae_lambda": 0.8, "gamma": 0.98, "n_epochs": 20}
ZOO_PENDULUM = {"n_steps": 1024, "gae_lambda": 0.95, "gamma": 0.9, "learning_rate": 1e-3}


def alarms(folder: Path, env: str, envs: int, steps: int, **settings: Any) -> list[dict[str, Any]]:
    """Train, and return what the watcher raised."""
    callback = RecorderCallback(folder, rules="default")
    PPO("MlpPolicy", make_vec_env(env, n_envs=envs, seed=3), device="cpu", seed=3, **settings).learn(steps, callback)
    (path,) = folder.iterdir()
    return read_rows(path, "alarms")


def falling(value: float) -> Any:
    return lambda left: left * value


@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "envs", "steps", "settings"),
    [
        ("CartPole-v1", 1, 8_000, {}),
        ("CartPole-v1", 8, 12_000, ZOO_CARTPOLE | {"learning_rate": falling(1e-3), "clip_range": falling(0.2)}),
        ("Acrobot-v1", 1, 10_000, {}),
        ("Pendulum-v1", 1, 10_000, {}),
        ("Pendulum-v1", 4, 20_000, ZOO_PENDULUM),
    ],
)
def test_a_healthy_training_has_nothing_critical(
    tmp_path: Path, env: str, envs: int, steps: int, settings: dict[str, Any]
) -> None:
    raised = alarms(tmp_path, env, envs, steps, **settings)
    assert [alarm for alarm in raised if alarm["severity"] == "critical"] == []


@pytest.mark.slow
@pytest.mark.parametrize("env", ["CartPole-v1", "Pendulum-v1"])
def test_a_training_with_a_hundred_times_the_learning_rate_is_critical(tmp_path: Path, env: str) -> None:
    raised = {alarm["rule"] for alarm in alarms(tmp_path, env, 1, 10_000, learning_rate=3e-2)}
    assert "ratio_explosion" in raised
