"""Rules run over whole tables at once, with the meaning of `esper_recorder.contract.rules.evaluator`.

A block of runs (or a stretch of one long run) is read at a time and judged key by key, on all cores; averages run
through the contract's own accumulator. A property test holds both evaluators to the same firings.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import numpy as np
import polars as pl

from esper_analytics.detection.arrays import Codes, Flags, Floats, Ints, code
from esper_analytics.detection.block import Block, Loss, Reading
from esper_analytics.detection.coverage import CoverageCounts, Seen, tables_of, texts_at
from esper_analytics.detection.judge import Found, Judged, State, Values, combine, gate_codes, judge, moved
from esper_analytics.detection.signal_columns import read
from esper_recorder.contract.rules.model import Condition, Rule
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import UPDATE_TABLE, Reason, Signal

FIRING_COLUMNS: Final = {
    "run_id": pl.String,
    "update": pl.Int64,
    "rule": pl.String,
    "key": pl.String,
    "severity": pl.String,
    "value": pl.Float64,
    "threshold": pl.Float64,
    "phase": pl.String,
    "progress": pl.Float64,
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one rule set found in some runs.

    Attributes:
        firings: the columns of `FIRING_COLUMNS`, by run, update and the rules' order; then `looked`, how many times
            its series had looked up to then, and `worse`, larger where the value is further beyond the threshold.
        coverage: the columns of `COVERAGE_COLUMNS`, a row per (run, rule, key, reason), and one with an empty reason
            where the rule never abstained; then `looked`, as above, at the end of the run, and `series`.
        silenced: `series` and `looked` of each look at which a rule would have fired, had it not yielded to another.
    """

    firings: pl.DataFrame
    coverage: pl.DataFrame
    silenced: pl.DataFrame


def evaluate(
    rules: RuleSet, frames: Mapping[str, pl.LazyFrame], losses: Mapping[str, Sequence[Loss]] | None = None
) -> Evaluation:
    """Run the rules over every run of the tables.

    Args:
        rules: what to look for.
        frames: by table, rows of one or more runs. A table not given was not recorded, nor a column not in it.
        losses: by run, the rows that are known to be lost.
    """
    runs = frames[UPDATE_TABLE].select(pl.col("run_id").unique().sort()).collect().to_series().to_list()
    engine = Engine(rules)
    for run_id in runs:
        own = {table: [frame.filter(pl.col("run_id") == run_id)] for table, frame in frames.items()}
        engine.feed(Block(rules, read(rules, own), [run_id], losses))
    return engine.finish()


_ALONE: Final = 20_000  # blocks of fewer updates are judged in this thread: starting others would take longer


