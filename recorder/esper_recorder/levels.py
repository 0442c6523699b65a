"""How much a recorder collects."""

from __future__ import annotations

from enum import IntEnum


class Level(IntEnum):
    """Ordered: each level collects what the one below does, and more.

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
