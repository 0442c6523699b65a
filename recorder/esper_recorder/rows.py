"""From reduced tensors to the rows of the tables, on the host."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from esper_recorder.contract import metrics
from esper_recorder.contract.merge import merge
from esper_recorder.contract.tables import Column, Reducer, columns
from esper_recorder.ring import MinibatchNotes, Piece, merge_exemplars
from esper_recorder.transfer import Transfer
from esper_recorder.vectors import Vector, Vectors, vector, vector_of

Columns = dict[str, Any]
"""Column name -> a list, or an Arrow array."""

_TYPES: dict[str, str] = {c.name: c.type for c in (*columns("minibatches"), *columns("ppo_updates"))}
_LAYER_TYPES: dict[str, str] = {c.name: c.type for c in columns("gradient_layers")}
_STATE_TYPES: dict[str, str] = {c.name: c.type for c in columns("recurrent_state")}
_STATISTICS: tuple[Column, ...] = tuple(
    c for c in columns("minibatches") if c.name in {u.name for u in columns("ppo_updates")} and c.name != "time"
)
_EXTREMES = ("_min", "_max")
_COUNTED = tuple(
    f"{quantity}_{kind}"
    for quantity in ("log_ratio", "advantage", "value", "return", "entropy")
    for kind in ("nan", "posinf", "neginf")
)


@dataclass(slots=True)
class UpdateInput:
    """What an update left behind for the writer thread: small tensors on their way, and notes from the host."""

    identity: dict[str, Any]
    """run_id, attempt, rank, update, time, elapsed_s: the same for all rows of the update."""
    definition: str
    update_notes: dict[str, Any]
    """Columns of `ppo_updates` the host knows."""
    pieces: list[Piece]
    transfer: Transfer
    """`<i>.statistics` and so on for piece i, `rollout`, `layers`, `layer_histograms`, `policy_std`."""
    rollout_names: tuple[str, ...] = ()
    layers: list[dict[str, Any]] = field(default_factory=list)
    """Host columns of `gradient_layers`; those `measured` are the rows of the tensor `layers`, in order."""
    layer_names: tuple[str, ...] = ()
    exemplar_places: Mapping[str, Any] | None = None
    """How an index becomes env and env_step: `steps`, `envs`, `order`; and `actions` by index."""
    recurrent: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """(layer, kind) -> names of the statistics in the tensor `recurrent.<layer>.<kind>`."""
    episodes: Columns = field(default_factory=dict)
    with_minibatches: bool = True
    rollout_episodes: Sequence[int | None] = ()
    """Environment steps taken before each of the tensors `episodes.<i>`."""
    episode_numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))
    """Of all the recorder's updates: the writer's thread counts episodes as it stores them."""


def build(given: UpdateInput) -> dict[str, Columns]:
    """The rows of one update, column by column, for each table that has some."""
    host = given.transfer.wait()
    exemplars: list[list[dict[str, Any]]] = []
    histograms: list[dict[str, Any]] = []
    minibatches: list[dict[str, Vector]] = []
    for i, piece in enumerate(given.pieces):
        minibatches.append(_minibatch_vectors(piece, host[f"{i}.statistics"], host[f"{i}.norms"], given))
        exemplars.append(_exemplars(piece, host, i, given))
        histograms += _histograms(piece, host[f"{i}.histogram"].tolist(), host[f"{i}.histogram_nan"].tolist())
    result: dict[str, Columns] = {}
    update = _update(given, minibatches, host)
    result["ppo_updates"] = {name: [value] for name, value in (update | given.identity).items()}
    if given.with_minibatches and minibatches:
        result["minibatches"] = _minibatch_columns(minibatches, given)
    per_minibatch = any(p.per_minibatch for p in given.pieces)
    for table, rows in (
        ("ratio_histograms", histograms if per_minibatch else _merged_histogram(histograms)),
        ("ratio_exemplars", _placed(exemplars, per_minibatch=per_minibatch)),
        ("gradient_layers", _layers(given, host)),
        ("recurrent_state", _recurrent(given, host)),
    ):
        if rows:
            result[table] = _as_columns(rows, given.identity)
    if episodes := _episodes(given, host):
        result["episodes"] = _as_columns(episodes, given.identity)
    return result


def build_minibatches(given: UpdateInput) -> Columns:
    """The rows of `minibatches` that `build` left out."""
    host = given.transfer.wait()
    minibatches = [
        _minibatch_vectors(piece, host[f"{i}.statistics"], host[f"{i}.norms"], given)
        for i, piece in enumerate(given.pieces)
    ]
    return _minibatch_columns(minibatches, given)


def build_episodes(given: UpdateInput) -> dict[str, Columns]:
    """The episodes of a rollout that no update followed."""
    rows = _episodes(given, given.transfer.wait())
    return {"episodes": _as_columns(rows, given.identity)} if rows else {}


def _minibatch_vectors(piece: Piece, statistics: Tensor, norms: Tensor, given: UpdateInput) -> dict[str, Vector]:
    """Counts, sums and metrics of a piece's minibatches, as vectors by name."""
    by_name = statistics.t().contiguous()
    everywhere = torch.ones(len(piece.notes), dtype=torch.bool)
    row: dict[str, Any] = {name: Vector(by_name[i], everywhere) for i, name in enumerate(piece.statistics.names)}
    some = row["n"].values > 0
    row |= {name: Vector(v.values, some) for name, v in row.items() if name.endswith(_EXTREMES)}
    seen = torch.tensor([notes.norm_seen for notes in piece.notes])
    row["nonfinite_count"] = vector(
        sum(row[name].values for name in _COUNTED if name in row) + (seen & ~norms.isfinite())
    )
    row["grad_norm"] = Vector(norms, seen)
    for name in ("learning_rate", "clip_range", "value_clip_range"):
        row[name] = vector_of([getattr(notes, name) for notes in piece.notes])
    coefficients = {name: given.update_notes.get(name) for name in ("entropy_coef", "value_coef")}
    derived = metrics.derive(row | coefficients, Vectors())
    return row | {name: v for name, v in derived.items() if v is not None}


