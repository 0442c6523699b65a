"""Transitions as Python numbers, and the counts and sums the contract declares for them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Transition:
    log_ratio: float = 0.0
    advantage: float = 0.0
    value: float = 0.0
    return_: float = 0.0
    entropy: float = 0.0

    @property
    def ratio(self) -> float:
        try:
            return math.exp(self.log_ratio)
        except OverflowError:
            return math.inf


def sums(transitions: Sequence[Transition], clip_range: float = 0.2, **more: Any) -> dict[str, Any]:
    """Return the counts and sums of a row over these transitions, from which metrics are derived."""
    t = transitions
    ratios = [x.ratio for x in t]
    finite_ratios = _finite(ratios)
    log_ratios = [x.log_ratio for x in t]
    k3 = _finite([(x.ratio - 1.0) - x.log_ratio for x in t])
    residuals = _finite([x.return_ - x.value for x in t])
    losses = _finite([-_smaller(x.ratio * x.advantage, _clip(x.ratio, clip_range) * x.advantage) for x in t])
    value_losses = _finite([(x.return_ - x.value) ** 2 for x in t])
    beyond = [r for r in ratios if abs(r - 1.0) > clip_range]
    row: dict[str, Any] = {
        "n": len(t),
        "ratio_nonfinite": len(t) - len(finite_ratios),
        "ratio_sum": math.fsum(finite_ratios),
        "ratio_sum_sq": math.fsum(r * r for r in finite_ratios),
        "k1_sum": math.fsum(-v for v in _finite(log_ratios)),
        "k3_sum": math.fsum(k3),
        "clip_low_count": sum(1 for r in beyond if r < 1.0),
        "clip_high_count": sum(1 for r in beyond if r > 1.0),
        "policy_loss_n": len(losses),
        "policy_loss_sum": math.fsum(losses),
        "residual_n": len(residuals),
        "residual_sum": math.fsum(residuals),
        "residual_sum_sq": math.fsum(r * r for r in residuals),
        "value_loss_n": len(value_losses),
        "value_loss_sum": math.fsum(value_losses),
    }
    for name, values in (
        ("log_ratio", log_ratios),
        ("advantage", [x.advantage for x in t]),
        ("value", [x.value for x in t]),
        ("return", [x.return_ for x in t]),
        ("entropy", [x.entropy for x in t]),
    ):
        finite = _finite(values)
        row[f"{name}_nan"] = sum(1 for v in values if math.isnan(v))
        row[f"{name}_posinf"] = values.count(math.inf)
        row[f"{name}_neginf"] = values.count(-math.inf)
        row[f"{name}_sum"] = math.fsum(finite)
        row[f"{name}_sum_sq"] = math.fsum(v * v for v in finite)
    return row | more


def _finite(values: Sequence[float]) -> list[float]:
    return [v for v in values if math.isfinite(v)]


def _clip(ratio: float, clip_range: float) -> float:
    return ratio if math.isnan(ratio) else min(max(ratio, 1.0 - clip_range), 1.0 + clip_range)


def _smaller(a: float, b: float) -> float:
    """The smaller of two, NaN where either is, as torch.min gives it."""
    return math.nan if math.isnan(a) or math.isnan(b) else min(a, b)
