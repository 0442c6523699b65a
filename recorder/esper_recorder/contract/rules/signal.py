"""Signals: what a rule reads. One value per (run, update, key), from one table and one column or expression.

The watcher reads a signal from the update's rows at their commit (`Signal.read`); the replay reads the same from the
store. Where there is no value there is a `Reason`, never a number that stands for one.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

from esper_recorder.contract.rules.expression import Expression
from esper_recorder.contract.tables import TABLES, columns, key_columns

UPDATE_TABLE: Final = "ppo_updates"
"""The table with one row per update; a rule is evaluated where it has one."""


class Take(StrEnum):
    """Which value of an update's rows a signal is."""

    FIRST = "first"  # of the first row in the order they were taken, whatever it holds
    LAST = "last"
    MAX = "max"  # the largest number; NaN only where there is no number; NULL only where nothing was measured
    MIN = "min"
    SUM = "sum"  # of what was measured; NaN if a NaN was
    MEAN = "mean"  # that sum divided by how many were measured
    ONLY = "only"  # there must be no second row


class Reason(StrEnum):
    """Why a rule could not look: what it says instead of "fine"."""

    __hash__ = str.__hash__  # an enumeration's own is a call into Python, for each abstention counted

    NO_TABLE = "table not recorded by this run"  # no row of it at any update
    NOT_RECORDED = "not recorded"  # no row for the update and key, in a table that the run records
    NOT_MEASURED = "not measured"  # NULL
    NOT_FINITE = "not finite"  # NaN, which no threshold can judge; for drift, also an infinity
    SEVERAL_ROWS = "several rows"  # where there must be one
    TOO_FEW = "too little evidence"  # fewer than min_n
    NOT_APPLICABLE = "not applicable"  # the `unless` gate is closed
    GATE_UNKNOWN = "gate not measured"
    NO_THRESHOLD = "no threshold"  # the phase is not known, the key not named, or the column not measured
    WARMING_UP = "warming up"  # an average or a previous value is still to come
    GAP = "recording gap"  # the update was not recorded, or its rows of the table are told to be lost


Reading = float | Reason

BACKFILLED: Final = "backfilled"
"""Column of `minibatches`: true where the row was stored after the rules had judged its update without it. Nobody who
judges the update again looks at it."""

ORDER_COLUMNS: Final[dict[str, tuple[str, ...]]] = {
    "minibatches": ("minibatch",),
    "ratio_histograms": ("minibatch",),
    "ratio_exemplars": ("minibatch", "place"),
    "gradient_layers": ("minibatch",),
    "episodes": ("episode",),
}
"""Table -> the columns whose order is the order the rows were taken in (NULL first)."""


@dataclass(frozen=True, slots=True)
class Signal:
    """One value per (run, update, key).

    Attributes:
        table: a table of the contract.
        column: the column read; None where `expression` is. A list stands for the number of its entries.
        expression: arithmetic over the row's columns; None where `column` is read.
        take: which of the update's rows.
        key: the column that tells the series apart (head, layer); None for one series per run.
        min_n: rows whose column `n` is less, or NULL, are left out.
        where: (column, text) pairs; only rows that hold these texts are looked at, the others are as if not there.
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
        """Every column of the table that must be at hand."""
        extra = (*order_columns(self), *((self.key,) if self.key else ()), *(("n",) if self.min_n is not None else ()))
        return frozenset((*self.inputs, *extra, *(name for name, _ in self.where)))

    @property
    def counts(self) -> bool:
        """The column holds lists, and the value is the number of entries."""
        return _is_list(self.table, self.column)

    def describe(self) -> str:
        """As a person would name it: `ppo_updates.ratio_max`, `first of minibatches.ratio_max`."""
        what = self.expression.text if self.expression is not None else self.column
        table = self.table
        if self.where:
            table += "{" + ", ".join(f"{column}={text}" for column, text in self.where) + "}"
        name = f"{table}: {what}" if self.expression is not None else f"{table}.{what}"
        return name if self.take is Take.ONLY else f"{self.take} of {name}"

    def read(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, Reading]:
        """The readings from one update's rows of the table, by key ("" without a key column).

        A key with no row is not in the result, except that a signal without a key column always has "".
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
        """The reading from an update's rows of one key."""
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
            ordered = sorted(rows, key=lambda row: [_place(row.get(name)) for name in order]) if order else rows
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
            value = row.get(self.column)  # type: ignore[arg-type]  # one of the two is given
            if value is not None and self.counts:
                value = len(value)
        return Reason.NOT_MEASURED if value is None else float(value)


def order_columns(signal: Signal) -> tuple[str, ...]:
    """The columns that order the rows `first` and `last` choose from."""
    return ORDER_COLUMNS.get(signal.table, ()) if signal.take in (Take.FIRST, Take.LAST) else ()


def default_take(table: str) -> Take | None:
    """`only` for a table with one row per update (and, with its key column given, per key); None for others."""
    return Take.ONLY if not own_keys(table) else None


@functools.cache
def own_keys(table: str) -> tuple[str, ...]:
    """The key columns a table has besides run, attempt, rank and update."""
    identity = key_columns(UPDATE_TABLE)
    return tuple(name for name in key_columns(table) if name not in identity)


def total(values: Iterable[float]) -> float:
    """The sum, exactly rounded, so independent of the order; NaN if a NaN, or both infinities, are in it."""
    values = list(values)
    special = [value for value in values if not math.isfinite(value)]
    if special:
        return sum(special)
    try:
        return math.fsum(values)
    except OverflowError:  # an intermediate sum left the range; sorted, so that this too has one answer
        return sum(sorted(values))


@functools.cache
def _is_list(table: str, column: str | None) -> bool:
    return any(declared.name == column and declared.type.startswith("list<") for declared in columns(table))


def _place(value: Any) -> float:
    return -math.inf if value is None else value


assert set(ORDER_COLUMNS) <= set(TABLES)
