"""What a run's events tell of the run as a whole, and which version of Esper's trainer sent them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any, Final

from esper_recorder.esper.field_map.event_columns import moment
from esper_recorder.esper.field_map.update_clock import BATCH_CLOSED, STARTED, UPDATED

_OWN_KEYS: Final = {STARTED: "max_batches", UPDATED: "joint_ratio_max"}
"""A key that the event has since 2026 and had not in 2025."""
KINDS: Final = frozenset({STARTED, BATCH_CLOSED, UPDATED, "TRAINING_COMPLETED"})
"""The kinds of event that tell something of the run as a whole."""
PROFILES: Final = {"2025-12": "esper-2025-12", "2026-06": "esper-2026-06"}
"""Generation of the payloads -> the rules profile with the checks that trainer ran."""


@dataclass(slots=True)
class Facts:
    """A run as its events tell it; None is what none of them told."""

    config: Mapping[str, Any] | None = None
    started: datetime | None = None
    last_time: datetime | None = None
    generation: str | None = None
    """`2025-12` or `2026-06`."""
    finished: bool = False
    """`TRAINING_COMPLETED` was sent, or the last planned episode is done."""
    last_update: int = 0

    def take(self, event: Mapping[str, Any], update: int) -> None:
        """Learn from an event of one of the `KINDS`, in their order."""
        kind = event["event_type"]
        data = event.get("data")
        data = data if isinstance(data, dict) else {}
        if kind in _OWN_KEYS and self.generation is None:
            self.generation = "2026-06" if _OWN_KEYS[kind] in data else "2025-12"
        if kind == STARTED:
            self.config = data
            self.started = _time(event) or self.started
        elif kind == UPDATED:
            self.last_update = max(self.last_update, update)
        elif kind == "TRAINING_COMPLETED":
            self.finished = True
        elif kind == BATCH_CLOSED:
            done, planned = data.get("episodes_completed"), data.get("total_episodes")
            if type(done) is int and type(planned) is int and 0 < planned <= done:
                self.finished = True
        self.last_time = _time(event) or self.last_time

    def join(self, later: Facts) -> None:
        """Take over what later events of the same run told."""
        self.config = self.config if self.config is not None else later.config
        self.started = self.started or later.started
        self.last_time = later.last_time or self.last_time
        self.generation = self.generation or later.generation
        self.finished |= later.finished
        self.last_update = max(self.last_update, later.last_update)

    @property
    def profile(self) -> str | None:
        """The rules profile with the checks its trainer ran."""
        return PROFILES.get(self.generation or "")

    @property
    def total_updates(self) -> int | None:
        """Updates the training was to have: its batches."""
        config = self.config or {}
        batches, episodes, envs = (config.get(key) for key in ("max_batches", "n_episodes", "n_envs"))
        if type(batches) is int and batches > 0:
            return batches
        if type(episodes) is int and type(envs) is int and episodes > 0 and envs > 0:
            return -(-episodes // envs)
        return None


def _time(event: Mapping[str, Any]) -> datetime | None:
    try:
        return moment(event.get("timestamp"))
    except ValueError:
        return None
