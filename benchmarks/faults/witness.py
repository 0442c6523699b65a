"""What the trainer itself measured of each update, to prove that a fault was injected where no table shows it.

It compares what each step of the training was given with what it made of it, reads weights and batches, and draws no
random numbers. It is kept in the manifest, never in the recorded run.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from faults.seams import Minibatch, Rollout, Training


@dataclass
class Row:
    """One update. Numbers are the largest over its steps and minibatches unless stated otherwise."""

    update: int
    true_return: float | None = None  # mean of the episodes that ended, in the environment's own rewards
    observation_change: float = 0.0  # |observation given to the policy - environment's|
    observation_abs_max: float = 0.0
    observation_nonfinite: int = 0
    equal_environments: float = 0.0  # mean fraction of environments whose observation equals environment 0's
    constant_dimensions: int = 0  # of the rollout's observations
    action_change: float = 0.0  # |action executed - chosen|
    reward_change: float = 0.0
    timeouts: int = 0
    timeouts_unknown: int = 0  # of these, those the trainer took for an end
    end_target_gap: float = 0.0  # |value target - reward| at the ends of episodes, in standard deviations of targets
    advantage_gap: float = 0.0  # |advantage - (target - value)|, likewise
    target_gap: float = 0.0  # |target - the one that right GAE gives|, likewise
    rollout_change: float = 0.0  # |what the rollout holds - what was collected|
    observation_statistics_age: int = 0  # observations that a normaliser's statistics are of, at the end
    learned_observation_change: float = 0.0  # |observation trained on - collected|
    old_log_prob_change: float = 0.0  # |log-probability the ratio is relative to - the rollout's|
    loss_gap: float = 0.0  # |loss - PPO's|, relative to PPO's
    transitions_trained: int = 0  # distinct, in the first epoch
    actor_step: float = 0.0  # L2 distance that the update moved the policy's weights
    critic_step: float = 0.0
    weight_jump: float = 0.0  # L2 distance that the weights moved between two updates
    weight_norm: float = 0.0
    gradient_left: float = 0.0  # norm of the gradients before backward
    actor_gradient: float = 0.0
    critic_gradient: float = 0.0
    optimizer_age: float = 0.0  # steps the optimizer remembers, at the end
    learning_rate: float = 0.0
    entropy_coef: float = 0.0
    value_coef: float = 0.0
    max_grad_norm: float = 0.0
    epochs: int = 0


HUGE = 1e300
COLUMNS = tuple(field.name for field in fields(Row))


class Witness:
    """Collects the rows."""

    def __init__(self, training: Training) -> None:
        self.rows: list[Row] = []
        self._training = training
        self._before: dict[str, Tensor] = {}
        self._returns: list[float] = []
        self._equal: list[float] = []
        self._seen: set[int] = set()

    @property
    def row(self) -> Row:
        """The update that is open."""
        return self.rows[-1]

    def begin(self, update: int) -> None:
        """Open an update, before its rollout and before what a fault changes there."""
        self.rows.append(Row(update))
        self._returns, self._equal, self._seen = [], [], set()
        if not self._before:
            self._before = self._training.state()

    def rollout_begins(self) -> None:
        """Note what happened to the weights since the last update."""
        self.row.weight_jump = _distance(self._training.state(), self._before)

    def largest(self, column: str, value: float) -> None:
        """Raise a column to a value."""
        setattr(self.row, column, max(getattr(self.row, column), HUGE if math.isnan(value) else value))

    def changed(self, column: str, before: Tensor, after: Tensor) -> None:
        """Note the largest difference of two tensors."""
        if before is not after:
            self.largest(column, _gap(after, before))

    def observations(self, given: Tensor) -> None:
        """Look at what the policy gets."""
        finite = given.isfinite()
        self.row.observation_nonfinite += int((~finite).sum())
        self.largest("observation_abs_max", float(given.abs().where(finite, torch.zeros(())).max()))
        if len(given) > 1:
            same = (given[1:] == given[:1]).flatten(1).all(1)
            self._equal.append(float(same.float().mean()))

    def episode(self, true_return: float) -> None:
        """An episode ended."""
        self._returns.append(true_return)

    def rollout(self, rollout: Rollout, right_targets: Tensor) -> None:
        """Look at a rollout with its advantages and returns."""
        returns, advantages, values = rollout["returns"], rollout["advantages"], rollout["values"]
        scale = float(returns.std()) or 1.0
        ends = rollout["dones"] > 0
        if bool(ends.any()):
            self.largest("end_target_gap", _gap(returns[ends], rollout["rewards"][ends]) / scale)
        self.largest("advantage_gap", _gap(advantages, returns - values) / scale)
        self.largest("target_gap", _gap(returns, right_targets) / scale)
        flat = rollout["observations"].flatten(0, 1).flatten(1)
        self.row.constant_dimensions = int((flat.amax(0) == flat.amin(0)).sum())

    def minibatch(self, index: Tensor | None, epoch: int, loss: Tensor, right_loss: Tensor) -> None:
        """Look at a minibatch and its loss."""
        if epoch == 1 and index is not None:
            self._seen.update(index.flatten().tolist())
        self.largest("loss_gap", abs(float(loss.detach()) - float(right_loss)) / (abs(float(right_loss)) + 1e-3))

    def left_over(self) -> None:
        """Read the gradients that a minibatch begins with: there should be none."""
        self.largest("gradient_left", _norm(parameter.grad for parameter in self._training.model.parameters()))

    def gradients(self) -> None:
        """Read the gradients before they are clipped."""
        for critic, column in ((False, "actor_gradient"), (True, "critic_gradient")):
            self.largest(column, _norm(parameter.grad for _, parameter in self._training.named(critic=critic)))

    def update_begins(self) -> None:
        """Remember the weights that the epochs begin with."""
        self._before = self._training.state()

    def end(self) -> None:
        """Close the update."""
        training, row, after = self._training, self.row, self._training.state()
        for critic, column in ((False, "actor_step"), (True, "critic_step")):
            names = [name for name, _ in training.named(critic=critic)]
            setattr(row, column, _distance(after, self._before, names))
        row.weight_norm = math.sqrt(sum(float(w.double().square().sum()) for w in after.values()))
        row.transitions_trained = len(self._seen)
        row.observation_statistics_age = training.observations_normalized
        row.equal_environments = sum(self._equal) / max(len(self._equal), 1)
        row.true_return = sum(self._returns) / len(self._returns) if self._returns else None
        ages = [float(state["step"]) for state in training.optimizer.state.values() if "step" in state]
        row.optimizer_age = max(ages, default=0.0)
        for name in ("learning_rate", "entropy_coef", "value_coef", "max_grad_norm", "epochs"):
            setattr(row, name, getattr(training.settings, name))
        self._before = after

    def as_dicts(self) -> list[dict[str, Any]]:
        """The rows as JSON can hold them: what is not finite is `HUGE`."""
        return [{name: _finite(value) for name, value in vars(row).items()} for row in self.rows]


def right_loss(
    batch: Minibatch, advantages_normalized: bool, clip: float, value_coef: float, entropy_coef: float
) -> Tensor:
    """PPO's loss, written out again: what the fault's is compared with."""
    with torch.no_grad():
        advantages = batch.advantages
        if advantages_normalized:
            advantages = (advantages - advantages.mean()) / (advantages.std() + 1e-8)
        ratio = (batch.new_log_probs - batch.old_log_probs).exp()
        objective = torch.minimum(ratio * advantages, ratio.clamp(1 - clip, 1 + clip) * advantages)
        value_loss = (batch.returns - batch.values).square().mean()
        return value_coef * value_loss - objective.mean() - entropy_coef * batch.entropy.mean()


def _norm(gradients: Iterable[Tensor | None]) -> float:
    there = [gradient for gradient in gradients if gradient is not None]
    return float(torch.stack(torch._foreach_norm(there)).norm()) if there else 0.0


def _finite(value: Any) -> Any:
    return HUGE if isinstance(value, float) and not math.isfinite(value) else value


def _gap(a: Tensor, b: Tensor) -> float:
    return float((a.float() - b.float()).abs().max())


def _distance(a: dict[str, Tensor], b: dict[str, Tensor], names: list[str] | None = None) -> float:
    chosen = a.keys() & b.keys() if names is None else names
    return math.sqrt(
        sum(float((a[n].double() - b[n].double()).square().sum()) for n in chosen if a[n].shape == b[n].shape)
    )
