"""The object a training loop holds: it takes tensors, reduces them once per update and hands the rows to a writer.

Covers:
- no call raises into the trainer, waits for the device or the disk, keeps a tensor of the trainer's, or touches a
  random stream, a gradient or a weight;
- what could not be recorded is counted, logged once (logger `esper_recorder`) and written as a row of the table `gaps`;
- a script that ends without `close()`, raises, or forks.

Does not cover:
- a process that is killed: what it had not handed over is lost, and `esper recover` finishes the run's files;
- calls from several threads: one thread records, as one thread trains.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import inspect
import logging
import os
import sys
import time
import weakref
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import torch
from torch import Tensor

from esper_recorder.arguments import (
    BadCall,
    check_recorder,
    episode_tensors,
    gradient_norm,
    packed_minibatch,
    setting,
    text,
    training_length,
    wrong_arguments,
)
from esper_recorder.capture.failures import WHOLE_UPDATE, Failures
from esper_recorder.capture.layers import LayerLog
from esper_recorder.capture.open_update import OpenUpdate, Setup
from esper_recorder.capture.update_rows import ClosedUpdate, build, build_minibatches
from esper_recorder.contract.rules.ruleset import RuleSet, load_rules
from esper_recorder.escalation import UPDATES, Escalation
from esper_recorder.levels import Level
from esper_recorder.rendezvous import open_run_folder
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import ParquetSink, Sink
from esper_recorder.storage.writer import CLOSE_SECONDS, Writer
from esper_recorder.watcher import Watcher

log = logging.getLogger("esper_recorder")

P = ParamSpec("P")
R = TypeVar("R")
T = TypeVar("T", bound="UpdateCalls")


def _guarded(method: Callable[Concatenate[T, P], None]) -> Callable[Concatenate[T, P], None]:
    """Report what a call raises instead of raising it. The call does nothing if nothing is recorded."""

    @functools.wraps(method)
    def call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> None:
        if self._recording:
            try:
                method(self, *args, **kwargs)
            except Exception as error:
                self._open.failures.report(method.__name__, _misuse(method, self, *args, **kwargs) or error)

    return call


def _passed_to(
    body: Callable[[OpenUpdate, Mapping[str, Any]], None],
) -> Callable[[Callable[Concatenate[T, P], None]], Callable[Concatenate[T, P], None]]:
    """Guard a call that passes its keywords on as one mapping: to bind 19 of them twice costs as much as the copy."""

    def decorate(method: Callable[Concatenate[T, P], None]) -> Callable[Concatenate[T, P], None]:
        @functools.wraps(method)
        def call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> None:
            if self._recording:
                try:
                    if args:
                        raise TypeError("all arguments are keywords")
                    body(self._open, kwargs)
                except Exception as error:
                    self._open.failures.report(method.__name__, _misuse(method, self, *args, **kwargs) or error)

        return call

    return decorate


def _misuse(method: Callable[..., Any], *args: Any, **kwargs: Any) -> BadCall | None:
    """The error for arguments that a method's signature does not have; None if it has them."""
    try:
        inspect.signature(method).bind(*args, **kwargs)
    except TypeError as error:
        return wrong_arguments(method, error, kwargs)
    return None


def _lenient(method: Callable[Concatenate[T, P], R]) -> Callable[Concatenate[T, P], R]:
    """Report arguments that a call does not have and leave them out: it does its work whatever it is given."""
    names = inspect.signature(method).parameters

    @functools.wraps(method)
    def call(self: T, /, *args: P.args, **kwargs: P.kwargs) -> R:
        misuse = _misuse(method, self, *args, **kwargs)
        if misuse is None:
            return method(self, *args, **kwargs)
        self._open.failures.report(method.__name__, misuse)
        loosely: Callable[..., R] = method
        return loosely(self, **{name: value for name, value in kwargs.items() if name in names})

    return call


