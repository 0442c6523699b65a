"""The tables of any PPO training: updates, minibatches, heads, layers, episodes, alarms and gaps."""

from __future__ import annotations

from dataclasses import dataclass

from esper_recorder.contract.tables.base import (
    AcrossRanks,
    Reducer,
    Row,
    column,
    count_col,
    derived_col,
    first_col,
    key_col,
    last_col,
    max_col,
    min_col,
    quantile_col,
    sum_col,
    table,
)

# --- sums over a set of transitions: shared by minibatches and whole updates ---------------------------------------


_DISCRETE_ONLY = "not measured; not applicable to continuous actions"
_NOT_REPORTED = "not reported by the trainer"


@dataclass(frozen=True, slots=True, kw_only=True)
class _PolicyStatistics(Row):
    """Sums over transitions of the policy terms of the PPO loss. ratio = exp(log_ratio) = pi_new / pi_old.

    Elementwise terms are computed in the trainer's precision (float32 for half types), as its loss computes them, and
    summed in float64.
    """

    n: int | None = count_col("transitions counted (padding masked out)")
    log_ratio_nan: int | None = count_col("log ratios that were NaN")
    log_ratio_posinf: int | None = count_col("log ratios that were +infinity")
    log_ratio_neginf: int | None = count_col("log ratios that were -infinity")
    log_ratio_sum: float | None = sum_col("sum of log ratios", unit="nats")
    log_ratio_sum_sq: float | None = sum_col("sum of squared log ratios", unit="nats^2")
    log_ratio_min: float | None = min_col("smallest log ratio that is a number", unit="nats")
    log_ratio_max: float | None = max_col("largest log ratio that is a number", unit="nats")
    ratio_nonfinite: int | None = count_col("ratios that were NaN or infinite; exp overflows for finite log ratios too")
    ratio_sum: float | None = sum_col("sum of ratios")
    ratio_sum_sq: float | None = sum_col("sum of squared ratios")
    ratio_min: float | None = min_col("smallest ratio that is a number")
    ratio_max: float | None = max_col("largest ratio that is a number (may be +infinity)")
    k1_sum: float | None = sum_col("sum of -log_ratio, the k1 estimator of KL(old, new)", unit="nats")
    k3_sum: float | None = sum_col("sum of (ratio - 1) - log_ratio, the k3 estimator of KL(old, new)", unit="nats")
    clip_low_count: int | None = count_col("transitions with |ratio - 1| > clip_range and ratio < 1")
    clip_high_count: int | None = count_col("transitions with |ratio - 1| > clip_range and ratio > 1")
    clip_low_active_count: int | None = count_col(
        "clipped low with a negative advantage: clipping removes the gradient"
    )
    clip_high_active_count: int | None = count_col(
        "clipped high with a positive advantage: clipping removes the gradient"
    )
    policy_loss_n: int | None = count_col("transitions whose policy loss is finite")
    policy_loss_sum: float | None = sum_col("sum of -min(ratio * A, clip(ratio) * A), A as the loss used it")
    entropy_nan: int | None = count_col("entropies that were NaN")
    entropy_posinf: int | None = count_col("entropies that were +infinity")
    entropy_neginf: int | None = count_col("entropies that were -infinity")
    entropy_sum: float | None = sum_col("sum of policy entropies (differential for continuous actions)", unit="nats")
    entropy_normalized_n: int | None = count_col("transitions with more than one valid action", null=_DISCRETE_ONLY)
    entropy_normalized_sum: float | None = sum_col(
        "sum over those of entropy / log(number of valid actions)", null=_DISCRETE_ONLY
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _ValueStatistics(_PolicyStatistics):
    """Sums over the same transitions of advantages, values and returns. residual = return - value."""

    advantage_nan: int | None = count_col("advantages (as the loss used them) that were NaN")
    advantage_posinf: int | None = count_col("advantages that were +infinity")
    advantage_neginf: int | None = count_col("advantages that were -infinity")
    advantage_sum: float | None = sum_col("sum of advantages as the loss used them")
    advantage_sum_sq: float | None = sum_col("sum of their squares")
    advantage_min: float | None = min_col("smallest advantage as the loss used it")
    advantage_max: float | None = max_col("largest advantage as the loss used it")
    advantage_positive_count: int | None = count_col("advantages above zero")
    raw_advantage_n: int | None = count_col("transitions whose advantage before normalisation is finite")
    raw_advantage_sum: float | None = sum_col("sum of advantages before normalisation")
    raw_advantage_sum_sq: float | None = sum_col("sum of their squares")
    value_nan: int | None = count_col("value predictions that were NaN")
    value_posinf: int | None = count_col("value predictions that were +infinity")
    value_neginf: int | None = count_col("value predictions that were -infinity")
    value_sum: float | None = sum_col("sum of value predictions")
    value_sum_sq: float | None = sum_col("sum of their squares")
    value_min: float | None = min_col("smallest value prediction")
    value_max: float | None = max_col("largest value prediction")
    return_nan: int | None = count_col("returns (value targets) that were NaN")
    return_posinf: int | None = count_col("returns that were +infinity")
    return_neginf: int | None = count_col("returns that were -infinity")
    return_sum: float | None = sum_col("sum of returns (value targets)")
    return_sum_sq: float | None = sum_col("sum of their squares")
    return_min: float | None = min_col("smallest return")
    return_max: float | None = max_col("largest return")
    residual_n: int | None = count_col("transitions whose return and value are both finite")
    residual_sum: float | None = sum_col("sum of return - value")
    residual_sum_sq: float | None = sum_col("sum of its squares")
    residual_abs_max: float | None = max_col("largest |return - value|")
    value_return_sum: float | None = sum_col("sum of value * return, for their correlation")
    value_loss_n: int | None = count_col("transitions whose value loss is finite")
    value_loss_sum: float | None = sum_col("sum over transitions of the value loss as the trainer defines it")


@dataclass(frozen=True, slots=True, kw_only=True)
class _Statistics(_ValueStatistics):
    """Metrics derived from the sums. In `ppo_updates`, `definition` names the library whose definition they follow."""

    approx_kl: float | None = derived_col("approximate KL(old, new) by the row's definition", unit="nats")
    approx_kl_k1: float | None = derived_col("k1_sum over the finite log ratios", unit="nats")
    approx_kl_k3: float | None = derived_col("k3_sum over the finite ratios", unit="nats")
    clip_fraction: float | None = derived_col("fraction with |ratio - 1| > clip_range, by the row's definition")
    ratio_mean: float | None = derived_col("mean of the finite ratios")
    ratio_std: float | None = derived_col("population standard deviation of the finite ratios")
    entropy: float | None = derived_col("mean policy entropy, by the row's definition", unit="nats")
    entropy_normalized: float | None = derived_col(
        "mean of entropy / log(number of valid actions) if more than one: 1 uniform, 0 deterministic",
        null=_DISCRETE_ONLY,
    )
    policy_loss: float | None = derived_col("clipped surrogate loss, by the row's definition")
    value_loss: float | None = derived_col("value loss, by the row's definition (libraries differ by a factor 0.5)")
    loss: float | None = derived_col(
        "policy_loss - entropy_coef * entropy + value_coef * value_loss, by the row's definition"
    )
    advantage_mean: float | None = derived_col("mean advantage as the loss used it")
    advantage_std: float | None = derived_col("population standard deviation of the advantages")
    return_mean: float | None = derived_col("mean return")
    return_std: float | None = derived_col("population standard deviation of the returns")
    value_mean: float | None = derived_col("mean value prediction")
    residual_mean: float | None = derived_col("mean of return - value: the bias that explained variance ignores")
    residual_rms: float | None = derived_col("root mean square of return - value")
    explained_variance: float | None = derived_col("1 - var(return - value) / var(return); NaN if returns do not vary")
    advantage_positive_fraction: float | None = derived_col(
        "fraction of the advantages (as the loss used them, NaN left out) that are above zero",
        since=2,
        renamed_from="advantage_positive_share",
    )
    raw_advantage_mean: float | None = derived_col("mean advantage before normalisation", since=2)
    raw_advantage_std: float | None = derived_col("population standard deviation of raw advantages", since=2)
    value_std: float | None = derived_col("population standard deviation of the value predictions", since=2)
    value_return_correlation: float | None = derived_col(
        "correlation of value and return; NaN if either does not vary or has a non-finite value", since=2
    )
    nonfinite_count: int | None = count_col(
        "NaN and infinite values in any of the quantities above, or in gradient norms"
    )


@table("ppo_updates", "one PPO update: all epochs over one rollout", AcrossRanks.MERGED)
class PpoUpdate(_Statistics):
    definition: str | None = first_col(
        "whose definition the metrics follow: pooled (over all evaluated transitions), sb3, or, for an imported run, "
        "the library that logged it (cleanrl, rsl_rl, torchrl, esper)",
        null="never",
    )
    level: str | None = first_col(
        "how much of the update was recorded: `minimal`, `normal` or `debug`; an alarm raises it for some updates",
        null="recorded at schema version 1, or imported",
        since=2,
    )
    step: int | None = last_col("environment steps taken when the update ended", unit="steps")
    progress: float | None = last_col(
        "fraction of the training done when the update ended, in (0, 1]", unit="1", null="the total length is unknown"
    )
    epochs: int | None = last_col("epochs begun", unit="1")
    epochs_planned: int | None = first_col("epochs the trainer planned", unit="1")
    minibatch_count: int | None = count_col("minibatches evaluated")
    stepped_count: int | None = count_col("minibatches the optimizer stepped on")
    stopped_early: bool | None = last_col("the trainer stopped before its planned epochs (target_kl)")
    interrupted: bool | None = last_col(
        "the training ended during the update; the row covers the minibatches evaluated until then"
    )
    learning_rate: float | None = last_col("learning rate of the first parameter group", unit="1")
    clip_range: float | None = last_col("clip range of the ratio", unit="1")
    value_clip_range: float | None = last_col(
        "clip range of the value prediction", unit="1", null="values are not clipped, or not reported"
    )
    target_kl: float | None = last_col("KL that stops the epochs", unit="nats", null="not set, or not reported")
    entropy_coef: float | None = last_col("weight of the entropy bonus", unit="1")
    value_coef: float | None = last_col("weight of the value loss", unit="1")
    max_grad_norm: float | None = last_col(
        "norm the gradients are clipped to", unit="1", null="gradients are not clipped, or not reported"
    )
    policy_std: float | None = last_col(
        "mean standard deviation of a Gaussian policy after the update", unit="1", null="not a Gaussian policy"
    )
    grad_norm_n: int | None = count_col("optimizer steps whose gradient norm was measured")
    grad_norm_nonfinite: int | None = count_col("gradient norms that were NaN or infinite")
    grad_norm_sum: float | None = sum_col("sum of finite total gradient norms before clipping")
    grad_norm_sum_sq: float | None = sum_col("sum of their squares")
    grad_norm_max: float | None = max_col("largest total gradient norm before clipping that is a number")
    grad_norm: float | None = derived_col("mean finite total gradient norm before clipping")
    grad_norm_clipped: float | None = last_col("total gradient norm after clipping, as the optimizer saw it", unit="1")
    rollout_n: int | None = count_col("transitions of the rollout", null="the rollout was not recorded")
    rollout_nonfinite: int | None = count_col("non-finite values, returns, advantages and rewards of the rollout")
    rollout_value_n: int | None = count_col("transitions of the rollout whose value prediction is finite")
    rollout_value_sum: float | None = sum_col("sum of the values predicted during the rollout")
    rollout_value_sum_sq: float | None = sum_col("sum of their squares")
    rollout_return_n: int | None = count_col("transitions of the rollout whose return is finite")
    rollout_return_sum: float | None = sum_col("sum of the rollout's returns")
    rollout_return_sum_sq: float | None = sum_col("sum of their squares")
    rollout_residual_n: int | None = count_col("transitions whose return and value are both finite")
    rollout_residual_sum: float | None = sum_col("sum of return - value, values of the rollout")
    rollout_residual_sum_sq: float | None = sum_col("sum of its squares")
    rollout_value_return_sum: float | None = sum_col("sum of value * return")
    rollout_advantage_n: int | None = count_col("transitions of the rollout whose advantage is finite")
    rollout_advantage_sum: float | None = sum_col("sum of the rollout's unnormalised advantages")
    rollout_advantage_sum_sq: float | None = sum_col("sum of their squares")
    rollout_advantage_min: float | None = min_col("smallest advantage of the rollout")
    rollout_advantage_max: float | None = max_col("largest advantage of the rollout")
    rollout_reward_n: int | None = count_col("transitions of the rollout whose reward is finite")
    rollout_reward_sum: float | None = sum_col("sum of the rollout's rewards")
    rollout_reward_sum_sq: float | None = sum_col("sum of their squares")
    rollout_reward_min: float | None = min_col("smallest reward of the rollout")
    rollout_reward_max: float | None = max_col("largest reward of the rollout")
    rollout_return_std: float | None = derived_col("population standard deviation of the rollout's returns")
    rollout_value_return_correlation: float | None = derived_col(
        "correlation of value and return over the rollout; NaN if either does not vary or has a non-finite value",
        since=2,
    )
    rollout_advantage_q05: float | None = quantile_col("5 % quantile of the rollout's finite unnormalised advantages")
    rollout_advantage_q25: float | None = quantile_col("25 % quantile of the rollout's finite unnormalised advantages")
    rollout_advantage_q50: float | None = quantile_col("50 % quantile of the rollout's finite unnormalised advantages")
    rollout_advantage_q75: float | None = quantile_col("75 % quantile of the rollout's finite unnormalised advantages")
    rollout_advantage_q95: float | None = quantile_col("95 % quantile of the rollout's finite unnormalised advantages")
    rollout_return_q05: float | None = quantile_col("5 % quantile of the rollout's finite returns")
    rollout_return_q25: float | None = quantile_col("25 % quantile of the rollout's finite returns")
    rollout_return_q50: float | None = quantile_col("50 % quantile of the rollout's finite returns")
    rollout_return_q75: float | None = quantile_col("75 % quantile of the rollout's finite returns")
    rollout_return_q95: float | None = quantile_col("95 % quantile of the rollout's finite returns")
    rollout_value_q05: float | None = quantile_col("5 % quantile of the rollout's finite value predictions")
    rollout_value_q25: float | None = quantile_col("25 % quantile of the rollout's finite value predictions")
    rollout_value_q50: float | None = quantile_col("50 % quantile of the rollout's finite value predictions")
    rollout_value_q75: float | None = quantile_col("75 % quantile of the rollout's finite value predictions")
    rollout_value_q95: float | None = quantile_col("95 % quantile of the rollout's finite value predictions")
    rollout_residual_q05: float | None = quantile_col("5 % quantile of the rollout's finite return - value")
    rollout_residual_q25: float | None = quantile_col("25 % quantile of the rollout's finite return - value")
    rollout_residual_q50: float | None = quantile_col("50 % quantile of the rollout's finite return - value")
    rollout_residual_q75: float | None = quantile_col("75 % quantile of the rollout's finite return - value")
    rollout_residual_q95: float | None = quantile_col("95 % quantile of the rollout's finite return - value")
    nonfinite_fields: list[str] | None = column(
        "names of the trainer's scalars that were NaN or infinite; empty if all were finite",
        Reducer.FIRST,
        null="the trainer's scalars were not checked",
    )
    entropy_weighted_sum: float | None = last_col(
        "sum over action heads of the head's entropy weight times its entropy, as in the trainer's loss",
        unit="1",
        null="not measured; not applicable to a policy with one head",
    )
    bellman_error: float | None = last_col("mean temporal-difference error, by the trainer's definition", unit="1")
    return_variance: float | None = last_col("variance of the returns as the trainer computed it", unit="1")
    return_variance_low: bool | None = last_col(
        "the trainer declared explained variance meaningless: returns hardly vary"
    )
    unforced_steps: float | None = last_col("rollout steps at which the policy had a choice", unit="steps")
    rollout_s: float | None = last_col("time from the end of the last update to the first minibatch", unit="s")
    update_s: float | None = last_col("time from the first minibatch to the end of the update", unit="s")


@table("minibatches", "one minibatch the trainer evaluated", AcrossRanks.MERGED)
class Minibatch(_Statistics):
    epoch: int | None = key_col("epoch of the update", unit="1", null=_NOT_REPORTED)
    minibatch: int | None = key_col("minibatch, counted over the whole update", unit="1")
    stepped: bool | None = last_col("the optimizer stepped on it; false after an early stop or for a skipped step")
    backfilled: bool | None = first_col(
        "stored after its update, when an alarm raised the level from `minimal`; rules ignore it, live and replayed",
        null="the row was stored with its update",
        since=2,
        renamed_from="held_back",
    )
    learning_rate: float | None = last_col("learning rate of the first parameter group", unit="1")
    clip_range: float | None = last_col("clip range of the ratio", unit="1")
    value_clip_range: float | None = last_col(
        "clip range of the value prediction", unit="1", null="values are not clipped, or not reported"
    )
    grad_norm: float | None = last_col("total gradient norm before clipping", unit="1")


@table(
    "ratio_histograms",
    "one histogram of log ratios, of an update or (at level `debug`) a minibatch",
    AcrossRanks.MERGED,
)
class RatioHistogram(Row):
    epoch: int | None = key_col("epoch", unit="1", null="the histogram covers the whole update")
    minibatch: int | None = key_col(
        "minibatch, counted over the whole update", unit="1", null="the histogram covers the whole update"
    )
    head: str | None = key_col("action head; empty for the joint ratio")
    counts: list[int] | None = column(
        "transitions per bin of `histogram.log_ratio_edges()`; infinities are in the outer bins, NaN in none",
        Reducer.SUM,
        unit="1",
    )
    nan_count: int | None = count_col("log ratios that were NaN")


@table("ratio_exemplars", "one of the k transitions with the largest |log ratio|, non-finite ones first")
class RatioExemplar(Row):
    scope: str | None = key_col("the set the k were chosen from: `update`, or (at level `debug`) `minibatch`")
    epoch: int | None = key_col("epoch the transition was evaluated in", unit="1", null=_NOT_REPORTED)
    minibatch: int | None = key_col("minibatch it was evaluated in, counted over the whole update", unit="1")
    head: str | None = key_col("action head; empty for the joint ratio")
    place: int | None = key_col("1 is the worst", unit="1")
    index: int | None = first_col("position in the rollout buffer as the trainer numbers it", unit="1")
    env: int | None = first_col("environment the transition came from", unit="1")
    env_step: int | None = first_col("step within the rollout", unit="1")
    action: list[float] | None = column("the action taken", Reducer.FIRST, unit="1")
    old_log_prob: float | None = first_col("log-probability when the action was taken", unit="nats")
    new_log_prob: float | None = first_col("log-probability under the policy being trained", unit="nats")
    log_ratio: float | None = first_col("new_log_prob - old_log_prob", unit="nats")
    advantage: float | None = first_col("advantage as the loss used it", unit="1")
    value: float | None = first_col("value prediction", unit="1")
    value_target: float | None = first_col("return, the target of the value prediction", unit="1")


@table("heads", "one action head of a policy with several, in one update", AcrossRanks.MERGED)
class Head(Row):
    head: str | None = key_col("action head")
    n: int | None = count_col("transitions counted for the head")
    transition_n: int | None = count_col(
        "transitions of the update, whether or not the head's choice mattered (padding masked out)", since=2
    )
    learnable_count: int | None = count_col(
        "of transition_n, those from which the head could learn: not masked out, and with more than one valid action",
        null="not measured: neither a mask nor the number of valid actions was passed",
        since=2,
    )
    log_ratio_nan: int | None = count_col("log ratios of the head that were NaN", since=2)
    log_ratio_posinf: int | None = count_col("log ratios that were +infinity", since=2)
    log_ratio_neginf: int | None = count_col("log ratios that were -infinity", since=2)
    log_ratio_sum: float | None = sum_col("sum of the head's log ratios", unit="nats", since=2)
    log_ratio_sum_sq: float | None = sum_col("sum of their squares", unit="nats^2", since=2)
    log_ratio_min: float | None = min_col("smallest log ratio that is a number", unit="nats", since=2)
    log_ratio_max: float | None = max_col("largest log ratio that is a number", unit="nats", since=2)
    ratio_nonfinite: int | None = count_col("ratios that were NaN or infinite", since=2)
    ratio_sum: float | None = sum_col("sum of the head's ratios", since=2)
    ratio_sum_sq: float | None = sum_col("sum of their squares", since=2)
    k1_sum: float | None = sum_col("sum of -log_ratio, the k1 estimator of KL(old, new)", unit="nats", since=2)
    k3_sum: float | None = sum_col("sum of (ratio - 1) - log_ratio, the k3 estimator", unit="nats", since=2)
    clip_low_count: int | None = count_col("transitions with |ratio - 1| > clip_range and ratio < 1", since=2)
    clip_high_count: int | None = count_col("transitions with |ratio - 1| > clip_range and ratio > 1", since=2)
    clip_low_active_count: int | None = count_col("of clip_low_count, those with a negative advantage", since=2)
    clip_high_active_count: int | None = count_col("of clip_high_count, those with a positive advantage", since=2)
    entropy_nan: int | None = count_col("entropies of the head that were NaN", since=2)
    entropy_posinf: int | None = count_col("entropies that were +infinity", since=2)
    entropy_neginf: int | None = count_col("entropies that were -infinity", since=2)
    entropy_sum: float | None = sum_col("sum of the head's entropies", unit="nats", since=2)
    entropy_normalized_n: int | None = count_col("transitions with a choice for the head and a finite entropy", since=2)
    entropy_normalized_sum: float | None = sum_col("sum over those of entropy / log(number of valid actions)", since=2)
    approx_kl_k1: float | None = derived_col("k1_sum over the finite log ratios", unit="nats", since=2)
    approx_kl_k3: float | None = derived_col("k3_sum over the finite ratios", unit="nats", since=2)
    ratio_mean: float | None = derived_col("mean of the finite ratios", since=2)
    ratio_std: float | None = derived_col("population standard deviation of the finite ratios", since=2)
    entropy: float | None = derived_col("mean of the finite entropies", unit="nats", since=2)
    learnable_fraction: float | None = derived_col(
        "fraction of the transitions from which the head could learn: the choice existed and mattered",
        null="not measured",
    )
    entropy_normalized: float | None = derived_col(
        "mean entropy / log(number of valid actions) over transitions with more than one, in [0, 1]",
        null="not measured; the head never had a choice",
    )
    entropy_normalized_all: float | None = derived_col(
        "the same over all transitions, 0 for those without a choice", null="not measured"
    )
    ratio_min: float | None = min_col("smallest ratio that is a number")
    ratio_max: float | None = max_col("largest ratio that is a number (may be +infinity)")
    clip_fraction: float | None = derived_col("fraction of the head's clipped transitions", null="not measured")
    grad_norm: float | None = last_col("L2 norm of the gradient of the head's own parameters", unit="1")
    gradient_state: str | None = last_col("the trainer's name for the state of that gradient: finite, none, ...")
    nan_found: bool | None = last_col("the head's log-probabilities or entropies held a NaN")
    inf_found: bool | None = last_col("the head's log-probabilities or entropies held an infinity")


@table("recurrent_state", "one kind of state of one recurrent layer, in one update", AcrossRanks.MERGED)
class RecurrentState(Row):
    layer: str | None = key_col("recurrent layer; prefixed with `rollout_` if measured during the rollout")
    kind: str | None = key_col("`h` or `c`; empty if both were measured together")
    n: int | None = count_col("elements")
    nan_count: int | None = count_col("elements that were NaN")
    inf_count: int | None = count_col("elements that were infinite")
    sum_sq: float | None = sum_col("sum of squares of the finite elements")
    rms: float | None = derived_col("root mean square over all elements", null="not measured")
    env_n: int | None = count_col("environments whose state has a finite element", since=2)
    env_rms_sum: float | None = sum_col("sum over those of the root mean square of the environment's state", since=2)
    env_rms_mean: float | None = derived_col("mean of each environment's root mean square", null="not measured")
    env_rms_max: float | None = max_col("largest root mean square of an environment's state")
    abs_max: float | None = max_col("largest absolute element")
    l2_norm: float | None = derived_col("L2 norm over all elements; grows with their number", null="not measured")
    nan_found: bool | None = last_col("the state held a NaN")
    inf_found: bool | None = last_col("the state held an infinity")


_NO_STEP = "no step was observed, or the weights exceed the size the recorder copies"


@table(
    "gradient_layers",
    "one parameter tensor's gradient at one step (at level `normal` the last)",
    AcrossRanks.REPLICAS,
)
class GradientLayer(Row):
    epoch: int | None = key_col("epoch of the step", unit="1", null=_NOT_REPORTED)
    minibatch: int | None = key_col("minibatch of the step, counted over the whole update", unit="1")
    layer: str | None = key_col("parameter name, as `named_parameters()` gives it")
    has_grad: bool | None = first_col("the parameter had a gradient; if false, the statistics are NULL", null="never")
    after_clipping: bool | None = first_col("read after clipping, which scales all gradients by one factor")
    n: int | None = count_col("elements")
    grad_nan: int | None = count_col("elements that were NaN", null="no gradient")
    grad_posinf: int | None = count_col("elements that were +infinity", null="no gradient")
    grad_neginf: int | None = count_col("elements that were -infinity", null="no gradient")
    grad_zero: int | None = count_col("elements that were exactly zero", null="no gradient")
    grad_sum: float | None = sum_col("sum of the finite elements", null="no gradient")
    grad_sum_sq: float | None = sum_col("sum of squares of the finite elements", null="no gradient")
    grad_min: float | None = min_col("smallest element that is a number", null="no gradient")
    grad_max: float | None = max_col("largest element that is a number", null="no gradient")
    grad_histogram: list[int] | None = column(
        "elements per bin of `histogram.gradient_edges()`, by |g|; NaN is in no bin",
        Reducer.SUM,
        unit="1",
        null="no gradient",
    )
    weight_sum_sq: float | None = sum_col("sum of squares of the finite weights")
    step_sum_sq: float | None = sum_col(
        "sum of squares of the weights' finite changes in the optimizer step", null=_NO_STEP, since=2
    )
    grad_norm: float | None = derived_col("L2 norm of the finite elements", null="no gradient")
    grad_mean: float | None = derived_col("mean of the finite elements", null="no gradient")
    grad_std: float | None = derived_col("population standard deviation of the finite elements", null="no gradient")
    weight_norm: float | None = derived_col("L2 norm of the finite weights")
    step_norm: float | None = derived_col(
        "L2 norm of the weights' finite changes in the optimizer step", null=_NO_STEP, since=2
    )


_NO_NETWORK = "not measured; the environment trains no network"


@table("episodes", "one finished episode, in the update whose rollout holds its last step")
class Episode(Row):
    env: int | None = key_col("environment", unit="1", null=_NOT_REPORTED)
    episode: int | None = key_col("episode of this attempt, counted in the order they finished", unit="1")
    step: int | None = last_col("environment steps taken by the trainer when it finished", unit="steps")
    episode_return: float | None = first_col("undiscounted sum of rewards", unit="1")
    episode_length: int | None = first_col("steps", unit="steps")
    outcome: str | None = first_col("how it ended, in the trainer's terms", since=2)
    final_accuracy: float | None = first_col("accuracy of the trained network", unit="%", null=_NO_NETWORK, since=2)
    stability_score: float | None = first_col(
        "the trainer's score of steady learning", unit="1", null=_NO_NETWORK, since=2
    )
    param_ratio: float | None = first_col("added / host parameters", unit="1", null=_NO_NETWORK, since=2)
    germinate_count: int | None = count_col("modules germinated", null=_NO_NETWORK, since=2)
    prune_count: int | None = count_col("modules pruned", null=_NO_NETWORK, since=2)
    fossilize_count: int | None = count_col("modules fossilised", null=_NO_NETWORK, since=2)
    num_fossilized: int | None = first_col("fossilised modules at its end", unit="1", null=_NO_NETWORK, since=2)
    num_contributing_fossilized: int | None = first_col("those that contribute", unit="1", null=_NO_NETWORK, since=2)
    reward_mode: str | None = first_col("the trainer's reward mode", since=2)


@table("alarms", "one firing of a rule during recording (of an imported run: one alarm its trainer raised)")
class Alarm(Row):
    rule: str | None = key_col("name of the rule")
    key: str | None = key_col("head, layer or slot the rule fired for; empty for a rule without a key")
    severity: str | None = first_col("info, warning or critical", null="never")
    value: float | None = first_col("value of the rule's signal", unit="1", null="the rule has no single value")
    threshold: float | None = first_col("threshold it was evaluated with", unit="1", null="the rule has no threshold")
    phase: str | None = first_col("phase of the training, as the rules divide it", null="the progress is unknown")
    progress: float | None = first_col("fraction of the training done", unit="1", null="the total length is unknown")
    rules_sha256: str | None = first_col("rules that raised it, kept in the run's `rules/`", null="other software did")
    detail: str | None = first_col("further information from the software that raised it", null="none")


@table("gaps", "one range of updates with rows that should have been recorded and were not")
class Gap(Row):
    table_name: str | None = key_col("table the rows belong to; `*` if an update's rows are missing in all tables")
    reason: str | None = key_col("why: `queue_full`, `write_failed`, `bad_call`, `reduce_failed`, ...")
    first_update: int | None = min_col("first update affected", null="never")
    last_update: int | None = max_col("last update affected", null="never")
    rows: int | None = count_col("rows dropped", null="unknown")
    detail: str | None = key_col("the error message", null="there was no error")
