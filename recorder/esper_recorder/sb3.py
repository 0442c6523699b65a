"""Stable-Baselines3: PPO, and sb3-contrib's MaskablePPO and RecurrentPPO.

    from esper_recorder.sb3 import RecorderCallback
    model.learn(1_000_000, callback=RecorderCallback("runs/"))

The trainer is not copied, and not changed for good. While an update runs, and only then, some of its calls are
intercepted: the rollout buffer's `get` (an epoch begins, and its minibatches), `_get_samples` (which transitions they
have) and `reset` (the update is over), the policy's `evaluate_actions` (new log-probabilities, values, entropies), and
`torch.nn.utils.clip_grad_norm_` (the gradient norm before clipping). The optimizer's step hook marks the minibatches
that were stepped on. Between updates the model is as it would be without a recorder, so nothing of it ends up in
`model.save()`.

Metrics follow Stable-Baselines3's own definitions (`contract.metrics`, definition `sb3`).
"""

from __future__ import annotations

import contextlib
import functools
import logging
import math
import threading
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from stable_baselines3.common.buffers import DictRolloutBuffer, RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback

from esper_recorder.alarms import AlarmOnset
from esper_recorder.arguments import check_alarms, training_length
from esper_recorder.contract.rules.ruleset import load_rules
from esper_recorder.escalation import UPDATES, Escalation
from esper_recorder.recorder import Recorder
from esper_recorder.storage.jsonable import describe_error

log = logging.getLogger("esper_recorder")

_UNCLOSED = "learn() never came back to the callback (it raised, or was left), and then the process ended"
_CONFIG = (
    *("n_steps", "batch_size", "n_epochs", "gamma", "gae_lambda", "normalize_advantage", "ent_coef", "vf_coef"),
    *("max_grad_norm", "use_sde", "sde_sample_freq", "target_kl", "seed", "n_envs", "policy_kwargs"),
)

_BUFFERS = (RolloutBuffer, DictRolloutBuffer)
"""Buffers whose minibatches are rows of their arrays."""

_LIBRARIES = {"stable_baselines3": "stable-baselines3", "sb3_contrib": "sb3-contrib"}


