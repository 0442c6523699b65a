"""Faults whose chain begins with what the policy sees, or with what becomes of its actions."""

from __future__ import annotations

import torch
from torch import Tensor

from faults.fault_class import MIDWAY, fault, first_ratio, witnessed
from faults.seams import Seams, Training

_GYM = ("sb3", "script")
_CHANGED = witnessed("observation_change")


@fault(
    "observation_scale",
    cause="observation_scale",
    chain="observation",
    proof=witnessed("observation_abs_max", ">", 20, of_control=True),
)
class Unscaled(Seams):
    """Observations are a hundred times as large as usual: nobody normalised them."""

    def observed(self, observations: Tensor) -> Tensor:
        return 100 * observations


@fault("frozen_normalizer", cause="observation_scale", chain="observation", proof=_CHANGED)
class FrozenNormalizer(Seams):
    """Observations are normalised with the statistics of the first resets, which are never updated."""

    statistics: tuple[Tensor, Tensor] | None = None

    def observed(self, observations: Tensor) -> Tensor:
        if self.statistics is None:
            self.statistics = observations.mean(0), observations.std(0) + 1e-4
        mean, std = self.statistics
        return (observations - mean) / std


@fault(
    "dropped_dimension",
    cause="observation_missing",
    chain="observation",
    proof=witnessed("constant_dimensions", ">", 1, of_control=True),
)
class DroppedDimension(Seams):
    """A slice one too short leaves a dimension of the observation at zero."""

    def observed(self, observations: Tensor) -> Tensor:
        kept = observations.clone()
        kept[:, 2] = 0
        return kept


@fault("stale_observation", cause="stale_observation", chain="observation", proof=_CHANGED)
class StaleObservation(Seams):
    """The policy gets the observation of the step before."""

    before: Tensor | None = None

    def observed(self, observations: Tensor) -> Tensor:
        stale, self.before = self.before, observations.clone()
        return observations if stale is None else stale


@fault("frozen_observation", cause="stale_observation", chain="observation", onset=MIDWAY, proof=_CHANGED)
class FrozenObservation(Seams):
    """A sensor hangs: the observation never changes again."""

    last: Tensor | None = None

    def observed(self, observations: Tensor) -> Tensor:
        if self.last is None:
            self.last = observations.clone()
        return self.last


@fault(
    "duplicated_environments",
    cause="duplicated_environments",
    chain="observation",
    trainers=_GYM,
    proof=witnessed("equal_environments", ">", 0.9),
)
class DuplicatedEnvironments(Seams):
    """`[env] * n`: all environments are the same one."""

    @staticmethod
    def environment_seeds(seed: int, envs: int) -> list[int]:
        return [1000 * seed] * envs

    def executed(self, actions: Tensor) -> Tensor:
        return actions[:1].expand_as(actions).clone()


@fault(
    "same_seed_environments",
    cause="duplicated_environments",
    chain="observation",
    trainers=_GYM,
    proof=witnessed("equal_environments", ">", 0.005),
)
class SameSeedEnvironments(Seams):
    """All environments are made with one seed, and so begin with the same episode."""

    @staticmethod
    def environment_seeds(seed: int, envs: int) -> list[int]:
        return [1000 * seed] * envs


@fault(
    "nonfinite_observation",
    cause="nonfinite_observation",
    chain="observation",
    onset=MIDWAY,
    proof=witnessed("observation_nonfinite"),
)
class NonfiniteObservation(Seams):
    """One dimension of one environment is NaN, once."""

    calls = 0

    def observed(self, observations: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == self.settings.steps // 2:
            observations = observations.clone()
            observations[2, 1] = torch.nan
        return observations


@fault("observation_dropout", cause="observation_corrupted", chain="observation", proof=_CHANGED)
class ObservationDropout(Seams):
    """A lossy connection sets a third of all measurements to zero."""

    def observed(self, observations: Tensor) -> Tensor:
        return observations * (torch.rand(observations.shape, generator=self.training.random) > 0.33)


@fault("observation_clipped", cause="observation_clipped", chain="observation", proof=_CHANGED)
class ObservationClipped(Seams):
    """Observations are clipped to a bound meant for normalised ones."""

    def observed(self, observations: Tensor) -> Tensor:
        return observations.clamp(-0.05, 0.05)


@fault("observation_order_changed", cause="observation_changed", chain="observation", onset=MIDWAY, proof=_CHANGED)
class ObservationOrderChanged(Seams):
    """A new version of the environment has its dimensions in another order."""

    def observed(self, observations: Tensor) -> Tensor:
        return observations.flip(-1)


@fault("normalizer_mismatch", cause="log_prob_mismatch", chain="observation", proof=first_ratio(1e-3))
class NormalizerMismatch(Seams):
    """Training normalises the observations, acting does not."""

    def learned_from(self, observations: Tensor) -> Tensor:
        flat = observations.flatten(0, -2)
        return (observations - flat.mean(0)) / (flat.std(0) + 1e-3)


# --- what becomes of the actions ----------------------------------------------------------------------------------


@fault(
    "actions_saturated",
    cause="actions_at_bounds",
    chain="observation",
    tasks=("Pendulum-v1",),
    proof=witnessed("action_change"),
)
class ActionsSaturated(Seams):
    """Actions are scaled twice, so that nearly all end at their bounds."""

    def executed(self, actions: Tensor) -> Tensor:
        return (20 * actions).clamp(-2, 2)


@fault(
    "actions_swapped", cause="actions_mismatched", chain="observation", onset=MIDWAY, proof=witnessed("action_change")
)
class ActionsSwapped(Seams):
    """The order of the actions is reversed between policy and environment."""

    def executed(self, actions: Tensor) -> Tensor:
        return -actions if actions.is_floating_point() else self.training.policy_head.out_features - 1 - actions


@fault("actions_delayed", cause="actions_mismatched", chain="observation", proof=witnessed("action_change"))
class ActionsDelayed(Seams):
    """The environment executes the action of two steps before."""

    def __init__(self, training: Training) -> None:
        super().__init__(training)
        self.queue: list[Tensor] = []

    def executed(self, actions: Tensor) -> Tensor:
        self.queue.append(actions.clone())
        return self.queue.pop(0) if len(self.queue) > 2 else self.queue[0]
