"""The tasks, and their environments with the harness around them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Final

import gymnasium as gym
import numpy as np
import torch
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecEnvWrapper
from torch import Tensor

from examples.device_ppo import CartPole
from faults.harness import Harness


@dataclass(frozen=True)
class Task:
    """One task.

    Attributes:
        trainers: those that can train on it.
        settings: what a user would change for it.
        held_out: whether all of its runs are for judging; of the others every second seed is.
    """

    trainers: tuple[str, ...]
    settings: dict[str, Any]
    continuous: bool = False
    held_out: bool = False


_GYM: Final = ("sb3", "script")

_DEVICE: Final = {
    "envs": 32,
    "steps": 16,
    "batch_size": 128,
    "epochs": 8,
    "learning_rate": 2.5e-3,
    "entropy_coef": 0.01,
}

TASKS: Final = {
    "CartPole-v1": Task(_GYM, {}),
    "Pendulum-v1": Task(_GYM, {"gamma": 0.9, "learning_rate": 2e-3, "epochs": 10}, continuous=True),
    "Acrobot-v1": Task(_GYM, {"learning_rate": 2e-3, "entropy_coef": 0.01}, held_out=True),
    "poles": Task(("device",), _DEVICE),
    "hidden-poles": Task(("device",), _DEVICE, held_out=True),
}
"""By name. `poles` is the example's CartPole with two action heads; in `hidden-poles` velocities are hidden."""


def gym_environments(task: str, seeds: list[int]) -> HarnessedEnv:
    """A task of Gymnasium's, one environment per seed."""
    make: list[Callable[[], gym.Env[Any, Any]]] = [partial(_monitored, task) for _ in seeds]
    vectorized = DummyVecEnv(make)
    vectorized._seeds = list(seeds)
    return HarnessedEnv(vectorized)


def _monitored(task: str) -> gym.Env[Any, Any]:
    return Monitor(gym.make(task))


class HarnessedEnv(VecEnvWrapper):
    """Environments of Stable-Baselines3 whose actions, observations, rewards and ends pass the harness.

    Episodes are counted inside, in the environment's own rewards. `harness` is set when there is a model.

    """

    harness: Harness

    def reset(self) -> Any:
        return self.harness.observed(_tensor(self.venv.reset())).numpy()

    def step_async(self, actions: np.ndarray) -> None:
        self.venv.step_async(self.harness.executed(torch.from_numpy(np.array(actions))).numpy())

    def step_wait(self) -> Any:
        observations, rewards, dones, infos = self.venv.step_wait()
        truncated = torch.tensor([bool(info.get("TimeLimit.truncated", False)) for info in infos])
        known = self.harness.timed_out(truncated).tolist()
        for info, known_truncated in zip(infos, known, strict=True):
            info["TimeLimit.truncated"] = known_truncated
            if "episode" in info:
                self.harness.witness.episode(float(info["episode"]["r"]))
        given = self.harness.rewarded(_tensor(rewards), torch.from_numpy(np.asarray(dones))).numpy()
        return self.harness.observed(_tensor(observations)).numpy(), given, dones, infos


def _tensor(array: Any) -> Tensor:
    return torch.from_numpy(np.array(array, dtype=np.float32))


class TwoHeadedPoles(CartPole):
    """The example's poles: one head chooses the side, the other whether to push with half or all of the force."""

    heads: Final = {"side": 2, "force": 2}

    def push(self, actions: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Step with actions [envs, 2]; the example's own action may be any number from 0 to 1."""
        side, force = actions.unbind(-1)
        return self.step(0.5 + (side - 0.5) * (0.5 + 0.5 * force))

    @staticmethod
    def seen(state: Tensor, hidden: bool) -> Tensor:
        """What the policy sees of a state."""
        return state * torch.tensor([1.0, 0.0, 1.0, 0.0]) if hidden else state