def _minibatch_columns(pieces: Sequence[Mapping[str, Vector]], given: UpdateInput) -> Columns:
    notes = [n for piece in given.pieces for n in piece.notes]
    result: Columns = {name: [value] * len(notes) for name, value in given.identity.items()}
    for name in ("epoch", "minibatch", "stepped"):
        result[name] = [getattr(n, name) for n in notes]
    for name in dict.fromkeys(name for piece in pieces for name in piece):
        parts = [
            piece[name].to_arrow(whole=_TYPES[name] == "int64") if name in piece else _nulls(name, len(of.notes))
            for piece, of in zip(pieces, given.pieces, strict=True)
        ]
        result[name] = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
    return result


def _nulls(name: str, height: int) -> pa.Array:
    return pa.nulls(height, type=pa.int64() if _TYPES[name] == "int64" else pa.float64())


def _update(given: UpdateInput, pieces: Sequence[Mapping[str, Vector]], host: Mapping[str, Any]) -> dict[str, Any]:
    row = merge(_STATISTICS, [_merged(piece) for piece in pieces])
    row |= given.update_notes | {"definition": given.definition}
    notes = [n for piece in given.pieces for n in piece.notes]
    row["minibatch_count"] = len(notes)
    stepped = [n.stepped for n in notes if n.stepped is not None]
    row["stepped_count"] = sum(stepped) if stepped else None
    norms = [norm for piece in pieces for norm in _measured(piece["grad_norm"])]
    finite = [norm for norm in norms if metrics.is_finite(norm)]
    if norms:
        row |= {
            "grad_norm_n": len(norms),
            "grad_norm_nonfinite": len(norms) - len(finite),
            "grad_norm_sum": sum(finite),
            "grad_norm_sum_sq": sum(norm * norm for norm in finite),
            "grad_norm_max": metrics.largest(norms),
            "grad_norm_clipped": metrics.clipped_norm(norms[-1], row.get("max_grad_norm")),
        }
    if "rollout" in host:
        row |= _typed(given.rollout_names, host["rollout"].tolist(), _TYPES)
        if row["rollout_n"] == 0:
            row |= {name: None for name in given.rollout_names if name.endswith(_EXTREMES)}
    if "policy_std" in host:
        row["policy_std"] = float(host["policy_std"])
    return row | metrics.derive_update(row, _metric_rows(pieces, notes), given.definition)


def _merged(piece: Mapping[str, Vector]) -> dict[str, Any]:
    """The minibatches of a piece as one row: `merge`, over whole columns."""
    row: dict[str, Any] = {}
    for column in _STATISTICS:
        v = piece.get(column.name)
        if v is None or column.reducer not in (Reducer.SUM, Reducer.MIN, Reducer.MAX, Reducer.LAST):
            continue
        values = v.values if bool(v.valid.all()) else v.values[v.valid]
        if not len(values):
            row[column.name] = None
        elif column.reducer is Reducer.SUM:
            total = float(values.sum())
            row[column.name] = int(total) if column.type == "int64" else total
        elif column.reducer is Reducer.LAST:
            row[column.name] = float(values[-1])
        else:
            numbers = values[~values.isnan()]
            extreme = torch.min if column.reducer is Reducer.MIN else torch.max
            row[column.name] = float(extreme(numbers)) if len(numbers) else math.nan
    return row


def _metric_rows(pieces: Sequence[Mapping[str, Vector]], notes: Sequence[MinibatchNotes]) -> list[dict[str, Any]]:
    """What a library's definition may ask of each minibatch."""
    names = [name for name in metrics.MINIBATCH_COLUMNS if name != "epoch"]
    listed = {name: [v for piece in pieces for v in _listed(piece.get(name), piece["n"])] for name in names}
    listed["epoch"] = [n.epoch for n in notes]
    return [dict(zip(listed, values, strict=True)) for values in zip(*listed.values(), strict=True)]


def _listed(v: Vector | None, like: Vector) -> list[float | None]:
    if v is None:
        return [None] * len(like.values)
    return [x if ok else None for x, ok in zip(v.values.tolist(), v.valid.tolist(), strict=True)]


