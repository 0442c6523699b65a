"""How much telemetry a trainer collects: a level, and how long an alarm raises it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any, Final

from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.suggest import suggest
from esper_recorder.escalation import UPDATES, Escalation
from esper_recorder.levels import COLLECTED, Collection, Level

TelemetryLevel = Level
"""The recorder's levels, under the name that Esper's trainers use."""


def _lowest_level(category: str) -> Level:
    return next(level for level in Level if getattr(COLLECTED[level], category))


CATEGORIES: Final[Mapping[str, Level]] = MappingProxyType(
    {
        "updates": Level.MINIMAL,
        **{category.name: _lowest_level(category.name) for category in fields(Collection)},
        "ops_normal": Level.NORMAL,
        "debug": Level.DEBUG,
    }
)
"""Category -> the lowest level that collects it: those of `levels.COLLECTED`, and two that Esper's trainers use."""


@dataclass(frozen=True, slots=True)
class CollectionConfig:
    """How much is collected. It never changes; what an alarm changes is the state of an `Escalation`.

    Attributes:
        level: without an alarm; a name is accepted.
        escalate: the mildest severity of an alarm that raises the level to DEBUG for a while, or None.
        escalate_updates: for how many PPO updates. A further alarm restarts the count and does not add to it.

    Raises:
        ValueError: an unknown level or severity, or a number of updates below 1.
    """

    level: Level = Level.NORMAL
    escalate: Severity | None = Severity.CRITICAL
    escalate_updates: int = UPDATES

    def __post_init__(self) -> None:
        self.escalation()  # the recorder's own checks
        object.__setattr__(self, "level", Level.parse(self.level))
        object.__setattr__(self, "escalate", None if self.escalate is None else Severity(self.escalate))

    def should_collect(self, category: str, *, level: Level | None = None) -> bool:
        """Whether a category is collected.

        Args:
            category: one of `CATEGORIES`.
            level: of the update, as `Escalation.next_level` returned it; the default is this configuration's.

        Raises:
            ValueError: the category is unknown.
        """
        if category not in CATEGORIES:
            raise ValueError(f"there is no category {category!r}. {suggest(category, CATEGORIES, kind='categories')}")
        return (self.level if level is None else level) >= CATEGORIES[category]

    def escalation(self) -> Escalation:
        """Make a separate state for one training; a recorder makes its own from `recorder_arguments`."""
        return Escalation.from_options(self.level, self.escalate, self.escalate_updates)

    def recorder_arguments(self) -> dict[str, Any]:
        """Return the arguments of a `Recorder` that collects as configured."""
        return {
            "level": self.level,
            "escalate": None if self.escalate is None else str(self.escalate),
            "escalate_updates": self.escalate_updates,
        }
