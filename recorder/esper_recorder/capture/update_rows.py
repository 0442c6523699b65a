"""From the reduced tensors of an update to the rows of the tables, on the host and in the writer's thread."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor

from esper_recorder.arguments import BadCall
from esper_recorder.capture.compiled_steps import merge_scopes, same_layout, unpack
from esper_recorder.capture.failures import Failures
from esper_recorder.capture.layers import LayerBlock
from esper_recorder.capture.minibatch_buffer import BatchSummary, MinibatchNotes, PackedBatch
from esper_recorder.capture.rollout import RolloutShape
from esper_recorder.capture.transfer import Transfer
from esper_recorder.capture.vectors import Vector, VectorArithmetic, bitmap, vector_of
from esper_recorder.contract import metrics
from esper_recorder.contract.merge import merge
from esper_recorder.contract.tables import Column, Reducer, columns
from esper_recorder.levels import Level
from esper_recorder.reductions.minibatches import RatioSummary
from esper_recorder.reductions.ratio_histogram import EXEMPLARS
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
_SETTINGS = ("learning_rate", "clip_range", "value_clip_range")
"""Columns that are noted with each minibatch; an update has the last one's."""
_ARROW = {"int64": pa.int64(), "float64": pa.float64(), "bool": pa.bool_()}
_EXTREMES = ("_min", "_max")
_COUNTED = tuple(
    f"{quantity}_{kind}"
    for quantity in ("log_ratio", "advantage", "value", "return", "entropy")
    for kind in ("nan", "posinf", "neginf")
)


@dataclass(slots=True)
class ClosedUpdate:
    """What an update leaves for the writer's thread: small tensors on their way, and notes of the host."""

    identity: Mapping[str, Any]
    """run_id, attempt, rank, update, time, elapsed_s: the same for all rows of the update."""
    definition: str
    columns: dict[str, Any] | None
    """Columns of `ppo_updates` that the host knows; None if the training stopped before an update followed."""
    transfer: Transfer
    """The tensors of batch i as `<i>.`, those of block i of layers as `layers.<i>.`, `rollout`, `policy_std`,
    `recurrent.<layer>.<kind>`, `episodes.<i>`."""
    failures: Failures
    level: Level
    batches: Sequence[BatchSummary | PackedBatch] = ()
    minibatches: int = 0
    """How many were recorded, those included that could not be kept."""
    rollout_names: tuple[str, ...] = ()
    layers: list[LayerBlock] = field(default_factory=list)
    rollout_shape: RolloutShape | None = None
    states: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    """(layer, kind) -> names of its statistics."""
    episodes: Sequence[Mapping[str, Any]] = ()
    rollout_episodes: Sequence[int | None] = ()
    """Environment steps taken before each of the tensors `episodes.<i>`."""
    episode_numbers: Iterator[int] = field(default_factory=itertools.count)
    """Of all updates of the recorder: episodes are counted as they are stored."""
    user_rows: Mapping[str, Any] = field(default_factory=dict)


def build(update: ClosedUpdate, *, with_minibatches: bool = True) -> dict[str, Columns]:
    """Build the rows of one update, column by column, for each table that has some."""
    host = update.transfer.wait()
    batches = _on_host(update, host)
    _report_outside(update, batches)
    minibatches = [_minibatch_vectors(batch, update) for batch in batches]
    tables: dict[str, Columns] = {}
    if update.columns is not None:
        row = _update(update, batches, minibatches, host)
        tables["ppo_updates"] = {name: [value] for name, value in {**row, **update.identity}.items()}
    if with_minibatches and batches:
        tables["minibatches"] = _minibatch_columns(batches, minibatches, update)
    for table, rows in (
        ("heads", _heads(batches)),
        ("ratio_histograms", _histograms(batches)),
        ("recurrent_state", _recurrent(update, host)),
        ("episodes", _episodes(update, host)),
    ):
        if rows:
            tables[table] = _as_columns(rows, update.identity)
    for table, arrow in (
        ("ratio_exemplars", _exemplars(batches, update.rollout_shape)),
        ("gradient_layers", _layers(update.layers, host)),
    ):
        if arrow is not None:
            tables[table] = _with_identity(arrow, update.identity)
    return {**tables, **update.user_rows}


