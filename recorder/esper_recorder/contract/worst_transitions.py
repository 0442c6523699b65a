"""What made a ratio explode: ranks and describes the worst transitions of the joint ratio and of each head.

Covers: one shape for both sides. The trainer makes it from tensors (`instruments.ratio_diagnostic`), analytics from the
recorded tables; both have the same k worst transitions, non-finite first.
Does not cover: choosing those k, which happens on the device (`reductions.ratio_histogram.worst`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

ABOVE: Final = 5.0
BELOW: Final = 0.1
"""The thresholds of ratio explosion and collapse, as in the profile `esper-review`."""

JOINT: Final = ""
"""The name of the joint ratio among those of heads."""


@dataclass(frozen=True, slots=True)
class WorstTransition:
    """One transition whose probability moved far. What was not recorded is None."""

    place: int
    log_ratio: float
    old_log_prob: float | None = None
    new_log_prob: float | None = None
    action: tuple[float, ...] | None = None
    index: int | None = None
    env: int | None = None
    env_step: int | None = None
    epoch: int | None = None
    minibatch: int | None = None
    advantage: float | None = None
    value: float | None = None
    value_target: float | None = None

    @property
    def ratio(self) -> float:
        """exp(log ratio); infinite beyond what float64 holds."""
        try:
            return math.exp(self.log_ratio)
        except OverflowError:
            return math.inf


@dataclass(frozen=True, slots=True)
class RatioOfHead:
    """The ratio of one head, or the joint one.

    Attributes:
        head: its name; empty for the joint ratio.
        n: transitions it is over, if that was recorded.
        nonfinite: how many of their log ratios are NaN or infinite.
        ratio_min, ratio_max: NaN if all are.
        log_ratio_rms: of the finite ones.
        worst: NaN first, then infinities, then by |log ratio|.
    """

    head: str
    n: int | None
    nonfinite: int | None
    ratio_min: float | None
    ratio_max: float | None
    log_ratio_rms: float | None
    worst: tuple[WorstTransition, ...]

    @property
    def severity(self) -> tuple[int, float]:
        """A sort key, greater is worse: first whether anything is not finite, then the furthest move in nats."""
        moves = [_size(transition.log_ratio) for transition in self.worst]
        moves += [_size(_log(ratio)) for ratio in (self.ratio_min, self.ratio_max) if ratio is not None]
        broken = bool(self.nonfinite) or any(not math.isfinite(transition.log_ratio) for transition in self.worst)
        return int(broken), max(moves, default=0.0)

    def is_beyond(self, above: float, below: float) -> bool:
        """Whether the ratio is not finite, or strictly outside the thresholds."""
        high, low = self.ratio_max, self.ratio_min
        return bool(self.severity[0] or (high is not None and high > above) or (low is not None and low < below))


@dataclass(frozen=True, slots=True)
class RatioDiagnostic:
    """The ratios of some minibatches, the joint one first.

    Attributes:
        above, below: the thresholds of explosion and collapse; strict.
    """

    ratios: tuple[RatioOfHead, ...]
    above: float = ABOVE
    below: float = BELOW

    @property
    def worst_head(self) -> RatioOfHead | None:
        """The head with the greatest severity, the first of equals; None if there are no heads or none moved."""
        heads = [ratio for ratio in self.ratios if ratio.head != JOINT]
        worst = max(heads, key=lambda ratio: ratio.severity, default=None)
        return None if worst is None or worst.severity == (0, 0.0) else worst

    @property
    def exploded(self) -> tuple[str, ...]:
        """The ratios (heads; empty for the joint one) that are not finite or beyond a threshold."""
        return tuple([ratio.head for ratio in self.ratios if ratio.is_beyond(self.above, self.below)])


def ratio_of_head(head: str, statistics: Mapping[str, Any], exemplars: Iterable[Mapping[str, Any]]) -> RatioOfHead:
    """Make one ratio of its row of statistics and its rows of `ratio_exemplars`, named as the contract's columns.

    Args:
        statistics: a row of `heads`, or for the joint ratio of `ppo_updates` or `minibatches`; empty if none was
            recorded.
        exemplars: in any order.
    """
    get = statistics.get
    counts = [get(f"log_ratio_{kind}") for kind in ("nan", "posinf", "neginf")]
    nonfinite = None if None in counts else sum(int(count or 0) for count in counts)
    n, sum_sq = get("n"), get("log_ratio_sum_sq")
    finite = None if n is None or nonfinite is None else n - nonfinite
    rows = sorted((row for row in exemplars if row.get("log_ratio") is not None), key=_worst_first)
    return RatioOfHead(
        head=head,
        n=None if n is None else int(n),
        nonfinite=nonfinite,
        ratio_min=get("ratio_min"),
        ratio_max=get("ratio_max"),
        log_ratio_rms=None if not finite or sum_sq is None or sum_sq / finite < 0 else math.sqrt(sum_sq / finite),
        worst=tuple([_transition(place, row) for place, row in enumerate(rows, 1)]),
    )


def describe(diagnostic: RatioDiagnostic) -> Sequence[str]:
    """Return the diagnosis, one line per finding."""
    lines = []
    broken = sum(ratio.nonfinite or 0 for ratio in diagnostic.ratios if ratio.head == JOINT)
    if broken:
        lines.append(f"{broken} of its log ratios {'is' if broken == 1 else 'are'} not finite.")
    worst = diagnostic.worst_head
    if worst is not None and worst.head in diagnostic.exploded:
        not_finite, nats = worst.severity
        what = "has log ratios that are not finite" if not_finite else f"moved furthest, by up to {nats:.3g} nats"
        lines.append(f"The head {worst.head!r} {what}.")
    elif any(ratio.head != JOINT for ratio in diagnostic.ratios):
        lines.append(f"No head's ratio lies above {diagnostic.above:g} or below {diagnostic.below:g}.")
    return lines


def _transition(place: int, row: Mapping[str, Any]) -> WorstTransition:
    action = row.get("action")
    # Rows made from tensors have every value as a float.
    integers = {name: row.get(name) for name in ("index", "env", "env_step", "epoch", "minibatch")}
    return WorstTransition(
        place=place,
        log_ratio=row["log_ratio"],
        old_log_prob=row.get("old_log_prob"),
        new_log_prob=row.get("new_log_prob"),
        advantage=row.get("advantage"),
        value=row.get("value"),
        value_target=row.get("value_target"),
        action=None if action is None else tuple(action),
        **{name: None if value is None else int(value) for name, value in integers.items()},
    )


def _worst_first(row: Mapping[str, Any]) -> tuple[bool, float]:
    value = row["log_ratio"]
    return not math.isnan(value), -_size(value)


def _size(log_ratio: float) -> float:
    return math.inf if math.isnan(log_ratio) else abs(log_ratio)


def _log(ratio: float) -> float:
    if math.isnan(ratio) or ratio < 0:
        return math.nan
    return math.log(ratio) if ratio > 0 else -math.inf
