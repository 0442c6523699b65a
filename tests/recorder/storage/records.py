"""Records of updates that tests make by hand, or at random."""

from __future__ import annotations

import random
from collections.abc import Sequence

import numpy as np

from esper_recorder.capture.closed_update import encode_notes
from esper_recorder.contract.tables import column_names, columns
from esper_recorder.storage.record_layout import (
    BatchLayout,
    BlockLayout,
    LayerPartLayout,
    Noted,
    RatioLayout,
    RecordLayout,
    StateLayout,
)
from esper_recorder.storage.update_record import UpdateRecord

LAYOUT = RecordLayout(
    run_id="r",
    attempt=1,
    rank=0,
    definition="pooled",
    columns=("step",),
    batches=(
        BatchLayout(
            notes=(Noted.WHOLE, *[Noted.ABSENT] * 6),
            per_minibatch=False,
            ratios=(RatioLayout(names=("",), statistics=("n", "ratio_max")),),
        ),
    ),
)
"""The number and the largest ratio of each minibatch."""


def minibatch_record(update: int, ratios: Sequence[float]) -> UpdateRecord:
    """An update of minibatches of ten transitions with these largest ratios."""
    count = len(ratios)
    _, (numbers,) = encode_notes({"minibatch": list(range(1, count + 1))})
    norms, statistics = np.zeros(count), np.array([[10.0, ratio] for ratio in ratios]).reshape(-1)
    values = [1_700_000_000_000_000 + update, 0.5, 100 * update]
    everything = np.concatenate([[float(count)], numbers, norms, statistics])
    return UpdateRecord.pack(LAYOUT, update, 1 + count, values, everything)


def random_layout(chance: random.Random) -> RecordLayout:
    """Any layout that a recorder may write, and some that none of ours does."""

    def some(table: str, *always: str) -> tuple[str, ...]:
        declared = [
            c.name for c in columns(table) if c.type in ("int64", "float64") and c.reducer in ("sum", "min", "max")
        ]
        return tuple(dict.fromkeys((*always, *chance.sample(declared, chance.randint(0, len(declared))))))

    def ratio(names: tuple[str, ...], table: str) -> RatioLayout:
        if chance.random() < 0.3:
            return RatioLayout(names, some(table, "n"))
        fields = ("severity", "position", *chance.sample(["index", "log_ratio", "advantage", "old_log_prob"], 3))
        places, actions = chance.randint(0, 5), chance.choice([0, 0, 2])
        return RatioLayout(names, some(table, "n"), bins=3, exemplars=fields, places=places, actions=actions)

    def stored(count: int) -> tuple[int, ...]:
        return (Noted.WHOLE, *[chance.choice(list(Noted)) for _ in range(count - 1)])

    every_heads: list[list[tuple[RatioLayout, ...]]] = [[], [()], [(ratio(("a", "b"), "heads"),)]]
    every_heads.append([(), (ratio(("b",), "heads"),)])
    batches = tuple(
        BatchLayout(stored(7), chance.random() < 0.5, (ratio(("",), "minibatches"), *heads))
        for heads in chance.choice(every_heads)
    )
    measured = some("gradient_layers")
    every_places: list[list[tuple[int, ...]]] = [[], [(0, 1, 2)], [(1,), (0,)]]
    blocks = tuple(
        BlockLayout(
            notes=stored(3),
            names=("w", "b", "c"),
            sizes=(4, 0, 2),
            has_grad=(True, True, False),
            parts=tuple(LayerPartLayout(places, measured, 2) for places in chance.choice(every_places)),
        )
        for _ in range(chance.randint(0, 2))
    )
    rollout = tuple(
        name for name in column_names("ppo_updates") if name.startswith("rollout_") and chance.random() < 0.5
    )
    return RecordLayout(
        run_id="r",
        attempt=1,
        rank=0,
        definition=chance.choice(["pooled", "sb3"]),
        columns=chance.choice([(), ("step", "level", "interrupted", "entropy_coef", "max_grad_norm")]),
        batches=batches,
        blocks=blocks,
        states=chance.choice([(), (StateLayout("lstm", "h", some("recurrent_state", "n", "nan_count", "inf_count")),)]),
        rollout=tuple(name for name in rollout if name != "rollout_s"),
        rollout_shape=chance.choice([None, (4, 3, True), (4, 3, False)]),
    )


def random_record(chance: random.Random, layout: RecordLayout, update: int) -> UpdateRecord:
    """Any numbers in a layout: NaN and infinities are among them."""
    counts = [chance.randint(1, 5) for _ in range(layout.groups)]
    arrays: list[np.ndarray] = [np.array(counts, dtype=np.float64)]
    for array in layout.arrays:
        shape = (1 if array.group is None else counts[array.group], *array.shape)
        numbers = np.array([chance.randint(0, 5) for _ in range(int(np.prod(shape)))], dtype=np.float64)
        if array.name.endswith((".minibatch", ".epoch")):
            numbers = np.arange(1, len(numbers) + 1).view(np.float64)
        elif array.name.endswith(("statistics", "exemplars", "grad_norms", "rollout", "clip_range", "actions")):
            odd = [chance.choice([np.nan, np.inf, -np.inf, -1.0, 0.25]) for _ in numbers]
            numbers = np.where([chance.random() < 0.2 for _ in numbers], odd, numbers)
        elif array.name.endswith((".valid", "stepped", "norm_seen", "after_clipping")):
            numbers = np.minimum(numbers, 1)
        arrays.append(numbers)
    kinds = {"step": 2**60 + update, "level": "normal", "interrupted": True, "entropy_coef": 0.01, "max_grad_norm": 0.5}
    values = [update, chance.random(), *[kinds[name] if chance.random() < 0.8 else None for name in layout.columns]]
    return UpdateRecord.pack(layout, update, 1000, values, np.concatenate(arrays))
