"""The vocabulary of table declarations: `Column`, `Reducer`, and `Row`, the base of one frozen dataclass per table.

The Arrow schema of the Parquet parts, the SQL views, `esper tables`, the pages `docs/tables_*.md` and the merging of
minibatches, devices and ranks all derive from these declarations. In every table:

* NULL means *not measured* or *not applicable*; the column says which. There are no sentinel numbers.
* NaN and infinities are stored unchanged, and counted; sums, moments and histograms cover the finite values.
* Counts and sums are stored, and beside them the metrics that `contract.metrics` derives. Means are never merged.
* Counted things start at 1 (attempt, update, epoch, minibatch, episode, place); indices start at 0 (rank, env, index,
  env_step).
* After the first release a column keeps its name, type and meaning; until then a rename declares the former name.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from typing import Any, ClassVar, TypeVar, dataclass_transform

SCHEMA_VERSION = 3


class Reducer(StrEnum):
    """How a column merges when rows do: minibatches of an update, devices, ranks."""

    KEY = "key"  # identifies the row; rows merge within equal keys
    SUM = "sum"
    MIN = "min"  # the smallest number; NaN only if every value is NaN
    MAX = "max"  # the largest number; NaN only if every value is NaN
    FIRST = "first"
    LAST = "last"
    DERIVED = "derived"  # recomputed from the merged sums, by `metrics`


class AcrossRanks(StrEnum):
    """How the views combine rows that several ranks of a distributed trainer recorded under one key."""

    MERGED = "merged"  # into one row, by the reducers: the ranks saw different transitions
    REPLICAS = "replicas"  # the lowest rank's row: every rank holds a copy of the same thing
    APART = "apart"  # not at all: the ranks' rows are about different things


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
    """The unit; "1" for a dimensionless number, "" for names and flags."""
    null: str
    """What NULL means; "never" if the column is always filled."""
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
    column, reducer=Reducer.LAST, unit="1", null="the rollout was not recorded, or has no finite value", since=2
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """Identity and time: the first columns of every table. The recorder fills them in."""

    table: ClassVar[str]
    row: ClassVar[str]
    """What one row is; completes "One row is ..."."""
    across_ranks: ClassVar[AcrossRanks]

    run_id: str | None = key_col("the run: name, start and random characters, unique")
    attempt: int | None = key_col("1 for a new run; each resume opens the next", unit="1")
    rank: int | None = key_col("process of a distributed trainer; 0 if there is only one", unit="1")
    update: int | None = key_col("PPO update the row belongs to, from 1 in the order they were made", unit="1")
    time: datetime | None = last_col(
        "UTC wall-clock time at which the row was recorded (imported runs and Esper's events: by the trainer)",
        null="an imported run or Esper's events, without a time",
    )
    elapsed_s: float | None = last_col(
        "monotonic time since this attempt began", unit="s", null="an imported run or Esper's events, without a time"
    )


_Table = TypeVar("_Table", bound=Row)


@dataclass_transform(kw_only_default=True, frozen_default=True)
def table(name: str, row: str, across_ranks: AcrossRanks = AcrossRanks.APART) -> Callable[[type[_Table]], type[_Table]]:
    """Make a class a table: a frozen dataclass with these class attributes."""

    def declare(cls: type[_Table]) -> type[_Table]:
        cls.table, cls.row, cls.across_ranks = name, row, across_ranks
        return dataclass(frozen=True, slots=True, kw_only=True)(cls)

    return declare


IDENTITY = tuple(f.name for f in dataclasses.fields(Row))
"""The first columns of every table."""
