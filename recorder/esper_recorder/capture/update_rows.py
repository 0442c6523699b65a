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

from esper_recorder.capture.compiled_steps import merge_scopes, same_layout, unpack
from esper_recorder.capture.layers import LayerBlock
from esper_recorder.capture.minibatch_buffer import MinibatchNotes, Piece, Pushed
from esper_recorder.capture.transfer import Transfer
from esper_recorder.capture.vectors import Vector, Vectors, bitmap, vector_of
from esper_recorder.contract import metrics
from esper_recorder.contract.merge import merge
from esper_recorder.contract.tables import Column, Reducer, columns
from esper_recorder.reductions.minibatches import RatioSummary
from esper_recorder.reductions.ratios import EXEMPLARS
from esper_recorder.reductions.statistics import Statistics

Columns = dict[str, Any]
"""Column name -> a list, or an Arrow array."""

_TYPES: dict[str, str] = {c.name: c.type for c in (*columns("minibatches"), *columns("ppo_updates"))}
_LAYER_TYPES: dict[str, str] = {c.name: c.type for c in columns("gradient_layers")}
_HEAD_COLUMNS = columns("heads")
_HEAD_REDUCERS = {c.name: c for c in _HEAD_COLUMNS}
_STATE_TYPES: dict[str, str] = {c.name: c.type for c in columns("recurrent_state")}
_STATISTICS: tuple[Column, ...] = tuple(
    c for c in columns("minibatches") if c.name in {u.name for u in columns("ppo_updates")} and c.name != "time"
)
_REDUCERS = {c.name: c for c in _STATISTICS}
_TOLD = ("learning_rate", "clip_range", "value_clip_range")
"""What the notes tell of each minibatch; an update has the last one's."""
_ARROW = {"int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
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
    pieces: list[Piece | Pushed]
    transfer: Transfer
    """The tensors of piece i as `<i>.`, those of block i of layers as `layers.<i>.`, `rollout`, `policy_std`."""
    rollout_names: tuple[str, ...] = ()
    layers: list[LayerBlock] = field(default_factory=list)
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
    pieces = _pieces(given, host)
    minibatches = [_minibatch_vectors(piece, given) for piece in pieces]
    result: dict[str, Columns] = {}
    update = _update(given, pieces, minibatches, host)
    result["ppo_updates"] = {name: [value] for name, value in (update | given.identity).items()}
    if given.with_minibatches and pieces:
        result["minibatches"] = _minibatch_columns(pieces, minibatches, given)
    for table, rows in (
        ("heads", _heads(pieces)),
        ("ratio_histograms", _histograms(pieces)),
        ("recurrent_state", _recurrent(given, host)),
    ):
        if rows:
            result[table] = _as_columns(rows, given.identity)
    for table, found in (
        ("ratio_exemplars", _exemplars(pieces, given.exemplar_places)),
        ("gradient_layers", _layers(given.layers, host)),
    ):
        if found is not None:
            result[table] = _with_identity(found, given.identity)
    if episodes := _episodes(given, host):
        result["episodes"] = _as_columns(episodes, given.identity)
    return result


def build_minibatches(given: UpdateInput) -> Columns:
    """The rows of `minibatches` that `build` left out."""
    pieces = _pieces(given, given.transfer.wait())
    return _minibatch_columns(pieces, [_minibatch_vectors(piece, given) for piece in pieces], given)


def build_episodes(given: UpdateInput) -> dict[str, Columns]:
    """The episodes of a rollout that no update followed."""
    rows = _episodes(given, given.transfer.wait())
    return {"episodes": _as_columns(rows, given.identity)} if rows else {}


def _pieces(given: UpdateInput, host: Mapping[str, Tensor]) -> list[Piece]:
    return [own for i, piece in enumerate(given.pieces) for own in _on_host(piece, _under(f"{i}.", host))]


def _on_host(piece: Piece | Pushed, host: Mapping[str, Tensor]) -> list[Piece]:
    """A piece whose tensors have arrived."""
    if isinstance(piece, Piece):
        return [piece.replaced(host)]
    found = []
    for some in same_layout(host["packed"]):
        own = unpack(host["packed"][some.start : some.stop])
        notes = piece.notes[some.start : some.stop]
        for name in ("clip_range", "value_clip_range"):
            if name in own.numbers:
                for note, value in zip(notes, own.numbers[name].tolist(), strict=True):
                    setattr(note, name, value)
        for note in notes:
            note.norm_seen = "total_norm" in own.numbers
        norms = own.numbers.get("total_norm", torch.zeros(len(notes), dtype=torch.float64))
        reduced = own.reduced if piece.per_minibatch else tuple([merge_scopes(one) for one in own.reduced])
        found.append(Piece(notes, reduced, norms, piece.per_minibatch))
    return found


def _under(prefix: str, host: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in host.items() if name.startswith(prefix)}


def _minibatch_vectors(piece: Piece, given: UpdateInput) -> dict[str, Vector]:
    """Counts, sums and metrics of a piece's minibatches, as vectors by name."""
    joint, norms = piece.reduced[0].statistics, piece.grad_norms
    by_name = joint.values[:, 0].t().contiguous()
    row: dict[str, Any] = {name: Vector(x) for name, x in zip(joint.names, by_name.unbind(), strict=True)}
    if row["n"].has_zeros:
        some = row["n"].values > 0
        row |= {name: Vector(v.values, some) for name, v in row.items() if name.endswith(_EXTREMES)}
    seen = torch.tensor([notes.norm_seen for notes in piece.notes])
    counted = by_name[[i for i, name in enumerate(joint.names) if name in _COUNTED]]
    row["nonfinite_count"] = Vector(counted.sum(dim=0) + (seen & ~norms.isfinite()))
    row["grad_norm"] = Vector(norms, None if bool(seen.all()) else seen)
    for name in _TOLD:
        row[name] = vector_of([getattr(notes, name) for notes in piece.notes])
    coefficients = {name: given.update_notes.get(name) for name in ("entropy_coef", "value_coef")}
    derived = metrics.derive(row | coefficients, Vectors())
    return row | {name: v for name, v in derived.items() if v is not None}


def _minibatch_columns(of: Sequence[Piece], pieces: Sequence[Mapping[str, Vector]], given: UpdateInput) -> Columns:
    notes = [n for piece in of for n in piece.notes]
    result = _identity(given.identity, len(notes))
    for name in ("epoch", "minibatch", "stepped"):
        result[name] = pa.array([getattr(n, name) for n in notes], type=_ARROW[_TYPES[name]])
    for name in dict.fromkeys(name for piece in pieces for name in piece):
        parts = [
            piece[name].to_arrow(whole=_TYPES[name] == "int64") if name in piece else _nulls(name, len(own.notes))
            for piece, own in zip(pieces, of, strict=True)
        ]
        result[name] = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
    return result


def _nulls(name: str, height: int) -> pa.Array:
    return pa.nulls(height, type=_ARROW[_TYPES[name]])


def _update(
    given: UpdateInput, of: Sequence[Piece], pieces: Sequence[Mapping[str, Vector]], host: Mapping[str, Any]
) -> dict[str, Any]:
    row = merge(_STATISTICS, [_merged(piece, vectors) for piece, vectors in zip(of, pieces, strict=True)])
    row |= given.update_notes | {"definition": given.definition}
    notes = [n for piece in of for n in piece.notes]
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
        nothing = row["rollout_n"] == 0
        row |= {
            name: None
            for name in given.rollout_names
            if (nothing and name.endswith(_EXTREMES)) or (name[-4:-2] == "_q" and math.isnan(row[name]))
        }
    if "policy_std" in host:
        row["policy_std"] = float(host["policy_std"])
    return row | metrics.derive_update(row, _metric_columns(pieces, notes), given.definition)


def _merged(piece: Piece, vectors: Mapping[str, Vector]) -> dict[str, Any]:
    """The minibatches of a piece as one row: `merge`, over whole columns.

    Args:
        vectors: the piece's `_minibatch_vectors`.
    """
    (row,) = _over_minibatches(piece.reduced[0].statistics, _REDUCERS)
    for name in _TOLD:
        values = vectors[name].measured
        row[name] = float(values[-1]) if len(values) else None
    row["nonfinite_count"] = int(vectors["nonfinite_count"].values.sum())
    return row


def _metric_columns(
    pieces: Sequence[Mapping[str, Vector]], notes: Sequence[MinibatchNotes]
) -> dict[str, list[float | None]]:
    """What a library's definition may ask of the minibatches."""
    if not notes:
        return {}
    names = [name for name in metrics.MINIBATCH_COLUMNS if name != "epoch"]
    listed = {name: [v for piece in pieces for v in _listed(piece.get(name), piece["n"])] for name in names}
    return listed | {"epoch": [n.epoch for n in notes]}


def _listed(v: Vector | None, like: Vector) -> list[float | None]:
    if v is None:
        return [None] * len(like.values)
    values: list[float | None] = v.values.tolist()
    if v.valid is None:
        return values
    return [x if ok else None for x, ok in zip(values, v.valid.tolist(), strict=True)]


def _measured(v: Vector) -> list[float]:
    values: list[float] = v.measured.tolist()
    return values


def _heads(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """A row a head: its minibatches merged by the contract's reducers."""
    found: dict[str, list[dict[str, Any]]] = {}
    for piece in pieces:
        for one in piece.reduced[1:]:
            for head, row in zip(one.names, _over_minibatches(one.statistics, _HEAD_REDUCERS), strict=True):
                found.setdefault(head, []).append(row)
    rows = []
    for head, parts in found.items():
        row = merge(_HEAD_COLUMNS, parts)
        rows.append(row | metrics.derive_head(row) | {"head": head})
    return rows


def _over_minibatches(statistics: Statistics, reducers: Mapping[str, Column]) -> list[dict[str, Any]]:
    """A row a ratio from statistics [minibatches, ratios, k]: `merge`, over all at once."""
    x = statistics.values
    number = ~x.isnan()
    low = torch.where(number, x, math.inf).amin(dim=0).tolist()
    high = torch.where(number, x, -math.inf).amax(dim=0).tolist()
    some, totals = number.any(dim=0).tolist(), x.sum(dim=0).tolist()
    rows = []
    for ratio in range(x.shape[1]):
        row: dict[str, Any] = {}
        for i, name in enumerate(statistics.names):
            column = reducers[name]
            if column.reducer is Reducer.SUM:
                row[name] = int(totals[ratio][i]) if column.type == "int64" else totals[ratio][i]
            elif some[ratio][i]:
                row[name] = (low if column.reducer is Reducer.MIN else high)[ratio][i]
            else:
                row[name] = math.nan if row["n"] else None
        rows.append(row)
    return rows


def _ratios(pieces: Sequence[Piece]) -> dict[str, list[tuple[Piece, RatioSummary, int]]]:
    """Each ratio ("" the joint one, or a head) and where it is found: a piece, what it was reduced to, which of it."""
    found: dict[str, list[tuple[Piece, RatioSummary, int]]] = {}
    for piece in pieces:
        for one in piece.reduced:
            if one.exemplars is not None:
                for i, name in enumerate(one.names):
                    found.setdefault(name, []).append((piece, one, i))
    return found


def _histograms(pieces: Sequence[Piece]) -> list[dict[str, Any]]:
    """A row a minibatch and ratio where one of the pieces was reduced so, else a row a ratio."""
    rows: list[dict[str, Any]] = []
    wanted = [c for c in columns("ratio_histograms") if c.name in ("head", "counts", "nan_count")]
    for head, places in _ratios(pieces).items():
        own: list[dict[str, Any]] = []
        for piece, one, i in places:
            assert one.histogram is not None and one.histogram_nan is not None
            counts, nan = one.histogram[:, i].tolist(), one.histogram_nan[:, i].tolist()
            told = piece.notes if piece.per_minibatch else (MinibatchNotes(0),)
            for notes, c, n in zip(told, counts, nan, strict=True):
                row = {"head": head, "counts": c, "nan_count": n}
                own.append(row | {"epoch": notes.epoch, "minibatch": notes.minibatch} if piece.per_minibatch else row)
        rows += own if any(piece.per_minibatch for piece, _, _ in places) else [merge(wanted, own)]
    return rows


def _exemplars(pieces: Sequence[Piece], places: Mapping[str, Any] | None) -> pa.Table | None:
    """The worst transitions of each minibatch, where a piece was reduced so, and of the update."""
    found: list[pa.Table] = []
    for head, where in _ratios(pieces).items():
        tables, severities = [], []
        for piece, one, i in where:
            table, severity = _exemplar_table(piece, one, i, places)
            tables.append(table)
            severities.append(severity)
        every = pa.concat_tables(tables, promote_options="default") if len(tables) > 1 else tables[0]
        order = torch.cat(severities).sort(descending=True, stable=True).indices[:EXEMPLARS]
        worst = every.take(pa.array(order.tolist(), type=pa.int64()))
        for scope, rows in (("minibatch", every), ("update", worst)):
            if scope == "minibatch" and not any(piece.per_minibatch for piece, _, _ in where):
                continue
            named = rows.append_column("scope", _repeated(scope, rows.num_rows))
            named = named.append_column("head", _repeated(head, rows.num_rows))
            if scope == "update":
                place = pa.array(range(1, rows.num_rows + 1), type=pa.int64())
                named = named.set_column(named.schema.get_field_index("place"), "place", place)
            found.append(named)
    if not found:
        return None
    return pa.concat_tables(found, promote_options="default")


def _exemplar_table(
    piece: Piece, one: RatioSummary, ratio: int, places: Mapping[str, Any] | None
) -> tuple[pa.Table, Tensor]:
    """The exemplars of one ratio in a piece, in the order of their scopes, and their severity."""
    assert one.exemplars is not None
    values = one.exemplars.values[:, ratio]  # [scopes, k, fields]
    scopes, k, _ = values.shape
    by_name = dict(zip(one.exemplars.names, values.flatten(0, 1).unbind(dim=-1), strict=True))
    there = by_name["severity"] >= 0  # else padding: there were fewer transitions than places
    by_name = {name: x[there] for name, x in by_name.items()}
    severity, position = by_name.pop("severity"), by_name.pop("position").to(torch.int64)
    place = torch.arange(1, k + 1, dtype=torch.float64).repeat(scopes)[there]
    epochs = vector_of([n.epoch for n in piece.notes])
    found = {
        "place": Vector(place),
        "epoch": Vector(epochs.values[position], None if epochs.valid is None else epochs.valid[position]),
        "minibatch": Vector(torch.tensor([n.minibatch for n in piece.notes], dtype=torch.float64)[position]),
    }
    index = by_name.pop("index", None)
    if index is not None:
        found |= _located(index, places)
    found |= {name: Vector(x) for name, x in by_name.items()}
    whole = ("place", "epoch", "minibatch", "index", "env", "env_step")
    table = {name: v.to_arrow(whole=name in whole) for name, v in found.items()}
    if one.actions is not None:
        table["action"] = _lists(one.actions[:, ratio].flatten(0, 1)[there].to(torch.float64), pa.float64())
    elif places is not None and places.get("actions") is not None and "env" in found:
        env, step = found["env"], found["env_step"]
        chosen = places["actions"][step.values.to(torch.int64), env.values.to(torch.int64)]
        table["action"] = _lists(chosen.to(torch.float64), pa.float64(), env.valid)
    return pa.table(table), severity


def _located(index: Tensor, places: Mapping[str, Any] | None) -> dict[str, Vector]:
    """`index`, and `env` and `env_step` where it is known how it counts; NULL on padding and beyond the rollout."""
    known = index >= 0
    found = {"index": Vector(index, known)}
    if places is None:
        return found
    steps, envs = places["steps"], places["envs"]
    known = known & (index < steps * envs)
    inner, names = (steps, ("env", "env_step")) if places["order"] == "env_major" else (envs, ("env_step", "env"))
    at = torch.where(known, index, 0)
    outer = torch.div(at, max(inner, 1), rounding_mode="floor")
    return found | {names[0]: Vector(outer, known), names[1]: Vector(at - outer * inner, known)}


def _layers(blocks: Sequence[LayerBlock], host: Mapping[str, Tensor]) -> pa.Table | None:
    tables = [_layer_table(block, _under(f"layers.{i}.", host)) for i, block in enumerate(blocks)]
    return pa.concat_tables(tables, promote_options="default") if tables else None


def _layer_table(block: LayerBlock, host: Mapping[str, Tensor]) -> pa.Table:
    """A row a step and parameter."""
    steps, layers = len(block.steps), len(block.names)
    table: dict[str, Any] = {}
    for name in ("epoch", "minibatch", "after_clipping"):
        told = pa.array([step[name] for step in block.steps], type=_ARROW[_LAYER_TYPES[name]])
        table[name] = told.take(pa.array([i for i in range(steps) for _ in range(layers)], type=pa.int64()))
    of_step = pa.array(list(range(layers)) * steps, type=pa.int64())
    table["layer"] = pa.array(block.names, type=pa.string()).take(of_step)
    table["has_grad"] = pa.array(block.has_grad, type=pa.bool_()).take(of_step)
    sizes = torch.tensor(block.sizes, dtype=torch.float64).repeat(steps)
    table["n"] = Vector(sizes).to_arrow(whole=True)
    if not block.parts:
        return pa.table(table)
    names = block.parts[0].statistics.names
    statistics = torch.zeros((steps, layers, len(names)), dtype=torch.float64)
    histograms = torch.zeros((steps, layers, host["0.histograms"].shape[-1]), dtype=torch.int64)
    measured = torch.zeros((steps, layers), dtype=torch.bool)
    for i, part in enumerate(block.parts):
        statistics[:, part.places] = host[f"{i}.statistics"]
        histograms[:, part.places] = host[f"{i}.histograms"]
        measured[:, part.places] = True
    there = measured.flatten()
    row = {name: Vector(x, there) for name, x in zip(names, statistics.flatten(0, 1).t().contiguous(), strict=True)}
    row |= {name: Vector(row[name].values, there & (sizes > 0)) for name in ("grad_min", "grad_max")}
    row["step_sum_sq"] = Vector(row["step_sum_sq"].values, there & (row["step_sum_sq"].values >= 0))
    row |= metrics.derive_layer(row | {"n": Vector(sizes)}, Vectors())
    table |= {name: v.to_arrow(whole=_LAYER_TYPES[name] == "int64") for name, v in row.items()}
    table["grad_histogram"] = _lists(histograms.flatten(0, 1), pa.int64(), there)
    return pa.table(table)


def _lists(rows: Tensor, kind: pa.DataType, valid: Tensor | None = None) -> pa.Array:
    """A column of lists from [rows, length]; NULL where not valid."""
    ends = torch.arange(rows.shape[0] + 1, dtype=torch.int32) * rows.shape[1]
    values = Vector(rows.reshape(-1)).to_arrow(whole=kind == pa.int64())
    there = None if valid is None else bitmap(valid)
    offsets = pa.array(ends.tolist(), type=pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.list_(kind), rows.shape[0], [there, offsets], children=[values])


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
        rows.append({"layer": layer, "kind": kind} | row | metrics.derive_state(row))
    return rows


def _typed(names: Sequence[str], values: Sequence[float], types: Mapping[str, str]) -> dict[str, Any]:
    """Packed float64 values as the contract's types."""
    return {name: int(value) if types[name] == "int64" else value for name, value in zip(names, values, strict=True)}


def _as_columns(rows: Sequence[Mapping[str, Any]], identity: Mapping[str, Any]) -> Columns:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = {name: [row.get(name) for row in rows] for name in names}
    # A merged row has the key columns too, as NULL: the identity stands above it.
    return table | {name: [value] * len(rows) for name, value in identity.items()}


def _with_identity(rows: pa.Table, identity: Mapping[str, Any]) -> Columns:
    own = {name: rows.column(name).combine_chunks() for name in rows.column_names}
    return _identity(identity, rows.num_rows) | own


def _identity(identity: Mapping[str, Any], height: int) -> Columns:
    return {name: _repeated(value, height) for name, value in identity.items()}


def _repeated(value: Any, height: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), height)
