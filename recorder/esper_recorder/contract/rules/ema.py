"""The exponential moving average that drift is taken against, one accumulator for both evaluators.

Floating-point sums in another order differ in their last bits, enough to flip a comparison with a threshold. So the
watcher in the trainer and the replay take the very same `step`s, in the same order.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Drift:
    """How far a value lies from the average of the values before it, relative to that average.

    drift = |x - average| / (|average| + epsilon), where the average does not hold x yet. Then x enters:
    average = momentum * average + (1 - momentum) * x. A signed drift is (x - average) / (|average| + epsilon): negative
    where the value has fallen.

    Plain form: the first value is the first average. With bias correction the average starts at zero and is divided
    by 1 - momentum^t, t values in, so that the first value weighs no more than it should.

    A value that is missing or not finite neither enters nor drifts. The first value has nothing before it and no
    drift; with `warmup` = w, neither do the w values after it.
    """

    momentum: float = 0.99
    bias_correction: bool = False
    warmup: int = 0
    epsilon: float = 1e-8
    signed: bool = False


def step(momentum: float, total: Any, share: Any) -> Any:
    """The next sum, from the last one and (1 - momentum) * x of the value that enters; numbers or arrays of them."""
    return momentum * total + share


class Average:
    """The running state of one `Drift`.

    Attributes:
        seen: how many values entered.
        total: the average; with bias correction, before it is divided by 1 - weight.
        weight: momentum^seen, the weight that the starting zero still has.
    """

    __slots__ = ("_drift", "seen", "total", "weight")

    def __init__(self, drift: Drift) -> None:
        self._drift = drift
        self.seen = 0
        self.total = 0.0
        self.weight = 1.0

    def push(self, value: float | None) -> float | None:
        """Take in the next value and return its drift; None where it has none."""
        return self.push_all((value,))[0]

    def push_all(self, values: Iterable[float | None]) -> list[float | None]:
        """Take in values in their order and return the drift of each."""
        form = self._drift
        momentum, epsilon, corrected, first_told = form.momentum, form.epsilon, form.bias_correction, form.warmup + 1
        rest, signed = 1.0 - momentum, form.signed
        seen, total, weight = self.seen, self.total, self.weight
        finite = math.isfinite
        drifts: list[float | None] = []
        append = drifts.append
        for value in values:
            if value is None or not finite(value):
                append(None)
                continue
            if seen == 0:
                append(None)
                total = rest * value if corrected else value
            else:
                if seen < first_told:
                    append(None)
                else:
                    average = total / (1.0 - weight) if corrected else total
                    change = value - average
                    append((change if signed else abs(change)) / (abs(average) + epsilon))
                total = step(momentum, total, rest * value)
            weight *= momentum
            seen += 1
        self.seen, self.total, self.weight = seen, total, weight
        return drifts


class Previous:
    """The running state of a step: the value minus the one measured before it."""

    __slots__ = ("_last",)

    def __init__(self) -> None:
        self._last: float | None = None

    @property
    def last(self) -> float | None:
        """The last value measured."""
        return self._last

    def push(self, value: float | None) -> float | None:
        """Take in the next value and return its step; None for the first. A value not finite is passed over."""
        if value is None or not math.isfinite(value):
            return None
        last, self._last = self._last, value
        return None if last is None else value - last

    def push_all(self, values: Iterable[float | None]) -> list[float | None]:
        """Take in values in their order and return the step of each."""
        return [self.push(value) for value in values]
