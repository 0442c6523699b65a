"""Faults whose chain begins with the weights, or with a resume that does not restore all of them."""

from __future__ import annotations

import torch
from torch import nn

from faults.fault_class import MIDWAY, Proof, fault, shown, witnessed
from faults.healthy import Normalized
from faults.seams import Seams, Training

_DISCRETE = ("CartPole-v1", "Acrobot-v1")
_JUMP = witnessed("weight_jump", ">", 0.01)


@fault("policy_zeroed", cause="weights_reset", chain="weights", onset=MIDWAY, proof=_JUMP)
class PolicyZeroed(Seams):
    """The policy's last layer is set to zero."""

    @torch.no_grad()
    def onset(self) -> None:
        for parameter in self.training.policy_head.parameters():
            parameter.zero_()


@fault("weights_reinitialized", cause="weights_reset", chain="weights", onset=MIDWAY, proof=_JUMP)
class WeightsReinitialized(Seams):
    """A model is built a second time, and all it had learnt is gone."""

    def onset(self) -> None:
        for module in self.training.model.modules():
            if isinstance(module, nn.Linear | nn.LSTMCell):
                module.reset_parameters()


@fault(
    "dead_layers",
    cause="dead_layers",
    chain="weights",
    settings={"activation": "relu"},
    proof=Proof("gradient_layers", "grad_zero * 1.0 / n", ">", 0.999),
)
class DeadLayers(Seams):
    """ReLU units whose biases are so low that they never fire."""

    @torch.no_grad()
    def onset(self) -> None:
        for module in self.training.policy_body:
            if isinstance(module, nn.Linear):
                module.bias.fill_(-20.0)


@fault(
    "layer_frozen",
    cause="layer_frozen",
    chain="weights",
    proof=Proof("gradient_layers", "CASE WHEN has_grad THEN 0 ELSE 1 END", ">", 0),
)
class LayerFrozen(Seams):
    """The policy's first layers stay frozen after a fine-tuning."""

    def onset(self) -> None:
        for parameter in self.training.policy_body.parameters():
            parameter.requires_grad_(False)


@fault(
    "initial_policy_too_sure",
    cause="entropy_too_low",
    chain="weights",
    tasks=_DISCRETE,
    proof=shown("entropy", "<", 0.9, of_control=True),
)
class InitialPolicyTooSure(Seams):
    """The policy's last layer begins with weights a thousand times the usual ones."""

    @torch.no_grad()
    def onset(self) -> None:
        self.training.policy_head.weight.mul_(1000)


@fault(
    "nonfinite_weight",
    cause="nonfinite_weights",
    chain="weights",
    onset=MIDWAY,
    proof=witnessed("weight_jump", ">", 1e100),
)
class NonfiniteWeight(Seams):
    """One weight of the policy becomes infinite."""

    @torch.no_grad()
    def onset(self) -> None:
        self.training.policy_head.weight[0, 0] = torch.inf


@fault(
    "policy_std_too_small",
    cause="entropy_too_low",
    chain="weights",
    tasks=("Pendulum-v1",),
    onset=MIDWAY,
    proof=shown("policy_std", "<", 0.1),
)
class PolicyStdTooSmall(Seams):
    """The standard deviation of the policy is set to 0.01."""

    @torch.no_grad()
    def onset(self) -> None:
        if self.training.log_std is not None:
            self.training.log_std.fill_(-4.6)


@fault(
    "policy_std_grows",
    cause="entropy_too_high",
    chain="weights",
    tasks=("Pendulum-v1",),
    proof=shown("policy_std", ">", 1.2, of_control=True, within=4),
)
class PolicyStdGrows(Seams):
    """The standard deviation of the policy grows with every update."""

    @torch.no_grad()
    def end_update(self) -> None:
        if self.training.log_std is not None:
            self.training.log_std.add_(0.2)


# --- resumes --------------------------------------------------------------------------------------------------------

# Stable-Baselines3's trainer is not restarted here.
_RESTARTED = ("script", "device")


@fault(
    "resume_without_optimizer",
    cause="resume_lost_state",
    chain="resume",
    onset=MIDWAY,
    trainers=_RESTARTED,
    proof=witnessed("optimizer_age", "<", 0.7, of_control=True),
)
class ResumeWithoutOptimizer(Seams):
    """A checkpoint has the weights but not the optimizer's state."""

    restarts = True

    def onset(self) -> None:
        self.training.optimizer.state.clear()


@fault(
    "resume_from_old_checkpoint",
    cause="resume_lost_state",
    chain="resume",
    onset=MIDWAY,
    trainers=_RESTARTED,
    proof=_JUMP,
)
class ResumeFromOldCheckpoint(Seams):
    """A training is resumed from its very first checkpoint."""

    restarts = True

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.first = training.state()

    def onset(self) -> None:
        self.training.model.load_state_dict(self.first)


@fault(
    "resume_without_normalizer",
    cause="resume_lost_state",
    chain="resume",
    onset=MIDWAY,
    trainers=_RESTARTED,
    control="normalized",
    proof=witnessed("observation_statistics_age", "<", 0.7, of_control=True),
)
class ResumeWithoutNormalizer(Normalized):
    """A checkpoint has no statistics of the observations, and their normaliser begins again."""

    restarts = True
    before_onset = Normalized
