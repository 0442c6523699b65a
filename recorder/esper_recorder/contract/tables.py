"""The tables of a recorded run: one frozen dataclass per table, the only place a column is declared.

Everything else is derived from here: the Arrow schema of the Parquet parts, the SQL views, `esper tables`, the
page `docs/tables.md`, and how rows of minibatches, devices and ranks are merged.

What holds for every table:

* NULL means *not measured* or *not applicable*; the column says which. There are no sentinel numbers.
* NaN and infinities are stored as they are, and counted; sums, moments and histograms are over the finite part.
* Counts and sums are stored, and the metrics derived from them stand beside them, computed by
  `esper_recorder.contract.metrics`. A mean is never merged with a mean.
* What is counted starts at 1 (attempt, update, epoch, minibatch, episode, place). What is an index starts at 0
  (rank, env, index, env_step).
* A column never changes its type or meaning. Columns are only added, with the schema version they came with.
"""

from __future__ import annotations

import dataclasses
import functools
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

SCHEMA_VERSION = 2


class Reducer(StrEnum):
    """How the values of one column merge when rows are merged (minibatches of an update, devices, ranks)."""

    KEY = "key"  # identifies the row; rows merge within equal keys
    SUM = "sum"
    MIN = "min"  # the smallest number; NaN only where there is no number
    MAX = "max"  # the largest number; NaN only where there is no number
    FIRST = "first"
    LAST = "last"
    DERIVED = "derived"  # computed anew from the merged sums, by `metrics`


