"""Evaluation of rules update by update: what the watcher in the trainer runs.

Covers: readings, gates, conditions, streaks, inhibition, coverage, and gaps between updates.
Does not cover: whole columns at once (`esper_analytics.detection`); a property test holds both to the same firings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

from esper_recorder.contract.rules.conditions import (
    BREACH,
    HOLD,
    RESET,
    Outcome,
    Trend,
    compile_condition,
    compile_gate,
    new_trend,
)
from esper_recorder.contract.rules.model import Rule
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import UPDATE_TABLE, Reading, Reason, Rows, Signal, compile_signal

ALL_TABLES: Final = "*"
"""In place of a table's name: rows of every table are missing."""


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
    """How often a rule was evaluated for one key, and how often it was not, by reason."""

    rule: str
    key: str
    evaluated: int
    abstained: Mapping[str, int]


class RuleEvaluator:
    """The state of a rule set over one run. Pass it each update once, in ascending order."""

    def __init__(self, rules: RuleSet) -> None:
        signals = dict.fromkeys(signal for rule in rules.rules for signal in rule.signals)
        positions = {signal: position for position, signal in enumerate(signals)}
        self._phase = rules.phase
        self._tables = tuple(signal.table for signal in signals)
        self._readers = [compile_signal(signal) for signal in signals]
        self._runners = [(_KeyedRunner if rule.key else _Runner)(rule, positions) for rule in rules.rules]
        self._inhibited_by = {rule.name: rule.inhibited_by for rule in rules.rules if rule.inhibited_by is not None}
        self._unrecorded = set(self._tables) - {UPDATE_TABLE}
        self._gaps: list[tuple[str, int, int]] = []
        self._last = 0

    def add_gap(self, table: str, first: int, last: int) -> None:
        """Declare that rows of a table (or of `ALL_TABLES`) are missing from one update to another.

        If the table has no row at such an update, the reason is the recording gap. Nothing that fires depends on it,
        so the replay, which alone knows of gaps found later, fires as the watcher did. Call it before those updates.
        """
        self._gaps.append((table, first, last))
        self._unrecorded.discard(table)

    def update(self, update: int, progress: float | None, rows: Rows) -> list[Firing]:
        """Evaluate one update and return the firings, in the order of the rules.

        Args:
            update: its number; skipped numbers count as a recording gap.
            progress: fraction of the training done, None if its length is unknown.
            rows: its rows. Without its row of `ppo_updates` the update counts as a gap and nothing fires.
        """
        if update > self._last + 1:
            for runner in self._runners:
                runner.skip(update - self._last - 1)
        self._last = max(update, self._last)
        update_rows = rows.get(UPDATE_TABLE)
        if not update_rows:
            for runner in self._runners:
                runner.skip(1)
            return []
        row = update_rows[0]
        if self._unrecorded:
            self._unrecorded -= {table for table in self._unrecorded if rows.get(table)}
        readings: list[Any] = [read(row, rows) for read in self._readers]
        missing = self._missing_at(update) if self._gaps else _NO_TABLES
        if missing:
            readings = [
                Reason.GAP if reading is Reason.NOT_RECORDED and table in missing else reading
                for table, reading in zip(self._tables, readings, strict=True)
            ]
        phase = self._phase(progress)
        firings: list[Firing] = []
        for runner in self._runners:
            for key, value, threshold in runner.run(readings, phase, missing):
                firings.append(Firing(update, runner.name, key, runner.severity, value, threshold, phase, progress))
        if self._inhibited_by and firings:
            fired = {(firing.rule, firing.key) for firing in firings}
            firings = [f for f in firings if (self._inhibited_by.get(f.rule, ""), f.key) not in fired]
        return firings

    def coverage(self) -> list[Coverage]:
        """Return how far each rule was evaluated, by key in alphabetical order; "" if no key was ever recorded."""
        return [
            Coverage(runner.name, key, series.evaluated, self._reasons(runner, series))
            for runner in self._runners
            for key, series in runner.all_series()
        ]

    def _reasons(self, runner: _Runner, series: _Series) -> dict[str, int]:
        """Say `NO_TABLE` for a rule whose tables the run never recorded, except at updates not recorded at all."""
        if not runner.tables <= self._unrecorded:
            return dict(series.abstained)
        gaps = series.abstained[Reason.GAP]
        others = series.abstained.total() - gaps
        return {reason: n for reason, n in ((Reason.NO_TABLE, others), (Reason.GAP, gaps)) if n}

    def _missing_at(self, update: int) -> frozenset[str]:
        missing = {table for table, first, last in self._gaps if first <= update <= last}
        return frozenset(self._tables if ALL_TABLES in missing else missing)


_NO_TABLES: Final[frozenset[str]] = frozenset()

KeyFiring = tuple[str, float, float | None]
"""The key, value and threshold of a firing."""


class _Series:
    """The state of one rule for one key."""

    __slots__ = ("abstained", "evaluated", "streak", "trends")

    def __init__(self, rule: Rule) -> None:
        self.streak = 0
        self.trends: list[Trend] = [new_trend(condition) for condition in rule.conditions]
        self.evaluated = 0
        self.abstained: Counter[str] = Counter()


