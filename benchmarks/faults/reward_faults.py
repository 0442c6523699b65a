"""Faults whose chain begins with the reward."""

from __future__ import annotations

import torch
from torch import Tensor

from faults.fault_class import MIDWAY, fault, shown, witnessed
from faults.seams import Seams

_SQUARE = "rollout_reward_sum_sq / rollout_reward_n"
_CHANGED = witnessed("reward_change")


@fault("reward_scale_up", cause="reward_scale", chain="reward", proof=shown(_SQUARE, ">", 1e5, of_control=True))
class RewardScaleUp(Seams):
    """Rewards are a thousand times too large."""

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        return 1000 * rewards


@fault(
    "reward_scale_up_midway",
    cause="reward_scale",
    chain="reward",
    onset=MIDWAY,
    proof=shown(_SQUARE, ">", 1e3, of_control=True),
)
class RewardScaleUpMidway(RewardScaleUp):
    """Rewards become a thousand times larger during the training."""


@fault("reward_scale_down", cause="reward_scale", chain="reward", proof=shown(_SQUARE, "<", 1e-5, of_control=True))
class RewardScaleDown(Seams):
    """Rewards are ten thousand times too small."""

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        return 1e-4 * rewards


@fault("reward_constant", cause="reward_constant", chain="reward", proof=shown(_SQUARE, "<", 1e-12))
class RewardConstant(Seams):
    """The reward function returns 0 whatever happens."""

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        return torch.zeros_like(rewards)


@fault("reward_sign", cause="reward_sign", chain="reward", proof=_CHANGED)
class RewardSign(Seams):
    """A cost is passed as a reward."""

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        return -rewards


@fault("reward_delayed", cause="reward_delayed", chain="reward", proof=_CHANGED)
class RewardDelayed(Seams):
    """An episode's rewards are all paid with its last step."""

    owed: Tensor | None = None

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        owed = rewards if self.owed is None else self.owed + rewards
        self.owed = torch.where(dones.bool(), 0.0, owed)
        return torch.where(dones.bool(), owed, 0.0)


@fault(
    "reward_outlier", cause="reward_outlier", chain="reward", onset=MIDWAY, proof=shown("rollout_reward_min", "<", -1e5)
)
class RewardOutlier(Seams):
    """One reward of one environment is -1e6."""

    calls = 0
    value = -1e6

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.settings.steps // 2:
            rewards = rewards.clone()
            rewards[3] = self.value
        return rewards


@fault(
    "nonfinite_reward", cause="nonfinite_reward", chain="reward", onset=MIDWAY, proof=shown("rollout_nonfinite", ">", 0)
)
class NonfiniteReward(RewardOutlier):
    """One reward of one environment is NaN."""

    value = torch.nan


@fault(
    "reward_noise",
    cause="reward_noise",
    chain="reward",
    proof=shown(
        f"{_SQUARE} - (rollout_reward_sum / rollout_reward_n) * (rollout_reward_sum / rollout_reward_n)",
        ">",
        3,
        of_control=True,
    ),
)
class RewardNoise(Seams):
    """Noise ten times as large as the reward is added to it."""

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        return rewards + 10 * torch.randn(rewards.shape, generator=self.training.random)


@fault(
    "reward_misattributed",
    cause="reward_misattributed",
    chain="reward",
    tasks=("Pendulum-v1", "Acrobot-v1"),
    proof=witnessed("reward_change", within=8),
)
class RewardMisattributed(Seams):
    """Each environment gets the reward of another one."""

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        return rewards.roll(1, 0)


@fault(
    "reward_accumulates",
    cause="reward_scale",
    chain="reward",
    settings={"entropy_coef": 0.15},
    proof=shown(_SQUARE, ">", 8, of_control=True),
)
class RewardAccumulates(Seams):
    """A penalty meant for a step is never reset, and grows with the episode."""

    steps: Tensor | None = None

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        steps = torch.ones_like(rewards) if self.steps is None else self.steps + 1
        self.steps = torch.where(dones.bool(), 0.0, steps)
        return rewards - steps


@fault(
    "reward_clipped",
    cause="reward_clipped",
    chain="reward",
    tasks=("Pendulum-v1",),
    proof=shown("rollout_reward_min", ">", -0.2),
)
class RewardClipped(Seams):
    """Rewards are clipped to a range that was meant for another task."""

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        return rewards.clamp(-0.1, 0.1)
