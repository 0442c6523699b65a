"""How often each rule looked at each series of each run, and why it could not where it could not."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Final, NamedTuple

import numpy as np
import polars as pl

from esper_analytics.replay.block import REASONS, Codes, code
from esper_analytics.replay.columns import Ints
from esper_analytics.replay.series import FIRST_GATE
from esper_recorder.contract.evaluator import gate_reason
from esper_recorder.contract.rules import RuleSet
from esper_recorder.contract.signals import Reason

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
    """

    run: Ints
    since: Ints
    before: Ints
    begins: Ints
    height: int
    reasons: Codes | None


class Coverage:
    """Takes in what was seen of each series, block by block, and says what that is in all."""

    def __init__(self, rules: RuleSet) -> None:
        self._rules = rules.rules
        self._seen: dict[Series, list[tuple[Ints, ...]]] = {}
        self._abstained: dict[Series, list[tuple[int, Ints, Ints]]] = {}

    def add(self, series: Series, seen: Seen) -> None:
        """Take in what a block held of a series."""
        rows = np.diff(seen.begins, append=seen.height)
        self._seen.setdefault(series, []).append((seen.run, seen.since, seen.before, rows))
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
            for series in [series for series in self._seen if series[0] == place]:
                run, counts = self._of(series, updates, last)
                unseen[run] = False
                yield series, run, counts
            run = np.flatnonzero(unseen)
            if rule.key is not None and len(run):  # no row of any key: it never could look
                gaps = last[run] - updates[run]
                yield (
                    (place, ""),
                    run,
                    {0: 0 * run, code(Reason.NOT_RECORDED): updates[run], code(Reason.GAP): gaps},
                )

    def _of(self, series: Series, updates: Ints, last: Ints) -> tuple[Ints, dict[int, Ints]]:
        count = len(updates)
        since, before = np.full((2, count), np.iinfo(np.int64).max)
        rows = np.zeros(count, np.int64)
        for run, first, passed, own in self._seen[series]:
            np.minimum.at(since, run, first)
            np.minimum.at(before, run, passed)
            np.add.at(rows, run, own)
        counts: dict[int, Ints] = {}
        for reason, run, times in self._abstained.get(series, ()):
            np.add.at(counts.setdefault(reason, np.zeros(count, np.int64)), run, times)
        run = np.flatnonzero(rows)
        counts = {0: rows[run] - sum(times[run] for times in counts.values())} | {
            reason: times[run] for reason, times in counts.items()
        }
        if self._rules[series[0]].key is None:
            since[run], before[run] = 1, 0
        made = updates[run] - before[run]
        for reason, times in (
            (code(Reason.NOT_RECORDED), made - rows[run]),
            (code(Reason.GAP), last[run] - since[run] + 1 - made),
        ):
            counts[reason] = counts.get(reason, 0) + times
        return run, counts


_COUNTED: Final = ("run", "rule", "key", "evaluated", "reason", "abstained")


def texts_at(name: str, places: pl.Series, texts: Sequence[str]) -> pl.Series:
    """The text at each of the places; NULL where that is negative."""
    if not texts:
        return pl.Series(name, [None], pl.String).new_from_index(0, len(places))
    if (places < 0).any():
        places = places.replace(-1, None)
    return pl.Series(name, texts, pl.String).gather(places)