class _Runner:
    """A rule without a key column, and its only series."""

    def __init__(self, rule: Rule, positions: Mapping[Signal, int]) -> None:
        self.name = rule.name
        self.severity = str(rule.severity)
        self.tables = frozenset(condition.signal.table for condition in rule.conditions)
        self._rule = rule
        self._checks = [
            (positions[condition.signal], condition.signal.table, compile_condition(condition, positions))
            for condition in rule.conditions
        ]
        self._only = self._checks[0] if len(self._checks) == 1 else None  # most rules have one: skip the loops
        self._gates = [
            (positions[gate.signal], gate.signal.key is not None, compile_gate(gate)) for gate in rule.unless
        ]
        self._series = _Series(rule)  # of a rule with a key column: the updates before its first key
        self._streak = rule.streak
        self._keep = rule.keep

    def all_series(self) -> Sequence[tuple[str, _Series]]:
        """Return the series by key, in alphabetical order."""
        return (("", self._series),)

    def skip(self, updates: int) -> None:
        """Count updates that were not recorded."""
        for _, series in self.all_series():
            series.abstained[Reason.GAP] += updates

    def run(self, readings: list[Any], phase: str | None, missing: Collection[str]) -> Sequence[KeyFiring]:
        """Evaluate one update and return what fires.

        Args:
            readings: what each signal reads.
            phase: the phase of the training.
            missing: the tables with a gap at this update.
        """
        series = self._series
        closed = self._closed("", readings) if self._gates else None
        if closed is not None:
            series.abstained[closed] += 1
            return ()
        if self._only is not None:
            position, _, check = self._only
            firing = self._advance(series, check(readings[position], series.trends[0], readings, phase, ""))
        else:
            alternatives = [readings[position] for position, _, _ in self._checks]
            firing = self._advance(series, self._combine(series, alternatives, readings, phase, ""))
        return () if firing is None else (("", *firing),)

    def _closed(self, key: str, readings: list[Any]) -> str | None:
        """Return why a gate is closed for a key; None if all are open."""
        for position, keyed, check_gate in self._gates:
            reading = readings[position]
            closed = check_gate(reading.get(key, Reason.NOT_RECORDED) if keyed else reading)
            if closed is not None:
                return closed
        return None

    def _combine(
        self, series: _Series, alternatives: Sequence[Reading], readings: list[Any], phase: str | None, key: str
    ) -> Outcome | Reason:
        """Combine the alternatives of `any_of`: the first breach, else the first reason, else hold or reset."""
        outcomes = [
            check(reading, trend, readings, phase, key)
            for (_, _, check), reading, trend in zip(self._checks, alternatives, series.trends, strict=True)
        ]
        reason: Reason | None = None
        result: Outcome | None = None
        for outcome in outcomes:
            if isinstance(outcome, Reason):
                reason = reason or outcome
            elif outcome[0] == BREACH:
                return outcome
            elif result is None:
                result = outcome
            elif outcome[0] == HOLD:
                result = (HOLD, *result[1:])
        if reason is not None:
            return reason
        assert result is not None  # a rule has a condition
        return result

    def _advance(self, series: _Series, outcome: Outcome | Reason) -> tuple[float, float | None] | None:
        """Advance the streak by an outcome; return the value and threshold if the rule fires."""
        if isinstance(outcome, Reason):
            series.abstained[outcome] += 1
            return None
        kind, value, threshold = outcome
        series.evaluated += 1
        if kind == BREACH:
            series.streak += 1
            return (value, threshold) if series.streak >= self._streak else None
        if kind == RESET:
            series.streak = 0
        elif self._keep and series.streak >= self._streak:
            return (value, threshold)
        return None


class _KeyedRunner(_Runner):
    """A rule with a key column, and a series for each key."""

    def __init__(self, rule: Rule, positions: Mapping[Signal, int]) -> None:
        super().__init__(rule, positions)
        self._by_key: dict[str, _Series] = {}  # in alphabetical order

    def all_series(self) -> Sequence[tuple[str, _Series]]:
        return tuple(self._by_key.items()) or (("", self._series),)

    def run(self, readings: list[Any], phase: str | None, missing: Collection[str]) -> Sequence[KeyFiring]:
        alternatives: list[Mapping[str, Reading]] = [readings[position] for position, _, _ in self._checks]
        keys = alternatives[0].keys() if len(alternatives) == 1 else {key for by_key in alternatives for key in by_key}
        if not keys <= self._by_key.keys():
            new = {key: _Series(self._rule) for key in keys - self._by_key.keys()}
            self._by_key = dict(sorted((self._by_key | new).items()))
        absent = [Reason.GAP if table in missing else Reason.NOT_RECORDED for _, table, _ in self._checks]
        no_row = Reason.GAP if Reason.GAP in absent else Reason.NOT_RECORDED
        if not self._by_key:
            self._series.abstained[no_row] += 1
            return ()
        firings: list[KeyFiring] = []
        for key, series in self._by_key.items():
            if key not in keys:
                series.abstained[no_row] += 1
                continue
            closed = self._closed(key, readings) if self._gates else None
            if closed is not None:
                series.abstained[closed] += 1
                continue
            if self._only is not None:
                outcome = self._only[2](alternatives[0][key], series.trends[0], readings, phase, key)
            else:
                of_key = [by_key.get(key, reason) for by_key, reason in zip(alternatives, absent, strict=True)]
                outcome = self._combine(series, of_key, readings, phase, key)
            firing = self._advance(series, outcome)
            if firing is not None:
                firings.append((key, *firing))
        return firings