class UpdateCalls:
    """The calls that record an update, those of `Recorder`."""

    _open: OpenUpdate
    _setup: Setup
    _recording: bool

    @_guarded
    def settings(self, /, **columns: Any) -> None:
        """Set columns of `ppo_updates` that hold until they are changed, such as `target_kl`, `max_grad_norm`,
        `entropy_coef`, `value_coef`, `epochs_planned`."""
        for name, value in columns.items():
            with self._open.failures.guarded("settings"):
                self._setup.settings[name] = setting(name, value)

    @_passed_to(OpenUpdate.rollout)
    def rollout(
        self,
        *,
        values: Any = None,
        returns: Any = None,
        advantages: Any = None,
        rewards: Any = None,
        old_log_probs: Any = None,
        actions: Any = None,
        mask: Any = None,
        index_order: str = "time_major",
    ) -> None:
        """Record the rollout an update trains on; once per update, before its epochs.

        Minibatches with an `index` need not repeat its advantages, returns, values and old log-probabilities.

        Args:
            values: predictions made while collecting. Tensors or NumPy arrays of one shape, [steps, envs] or any;
                here and below.
            returns: value targets.
            advantages: not normalised.
            rewards: as the trainer uses them.
            old_log_probs: log-probabilities of the actions as the rollout computed them, nats.
            actions: [steps, envs, ...], for the worst transitions.
            mask: 0 or False on padding; of the others' shape.
            index_order: how `minibatch(index=...)` counts a position in the rollout: `time_major`, step * envs + env
                (CleanRL), or `env_major`, env * steps + step (Stable-Baselines3).
        """

    @_passed_to(OpenUpdate.minibatch)
    def minibatch(
        self,
        *,
        log_ratio: Tensor | None = None,
        new_log_probs: Tensor | None = None,
        old_log_probs: Tensor | None = None,
        advantages: Tensor | None = None,
        raw_advantages: Tensor | None = None,
        normalize_advantages: bool | None = None,
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
        """Record a minibatch when its loss is computed. Tensors are of one shape (any) and are copied.

        Args:
            log_ratio: new minus old log-probability, nats; or give both
            new_log_probs, old_log_probs: log-probabilities of the actions taken, nats.
            advantages: as the loss uses them.
            raw_advantages: before normalisation.
            normalize_advantages: recorded without `advantages`: True if the loss normalises `raw_advantages` over this
                minibatch (mean, unbiased standard deviation + 1e-8), False if it uses them unchanged. Without it the
                loss's advantages are not measured.
            entropy: nats.
            entropy_max: log of the number of valid actions, nats; a number if it is the same everywhere.
            values, returns, old_values: prediction, target, and the prediction when the action was taken.
            mask: 0 or False on padding.
            clip_range, value_clip_range: those of the loss.
            epoch: counted from 1.
            index: position of each transition in the rollout, -1 on padding, as a tensor or NumPy array. It finds what
                `rollout` was given and this call is not: `old_log_probs`, `raw_advantages`, `returns`, `old_values`.
                That happens once for all minibatches, and costs less than to give them. A position outside the rollout
                is left out and reported.
            actions: [..., size], one more dimension than the rest.
            stepped: whether the optimizer steps on it; not needed if the recorder has the optimizer.
            heads: of a policy with several action heads, name -> `log_ratio` (or `new_log_probs` and
                `old_log_probs`), `entropy`, `entropy_max` (a tensor or a number) and `mask` (0 or False if the head's
                choice did not matter), tensors of the minibatch's shape; at least the first or the second.
        """

    @_guarded
    def push(self, packed: Tensor, *, epoch: int | None = None, stepped: bool | None = None) -> None:
        """Record a minibatch that a compiled or captured step reduced: what `esper_recorder.reduce` returned.

        Args:
            packed: copied at once, as the next replay of a captured step writes over it.
            epoch: counted from 1.
            stepped: whether the optimizer stepped on it; True if not given, as such a step contains the optimizer's.
        """
        self._open.begin_minibatch()
        self._open.push(packed_minibatch(packed), epoch=epoch, stepped=stepped)

    @_guarded
    def gradients(self, *, total_norm: Tensor | float) -> None:
        """Record the total gradient norm before clipping of the newest minibatch: what `clip_grad_norm_` returned."""
        self._open.gradient_norm(gradient_norm(total_norm))

    @_guarded
    def layers(self, *, after_clipping: bool | None = None) -> None:
        """Record each parameter's gradient as it is now. At DEBUG all calls of an update are kept, else the last.

        `end_update` does so itself if it was not called during the update.
        """
        checked = self._open.failures.checked
        self._open.layers(checked("after_clipping", after_clipping, "bool", table="gradient_layers"))

    @_guarded
    def episode(
        self, *, return_: float, length: int | None = None, env: int | None = None, step: int | None = None
    ) -> None:
        """Record a finished episode: its undiscounted return and its length in steps."""
        self._open.episode(return_, length, env, step)

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
        self._open.episodes(episode_tensors(returns, finished, lengths), step)

    @_guarded
    def recurrent(self, h: Tensor, c: Tensor | None = None, *, layer: str = "lstm") -> None:
        """Record the state of a recurrent layer; the last state of an update is kept.

        Args:
            h: hidden state, [..., envs, hidden].
            c: cell state of an LSTM, likewise.
            layer: its name; begin it with `rollout_` if it is a state of the rollout.
        """
        if h is None:
            raise BadCall("h is None; give the hidden state as a tensor")
        self._open.recurrent(text("layer", layer, "the layer's name"), {"h": h, "c": c})

    @_guarded
    def row(self, table: str, /, **columns: Any) -> None:
        """Record one row of a table that is not filled from tensors, such as `slots`, `epochs` or `rewards`.

        It belongs to the update being collected and is stored with it. `esper tables` lists the tables and what their
        columns mean; a column that is not given is NULL.
        """
        self._open.row(text("table", table, "the name of a table"), columns)


class Recorder(UpdateCalls):
    """Records one PPO run.

    Args:
        root: folder the run's folder is made in.
        name: first part of the run's id.
        config: anything JSON can hold, a dataclass or a pydantic model, kept in run.json; what JSON cannot hold is kept
            as its `repr`, and the log names the keys.
        total_updates, total_steps: length of the training, for progress and phases.
        model: its `named_parameters()` are the layers.
        optimizer: its steps mark minibatches as stepped on, and its first group has the learning rate.
        level: `off`, `minimal` (no rows of minibatches), `normal`, or `debug` (histograms and worst transitions of
            every minibatch, layer statistics of every step).
        escalate: severity of the alarms whose onset raises the level to `debug` for a while (`info`, `warning`,
            `critical`), or None; see `escalation`.
        escalate_updates: how many PPO updates are then recorded at `debug`.
        rules: a shipped profile, the path of a rules file, or None: what watches the run while it is recorded.
        resume: run_id of a run under `root` to continue as a new attempt.
        from_update: first update of that attempt; the default continues after the last recorded one.
        rank: which process of a distributed trainer this is; the default asks torch.distributed, then torchrun's RANK.
            The ranks record into one run: rank 0 makes it, the others wait up to a minute for it.
        run_id: the run's id, the same on every rank, if torch.distributed is not initialised yet and so cannot pass on
            which run rank 0 made.
        sink: where rows go instead of Parquet files, for instance a `MemorySink`.
        trainer: name of the trainer, or a mapping with its `name` and what else describes it (such as the group of an
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
        self._escalation = Escalation.from_options(level, escalate, escalate_updates)
        check_recorder(model, optimizer, definition, rank, run_id, resume, trainer, sink)
        rule_set = None if rules is None else load_rules(rules)
        self._setup = Setup(
            definition=definition,
            layers=LayerLog(model),
            optimizer=None if optimizer is None else weakref.ref(optimizer),
            total_updates=training_length("total_updates", total_updates),
            total_steps=training_length("total_steps", total_steps),
        )
        self.adapter = AdapterPort(self)
        """For adapters of trainers; a training script has no need of it."""
        self._run: _Run | None = None
        self._step_hook: Any = None
        self._recording = False
        self._begin_update(1)
        if Level.parse(level) is Level.OFF:
            return
        about = {
            "trainer": {"name": trainer} if isinstance(trainer, str) else trainer,
            "definition": definition,
            "config": config,
            "rules": None if rule_set is None else (rule_set.name, rule_set.text),
            "level": Level.parse(level).name.lower(),
            "total_updates": self._setup.total_updates,
            "total_steps": self._setup.total_steps,
        }
        try:
            folder = open_run_folder(
                Path(root), name, rank=rank, run_id=run_id, resume=resume, from_update=from_update, about=about
            )
        except OSError as error:
            log.error("Nothing of this training is recorded under %s (%s). Training continues.", root, error)
            return
        self._run = _Run(folder, rule_set, self._escalation, sink, resumed=resume is not None)
        self._recording = True
        self._begin_update(folder.from_update)
        if optimizer is not None:
            self._step_hook = optimizer.register_step_pre_hook(self._on_step)
        _open_recorders.add(self)
        atexit.register(_close_at_exit, weakref.ref(self))

    # --- what a trainer calls ---------------------------------------------------------------------------------------

    @property
    def run_id(self) -> str | None:
        """The run's id; None if nothing is recorded."""
        return None if self._run is None else self._run.folder.run_id

    @property
    def path(self) -> Path | None:
        """The run's folder; None if nothing is recorded."""
        return None if self._run is None else self._run.folder.path

    @property
    def update(self) -> int:
        """The PPO update being collected, counted from 1."""
        return self._open.number

    @property
    def level(self) -> Level:
        """The level of the update being collected: the recorder's own, or DEBUG after an alarm."""
        return self._open.level

    @_lenient
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
            epochs: epochs begun; not needed if minibatches are given theirs.
            policy_std: mean standard deviation of a Gaussian policy.
        """
        checked = functools.partial(self._open.failures.checked, table="ppo_updates")
        self._close_update(
            {
                "step": checked("step", step, "int64"),
                "stopped_early": checked("stopped_early", stopped_early, "bool"),
                "epochs": checked("epochs", epochs, "int64"),
                "interrupted": False,
            },
            policy_std if isinstance(policy_std, Tensor) else checked("policy_std", policy_std, "float64"),
        )

    @_lenient
    def flush(self, timeout: float | None = CLOSE_SECONDS) -> bool:
        """Wait until everything handed over so far is written; False if that took longer than `timeout` seconds (None:
        as long as it takes)."""
        if self._run is None:
            return True
        if timeout is not None:
            timeout = self._open.failures.checked("timeout", timeout, "float64")
            timeout = CLOSE_SECONDS if timeout is None else timeout
        return self._run.writer.flush(timeout)

    @_lenient
    def close(self, how: str = "finished", error: BaseException | str | None = None) -> None:
        """Write what is left and mark the run as ended: `finished`, or `raised` with the error. A second call does
        nothing. An update not closed by `end_update` is written too if it has a minibatch, and so are the episodes that
        finished, and the rows recorded, since the last one.

        A script that ends without it is closed as the interpreter exits: `raised` with the exception that ended it.
        Without an exception the run ended with its script: it is `finished`, unless an update was open (a minibatch
        was recorded and no `end_update` followed), which means that the training was left in its middle: that is
        `raised`, with a message that says so, except after the last of `total_updates`. `sys.exit` is an end without
        an exception. A process that is killed closes nothing.
        """
        if not self._recording or self._run is None:
            return
        if how not in ("finished", "raised"):
            self._open.failures.report("close", BadCall(f"how is {how!r}; give finished or raised"))
            how, error = "raised", error or f"close() was called with how={how!r}"
        if self._open.minibatches:
            self._close_update({"interrupted": True}, None)
        with self._open.failures.guarded("episodes"):
            leftovers = self._open.leftovers()
            if leftovers is not None:
                self._run.put(leftovers)
        self._recording = False
        self._open.failures.end()
        if self._step_hook is not None:
            self._step_hook.remove()
        self._run.close(how, _message(error))

    def __reduce__(self) -> tuple[Callable[[], Recorder], tuple[()]]:
        # A copy, in a spawned process for instance, is not the one that records.
        return _inactive, ()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close("finished" if error is None else "raised", error)

    # --- the lifecycle ----------------------------------------------------------------------------------------------

    def _begin_update(self, number: int) -> None:
        run = self._run if self._recording else None
        failures = Failures(number, None if run is None else run.writer.report_gap)
        identity = (lambda _: {}) if run is None else run.identity
        self._open = OpenUpdate(number, self._escalation.next_level(), self._setup, failures, identity)

    def _close_update(self, columns: Mapping[str, Any], policy_std: Any) -> None:
        if not self._recording or self._run is None:
            return
        update = self._open
        try:
            self._run.put(update.close(columns, policy_std))
        except Exception as error:
            try:
                salvaged = update.salvage(error)
                if salvaged is None:
                    update.failures.report("end_update", error, WHOLE_UPDATE)
                else:
                    self._setup = salvaged.setup
                    self._run.put(salvaged.close(columns, None))
            except Exception as further:
                update.failures.report("end_update", further, WHOLE_UPDATE)
        finally:
            self._begin_update(update.number + 1)

    def _on_step(self, *_: Any) -> None:
        if self._recording:
            self._open.before_step()

    def _end_with_the_process(self, error: BaseException | None) -> None:
        """Close at the exit of the interpreter; `error` is the exception that ended it. See `close`."""
        total_updates = self._setup.total_updates
        trained = total_updates is not None and self._open.number > total_updates
        if error is not None:
            self.close("raised", error)
        elif self.adapter.unclosed is not None:
            self.close("raised", self.adapter.unclosed)
        elif self._open.minibatches and not trained:
            self.close("raised", f"the process ended within update {self._open.number}, and close() was not called")
        else:
            self.close()


class AdapterPort:
    """What an adapter of a trainer may do with a recorder beyond its public calls: `recorder.adapter`."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self.unclosed: str | None = None
        """What it means if the process ends, without an exception, before the adapter has closed the recorder."""

    @property
    def each_step(self) -> bool:
        """Whether `Recorder.layers` is wanted at each step of the update being collected, see `levels`."""
        return self._recorder._open.each_step

    def announce_layers(self) -> None:
        """Promise to call `Recorder.layers` before the steps that matter: weights are not kept before the others."""
        self._recorder._setup.layers.keeps_always = False

    def guarded(self, what: str, table: str | None = None) -> contextlib.AbstractContextManager[None]:
        """Report an exception of the adapter's own work instead of raising it, see `Failures.guarded`."""
        return self._recorder._open.failures.guarded(what, table)


class _Run:
    """Where a recorder's rows go: the run's folder, its watcher and its writer."""

    def __init__(
        self, folder: RunFolder, rules: RuleSet | None, escalation: Escalation, sink: Sink | None, *, resumed: bool
    ) -> None:
        self.folder = folder
        self._escalation = escalation
        self._started = time.monotonic()
        watcher = None if rules is None else Watcher(rules, escalation)
        if watcher is not None and resumed:
            _catch_up(folder, watcher)
        self.writer = Writer(
            sink or ParquetSink(folder.path, folder.attempt, folder.rank),
            on_commit=None if watcher is None else watcher.alarms,
            identity=self.identity,
            heartbeat=folder.beat,
        )

    def identity(self, update: int) -> dict[str, Any]:
        """The columns that all rows of an update have."""
        return {
            "run_id": self.folder.run_id,
            "attempt": self.folder.attempt,
            "rank": self.folder.rank,
            "update": update,
            "time": datetime.now(UTC),
            "elapsed_s": time.monotonic() - self._started,
        }

    def put(self, update: ClosedUpdate) -> None:
        """Hand an update to the writer, whose thread builds its rows."""
        self.writer.put(update.identity["update"], functools.partial(self._rows, update))

    def close(self, how: str, message: str | None) -> None:
        """Write what waits, and how the run ended."""
        try:
            self.writer.close(how=how, error=message)
            self.folder.finish(how, error=message, updates=self.writer.committed, dropped=self.writer.dropped)
        except Exception as problem:
            log.error("The end of run %s could not be written: %s", self.folder.run_id, problem)

    def _rows(self, update: ClosedUpdate) -> dict[str, Any]:
        """The rows of an update that its level stores."""
        if update.columns is None:
            return build(update)
        with_minibatches = self._escalation.stores_minibatches(update.level)
        if not with_minibatches:
            self._escalation.keep(functools.partial(build_minibatches, update), update.minibatches)
        return build(update, with_minibatches=with_minibatches)


def _catch_up(folder: RunFolder, watcher: Watcher) -> None:
    try:
        starts = {a.attempt: a.from_update for a in folder.manifest.attempts}
        watcher.catch_up(folder.path, folder.rank, starts)
    except Exception as error:
        log.warning("The rules watch run %s as if it began here; its past cannot be read: %s", folder.run_id, error)


_ERROR_LENGTH = 4000


def _message(error: BaseException | str | None) -> str | None:
    """An error as text, not longer than a page: a message may contain a whole tensor."""
    if error is None or isinstance(error, str):
        return error
    message = str(error)
    return f"{type(error).__name__}: {message}"[:_ERROR_LENGTH] if message else type(error).__name__


_open_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _deactivate_in_child() -> None:
    """A forked process has no writer thread, and the run is its parent's: there, every call does nothing."""
    for recorder in list(_open_recorders):
        recorder._recording = False
    _open_recorders.clear()


os.register_at_fork(after_in_child=_deactivate_in_child)


def _inactive() -> Recorder:
    return Recorder(".", level=Level.OFF, rules=None)


def _close_at_exit(reference: weakref.ref[Recorder]) -> None:
    recorder = reference()
    if recorder is not None:
        recorder._end_with_the_process(getattr(sys, "last_exc", None) or getattr(sys, "last_value", None))
