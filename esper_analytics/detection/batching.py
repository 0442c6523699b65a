"""Feeding recorded runs to the engine: small runs together, long ones in windows, so that memory stays bounded."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import polars as pl

from esper_analytics.detection.block import Block, Loss
from esper_analytics.detection.engine import Engine, Evaluation
from esper_analytics.detection.signal_columns import read, read_runs, stretches
from esper_analytics.runs import Runs, RunTables
from esper_recorder.contract.rules.evaluator import ALL_TABLES
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import UPDATE_TABLE

CELLS_AT_ONCE = 16_000_000
"""Numbers (or texts) read at once, while as many are judged: a hundred megabytes and more."""

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
    tables["gaps"] = frozenset({"table_name", "first_update", "last_update"})
    found = [run for run in runs.by_run(tables) if run.run_id in held and run.rows(UPDATE_TABLE)]
    counter = _Counter(sum(run.rows(UPDATE_TABLE) for run in found), progress)
    engine = None
    for load, read_ahead in _ahead(_loads(found, held)):
        engine = Engine(load.rules) if engine is None else engine
        run_ids = [run.run_id for run in load.runs]
        losses = {run.run_id: _losses(run) for run in load.runs}
        for stretch in stretches(read_ahead, UPDATES_AT_ONCE) if len(run_ids) == 1 else [read_ahead]:
            engine.feed(
                Block(load.rules, stretch, run_ids, losses), continued=engine.begun, continues=len(run_ids) == 1
            )
            counter.add(stretch[UPDATE_TABLE].height)
        if load.until is None:
            for run in load.runs:
                told = [last for table, _, last in losses[run.run_id] if table in (ALL_TABLES, UPDATE_TABLE)]
                engine.lost_up_to(run.run_id, max(told, default=0))
            yield engine.finish()
            engine = None
    counter.end()


@dataclass(frozen=True, slots=True)
class _Load:
    """What is read at once: some runs, or the updates of one run after `after` up to `until` (None: no bound)."""

    rules: RuleSet
    runs: Sequence[RunTables]
    after: int | None = None
    until: int | None = None

    def read(self) -> dict[str, pl.DataFrame]:
        if len(self.runs) > 1:
            return read_runs(self.rules, self.runs)
        [run] = self.runs
        return read(self.rules, {table: [self._window(run.frame(table))] for table in self.rules.tables})

    def _window(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        if self.after is not None:
            frame = frame.filter(pl.col("update") > self.after)
        return frame if self.until is None else frame.filter(pl.col("update") <= self.until)


def _ahead(loads: Iterable[_Load]) -> Iterator[tuple[_Load, dict[str, pl.DataFrame]]]:
    """Each load with what it reads; the next is being read meanwhile."""
    with ThreadPoolExecutor(1) as reader:
        waiting: deque[tuple[_Load, Future[dict[str, pl.DataFrame]]]] = deque()
        try:
            for load in loads:
                waiting.append((load, reader.submit(load.read)))
                if len(waiting) > 1:
                    first, future = waiting.popleft()
                    yield first, future.result()
            for load, future in waiting:
                yield load, future.result()
        finally:
            reader.shutdown(wait=False, cancel_futures=True)


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


def _losses(run: RunTables) -> list[Loss]:
    """What the run is known to have lost."""
    if not run.rows("gaps"):
        return []
    gaps = run.frame("gaps").select("table_name", "first_update", "last_update").collect()
    return gaps.drop_nulls().rows()


def _loads(found: Sequence[RunTables], held: Mapping[str, RuleSet]) -> Iterator[_Load]:
    """Small runs of the same rules together, as many as may be read at once; a long run alone, in windows."""
    same: dict[str, list[RunTables]] = {}
    for run in found:
        same.setdefault(held[run.run_id].sha256, []).append(run)
    for chosen in same.values():
        rules = held[chosen[0].run_id]
        widths = {table: len(names) + 1 for table, names in rules.tables.items()}
        batch: list[RunTables] = []
        cells = updates = 0
        for run in chosen:
            own = sum(run.rows(table) * width for table, width in widths.items())
            updates += run.rows(UPDATE_TABLE)
            if batch and (cells + own > CELLS_AT_ONCE or updates > UPDATES_AT_ONCE or len(batch) == RUNS_AT_ONCE):
                yield from _whole(rules, batch, cells)
                batch, cells, updates = [], 0, run.rows(UPDATE_TABLE)
            batch.append(run)
            cells += own
        yield from _whole(rules, batch, cells)


def _whole(rules: RuleSet, runs: Sequence[RunTables], cells: int) -> Iterator[_Load]:
    """Some runs, or one in as many windows as its size takes."""
    windows = -(-cells // CELLS_AT_ONCE) if len(runs) == 1 else 1
    last = 0
    if windows > 1:
        last = runs[0].frame(UPDATE_TABLE).select(pl.col("update").max()).collect().item() or 0
    bounds = [-(-last * window // windows) for window in range(1, windows)]
    for after, until in zip([None, *bounds], [*bounds, None], strict=True):
        yield _Load(rules, runs, after, until)
