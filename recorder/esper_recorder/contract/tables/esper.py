"""The tables that only Esper's trainer and imported runs fill: slots, decisions, rewards, scalars, events."""

from __future__ import annotations

import functools

from esper_recorder.contract.tables.base import (
    Reducer,
    Row,
    column,
    count_col,
    key_col,
    last_col,
    max_col,
    min_col,
    table,
)

# An imported event belongs to the update its payload names; without one, to the update whose rollout was being
# collected when the event was written.

_detail = functools.partial(column, reducer=Reducer.FIRST, null="not reported", since=2)
_count = functools.partial(count_col, since=2)
_last = functools.partial(last_col, since=2)
_key = functools.partial(key_col, since=2)
_line_key = functools.partial(
    _key, "line of the source that holds the event, or the event's number among those sent, from 1", unit="1"
)
_NO_ARGUMENT = "the operation has no such argument; not reported"
_OTHER_EVENT = "not an event of this kind"


@table("epochs", "one epoch of the network an environment trains (the policy acts once in each)")
class EpochRow(Row):
    env: int | None = _key("environment", unit="1")
    epoch: int | None = _key("epoch of the episode", unit="1")
    episode: int | None = _detail("episode of the run", unit="1")
    train_loss: float | None = _detail("training loss", unit="1")
    train_accuracy: float | None = _detail("training accuracy", unit="%")
    val_loss: float | None = _detail("validation loss", unit="1")
    val_accuracy: float | None = _detail("validation accuracy", unit="%")
    host_grad_norm: float | None = _detail("gradient norm of the host network", unit="1")


@table("slot_epochs", "one module (seed) in a slot of an environment's network, at the end of one epoch")
class SlotEpoch(Row):
    env: int | None = _key("environment", unit="1")
    epoch: int | None = _key("epoch of the episode", unit="1")
    slot: str | None = _key("slot of the network")
    blueprint: str | None = _detail("kind of module")
    stage: str | None = _detail("stage of its life")
    epochs_in_stage: int | None = _detail("epochs it has been in that stage", unit="1")
    alpha: float | None = _detail("weight its output is blended in with", unit="1")
    accuracy_delta: float | None = _detail("accuracy gained since it germinated", unit="%")
    grad_ratio: float | None = _detail("gradient norm of the module / of the host", unit="1")
    has_vanishing: bool | None = _detail("its gradients vanish")
    has_exploding: bool | None = _detail("its gradients explode")
    contribution_velocity: float | None = _detail("rate of change of its contribution", unit="1")
    interaction_sum: float | None = _detail("sum of its interactions with other modules", unit="1")
    boost_received: float | None = _detail("strongest boost from another module", unit="1")
    upstream_alpha_sum: float | None = _detail("sum of the alphas of the modules before it", unit="1")
    downstream_alpha_sum: float | None = _detail("sum of the alphas of the modules after it", unit="1")


@table("slots", "one event in the life of a module (seed) in a slot of an environment's network")
class SlotEvent(Row):
    env: int | None = _key("environment", unit="1")
    slot: str | None = _key("slot of the network")
    line: int | None = _line_key()
    event: str | None = _detail(
        "what happened: `germinated`, `stage_changed`, `gate_evaluated`, `pruned`, `fossilized`", null="never"
    )
    seed: str | None = _detail("name of the module")
    episode: int | None = _detail("episode of the run", unit="1")
    blueprint: str | None = _detail("kind of module")
    from_stage: str | None = _detail("stage it left", null=_OTHER_EVENT)
    to_stage: str | None = _detail("stage it entered (at a gate: would enter)", null=_OTHER_EVENT)
    epochs_in_stage: int | None = _detail("epochs it had been in its stage", unit="1")
    epochs_total: int | None = _detail("epochs it had lived", unit="1")
    alpha: float | None = _detail("weight its output is blended in with", unit="1")
    alpha_curve: str | None = _detail("curve by which alpha changes")
    blend_tempo_epochs: int | None = _detail("planned epochs of blending", unit="1")
    params: int | None = _detail("parameters of the module", unit="1")
    accuracy_delta: float | None = _detail("accuracy gained since it germinated", unit="%")
    grad_ratio: float | None = _detail("gradient norm of the module / of the host", unit="1")
    has_vanishing: bool | None = _detail("its gradients vanish")
    has_exploding: bool | None = _detail("its gradients explode")
    gate: str | None = _detail("gate that was evaluated", null=_OTHER_EVENT)
    passed: bool | None = _detail("it passed the gate", null=_OTHER_EVENT)
    checks_passed: list[str] | None = _detail("checks of the gate it passed", null=_OTHER_EVENT)
    checks_failed: list[str] | None = _detail("checks of the gate it failed", null=_OTHER_EVENT)
    message: str | None = _detail("message of the gate", null=_OTHER_EVENT)
    reason: str | None = _detail("why it was pruned; may be empty", null=_OTHER_EVENT)
    initiator: str | None = _detail("who requested the pruning")
    auto_pruned: bool | None = _detail("pruned without a request of the policy", null=_OTHER_EVENT)
    improvement: float | None = _detail("accuracy gained over its life", unit="%")
    blending_delta: float | None = _detail("accuracy gained while it was blended in", unit="%")
    counterfactual: float | None = _detail("accuracy with it minus accuracy without it", unit="%")
    proposal_id: str | None = _detail("`morphology.proposal_id` of the change")
    verdict_id: str | None = _detail("`morphology.verdict_id` of the change")
    mutation_id: str | None = _detail("`morphology.mutation_id` of the change")
    rng_stream: str | None = _detail("random stream of the change")
    rng_seed: str | None = _detail("its seed, an unsigned 64-bit number in decimal")


