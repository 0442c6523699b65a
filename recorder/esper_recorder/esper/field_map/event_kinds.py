"""Which value of which event of Esper's is which column: the mapping as data. Names are mapped by meaning.

Both generations of payloads (December 2025, June 2026) are here: a key that an event lacks is NULL. Episodes and the
profile's batches count from 0 in Esper and from 1 here. Milliseconds become seconds only in `ppo_updates.update_s`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from esper_recorder.esper.field_map.event_values import bits, digits, increment, number, seconds


@dataclass(frozen=True, slots=True)
class Conversion:
    """A column whose values are converted first. `convert` refuses a value by a ValueError and never gets None."""

    column: str
    convert: Callable[[Any], Any]


@dataclass(frozen=True, slots=True)
class Kind:
    """What becomes of one kind of event, or of one kind of mapping inside an event.

    Attributes:
        table: the table of its rows.
        columns: key -> column, or `Conversion`.
        envelope: key of the envelope -> column.
        constants: column -> its value in every row.
        repeats: key -> what else in the event or the run says the same (see `EventBatch.check_repeat`); a value that
            differs is kept in `raw_events`.
        without_column: keys that are understood and have no column: kept in `raw_events`.
        nested: keys whose values `nested_values.NESTED` turns into rows.
        nested_only: the event makes no row of the table itself; its columns are those of its nested rows.
        open_ended: the trainer may send more keys than were ever seen; those are kept as `no_column`.
    """

    table: str
    columns: Mapping[str, str | Conversion]
    envelope: Mapping[str, str] = field(default_factory=dict)
    constants: Mapping[str, Any] = field(default_factory=dict)
    repeats: Mapping[str, str] = field(default_factory=dict)
    without_column: frozenset[str] = frozenset()
    nested: frozenset[str] = frozenset()
    nested_only: bool = False
    open_ended: bool = False


def _same(*names: str) -> dict[str, str]:
    return {name: name for name in names}


EPISODE: Final = Conversion("episode", increment)
RNG_SEED: Final = Conversion("rng_seed", digits)
ENV: Final = {"env_id": "env"}
OF_UPDATE: Final = {"batch": "update", "batch_idx": "update"}

DEFINITION: Final = "esper"
"""The definition that the metrics of an update follow."""

PPO_UPDATE: Final = Kind(
    "ppo_updates",
    {
        **_same("policy_loss", "value_loss", "clip_fraction", "explained_variance", "entropy_coef", "bellman_error"),
        **_same("ratio_min", "ratio_max", "ratio_mean", "ratio_std", "return_mean", "return_std", "return_variance"),
        **_same("advantage_mean", "advantage_std", "value_mean", "value_min", "value_max"),
        "kl_divergence": "approx_kl",
        "lr": "learning_rate",
        "entropy": "entropy_weighted_sum",
        "pre_clip_grad_norm": "grad_norm",
        "grad_norm": "grad_norm_clipped",
        "ev_low_return_variance": "return_variance_low",
        "usable_actor_timesteps": "unforced_steps",
        "update_time_ms": Conversion("update_s", seconds),
    },
    constants={"definition": DEFINITION},
    repeats={**OF_UPDATE, "skipped": "false"},  # an update that was skipped: `nested_values.add_skipped_update`
    nested=frozenset({"layer_gradient_health"}),
)
"""`nested_values.map_update` adds the heads, the recurrent states and the two tables below."""

ESPER_UPDATE: Final = Kind(
    "esper_updates",
    {
        **_same("early_stop_epoch", "update_skipped", "entropy_loss", "entropy_collapsed", "joint_ratio_max"),
        **_same("log_prob_min", "log_prob_max", "clip_fraction_negative", "clip_fraction_positive"),
        **_same("advantage_skewness", "advantage_kurtosis", "advantage_positive_ratio", "advantage_std_floored"),
        **_same("pre_norm_advantage_mean", "pre_norm_advantage_std", "d5_pre_norm_advantage_std"),
        **_same("return_skewness", "return_p10", "return_p50", "return_p90"),
        **_same("ev_return_variance", "ev_low_return_variance_count", "value_std", "value_nrmse", "value_target_scale"),
        **_same("v_return_correlation", "td_error_mean", "td_error_std", "q_aux_loss", "q_spread", "q_variance"),
        **_same("op_q_values", "decision_density", "forced_step_ratio", "gradient_cv"),
        **_same("nan_grad_count", "inf_grad_count", "dead_layers", "exploding_layers"),
        **_same("amp_overflow_detected", "loss_scale", "rollback_count", "rollback_attempt_count"),
        **_same("rollback_unattributed_count", "rollback_steps_zeroed"),
        "op_valid_mask": Conversion("op_valid_mask", bits),
        "ppo_updates_count": "ppo_updates",
        "inner_epoch": "episode_epochs",
        "head_q_grad_norm": "q_head_grad_norm",
        "head_q_gradient_state": "q_head_gradient_state",
        "head_value_grad_norm": "value_head_grad_norm",
        "head_value_gradient_state": "value_head_gradient_state",
    },
)

SYSTEM: Final = Kind(
    "system",
    {
        "cuda_memory_allocated_gb": "gpu_memory_allocated_gb",
        "cuda_memory_reserved_gb": "gpu_memory_reserved_gb",
        "cuda_memory_peak_gb": "gpu_memory_peak_gb",
        "cuda_memory_fragmentation": "gpu_memory_fragmentation",
        "dataloader_wait_ratio": "dataloader_wait_ratio",
    },
)

HEAD_COLUMNS: Final = {
    "entropy": "entropy_normalized_all",
    "learnable_fraction": "learnable_fraction",
    "ratio_max": "ratio_max",
    "clip_fraction": "clip_fraction",
    "grad_norm": "grad_norm",
    "gradient_state": "gradient_state",
}
"""`head_<head>_<key>` -> column of `heads`."""
HEAD_FLAGS: Final = {"head_nan_detected": "nan_found", "head_inf_detected": "inf_found"}
STATE_COLUMNS: Final = {
    "rms": "rms",
    "env_rms_mean": "env_rms_mean",
    "env_rms_max": "env_rms_max",
    "max": "abs_max",
    "l2_total": "l2_norm",
}
"""`[rollout_]lstm_<h or c>_<key>` -> column of `recurrent_state`."""
STATE_FLAGS: Final = {"has_nan": "nan_found", "has_inf": "inf_found"}

REWARD_COLUMNS: Final[dict[str, str | Conversion]] = {
    **_same("total_reward", "base_acc_delta", "seed_contribution", "bounded_attribution", "progress_since_germination"),
    **_same("stable_val_acc", "attribution_discount", "ratio_penalty", "escrow_credit_prev", "escrow_credit_target"),
    **_same("escrow_delta", "escrow_credit_next", "escrow_forfeit", "compute_rent", "occupancy_rent"),
    **_same("fossilized_rent", "alpha_shock", "blending_warning", "holding_warning", "stage_bonus", "pbrs_bonus"),
    **_same("synergy_bonus", "action_shaping", "terminal_bonus", "fossilize_terminal_bonus", "hindsight_credit"),
    **_same("drip_this_epoch", "drip_immediate_bonus", "drip_deferred_total", "timing_discount"),
    **_same("num_fossilized_seeds", "num_contributing_fossilized", "seed_stage", "val_acc", "acc_at_germination"),
    **_same("host_baseline_acc", "growth_ratio", "shaped_reward_ratio", "action_success"),
    "probation_warning": "holding_warning",
    "num_drip_sources": "drip_sources",
    "n_active_seeds": "num_active_seeds",
    "action_name": "action",
}
REWARD: Final = Kind("rewards", REWARD_COLUMNS, repeats={"epoch": "envelope.epoch"})
TOP_LEVEL_REWARDS: Final = (
    *("total_reward", "base_acc_delta", "bounded_attribution", "compute_rent", "stage_bonus", "ratio_penalty"),
    *("alpha_shock", "hindsight_credit"),
)
"""Terms of the reward that a decision has beside the breakdown, or (2025-12) instead of one."""

MASKS: Final = {
    f"{head}_masked": head
    for head in ("op", "slot", "blueprint", "style", "tempo", "alpha_target", "alpha_speed", "alpha_curve")
}
HEAD_NAMES: Final = {"curve": "alpha_curve"}
"""A head's name in a decision -> its name everywhere else."""