class RecorderCallback(BaseCallback):
    """Records the PPO training it is given to.

    Args:
        root: folder the run's folder is made in.
        name: first part of the run's id; by default the environment's id, or the algorithm's name.
        config: kept in run.json beside the algorithm's hyperparameters; anything, as for `Recorder`.
        level: `off`, `minimal`, `normal` or `debug`, see `Recorder`.
        escalate, escalate_updates: which alarms raise the level to `debug`, and for how many updates.
        rules: profile or rules file to watch the run with, or None. The onset of each alarm is one line in the log.
        on_alarm: called with each `AlarmOnset`, in the training thread, between two steps of the environments.
        stop_on: severity of the alarms that end `learn()` after the update (`info`, `warning`, `critical`), or None.
        resume: run_id of a run to continue as a new attempt.
        total_steps: length of the whole training in environment steps, for progress and phases. The default is what
            `learn()` is given: if a training is made of several calls, that of those so far.

    One callback records one run, over any number of calls of `learn(reset_num_timesteps=False)` on the same model. A
    call that resets the time steps begins another run.

    Raises:
        ValueError: unknown level or rules. TypeError (when training begins): the algorithm is not a PPO.
    """

    def __init__(
        self,
        root: str | Path,
        *,
        name: str | None = None,
        config: Any = None,
        level: str = "normal",
        escalate: str | None = "critical",
        escalate_updates: int = UPDATES,
        rules: str | Path | None = "default",
        on_alarm: Callable[[AlarmOnset], object] | None = None,
        stop_on: str | None = None,
        resume: str | None = None,
        total_steps: int | None = None,
    ) -> None:
        super().__init__()
        Escalation.from_options(level, escalate, escalate_updates)  # a wrong option raises here, before the training
        check_alarms(on_alarm, stop_on)
        if rules is not None:
            with contextlib.suppress(OSError):  # not the argument's fault; the recorder says so
                load_rules(rules)
        self._root, self._name, self._config = Path(root), name, config
        self._options: dict[str, Any] = {
            "level": level,
            "escalate": escalate,
            "escalate_updates": escalate_updates,
            "rules": rules,
            "on_alarm": on_alarm,
            "stop_on": stop_on,
        }
        self._resume = resume
        self._total_steps = training_length("total_steps", total_steps)
        self.recorder: Recorder | None = None
        self._listener: _UpdateListener | None = None

    @property
    def run_id(self) -> str | None:
        """The id of the run being recorded, or recorded last."""
        return None if self.recorder is None else self.recorder.run_id

    @property
    def path(self) -> Path | None:
        """Its folder."""
        return None if self.recorder is None else self.recorder.path

    def _on_training_start(self) -> None:
        model: Any = self.model
        missing = [name for name in ("rollout_buffer", "n_epochs", "clip_range") if not hasattr(model, name)]
        if not hasattr(model.policy, "evaluate_actions"):
            missing.insert(0, "policy.evaluate_actions")
        if missing:
            raise TypeError(
                f"RecorderCallback records PPO, MaskablePPO and RecurrentPPO; {type(model).__name__} has no "
                f"{', '.join(missing)}."
            )
        if self.recorder is not None:
            self.recorder.close("raised", "the previous training never came back to the callback")
        config = self._config_of(model)
        total_steps = self._total_steps or int(model._total_timesteps) or None
        if self.locals.get("reset_num_timesteps", True):
            self._begin(model, config, total_steps, self._resume)
        elif self.recorder is None or not self.recorder.adapter.reopen(
            model.policy, model.policy.optimizer, config=config, total_steps=total_steps
        ):
            self._begin_again(model, config, total_steps)
        assert self.recorder is not None
        self.recorder.settings(
            epochs_planned=model.n_epochs,
            target_kl=model.target_kl,
            entropy_coef=model.ent_coef,
            value_coef=model.vf_coef,
            max_grad_norm=model.max_grad_norm,
        )

    def _config_of(self, model: Any) -> Any:
        """The algorithm's hyperparameters and the trainer's config."""
        try:
            hyperparameters = _hyperparameters(model)
        except Exception as error:  # of a schedule, for instance
            log.warning("run.json has no hyperparameters: %s.", describe_error(error))
            hyperparameters = {}
        if self._config is None:
            return hyperparameters
        return hyperparameters | (self._config if isinstance(self._config, dict) else {"config": self._config})

    def _begin_again(self, model: Any, config: Any, total_steps: int | None) -> None:
        """Open another attempt of the run, or begin another run if that is impossible."""
        if self.path is None or not self.path.is_dir():
            self._begin(model, config, total_steps, self._resume)
            return
        try:
            self._begin(model, config, total_steps, self.run_id)
        except ValueError as error:  # not of an argument: the run is no longer as it was left
            log.warning("The run is not continued but another begins: %s", error)
            self._begin(model, config, total_steps, None)

    def _begin(self, model: Any, config: Any, total_steps: int | None, resume: str | None) -> None:
        """Begin a run, or another attempt of the run `resume`."""
        library = type(model).__module__.split(".")[0]
        self.recorder = Recorder(
            self._root,
            name=self._name or _default_name(model),
            config=config,
            total_steps=total_steps,
            model=model.policy,
            optimizer=model.policy.optimizer,
            **self._options,
            resume=resume,
            trainer=f"{_LIBRARIES.get(library, library)} {type(model).__name__}",
            definition="sb3",
        )
        self.recorder.adapter.announce_layers()
        self.recorder.adapter.unclosed = _UNCLOSED

    def _on_step(self) -> bool:
        dones = self.locals.get("dones")
        # Runs at every step of the environments, and NumPy's `any` of so small an array takes several times as long.
        if self.recorder is not None and isinstance(dones, np.ndarray) and dones.tobytes().strip(b"\0"):
            with self.recorder.adapter.guarded("episode"):
                self._record_episodes(self.recorder, np.flatnonzero(dones))
        return self.recorder is None or not self.recorder.adapter.hear_alarms()

    def _record_episodes(self, recorder: Recorder, envs: Any) -> None:
        for env in envs:
            episode = self.locals["infos"][env].get("episode")  # put there by gymnasium's or SB3's Monitor
            if episode is not None:
                recorder.episode(
                    return_=float(episode["r"]), length=int(episode["l"]), env=int(env), step=self.num_timesteps
                )

    def _on_rollout_end(self) -> None:
        # An update follows, unless a callback behind this one stops the training.
        if self.recorder is not None:
            with self.recorder.adapter.guarded("rollout"):
                self._listener = _UpdateListener(self.model, self.recorder)
                self._listener.attach()

    def _on_rollout_start(self) -> None:
        self._end_update()

    def _on_training_end(self) -> None:
        self._end_update()
        if self.recorder is not None:
            self.recorder.close()

    def _end_update(self) -> None:
        if self._listener is not None:
            self._listener.end()
            self._listener = None