@table("decisions", "one decision of the policy: the action chosen in one environment at one step")
class Decision(Row):
    env: int | None = _key("environment", unit="1")
    step: int | None = _key("step of the episode, counted from 1", unit="1")
    episode: int | None = _detail("episode of the run", unit="1")
    action: str | None = _detail("operation chosen")
    success: bool | None = _detail("the action took effect")
    confidence: float | None = _detail("probability of the operation under the policy", unit="1")
    entropy: float | None = _detail("entropy over the operations", unit="nats")
    alternatives: list[str] | None = _detail("the most likely other operations")
    alternative_probabilities: list[float] | None = _detail("their probabilities, in the same order", unit="1")
    value: float | None = _detail("value prediction", unit="1")
    slot: str | None = _detail("slot chosen")
    blueprint: str | None = _detail("blueprint chosen", null=_NO_ARGUMENT)
    blend: str | None = _detail("blending chosen", null=_NO_ARGUMENT)
    style: str | None = _detail("style chosen", null=_NO_ARGUMENT)
    tempo: int | None = _detail("tempo chosen, as its index", unit="1", null=_NO_ARGUMENT)
    alpha_target: float | None = _detail("alpha to reach", unit="1", null=_NO_ARGUMENT)
    alpha_speed: str | None = _detail("speed of the change of alpha", null=_NO_ARGUMENT)
    alpha_curve: str | None = _detail("curve of the change of alpha", null=_NO_ARGUMENT)
    alpha_algorithm: str | None = _detail("algorithm by which alpha is applied")
    alpha_algorithm_selected: str | None = _detail("algorithm the policy selected")
    slots: list[str] | None = _detail("the slots of the network")
    slot_labels: list[str] | None = _detail("their contents in the same order, in the trainer's terms")
    device: str | None = _detail("device the environment runs on")


@table("decision_heads", "one action head of a policy with several, in one decision")
class DecisionHead(Row):
    env: int | None = _key("environment", unit="1")
    step: int | None = _key("step of the episode, counted from 1", unit="1")
    head: str | None = _key("action head")
    confidence: float | None = _detail("probability of the choice", unit="1")
    entropy_normalized: float | None = _detail("entropy / log(number of valid choices), 0 for one choice", unit="1")
    masked: bool | None = _detail("the head's choice was masked out")