DECISION: Final = Kind(
    "decisions",
    {
        **ENV,
        **_same("alpha_target", "alpha_speed", "alpha_curve", "alpha_algorithm", "alpha_algorithm_selected", "style"),
        **_same("device"),
        "episode_idx": EPISODE,
        "action_name": "action",
        "action_success": "success",
        "action_confidence": "confidence",
        "decision_entropy": Conversion("entropy", number),
        "value_estimate": "value",
        "slot_id": "slot",
        "blueprint_id": "blueprint",
        "blend_id": "blend",
        "tempo_idx": "tempo",
    },
    envelope={"epoch": "step"},
    repeats={"inner_epoch": "envelope.epoch"},
    nested=frozenset({"observation_stats"}),
)
"""`nested_values.map_decision` adds heads, rewards, slots and alternatives."""

OBSERVATIONS: Final = Kind(
    "observation_stats",
    _same(
        *("batch_size", "slot_features_mean", "slot_features_std", "host_features_mean", "host_features_std"),
        *("context_features_mean", "context_features_std", "nan_count", "inf_count", "nan_pct", "inf_pct"),
        *("outlier_pct", "clip_pct", "near_clip_pct", "normalization_drift"),
    ),
)

EPOCH: Final = Kind(
    "epochs",
    {
        **ENV,
        **_same("train_loss", "train_accuracy", "val_loss", "val_accuracy", "host_grad_norm"),
        "episode_idx": EPISODE,
        "inner_epoch": "epoch",
    },
    nested=frozenset({"seeds", "observation_stats"}),
)
SLOT_EPOCH: Final = Kind(
    "slot_epochs",
    {
        **_same("stage", "epochs_in_stage", "alpha", "accuracy_delta", "grad_ratio", "has_vanishing", "has_exploding"),
        **_same("contribution_velocity", "interaction_sum", "boost_received", "upstream_alpha_sum"),
        **_same("downstream_alpha_sum"),
        "blueprint_id": "blueprint",
    },
)

