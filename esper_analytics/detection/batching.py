"""Recorded runs in batches for the engine: small runs together, long ones in windows, so that memory is bounded."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Final

import polars as pl

from esper_analytics.detection.block import Block, Gap
from esper_analytics.detection.engine import Engine, Evaluation
from esper_analytics.detection.signal_columns import read_run, read_runs, stretches
from esper_analytics.runs import Runs, RunTables
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import UPDATE_TABLE

CELLS_AT_ONCE = 16_000_000
"""Numbers (or texts) read at once, while as many are evaluated: a hundred megabytes and more."""

UPDATES_AT_ONCE = 131_072
"""Updates evaluated at once: arrays that stay in the caches are faster."""

RUNS_AT_ONCE: Final = 250


def evaluations(
    runs: Runs, rules_by_run: Mapping[str, RuleSet], progress: Callable[[int, int], None] | None = None
) -> Iterator[Evaluation]:
    """Evaluate each run with its rules, some runs at a time.

    Args:
        runs: the runs.
        rules_by_run: the rules for each run_id.
        progress: called with the number of updates done and the total.
    """
    tables: dict[str, frozenset[str]] = {"gaps": frozenset({"table_name", "first_update", "last_update"})}
    for rules in {rules.sha256: rules for rules in rules_by_run.values()}.values():
        for table, names in rules.tables.items():
            tables[table] = tables.get(table, frozenset()) | names
    with_updates = [run for run in runs.by_run(tables) if run.run_id in rules_by_run and run.rows(UPDATE_TABLE)]
    total = sum(run.rows(UPDATE_TABLE) for run in with_updates)
    done = 0
    engine = None
    for batch, frames in _read_ahead(_batches(with_updates, rules_by_run)):
        engine = engine or Engine(batch.rules, [run.run_id for run in batch.runs])
        gaps = [gap for number, run in enumerate(batch.runs) for gap in _gaps(number, run)]
        for stretch in stretches(frames, UPDATES_AT_ONCE) if len(batch.runs) == 1 else [frames]:
            engine.feed(Block(batch.rules, stretch, gaps))
            done = min(done + stretch[UPDATE_TABLE].height, total)
            if progress is not None:
                progress(done, total)
        if batch.until is None:
            yield engine.finish()
            engine = None
    if progress is not None and done < total:  # rows that a resumed run superseded were counted, but not read
        progress(total, total)


@dataclass(frozen=True, slots=True)
class _Batch:
    """What is read at once: some runs, or the updates of one run after `after` up to `until` (None: unbounded)."""

    rules: RuleSet
    runs: Sequence[RunTables]
    after: int | None = None
    until: int | None = None

    def read(self) -> dict[str, pl.DataFrame]:
        if len(self.runs) > 1:
            return read_runs(self.rules, self.runs)
        return read_run(self.rules, {table: self._window(self.runs[0].frame(table)) for table in self.rules.tables})

    def _window(self, frame: pl.LazyFrame) -> pl.LazyFrame:
        if self.after is not None:
            frame = frame.filter(pl.col("update") > self.after)
        return frame if self.until is None else frame.filter(pl.col("update") <= self.until)


def _read_ahead(batches: Iterable[_Batch]) -> Iterator[tuple[_Batch, dict[str, pl.DataFrame]]]:
    """Read each batch while the one before it is evaluated."""
    with ThreadPoolExecutor(1) as reader:
        current = None
        try:
            for batch in batches:
                following = (batch, reader.submit(batch.read))
                if current is not None:
                    yield current[0], current[1].result()
                current = following
            if current is not None:
                yield current[0], current[1].result()
        finally:
            reader.shutdown(wait=False, cancel_futures=True)


def _gaps(number: int, run: RunTables) -> Iterator[Gap]:
    """Read the recorded gaps of the run with this number."""
    if run.rows("gaps"):
        gaps = run.frame("gaps").select("table_name", "first_update", "last_update").collect()
        yield from ((number, *gap) for gap in gaps.drop_nulls().iter_rows())


def _batches(runs: Sequence[RunTables], rules_by_run: Mapping[str, RuleSet]) -> Iterator[_Batch]:
    """Group small runs with the same rules, as many as may be read at once; cut a long run into windows."""
    by_rules: dict[str, list[RunTables]] = {}
    for run in runs:
        by_rules.setdefault(rules_by_run[run.run_id].sha256, []).append(run)
    for alike in by_rules.values():
        rules = rules_by_run[alike[0].run_id]
        widths = {table: len(names) + 1 for table, names in rules.tables.items()}
        batch: list[RunTables] = []
        cells = updates = 0
        for run in alike:
            run_cells = sum(run.rows(table) * width for table, width in widths.items())
            updates += run.rows(UPDATE_TABLE)
            if batch and (cells + run_cells > CELLS_AT_ONCE or updates > UPDATES_AT_ONCE or len(batch) == RUNS_AT_ONCE):
                yield from _windows(rules, batch, cells)
                batch, cells, updates = [], 0, run.rows(UPDATE_TABLE)
            batch.append(run)
            cells += run_cells
        yield from _windows(rules, batch, cells)


def _windows(rules: RuleSet, runs: Sequence[RunTables], cells: int) -> Iterator[_Batch]:
    """Yield several runs as one batch, and one run in as many windows as its size requires."""
    windows = -(-cells // CELLS_AT_ONCE) if len(runs) == 1 else 1
    last = 0
    if windows > 1:
        last = runs[0].frame(UPDATE_TABLE).select(pl.col("update").max()).collect().item() or 0
    bounds = [-(-last * window // windows) for window in range(1, windows)]
    for after, until in zip([None, *bounds], [*bounds, None], strict=True):
        yield _Batch(rules, runs, after, until)
