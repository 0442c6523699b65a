"""What the tests of the Stable-Baselines3 adapter share: tiny environments, and a training with all that it logged."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.logger import KVWriter, Logger

from esper_recorder.sb3 import RecorderCallback
from tests.recorder.storage.stored_updates import read_rows


class TinyEnv(gym.Env[Any, Any]):
    """Observations and rewards from a seeded generator and the action; episodes of 3 to 11 steps.

    `fail_at`: the step (counted over all episodes) at which `error` is raised.
    """

    def __init__(
        self,
        observations: spaces.Space[Any] | None = None,
        actions: spaces.Space[Any] | None = None,
        *,
        fail_at: int | None = None,
        error: BaseException | None = None,
        reward: float | None = None,
    ) -> None:
        self.observation_space = observations or spaces.Box(-1.0, 1.0, (3,), np.float32)
        self.action_space = actions or spaces.Discrete(3)
        self._random = np.random.default_rng(5)
        self._fail_at, self._error, self._reward = fail_at, error, reward
        self._taken = self._left = 0

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        super().reset(seed=seed)
        if seed is not None:
            self._random = np.random.default_rng(seed)
        self._left = int(self._random.integers(3, 12))
        return self._observe(), {}

    def step(self, action: Any) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        self._taken += 1
        if self._taken == self._fail_at and self._error is not None:
            raise self._error
        self._left -= 1
        reward = float(np.sum(action)) * 0.3 + float(self._random.normal())
        return self._observe(), self._reward if self._reward is not None else reward, self._left == 0, False, {}

    def action_masks(self) -> np.ndarray:
        """Some actions are forbidden; now and then there is no choice."""
        size = int(
            self.action_space.n if isinstance(self.action_space, spaces.Discrete) else sum(self.action_space.nvec)  # type: ignore[attr-defined]
        )
        mask = self._random.random(size) < 0.6
        mask[:: 2 if size == 3 else 1] |= self._random.random() < 0.5
        if isinstance(self.action_space, spaces.Discrete):
            mask[0] = True
        else:
            mask[np.cumsum([0, *self.action_space.nvec[:-1]])] = True  # type: ignore[attr-defined]
        return mask

    def _observe(self) -> Any:
        space = self.observation_space
        if isinstance(space, spaces.Dict):
            return {k: self._random.uniform(-1, 1, s.shape).astype(np.float32) for k, s in space.spaces.items()}
        return self._random.uniform(-1, 1, space.shape).astype(np.float32)


class Memory(KVWriter):
    """A logger output that keeps every dump."""

    def __init__(self) -> None:
        self.dumps: list[dict[str, Any]] = []

    def write(self, key_values: dict[str, Any], key_excluded: dict[str, Any], step: int = 0) -> None:
        self.dumps.append(dict(key_values))

    def close(self) -> None:
        return


@dataclass
class Training:
    """A training that is over: its model, everything it logged, and the rows recorded of it, if it was recorded."""

    model: Any
    logged: list[dict[str, Any]]
    summands: list[dict[str, float]] = field(default_factory=list)
    callback: RecorderCallback | None = None
    path: Path | None = None
    _tables: dict[str, list[dict[str, Any]]] = field(default_factory=dict)

    def rows(self, table: str) -> list[dict[str, Any]]:
        assert self.path is not None
        if table not in self._tables:
            self._tables[table] = sorted(read_rows(self.path, table), key=lambda row: row["update"])
        return self._tables[table]

    @property
    def trained(self) -> list[dict[str, Any]]:
        """What was logged of each update, in order."""
        updates = []
        for dump in self.logged:
            if "train/loss" in dump:
                updates.append(dump)
        return updates


def train(make: Callable[[], Any], steps: int, root: Path | None = None, **options: Any) -> Training:
    """Make a model and train it, recorded under `root` where given. Each update's scalars are dumped on their own."""
    model = make()
    memory = Memory()
    model.set_logger(Logger(None, [memory]))
    update = model.train
    summands = Summands(model) if root is None else None

    def logged_update() -> None:
        update()
        if summands is not None:
            summands.end_update()
        model.logger.dump(model.num_timesteps)

    model.train = logged_update
    callback = None if root is None else RecorderCallback(root, rules=None, **options)
    model.learn(steps, callback=callback, log_interval=1)
    del model.__dict__["train"]
    return Training(
        model,
        memory.dumps,
        [] if summands is None else summands.updates,
        callback,
        None if callback is None else callback.path,
    )


