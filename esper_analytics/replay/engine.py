"""Rules run over whole tables at once, with the meaning of `esper_recorder.contract.evaluator`.

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

from esper_analytics.replay.block import REASONS, Block, Floats, Ints, Loss, Reading, code, read
from esper_analytics.replay.series import FIRST_GATE, Found, Judged, State, Values, combine, gate_codes, judge, moved
from esper_recorder.contract.judging import gate_reason
from esper_recorder.contract.rule import Condition, Rule
from esper_recorder.contract.rules import RuleSet
from esper_recorder.contract.signals import UPDATE_TABLE, Reason, Signal

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
COVERAGE_COLUMNS: Final = {
    "run_id": pl.String,
    "rule": pl.String,
    "key": pl.String,
    "evaluated": pl.Int64,
    "reason": pl.String,
    "abstained": pl.Int64,
}


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one rule set found in some runs.

    Attributes:
        firings: the columns of `FIRING_COLUMNS`, by run, update and the rules' order; then `looked`, how many times
            its series had looked up to then, and `worse`, larger where the value is further beyond the threshold.
        coverage: the columns of `COVERAGE_COLUMNS`, a row per (run, rule, key, reason), and one with an empty reason
            where the rule never abstained; then `looked`, as above, at the end of the run, and `series`.
    """

    firings: pl.DataFrame
    coverage: pl.DataFrame


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
        self._recorded: dict[frozenset[str], set[int]] = {_tables(rule): set() for rule in rules.rules}
        self._lost: dict[
            tuple[int, int], list[int]
        ] = {}  # rule, run -> its updates that lost rows of the rule's tables
        self._keys: dict[str, int] = {"": 0}
        self._firings: list[pl.DataFrame] = []
        self._series: list[pl.DataFrame] = []
        self._counts: list[pl.DataFrame] = []
        self._silent = _places_that_yield(rules)

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
        for tables, recorded in self._recorded.items():
            recorded.update(offset + run for table in tables for run in block.runs_that_record(table))
        self._lose(block, offset)
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
            self._cover(task, one, offset, done_before, starts)
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
        firings = pl.concat([pl.DataFrame(schema=_FOUND), *self._firings])
        names = [name for name, _ in self._rules.phases]
        firings = firings.select(
            _text("run", runs, "run_id"),
            "update",
            _text("rule", [rule.name for rule in rules]),
            _text("key", list(self._keys)),
            _text("rule", [str(rule.severity) for rule in rules], "severity"),
            "value",
            pl.col("threshold").fill_nan(None),
            _text("phase", names),
            "progress",
            "looked",
            "worse",
            self._number().alias("series"),
        )
        coverage = pl.concat([pl.DataFrame(schema=_COVERED), *(self._covered(p, rule) for p, rule in enumerate(rules))])
        number = _text("run", runs, "run_id")
        return Evaluation(firings, coverage.select(number, *list(COVERAGE_COLUMNS)[1:], "looked", "series"))

    def _lose(self, block: Block, offset: int) -> None:
        for place, rule in enumerate(self._rules.rules):
            lost = block.lost(_tables(rule)) if rule.key is not None else None
            for row in () if lost is None else np.flatnonzero(lost).tolist():
                self._lost.setdefault((place, offset + int(block.run[row])), []).append(int(block.update[row]))

    def _number(self) -> pl.Expr:
        """A number for each run, rule and key."""
        of_rule = pl.col("run").cast(pl.Int64) * len(self._rules.rules) + pl.col("rule")
        return of_rule * len(self._keys) + pl.col("key")

    def _fire(self, tasks: list[_Task], found: list[Found], block: Block, offset: int) -> None:
        loud = {(task.place, task.key): one for task, one in zip(tasks, found, strict=True)}
        keys = sorted({task.key for task in tasks})
        numbers = {key: number for number, key in enumerate(keys)}
        for key in keys:
            self._keys.setdefault(key, len(self._keys))
        known = np.array([self._keys[key] for key in keys], np.int64)
        parts: list[dict[str, Any]] = []
        for task, one in zip(tasks, found, strict=True):
            rows, kept = task.rows_of(one.at), np.ones(len(one.at), bool)
            if task.place in self._silent and len(rows):
                other = loud.get((self._silent[task.place], task.key))
                if other is not None and len(other.at):
                    # the louder rule has the same key column, but perhaps rows at other updates
                    others = next(t for t in tasks if t.place == self._silent[task.place] and t.key == task.key)
                    kept = ~np.isin(rows, others.rows_of(other.at), assume_unique=True)
            if not len(rows[kept]):
                continue
            parts.append(
                {
                    "row": rows[kept],
                    "rule": np.full(len(rows[kept]), task.place, np.int32),
                    "number": np.full(len(rows[kept]), numbers[task.key], np.int32),
                    "value": one.value[kept],
                    "threshold": one.threshold[kept],
                    "looked": one.looked[kept],
                    "worse": one.worse[kept],
                }
            )
        if not parts:
            return
        frame = pl.DataFrame({name: np.concatenate([part[name] for part in parts]) for name in parts[0]})
        if len(parts) > 1:
            frame = frame.sort("row", "rule", "number")
        row = frame.get_column("row").to_numpy()
        self._firings.append(
            frame.select(
                pl.Series("run", block.run[row] + offset, pl.UInt32),
                pl.Series("update", block.update[row], pl.Int64),
                "rule",
                pl.Series("key", known[frame.get_column("number").to_numpy()]),
                "value",
                "threshold",
                pl.Series("phase", block.phase[row], pl.Int32),
                block.progress[row].alias("progress"),
                "looked",
                "worse",
            )
        )

    def _cover(self, task: _Task, one: Found, offset: int, done_before: int, starts: Ints) -> None:
        begins = np.array(task.begins, np.int64)
        rows = np.diff(np.append(begins, task.height))
        first = begins if task.rows is None else task.rows[begins]
        run = task.block.run[first]
        before = first - starts[np.searchsorted(task.block.run[starts], run)]
        before = np.where(run == 0, before + done_before, before)
        abstained = np.zeros(len(begins), np.int64)
        for reason in () if one.reasons is None else np.flatnonzero(np.bincount(one.reasons)).tolist():
            if reason == 0:
                continue
            times = np.add.reduceat(one.reasons == reason, begins, dtype=np.int64)
            abstained += times
            self._counts.append(
                pl.DataFrame({"run": run + offset, "count": times})
                .filter(pl.col("count") > 0)
                .with_columns(rule=pl.lit(task.place), key=pl.lit(task.key), code=pl.lit(reason, pl.UInt8))
            )
        lost = task.block.lost(_tables(task.rule)) if task.rows is not None else None
        lost_there = np.zeros(len(begins), np.int64)
        if lost is not None:
            lost_there = np.add.reduceat(lost[task.rows], begins, dtype=np.int64)
        self._series.append(
            pl.DataFrame(
                {
                    "run": run + offset,
                    "since": task.block.update[first],
                    "before": before,
                    "rows": rows,
                    "evaluated": rows - abstained,
                    "lost_there": lost_there,
                }
            ).with_columns(rule=pl.lit(task.place), key=pl.lit(task.key))
        )

    def _covered(self, place: int, rule: Rule) -> pl.DataFrame:
        """The coverage of one rule over all runs."""
        spans = pl.DataFrame(
            {"run": range(len(self._runs)), "updates": self._updates, "last": self._last}, _SPANS
        ).filter(pl.col("updates") > 0)
        series = (
            self._of_rule(self._series, _SERIES, place)
            .group_by("run", "key")
            .agg(pl.col("since", "before").min(), pl.col("rows", "evaluated", "lost_there").sum())
        )
        if rule.key is None:
            series = series.with_columns(since=pl.lit(1, pl.Int64), before=pl.lit(0, pl.Int64))
        unseen = spans.join(series, on="run", how="anti").select(
            "run",
            key=pl.lit(""),
            since=pl.lit(1, pl.Int64),
            before=pl.lit(0, pl.Int64),
            rows=pl.lit(0, pl.Int64),
            evaluated=pl.lit(0, pl.Int64),
            lost_there=pl.lit(0, pl.Int64),
        )
        series = pl.concat([series, unseen]).join(spans, on="run")
        there = pl.col("updates") - pl.col("before")
        of_table = series.select("run", "key", self._lost_without_rows(place, series).alias("count"), _code(Reason.GAP))
        absent = series.select(
            "run",
            "key",
            (there - pl.col("rows") - of_table.get_column("count")).alias("count"),
            _code(Reason.NOT_RECORDED),
        )
        lost = series.select(
            "run", "key", (pl.col("last") - pl.col("since") + 1 - there).alias("count"), _code(Reason.GAP)
        )
        counts = self._of_rule(self._counts, _COUNTS, place).select("run", "key", "count", "code")
        texts = {0: "", **{code(reason): str(reason) for reason in REASONS}}
        texts |= {FIRST_GATE + i: gate_reason(gate) for i, gate in enumerate(rule.unless)}
        abstained = (
            pl.concat([counts, absent, of_table, lost])
            .filter(pl.col("count") > 0)
            .with_columns(_never_recorded(self._recorded[_tables(rule)]).alias("code"))
            .group_by("run", "key", "code")
            .agg(pl.col("count").sum())
            .with_columns(reason=pl.col("code").replace_strict(texts, return_dtype=pl.String))
        )
        return (
            series.join(abstained, on=["run", "key"], how="left")
            .select(
                "run",
                pl.lit(rule.name).alias("rule"),
                "key",
                "evaluated",
                pl.col("reason").fill_null(""),
                pl.col("count").fill_null(0).alias("abstained"),
                pl.col("evaluated").alias("looked"),
                (
                    (pl.col("run") * len(self._rules.rules) + place) * len(self._keys)
                    + pl.col("key").replace_strict(self._keys, default=0, return_dtype=pl.Int64)
                ).alias("series"),
            )
            .sort("run", "key", "abstained", "reason", descending=[False, False, True, False])
        )

    def _lost_without_rows(self, place: int, series: pl.DataFrame) -> pl.Series:
        """Of each series of a rule: the updates since its first that lost rows of the table, and it has none at."""
        counts = pl.Series(np.zeros(series.height, np.int64))
        for row, (run, since, there) in enumerate(series.select("run", "since", "lost_there").rows()):
            updates = self._lost.get((place, run), ())
            if updates:
                counts[row] = sum(update >= since for update in updates) - there
        return counts

    def _of_rule(self, frames: list[pl.DataFrame], schema: Mapping[str, Any], place: int) -> pl.DataFrame:
        if len(frames) > 1:
            frames[:] = [pl.concat(frames)]
        return pl.concat([pl.DataFrame(schema=schema), *frames]).filter(pl.col("rule") == place).drop("rule")


