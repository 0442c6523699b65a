"""Which run and which PPO update an event of Esper's belongs to.

An event that names its batch belongs to that update (batches count from 1; the profile of the training loop counts
them from 0). One that names none belongs to the batch being collected: the one after the last `BATCH_EPOCH_COMPLETED`
of its group. The distribution of actions, which is sent after that event, belongs to the batch it closed.

A run begins with each `TRAINING_STARTED` of a `group_id`; what a group sent before its first belongs to that run too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from esper_recorder.esper.field_map.event_values import integer

STARTED: Final = "TRAINING_STARTED"
BATCH_CLOSED: Final = "BATCH_EPOCH_COMPLETED"
CLOCK_EVENTS: Final = (STARTED, BATCH_CLOSED)
"""The kinds of event that move the clock."""

SNAPSHOT: Final = "ANALYTICS_SNAPSHOT"
UPDATED: Final = "PPO_UPDATE_COMPLETED"
PROFILE: Final = "PHASE_PROFILE_COMPLETED"
DEFAULT_GROUP: Final = "default"

_BATCH_LIMIT: Final = 2**40  # a larger number can only be damage

RunKey = tuple[str, int]
"""(group_id, number of the run in its group, from 1)."""


def run_name(name: str, key: RunKey) -> str:
    """Name a run after its source, its group and its number, as far as these distinguish it."""
    group, number = key
    return "-".join([name, *([group] if group != DEFAULT_GROUP else []), *([str(number)] if number > 1 else [])])


@dataclass(slots=True)
class Training:
    """A run while its events go by."""

    key: RunKey
    started_by: Any = None
    """The event_id of its `TRAINING_STARTED`; None before that."""
    config: Mapping[str, Any] | None = None
    """The data of that event."""
    closed: int = 0
    """The last batch that was completed."""
    announced_episodes: int | None = None
    """The total that the last completed batch named."""

    @property
    def total_episodes(self) -> int | None:
        """Episodes the training is planned to have."""
        return integer((self.config or {}).get("n_episodes")) or self.announced_episodes


@dataclass(slots=True)
class Clock:
    """Places events in runs and updates, in the order they were sent."""

    trainings: dict[str, Training] = field(default_factory=dict)
    """Group -> the run that its next event belongs to."""
    last: RunKey = (DEFAULT_GROUP, 1)
    """The run of the last event."""

    def collecting(self) -> tuple[RunKey, int]:
        """The run of the last event and the update it is collecting: the place of a line that is not an event."""
        training = self.trainings.get(self.last[0])
        return self.last, (training.closed if training else 0) + 1

    def place(self, event: Mapping[str, Any]) -> tuple[Training, int]:
        """Return the run of an event and its update, and move on."""
        group = event.get("group_id")
        if type(group) is not str:
            group = DEFAULT_GROUP
        training = self.trainings.get(group)
        if training is None:
            training = self.trainings[group] = Training((group, 1))
        kind = event.get("event_type")
        data = event.get("data")
        if type(data) is not dict:
            data = {}
        if kind == STARTED:
            training = self._start(training, event, data)
        self.last = training.key
        batch = batch_of(kind, data) if "batch" in data or "batch_idx" in data else None
        if kind == BATCH_CLOSED:
            if batch is not None:
                training.closed = batch
            training.announced_episodes = integer(data.get("total_episodes")) or training.announced_episodes
            return training, training.closed or 1
        if batch is not None:
            return training, batch
        if kind == SNAPSHOT and data.get("kind") == "action_distribution":
            return training, training.closed or 1
        return training, training.closed + 1

    def _start(self, training: Training, event: Mapping[str, Any], data: Mapping[str, Any]) -> Training:
        event_id = event.get("event_id") or event.get("timestamp")
        if training.started_by is not None:
            if training.started_by == event_id:
                return training  # the same line twice
            group, number = training.key
            training = self.trainings[group] = Training((group, number + 1))
        training.started_by = event_id if event_id is not None else ""
        training.config = data
        return training


def batch_of(kind: Any, data: Mapping[str, Any]) -> int | None:
    """The update that an event's data names, counted from 1; None if it names none."""
    batch = integer(data.get("batch"))
    if batch is None:
        batch = integer(data.get("batch_idx"))
        if batch is not None and kind == PROFILE:
            batch += 1
    return batch if batch is not None and 1 <= batch < _BATCH_LIMIT else None
