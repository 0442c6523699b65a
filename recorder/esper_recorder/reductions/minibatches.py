"""Minibatches reduced to what the tables record of them: the joint ratio, and each action head's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from esper_recorder.reductions.loss_statistics import (
    head_quantities,
    head_terms,
    terms,
    transition_quantities,
)
from esper_recorder.reductions.ratio_histogram import EXEMPLARS, log_ratio_histogram, worst
from esper_recorder.reductions.statistics import Statistics, Valid, reduce_quantities

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

    clip: Tensor | None = None
    """float64 [3, minibatches], see `transition_quantities`."""
    value_clip_range: Tensor | None = None
    """float64 [minibatches]"""
    pessimistic_value_clip: bool = True
    normalize: Tensor | bool | None = None
    """See `terms`; if it differs between minibatches, bool [minibatches]."""


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
    every = None if valid is None else valid[:, None]
    advantage = None if t.advantage is None else t.advantage[:, None]
    clip = None if settings.clip is None else settings.clip[..., None]
    quantities = [
        transition_quantities(
            t,
            clip=settings.clip,
            value_clip_range=settings.value_clip_range,
            pessimistic_value_clip=settings.pessimistic_value_clip,
        )
    ]
    assert t.log_ratio is not None
    ratios = [_Ratios(JOINT, t.log_ratio[:, None], every, {name: x[:, None] for name, x in fields.items()})]
    for group in heads:
        assert every is not None
        head = head_terms(group.fields, valid=every, advantage=advantage)
        quantities.append(head_quantities(head, every=every, has_mask="mask" in group.fields, clip=clip))
        ratios.append(_Ratios(group.names, head.log_ratio, head.valid, group.fields))
    joint, *of_heads = reduce_quantities(*quantities)
    shared = {"advantage": t.advantage, "value": t.value, "value_target": t.target}
    return _summaries(
        ratios,
        [Statistics(joint.names, joint.values[:, None]), *of_heads],
        {name: x for name, x in shared.items() if x is not None},
        index,
        actions,
        per_minibatch,
    )


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
    chosen = by_index[torch.where(inside, index, 0)].to(torch.float64)
    return replace(ratio, actions=torch.where(inside[..., None], chosen, torch.nan))


@dataclass(frozen=True, slots=True)
class _Ratios:
    """Ratios with the same fields."""

    names: tuple[str, ...]
    log_ratio: Tensor | None
    """[minibatches, ratios, n], as are the others."""
    valid: Valid
    fields: Mapping[str, Tensor]


def _summaries(
    all_ratios: Sequence[_Ratios],
    statistics: Sequence[Statistics],
    shared: Mapping[str, Tensor],
    index: Tensor | None,
    actions: Tensor | None,
    per_minibatch: bool,
) -> tuple[RatioSummary, ...]:
    """Find the histograms and the worst transitions of all ratios together.

    Args:
        shared: fields [minibatches, n] that all ratios share.
    """
    measured = [(r, r.log_ratio) for r in all_ratios if r.log_ratio is not None]
    log_ratio = _joined([x for _, x in measured])
    minibatches, rows, n = log_ratio.shape
    masks = [r.valid.expand(x.shape) for r, x in measured if r.valid is not None]

    def by_scope(x: Tensor) -> Tensor:
        return x if per_minibatch else x.transpose(-3, -2).reshape(*x.shape[:-3], 1, rows, minibatches * n)

    x, counted = by_scope(log_ratio), by_scope(_joined(masks)) if masks else None
    histogram, nan = log_ratio_histogram(x, counted)
    places, severity = worst(x, counted, EXEMPLARS)
    if per_minibatch:
        position = torch.arange(minibatches, device=x.device)[:, None, None].expand_as(places)
        transitions = position * n + places
    else:
        position, transitions = torch.div(places, max(n, 1), rounding_mode="floor"), places
    whole = {"position": position} | ({} if index is None else {"index": index.reshape(-1)[transitions]})
    own = [name for name in ("old_log_prob", "new_log_prob") if any(name in r.fields for r, _ in measured)]
    fields = [log_ratio, *(_joined([r.fields.get(name, x) for r, x in measured]) for name in own)]
    fields += [field[:, None].expand(log_ratio.shape) for field in shared.values()]
    of_ratio = by_scope(torch.stack(fields)).gather(-1, places.expand(len(fields), *places.shape))
    names = (*whole, "severity", "log_ratio", *own, *shared)
    numbers = [x[None].to(torch.float64) for x in (*whole.values(), severity)]
    values = torch.cat([*numbers, of_ratio.to(torch.float64)]).movedim(0, -1)
    chosen = None if actions is None else actions.flatten(0, 1)[transitions]
    found, start = [], 0
    for ratios, of_ratios in zip(all_ratios, statistics, strict=True):
        if ratios.log_ratio is None:
            found.append(RatioSummary(ratios.names, of_ratios, None, None, None, None))
            continue
        at = slice(start, start := start + len(ratios.names))
        absent = [name for name in own if name not in ratios.fields]
        exemplars = values[:, at]
        if absent:
            exemplars = torch.stack([exemplars[..., i] for i, name in enumerate(names) if name not in absent], dim=-1)
        found.append(
            RatioSummary(
                ratios.names,
                of_ratios,
                histogram[:, at],
                nan[:, at],
                Statistics(tuple([name for name in names if name not in absent]), exemplars),
                None if chosen is None else chosen[:, at],
            )
        )
    return tuple(found)


def _joined(tensors: Sequence[Tensor]) -> Tensor:
    """Ratios [minibatches, ratios, n] side by side."""
    return tensors[0] if len(tensors) == 1 else torch.cat(list(tensors), dim=1)
