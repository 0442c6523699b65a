"""Faults whose chain begins with the loss or with its weights."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from faults.fault_class import MIDWAY, fault, shown, witnessed
from faults.seams import Minibatch, Seams


@fault("clip_range_too_wide", cause="clip_range_too_wide", chain="setting", proof=shown("clip_range", ">", 10))
class ClipRangeTooWide(Seams):
    """The clip range is so wide that nothing is clipped."""

    def onset(self) -> None:
        self.settings.clip_range = 1000.0


@fault("clip_range_too_narrow", cause="clip_range_too_narrow", chain="setting", proof=shown("clip_range", "<", 1e-3))
class ClipRangeTooNarrow(Seams):
    """The clip range is so narrow that the second minibatch is clipped already."""

    def onset(self) -> None:
        self.settings.clip_range = 1e-4


@fault("policy_gradient_sign", cause="policy_gradient_sign", chain="loss", proof=witnessed("loss_gap", ">", 1e-4))
class PolicyGradientSign(Seams):
    """The objective is minimised."""

    def surrogate(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        return -super().surrogate(ratio, advantages)


@fault("clipped_objective_maximum", cause="clip_range_too_wide", chain="loss", proof=witnessed("loss_gap", ">", 1e-4))
class ClippedObjectiveMaximum(Seams):
    """The objective takes the larger of the clipped and the other term."""

    def surrogate(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        clipped = ratio.clamp(1 - self.settings.clip_range, 1 + self.settings.clip_range)
        return torch.maximum(ratio * advantages, clipped * advantages)


@fault("log_ratio_for_ratio", cause="policy_loss_wrong", chain="loss", proof=witnessed("loss_gap", ">", 1e-4))
class LogRatioForRatio(Seams):
    """Nobody called exp: the objective clips the log ratio around 1."""

    def surrogate(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        return super().surrogate(ratio.log(), advantages)


@fault("loss_summed", cause="loss_scale", chain="loss", proof=witnessed("loss_gap", ">", 5))
class LossSummed(Seams):
    """The loss is the sum over the minibatch, not the mean."""

    def loss(self, batch: Minibatch) -> Tensor:
        return super().loss(batch) * batch.values.numel()


@fault("entropy_coef_negative", cause="entropy_too_low", chain="setting", proof=witnessed("entropy_coef", "<", -0.1))
class EntropyCoefNegative(Seams):
    """The entropy bonus has the wrong sign and is a penalty."""

    def onset(self) -> None:
        self.settings.entropy_coef = -0.5


@fault("entropy_coef_too_high", cause="entropy_too_high", chain="setting", proof=witnessed("entropy_coef", ">", 0.9))
class EntropyCoefTooHigh(Seams):
    """The entropy bonus outweighs the objective."""

    def onset(self) -> None:
        self.settings.entropy_coef = 1.0


@fault(
    "entropy_coef_jumps",
    cause="entropy_too_high",
    chain="setting",
    onset=MIDWAY,
    proof=witnessed("entropy_coef", ">", 0.9),
)
class EntropyCoefJumps(EntropyCoefTooHigh):
    """A schedule sets the entropy bonus to a hundred times what it was."""


@fault("value_coef_zero", cause="critic_not_learning", chain="setting", proof=shown("value_coef", "<", 1e-9))
class ValueCoefZero(Seams):
    """The value loss has no weight."""

    def onset(self) -> None:
        self.settings.value_coef = 0.0


@fault("value_coef_too_high", cause="critic_starves_policy", chain="setting", proof=shown("value_coef", ">", 100))
class ValueCoefTooHigh(Seams):
    """The gradient of a heavily weighted value loss uses up the common clip."""

    def onset(self) -> None:
        self.settings.value_coef = 500.0


@fault("values_detached", cause="critic_not_learning", chain="loss", proof=witnessed("critic_step", "<", 1e-9))
class ValuesDetached(Seams):
    """Values are computed without a gradient."""

    def loss(self, batch: Minibatch) -> Tensor:
        return super().loss(replace(batch, values=batch.values.detach()))


@fault("policy_detached", cause="policy_frozen", chain="loss", proof=witnessed("actor_step", "<", 1e-9))
class PolicyDetached(Seams):
    """Log-probabilities are computed without a gradient."""

    def loss(self, batch: Minibatch) -> Tensor:
        return super().loss(replace(batch, new_log_probs=batch.new_log_probs.detach(), entropy=batch.entropy.detach()))
