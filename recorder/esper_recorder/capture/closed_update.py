"""What an update leaves when it closes, and the one record that the writer's thread makes of it, on the host."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from torch import Tensor

from esper_recorder.arguments import BadCall
from esper_recorder.capture.compiled_steps import merge_scopes, same_layout, unpack
from esper_recorder.capture.failures import Failures
from esper_recorder.capture.layers import LayerBlock
from esper_recorder.capture.minibatch_buffer import BatchSummary, PackedBatch
from esper_recorder.capture.rollout import RolloutShape
from esper_recorder.capture.transfer import Transfer
from esper_recorder.levels import Level
from esper_recorder.reductions.minibatches import RatioSummary, with_actions
from esper_recorder.storage.columns import Array
from esper_recorder.storage.jsonable import encodable
from esper_recorder.storage.ratio_rows import EXEMPLARS
from esper_recorder.storage.record_layout import (
    MINIBATCH_NOTES,
    STEP_NOTES,
    BatchLayout,
    BlockLayout,
    LayerPartLayout,
    Noted,
    RatioLayout,
    RecordLayout,
    StateLayout,
)
from esper_recorder.storage.update_record import WHOLE_NOTES, UpdateRecord

Columns = Mapping[str, Sequence[Any]]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)


_MOST_LAYOUTS = 64
_layouts: dict[RecordLayout, RecordLayout] = {}
"""Equal layouts as one, which computes once what follows from it."""


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
    user_rows: Mapping[str, Columns] = field(default_factory=dict)


def other_rows(update: ClosedUpdate) -> dict[str, Columns]:
    """Return the rows that are not reduced from an update's tensors: its episodes, and those recorded one by one."""
    episodes = _episodes(update, update.transfer.wait())
    if not episodes:
        return dict(update.user_rows)
    columns = {name: [row[name] for row in episodes] for name in episodes[0]}
    identity = {name: [value] * len(episodes) for name, value in update.identity.items()}
    return {"episodes": identity | columns, **update.user_rows}


def pack(update: ClosedUpdate) -> UpdateRecord:
    """Pack an update that has a row of `ppo_updates`: what it counted, summed and noted."""
    assert update.columns is not None
    host = update.transfer.wait()
    batches = _on_host(update, host)
    _report_outside(update, batches)
    arrays = [np.array([len(b.notes) for b in batches] + [len(b.steps) for b in update.layers], dtype=np.float64)]
    batch_layouts = tuple([_pack_batch(batch, arrays) for batch in batches])
    block_layouts = tuple(
        [_pack_block(block, _under(f"layers.{i}.", host), arrays) for i, block in enumerate(update.layers)]
    )
    for layer, kind in update.states:
        arrays.append(_on_cpu(host[f"recurrent.{layer}.{kind}"]))
    rollout = update.rollout_names if "rollout" in host else ()
    if rollout:
        arrays.append(_on_cpu(host["rollout"]))
    if "policy_std" in host:
        rollout = (*rollout, "policy_std")
        arrays.append(_on_cpu(host["policy_std"]))
    shape, identity = update.rollout_shape, update.identity
    layout = RecordLayout(
        run_id=identity["run_id"],
        attempt=identity["attempt"],
        rank=identity["rank"],
        definition=update.definition,
        columns=tuple(update.columns),
        batches=batch_layouts,
        blocks=block_layouts,
        states=tuple([StateLayout(layer, kind, names) for (layer, kind), names in update.states.items()]),
        rollout=rollout,
        rollout_shape=None if shape is None else (shape.steps, shape.envs, shape.env_major),
    )
    rows = 1 + sum(len(b.notes) for b in batches) + _ratio_rows(batches) + len(update.states)
    rows += sum(len(block.steps) * len(block.names) for block in update.layers)
    time = (identity["time"] - _EPOCH) // _MICROSECOND
    values = [time, identity["elapsed_s"], *update.columns.values()]
    numbers = np.concatenate([array.reshape(-1) for array in arrays], dtype=np.float64, casting="unsafe")
    record = UpdateRecord.pack(_layouts.get(layout, layout), identity["update"], rows, values, numbers)
    if layout not in _layouts:  # what a reader would refuse is better refused, and a gap, now
        RecordLayout.from_json(layout.to_json())
        record.check()
        if len(_layouts) >= _MOST_LAYOUTS:
            _layouts.clear()
        _layouts[layout] = layout
    return record


def _on_host(update: ClosedUpdate, host: Mapping[str, Tensor]) -> list[BatchSummary]:
    """The batches with the tensors that have arrived; those that were packed are unpacked."""
    batches: list[BatchSummary] = []
    for i, batch in enumerate(update.batches):
        tensors = _under(f"{i}.", host)
        batches += [batch.replaced(tensors)] if isinstance(batch, BatchSummary) else _unpacked(batch, tensors)
    shape = update.rollout_shape
    if shape is None or shape.actions is None:
        return batches
    actions, env_major = shape.actions, shape.env_major
    return [
        dataclasses.replace(b, ratios=tuple([with_actions(ratio, actions, env_major=env_major) for ratio in b.ratios]))
        for b in batches
    ]


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


