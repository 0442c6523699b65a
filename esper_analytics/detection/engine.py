"""Rules evaluated over whole tables at once, with the meaning of `esper_recorder.contract.rules.evaluator`.

Covers: a block of runs (or a stretch of one long run) at a time, evaluated series by series on all cores; inhibition;
the order of firings. Does not cover: reading (`batching`), folding firings (`incidents`). A property test proves that
the watcher's evaluator gives the same firings and the same coverage.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl

from esper_analytics.detection.arrays import Flags, Floats, Ints, code
from esper_analytics.detection.block import NO_READING, Block
from esper_analytics.detection.coverage import Coverage, SeriesId, gather_texts
from esper_analytics.detection.judge import (
    Judgement,
    SeriesResult,
    SeriesState,
    Values,
    apply_trend,
    combine,
    compare,
    gate_codes,
)
from esper_recorder.contract.rules.model import Condition, Rule
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import Reason, Signal

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

_MIN_PARALLEL: Final = 20_000
"""Blocks with fewer updates are evaluated in the calling thread: starting others would take longer."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one rule set found in some runs.

    Attributes:
        firings: the columns of `FIRING_COLUMNS`, by run, update and the rules' order; then `evaluation` and
            `signed_value`, as in `SeriesResult`, and `series`.
        coverage: the columns of `Coverage.frame`.
        inhibited: `series` and `evaluation` of what another rule kept from firing.
    """

    firings: pl.DataFrame
    coverage: pl.DataFrame
    inhibited: pl.DataFrame


class Engine:
    """Evaluates a rule set over some runs, fed to it in one block or in consecutive stretches."""

    def __init__(self, rules: RuleSet, runs: Sequence[str]) -> None:
        self._rules, self._runs = rules, runs
        self._coverage = Coverage(rules, runs)
        self._states: dict[SeriesId, dict[int, SeriesState]] = {}
        self._keys: dict[str, int] = {"": 0}
        self._firings = [pl.DataFrame(schema=_FIRINGS)]
        self._inhibited = [pl.DataFrame(schema=_INHIBITED)]
        places = {rule.name: place for place, rule in enumerate(rules.rules)}
        self._inhibitors = {places[rule.name]: places[rule.inhibited_by] for rule in rules.rules if rule.inhibited_by}

    def feed(self, block: Block) -> None:
        """Evaluate the runs' first updates, or those that follow the last block."""
        if not block.height:
            return
        self._coverage.begin(block)
        with ThreadPoolExecutor(pl.thread_pool_size()) if block.height >= _MIN_PARALLEL else nullcontext() as pool:
            each: Any = map if pool is None else pool.map
            signals = dict.fromkeys(signal for rule in self._rules.rules for signal in rule.signals)
            list(each(block.readings, signals))
            tasks = {
                (place, key): _Task(rule, key, block, self._states.setdefault((place, key), {}))
                for place, rule in enumerate(self._rules.rules)
                for key in _keys(rule, block)
            }
            results = dict(zip(tasks, each(_Task.run, tasks.values()), strict=True))
        for series, task in tasks.items():
            self._coverage.add(series, block, task.rows, task.begins, results[series].reasons)
        self._add_firings(results, block)

    def finish(self) -> Evaluation:
        """Return what was found in all blocks."""
        rules = self._rules.rules
        firings = pl.concat(self._firings)
        of_rule = pl.col("run").cast(pl.Int64) * len(rules) + pl.col("rule")
        series = (of_rule * len(self._keys) + pl.col("key")).alias("series")
        named = firings.select(
            gather_texts("run_id", firings["run"], self._runs),
            "update",
            gather_texts("rule", firings["rule"], [rule.name for rule in rules]),
            gather_texts("key", firings["key"], list(self._keys)),
            gather_texts("severity", firings["rule"], [str(rule.severity) for rule in rules]),
            "value",
            "threshold",
            gather_texts("phase", firings["phase"], [name for name, _ in self._rules.phases]),
            "progress",
            "evaluation",
            "signed_value",
            series,
        )
        inhibited = pl.concat(self._inhibited).select(series, "evaluation")
        return Evaluation(named, self._coverage.frame(self._keys), inhibited)

    def _add_firings(self, results: Mapping[SeriesId, SeriesResult], block: Block) -> None:
        """Add a block's firings, by update and then in the order of rules and keys, and what was inhibited."""
        for key in sorted({key for _, key in results}):
            self._keys.setdefault(key, len(self._keys))
        kept = {series: self._kept(series, results) for series, result in results.items() if len(result.rows)}
        # A counting sort: count the firings at each update, then put those of each series at their places. It is a
        # third of the time of sorting all firings.
        places = np.zeros(block.height + 1, np.int64)
        for series, flags in kept.items():
            places[results[series].rows[flags] + 1] += 1
        np.cumsum(places, out=places)
        row = np.empty(int(places[-1]), np.int64)
        columns = {name: np.empty(len(row), kind) for name, kind in _SORTED.items()}
        for series, flags in kept.items():
            result = results[series]
            rows = result.rows[flags]
            at = places[rows]
            places[rows] += 1
            row[at] = rows
            columns["rule"][at], columns["key"][at] = series[0], self._keys[series[1]]
            for name in ("value", "threshold", "evaluation", "signed_value"):
                columns[name][at] = getattr(result, name)[flags]
            if isinstance(flags, np.ndarray) and not flags.all():
                self._add_inhibited(series, result, ~flags, block)
        firings = {"run": block.run[row], "update": block.update[row], **columns, "phase": block.phase[row]}
        frame = pl.DataFrame(firings).with_columns(
            pl.col("threshold").fill_nan(None), block.progress.gather(row).alias("progress")
        )
        self._firings.append(frame.select(pl.col(name).cast(kind) for name, kind in _FIRINGS.items()))

    def _kept(self, series: SeriesId, results: Mapping[SeriesId, SeriesResult]) -> Flags | slice:
        """Return which firings of a series no other rule inhibits."""
        place, key = series
        inhibitor = results.get((self._inhibitors.get(place, -1), key))
        if inhibitor is None or not len(inhibitor.rows):
            return slice(None)
        return ~np.isin(results[series].rows, inhibitor.rows, assume_unique=True)

    def _add_inhibited(self, series: SeriesId, result: SeriesResult, flags: Flags, block: Block) -> None:
        evaluation = result.evaluation[flags]
        columns = {
            "run": block.run[result.rows[flags]],
            "rule": np.full(len(evaluation), series[0]),
            "key": np.full(len(evaluation), self._keys[series[1]]),
            "evaluation": evaluation,
        }
        self._inhibited.append(pl.DataFrame(columns).cast(pl.Schema(_INHIBITED)))


