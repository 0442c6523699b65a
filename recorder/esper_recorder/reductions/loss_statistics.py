"""Counts and sums over transitions: the policy side and the value side of the PPO loss.

Elementwise terms are computed in the precision of their inputs (float32 for half types) and in the order in which the
trainers compute them, so that a library's figures can be reproduced; sums are float64.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from esper_recorder.reductions.statistics import (
    FAR,
    Statistics,
    StatisticsBuilder,
    Valid,
    count,
    count_finite,
    count_nonfinite,
    count_valid,
    extremes,
    finite_sum,
    finite_sums,
    wide_enough,
    within,
)


@dataclass(frozen=True, slots=True)
class Terms:
    """The elementwise terms of a set of transitions, each of shape [..., n] or None if not given.

    Attributes:
        valid: False on padding, see `Valid`.
        log_ratio: new minus old log-probability, nats.
        advantage: as the loss used it.
        raw_advantage: before normalisation.
        entropy: nats. entropy_max: log of the number of valid actions, nats; zero without a choice.
        value, target: prediction and return. old_value: the prediction when the action was taken.
    """

    valid: Valid
    log_ratio: Tensor | None
    advantage: Tensor | None = None
    raw_advantage: Tensor | None = None
    entropy: Tensor | None = None
    entropy_max: Tensor | None = None
    value: Tensor | None = None
    target: Tensor | None = None
    old_value: Tensor | None = None


def terms(fields: Mapping[str, Tensor], *, valid: Valid, normalize: Tensor | None = None) -> Terms:
    """Compute the terms of a loss from the fields of a minibatch.

    Args:
        fields: tensors of shape [..., n] by name: `log_ratio`, or `new_log_prob` and `old_log_prob`; optionally
            `advantage`, `raw_advantage`, `entropy`, `entropy_max`, `value`, `value_target`, `old_value`.
        valid: bool [..., n], False on padding; or None, see `Valid`.
        normalize: bool [...], whether the loss normalises `raw_advantage` over the minibatch: subtract the mean, divide
            by the unbiased standard deviation + 1e-8 (Stable-Baselines3, CleanRL). The advantage is computed from it
            if `advantage` is not given; None if that is not known.
    """
    get = {name: wide_enough(x) for name, x in fields.items()}.get
    raw = get("raw_advantage")
    log_ratio = log_ratio_of(fields)
    if log_ratio is None:
        raise ValueError("a minibatch needs log_ratio, or new_log_probs and old_log_probs")
    advantage = get("advantage")
    if advantage is None and raw is not None and normalize is not None:
        advantage = torch.where(normalize[..., None], _normalized(raw, valid), raw)
    return Terms(
        valid=valid,
        log_ratio=log_ratio,
        advantage=advantage,
        raw_advantage=raw,
        entropy=get("entropy"),
        entropy_max=get("entropy_max"),
        value=get("value"),
        target=get("value_target"),
        old_value=get("old_value"),
    )


def head_terms(fields: Mapping[str, Tensor], *, valid: Tensor, advantage: Tensor | None) -> Terms:
    """The terms of action heads.

    Args:
        fields: tensors of shape [..., heads, n] by name: `log_ratio`, or `new_log_prob` and `old_log_prob`;
            `entropy`, `entropy_max`; `mask`, 0 or False if the head's choice did not matter.
        valid: bool [..., 1, n], False on padding.
        advantage: [..., 1, n], as the loss used it.
    """
    mask = fields.get("mask")
    first = next(iter(fields.values()))
    entropy, bound = fields.get("entropy"), fields.get("entropy_max")
    return Terms(
        valid=(valid if mask is None else valid & (mask != 0)).expand_as(first),
        log_ratio=log_ratio_of(fields),
        advantage=advantage,
        entropy=None if entropy is None else wide_enough(entropy),
        entropy_max=None if bound is None else wide_enough(bound),
    )


def log_ratio_of(fields: Mapping[str, Tensor]) -> Tensor | None:
    """New minus old log-probability, nats, at least float32; None if it cannot be computed."""
    if "log_ratio" in fields:
        return wide_enough(fields["log_ratio"])
    if "new_log_prob" in fields and "old_log_prob" in fields:
        return wide_enough(fields["new_log_prob"]) - wide_enough(fields["old_log_prob"])
    return None


def head_statistics(t: Terms, *, every: Tensor, has_mask: bool, clip_range: Tensor | None = None) -> Statistics:
    """Count and sum action heads over the last dimension, named as in the table `heads`.

    Args:
        t: `head_terms`, of shape [..., heads, n].
        every: bool [..., 1, n], False on padding: the transitions that the learnable ones are a fraction of.
        has_mask: a mask says when the head's choice mattered.
        clip_range: float64 [..., 1], see `transition_statistics`.
    """
    assert t.valid is not None
    out = StatisticsBuilder()
    out.add("n", count(t.valid))
    out.add("transition_n", count(every.expand_as(t.valid)))
    if has_mask or t.entropy_max is not None:
        out.add("learnable_count", count(t.valid if t.entropy_max is None else t.valid & (t.entropy_max > 0)))
    if t.log_ratio is not None:
        ratio = torch.exp(t.log_ratio)
        _ratio_statistics(out, t.log_ratio, ratio, t.valid)
        if clip_range is not None:
            _clip_counts(out, ratio, t.advantage, t.valid, clip_range[..., None])
    if t.entropy is not None:
        _entropy_statistics(out, t.entropy, t.entropy_max, t.valid)
    return out.build()


def transition_statistics(
    t: Terms,
    *,
    clip_range: Tensor | None = None,
    value_clip_range: Tensor | None = None,
    pessimistic_value_clip: bool = True,
) -> Statistics:
    """Count and sum over the last dimension, named as in the tables `minibatches` and `ppo_updates`.

    Args:
        t: the terms, of shape [..., n].
        clip_range: float64 [...], the clip range of the ratio; NaN if it was not given.
        value_clip_range: float64 [...], the clip range of the value; NaN if values are not clipped.
        pessimistic_value_clip: the clipped value loss is the larger of the clipped and the unclipped squared error
            (PPO2, CleanRL, rsl_rl); otherwise the error of the clipped prediction alone (Stable-Baselines3).
    """
    assert t.log_ratio is not None
    out = StatisticsBuilder()
    valid = t.valid
    ratio = torch.exp(t.log_ratio)
    out.add("n", count_valid(ratio, valid))
    _ratio_statistics(out, t.log_ratio, ratio, valid)
    if clip_range is not None:
        _clip_statistics(out, ratio, t.advantage, valid, clip_range[..., None])
    if t.entropy is not None:
        _entropy_statistics(out, t.entropy, t.entropy_max, valid)
    if t.advantage is not None:
        _moments(out, "advantage", t.advantage, valid)
        out.add("advantage_positive_count", count(t.advantage > 0, valid))
    if t.raw_advantage is not None:
        _add_sums(out, "raw_advantage", t.raw_advantage, valid)
    if t.value is not None:
        _moments(out, "value", t.value, valid)
    if t.target is not None:
        _moments(out, "return", t.target, valid)
    if t.value is not None and t.target is not None:
        _residual_statistics(out, t.value, t.target, valid)
        loss = _value_loss(t, value_clip_range, pessimistic=pessimistic_value_clip)
        out.add("value_loss_n", count_finite(loss, valid))
        out.add("value_loss_sum", finite_sum(loss, valid))
    return out.build()


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles of a rollout that are recorded, as columns `rollout_<what>_q05` and so on."""