def build_minibatches(update: ClosedUpdate) -> Columns:
    """Build the rows of `minibatches` that `build` left out."""
    batches = _on_host(update, update.transfer.wait())
    return _minibatch_columns(batches, [_minibatch_vectors(batch, update) for batch in batches], update)


def _on_host(update: ClosedUpdate, host: Mapping[str, Tensor]) -> list[BatchSummary]:
    """The batches with the tensors that have arrived; those that were packed are unpacked."""
    batches = []
    for i, batch in enumerate(update.batches):
        tensors = _under(f"{i}.", host)
        batches += [batch.replaced(tensors)] if isinstance(batch, BatchSummary) else _unpacked(batch, tensors)
    return batches


def _unpacked(batch: PackedBatch, tensors: Mapping[str, Tensor]) -> list[BatchSummary]:
    batches = []
    for stretch in same_layout(tensors["packed"]):
        rows = slice(stretch.start, stretch.stop)
        ratios, numbers = unpack(tensors["packed"][rows])
        notes, norms = batch.notes[rows], tensors["grad_norms"][rows]
        for name in ("clip_range", "value_clip_range"):
            for note, value in zip(notes, numbers[name].tolist() if name in numbers else (), strict=False):
                setattr(note, name, value)
        if "total_norm" in numbers:
            norms = numbers["total_norm"]
            for note in notes:
                note.norm_seen = True
        if not batch.per_minibatch:
            ratios = tuple([merge_scopes(ratio) for ratio in ratios])
        batches.append(BatchSummary(notes, ratios, norms, batch.per_minibatch))
    return batches


def _report_outside(update: ClosedUpdate, batches: Sequence[BatchSummary]) -> None:
    """Report the minibatches whose index has positions outside the rollout."""
    counts = {
        notes.minibatch: count
        for batch in batches
        if batch.outside is not None
        for notes, count in zip(batch.notes, batch.outside.tolist(), strict=True)
        if count
    }
    if counts:
        first, count = next(iter(counts.items()))
        others = f" and of {len(counts) - 1} more" if len(counts) > 1 else ""
        error = BadCall(
            f"index of minibatch {first}{others} has positions outside the rollout ({count} in the first one); they "
            "are left out. Give positions as rollout's index_order counts them, -1 on padding"
        )
        update.failures.report("minibatch", error, ("minibatches", 0))


def _under(prefix: str, host: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): tensor for name, tensor in host.items() if name.startswith(prefix)}


def _minibatch_vectors(batch: BatchSummary, update: ClosedUpdate) -> dict[str, Vector]:
    """Counts, sums and metrics of a batch's minibatches, as vectors by name."""
    joint, norms = batch.ratios[0].statistics, batch.grad_norms
    by_name = joint.values[:, 0].t().contiguous()
    row: dict[str, Any] = {name: Vector(x) for name, x in zip(joint.names, by_name.unbind(), strict=True)}
    if row["n"].has_zeros:
        not_empty = row["n"].values > 0
        row |= {name: Vector(v.values, not_empty) for name, v in row.items() if name.endswith(_EXTREMES)}
    seen = torch.tensor([notes.norm_seen for notes in batch.notes])
    nonfinite = by_name[[i for i, name in enumerate(joint.names) if name in _COUNTED]]
    row["nonfinite_count"] = Vector(nonfinite.sum(dim=0) + (seen & ~norms.isfinite()))
    row["grad_norm"] = Vector(norms, None if bool(seen.all()) else seen)
    for name in _SETTINGS:
        row[name] = vector_of([getattr(notes, name) for notes in batch.notes])
    coefficients = {name: (update.columns or {}).get(name) for name in ("entropy_coef", "value_coef")}
    derived = metrics.derive(row | coefficients, VectorArithmetic())
    return row | {name: v for name, v in derived.items() if v is not None}


