"""How much telemetry a trainer collects: a level, and what an alarm raises it to."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final

from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.suggest import suggest
from esper_recorder.escalation import UPDATES, Escalation
from esper_recorder.levels import COLLECTED, Collected, Level

TelemetryLevel = Level
"""The recorder's levels, under the name Esper's trainers know them by."""


def _least(of: str) -> Level:
    return next(level for level in Level if getattr(COLLECTED[level], of))


CATEGORIES: Final[Mapping[str, Level]] = MappingProxyType(
    {
        "updates": Level.MINIMAL,
        **{one.name: _least(one.name) for one in fields(Collected)},
        "ops_normal": Level.NORMAL,
        "debug": Level.DEBUG,
    }
)
"""What can be asked for, and the least level that collects it: what `levels.COLLECTED` tells of, and the two kinds that
Esper's trainers ask for."""


@dataclass(frozen=True, slots=True)
class CollectionConfig:
    """How much is collected. It never changes; what an alarm changes is in the `Escalation` it makes.

    Attributes:
        level: where nothing happened; a name will do.
        escalate: the mildest severity of an alarm that raises the level to DEBUG for a while, or None.
        escalate_updates: for how many PPO updates. A further alarm sets it anew and does not add to it.

    Raises:
        ValueError: an unknown level or severity, or a number of updates below 1.
    """

    level: Level = Level.NORMAL
    escalate: Severity | None = Severity.CRITICAL
    escalate_updates: int = UPDATES

    def __post_init__(self) -> None:
        Escalation.from_options(self.level, self.escalate, self.escalate_updates)  # the recorder's own checks
        object.__setattr__(self, "level", Level.parse(self.level))
        object.__setattr__(self, "escalate", None if self.escalate is None else Severity(self.escalate))

    def should_collect(self, category: str, *, level: Level | None = None) -> bool:
        """Whether something is collected.

        Args:
            category: one of `CATEGORIES`.
            level: the level of the update, as `Escalation.next_level` gave it; this configuration's own where left out.

        Raises:
            ValueError: the category is not known; the near-by ones are named.
        """
        if category not in CATEGORIES:
            raise ValueError(f"there is no category {category!r}. {suggest(category, CATEGORIES, kind='categories')}")
        return (self.level if level is None else level) >= CATEGORIES[category]

    def escalation(self) -> Escalation:
        """A state of its own for one training; the recorder makes one like it of `recorder_arguments`."""
        return Escalation.from_options(self.level, self.escalate, self.escalate_updates)

    def recorder_arguments(self) -> dict[str, Any]:
        """What to give a `Recorder` so that it collects as configured."""
        return {
            "level": self.level,
            "escalate": None if self.escalate is None else str(self.escalate),
            "escalate_updates": self.escalate_updates,
        }