class Engine:
    """Rules over runs, block by block: whole runs, or the stretches of one run in their order."""

    def __init__(self, rules: RuleSet) -> None:
        self._rules = rules
        self._runs: list[str] = []
        self._updates: list[int] = []  # of each run, how many there are, and the number of the last
        self._last: list[int] = []
        self._states: dict[tuple[int, str], State] = {}
        self._keys: dict[str, int] = {"": 0}
        self._firings: list[pl.DataFrame] = []
        self._silenced: list[pl.DataFrame] = []
        self._coverage = CoverageCounts(rules)
        self._silent = _places_that_yield(rules)

    @property
    def begun(self) -> bool:
        """A block was fed."""
        return bool(self._runs)

    def feed(self, block: Block, *, continued: bool = False, continues: bool = False) -> None:
        """Judge a block.

        Args:
            block: its runs are new, except the only one of a block that is `continued`.
            continued: the block goes on where the last one, of the same run, ended.
            continues: the block's last run goes on in the next one.
        """
        if not continued:
            self._states = {}
        if not block.height:
            return
        goes_on = continued and bool(self._runs) and self._runs[-1] == block.runs[0]
        offset = len(self._runs) - goes_on
        self._runs += block.runs[goes_on:]
        starts = np.flatnonzero(np.diff(block.run, prepend=-1))
        sizes = np.diff(np.append(starts, block.height))
        done_before = self._updates[-1] if goes_on else 0
        self._updates += [0] * (len(self._runs) - len(self._updates))
        self._last += [0] * (len(self._runs) - len(self._last))
        for run, start, size in zip(block.run[starts].tolist(), starts.tolist(), sizes.tolist(), strict=True):
            self._updates[offset + run] += size
            self._last[offset + run] = int(block.update[start + size - 1])
        self._coverage.begin(block, offset)
        signals = dict.fromkeys(signal for rule in self._rules.rules for signal in rule.signals)
        with _Workers(block.height) as workers:
            workers.each(block.of, signals)
            tasks = [
                _Task(rule, place, key, block, self._states)
                for place, rule in enumerate(self._rules.rules)
                for key in _keys(rule, block)
            ]
            found = workers.each(_Task.run, tasks)
        for task, one in zip(tasks, found, strict=True):
            self._coverage.add((task.place, task.key), task.seen(one.reasons, offset, done_before, starts))
        if continues:
            last = int(block.run[-1])
            ended = {(t.place, t.key): t.states[-1] for t in tasks if t.last_run == last}
            self._states = {**self._states, **ended}
        self._fire(tasks, found, block, offset)

    def lost_up_to(self, run_id: str, update: int) -> None:
        """Updates of a run up to this one are known to have been made: those without a row are a recording gap."""
        if run_id in self._runs:
            place = self._runs.index(run_id)
            self._last[place] = max(self._last[place], update)

    def finish(self) -> Evaluation:
        """All that the blocks came to."""
        rules, runs = self._rules.rules, self._runs
        found = pl.concat([pl.DataFrame(schema=_FOUND), *self._firings])
        names = [name for name, _ in self._rules.phases]
        firings = found.select(
            texts_at("run_id", found["run"], runs),
            "update",
            texts_at("rule", found["rule"], [rule.name for rule in rules]),
            texts_at("key", found["key"], list(self._keys)),
            texts_at("severity", found["rule"], [str(rule.severity) for rule in rules]),
            "value",
            "threshold",
            texts_at("phase", found["phase"], names),
            "progress",
            "looked",
            "worse",
            self._number().alias("series"),
        )
        updates, last = (np.array(numbers, np.int64) for numbers in (self._updates, self._last))
        silenced = pl.concat([pl.DataFrame(schema=_SILENCED), *self._silenced])
        return Evaluation(
            firings,
            self._coverage.frame(runs, updates, last, self._keys),
            silenced.select(self._number().alias("series"), "looked"),
        )

    def _number(self) -> pl.Expr:
        """A number for each run, rule and key."""
        of_rule = pl.col("run").cast(pl.Int64) * len(self._rules.rules) + pl.col("rule")
        return of_rule * len(self._keys) + pl.col("key")

    def _fire(self, tasks: Sequence[_Task], found: Sequence[Found], block: Block, offset: int) -> None:
        """Take in the firings of a block, by update and then in the order of the tasks: that of rules and keys."""
        for key in sorted({task.key for task in tasks}):
            self._keys.setdefault(key, len(self._keys))
        firing = [
            (task, one, *self._heard(task, one, tasks, found))
            for task, one in zip(tasks, found, strict=True)
            if len(one.at)
        ]
        # a counting sort: how many fire at each update, then each series' firings to their places
        places = np.zeros(block.height + 1, np.int64)
        for _, _, rows, _ in firing:
            places[rows + 1] += 1
        np.cumsum(places, out=places)
        count = int(places[-1])
        row = np.empty(count, np.int64)
        out = {name: np.empty(count, kind) for name, kind in _SORTED.items()}
        for task, one, rows, kept in firing:
            at = places[rows]
            places[rows] += 1
            row[at] = rows
            out["rule"][at] = task.place
            out["key"][at] = self._keys[task.key]
            for name in ("value", "threshold", "looked", "worse"):
                values = getattr(one, name)
                out[name][at] = values if kept is None else values[kept]
            if kept is not None and not kept.all():
                self._silence(task, one, ~kept, offset)
        if not count:
            return
        self._firings.append(
            pl.DataFrame(
                {
                    "run": (block.run[row] + offset).astype(np.int32),
                    "update": block.update[row],
                    **out,
                    "phase": block.phase[row].astype(np.int32),
                }
            )
            .select(
                pl.col("threshold").fill_nan(None),
                block.progress.gather(row).alias("progress"),
                pl.exclude("threshold", "progress"),
            )
            .select(list(_FOUND))
        )

    def _silence(self, task: _Task, one: Found, gone: Flags, offset: int) -> None:
        """Take in the looks at which a rule was silent only as it yields to another."""
        looked = one.looked[gone]
        columns = {
            "run": task.block.run[task.rows_of(one.at)[gone]] + offset,
            "rule": np.full(len(looked), task.place),
            "key": np.full(len(looked), self._keys[task.key]),
            "looked": looked,
        }
        self._silenced.append(pl.DataFrame(columns).cast(pl.Schema(_SILENCED)))

    def _heard(
        self, task: _Task, one: Found, tasks: Sequence[_Task], found: Sequence[Found]
    ) -> tuple[Ints, Flags | None]:
        """The updates it is told at, as places in the block, and which of its firings these are (None for all)."""
        rows = task.rows_of(one.at)
        if task.place not in self._silent:
            return rows, None
        for other, louder in zip(tasks, found, strict=True):
            if other.place == self._silent[task.place] and other.key == task.key and len(louder.at):
                # the louder rule has the same key column, but perhaps rows at other updates
                kept = ~np.isin(rows, other.rows_of(louder.at), assume_unique=True)
                return rows[kept], kept
        return rows, None


