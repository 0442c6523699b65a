"""Some runs, or a stretch of one, as NumPy arrays: signals read from whole tables.

For each signal and key there is a `Reading`: a value for each update that has one, and the code of the reason where
there is none. Rows are recorded in the order of the updates, mostly with the same heads or layers in each; both is
checked, not assumed, and costs little where it holds.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import polars as pl

from esper_analytics.detection.arrays import COLUMNS, Codes, Flags, Floats, Ints, code
from esper_analytics.detection.signal_columns import RUN
from esper_recorder.contract.rules.evaluator import ALL_TABLES
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import ORDER_COLUMNS, UPDATE_TABLE, Reason, Signal, Take, own_keys, total
from esper_recorder.contract.tables import columns


@dataclass(frozen=True, slots=True)
class Reading:
    """A signal for one key.

    Attributes:
        rows: the updates with rows for it, as places in the block, ascending; None for all of them.
        values: one per such update; NaN where there is none.
        reasons: a code per such update; None where there is a value everywhere.
    """

    rows: Ints | None
    values: Floats
    reasons: Codes | None

    def at(self, rows: Ints | None, height: int) -> tuple[Floats, Codes | None]:
        """Values and codes at other updates of the block (None for all): `not recorded` where there is no row."""
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


Loss = tuple[str, int, int]
"""Rows of a table (or of `ALL_TABLES`) are lost from one update to another."""


class Block:
    """The tables of some runs, as far as a rule set reads them.

    Attributes:
        runs: their run_ids; a run's number is its place.
        height: how many updates.
        run: number of the run of each update; updates are in the order of runs and their own.
        update: number of each.
        progress: Float64, one per update.
        phase: place of the phase among `phases`, or -1.
        phases: the names of the rules' phases.
    """

    def __init__(
        self,
        rules: RuleSet,
        tables: Mapping[str, pl.DataFrame],
        runs: Sequence[str],
        losses: Mapping[str, Sequence[Loss]] | None = None,
    ) -> None:
        """Take in what `read` read of these runs, and the rows that each is known to have lost."""
        read = dict(tables)
        own = read.pop(UPDATE_TABLE)
        self.runs = tuple(runs)
        self._own = _Rows(*_ordered(*self._numbered(own), unique=True))
        self.height = self._own.frame.height
        self.run, self.update = self._own.run, self._own.update
        self.progress = self._own.frame.get_column("progress").cast(pl.Float64)
        self.phase = _phases(rules, self.progress)
        self.phases = tuple(name for name, _ in rules.phases)
        self._tables = {table: self._placed(frame) for table, frame in read.items()}
        self._losses = [(place, *loss) for place, run in enumerate(runs) for loss in (losses or {}).get(run, ())]
        self._lost: dict[frozenset[str], Flags | None] = {}
        self._recording: dict[str, Ints] = {}
        self._known: dict[Signal, dict[str, Reading]] = {}

    def lost(self, tables: frozenset[str]) -> Flags | None:
        """The updates at which rows of any of the tables are known to be lost; None for none."""
        if not self._losses:
            return None
        if tables not in self._lost:
            lost = np.zeros(self.height, bool)
            for run, table, first, last in self._losses:
                if table == ALL_TABLES or table in tables:
                    lost |= (self.run == run) & (self.update >= first) & (self.update <= last)
            self._lost[tables] = lost if lost.any() else None
        return self._lost[tables]

    def runs_that_record(self, table: str) -> Ints:
        """The numbers of the runs with a row of the table, or one that is known to be lost."""
        if table == UPDATE_TABLE:
            return np.arange(len(self.runs))
        if table not in self._recording:
            told = {run for run, lost, _, _ in self._losses if lost == table}
            rows = self._tables.get(table)
            if rows is not None and len(rows.run):
                told |= set(rows.run[np.flatnonzero(np.diff(rows.run, prepend=-1))].tolist())
            self._recording[table] = np.array(sorted(told), np.int64)
        return self._recording[table]

    def of_update(self, signal: Signal) -> Reading:
        """A signal of `ppo_updates`."""
        assert signal.table == UPDATE_TABLE
        return self.of(signal)[""]

    def column(self, signal: Signal) -> tuple[Floats, Flags | None]:
        """A column of `ppo_updates`: its numbers, and where it is NULL (None for nowhere)."""
        return self._own.values(signal)

    def of(self, signal: Signal) -> dict[str, Reading]:
        """By key, in alphabetical order; without a key column by "", which is always there."""
        if signal not in self._known:
            self._known[signal] = dict(sorted(self._read(signal)))
        return self._known[signal]

    def _read(self, signal: Signal) -> Iterator[tuple[str, Reading]]:
        table = self._own if signal.table == UPDATE_TABLE else self._tables.get(signal.table)
        nothing = Reading(np.empty(0, np.int64), np.empty(0), None)
        if table is None:
            if signal.key is None:
                yield "", nothing
            return
        values, missing = table.values(signal)
        met = False
        for key, chosen, rows in table.chosen(signal):
            met = True
            if isinstance(chosen, tuple):
                yield (
                    key,
                    _furthest(signal, [values[c] for c in chosen], [missing[c] for c in chosen if missing is not None]),
                )
                continue
            lacking = None if missing is None else missing[chosen]
            yield key, _reduced(signal, table.frame, chosen, rows, values[chosen], lacking, self.height)
        if signal.key is None and not met:
            yield "", nothing

    def _numbered(self, frame: pl.DataFrame) -> tuple[pl.DataFrame, Ints, Ints]:
        """The rows, the number of each row's run, and its update."""
        if frame.get_column("update").null_count():
            frame = frame.filter(pl.col("update").is_not_null())
        if RUN not in frame.columns:
            run = np.zeros(frame.height, np.int64)
        else:
            run = frame.get_column(RUN).to_numpy()
        return frame, run, frame.get_column("update").to_numpy()

    def _placed(self, frame: pl.DataFrame) -> _Rows:
        """The rows with the place of the update that each belongs to."""
        frame, run, update = self._numbered(frame)
        per_update, rest = divmod(frame.height, self.height) if self.height else (0, 0)
        if per_update and not rest:
            same = update.reshape(-1, per_update) == self.update[:, None]
            if same.all() and (run.reshape(-1, per_update) == self.run[:, None]).all():
                return _Rows(frame, run, update, None, per_update)
        frame, run, update = _ordered(frame, run, update)
        begins = _begins(run, update)
        place = _find(self.run, self.update, run[begins], update[begins])
        places = np.repeat(place, np.diff(begins, append=len(update)))
        if (place < 0).any():
            there = places >= 0
            frame, run, update, places = frame.filter(pl.Series(there)), run[there], update[there], places[there]
        return _Rows(frame, run, update, places)