_FOUND: Final = {
    "run": pl.UInt32,
    "update": pl.Int64,
    "rule": pl.Int32,
    "key": pl.Int64,
    "value": pl.Float64,
    "threshold": pl.Float64,
    "phase": pl.Int32,
    "progress": pl.Float64,
    "looked": pl.Int64,
    "worse": pl.Float64,
}
_SPANS: Final = {"run": pl.Int64, "updates": pl.Int64, "last": pl.Int64}
_SERIES: Final = {
    "run": pl.Int64,
    "since": pl.Int64,
    "before": pl.Int64,
    "rows": pl.Int64,
    "evaluated": pl.Int64,
    "lost_there": pl.Int64,
    "rule": pl.Int32,
    "key": pl.String,
}
_COUNTS: Final = {"run": pl.Int64, "count": pl.Int64, "rule": pl.Int32, "key": pl.String, "code": pl.UInt8}
_COVERED: Final = {
    "run": pl.Int64,
    **{name: type_ for name, type_ in COVERAGE_COLUMNS.items() if name != "run_id"},
    "looked": pl.Int64,
    "series": pl.Int64,
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

    def rows_of(self, at: Ints) -> Ints:
        """The places in the block."""
        return at if self.rows is None else self.rows[at]

    def _judged(self, condition: Condition, place: int, gate: Any) -> Judged:
        reading = self._reading(condition.signal)
        if condition.drift is not None or condition.step:
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


def _tables(rule: Rule) -> frozenset[str]:
    """The tables that its conditions read."""
    return frozenset(condition.signal.table for condition in rule.conditions)


def _places_that_yield(rules: RuleSet) -> dict[int, int]:
    """The place of a rule that yields -> that of the one it yields to."""
    places = {rule.name: place for place, rule in enumerate(rules.rules)}
    return {places[rule.name]: places[rule.yields_to] for rule in rules.rules if rule.yields_to is not None}


def _text(column: str, texts: list[str], name: str | None = None) -> pl.Expr:
    """The text at the place that a column says; NULL where that is negative."""
    name = column if name is None else name
    if not texts:
        return pl.lit(None, pl.String).alias(name)
    place = pl.when(pl.col(column) >= 0).then(pl.col(column))
    return pl.lit(pl.Series(texts, dtype=pl.String)).gather(place).alias(name)


def _never_recorded(recorded: set[int]) -> pl.Expr:
    """The code of the reason: of a run that records no table of the rule, that is it, but for the gaps."""
    no_table = ~pl.col("run").is_in(list(recorded)) & (pl.col("code") != code(Reason.GAP))
    return pl.when(no_table).then(pl.lit(code(Reason.NO_TABLE), pl.UInt8)).otherwise(pl.col("code"))


def _code(reason: Reason) -> pl.Expr:
    return pl.lit(code(reason), pl.UInt8).alias("code")
