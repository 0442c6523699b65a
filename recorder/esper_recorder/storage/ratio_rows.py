"""Rows of `ratio_histograms` and `ratio_exemplars`: of each minibatch, or of the whole update."""

from __future__ import annotations

from typing import Final

import numpy as np
import pyarrow as pa

from esper_recorder.storage.columns import Array, NumberColumn, lists
from esper_recorder.storage.record_layout import RatioLayout
from esper_recorder.storage.record_numbers import RecordNumbers
from esper_recorder.storage.table_rows import Found, TableRows, stack

EXEMPLARS: Final = 16
"""How many worst transitions of an update, and at most of a minibatch, are kept."""


def _ratios(numbers: RecordNumbers) -> dict[str, list[tuple[int, int, int]]]:
    """Each ratio ("" is the joint one, else a head) with worst transitions -> batch, ratio, place among its names."""
    ratios: dict[str, list[tuple[int, int, int]]] = {}
    for i, batch in enumerate(numbers.layout.batches):
        for j, ratio in enumerate(batch.ratios):
            if ratio.exemplars:
                for place, name in enumerate(ratio.names):
                    ratios.setdefault(name, []).append((i, j, place))
    return ratios


def histogram_rows(numbers: RecordNumbers) -> TableRows | None:
    """Make the rows of `ratio_histograms`: per ratio and minibatch if a batch was reduced so, else per ratio."""
    pieces = []
    for head, places in _ratios(numbers).items():
        per_minibatch = any(numbers.layout.batches[i].per_minibatch for i, _, _ in places)
        all_counts = [numbers[f"{i}.{j}.histogram"][:, place] for i, j, place in places]
        all_nan = [numbers[f"{i}.{j}.histogram_nan"][:, place] for i, j, place in places]
        if not per_minibatch:  # each batch has one per update
            counts, nan = np.sum(all_counts, axis=0), np.sum(all_nan, axis=0)
            pieces.append(_of_head(head, np.arange(numbers.height), counts=counts, nan_count=NumberColumn(nan)))
            continue
        for (i, _, _), counts, nan in zip(places, all_counts, all_nan, strict=True):
            scoped = numbers.layout.batches[i].per_minibatch
            keys = {name: numbers.note(f"{i}.", name) if scoped else None for name in ("epoch", "minibatch")}
            updates = numbers.updates(i if scoped else None)
            pieces.append(_of_head(head, updates, counts=counts, nan_count=NumberColumn(nan), **keys))
    return stack(pieces)


def _of_head(head: str, updates: Array, *, counts: Array, **columns: Found | None) -> TableRows:
    columns |= {"head": pa.repeat(pa.scalar(head), len(updates)), "counts": lists(counts, "int64")}
    return TableRows.of(updates, columns)


def exemplar_rows(numbers: RecordNumbers) -> TableRows | None:
    """Make the rows of `ratio_exemplars`: those of the update, after those of each minibatch if a batch has them."""
    pieces = []
    for head, places in _ratios(numbers).items():
        every = stack([_batch_exemplars(numbers, *place) for place in places])
        assert every is not None
        severity = every.get("severity").values
        order = np.lexsort((-severity, every.updates))  # stable: the first of equals stays the first
        updates = every.updates[order]
        place = np.arange(len(order)) - np.searchsorted(updates, updates)
        kept = place < EXEMPLARS
        worst = every.take(order[kept])
        of_update = {name: worst.get(name) for name in worst.names} | {"place": NumberColumn(place[kept] + 1)}
        scopes = {"update": TableRows.of(worst.updates, of_update)}
        if any(numbers.layout.batches[i].per_minibatch for i, _, _ in places):
            scopes = {"minibatch": every} | scopes
        for scope, rows in scopes.items():
            columns = {name: rows.get(name) for name in rows.names if name != "severity"}
            height = len(rows.updates)
            columns |= {"scope": pa.repeat(pa.scalar(scope), height), "head": pa.repeat(pa.scalar(head), height)}
            pieces.append(TableRows.of(rows.updates, columns))
    return stack(pieces)


def _batch_exemplars(numbers: RecordNumbers, batch: int, ratio: int, place: int) -> TableRows:
    """The worst transitions of one ratio of a batch, in the order of their scopes."""
    layout: RatioLayout = numbers.layout.batches[batch].ratios[ratio]
    values = numbers[f"{batch}.{ratio}.exemplars"][:, place]  # [scopes, places, fields]
    scopes, places, fields = values.shape
    updates = np.repeat(numbers.updates(batch if numbers.layout.batches[batch].per_minibatch else None), places)
    by_name = dict(zip(layout.exemplars, values.reshape(scopes * places, fields).T, strict=True))
    kept = by_name["severity"] >= 0  # else padding: there were fewer transitions than places
    by_name, updates = {name: x[kept] for name, x in by_name.items()}, updates[kept]
    counts = numbers.counts(batch)
    most = (counts - 1)[updates]
    position = np.clip(np.nan_to_num(by_name.pop("position")), 0, most).astype(np.int64)
    minibatch = (np.cumsum(counts) - counts)[updates] + position
    columns: dict[str, Found | None] = {"place": NumberColumn(np.tile(np.arange(1, places + 1), scopes)[kept])}
    for name in ("epoch", "minibatch"):
        note = numbers.note(f"{batch}.", name)
        columns[name] = None if note is None else note.take(minibatch)
    index = by_name.pop("index", None)
    if index is not None:
        columns |= _located(index, numbers.layout.rollout_shape)
    columns |= {name: NumberColumn(x) for name, x in by_name.items()}
    if layout.actions:
        actions = numbers[f"{batch}.{ratio}.actions"][:, place].reshape(scopes * places, layout.actions)[kept]
        env = columns.get("env")
        found = None
        if isinstance(env, NumberColumn):  # an index that is not in the rollout has no action
            found = env.measured | ~np.isnan(actions).all(axis=1)
        columns["action"] = lists(actions, "float64", found)
    return TableRows.of(updates, columns)


def _located(index: Array, shape: tuple[int, int, bool] | None) -> dict[str, Found | None]:
    """`index`, and `env` and `env_step` if the rollout's shape is known; NULL on padding and outside the rollout."""
    valid = index >= 0
    located: dict[str, Found | None] = {"index": NumberColumn(index, valid)}
    if shape is None:
        return located
    steps, envs, env_major = shape
    valid = valid & (index < steps * envs)
    inner, names = (steps, ("env", "env_step")) if env_major else (envs, ("env_step", "env"))
    at = np.where(valid, index, 0).astype(np.int64)
    outer, within = np.divmod(at, max(inner, 1))
    return located | {names[0]: NumberColumn(outer, valid), names[1]: NumberColumn(within, valid)}
