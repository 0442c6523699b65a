"""Alarms where somebody hears them: in the log, in the trainer's callback, and as a flag on which training stops.

Covers: the onset of every alarm, live, once per incident; whatever the callback does.
Does not cover: an alarm of the last update, if nobody waits for it (`flush`, `close`) before looking at the flag.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from esper_recorder.contract.rules.evaluator import Firing
from esper_recorder.contract.rules.model import Severity
from esper_recorder.storage.jsonable import describe_error

log = logging.getLogger("esper_recorder")

_PAUSE_UPDATES = 3
_PAUSE_FRACTION = 0.02
"""A rule that fires again after at most that many updates, or that fraction of all, has not recovered: the incidents of
a replay are merged in the same way."""
_MOST_KEYS = 5


@dataclass(frozen=True, slots=True)
class AlarmOnset:
    """The onset of a firing while the run is recorded. As a text it is one line."""

    run_id: str
    update: int
    rule: str
    key: str
    """Which head, layer or other part the rule fires for; empty for a rule about the whole update."""
    severity: str
    value: float | None
    threshold: float | None
    phase: str | None
    progress: float | None

    def __str__(self) -> str:
        of_key = f" of {self.key}" if self.key else ""
        value = "" if self.value is None else f": {self.value:.6g}"
        threshold = "" if self.threshold is None else f" (threshold {self.threshold:.6g})"
        return f"{self.severity} alarm {self.rule}{of_key} at update {self.update}{value}{threshold}, run {self.run_id}"


class Announcer:
    """Announces alarms. The writer's thread passes firings on; the training thread calls `deliver`.

    Args:
        run_id: of the run.
        on_alarm: called with each `AlarmOnset` by `deliver`.
        stop_on: the mildest severity that sets `should_stop`; None if none does.
    """

    def __init__(
        self, run_id: str, on_alarm: Callable[[AlarmOnset], object] | None = None, stop_on: Severity | None = None
    ) -> None:
        self.should_stop = False
        """An alarm as severe as `stop_on` was raised."""
        self.waiting: deque[AlarmOnset] = deque()
        """Alarms that `on_alarm` was not called with yet."""
        self._run_id, self._on_alarm, self._stop_on = run_id, on_alarm, stop_on
        self._last_fired: dict[tuple[str, str], int] = {}

    def remember(self, firings: Sequence[Firing]) -> list[Firing]:
        """Note the firings of an update. Returns those that are onsets."""
        onsets = []
        for firing in firings:
            series = firing.rule, firing.key
            last = self._last_fired.get(series)
            pause = max(_PAUSE_UPDATES, int(_PAUSE_FRACTION * firing.update))
            if last is None or firing.update - last - 1 > pause:
                onsets.append(firing)
            self._last_fired[series] = firing.update
        return onsets

    def announce(self, firings: Sequence[Firing]) -> None:
        """Log the onsets among the firings of an update, one line per rule, and keep them for `deliver`."""
        alarms: dict[str, list[AlarmOnset]] = {}
        for onset in self.remember(firings):
            alarms.setdefault(onset.rule, []).append(AlarmOnset(self._run_id, *onset))
        for first, *others in alarms.values():
            keys = ", ".join(alarm.key for alarm in others[:_MOST_KEYS]) + (", ..." if others[_MOST_KEYS:] else "")
            log.warning("%s%s", first, f"; likewise {len(others)} more: {keys}" if others else "")
        least = self._stop_on
        if least is not None and not self.should_stop and any(Severity(f.severity).rank >= least.rank for f in firings):
            log.warning("The training of run %s is asked to stop: stop_on is %s.", self._run_id, least)
            self.should_stop = True
        if self._on_alarm is not None:
            self.waiting.extend(alarm for same_rule in alarms.values() for alarm in same_rule)

    def deliver(self) -> None:
        """Call `on_alarm` with what waits. What it raises is logged."""
        while self.waiting and self._on_alarm is not None:
            alarm = self.waiting.popleft()
            try:
                self._on_alarm(alarm)
            except Exception as error:
                log.error("on_alarm failed (%s) with the %s. Training continues.", describe_error(error), alarm)