@dataclass(slots=True)
class _Rows:
    """The rows of a table, in the order of runs and updates.

    Attributes:
        places: the place of each row's update in the block; None where each has the same number of rows.
        per_update: that number.
    """

    frame: pl.DataFrame
    run: Ints
    update: Ints
    places: Ints | None = None
    per_update: int = 1
    _repeating: dict[str, list[Any] | None] = field(default_factory=dict)

    def values(self, signal: Signal) -> tuple[Floats, Flags | None]:
        """A signal's value in each row, and where there is none (None for nowhere)."""
        if signal.expression is None:
            return _numbers(self.frame.get_column(signal.column or ""))
        read = {name: _numbers(self.frame.get_column(name)) for name in signal.expression.columns}
        evaluate = signal.expression.compile(COLUMNS)
        with np.errstate(all="ignore"):  # what comes out not finite is seen to by the rules
            values = np.asarray(evaluate({name: numbers for name, (numbers, _) in read.items()}), np.float64)
        lacking = [missing for _, missing in read.values() if missing is not None]
        if not lacking:
            return values, None
        missing = functools.reduce(np.logical_or, lacking)
        return np.where(missing, math.nan, values), missing

    def chosen(self, signal: Signal) -> Iterator[tuple[str, slice | tuple[slice, ...] | Ints, Ints | None]]:
        """For each key of a signal: its rows, and the place of each row's update (None: each once, in order).

        Several slices are the 1st, 2nd, ... rows of all updates.
        """
        named = [name for name in own_keys(signal.table) if name == signal.key or name in dict(signal.where)]
        if self.places is None and (texts := self._texts(named)) is not None:
            yield from self._regular(signal, texts)
            return
        rows = np.arange(self.frame.height)
        for column, text in signal.where:
            rows = rows[(self.frame.get_column(column) == text).fill_null(False).to_numpy()[rows]]
        places = np.repeat(np.arange(self.frame.height // self.per_update), self.per_update)
        places = places if self.places is None else self.places
        if signal.key is None:
            yield "", rows, places[rows]
            return
        keys = self.frame.get_column(signal.key).cast(pl.String).fill_null("")[rows]
        names = keys.unique().sort()
        number = keys.cast(pl.Enum(names)).to_physical().to_numpy()
        order = np.argsort(number.astype(np.min_scalar_type(max(len(names), 1))), kind="stable")
        ends = np.cumsum(np.bincount(number, minlength=len(names)))
        for name, start, end in zip(names, [0, *ends], ends, strict=False):
            own = rows[order[start:end]]
            yield name, own, places[own]

    def _regular(
        self, signal: Signal, texts: list[dict[str, str | None]]
    ) -> Iterator[tuple[str, slice | tuple[slice, ...] | Ints, Ints | None]]:
        kept = [n for n, own in enumerate(texts) if all(own[column] == text for column, text in signal.where)]
        by_key: dict[str, list[int]] = {}
        for n in kept:
            by_key.setdefault("" if signal.key is None else texts[n][signal.key] or "", []).append(n)
        width, height = self.per_update, self.frame.height
        for key, numbers in by_key.items():
            if len(numbers) == 1:
                yield key, slice(numbers[0], None, width), None
            elif signal.take in (Take.MAX, Take.MIN) and signal.min_n is None:
                yield key, tuple(slice(number, None, width) for number in numbers), None
            else:
                rows = (np.arange(0, height, width)[:, None] + np.array(numbers)).ravel()
                yield key, rows, np.repeat(np.arange(height // width), len(numbers))

    def _texts(self, names: list[str]) -> list[dict[str, str | None]] | None:
        """What the columns hold in the 1st, 2nd, ... row of every update; None where that differs."""
        for name in names:
            if name not in self._repeating:
                held, width = self.frame.get_column(name), self.per_update
                same = held.slice(width).eq_missing(held.slice(0, held.len() - width)).all()
                self._repeating[name] = held.slice(0, width).to_list() if same else None
        texts = {name: repeating for name in names if (repeating := self._repeating[name]) is not None}
        if len(texts) < len(names):
            return None
        return [
            {name: None if own[place] is None else str(own[place]) for name, own in texts.items()}
            for place in range(self.per_update)
        ]


def _reduced(
    signal: Signal,
    frame: pl.DataFrame,
    chosen: slice | Ints,
    places: Ints | None,
    values: Floats,
    missing: Flags | None,
    height: int,
) -> Reading:
    """One value per update from the rows chosen, whose updates are at `places`."""
    if signal.min_n is not None:
        counted, unknown = _numbers(frame.get_column("n"))
        enough = counted[chosen] >= signal.min_n
        if unknown is not None:
            enough &= ~unknown[chosen]
        if not enough.all():
            places = np.arange(height) if places is None else places
            every = np.unique(places)
            chosen = np.arange(frame.height)[chosen][enough]
            lacking = None if missing is None else missing[enough]
            found = _grouped(signal, frame, chosen, places[enough], values[enough], lacking)
            reasons = np.full(len(every), code(Reason.TOO_FEW), np.uint8)
            told = np.full(len(every), math.nan)
            at = np.searchsorted(every, found.rows if found.rows is not None else np.arange(height))
            reasons[at] = 0 if found.reasons is None else found.reasons
            told[at] = found.values
            return Reading(every, told, reasons)
    if places is None:
        return Reading(None, np.ascontiguousarray(values), _not_measured(missing))
    found = _grouped(signal, frame, chosen, places, values, missing)
    if len(found.values) == height:
        return Reading(None, found.values, found.reasons)
    return found


def _grouped(
    signal: Signal, frame: pl.DataFrame, chosen: slice | Ints, places: Ints, values: Floats, missing: Flags | None
) -> Reading:
    begins = np.flatnonzero(np.diff(places, prepend=-1))
    rows = places[begins]
    if len(begins) == len(places):
        if signal.take is Take.SUM:
            values = values + 0.0  # as a sum is: no negative zero
        return Reading(rows, values, _not_measured(missing))
    ends = np.append(begins[1:], len(places)) - 1
    match signal.take:
        case Take.ONLY:
            told, lacking = values[begins].copy(), None if missing is None else missing[begins]
            reasons = _not_measured(lacking)
            reasons = np.zeros(len(rows), np.uint8) if reasons is None else reasons
            reasons[ends > begins] = code(Reason.SEVERAL_ROWS)
            told[ends > begins] = math.nan
            return Reading(rows, told, reasons)
        case Take.FIRST | Take.LAST:
            order = _order(signal, frame, chosen, places)
            at = begins if signal.take is Take.FIRST else ends
            at = at if order is None else order[at]
            return Reading(rows, values[at], _not_measured(None if missing is None else missing[at]))
        case Take.MAX | Take.MIN:  # NaN stands for what is missing, and both pass over it where there is a number
            told = (np.fmax if signal.take is Take.MAX else np.fmin).reduceat(values, begins)
        case Take.SUM if _whole(signal):
            told = np.add.reduceat(values if missing is None else np.where(missing, 0.0, values), begins)
        case _:
            told = _exact_sums(values, missing, begins, ends)
            if signal.take is Take.MEAN:
                measured = ends - begins + 1 if missing is None else np.add.reduceat(~missing, begins, dtype=np.int64)
                told /= np.maximum(measured, 1)
    lacking = None if missing is None else np.logical_and.reduceat(missing, begins)
    if lacking is not None:
        told[lacking] = math.nan
    return Reading(rows, told, _not_measured(lacking))


def _furthest(signal: Signal, values: list[Floats], missing: list[Flags]) -> Reading:
    """The largest or the smallest of several values per update, one array for each."""
    choose = np.fmax if signal.take is Take.MAX else np.fmin
    return Reading(
        None,
        functools.reduce(choose, values),
        _not_measured(functools.reduce(np.logical_and, missing) if missing else None),
    )


def _exact_sums(values: Floats, missing: Flags | None, begins: Ints, ends: Ints) -> Floats:
    """Sums as the watcher takes them: exactly rounded, which of two numbers any sum is."""
    group = np.repeat(np.arange(len(begins)), ends - begins + 1)
    if missing is not None:
        values, group = values[~missing], group[~missing]
    count = np.bincount(group, minlength=len(begins))
    start = np.cumsum(count) - count
    told = np.zeros(len(begins))
    for several in (1, 2):
        first = start[count == several]
        with np.errstate(all="ignore"):  # inf - inf is NaN, and two large ones are infinite: as in Python
            told[count == several] = values[first] + (values[first + 1] if several == 2 else 0.0)
    many = np.flatnonzero(count > 2)
    numbers = values.tolist() if len(many) else []
    told[many] = [total(numbers[a : a + n]) for a, n in zip(start[many].tolist(), count[many].tolist(), strict=True)]
    return told


def _order(signal: Signal, frame: pl.DataFrame, chosen: slice | Ints, places: Ints) -> Ints | None:
    """The order of the rows within their updates; None where they are in it."""
    columns_ = [
        frame.get_column(name).cast(pl.Float64).fill_null(-math.inf).to_numpy()[chosen]
        for name in ORDER_COLUMNS.get(signal.table, ())
    ]
    if not columns_:
        return None
    if len(columns_) == 1:
        order = columns_[0]
        if not ((order[1:] < order[:-1]) & (places[1:] == places[:-1])).any():
            return None
    return np.lexsort((*reversed(columns_), places))


def _not_measured(missing: Flags | None) -> Codes | None:
    if missing is None or not missing.any():
        return None
    return missing.astype(np.uint8) * np.uint8(code(Reason.NOT_MEASURED))


def _begins(run: Ints, update: Ints) -> Ints:
    """Where in rows by run and update another update begins."""
    if not len(run):
        return np.empty(0, np.int64)
    return np.flatnonzero(np.concatenate([[True], (update[1:] != update[:-1]) | (run[1:] != run[:-1])]))


def _ordered(frame: pl.DataFrame, run: Ints, update: Ints, *, unique: bool = False) -> tuple[pl.DataFrame, Ints, Ints]:
    """The rows by run and update; with `unique` the first of each."""
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


def _find(run: Ints, update: Ints, asked_run: Ints, asked_update: Ints) -> Ints:
    """The place of each (run, update) asked for, -1 where there is none; all by run and update."""
    found = np.full(len(asked_run), -1, np.int64)
    if not len(run):
        return found
    starts = np.flatnonzero(np.diff(run, prepend=-1))
    for number, start, end in zip(run[starts].tolist(), starts.tolist(), [*starts[1:].tolist(), len(run)], strict=True):
        low, high = np.searchsorted(asked_run, (number, number + 1))
        own, wanted = update[start:end], asked_update[low:high]
        at = np.searchsorted(own, wanted)
        there = (at < len(own)) & (own[np.minimum(at, len(own) - 1)] == wanted)
        found[low:high] = np.where(there, at + start, -1)
    return found


def _numbers(series: pl.Series) -> tuple[Floats, Flags | None]:
    """Numbers, or numbers of entries, with NaN for NULL, and where NULL is; None for nowhere."""
    if series.dtype == pl.List:
        series = series.list.len()
    series = series.cast(pl.Float64)
    if not series.null_count():
        return series.to_numpy(), None
    return series.fill_null(math.nan).to_numpy(), series.is_null().to_numpy()


def _phases(rules: RuleSet, progress: pl.Series) -> np.ndarray[Any, np.dtype[np.int64]]:
    values = progress.fill_null(math.nan).to_numpy()
    known = values >= 0.0 if rules.phases else np.zeros(len(values), bool)
    return np.where(known, np.searchsorted([start for _, start in rules.phases], values, side="right") - 1, -1)


def _whole(signal: Signal) -> bool:
    """Its values are whole numbers, whose sum does not depend on the order."""
    return any(c.name == signal.column and c.type in ("int64", "bool") for c in columns(signal.table))