def _minibatch_columns(
    batches: Sequence[BatchSummary], vectors: Sequence[Mapping[str, Vector]], update: ClosedUpdate
) -> Columns:
    notes = [n for batch in batches for n in batch.notes]
    result = _identity(update.identity, len(notes))
    for name in ("epoch", "minibatch", "stepped"):
        result[name] = pa.array([getattr(n, name) for n in notes], type=_ARROW[_TYPES[name]])
    for name in dict.fromkeys(name for by_column in vectors for name in by_column):
        parts = [
            by_column[name].to_arrow(whole=_TYPES[name] == "int64")
            if name in by_column
            else pa.nulls(len(batch.notes), type=_ARROW[_TYPES[name]])
            for by_column, batch in zip(vectors, batches, strict=True)
        ]
        result[name] = parts[0] if len(parts) == 1 else pa.concat_arrays(parts)
    return result


def _update(
    update: ClosedUpdate,
    batches: Sequence[BatchSummary],
    vectors: Sequence[Mapping[str, Vector]],
    host: Mapping[str, Tensor],
) -> dict[str, Any]:
    """The row of `ppo_updates`."""
    row = merge(_STATISTICS, [_merged(*pair) for pair in zip(batches, vectors, strict=True)])
    row |= (update.columns or {}) | {"definition": update.definition}
    notes = [n for batch in batches for n in batch.notes]
    row["minibatch_count"] = len(notes)
    stepped = [n.stepped for n in notes if n.stepped is not None]
    row["stepped_count"] = sum(stepped) if stepped else None
    norms = [norm for by_column in vectors for norm in by_column["grad_norm"].measured.tolist()]
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
        row |= _typed(update.rollout_names, host["rollout"].tolist(), _TYPES)
        empty = row["rollout_n"] == 0
        row |= {
            name: None
            for name in update.rollout_names
            if (empty and name.endswith(_EXTREMES)) or (name[-4:-2] == "_q" and math.isnan(row[name]))
        }
    if "policy_std" in host:
        row["policy_std"] = float(host["policy_std"])
    return row | metrics.derive_update(row, _metric_columns(vectors, notes), update.definition)


def _merged(batch: BatchSummary, vectors: Mapping[str, Vector]) -> dict[str, Any]:
    """The minibatches of a batch as one row: `merge`, over whole columns."""
    (row,) = _over_minibatches(batch.ratios[0].statistics, _REDUCERS)
    for name in _SETTINGS:
        values = vectors[name].measured
        row[name] = float(values[-1]) if len(values) else None
    row["nonfinite_count"] = int(vectors["nonfinite_count"].values.sum())
    return row


def _metric_columns(
    vectors: Sequence[Mapping[str, Vector]], notes: Sequence[MinibatchNotes]
) -> dict[str, list[float | None]]:
    """The columns of minibatches that a library's definitions read."""
    if not notes:
        return {}
    result: dict[str, list[float | None]] = {"epoch": [n.epoch for n in notes]}
    for name in metrics.MINIBATCH_COLUMNS:
        if name != "epoch":
            lists = [
                by_column[name].to_list() if name in by_column else [None] * len(by_column["n"].values)
                for by_column in vectors
            ]
            result[name] = [x for values in lists for x in values]
    return result


def _heads(batches: Sequence[BatchSummary]) -> list[dict[str, Any]]:
    """One row per head: its minibatches merged by the contract's reducers."""
    parts: dict[str, list[dict[str, Any]]] = {}
    for batch in batches:
        for ratio in batch.ratios[1:]:
            for head, row in zip(ratio.names, _over_minibatches(ratio.statistics, _HEAD_REDUCERS), strict=True):
                parts.setdefault(head, []).append(row)
    rows = {head: merge(_HEAD_COLUMNS, of_head) for head, of_head in parts.items()}
    return [row | metrics.derive_head(row) | {"head": head} for head, row in rows.items()]


