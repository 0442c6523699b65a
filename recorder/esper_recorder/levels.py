"""How much a recorder collects: the levels, and what each stands for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType


class Level(IntEnum):
    """Ordered: each level collects what the one below does, and more; `COLLECTED` says what.

    OFF nothing; MINIMAL updates, rollouts, episodes, alarms, a ratio histogram, the worst transitions and, once per
    update, layer statistics; NORMAL also a row per minibatch; DEBUG also histograms and worst transitions of every
    minibatch and layer statistics of every step.
    """

    OFF = 0
    MINIMAL = 1
    NORMAL = 2
    DEBUG = 3

    @classmethod
    def parse(cls, level: str | Level) -> Level:
        """A level by name. Raises ValueError that lists the names."""
        if isinstance(level, Level):
            return level
        try:
            return cls[level.upper()]
        except (AttributeError, KeyError):
            names = ", ".join(member.name.lower() for member in cls)
            raise ValueError(f"level {level!r} is not known; there are: {names}") from None


@dataclass(frozen=True, slots=True)
class Collected:
    """What a level collects beside the row of the update, its rollout, its episodes and its alarms."""

    minibatch_rows: bool
    """A row of `minibatches` each; else they are held back, and stored only when an alarm escalates."""
    each_minibatch: bool
    """A ratio histogram and the worst transitions of each minibatch; else of the whole update."""
    each_step: bool
    """Layer statistics of each step; else of the last one of the update."""


COLLECTED: Mapping[Level, Collected] = MappingProxyType(
    {
        Level.OFF: Collected(minibatch_rows=False, each_minibatch=False, each_step=False),
        Level.MINIMAL: Collected(minibatch_rows=False, each_minibatch=False, each_step=False),
        Level.NORMAL: Collected(minibatch_rows=True, each_minibatch=False, each_step=False),
        Level.DEBUG: Collected(minibatch_rows=True, each_minibatch=True, each_step=True),
    }
)
"""At OFF no update is collected at all."""