def _on_cpu(tensor: Tensor) -> Array:
    array: Array = tensor.cpu().numpy()
    return array


def _pack_batch(batch: BatchSummary, arrays: list[Array]) -> BatchLayout:
    """Append a batch's arrays in the order of `record_layout`, and return its layout."""
    notes, encoded = encode_notes({name: [getattr(n, name) for n in batch.notes] for name in MINIBATCH_NOTES})
    arrays += [*encoded, _on_cpu(batch.grad_norms)]
    return BatchLayout(notes, batch.per_minibatch, tuple([_pack_ratio(ratio, arrays) for ratio in batch.ratios]))


def _pack_ratio(ratio: RatioSummary, arrays: list[Array]) -> RatioLayout:
    arrays += [_on_cpu(tensor) for tensor in ratio.tensors().values()]
    if ratio.exemplars is None or ratio.histogram is None:
        return RatioLayout(ratio.names, ratio.statistics.names)
    return RatioLayout(
        ratio.names,
        ratio.statistics.names,
        bins=ratio.histogram.shape[-1],
        exemplars=ratio.exemplars.names,
        places=ratio.exemplars.values.shape[2],
        actions=0 if ratio.actions is None else ratio.actions.shape[-1],
    )


def _pack_block(block: LayerBlock, host: Mapping[str, Tensor], arrays: list[Array]) -> BlockLayout:
    notes, encoded = encode_notes({name: [step[name] for step in block.steps] for name in STEP_NOTES})
    arrays += encoded
    parts = []
    for i, part in enumerate(block.parts):
        histograms = host[f"{i}.histograms"]
        arrays += [_on_cpu(host[f"{i}.statistics"]), _on_cpu(histograms)]
        parts.append(LayerPartLayout(tuple(part.places), part.statistics.names, histograms.shape[-1]))
    return BlockLayout(
        notes, tuple(map(encodable, block.names)), tuple(block.sizes), tuple(block.has_grad), tuple(parts)
    )


def _ratio_rows(batches: Sequence[BatchSummary]) -> int:
    """How many rows of heads, histograms and worst transitions the batches have."""
    heads = {name for batch in batches for ratio in batch.ratios[1:] for name in ratio.names}
    rows = len(heads)
    worst: dict[str, int] = {}
    scoped = {name for b in batches if b.per_minibatch for ratio in b.ratios for name in ratio.names}
    for batch in batches:
        for ratio in batch.ratios:
            if ratio.exemplars is None:
                continue
            severity = ratio.exemplars.values[..., ratio.exemplars.names.index("severity")]
            for name, kept in zip(ratio.names, (severity >= 0).sum(dim=(0, 2)).tolist(), strict=True):
                if name in scoped:
                    rows += kept + (len(batch.notes) if batch.per_minibatch else 1)
                else:
                    rows += name not in worst
                worst[name] = worst.get(name, 0) + kept
    return rows + sum(min(kept, EXEMPLARS) for kept in worst.values())


def _episodes(update: ClosedUpdate, host: Mapping[str, Tensor]) -> list[dict[str, Any]]:
    """The episodes recorded one by one, then those of the rollouts in the order they finished."""
    rows = list(update.episodes)
    for i, before in enumerate(update.rollout_episodes):
        returns, finished, *lengths = _on_cpu(host[f"episodes.{i}"])
        envs = finished.shape[1]
        for step, env in zip(*(at.tolist() for at in np.nonzero(finished)), strict=True):
            rows.append(
                {
                    "env": env,
                    "step": None if before is None else before + (step + 1) * envs,
                    "episode_return": float(returns[step, env]),
                    "episode_length": int(lengths[0][step, env]) if lengths else None,
                }
            )
    return [{"episode": number, **row} for row, number in zip(rows, update.episode_numbers, strict=False)]


def encode_notes(notes: Mapping[str, Sequence[Any]]) -> tuple[tuple[int, ...], list[Array]]:
    """Encode notes by name: how each is stored, and the arrays."""
    stored: list[int] = []
    arrays: list[Array] = []
    for name, values in notes.items():
        if None not in values:
            stored.append(Noted.WHOLE)
            arrays.append(_as_numbers(name, values))
        elif all(value is None for value in values):
            stored.append(Noted.ABSENT)
        else:
            stored.append(Noted.WITH_NULLS)
            arrays.append(_as_numbers(name, [0 if value is None else value for value in values]))
            arrays.append(np.array([value is not None for value in values], dtype=np.float64))
    return tuple(stored), arrays


def _as_numbers(name: str, values: Sequence[Any]) -> Array:
    if name in WHOLE_NOTES:
        return np.array(values, dtype=np.int64).view(np.float64)
    return np.array(values, dtype=np.float64)
