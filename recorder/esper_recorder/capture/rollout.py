"""The rollout an update trains on: what its minibatches look up by index, and where an index leads."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from torch import Tensor

from esper_recorder.arguments import BadCall
from esper_recorder.capture.host_copies import DEVICES, HostCopy
from esper_recorder.reductions.statistics import to_device

_LOOKED_UP = {
    "old_log_probs": "old_log_prob",
    "advantages": "raw_advantage",
    "returns": "value_target",
    "values": "old_value",
}
"""Argument of `Recorder.rollout` -> the field of a minibatch that it stands for."""


@dataclass(frozen=True, slots=True)
class RolloutShape:
    """How an index becomes an environment and its step."""

    steps: int
    envs: int
    env_major: bool
    """An index counts env * steps + step, not step * envs + env."""
    actions: Tensor | None = None
    """[steps, envs, size]"""


@dataclass(frozen=True, slots=True, eq=False)
class Rollout:
    """Copies of a rollout's tensors, in the order in which an index counts."""

    fields: tuple[str, ...]
    values: Tensor
    """[fields, transitions]"""
    dtypes: tuple[torch.dtype, ...]
    """Of each field as it was given: `values` has one that holds them all."""
    shape: RolloutShape | None
    host_copy: HostCopy | None = None

    @classmethod
    def of(cls, tensors: Mapping[str, Tensor], *, index_order: Any, actions: Tensor | None) -> Self:
        """Copy the tensors of a rollout, as `arguments.rollout_tensors` returns them.

        Args:
            tensors: those that no minibatch looks up are left out.
            index_order: `time_major` or `env_major`.
            actions: [steps, envs, ...], already copied.
        """
        if index_order not in ("time_major", "env_major"):
            raise BadCall(f"index_order is {index_order!r}; give time_major or env_major")
        env_major = index_order == "env_major"
        first = next(iter(tensors.values()))
        shape = None
        if first.dim() >= 2:
            steps, envs = first.shape[:2]
            shape = RolloutShape(steps, envs, env_major, _by_transition(actions, steps, envs))

        kept = {_LOOKED_UP[name]: x for name, x in tensors.items() if name in _LOOKED_UP and x.numel()}
        values = torch.stack([x.reshape(-1) for x in kept.values()]) if kept else first.new_empty((0, 0))
        if kept and shape is not None and env_major:
            by_step = values.view(len(kept), shape.steps, shape.envs, -1)
            values = by_step.transpose(1, 2).reshape(len(kept), -1)
        copy = HostCopy(values) if kept and values.device.type in DEVICES else None
        return cls(tuple(kept), values, tuple([x.dtype for x in kept.values()]), shape, copy)

    def on_host(self) -> Rollout | None:
        """The same on the host, after its device failed; None if it has not arrived."""
        values = [self.values] if self.host_copy is None else self.host_copy.arrived()
        if values is None or values[0] is None:
            return None
        shape = None if self.shape is None else RolloutShape(self.shape.steps, self.shape.envs, self.shape.env_major)
        return Rollout(self.fields, values[0], self.dtypes, shape)

    def missing_from(self, fields: Sequence[Any], device: torch.device) -> tuple[str, ...]:
        """The fields that a minibatch with `fields` on a device looks up.

        None if it is on the host and the rollout is not: reading the rollout would wait for its device.
        """
        if self.values.device not in (device, torch.device("cpu")):
            return ()
        return tuple([field for field in self.fields if field not in fields])

    def dtype_of(self, fields: Sequence[str]) -> torch.dtype:
        """The type that holds these fields: float64 if one of them has it, else float32."""
        dtypes = [dtype for field, dtype in zip(self.fields, self.dtypes, strict=True) if field in fields]
        return functools.reduce(torch.promote_types, dtypes, torch.float32)

    def look_up(
        self, fields: Sequence[str], index: Tensor, dtype: torch.dtype
    ) -> tuple[dict[str, Tensor], Tensor | None]:
        """Look transitions up, on the index's device and without waiting for it.

        Args:
            fields: of `self.fields`.
            index: int64, any shape.
            dtype: of what is returned.

        Returns:
            The fields, each of the index's shape and without a meaning where the index is outside the rollout; and
            whether it is inside, None if all of it is known to be.
        """
        transitions = self.values.shape[1]
        values = self.values
        if len(fields) < len(self.fields):
            values = torch.stack([values[self.fields.index(field)] for field in fields])
        inside, places = None, index
        if index.device.type != "cpu" or not _within(index, transitions):
            # Clamped, not checked: on a device an index out of bounds is an assert that ends the process's use of it.
            places = index.clamp(0, transitions - 1)
            inside = places == index
        chosen = to_device(values, index.device).index_select(1, places.flatten()).to(dtype)
        return dict(zip(fields, chosen.view(len(fields), *index.shape).unbind(), strict=True)), inside


def _within(index: Tensor, size: int) -> bool:
    """Whether all positions are among `size`. Waits for a tensor on a device."""
    return int(index.amin()) >= 0 and int(index.amax()) < size


def _by_transition(actions: Tensor | None, steps: int, envs: int) -> Tensor | None:
    """Actions as [steps, envs, size]."""
    if actions is None:
        return None
    if not steps * envs or actions.numel() % (steps * envs):
        raise BadCall(f"actions has the shape {list(actions.shape)}; give [{steps}, {envs}, ...]")
    return actions.reshape(steps, envs, -1)
