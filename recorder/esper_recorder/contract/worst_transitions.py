"""What made a ratio explode: the worst transitions of the joint ratio and of each head, non-finite first.

One shape for both sides: the trainer makes it from tensors (`instruments.ratios`), the desk from the recorded tables.
Both hold the same k worst transitions.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

ABOVE: Final = 5.0
BELOW: Final = 0.1
"""The reviews' ratio explosion and collapse, as in the profile `esper-review`."""

JOINT: Final = ""
"""The name of the joint ratio where heads have theirs."""


@dataclass(frozen=True, slots=True)
class WorstTransition:
    """One transition whose probability moved far. What was not told is None."""

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
        n: transitions it is over; None where that was not recorded.
        nonfinite: how many of their log ratios are NaN or infinite.
        ratio_min, ratio_max: NaN where all are.
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
        """Greater is worse: first by what is not finite, then by the furthest move in nats, to either side."""
        sizes = [_size(one.log_ratio) for one in self.worst]
        sizes += [_size(_log(ratio)) for ratio in (self.ratio_min, self.ratio_max) if ratio is not None]
        broken = bool(self.nonfinite) or any(not math.isfinite(one.log_ratio) for one in self.worst)
        return int(broken), max(sizes, default=0.0)


@dataclass(frozen=True, slots=True)
class RatioDiagnostic:
    """The ratios of some minibatches, the joint one first.

    Attributes:
        above, below: the thresholds it was asked with; strict.
    """

    ratios: tuple[RatioOfHead, ...]
    above: float = ABOVE
    below: float = BELOW

    @property
    def guilty(self) -> RatioOfHead | None:
        """The head that is worst by `severity`, the first of equals; None where no heads were told or none moved."""
        heads = [one for one in self.ratios if one.head != JOINT]
        worst = max(heads, key=lambda one: one.severity, default=None)
        return None if worst is None or worst.severity == (0, 0.0) else worst

    @property
    def exploded(self) -> tuple[str, ...]:
        """The ratios (heads; empty for the joint one) that are not finite or beyond a threshold."""
        return tuple([one.head for one in self.ratios if self._beyond(one)])

    def _beyond(self, one: RatioOfHead) -> bool:
        high, low = one.ratio_max, one.ratio_min
        return bool(
            one.severity[0] or (high is not None and high > self.above) or (low is not None and low < self.below)
        )


def ratio_of_head(head: str, statistics: Mapping[str, Any], exemplars: Iterable[Mapping[str, Any]]) -> RatioOfHead:
    """One ratio from its row of statistics and its rows of `ratio_exemplars`; both by the contract's column names.

    Args:
        head: its name.
        statistics: a row of `heads`, or of `ppo_updates` or `minibatches` for the joint ratio; empty where none was
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
        log_ratio_rms=math.sqrt(sum_sq / finite) if finite and sum_sq is not None else None,
        worst=tuple([_transition(place, row) for place, row in enumerate(rows, 1)]),
    )


def _transition(place: int, row: Mapping[str, Any]) -> WorstTransition:
    action = row.get("action")
    told = {name: row.get(name) for name in ("old_log_prob", "new_log_prob", "advantage", "value", "value_target")}
    whole = {name: row.get(name) for name in ("index", "env", "env_step", "epoch", "minibatch")}
    return WorstTransition(
        place=place,
        log_ratio=row["log_ratio"],
        action=None if action is None else tuple(action),
        **told,
        **{name: None if value is None else int(value) for name, value in whole.items()},
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


def in_words(diagnostic: RatioDiagnostic) -> Sequence[str]:
    """The diagnosis in a sentence or two; nothing where there is nothing to say."""
    lines = []
    broken = sum(one.nonfinite or 0 for one in diagnostic.ratios if one.head == JOINT)
    if broken:
        lines.append(f"{broken} of its log ratios {'is' if broken == 1 else 'are'} not finite.")
    guilty = diagnostic.guilty
    if guilty is not None and guilty.head in diagnostic.exploded:
        not_finite, moved = guilty.severity
        told = "has log ratios that are not finite" if not_finite else f"moved furthest, by up to {moved:.3g} nats"
        lines.append(f"The head {guilty.head!r} {told}.")
    elif any(one.head != JOINT for one in diagnostic.ratios):
        lines.append(f"No head's ratio lies above {diagnostic.above:g} or below {diagnostic.below:g}.")
    return lines