def rollout_statistics(fields: Mapping[str, Tensor], mask: Tensor | None = None) -> Statistics:
    """Count, sum and find quantiles over a rollout, named `rollout_*` as in the table `ppo_updates`.

    Args:
        fields: 1-d tensors of one length: any of `value`, `return`, `advantage`, `reward`.
        mask: of that length, 0 or False on padding.
    """
    out = StatisticsBuilder()
    tensors = {name: wide_enough(x) for name, x in fields.items()}
    first = next(iter(tensors.values()))
    valid: Valid = None
    if mask is not None:
        valid = mask != 0
    elif not all(x.device.type == "cpu" and x.numel() and within(x, FAR) for x in tensors.values()):
        valid = torch.ones_like(first, dtype=torch.bool)
    n = count_valid(first, valid)
    out.add("rollout_n", n)
    out.add("rollout_nonfinite", torch.stack([n - count_finite(x, valid) for x in tensors.values()]).sum())
    for name, x in tensors.items():
        _add_sums(out, f"rollout_{name}", x, valid)
        if name in ("advantage", "reward"):
            _add_extremes(out, f"rollout_{name}", x, valid)
    of_quantiles = {name: x for name, x in tensors.items() if name != "reward"}
    if "value" in tensors and "return" in tensors:
        value, target = tensors["value"], tensors["return"]
        residual = of_quantiles["residual"] = target - value
        _add_sums(out, "rollout_residual", residual, valid)
        out.add("rollout_value_return_sum", finite_sum(value.to(torch.float64) * target.to(torch.float64), valid))
    if of_quantiles:
        quantiles = finite_quantiles(torch.stack([x.to(torch.float64) for x in of_quantiles.values()]), valid)
        for i, name in enumerate(of_quantiles):
            for j, q in enumerate(QUANTILES):
                out.add(f"rollout_{name}_q{round(100 * q):02d}", quantiles[i, j])
    return out.build()


