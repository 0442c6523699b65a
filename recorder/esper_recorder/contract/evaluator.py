"""Rules run row by row, one update after the other: what the watcher in the trainer does.

The replay (`esper_analytics.replay.engine`) runs the same rules over whole columns; a property test holds the two to
the same firings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from esper_recorder.contract.compare import above, below, nonfinite
from esper_recorder.contract.ema import Average, Previous
from esper_recorder.contract.rule import Condition, Gate, Rule, Test
from esper_recorder.contract.rules import RuleSet
from esper_recorder.contract.signals import UPDATE_TABLE, Reading, Reason, Signal

Rows = Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True, slots=True)
class Firing:
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
        self._phase = rules.phase
        self._runners = [_Runner(rule) for rule in rules.rules]
        self._yields = {rule.name: rule.yields_to for rule in rules.rules if rule.yields_to is not None}
        self._last = 0

    def update(self, update: int, progress: float | None, rows: Rows) -> list[Firing]:
        """Look at one update and return what fires, in the order of the rules.

        Args:
            update: its number; numbers passed over count as a recording gap.
            progress: share of the training done, None where the length was not told.
            rows: its rows by table, each a mapping of column to value; what is not there is NULL. Without its row of
                `ppo_updates` the update counts as a gap and nothing fires.
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
        phase = self._phase(progress)
        fired: list[Firing] = []
        row = own[0]
        for runner in self._runners:
            for key, (value, threshold) in runner.run(row, rows, phase):
                rule = runner.rule
                fired.append(Firing(update, rule.name, key, str(rule.severity), value, threshold, phase, progress))
        if self._yields and fired:
            loud = {(firing.rule, firing.key) for firing in fired}
            fired = [f for f in fired if (self._yields.get(f.rule, ""), f.key) not in loud]
        return fired

    def coverage(self) -> list[Coverage]:
        """What each rule saw so far, by key in alphabetical order; the key is empty where no key was ever seen."""
        return [
            Coverage(runner.rule.name, key, series.evaluated, dict(series.abstained))
            for runner in self._runners
            for key, series in (sorted(runner.series.items()) or [("", runner.unseen)])
        ]


_HIT: Final = 1
_BEYOND: Final = 2
_HELD: Final = 3

Judgement = tuple[int, float, float | None]
"""_HIT, _BEYOND or _HELD; the value, as transformed; the threshold."""

Told = tuple[float, float | None]
"""The value and the threshold of a firing."""

State = Average | Previous | None


class _Series:
    """The state of one rule for one key."""

    __slots__ = ("abstained", "evaluated", "states", "streak")

    def __init__(self, judges: Sequence[_Judge]) -> None:
        self.streak = 0
        self.states: list[State] = [judge.new_state() for judge in judges]
        self.evaluated = 0
        self.abstained: dict[str, int] = {}

    def abstain(self, reason: str, times: int = 1) -> None:
        self.abstained[reason] = self.abstained.get(reason, 0) + times


