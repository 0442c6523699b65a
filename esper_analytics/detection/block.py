"""Signals read from whole tables: some runs, or a stretch of one, as NumPy arrays.

A `Reading` is one signal for one key: a value per update that has rows for it, with the code of a reason if there is no
value. What each reading means is defined by `Signal.read`, which reads one update.

Rows are recorded in the order of updates, mostly with the same heads or layers in each. Both is checked, never assumed:
if it holds, the rows of a key are a strided view of a column, with no copy and no sort, which is what makes a replay
fast. If it does not, rows are sorted and grouped.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import polars as pl

from esper_analytics.detection.arrays import COLUMNS, Codes, Flags, Floats, Ints, code
from esper_analytics.detection.signal_columns import RUN
from esper_recorder.contract.rules.evaluator import ALL_TABLES
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import ORDER_COLUMNS, UPDATE_TABLE, Reason, Signal, Take, own_keys, total
from esper_recorder.contract.tables import columns

Gap = tuple[int, str, int, int]
"""Number of a run, table (or `ALL_TABLES`), first and last update: in between, rows of the table are missing."""

Rows = slice | Ints
"""Which rows of a table."""


@dataclass(frozen=True, slots=True)
class Reading:
    """A signal for one key.

    Attributes:
        rows: the updates with rows for it, as ascending positions in the block; None for all.
        values: one per such update; NaN if it is missing.
        reasons: one code per such update; None if all have a value.
    """

    rows: Ints | None
    values: Floats
    reasons: Codes | None

    def at(self, rows: Ints | None, height: int) -> tuple[Floats, Codes | None]:
        """Return values and codes at other updates of the block (None for all): `not recorded` if there is no row."""
        if self.rows is rows or (self.rows is not None and rows is not None and np.array_equal(self.rows, rows)):
            return self.values, self.reasons
        if self.rows is None:
            assert rows is not None
            return self.values[rows], None if self.reasons is None else self.reasons[rows]
        values = np.full(height, math.nan)
        reasons = np.full(height, code(Reason.NOT_RECORDED), np.uint8)
        values[self.rows] = self.values
        reasons[self.rows] = 0 if self.reasons is None else self.reasons
        return (values, reasons) if rows is None else (values[rows], reasons[rows])


NO_READING = Reading(np.empty(0, np.int64), np.empty(0), None)


class Block:
    """The tables of some runs, as far as a rule set reads them.

    Attributes:
        height: the number of updates.
        run: number of the run of each update; updates are ordered by run and update.
        update: number of each update.
        progress: Float64, one per update.
        phases: the rules' phases, (name, start).
        phase: position among them of each update's phase, or -1.
        gaps: recorded gaps of the runs.
    """

    def __init__(self, rules: RuleSet, tables: Mapping[str, pl.DataFrame], gaps: Sequence[Gap] = ()) -> None:
        """Align the tables that `signal_columns` read with their updates."""
        updates = _Table(*_ordered(*_numbered(tables[UPDATE_TABLE]), unique=True))
        self.height, self.run, self.update = updates.frame.height, updates.run, updates.update
        self.progress = updates.frame.get_column("progress").cast(pl.Float64)
        self.phases, self.phase = rules.phases, _phases(rules, self.progress)
        self.gaps = gaps
        others = {table: self._align(frame) for table, frame in tables.items() if table != UPDATE_TABLE}
        self._tables = {UPDATE_TABLE: updates, **others}
        self._in_gap: dict[frozenset[str], Flags | None] = {}
        self._readings: dict[Signal, dict[str, Reading]] = {}

    def in_gap(self, tables: frozenset[str]) -> Flags | None:
        """Flag the updates at which a gap says that rows of any of the tables are missing; None for no update."""
        if self.gaps and tables not in self._in_gap:
            flags = np.zeros(self.height, bool)
            for run, table, first, last in self.gaps:
                if table == ALL_TABLES or table in tables:
                    flags |= (self.run == run) & (self.update >= first) & (self.update <= last)
            self._in_gap[tables] = flags if flags.any() else None
        return self._in_gap.get(tables)

    def runs_that_record(self, table: str) -> list[int]:
        """Return the numbers of the runs with a row of the table, or with a gap in it."""
        aligned = self._tables.get(table)
        recorded = [] if aligned is None else aligned.run[_begins(aligned.run)].tolist()
        return [*recorded, *(run for run, missing, _, _ in self.gaps if missing == table)]

    def column(self, signal: Signal) -> tuple[Floats, Flags | None]:
        """Return a column of `ppo_updates` as numbers, and flags where it is NULL (None for nowhere)."""
        return self._tables[UPDATE_TABLE].values(signal)

    def readings(self, signal: Signal) -> dict[str, Reading]:
        """Read a signal, by key in alphabetical order; a signal without a key column always has the key ""."""
        if signal not in self._readings:
            readings = dict(sorted(self._read(signal)))
            self._readings[signal] = readings if readings or signal.key is not None else {"": NO_READING}
        return self._readings[signal]

    def _read(self, signal: Signal) -> Iterator[tuple[str, Reading]]:
        table = self._tables.get(signal.table)
        if table is None:
            return
        values, missing = table.values(signal)
        for key, rows, positions in table.select(signal):
            if isinstance(rows, tuple):
                parts = [] if missing is None else [missing[slice_] for slice_ in rows]
                yield key, _extreme(signal, [values[slice_] for slice_ in rows], parts)
            else:
                lacking = None if missing is None else missing[rows]
                yield key, _reduce(signal, table.frame, rows, positions, values[rows], lacking, self.height)

    def _align(self, frame: pl.DataFrame) -> _Table:
        """Find the update that each row belongs to, and drop the rows of updates that were not recorded."""
        frame, run, update = _numbered(frame)
        per_update, rest = divmod(frame.height, self.height) if self.height else (0, 0)
        if per_update and not rest:
            same = update.reshape(-1, per_update) == self.update[:, None]
            if same.all() and (run.reshape(-1, per_update) == self.run[:, None]).all():
                return _Table(frame, run, update, None, per_update)
        frame, run, update = _ordered(frame, run, update)
        begins = _begins(run, update)
        updates = pl.DataFrame({"run": self.run, "update": self.update, "position": np.arange(self.height)})
        groups = pl.DataFrame({"run": run[begins], "update": update[begins]})
        joined = groups.join(updates, on=["run", "update"], how="left", maintain_order="left")
        positions = np.repeat(joined["position"].fill_null(-1).to_numpy(), np.diff(begins, append=len(update)))
        recorded = positions >= 0
        if not recorded.all():
            frame, run = frame.filter(pl.Series(recorded)), run[recorded]
            update, positions = update[recorded], positions[recorded]
        return _Table(frame, run, update, positions)


@dataclass(slots=True)
class _Table:
    """The rows of a table, ordered by run and update.

    Attributes:
        positions: the position in the block of each row's update; None if each update has the same number of rows.
        per_update: that number.
    """

    frame: pl.DataFrame
    run: Ints
    update: Ints
    positions: Ints | None = None
    per_update: int = 1
    _repeated: dict[str, list[Any] | None] = field(default_factory=dict)

    def values(self, signal: Signal) -> tuple[Floats, Flags | None]:
        """Return the signal's value in each row, and flags where it is missing (None for nowhere)."""
        if signal.expression is None:
            return _numbers(self.frame.get_column(signal.column or ""))
        inputs = {name: _numbers(self.frame.get_column(name)) for name in signal.expression.columns}
        with np.errstate(all="ignore"):  # a result that is not finite is the rule's business
            results = signal.expression.compile(COLUMNS)({name: numbers for name, (numbers, _) in inputs.items()})
        values = np.asarray(results, np.float64)
        lacking = [missing for _, missing in inputs.values() if missing is not None]
        if not lacking:
            return values, None
        missing = functools.reduce(np.logical_or, lacking)
        return np.where(missing, math.nan, values), missing

    def select(self, signal: Signal) -> Iterator[tuple[str, Rows | tuple[slice, ...], Ints | None]]:
        """For each key of a signal, yield its rows and the positions of their updates (None: one row per update).

        A tuple of slices holds the first, second, ... rows of all updates.
        """
        named = [name for name in own_keys(signal.table) if name == signal.key or name in dict(signal.where)]
        if self.positions is None and (texts := self._repeated_texts(named)) is not None:
            yield from self._select_regular(signal, texts)
            return
        positions = self.positions
        if positions is None:
            positions = np.repeat(np.arange(self.frame.height // self.per_update), self.per_update)
        rows = np.arange(self.frame.height)
        for column, text in signal.where:
            rows = rows[(self.frame.get_column(column) == text).fill_null(False).to_numpy()[rows]]
        if signal.key is None:
            if len(rows):
                yield "", rows, positions[rows]
            return
        keys = self.frame.get_column(signal.key).cast(pl.String).fill_null("")[rows]
        names = keys.unique().sort()
        number = keys.cast(pl.Enum(names)).to_physical().to_numpy()
        # a stable sort of 8 or 16 bit numbers is a radix sort
        order = np.argsort(number.astype(np.min_scalar_type(max(len(names), 1))), kind="stable")
        ends = np.cumsum(np.bincount(number, minlength=len(names)))
        for name, start, end in zip(names, [0, *ends], ends, strict=False):
            of_key = rows[order[start:end]]
            yield name, of_key, positions[of_key]

    def _select_regular(
        self, signal: Signal, texts: list[dict[str, str | None]]
    ) -> Iterator[tuple[str, Rows | tuple[slice, ...], Ints | None]]:
        """The same if every update has rows with the same texts, in the same order."""
        places: dict[str, list[int]] = {}
        for place, row in enumerate(texts):
            if all(row[column] == text for column, text in signal.where):
                places.setdefault("" if signal.key is None else row[signal.key] or "", []).append(place)
        width, height = self.per_update, self.frame.height
        for key, of_key in places.items():
            if len(of_key) == 1:
                yield key, slice(of_key[0], None, width), None
            elif _EXTREMES.get(signal.take) and signal.min_n is None:
                yield key, tuple(slice(place, None, width) for place in of_key), None
            else:
                rows = (np.arange(0, height, width)[:, None] + np.array(of_key)).ravel()
                yield key, rows, np.repeat(np.arange(height // width), len(of_key))

    def _repeated_texts(self, names: list[str]) -> list[dict[str, str | None]] | None:
        """Return the texts of the 1st, 2nd, ... row of every update; None if updates differ."""
        width = self.per_update
        for name in names:
            if name not in self._repeated:
                column = self.frame.get_column(name)
                same = column.slice(width).eq_missing(column.slice(0, column.len() - width)).all()
                self._repeated[name] = column.slice(0, width).to_list() if same else None
        repeated = {name: texts for name in names if (texts := self._repeated[name]) is not None}
        if len(repeated) < len(names):
            return None
        return [
            {name: None if texts[place] is None else str(texts[place]) for name, texts in repeated.items()}
            for place in range(width)
        ]


_EXTREMES: Final = {Take.MAX: np.fmax, Take.MIN: np.fmin}  # both ignore NaN, a missing value, beside a number


def _reduce(
    signal: Signal,
    frame: pl.DataFrame,
    rows: Rows,
    positions: Ints | None,
    values: Floats,
    missing: Flags | None,
    height: int,
) -> Reading:
    """Reduce the values of some rows, whose updates are at `positions`, to one per update."""
    if signal.min_n is not None:
        enough = _numbers(frame.get_column("n"))[0][rows] >= signal.min_n  # NULL is NaN here, and so not enough
        if not enough.all():
            positions = np.arange(height) if positions is None else positions
            lacking = None if missing is None else missing[enough]
            rows = np.arange(frame.height)[rows][enough]
            reduced = _group(signal, frame, rows, positions[enough], values[enough], lacking)
            updates = np.unique(positions)
            some = np.isin(updates, positions[enough])
            values, reasons = np.full(len(updates), math.nan), np.full(len(updates), code(Reason.TOO_FEW), np.uint8)
            values[some] = reduced.values
            reasons[some] = 0 if reduced.reasons is None else reduced.reasons
            return Reading(updates, values, reasons)
    if positions is None:
        return Reading(None, np.ascontiguousarray(values), _not_measured(missing))
    reduced = _group(signal, frame, rows, positions, values, missing)
    return Reading(None, reduced.values, reduced.reasons) if len(reduced.values) == height else reduced


def _group(
    signal: Signal, frame: pl.DataFrame, rows: Rows, positions: Ints, values: Floats, missing: Flags | None
) -> Reading:
    """Reduce values grouped by update; at least one row each."""
    begins = _begins(positions)
    updates = positions[begins]
    if len(begins) == len(positions):
        values = values + 0.0 if signal.take is Take.SUM else values  # a sum is never a negative zero
        return Reading(updates, values, _not_measured(missing))
    ends = np.append(begins[1:], len(positions)) - 1
    match signal.take:
        case Take.ONLY:
            several = ends > begins
            reasons = np.where(several, code(Reason.SEVERAL_ROWS), 0).astype(np.uint8)
            if missing is not None:
                reasons[missing[begins] & ~several] = code(Reason.NOT_MEASURED)
            return Reading(updates, np.where(several, math.nan, values[begins]), reasons)
        case Take.FIRST | Take.LAST:
            at = begins if signal.take is Take.FIRST else ends
            order = _order(signal, frame, rows, positions)
            at = at if order is None else order[at]
            return Reading(updates, values[at], _not_measured(None if missing is None else missing[at]))
        case Take.MAX | Take.MIN:
            reduced = _EXTREMES[signal.take].reduceat(values, begins)
        case Take.SUM if _is_whole(signal):
            reduced = np.add.reduceat(values if missing is None else np.where(missing, 0.0, values), begins)
        case _:
            reduced = _exact_sums(values, missing, begins, ends)
            if signal.take is Take.MEAN:
                measured = ends - begins + 1 if missing is None else np.add.reduceat(~missing, begins, dtype=np.int64)
                reduced /= np.maximum(measured, 1)
    lacking = None if missing is None else np.logical_and.reduceat(missing, begins)
    if lacking is not None:
        reduced[lacking] = math.nan
    return Reading(updates, reduced, _not_measured(lacking))


def _extreme(signal: Signal, values: list[Floats], missing: list[Flags]) -> Reading:
    """Take the largest or the smallest of several values per update, with one array for each."""
    lacking = _not_measured(functools.reduce(np.logical_and, missing) if missing else None)
    return Reading(None, functools.reduce(_EXTREMES[signal.take], values), lacking)


def _exact_sums(values: Floats, missing: Flags | None, begins: Ints, ends: Ints) -> Floats:
    """Sum each group as the watcher does, exactly rounded. Any sum of one or two numbers is, and those are fast."""
    group = np.repeat(np.arange(len(begins)), ends - begins + 1)
    if missing is not None:
        values, group = values[~missing], group[~missing]
    count = np.bincount(group, minlength=len(begins))
    start = np.cumsum(count) - count
    sums = np.zeros(len(begins))
    with np.errstate(all="ignore"):  # inf - inf is NaN, and the sum of two large numbers infinite, as in Python
        sums[count == 1] = values[start[count == 1]] + 0.0
        sums[count == 2] = values[start[count == 2]] + values[start[count == 2] + 1]
    many = np.flatnonzero(count > 2)
    numbers = values.tolist() if len(many) else []
    sums[many] = [total(numbers[a : a + n]) for a, n in zip(start[many].tolist(), count[many].tolist(), strict=True)]
    return sums


def _order(signal: Signal, frame: pl.DataFrame, rows: Rows, positions: Ints) -> Ints | None:
    """Return the order in which rows were recorded within their updates; None if they already are in that order."""
    keys = [
        frame.get_column(name).cast(pl.Float64).fill_null(-math.inf).to_numpy()[rows]
        for name in ORDER_COLUMNS.get(signal.table, ())
    ]
    if not keys:
        return None
    if len(keys) == 1 and not ((keys[0][1:] < keys[0][:-1]) & (positions[1:] == positions[:-1])).any():
        return None
    return np.lexsort((*reversed(keys), positions))


def _not_measured(missing: Flags | None) -> Codes | None:
    if missing is None or not missing.any():
        return None
    return missing.astype(np.uint8) * np.uint8(code(Reason.NOT_MEASURED))


def _numbered(frame: pl.DataFrame) -> tuple[pl.DataFrame, Ints, Ints]:
    """Drop rows without an update; return the others with the number of their run and their update."""
    if frame.get_column("update").null_count():
        frame = frame.filter(pl.col("update").is_not_null())
    run = frame.get_column(RUN).to_numpy() if RUN in frame.columns else np.zeros(frame.height, np.int64)
    return frame, run, frame.get_column("update").to_numpy()


def _begins(*keys: Ints) -> Ints:
    """Return where in ordered rows another group begins: where one of the keys changes."""
    changes = functools.reduce(np.logical_or, (key[1:] != key[:-1] for key in keys))
    return np.flatnonzero(np.concatenate([np.ones(min(len(keys[0]), 1), bool), changes]))


def _ordered(frame: pl.DataFrame, run: Ints, update: Ints, *, unique: bool = False) -> tuple[pl.DataFrame, Ints, Ints]:
    """Sort rows by run and update; with `unique` keep the first of each update."""
    if len(run) > 1:
        step, same = np.diff(update), np.diff(run)
        if (same < 0).any() or ((same == 0) & (step < 0)).any():
            order = np.lexsort((update, run))
            frame, run, update = frame[order], run[order], update[order]
    if unique:
        first = _begins(run, update)
        if len(first) < len(run):
            frame, run, update = frame[first], run[first], update[first]
    return frame, run, update


def _numbers(series: pl.Series) -> tuple[Floats, Flags | None]:
    """Return numbers, or the lengths of lists, with NaN for NULL, and flags where NULL is (None for nowhere)."""
    series = (series.list.len() if series.dtype == pl.List else series).cast(pl.Float64)
    if not series.null_count():
        return series.to_numpy(), None
    return series.fill_null(math.nan).to_numpy(), series.is_null().to_numpy()


def _phases(rules: RuleSet, progress: pl.Series) -> Ints:
    """Return the position of the phase that each progress falls into; -1 for none."""
    values = progress.fill_null(math.nan).to_numpy()
    if not rules.phases:
        return np.full(len(values), -1)
    position = np.searchsorted([start for _, start in rules.phases], values, side="right") - 1
    return np.where(values >= 0.0, position, -1)


def _is_whole(signal: Signal) -> bool:
    """Whether the signal's values are whole numbers, whose sum does not depend on the order."""
    return any(c.name == signal.column and c.type in ("int64", "bool") for c in columns(signal.table))
