"""Counts and sums over transitions: the policy side and the value side of the PPO loss.

Elementwise terms are computed in the precision of their inputs (float32 for half types) and in the order in which the
trainers compute them, so that a library's figures can be reproduced; sums are float64.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from esper_recorder.reductions.statistics import (
    Quantities,
    Statistics,
    Valid,
    from_host,
    moments,
    reduce_quantities,
    sums,
    wide_enough,
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


def terms(fields: Mapping[str, Tensor], *, valid: Valid, normalize: Tensor | bool | None = None) -> Terms:
    """Compute the terms of a loss from the fields of a minibatch.

    Args:
        fields: tensors of shape [..., n] by name: `log_ratio`, or `new_log_prob` and `old_log_prob`; optionally
            `advantage`, `raw_advantage`, `entropy`, `entropy_max`, `value`, `value_target`, `old_value`.
        valid: bool [..., n], False on padding; or None, see `Valid`.
        normalize: whether the loss normalises `raw_advantage` over the minibatch: subtract the mean, divide by the
            unbiased standard deviation + 1e-8 (Stable-Baselines3, CleanRL); bool [...] if that differs. The advantage
            is computed from it if `advantage` is not given; None if that is not known.
    """
    get = {name: wide_enough(x) for name, x in fields.items()}.get
    raw = get("raw_advantage")
    log_ratio = log_ratio_of(fields)
    if log_ratio is None:
        raise ValueError("a minibatch needs log_ratio, or new_log_probs and old_log_probs")
    advantage = get("advantage")
    if advantage is None and raw is not None and normalize is not None:
        advantage = raw if normalize is False else _normalized(raw, valid)
        if isinstance(normalize, Tensor):
            advantage = torch.where(normalize[..., None], advantage, raw)
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


def head_quantities(t: Terms, *, every: Tensor, has_mask: bool, clip: Tensor | None = None) -> Quantities:
    """Collect the quantities of action heads, named as in the table `heads`.

    Args:
        t: `head_terms`, of shape [..., heads, n].
        every: bool [..., 1, n], False on padding: the transitions that the learnable ones are a fraction of.
        has_mask: a mask says when the head's choice mattered.
        clip: float64 [3, ..., 1], see `transition_quantities`.
    """
    assert t.valid is not None
    out = Quantities(t.valid)
    out.count_valid("n")
    out.add("transition_n", every.sum(dim=-1, dtype=torch.float64).expand(t.valid.shape[:-1]))
    if t.entropy_max is not None:
        out.count("learnable_count", t.entropy_max > 0)
    elif has_mask:
        out.count_valid("learnable_count")
    if t.log_ratio is not None:
        ratio, distance = _ratio_statistics(out, t.log_ratio)
        if clip is not None:
            limit, _, _ = clip[..., None].to(ratio.dtype)
            _clip_counts(out, distance, t.advantage, limit)
    if t.entropy is not None:
        _entropy_statistics(out, t.entropy, t.entropy_max)
    return out


def transition_quantities(
    t: Terms,
    *,
    clip: Tensor | None = None,
    value_clip_range: Tensor | None = None,
    pessimistic_value_clip: bool = True,
) -> Quantities:
    """Collect the quantities of transitions, named as in the tables `minibatches` and `ppo_updates`.

    Args:
        t: the terms, of shape [..., n].
        clip: float64 [3, ...], the clip range of the ratio, 1 - it and 1 + it; NaN if it was not given.
        value_clip_range: float64 [...], the clip range of the value; NaN if values are not clipped.
        pessimistic_value_clip: the clipped value loss is the larger of the clipped and the unclipped squared error
            (PPO2, CleanRL, rsl_rl); otherwise the error of the clipped prediction alone (Stable-Baselines3).
    """
    assert t.log_ratio is not None
    out = Quantities(t.valid)
    out.count_valid("n")
    ratio, distance = _ratio_statistics(out, t.log_ratio)
    if clip is not None:
        limit, low, high = clip[..., None].to(ratio.dtype)
        _clip_counts(out, distance, t.advantage, limit)
        if t.advantage is not None:
            clipped = torch.clamp(ratio, low, high)  # without a clip range NaN, and so is the loss
            objective = torch.minimum(t.advantage * ratio, t.advantage * clipped)
            out.measure(objective, {"policy_loss_n": "n", "policy_loss_sum": "negative_sum"})
    if t.entropy is not None:
        _entropy_statistics(out, t.entropy, t.entropy_max)
    if t.advantage is not None:
        out.measure(t.advantage, moments("advantage"))
        out.count("advantage_positive_count", t.advantage > 0)
    if t.raw_advantage is not None:
        out.measure(t.raw_advantage, sums("raw_advantage"))
    value = None if t.value is None else out.measure(t.value, moments("value"))
    target = None if t.target is None else out.measure(t.target, moments("return"))
    if value is not None and target is not None:
        assert t.value is not None and t.target is not None
        residual = t.target - t.value
        out.measure(residual, sums("residual"))
        out.measure(residual.abs(), {"residual_abs_max": "max"})
        out.product("value_return_sum", value, target)
        loss = _value_loss(t, residual, value_clip_range, pessimistic=pessimistic_value_clip)
        out.measure(loss, {"value_loss_n": "n", "value_loss_sum": "sum"})
    return out


QUANTILES = (0.05, 0.25, 0.5, 0.75, 0.95)
"""The quantiles of a rollout that are recorded, as columns `rollout_<what>_q05` and so on."""


def clip_bounds(clip_range: Tensor) -> Tensor:
    """Return a clip range as `transition_quantities` takes it."""
    return torch.stack([clip_range, 1 - clip_range, 1 + clip_range])


def rollout_statistics(fields: Mapping[str, Tensor], mask: Tensor | None = None) -> Statistics:
    """Count, sum and find quantiles over a rollout, named `rollout_*` as in the table `ppo_updates`.

    Args:
        fields: 1-d tensors of one length: any of `value`, `return`, `advantage`, `reward`.
        mask: of that length, 0 or False on padding.
    """
    tensors = {name: wide_enough(x) for name, x in fields.items()}
    out = Quantities(None if mask is None else mask != 0)
    out.count_valid("rollout_n")
    places = {}
    for name, x in tensors.items():
        columns = {"rollout_nonfinite": "nonfinite"} | sums(f"rollout_{name}")
        if name in ("advantage", "reward"):
            columns |= {f"rollout_{name}_{kind}": kind for kind in ("min", "max")}
        places[name] = out.measure(x, columns)
    of_quantiles = {name: x for name, x in tensors.items() if name != "reward"}
    if "value" in tensors and "return" in tensors:
        residual = of_quantiles["residual"] = tensors["return"] - tensors["value"]
        out.measure(residual, sums("rollout_residual"))
        out.product("rollout_value_return_sum", places["value"], places["return"])
    out.columns.sort(key=lambda column: column[1] != "nonfinite")  # first those that are added up
    (statistics,) = reduce_quantities(out)
    names = ["rollout_nonfinite", *statistics.names[len(tensors) :]]
    parts = [statistics.values[: len(tensors)].sum(dim=0, keepdim=True), statistics.values[len(tensors) :]]
    if of_quantiles:
        quantiles = finite_quantiles(torch.stack(list(of_quantiles.values())), out.valid)
        names += [f"rollout_{name}_q{round(100 * q):02d}" for name in of_quantiles for q in QUANTILES]
        parts.append(quantiles.flatten())
    return Statistics(tuple(names), torch.cat(parts))


def finite_quantiles(x: Tensor, valid: Valid) -> Tensor:
    """Find the `QUANTILES` of the finite valid elements of each row, linear between two of them; NaN without any.

    Args:
        x: [rows, n].
        valid: bool [n], or None, see `Valid`.

    Returns:
        float64 [rows, quantiles]
    """
    if x.shape[-1] == 0:
        return torch.full((x.shape[0], len(QUANTILES)), torch.nan, dtype=torch.float64, device=x.device)
    x = x if valid is None else torch.where(valid, x, torch.nan)
    ordered = _ascending(torch.nan_to_num(x, nan=torch.inf, posinf=torch.inf, neginf=torch.inf))
    n = (ordered < torch.inf).sum(dim=-1, keepdim=True)
    place = from_host(QUANTILES, torch.float64, x.device) * (n - 1).clamp(min=0)
    low = place.floor()
    at, above = ordered.gather(-1, torch.cat([low, place.ceil()], dim=-1).to(torch.int64)).double().chunk(2, dim=-1)
    return torch.lerp(at, above, place - low)  # without a finite one, from infinity to infinity: NaN


def _ascending(x: Tensor) -> Tensor:
    """Sort along the last dimension. On the host NumPy takes a tenth of torch's time."""
    if x.device.type == "cpu":
        return torch.from_numpy(np.sort(x.numpy(), axis=-1))
    return x.sort(dim=-1).values


