"""Trends: a value against the values before it, with one accumulator for both evaluators.

Covers:
* `Drift`: relative distance from an exponential moving average (EMA), accumulated by `Average`;
* `step`: difference to the previous value, accumulated by `Previous`;
* `Rolling`: movement of a rolling mean, or distance below it, accumulated by `RollingMean`.

Floating-point sums in another order differ in their last bits, enough to flip a comparison with a threshold. So the
watcher and the replay add the same terms in the same order: a replay of whole columns takes the same `next_sum`, and
adds the terms of a rolling mean oldest first.
"""

from __future__ import annotations

import math
from collections import deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Any


@dataclass(frozen=True, slots=True)
class Drift:
    """Relative distance of a value from the average of the values before it.

    drift = |x - average| / (|average| + epsilon), with the average before x enters. Then x enters:
    average = momentum * average + (1 - momentum) * x. A signed drift is (x - average) / (|average| + epsilon):
    negative if the value fell.

    Without bias correction the first value is the first average. With it the average starts at zero and is divided by
    1 - momentum^t after t values, so that the first value has no extra weight.

    A missing or non-finite value neither enters nor drifts. The first value has no drift; with `warmup` = w, neither
    have the next w values.
    """

    momentum: float = 0.99
    bias_correction: bool = False
    warmup: int = 0
    epsilon: float = 1e-8
    signed: bool = False


def next_sum(momentum: float, total: Any, term: Any) -> Any:
    """Return the EMA's next sum; `term` is (1 - momentum) * x. Numbers or arrays."""
    return momentum * total + term


class Average:
    """Accumulator of one `Drift`.

    Attributes:
        seen: how many values entered.
        total: the average; with bias correction, before it is divided by 1 - weight.
        weight: momentum^seen, the weight that the starting zero still has.
    """

    __slots__ = ("_form", "seen", "total", "weight")

    def __init__(self, form: Drift) -> None:
        self._form = form
        self.seen = 0
        self.total = 0.0
        self.weight = 1.0

    @property
    def value(self) -> float | None:
        """The average; None before the first value."""
        if not self.seen:
            return None
        return self.total / (1.0 - self.weight) if self._form.bias_correction else self.total

    def push(self, value: float | None) -> float | None:
        """Enter the next value and return its drift; None if it has none."""
        if value is None or not math.isfinite(value):
            return None
        form = self._form
        term = (1.0 - form.momentum) * value
        drift = None
        if self.seen:
            if self.seen > form.warmup:
                average = self.total / (1.0 - self.weight) if form.bias_correction else self.total
                change = value - average
                drift = (change if form.signed else abs(change)) / (abs(average) + form.epsilon)
            self.total = next_sum(form.momentum, self.total, term)
        else:
            self.total = term if form.bias_correction else value
        self.weight *= form.momentum
        self.seen += 1
        return drift


class Previous:
    """Accumulator of a step: the value minus the finite value before it.

    Attributes:
        last: the last finite value; None before the first.
    """

    __slots__ = ("last",)

    def __init__(self) -> None:
        self.last: float | None = None

    def push(self, value: float | None) -> float | None:
        """Enter the next value and return its step; None if it is the first, missing or not finite."""
        if value is None or not math.isfinite(value):
            return None
        last, self.last = self.last, value
        return None if last is None else value - last


class TrendOf(StrEnum):
    """What a rolling condition reads, from the value and the rolling mean that it has entered."""

    CHANGE = "change"  # the mean minus the mean before; none for the first value
    SIZE = "size"  # the absolute value of that change
    DROP = "drop"  # (mean - value) / mean; NaN if the mean is not positive


@dataclass(frozen=True, slots=True)
class Rolling:
    """Movement of the mean of the last `window` values, or distance of the value below it.

    The mean includes the current value, and is over fewer than `window` values at the start. A missing or non-finite
    value neither enters nor has a trend.
    """

    window: int = 10
    trend: TrendOf = TrendOf.CHANGE


class RollingMean:
    """Accumulator of one `Rolling`.

    Attributes:
        values: the last `window` values, oldest first.
        mean: their mean; None before the first.
    """

    __slots__ = ("_trend", "mean", "values")

    def __init__(self, form: Rolling) -> None:
        self._trend = form.trend
        self.values: deque[float] = deque(maxlen=form.window)
        self.mean: float | None = None

    def push(self, value: float | None) -> float | None:
        """Enter the next value and return its trend; None if it has none."""
        if value is None or not math.isfinite(value):
            return None
        self.values.append(value)
        total = 0.0
        for term in self.values:  # not sum(): it compensates rounding from Python 3.12 on, and replay does not
            total += term
        before, self.mean = self.mean, total / len(self.values)
        if self._trend is TrendOf.DROP:
            return (self.mean - value) / self.mean if self.mean > 0.0 else math.nan
        if before is None:
            return None
        change = self.mean - before
        return abs(change) if self._trend is TrendOf.SIZE else change