def _measured(v: Vector) -> list[float]:
    values: list[float] = v.values[v.valid].tolist()
    return values


def _exemplars(piece: Piece, host: Mapping[str, Any], i: int, given: UpdateInput) -> list[dict[str, Any]]:
    actions = host[f"{i}.actions"].tolist() if f"{i}.actions" in host else None
    rows = []
    for place, values in enumerate(host[f"{i}.exemplars"].tolist()):
        row: dict[str, Any] = dict(zip(piece.exemplars.names, values, strict=True))
        if row["severity"] < 0:  # padding: there were fewer transitions than places
            continue
        notes = piece.notes[int(row.pop("position"))]
        row |= {"epoch": notes.epoch, "minibatch": notes.minibatch, "head": ""}
        if actions is not None:
            row["action"] = actions[place]
        _locate(row, given.exemplar_places)
        rows.append(row)
    return rows


def _locate(row: dict[str, Any], places: Mapping[str, Any] | None) -> None:
    index = row.pop("index", None)
    if index is None or index < 0:
        return
    row["index"] = index = int(index)
    if places is None:
        return
    steps, envs = places["steps"], places["envs"]
    if index >= steps * envs:
        return
    if places["order"] == "env_major":
        row["env"], row["env_step"] = divmod(index, steps)
    else:
        row["env_step"], row["env"] = divmod(index, envs)
    actions = places.get("actions")
    if actions is not None and "action" not in row:
        row["action"] = actions[row["env_step"], row["env"]].tolist()


def _placed(pieces: list[list[dict[str, Any]]], *, per_minibatch: bool) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if per_minibatch:
        place = 0
        previous = None
        for row in (row for piece in pieces for row in piece):
            place = place + 1 if row["minibatch"] == previous else 1
            previous = row["minibatch"]
            rows.append(row | {"scope": "minibatch", "place": place})
    rows += [row | {"scope": "update", "place": place} for place, row in enumerate(merge_exemplars(pieces), 1)]
    for row in rows:
        row.pop("severity")
    return rows


def _histograms(piece: Piece, counts: list[Any], nan: Any) -> list[dict[str, Any]]:
    if not piece.per_minibatch:
        return [{"head": "", "counts": counts, "nan_count": nan}]
    return [
        {"epoch": notes.epoch, "minibatch": notes.minibatch, "head": "", "counts": c, "nan_count": n}
        for notes, c, n in zip(piece.notes, counts, nan, strict=True)
    ]


def _merged_histogram(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    wanted = [c for c in columns("ratio_histograms") if c.name in ("head", "counts", "nan_count")]
    return [merge(wanted, rows)] if rows else []


def _layers(given: UpdateInput, host: Mapping[str, Any]) -> list[dict[str, Any]]:
    statistics = iter(host["layers"].tolist() if "layers" in host else [])
    histograms = iter(host["layer_histograms"].tolist() if "layer_histograms" in host else [])
    rows = []
    for layer in given.layers:
        row = dict(layer)
        if row.pop("measured"):
            row |= _typed(given.layer_names, next(statistics), _LAYER_TYPES)
            if row["n"] == 0:
                row |= {"grad_min": None, "grad_max": None}
            row["grad_histogram"] = next(histograms)
            row |= metrics.derive_layer(row)
        rows.append(row)
    return rows


def _episodes(given: UpdateInput, host: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Those told one by one, then those of the rollouts in the order they finished."""
    names = list(given.episodes)
    rows = [dict(zip(names, values, strict=True)) for values in zip(*given.episodes.values(), strict=True)]
    for i, before in enumerate(given.rollout_episodes):
        returns, finished, *lengths = host[f"episodes.{i}"]
        envs = finished.shape[1]
        for step, env in finished.nonzero().tolist():
            rows.append(
                {
                    "env": env,
                    "step": None if before is None else before + (step + 1) * envs,
                    "episode_return": float(returns[step, env]),
                    "episode_length": int(lengths[0][step, env]) if lengths else None,
                }
            )
    return [{"episode": number, **row} for row, number in zip(rows, given.episode_numbers, strict=False)]


def _recurrent(given: UpdateInput, host: Mapping[str, Any]) -> list[dict[str, Any]]:
    rows = []
    for (layer, kind), names in given.recurrent.items():
        row = _typed(names, host[f"recurrent.{layer}.{kind}"].tolist(), _STATE_TYPES)
        row |= {"nan_found": row["nan_count"] > 0, "inf_found": row["inf_count"] > 0}
        rows.append({"layer": layer, "kind": kind} | row)
    return rows


def _typed(names: Sequence[str], values: Sequence[float], types: Mapping[str, str]) -> dict[str, Any]:
    """Packed float64 values as the contract's types."""
    return {name: int(value) if types[name] == "int64" else value for name, value in zip(names, values, strict=True)}


def _as_columns(rows: Sequence[Mapping[str, Any]], identity: Mapping[str, Any]) -> Columns:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = {name: [row.get(name) for row in rows] for name in names}
    return {name: [value] * len(rows) for name, value in identity.items()} | table
