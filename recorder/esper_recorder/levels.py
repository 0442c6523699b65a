"""The levels of recording, and what each of them collects."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum
from types import MappingProxyType


class Level(IntEnum):
    """Ordered: each level collects more than the one below; `COLLECTED` says what.

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
            what = repr(level) if isinstance(level, str | int | float) else f"of type {type(level).__name__}"
            raise ValueError(f"level {what} is not known; there are: {names}") from None


@dataclass(frozen=True, slots=True)
class Collection:
    """What a level collects apart from the row of the update, its rollout, its episodes and its alarms."""

    minibatch_rows: bool
    """One row of `minibatches` each; else they are kept in memory, and stored only if an alarm escalates."""
    each_minibatch: bool
    """A ratio histogram and the worst transitions of each minibatch; else of the whole update."""
    each_step: bool
    """Layer statistics of each step; else of the last one of the update."""


COLLECTED: Mapping[Level, Collection] = MappingProxyType(
    {
        Level.OFF: Collection(minibatch_rows=False, each_minibatch=False, each_step=False),
        Level.MINIMAL: Collection(minibatch_rows=False, each_minibatch=False, each_step=False),
        Level.NORMAL: Collection(minibatch_rows=True, each_minibatch=False, each_step=False),
        Level.DEBUG: Collection(minibatch_rows=True, each_minibatch=True, each_step=True),
    }
)
"""At OFF no update is collected at all."""