@table("rewards", "one reward, of one step in one environment, broken down into its components")
class Reward(Row):
    # The components under the trainer's names and in its order; the policy received `total_reward`.

    env: int | None = _key("environment", unit="1")
    step: int | None = _key("step of the episode, counted from 1", unit="1")
    episode: int | None = _detail("episode of the run", unit="1")
    total_reward: float | None = _detail("the reward", unit="1")
    base_acc_delta: float | None = _detail("change of accuracy", unit="1")
    seed_contribution: float | None = _detail("accuracy the module contributes", unit="%")
    bounded_attribution: float | None = _detail("the rewarded part of it", unit="1")
    progress_since_germination: float | None = _detail("accuracy gained since the module germinated", unit="%")
    stable_val_acc: float | None = _detail("smoothed validation accuracy", unit="%")
    attribution_discount: float | None = _detail("factor on the attribution", unit="1")
    ratio_penalty: float | None = _detail("penalty on an implausible attribution", unit="1")
    escrow_credit_prev: float | None = _detail("credit in escrow before the step", unit="1")
    escrow_credit_target: float | None = _detail("credit that should be in escrow", unit="1")
    escrow_delta: float | None = _detail("change of the credit in escrow", unit="1")
    escrow_credit_next: float | None = _detail("credit in escrow after the step", unit="1")
    escrow_forfeit: float | None = _detail("credit forfeited", unit="1")
    compute_rent: float | None = _detail("cost of the parameters in use", unit="1")
    occupancy_rent: float | None = _detail("cost of occupied slots", unit="1")
    fossilized_rent: float | None = _detail("cost of fossilised modules", unit="1")
    alpha_shock: float | None = _detail("penalty on jumps of alpha", unit="1")
    blending_warning: float | None = _detail("penalty on harmful blending", unit="1")
    holding_warning: float | None = _detail("penalty on holding a module too long", unit="1")
    stage_bonus: float | None = _detail("bonus for the stage reached", unit="1")
    pbrs_bonus: float | None = _detail("potential-based shaping", unit="1")
    synergy_bonus: float | None = _detail("bonus for modules that help each other", unit="1")
    action_shaping: float | None = _detail("shaping by the action", unit="1")
    terminal_bonus: float | None = _detail("bonus at the end of the episode", unit="1")
    fossilize_terminal_bonus: float | None = _detail("bonus for fossilised modules at the end of the episode", unit="1")
    hindsight_credit: float | None = _detail("credit assigned in hindsight", unit="1")
    drip_this_epoch: float | None = _detail("deferred credit paid at this step", unit="1")
    drip_immediate_bonus: float | None = _detail("credit paid at once", unit="1")
    drip_deferred_total: float | None = _detail("credit deferred", unit="1")
    drip_sources: int | None = _detail("modules still paying deferred credit", unit="1")
    timing_discount: float | None = _detail("factor for the time of germination", unit="1")
    num_fossilized_seeds: int | None = _detail("fossilised modules", unit="1")
    num_contributing_fossilized: int | None = _detail("fossilised modules that contribute", unit="1")
    num_active_seeds: int | None = _detail("modules in the network", unit="1")
    seed_stage: int | None = _detail("stage of the module as a number", unit="1", null="no module; not reported")
    val_acc: float | None = _detail("validation accuracy", unit="%")
    acc_at_germination: float | None = _detail("accuracy when the module germinated", unit="%")
    host_baseline_acc: float | None = _detail("accuracy of the host alone", unit="%")
    growth_ratio: float | None = _detail("added / host parameters", unit="1")
    shaped_reward_ratio: float | None = _detail("|sum of the shaping components| / |total_reward|", unit="1")
    action: str | None = _detail("action this reward is for")
    action_success: bool | None = _detail("that action took effect")


@table("observation_stats", "one set of statistics of the policy's observations, at one step")
class ObservationStatistics(Row):
    env: int | None = _key("environment whose event reported it", unit="1")
    step: int | None = _key("step of the episode, counted from 1", unit="1")
    batch_size: int | None = _detail("observations in the batch", unit="1")
    slot_features_mean: float | None = _detail("mean of the features of the slots", unit="1")
    slot_features_std: float | None = _detail("their standard deviation", unit="1")
    host_features_mean: float | None = _detail("mean of the features of the host", unit="1")
    host_features_std: float | None = _detail("their standard deviation", unit="1")
    context_features_mean: float | None = _detail("mean of the features of the context", unit="1")
    context_features_std: float | None = _detail("their standard deviation", unit="1")
    nan_count: int | None = _count("features that were NaN")
    inf_count: int | None = _count("features that were infinite")
    nan_pct: float | None = _detail("fraction of features that were NaN", unit="1")
    inf_pct: float | None = _detail("fraction of features that were infinite", unit="1")
    outlier_pct: float | None = _detail("fraction of features far from their mean", unit="1")
    clip_pct: float | None = _detail("fraction of features clipped by the normalisation", unit="1")
    near_clip_pct: float | None = _detail("fraction of features close to being clipped", unit="1")
    normalization_drift: float | None = _detail("drift of the running normalisation", unit="1")


@table("action_counts", "one action, and how often it occurred in the rollout of an update")
class ActionCount(Row):
    action: str | None = _key("the action")
    n: int | None = _count("times it occurred")