_SORTED: Final = {
    "rule": np.int32,
    "key": np.int32,
    "value": np.float64,
    "threshold": np.float64,
    "evaluation": np.int64,
    "signed_value": np.float64,
}
_FIRINGS: Final = {
    "run": pl.Int32,
    "update": pl.Int64,
    "rule": pl.Int32,
    "key": pl.Int32,
    "value": pl.Float64,
    "threshold": pl.Float64,
    "phase": pl.Int32,
    "progress": pl.Float64,
    "evaluation": pl.Int64,
    "signed_value": pl.Float64,
}
_INHIBITED: Final = {"run": pl.Int32, "rule": pl.Int32, "key": pl.Int32, "evaluation": pl.Int64}


class _Task:
    """One rule and key on one block.

    Attributes:
        rows: the updates that have rows of it, as positions in the block; None for all.
        begins: where among them each run begins.
    """

    def __init__(self, rule: Rule, key: str, block: Block, states: dict[int, SeriesState]) -> None:
        self._rule, self._key, self._block = rule, key, block
        self.rows = None if rule.key is None else _rows_of_key(rule, key, block)
        run = block.run if self.rows is None else block.run[self.rows]
        self.begins = np.flatnonzero(np.diff(run, prepend=-1))
        self._height = len(run)
        self._states = [states.setdefault(number, SeriesState()) for number in run[self.begins].tolist()]

    def run(self) -> SeriesResult:
        """Evaluate the rule; the rows of the result are positions in the block."""
        rule, begins = self._rule, self.begins.tolist()
        with np.errstate(all="ignore"):  # values that are not finite become reasons or breaches
            gate = gate_codes(rule.unless, [self._read(gate.signal) for gate in rule.unless], self._height)
            judgements: list[Judgement] = []
            for place, condition in enumerate(rule.conditions):
                reading = self._read(condition.signal)
                if condition.has_trend:
                    reading = apply_trend(condition, place, reading, gate, begins, self._states)
                judgements.append(compare(condition, reading, self._threshold(condition)))
            result = combine(rule, judgements, gate, begins, self._states)
        result.rows = result.rows if self.rows is None else self.rows[result.rows]
        return result

    def _read(self, signal: Signal) -> Values:
        readings = self._block.readings(signal)
        reading = readings.get(self._key if signal.key is not None else "", NO_READING)
        values, codes = reading.at(self.rows, self._block.height)
        in_gap = self._block.in_gap(frozenset({signal.table}))
        if codes is not None and in_gap is not None:
            missing = (codes == code(Reason.NOT_RECORDED)) & (in_gap if self.rows is None else in_gap[self.rows])
            codes = np.where(missing, code(Reason.GAP), codes).astype(np.uint8)
        return values, codes

    def _threshold(self, condition: Condition) -> Floats | float:
        """Return the threshold of each row, or of all; NaN if there is none."""
        threshold = condition.threshold
        if threshold is None:
            return np.nan
        otherwise = np.nan if threshold.number is None else threshold.number
        if threshold.signal is not None:
            value, missing = self._block.column(threshold.signal)
            value = value * threshold.times
            value = value if missing is None else np.where(missing, otherwise, value)
            return value if self.rows is None else value[self.rows]
        if threshold.by == "number":
            return otherwise
        if threshold.by == "key":
            return threshold.values.get(self._key, otherwise)
        phases = [name for name, _ in self._block.phases]
        numbers = np.array([*(threshold.values.get(name, otherwise) for name in phases), otherwise])
        return numbers[
            self._block.phase if self.rows is None else self._block.phase[self.rows]
        ]  # -1, no phase: the last


def _rows_of_key(rule: Rule, key: str, block: Block) -> Ints | None:
    """Return the updates at which any condition of the rule has rows of the key; None for all of the block."""
    readings = [block.readings(condition.signal).get(key) for condition in rule.conditions]
    rows: list[Ints] = []
    for reading in readings:
        if reading is not None and reading.rows is None:
            return None
        if reading is not None and reading.rows is not None:
            rows.append(reading.rows)
    return rows[0] if len(rows) == 1 else np.unique(np.concatenate(rows))


def _keys(rule: Rule, block: Block) -> list[str]:
    if rule.key is None:
        return [""]
    return sorted({key for condition in rule.conditions for key in block.readings(condition.signal)})
