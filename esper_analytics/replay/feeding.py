"""Feeding recorded runs to the engine: small runs together, long ones in windows, so that memory stays bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Final

import polars as pl

from esper_analytics.replay.block import Block, read, stretches
from esper_analytics.replay.engine import Engine, Evaluation
from esper_analytics.store import Runs, RunTables
from esper_recorder.contract.rules import RuleSet
from esper_recorder.contract.signals import UPDATE_TABLE

CELLS_AT_ONCE = 48_000_000
"""Numbers (or texts) read at once: some hundreds of megabytes."""

UPDATES_AT_ONCE = 131_072
"""Updates judged at once: what works on memory that is still in the caches is faster."""

RUNS_AT_ONCE: Final = 250

Told = Callable[[int, int], None]


def evaluations(runs: Runs, held: Mapping[str, RuleSet], progress: Told | None = None) -> Iterator[Evaluation]:
    """What the rules that each run is held against find, some runs at a time.

    Args:
        runs: the runs.
        held: the rules for each run_id.
        progress: called with the updates done and the updates to do.
    """
    tables: dict[str, frozenset[str]] = {}
    for rules in {rules.sha256: rules for rules in held.values()}.values():
        for table, names in rules.tables.items():
            tables[table] = tables.get(table, frozenset()) | names
    tables["gaps"] = frozenset({"table_name", "last_update"})
    if "minibatches" in tables:
        tables["minibatches"] |= {"held_back"}
    found = [run for run in runs.by_run(tables) if run.run_id in held and run.rows[UPDATE_TABLE]]
    counter = _Counter(sum(run.rows[UPDATE_TABLE] for run in found), progress)
    for rules, batch in _batches(found, held):
        engine = Engine(rules)
        if len(batch) == 1:
            _feed_one(engine, rules, batch[0], counter)
        else:
            frames = {table: [_shown(run, table) for run in batch] for table in rules.tables}
            engine.feed(Block(rules, read(rules, frames), [run.run_id for run in batch]))
            counter.add(sum(run.rows[UPDATE_TABLE] for run in batch))
        for run in batch:
            engine.lost_up_to(run.run_id, _last_lost(run))
        yield engine.finish()
    counter.end()


class _Counter:
    def __init__(self, total: int, told: Told | None) -> None:
        self._done, self._total, self._told = 0, total, told

    def add(self, updates: int) -> None:
        self._done = min(self._done + updates, self._total)
        if self._told is not None:
            self._told(self._done, self._total)

    def end(self) -> None:
        """Rows that a resumed run hides were to be done, and are not."""
        if self._done < self._total:
            self.add(self._total - self._done)


def _shown(run: RunTables, table: str) -> pl.LazyFrame:
    """The rows the rules look at: those the watcher saw, too."""
    frame = run.frames[table]
    if table != "minibatches":
        return frame
    return frame.filter(pl.col("held_back").fill_null(False).not_())


def _last_lost(run: RunTables) -> int:
    """The last update whose own row is known to be lost, 0 where there is none."""
    if not run.rows["gaps"]:
        return 0
    gaps = run.frames["gaps"].filter(pl.col("table_name").is_in(["*", UPDATE_TABLE]))
    return gaps.select(pl.col("last_update").max()).collect().item() or 0


def _cells(run: RunTables, rules: RuleSet) -> int:
    return sum(run.rows[table] * (len(names) + 1) for table, names in rules.tables.items())


def _batches(found: Sequence[RunTables], held: Mapping[str, RuleSet]) -> Iterator[tuple[RuleSet, list[RunTables]]]:
    """Small runs of the same rules together, as many as may be read at once; a long run alone."""
    same: dict[str, list[RunTables]] = {}
    for run in found:
        same.setdefault(held[run.run_id].sha256, []).append(run)
    for chosen in same.values():
        rules = held[chosen[0].run_id]
        batch: list[RunTables] = []
        cells = updates = 0
        for run in chosen:
            own = _cells(run, rules)
            updates += run.rows[UPDATE_TABLE]
            if batch and (cells + own > CELLS_AT_ONCE or updates > UPDATES_AT_ONCE or len(batch) == RUNS_AT_ONCE):
                yield rules, batch
                batch, cells, updates = [], 0, run.rows[UPDATE_TABLE]
            batch.append(run)
            cells += own
        yield rules, batch


def _feed_one(engine: Engine, rules: RuleSet, run: RunTables, counter: _Counter) -> None:
    """One run, read in windows of updates if it is long, and judged in stretches."""
    windows = -(-_cells(run, rules) // CELLS_AT_ONCE)
    last = 0
    if windows > 1:
        last = run.frames[UPDATE_TABLE].select(pl.col("update").max()).collect().item() or 0
    bounds = [-(-last * window // windows) for window in range(1, windows)]
    begun = False
    for low, high in zip([None, *bounds], [*bounds, None], strict=True):
        frames = {table: [_window(_shown(run, table), low, high)] for table in rules.tables}
        for stretch in stretches(read(rules, frames), UPDATES_AT_ONCE):
            engine.feed(Block(rules, stretch, [run.run_id]), continued=begun, continues=True)
            begun = True
            counter.add(stretch[UPDATE_TABLE].height)


def _window(frame: pl.LazyFrame, low: int | None, high: int | None) -> pl.LazyFrame:
    """The rows of the updates after `low` up to `high`."""
    if low is not None:
        frame = frame.filter(pl.col("update") > low)
    return frame if high is None else frame.filter(pl.col("update") <= high)