_FOUND: Final = {
    "run": pl.Int32,
    "update": pl.Int64,
    "rule": pl.Int32,
    "key": pl.Int32,
    "value": pl.Float64,
    "threshold": pl.Float64,
    "phase": pl.Int32,
    "progress": pl.Float64,
    "looked": pl.Int64,
    "worse": pl.Float64,
}
_SILENCED: Final = {"run": pl.Int32, "rule": pl.Int32, "key": pl.Int32, "looked": pl.Int64}
_SORTED: Final = {
    "rule": np.int32,
    "key": np.int32,
    "value": np.float64,
    "threshold": np.float64,
    "looked": np.int64,
    "worse": np.float64,
}
T = TypeVar("T")
R = TypeVar("R")


class _Workers:
    """Maps a function over items, on all cores where the block is large enough to be worth it."""

    def __init__(self, height: int) -> None:
        self._pool = ThreadPoolExecutor(pl.thread_pool_size()) if height >= _ALONE else None

    def __enter__(self) -> _Workers:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)

    def each(self, function: Callable[[T], R], items: Iterable[T]) -> list[R]:
        mapped = map(function, items) if self._pool is None else self._pool.map(function, items)
        return list(mapped)


class _Task:
    """One rule and key on one block.

    Attributes:
        rows: the updates it has rows at, as places in the block; None for all.
        begins: where among them another run begins.
        states: of each of these runs.
    """

    def __init__(
        self, rule: Rule, place: int, key: str, block: Block, carried: Mapping[tuple[int, str], State]
    ) -> None:
        self.rule, self.place, self.key, self.block = rule, place, key, block
        self.rows = None if rule.key is None else _rows_of([block.of(c.signal).get(key) for c in rule.conditions])
        self.height = block.height if self.rows is None else len(self.rows)
        self.begins = [0]
        if len(block.runs) > 1:
            run = block.run if self.rows is None else block.run[self.rows]
            self.begins = np.flatnonzero(np.diff(run, prepend=-1)).tolist()
        self.last_run = int(block.run[-1 if self.rows is None else self.rows[-1]])
        self.states = [State() for _ in self.begins]
        if (place, key) in carried:
            self.states[0] = carried[place, key]

    def run(self) -> Found:
        """Judge it."""
        rule = self.rule
        with np.errstate(all="ignore"):  # what comes out not finite is seen to
            gate = gate_codes(rule.unless, [self._reading(gate.signal) for gate in rule.unless], self.height)
            judged = [self._judged(condition, i, gate) for i, condition in enumerate(rule.conditions)]
            return combine(rule, judged, gate, self.begins, self.states)

    def seen(self, reasons: Codes | None, offset: int, done_before: int, starts: Ints) -> Seen:
        """What the block holds of it.

        Args:
            reasons: what it came to.
            offset: the number of the block's first run.
            done_before: how many updates of that run were in blocks before this one.
            starts: where in the block each run begins.
        """
        begins = np.array(self.begins, np.int64)
        first = begins if self.rows is None else self.rows[begins]
        run = self.block.run[first]
        before = first - starts[np.searchsorted(self.block.run[starts], run)]
        before += np.where(run == 0, done_before, 0)
        lost = None if self.rule.key is None else self.block.lost(tables_of(self.rule))
        lost = lost if lost is None or self.rows is None else lost[self.rows]
        return Seen(run + offset, self.block.update[first], before, begins, self.height, reasons, lost)

    def rows_of(self, at: Ints) -> Ints:
        """The places in the block."""
        return at if self.rows is None else self.rows[at]

    def _judged(self, condition: Condition, place: int, gate: Any) -> Judged:
        reading = self._reading(condition.signal)
        if condition.moves:
            reading = moved(condition, place, reading, gate, self.begins, self.states)
        return judge(condition, reading, self._threshold(condition))

    def _reading(self, signal: Signal) -> Values:
        found = self.block.of(signal).get(self.key if signal.key is not None else "")
        nothing = Reading(np.empty(0, np.int64), np.empty(0), None)
        values, codes = (found or nothing).at(self.rows, self.block.height)
        lost = self.block.lost(frozenset({signal.table}))
        if codes is not None and lost is not None:
            gone = (codes == code(Reason.NOT_RECORDED)) & (lost if self.rows is None else lost[self.rows])
            codes = np.where(gone, code(Reason.GAP), codes).astype(np.uint8)
        return values, codes

    def _threshold(self, condition: Condition) -> Floats | float:
        """NaN where there is none."""
        threshold = condition.threshold
        if threshold is None:
            return np.nan
        otherwise = np.nan if threshold.number is None else threshold.number
        if threshold.signal is not None:
            value, missing = self.block.column(threshold.signal)
            value = value * threshold.times
            value = value if missing is None else np.where(missing, otherwise, value)
            return value if self.rows is None else value[self.rows]
        if threshold.by == "number":
            return otherwise
        if threshold.by == "key":
            return threshold.values.get(self.key, otherwise)
        # -1, no phase, takes the last
        names = self.block.phases
        numbers = np.array([*(threshold.values.get(name, otherwise) for name in names), otherwise])
        return numbers[self.block.phase if self.rows is None else self.block.phase[self.rows]]


def _rows_of(readings: list[Any]) -> Ints | None:
    """The updates that any of the readings has; None for all of the block."""
    there = [reading.rows for reading in readings if reading is not None]
    if any(rows is None for rows in there):
        return None
    return there[0] if len(there) == 1 else np.unique(np.concatenate(there))


def _keys(rule: Rule, block: Block) -> list[str]:
    if rule.key is None:
        return [""]
    return sorted({key for condition in rule.conditions for key in block.of(condition.signal)})


def _places_that_yield(rules: RuleSet) -> dict[int, int]:
    """The place of a rule that yields -> that of the one it yields to."""
    places = {rule.name: place for place, rule in enumerate(rules.rules)}
    return {places[rule.name]: places[rule.inhibited_by] for rule in rules.rules if rule.inhibited_by is not None}
