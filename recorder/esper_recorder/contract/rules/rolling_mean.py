"""The rolling mean that trends are taken against, one accumulator for both evaluators.

The terms of a mean are added oldest first, one after the other. The replay adds whole columns in that same order, so
that the two agree to the last bit.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass
from enum import StrEnum


class TrendOf(StrEnum):
    """What becomes of a value and the rolling mean it has entered."""

    CHANGE = "change"  # the mean less the mean before; none for the first value
    SIZE = "size"  # its absolute value
    DROP = "drop"  # (mean - value) / mean; NaN where the mean is not positive


@dataclass(frozen=True, slots=True)
class Rolling:
    """A value is replaced by a trend: how the mean of the last `window` values moved, or how far it lies below it.

    The mean is of the values there are while they are fewer, and holds the current one. A value that is missing or not
    finite neither enters nor has a trend.
    """

    window: int = 10
    trend: TrendOf = TrendOf.CHANGE


class RollingMean:
    """The running state of one `Rolling`.

    Attributes:
        values: the last ones that entered, oldest first, `window` at most.
        mean: of them; None before the first.
    """

    __slots__ = ("_form", "mean", "values")

    def __init__(self, form: Rolling) -> None:
        self._form = form
        self.values: deque[float] = deque(maxlen=form.window)
        self.mean: float | None = None

    def push(self, value: float | None) -> float | None:
        """Take in the next value and return its trend; None where it has none."""
        if value is None or not math.isfinite(value):
            return None
        self.values.append(value)
        total = 0.0
        for one in self.values:
            total += one
        before, self.mean = self.mean, total / len(self.values)
        if self._form.trend is TrendOf.DROP:
            return (self.mean - value) / self.mean if self.mean > 0.0 else math.nan
        if before is None:
            return None
        change = self.mean - before
        return abs(change) if self._form.trend is TrendOf.SIZE else change

    def push_all(self, values: Iterable[float | None]) -> list[float | None]:
        """Take in values in their order and return the trend of each."""
        return [self.push(value) for value in values]