_TYPES: dict[Any, str] = {
    int: "int64",
    float: "float64",
    str: "string",
    bool: "bool",
    datetime: "timestamp[us, UTC]",
    list[int]: "list<int64>",
    list[float]: "list<float64>",
    list[str]: "list<string>",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    name: str
    type: str
    """One of int64, float64, string, bool, timestamp[us, UTC], list<int64>, list<float64>, list<string>."""
    meaning: str
    unit: str
    """The unit; "1" for a plain number, "" where a unit makes no sense (names, flags)."""
    null: str
    """What NULL means; "never" where the column is always filled."""
    reducer: Reducer
    since: int
    """The schema version that brought the column."""

    @property
    def is_float(self) -> bool:
        return self.type in ("float64", "list<float64>")


def _column(meaning: str, reducer: Reducer, *, unit: str = "", null: str = "not measured", since: int = 1) -> Any:
    """Declare a column; its name and type are the field's."""
    return field(
        default=None,
        metadata={"meaning": meaning, "unit": unit, "null": null, "reducer": reducer, "since": since},
    )


_key = functools.partial(_column, reducer=Reducer.KEY, null="never")
_count = functools.partial(_column, reducer=Reducer.SUM, unit="1")
_sum = functools.partial(_column, reducer=Reducer.SUM, unit="1")
_min = functools.partial(_column, reducer=Reducer.MIN, unit="1")
_max = functools.partial(_column, reducer=Reducer.MAX, unit="1")
_first = functools.partial(_column, reducer=Reducer.FIRST)
_last = functools.partial(_column, reducer=Reducer.LAST)
_derived = functools.partial(_column, reducer=Reducer.DERIVED, unit="1", null="its sums were not measured")
_quantile = functools.partial(
    _column, reducer=Reducer.LAST, unit="1", null="the rollout was not recorded, or holds nothing finite", since=2
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Identity and time: the first columns of every table. The recorder fills them in."""

    table: ClassVar[str]
    row: ClassVar[str]
    """What one row is, as the end of the sentence "One row is ..."."""

    run_id: str | None = _key("the run: name, start and random characters, unique")
    attempt: int | None = _key("1 for a fresh run; a resumed run opens the next one", unit="1")
    rank: int | None = _key("process of a distributed trainer, 0 for a single process", unit="1")
    update: int | None = _key("PPO update the row belongs to, counted from 1 as the trainer made them", unit="1")
    time: datetime | None = _last("wall clock, UTC, when the recorder took the row", null="never")
    elapsed_s: float | None = _last("monotonic time since this attempt began", unit="s", null="never")


IDENTITY = tuple(f.name for f in dataclasses.fields(Row))
"""The columns every table begins with."""


# --- what a set of transitions adds up to: shared by minibatches and whole updates ---------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class _PolicyStatistics(Row):
    """Sums over transitions of the policy side of the PPO loss. ratio = exp(log_ratio) = pi_new / pi_old.

    Elementwise terms are computed in the trainer's own precision (float32 for half types), as its loss does, and
    added up in float64.
    """

    n: int | None = _count("transitions counted (padding masked out)")
    log_ratio_nan: int | None = _count("log ratios that were NaN")
    log_ratio_posinf: int | None = _count("log ratios that were +infinity")
    log_ratio_neginf: int | None = _count("log ratios that were -infinity")
    log_ratio_sum: float | None = _sum("sum of log ratios", unit="nats")
    log_ratio_sum_sq: float | None = _sum("sum of squared log ratios", unit="nats^2")
    log_ratio_min: float | None = _min("smallest log ratio that is a number", unit="nats")
    log_ratio_max: float | None = _max("largest log ratio that is a number", unit="nats")
    ratio_nonfinite: int | None = _count(
        "ratios that were NaN or infinite (exp overflows where its argument is finite)"
    )
    ratio_sum: float | None = _sum("sum of ratios")
    ratio_sum_sq: float | None = _sum("sum of squared ratios")
    ratio_min: float | None = _min("smallest ratio that is a number")
    ratio_max: float | None = _max("largest ratio that is a number (may be +infinity)")
    k1_sum: float | None = _sum("sum of -log_ratio, the k1 estimator of KL(old, new)", unit="nats")
    k3_sum: float | None = _sum("sum of (ratio - 1) - log_ratio, the k3 estimator of KL(old, new)", unit="nats")
    clip_low_count: int | None = _count("transitions with |ratio - 1| > clip_range and ratio < 1")
    clip_high_count: int | None = _count("transitions with |ratio - 1| > clip_range and ratio > 1")
    clip_low_active_count: int | None = _count(
        "of clip_low_count, those with a negative advantage: the clip takes their gradient away"
    )
    clip_high_active_count: int | None = _count(
        "of clip_high_count, those with a positive advantage: the clip takes their gradient away"
    )
    policy_loss_n: int | None = _count("transitions whose policy loss is finite")
    policy_loss_sum: float | None = _sum("sum of -min(ratio * A, clip(ratio) * A), A as the loss used it")
    entropy_nan: int | None = _count("entropies that were NaN")
    entropy_posinf: int | None = _count("entropies that were +infinity")
    entropy_neginf: int | None = _count("entropies that were -infinity")
    entropy_sum: float | None = _sum("sum of policy entropies (differential where actions are continuous)", unit="nats")
    entropy_normalized_n: int | None = _count(
        "transitions where the policy had a choice: more than one valid action",
        null="not measured; not applicable to continuous actions",
    )
    entropy_normalized_sum: float | None = _sum(
        "sum over those of entropy / log(number of valid actions)",
        null="not measured; not applicable to continuous actions",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ValueStatistics(_PolicyStatistics):
    """Sums over the same transitions of advantages, values and returns. residual = return - value."""

    advantage_nan: int | None = _count("advantages (as the loss used them) that were NaN")
    advantage_posinf: int | None = _count("advantages that were +infinity")
    advantage_neginf: int | None = _count("advantages that were -infinity")
    advantage_sum: float | None = _sum("sum of advantages as the loss used them")
    advantage_sum_sq: float | None = _sum("sum of their squares")
    advantage_min: float | None = _min("smallest advantage as the loss used it")
    advantage_max: float | None = _max("largest advantage as the loss used it")
    advantage_positive_count: int | None = _count("advantages above zero")
    raw_advantage_n: int | None = _count("transitions whose advantage before normalisation is finite")
    raw_advantage_sum: float | None = _sum("sum of advantages before normalisation")
    raw_advantage_sum_sq: float | None = _sum("sum of their squares")
    value_nan: int | None = _count("value predictions that were NaN")
    value_posinf: int | None = _count("value predictions that were +infinity")
    value_neginf: int | None = _count("value predictions that were -infinity")
    value_sum: float | None = _sum("sum of value predictions")
    value_sum_sq: float | None = _sum("sum of their squares")
    value_min: float | None = _min("smallest value prediction")
    value_max: float | None = _max("largest value prediction")
    return_nan: int | None = _count("returns (value targets) that were NaN")
    return_posinf: int | None = _count("returns that were +infinity")
    return_neginf: int | None = _count("returns that were -infinity")
    return_sum: float | None = _sum("sum of returns (value targets)")
    return_sum_sq: float | None = _sum("sum of their squares")
    return_min: float | None = _min("smallest return")
    return_max: float | None = _max("largest return")
    residual_n: int | None = _count("transitions whose return and value are both finite")
    residual_sum: float | None = _sum("sum of return - value")
    residual_sum_sq: float | None = _sum("sum of its squares")
    residual_abs_max: float | None = _max("largest |return - value|")
    value_return_sum: float | None = _sum("sum of value * return, for their correlation")
    value_loss_n: int | None = _count("transitions whose value loss is finite")
    value_loss_sum: float | None = _sum("sum over transitions of the value loss as the trainer defines it")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statistics(_ValueStatistics):
    """The metrics derived from the sums. In `ppo_updates` the column `definition` says whose definition they follow."""

    approx_kl: float | None = _derived("approximate KL(old, new) by the row's definition", unit="nats")
    approx_kl_k1: float | None = _derived("k1_sum over the finite log ratios", unit="nats")
    approx_kl_k3: float | None = _derived("k3_sum over the finite ratios", unit="nats")
    clip_fraction: float | None = _derived(
        "share of transitions with |ratio - 1| > clip_range, by the row's definition"
    )
    ratio_mean: float | None = _derived("mean of the finite ratios")
    ratio_std: float | None = _derived("population standard deviation of the finite ratios")
    entropy: float | None = _derived("mean policy entropy, by the row's definition", unit="nats")
    entropy_normalized: float | None = _derived(
        "mean of entropy / log(number of valid actions) where there was a choice: 1 uniform, 0 deterministic",
        null="not measured; not applicable to continuous actions",
    )
    policy_loss: float | None = _derived("clipped surrogate loss, by the row's definition")
    value_loss: float | None = _derived("value loss, by the row's definition (libraries differ by a factor 0.5)")
    loss: float | None = _derived(
        "policy_loss - entropy_coef * entropy + value_coef * value_loss, by the row's definition"
    )
    advantage_mean: float | None = _derived("mean advantage as the loss used it")
    advantage_std: float | None = _derived("population standard deviation of the advantages")
    return_mean: float | None = _derived("mean return")
    return_std: float | None = _derived("population standard deviation of the returns")
    value_mean: float | None = _derived("mean value prediction")
    residual_mean: float | None = _derived("mean of return - value: the bias that explained variance cannot see")
    residual_rms: float | None = _derived("root mean square of return - value")
    explained_variance: float | None = _derived(
        "1 - var(return - value) / var(return); NaN where the returns do not vary"
    )
    advantage_positive_share: float | None = _derived(
        "share of the advantages that are numbers (as the loss used them) above zero", since=2
    )
    raw_advantage_mean: float | None = _derived("mean advantage before normalisation", since=2)
    raw_advantage_std: float | None = _derived(
        "population standard deviation of the advantages before normalisation", since=2
    )
    value_std: float | None = _derived("population standard deviation of the value predictions", since=2)
    value_return_correlation: float | None = _derived(
        "correlation of value and return; NaN where one does not vary or holds what is not finite", since=2
    )
    nonfinite_count: int | None = _count(
        "NaN and infinite values met: log ratios, advantages, values, returns, entropies, gradient norms"
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class PpoUpdate(_Statistics):
    table: ClassVar[str] = "ppo_updates"
    row: ClassVar[str] = "one PPO update: all epochs over one rollout"

    definition: str | None = _first(
        "whose definition the metrics follow: pooled (over all evaluated transitions), sb3, ...", null="never"
    )
    step: int | None = _last("environment steps taken when the update ended", unit="steps")
    progress: float | None = _last(
        "share of the training done when the update ended, in (0, 1]", unit="1", null="the length was not told"
    )
    epochs: int | None = _last("epochs begun", unit="1")
    epochs_planned: int | None = _first("epochs the trainer meant to make", unit="1")
    minibatch_count: int | None = _count("minibatches evaluated")
    stepped_count: int | None = _count("minibatches the optimizer stepped on")
    stopped_early: bool | None = _last("the trainer left the epochs early (target_kl)")
    interrupted: bool | None = _last(
        "the training ended in the middle of the update; its figures are of the minibatches it got to"
    )
    learning_rate: float | None = _last("learning rate of the first parameter group", unit="1")
    clip_range: float | None = _last("clip range of the ratio", unit="1")
    value_clip_range: float | None = _last(
        "clip range of the value prediction", unit="1", null="values are not clipped, or not told"
    )
    target_kl: float | None = _last("KL at which the trainer stops early", unit="nats", null="none set, or not told")
    entropy_coef: float | None = _last("weight of the entropy bonus", unit="1")
    value_coef: float | None = _last("weight of the value loss", unit="1")
    max_grad_norm: float | None = _last(
        "norm the gradients are clipped to", unit="1", null="gradients are not clipped, or not told"
    )
    policy_std: float | None = _last(
        "mean standard deviation of a Gaussian policy after the update", unit="1", null="not a Gaussian policy"
    )
    grad_norm_n: int | None = _count("steps whose gradient norm was seen")
    grad_norm_nonfinite: int | None = _count("gradient norms that were NaN or infinite")
    grad_norm_sum: float | None = _sum("sum of finite total gradient norms before clipping")
    grad_norm_sum_sq: float | None = _sum("sum of their squares")
    grad_norm_max: float | None = _max("largest total gradient norm before clipping that is a number")
    grad_norm: float | None = _derived("mean finite total gradient norm before clipping")
    grad_norm_clipped: float | None = _last("total gradient norm after clipping, as the optimizer saw it", unit="1")
    rollout_n: int | None = _count("transitions of the rollout", null="the rollout was not recorded")
    rollout_nonfinite: int | None = _count("non-finite values, returns, advantages and rewards of the rollout")
    rollout_value_n: int | None = _count("transitions of the rollout whose value prediction is finite")
    rollout_value_sum: float | None = _sum("sum of the values predicted during the rollout")
    rollout_value_sum_sq: float | None = _sum("sum of their squares")
    rollout_return_n: int | None = _count("transitions of the rollout whose return is finite")
    rollout_return_sum: float | None = _sum("sum of the rollout's returns")
    rollout_return_sum_sq: float | None = _sum("sum of their squares")
    rollout_residual_n: int | None = _count("transitions whose return and value are both finite")
    rollout_residual_sum: float | None = _sum("sum of return - value, values of the rollout")
    rollout_residual_sum_sq: float | None = _sum("sum of its squares")
    rollout_value_return_sum: float | None = _sum("sum of value * return")
    rollout_advantage_n: int | None = _count("transitions of the rollout whose advantage is finite")
    rollout_advantage_sum: float | None = _sum("sum of the rollout's advantages, not normalised")
    rollout_advantage_sum_sq: float | None = _sum("sum of their squares")
    rollout_advantage_min: float | None = _min("smallest advantage of the rollout")
    rollout_advantage_max: float | None = _max("largest advantage of the rollout")
    rollout_reward_n: int | None = _count("transitions of the rollout whose reward is finite")
    rollout_reward_sum: float | None = _sum("sum of the rollout's rewards")
    rollout_reward_sum_sq: float | None = _sum("sum of their squares")
    rollout_reward_min: float | None = _min("smallest reward of the rollout")
    rollout_reward_max: float | None = _max("largest reward of the rollout")
    rollout_return_std: float | None = _derived("population standard deviation of the rollout's returns")
    rollout_value_return_correlation: float | None = _derived(
        "correlation of value and return over the rollout; NaN where one does not vary or holds what is not finite",
        since=2,
    )
    rollout_advantage_q05: float | None = _quantile("5 % quantile of the rollout's finite advantages, not normalised")
    rollout_advantage_q25: float | None = _quantile("25 % quantile of the rollout's finite advantages, not normalised")
    rollout_advantage_q50: float | None = _quantile("50 % quantile of the rollout's finite advantages, not normalised")
    rollout_advantage_q75: float | None = _quantile("75 % quantile of the rollout's finite advantages, not normalised")
    rollout_advantage_q95: float | None = _quantile("95 % quantile of the rollout's finite advantages, not normalised")
    rollout_return_q05: float | None = _quantile("5 % quantile of the rollout's finite returns")
    rollout_return_q25: float | None = _quantile("25 % quantile of the rollout's finite returns")
    rollout_return_q50: float | None = _quantile("50 % quantile of the rollout's finite returns")
    rollout_return_q75: float | None = _quantile("75 % quantile of the rollout's finite returns")
    rollout_return_q95: float | None = _quantile("95 % quantile of the rollout's finite returns")
    rollout_value_q05: float | None = _quantile("5 % quantile of the rollout's finite value predictions")
    rollout_value_q25: float | None = _quantile("25 % quantile of the rollout's finite value predictions")
    rollout_value_q50: float | None = _quantile("50 % quantile of the rollout's finite value predictions")
    rollout_value_q75: float | None = _quantile("75 % quantile of the rollout's finite value predictions")
    rollout_value_q95: float | None = _quantile("95 % quantile of the rollout's finite value predictions")
    rollout_residual_q05: float | None = _quantile("5 % quantile of the rollout's finite return - value")
    rollout_residual_q25: float | None = _quantile("25 % quantile of the rollout's finite return - value")
    rollout_residual_q50: float | None = _quantile("50 % quantile of the rollout's finite return - value")
    rollout_residual_q75: float | None = _quantile("75 % quantile of the rollout's finite return - value")
    rollout_residual_q95: float | None = _quantile("95 % quantile of the rollout's finite return - value")
    nonfinite_fields: list[str] | None = _column(
        "names of the trainer's own scalars that were NaN or infinite; empty where all were finite",
        Reducer.FIRST,
        null="the trainer's scalars were not looked through",
    )
    entropy_weighted_sum: float | None = _last(
        "sum over action heads of the head's entropy weight times its entropy, as the trainer's loss adds it up",
        unit="1",
        null="not measured; not applicable to one head",
    )
    bellman_error: float | None = _last("the trainer's mean temporal-difference error, by its own definition", unit="1")
    return_variance: float | None = _last("variance of the returns as the trainer computed it", unit="1")
    return_variance_low: bool | None = _last(
        "the trainer called explained variance not meaningful: the returns hardly vary"
    )
    unforced_steps: float | None = _last(
        "environment steps of the rollout at which the policy had a choice", unit="steps"
    )
    rollout_s: float | None = _last("time from the end of the last update to the first minibatch", unit="s")
    update_s: float | None = _last("time from the first minibatch to the end of the update", unit="s")


@dataclass(frozen=True, slots=True, kw_only=True)
class Minibatch(_Statistics):
    table: ClassVar[str] = "minibatches"
    row: ClassVar[str] = "one minibatch the trainer evaluated"

    epoch: int | None = _key("epoch of the update", unit="1", null="the trainer did not tell")
    minibatch: int | None = _key("minibatch, counted over the whole update", unit="1")
    stepped: bool | None = _last("the optimizer stepped on it (no: early stop, or a skipped step)")
    learning_rate: float | None = _last("learning rate of the first parameter group", unit="1")
    clip_range: float | None = _last("clip range of the ratio", unit="1")
    value_clip_range: float | None = _last(
        "clip range of the value prediction", unit="1", null="values are not clipped, or not told"
    )
    grad_norm: float | None = _last("total gradient norm before clipping", unit="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioHistogram(Row):
    table: ClassVar[str] = "ratio_histograms"
    row: ClassVar[str] = "one histogram of log ratios: of an update, or (level DEBUG) of one of its minibatches"

    epoch: int | None = _key("epoch", unit="1", null="the histogram is of the whole update")
    minibatch: int | None = _key(
        "minibatch, counted over the whole update", unit="1", null="the histogram is of the whole update"
    )
    head: str | None = _key("action head; empty for the joint ratio")
    counts: list[int] | None = _column(
        "transitions per bin of `histogram.log_ratio_edges()`; NaN is in no bin, infinities are in the outer ones",
        Reducer.SUM,
        unit="1",
    )
    nan_count: int | None = _count("log ratios that were NaN")


@dataclass(frozen=True, slots=True, kw_only=True)
class RatioExemplar(Row):
    table: ClassVar[str] = "ratio_exemplars"
    row: ClassVar[str] = "one of the k transitions with the largest |log ratio|, non-finite ones first"

    scope: str | None = _key("what the k are the worst of: `update`, or (level DEBUG) `minibatch`")
    epoch: int | None = _key("epoch the transition was met in", unit="1", null="the trainer did not tell")
    minibatch: int | None = _key("minibatch it was met in, counted over the whole update", unit="1")
    head: str | None = _key("action head; empty for the joint ratio")
    place: int | None = _key("1 is the worst", unit="1")
    index: int | None = _first("position in the rollout buffer as the trainer numbers it", unit="1")
    env: int | None = _first("environment the transition came from", unit="1")
    env_step: int | None = _first("step within the rollout", unit="1")
    action: list[float] | None = _column("the action taken", Reducer.FIRST, unit="1")
    old_log_prob: float | None = _first("log-probability when the action was taken", unit="nats")
    new_log_prob: float | None = _first("log-probability under the policy being trained", unit="nats")
    log_ratio: float | None = _first("new_log_prob - old_log_prob", unit="nats")
    advantage: float | None = _first("advantage as the loss used it", unit="1")
    value: float | None = _first("value prediction", unit="1")
    value_target: float | None = _first("return, the target of the value prediction", unit="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Head(Row):
    table: ClassVar[str] = "heads"
    row: ClassVar[str] = "one action head of a policy with several, in one update"

    head: str | None = _key("action head")
    n: int | None = _count("transitions counted for the head")
    transition_n: int | None = _count(
        "transitions of the update, whether the head's choice mattered or not (padding masked out)", since=2
    )
    learnable_count: int | None = _count(
        "of them, those from which the head could learn: not masked out, and with more than one valid action",
        null="not measured: neither a mask nor the number of valid actions was told",
        since=2,
    )
    log_ratio_nan: int | None = _count("log ratios of the head that were NaN", since=2)
    log_ratio_posinf: int | None = _count("log ratios that were +infinity", since=2)
    log_ratio_neginf: int | None = _count("log ratios that were -infinity", since=2)
    log_ratio_sum: float | None = _sum("sum of the head's log ratios", unit="nats", since=2)
    log_ratio_sum_sq: float | None = _sum("sum of their squares", unit="nats^2", since=2)
    log_ratio_min: float | None = _min("smallest log ratio that is a number", unit="nats", since=2)
    log_ratio_max: float | None = _max("largest log ratio that is a number", unit="nats", since=2)
    ratio_nonfinite: int | None = _count("ratios that were NaN or infinite", since=2)
    ratio_sum: float | None = _sum("sum of the head's ratios", since=2)
    ratio_sum_sq: float | None = _sum("sum of their squares", since=2)
    k1_sum: float | None = _sum("sum of -log_ratio, the k1 estimator of KL(old, new)", unit="nats", since=2)
    k3_sum: float | None = _sum("sum of (ratio - 1) - log_ratio, the k3 estimator", unit="nats", since=2)
    clip_low_count: int | None = _count("transitions with |ratio - 1| > clip_range and ratio < 1", since=2)
    clip_high_count: int | None = _count("transitions with |ratio - 1| > clip_range and ratio > 1", since=2)
    clip_low_active_count: int | None = _count("of clip_low_count, those with a negative advantage", since=2)
    clip_high_active_count: int | None = _count("of clip_high_count, those with a positive advantage", since=2)
    entropy_nan: int | None = _count("entropies of the head that were NaN", since=2)
    entropy_posinf: int | None = _count("entropies that were +infinity", since=2)
    entropy_neginf: int | None = _count("entropies that were -infinity", since=2)
    entropy_sum: float | None = _sum("sum of the head's entropies", unit="nats", since=2)
    entropy_normalized_n: int | None = _count(
        "transitions where the head had a choice and its entropy is finite", since=2
    )
    entropy_normalized_sum: float | None = _sum("sum over those of entropy / log(number of valid actions)", since=2)
    approx_kl_k1: float | None = _derived("k1_sum over the finite log ratios", unit="nats", since=2)
    approx_kl_k3: float | None = _derived("k3_sum over the finite ratios", unit="nats", since=2)
    ratio_mean: float | None = _derived("mean of the finite ratios", since=2)
    ratio_std: float | None = _derived("population standard deviation of the finite ratios", since=2)
    entropy: float | None = _derived("mean of the finite entropies", unit="nats", since=2)
    learnable_fraction: float | None = _derived(
        "share of the transitions from which the head could learn: it had a choice, and the choice mattered",
        null="not measured",
    )
    entropy_normalized: float | None = _derived(
        "mean entropy / log(number of valid actions) over the transitions where the head had a choice, in [0, 1]",
        null="not measured; the head never had a choice",
    )
    entropy_normalized_all: float | None = _derived(
        "the same over all transitions, 0 where the head had no choice: low where the head is sure, and low where it "
        "was hardly ever asked",
        null="not measured",
    )
    ratio_min: float | None = _min("smallest ratio that is a number")
    ratio_max: float | None = _max("largest ratio that is a number (may be +infinity)")
    clip_fraction: float | None = _derived("share of the head's transitions that were clipped", null="not measured")
    grad_norm: float | None = _last("L2 norm of the gradient of the head's own parameters", unit="1")
    gradient_state: str | None = _last("what the trainer called that gradient: finite, none, ...")
    nan_found: bool | None = _last("a NaN was met in the head's log-probabilities or entropies")
    inf_found: bool | None = _last("an infinity was met in the head's log-probabilities or entropies")


@dataclass(frozen=True, slots=True, kw_only=True)
class RecurrentState(Row):
    table: ClassVar[str] = "recurrent_state"
    row: ClassVar[str] = "one kind of state of one recurrent layer, in one update"

    layer: str | None = _key(
        "recurrent layer; `rollout_` before its name where the state was met while collecting, none where in training"
    )
    kind: str | None = _key("`h` or `c`; empty for what was measured over both together")
    n: int | None = _count("elements")
    nan_count: int | None = _count("elements that were NaN")
    inf_count: int | None = _count("elements that were infinite")
    sum_sq: float | None = _sum("sum of squares of the finite elements")
    rms: float | None = _derived("root mean square over all elements", null="not measured")
    env_n: int | None = _count("environments whose state has a finite element", since=2)
    env_rms_sum: float | None = _sum("sum over those of the root mean square of the environment's state", since=2)
    env_rms_mean: float | None = _derived(
        "root mean square of each environment's state, their mean", null="not measured"
    )
    env_rms_max: float | None = _max("the largest of them")
    abs_max: float | None = _max("largest absolute element")
    l2_norm: float | None = _derived("L2 norm over all elements; grows with their number", null="not measured")
    nan_found: bool | None = _last("a NaN was met in the state")
    inf_found: bool | None = _last("an infinity was met in the state")


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientLayer(Row):
    table: ClassVar[str] = "gradient_layers"
    row: ClassVar[str] = "one parameter tensor's gradient at one optimizer step (at NORMAL the update's last)"

    epoch: int | None = _key("epoch of the step", unit="1", null="the trainer did not tell")
    minibatch: int | None = _key("minibatch of the step, counted over the whole update", unit="1")
    layer: str | None = _key("parameter name, as `named_parameters()` gives it")
    has_grad: bool | None = _first("the parameter had a gradient; no: the statistics are NULL", null="never")
    after_clipping: bool | None = _first(
        "the gradient was read after clipping; its values are the ones before times one common factor"
    )
    n: int | None = _count("elements")
    grad_nan: int | None = _count("elements that were NaN", null="no gradient")
    grad_posinf: int | None = _count("elements that were +infinity", null="no gradient")
    grad_neginf: int | None = _count("elements that were -infinity", null="no gradient")
    grad_zero: int | None = _count("elements that were exactly zero", null="no gradient")
    grad_sum: float | None = _sum("sum of the finite elements", null="no gradient")
    grad_sum_sq: float | None = _sum("sum of squares of the finite elements", null="no gradient")
    grad_min: float | None = _min("smallest element that is a number", null="no gradient")
    grad_max: float | None = _max("largest element that is a number", null="no gradient")
    grad_histogram: list[int] | None = _column(
        "elements per bin of `histogram.gradient_edges()`, by |g|; NaN is in no bin",
        Reducer.SUM,
        unit="1",
        null="no gradient",
    )
    weight_sum_sq: float | None = _sum("sum of squares of the finite weights")
    step_sum_sq: float | None = _sum(
        "sum of squares of what the optimizer's step changed in the weights, finite changes alone",
        null="no step was seen, or the weights are larger than what the recorder keeps a copy of",
        since=2,
    )
    grad_norm: float | None = _derived("L2 norm of the finite elements", null="no gradient")
    grad_mean: float | None = _derived("mean of the finite elements", null="no gradient")
    grad_std: float | None = _derived("population standard deviation of the finite elements", null="no gradient")
    weight_norm: float | None = _derived("L2 norm of the finite weights")
    step_norm: float | None = _derived(
        "L2 norm of what the optimizer's step changed in the weights, finite changes alone",
        null="no step was seen, or the weights are larger than what the recorder keeps a copy of",
        since=2,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode(Row):
    table: ClassVar[str] = "episodes"
    row: ClassVar[str] = "one finished episode, in the update its last step was collected for"

    env: int | None = _key("environment", unit="1", null="the trainer did not tell")
    episode: int | None = _key("episode of this attempt, counted as they finished", unit="1")
    step: int | None = _last("environment steps taken by the trainer when it finished", unit="steps")
    episode_return: float | None = _first("undiscounted sum of rewards", unit="1")
    episode_length: int | None = _first("steps", unit="steps")


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm(Row):
    table: ClassVar[str] = "alarms"
    row: ClassVar[str] = "one firing of a rule while the run was recorded (or as an imported run's trainer raised it)"

    rule: str | None = _key("name of the rule")
    key: str | None = _key("head, layer or slot the rule fired for; empty where it has none")
    severity: str | None = _first("info, warning or critical", null="never")
    value: float | None = _first("value of the rule's signal", unit="1", null="the rule has no single value")
    threshold: float | None = _first("threshold it was held against", unit="1", null="the rule has no threshold")
    phase: str | None = _first("phase of the training by the rules' file", null="the progress was not known")
    progress: float | None = _first("share of the training done", unit="1", null="the length was not told")
    rules_sha256: str | None = _first(
        "the rules that raised it, kept in the run's `rules/`", null="raised by other software"
    )
    detail: str | None = _first("what else the raising software said", null="nothing")


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap(Row):
    table: ClassVar[str] = "gaps"
    row: ClassVar[str] = "one stretch of rows that were to be recorded and were not"

    table_name: str | None = _key("table the rows belong to; `*` where an update's rows of all tables are missing")
    reason: str | None = _key("why: `queue_full`, `write_failed`, `bad_call`, `reduce_failed`, ...")
    first_update: int | None = _min("first update concerned", null="never")
    last_update: int | None = _max("last update concerned", null="never")
    rows: int | None = _count("rows lost", null="not known")
    detail: str | None = _first("the error's own words", null="there was no error")


# --- reading the declarations -------------------------------------------------------------------------------------

TABLES: dict[str, type[Row]] = {
    cls.table: cls
    for cls in (
        PpoUpdate,
        Minibatch,
        Head,
        RatioHistogram,
        RatioExemplar,
        GradientLayer,
        RecurrentState,
        Episode,
        Alarm,
        Gap,
    )
}


@functools.cache
def columns(table: str) -> tuple[Column, ...]:
    """The columns of a table: keys first, then in the order of declaration.

    Raises KeyError for a table that is not declared.
    """
    cls = TABLES[table]
    hints = typing.get_type_hints(cls)
    declared = tuple(Column(name=f.name, type=_type_name(hints[f.name]), **f.metadata) for f in dataclasses.fields(cls))
    identity, own = declared[: len(IDENTITY)], declared[len(IDENTITY) :]
    keys = [c for c in own if c.reducer is Reducer.KEY]
    rest = [c for c in own if c.reducer is not Reducer.KEY]
    return (*identity, *keys, *rest)


def column_names(table: str) -> tuple[str, ...]:
    """The names of a table's columns, in their order."""
    return tuple(c.name for c in columns(table))


def key_columns(table: str) -> tuple[str, ...]:
    """The columns that identify a row of a table."""
    return tuple(c.name for c in columns(table) if c.reducer is Reducer.KEY)


def all_columns() -> Iterator[tuple[str, Column]]:
    """Every (table, column) of the contract."""
    for table in TABLES:
        for column in columns(table):
            yield table, column


def _type_name(hint: Any) -> str:
    plain = [arg for arg in typing.get_args(hint) if arg is not type(None)]
    return _TYPES[plain[0]]
