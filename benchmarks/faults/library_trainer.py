"""The healthy trainings of unchanged trainers: Stable-Baselines3's, sb3-contrib's and the example's own.

There is no harness in them, so they have no witness but the episodes' returns, which the recorded run has too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from sb3_contrib import MaskablePPO, RecurrentPPO
from sb3_contrib.common.wrappers import ActionMasker
from stable_baselines3 import PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.utils import set_random_seed
from stable_baselines3.common.vec_env import DummyVecEnv

from esper_recorder.sb3 import RecorderCallback
from examples.device_ppo import train_ppo_vectorized
from faults.seams import Settings

_ALGORITHMS: dict[str, tuple[type[Any], str]] = {
    "PPO": (PPO, "MlpPolicy"),
    "MaskablePPO": (MaskablePPO, "MlpPolicy"),
    "RecurrentPPO": (RecurrentPPO, "MlpLstmPolicy"),
}


def train(library: str, task: str, settings: Settings, seed: int, root: Path) -> None:
    """Train and record one run under `root`."""
    set_random_seed(seed)
    if library == "device_ppo":
        train_ppo_vectorized(n_episodes=settings.updates, n_envs=32, max_epochs=16, seed=seed, runs=root)
        return
    algorithm, policy = _ALGORITHMS[library]

    def make() -> gym.Env[Any, Any]:
        env: gym.Env[Any, Any] = Monitor(gym.make(task))
        return ActionMasker(env, _mask) if library == "MaskablePPO" else env

    model = algorithm(
        policy,
        DummyVecEnv([make] * settings.envs),
        n_steps=settings.steps,
        batch_size=settings.batch_size,
        n_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        gamma=settings.gamma,
        ent_coef=settings.entropy_coef,
        seed=seed,
        device="cpu",
    )
    callback = RecorderCallback(root, name=f"sb3-{task}", rules=None, escalate=None)
    model.learn(settings.updates * settings.envs * settings.steps, callback=callback)
    assert callback.recorder is not None
    callback.recorder.close()


def _mask(env: gym.Env[Any, Any]) -> np.ndarray:
    """Which actions are valid: a rule that often leaves one only."""
    state: Any = env.unwrapped
    position = float(np.asarray(state.state)[0])
    space: Any = env.action_space
    mask = np.ones(space.n, dtype=bool)
    mask[0], mask[-1] = position > -0.5, position < 0.5
    return mask
