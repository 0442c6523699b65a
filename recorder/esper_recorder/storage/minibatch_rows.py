"""Rows of `minibatches`, `ppo_updates` and `heads`: counts and sums of minibatches, and what is derived from them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from esper_recorder.contract import metrics
from esper_recorder.contract.tables import Reducer, columns
from esper_recorder.storage.columns import Array, NumberColumn, column_of, reduced
from esper_recorder.storage.record_layout import SETTINGS
from esper_recorder.storage.record_numbers import RecordNumbers
from esper_recorder.storage.table_rows import Found, TableRows, stack

_MERGED: Final = {
    c.name: c
    for c in columns("minibatches")
    if c.reducer not in (Reducer.KEY, Reducer.DERIVED) and c.name in {u.name for u in columns("ppo_updates")}
}
_OF_HEADS: Final = {c.name: c for c in columns("heads")}
_TEXTS: Final = {c.name for c in columns("ppo_updates") if c.type == "string"}
_EXTREMES = ("_min", "_max")
_COUNTED = tuple(
    f"{quantity}_{kind}"
    for quantity in ("log_ratio", "advantage", "value", "return", "entropy")
    for kind in ("nan", "posinf", "neginf")
)
_MINIBATCH_METRICS: Final = metrics.FORMULAS["minibatches"]
_UPDATE_METRICS: Final = metrics.FORMULAS["ppo_updates"]
_HEAD_METRICS: Final = metrics.FORMULAS["heads"]
_OF_UPDATE = ("definition", "minibatch_count", "stepped_count")
_NORMS = tuple(f"grad_norm_{kind}" for kind in ("n", "nonfinite", "sum", "sum_sq", "max", "clipped"))


def minibatch_rows(numbers: RecordNumbers, host: Mapping[str, Sequence[Any]]) -> TableRows | None:
    """Make the rows of `minibatches`.

    Args:
        numbers: of some updates.
        host: columns of `ppo_updates` that the host gave, one value per update.
    """
    rows = stack([_batch_rows(numbers, i) for i in range(len(numbers.layout.batches))])
    if rows is None:
        return None
    sums = rows

    def find(name: str) -> Found | None:
        if name in ("entropy_coef", "value_coef"):  # of the update, for `loss`
            return column_of(host[name]).take(sums.updates) if name in host else None
        if name in _MINIBATCH_METRICS:
            return _MINIBATCH_METRICS[name](terms)
        return sums.get(name)

    found = TableRows(sums.updates, (*sums.names, *_MINIBATCH_METRICS), find)
    terms = found.terms()
    return found


def _batch_rows(numbers: RecordNumbers, batch: int) -> TableRows:
    """What was counted and noted of the minibatches of one batch."""
    joint = numbers.layout.batches[batch].ratios[0].statistics
    by_name = numbers.by_name(f"{batch}.0.statistics", joint)
    not_empty = by_name["n"] > 0
    norms, seen = numbers[f"{batch}.grad_norms"], numbers.note(f"{batch}.", "norm_seen")
    has_norm = np.zeros(len(norms), bool) if seen is None else seen.values != 0

    def find(name: str) -> Found | None:
        if name in by_name:
            return NumberColumn(by_name[name], not_empty if name.endswith(_EXTREMES) else None)
        if name == "nonfinite_count":
            nonfinite = [x for counted, x in by_name.items() if counted in _COUNTED]
            return NumberColumn(sum(nonfinite, np.zeros(len(norms))) + (has_norm & ~np.isfinite(norms)))
        if name == "grad_norm":
            return NumberColumn(norms, None if has_norm.all() else has_norm)
        return numbers.note(f"{batch}.", name)

    names = ("minibatch", "epoch", "stepped", *SETTINGS, "grad_norm", "nonfinite_count", *joint)
    return TableRows(numbers.updates(batch), names, find)


def update_rows(numbers: RecordNumbers, host: Mapping[str, Sequence[Any]], minibatches: TableRows | None) -> TableRows:
    """Make the rows of `ppo_updates`; the first arguments are those of `minibatch_rows`, which the last one is from."""
    finder = _Updates(numbers, host, minibatches)
    names = (*_OF_UPDATE, *_UPDATE_METRICS, *_NORMS, *_MERGED, *host, *numbers.layout.rollout)
    rows = TableRows(np.arange(numbers.height), tuple(dict.fromkeys(names)), finder.find)
    # Of one update, which is what the watcher reads, numbers of Python: their arithmetic takes a fifth of the time.
    finder.terms = rows.terms(metrics.Scalars()) if numbers.height == 1 else rows.terms()
    return rows


class _Updates:
    """Finds the columns of `ppo_updates`."""

    terms: metrics.MetricTerms

    def __init__(
        self, numbers: RecordNumbers, host: Mapping[str, Sequence[Any]], minibatches: TableRows | None
    ) -> None:
        self._numbers, self._host, self._height = numbers, host, numbers.height
        self._minibatches = minibatches
        self._rollout: dict[str, NumberColumn] | None = None
        self._by_library: dict[str, NumberColumn] | None = None
        self._starts = np.zeros(0, np.int64)
        self._sums: dict[str, Array] = {}
        self._norms: dict[str, NumberColumn] = {}
        if self._minibatches is not None:
            self._starts = np.searchsorted(self._minibatches.updates, np.arange(self._height))
            if len(numbers.layout.batches) == 1:  # most often: then one operation adds all columns up
                joint = numbers.layout.batches[0].ratios[0].statistics
                by_column = numbers["0.0.statistics"].reshape(-1, len(joint)).T
                sums = np.add.reduceat(np.ascontiguousarray(by_column), self._starts, axis=1)
                self._sums = {n: x for n, x in zip(joint, sums, strict=True) if _MERGED[n].reducer is Reducer.SUM}

    def find(self, name: str) -> Found | None:
        """Find a column; None if it was not measured."""
        column = self._find(name)
        return column.only() if self._height == 1 and isinstance(column, NumberColumn) else column

    def _find(self, name: str) -> Found | None:
        if name in _UPDATE_METRICS:
            return self._metric(name)
        if name in self._numbers.layout.rollout:
            return self._of_rollout(name)
        if name.startswith("grad_norm_"):
            return self._of_norms(name)
        if name == "definition":
            return pa.repeat(pa.scalar(self._numbers.layout.definition), self._height)
        if name == "minibatch_count":
            batches = range(len(self._numbers.layout.batches))
            return NumberColumn(sum([self._numbers.counts(i) for i in batches], np.zeros(self._height, np.int64)))
        if name in self._host:
            values = self._host[name]
            if name in _TEXTS:
                return pa.array(values, type=pa.string())
            return None if all([value is None for value in values]) else column_of(values)
        if name in self._sums:
            return self._sums[name][0].item() if self._height == 1 else NumberColumn(self._sums[name])
        if self._minibatches is None:
            return None
        if name == "stepped_count":
            stepped = self._minibatches.get("stepped")
            return None if stepped is None else reduced(_MERGED["n"], stepped, self._starts)
        column = self._minibatches.get(name) if name in _MERGED else None
        return None if column is None else reduced(_MERGED[name], column, self._starts)

    def _metric(self, name: str) -> Found | None:
        """By the definition of the trainer's library, if it has another than the pooled one."""
        if self._by_library is None:
            self._by_library = self._library()
        if name in self._by_library:
            return self._by_library[name]
        return _UPDATE_METRICS[name](self.terms)

    def _library(self) -> dict[str, NumberColumn]:
        """The metrics that the definition of a library has computed otherwise: update by update, as it does."""
        definition = self._numbers.layout.definition
        if self._minibatches is None or definition == metrics.POOLED:
            return {}
        lists: dict[str, list[Any]] = {}
        updates = {name: _listed(self.terms.get(name), self._height) for name in metrics.UPDATE_COLUMNS}
        ends = [*self._starts[1:].tolist(), len(self._minibatches.updates)]
        rows = []
        for i, (start, end) in enumerate(zip(self._starts.tolist(), ends, strict=True)):
            of_update = {name: values[i] for name, values in updates.items()}
            minibatches = _Minibatches(self._minibatches, lists, start, end)
            rows.append(metrics.DEFINITIONS[definition](of_update, minibatches))
        return {name: column_of([row[name] for row in rows]) for name in rows[0]}

    def _of_rollout(self, name: str) -> NumberColumn:
        values = self._rollout_column(name)
        if name.endswith(_EXTREMES) and "rollout_n" in self._numbers.layout.rollout:
            return NumberColumn(values, self._rollout_column("rollout_n") != 0)
        return NumberColumn(values, ~np.isnan(values) if name[-4:-2] == "_q" else None)

    def _rollout_column(self, name: str) -> Array:
        column: Array = self._numbers["rollout"][:, self._numbers.layout.rollout.index(name)]
        return column

    def _of_norms(self, name: str) -> NumberColumn | None:
        norms = None if self._minibatches is None else self._minibatches.get("grad_norm")
        if norms is None:
            return None
        if name == "grad_norm_max":
            return reduced(_MERGED["ratio_max"], norms, self._starts)
        if name == "grad_norm_clipped":
            last = reduced(_MERGED["learning_rate"], norms, self._starts).to_list("float64")
            limits = self._host.get("max_grad_norm", [None] * self._height)
            return column_of([metrics.clipped_norm(*pair) for pair in zip(last, limits, strict=True)])
        if not self._norms:
            measured = norms.measured
            finite = measured & np.isfinite(norms.values)
            values = np.where(finite, norms.values, 0.0)
            terms = np.add.reduceat(
                np.array([measured, measured & ~finite, values, values * values]), self._starts, axis=1
            )
            self._norms = {column: NumberColumn(x, terms[0] > 0) for column, x in zip(_NORMS, terms, strict=False)}
        return self._norms[name]


