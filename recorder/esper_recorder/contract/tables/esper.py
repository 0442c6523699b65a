"""The tables that only Esper's trainer and imported runs fill: slots, decisions, rewards, scalars, events."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import ClassVar

from esper_recorder.contract.tables.base import (
    Reducer,
    Row,
    column,
    count_col,
    key_col,
    last_col,
    max_col,
    min_col,
)

# --- what trainers of growing networks, and imported runs, tell beside their PPO updates ------------------------------
# An imported event belongs to the update its payload names; one that names none, to the update that was being
# collected when it was written.

_detail = functools.partial(column, reducer=Reducer.FIRST, null="not told", since=2)
_line_key = functools.partial(
    column,
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

    env: int | None = key_col("environment", unit="1", since=2)
    epoch: int | None = key_col("epoch of the episode", unit="1", since=2)
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

    env: int | None = key_col("environment", unit="1", since=2)
    epoch: int | None = key_col("epoch of the episode", unit="1", since=2)
    slot: str | None = key_col("slot of the network", since=2)
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

    env: int | None = key_col("environment", unit="1", since=2)
    slot: str | None = key_col("slot of the network", since=2)
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

    env: int | None = key_col("environment", unit="1", since=2)
    step: int | None = key_col("step of the episode, counted from 1", unit="1", since=2)
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

    env: int | None = key_col("environment", unit="1", since=2)
    step: int | None = key_col("step of the episode, counted from 1", unit="1", since=2)
    head: str | None = key_col("action head", since=2)
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

    env: int | None = key_col("environment", unit="1", since=2)
    step: int | None = key_col("step of the episode, counted from 1", unit="1", since=2)
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

    env: int | None = key_col("environment whose event told it", unit="1", since=2)
    step: int | None = key_col("step of the episode, counted from 1", unit="1", since=2)
    batch_size: int | None = _detail("observations looked at", unit="1")
    slot_features_mean: float | None = _detail("mean of the features of the slots", unit="1")
    slot_features_std: float | None = _detail("their standard deviation", unit="1")
    host_features_mean: float | None = _detail("mean of the features of the host", unit="1")
    host_features_std: float | None = _detail("their standard deviation", unit="1")
    context_features_mean: float | None = _detail("mean of the features of the context", unit="1")
    context_features_std: float | None = _detail("their standard deviation", unit="1")
    nan_count: int | None = count_col("features that were NaN", since=2)
    inf_count: int | None = count_col("features that were infinite", since=2)
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

    action: str | None = key_col("the action", since=2)
    n: int | None = count_col("times it was taken", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Batch(Row):
    table: ClassVar[str] = "batches"
    row: ClassVar[str] = "one batch: the episodes of all environments that an update learned from"

    episodes_completed: int | None = last_col("episodes completed so far", unit="1", since=2)
    total_episodes: int | None = last_col("episodes the training is to have", unit="1", since=2)
    requested_episodes: int | None = last_col("episodes asked for", unit="1", since=2)
    start_episode: int | None = last_col(
        "episode the training began with (0, or where it was resumed)", unit="1", since=2
    )
    envs: int | None = last_col("environments", unit="1", since=2)
    avg_accuracy: float | None = last_col("mean final accuracy of the environments", unit="%", since=2)
    rolling_accuracy: float | None = last_col("mean of it over the last batches", unit="%", since=2)
    env_accuracies: list[float] | None = column("final accuracy of each environment", Reducer.LAST, unit="%", since=2)
    avg_reward: float | None = last_col("mean return of the episodes", unit="1", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchStatistics(Row):
    table: ClassVar[str] = "batch_stats"
    row: ClassVar[str] = "one summary by the trainer itself, after a batch"

    episodes_completed: int | None = last_col("episodes completed so far", unit="1", since=2)
    epochs: int | None = last_col("epochs of each episode", unit="1", since=2)
    accuracy: float | None = last_col("mean final accuracy of the environments", unit="%", since=2)
    host_accuracy: float | None = last_col("mean final accuracy of the host networks", unit="%", since=2)
    entropy_weighted_sum: float | None = last_col("as in `ppo_updates`", unit="1", since=2)
    approx_kl: float | None = last_col("as in `ppo_updates`", unit="nats", since=2)
    explained_variance: float | None = last_col("as in `ppo_updates`", unit="1", since=2)
    value_variance: float | None = last_col(
        "what the trainer called the variance of the values (Esper, 2025-12: the explained variance)",
        unit="1",
        since=2,
    )
    seeds_created: int | None = last_col("modules germinated in the batch", unit="1", since=2)
    seeds_fossilized: int | None = last_col("modules fossilised in the batch", unit="1", since=2)
    skipped_update: bool | None = last_col("the update was skipped", since=2)
    rollback_attempt_count: int | None = count_col("rollbacks tried", since=2)
    rollback_unattributed_count: int | None = count_col("rollbacks no step could be blamed for", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trend(Row):
    table: ClassVar[str] = "trends"
    row: ClassVar[str] = "one trend of the accuracy that the trainer noticed after a batch"

    trend: str | None = key_col("`plateau`, `degradation`, `improvement` or `performance_degradation`", since=2)
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

    env: int | None = key_col("environment", unit="1", since=2)
    line: int | None = _line_key()
    configuration: int | None = key_col("configuration of the matrix, counted from 1", unit="1", since=2)
    slots: list[str] | None = _detail("the slots of the matrix")
    active: list[str] | None = _detail("those whose modules were on")
    accuracy: float | None = _detail("accuracy", unit="%")
    strategy: str | None = _detail("how the configurations were chosen")
    compute_ms: float | None = _detail("time the whole matrix took", unit="ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class ShapleyValue(Row):
    table: ClassVar[str] = "shapley_values"
    row: ClassVar[str] = "one module's contribution to an environment's accuracy, as a Shapley value"

    env: int | None = key_col("environment", unit="1", since=2)
    slot: str | None = key_col("slot of the network", since=2)
    line: int | None = _line_key()
    batch: int | None = _detail("batch the trainer told (Esper, 2025-12: always 0)", unit="1")
    mean: float | None = _detail("the value", unit="%")
    std: float | None = _detail("standard deviation over the samples", unit="%")
    samples: int | None = _detail("samples drawn", unit="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class Morphology(Row):
    table: ClassVar[str] = "morphology"
    row: ClassVar[str] = "one step of a change to a network: proposed, judged, dispatched, committed"

    action_id: str | None = key_col("the change", since=2)
    phase: str | None = key_col("`proposal`, `verdict`, `mutation`, `dispatch` or `commit`", since=2)
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

    epoch: int | None = key_col("epoch of the episode", unit="1", since=2)
    phase: str | None = key_col("phase of the loop: `train`, `val`, `rollout`, `action`, `ppo_update`, ...", since=2)
    line: int | None = _line_key()
    wall_ms: float | None = _detail("time on the wall clock", unit="ms")
    python_cpu_ms: float | None = _detail("processor time of the Python thread", unit="ms")
    python_cpu_ratio: float | None = _detail("python_cpu_ms / wall_ms", unit="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class HostStabilization(Row):
    table: ClassVar[str] = "host_stabilizations"
    row: ClassVar[str] = "one moment at which an environment's host network was stable, so that modules may germinate"

    env: int | None = key_col("environment", unit="1", since=2)
    epoch: int | None = key_col("epoch of the episode", unit="1", since=2)
    episode: int | None = _detail("episode of the run", unit="1")
    stable_epochs: int | None = _detail("stable epochs seen in a row", unit="1")
    stabilization_epochs: int | None = _detail("stable epochs asked for", unit="1")
    val_loss: float | None = _detail("validation loss", unit="1")


@dataclass(frozen=True, slots=True, kw_only=True)
class EsperUpdate(Row):
    table: ClassVar[str] = "esper_updates"
    row: ClassVar[str] = "one PPO update, as far as Esper's trainer alone measures it (the rest is in `ppo_updates`)"

    ppo_updates: int | None = last_col("passes over the rollout", unit="1", since=2)
    episode_epochs: int | None = last_col("epochs of each episode", unit="1", since=2)
    early_stop_epoch: int | None = last_col(
        "epoch at which the KL ended the update", unit="1", null="it did not; not told", since=2
    )
    update_skipped: bool | None = last_col("the update was skipped", since=2)
    entropy_loss: float | None = last_col("entropy term of the loss", unit="1", since=2)
    entropy_collapsed: bool | None = last_col("the trainer called the entropy collapsed", since=2)
    joint_ratio_max: float | None = max_col("largest ratio over all heads together", since=2)
    log_prob_min: float | None = min_col("smallest log-probability", unit="nats", since=2)
    log_prob_max: float | None = max_col("largest log-probability", unit="nats", since=2)
    clip_fraction_negative: float | None = last_col("share of transitions clipped below", unit="1", since=2)
    clip_fraction_positive: float | None = last_col("share of transitions clipped above", unit="1", since=2)
    advantage_skewness: float | None = last_col("skewness of the advantages", unit="1", since=2)
    advantage_kurtosis: float | None = last_col("excess kurtosis of the advantages", unit="1", since=2)
    advantage_positive_ratio: float | None = last_col("share of advantages above zero", unit="1", since=2)
    advantage_std_floored: bool | None = last_col("the advantages' deviation was raised to its floor", since=2)
    pre_norm_advantage_mean: float | None = last_col("mean advantage before normalisation", unit="1", since=2)
    pre_norm_advantage_std: float | None = last_col("its standard deviation", unit="1", since=2)
    d5_pre_norm_advantage_std: float | None = last_col(
        "the same, as a second place of the trainer tells it", unit="1", since=2
    )
    return_skewness: float | None = last_col("skewness of the returns", unit="1", since=2)
    return_p10: float | None = last_col("tenth percentile of the returns", unit="1", since=2)
    return_p50: float | None = last_col("median of the returns", unit="1", since=2)
    return_p90: float | None = last_col("ninetieth percentile of the returns", unit="1", since=2)
    ev_return_variance: float | None = last_col(
        "sample variance of the returns that explained variance is judged by", unit="1", since=2
    )
    ev_low_return_variance_count: int | None = count_col("times that variance was too low", since=2)
    value_std: float | None = last_col("standard deviation of the value predictions", unit="1", since=2)
    value_nrmse: float | None = last_col("root mean square residual / (return_std + 1)", unit="1", since=2)
    value_target_scale: float | None = last_col("scale the value targets are divided by", unit="1", since=2)
    v_return_correlation: float | None = last_col("correlation of values and returns", unit="1", since=2)
    td_error_mean: float | None = last_col("mean temporal-difference error", unit="1", since=2)
    td_error_std: float | None = last_col("its standard deviation", unit="1", since=2)
    q_aux_loss: float | None = last_col("loss of the auxiliary Q head", unit="1", since=2)
    q_spread: float | None = last_col("largest less smallest Q over the operations", unit="1", since=2)
    q_variance: float | None = last_col("variance of Q over the operations", unit="1", since=2)
    op_q_values: list[float] | None = column("Q of each operation", Reducer.LAST, unit="1", since=2)
    op_valid_mask: list[int] | None = column(
        "1 where that operation was valid, else 0", Reducer.LAST, unit="1", since=2
    )
    decision_density: float | None = last_col("share of the steps at which the policy had a choice", unit="1", since=2)
    forced_step_ratio: float | None = last_col("share of the steps at which it had none", unit="1", since=2)
    gradient_cv: float | None = last_col("coefficient of variation of the layers' gradient norms", unit="1", since=2)
    q_head_grad_norm: float | None = last_col("gradient norm of the Q head", unit="1", since=2)
    q_head_gradient_state: str | None = last_col("what the trainer called that gradient", since=2)
    value_head_grad_norm: float | None = last_col("gradient norm of the value head", unit="1", since=2)
    value_head_gradient_state: str | None = last_col("what the trainer called that gradient", since=2)
    nan_grad_count: int | None = count_col("gradients that were NaN", since=2)
    inf_grad_count: int | None = count_col("gradients that were infinite", since=2)
    dead_layers: int | None = last_col("layers whose gradients were dead", unit="1", since=2)
    exploding_layers: int | None = last_col("layers whose gradients exploded", unit="1", since=2)
    amp_overflow_detected: bool | None = last_col("mixed precision overflowed", since=2)
    loss_scale: float | None = last_col("loss scale of mixed precision", unit="1", null="not used; not told", since=2)
    rollback_count: int | None = count_col("rollbacks made", since=2)
    rollback_attempt_count: int | None = count_col("rollbacks tried", since=2)
    rollback_unattributed_count: int | None = count_col("rollbacks no step could be blamed for", since=2)
    rollback_steps_zeroed: int | None = last_col("steps zeroed by rollbacks", unit="1", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerHealth(Row):
    table: ClassVar[str] = "layer_health"
    row: ClassVar[str] = "one layer's gradient in one update, as the trainer scores it"

    layer: str | None = key_col("parameter name, as `named_parameters()` gives it", since=2)
    health: float | None = last_col("1 healthy, 0 dead or not finite", unit="1", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class System(Row):
    table: ClassVar[str] = "system"
    row: ClassVar[str] = "one update, seen from the machine: memory and waiting"

    gpu_memory_allocated_gb: float | None = max_col("memory held by tensors", unit="GB", since=2)
    gpu_memory_reserved_gb: float | None = max_col("memory held by the allocator", unit="GB", since=2)
    gpu_memory_peak_gb: float | None = max_col("largest memory held by tensors", unit="GB", since=2)
    gpu_memory_fragmentation: float | None = max_col("share of the reserved memory that is not in use", since=2)
    dataloader_wait_ratio: float | None = max_col("share of the time spent waiting for data", since=2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Scalar(Row):
    table: ClassVar[str] = "scalars"
    row: ClassVar[str] = "one scalar the trainer logged that no other table has a column for"

    name: str | None = key_col("the name the trainer logged it under", since=2)
    step: int | None = key_col("step it was logged at, as the trainer counts", unit="1", null="not told", since=2)
    line: int | None = key_col(
        "where it stood in the source: line of a text file, record of an event file, counted from 1",
        unit="1",
        null="not told",
        since=2,
    )
    value: float | None = last_col("the value", unit="1", since=2)


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
    key: str | None = key_col("where in the event the value stood (`data.name`); empty for the whole line", since=2)
    event_type: str | None = _detail("what kind of event", null="the line is no event")
    reason: str | None = _detail(
        "why: `no_table`, `no_column` (known, kept as it is), `unknown_event`, `unknown_key`, `wrong_type`, "
        "`differs` (from a value that it repeats), `repeated`, `not_json`, `torn`, `no_event`",
        null="never",
    )
    text: str | None = _detail("the line, or the value as JSON; bytes that are no UTF-8 are escaped", null="never")
