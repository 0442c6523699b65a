"""From an alarm to the level that follows: more is recorded for some updates, and what led up to it is kept.

Only the onset of a firing escalates: a rule that fires (for one key) after it was quiet for a while. A rule that fires
at every update, or flickers, escalates once and not again before it was quiet for `QUIET` times the length of an
escalation, so that a run which is always unwell is not always recorded at DEBUG.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esper_recorder.contract.rules.evaluator import Firing
from esper_recorder.contract.rules.model import Severity
from esper_recorder.levels import COLLECTED, Level
from esper_recorder.storage.arrow_batches import to_batch, to_table

UPDATES = 5
"""How long an escalation lasts where nothing else is said."""
QUIET = 10
"""How long a firing must have been quiet to be an onset, in lengths of an escalation."""
LEAD_UP_UPDATES = 5
LEAD_UP_ROWS = 10_000
"""Rows of `minibatches` held back at most: some megabytes."""

Columns = Mapping[str, Sequence[Any]]


class Escalation:
    """The level of each update, and the minibatch rows held back at MINIMAL.

    The training thread asks for the level at the start of an update (`next_level`); all else happens in the writer's.

    Args:
        base: the level without an alarm.
        severity: the mildest severity that escalates; None where none does.
        updates: how many PPO updates an escalation lasts; a further onset sets it anew and does not add to it.
    """

    def __init__(self, base: Level, severity: Severity | None, updates: int) -> None:
        self._base = base
        self._severity = severity
        self._updates = updates
        self._raised = False  # set by the writer's thread, taken down by the training thread
        self._left = 0  # updates still to be recorded at DEBUG; the training thread's
        self._last_fired: dict[tuple[str, str], int] = {}
        self._held: deque[tuple[Callable[[], Columns], int]] = deque(maxlen=LEAD_UP_UPDATES)
        self._awaited = False  # an alarm was raised, and updates handed over before the trainer saw it still come

    def next_level(self) -> Level:
        """The level of the update that begins now."""
        if self._raised:
            # An alarm between these two lines asks for what is done anyway.
            self._raised = False
            self._left = self._updates
        if not self._left:
            return self._base
        self._left -= 1
        return Level.DEBUG

    # --- the writer's thread ----------------------------------------------------------------------------------------

    def stores_minibatches(self, level: Level) -> bool:
        """Whether the minibatch rows of the update that is stored now are stored with it."""
        if COLLECTED[level].minibatch_rows:
            self._awaited = False
            return True
        return self._awaited

    def hold_back(self, rows: Callable[[], Columns], count: int) -> None:
        """Keep the minibatch rows of an update for a while.

        Args:
            rows: makes them; called if they are to be stored after all.
            count: how many they are.
        """
        if count:
            self._held.append((rows, count))
            while sum(count for _, count in self._held) > LEAD_UP_ROWS:
                self._held.popleft()

    def met(self, firings: Sequence[Firing]) -> bool:
        """Take note of what fired at an update. Whether it is an onset of something that escalates."""
        onset = False
        for firing in firings:
            if self._severity is None or Severity(firing.severity).rank < self._severity.rank:
                continue
            series = firing.rule, firing.key
            last = self._last_fired.get(series)
            self._last_fired[series] = firing.update
            onset |= last is None or firing.update - last > QUIET * self._updates
        return onset

    def raise_level(self) -> dict[str, Columns]:
        """Escalate. Returns the rows of `minibatches` held back, oldest first, to be stored now."""
        if self._base >= Level.DEBUG:
            return {}
        self._raised = True
        if COLLECTED[self._base].minibatch_rows:
            return {}
        self._awaited = True
        if not self._held:
            return {}
        batches = [to_batch("minibatches", make()) for make, _ in self._held]
        self._held.clear()
        rows: dict[str, list[Any]] = to_table("minibatches", batches).to_pydict()
        return {"minibatches": rows | {"held_back": [True] * len(rows["update"])}}


def escalation(level: str | Level, escalate: str | None, updates: int) -> Escalation:
    """The escalation these options of a recorder ask for. Raises ValueError that says what they may be."""
    if escalate is not None and escalate not in list(Severity):
        known = ", ".join(Severity)
        raise ValueError(f"escalate is {escalate!r}; give the severity that raises the level ({known}), or None")
    if isinstance(updates, bool) or not isinstance(updates, int) or updates < 1:
        raise ValueError(f"escalate_updates is {updates!r}; give a whole number of PPO updates from 1")
    return Escalation(Level.parse(level), None if escalate is None else Severity(escalate), updates)