class _Runner:
    """One rule and its series."""

    def __init__(self, rule: Rule) -> None:
        self.rule = rule
        self.series: dict[str, _Series] = {}
        self.unseen = _Series(())  # counts what a keyed rule could not see before its first key
        self._judges = [_Judge(condition) for condition in rule.conditions]
        self._gates = [_GateKeeper(gate) for gate in rule.unless]
        self._streak = rule.streak
        self._keep = rule.keep
        self._single = self._judges[0] if len(self._judges) == 1 else None
        if rule.key is None:
            self.series[""] = _Series(self._judges)

    def skip(self, updates: int) -> None:
        """Updates that were not recorded."""
        for series in self.series.values() or (self.unseen,):
            series.abstain(Reason.GAP, updates)

    def run(self, row: Mapping[str, Any], rows: Rows, phase: str | None) -> Sequence[tuple[str, Told]]:
        """The key of each series that fires at this update, with the value and threshold to tell."""
        if self.rule.key is not None:
            return self._run_keyed(row, rows, phase)
        series = self.series[""]
        for gate in self._gates:
            closed = gate.closed(gate.read(row, rows))
            if closed is not None:
                series.abstain(closed)
                return ()
        if self._single is not None:
            told = self._look(
                series, self._single.judge(self._single.read(row, rows), series.states[0], row, phase, "")
            )
        else:
            readings = [judge.read(row, rows) for judge in self._judges]
            told = self._look(series, self._weigh(series, readings, row, phase, ""))
        return () if told is None else (("", told),)

    def _run_keyed(self, row: Mapping[str, Any], rows: Rows, phase: str | None) -> Sequence[tuple[str, Told]]:
        readings = [judge.read_keys(rows) for judge in self._judges]
        keys = readings[0].keys() if len(readings) == 1 else {key for reading in readings for key in reading}
        if not keys and not self.series:
            self.unseen.abstain(Reason.NOT_RECORDED)
        if self.series.keys() != keys:
            for key in self.series.keys() - keys:
                self.series[key].abstain(Reason.NOT_RECORDED)
            for key in keys - self.series.keys():
                self.series[key] = _Series(self._judges)
        gates = [(g, g.read_keys(rows) if g.keyed else {"": g.read(row, rows)}) for g in self._gates]
        fired = []
        for key in sorted(keys):
            series = self.series[key]
            shut: str | None = None
            for gate, values in gates:
                shut = shut or gate.closed(values.get(key if gate.keyed else "", Reason.NOT_RECORDED))
            if shut is not None:
                series.abstain(shut)
                continue
            if self._single is not None:
                judged = self._single.judge(readings[0][key], series.states[0], row, phase, key)
            else:
                own = [reading.get(key, Reason.NOT_RECORDED) for reading in readings]
                judged = self._weigh(series, own, row, phase, key)
            told = self._look(series, judged)
            if told is not None:
                fired.append((key, told))
        return fired

    def _weigh(
        self, series: _Series, readings: Sequence[Reading], row: Mapping[str, Any], phase: str | None, key: str
    ) -> Judgement | Reason:
        """One judgement from those of the alternatives: a hit if one is, else unknown if one is."""
        judged = [
            judge.judge(reading, state, row, phase, key)
            for judge, reading, state in zip(self._judges, readings, series.states, strict=True)
        ]
        known = []
        reason: Reason | None = None
        for one in judged:
            if isinstance(one, Reason):
                reason = reason or one
            elif one[0] == _HIT:
                return one
            else:
                known.append(one)
        if reason is not None:
            return reason
        outcome = _BEYOND if all(one[0] == _BEYOND for one in known) else _HELD
        return (outcome, *known[0][1:])

    def _look(self, series: _Series, judged: Judgement | Reason) -> Told | None:
        """Take a judgement into the series; what to tell if it fires."""
        if isinstance(judged, Reason):
            series.abstain(judged)
            return None
        outcome, value, threshold = judged
        series.evaluated += 1
        if outcome == _HIT:
            series.streak += 1
            return (value, threshold) if series.streak >= self._streak else None
        if outcome == _BEYOND:
            series.streak = 0
        elif self._keep and series.streak >= self._streak:
            return (value, threshold)
        return None