_CHANGE: Final[dict[str, str | Conversion]] = {
    **ENV,
    **_same("rng_stream"),
    "slot_id": "slot",
    "episode_idx": EPISODE,
    "morphology_proposal_id": "proposal_id",
    "morphology_verdict_id": "verdict_id",
    "morphology_mutation_id": "mutation_id",
    "rng_seed": RNG_SEED,
}
_STATE: Final = _same(
    "alpha", "alpha_curve", "grad_ratio", "has_vanishing", "has_exploding", "epochs_in_stage", "accuracy_delta"
)


def _slot_event(event: str, columns: Mapping[str, str | Conversion], *, open_ended: bool = False) -> Kind:
    return Kind(
        "slots",
        {**_CHANGE, **columns},
        envelope={"seed_id": "seed"},
        constants={"event": event},
        repeats={"envelope.slot_id": "slot_id"},
        open_ended=open_ended,
    )


_ENDED: Final[dict[str, str | Conversion]] = {
    **_same("improvement", "epochs_total", "blending_delta", "counterfactual"),
    "blueprint_id": "blueprint",
}
_PRUNED: Final = {**_ENDED, **_same("reason", "auto_pruned", "initiator")}


def _trend(trend: str) -> Kind:
    return Kind(
        "trends",
        {
            **ENV,
            **_same("episodes_completed", "rolling_delta", "drop_percent", "threshold_percent"),
            "rolling_avg_accuracy": "rolling_accuracy",
            "prev_rolling_avg_accuracy": "previous_rolling_accuracy",
            "rolling_avg_acc": "rolling_accuracy",
            "current_acc": "current_accuracy",
            "training_progress": "progress",
        },
        envelope={"severity": "severity"},
        constants={"trend": trend},
        repeats=OF_UPDATE,
    )


ALARM: Final = Kind(
    "alarms",
    {"detail": "detail"},
    envelope={"severity": "severity"},
    repeats={
        "batch": "update",
        "episode": "envelope.epoch",
        "inner_epoch": "config.max_epochs",
        "total_episodes": "config.n_episodes",
    },
    without_column=frozenset({"gradient_stats", "stability", "ratio_diagnostic"}),
)
"""An event whose data has an `anomaly_type`, from which `nested_values.map_alarm` makes rule and key."""
KEYED_ALARMS: Final = ("entropy_collapse", "entropy_nan_inf")
"""Rules whose alarm for one head is called `<rule>_<head>`."""

PROFILE_PHASE: Final = Kind("phase_profiles", _same("wall_ms", "python_cpu_ms", "python_cpu_ratio"))
SHAPLEY: Final = Kind("shapley_values", {**_same("mean", "std"), "n_samples": "samples"})
CONFIGURATION: Final = Kind("counterfactuals", _same("accuracy"))

