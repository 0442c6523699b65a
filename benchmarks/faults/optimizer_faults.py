"""Faults whose chain begins with the gradients, the optimizer or its settings."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from faults.fault_class import MIDWAY, fault, shown, witnessed
from faults.seams import Seams


@fault(
    "gradients_not_zeroed",
    cause="gradients_accumulate",
    chain="gradient",
    proof=witnessed("gradient_left"),
)
class GradientsNotZeroed(Seams):
    """Gradients of all minibatches add up."""

    def zero_grad(self) -> None:
        pass


@fault(
    "nonfinite_gradient",
    cause="nonfinite_gradient",
    chain="gradient",
    onset=MIDWAY,
    proof=shown("grad_norm_nonfinite", ">", 0),
)
class NonfiniteGradient(Seams):
    """One element of one gradient is NaN, once."""

    done = False

    def after_backward(self) -> None:
        gradient = self.training.policy_head.weight.grad
        if not self.done and gradient is not None:
            gradient[0, 0] = torch.nan
            self.done = True


@fault("step_skipped", cause="optimizer_not_stepping", chain="gradient", proof=witnessed("actor_step", "<", 1e-9))
class StepSkipped(Seams):
    """Nobody calls the optimizer."""

    def step(self) -> None:
        pass


@fault(
    "step_skipped_midway",
    cause="optimizer_not_stepping",
    chain="gradient",
    onset=MIDWAY,
    proof=witnessed("actor_step", "<", 1e-9),
)
class StepSkippedMidway(StepSkipped):
    """A condition that became true skips every step of the optimizer."""


@fault(
    "optimizer_of_other_parameters",
    cause="optimizer_not_stepping",
    chain="gradient",
    proof=witnessed("actor_step", "<", 1e-9),
)
class OptimizerOfOtherParameters(Seams):
    """The optimizer holds the parameters of a copy of the model."""

    def onset(self) -> None:
        parameters = copy.deepcopy(self.training.model).parameters()
        self.training.optimizer = torch.optim.Adam(parameters, lr=self.settings.learning_rate, eps=1e-5)

    def zero_grad(self) -> None:
        self.training.model.zero_grad()


@fault(
    "sgd_for_adam", cause="optimizer_wrong", chain="setting", proof=witnessed("actor_step", "<", 0.5, of_control=True)
)
class SgdForAdam(Seams):
    """Plain gradient descent with Adam's learning rate."""

    def onset(self) -> None:
        self.training.optimizer = torch.optim.SGD(self.training.model.parameters(), lr=self.settings.learning_rate)


@fault(
    "adam_epsilon_too_large",
    cause="optimizer_wrong",
    chain="setting",
    proof=witnessed("actor_step", "<", 0.5, of_control=True),
)
class AdamEpsilonTooLarge(Seams):
    """Adam divides by a constant that is far larger than any gradient."""

    def onset(self) -> None:
        for group in self.training.optimizer.param_groups:
            group["eps"] = 1.0


@fault(
    "learning_rate_too_high",
    cause="learning_rate_too_high",
    chain="setting",
    proof=shown("learning_rate", ">", 50, of_control=True),
)
class LearningRateTooHigh(Seams):
    """The learning rate is a hundred times too high."""

    def onset(self) -> None:
        self.settings.learning_rate *= 100


@fault(
    "learning_rate_jumps",
    cause="learning_rate_too_high",
    chain="setting",
    onset=MIDWAY,
    proof=shown("learning_rate", ">", 50, of_control=True),
)
class LearningRateJumps(LearningRateTooHigh):
    """A schedule multiplies the learning rate by a hundred."""


@fault(
    "learning_rate_too_low",
    cause="learning_rate_too_low",
    chain="setting",
    proof=shown("learning_rate", "<", 0.01, of_control=True),
)
class LearningRateTooLow(Seams):
    """The learning rate is a thousand times too low."""

    def onset(self) -> None:
        self.settings.learning_rate /= 1000


@fault(
    "learning_rate_zero",
    cause="learning_rate_zero",
    chain="setting",
    onset=MIDWAY,
    proof=shown("learning_rate", "<", 1e-12),
)
class LearningRateZero(Seams):
    """A schedule counts updates as epochs and ends at 0 too early."""

    def onset(self) -> None:
        self.settings.learning_rate = 0.0


@fault(
    "same_minibatch",
    cause="same_minibatch",
    chain="gradient",
    proof=witnessed("transitions_trained", "<", 0.6, of_control=True),
)
class SameMinibatch(Seams):
    """The slice of the permutation never moves: every minibatch has the same transitions."""

    def order(self, n: int) -> Tensor:
        settings = self.settings
        size = (
            settings.batch_size
            if n == settings.envs * settings.steps
            else max(settings.batch_size // settings.steps, 1)
        )
        return torch.randperm(n)[:size].repeat(n // size)


@fault(
    "too_many_epochs", cause="too_many_epochs", chain="setting", proof=shown("minibatch_count", ">", 3, of_control=True)
)
class TooManyEpochs(Seams):
    """Six times the usual epochs on each rollout."""

    def onset(self) -> None:
        self.settings.epochs *= 6


@fault(
    "weight_decay_too_high",
    cause="weight_decay_too_high",
    chain="setting",
    proof=witnessed("weight_norm", "<", 0.97, of_control=True, within=4),
)
class WeightDecayTooHigh(Seams):
    """Weight decay pulls all weights to zero."""

    def onset(self) -> None:
        for group in self.training.optimizer.param_groups:
            group["weight_decay"] = 1.0


@fault(
    "gradient_clip_too_tight", cause="gradient_clip_too_tight", chain="setting", proof=shown("max_grad_norm", "<", 1e-5)
)
class GradientClipTooTight(Seams):
    """Gradients are clipped to a norm below the constant Adam divides by."""

    def onset(self) -> None:
        self.settings.max_grad_norm = 1e-6