class _Judge:
    """One condition: reads its signal and says what a value is to it."""

    __slots__ = ("_condition", "_hits", "_level", "_number", "_passes", "_test", "read", "read_keys")

    def __init__(self, condition: Condition) -> None:
        self._condition = condition
        self._test = condition.test
        self._hits, self._passes = (above, below) if self._test is Test.ABOVE else (below, above)
        self._level = condition.reset
        threshold = condition.threshold
        self._number = threshold.number if threshold is not None and threshold.by == "number" else None
        self.read, self.read_keys = _readers(condition.signal)

    def new_state(self) -> State:
        if self._condition.drift is not None:
            return Average(self._condition.drift)
        return Previous() if self._condition.step else None

    def judge(
        self, reading: Reading, state: State, row: Mapping[str, Any], phase: str | None, key: str
    ) -> Judgement | Reason:
        if isinstance(reading, Reason):
            return reading
        value = reading
        if self._test is Test.NONFINITE:
            return (_HIT if nonfinite(value) else _BEYOND, value, None)
        if state is not None:
            if nonfinite(value):
                return Reason.NOT_FINITE
            moved = state.push(value)
            if moved is None:
                return Reason.WARMING_UP
            value = moved
        threshold = self._number
        if threshold is None:
            threshold = self._threshold(row, phase, key)
            if threshold is None or threshold != threshold:
                return Reason.NO_THRESHOLD
        if value != value:
            return Reason.NOT_FINITE
        if self._hits(value, threshold):
            return (_HIT, value, threshold)
        if self._level is None or self._passes(value, self._reset_level(threshold)):
            return (_BEYOND, value, threshold)
        return (_HELD, value, threshold)

    def _threshold(self, row: Mapping[str, Any], phase: str | None, key: str) -> float | None:
        threshold = self._condition.threshold
        assert threshold is not None  # only `nonfinite` has none
        if threshold.signal is not None:
            value = row.get(threshold.signal.column)  # type: ignore[arg-type]  # a threshold reads a column
            return threshold.number if value is None else float(value) * threshold.times
        name = phase if threshold.by == "phase" else key
        return threshold.number if name is None else threshold.values.get(name, threshold.number)

    def _reset_level(self, threshold: float) -> float:
        level = self._level
        assert level is not None
        return level.number if level.number is not None else threshold * (level.times or 0.0)


class _GateKeeper:
    """One gate."""

    __slots__ = ("_gate", "_reason", "keyed", "read", "read_keys")

    def __init__(self, gate: Gate) -> None:
        self._gate = gate
        self._reason = gate_reason(gate)
        self.keyed = gate.signal.key is not None
        self.read, self.read_keys = _readers(gate.signal)

    def closed(self, reading: Reading) -> str | None:
        """Why the rule does not look, or None where the gate is open."""
        gate = self._gate
        if isinstance(reading, Reason):
            return Reason.GATE_UNKNOWN
        if gate.test is Test.NONFINITE:
            return self._reason if nonfinite(reading) else None
        if reading != reading:
            return Reason.GATE_UNKNOWN
        shut = above(reading, gate.number) if gate.test is Test.ABOVE else below(reading, gate.number)
        return self._reason if shut else None


def gate_reason(gate: Gate) -> str:
    """What coverage says where this gate is closed."""
    return f"{Reason.NOT_APPLICABLE}: {gate.describe()}"


_ReadOne = Callable[[Mapping[str, Any], Rows], Reading]
_ReadKeys = Callable[[Rows], Mapping[str, Reading]]


def _readers(signal: Signal) -> tuple[_ReadOne, _ReadKeys]:
    """How to read the signal, without a key column from the update's own row and all its rows, and with one."""
    table, column = signal.table, signal.column

    def read_keys(rows: Rows) -> Mapping[str, Reading]:
        return signal.read(rows.get(table, ()))

    def read_rows(row: Mapping[str, Any], rows: Rows) -> Reading:
        return signal.read((row,) if table == UPDATE_TABLE else rows.get(table, ()))[""]

    def read_column(row: Mapping[str, Any], rows: Rows) -> Reading:
        value = row.get(column)  # type: ignore[arg-type]  # only used where there is a column
        return Reason.NOT_MEASURED if value is None else float(value)

    def count_column(row: Mapping[str, Any], rows: Rows) -> Reading:
        value = row.get(column)  # type: ignore[arg-type]  # only used where there is a column
        return Reason.NOT_MEASURED if value is None else float(len(value))

    if table != UPDATE_TABLE or column is None or signal.min_n is not None:
        return read_rows, read_keys
    return count_column if signal.counts else read_column, read_keys