KINDS: Final[dict[str, Kind]] = {
    # The data of TRAINING_STARTED is the run's configuration, in `run.json`.
    "PPO_UPDATE_COMPLETED": PPO_UPDATE,
    "EPOCH_COMPLETED": EPOCH,
    "ANALYTICS_SNAPSHOT/last_action": DECISION,
    "ANALYTICS_SNAPSHOT/batch_stats": Kind(
        "batch_stats",
        {
            **_same("episodes_completed", "accuracy", "host_accuracy", "explained_variance", "value_variance"),
            **_same("seeds_created", "seeds_fossilized", "skipped_update"),
            **_same("rollback_attempt_count", "rollback_unattributed_count"),
            "inner_epoch": "epochs",
            "entropy": "entropy_weighted_sum",
            "kl_divergence": "approx_kl",
        },
        repeats=OF_UPDATE,
    ),
    "ANALYTICS_SNAPSHOT/action_distribution": Kind(
        "action_counts", {}, nested=frozenset({"action_counts"}), nested_only=True
    ),
    "ANALYTICS_SNAPSHOT/shapley_computed": Kind(
        "shapley_values",
        {**ENV, "batch": "batch"},
        repeats={"num_slots": "size.shapley_values"},
        nested=frozenset({"shapley_values"}),
        nested_only=True,
    ),
    "BATCH_EPOCH_COMPLETED": Kind(
        "batches",
        {
            **_same("episodes_completed", "total_episodes", "requested_episodes", "start_episode", "avg_accuracy"),
            **_same("rolling_accuracy", "env_accuracies", "avg_reward"),
            "n_envs": "envs",
        },
        repeats=OF_UPDATE,
    ),
    "EPISODE_OUTCOME": Kind(
        "episodes",
        {
            **ENV,
            **_same("episode_length", "final_accuracy", "stability_score", "param_ratio", "germinate_count"),
            **_same("prune_count", "fossilize_count", "num_fossilized", "num_contributing_fossilized", "reward_mode"),
            "episode_idx": EPISODE,
            "episode_reward": "episode_return",
            "outcome_type": "outcome",
        },
    ),
    "SEED_GERMINATED": _slot_event(
        "germinated", {**_STATE, **_same("params", "blend_tempo_epochs"), "blueprint_id": "blueprint"}
    ),
    "SEED_STAGE_CHANGED": _slot_event("stage_changed", {**_STATE, **_same("from_stage", "to_stage")}),
    "SEED_GATE_EVALUATED": _slot_event(
        "gate_evaluated",
        {**_same("gate", "passed", "checks_passed", "checks_failed", "message"), "target_stage": "to_stage"},
    ),
    "SEED_PRUNED": _slot_event("pruned", _PRUNED),
    "SEED_CULLED": _slot_event("pruned", _PRUNED, open_ended=True),
    "SEED_FOSSILIZED": _slot_event(
        "fossilized", {**_ENDED, "alpha": "alpha", "params_added": "params"}, open_ended=True
    ),
    "TAMIYO_INITIATED": Kind(
        "host_stabilizations",
        {
            **ENV,
            **_same("epoch", "stabilization_epochs", "val_loss"),
            "stable_count": "stable_epochs",
            "episode_idx": EPISODE,
        },
    ),
    "COUNTERFACTUAL_MATRIX_COMPUTED": Kind(
        "counterfactuals",
        {**ENV, **_same("strategy"), "slot_ids": "slots", "compute_time_ms": "compute_ms"},
        nested=frozenset({"configs"}),
        nested_only=True,
    ),
    "MORPHOLOGY_CAUSAL_LOG": Kind(
        "morphology",
        {
            **ENV,
            **_same("action_id", "phase", "operation", "topology", "proposal_id", "verdict_id", "mutation_id"),
            **_same("linked_event_id", "governor_approved", "governor_reason", "governor_blocked_factor"),
            **_same("observation_hash", "rng_stream"),
            "slot_id": "slot",
            "blueprint_id": "blueprint",
            "rng_seed": RNG_SEED,
        },
        without_column=frozenset({"watch_window_evidence"}),
    ),
    "PHASE_PROFILE_COMPLETED": Kind(
        "phase_profiles", {"epoch": "epoch"}, repeats=OF_UPDATE, nested=frozenset({"phases"}), nested_only=True
    ),
    "PLATEAU_DETECTED": _trend("plateau"),
    "DEGRADATION_DETECTED": _trend("degradation"),
    "IMPROVEMENT_DETECTED": _trend("improvement"),
    "PERFORMANCE_DEGRADATION": _trend("performance_degradation"),
}

WITHOUT_TABLE: Final = frozenset(
    {
        *("BATCH_COMPLETED", "CHECKPOINT_LOADED", "CHECKPOINT_SAVED", "COUNTERFACTUAL_COMPUTED", "EPISODE_COMPLETED"),
        *("GOVERNOR_PANIC", "GOVERNOR_ROLLBACK", "GOVERNOR_SNAPSHOT", "ISOLATION_VIOLATION", "MEMORY_WARNING"),
        *("REWARD_COMPUTED", "REWARD_HACKING_SUSPECTED", "TRAINING_COMPLETED", "ANALYTICS_SNAPSHOT"),
        *("GRADIENT_ANOMALY", "GRADIENT_PATHOLOGY_DETECTED", "NUMERICAL_INSTABILITY_DETECTED"),
        *("RATIO_COLLAPSE_DETECTED", "RATIO_EXPLOSION_DETECTED", "VALUE_COLLAPSE_DETECTED"),
    }
)
"""Known kinds of event without a table (alarms only if they name no anomaly): kept in `raw_events`."""