@table("batches", "one batch: the episodes of all environments that an update learned from")
class Batch(Row):
    episodes_completed: int | None = _last("episodes completed so far", unit="1")
    total_episodes: int | None = _last("planned episodes of the training", unit="1")
    requested_episodes: int | None = _last("requested episodes", unit="1")
    start_episode: int | None = _last("first episode of the training (0, unless resumed)", unit="1")
    envs: int | None = _last("environments", unit="1")
    avg_accuracy: float | None = _last("mean final accuracy of the environments", unit="%")
    rolling_accuracy: float | None = _last("mean of it over the last batches", unit="%")
    env_accuracies: list[float] | None = column("final accuracy of each environment", Reducer.LAST, unit="%", since=2)
    avg_reward: float | None = _last("mean return of the episodes", unit="1")


@table("batch_stats", "one summary by the trainer after a batch")
class BatchStatistics(Row):
    episodes_completed: int | None = _last("episodes completed so far", unit="1")
    epochs: int | None = _last("epochs of each episode", unit="1")
    accuracy: float | None = _last("mean final accuracy of the environments", unit="%")
    host_accuracy: float | None = _last("mean final accuracy of the host networks", unit="%")
    entropy_weighted_sum: float | None = _last("as in `ppo_updates`", unit="1")
    approx_kl: float | None = _last("as in `ppo_updates`", unit="nats")
    explained_variance: float | None = _last("as in `ppo_updates`", unit="1")
    value_variance: float | None = _last(
        "the trainer's variance of the values (Esper, 2025-12: the explained variance)", unit="1"
    )
    seeds_created: int | None = _last("modules germinated in the batch", unit="1")
    seeds_fossilized: int | None = _last("modules fossilised in the batch", unit="1")
    skipped_update: bool | None = _last("the update was skipped")
    rollback_attempt_count: int | None = _count("attempted rollbacks")
    rollback_unattributed_count: int | None = _count("rollbacks that no step explains")


@table("trends", "one trend of the accuracy that the trainer detected after a batch")
class Trend(Row):
    trend: str | None = _key("`plateau`, `degradation`, `improvement` or `performance_degradation`")
    line: int | None = _line_key()
    severity: str | None = _detail("info, warning or critical")
    env: int | None = _detail("environment", unit="1", null="the trend covers all environments")
    episodes_completed: int | None = _detail("episodes completed so far", unit="1")
    rolling_accuracy: float | None = _detail("mean accuracy over the last batches", unit="%")
    previous_rolling_accuracy: float | None = _detail("the same a batch earlier", unit="%")
    rolling_delta: float | None = _detail("change between the two", unit="%")
    current_accuracy: float | None = _detail("accuracy of this batch", unit="%")
    drop_percent: float | None = _detail("drop below the rolling mean", unit="%")
    threshold_percent: float | None = _detail("smallest drop that is reported", unit="%")
    progress: float | None = _detail("fraction of the training done", unit="1")


@table("counterfactuals", "one accuracy of an environment's network with some of its modules disabled")
class Counterfactual(Row):
    env: int | None = _key("environment", unit="1")
    line: int | None = _line_key()
    configuration: int | None = _key("configuration of the matrix, counted from 1", unit="1")
    slots: list[str] | None = _detail("the slots of the matrix")
    active: list[str] | None = _detail("those with active modules")
    accuracy: float | None = _detail("accuracy", unit="%")
    strategy: str | None = _detail("how the configurations were chosen")
    compute_ms: float | None = _detail("time for the whole matrix", unit="ms")


@table("shapley_values", "one module's contribution to an environment's accuracy, as a Shapley value")
class ShapleyValue(Row):
    env: int | None = _key("environment", unit="1")
    slot: str | None = _key("slot of the network")
    line: int | None = _line_key()
    batch: int | None = _detail("batch reported by the trainer (Esper, 2025-12: always 0)", unit="1")
    mean: float | None = _detail("the value", unit="%")
    std: float | None = _detail("standard deviation over the samples", unit="%")
    samples: int | None = _detail("samples drawn", unit="1")


