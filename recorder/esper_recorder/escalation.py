"""From an alarm to a higher level: more is recorded for some updates, and what led up to the alarm is kept.

Only the onset of a firing escalates: a rule that fires (for one key) after a while of not firing. A rule that fires at
every update, or flickers, escalates once and not again before it stopped firing for `COOLDOWN` times the length of an
escalation, so that a run with a lasting problem is not always recorded at DEBUG.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence

from esper_recorder.arguments import check_escalation
from esper_recorder.contract.rules.evaluator import Firing
from esper_recorder.contract.rules.model import Severity
from esper_recorder.levels import COLLECTED, Level
from esper_recorder.storage.update_record import Contents, UpdateRecord

UPDATES = 5
"""The default length of an escalation."""
COOLDOWN = 10
"""For how many lengths of an escalation a rule must not have fired for its next firing to be an onset."""
LEAD_UP_UPDATES = 5
LEAD_UP_ROWS = 10_000
"""The most rows of `minibatches` that are kept for an alarm: some megabytes."""


class Escalation:
    """The level of each update, and the minibatches kept for an alarm at MINIMAL.

    The training thread asks for the level at the start of an update (`next_level`); all else happens in the writer's.

    Args:
        base: the level without an alarm.
        severity: the mildest severity that escalates; None if none does.
        updates: how many PPO updates an escalation lasts; a further onset starts it again and does not add to it.
    """

    def __init__(self, base: Level, severity: Severity | None, updates: int) -> None:
        self._base = base
        self._severity = severity
        self._updates = updates
        self._raised = False  # set by the writer's thread, cleared by the training thread
        self._left = 0  # updates still to be recorded at DEBUG; the training thread's
        self._last_fired: dict[tuple[str, str], int] = {}
        self._lead_up: deque[UpdateRecord] = deque(maxlen=LEAD_UP_UPDATES)
        self._behind = False  # an alarm was raised, and updates handed over before the trainer saw it still come

    @classmethod
    def from_options(cls, level: str | Level, escalate: str | None, updates: int) -> Escalation:
        """Check the options of a recorder. Raises BadCall, a ValueError that says what they may be."""
        check_escalation(escalate, updates)
        return cls(Level.parse(level), None if escalate is None else Severity(escalate), updates)

    def next_level(self) -> Level:
        """Return the level of the update that begins now."""
        if self._raised:
            # An alarm between these two lines asks for what is done anyway.
            self._raised = False
            self._left = self._updates
        if not self._left:
            return self._base
        self._left -= 1
        return Level.DEBUG

    # --- the writer's thread ----------------------------------------------------------------------------------------

    def stored(self, record: UpdateRecord, level: Level) -> UpdateRecord:
        """Return what of an update's record its level stores. The rest is kept in case an alarm follows."""
        if COLLECTED[level].minibatch_rows:
            self._behind = False
            return record
        if self._behind:
            return record
        if record.minibatches:
            self._lead_up.append(record)
            while sum(kept.minibatches for kept in self._lead_up) > LEAD_UP_ROWS:
                self._lead_up.popleft()
        return record.standing_for(Contents.WITHOUT_MINIBATCHES)

    def note_firings(self, firings: Sequence[Firing]) -> bool:
        """Remember what fired at an update. Returns whether it is an onset that escalates."""
        onset = False
        for firing in firings:
            if self._severity is None or Severity(firing.severity).rank < self._severity.rank:
                continue
            series = firing.rule, firing.key
            last = self._last_fired.get(series)
            self._last_fired[series] = firing.update
            onset |= last is None or firing.update - last > COOLDOWN * self._updates
        return onset

    def raise_level(self) -> list[UpdateRecord]:
        """Escalate. Returns records of the minibatches that were kept, oldest first, to be stored now."""
        if self._base >= Level.DEBUG:
            return []
        self._raised = True
        if COLLECTED[self._base].minibatch_rows:
            return []
        self._behind = True
        records = [record.standing_for(Contents.LEAD_UP) for record in self._lead_up]
        self._lead_up.clear()
        return records
