"""Rules as data: the classes that a rules file is parsed into.

A rule reads one signal (with `any_of`, several) once per update and key, and has a streak:

* a breach (the value is beyond the threshold) makes the streak grow by one;
* a value beyond the `reset` level sets it to zero (without `reset`: every value that is not a breach);
* any other value, and no value at all, leaves it unchanged.

The rule fires while it breaches and the streak is at least `for`; with `keep`, once it has fired, at every value that
is not beyond `reset`. Without data it abstains, with a reason, and neither fires nor changes its state.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from esper_recorder.contract.rules.signal import Signal
from esper_recorder.contract.rules.trend import Drift, Rolling


class RuleError(ValueError):
    """A rule, a rules file or a value for a rule is invalid. The message is for its author."""


class Severity(StrEnum):
    """How bad it is when the rule fires, mildest first."""

    INFO = "info"
    WARNING = "warning"
    CRITICAL = "critical"

    @property
    def rank(self) -> int:
        """0 for info, 2 for critical."""
        return list(Severity).index(self)


class Test(StrEnum):
    """What makes a value a breach."""

    __test__ = False  # pytest would collect it

    ABOVE = "above"
    BELOW = "below"
    NONFINITE = "nonfinite"


@dataclass(frozen=True, slots=True)
class Threshold:
    """A number, one per phase, one per key, or a column of the update's row times a factor.

    Attributes:
        number: the number; of the other kinds, the one that applies otherwise, or None.
        by: `number`, `phase` or `key` (for which `values` has the numbers), or `column` (which `signal` reads).
        values: number by phase or by key.
        signal: the column of `ppo_updates` that the threshold is relative to.
        times: the factor on that column.
    """

    number: float | None = None
    by: str = "number"
    values: Mapping[str, float] = field(default_factory=dict)
    signal: Signal | None = None
    times: float = 1.0


@dataclass(frozen=True, slots=True)
class Reset:
    """The level beyond which a streak ends: a number, or the threshold times a factor."""

    number: float | None = None
    times: float | None = None


@dataclass(frozen=True, slots=True)
class Condition:
    """One comparison of a signal, or of its trend, with a threshold.

    Attributes:
        threshold: None for `nonfinite`.
        reset: None if every value that is not a breach ends the streak.
        drift: compare the drift from the average of the values before.
        step: compare the difference to the value before.
        rolling: compare the trend of a rolling mean.
    """

    signal: Signal
    test: Test
    threshold: Threshold | None = None
    reset: Reset | None = None
    drift: Drift | None = None
    step: bool = False
    rolling: Rolling | None = None

    @property
    def has_trend(self) -> bool:
        """Whether the value is compared with the values before it."""
        return self.drift is not None or self.step or self.rolling is not None


@dataclass(frozen=True, slots=True)
class Gate:
    """A test that makes a rule not applicable: closed while it is true.

    Attributes:
        signal: what is read; without a key column the gate is the same for every key.
        number: the level for `above` and `below`.
    """

    signal: Signal
    test: Test
    number: float | None = None


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `conditions` has one entry, or the alternatives of `any_of` in their order."""

    name: str
    severity: Severity
    conditions: tuple[Condition, ...]
    streak: int = 1
    """`for` in the file: the breaches needed before it fires."""
    keep: bool = False
    unless: tuple[Gate, ...] = ()
    inhibited_by: str | None = None
    """The rule that silences this one when it fires for the same update and key."""
    evidence: str = ""

    @property
    def key(self) -> str | None:
        """The column that separates its series; the same for all conditions."""
        return self.conditions[0].signal.key

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Every signal it reads: of conditions, thresholds and gates."""
        compared = [condition.signal for condition in self.conditions]
        relative = [c.threshold.signal for c in self.conditions if c.threshold is not None and c.threshold.signal]
        return (*compared, *relative, *(gate.signal for gate in self.unless))
