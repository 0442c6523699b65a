"""Healthy trainings, the hard ones among them: what a rule must not fire on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import torch
from torch import Tensor

from faults.fault_class import MIDWAY
from faults.seams import Seams, Training

_GYM = ("sb3", "script")
_ALL = ("sb3", "script", "device")


class Normalized(Seams):
    """Observations are normalised with running statistics, the same while acting and in training."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.n, self.sum, self.squares = 0, torch.zeros(()), torch.zeros(())

    def observed(self, observations: Tensor) -> Tensor:
        self.n += len(observations)
        self.training.observations_normalized = self.n
        self.sum = self.sum + observations.sum(0)
        self.squares = self.squares + observations.square().sum(0)
        mean = self.sum / self.n
        deviation = (self.squares / self.n - mean.square()).clamp(min=1e-4).sqrt()
        return ((observations - mean) / deviation).clamp(-10, 10)


class WarmUp(Seams):
    """The learning rate rises from near 0 over a third of the training."""

    full: float | None = None

    def before_rollout(self) -> None:
        self.full = self.full or self.settings.learning_rate
        self.settings.learning_rate = self.full * min(1.0, self.training.update / (self.settings.updates / 3))


class ScheduleToZero(Seams):
    """Learning rate and clip range fall to 0 at the end, as the paper's do."""

    full: tuple[float, float] | None = None

    def before_rollout(self) -> None:
        self.full = self.full or (self.settings.learning_rate, self.settings.clip_range)
        left = 1 - (self.training.update - 1) / self.settings.updates
        self.settings.learning_rate, self.settings.clip_range = (value * left for value in self.full)


class EntropyAnnealed(Seams):
    """The entropy bonus falls from 0.05 to 0."""

    def before_rollout(self) -> None:
        self.settings.entropy_coef = 0.05 * (1 - (self.training.update - 1) / self.settings.updates)


class AnnouncedRescale(Seams):
    """From the middle on rewards count five times as much: the user changed their weights."""

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        return 5 * rewards


class SparseReward(Seams):
    """Only steps with the pendulum nearly upright and at rest are rewarded: long plateaus."""

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        return (rewards > -0.5).float()


class Curriculum(Seams):
    """Gravity is weaker in the first third of the training."""

    def before_rollout(self) -> None:
        easy = self.training.update <= self.settings.updates // 3
        for env in self.training.environment.envs:
            inner = env.unwrapped
            if hasattr(inner, "gravity"):
                inner.gravity = 4.9 if easy else 9.8
            else:
                inner.g = 5.0 if easy else 10.0


class Resumed(Seams):
    """The training is stopped and resumed with all of its state."""

    restarts = True


@dataclass(frozen=True)
class Variant:
    """A kind of healthy training.

    Attributes:
        description: what is special about it.
        tasks: those it applies to; all of the trainers' if None.
        library: train with the library's own unchanged algorithm, of this name (see `library_trainer.py`).
    """

    description: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    seams: type[Seams] = Seams
    onset: int = 1
    trainers: tuple[str, ...] = _ALL
    tasks: tuple[str, ...] | None = None
    library: str | None = None


_CART, _SWING = ("CartPole-v1",), ("Pendulum-v1",)

HEALTHY: Final = {
    "plain": Variant("The task's usual settings: the control of all faults."),
    "solved": Variant("Goes on long after the task is solved.", {"updates": 72}, trainers=_GYM, tasks=_CART),
    "long": Variant("Four times as long.", {"updates": 96}, trainers=_GYM, tasks=_SWING),
    "sparse_plateau": Variant("Rewards are rare.", seams=SparseReward, trainers=_GYM, tasks=_SWING),
    "warm_up": Variant("The learning rate warms up.", seams=WarmUp, tasks=("CartPole-v1", "poles")),
    "schedule_to_zero": Variant(
        "Learning rate and clip range fall to 0.", seams=ScheduleToZero, tasks=("CartPole-v1", "Pendulum-v1", "poles")
    ),
    "entropy_annealed": Variant("The entropy bonus falls to 0.", seams=EntropyAnnealed, tasks=("CartPole-v1", "poles")),
    "curriculum": Variant(
        "The task becomes harder.", seams=Curriculum, trainers=_GYM, tasks=("CartPole-v1", "Pendulum-v1")
    ),
    "announced_rescale": Variant(
        "The user changes the weight of the reward.",
        seams=AnnouncedRescale,
        onset=MIDWAY,
        tasks=("CartPole-v1", "poles"),
    ),
    "gsde": Variant(
        "State-dependent exploration.",
        {"use_sde": True, "learning_rate": 3e-4, "epochs": 5},
        trainers=("sb3",),
        tasks=_SWING,
    ),
    "tiny_network": Variant("Four hidden units.", {"hidden": 4}, tasks=("CartPole-v1", "poles")),
    "large_network": Variant("512 hidden units.", {"hidden": 512, "learning_rate": 3e-4}, trainers=_GYM, tasks=_CART),
    "relu": Variant("ReLU in place of tanh.", {"activation": "relu"}, tasks=("CartPole-v1", "Pendulum-v1", "poles")),
    "one_environment": Variant("One environment.", {"envs": 1, "steps": 512}, trainers=_GYM, tasks=_CART),
    "many_environments": Variant("32 environments.", {"envs": 32, "steps": 16}, trainers=_GYM, tasks=_CART),
    "target_kl": Variant(
        "Epochs stop at a target KL.", {"target_kl": 0.01}, trainers=_GYM, tasks=("CartPole-v1", "Pendulum-v1")
    ),
    "low_learning_rate": Variant("A cautious learning rate.", {"learning_rate": 1e-4}, trainers=_GYM, tasks=_CART),
    "high_entropy": Variant("Explores a lot.", {"entropy_coef": 0.05}, trainers=_GYM, tasks=_CART),
    "normalized": Variant("Observations are normalised.", seams=Normalized),
    "resumed": Variant("Resumed with all of its state.", seams=Resumed, onset=MIDWAY, trainers=("script", "device")),
    "library": Variant(
        "Stable-Baselines3's own PPO.", trainers=("sb3",), tasks=("CartPole-v1", "Pendulum-v1"), library="PPO"
    ),
    "masked": Variant(
        "Invalid actions are masked.", trainers=("sb3",), tasks=("CartPole-v1", "Acrobot-v1"), library="MaskablePPO"
    ),
    "recurrent": Variant(
        "sb3-contrib's recurrent PPO.",
        {"epochs": 4, "learning_rate": 3e-4},
        trainers=("sb3",),
        tasks=_CART,
        library="RecurrentPPO",
    ),
    "example": Variant(
        "examples/device_ppo.py as it is.", trainers=("device",), tasks=("poles",), library="device_ppo"
    ),
}
"""By name."""
