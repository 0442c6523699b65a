"""What one PPO update has recorded so far, in the training thread.

A `Recorder` holds one at a time. It keeps copies and small reduced tensors, none of which is read here; when the update
ends it becomes a `ClosedUpdate`, which the writer's thread packs.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from esper_recorder.arguments import (
    MINIBATCH_VALUES,
    ROLLOUT_TENSORS,
    HeadLayout,
    MinibatchKind,
    as_tensor,
    flat_actions,
    flat_index,
    head_fields,
    number,
    rollout_tensors,
)
from esper_recorder.capture.closed_update import ClosedUpdate
from esper_recorder.capture.failures import Failures
from esper_recorder.capture.layers import LayerBlock, LayerLog
from esper_recorder.capture.minibatch_buffer import BatchSummary, MinibatchBuffer, MinibatchNotes, PackedBatch
from esper_recorder.capture.rollout import Rollout, RolloutShape
from esper_recorder.capture.transfer import Transfer
from esper_recorder.capture.user_rows import UserRows
from esper_recorder.levels import COLLECTED, Level
from esper_recorder.reductions.loss_statistics import rollout_statistics
from esper_recorder.reductions.minibatches import with_actions
from esper_recorder.reductions.recurrent import state_statistics

# `torch.set_grad_enabled` calls it, and takes three times as long.
_set_grad_enabled: Callable[[bool], Any] = getattr(torch._C, "_set_grad_enabled", torch.set_grad_enabled)

_MOST_EPOCHS = 1 << 62
_ROLLOUT_STATISTICS = ("values", "returns", "advantages", "rewards")


@dataclasses.dataclass(slots=True)
class Setup:
    """What all updates of a recorder share."""

    definition: str
    layers: LayerLog
    optimizer: weakref.ref[torch.optim.Optimizer] | None = None
    """Weak: after a failed training it must be free to go."""
    total_updates: int | None = None
    total_steps: int | None = None
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)
    """Columns of `ppo_updates` that hold until they are changed."""
    kind: MinibatchKind | None = None
    """Of the newest minibatch."""
    episode_numbers: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1))
    lines: Iterator[int] = dataclasses.field(default_factory=lambda: itertools.count(1))


class OpenUpdate:
    """The update that is being collected.

    Args:
        number: counted from 1.
        level: what is collected.
        setup: what it shares with the updates before and after it.
        failures: where its failures are counted.
        identity: update -> the columns that all its rows have.
    """

    def __init__(
        self,
        number: int,
        level: Level,
        setup: Setup,
        failures: Failures,
        identity: Callable[[int], Mapping[str, Any]],
    ) -> None:
        self.number, self.level, self.setup, self.failures = number, level, setup, failures
        self._identity, self._optimizer = identity, setup.optimizer
        self.each_step = COLLECTED[level].each_step
        self.minibatches = 0
        self.norms = 0  # gradient norms given
        self._user_rows = UserRows(setup.lines)
        self._began = time.monotonic()
        self._first_minibatch: float | None = None
        self._newest: MinibatchNotes | None = None  # None as well if the newest minibatch could not be kept
        self._stepped: MinibatchNotes | None = None  # the newest one that the optimizer stepped on
        self._buffer = MinibatchBuffer(
            pessimistic_value_clip=setup.definition != "sb3", per_minibatch=COLLECTED[level].each_minibatch
        )
        self._rollout: Rollout | None = None
        self._tensors: dict[str, Tensor] = {}
        self._rollout_names: tuple[str, ...] = ()
        self._states: dict[tuple[str, str], tuple[str, ...]] = {}
        self._episodes: list[dict[str, Any]] = []
        self._rollout_episodes: list[int | None] = []
        setup.layers.clear()

    @property
    def lacks_minibatches(self) -> bool:
        """Whether a rollout or a gradient norm was recorded, and no minibatch."""
        return not self.minibatches and (self._rollout is not None or self.norms > 0)

    def rollout(self, arguments: Mapping[str, Any]) -> None:
        """Reduce and copy a rollout; `arguments` are those of `Recorder.rollout` by name."""
        if not arguments.keys() <= {*ROLLOUT_TENSORS, "mask", "actions", "index_order"}:
            raise TypeError("an unknown argument")
        actions = arguments.get("actions")
        copied = None if actions is None else as_tensor("actions", actions).clone()
        tensors = rollout_tensors(arguments)
        mask = tensors.get("mask")
        fields = {name.removesuffix("s"): x.reshape(-1) for name, x in tensors.items() if name in _ROLLOUT_STATISTICS}
        if fields:
            summary = rollout_statistics(fields, None if mask is None else mask.reshape(-1))
            self._rollout_names, self._tensors["rollout"] = summary.names, summary.values
        index_order = arguments.get("index_order", "time_major")
        self._rollout = Rollout.of(tensors, index_order=index_order, actions=copied)

    def minibatch(self, arguments: Mapping[str, Any]) -> None:
        """Copy a minibatch; `arguments` are those of `Recorder.minibatch` by name.

        Written for speed: a loop calls it hundreds of times per update.
        """
        self.begin_minibatch()
        kind, get = self.setup.kind, arguments.get
        if kind is None or tuple(arguments) != kind.names or tuple(map(type, arguments.values())) != kind.types:
            kind = self.setup.kind = MinibatchKind(arguments)
        epoch, clip_range, value_clip_range, entropy_max, normalize, stepped = values = tuple(map(get, kind.values))
        if not kind.exact or (epoch is not None and abs(epoch) > _MOST_EPOCHS):
            epoch, clip_range, value_clip_range, entropy_max, normalize, stepped = [
                self.failures.checked(name, x, type_)
                for (name, type_), x in zip(MINIBATCH_VALUES.items(), values, strict=True)
            ]
        optimizer = None if self._optimizer is None else self._optimizer()
        if stepped is None and optimizer is not None:
            stepped = False  # until `before_step`
        rate = None if optimizer is None else _learning_rate(optimizer)
        notes = MinibatchNotes(
            self.minibatches, epoch, clip_range, value_clip_range, rate, entropy_max, normalize, stepped
        )
        fields, index, actions = kind.fields, get("index"), get("actions")
        if index is not None and (kind.index_dtype is None or index.dtype != kind.index_dtype or index.ndim != 1):
            index = flat_index(index)
        heads: tuple[HeadLayout, ...] = ()
        grad_enabled = torch.is_grad_enabled()
        try:
            _set_grad_enabled(False)  # cheaper than to detach each tensor, and than `torch.no_grad()`
            tensors = [x if x.dim() == 1 else x.ravel() for x in map(arguments.__getitem__, kind.tensors)]
            if get("heads"):
                heads, head_tensors = head_fields(arguments["heads"])
                fields, tensors = (*fields, *head_tensors), [*tensors, *head_tensors.values()]
            if actions is not None and tensors:
                actions = flat_actions(actions, tensors[0].shape[0])
            self._buffer.append(fields, tensors, notes, kind.given, heads, index, actions, self._rollout)
        finally:
            _set_grad_enabled(grad_enabled)
        self._newest = notes

    def resume_minibatch(self, arguments: Mapping[str, Any], before: int) -> None:
        """Copy a minibatch whose call was interrupted, unless that is done; `before` the call there were that many."""
        kept = self._buffer.newest
        if self.minibatches > before and kept is not None and kept.minibatch == self.minibatches:
            self._newest = kept
            return
        self.minibatches = before
        self.minibatch(arguments)

    def push(self, packed: Tensor, *, epoch: Any, stepped: Any) -> None:
        """Copy a minibatch that a compiled step reduced; see `Recorder.push`."""
        optimizer = None if self._optimizer is None else self._optimizer()
        notes = MinibatchNotes(
            self.minibatches,
            self.failures.checked("epoch", epoch, "int64"),
            learning_rate=None if optimizer is None else _learning_rate(optimizer),
            stepped=True if stepped is None else self.failures.checked("stepped", stepped, "bool"),
        )
        self._buffer.push(packed, notes)
        self._newest = notes

    def begin_minibatch(self) -> None:
        """Count a minibatch. If it cannot be kept, a norm or a step that follows is not taken for its predecessor's."""
        if self._first_minibatch is None:
            self._first_minibatch = time.monotonic()
        self._newest = None
        self.minibatches += 1

    def gradient_norm(self, norm: Tensor | float) -> None:
        """Note the gradient norm of the newest minibatch, as `arguments.gradient_norm` returns it."""
        self.norms += 1
        notes = self._newest
        if notes is not None:
            notes.grad_norm, notes.norm_seen = norm, True

    def layers(self, after_clipping: bool | None) -> None:
        """Measure each parameter's gradient now; see `Recorder.layers`."""
        layers = self.setup.layers
        layers.keeps_always = False  # the loop says which steps it wants
        layers.take(self._step_notes(self._newest, after_clipping), only=not self.each_step)

    def note_step(self) -> bool:
        """Note that the optimizer is about to step on the newest minibatch. Returns whether `before_step` has work."""
        newest = self._newest
        if newest is not None:
            newest.stepped = True
            self._stepped = newest
        layers = self.setup.layers
        return (self.each_step or layers.awaits_step) and layers.model is not None

    def before_step(self) -> None:
        """Measure the layers, if this step is one of those that are measured."""
        newest, layers = self._newest, self.setup.layers
        with self.failures.guarded("layers"):
            if self.each_step and layers.keeps_always:
                clipped = True if newest is not None and newest.norm_seen else None
                layers.take(self._step_notes(newest, clipped))
            layers.before_step()

    def episode(self, return_: Any, length: Any, env: Any, step: Any) -> None:
        """Note an episode."""
        checked = self.failures.checked
        self._episodes.append(
            {
                "env": checked("env", env, "int64", table="episodes"),
                "step": checked("step", step, "int64", table="episodes"),
                "episode_return": number("return_", return_),
                "episode_length": checked("length", length, "int64", table="episodes"),
            }
        )

    def episodes(self, tensors: Sequence[Tensor], step: Any) -> None:
        """Copy the episodes of a rollout, as `arguments.episode_tensors` returns them."""
        self._tensors[f"episodes.{len(self._rollout_episodes)}"] = torch.stack([x.to(torch.float64) for x in tensors])
        self._rollout_episodes.append(self.failures.checked("step", step, "int64", table="episodes"))

    def recurrent(self, layer: str, states: Mapping[str, Any]) -> None:
        """Reduce the hidden (`h`) and the cell (`c`) state of a layer."""
        tensors = {kind: as_tensor(kind, state) for kind, state in states.items() if state is not None}
        for kind, state in tensors.items():
            summary = state_statistics(state)
            self._states[layer, kind] = summary.names
            self._tensors[f"recurrent.{layer}.{kind}"] = summary.values

    def row(self, table: str, columns: Mapping[str, Any]) -> None:
        """Keep a row of a table that is not filled from tensors."""
        with self.failures.guarded("row", table):
            self._user_rows.add(table, columns, self._identity(self.number))

    def close(self, columns: Mapping[str, Any], policy_std: Any) -> ClosedUpdate:
        """Reduce what was recorded, and send it on its way to the host.

        Args:
            columns: of `ppo_updates`, as the trainer gave them.
            policy_std: a number, or a tensor whose mean is recorded.
        """
        blocks = self._layer_blocks()
        now = time.monotonic()
        batches, shape = self._batches()
        tensors = dict(self._tensors)
        for prefix, parts in (("", batches), ("layers.", blocks)):
            for i, part in enumerate(parts):
                tensors |= {f"{prefix}{i}.{name}": x for name, x in part.tensors().items()}
        if isinstance(policy_std, Tensor):
            tensors["policy_std"] = policy_std.detach().to(torch.float64).mean()
            policy_std = None
        first = self._first_minibatch
        last_epoch = batches[-1].notes[-1].epoch if batches else None
        row = {
            **self.setup.settings,
            **columns,
            "level": self.level.name.lower(),
            "progress": self._progress(columns.get("step")),
            "epochs": columns["epochs"] if columns.get("epochs") is not None else last_epoch,
            "rollout_s": None if first is None else first - self._began,
            "update_s": None if first is None else now - first,
            "policy_std": policy_std,
        }
        return self._closed(
            row,
            tensors,
            batches=batches,
            minibatches=self.minibatches,
            rollout_names=self._rollout_names,
            layers=blocks,
            rollout_shape=shape,
            states=self._states,
        )

    def leftovers(self) -> ClosedUpdate | None:
        """Return the episodes and the trainer's own rows of a rollout that no update followed; None without any."""
        if not (self._episodes or self._rollout_episodes or self._user_rows):
            return None
        return self._closed(None, {name: x for name, x in self._tensors.items() if name.startswith("episodes.")})

    def _closed(self, columns: dict[str, Any] | None, tensors: Mapping[str, Tensor], **reduced: Any) -> ClosedUpdate:
        return ClosedUpdate(
            identity=self._identity(self.number),
            definition=self.setup.definition,
            columns=columns,
            transfer=Transfer(tensors),
            failures=self.failures,
            level=self.level,
            episodes=self._episodes,
            rollout_episodes=self._rollout_episodes,
            episode_numbers=self.setup.episode_numbers,
            user_rows=self._user_rows.columns(),
            **reduced,
        )

    def salvage(self, error: Exception) -> OpenUpdate | None:
        """Return what has arrived on the host, after the device failed with `error`; None if no minibatch has."""
        buffer, arrived = self._buffer.salvage()
        if not arrived:
            return None
        self.failures.report_device(error, self.minibatches - arrived)
        # Without the model: its gradients are on the device that failed.
        setup = dataclasses.replace(self.setup, layers=LayerLog())
        update = OpenUpdate(self.number, self.level, setup, self.failures, self._identity)
        update.minibatches, update._buffer = self.minibatches, buffer
        update._user_rows, update._episodes = self._user_rows, self._episodes
        update._began, update._first_minibatch = self._began, self._first_minibatch
        return update

    def _layer_blocks(self) -> list[LayerBlock]:
        """What was measured of the layers; without a call of `layers`, what the newest step left."""
        layers, optimizer = self.setup.layers, self.setup.optimizer
        # Without a step in this update the gradients, if any, are an earlier one's.
        if layers.model is not None and not layers and (optimizer is None or self._stepped is not None):
            notes = self._newest if optimizer is None else self._stepped
            layers.take_after_step(self._step_notes(notes, True if notes is not None and notes.norm_seen else None))
        return layers.drain()

    def _batches(self) -> tuple[list[BatchSummary | PackedBatch], RolloutShape | None]:
        """The reduced minibatches, and how an index becomes an environment and a step."""
        batches = self._buffer.drain()
        shape = None if self._rollout is None else self._rollout.shape
        actions = None if shape is None else shape.actions
        if shape is None or actions is None or actions.device.type == "cpu":
            return batches, shape
        # On a device the actions of the worst transitions are found now: the host could not without waiting for it.
        with_their_actions = [
            dataclasses.replace(
                batch, ratios=tuple([with_actions(ratio, actions, env_major=shape.env_major) for ratio in batch.ratios])
            )
            if isinstance(batch, BatchSummary)
            else batch
            for batch in batches
        ]
        return with_their_actions, dataclasses.replace(shape, actions=None)

    def _step_notes(self, notes: MinibatchNotes | None, after_clipping: bool | None) -> dict[str, Any]:
        return {
            "epoch": None if notes is None else notes.epoch,
            "minibatch": self.minibatches if notes is None else notes.minibatch,
            "after_clipping": after_clipping,
        }

    def _progress(self, step: int | None) -> float | None:
        setup = self.setup
        if setup.total_updates:
            return min(self.number / setup.total_updates, 1.0)
        if setup.total_steps and step is not None:
            return min(step / setup.total_steps, 1.0)
        return None


def _learning_rate(optimizer: torch.optim.Optimizer) -> float | None:
    rate = optimizer.param_groups[0]["lr"]
    return float(rate) if isinstance(rate, (float, int)) else None  # reading a tensor may wait for the device
