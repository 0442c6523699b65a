"""Rules as data: the classes a file of rules is read into. `rules` loads files, `evaluator` runs what they hold.

A rule looks at one signal (or, with `any_of`, at several) once per update and key, and has a state:

* a *hit* (the value is beyond the threshold) lets the streak grow by one;
* a value beyond the `reset` level sets it to zero (without `reset`: every value that is no hit);
* any other value, and none at all, leaves it as it is.

The rule fires while it hits and the streak is at least `for`; with `keep`, once it fired, at every value that is not
beyond `reset`. Where it could not look it abstains, with a reason, and neither fires nor changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from esper_recorder.contract.rules.ema import Drift
from esper_recorder.contract.rules.rolling_mean import Rolling
from esper_recorder.contract.rules.signal import Signal


class RuleError(ValueError):
    """A rule, a file of rules or a value for one is off. The message is for the person who wrote it."""


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
    """What makes a value a hit."""

    __test__ = False  # not a test of pytest's

    ABOVE = "above"
    BELOW = "below"
    NONFINITE = "nonfinite"


@dataclass(frozen=True, slots=True)
class Threshold:
    """A number, or one per phase, one per key, or a column of the update's row times a factor.

    Attributes:
        number: the plain number; for the others what holds otherwise, None where nothing does.
        by: `phase` or `key` where `values` says the number, `column` where `signal` does, else `number`.
        values: number by phase or by key.
        signal: the column of `ppo_updates` it is relative to.
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
    """One comparison: a signal, perhaps transformed, against a threshold.

    Attributes:
        signal: what is read.
        test: what makes it a hit.
        threshold: None for `nonfinite`.
        reset: None where every value that is no hit ends the streak.
        drift: the value is replaced by its drift against the average of those before it.
        step: the value is replaced by its difference to the one before it.
        rolling: the value is replaced by its trend against a rolling mean.
    """

    signal: Signal
    test: Test
    threshold: Threshold | None = None
    reset: Reset | None = None
    drift: Drift | None = None
    step: bool = False
    rolling: Rolling | None = None

    @property
    def moves(self) -> bool:
        """The value is held against the ones before it."""
        return self.drift is not None or self.step or self.rolling is not None


@dataclass(frozen=True, slots=True)
class Gate:
    """Where it is closed the rule does not apply.

    Attributes:
        signal: what is read; without a key column it holds for every key.
        test: what closes the gate.
        number: the level for `above` and `below`.
    """

    signal: Signal
    test: Test
    number: float | None = None

    def describe(self) -> str:
        """As in `ppo_updates.return_std below 0.1`."""
        return f"{self.signal.describe()} {self.test}" + ("" if self.number is None else f" {self.number:g}")


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule. `conditions` has one entry, or the alternatives of `any_of` in their order."""

    name: str
    severity: Severity
    conditions: tuple[Condition, ...]
    streak: int = 1
    """`for` in the file: the hits needed before it fires."""
    keep: bool = False
    unless: tuple[Gate, ...] = ()
    inhibited_by: str | None = None
    """The rule that, where it fires for the same update and key, silences this one."""
    evidence: str = ""

    @property
    def key(self) -> str | None:
        """The column that tells its series apart; the same for all conditions."""
        return self.conditions[0].signal.key

    @property
    def signals(self) -> tuple[Signal, ...]:
        """Every signal it reads: conditions, thresholds, gates."""
        own = [condition.signal for condition in self.conditions]
        relative = [c.threshold.signal for c in self.conditions if c.threshold is not None and c.threshold.signal]
        return (*own, *relative, *(gate.signal for gate in self.unless))
