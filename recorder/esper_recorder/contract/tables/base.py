"""The tables of a recorded run: one frozen dataclass per table, the only place a column is declared.

Everything else is derived from here: the Arrow schema of the Parquet parts, the SQL views, `esper tables`, the
page `docs/tables.md`, and how rows of minibatches, devices and ranks are merged.

What holds for every table:

* NULL means *not measured* or *not applicable*; the column says which. There are no sentinel numbers.
* NaN and infinities are stored as they are, and counted; sums, moments and histograms are over the finite part.
* Counts and sums are stored, and the metrics derived from them stand beside them, computed by
  `esper_recorder.contract.metrics`. A mean is never merged with a mean.
* What is counted starts at 1 (attempt, update, epoch, minibatch, episode, place). What is an index starts at 0
  (rank, env, index, env_step).
* A column never changes its type or meaning. Columns are only added, with the schema version they came with.
"""

from __future__ import annotations

import dataclasses
import functools
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar

SCHEMA_VERSION = 3


class Reducer(StrEnum):
    """How the values of one column merge when rows are merged (minibatches of an update, devices, ranks)."""

    KEY = "key"  # identifies the row; rows merge within equal keys
    SUM = "sum"
    MIN = "min"  # the smallest number; NaN only where there is no number
    MAX = "max"  # the largest number; NaN only where there is no number
    FIRST = "first"
    LAST = "last"
    DERIVED = "derived"  # computed anew from the merged sums, by `metrics`


class AcrossRanks(StrEnum):
    """What the views make of the rows that the ranks of a distributed trainer recorded under one key."""

    MERGED = "merged"  # one row, by the reducers: each rank saw transitions of its own
    REPLICAS = "replicas"  # the lowest rank's row: each rank holds a copy of the same thing
    APART = "apart"  # a row each: each rank's are of something else


TYPES: dict[Any, str] = {
    int: "int64",
    float: "float64",
    str: "string",
    bool: "bool",
    datetime: "timestamp[us, UTC]",
    list[int]: "list<int64>",
    list[float]: "list<float64>",
    list[str]: "list<string>",
}


@dataclass(frozen=True, slots=True)
class Column:
    """One column of a table."""

    name: str
    type: str
    """One of int64, float64, string, bool, timestamp[us, UTC], list<int64>, list<float64>, list<string>."""
    meaning: str
    unit: str
    """The unit; "1" for a plain number, "" where a unit makes no sense (names, flags)."""
    null: str
    """What NULL means; "never" where the column is always filled."""
    reducer: Reducer
    since: int
    """The schema version that added the column."""
    renamed_from: str | None = None
    """The name older schemas gave it. Files and rules written then are read by it."""

    @property
    def is_float(self) -> bool:
        return self.type in ("float64", "list<float64>")


def column(
    meaning: str,
    reducer: Reducer,
    *,
    unit: str = "",
    null: str = "not measured",
    since: int = 1,
    renamed_from: str | None = None,
) -> Any:
    """Declare a column; its name and type are the field's."""
    declared = {"meaning": meaning, "unit": unit, "null": null, "reducer": reducer, "since": since}
    return field(default=None, metadata=declared | {"renamed_from": renamed_from})


key_col = functools.partial(column, reducer=Reducer.KEY, null="never")
count_col = functools.partial(column, reducer=Reducer.SUM, unit="1")
sum_col = functools.partial(column, reducer=Reducer.SUM, unit="1")
min_col = functools.partial(column, reducer=Reducer.MIN, unit="1")
max_col = functools.partial(column, reducer=Reducer.MAX, unit="1")
first_col = functools.partial(column, reducer=Reducer.FIRST)
last_col = functools.partial(column, reducer=Reducer.LAST)
derived_col = functools.partial(column, reducer=Reducer.DERIVED, unit="1", null="its sums were not measured")
quantile_col = functools.partial(
    column, reducer=Reducer.LAST, unit="1", null="the rollout was not recorded, or holds nothing finite", since=2
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Identity and time: the first columns of every table. The recorder fills them in."""

    table: ClassVar[str]
    row: ClassVar[str]
    """What one row is, as the end of the sentence "One row is ..."."""
    across_ranks: ClassVar[AcrossRanks] = AcrossRanks.APART

    run_id: str | None = key_col("the run: name, start and random characters, unique")
    attempt: int | None = key_col("1 for a fresh run; a resumed run opens the next one", unit="1")
    rank: int | None = key_col("process of a distributed trainer, 0 for a single process", unit="1")
    update: int | None = key_col("PPO update the row belongs to, counted from 1 as the trainer made them", unit="1")
    time: datetime | None = last_col(
        "wall clock, UTC, when the recorder took the row (of an imported run or Esper's events: when the trainer did)",
        null="the run was imported or told in events, and its trainer did not tell",
    )
    elapsed_s: float | None = last_col(
        "monotonic time since this attempt began",
        unit="s",
        null="the run was imported or told in events, and its trainer did not tell",
    )


IDENTITY = tuple(f.name for f in dataclasses.fields(Row))
"""The columns every table begins with."""
