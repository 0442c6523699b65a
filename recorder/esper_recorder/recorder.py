"""The object a training loop holds: it takes tensors, reduces them once per update and hands the rows to a writer.

A recorder is a guest. No call raises into the trainer, waits for the device or the disk, keeps a tensor of the
trainer's, or touches a random stream, a gradient or a weight. What could not be recorded is counted, said once in
the log (logger `esper_recorder`) and written as a row of the table `gaps`.
"""

from __future__ import annotations

import atexit
import contextlib
import dataclasses
import functools
import inspect
import itertools
import logging
import math
import os
import sys
import time
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import torch
from torch import Tensor

from esper_recorder.arguments import (
    BadCall,
    FieldKey,
    argument,
    check_log_ratio,
    flat_actions,
    head_fields,
    noted,
    only_tensors,
    tensor,
)
from esper_recorder.capture.known_minibatches import KnownRing
from esper_recorder.capture.layers import LayerLog
from esper_recorder.capture.minibatch_buffer import MinibatchNotes, MinibatchRing, PackedRing, Piece, Pushed
from esper_recorder.capture.staging import Staging
from esper_recorder.capture.transfer import Transfer
from esper_recorder.capture.update_rows import UpdateInput, build, build_episodes, build_minibatches
from esper_recorder.capture.user_rows import ToldRows, with_told
from esper_recorder.contract.metrics import DEFINITIONS
from esper_recorder.contract.rules.ruleset import RuleSet, load_rules
from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import IDENTITY, columns
from esper_recorder.escalation import UPDATES, Escalation
from esper_recorder.levels import COLLECTED, Level
from esper_recorder.reductions.minibatches import with_actions
from esper_recorder.reductions.recurrent import state_statistics
from esper_recorder.reductions.transitions import rollout_statistics
from esper_recorder.rendezvous import JOIN_SECONDS, Rendezvous, current_rank
from esper_recorder.storage.gaps import ALL_TABLES, BAD_CALL, DEVICE_FAILED, REDUCE_FAILED
from esper_recorder.storage.listing import last_update
from esper_recorder.storage.manifest import loaded_versions, to_jsonable
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import ParquetSink, Sink
from esper_recorder.storage.writer import CLOSE_SECONDS, Writer
from esper_recorder.watcher import Watcher

log = logging.getLogger("esper_recorder")

P = ParamSpec("P")
R = TypeVar("R")

_SETTINGS = {c.name: c.type for c in columns("ppo_updates") if c.name not in IDENTITY}
_LOST_BY: dict[str, tuple[str, int | None]] = {
    "minibatch": ("minibatches", 1),
    "known_minibatch": ("minibatches", 1),
    "push": ("minibatches", 1),
    "episode": ("episodes", 1),
    "episodes": ("episodes", None),
    "recurrent": ("recurrent_state", None),
    "layers": ("gradient_layers", None),
}
"""What is lost where a call fails: of which table, and how many rows if that is known. Else columns of an update."""


