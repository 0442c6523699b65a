"""The calls that record an update: what a training loop passes, and what each of it means."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from esper_recorder.arguments import BadCall, episode_tensors, gradient_norm, packed_minibatch, setting, text
from esper_recorder.capture.guards import Guarded, guarded, passed_to, quick
from esper_recorder.capture.open_update import OpenUpdate, Setup


class UpdateCalls(Guarded):
    """The calls that record an update, those of `Recorder`."""

    _setup: Setup

    @guarded
    def settings(self, /, **columns: Any) -> None:
        """Set columns of `ppo_updates` that hold until they are changed, such as `target_kl`, `max_grad_norm`,
        `entropy_coef`, `value_coef`, `epochs_planned`."""
        for name, value in columns.items():
            with self._open.failures.guarded("settings"):
                self._setup.settings[name] = setting(name, value)

    @passed_to(OpenUpdate.rollout)
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

    @passed_to(OpenUpdate.minibatch, OpenUpdate.resume_minibatch)
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

    @guarded
    def push(self, packed: Tensor, *, epoch: int | None = None, stepped: bool | None = None) -> None:
        """Record a minibatch that a compiled or captured step reduced: what `esper_recorder.reduce` returned.

        Args:
            packed: copied at once, as the next replay of a captured step writes over it.
            epoch: counted from 1.
            stepped: whether the optimizer stepped on it; True if not given, as such a step contains the optimizer's.
        """
        self._open.begin_minibatch()
        self._open.push(packed_minibatch(packed), epoch=epoch, stepped=stepped)

    @quick
    def gradients(self, *, total_norm: Tensor | float) -> None:
        """Record the total gradient norm before clipping of the newest minibatch: what `clip_grad_norm_` returned."""
        self._open.gradient_norm(gradient_norm(total_norm))

    @guarded
    def layers(self, *, after_clipping: bool | None = None) -> None:
        """Record each parameter's gradient as it is now. At DEBUG all calls of an update are kept, else the last.

        `end_update` does so itself if it was not called during the update.
        """
        checked = self._open.failures.checked
        self._open.layers(checked("after_clipping", after_clipping, "bool", table="gradient_layers"))

    @guarded
    def episode(
        self, *, return_: float, length: int | None = None, env: int | None = None, step: int | None = None
    ) -> None:
        """Record a finished episode: its undiscounted return and its length in steps."""
        self._open.episode(return_, length, env, step)

    @guarded
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

    @guarded
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

    @guarded
    def row(self, table: str, /, **columns: Any) -> None:
        """Record one row of a table that is not filled from tensors, such as `slots`, `epochs` or `rewards`.

        It belongs to the update being collected and is stored with it. `esper tables` lists the tables and what their
        columns mean; a column that is not given is NULL.
        """
        self._open.row(text("table", table, "the name of a table"), columns)
