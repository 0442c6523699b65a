"""Signals: what a rule reads. One value per (run, update, key), from one table and one column or expression.

The watcher reads a signal from the update's rows at their commit (`Signal.read`); the replay reads the same from the
store. Without a value there is a `Reason`, never a number that stands for one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from esper_recorder.contract.rules.expression import Expression
from esper_recorder.contract.tables import TABLES, columns, key_columns

UPDATE_TABLE: Final = "ppo_updates"
"""The table with one row per update; a rule is evaluated at each of its rows."""


class Take(StrEnum):
    """Which value of an update's rows a signal is."""

    FIRST = "first"  # of the first row in the order of recording, whatever it contains
    LAST = "last"
    MAX = "max"  # the largest number; NaN if only NaN was measured; NULL if nothing was
    MIN = "min"
    SUM = "sum"  # of the measured values; NaN if one is
    MEAN = "mean"  # that sum divided by their count
    ONLY = "only"  # there must not be a second row


class Reason(StrEnum):
    """Why a rule was not evaluated: what it says instead of "healthy"."""

    __hash__ = str.__hash__  # an enumeration's hash is a Python call, for each abstention counted

    NO_TABLE = "table not recorded by this run"  # no row of it at any update
    NOT_RECORDED = "not recorded"  # no row for the update and key, in a table that the run records
    NOT_MEASURED = "not measured"  # NULL
    NOT_FINITE = "not finite"  # NaN, which cannot be compared; for a trend, also an infinity
    SEVERAL_ROWS = "several rows"  # instead of one
    TOO_FEW = "too little evidence"  # fewer than min_n
    NOT_APPLICABLE = "not applicable"  # the `unless` gate is closed
    GATE_UNKNOWN = "gate not measured"
    NO_THRESHOLD = "no threshold"  # phase unknown, key without a number, or column not measured
    WARMING_UP = "warming up"  # no average or previous value yet
    GAP = "recording gap"  # the update was not recorded, or the rows of its table were lost


Reading = float | Reason

BACKFILLED: Final = "backfilled"
"""Column of `minibatches`: true if the row was stored after its update had been evaluated without it. Later evaluations
of the update ignore it too."""

ORDER_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "minibatches": ("minibatch",),
    "ratio_histograms": ("minibatch",),
    "ratio_exemplars": ("minibatch", "place"),
    "gradient_layers": ("minibatch",),
    "episodes": ("episode",),
}
"""Table -> the columns that give the order of recording (NULL first)."""

Row = Mapping[str, Any]
Rows = Mapping[str, Sequence[Row]]
"""One update's rows by table, each a mapping of column to value; a missing column is NULL."""

Read = Callable[[Row, Rows], Reading]
"""From the update's row of `ppo_updates` and its rows of every table."""

ReadKeys = Callable[[Row, Rows], Mapping[str, Reading]]
"""The same by key; a key without a row is absent."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One value per (run, update, key).

    Attributes:
        table: a table of the contract.
        column: the column to read; None if `expression` is set. A list counts as the number of its entries.
        expression: arithmetic over the row's columns; None if `column` is set.
        take: which of the update's rows.
        key: the column that separates the series (head, layer); None for one series per run.
        min_n: rows whose column `n` is less, or NULL, are ignored.
        where: (column, text) pairs; rows without these texts are ignored.
    """

    table: str
    column: str | None = None
    expression: Expression | None = None
    take: Take = Take.ONLY
    key: str | None = None
    min_n: int | None = None
    where: tuple[tuple[str, str], ...] = ()

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns the value is computed from."""
        return self.expression.columns if self.expression is not None else (self.column or "",)

    @property
    def columns(self) -> frozenset[str]:
        """Every column of the table that reading it needs."""
        extra = (*order_columns(self), *((self.key,) if self.key else ()), *(("n",) if self.min_n is not None else ()))
        return frozenset((*self.inputs, *extra, *(name for name, _ in self.where)))

    @property
    def counts(self) -> bool:
        """Whether the column contains lists, so that the value is the number of entries."""
        return _is_list(self.table, self.column)

    def read(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Reading]:
        """Read one update's rows of the table, by key ("" without a key column).

        A key without a row is absent from the result, but a signal without a key column always has "".
        """
        for column, text in self.where:
            rows = [row for row in rows if row.get(column) == text]
        if self.key is None:
            return {"": self.value_of(rows)}
        groups: dict[str, list[Mapping[str, Any]]] = {}
        for row in rows:
            key = row.get(self.key)
            groups.setdefault("" if key is None else str(key), []).append(row)
        return {key: self.value_of(group) for key, group in groups.items()}

    def value_of(self, rows: Sequence[Mapping[str, Any]]) -> Reading:
        """Read an update's rows of one key."""
        if not rows:
            return Reason.NOT_RECORDED
        least = self.min_n
        if least is not None:
            rows = [row for row in rows if (n := row.get("n")) is not None and n >= least]
            if not rows:
                return Reason.TOO_FEW
        take = self.take
        if take is Take.ONLY:
            return Reason.SEVERAL_ROWS if len(rows) > 1 else self._value(rows[0])
        if take is Take.FIRST or take is Take.LAST:
            order = order_columns(self)
            ordered = sorted(rows, key=lambda row: [_null_first(row.get(name)) for name in order]) if order else rows
            return self._value(ordered[0 if take is Take.FIRST else -1])
        measured = [value for row in rows if not isinstance(value := self._value(row), Reason)]
        if not measured:
            return Reason.NOT_MEASURED
        if take is Take.SUM or take is Take.MEAN:
            return total(measured) / (1 if take is Take.SUM else len(measured))
        numbers = [value for value in measured if value == value]
        if not numbers:
            return math.nan
        return max(numbers) if take is Take.MAX else min(numbers)

    def _value(self, row: Mapping[str, Any]) -> Reading:
        if self.expression is not None:
            value = self.expression.evaluate(row)
        else:
            value = row.get(self.column)  # type: ignore[arg-type]  # without an expression there is a column
            if value is not None and self.counts:
                value = len(value)
        return Reason.NOT_MEASURED if value is None else float(value)


