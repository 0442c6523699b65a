"""The object a training loop holds: it takes tensors, reduces them once per update and hands the rows to a writer.

Covers:
- no call raises into the trainer, waits for the device or the disk, keeps a tensor of the trainer's, or touches a
  random stream, a gradient or a weight;
- what could not be recorded is counted, logged once (logger `esper_recorder`) and written as a row of the table `gaps`;
- a script that ends without `close()`, raises, or forks;
- Ctrl-C and other signals within a call, and calls from several threads, see `capture.guards`.

Does not cover:
- a process that is killed: what it had not handed over is lost, and `esper recover` finishes the run's files;
- several learners at once: their calls take turns, but record into one update. Give each its own recorder.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import torch
from torch import Tensor

from esper_recorder.alarms import AlarmOnset, Announcer
from esper_recorder.arguments import BadCall, check_alarms, check_recorder, training_length
from esper_recorder.capture.failures import WHOLE_UPDATE, Failures
from esper_recorder.capture.guards import lenient
from esper_recorder.capture.layers import LayerLog
from esper_recorder.capture.open_update import OpenUpdate, Setup
from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.rules.ruleset import RuleSet, load_rules
from esper_recorder.escalation import UPDATES, Escalation
from esper_recorder.levels import Level
from esper_recorder.recording import Recording
from esper_recorder.rendezvous import open_run_folder
from esper_recorder.storage.gaps import BAD_CALL
from esper_recorder.storage.interrupts import signals_deferred
from esper_recorder.storage.jsonable import describe_error, encodable
from esper_recorder.storage.manifest import ManifestError
from esper_recorder.storage.run_folder import RunFolder, RunFolderError
from esper_recorder.storage.sink import Sink
from esper_recorder.storage.writer import CLOSE_SECONDS
from esper_recorder.update_calls import UpdateCalls

log = logging.getLogger("esper_recorder")


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
        rules: a shipped profile, the path of a rules file, or None: what watches the run while it is recorded. The
            onset of each alarm is one line in the log.
        on_alarm: called with each `AlarmOnset`, in the thread that makes the next call of the recorder. What it raises
            is logged.
        stop_on: severity of the alarms that set `should_stop` (`info`, `warning`, `critical`), or None.
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
            written, and anything else that fails, is not an error: training continues without a recording, and the
            log says so.
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
        on_alarm: Callable[[AlarmOnset], object] | None = None,
        stop_on: str | None = None,
        resume: str | None = None,
        from_update: int | None = None,
        rank: int | None = None,
        run_id: str | None = None,
        sink: Sink | None = None,
        trainer: str | Mapping[str, Any] = "script",
        definition: str = "pooled",
    ) -> None:
        check_recorder(
            root, name, model, optimizer, definition, rank, run_id, resume, from_update, trainer, sink, rules
        )
        self._escalation = Escalation.from_options(level, escalate, escalate_updates)
        check_alarms(on_alarm, stop_on)
        self._setup = Setup(
            definition=definition,
            layers=LayerLog(model),
            optimizer=None if optimizer is None else weakref.ref(optimizer),
            total_updates=training_length("total_updates", total_updates),
            total_steps=training_length("total_steps", total_steps),
        )
        self.adapter = AdapterPort(self)
        """For adapters of trainers; a training script has no need of it."""
        self._run: Recording | None = None
        self._step_hook: Any = None
        self._turn = threading.RLock()
        self._recording = False
        self._ended = 0  # updates that `end_update` closed
        self._without_minibatches: list[int] = []  # the first and the last of them, and how many
        self._begin_update(1)
        rule_set = _load_rules(rules)
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
        folder: RunFolder | None = None
        try:
            # Not within `signals_deferred`: a rank waits here for rank 0, and Ctrl-C must end that.
            folder = open_run_folder(
                Path(root), name, rank=rank, run_id=run_id, resume=resume, from_update=from_update, about=about
            )
            with signals_deferred:
                self._begin(folder, rule_set, sink, on_alarm, stop_on, resumed=resume is not None)
        except (RunFolderError, ManifestError):
            raise
        except Exception as error:
            message = "Nothing of this training is recorded under %s (%s). Training continues."
            log.error(message, encodable(str(root)), describe_error(error))
        except BaseException as error:
            # Nobody will have this recorder: Ctrl-C ends its constructor.
            with signals_deferred:
                if self._recording:
                    self.close("raised", error)
                elif folder is not None:
                    folder.abandon(error)
            raise

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

    @property
    def should_stop(self) -> bool:
        """Whether an alarm as severe as `stop_on` was raised: a loop that wants to stop asks after each update.

        The rules are evaluated in the writer's thread: an update's alarms come a moment after `end_update`, or with
        `flush`.
        """
        return self._run is not None and self._run.announcer.should_stop

    @lenient
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
        with self._turn:
            self._ended += 1
            if self._open.lacks_minibatches:
                first, _, count = self._without_minibatches or (self._open.number, 0, 0)
                self._without_minibatches = [first, self._open.number, count + 1]
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

    @lenient
    def flush(self, timeout: float | None = CLOSE_SECONDS) -> bool:
        """Wait until everything handed over so far is written; False if that took longer than `timeout` seconds (None:
        as long as it takes)."""
        if self._run is None:
            return True
        if timeout is not None:
            timeout = self._open.failures.checked("timeout", timeout, "float64")
            timeout = CLOSE_SECONDS if timeout is None else timeout
        return self._run.writer.flush(timeout)

    @lenient
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
        run = self._run
        if run is None:
            return
        with self._turn:
            if self._recording:
                self._end_recording(run, how, error)
        run.close()  # again, if Ctrl-C kept an earlier call from waiting for it

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

    def _report_forgotten_calls(self, run: Recording, how: str) -> None:
        """Say what the loop left out: what is recorded then looks complete and is not."""
        if how == "finished" and self._open.minibatches and not self._ended:
            number, count = self._open.number, self._open.minibatches
            detail = f"end_update() was never called, so all {count} minibatches are in one update"
            run.writer.report_gap(number, BAD_CALL, table="ppo_updates", detail=detail)
        if self._without_minibatches:
            first, last, count = self._without_minibatches
            detail = f"minibatch() was never called in {count} update(s) with a rollout or gradients"
            run.writer.report_gap(last, BAD_CALL, table="minibatches", detail=detail, first=first)
            self._without_minibatches = []

    def _deliver_alarms(self) -> None:
        if self._run is not None:
            self._run.announcer.deliver()

    def _end_recording(self, run: Recording, how: Any, error: BaseException | str | None) -> None:
        """Hand over what is left; from here on calls do nothing."""
        if how not in ("finished", "raised"):
            self._open.failures.report("close", BadCall(f"how is {how!r}; give finished or raised"))
            how, error = "raised", error or f"close() was called with how={how!r}"
        if self.adapter.unclosed is None:
            self._report_forgotten_calls(run, how)
        if self._open.minibatches:
            self._close_update({"interrupted": True}, None)
        with self._open.failures.guarded("episodes"):
            leftovers = self._open.leftovers()
            if leftovers is not None:
                run.put(leftovers)
        self._recording = False
        self._open.failures.end()
        if self._step_hook is not None:
            self._step_hook.remove()
        run.end(how, _message(error))

    def _begin(
        self,
        folder: RunFolder,
        rules: RuleSet | None,
        sink: Sink | None,
        on_alarm: Callable[[AlarmOnset], object] | None,
        stop_on: str | None,
        *,
        resumed: bool,
    ) -> None:
        announcer = Announcer(folder.run_id, on_alarm, None if stop_on is None else Severity(stop_on))
        try:
            self._run = Recording(folder, rules, self._escalation, announcer, sink, resumed=resumed)
        except Exception as error:
            folder.abandon(error)
            raise
        self._recording = True
        self._alarms = announcer.waiting
        self._begin_update(folder.from_update)
        self._hook_steps(None if self._setup.optimizer is None else self._setup.optimizer())
        _open_recorders.add(self)
        atexit.register(_close_at_exit, weakref.ref(self))

    def _reopen(self, model: Any, optimizer: Any, fields: dict[str, Any]) -> bool:
        run, setup = self._run, self._setup
        same = setup.layers.model is model and setup.optimizer is not None and setup.optimizer() is optimizer
        if run is None or self._recording or not same:
            return False
        with signals_deferred, self._turn:
            if not run.reopen(**fields):
                return False
            setup.total_steps = fields["total_steps"]
            self._recording = True
            self._begin_update(self._open.number)
            self._hook_steps(optimizer)
        return True

    def _hook_steps(self, optimizer: torch.optim.Optimizer | None) -> None:
        if optimizer is not None:
            with self._open.failures.guarded("optimizer"):
                self._step_hook = optimizer.register_step_pre_hook(self._on_step)

    def _begin_update(self, number: int) -> None:
        signals_deferred.find_handlers()
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
        if self._recording and self._open.note_step():
            with signals_deferred, self._turn:
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
        """What it means if the process ends, without an exception, before the adapter has closed the recorder. An
        adapter sets it, and is not suspected of forgetting calls."""

    @property
    def each_step(self) -> bool:
        """Whether `Recorder.layers` is wanted at each step of the update being collected, see `levels`."""
        return self._recorder._open.each_step

    def announce_layers(self) -> None:
        """Promise to call `Recorder.layers` before the steps that matter: weights are not kept before the others."""
        self._recorder._setup.layers.keeps_always = False

    def reopen(self, model: Any, optimizer: Any, *, config: Any, total_steps: int | None) -> bool:
        """Continue the attempt that `Recorder.close` has ended as finished, with another length of the training.

        Returns False if it cannot be continued: it has another model, or its folder is no longer as it was left.
        """
        return self._recorder._reopen(model, optimizer, {"config": config, "total_steps": total_steps})

    def hear_alarms(self) -> bool:
        """Call `on_alarm` with the alarms that wait. Returns whether the training should stop, see `should_stop`."""
        if self._recorder._alarms:
            self._recorder._deliver_alarms()
        return self._recorder.should_stop

    def guarded(self, what: str, table: str | None = None) -> contextlib.AbstractContextManager[None]:
        """Report an exception of the adapter's own work instead of raising it, see `Failures.guarded`."""
        return self._recorder._open.failures.guarded(what, table)