def _guarded(
    method: Callable[Concatenate[Recorder, P], None],
) -> Callable[Concatenate[Recorder, P], None]:
    """Keep a failure of the recorder from reaching the trainer; nothing happens once recording is off or closed."""

    @functools.wraps(method)
    def call(self: Recorder, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if not self._recording:
            return
        try:
            method(self, *args, **kwargs)
        except TypeError as error:
            within = error.__traceback__ is None or error.__traceback__.tb_next is not None
            self._failed(method.__name__, error if within else _wrong_words(method, error, kwargs))
        except Exception as error:
            self._failed(method.__name__, error)

    return call


def _heard(method: Callable[Concatenate[Recorder, P], R]) -> Callable[Concatenate[Recorder, P], R]:
    """For a call that does its work whatever it is told: an argument it does not have is told and left out."""
    signature = inspect.signature(method)

    @functools.wraps(method)
    def call(self: Recorder, /, *args: P.args, **kwargs: P.kwargs) -> R:
        try:
            signature.bind(self, *args, **kwargs)
        except TypeError as error:
            self._failed(method.__name__, _wrong_words(method, error, kwargs))
            again: Callable[..., R] = method
            return again(self, **{name: value for name, value in kwargs.items() if name in signature.parameters})
        return method(self, *args, **kwargs)

    return call


def _wrong_words(method: Callable[..., Any], error: TypeError, kwargs: Mapping[str, Any]) -> BadCall:
    """What is wrong with the words of a call."""
    known = [name for name in inspect.signature(method).parameters if name != "self"]
    unknown = [name for name in kwargs if name not in known]
    if not unknown:
        return BadCall(f"{error}; it takes {', '.join(known) or 'no arguments'}")
    hint = suggest(unknown[0], known, kind="arguments")
    return BadCall(f"{method.__name__}() has no argument {unknown[0]!r}. {hint}")


class Recorder:
    """Records one PPO run.

    Args:
        root: folder the run's folder is made in; made if it is not there.
        name: first part of the run's id.
        config: anything JSON can hold, a dataclass or a pydantic model, kept in run.json; what JSON cannot hold is kept
            as its `repr`, and the log names the keys.
        total_updates, total_steps: length of the training; progress and phases are measured against it.
        model: its `named_parameters()` are what layer statistics are of.
        optimizer: its steps mark minibatches as stepped on, and its first group tells the learning rate.
        level: `off`, `minimal` (no rows of minibatches), `normal`, or `debug` (histograms and worst transitions of
            every minibatch, layer statistics of every step).
        escalate: severity of the alarms that raise the level to `debug` for a while (`info`, `warning`, `critical`), or
            None. It is the beginning of a firing that does, see `escalation`.
        escalate_updates: how many PPO updates are then recorded at `debug`.
        rules: a shipped profile, the path of a rules file, or None: what the run is watched with while it is made.
        resume: run_id of a run under `root` to continue as a new attempt.
        from_update: first update of that attempt; the default continues after the last recorded one.
        rank: which process of a distributed trainer this is; the default asks torch.distributed, then torchrun's RANK.
            The ranks record into one run: rank 0 makes it, the others wait up to a minute for it.
        run_id: the run's id, the same on every rank, where torch.distributed is not initialised yet and so cannot tell
            the others which run rank 0 made.
        sink: where rows go instead of Parquet files, for instance a `MemorySink`.
        trainer: name of the trainer, or a mapping with its `name` and whatever else tells it (such as the group of an
            A/B test), kept in run.json.
        definition: whose definition the derived metrics follow, see `contract.metrics.DEFINITIONS`.

    Raises:
        ValueError, esper_recorder.contract.rules.model.RuleError: an argument is invalid. A folder that cannot be
            written is not an error: training continues without a recording, and the log says so.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        name: str = "run",
        config: Any = None,
        total_updates: int | None = None,
        total_steps: int | None = None,
        model: torch.nn.Module | None = None,
        optimizer: torch.optim.Optimizer | None = None,
        level: str | Level = "normal",
        escalate: str | None = "critical",
        escalate_updates: int = UPDATES,
        rules: str | Path | None = "default",
        resume: str | None = None,
        from_update: int | None = None,
        rank: int | None = None,
        run_id: str | None = None,
        sink: Sink | None = None,
        trainer: str | Mapping[str, Any] = "script",
        definition: str = "pooled",
    ) -> None:
        self._base_level = Level.parse(level)
        self._escalation = Escalation.from_options(level, escalate, escalate_updates)
        if definition not in DEFINITIONS:
            raise ValueError(f"definition {definition!r} is not known; there are: {', '.join(DEFINITIONS)}")
        if model is not None and not hasattr(model, "named_parameters"):
            raise ValueError(f"model is a {type(model).__name__}, which has no named_parameters(); give a torch Module")
        if optimizer is not None and not hasattr(optimizer, "register_step_pre_hook"):
            raise ValueError(f"optimizer is a {type(optimizer).__name__}; give a torch Optimizer")
        if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0):
            raise ValueError(f"rank is {rank!r}; give the number of this process among the trainer's, from 0")
        if run_id is not None and resume is not None:
            raise ValueError(f"both run_id={run_id!r} and resume={resume!r} are given; resume alone names the run")
        if not isinstance(trainer, str) and not isinstance(trainer.get("name"), str):
            raise ValueError("trainer is a mapping without a name; give at least {'name': ...}")
        if sink is not None and not isinstance(sink, Sink):
            raise ValueError(f"sink is a {type(sink).__name__}; give a Sink, for instance a MemorySink")
        self._rules: RuleSet | None = None if rules is None else load_rules(rules)
        self._definition = definition
        self._total_updates = _length("total_updates", total_updates)
        self._total_steps = _length("total_steps", total_steps)
        # Not held: after a failed training its model must be free to go, whatever becomes of the recorder.
        self._model = None if model is None else weakref.ref(model)
        self._optimizer = None if optimizer is None else weakref.ref(optimizer)
        self.unclosed: str | None = None
        """For adapters that always close: what it means where the process ends, without an exception, and they have
        not."""
        self._settings: dict[str, Any] = {}
        self._ring = MinibatchRing(pessimistic_value_clip=definition != "sb3")
        self._known = KnownRing(pessimistic_value_clip=definition != "sb3")
        self._pushed = PackedRing()
        self._staging = Staging()
        self._told = ToldRows()
        self._layers = LayerLog()
        self._folder: RunFolder | None = None
        self._writer: Writer | None = None
        self._watcher: Watcher | None = None
        self._step_hook: Any = None
        self._recording = False
        self._started = self._boundary = time.monotonic()
        self._episode_numbers = itertools.count(1)
        self._first_minibatch: float | None
        self._newest: MinibatchNotes | None  # the newest minibatch; None where it could not be taken
        self._stepped: MinibatchNotes | None  # the newest one the optimizer stepped on
        self._places: dict[str, Any] | None
        self._rollout_names: tuple[str, ...]
        self.each_step: bool
        """For adapters: whether `layers` is wanted at each step of the update being collected, see `levels`."""
        self._start_update(1)
        if self._base_level is Level.OFF:
            return
        try:
            self._folder = self._open(root, name, config, trainer, resume, from_update, rank, run_id)
        except OSError as error:
            log.error("Nothing of this training is recorded under %s (%s). Training continues.", root, error)
            return
        self._start_update(self._folder.from_update)
        if self._rules is not None:
            self._watcher = Watcher(self._rules, self._escalation)
            if resume is not None:
                self._catch_up(self._folder, self._watcher)
        self._writer = Writer(
            sink or ParquetSink(self._folder.path, self._folder.attempt, self._folder.rank),
            on_commit=None if self._watcher is None else self._watcher.alarms,
            identity=self._identity,
            heartbeat=self._folder.beat,
        )
        if optimizer is not None:
            self._step_hook = optimizer.register_step_pre_hook(self._on_step)
        self._recording = True
        _open_recorders.add(self)
        atexit.register(_close_at_exit, weakref.ref(self))

    # --- what a trainer calls ---------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str | None:
        """The run's id; None where nothing is recorded."""
        return None if self._folder is None else self._folder.run_id

    @property
    def path(self) -> Path | None:
        """The run's folder; None where nothing is recorded."""
        return None if self._folder is None else self._folder.path

    @property
    def update(self) -> int:
        """The PPO update being collected, counted from 1."""
        return self._update

    @property
    def level(self) -> Level:
        """The level the update being collected is recorded at: the recorder's own, or DEBUG after an alarm."""
        return self._level

    @_guarded
    def settings(self, /, **columns: Any) -> None:
        """What holds for all updates until changed: columns of `ppo_updates` such as `target_kl`, `max_grad_norm`,
        `entropy_coef`, `value_coef`, `epochs_planned`."""
        for name, value in columns.items():
            with self.guarded("settings"):
                if name not in _SETTINGS:
                    hint = suggest(name, _SETTINGS, kind="settings")
                    raise BadCall(f"ppo_updates has no setting {name}. {hint}")
                self._settings[name] = noted(name, value, _SETTINGS[name])

    @_guarded
    def rollout(
        self,
        *,
        values: Any = None,
        returns: Any = None,
        advantages: Any = None,
        rewards: Any = None,
        actions: Any = None,
        mask: Any = None,
        index_order: str = "time_major",
    ) -> None:
        """Record the rollout an update trains on; once per update, before its epochs.

        Args:
            values: predictions made while collecting. Tensors or NumPy arrays of one shape, [steps, envs] or any;
                here and below.
            returns: value targets.
            advantages: not normalised.
            rewards: as the trainer uses them.
            actions: [steps, envs, ...], copied; they are looked up for the worst transitions.
            mask: 0 or False on padding; of the others' shape.
            index_order: how a position in the rollout, as `minibatch(index=...)` gives it, counts: `time_major`,
                step * envs + env (CleanRL), or `env_major`, env * steps + step (Stable-Baselines3).
        """
        arguments = {"values": values, "returns": returns, "advantages": advantages, "rewards": rewards}
        tensors = {name: tensor(name, x) for name, x in arguments.items() if x is not None}
        copied = None if actions is None else tensor("actions", actions).clone()
        valid = None if mask is None else tensor("mask", mask)
        shapes = {name: list(x.shape) for name, x in (tensors if valid is None else tensors | {"mask": valid}).items()}
        if not tensors:
            raise BadCall("rollout() needs one of values, returns, advantages and rewards")
        if len({math.prod(shape) for shape in shapes.values()}) > 1:
            raise BadCall(f"the tensors of a rollout have different shapes: {_listed(shapes)}")
        packed = rollout_statistics(
            {name.removesuffix("s"): x.reshape(-1) for name, x in tensors.items()},
            None if valid is None else valid.reshape(-1),
        )
        self._rollout_names, self._reduced["rollout"] = packed.names, packed.values
        if index_order not in ("time_major", "env_major"):
            raise BadCall(f"index_order is {index_order!r}; give time_major or env_major")
        shape = next(iter(tensors.values())).shape
        if len(shape) >= 2:
            self._places = {"steps": shape[0], "envs": shape[1], "order": index_order, "actions": None}
            if copied is not None:
                if not shape[0] * shape[1] or copied.numel() % (shape[0] * shape[1]):
                    raise BadCall(f"actions has the shape {list(copied.shape)}; give [{shape[0]}, {shape[1]}, ...]")
                self._places["actions"] = copied.reshape(shape[0], shape[1], -1)

    @_guarded
    def minibatch(
        self,
        *,
        log_ratio: Tensor | None = None,
        new_log_probs: Tensor | None = None,
        old_log_probs: Tensor | None = None,
        advantages: Tensor | None = None,
        raw_advantages: Tensor | None = None,
        normalize_advantages: bool = False,
        entropy: Tensor | None = None,
        entropy_max: Tensor | float | None = None,
        values: Tensor | None = None,
        returns: Tensor | None = None,
        old_values: Tensor | None = None,
        mask: Tensor | None = None,
        clip_range: float | None = None,
        value_clip_range: float | None = None,
        epoch: int | None = None,
        index: Any = None,
        actions: Tensor | None = None,
        stepped: bool | None = None,
        heads: Mapping[str, Mapping[str, Any]] | None = None,
    ) -> None:
        """Record a minibatch where its loss is computed. Tensors are of one shape (any) and are copied.

        Args:
            log_ratio: new minus old log-probability, nats; or give both
            new_log_probs, old_log_probs: log-probabilities of the actions taken, nats.
            advantages: as the loss uses them.
            raw_advantages: before normalisation.
            normalize_advantages: the loss normalises `raw_advantages` over this minibatch (mean, unbiased standard
                deviation + 1e-8); recorded without `advantages`.
            entropy: nats.
            entropy_max: log of the number of valid actions, nats; a number where it is the same everywhere.
            values, returns, old_values: prediction, target, and the prediction when the action was taken.
            mask: 0 or False on padding.
            clip_range, value_clip_range: those of the loss.
            epoch: counted from 1.
            index: position of each transition in the rollout, -1 on padding.
            actions: [..., size], one more dimension than the rest.
            stepped: whether the optimizer steps on it; told by the optimizer itself where the recorder has it.
            heads: of a policy with several action heads, name -> `log_ratio` (or `new_log_probs` and
                `old_log_probs`), `entropy`, `entropy_max` (a tensor or a number) and `mask` (0 or False where the
                head's choice did not matter), tensors of the minibatch's shape; at least the first or the second.
        """
        self._newest = None
        self._minibatches += 1
        given = (
            ("log_ratio", log_ratio),
            ("new_log_prob", new_log_probs),
            ("old_log_prob", old_log_probs),
            ("advantage", advantages),
            ("raw_advantage", raw_advantages),
            ("entropy", entropy),
            ("value", values),
            ("value_target", returns),
            ("old_value", old_values),
            ("mask", mask),
        )
        try:
            fields: dict[FieldKey, Tensor] = {
                name: x if x.dim() == 1 else x.detach().reshape(-1) for name, x in given if x is not None
            }
        except AttributeError:
            only_tensors({argument(name): x for name, x in given})
            raise
        if isinstance(entropy_max, Tensor):
            fields["entropy_max"] = entropy_max.reshape(-1)
            entropy_max = None
        check_log_ratio(fields)
        n = len(next(iter(fields.values())))
        layout, of_heads = head_fields(heads) if heads else ((), {})
        fields.update(of_heads)
        if self._first_minibatch is None:
            self._first_minibatch = time.monotonic()
        notes = MinibatchNotes(
            minibatch=self._minibatches,
            epoch=self._note("epoch", epoch, "int64"),
            clip_range=self._note("clip_range", clip_range, "float64"),
            value_clip_range=self._note("value_clip_range", value_clip_range, "float64"),
            learning_rate=self._learning_rate(),
            entropy_max=self._note("entropy_max", entropy_max, "float64"),
            normalize=bool(self._note("normalize_advantages", normalize_advantages, "bool")),
            stepped=self._note("stepped", stepped, "bool"),
        )
        if stepped is None and self._step_hook is not None:
            notes.stepped = False
        if index is not None:
            index = tensor("index", index)
            index = index if index.dim() == 1 else index.reshape(-1)
        only_tensors({"actions": actions})
        actions = None if actions is None else flat_actions(actions, n)
        if self._pushed or self._known:
            self._reduce_ring()
        if not self._ring.fits(fields, n, notes, heads=layout, index=index, actions=actions):
            self._reduce_ring()
        self._ring.append(fields, n, notes, heads=layout, index=index, actions=actions)
        self._newest = notes
        self._staging.add(*self._ring.newest, notes)

    @_guarded
    def known_rollout(self, /, **fields: Any) -> None:
        """For adapters: what is known of every transition of a rollout that lies on the host.

        Args:
            fields: `old_log_prob`, `raw_advantage`, `value_target`, `old_value`: arrays of one length, copied.
        """
        self._known.begin({name: torch.as_tensor(x).reshape(-1) for name, x in fields.items()})

    @_guarded
    def known_minibatch(
        self,
        index: Any,
        new_log_probs: Tensor,
        entropy: Tensor,
        values: Tensor,
        epoch: int,
        clip_range: float | None,
        value_clip_range: float | None,
        entropy_max: float | None,
        normalize: bool,
    ) -> None:
        """For adapters: a minibatch of the transitions told by `known_rollout`, cheaper than `minibatch`.

        Args:
            index: position of each transition in those arrays, an array [n].
            new_log_probs, ..., normalize: as for `minibatch`; tensors on the host.
        """
        self._newest = None
        self._minibatches += 1
        if self._first_minibatch is None:
            self._first_minibatch = time.monotonic()
        known = self._known
        if known.full or self._ring or self._pushed:
            self._reduce_ring()
        stepped = None if self._step_hook is None else False
        rate = self._learning_rate()
        notes = MinibatchNotes(
            self._minibatches, epoch, clip_range, value_clip_range, rate, entropy_max, normalize, stepped
        )
        known.append(new_log_probs, entropy, values, index, notes)
        self._newest = notes

    @_guarded
    def push(self, packed: Tensor, *, epoch: int | None = None, stepped: bool | None = None) -> None:
        """Record a minibatch that a compiled or captured step reduced: what `esper_recorder.reduce` returned.

        Args:
            packed: copied at once, as the next replay of a captured step writes over it.
            epoch: counted from 1.
            stepped: whether the optimizer stepped on it; True where not told, as such a step holds the optimizer.
        """
        self._newest = None
        self._minibatches += 1
        if not isinstance(packed, Tensor) or packed.dim() != 1 or packed.dtype != torch.float64:
            raise BadCall("what was pushed is not what esper_recorder.reduce returned")
        if self._first_minibatch is None:
            self._first_minibatch = time.monotonic()
        notes = MinibatchNotes(
            minibatch=self._minibatches,
            epoch=self._note("epoch", epoch, "int64"),
            learning_rate=self._learning_rate(),
            stepped=True if stepped is None else self._note("stepped", stepped, "bool"),
        )
        if self._ring or self._known or not self._pushed.fits(packed):
            self._reduce_ring()
        self._pushed.append(packed, notes)
        self._newest = notes

    @_guarded
    def gradients(self, *, total_norm: Tensor | float) -> None:
        """Record the total gradient norm before clipping of the newest minibatch: what `clip_grad_norm_` returned."""
        if not isinstance(total_norm, Tensor):
            total_norm = _number("total_norm", total_norm)
        elif total_norm.numel() != 1:
            raise BadCall(
                f"total_norm is a tensor {list(total_norm.shape)}; give the one number clip_grad_norm_ returned"
            )
        newest = self._newest
        if newest is None:
            return
        if newest is self._known.last:
            newest.grad_norm, newest.norm_seen = float(total_norm), True
        elif newest is self._ring.last:
            self._ring.set_grad_norm(total_norm)

    @_guarded
    def layers(self, *, after_clipping: bool | None = None) -> None:
        """Record each parameter's gradient as it stands. At DEBUG all calls of an update are kept, else the last.

        `end_update` does so itself where it was not called during the update.
        """
        after_clipping = self._note("after_clipping", after_clipping, "bool", of="gradient_layers")
        model = None if self._model is None else self._model()
        if model is not None:
            self._layers.keeps_always = False  # the loop tells of the steps it wants to know
            self._layers.take(model, self._step_notes(self._newest, after_clipping), only=not self.each_step)

    @_guarded
    def expect_layers(self) -> None:
        """For adapters: `layers` will be called before the steps that matter, so nothing is kept before the others."""
        self._layers.keeps_always = False

    @_guarded
    def episode(
        self, *, return_: float, length: int | None = None, env: int | None = None, step: int | None = None
    ) -> None:
        """Record a finished episode: its undiscounted return and its length in steps."""
        row = {
            "env": self._note("env", env, "int64", of="episodes"),
            "step": self._note("step", step, "int64", of="episodes"),
            "episode_return": _number("return_", return_),
            "episode_length": self._note("length", length, "int64", of="episodes"),
        }
        for name, value in row.items():
            self._episodes.setdefault(name, []).append(value)

    @_guarded
    def episodes(
        self, *, returns: Tensor, lengths: Tensor | None = None, finished: Tensor, step: int | None = None
    ) -> None:
        """Record the episodes that finished in a rollout, from tensors that may be on a device: nothing waits for it.

        Args:
            returns: [steps, envs], undiscounted return of the episode so far, that step included.
            lengths: [steps, envs], its length so far in steps.
            finished: [steps, envs], whether it finished with that step.
            step: environment steps taken before the rollout.
        """
        for name, part in (("returns", returns), ("finished", finished)):
            if part is None:
                raise BadCall(f"{name} is None; give a tensor [steps, envs]")
        only_tensors({"returns": returns, "finished": finished, "lengths": lengths})
        parts = [returns, finished] if lengths is None else [returns, finished, lengths]
        if finished.dim() != 2 or any(part.shape != finished.shape for part in parts):
            shapes = ", ".join(str(list(part.shape)) for part in parts)
            raise BadCall(f"episodes() takes tensors of one shape [steps, envs], and was given {shapes}")
        told = torch.stack([part.detach().to(torch.float64) for part in parts])
        self._rollout_episodes.append(self._note("step", step, "int64", of="episodes"))
        self._reduced[f"episodes.{len(self._rollout_episodes) - 1}"] = told

    @_guarded
    def recurrent(self, h: Tensor, c: Tensor | None = None, *, layer: str = "lstm") -> None:
        """Record the state of a recurrent layer; the last one told in an update is kept.

        Args:
            h: hidden state, [..., envs, hidden].
            c: cell state of an LSTM, likewise.
            layer: its name; begin it with `rollout_` where the state was met while collecting.
        """
        if h is None:
            raise BadCall("h is None; give the hidden state as a tensor")
        if not isinstance(layer, str):
            raise BadCall(f"layer is {layer!r}; give the layer's name")
        for kind, state in [(kind, tensor(kind, state)) for kind, state in (("h", h), ("c", c)) if state is not None]:
            packed = state_statistics(state)
            self._recurrent[layer, kind] = packed.names
            self._reduced[f"recurrent.{layer}.{kind}"] = packed.values

    @_guarded
    def row(self, table: str, /, **columns: Any) -> None:
        """Record one row of a table that is not filled from tensors, such as `slots`, `epochs` or `rewards`.

        It belongs to the update being collected and is stored with it. What a column is, and which tables there are,
        `esper tables` tells; a column that is not given is NULL.
        """
        if not isinstance(table, str):
            raise BadCall(f"table is {table!r}; give the name of a table")
        with self.guarded("row", table):
            self._told.add(table, columns, self._identity(self._update))

    @_heard
    def end_update(
        self,
        *,
        step: int | None = None,
        stopped_early: bool | None = None,
        epochs: int | None = None,
        policy_std: Tensor | float | None = None,
    ) -> None:
        """Close the PPO update: reduce what was recorded and hand it to the writer. The next one begins.

        Args:
            step: environment steps taken so far.
            stopped_early: the trainer left the epochs early.
            epochs: epochs begun; known by itself where minibatches tell theirs.
            policy_std: mean standard deviation of a Gaussian policy.
        """
        self._finish_update(step, stopped_early, epochs, policy_std)

    @_heard
    def flush(self, timeout: float | None = CLOSE_SECONDS) -> bool:
        """Wait until everything handed over so far is written; False if that took longer than `timeout` seconds (None:
        as long as it takes)."""
        if self._writer is None:
            return True
        if timeout is not None:
            timeout = self._note("timeout", timeout, "float64")
            timeout = CLOSE_SECONDS if timeout is None else timeout
        return self._writer.flush(timeout)

    @_heard
    def close(self, how: str = "finished", error: BaseException | str | None = None) -> None:
        """Write what is left and mark the run as ended: `finished`, or `raised` with the error. A second call does
        nothing. An update not closed by `end_update` is written too if it holds a minibatch, and so are the episodes
        that finished, and the rows that were told, since the last one.

        A script that ends without it is closed as the interpreter exits: `raised` with the exception that ended it.
        Where there was none the run ended with its script: it is `finished`, unless an update was open (a minibatch
        was recorded and no `end_update` followed), which means that the training was left in its middle: that is
        `raised`, in words that say so, except after the last of `total_updates`. `sys.exit` is an end without an
        exception. A process that is killed closes nothing.
        """
        if not self._recording or self._writer is None or self._folder is None:
            return
        if how not in ("finished", "raised"):
            self._failed("close", BadCall(f"how is {how!r}; give finished or raised"))
            how, error = "raised", error or f"close() was told how={how!r}"
        if self._minibatches:
            self._finish_update(interrupted=True)
        elif self._episodes or self._rollout_episodes:
            self._hand_over_episodes()
        if self._told:
            self._writer.put(self._update, self._told.take())
        self._recording = False
        if self._step_hook is not None:
            self._step_hook.remove()
        message = _words(error)
        try:
            self._writer.close(how=how, error=message)
            self._folder.finish(how, error=message, updates=self._writer.committed, dropped=self._writer.dropped)
        except Exception as problem:
            log.error("The end of run %s could not be written: %s", self.run_id, problem)

    def __reduce__(self) -> tuple[Callable[[], Recorder], tuple[()]]:
        # A copy, in a spawned process for instance, is not the one that records.
        return _silent, ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("finished" if error is None else "raised", error)

    @contextlib.contextmanager
    def guarded(self, what: str, table: str | None = None) -> Iterator[None]:
        """For adapters: a failure within is the recorder's own, and is counted and told instead of raised.

        Args:
            what: what was being done, for the log.
            table: the table that lost a row by it.
        """
        try:
            yield
        except Exception as error:
            self._failed(what, error, None if table is None else (table, 1))

    def _end_with_the_process(self, error: BaseException | None) -> None:
        """Close at the exit of the interpreter, `error` being the exception that ended it. See `close`."""
        trained = self._total_updates is not None and self._update > self._total_updates
        if error is not None:
            self.close("raised", error)
        elif self.unclosed is not None:
            self.close("raised", self.unclosed)
        elif self._minibatches and not trained:
            self.close("raised", f"the process ended within update {self._update}, and close() was not called")
        else:
            self.close()

    # --- an update's state ------------------------------------------------------------------------------------------

    def _finish_update(
        self,
        step: int | None = None,
        stopped_early: bool | None = None,
        epochs: int | None = None,
        policy_std: Tensor | float | None = None,
        *,
        interrupted: bool = False,
    ) -> None:
        if not self._recording:
            return
        step = self._note("step", step, "int64", of="ppo_updates")
        stopped_early = self._note("stopped_early", stopped_early, "bool", of="ppo_updates")
        epochs = self._note("epochs", epochs, "int64", of="ppo_updates")
        if not isinstance(policy_std, Tensor):
            policy_std = self._note("policy_std", policy_std, "float64", of="ppo_updates")
        try:
            self._hand_over(step, stopped_early, epochs, policy_std, interrupted)
        except Exception as error:
            self._rescue(error, step, stopped_early, epochs, interrupted)
        finally:
            self._start_update(self._update + 1)

    def _start_update(self, update: int) -> None:
        self._update = update
        self._level = self._escalation.next_level()
        collected = COLLECTED[self._level]
        self._ring.per_minibatch = self._known.per_minibatch = collected.each_minibatch
        self.each_step = collected.each_step
        self._minibatches = 0
        self._newest = self._stepped = None
        self._first_minibatch = None
        self._pieces: list[Piece | Pushed] = []
        self._reduced: dict[str, Tensor] = {}
        self._recurrent: dict[tuple[str, str], tuple[str, ...]] = {}
        self._rollout_names = ()
        self._places = None
        self._layers.clear()
        self._episodes: dict[str, list[Any]] = {}
        self._rollout_episodes: list[int | None] = []
        self._ring.clear()
        self._known.clear()
        self._pushed.clear()
        self._staging.clear()
        self._told.take()  # where the update could not be handed over, its rows are lost with it

    def _rescue(
        self, error: Exception, step: int | None, stopped_early: bool | None, epochs: int | None, interrupted: bool
    ) -> None:
        """Hand over what of the update has arrived on the host, after what is on the device could not be read."""
        arrived = list(self._staging.arrived())
        if not arrived:
            self._failed("end_update", error, (ALL_TABLES, None))
            return
        self._model = self._places = None
        self._pieces, self._layers, self._reduced, self._recurrent = [], LayerLog(), {}, {}
        self._pushed = PackedRing()
        self._rollout_names, self._rollout_episodes = (), []
        self._ring = self._ring.another()
        self._known.clear()
        try:
            for fields, notes in arrived:
                n = len(next(iter(fields.values())))
                if not self._ring.fits(fields, n, notes):
                    self._reduce_ring()
                self._ring.append(fields, n, notes)
            if self._writer is not None:
                lost = self._minibatches - len(arrived)
                table, rows = ("minibatches", lost) if lost else ("gradient_layers", None)
                detail = f"{type(error).__name__}: {error}"
                self._writer.report_gap(self._update, DEVICE_FAILED, table=table, rows=rows, detail=detail)
            self._hand_over(step, stopped_early, epochs, None, interrupted)
        except Exception as further:
            self._failed("end_update", further, (ALL_TABLES, None))

    def _hand_over(
        self,
        step: int | None,
        stopped_early: bool | None,
        epochs: int | None,
        policy_std: Tensor | float | None,
        interrupted: bool,
    ) -> None:
        model = None if self._model is None else self._model()
        if model is not None and not self._layers and (self._step_hook is None or self._stepped is not None):
            # Without a step in this update the gradients, if any, are those of an earlier one.
            of = self._newest if self._step_hook is None else self._stepped
            self._layers.take_after_step(model, self._step_notes(of, True if of is not None and of.norm_seen else None))
        blocks = self._layers.drain()
        now = time.monotonic()
        first = self._first_minibatch
        self._reduce_ring()
        self._look_actions_up()
        reduced = dict(self._reduced)
        for i, piece in enumerate(self._pieces):
            reduced |= {f"{i}.{name}": x for name, x in piece.tensors().items()}
        for i, block in enumerate(blocks):
            reduced |= {f"layers.{i}.{name}": x for name, x in block.tensors().items()}
        notes = self._settings | {
            "level": self._level.name.lower(),
            "step": step,
            "progress": self._progress(step),
            "stopped_early": stopped_early,
            "interrupted": interrupted,
            "epochs": epochs if epochs is not None else self._last_epoch(),
            "rollout_s": None if first is None else first - self._boundary,
            "update_s": None if first is None else now - first,
        }
        if isinstance(policy_std, Tensor):
            reduced["policy_std"] = policy_std.detach().to(torch.float64).mean()
        else:
            notes["policy_std"] = policy_std
        given = UpdateInput(
            identity=self._identity(self._update),
            definition=self._definition,
            update_notes=notes,
            pieces=self._pieces,
            transfer=Transfer(reduced),
            rollout_names=self._rollout_names,
            layers=blocks,
            exemplar_places=self._places,
            recurrent=self._recurrent,
            episodes=self._episodes,
            rollout_episodes=self._rollout_episodes,
            episode_numbers=self._episode_numbers,
        )
        self._boundary = now
        assert self._writer is not None
        rows = functools.partial(_rows, given, self._minibatches, self._escalation, self._level)
        self._writer.put(self._update, functools.partial(with_told, self._told.take(), rows) if self._told else rows)

    def _hand_over_episodes(self) -> None:
        """Those of a rollout that no update followed."""
        assert self._writer is not None
        with self.guarded("episodes"):
            given = UpdateInput(
                identity=self._identity(self._update),
                definition=self._definition,
                update_notes={},
                pieces=[],
                transfer=Transfer({k: v for k, v in self._reduced.items() if k.startswith("episodes.")}),
                episodes=self._episodes,
                rollout_episodes=self._rollout_episodes,
                episode_numbers=self._episode_numbers,
            )
            self._writer.put(self._update, functools.partial(build_episodes, given))

    @staticmethod
    def _catch_up(folder: RunFolder, watcher: Watcher) -> None:
        try:
            starts = {a.attempt: a.from_update for a in folder.manifest.attempts}
            watcher.catch_up(folder.path, folder.rank, starts)
        except Exception as error:
            log.warning("The rules watch run %s as if it began here; its past cannot be read: %s", folder.run_id, error)

    def _reduce_ring(self) -> None:
        pushed = self._pushed.take(per_minibatch=self._ring.per_minibatch)
        for piece in (pushed, self._known.reduce(), self._ring.reduce()):
            if piece is not None:
                self._pieces.append(piece)

    def _look_actions_up(self) -> None:
        """Where the rollout's actions are on a device, the worst transitions' are taken there; the host has no way."""
        actions = None if self._places is None else self._places["actions"]
        if self._places is None or actions is None or actions.device.type == "cpu":
            return
        order = self._places["order"]
        for i, piece in enumerate(self._pieces):
            if isinstance(piece, Piece):
                own = tuple([with_actions(one, actions, order) for one in piece.reduced])
                self._pieces[i] = dataclasses.replace(piece, reduced=own)
        self._places = self._places | {"actions": None}

    def _step_notes(self, notes: MinibatchNotes | None, after_clipping: bool | None) -> dict[str, Any]:
        return {
            "epoch": None if notes is None else notes.epoch,
            "minibatch": self._minibatches if notes is None else notes.minibatch,
            "after_clipping": after_clipping,
        }

    def _on_step(self, *_: Any) -> None:
        newest = self._newest
        if newest is not None:
            newest.stepped = True
            self._stepped = newest
        each_step = self.each_step
        if not (each_step or self._layers.waits_for_step):
            return
        model = None if self._model is None else self._model()
        if model is None or not self._recording:
            return
        with self.guarded("layers"):
            if each_step and self._layers.keeps_always:
                told = newest is not None and newest.norm_seen
                self._layers.take(model, self._step_notes(newest, True if told else None), only=False)
            self._layers.before_step(model)

    def _learning_rate(self) -> float | None:
        optimizer = None if self._optimizer is None else self._optimizer()
        if optimizer is None:
            return None
        rate = optimizer.param_groups[0]["lr"]
        return float(rate) if isinstance(rate, (float, int)) else None  # reading a tensor may wait for the device

    def _last_epoch(self) -> int | None:
        return self._pieces[-1].notes[-1].epoch if self._pieces else None

    def _progress(self, step: int | None) -> float | None:
        if self._total_updates:
            return min(self._update / self._total_updates, 1.0)
        if self._total_steps and step is not None:
            return min(step / self._total_steps, 1.0)
        return None

    def _identity(self, update: int) -> dict[str, Any]:
        assert self._folder is not None
        return {
            "run_id": self._folder.run_id,
            "attempt": self._folder.attempt,
            "rank": self._folder.rank,
            "update": update,
            "time": datetime.now(UTC),
            "elapsed_s": time.monotonic() - self._started,
        }

    def _note(self, name: str, value: Any, kind: str, *, of: str = "minibatches") -> Any:
        """A value of the host for a column of the table `of`: NULL, and told, where it is not of the column's type."""
        try:
            return noted(name, value, kind)
        except BadCall as error:
            self._failed(name, error, (of, 0))
            return None

    def _failed(self, what: str, error: Exception, lost: tuple[str, int | None] | None = None) -> None:
        """Count and tell a failure of the call (or work) `what`; `lost` is the table and how many of its rows."""
        if self._writer is not None and self._recording:
            table, rows = lost or _LOST_BY.get(what, ("ppo_updates", None))
            detail = str(error) if isinstance(error, BadCall) else f"{what}: {type(error).__name__}: {error}"
            reason = BAD_CALL if isinstance(error, BadCall) else REDUCE_FAILED
            self._writer.report_gap(self._update, reason, table=table, rows=rows, detail=detail[:_DETAIL_LENGTH])
        log.debug("recorder call %s failed", what, exc_info=error)

    def _open(
        self,
        root: str | Path,
        name: str,
        config: Any,
        trainer: str | Mapping[str, Any],
        resume: str | None,
        from_update: int | None,
        rank: int | None,
        run_id: str | None,
    ) -> RunFolder:
        rank = current_rank() if rank is None else rank
        rules = None if self._rules is None else (self._rules.name, self._rules.text)
        rendezvous = Rendezvous(name, rank)
        shared = run_id or rendezvous.fetch() or resume
        if rank and shared is not None:
            return RunFolder.join(root, shared, rank=rank, rules=rules, patience=JOIN_SECONDS)
        if rank:
            log.warning(
                "Rank %d records into a separate run. To have one run for all ranks make the Recorder after "
                "torch.distributed is initialised, or give all of them the same run_id.",
                rank,
            )
        as_text: list[str] = []
        config = to_jsonable(config, texts=as_text)
        if as_text:
            log.warning("run.json keeps as text what JSON cannot hold of config: %s.", _some(as_text))
        about: dict[str, Any] = {
            "trainer": {"name": trainer} if isinstance(trainer, str) else trainer,
            "definition": self._definition,
            "config": config,
            "versions": loaded_versions(),
            "level": self._base_level.name.lower(),
            "rules": rules,
            "total_updates": self._total_updates,
            "total_steps": self._total_steps,
        }
        try:
            if resume is None:
                folder = RunFolder.create(root, name, rank=rank, run_id=run_id, **about)
            else:
                if from_update is None:
                    from_update = last_update(Path(root) / resume) + 1
                folder = RunFolder.resume(root, resume, from_update=from_update, rank=rank, **about)
        except BaseException:
            rendezvous.publish(None)
            raise
        rendezvous.publish(folder.run_id)
        return folder


def _rows(given: UpdateInput, minibatches: int, escalation: Escalation, level: Level) -> dict[str, Any]:
    """The rows of an update that its level stores. For the writer thread."""
    given.with_minibatches = escalation.stores_minibatches(level)
    if not given.with_minibatches:
        escalation.keep(functools.partial(build_minibatches, given), minibatches)
    return build(given)


def _number(name: str, value: Any) -> float:
    """A number a call cannot do without. Raises BadCall."""
    if value is None:
        raise BadCall(f"{name} is None; give a number")
    return float(noted(name, value, "float64"))


def _listed(shapes: Mapping[str, list[int]]) -> str:
    return ", ".join(f"{name} is {shape}" for name, shape in shapes.items())


def _some(names: Sequence[str], most: int = 10) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def _length(name: str, length: Any) -> int | None:
    """The length of a training as it was told, checked."""
    if length is None:
        return None
    whole = getattr(type(length), "__index__", None)  # NumPy's whole numbers too
    if whole is None or isinstance(length, bool) or whole(length) < 1:
        raise ValueError(f"{name} is {length!r}; give the length of the training as a whole number from 1, or None")
    return int(length)


_ERROR_LENGTH = 4000
_DETAIL_LENGTH = 500


def _words(error: BaseException | str | None) -> str | None:
    """An error in words, not longer than a page: a message may hold a whole tensor."""
    if error is None or isinstance(error, str):
        return error
    text = str(error)
    return f"{type(error).__name__}: {text}"[:_ERROR_LENGTH] if text else type(error).__name__


_open_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _silence_in_child() -> None:
    """A forked process has no writer thread, and the run is its parent's: there, every call does nothing."""
    for recorder in list(_open_recorders):
        recorder._recording = False
    _open_recorders.clear()


os.register_at_fork(after_in_child=_silence_in_child)


def _silent() -> Recorder:
    return Recorder(".", level=Level.OFF, rules=None)


def _close_at_exit(reference: weakref.ref[Recorder]) -> None:
    recorder = reference()
    if recorder is not None:
        recorder._end_with_the_process(getattr(sys, "last_exc", None) or getattr(sys, "last_value", None))
