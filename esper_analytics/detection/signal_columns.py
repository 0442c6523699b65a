"""Reading the columns that rules need: of one run, or of many in as few scans as their files allow."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

import numpy as np
import polars as pl

from esper_analytics.catalog.scan import PartLayout, TableScan
from esper_analytics.errors import DataError
from esper_analytics.runs import RunTables
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import BACKFILLED, UPDATE_TABLE
from esper_recorder.contract.tables import columns

RUN = "run"
"""The column that numbers the runs, in tables that hold several."""


def read(rules: RuleSet, frames: Mapping[str, Sequence[pl.LazyFrame]]) -> dict[str, pl.DataFrame]:
    """The columns of the tables that the rules read, NULL where a table has none.

    Args:
        rules: what reads them.
        frames: by table, a frame for each run; of several, each row gets its run's place as `RUN`.
    """
    lazy = {table: _of_each(frames[table], table, names) for table, names in rules.tables.items() if frames.get(table)}
    return {table: _seen(frame) for table, frame in zip(lazy, pl.collect_all(lazy.values()), strict=True)}


def read_runs(rules: RuleSet, runs: Sequence[RunTables]) -> dict[str, pl.DataFrame]:
    """The same of several runs: files of one layout in one scan, which takes a tenth of the time of a scan for each."""
    lazy: list[pl.LazyFrame] = []
    numbers: list[tuple[str, list[int], list[int]]] = []  # of each frame its table, of each file the run and rows
    for table, names in rules.tables.items():
        together: dict[PartLayout, list[tuple[int, Path, int]]] = {}
        for number, run in enumerate(runs):
            parts = run.scans[table].parts()
            if parts is None:
                lazy.append(_select(run.frame(table), table, names).with_columns(pl.lit(number, pl.Int64).alias(RUN)))
                numbers.append((table, [], []))
            for layout, path, rows in parts or ():
                together.setdefault(layout, []).append((number, path, rows))
        for layout, found in together.items():
            scan = TableScan(table, {layout: [path for _, path, _ in found]})
            lazy.append(_select(scan.frame(superseded=False, only=names), table, names))
            numbers.append((table, [number for number, _, _ in found], [rows for _, _, rows in found]))
    tables: dict[str, list[pl.DataFrame]] = {}
    for frame, (table, of_file, heights) in zip(pl.collect_all(lazy), numbers, strict=True):
        if RUN not in frame.columns:
            if frame.height != sum(heights):
                raise DataError(f"Files of {table} changed while they were read. Ask again.")
            frame.insert_column(0, pl.Series(RUN, np.repeat(np.array(of_file, np.int64), heights)))
        tables.setdefault(table, []).append(_seen(frame))
    return {
        table: frames[0] if len(frames) == 1 else pl.concat(frames, how="diagonal") for table, frames in tables.items()
    }


def _seen(frame: pl.DataFrame) -> pl.DataFrame:
    """The rows that the watcher saw too."""
    if BACKFILLED not in frame.columns:
        return frame
    return frame.filter(pl.col(BACKFILLED).cast(pl.Boolean).fill_null(False).not_()).drop(BACKFILLED)


def stretches(tables: Mapping[str, pl.DataFrame], updates: int) -> Iterator[dict[str, pl.DataFrame]]:
    """The tables of one run cut into stretches of so many updates, in their order."""
    tables = {table: frame if frame["update"].is_sorted() else frame.sort("update") for table, frame in tables.items()}
    own = tables[UPDATE_TABLE].get_column("update")
    bounds = own.gather(list(range(updates, own.len(), updates)))
    cuts = {
        table: [0, *frame.get_column("update").search_sorted(bounds, side="left").to_list(), frame.height]
        for table, frame in tables.items()
    }
    for place in range(bounds.len() + 1):
        yield {
            table: frame.slice(at[place], at[place + 1] - at[place])
            for (table, frame), at in zip(tables.items(), cuts.values(), strict=True)
        }


_TYPES: Final[Mapping[str, pl.DataType | type[pl.DataType]]] = {
    "int64": pl.Int64,
    "float64": pl.Float64,
    "bool": pl.Boolean,
    "string": pl.String,
    "list<int64>": pl.List(pl.Int64),
    "list<float64>": pl.List(pl.Float64),
    "list<string>": pl.List(pl.String),
}


def _of_each(frames: Sequence[pl.LazyFrame], table: str, names: frozenset[str]) -> pl.LazyFrame:
    if len(frames) == 1:
        return _select(frames[0], table, names)
    return pl.concat(
        [
            _select(frame, table, names).select(pl.lit(run, pl.Int64).alias(RUN), pl.all())
            for run, frame in enumerate(frames)
        ]
    )


def _select(frame: pl.LazyFrame, table: str, names: frozenset[str]) -> pl.LazyFrame:
    wanted = ["update", *sorted(names - {"run_id", "update"})]
    types = {c.name: _TYPES[c.type] for c in columns(table) if c.name in wanted}
    there = frame.collect_schema().names()
    return frame.select(pl.col(n) if n in there else pl.lit(None, types[n]).alias(n) for n in wanted)