def _normalized(raw: Tensor, valid: Valid) -> Tensor:
    wide = raw.to(torch.float64)
    if valid is None and raw.shape[-1] > 1:
        deviation = wide - wide.mean(dim=-1, keepdim=True)
        std: Tensor = torch.linalg.vector_norm(deviation, dim=-1, keepdim=True) / math.sqrt(raw.shape[-1] - 1)
        return (deviation / (std + 1e-8)).to(raw.dtype)
    valid = torch.ones_like(raw, dtype=torch.bool) if valid is None else valid
    n = valid.sum(dim=-1, keepdim=True)
    deviation = wide - torch.where(valid, wide, 0).sum(dim=-1, keepdim=True) / n
    inside = torch.where(valid, deviation, 0)
    std = torch.sqrt((inside * inside).sum(dim=-1, keepdim=True) / (n - 1))
    return (deviation / (std + 1e-8)).to(raw.dtype)


def _ratio_statistics(out: Quantities, log_ratio: Tensor) -> tuple[Tensor, Tensor]:
    """Collect what is recorded of a ratio; return it, and the ratio - 1."""
    ratio = torch.exp(log_ratio)
    distance = ratio - 1
    out.measure(log_ratio, moments("log_ratio") | {"k1_sum": "negative_sum"})
    columns = {f"ratio_{kind}": kind for kind in ("nonfinite", "sum", "sum_sq", "min", "max")}
    out.measure(ratio, columns)
    out.measure(distance - log_ratio, {"k3_sum": "sum"})
    return ratio, distance