def finite_quantiles(x: Tensor, valid: Valid) -> Tensor:
    """Find the `QUANTILES` of the finite valid elements of each row, linear between two of them; NaN without any.

    Args:
        x: float64 [rows, n].
        valid: bool [n], or None, see `Valid`.

    Returns:
        [rows, quantiles]
    """
    fractions = torch.stack([torch.full((), q, dtype=torch.float64, device=x.device) for q in QUANTILES])
    if x.shape[-1] == 0:
        return torch.full((x.shape[0], len(QUANTILES)), torch.nan, dtype=torch.float64, device=x.device)
    ordered = _ascending(x if valid is None else torch.where(valid & torch.isfinite(x), x, torch.inf))
    n = count_finite(x, valid)[..., None]
    place = fractions * (n - 1).clamp(min=0)
    low = place.floor()
    at = ordered.gather(-1, low.to(torch.int64))
    above = ordered.gather(-1, place.ceil().to(torch.int64))
    return torch.where(n > 0, torch.lerp(at, above, place - low), torch.nan)


def _ascending(x: Tensor) -> Tensor:
    """Sort along the last dimension. On the host NumPy, if torch was built with it, takes a tenth of torch's time."""
    if x.device.type == "cpu":
        try:
            values = x.numpy().copy()
        except RuntimeError:
            pass
        else:
            values.sort(axis=-1)
            return torch.from_numpy(values)
    return x.sort(dim=-1).values


def _normalized(raw: Tensor, valid: Valid) -> Tensor:
    n = count_valid(raw, valid)[..., None]
    wide = (raw if valid is None else torch.where(valid, raw, 0)).to(torch.float64)
    mean = wide.sum(dim=-1, keepdim=True) / n
    deviation = wide - mean if valid is None else torch.where(valid, raw.to(torch.float64) - mean, 0)
    std = torch.sqrt((deviation * deviation).sum(dim=-1, keepdim=True) / (n - 1))
    return ((raw - mean) / (std + 1e-8)).to(raw.dtype)


def _ratio_statistics(out: StatisticsBuilder, log_ratio: Tensor, ratio: Tensor, valid: Valid) -> None:
    _moments(out, "log_ratio", log_ratio, valid)
    out.add("ratio_nonfinite", count_valid(ratio, valid) - count_finite(ratio, valid))
    _add_sums(out, "ratio", ratio, valid, counted=False)
    _add_extremes(out, "ratio", ratio, valid)
    out.add("k1_sum", -finite_sum(log_ratio, valid))
    out.add("k3_sum", finite_sum((ratio - 1) - log_ratio, valid))