def _over_minibatches(statistics: Statistics, reducers: Mapping[str, Column]) -> list[dict[str, Any]]:
    """One row per ratio from statistics [minibatches, ratios, k]: `merge`, over all at once."""
    x = statistics.values
    number = ~x.isnan()
    low = torch.where(number, x, math.inf).amin(dim=0).tolist()
    high = torch.where(number, x, -math.inf).amax(dim=0).tolist()
    has_number, totals = number.any(dim=0).tolist(), x.sum(dim=0).tolist()
    rows = []
    for ratio in range(x.shape[1]):
        row: dict[str, Any] = {}
        for i, name in enumerate(statistics.names):
            column = reducers[name]
            if column.reducer is Reducer.SUM:
                row[name] = int(totals[ratio][i]) if column.type == "int64" else totals[ratio][i]
            elif has_number[ratio][i]:
                row[name] = (low if column.reducer is Reducer.MIN else high)[ratio][i]
            else:
                row[name] = math.nan if row["n"] else None
        rows.append(row)
    return rows


def _ratios(batches: Sequence[BatchSummary]) -> dict[str, list[tuple[BatchSummary, RatioSummary, int]]]:
    """Each ratio ("" is the joint one, else a head) -> the batches that have it, their summary, its place there."""
    ratios: dict[str, list[tuple[BatchSummary, RatioSummary, int]]] = {}
    for batch in batches:
        for summary in batch.ratios:
            if summary.exemplars is not None:
                for i, name in enumerate(summary.names):
                    ratios.setdefault(name, []).append((batch, summary, i))
    return ratios


def _histograms(batches: Sequence[BatchSummary]) -> list[dict[str, Any]]:
    """One row per ratio and minibatch if one of the batches was reduced so, else one row per ratio."""
    rows: list[dict[str, Any]] = []
    counted = [c for c in columns("ratio_histograms") if c.name in ("head", "counts", "nan_count")]
    for head, places in _ratios(batches).items():
        of_head: list[dict[str, Any]] = []
        for batch, summary, i in places:
            assert summary.histogram is not None and summary.histogram_nan is not None
            counts, nan_counts = summary.histogram[:, i].tolist(), summary.histogram_nan[:, i].tolist()
            keys: Sequence[dict[str, Any]] = [{}]
            if batch.per_minibatch:
                keys = [{"epoch": notes.epoch, "minibatch": notes.minibatch} for notes in batch.notes]
            for key, in_bins, nan in zip(keys, counts, nan_counts, strict=True):
                of_head.append({"head": head, "counts": in_bins, "nan_count": nan} | key)
        rows += of_head if any(batch.per_minibatch for batch, _, _ in places) else [merge(counted, of_head)]
    return rows


def _exemplars(batches: Sequence[BatchSummary], shape: RolloutShape | None) -> pa.Table | None:
    """The worst transitions of the update, and of each minibatch if a batch was reduced so."""
    scopes: list[pa.Table] = []
    for head, places in _ratios(batches).items():
        tables, severities = zip(*(_exemplar_table(*place, shape) for place in places), strict=True)
        every = pa.concat_tables(tables, promote_options="default") if len(tables) > 1 else tables[0]
        order = torch.cat(severities).sort(descending=True, stable=True).indices[:EXEMPLARS]
        worst = every.take(pa.array(order.tolist(), type=pa.int64()))
        ranks = pa.array(range(1, worst.num_rows + 1), type=pa.int64())
        worst = worst.set_column(worst.schema.get_field_index("place"), "place", ranks)
        per_minibatch = any(batch.per_minibatch for batch, _, _ in places)
        for scope, rows in (("minibatch", every), ("update", worst)) if per_minibatch else (("update", worst),):
            named = rows.append_column("scope", _repeated(scope, rows.num_rows))
            scopes.append(named.append_column("head", _repeated(head, rows.num_rows)))
    return pa.concat_tables(scopes, promote_options="default") if scopes else None


