"""Rules run row by row, one update after the other: what the watcher in the trainer does.

The replay (`esper_analytics.detection.engine`) runs the same rules over whole columns; a property test holds the two to
the same firings.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from esper_recorder.contract.rules.conditions import BEYOND, HELD, HIT, Judgement, State, gate_keeper, judge, new_state
from esper_recorder.contract.rules.model import Rule
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import UPDATE_TABLE, Reading, Reason, Signal
from esper_recorder.contract.rules.signal_reader import Rows, reader

ALL_TABLES: Final = "*"
"""In place of a table's name: rows of every table are lost."""


class Firing(NamedTuple):
    """One rule that fired for one key at one update; a row of the table `alarms`."""

    update: int
    rule: str
    key: str
    severity: str
    value: float | None
    threshold: float | None
    phase: str | None
    progress: float | None


@dataclass(frozen=True, slots=True)
class Coverage:
    """How often a rule looked at one key, and why it could not where it could not."""

    rule: str
    key: str
    evaluated: int
    abstained: Mapping[str, int]


class RuleEvaluator:
    """The state of a rule set over one run. Give it each update once, in ascending order."""

    def __init__(self, rules: RuleSet) -> None:
        signals = dict.fromkeys(signal for rule in rules.rules for signal in rule.signals)
        places = {signal: place for place, signal in enumerate(signals)}
        self._phase = rules.phase
        self._tables = tuple(signal.table for signal in signals)
        self._readers = [reader(signal) for signal in signals]
        self._runners = [(_KeyedRunner if rule.key else _Runner)(rule, places) for rule in rules.rules]
        self._inhibited_by = {rule.name: rule.inhibited_by for rule in rules.rules if rule.inhibited_by is not None}
        self._unmet = set(self._tables) - {UPDATE_TABLE}
        self._losses: list[tuple[str, int, int]] = []
        self._last = 0

    def lose(self, table: str, first: int, last: int) -> None:
        """Rows of a table (`ALL_TABLES` for any) are known to be lost from one update to another.

        Where the table has no row at such an update, the reason is the recording gap. It changes nothing that fires,
        so a loss found out later, which only the replay can know of, fires nothing either. Tell it before its updates.
        """
        self._losses.append((table, first, last))
        self._unmet.discard(table)

    def update(self, update: int, progress: float | None, rows: Rows) -> list[Firing]:
        """Look at one update and return what fires, in the order of the rules.

        Args:
            update: its number; numbers passed over count as a recording gap.
            progress: share of the training done, None where the length was not told.
            rows: its rows. Without its row of `ppo_updates` the update counts as a gap and nothing fires.
        """
        if update > self._last + 1:
            for runner in self._runners:
                runner.skip(update - self._last - 1)
        self._last = max(update, self._last)
        own = rows.get(UPDATE_TABLE)
        if not own:
            for runner in self._runners:
                runner.skip(1)
            return []
        row = own[0]
        if self._unmet:
            self._unmet -= {table for table in self._unmet if rows.get(table)}
        readings: list[Any] = [read(row, rows) for read in self._readers]
        lost = self._lost_at(update) if self._losses else _NOTHING
        if lost:
            readings = [
                Reason.GAP if reading is Reason.NOT_RECORDED and table in lost else reading
                for table, reading in zip(self._tables, readings, strict=True)
            ]
        phase = self._phase(progress)
        fired: list[Firing] = []
        for runner in self._runners:
            for key, value, threshold in runner.run(readings, phase, lost):
                fired.append(Firing(update, runner.name, key, runner.severity, value, threshold, phase, progress))
        if self._inhibited_by and fired:
            loud = {(firing.rule, firing.key) for firing in fired}
            fired = [f for f in fired if (self._inhibited_by.get(f.rule, ""), f.key) not in loud]
        return fired

    def coverage(self) -> list[Coverage]:
        """What each rule saw so far, by key in alphabetical order; the key is empty where no key was ever seen."""
        return [
            Coverage(runner.name, key, series.evaluated, self._reasons(runner, series))
            for runner in self._runners
            for key, series in runner.all_series()
        ]

    def _reasons(self, runner: _Runner, series: _Series) -> dict[str, int]:
        """Of a rule whose tables the run never recorded, that is the reason, but for updates not recorded at all."""
        if not runner.tables <= self._unmet:
            return dict(series.abstained)
        gaps = series.abstained.get(Reason.GAP, 0)
        others = sum(series.abstained.values()) - gaps
        return {reason: n for reason, n in ((Reason.NO_TABLE, others), (Reason.GAP, gaps)) if n}

    def _lost_at(self, update: int) -> frozenset[str]:
        """The tables with rows lost at an update."""
        lost = {table for table, first, last in self._losses if first <= update <= last}
        return frozenset(self._tables if ALL_TABLES in lost else lost)


_NOTHING: Final[frozenset[str]] = frozenset()

Told = tuple[str, float, float | None]
"""The key, value and threshold of a firing."""


class _Series:
    """The state of one rule for one key."""

    __slots__ = ("abstained", "evaluated", "states", "streak")

    def __init__(self, rule: Rule) -> None:
        self.streak = 0
        self.states: list[State] = [new_state(condition) for condition in rule.conditions]
        self.evaluated = 0
        self.abstained: dict[str, int] = {}

    def abstain(self, reason: str, times: int = 1) -> None:
        self.abstained[reason] = self.abstained.get(reason, 0) + times


