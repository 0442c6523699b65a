"""How often each rule looked at each series of each run, and why it could not where it could not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from esper_analytics.detection.arrays import REASONS, Codes, Flags, Ints, code
from esper_analytics.detection.block import Block
from esper_analytics.detection.judge import FIRST_GATE
from esper_recorder.contract.rules.conditions import gate_reason
from esper_recorder.contract.rules.model import Rule
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import Reason

COVERAGE_COLUMNS: Final = {
    "run_id": pl.String,
    "rule": pl.String,
    "key": pl.String,
    "evaluated": pl.Int64,
    "reason": pl.String,
    "abstained": pl.Int64,
}

Series = tuple[int, str]
"""The place of a rule among the rules, and a key."""


class Seen(NamedTuple):
    """What a block held of a series, an entry for each of the runs that have rows for it.

    Attributes:
        run: number of the run.
        since: the first update with a row.
        before: how many of the run's updates lie before that one.
        begins: where the run's rows begin.
        height: how many rows there are in all.
        reasons: the code of every row, 0 where the rule looked; None where it always did.
        lost: of a rule with keys, the rows at whose updates others are known to be lost; None for none.
    """

    run: Ints
    since: Ints
    before: Ints
    begins: Ints
    height: int
    reasons: Codes | None
    lost: Flags | None


class CoverageCounts:
    """Takes in what was seen of each series, block by block, and says what that is in all."""

    def __init__(self, rules: RuleSet) -> None:
        self._rules = rules.rules
        self._seen: dict[Series, list[tuple[Ints, ...]]] = {}
        self._abstained: dict[Series, list[tuple[int, Ints, Ints]]] = {}
        self._recorded: dict[frozenset[str], set[int]] = {tables_of(rule): set() for rule in self._rules}
        self._lost: dict[int, list[tuple[Ints, Ints]]] = {}

    def begin(self, block: Block, offset: int) -> None:
        """Take in what a block tells of its runs, whose numbers begin at `offset`."""
        for tables, recorded in self._recorded.items():
            for table in tables:
                recorded.update((block.runs_that_record(table) + offset).tolist())
        for place, rule in enumerate(self._rules):
            lost = block.lost(tables_of(rule)) if rule.key is not None else None
            if lost is not None:
                self._lost.setdefault(place, []).append((block.run[lost] + offset, block.update[lost]))

    def add(self, series: Series, seen: Seen) -> None:
        """Take in what a block held of a series."""
        rows = np.diff(seen.begins, append=seen.height)
        lost = 0 * rows if seen.lost is None else np.add.reduceat(seen.lost, seen.begins, dtype=np.int64)
        self._seen.setdefault(series, []).append((seen.run, seen.since, seen.before, rows, lost))
        if seen.reasons is None:
            return
        for reason in np.flatnonzero(np.bincount(seen.reasons)).tolist():
            if reason:
                times = np.add.reduceat(seen.reasons == reason, seen.begins, dtype=np.int64)
                self._abstained.setdefault(series, []).append((reason, seen.run, times))

    def frame(self, runs: Sequence[str], updates: Ints, last: Ints, keys: Mapping[str, int]) -> pl.DataFrame:
        """All that was taken in.

        Args:
            runs: the run_ids, by the numbers of the runs.
            updates: how many updates each run has.
            last: the last update each run is known to have made.
            keys: a number for each key.

        Returns:
            The columns of `COVERAGE_COLUMNS`, a row per (run, rule, key, reason), the most frequent first, and one with
            an empty reason where the rule never abstained; then `looked`, as `evaluated`, and `series`, a number for
            each run, rule and key.
        """
        texts, offset = self._texts()
        columns: dict[str, list[Ints]] = {name: [] for name in _COUNTED}
        for (place, key), run, counts in self._counted(updates, last):
            abstained = np.array([times for reason, times in counts.items() if reason]).reshape(-1, len(run))
            reasons = np.array([r if r < FIRST_GATE else r + offset[place] for r in counts if r], np.int64)
            which, at = np.nonzero(abstained)
            never = np.flatnonzero(~abstained.any(axis=0))
            of_run = np.append(at, never)
            columns["run"].append(run[of_run])
            columns["rule"].append(np.full(len(of_run), place))
            columns["key"].append(np.full(len(of_run), keys[key]))
            columns["evaluated"].append(counts[0][of_run])
            columns["reason"].append(np.append(reasons[which], np.zeros(len(never), np.int64)))
            columns["abstained"].append(np.append(abstained[which, at], np.zeros(len(never), np.int64)))
        frame = pl.DataFrame({name: np.concatenate([np.empty(0, np.int64), *parts]) for name, parts in columns.items()})
        number = (pl.col("run") * len(self._rules) + pl.col("rule")) * len(keys) + pl.col("key")
        return (
            frame.select(
                "run",
                pl.col("rule").alias("place"),
                texts_at("run_id", frame["run"], runs),
                texts_at("rule", frame["rule"], [rule.name for rule in self._rules]),
                texts_at("key", frame["key"], list(keys)),
                "evaluated",
                texts_at("reason", frame["reason"], texts),
                "abstained",
                pl.col("evaluated").alias("looked"),
                number.alias("series"),
            )
            .sort("run", "place", "key", "abstained", "reason", descending=[False, False, False, True, False])
            .drop("run", "place")
        )

    def _texts(self) -> tuple[list[str], list[int]]:
        """What the reasons are called, after an empty text; and by rule what to add to a code to find it there."""
        texts, offset = ["", *map(str, REASONS)], []
        for rule in self._rules:
            offset.append(len(texts) - FIRST_GATE)
            texts += [gate_reason(gate) for gate in rule.unless]
        return texts, offset

    def _counted(self, updates: Ints, last: Ints) -> Iterator[tuple[Series, Ints, dict[int, Ints]]]:
        """The runs that have a series, and for each reason's code how often it was one; for 0 how often it looked."""
        for place, rule in enumerate(self._rules):
            unseen = updates > 0
            recorded = np.isin(np.arange(len(updates)), list(self._recorded[tables_of(rule)]))
            for series in [series for series in self._seen if series[0] == place]:
                run, counts = self._of(series, updates, last)
                unseen[run] = False
                yield series, run, _named(counts, recorded[run])
            run = np.flatnonzero(unseen)
            if rule.key is not None and len(run):  # no row of any key: it never could look
                none = np.zeros(len(updates), np.int64)
                counts = self._absent(place, run, updates, last, none + 1, none, none, none)
                yield (place, ""), run, _named({0: 0 * run, **counts}, recorded[run])

    def _of(self, series: Series, updates: Ints, last: Ints) -> tuple[Ints, dict[int, Ints]]:
        """The runs that have rows of a series, and the counts of each."""
        since, before = np.full((2, len(updates)), np.iinfo(np.int64).max)
        rows, lost = np.zeros((2, len(updates)), np.int64)
        for run, first, passed, own, gone in self._seen[series]:
            np.minimum.at(since, run, first)
            np.minimum.at(before, run, passed)
            np.add.at(rows, run, own)
            np.add.at(lost, run, gone)
        run = np.flatnonzero(rows)
        if self._rules[series[0]].key is None:
            since[run], before[run] = 1, 0
        counts = {0: rows[run]}
        for reason, at, times in self._abstained.get(series, ()):
            whole = np.zeros(len(updates), np.int64)
            np.add.at(whole, at, times)
            counts[reason] = counts.get(reason, 0) + whole[run]
            counts[0] = counts[0] - whole[run]
        for reason, times in self._absent(series[0], run, updates, last, since, before, rows, lost).items():
            counts[reason] = counts.get(reason, 0) + times
        return run, counts

    def _absent(
        self, place: int, run: Ints, updates: Ints, last: Ints, since: Ints, before: Ints, rows: Ints, lost: Ints
    ) -> dict[int, Ints]:
        """How many updates have no row of a series since its first, by reason.

        Args:
            place: of the rule.
            run: the runs that are asked for; the arrays that follow have an entry for every run.
            updates: how many updates it has.
            last: its last update.
            since: the series' first update.
            before: how many updates lie before that.
            rows: at how many updates the series has a row.
            lost: at how many of these the tables lost others.
        """
        gone = np.zeros(len(updates), np.int64)
        for at, update in self._lost.get(place, ()):
            np.add.at(gone, at, update >= since[at])
        gone -= lost
        made = updates - before
        not_made = last - since + 1 - made
        return {
            code(Reason.NOT_RECORDED): (made - rows - gone)[run],
            code(Reason.GAP): (not_made + gone)[run],
        }


def tables_of(rule: Rule) -> frozenset[str]:
    """The tables that a rule's conditions read."""
    return frozenset(condition.signal.table for condition in rule.conditions)


def _named(counts: dict[int, Ints], recorded: Flags) -> dict[int, Ints]:
    """Of a run that records no table of the rule, that is the reason, but for the gaps."""
    if recorded.all():
        return counts
    kept = (0, code(Reason.GAP))
    others = sum((times for reason, times in counts.items() if reason not in kept), np.zeros(len(recorded), np.int64))
    named = {reason: times if reason in kept else times * recorded for reason, times in counts.items()}
    return named | {code(Reason.NO_TABLE): others * ~recorded}


_COUNTED: Final = ("run", "rule", "key", "evaluated", "reason", "abstained")


def texts_at(name: str, places: pl.Series, texts: Sequence[str]) -> pl.Series:
    """The text at each of the places; NULL where that is negative."""
    if not texts:
        return pl.Series(name, [None], pl.String).new_from_index(0, len(places))
    if (places < 0).any():
        places = places.replace(-1, None)
    return pl.Series(name, texts, pl.String).gather(places)