class _Minibatches(Mapping[str, list[Any]]):
    """The columns of one update's minibatches that a definition uses, listed if it reads them."""

    def __init__(self, rows: TableRows, lists: dict[str, list[Any]], start: int, end: int) -> None:
        self._rows, self._lists, self._start, self._end = rows, lists, start, end

    def __getitem__(self, name: str) -> list[Any]:
        if name not in self._lists:
            self._lists[name] = _listed(self._rows.get(name), len(self._rows.updates))
        return self._lists[name][self._start : self._end]

    def __iter__(self) -> Iterator[str]:
        return iter(metrics.MINIBATCH_COLUMNS)

    def __len__(self) -> int:
        return len(metrics.MINIBATCH_COLUMNS)


def _listed(column: Found | None, height: int) -> list[Any]:
    """A column of numbers as Python's, None for NULL."""
    if isinstance(column, NumberColumn):
        return column.to_list("float64")
    return [column] * height


def head_rows(numbers: RecordNumbers) -> TableRows | None:
    """Make the rows of `heads`: the minibatches of each head merged by the contract's reducers."""
    layout = numbers.layout
    heads = list(dict.fromkeys(name for batch in layout.batches for ratio in batch.ratios[1:] for name in ratio.names))
    pieces = [
        _head_pieces(numbers, i, j, heads)
        for i, batch in enumerate(layout.batches)
        for j in range(1, len(batch.ratios))
    ]
    rows = stack(pieces)
    if rows is None:
        return None
    keys = rows.updates * len(heads) + rows.get("head").values
    order = np.argsort(keys, kind="stable")
    each, starts = np.unique(keys[order], return_index=True)
    sums = rows.take(order)

    def find(name: str) -> Found | None:
        if name == "head":
            return pa.array(heads, type=pa.string()).take(pa.array(each % len(heads)))
        if name in _HEAD_METRICS:
            return _HEAD_METRICS[name](terms)
        column = sums.get(name)
        return None if column is None else reduced(_OF_HEADS[name], column, starts)

    found = TableRows(each // len(heads), (*sums.names, *_HEAD_METRICS), find)
    terms = found.terms()
    return found


def _head_pieces(numbers: RecordNumbers, batch: int, ratio: int, heads: Sequence[str]) -> TableRows:
    """What was counted of each minibatch and head; `head` as its place among `heads`."""
    layout = numbers.layout.batches[batch].ratios[ratio]
    minibatches, width = numbers[f"{batch}.{ratio}.statistics"].shape[:2]
    by_name = numbers.by_name(f"{batch}.{ratio}.statistics", layout.statistics)
    not_empty = by_name["n"] > 0
    columns: dict[str, Found | None] = {
        name: NumberColumn(values, not_empty if name.endswith(_EXTREMES) else None) for name, values in by_name.items()
    }
    columns["head"] = NumberColumn(np.tile([heads.index(name) for name in layout.names], minibatches))
    return TableRows.of(np.repeat(numbers.updates(batch), width), columns)
