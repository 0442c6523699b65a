"""Minibatches reduced to what the tables record of them: the joint ratio, and each action head's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esper_recorder.reductions.loss_statistics import (
    head_statistics,
    head_terms,
    terms,
    transition_statistics,
)
from esper_recorder.reductions.ratio_histogram import EXEMPLARS, log_ratio_histogram, worst
from esper_recorder.reductions.statistics import Statistics, Valid

JOINT = ("",)
"""The names of the joint ratio; heads have others."""


@dataclass(frozen=True, slots=True)
class HeadFields:
    """Action heads with the same fields, those of `head_terms`: tensors [minibatches, heads, n] by name."""

    names: tuple[str, ...]
    fields: Mapping[str, Tensor]


@dataclass(frozen=True, slots=True)
class LossSettings:
    """The settings that losses were computed with, one number per minibatch; NaN if a minibatch has none."""

    clip_range: Tensor | None = None
    """float64 [minibatches]"""
    value_clip_range: Tensor | None = None
    pessimistic_value_clip: bool = True
    normalize: Tensor | None = None
    """bool [minibatches], see `terms`."""


@dataclass(frozen=True, slots=True)
class RatioSummary:
    """The statistics, histogram and worst transitions of some ratios: of the joint one, or of some heads.

    A scope is what has a histogram and worst transitions: each minibatch, or all of them together.
    """

    names: tuple[str, ...]
    """`JOINT`, or the heads."""
    statistics: Statistics
    """[minibatches, ratios, k]"""
    histogram: Tensor | None
    """int64 [scopes, ratios, bins]; None for heads without a ratio, like what follows."""
    histogram_nan: Tensor | None
    """int64 [scopes, ratios]"""
    exemplars: Statistics | None
    """[scopes, ratios, k, fields], worst first: `severity` as `worst` gives it, `position` (of the minibatch), and the
    transition's fields."""
    actions: Tensor | None
    """[scopes, ratios, k, size]"""

    def tensors(self) -> dict[str, Tensor]:
        """All its tensors by name."""
        tensors = {
            "statistics": self.statistics.values,
            "histogram": self.histogram,
            "histogram_nan": self.histogram_nan,
            "exemplars": None if self.exemplars is None else self.exemplars.values,
            "actions": self.actions,
        }
        return {name: tensor for name, tensor in tensors.items() if tensor is not None}

    def replaced(self, tensors: Mapping[str, Tensor]) -> RatioSummary:
        """The same with other tensors, named as `tensors` names them."""
        exemplars = None if self.exemplars is None else Statistics(self.exemplars.names, tensors["exemplars"])
        return RatioSummary(
            self.names,
            Statistics(self.statistics.names, tensors["statistics"]),
            tensors.get("histogram"),
            tensors.get("histogram_nan"),
            exemplars,
            tensors.get("actions"),
        )


def reduce_minibatches(
    fields: Mapping[str, Tensor],
    heads: Sequence[HeadFields],
    valid: Valid,
    settings: LossSettings,
    *,
    index: Tensor | None = None,
    actions: Tensor | None = None,
    per_minibatch: bool = False,
) -> tuple[RatioSummary, ...]:
    """Reduce minibatches of equal fields: the joint ratio first, then each group of heads.

    Args:
        fields: those of `terms`, tensors of shape [minibatches, n] by name.
        heads: groups of action heads.
        valid: bool [minibatches, n], False on padding; without heads it may be None, see `Valid`.
        settings: those of the losses.
        index: int64 [minibatches, n], position of each transition in the rollout.
        actions: [minibatches, n, size].
        per_minibatch: histograms and worst transitions of each minibatch, not of all together.
    """
    t = terms(fields, valid=valid, normalize=settings.normalize)
    statistics = transition_statistics(
        t,
        clip_range=settings.clip_range,
        value_clip_range=settings.value_clip_range,
        pessimistic_value_clip=settings.pessimistic_value_clip,
    )
    shared = {"index": index, "advantage": t.advantage, "value": t.value, "value_target": t.target}
    joint = Statistics(statistics.names, statistics.values[:, None])
    joint_fields = {name: x[:, None] for name, x in fields.items()}
    assert t.log_ratio is not None
    every = None if valid is None else valid[:, None]
    ratios = [_summary(JOINT, joint, t.log_ratio[:, None], every, joint_fields, shared, actions, per_minibatch)]
    clip = None if settings.clip_range is None else settings.clip_range[:, None]
    advantage = None if t.advantage is None else t.advantage[:, None]
    for group in heads:
        assert every is not None
        head = head_terms(group.fields, valid=every, advantage=advantage)
        statistics = head_statistics(head, every=every, has_mask="mask" in group.fields, clip_range=clip)
        ratios.append(
            _summary(group.names, statistics, head.log_ratio, head.valid, group.fields, shared, actions, per_minibatch)
        )
    return tuple(ratios)


