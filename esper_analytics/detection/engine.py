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

from esper_analytics.detection.arrays import Floats, Ints, code
from esper_analytics.detection.block import NO_READING, Block
from esper_analytics.detection.coverage import CoverageCounts, SeriesId, gather_texts
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

_FURTHER_COLUMNS: Final = {"evaluation": pl.Int64, "signed_value": pl.Float64, "series": pl.Int64}

_MIN_PARALLEL: Final = 20_000
"""Blocks with fewer updates are evaluated in the calling thread: starting others would take longer."""


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What one rule set found in some runs.

    Attributes:
        firings: the columns of `FIRING_COLUMNS`, by run, update and the rules' order; then `evaluation` and
            `signed_value`, as in `SeriesResult`, and `series`.
        coverage: the columns of `CoverageCounts.frame`.
        inhibited: `series` and `evaluation` of what another rule kept from firing.
    """

    firings: pl.DataFrame
    coverage: pl.DataFrame
    inhibited: pl.DataFrame


class Engine:
    """Evaluates a rule set over some runs, fed to it in one block or in consecutive stretches."""

    def __init__(self, rules: RuleSet, runs: Sequence[str]) -> None:
        self._rules, self._runs = rules, runs
        self._coverage = CoverageCounts(rules, runs)
        self._states: dict[SeriesId, dict[int, SeriesState]] = {}
        self._numbers: dict[SeriesId, int] = {}
        self._firings = [pl.DataFrame(schema={**FIRING_COLUMNS, **_FURTHER_COLUMNS})]
        self._inhibited = [pl.DataFrame(schema={"series": pl.Int64, "evaluation": pl.Int64})]
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
            self._numbers.setdefault(series, len(self._numbers))
            self._coverage.add(series, block, task.rows, task.begins, results[series].reasons)
        self._add_firings({series: result for series, result in results.items() if len(result.rows)}, block)

    def finish(self) -> Evaluation:
        """Return what was found in all blocks."""
        coverage = self._coverage.frame(self._numbers)
        return Evaluation(pl.concat(self._firings), coverage, pl.concat(self._inhibited))

    def _add_firings(self, results: Mapping[SeriesId, SeriesResult], block: Block) -> None:
        """Add a block's firings, by update and then in the order of rules and keys, and what was inhibited."""
        numbers, kept = [], []
        for (place, key), result in results.items():
            number = self._numbers[place, key]
            inhibitor = results.get((self._inhibitors.get(place, -1), key))
            if inhibitor is not None:
                flags = np.isin(result.rows, inhibitor.rows, assume_unique=True)
                inhibited, result = result.select(flags), result.select(~flags)
                of_run = number * len(self._runs) + block.run[inhibited.rows]
                self._inhibited.append(pl.DataFrame({"series": of_run, "evaluation": inhibited.evaluation}))
            numbers.append(np.full(len(result.rows), number))
            kept.append(result)
        if not kept:
            return
        # A counting sort, in a third of the time of a general one: count the firings at each update, then give those of
        # each series their places.
        places = np.zeros(block.height + 1, np.int64)
        for result in kept:
            places[result.rows + 1] += 1
        np.cumsum(places, out=places)
        order, begin = np.empty(int(places[-1]), np.int64), 0
        for result in kept:
            order[places[result.rows]] = np.arange(begin, begin + len(result.rows))
            places[result.rows] += 1
            begin += len(result.rows)

        def column(name: str) -> Any:
            return np.concatenate([getattr(result, name) for result in kept])[order]

        row, series = column("rows"), np.concatenate(numbers)[order]
        rules = [self._rules.rules[place] for place, _ in self._numbers]
        firings = {
            "run_id": gather_texts(block.run[row], self._runs),
            "update": block.update[row],
            "rule": gather_texts(series, [rule.name for rule in rules]),
            "key": gather_texts(series, [key for _, key in self._numbers]),
            "severity": gather_texts(series, [str(rule.severity) for rule in rules]),
            "value": column("value"),
            "threshold": pl.Series(column("threshold")).fill_nan(None),
            "phase": gather_texts(block.phase[row], [name for name, _ in block.phases]),
            "progress": block.progress.gather(row),
            "evaluation": column("evaluation"),
            "signed_value": column("signed_value"),
            "series": series * len(self._runs) + block.run[row],
        }
        self._firings.append(pl.DataFrame(firings))


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
        """Return the threshold of each row, or of all; NaN if it is missing."""
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