def _exemplar_table(
    batch: BatchSummary, summary: RatioSummary, ratio: int, shape: RolloutShape | None
) -> tuple[pa.Table, Tensor]:
    """The exemplars of one ratio of a batch, in the order of their scopes, and their severity."""
    assert summary.exemplars is not None
    values = summary.exemplars.values[:, ratio]  # [scopes, k, fields]
    scopes, k, _ = values.shape
    by_name = dict(zip(summary.exemplars.names, values.flatten(0, 1).unbind(dim=-1), strict=True))
    kept = by_name["severity"] >= 0  # else padding: there were fewer transitions than places
    by_name = {name: x[kept] for name, x in by_name.items()}
    severity, position = by_name.pop("severity"), by_name.pop("position").to(torch.int64)
    place = torch.arange(1, k + 1, dtype=torch.float64).repeat(scopes)[kept]
    epochs = vector_of([n.epoch for n in batch.notes])
    vectors = {
        "place": Vector(place),
        "epoch": Vector(epochs.values[position], None if epochs.valid is None else epochs.valid[position]),
        "minibatch": Vector(torch.tensor([n.minibatch for n in batch.notes], dtype=torch.float64)[position]),
    }
    index = by_name.pop("index", None)
    if index is not None:
        vectors |= _located(index, shape)
    vectors |= {name: Vector(x) for name, x in by_name.items()}
    whole = ("place", "epoch", "minibatch", "index", "env", "env_step")
    table = {name: v.to_arrow(whole=name in whole) for name, v in vectors.items()}
    if summary.actions is not None:
        table["action"] = _lists(summary.actions[:, ratio].flatten(0, 1)[kept].to(torch.float64), pa.float64())
    elif shape is not None and shape.actions is not None and "env" in vectors:
        env, step = vectors["env"], vectors["env_step"]
        chosen = shape.actions[step.values.to(torch.int64), env.values.to(torch.int64)]
        table["action"] = _lists(chosen.to(torch.float64), pa.float64(), env.valid)
    return pa.table(table), severity


def _located(index: Tensor, shape: RolloutShape | None) -> dict[str, Vector]:
    """`index`, and `env` and `env_step` if the rollout's shape is known; NULL on padding and outside the rollout."""
    valid = index >= 0
    vectors = {"index": Vector(index, valid)}
    if shape is None:
        return vectors
    valid = valid & (index < shape.steps * shape.envs)
    inner, names = (shape.steps, ("env", "env_step")) if shape.env_major else (shape.envs, ("env_step", "env"))
    at = torch.where(valid, index, 0)
    outer = torch.div(at, max(inner, 1), rounding_mode="floor")
    return vectors | {names[0]: Vector(outer, valid), names[1]: Vector(at - outer * inner, valid)}


def _layers(blocks: Sequence[LayerBlock], host: Mapping[str, Tensor]) -> pa.Table | None:
    tables = [_layer_table(block, _under(f"layers.{i}.", host)) for i, block in enumerate(blocks)]
    return pa.concat_tables(tables, promote_options="default") if tables else None


