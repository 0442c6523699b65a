"""How often each rule was evaluated on each series of each run, and why it was not at the other updates.

Covers: reasons found by the evaluation, updates without a row of the series, updates that were not recorded, tables
that a run never recorded. A series counts from its first row on, a rule without keys from update 1.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import polars as pl

from esper_analytics.detection.arrays import REASONS, Codes, Flags, Ints, code
from esper_analytics.detection.block import Block
from esper_analytics.detection.judge import FIRST_GATE
from esper_recorder.contract.rules.conditions import closed_reason
from esper_recorder.contract.rules.evaluator import ALL_TABLES
from esper_recorder.contract.rules.model import Rule
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import UPDATE_TABLE, Reason

SeriesId = tuple[int, str]
"""Position of a rule in the rule set, and a key."""


class _SeriesCounts:
    """What was recorded of a series: one entry per run in each array.

    Attributes:
        first: the update it counts from.
        before: how many of the run's updates precede that one.
        rows: how many updates have a row of it.
        rows_in_gap: how many of these are in a gap of the rule's tables.
        abstained: by reason code, how many of these were not evaluated.
    """

    def __init__(self, runs: int) -> None:
        self.first = np.ones(runs, np.int64)
        self.before, self.rows, self.rows_in_gap = np.zeros((3, runs), np.int64)
        self.abstained: dict[int, Ints] = {}


class CoverageCounts:
    """Counts over the blocks of some runs."""

    def __init__(self, rules: RuleSet, runs: Sequence[str]) -> None:
        self._rules, self._runs = rules.rules, runs
        self._updates, self._last, self._start = np.zeros((3, len(runs)), np.int64)
        self._counts: dict[SeriesId, _SeriesCounts] = {}
        self._recording: dict[frozenset[str], set[int]] = {tables_of(rule): set() for rule in self._rules}
        self._in_gap: dict[int, list[tuple[Ints, Ints]]] = {}

    def begin(self, block: Block) -> None:
        """Count the updates of a block; `add` its series afterwards."""
        starts = np.flatnonzero(np.diff(block.run, prepend=-1))
        run, ends = block.run[starts], np.append(starts, block.height)[1:]
        self._start[run] = starts - self._updates[run]  # minus what earlier blocks held, so that `before` counts it
        self._updates[run] += ends - starts
        self._last[run] = block.update[ends - 1]
        for number, table, _, last in block.gaps:
            if table in (ALL_TABLES, UPDATE_TABLE):  # updates up to the end of the gap were made, though not recorded
                self._last[number] = max(self._last[number], last)
        for tables, recording in self._recording.items():
            recording.update(number for table in tables for number in block.runs_that_record(table))
        for place, rule in enumerate(self._rules):
            if rule.key is not None and (flags := block.in_gap(tables_of(rule))) is not None:
                self._in_gap.setdefault(place, []).append((block.run[flags], block.update[flags]))

    def add(self, series: SeriesId, block: Block, rows: Ints | None, begins: Ints, reasons: Codes | None) -> None:
        """Count the rows of a series in a block.

        Args:
            series: the series.
            block: the block.
            rows: the positions of its rows in the block; None for all.
            begins: where among them each run begins.
            reasons: the code of each row, 0 if it was evaluated; None if all were.
        """
        rule = self._rules[series[0]]
        height = block.height if rows is None else len(rows)
        positions = begins if rows is None else rows[begins]
        run = block.run[positions]
        if (counts := self._counts.get(series)) is None:
            counts = self._counts[series] = _SeriesCounts(len(self._runs))
        if rule.key is not None:
            new = counts.rows[run] == 0
            counts.first[run[new]] = block.update[positions[new]]
            counts.before[run[new]] = (positions - self._start[run])[new]
            if (in_gap := block.in_gap(tables_of(rule))) is not None:
                counts.rows_in_gap[run] += _sum_by_run(in_gap if rows is None else in_gap[rows], begins)
        counts.rows[run] += np.diff(begins, append=height)
        if reasons is None:
            return
        for reason in np.flatnonzero(np.bincount(reasons)[1:]) + 1:
            abstained = counts.abstained.setdefault(int(reason), np.zeros(len(self._runs), np.int64))
            abstained[run] += _sum_by_run(reasons == reason, begins)

    def frame(self, numbers: dict[SeriesId, int]) -> pl.DataFrame:
        """Return all counts.

        Args:
            numbers: a number for each series; those that have none yet get one.

        Returns:
            run_id, rule, key, evaluated, reason, abstained and `series`, a number for each run, rule and key: one row
            per reason, the most frequent first, and one with an empty reason for a series that was always evaluated.
        """
        texts, offsets = self._reason_texts()
        parts: list[tuple[Ints, ...]] = [(np.empty(0, np.int64),) * 5]
        for series, run, by_reason in self._totals():
            evaluated = by_reason.pop(0)
            codes = np.array([number + offsets[series[0]] * (number >= FIRST_GATE) for number in by_reason], np.int64)
            abstained = np.array(list(by_reason.values()), np.int64)
            which, at = np.nonzero(abstained)
            always = np.flatnonzero(~abstained.any(axis=0))
            zeros = np.zeros(len(always), np.int64)
            reason, times = np.append(codes[which], zeros), np.append(abstained[which, at], zeros)
            at = np.append(at, always)
            number = np.full(len(at), numbers.setdefault(series, len(numbers)))
            parts.append((run[at], number, evaluated[at], reason, times))
        run, number, evaluated, reason, times = map(np.concatenate, zip(*parts, strict=True))
        places = np.array([place for place, _ in numbers], np.int64)
        columns = {
            "run": run,
            "place": places[number],
            "run_id": gather_texts(run, self._runs),
            "rule": gather_texts(places[number], [rule.name for rule in self._rules]),
            "key": gather_texts(number, [key for _, key in numbers]),
            "evaluated": evaluated,
            "reason": gather_texts(reason, texts),
            "abstained": times,
            "series": number * len(self._runs) + run,
        }
        by = ("run", "place", "key", "abstained", "reason")
        return pl.DataFrame(columns).sort(by, descending=[name == "abstained" for name in by]).drop("run", "place")

    def _reason_texts(self) -> tuple[list[str], list[int]]:
        """Return the texts of the codes, and for each rule how far its gates are from their codes in it."""
        texts, offsets = ["", *map(str, REASONS)], []
        for rule in self._rules:
            offsets.append(len(texts) - FIRST_GATE)
            texts += map(closed_reason, rule.unless)
        return texts, offsets

    def _totals(self) -> Iterator[tuple[SeriesId, Ints, dict[int, Ints]]]:
        """Yield each series with the runs that have it, and per run how often each code applied; 0 is evaluated."""
        for place, rule in enumerate(self._rules):
            absent = self._updates > 0
            for series in [series for series in self._counts if series[0] == place]:
                run = np.flatnonzero(self._counts[series].rows)
                absent[run] = False
                yield series, run, self._by_reason(place, self._counts[series], run)
            run = np.flatnonzero(absent)
            if rule.key is not None and len(run):  # no row of any key: the rule was never evaluated
                yield (place, ""), run, self._by_reason(place, _SeriesCounts(len(self._runs)), run)

    def _by_reason(self, place: int, counts: _SeriesCounts, run: Ints) -> dict[int, Ints]:
        in_gap = -counts.rows_in_gap
        for number, update in self._in_gap.get(place, ()):
            np.add.at(in_gap, number, update >= counts.first[number])
        recorded = self._updates - counts.before
        unrecorded = self._last - counts.first + 1 - recorded
        totals = {0: counts.rows - sum(counts.abstained.values()), **counts.abstained}
        not_recorded, gap, no_table = map(code, (Reason.NOT_RECORDED, Reason.GAP, Reason.NO_TABLE))
        totals[not_recorded] = totals.get(not_recorded, 0) + recorded - counts.rows - in_gap
        totals[gap] = totals.get(gap, 0) + unrecorded + in_gap
        # in a run that records no table of the rule, that is the reason for all but the gaps
        recording = np.isin(np.arange(len(self._runs)), list(self._recording[tables_of(self._rules[place])]))
        others = [reason for reason in totals if reason not in (0, gap)]
        totals[no_table] = sum(totals[reason] for reason in others) * ~recording
        return {reason: (times * recording if reason in others else times)[run] for reason, times in totals.items()}


def tables_of(rule: Rule) -> frozenset[str]:
    """Return the tables that a rule's conditions read."""
    return frozenset(condition.signal.table for condition in rule.conditions)


def gather_texts(positions: Ints, texts: Sequence[str]) -> pl.Series:
    """Return the text at each position; NULL at -1."""
    return pl.Series([*texts, None], dtype=pl.String).gather(np.where(positions < 0, len(texts), positions))


def _sum_by_run(flags: Flags, begins: Ints) -> Ints:
    sums: Ints = np.add.reduceat(flags, begins, dtype=np.int64)
    return sums