def order_columns(signal: Signal) -> tuple[str, ...]:
    """Return the columns that order the rows `first` and `last` choose from."""
    return () if signal.take not in (Take.FIRST, Take.LAST) else ORDER_COLUMNS.get(signal.table, ())


@functools.cache
def own_keys(table: str) -> tuple[str, ...]:
    """Return the table's key columns other than run, attempt, rank and update."""
    identity = key_columns(UPDATE_TABLE)
    return tuple(name for name in key_columns(table) if name not in identity)


def total(values: Iterable[float]) -> float:
    """Sum with exact rounding, so independent of the order; NaN if one value is, or both infinities occur."""
    values = list(values)
    special = [value for value in values if not math.isfinite(value)]
    if special:
        return sum(special)
    try:
        return math.fsum(values)
    except OverflowError:  # an intermediate sum overflowed; sorting makes this result independent of the order too
        return sum(sorted(values))


@functools.cache
def _is_list(table: str, column: str | None) -> bool:
    return any(declared.name == column and declared.type.startswith("list<") for declared in columns(table))


def _null_first(value: Any) -> float:
    return -math.inf if value is None else value


def compile_signal(signal: Signal) -> Read | ReadKeys:
    """Return the function that reads a signal at every update: `Signal.read`, with shortcuts for the common forms."""
    return _compile_whole(signal) if signal.key is None else _compile_keyed(signal)


def _compile_whole(signal: Signal) -> Read:
    table, column, where = signal.table, signal.column, signal.where
    simple = column is not None and signal.min_n is None and not signal.counts
    if table != UPDATE_TABLE:
        single = simple and signal.take is not Take.SUM  # a sum turns -0.0 into 0.0; the others return the value

        def read_rows(row: Row, rows: Rows) -> Reading:
            matching = rows.get(table, ())
            for name, text in where:
                matching = [candidate for candidate in matching if candidate.get(name) == text]
            if single and len(matching) == 1:
                value = matching[0].get(column)  # type: ignore[arg-type]  # `simple`: there is a column
                return Reason.NOT_MEASURED if value is None else float(value)
            return signal.value_of(matching)

        return read_rows
    if simple:

        def read_column(row: Row, rows: Rows) -> Reading:
            value = row.get(column)  # type: ignore[arg-type]  # `simple`: there is a column
            return Reason.NOT_MEASURED if value is None else float(value)

        return read_column
    return lambda row, rows: signal.value_of((row,))


def _compile_keyed(signal: Signal) -> ReadKeys:
    table, column, key = signal.table, signal.column, signal.key
    if column is None or signal.counts or signal.min_n is not None or signal.where or signal.take is not Take.ONLY:
        return lambda row, rows: signal.read(rows.get(table, ()))
    assert key is not None

    def read_column(row: Row, rows: Rows) -> dict[str, Reading]:
        readings: dict[str, Reading] = {}
        for candidate in rows.get(table, ()):
            name, value = candidate.get(key), candidate.get(column)
            name = "" if name is None else str(name)
            reading = Reason.NOT_MEASURED if value is None else float(value)
            readings[name] = Reason.SEVERAL_ROWS if name in readings else reading
        return readings

    return read_column


assert set(ORDER_COLUMNS) <= set(TABLES)
