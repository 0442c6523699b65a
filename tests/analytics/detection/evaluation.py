"""Rules evaluated over data frames, as the replay evaluates them over files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import polars as pl

from esper_analytics.detection.block import Block
from esper_analytics.detection.engine import Engine, Evaluation
from esper_analytics.detection.signal_columns import RUN, read_run
from esper_recorder.contract.rules.ruleset import RuleSet

Gaps = Mapping[str, Sequence[tuple[str, int, int]]]
"""run_id -> table, first and last update of each gap."""


def evaluate(rules: RuleSet, frames: Mapping[str, pl.LazyFrame], gaps: Gaps | None = None) -> Evaluation:
    """Evaluate all runs of the tables in one block."""
    runs = frames["ppo_updates"].select(pl.col("run_id").unique().sort()).collect().to_series().to_list()
    engine = Engine(rules, runs)
    if runs:
        engine.feed(Block(rules, tables_of(rules, frames, runs), numbered(gaps or {}, runs)))
    return engine.finish()


def tables_of(rules: RuleSet, frames: Mapping[str, pl.LazyFrame], runs: Sequence[str]) -> dict[str, pl.DataFrame]:
    """The tables of some runs as `read_runs` returns them."""
    by_run = [
        read_run(rules, {table: frame.filter(pl.col("run_id") == run) for table, frame in frames.items()})
        for run in runs
    ]
    return {
        table: pl.concat(
            tables[table].select(pl.lit(number, pl.Int64).alias(RUN), pl.all()) for number, tables in enumerate(by_run)
        )
        for table in by_run[0]
    }


def numbered(gaps: Gaps, runs: Sequence[str]) -> list[tuple[int, str, int, int]]:
    """The gaps of some runs, by their numbers."""
    return [(number, *gap) for number, run in enumerate(runs) for gap in gaps.get(run, ())]