def _clip_statistics(
    out: StatisticsBuilder, ratio: Tensor, advantage: Tensor | None, valid: Valid, clip_range: Tensor
) -> None:
    _clip_counts(out, ratio, advantage, valid, clip_range)
    if advantage is None:
        return
    has_range = ~torch.isnan(clip_range)
    clipped = torch.clamp(ratio, (1 - clip_range).to(ratio.dtype), (1 + clip_range).to(ratio.dtype))
    loss = torch.where(has_range, -torch.minimum(advantage * ratio, advantage * clipped), torch.nan)
    out.add("policy_loss_n", count_finite(loss, valid))
    out.add("policy_loss_sum", finite_sum(loss, valid))


def _clip_counts(
    out: StatisticsBuilder, ratio: Tensor, advantage: Tensor | None, valid: Valid, clip_range: Tensor
) -> None:
    limit = clip_range.to(ratio.dtype)  # nothing is beyond NaN
    low, high = ratio - 1 < -limit, ratio - 1 > limit
    out.add("clip_low_count", count(low, valid))
    out.add("clip_high_count", count(high, valid))
    if advantage is None:
        return
    out.add("clip_low_active_count", count(low & (advantage < 0), valid))
    out.add("clip_high_active_count", count(high & (advantage > 0), valid))


def _entropy_statistics(out: StatisticsBuilder, entropy: Tensor, entropy_max: Tensor | None, valid: Valid) -> None:
    count_nonfinite(out, "entropy", entropy, valid)
    out.add("entropy_sum", finite_sum(entropy, valid))
    if entropy_max is None:
        return
    choice = entropy_max > 0
    if valid is not None:
        choice = valid & choice & torch.isfinite(entropy)
    out.add("entropy_normalized_n", count(choice))
    out.add("entropy_normalized_sum", finite_sum(entropy / torch.where(choice, entropy_max, 1), choice))


def _residual_statistics(out: StatisticsBuilder, value: Tensor, target: Tensor, valid: Valid) -> None:
    residual = target - value
    _add_sums(out, "residual", residual, valid)
    out.add("residual_abs_max", extremes(residual.abs(), valid)[1])
    out.add("value_return_sum", finite_sum(value.to(torch.float64) * target.to(torch.float64), valid))


def _value_loss(t: Terms, value_clip_range: Tensor | None, *, pessimistic: bool) -> Tensor:
    assert t.value is not None and t.target is not None
    unclipped = (t.target - t.value) ** 2
    if t.old_value is None or value_clip_range is None:
        return unclipped
    limit = value_clip_range[..., None]
    bound = torch.nan_to_num(limit, nan=0.0).to(t.value.dtype)
    clipped = (t.target - (t.old_value + torch.clamp(t.value - t.old_value, -bound, bound))) ** 2
    if pessimistic:
        clipped = torch.maximum(unclipped, clipped)
    return torch.where(torch.isnan(limit), unclipped, clipped)


def _moments(out: StatisticsBuilder, name: str, x: Tensor, valid: Valid) -> None:
    count_nonfinite(out, name, x, valid)
    _add_sums(out, name, x, valid, counted=False)
    _add_extremes(out, name, x, valid)


def _add_sums(out: StatisticsBuilder, name: str, x: Tensor, valid: Valid, *, counted: bool = True) -> None:
    if counted:
        out.add(f"{name}_n", count_finite(x, valid))
    for suffix, total in zip(("sum", "sum_sq"), finite_sums(x, valid), strict=True):
        out.add(f"{name}_{suffix}", total)


def _add_extremes(out: StatisticsBuilder, name: str, x: Tensor, valid: Valid) -> None:
    for suffix, extreme in zip(("min", "max"), extremes(x, valid), strict=True):
        out.add(f"{name}_{suffix}", extreme)
