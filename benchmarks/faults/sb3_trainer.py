"""Stable-Baselines3's PPO, recorded by the callback: a subclass whose `train` is split where a fault can be put."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.utils import set_random_seed
from torch import nn

from esper_recorder.sb3 import RecorderCallback
from faults.harness import Harness
from faults.seams import Minibatch, Rollout, Seams, Settings, Training
from faults.tasks import gym_environments
from faults.witness import Witness


class Buffer(RolloutBuffer):
    """A rollout buffer whose advantages the harness computes."""

    harness: Harness
    chosen: torch.Tensor

    def _get_samples(self, batch_inds: np.ndarray, env: Any = None) -> Any:
        self.chosen = torch.from_numpy(batch_inds)
        return super()._get_samples(batch_inds, env)

    def compute_returns_and_advantage(self, last_values: torch.Tensor, dones: np.ndarray) -> None:
        names = ("observations", "actions", "log_probs", "values", "rewards", "advantages", "returns")
        rollout: Rollout = {name: torch.from_numpy(getattr(self, name)) for name in names}
        ended = np.concatenate([self.episode_starts[1:], dones[None]]).astype(np.float32)
        rollout |= {"dones": torch.from_numpy(ended), "last_values": last_values.detach().flatten()}
        self.harness.advantages(rollout)


class SteeredBuffer(Buffer):
    """Takes its minibatches, and what it holds at each epoch, from the harness: as a subclass of the user's would."""

    def get(self, batch_size: int | None = None) -> Iterator[Any]:  # type: ignore[override]
        transitions = self.buffer_size * self.n_envs
        if not self.generator_ready:
            for name in ("observations", "actions", "values", "log_probs", "advantages", "returns"):
                setattr(self, name, self.swap_and_flatten(getattr(self, name)))
            self.generator_ready = True
        names = ("observations", "actions", "log_probs")
        rollout: Rollout = {name: torch.from_numpy(getattr(self, name)) for name in names}
        self.harness.begin_epoch(rollout | {"log_probs": rollout["log_probs"].squeeze(-1)})
        order = self.harness.steps.order(transitions).numpy()
        for start in range(0, transitions, batch_size or transitions):
            yield self._get_samples(order[start : start + (batch_size or transitions)])


class HarnessedPpo(PPO):
    """PPO with the steps of the harness."""

    harness: Harness
    rollouts = 0

    def collect_rollouts(self, *args: Any, **kwargs: Any) -> bool:
        harness, settings = self.harness, self.harness.training.settings
        self.rollouts += 1
        harness.begin(self.rollouts)
        self.policy.optimizer = harness.training.optimizer
        self.apply(settings)
        return super().collect_rollouts(*args, **kwargs)

    def apply(self, settings: Settings) -> None:
        """Take over what may have changed."""
        self.n_epochs, self.ent_coef, self.vf_coef = settings.epochs, settings.entropy_coef, settings.value_coef
        self.max_grad_norm, self.normalize_advantage = settings.max_grad_norm, settings.normalize_advantages

    def train(self) -> None:
        harness, buffer = self.harness, cast(Buffer, self.rollout_buffer)
        harness.begin_training()
        self.policy.set_training_mode(True)
        self._update_learning_rate(self.policy.optimizer)
        stopped = False
        for _ in range(self.n_epochs):
            if not isinstance(buffer, SteeredBuffer):
                harness.begin_epoch({"log_probs": torch.empty(0)})  # nothing there is replaced
            for samples in buffer.get(self.batch_size):
                actions = samples.actions
                if isinstance(self.action_space, spaces.Discrete):
                    actions = actions.long().flatten()
                observations = harness.learned_from(samples.observations)
                values, log_probs, entropy = self.policy.evaluate_actions(observations, actions)
                batch = Minibatch(
                    log_probs,
                    samples.old_log_prob,
                    samples.advantages,
                    values.flatten(),
                    samples.returns,
                    -log_probs if entropy is None else entropy,
                )
                batch = harness.old_log_probs(batch)
                if self.target_kl is not None:
                    log_ratio = (log_probs - batch.old_log_probs).detach()
                    stopped = float((log_ratio.exp() - 1 - log_ratio).mean()) > 1.5 * self.target_kl
                    if stopped:
                        break
                harness.train(batch, buffer.chosen)
                nn.utils.clip_grad_norm_(self.policy.parameters(), self.max_grad_norm)
                harness.step()
            if stopped:
                break
        harness.end_update()


def train(
    task: str,
    settings: Settings,
    seed: int,
    fault: type[Seams],
    onset: int,
    root: Path,
    begun: Callable[[Witness], None],
) -> None:
    """Train and record one run under `root`. `begun` is called with the witness before the first update."""
    set_random_seed(seed)
    env = gym_environments(task, fault.environment_seeds(seed, settings.envs))
    steered = any(getattr(fault, name) is not getattr(Seams, name) for name in ("order", "begin_epoch"))
    model = HarnessedPpo(
        "MlpPolicy",
        env,
        n_steps=settings.steps,
        batch_size=settings.batch_size,
        n_epochs=settings.epochs,
        learning_rate=lambda _: settings.learning_rate,
        clip_range=lambda _: settings.clip_range,
        gamma=settings.gamma,
        gae_lambda=settings.gae_lambda,
        ent_coef=settings.entropy_coef,
        vf_coef=settings.value_coef,
        max_grad_norm=settings.max_grad_norm,
        normalize_advantage=settings.normalize_advantages,
        target_kl=settings.target_kl,
        use_sde=settings.use_sde,
        rollout_buffer_class=SteeredBuffer if steered else Buffer,
        policy_kwargs=_network(settings),
        device="cpu",
    )
    policy: Any = model.policy
    training = Training(
        settings,
        seed,
        policy,
        policy.optimizer,
        policy.mlp_extractor.policy_net,
        policy.action_net,
        ("value_net",),
        getattr(policy, "log_std", None),
    )
    harness = Harness(training, fault, onset)
    begun(harness.witness)

    def log_probs_of(rollout: Rollout) -> torch.Tensor:
        with torch.no_grad():
            actions = rollout["actions"]
            discrete = isinstance(model.action_space, spaces.Discrete)
            if not discrete and actions.ndim == 1:
                actions = actions[:, None]
            observations = rollout["observations"]
            if observations.ndim > 2:
                observations, actions = observations.flatten(0, 1), actions.flatten(0, 1)
            actions = actions.long().flatten() if discrete else actions
            found: torch.Tensor = policy.evaluate_actions(observations, actions)[1]
            return found.view_as(rollout["log_probs"])

    training.log_probs_of = log_probs_of
    model.harness = harness
    env.harness = harness
    model.rollout_buffer.harness = harness  # type: ignore[attr-defined]
    training.environment = env.venv
    harness.begin(1)
    model.apply(settings)
    policy.optimizer = training.optimizer
    # No rules and no escalation: the recording must not depend on what is calibrated on it.
    callback = RecorderCallback(root, name=f"sb3-{task}", rules=None, escalate=None)
    try:
        model.learn(settings.updates * settings.envs * settings.steps, callback=callback)
    finally:
        if callback.recorder is not None:
            callback.recorder.close()


def _network(settings: Settings) -> dict[str, Any]:
    """What differs from the policy that Stable-Baselines3 makes."""
    different: dict[str, Any] = {"log_std_init": float(np.log(settings.initial_std))}
    if settings.hidden != Settings.hidden:
        different["net_arch"] = [settings.hidden, settings.hidden]
    if settings.activation == "relu":
        different["activation_fn"] = nn.ReLU
    return different
