"""Faults whose chain begins between the rewards and the loss: dones, returns, advantages, the rollout's storage."""

from __future__ import annotations

import torch
from torch import Tensor

from faults.fault_class import fault, shown, witnessed
from faults.reward_faults import RewardScaleUp
from faults.seams import Rollout, Seams, Training


@fault(
    "done_flag_ignored",
    cause="done_flag_ignored",
    chain="return",
    proof=witnessed("end_target_gap", ">", 0.02, within=6),
)
class DoneFlagIgnored(Seams):
    """Advantages carry the next episode's value over an episode's end."""

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        return super().advantages(rollout | {"dones": torch.zeros_like(rollout["dones"])})


@fault(
    "done_flag_shifted", cause="done_flag_ignored", chain="return", proof=witnessed("target_gap", ">", 0.02, within=6)
)
class DoneFlagShifted(Seams):
    """The end of an episode is taken one step late."""

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        return super().advantages(rollout | {"dones": rollout["dones"].roll(1, 0)})


@fault(
    "discount_too_low",
    cause="discount_too_low",
    chain="return",
    proof=shown("abs(return_mean)", "<", 0.7, of_control=True),
)
class DiscountTooLow(Seams):
    """The discount is 0.5: what is more than a few steps away does not count."""

    def onset(self) -> None:
        self.settings.gamma = 0.5


@fault(
    "timeout_as_terminal",
    cause="timeout_as_terminal",
    chain="return",
    tasks=("Pendulum-v1", "Acrobot-v1"),
    proof=witnessed("timeouts_unknown", within=6),
)
class TimeoutAsTerminal(Seams):
    """An episode that only its time limit ended is taken for worth nothing afterwards."""

    def timed_out(self, truncated: Tensor) -> Tensor:
        return torch.zeros_like(truncated)


@fault(
    "last_value_missing",
    cause="value_targets_wrong",
    chain="return",
    proof=witnessed("target_gap", ">", 0.02, within=6),
)
class LastValueMissing(Seams):
    """The rollout's last state is taken for worth nothing."""

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        return super().advantages(rollout | {"last_values": torch.zeros_like(rollout["last_values"])})


@fault(
    "value_targets_scale",
    cause="value_targets_scale",
    chain="return",
    proof=shown("rollout_return_std", ">", 50, of_control=True),
)
class ValueTargetsScale(Seams):
    """Value targets are a hundred times the returns."""

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        advantages, returns = super().advantages(rollout)
        return advantages, 100 * returns


@fault(
    "value_targets_are_advantages",
    cause="value_targets_wrong",
    chain="return",
    proof=witnessed("target_gap", ">", 0.02, within=6),
)
class ValueTargetsAreAdvantages(Seams):
    """Nobody added the values: the critic learns advantages."""

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        advantages, _ = super().advantages(rollout)
        return advantages, advantages.clone()


@fault("advantage_sign", cause="advantage_sign", chain="advantage", proof=witnessed("advantage_gap", ">", 0.1))
class AdvantageSign(Seams):
    """Advantages are values minus returns."""

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        advantages, returns = super().advantages(rollout)
        return -advantages, returns


@fault(
    "advantages_shuffled", cause="advantages_shuffled", chain="advantage", proof=witnessed("advantage_gap", ">", 0.1)
)
class AdvantagesShuffled(Seams):
    """Advantages are in another order than the transitions."""

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        advantages, returns = super().advantages(rollout)
        order = torch.randperm(advantages.numel(), generator=self.training.random)
        return advantages.flatten()[order].view_as(advantages), returns


@fault(
    "advantages_reshaped", cause="advantages_shuffled", chain="advantage", proof=witnessed("advantage_gap", ">", 0.1)
)
class AdvantagesReshaped(Seams):
    """Advantages are reshaped when they should be transposed: [envs, steps] read as [steps, envs]."""

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        advantages, returns = super().advantages(rollout)
        return advantages.T.reshape(advantages.shape), returns


@fault(
    "advantages_zero", cause="advantages_zero", chain="advantage", proof=shown("rollout_advantage_sum_sq", "<", 1e-12)
)
class AdvantagesZero(Seams):
    """Values are overwritten by returns before one is subtracted from the other."""

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        _, returns = super().advantages(rollout)
        return returns - returns, returns


@fault(
    "advantages_not_normalized",
    cause="advantages_not_normalized",
    chain="advantage",
    proof=shown("advantage_std", ">", 10),
)
class AdvantagesNotNormalized(RewardScaleUp):
    """Advantages of large rewards are not normalised."""

    def onset(self) -> None:
        self.settings.normalize_advantages = False


@fault("stale_rollout", cause="stale_rollout", chain="advantage", proof=witnessed("rollout_change", within=3))
class StaleRollout(Seams):
    """The update trains on the rollout before: the buffer is swapped too late."""

    before: Rollout | None = None

    def after_rollout(self, rollout: Rollout) -> None:
        stale, self.before = self.before, {name: tensor.clone() for name, tensor in rollout.items()}
        for name, tensor in (stale or {}).items():
            rollout[name].copy_(tensor)


@fault("stored_actions_shuffled", cause="log_prob_mismatch", chain="ratio", proof=witnessed("rollout_change"))
class StoredActionsShuffled(Seams):
    """The actions stored are not those that were taken: they belong to the neighbouring environment."""

    def after_rollout(self, rollout: Rollout) -> None:
        rollout["actions"].copy_(rollout["actions"].roll(1, 1))


# --- the ratio ------------------------------------------------------------------------------------------------------


@fault(
    "stale_log_probs", cause="stale_log_probs", chain="ratio", proof=witnessed("rollout_change", ">", 1e-3, within=3)
)
class StaleLogProbs(Seams):
    """Old log-probabilities are computed with the weights from before the last update."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.before, self.now = training.state(), training.state()

    def before_rollout(self) -> None:
        self.before, self.now = self.now, self.training.state()

    def after_rollout(self, rollout: Rollout) -> None:
        assert self.training.log_probs_of is not None
        self.training.model.load_state_dict(self.before)
        rollout["log_probs"].copy_(self.training.log_probs_of(rollout))
        self.training.model.load_state_dict(self.now)
