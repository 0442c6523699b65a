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


class AcrossRanks(StrEnum):
    """What the views make of the rows that the ranks of a distributed trainer recorded under one key."""

    MERGED = "merged"  # one row, by the reducers: each rank saw transitions of its own
    REPLICAS = "replicas"  # the lowest rank's row: each rank holds a copy of the same thing
    APART = "apart"  # a row each: each rank's are of something else


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
    across_ranks: ClassVar[AcrossRanks] = AcrossRanks.APART

    run_id: str | None = _key("the run: name, start and random characters, unique")
    attempt: int | None = _key("1 for a fresh run; a resumed run opens the next one", unit="1")
    rank: int | None = _key("process of a distributed trainer, 0 for a single process", unit="1")
    update: int | None = _key("PPO update the row belongs to, counted from 1 as the trainer made them", unit="1")
    time: datetime | None = _last(
        "wall clock, UTC, when the recorder took the row (of an imported run or Esper's events: when the trainer did)",
        null="the run was imported or told in events, and its trainer did not tell",
    )
    elapsed_s: float | None = _last(
        "monotonic time since this attempt began",
        unit="s",
        null="the run was imported or told in events, and its trainer did not tell",
    )


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
    across_ranks: ClassVar[AcrossRanks] = AcrossRanks.MERGED

    definition: str | None = _first(
        "whose definition the metrics follow: pooled (over all evaluated transitions), sb3, or, where a run was "
        "imported, that of the library that logged it (cleanrl, rsl_rl, torchrl, esper)",
        null="never",
    )
    level: str | None = _first(
        "how much was recorded of the update: `minimal`, `normal` or `debug`; an alarm raises it for some updates",
        null="recorded by a version that did not tell, or imported",
        since=2,
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
    across_ranks: ClassVar[AcrossRanks] = AcrossRanks.MERGED

    epoch: int | None = _key("epoch of the update", unit="1", null="the trainer did not tell")
    minibatch: int | None = _key("minibatch, counted over the whole update", unit="1")
    stepped: bool | None = _last("the optimizer stepped on it (no: early stop, or a skipped step)")
    held_back: bool | None = _first(
        "level `minimal` held the row back, and an alarm had it stored later: no rule, live or replayed, looks at it",
        null="the row was stored with its update",
        since=2,
    )
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
    across_ranks: ClassVar[AcrossRanks] = AcrossRanks.MERGED

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
    across_ranks: ClassVar[AcrossRanks] = AcrossRanks.MERGED

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
    across_ranks: ClassVar[AcrossRanks] = AcrossRanks.MERGED

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
    across_ranks: ClassVar[AcrossRanks] = AcrossRanks.REPLICAS

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


_NO_NETWORK = "not measured; the environment trains no network"


@dataclass(frozen=True, slots=True, kw_only=True)
class Episode(Row):
    table: ClassVar[str] = "episodes"
    row: ClassVar[str] = "one finished episode, in the update its last step was collected for"

    env: int | None = _key("environment", unit="1", null="the trainer did not tell")
    episode: int | None = _key("episode of this attempt, counted as they finished", unit="1")
    step: int | None = _last("environment steps taken by the trainer when it finished", unit="steps")
    episode_return: float | None = _first("undiscounted sum of rewards", unit="1")
    episode_length: int | None = _first("steps", unit="steps")
    outcome: str | None = _first("how it ended, as the trainer calls it", since=2)
    final_accuracy: float | None = _first(
        "accuracy of the network the environment trained", unit="%", null=_NO_NETWORK, since=2
    )
    stability_score: float | None = _first(
        "how steadily it learned, by the trainer's own score", unit="1", null=_NO_NETWORK, since=2
    )
    param_ratio: float | None = _first("parameters added against the host's", unit="1", null=_NO_NETWORK, since=2)
    germinate_count: int | None = _count("modules germinated", null=_NO_NETWORK, since=2)
    prune_count: int | None = _count("modules pruned", null=_NO_NETWORK, since=2)
    fossilize_count: int | None = _count("modules fossilised", null=_NO_NETWORK, since=2)
    num_fossilized: int | None = _first("fossilised modules at its end", unit="1", null=_NO_NETWORK, since=2)
    num_contributing_fossilized: int | None = _first("those that contribute", unit="1", null=_NO_NETWORK, since=2)
    reward_mode: str | None = _first("how the trainer made its rewards", since=2)


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
    detail: str | None = _key("the error's own words", null="there was no error")


# --- what trainers of growing networks, and imported runs, tell beside their PPO updates ------------------------------
# An imported event belongs to the update its payload names; one that names none, to the update that was being
# collected when it was written.

_detail = functools.partial(_column, reducer=Reducer.FIRST, null="not told", since=2)
_line_key = functools.partial(
    _column,
    "line of the source the event stood in, or which of the events told it is, counted from 1",
    Reducer.KEY,
    unit="1",
    null="never",
    since=2,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochRow(Row):
    table: ClassVar[str] = "epochs"
    row: ClassVar[str] = "one epoch of the network an environment trains (the policy acts once in each)"

    env: int | None = _key("environment", unit="1", since=2)
    epoch: int | None = _key("epoch of the episode", unit="1", since=2)
    episode: int | None = _detail("episode of the run", unit="1")
    train_loss: float | None = _detail("training loss", unit="1")
    train_accuracy: float | None = _detail("training accuracy", unit="%")
    val_loss: float | None = _detail("validation loss", unit="1")
    val_accuracy: float | None = _detail("validation accuracy", unit="%")
    host_grad_norm: float | None = _detail("gradient norm of the host network", unit="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotEpoch(Row):
    table: ClassVar[str] = "slot_epochs"
    row: ClassVar[str] = "one module (seed) in a slot of an environment's network, at the end of one epoch"

    env: int | None = _key("environment", unit="1", since=2)
    epoch: int | None = _key("epoch of the episode", unit="1", since=2)
    slot: str | None = _key("slot of the network", since=2)
    blueprint: str | None = _detail("kind of module")
    stage: str | None = _detail("stage of its life")
    epochs_in_stage: int | None = _detail("epochs it has been in that stage", unit="1")
    alpha: float | None = _detail("weight its output is blended in with", unit="1")
    accuracy_delta: float | None = _detail("accuracy gained since it germinated", unit="%")
    grad_ratio: float | None = _detail("gradient norm of the module against the host's", unit="1")
    has_vanishing: bool | None = _detail("its gradients vanish")
    has_exploding: bool | None = _detail("its gradients explode")
    contribution_velocity: float | None = _detail("rate of change of its contribution", unit="1")
    interaction_sum: float | None = _detail("sum of its interactions with other modules", unit="1")
    boost_received: float | None = _detail("strongest boost it has from another module", unit="1")
    upstream_alpha_sum: float | None = _detail("sum of the alphas of the modules before it", unit="1")
    downstream_alpha_sum: float | None = _detail("sum of the alphas of the modules after it", unit="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class SlotEvent(Row):
    table: ClassVar[str] = "slots"
    row: ClassVar[str] = "one event in the life of a module (seed) in a slot of an environment's network"

    env: int | None = _key("environment", unit="1", since=2)
    slot: str | None = _key("slot of the network", since=2)
    line: int | None = _line_key()
    event: str | None = _detail(
        "what happened: `germinated`, `stage_changed`, `gate_evaluated`, `pruned`, `fossilized`", null="never"
    )
    seed: str | None = _detail("name of the module")
    episode: int | None = _detail("episode of the run", unit="1")
    blueprint: str | None = _detail("kind of module")
    from_stage: str | None = _detail("stage it left", null="the event is another; not told")
    to_stage: str | None = _detail("stage it came to (or, at a gate, would come to)", null="the event is another")
    epochs_in_stage: int | None = _detail("epochs it had been in its stage", unit="1")
    epochs_total: int | None = _detail("epochs it had lived", unit="1")
    alpha: float | None = _detail("weight its output is blended in with", unit="1")
    alpha_curve: str | None = _detail("curve by which alpha changes")
    blend_tempo_epochs: int | None = _detail("epochs the blending is to take", unit="1")
    params: int | None = _detail("parameters of the module", unit="1")
    accuracy_delta: float | None = _detail("accuracy gained since it germinated", unit="%")
    grad_ratio: float | None = _detail("gradient norm of the module against the host's", unit="1")
    has_vanishing: bool | None = _detail("its gradients vanish")
    has_exploding: bool | None = _detail("its gradients explode")
    gate: str | None = _detail("gate that was evaluated", null="the event is another")
    passed: bool | None = _detail("it passed the gate", null="the event is another")
    checks_passed: list[str] | None = _detail("checks of the gate it passed", null="the event is another")
    checks_failed: list[str] | None = _detail("checks of the gate it failed", null="the event is another")
    message: str | None = _detail("what the gate said", null="the event is another")
    reason: str | None = _detail("why it was pruned; may be empty", null="the event is another")
    initiator: str | None = _detail("who had it pruned")
    auto_pruned: bool | None = _detail("it was pruned without the policy asking", null="the event is another")
    improvement: float | None = _detail("accuracy gained over its life", unit="%")
    blending_delta: float | None = _detail("accuracy gained while it was blended in", unit="%")
    counterfactual: float | None = _detail("accuracy it contributes: with it less without it", unit="%")
    proposal_id: str | None = _detail("`morphology.proposal_id` of the change")
    verdict_id: str | None = _detail("`morphology.verdict_id` of the change")
    mutation_id: str | None = _detail("`morphology.mutation_id` of the change")
    rng_stream: str | None = _detail("random stream the change draws from")
    rng_seed: str | None = _detail("its seed, an unsigned 64-bit number as decimal text")


@dataclass(frozen=True, slots=True, kw_only=True)
class Decision(Row):
    table: ClassVar[str] = "decisions"
    row: ClassVar[str] = "one decision of the policy: the action it took in one environment at one step"

    env: int | None = _key("environment", unit="1", since=2)
    step: int | None = _key("step of the episode, counted from 1", unit="1", since=2)
    episode: int | None = _detail("episode of the run", unit="1")
    action: str | None = _detail("operation chosen")
    success: bool | None = _detail("the action took effect")
    confidence: float | None = _detail("probability the policy gave the operation", unit="1")
    entropy: float | None = _detail("entropy over the operations", unit="nats")
    alternatives: list[str] | None = _detail("the next likely operations")
    alternative_probabilities: list[float] | None = _detail("their probabilities, in the same order", unit="1")
    value: float | None = _detail("value prediction", unit="1")
    slot: str | None = _detail("slot chosen")
    blueprint: str | None = _detail("blueprint chosen", null="the operation takes none; not told")
    blend: str | None = _detail("blending chosen", null="the operation takes none; not told")
    style: str | None = _detail("style chosen", null="the operation takes none; not told")
    tempo: int | None = _detail("tempo chosen, as its index", unit="1", null="the operation takes none; not told")
    alpha_target: float | None = _detail("alpha to reach", unit="1", null="the operation takes none; not told")
    alpha_speed: str | None = _detail("speed of the change of alpha", null="the operation takes none; not told")
    alpha_curve: str | None = _detail("curve of the change of alpha", null="the operation takes none; not told")
    alpha_algorithm: str | None = _detail("algorithm by which alpha is applied")
    alpha_algorithm_selected: str | None = _detail("algorithm the policy selected")
    slots: list[str] | None = _detail("the slots of the network")
    slot_labels: list[str] | None = _detail("what is in them, in the same order, as the trainer words it")
    device: str | None = _detail("device the environment runs on")


@dataclass(frozen=True, slots=True, kw_only=True)
class DecisionHead(Row):
    table: ClassVar[str] = "decision_heads"
    row: ClassVar[str] = "one action head of a policy with several, in one decision"

    env: int | None = _key("environment", unit="1", since=2)
    step: int | None = _key("step of the episode, counted from 1", unit="1", since=2)
    head: str | None = _key("action head", since=2)
    confidence: float | None = _detail("probability of the choice", unit="1")
    entropy_normalized: float | None = _detail(
        "entropy / log(number of valid choices), 0 where there was one choice", unit="1"
    )
    masked: bool | None = _detail("the head's choice was masked out")


@dataclass(frozen=True, slots=True, kw_only=True)
class Reward(Row):
    table: ClassVar[str] = "rewards"
    row: ClassVar[str] = "one reward, of one step in one environment, broken down into its components"
    # The components as the trainer names them, in its order; `total_reward` is what the policy got.

    env: int | None = _key("environment", unit="1", since=2)
    step: int | None = _key("step of the episode, counted from 1", unit="1", since=2)
    episode: int | None = _detail("episode of the run", unit="1")
    total_reward: float | None = _detail("the reward", unit="1")
    base_acc_delta: float | None = _detail("change of accuracy", unit="1")
    seed_contribution: float | None = _detail("accuracy the module contributes", unit="%")
    bounded_attribution: float | None = _detail("the share of it that is rewarded", unit="1")
    progress_since_germination: float | None = _detail("accuracy gained since the module germinated", unit="%")
    stable_val_acc: float | None = _detail("smoothed validation accuracy", unit="%")
    attribution_discount: float | None = _detail("factor on the attribution", unit="1")
    ratio_penalty: float | None = _detail("penalty on an implausible attribution", unit="1")
    escrow_credit_prev: float | None = _detail("credit held back before the step", unit="1")
    escrow_credit_target: float | None = _detail("credit to be held back", unit="1")
    escrow_delta: float | None = _detail("change of the credit held back", unit="1")
    escrow_credit_next: float | None = _detail("credit held back after the step", unit="1")
    escrow_forfeit: float | None = _detail("credit forfeited", unit="1")
    compute_rent: float | None = _detail("cost of the parameters in use", unit="1")
    occupancy_rent: float | None = _detail("cost of occupied slots", unit="1")
    fossilized_rent: float | None = _detail("cost of fossilised modules", unit="1")
    alpha_shock: float | None = _detail("penalty on jumps of alpha", unit="1")
    blending_warning: float | None = _detail("penalty on harmful blending", unit="1")
    holding_warning: float | None = _detail("penalty on holding on too long", unit="1")
    stage_bonus: float | None = _detail("bonus for the stage reached", unit="1")
    pbrs_bonus: float | None = _detail("potential-based shaping", unit="1")
    synergy_bonus: float | None = _detail("bonus for modules that help each other", unit="1")
    action_shaping: float | None = _detail("shaping by the action", unit="1")
    terminal_bonus: float | None = _detail("bonus at the end of the episode", unit="1")
    fossilize_terminal_bonus: float | None = _detail("bonus at its end for fossilised modules", unit="1")
    hindsight_credit: float | None = _detail("credit given in hindsight", unit="1")
    drip_this_epoch: float | None = _detail("deferred credit paid at this step", unit="1")
    drip_immediate_bonus: float | None = _detail("credit paid at once", unit="1")
    drip_deferred_total: float | None = _detail("credit deferred", unit="1")
    drip_sources: int | None = _detail("modules that still pay deferred credit", unit="1")
    timing_discount: float | None = _detail("factor for the time of germination", unit="1")
    num_fossilized_seeds: int | None = _detail("fossilised modules", unit="1")
    num_contributing_fossilized: int | None = _detail("fossilised modules that contribute", unit="1")
    num_active_seeds: int | None = _detail("modules in the network", unit="1")
    seed_stage: int | None = _detail("stage of the module as a number", unit="1", null="no module; not told")
    val_acc: float | None = _detail("validation accuracy", unit="%")
    acc_at_germination: float | None = _detail("accuracy when the module germinated", unit="%")
    host_baseline_acc: float | None = _detail("accuracy of the host alone", unit="%")
    growth_ratio: float | None = _detail("parameters added against the host's", unit="1")
    shaped_reward_ratio: float | None = _detail("|sum of the shaping components| / |total_reward|", unit="1")
    action: str | None = _detail("action the breakdown was made for")
    action_success: bool | None = _detail("that action took effect")


@dataclass(frozen=True, slots=True, kw_only=True)
class ObservationStatistics(Row):
    table: ClassVar[str] = "observation_stats"
    row: ClassVar[str] = "one look at the policy's observations, at one step"

    env: int | None = _key("environment whose event told it", unit="1", since=2)
    step: int | None = _key("step of the episode, counted from 1", unit="1", since=2)
    batch_size: int | None = _detail("observations looked at", unit="1")
    slot_features_mean: float | None = _detail("mean of the features of the slots", unit="1")
    slot_features_std: float | None = _detail("their standard deviation", unit="1")
    host_features_mean: float | None = _detail("mean of the features of the host", unit="1")
    host_features_std: float | None = _detail("their standard deviation", unit="1")
    context_features_mean: float | None = _detail("mean of the features of the context", unit="1")
    context_features_std: float | None = _detail("their standard deviation", unit="1")
    nan_count: int | None = _count("features that were NaN", since=2)
    inf_count: int | None = _count("features that were infinite", since=2)
    nan_pct: float | None = _detail("share of features that were NaN", unit="1")
    inf_pct: float | None = _detail("share of features that were infinite", unit="1")
    outlier_pct: float | None = _detail("share of features far from their mean", unit="1")
    clip_pct: float | None = _detail("share of features clipped by the normalisation", unit="1")
    near_clip_pct: float | None = _detail("share of features close to being clipped", unit="1")
    normalization_drift: float | None = _detail("drift of the running normalisation", unit="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActionCount(Row):
    table: ClassVar[str] = "action_counts"
    row: ClassVar[str] = "one action, and how often it was taken in the rollout of an update"

    action: str | None = _key("the action", since=2)
    n: int | None = _count("times it was taken", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Row):
    table: ClassVar[str] = "batches"
    row: ClassVar[str] = "one batch: the episodes of all environments that an update learned from"

    episodes_completed: int | None = _last("episodes completed so far", unit="1", since=2)
    total_episodes: int | None = _last("episodes the training is to have", unit="1", since=2)
    requested_episodes: int | None = _last("episodes asked for", unit="1", since=2)
    start_episode: int | None = _last("episode the training began with (0, or where it was resumed)", unit="1", since=2)
    envs: int | None = _last("environments", unit="1", since=2)
    avg_accuracy: float | None = _last("mean final accuracy of the environments", unit="%", since=2)
    rolling_accuracy: float | None = _last("mean of it over the last batches", unit="%", since=2)
    env_accuracies: list[float] | None = _column("final accuracy of each environment", Reducer.LAST, unit="%", since=2)
    avg_reward: float | None = _last("mean return of the episodes", unit="1", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatistics(Row):
    table: ClassVar[str] = "batch_stats"
    row: ClassVar[str] = "one summary by the trainer itself, after a batch"

    episodes_completed: int | None = _last("episodes completed so far", unit="1", since=2)
    epochs: int | None = _last("epochs of each episode", unit="1", since=2)
    accuracy: float | None = _last("mean final accuracy of the environments", unit="%", since=2)
    host_accuracy: float | None = _last("mean final accuracy of the host networks", unit="%", since=2)
    entropy_weighted_sum: float | None = _last("as in `ppo_updates`", unit="1", since=2)
    approx_kl: float | None = _last("as in `ppo_updates`", unit="nats", since=2)
    explained_variance: float | None = _last("as in `ppo_updates`", unit="1", since=2)
    value_variance: float | None = _last(
        "what the trainer called the variance of the values (Esper, 2025-12: the explained variance)",
        unit="1",
        since=2,
    )
    seeds_created: int | None = _last("modules germinated in the batch", unit="1", since=2)
    seeds_fossilized: int | None = _last("modules fossilised in the batch", unit="1", since=2)
    skipped_update: bool | None = _last("the update was skipped", since=2)
    rollback_attempt_count: int | None = _count("rollbacks tried", since=2)
    rollback_unattributed_count: int | None = _count("rollbacks no step could be blamed for", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend(Row):
    table: ClassVar[str] = "trends"
    row: ClassVar[str] = "one trend of the accuracy that the trainer noticed after a batch"

    trend: str | None = _key("`plateau`, `degradation`, `improvement` or `performance_degradation`", since=2)
    line: int | None = _line_key()
    severity: str | None = _detail("info, warning or critical")
    env: int | None = _detail("environment", unit="1", null="the trend is of all")
    episodes_completed: int | None = _detail("episodes completed so far", unit="1")
    rolling_accuracy: float | None = _detail("mean accuracy over the last batches", unit="%")
    previous_rolling_accuracy: float | None = _detail("the same a batch earlier", unit="%")
    rolling_delta: float | None = _detail("change between the two", unit="%")
    current_accuracy: float | None = _detail("accuracy of this batch", unit="%")
    drop_percent: float | None = _detail("drop below the rolling mean", unit="%")
    threshold_percent: float | None = _detail("drop from which on it is told", unit="%")
    progress: float | None = _detail("share of the training done", unit="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counterfactual(Row):
    table: ClassVar[str] = "counterfactuals"
    row: ClassVar[str] = "one accuracy of an environment's network with some of its modules switched off"

    env: int | None = _key("environment", unit="1", since=2)
    line: int | None = _line_key()
    configuration: int | None = _key("configuration of the matrix, counted from 1", unit="1", since=2)
    slots: list[str] | None = _detail("the slots of the matrix")
    active: list[str] | None = _detail("those whose modules were on")
    accuracy: float | None = _detail("accuracy", unit="%")
    strategy: str | None = _detail("how the configurations were chosen")
    compute_ms: float | None = _detail("time the whole matrix took", unit="ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapleyValue(Row):
    table: ClassVar[str] = "shapley_values"
    row: ClassVar[str] = "one module's contribution to an environment's accuracy, as a Shapley value"

    env: int | None = _key("environment", unit="1", since=2)
    slot: str | None = _key("slot of the network", since=2)
    line: int | None = _line_key()
    batch: int | None = _detail("batch the trainer told (Esper, 2025-12: always 0)", unit="1")
    mean: float | None = _detail("the value", unit="%")
    std: float | None = _detail("standard deviation over the samples", unit="%")
    samples: int | None = _detail("samples drawn", unit="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Morphology(Row):
    table: ClassVar[str] = "morphology"
    row: ClassVar[str] = "one step of a change to a network: proposed, judged, dispatched, committed"

    action_id: str | None = _key("the change", since=2)
    phase: str | None = _key("`proposal`, `verdict`, `mutation`, `dispatch` or `commit`", since=2)
    line: int | None = _line_key()
    env: int | None = _detail("environment", unit="1")
    slot: str | None = _detail("slot of the network")
    operation: str | None = _detail("what is done to the slot")
    blueprint: str | None = _detail("kind of module", null="the operation takes none; not told")
    topology: str | None = _detail("kind of network")
    proposal_id: str | None = _detail("the proposal")
    verdict_id: str | None = _detail("the verdict on it")
    mutation_id: str | None = _detail("the mutation it led to")
    linked_event_id: str | None = _detail("the mutation this step follows from")
    governor_approved: bool | None = _detail("the governor approved of it", null="not judged yet; not told")
    governor_reason: str | None = _detail("why", null="not judged yet; not told")
    governor_blocked_factor: str | None = _detail("what the governor blocked it for", null="it did not; not told")
    observation_hash: str | None = _detail("hash of the observation the policy acted on")
    rng_stream: str | None = _detail("random stream the change draws from")
    rng_seed: str | None = _detail("its seed, an unsigned 64-bit number as decimal text")


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseProfile(Row):
    table: ClassVar[str] = "phase_profiles"
    row: ClassVar[str] = "one phase of the training loop, and the time it took in one epoch of a batch"

    epoch: int | None = _key("epoch of the episode", unit="1", since=2)
    phase: str | None = _key("phase of the loop: `train`, `val`, `rollout`, `action`, `ppo_update`, ...", since=2)
    line: int | None = _line_key()
    wall_ms: float | None = _detail("time on the wall clock", unit="ms")
    python_cpu_ms: float | None = _detail("processor time of the Python thread", unit="ms")
    python_cpu_ratio: float | None = _detail("python_cpu_ms / wall_ms", unit="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStabilization(Row):
    table: ClassVar[str] = "host_stabilizations"
    row: ClassVar[str] = "one moment at which an environment's host network was stable, so that modules may germinate"

    env: int | None = _key("environment", unit="1", since=2)
    epoch: int | None = _key("epoch of the episode", unit="1", since=2)
    episode: int | None = _detail("episode of the run", unit="1")
    stable_epochs: int | None = _detail("stable epochs seen in a row", unit="1")
    stabilization_epochs: int | None = _detail("stable epochs asked for", unit="1")
    val_loss: float | None = _detail("validation loss", unit="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EsperUpdate(Row):
    table: ClassVar[str] = "esper_updates"
    row: ClassVar[str] = "one PPO update, as far as Esper's trainer alone measures it (the rest is in `ppo_updates`)"

    ppo_updates: int | None = _last("passes over the rollout", unit="1", since=2)
    episode_epochs: int | None = _last("epochs of each episode", unit="1", since=2)
    early_stop_epoch: int | None = _last(
        "epoch at which the KL ended the update", unit="1", null="it did not; not told", since=2
    )
    update_skipped: bool | None = _last("the update was skipped", since=2)
    entropy_loss: float | None = _last("entropy term of the loss", unit="1", since=2)
    entropy_collapsed: bool | None = _last("the trainer called the entropy collapsed", since=2)
    joint_ratio_max: float | None = _max("largest ratio over all heads together", since=2)
    log_prob_min: float | None = _min("smallest log-probability", unit="nats", since=2)
    log_prob_max: float | None = _max("largest log-probability", unit="nats", since=2)
    clip_fraction_negative: float | None = _last("share of transitions clipped below", unit="1", since=2)
    clip_fraction_positive: float | None = _last("share of transitions clipped above", unit="1", since=2)
    advantage_skewness: float | None = _last("skewness of the advantages", unit="1", since=2)
    advantage_kurtosis: float | None = _last("excess kurtosis of the advantages", unit="1", since=2)
    advantage_positive_ratio: float | None = _last("share of advantages above zero", unit="1", since=2)
    advantage_std_floored: bool | None = _last("the advantages' deviation was raised to its floor", since=2)
    pre_norm_advantage_mean: float | None = _last("mean advantage before normalisation", unit="1", since=2)
    pre_norm_advantage_std: float | None = _last("its standard deviation", unit="1", since=2)
    d5_pre_norm_advantage_std: float | None = _last(
        "the same, as a second place of the trainer tells it", unit="1", since=2
    )
    return_skewness: float | None = _last("skewness of the returns", unit="1", since=2)
    return_p10: float | None = _last("tenth percentile of the returns", unit="1", since=2)
    return_p50: float | None = _last("median of the returns", unit="1", since=2)
    return_p90: float | None = _last("ninetieth percentile of the returns", unit="1", since=2)
    ev_return_variance: float | None = _last(
        "sample variance of the returns that explained variance is judged by", unit="1", since=2
    )
    ev_low_return_variance_count: int | None = _count("times that variance was too low", since=2)
    value_std: float | None = _last("standard deviation of the value predictions", unit="1", since=2)
    value_nrmse: float | None = _last("root mean square residual / (return_std + 1)", unit="1", since=2)
    value_target_scale: float | None = _last("scale the value targets are divided by", unit="1", since=2)
    v_return_correlation: float | None = _last("correlation of values and returns", unit="1", since=2)
    td_error_mean: float | None = _last("mean temporal-difference error", unit="1", since=2)
    td_error_std: float | None = _last("its standard deviation", unit="1", since=2)
    q_aux_loss: float | None = _last("loss of the auxiliary Q head", unit="1", since=2)
    q_spread: float | None = _last("largest less smallest Q over the operations", unit="1", since=2)
    q_variance: float | None = _last("variance of Q over the operations", unit="1", since=2)
    op_q_values: list[float] | None = _column("Q of each operation", Reducer.LAST, unit="1", since=2)
    op_valid_mask: list[int] | None = _column(
        "1 where that operation was valid, else 0", Reducer.LAST, unit="1", since=2
    )
    decision_density: float | None = _last("share of the steps at which the policy had a choice", unit="1", since=2)
    forced_step_ratio: float | None = _last("share of the steps at which it had none", unit="1", since=2)
    gradient_cv: float | None = _last("coefficient of variation of the layers' gradient norms", unit="1", since=2)
    q_head_grad_norm: float | None = _last("gradient norm of the Q head", unit="1", since=2)
    q_head_gradient_state: str | None = _last("what the trainer called that gradient", since=2)
    value_head_grad_norm: float | None = _last("gradient norm of the value head", unit="1", since=2)
    value_head_gradient_state: str | None = _last("what the trainer called that gradient", since=2)
    nan_grad_count: int | None = _count("gradients that were NaN", since=2)
    inf_grad_count: int | None = _count("gradients that were infinite", since=2)
    dead_layers: int | None = _last("layers whose gradients were dead", unit="1", since=2)
    exploding_layers: int | None = _last("layers whose gradients exploded", unit="1", since=2)
    amp_overflow_detected: bool | None = _last("mixed precision overflowed", since=2)
    loss_scale: float | None = _last("loss scale of mixed precision", unit="1", null="not used; not told", since=2)
    rollback_count: int | None = _count("rollbacks made", since=2)
    rollback_attempt_count: int | None = _count("rollbacks tried", since=2)
    rollback_unattributed_count: int | None = _count("rollbacks no step could be blamed for", since=2)
    rollback_steps_zeroed: int | None = _last("steps zeroed by rollbacks", unit="1", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerHealth(Row):
    table: ClassVar[str] = "layer_health"
    row: ClassVar[str] = "one layer's gradient in one update, as the trainer scores it"

    layer: str | None = _key("parameter name, as `named_parameters()` gives it", since=2)
    health: float | None = _last("1 healthy, 0 dead or not finite", unit="1", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class System(Row):
    table: ClassVar[str] = "system"
    row: ClassVar[str] = "one update, seen from the machine: memory and waiting"

    gpu_memory_allocated_gb: float | None = _max("memory held by tensors", unit="GB", since=2)
    gpu_memory_reserved_gb: float | None = _max("memory held by the allocator", unit="GB", since=2)
    gpu_memory_peak_gb: float | None = _max("largest memory held by tensors", unit="GB", since=2)
    gpu_memory_fragmentation: float | None = _max("share of the reserved memory that is not in use", since=2)
    dataloader_wait_ratio: float | None = _max("share of the time spent waiting for data", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar(Row):
    table: ClassVar[str] = "scalars"
    row: ClassVar[str] = "one scalar the trainer logged that no other table has a column for"

    name: str | None = _key("the name the trainer logged it under", since=2)
    step: int | None = _key("step it was logged at, as the trainer counts", unit="1", null="not told", since=2)
    line: int | None = _key(
        "where it stood in the source: line of a text file, record of an event file, counted from 1",
        unit="1",
        null="not told",
        since=2,
    )
    value: float | None = _last("the value", unit="1", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Event(Row):
    table: ClassVar[str] = "events"
    row: ClassVar[str] = "one event of Esper's trainer: its envelope; what it says is in the other tables"

    line: int | None = _line_key()
    event_type: str | None = _detail("what kind of event, as the trainer names it", null="never")
    kind: str | None = _detail("what kind of snapshot", null="the event is no snapshot; not told")
    event_id: str | None = _detail("the trainer's own name of the event")
    severity: str | None = _detail("how the trainer rated it")
    epoch: int | None = _detail("the epoch it was sent with; what that counts depends on the kind of event", unit="1")
    message: str | None = _detail("its text; may be empty")


@dataclass(frozen=True, slots=True, kw_only=True)
class RawEvent(Row):
    table: ClassVar[str] = "raw_events"
    row: ClassVar[str] = "one line of the source, or one value in it, that no column could take"

    line: int | None = _line_key()
    key: str | None = _key("where in the event the value stood (`data.name`); empty for the whole line", since=2)
    event_type: str | None = _detail("what kind of event", null="the line is no event")
    reason: str | None = _detail(
        "why: `no_table`, `no_column` (known, kept as it is), `unknown_event`, `unknown_key`, `wrong_type`, "
        "`differs` (from a value that it repeats), `repeated`, `not_json`, `torn`, `no_event`",
        null="never",
    )
    text: str | None = _detail("the line, or the value as JSON; bytes that are no UTF-8 are escaped", null="never")


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
        EpochRow,
        SlotEpoch,
        SlotEvent,
        Decision,
        DecisionHead,
        Reward,
        ObservationStatistics,
        ActionCount,
        Batch,
        BatchStatistics,
        Trend,
        Counterfactual,
        ShapleyValue,
        Morphology,
        PhaseProfile,
        HostStabilization,
        EsperUpdate,
        LayerHealth,
        System,
        Scalar,
        Event,
        RawEvent,
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