def _clip_counts(out: Quantities, distance: Tensor, advantage: Tensor | None, limit: Tensor) -> None:
    low, high = distance < -limit, distance > limit  # nothing is beyond NaN
    out.count("clip_low_count", low)
    out.count("clip_high_count", high)
    if advantage is None:
        return
    out.count("clip_low_active_count", low & (advantage < 0))
    out.count("clip_high_active_count", high & (advantage > 0))


def _entropy_statistics(out: Quantities, entropy: Tensor, entropy_max: Tensor | None) -> None:
    out.measure(entropy, {f"entropy_{kind}": kind for kind in ("nan", "posinf", "neginf", "sum")})
    if entropy_max is not None:
        chosen = torch.where(entropy_max > 0, entropy, torch.nan)
        out.measure(chosen, {"entropy_normalized_n": "n"})
        out.measure(chosen / entropy_max, {"entropy_normalized_sum": "sum"})


def _value_loss(t: Terms, residual: Tensor, value_clip_range: Tensor | None, *, pessimistic: bool) -> Tensor:
    assert t.value is not None and t.target is not None
    unclipped = residual**2
    if t.old_value is None or value_clip_range is None:
        return unclipped
    limit = value_clip_range[..., None]
    bound = torch.nan_to_num(limit, nan=0.0).to(t.value.dtype)
    clipped = (t.target - (t.old_value + torch.clamp(t.value - t.old_value, -bound, bound))) ** 2
    if pessimistic:
        clipped = torch.maximum(unclipped, clipped)
    return torch.where(torch.isnan(limit), unclipped, clipped)