class _Runner:
    """A rule and its only series."""

    def __init__(self, rule: Rule, places: Mapping[Signal, int]) -> None:
        self.name = rule.name
        self.severity = str(rule.severity)
        self.tables = frozenset(condition.signal.table for condition in rule.conditions)
        self._rule = rule
        self._judges = [
            (places[condition.signal], condition.signal.table, judge(condition, places))
            for condition in rule.conditions
        ]
        self._only = self._judges[0] if len(self._judges) == 1 else None
        self._gates = [(places[gate.signal], gate.signal.key is not None, gate_keeper(gate)) for gate in rule.unless]
        self._series = _Series(rule)  # of a rule with a key column: what it could not see before its first key
        self._streak = rule.streak
        self._keep = rule.keep

    def all_series(self) -> Sequence[tuple[str, _Series]]:
        """By key, in alphabetical order."""
        return (("", self._series),)

    def skip(self, updates: int) -> None:
        """Updates that were not recorded."""
        for _, series in self.all_series():
            series.abstain(Reason.GAP, updates)

    def run(self, readings: list[Any], phase: str | None, lost: Collection[str]) -> Sequence[Told]:
        """What to tell of each series that fires at this update.

        Args:
            readings: what each signal reads.
            phase: the phase of the training.
            lost: the tables with rows lost at this update.
        """
        series = self._series
        for place, _, keep in self._gates:
            shut = keep(readings[place])
            if shut is not None:
                series.abstain(shut)
                return ()
        if self._only is not None:
            place, _, judged_by = self._only
            told = self._look(series, judged_by(readings[place], series.states[0], readings, phase, ""))
        else:
            own = [readings[place] for place, _, _ in self._judges]
            told = self._look(series, self._weigh(series, own, readings, phase, ""))
        return () if told is None else (("", *told),)

    def _weigh(
        self, series: _Series, own: Sequence[Reading], readings: list[Any], phase: str | None, key: str
    ) -> Judgement | Reason:
        """One judgement from those of the alternatives: a hit if one is, else unknown if one is."""
        judged = [
            judged_by(reading, state, readings, phase, key)
            for (_, _, judged_by), reading, state in zip(self._judges, own, series.states, strict=True)
        ]
        known = []
        reason: Reason | None = None
        for one in judged:
            if isinstance(one, Reason):
                reason = reason or one
            elif one[0] == HIT:
                return one
            else:
                known.append(one)
        if reason is not None:
            return reason
        outcome = BEYOND if all(one[0] == BEYOND for one in known) else HELD
        return (outcome, *known[0][1:])

    def _look(self, series: _Series, judged: Judgement | Reason) -> tuple[float, float | None] | None:
        """Take a judgement into the series; the value and threshold to tell if it fires."""
        if isinstance(judged, Reason):
            series.abstain(judged)
            return None
        outcome, value, threshold = judged
        series.evaluated += 1
        if outcome == HIT:
            series.streak += 1
            return (value, threshold) if series.streak >= self._streak else None
        if outcome == BEYOND:
            series.streak = 0
        elif self._keep and series.streak >= self._streak:
            return (value, threshold)
        return None


class _KeyedRunner(_Runner):
    """A rule with a key column, and a series for each key."""

    def __init__(self, rule: Rule, places: Mapping[Signal, int]) -> None:
        super().__init__(rule, places)
        self._by_key: dict[str, _Series] = {}  # in alphabetical order

    def all_series(self) -> Sequence[tuple[str, _Series]]:
        return tuple(self._by_key.items()) or (("", self._series),)

    def run(self, readings: list[Any], phase: str | None, lost: Collection[str]) -> Sequence[Told]:
        own: list[Mapping[str, Reading]] = [readings[place] for place, _, _ in self._judges]
        there = own[0] if len(own) == 1 else {key: None for reading in own for key in reading}
        if not there.keys() <= self._by_key.keys():
            new = {key: _Series(self._rule) for key in there.keys() - self._by_key.keys()}
            self._by_key = dict(sorted((self._by_key | new).items()))
        absent = [_absent(table, lost) for _, table, _ in self._judges] if lost else None
        whole = Reason.NOT_RECORDED if absent is None or Reason.GAP not in absent else Reason.GAP
        if not self._by_key:
            self._series.abstain(whole)
            return ()
        told: list[Told] = []
        for key, series in self._by_key.items():
            if key not in there:
                series.abstain(whole)
                continue
            shut = self._shut(key, readings) if self._gates else None
            if shut is not None:
                series.abstain(shut)
                continue
            if self._only is not None:
                judged = self._only[2](own[0][key], series.states[0], readings, phase, key)
            else:
                gone = absent or [Reason.NOT_RECORDED] * len(own)
                of_key = [reading.get(key, reason) for reading, reason in zip(own, gone, strict=True)]
                judged = self._weigh(series, of_key, readings, phase, key)
            found = self._look(series, judged)
            if found is not None:
                told.append((key, *found))
        return told

    def _shut(self, key: str, readings: list[Any]) -> str | None:
        for place, keyed, keep in self._gates:
            reading = readings[place]
            shut = keep(reading.get(key, Reason.NOT_RECORDED) if keyed else reading)
            if shut is not None:
                return shut
        return None


def _absent(table: str, lost: Collection[str]) -> Reason:
    """Why there is no row of a table."""
    return Reason.GAP if table in lost else Reason.NOT_RECORDED
