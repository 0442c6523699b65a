"""Rows of `minibatches`, `ppo_updates` and `heads`: counts and sums of minibatches, and what is derived from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from esper_recorder.contract import metrics
from esper_recorder.contract.tables import Reducer, columns
from esper_recorder.storage.columns import Array, Column, ColumnArithmetic, column_of, reduced
from esper_recorder.storage.record_layout import SETTINGS
from esper_recorder.storage.record_numbers import RecordNumbers
from esper_recorder.storage.table_rows import Found, TableRows, stack

ARITHMETIC: Final = ColumnArithmetic()
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
_MINIBATCH_METRICS: Final = frozenset(metrics.derive({}))
_UPDATE_METRICS: Final = frozenset(metrics.derive_pooled({}))
_HEAD_METRICS: Final = frozenset(metrics.derive_head({}))
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
            column: Found | None = metrics.derive(found, ARITHMETIC, (name,))[name]
            return column
        return sums.get(name)

    found = TableRows(sums.updates, (*sums.names, *_MINIBATCH_METRICS), find)
    return found


def _batch_rows(numbers: RecordNumbers, batch: int) -> TableRows:
    """What was counted and noted of the minibatches of one batch."""
    joint = numbers.layout.batches[batch].ratios[0].statistics
    statistics = np.ascontiguousarray(numbers[f"{batch}.0.statistics"][:, 0].T)
    by_name = dict(zip(joint, statistics, strict=True))
    not_empty = None if by_name["n"].all() else by_name["n"] > 0
    norms, seen = numbers[f"{batch}.grad_norms"], numbers.note(f"{batch}.", "norm_seen")
    has_norm = np.zeros(len(norms), bool) if seen is None else seen.values != 0

    def find(name: str) -> Found | None:
        if name in by_name:
            return Column(by_name[name], not_empty if name.endswith(_EXTREMES) else None)
        if name == "nonfinite_count":
            nonfinite = [x for counted, x in by_name.items() if counted in _COUNTED]
            return Column(sum(nonfinite, np.zeros(len(norms))) + (has_norm & ~np.isfinite(norms)))
        if name == "grad_norm":
            return Column(norms, None if has_norm.all() else has_norm)
        return numbers.note(f"{batch}.", name)

    names = ("minibatch", "epoch", "stepped", *SETTINGS, "grad_norm", "nonfinite_count", *joint)
    return TableRows(numbers.updates(batch), names, find)


def update_rows(numbers: RecordNumbers, host: Mapping[str, Sequence[Any]]) -> TableRows:
    """Make the rows of `ppo_updates`; the arguments are those of `minibatch_rows`."""
    return _Updates(numbers, host).rows


class _Updates:
    """Finds the columns of `ppo_updates`."""

    def __init__(self, numbers: RecordNumbers, host: Mapping[str, Sequence[Any]]) -> None:
        self._numbers, self._host, self._height = numbers, host, numbers.height
        self._minibatches = minibatch_rows(numbers, host)
        self._rollout: dict[str, Column] | None = None
        self._by_library: dict[str, Column] | None = None
        self._starts = np.zeros(0, np.int64)
        if self._minibatches is not None:
            self._starts = np.searchsorted(self._minibatches.updates, np.arange(self._height))
        names = (*_OF_UPDATE, *_UPDATE_METRICS, *_NORMS, *_MERGED, *host, *numbers.layout.rollout)
        self.rows = TableRows(np.arange(self._height), tuple(dict.fromkeys(names)), self._find)

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
            return Column(sum([self._numbers.counts(i) for i in batches], np.zeros(self._height, np.int64)))
        if name in self._host:
            values = self._host[name]
            if name in _TEXTS:
                return pa.array(values, type=pa.string())
            return None if all([value is None for value in values]) else column_of(values)
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
        column: Found | None = metrics.derive_pooled(self.rows, ARITHMETIC, (name,))[name]
        return column

    def _library(self) -> dict[str, Column]:
        """The metrics that the definition of a library has computed otherwise: update by update, as it does."""
        definition = self._numbers.layout.definition
        if self._minibatches is None or definition == metrics.POOLED:
            return {}
        minibatches = {name: _listed(self._minibatches, name) for name in metrics.MINIBATCH_COLUMNS}
        updates = {name: _listed(self.rows, name) for name in metrics.UPDATE_COLUMNS}
        ends = [*self._starts[1:].tolist(), len(self._minibatches.updates)]
        rows = []
        for i, (start, end) in enumerate(zip(self._starts.tolist(), ends, strict=True)):
            of_update = {name: values[i] for name, values in updates.items()}
            of_minibatches = {name: values[start:end] for name, values in minibatches.items()}
            rows.append(metrics.DEFINITIONS[definition](of_update, of_minibatches))
        return {name: column_of([row[name] for row in rows]) for name in rows[0]}

    def _of_rollout(self, name: str) -> Column:
        values = self._rollout_column(name)
        if name.endswith(_EXTREMES) and "rollout_n" in self._numbers.layout.rollout:
            return Column(values, self._rollout_column("rollout_n") != 0)
        return Column(values, ~np.isnan(values) if name[-4:-2] == "_q" else None)

    def _rollout_column(self, name: str) -> Array:
        column: Array = self._numbers["rollout"][:, self._numbers.layout.rollout.index(name)]
        return column

    def _of_norms(self, name: str) -> Column | None:
        norms = None if self._minibatches is None else self._minibatches.get("grad_norm")
        if norms is None:
            return None
        measured = reduced(_MERGED["n"], Column(norms.measured.astype(np.float64)), self._starts).values
        finite = np.isfinite(norms.values) & norms.measured
        any_measured = None if measured.all() else measured > 0
        if name == "grad_norm_max":
            return reduced(_MERGED["ratio_max"], norms, self._starts)
        if name == "grad_norm_clipped":
            last = reduced(_MERGED["learning_rate"], norms, self._starts).to_list(pa.float64())
            limits = self._host.get("max_grad_norm", [None] * self._height)
            return column_of([metrics.clipped_norm(*pair) for pair in zip(last, limits, strict=True)])
        terms = {
            "grad_norm_n": norms.measured.astype(np.float64),
            "grad_norm_nonfinite": (norms.measured & ~finite).astype(np.float64),
            "grad_norm_sum": np.where(finite, norms.values, 0.0),
            "grad_norm_sum_sq": np.where(finite, norms.values * norms.values, 0.0),
        }[name]
        return Column(np.add.reduceat(terms, self._starts), any_measured)


def _listed(rows: TableRows, name: str) -> list[Any]:
    """A column of numbers as Python's, None for NULL."""
    column = rows.get(name)
    if column is None:
        return [None] * len(rows.updates)
    values: list[Any] = column.to_list(pa.float64())
    return values


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
            metric: Found | None = metrics.derive_head(found, ARITHMETIC, (name,))[name]
            return metric
        column = sums.get(name)
        return None if column is None else reduced(_OF_HEADS[name], column, starts)

    found = TableRows(each // len(heads), (*sums.names, *_HEAD_METRICS), find)
    return found


def _head_pieces(numbers: RecordNumbers, batch: int, ratio: int, heads: Sequence[str]) -> TableRows:
    """What was counted of each minibatch and head; `head` as its place among `heads`."""
    layout = numbers.layout.batches[batch].ratios[ratio]
    statistics = numbers[f"{batch}.{ratio}.statistics"]
    minibatches, width, _ = statistics.shape
    by_name = dict(
        zip(layout.statistics, np.ascontiguousarray(statistics.reshape(minibatches * width, -1).T), strict=True)
    )
    not_empty = by_name["n"] > 0
    columns: dict[str, Found | None] = {
        name: Column(values, not_empty if name.endswith(_EXTREMES) else None) for name, values in by_name.items()
    }
    columns["head"] = Column(np.tile([heads.index(name) for name in layout.names], minibatches))
    return TableRows.of(np.repeat(numbers.updates(batch), width), columns)
