"""What a run's events say about the run as a whole, and which version of Esper's trainer sent them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from esper_recorder.esper.field_map.event_values import integer, moment
from esper_recorder.esper.field_map.update_clock import BATCH_CLOSED, STARTED, UPDATED

_COMPLETED: Final = "TRAINING_COMPLETED"
_ADDED_IN_2026: Final = {STARTED: "max_batches", UPDATED: "joint_ratio_max"}
"""Kind of event -> a key that its data has since 2026."""
FACT_EVENTS: Final = frozenset({STARTED, BATCH_CLOSED, UPDATED, _COMPLETED})
"""The kinds of event that `RunFacts.add` reads."""
PROFILES: Final = {"2025-12": "esper-2025-12", "2026-06": "esper-2026-06"}
"""Generation of the payloads -> the rules profile with the checks that trainer ran."""


@dataclass(slots=True)
class RunFacts:
    """What a run's events have said so far; None is what none of them said."""

    config: Mapping[str, Any] | None = None
    started: datetime | None = None
    last_time: datetime | None = None
    generation: str | None = None
    """`2025-12` or `2026-06`."""
    finished: bool = False
    """`TRAINING_COMPLETED` was sent, or the last planned episode is done."""
    last_update: int = 0

    def add(self, event: Mapping[str, Any], update: int) -> None:
        """Read an event of one of the `FACT_EVENTS`, in their order."""
        kind = event["event_type"]
        data = event.get("data")
        data = data if isinstance(data, dict) else {}
        if kind in _ADDED_IN_2026 and self.generation is None:
            self.generation = "2026-06" if _ADDED_IN_2026[kind] in data else "2025-12"
        time = _time(event)
        if kind == STARTED:
            self.config = data
            self.started = time or self.started
        elif kind == UPDATED:
            self.last_update = max(self.last_update, update)
        elif kind == _COMPLETED:
            self.finished = True
        elif kind == BATCH_CLOSED:
            done, planned = integer(data.get("episodes_completed")), integer(data.get("total_episodes"))
            if done is not None and planned is not None and 0 < planned <= done:
                self.finished = True
        self.last_time = time or self.last_time

    def join(self, later: RunFacts) -> None:
        """Add what later events of the same run said."""
        self.config = self.config if self.config is not None else later.config
        self.started = self.started or later.started
        self.last_time = later.last_time or self.last_time
        self.generation = self.generation or later.generation
        self.finished |= later.finished
        self.last_update = max(self.last_update, later.last_update)

    def trainer(self, group: str) -> dict[str, Any]:
        """Return who trained the run, as its manifest has it."""
        return {"name": "esper", "generation": self.generation, "group_id": group}

    @property
    def profile(self) -> str | None:
        """The rules profile with the checks its trainer ran."""
        return PROFILES.get(self.generation or "")

    @property
    def total_updates(self) -> int | None:
        """Updates the training was planned to have: its batches."""
        config = self.config or {}
        batches, episodes, envs = (integer(config.get(key)) or 0 for key in ("max_batches", "n_episodes", "n_envs"))
        if batches > 0:
            return batches
        return -(-episodes // envs) if episodes > 0 and envs > 0 else None


def _time(event: Mapping[str, Any]) -> datetime | None:
    try:
        return moment(event.get("timestamp"))
    except ValueError:
        return None
