"""The steps of a PPO training that a fault can replace. As they are here, they are right.

Every trainer of the benchmark calls these and has no other code for what they do. Tensors are [envs, ...] where an
environment steps, [steps, envs, ...] in a rollout, [transitions] (or [envs, steps] of sequences) in a minibatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

Rollout = dict[str, Tensor]
"""observations, actions, log_probs, values, rewards, dones [steps, envs, ...], last_values [envs]. `dones` is 1 where
an episode ended with that transition. The tensors are the trainer's own: what is written to them is trained on."""


@dataclass
class Settings:
    """What a user sets. A trainer reads them again at every update."""

    updates: int = 24
    envs: int = 4
    steps: int = 128
    epochs: int = 8
    batch_size: int = 64
    learning_rate: float = 1e-3
    gamma: float = 0.99
    gae_lambda: float = 0.95
    clip_range: float = 0.2
    entropy_coef: float = 0.0
    value_coef: float = 0.5
    max_grad_norm: float = 0.5
    normalize_advantages: bool = True
    target_kl: float | None = None
    hidden: int = 64
    activation: str = "tanh"
    initial_std: float = 1.0
    use_sde: bool = False


@dataclass
class Training:
    """What a trainer lets the steps of its training work on."""

    settings: Settings
    seed: int
    model: nn.Module
    optimizer: torch.optim.Optimizer
    policy_body: nn.Sequential
    """The hidden layers of the policy; what is appended to it takes part from then on."""
    policy_head: nn.Linear
    critic_names: tuple[str, ...]
    """Parts of the names of the parameters that only the value function has."""
    log_std: nn.Parameter | None = None
    log_probs_of: Callable[[Rollout], Tensor] | None = None
    """Log-probabilities of a rollout's actions under the policy as it is now, of the shape of its `log_probs`."""
    environment: Any = None
    update: int = 0
    observations_normalized: int = 0
    """How many observations the statistics of a normaliser are of, if there is one."""
    random: torch.Generator = field(default_factory=torch.Generator)

    def named(self, *, critic: bool) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters of the value function, or all the others."""
        for name, parameter in self.model.named_parameters():
            if any(part in name for part in self.critic_names) == critic:
                yield name, parameter

    def state(self) -> dict[str, Any]:
        """A copy of the weights."""
        return {name: tensor.clone() for name, tensor in self.model.state_dict().items()}


@dataclass
class Minibatch:
    """What the loss is computed from."""

    new_log_probs: Tensor
    old_log_probs: Tensor
    advantages: Tensor
    values: Tensor
    returns: Tensor
    entropy: Tensor


class Seams:
    """PPO, step by step."""

    keeps_old_log_probs = True
    """False if the old log-probabilities, or which transitions an epoch takes, are not as the rollout left them."""

    def __init__(self, training: Training) -> None:
        self.training = training

    @property
    def settings(self) -> Settings:
        """The training's settings."""
        return self.training.settings

    # --- the environment ---------------------------------------------------------------------------------------------

    @staticmethod
    def environment_seeds(seed: int, envs: int) -> list[int]:
        """Seed of each environment."""
        return [1000 * seed + env for env in range(envs)]

    def executed(self, actions: Tensor) -> Tensor:
        """The actions that the environments take, of those the policy chose."""
        return actions

    def observed(self, observations: Tensor) -> Tensor:
        """The observations that the policy gets."""
        return observations

    def rewarded(self, rewards: Tensor, dones: Tensor) -> Tensor:
        """The rewards that the trainer gets."""
        return rewards

    def timed_out(self, truncated: Tensor) -> Tensor:
        """Where the trainer knows that only the time limit ended the episode."""
        return truncated

    # --- a rollout ---------------------------------------------------------------------------------------------------

    def onset(self) -> None:
        """Change the training once, before the first rollout of the fault."""

    def before_rollout(self) -> None:
        """Prepare the policy that acts."""

    def after_rollout(self, rollout: Rollout) -> None:
        """Finish a rollout, before its advantages are computed."""

    def advantages(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        """Generalised advantage estimates, and value targets."""
        values, rewards, dones = rollout["values"], rollout["rewards"], rollout["dones"]
        gamma, decay = self.settings.gamma, self.settings.gae_lambda
        advantages = torch.empty_like(values)
        advantage, after = torch.zeros_like(values[0]), rollout["last_values"]
        for step in reversed(range(len(values))):
            goes_on = 1 - dones[step]
            error = rewards[step] + gamma * after * goes_on - values[step]
            advantage = error + gamma * decay * goes_on * advantage
            advantages[step], after = advantage, values[step]
        return advantages, advantages + values

    # --- an update ---------------------------------------------------------------------------------------------------

    def begin_epoch(self, rollout: Rollout) -> None:
        """Prepare what the epoch's minibatches are taken from; `rollout` may be flattened by now."""

    def order(self, n: int) -> Tensor:
        """The order in which an epoch goes through `n` transitions (or sequences)."""
        return torch.randperm(n)

    def learned_from(self, observations: Tensor) -> Tensor:
        """The observations of a minibatch, as the training's forward pass gets them."""
        return observations

    def old_log_probs(self, batch: Minibatch) -> Tensor:
        """The log-probabilities that the ratio is relative to."""
        return batch.old_log_probs

    def normalized(self, advantages: Tensor) -> Tensor:
        """The advantages that the policy's loss uses."""
        if not self.settings.normalize_advantages:
            return advantages
        return (advantages - advantages.mean()) / (advantages.std() + 1e-8)

    def surrogate(self, ratio: Tensor, advantages: Tensor) -> Tensor:
        """PPO's objective, per transition."""
        clipped = ratio.clamp(1 - self.settings.clip_range, 1 + self.settings.clip_range)
        return torch.minimum(ratio * advantages, clipped * advantages)

    def loss(self, batch: Minibatch) -> Tensor:
        """The loss of a minibatch."""
        ratio = (batch.new_log_probs - batch.old_log_probs).exp()
        policy_loss = -self.surrogate(ratio, self.normalized(batch.advantages)).mean()
        value_loss = (batch.returns - batch.values).square().mean()
        entropy = batch.entropy.mean()
        return policy_loss + self.settings.value_coef * value_loss - self.settings.entropy_coef * entropy

    def zero_grad(self) -> None:
        """Forget the gradients of the minibatch before."""
        self.training.optimizer.zero_grad()

    def after_backward(self) -> None:
        """Between backward and clipping."""

    def step(self) -> None:
        """Change the weights."""
        self.training.optimizer.step()

    def end_update(self) -> None:
        """After the last epoch."""

    # --- interruptions -----------------------------------------------------------------------------------------------

    restarts = False
    """Whether the training is stopped before its onset and resumed from a checkpoint."""
    before_onset: type[Seams] | None = None
    """The steps until then, if they are not these."""


class RecurrentSeams(Seams):
    """The further steps of a recurrent policy with several heads."""

    def initial_state(self, state: Tensor) -> Tensor:
        """The recurrent state a training sequence begins with, [envs, size], of the rollout's."""
        return state

    def resets(self, began: Tensor) -> Tensor:
        """Where training sets the recurrent state to zero, [steps, envs], of where an episode began."""
        return began

    def joined(self, log_probs: Tensor) -> Tensor:
        """Log-probability of an action in training, of those of its heads [..., heads]."""
        return log_probs.sum(-1)

    def padded(self, batch: Minibatch) -> Minibatch:
        """The minibatch after sequences were padded to one length."""
        return batch