@table("morphology", "one step of a change to a network: proposal, verdict, mutation, dispatch or commit")
class Morphology(Row):
    action_id: str | None = _key("the change")
    phase: str | None = _key("`proposal`, `verdict`, `mutation`, `dispatch` or `commit`")
    line: int | None = _line_key()
    env: int | None = _detail("environment", unit="1")
    slot: str | None = _detail("slot of the network")
    operation: str | None = _detail("operation on the slot")
    blueprint: str | None = _detail("kind of module", null=_NO_ARGUMENT)
    topology: str | None = _detail("kind of network")
    proposal_id: str | None = _detail("the proposal")
    verdict_id: str | None = _detail("the verdict on it")
    mutation_id: str | None = _detail("the mutation it led to")
    linked_event_id: str | None = _detail("the mutation this step follows from")
    governor_approved: bool | None = _detail("approved by the governor", null="no verdict yet; not reported")
    governor_reason: str | None = _detail("why", null="no verdict yet; not reported")
    governor_blocked_factor: str | None = _detail("what the governor blocked it for", null="not blocked; not reported")
    observation_hash: str | None = _detail("hash of the observation the policy acted on")
    rng_stream: str | None = _detail("random stream of the change")
    rng_seed: str | None = _detail("its seed, an unsigned 64-bit number in decimal")


@table("phase_profiles", "one phase of the training loop, and its duration in one epoch of a batch")
class PhaseProfile(Row):
    epoch: int | None = _key("epoch of the episode", unit="1")
    phase: str | None = _key("phase of the loop: `train`, `val`, `rollout`, `action`, `ppo_update`, ...")
    line: int | None = _line_key()
    wall_ms: float | None = _detail("wall-clock time", unit="ms")
    python_cpu_ms: float | None = _detail("processor time of the Python thread", unit="ms")
    python_cpu_ratio: float | None = _detail("python_cpu_ms / wall_ms", unit="1")


@table("host_stabilizations", "one moment an environment's host network became stable, so that modules may germinate")
class HostStabilization(Row):
    env: int | None = _key("environment", unit="1")
    epoch: int | None = _key("epoch of the episode", unit="1")
    episode: int | None = _detail("episode of the run", unit="1")
    stable_epochs: int | None = _detail("consecutive stable epochs", unit="1")
    stabilization_epochs: int | None = _detail("required stable epochs", unit="1")
    val_loss: float | None = _detail("validation loss", unit="1")


@table("esper_updates", "one PPO update: what only Esper's trainer measures (the rest is in `ppo_updates`)")
class EsperUpdate(Row):
    ppo_updates: int | None = _last("passes over the rollout", unit="1")
    episode_epochs: int | None = _last("epochs of each episode", unit="1")
    early_stop_epoch: int | None = _last("epoch stopped by the KL", unit="1", null="no early stop; not reported")
    update_skipped: bool | None = _last("the update was skipped")
    entropy_loss: float | None = _last("entropy term of the loss", unit="1")
    entropy_collapsed: bool | None = _last("the trainer declared the entropy collapsed")
    joint_ratio_max: float | None = max_col("largest joint ratio of all heads", since=2)
    log_prob_min: float | None = min_col("smallest log-probability", unit="nats", since=2)
    log_prob_max: float | None = max_col("largest log-probability", unit="nats", since=2)
    clip_fraction_negative: float | None = _last("fraction of transitions clipped below", unit="1")
    clip_fraction_positive: float | None = _last("fraction of transitions clipped above", unit="1")
    advantage_skewness: float | None = _last("skewness of the advantages", unit="1")
    advantage_kurtosis: float | None = _last("excess kurtosis of the advantages", unit="1")
    advantage_positive_ratio: float | None = _last("fraction of advantages above zero", unit="1")
    advantage_std_floored: bool | None = _last("the standard deviation of the advantages was raised to its floor")
    pre_norm_advantage_mean: float | None = _last("mean advantage before normalisation", unit="1")
    pre_norm_advantage_std: float | None = _last("its standard deviation", unit="1")
    d5_pre_norm_advantage_std: float | None = _last("the same, measured in a second place of the trainer", unit="1")
    return_skewness: float | None = _last("skewness of the returns", unit="1")
    return_p10: float | None = _last("tenth percentile of the returns", unit="1")
    return_p50: float | None = _last("median of the returns", unit="1")
    return_p90: float | None = _last("ninetieth percentile of the returns", unit="1")
    ev_return_variance: float | None = _last("sample variance of the returns, which explained variance needs", unit="1")
    ev_low_return_variance_count: int | None = _count("times that variance was too low")
    value_std: float | None = _last("standard deviation of the value predictions", unit="1")
    value_nrmse: float | None = _last("root mean square residual / (return_std + 1)", unit="1")
    value_target_scale: float | None = _last("scale the value targets are divided by", unit="1")
    v_return_correlation: float | None = _last("correlation of values and returns", unit="1")
    td_error_mean: float | None = _last("mean temporal-difference error", unit="1")
    td_error_std: float | None = _last("its standard deviation", unit="1")
    q_aux_loss: float | None = _last("loss of the auxiliary Q head", unit="1")
    q_spread: float | None = _last("largest minus smallest Q over the operations", unit="1")
    q_variance: float | None = _last("variance of Q over the operations", unit="1")
    op_q_values: list[float] | None = column("Q of each operation", Reducer.LAST, unit="1", since=2)
    op_valid_mask: list[int] | None = column("1 if the operation was valid, else 0", Reducer.LAST, unit="1", since=2)
    decision_density: float | None = _last("fraction of the steps at which the policy had a choice", unit="1")
    forced_step_ratio: float | None = _last("fraction of the steps at which it had none", unit="1")
    gradient_cv: float | None = _last("coefficient of variation of the layers' gradient norms", unit="1")
    q_head_grad_norm: float | None = _last("gradient norm of the Q head", unit="1")
    q_head_gradient_state: str | None = _last("the trainer's name for the state of that gradient")
    value_head_grad_norm: float | None = _last("gradient norm of the value head", unit="1")
    value_head_gradient_state: str | None = _last("the trainer's name for the state of that gradient")
    nan_grad_count: int | None = _count("gradients that were NaN")
    inf_grad_count: int | None = _count("gradients that were infinite")
    dead_layers: int | None = _last("layers whose gradients were dead", unit="1")
    exploding_layers: int | None = _last("layers whose gradients exploded", unit="1")
    amp_overflow_detected: bool | None = _last("mixed precision overflowed")
    loss_scale: float | None = _last("loss scale of mixed precision", unit="1", null="not used; not reported")
    rollback_count: int | None = _count("completed rollbacks")
    rollback_attempt_count: int | None = _count("attempted rollbacks")
    rollback_unattributed_count: int | None = _count("rollbacks that no step explains")
    rollback_steps_zeroed: int | None = _last("steps zeroed by rollbacks", unit="1")