_ERROR_LENGTH = 4000


def _message(error: BaseException | str | None) -> str | None:
    """An error as text that can be stored."""
    if isinstance(error, BaseException):
        return describe_error(error, _ERROR_LENGTH)
    return None if error is None else encodable(str(error))


_open_recorders: weakref.WeakSet[Recorder] = weakref.WeakSet()


def _deactivate_in_child() -> None:
    """A forked process has no writer thread, and the run is its parent's: there, every call does nothing."""
    for recorder in list(_open_recorders):
        recorder._recording = False
        recorder._turn = threading.RLock()  # another thread's turn never ends here
    _open_recorders.clear()


os.register_at_fork(after_in_child=_deactivate_in_child)


def _load_rules(rules: str | Path | None) -> RuleSet | None:
    """Load the rules; None, and a line in the log, if it is not their fault that they cannot be read."""
    try:
        return None if rules is None else load_rules(rules)
    except OSError as error:
        log.error("No rules watch this training: %s cannot be read (%s).", rules, describe_error(error))
        return None


def _inactive() -> Recorder:
    return Recorder(".", level=Level.OFF, rules=None)


def _close_at_exit(reference: weakref.ref[Recorder]) -> None:
    recorder = reference()
    if recorder is not None:
        recorder._end_with_the_process(getattr(sys, "last_exc", None) or getattr(sys, "last_value", None))
