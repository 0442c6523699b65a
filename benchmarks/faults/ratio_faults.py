"""Faults whose chain begins with the policy that acts, or with the log-probabilities that the ratio compares."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from faults.fault_class import MIDWAY, Proof, fault, first_ratio, shown, witnessed
from faults.seams import Minibatch, RecurrentSeams, Rollout, Seams, Training


@fault("lagging_actor", cause="policy_lag", chain="ratio", proof=first_ratio(0.01, within=6))
class LaggingActor(Seams):
    """The policy that acts is three updates behind the one that is trained."""

    lag = 3

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.history: list[dict[str, Any]] = []

    def before_rollout(self) -> None:
        self.history = [*self.history, self.training.state()][-self.lag - 1 :]
        self.training.model.load_state_dict(self.history[0])

    def after_rollout(self, rollout: Rollout) -> None:
        self.training.model.load_state_dict(self.history[-1])


@fault(
    "old_log_probs_refreshed",
    cause="old_log_probs_refreshed",
    chain="ratio",
    proof=witnessed("old_log_prob_change", ">", 1e-3),
)
class OldLogProbsRefreshed(Seams):
    """Old log-probabilities are computed again at every epoch, so that nothing bounds the update."""

    keeps_old_log_probs = False

    def begin_epoch(self, rollout: Rollout) -> None:
        assert self.training.log_probs_of is not None
        rollout["log_probs"].copy_(self.training.log_probs_of(rollout).view_as(rollout["log_probs"]))


# Stable-Baselines3's loss cannot be heard: with a mistake inside it the callback would record ratios it did not use.
@fault(
    "old_log_probs_of_trained_policy",
    cause="old_log_probs_refreshed",
    chain="ratio",
    trainers=("script", "device"),
    proof=shown("ratio_max - ratio_min", "<", 1e-9),
)
class OldLogProbsOfTrainedPolicy(Seams):
    """The ratio compares the trained policy with itself, and is always 1."""

    def old_log_probs(self, batch: Minibatch) -> Tensor:
        return batch.new_log_probs.detach()


@fault("dropout_in_policy", cause="log_prob_mismatch", chain="ratio", proof=first_ratio(5e-4))
class DropoutInPolicy(Seams):
    """The policy has dropout, which is on in training and off while acting."""

    def onset(self) -> None:
        self.training.policy_body.append(nn.Dropout(0.2))


@fault("log_probs_of_low_precision", cause="log_prob_mismatch", chain="ratio", proof=first_ratio(2e-4))
class LogProbsOfLowPrecision(Seams):
    """The policy acts in bfloat16 and is trained in float32."""

    def after_rollout(self, rollout: Rollout) -> None:
        rollout["log_probs"].copy_(rollout["log_probs"].bfloat16())


@fault("sampling_temperature", cause="log_prob_mismatch", chain="ratio", onset=MIDWAY, proof=first_ratio(0.02))
class SamplingTemperature(Seams):
    """The policy acts at a temperature that training does not know of."""

    def before_rollout(self) -> None:
        self._scale(0.25)

    def after_rollout(self, rollout: Rollout) -> None:
        self._scale(4.0)

    @torch.no_grad()
    def _scale(self, factor: float) -> None:
        for parameter in self.training.policy_head.parameters():
            parameter.mul_(factor)


# --- recurrent policies with several heads --------------------------------------------------------------------------

_RECURRENT = ("device",)


@fault(
    "recurrent_state_not_reset",
    cause="recurrent_state_not_reset",
    chain="ratio",
    trainers=_RECURRENT,
    proof=first_ratio(1e-3, within=4),
)
class RecurrentStateNotReset(RecurrentSeams):
    """Training carries the recurrent state over an episode's end."""

    def resets(self, began: Tensor) -> Tensor:
        return torch.zeros_like(began)


@fault(
    "recurrent_state_lost",
    cause="recurrent_state_not_reset",
    chain="ratio",
    trainers=_RECURRENT,
    proof=first_ratio(1e-3, within=4),
)
class RecurrentStateLost(RecurrentSeams):
    """Training begins every sequence with a state of zeros."""

    def initial_state(self, state: Tensor) -> Tensor:
        return torch.zeros_like(state)


@fault("head_left_out", cause="log_prob_mismatch", chain="ratio", trainers=_RECURRENT, proof=first_ratio(0.5))
class HeadLeftOut(RecurrentSeams):
    """Training forgets one of the action heads in the log-probability."""

    def joined(self, log_probs: Tensor) -> Tensor:
        return log_probs[..., 0]


@fault(
    "head_detached",
    cause="head_not_trained",
    chain="gradient",
    trainers=_RECURRENT,
    settings={"entropy_coef": 0.0},
    proof=Proof(
        "gradient_layers", "CASE WHEN layer = 'heads.force.weight' AND grad_norm = 0 THEN 1 ELSE 0 END", ">", 0
    ),
)
class HeadDetached(RecurrentSeams):
    """One of the action heads gets no gradient."""

    def joined(self, log_probs: Tensor) -> Tensor:
        return log_probs[..., 0] + log_probs[..., 1].detach()


@fault(
    "padding_not_masked",
    cause="padding_not_masked",
    chain="ratio",
    trainers=_RECURRENT,
    proof=shown("n", ">", 1.2, of_control=True),
)
class PaddingNotMasked(RecurrentSeams):
    """The loss averages over the padding of shorter sequences."""

    def padded(self, batch: Minibatch) -> Minibatch:
        def pad(tensor: Tensor) -> Tensor:
            return torch.cat((tensor, torch.zeros_like(tensor)))

        return Minibatch(**{name: pad(tensor) for name, tensor in vars(batch).items()})