def with_actions(ratio: RatioSummary, actions: Tensor, *, env_major: bool) -> RatioSummary:
    """Look the actions of the worst transitions up by index, on the device that holds both.

    An index outside the rollout has NaN for an action.

    Args:
        ratio: returned unchanged if it has actions already, or no index.
        actions: [steps, envs, size].
        env_major: how an index counts, env * steps + step; otherwise step * envs + env.
    """
    exemplars = ratio.exemplars
    if exemplars is None or ratio.actions is not None or "index" not in exemplars.names:
        return ratio
    if exemplars.values.device != actions.device:
        return ratio
    by_index = (actions.transpose(0, 1) if env_major else actions).flatten(0, 1)
    index = exemplars.values[..., exemplars.names.index("index")].to(torch.int64)
    inside = (index >= 0) & (index < by_index.shape[0])
    chosen = by_index[torch.where(inside, index, 0)].to(torch.float32)
    return replace(ratio, actions=torch.where(inside[..., None], chosen, torch.nan))


def _summary(
    names: tuple[str, ...],
    statistics: Statistics,
    log_ratio: Tensor | None,
    valid: Valid,
    fields: Mapping[str, Tensor],
    shared: Mapping[str, Tensor | None],
    actions: Tensor | None,
    per_minibatch: bool,
) -> RatioSummary:
    """Find the histograms and the worst transitions of log ratios [minibatches, ratios, n].

    Args:
        fields: those that each ratio has, [minibatches, ratios, n].
        shared: those that all ratios share, [minibatches, n].
    """
    if log_ratio is None:
        return RatioSummary(names, statistics, None, None, None, None)
    minibatches, ratios, n = log_ratio.shape

    def by_scope(x: Tensor) -> Tensor:
        return x if per_minibatch else x.transpose(0, 1).reshape(1, ratios, minibatches * n)

    x, counted = by_scope(log_ratio), None if valid is None else by_scope(valid)
    histogram, nan = log_ratio_histogram(x, counted)
    places, severity = worst(x, counted, EXEMPLARS)
    if per_minibatch:
        position = torch.arange(minibatches, device=x.device)[:, None, None].expand_as(places)
        transitions = position * n + places
    else:
        position = torch.div(places, max(n, 1), rounding_mode="floor")
        transitions = places
    columns = {"severity": severity, "position": position, "log_ratio": x.gather(-1, places)}
    for name, tensor in shared.items():
        if tensor is not None:
            columns[name] = tensor.reshape(-1)[transitions]
    for name in ("old_log_prob", "new_log_prob"):
        if name in fields:
            columns[name] = by_scope(fields[name]).gather(-1, places)
    exemplars = Statistics(tuple(columns), torch.stack([c.to(torch.float64) for c in columns.values()], dim=-1))
    chosen = None if actions is None else actions.flatten(0, 1)[transitions]
    return RatioSummary(names, statistics, histogram, nan, exemplars, chosen)
