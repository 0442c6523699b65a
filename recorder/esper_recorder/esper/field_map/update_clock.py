"""Which run and which PPO update an event of Esper belongs to.

An event that names its batch belongs to that update (batches count from 1; the profile of the training loop counts
them from 0). One that names none belongs to the batch being collected: the one after the last `BATCH_EPOCH_COMPLETED`
of its group; the distribution of actions, which is sent after that event, to the batch it closed.

A run is what one `TRAINING_STARTED` begins within one `group_id`; what a group sent before its first belongs to it too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

STARTED: Final = "TRAINING_STARTED"
BATCH_CLOSED: Final = "BATCH_EPOCH_COMPLETED"
TURNING: Final = (STARTED, BATCH_CLOSED)
"""The kinds of event that move the clock."""

SNAPSHOT: Final = "ANALYTICS_SNAPSHOT"
UPDATED: Final = "PPO_UPDATE_COMPLETED"
PROFILE: Final = "PHASE_PROFILE_COMPLETED"
DEFAULT_GROUP: Final = "default"

_LONGEST = 2**40  # no batch has a higher number; what says so is damaged

RunKey = tuple[str, int]
"""(group_id, number of the run in its group, from 1)."""


@dataclass(slots=True)
class Training:
    """What is known of a run while its events go by."""

    key: RunKey
    started_by: Any = None
    """The event_id of its `TRAINING_STARTED`; None before that."""
    config: Mapping[str, Any] | None = None
    """The data of that event."""
    closed: int = 0
    """The last batch that was completed."""
    told_episodes: int | None = None

    @property
    def total_episodes(self) -> int | None:
        """Episodes the training is to have."""
        told = _whole((self.config or {}).get("n_episodes"))
        return told if told else self.told_episodes


@dataclass(slots=True)
class Clock:
    """Places events in runs and updates, in the order they were sent."""

    trainings: dict[str, Training] = field(default_factory=dict)
    """By group: the run that its next event belongs to."""
    last: RunKey = (DEFAULT_GROUP, 1)
    """The run of the last event placed: where a line that is no event is put."""

    def collecting(self) -> tuple[RunKey, int]:
        """Where what is no event is put: the run of the last event placed, and the update it is collecting."""
        training = self.trainings.get(self.last[0])
        return self.last, (training.closed if training else 0) + 1

    def place(self, event: Mapping[str, Any]) -> tuple[Training, int]:
        """The run of an event, and its update."""
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
        named = batch_of(kind, data) if "batch" in data or "batch_idx" in data else None
        if kind == BATCH_CLOSED:
            if named is not None:
                training.closed = named
            training.told_episodes = _whole(data.get("total_episodes")) or training.told_episodes
            return training, training.closed or 1
        if named is not None:
            return training, named
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
    """The update an event's data names, counted from 1; None where it names none."""
    batch = _whole(data.get("batch"))
    if batch is None:
        batch = _whole(data.get("batch_idx"))
        if batch is not None and kind == PROFILE:
            batch += 1
    return batch if batch is not None and 1 <= batch < _LONGEST else None


def _whole(value: Any) -> int | None:
    return value if type(value) is int else None