class _UpdateListener:
    """Intercepts calls during one call of the algorithm's `train()`.

    learn() does not report that it failed, so a listener may be left behind: it then ends with the next rollout into
    the same buffer, or is collected with its model.
    """

    def __init__(self, model: Any, recorder: Recorder) -> None:
        self._model, self._recorder = model, recorder
        self._policy, self._buffer = model.policy, model.rollout_buffer
        self._recurrent = hasattr(self._policy, "lstm_actor")
        self._contrib = self._recurrent or hasattr(self._buffer, "action_masks")
        self._thread = threading.get_ident()
        self._timesteps = int(model.num_timesteps)
        self._epoch = 0
        self._seen = self._stepped = 0  # minibatches evaluated, and those whose gradients were clipped for a step
        self._samples: Any = None
        self._indices: Any = None
        self._evaluated = False  # and no step since
        self._looks_up = _has_rows_as_minibatches(self._buffer)
        self._clip_range: float | None = None
        self._value_clip_range: float | None = None
        self._undo: list[Callable[[], None]] = []
        self._live = self._ended = False
        self._each_step = recorder.adapter.each_step
        size = self._buffer.buffer_size * self._buffer.n_envs
        per_epoch = 1 if model.batch_size is None else math.ceil(size / model.batch_size)
        self._planned = int(model.n_epochs) * per_epoch
        self._entropy_max = _entropy_bounds(model.action_space, self._buffer)
        self._same_entropy_max = None if isinstance(self._entropy_max, np.ndarray) else self._entropy_max
        self._normalizes = bool(model.normalize_advantage)

    def attach(self) -> None:
        """Begin to intercept."""
        self._live = True
        self._shadow(self._buffer, "get", self._get)
        if hasattr(self._buffer, "_get_samples"):
            self._shadow(self._buffer, "_get_samples", self._get_samples)
        self._shadow(self._buffer, "reset", self._reset)
        self._shadow(self._policy, "evaluate_actions", self._evaluate_actions)
        self._shadow_clipping()

    def detach(self) -> None:
        """Restore every intercepted call."""
        self._live = False
        while self._undo:
            self._undo.pop()()

    def end(self) -> None:
        """Stop intercepting, and close the update if there was one."""
        self.detach()
        if self._ended or not self._epoch:
            return  # train() never ran: the training was stopped after the rollout
        self._ended = True
        std = None
        with self._recorder.adapter.guarded("policy_std"):
            log_std = getattr(self._policy, "log_std", None)
            std = None if log_std is None else torch.exp(log_std.detach()).mean()
        self._recorder.end_update(
            step=self._timesteps, stopped_early=self._stepped < self._planned, epochs=self._epoch, policy_std=std
        )

    # --- the intercepted calls ----------------------------------------------------------------------------------

    def _get(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Iterator[Any]:
        self._epoch += 1
        if self._epoch == 1:
            # Not when the rollout ends: until now other callbacks may have changed what the buffer holds.
            with self._recorder.adapter.guarded("rollout"):
                self._record_rollout()
            with self._recorder.adapter.guarded("clip_range"):
                # As train() computes it: learn() has advanced the progress since the rollout ended.
                progress = self._model._current_progress_remaining
                self._clip_range = float(self._model.clip_range(progress))
                schedule = self._model.clip_range_vf
                self._value_clip_range = None if schedule is None else float(schedule(progress))
        for samples in original(*args, **kwargs):
            self._samples = samples
            yield samples

    def _get_samples(self, original: Callable[..., Any], batch_inds: Any, *args: Any, **kwargs: Any) -> Any:
        self._indices = batch_inds
        return original(batch_inds, *args, **kwargs)

    def _reset(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self.end()  # a rollout begins, so the update is over, however it ended
        return original(*args, **kwargs)

    def _evaluate_actions(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            result = original(*args, **kwargs)
        except BaseException as error:
            # learn() does not report it to callbacks. A NaN policy raises here, one minibatch after the step at fault.
            self.detach()
            self._recorder.close("raised", error)
            raise
        samples, indices = self._samples, self._indices
        self._samples = self._indices = None
        if samples is not None:  # else it is another call for the same minibatch
            self._seen += 1
            self._evaluated = True
            if self._looks_up and indices is not None:
                self._record_positions(indices, *result)
            else:
                with self._recorder.adapter.guarded("minibatch"):
                    self._record(samples, indices, *result)
        return result

    def _record_rollout(self) -> None:
        buffer, recorder = self._buffer, self._recorder
        names = ("values", "returns", "advantages", "rewards", "actions")
        arrays = {name: self._by_step(getattr(buffer, name)) for name in names}
        if self._looks_up:
            arrays["old_log_probs"] = self._by_step(buffer.log_probs)
        recorder.rollout(**arrays, index_order="env_major")
        if self._recurrent:
            for layer, name in (("actor", "pi"), ("critic", "vf")):
                h, c = getattr(buffer, f"hidden_states_{name}"), getattr(buffer, f"cell_states_{name}")
                recorder.recurrent(h, c, layer=f"rollout_lstm_{layer}")

    def _by_step(self, array: Any) -> Any:
        """An array of the buffer as [steps, envs, ...], also after `get` has flattened it."""
        steps, envs = self._buffer.buffer_size, self._buffer.n_envs
        if array.shape[:2] == (steps, envs):
            return array
        return array.reshape(envs, steps, *array.shape[1:]).swapaxes(0, 1)

    def _record_positions(self, indices: Any, values: Any, log_prob: Any, entropy: Any) -> None:
        """Record a minibatch whose transitions the recorder looks up in the rollout."""
        self._recorder.minibatch(
            index=indices,
            new_log_probs=log_prob,
            normalize_advantages=self._normalizes and len(indices) > 1,
            entropy=-log_prob if entropy is None else entropy,
            entropy_max=self._same_entropy_max,
            values=values,
            clip_range=self._clip_range,
            value_clip_range=self._value_clip_range,
            epoch=self._epoch,
        )

    def _record(self, samples: Any, indices: Any, values: Any, log_prob: Any, entropy: Any) -> None:
        mask = samples.mask > 1e-8 if self._recurrent else None
        bounds: Any = self._entropy_max
        if isinstance(bounds, np.ndarray):
            bounds = None if indices is None else torch.from_numpy(bounds[indices]).to(log_prob.device)
        self._recorder.minibatch(
            new_log_probs=log_prob,
            old_log_probs=samples.old_log_prob,
            raw_advantages=samples.advantages,
            # PPO leaves the advantage of a single transition unchanged; the others make NaN of it.
            normalize_advantages=self._normalizes and (self._contrib or len(samples.advantages) > 1),
            entropy=-log_prob if entropy is None else entropy,  # SB3's estimate if there is no closed form
            entropy_max=bounds,
            values=values,
            returns=samples.returns,
            old_values=samples.old_values,
            mask=mask,
            clip_range=self._clip_range,
            value_clip_range=self._value_clip_range,
            epoch=self._epoch,
            index=indices if mask is None or indices is None else _padded(indices, mask),
        )

    def _clip_grad_norm(self, original: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        if not (self._live and self._evaluated) or threading.get_ident() != self._thread:
            return original(*args, **kwargs)
        self._evaluated = False
        self._stepped += 1
        if self._seen == self._planned or self._each_step:
            self._recorder.layers(after_clipping=False)
        norm = original(*args, **kwargs)
        self._recorder.gradients(total_norm=norm)
        return norm

    # --- intercepting, and restoring --------------------------------------------------------------------------------

    def _shadow(self, owner: Any, name: str, listener: Callable[..., Any]) -> None:
        """Put a listener before a method, in the instance's own dict: the class stays as it is."""
        before = owner.__dict__.get(name)
        shadow = functools.partial(listener, getattr(owner, name))
        owner.__dict__[name] = shadow

        def undo() -> None:
            if owner.__dict__.get(name) is not shadow:
                return  # someone has put another on top
            if before is None:
                del owner.__dict__[name]
            else:
                owner.__dict__[name] = before

        self._undo.append(undo)

    def _shadow_clipping(self) -> None:
        """The trainers look `clip_grad_norm_` up in its module at every call."""
        original = torch.nn.utils.clip_grad_norm_
        # The module outlives every training: what it holds must not keep a model alive.
        reference = weakref.ref(self)

        @functools.wraps(original)
        def shadow(*args: Any, **kwargs: Any) -> Any:
            listener = reference()
            if listener is None:
                return original(*args, **kwargs)
            return listener._clip_grad_norm(original, *args, **kwargs)

        def undo() -> None:
            if torch.nn.utils.clip_grad_norm_ is shadow:
                torch.nn.utils.clip_grad_norm_ = original

        torch.nn.utils.clip_grad_norm_ = shadow
        self._undo.append(undo)
        weakref.finalize(self, undo).atexit = False


def _has_rows_as_minibatches(buffer: Any) -> bool:
    """Whether minibatches are rows of the buffer's arrays: a subclass may make something else of them."""
    kind = type(buffer)
    return any(
        kind.get is base.get and kind._get_samples is base._get_samples for base in _BUFFERS if issubclass(kind, base)
    )


def _padded(indices: Any, mask: torch.Tensor) -> torch.Tensor | None:
    """Positions of a minibatch of padded sequences, -1 on padding; None if computing them would wait for the device."""
    if mask.device.type != "cpu":
        return None
    padded = torch.full(mask.shape, -1, dtype=torch.int64)
    padded[mask] = torch.as_tensor(indices)
    return padded


def _entropy_bounds(space: Any, buffer: Any) -> float | np.ndarray | None:
    """Log of the number of valid actions, nats; per transition in env-major order where actions are masked."""
    if isinstance(space, spaces.Discrete):
        sizes = [int(space.n)]
    elif isinstance(space, spaces.MultiDiscrete):
        sizes = [int(n) for n in space.nvec.reshape(-1)]
    elif isinstance(space, spaces.MultiBinary):
        sizes = [2] * int(np.prod(space.shape))
    else:
        return None
    masks = getattr(buffer, "action_masks", None)
    if masks is None:
        return math.fsum(math.log(n) for n in sizes)
    steps, envs = buffer.buffer_size, buffer.n_envs
    by_transition = masks.reshape(steps, envs, -1).swapaxes(0, 1).reshape(steps * envs, -1)
    parts = np.split(by_transition, np.cumsum(sizes)[:-1], axis=1)
    bounds: np.ndarray = sum(np.log(np.maximum(part.sum(axis=1), 1)) for part in parts)
    return bounds.astype(np.float32)


def _default_name(model: Any) -> str:
    algorithm = type(model).__name__
    try:
        spec = getattr(getattr(model.env.unwrapped, "envs", [None])[0], "spec", None)
        return algorithm if spec is None else f"{algorithm}-{spec.id}"
    except Exception:  # of an environment's own attributes
        return algorithm


def _hyperparameters(model: Any) -> dict[str, Any]:
    """The arguments of the algorithm; schedules by their value at the start."""
    config = {name: getattr(model, name) for name in _CONFIG if hasattr(model, name)}
    config["learning_rate"] = float(model.lr_schedule(1.0))
    config["clip_range"] = float(model.clip_range(1.0))
    config["clip_range_vf"] = None if model.clip_range_vf is None else float(model.clip_range_vf(1.0))
    config["policy"] = type(model.policy).__name__
    config["device"] = str(model.device)
    config["total_timesteps"] = int(model._total_timesteps)
    return config