def _layer_table(block: LayerBlock, host: Mapping[str, Tensor]) -> pa.Table:
    """One row per step and parameter."""
    steps, layers = len(block.steps), len(block.names)
    step_of_row = pa.array([i for i in range(steps) for _ in range(layers)], type=pa.int64())
    layer_of_row = pa.array(list(range(layers)) * steps, type=pa.int64())
    table: dict[str, Any] = {}
    for name in ("epoch", "minibatch", "after_clipping"):
        notes = pa.array([step[name] for step in block.steps], type=_ARROW[_LAYER_TYPES[name]])
        table[name] = notes.take(step_of_row)
    table["layer"] = pa.array(block.names, type=pa.string()).take(layer_of_row)
    table["has_grad"] = pa.array(block.has_grad, type=pa.bool_()).take(layer_of_row)
    sizes = torch.tensor(block.sizes, dtype=torch.float64).repeat(steps)
    table["n"] = Vector(sizes).to_arrow(whole=True)
    if not block.parts:
        return pa.table(table)
    names = block.parts[0].statistics.names
    statistics = torch.zeros((steps, layers, len(names)), dtype=torch.float64)
    histograms = torch.zeros((steps, layers, host["0.histograms"].shape[-1]), dtype=torch.int64)
    in_a_part = torch.zeros((steps, layers), dtype=torch.bool)
    for i, part in enumerate(block.parts):
        statistics[:, part.places] = host[f"{i}.statistics"]
        histograms[:, part.places] = host[f"{i}.histograms"]
        in_a_part[:, part.places] = True
    measured = in_a_part.flatten()
    row = {name: Vector(x, measured) for name, x in zip(names, statistics.flatten(0, 1).t().contiguous(), strict=True)}
    row |= {name: Vector(row[name].values, measured & (sizes > 0)) for name in ("grad_min", "grad_max")}
    row["step_sum_sq"] = Vector(row["step_sum_sq"].values, measured & (row["step_sum_sq"].values >= 0))
    row |= metrics.derive_layer(row | {"n": Vector(sizes)}, VectorArithmetic())
    table |= {name: v.to_arrow(whole=_LAYER_TYPES[name] == "int64") for name, v in row.items()}
    table["grad_histogram"] = _lists(histograms.flatten(0, 1), pa.int64(), measured)
    return pa.table(table)


def _lists(rows: Tensor, kind: pa.DataType, valid: Tensor | None = None) -> pa.Array:
    """A column of lists from [rows, length]; NULL where not valid."""
    ends = torch.arange(rows.shape[0] + 1, dtype=torch.int32) * rows.shape[1]
    values = Vector(rows.reshape(-1)).to_arrow(whole=kind == pa.int64())
    validity = None if valid is None else bitmap(valid)
    offsets = pa.array(ends.tolist(), type=pa.int32()).buffers()[1]
    return pa.Array.from_buffers(pa.list_(kind), rows.shape[0], [validity, offsets], children=[values])


def _episodes(update: ClosedUpdate, host: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The episodes recorded one by one, then those of the rollouts in the order they finished."""
    rows = list(update.episodes)
    for i, before in enumerate(update.rollout_episodes):
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
    return [{"episode": number, **row} for row, number in zip(rows, update.episode_numbers, strict=False)]


def _recurrent(update: ClosedUpdate, host: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    rows = []
    for (layer, kind), names in update.states.items():
        row = _typed(names, host[f"recurrent.{layer}.{kind}"].tolist(), _STATE_TYPES)
        row |= {"nan_found": row["nan_count"] > 0, "inf_found": row["inf_count"] > 0}
        rows.append({"layer": layer, "kind": kind} | row | metrics.derive_state(row))
    return rows


def _typed(names: Sequence[str], values: Sequence[float], types: Mapping[str, str]) -> dict[str, Any]:
    """Float64 values as the contract's types."""
    return {name: int(value) if types[name] == "int64" else value for name, value in zip(names, values, strict=True)}


def _as_columns(rows: Sequence[Mapping[str, Any]], identity: Mapping[str, Any]) -> Columns:
    names = list(dict.fromkeys(name for row in rows for name in row))
    table = {name: [row.get(name) for row in rows] for name in names}
    # A merged row has the key columns too, as NULL: the identity stands above it.
    return table | {name: [value] * len(rows) for name, value in identity.items()}


def _with_identity(rows: pa.Table, identity: Mapping[str, Any]) -> Columns:
    arrays = {name: rows.column(name).combine_chunks() for name in rows.column_names}
    return _identity(identity, rows.num_rows) | arrays


def _identity(identity: Mapping[str, Any], height: int) -> Columns:
    return {name: _repeated(value, height) for name, value in identity.items()}


def _repeated(value: Any, height: int) -> pa.Array:
    return pa.repeat(pa.scalar(value), height)