@table("layer_health", "one layer's gradient in one update, as the trainer scores it")
class LayerHealth(Row):
    layer: str | None = _key("parameter name, as `named_parameters()` gives it")
    health: float | None = _last("1 healthy, 0 dead or not finite", unit="1")


@table("system", "one update: the machine's memory and waiting time")
class System(Row):
    gpu_memory_allocated_gb: float | None = max_col("memory held by tensors", unit="GB", since=2)
    gpu_memory_reserved_gb: float | None = max_col("memory held by the allocator", unit="GB", since=2)
    gpu_memory_peak_gb: float | None = max_col("largest memory held by tensors", unit="GB", since=2)
    gpu_memory_fragmentation: float | None = max_col("fraction of the reserved memory not in use", since=2)
    dataloader_wait_ratio: float | None = max_col("fraction of the time spent waiting for data", since=2)


@table("scalars", "one scalar the trainer logged that no other table has a column for")
class Scalar(Row):
    name: str | None = _key("the trainer's name for it")
    step: int | None = _key("the trainer's step counter when it was logged", unit="1", null="not reported")
    line: int | None = _key("its line in a text file or record in an event file, from 1", unit="1", null="not reported")
    value: float | None = _last("the value", unit="1")


@table("events", "one event of Esper's trainer: its envelope; the payload is in the other tables")
class Event(Row):
    line: int | None = _line_key()
    event_type: str | None = _detail("kind of event, in the trainer's terms", null="never")
    kind: str | None = _detail("kind of snapshot", null="not a snapshot; not reported")
    event_id: str | None = _detail("the trainer's id of the event")
    severity: str | None = _detail("severity, as rated by the trainer")
    epoch: int | None = _detail("epoch in its envelope; what it counts depends on the kind of event", unit="1")
    message: str | None = _detail("its text; may be empty")


@table("raw_events", "one line of the source, or one value in it, without a column")
class RawEvent(Row):
    line: int | None = _line_key()
    key: str | None = _key("path of the value in the event (`data.name`); empty for the whole line")
    event_type: str | None = _detail("kind of event", null="the line is not an event")
    reason: str | None = _detail(
        "why: `no_table`, `no_column` (known, deliberately without a column), `unknown_event`, `unknown_key`, "
        "`wrong_type`, `differs` (from a value it repeats), `repeated`, `not_json`, `torn`, `no_event`",
        null="never",
    )
    text: str | None = _detail("the line, or the value as JSON; bytes that are not UTF-8 are escaped", null="never")