def state(model: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """Every tensor of the policy and of its optimizer, by name."""
    yield from model.policy.state_dict().items()
    for i, values in model.policy.optimizer.state_dict()["state"].items():
        for name, value in values.items():
            yield f"optimizer {i} {name}", torch.as_tensor(value)


def assert_same_state(a: Any, b: Any) -> None:
    """Bitwise: the same names, types and bytes."""
    left, right = dict(state(a)), dict(state(b))
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert tensor.dtype == right[name].dtype, name
        assert tensor.numpy().tobytes() == right[name].numpy().tobytes(), f"{name} differs"


class Summands:
    """Mean absolute summand of every scalar SB3 logs, update by update: what a tolerance is measured against.

    Watches an unrecorded model, by means of the test's own.
    """

    def __init__(self, model: Any) -> None:
        self.updates: list[dict[str, float]] = []
        self._model = model
        self._epochs: list[list[dict[str, float]]] = []
        self._samples: Any = None
        self._get, self._evaluate = model.rollout_buffer.get, model.policy.evaluate_actions
        model.rollout_buffer.__dict__["get"] = self.get
        model.policy.__dict__["evaluate_actions"] = self.evaluate

    def get(self, *args: Any) -> Iterator[Any]:
        self._epochs.append([])
        for samples in self._get(*args):
            self._samples = samples
            yield samples

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        values, log_prob, entropy = self._evaluate(*args, **kwargs)
        samples, model = self._samples, self._model
        with torch.no_grad():
            mask = samples.mask > 1e-8 if hasattr(samples, "mask") else torch.ones_like(log_prob, dtype=torch.bool)
            advantages = samples.advantages
            if model.normalize_advantage and mask.sum() > 1:
                advantages = (advantages - advantages[mask].mean()) / advantages[mask].std()
            log_ratio = log_prob - samples.old_log_prob
            error = samples.returns - values.flatten()
            summands = {
                "train/approx_kl": (log_ratio.exp() - 1) - log_ratio,
                "train/policy_gradient_loss": advantages * log_ratio.exp(),
                "train/entropy_loss": log_prob if entropy is None else entropy,
                "train/value_loss": error * error,
                "train/clip_fraction": torch.ones_like(log_ratio),
            }
            self._epochs[-1].append({name: float(x[mask].abs().mean()) for name, x in summands.items()})
        return values, log_prob, entropy

    def end_update(self) -> None:
        every = [minibatch for epoch in self._epochs for minibatch in epoch]
        update = {name: float(np.mean([m[name] for m in every])) for name in every[0]}
        update["train/approx_kl"] = float(np.mean([m["train/approx_kl"] for m in self._epochs[-1]]))
        last = every[-1]
        update["train/loss"] = (
            last["train/policy_gradient_loss"]
            + self._model.ent_coef * last["train/entropy_loss"]
            + self._model.vf_coef * last["train/value_loss"]
        )
        self.updates.append(update)
        self._epochs = []


def ppo(env: Any = None, **changes: Any) -> PPO:
    options = {"n_steps": 32, "batch_size": 16, "n_epochs": 2, "seed": 3, "device": "cpu"}
    return PPO("MlpPolicy", env or TinyEnv(), **{**options, **changes}, policy_kwargs={"net_arch": [8]})


def callback(root: Path, **options: Any) -> RecorderCallback:
    return RecorderCallback(root, **{"rules": None, **options})


def rows(recorded: RecorderCallback, table: str) -> list[dict[str, Any]]:
    assert recorded.path is not None
    return sorted(read_rows(recorded.path, table), key=lambda row: row["update"])
