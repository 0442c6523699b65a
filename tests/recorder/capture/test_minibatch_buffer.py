"""The buffer of minibatches: what goes in comes out, in however many batches it was reduced."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper_recorder.arguments import FieldKey
from esper_recorder.capture.minibatch_buffer import BatchSummary, MinibatchBuffer, MinibatchNotes
from esper_recorder.contract.merge import merge
from esper_recorder.contract.tables import columns
from esper_recorder.reductions.loss_statistics import clip_bounds, terms, transition_quantities
from esper_recorder.reductions.minibatches import with_actions
from esper_recorder.reductions.ratio_histogram import EXEMPLARS, log_ratio_histogram
from esper_recorder.reductions.statistics import reduce_quantities
from tests.recorder.reductions.arrays import same

Fields = dict[FieldKey, Tensor]

FIELDS = ("log_ratio", "advantage", "value")


def minibatch(n: int, seed: int, names: tuple[str, ...] = FIELDS, dtype: torch.dtype = torch.float32) -> Fields:
    random = np.random.default_rng(seed)
    return {name: torch.from_numpy(random.normal(size=n)).to(dtype) for name in names}


def put(buffer: MinibatchBuffer, fields: Fields, number: int = 1, **more: Any) -> MinibatchNotes:
    notes = MinibatchNotes(number, clip_range=more.pop("clip_range", 0.2))
    buffer.append(tuple(fields), list(fields.values()), notes, (notes.clip_range is not None,), **more)
    return notes


def drain(buffer: MinibatchBuffer) -> list[BatchSummary]:
    batches = [batch for batch in buffer.drain() if isinstance(batch, BatchSummary)]
    assert buffer.drain() == []
    return batches


def drain_one(buffer: MinibatchBuffer) -> BatchSummary:
    (batch,) = drain(buffer)
    return batch


def rows(*batches: BatchSummary) -> list[dict[str, float]]:
    statistics = [batch.ratios[0].statistics for batch in batches]
    return [dict(zip(s.names, row, strict=True)) for s in statistics for row in s.values[:, 0].tolist()]


def worst(batch: BatchSummary, name: str) -> list[float]:
    """A field of the worst transitions by the joint ratio, scope after scope."""
    exemplars = batch.ratios[0].exemplars
    assert exemplars is not None
    values: list[float] = exemplars.values[..., exemplars.names.index(name)].flatten().tolist()
    return values


def counts(batch: BatchSummary) -> Tensor:
    """Histograms of the joint ratio [scopes, bins]."""
    histogram = batch.ratios[0].histogram
    assert histogram is not None
    return histogram[:, 0]


def directly(fields: Fields) -> dict[str, float]:
    """The same minibatch reduced without a buffer."""
    n = len(next(iter(fields.values())))
    quantities = transition_quantities(
        terms({str(k): x for k, x in fields.items()}, valid=torch.ones(n, dtype=torch.bool)),
        clip=clip_bounds(torch.tensor(0.2, dtype=torch.float64)),
    )
    (packed,) = reduce_quantities(quantities)
    return dict(zip(packed.names, packed.values.tolist(), strict=True))


def assert_rows(found: list[dict[str, float]], minibatches: list[Fields]) -> None:
    assert len(found) == len(minibatches)
    for row, fields in zip(found, minibatches, strict=True):
        expected = directly(fields)
        assert row.keys() == expected.keys()
        assert all(same(row[name], expected[name], 1e3) for name in expected)


class TestManyMinibatches:
    def test_all_of_them_are_reduced_together(self):
        buffer = MinibatchBuffer()
        minibatches = [minibatch(5, seed) for seed in range(70)]
        for fields in minibatches:
            put(buffer, fields)
        assert_rows(rows(drain_one(buffer)), minibatches)

    def test_a_wider_minibatch_keeps_the_narrower_ones(self):
        buffer = MinibatchBuffer()
        minibatches = [minibatch(n, n) for n in (3, 5, 2, 40, 4, 1)]
        for fields in minibatches:
            put(buffer, fields)
        assert_rows(rows(drain_one(buffer)), minibatches)

    @pytest.mark.parametrize("on_device", ["none", "some", "all"])
    def test_norms_stay_with_their_minibatches(self, on_device: str):
        buffer = MinibatchBuffer()
        for i in range(40):
            notes = put(buffer, minibatch(2 + i % 5, i), i + 1)
            if i % 3 or on_device == "all":
                in_a_tensor = on_device == "all" or (on_device == "some" and i % 2)
                notes.grad_norm, notes.norm_seen = torch.tensor(float(i)) if in_a_tensor else float(i), True
        batch = drain_one(buffer)
        seen = [notes.norm_seen for notes in batch.notes]
        assert seen == [bool(i % 3) or on_device == "all" for i in range(40)]
        norms = [norm for norm, s in zip(batch.grad_norms.tolist(), seen, strict=True) if s]
        assert norms == [i for i in range(40) if seen[i]]
        assert not any(isinstance(notes.grad_norm, Tensor) for notes in batch.notes), "the writer's thread reads them"

    def test_an_empty_minibatch_counts_nothing(self):
        buffer = MinibatchBuffer()
        put(buffer, minibatch(0, 0))
        put(buffer, minibatch(3, 1))
        assert [row["n"] for row in rows(drain_one(buffer))] == [0, 3]

    def test_only_empty_minibatches(self):
        buffer = MinibatchBuffer()
        put(buffer, minibatch(0, 0))
        batch = drain_one(buffer)
        assert rows(batch)[0]["n"] == 0
        assert max(worst(batch, "severity")) < 0, "nothing is worst of nothing"

    def test_a_mask_leaves_transitions_out(self):
        buffer = MinibatchBuffer()
        fields = minibatch(6, 1)
        keep = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
        put(buffer, fields | {"mask": keep})
        assert_rows(rows(drain_one(buffer)), [{name: x[keep] for name, x in fields.items()}])


class TestExemplars:
    def test_index_and_action_stay_with_their_transition(self):
        buffer = MinibatchBuffer()
        for number, n in enumerate((7, 30, 4), 1):
            index = torch.arange(n) + 100 * number
            put(
                buffer,
                minibatch(n, number) | {"value": index.float()},
                number,
                index=index,
                actions=index[:, None] * torch.tensor([1.0, -1.0]),
            )
        batch = drain_one(buffer)
        actions = batch.ratios[0].actions
        assert actions is not None
        positions = worst(batch, "index")
        assert worst(batch, "value") == positions
        assert actions[0, 0].tolist() == [[i, -i] for i in positions]
        assert [i // 100 - 1 for i in positions] == worst(batch, "position")
        assert len(positions) == EXEMPLARS

    def test_a_minibatch_without_actions_is_reduced_apart_from_those_with(self):
        buffer = MinibatchBuffer()
        put(buffer, minibatch(3, 1), actions=torch.ones(3, 1), index=torch.arange(3))
        put(buffer, minibatch(3, 2), 2)
        first, second = drain(buffer)
        assert first.ratios[0].actions is not None and second.ratios[0].actions is None
        exemplars = second.ratios[0].exemplars
        assert exemplars is not None and "index" not in exemplars.names

    def test_per_minibatch_each_has_separate_ones(self):
        buffer = MinibatchBuffer(per_minibatch=True)
        minibatches = [minibatch(n, n) for n in (20, 3)]
        for number, fields in enumerate(minibatches, 1):
            put(buffer, fields, number)
        batch = drain_one(buffer)
        valid = [s >= 0 for s in worst(batch, "severity")]
        positions = [p for p, v in zip(worst(batch, "position"), valid, strict=True) if v]
        assert (positions.count(0), positions.count(1)) == (16, 3)
        for i, fields in enumerate(minibatches):
            log_ratio = fields["log_ratio"]
            histogram, _ = log_ratio_histogram(log_ratio, torch.ones(len(log_ratio), dtype=torch.bool))
            assert counts(batch)[i].tolist() == histogram.tolist()

    @pytest.mark.parametrize("env_major", [False, True])
    def test_an_action_is_found_in_the_rollout_as_its_index_counts(self, env_major: bool):
        buffer = MinibatchBuffer()
        put(buffer, minibatch(5, 1), index=torch.tensor([0, 1, 5, -1, 6]))
        # 3 steps of 2 environments; an action says its step and its environment.
        actions = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(2), indexing="ij"), dim=-1)
        batch = drain_one(buffer)
        (ratio,) = (with_actions(ratio, actions, env_major=env_major) for ratio in batch.ratios)
        assert ratio.actions is not None
        by_index = dict(zip(worst(batch, "index"), map(repr, ratio.actions[0, 0].tolist()), strict=True))
        second = "[1.0, 0.0]" if env_major else "[0.0, 1.0]"
        outside = {-1: "[nan, nan]", 6: "[nan, nan]"}
        assert by_index == {0: "[0.0, 0.0]", 1: second, 5: "[2.0, 1.0]", **outside}


class TestChange:
    def test_other_fields_begin_another_batch(self):
        buffer = MinibatchBuffer()
        minibatches = [minibatch(4, 1), minibatch(4, 2, ("log_ratio", "entropy"))]
        for fields in minibatches:
            put(buffer, fields)
        for batch, fields in zip(drain(buffer), minibatches, strict=True):
            assert_rows(rows(batch), [fields])

    def test_fields_of_another_order_are_not_mixed_up(self):
        buffer = MinibatchBuffer()
        first = minibatch(4, 1)
        second = dict(reversed(minibatch(4, 2).items()))
        put(buffer, first)
        put(buffer, second)
        assert_rows(rows(*drain(buffer)), [first, second])

    def test_float64_is_not_squeezed_into_float32(self):
        buffer = MinibatchBuffer()
        wide = minibatch(4, 1, dtype=torch.float64)
        put(buffer, minibatch(4, 0))
        put(buffer, wide)
        assert_rows(rows(drain(buffer)[1]), [wide])

    def test_a_minibatch_without_a_clip_range_is_reduced_apart(self):
        buffer = MinibatchBuffer()
        put(buffer, minibatch(4, 1))
        put(buffer, minibatch(4, 2), clip_range=None)
        first, second = drain(buffer)
        assert "clip_low_count" in first.ratios[0].statistics.names
        assert "clip_low_count" not in second.ratios[0].statistics.names

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_types_are_kept_exactly(self, dtype: torch.dtype):
        buffer = MinibatchBuffer()
        fields = minibatch(6, 1, dtype=dtype)
        put(buffer, fields)
        wide = {name: x.to(torch.float64 if dtype == torch.float64 else torch.float32) for name, x in fields.items()}
        assert_rows(rows(drain_one(buffer)), [wide])

    def test_different_lengths_are_an_error_and_leave_the_buffer_unchanged(self):
        buffer = MinibatchBuffer()
        good = minibatch(4, 1)
        put(buffer, good)
        # The second one has as many numbers as a good one.
        for bad in (good | {"value": torch.zeros(3)}, good | {"value": torch.zeros(3), "advantage": torch.zeros(5)}):
            with pytest.raises(ValueError, match=r"log_ratio has 4, .*values has 3"):
                put(buffer, bad)
        with pytest.raises(ValueError, match="index has 5"):
            put(buffer, good, index=torch.arange(5))
        assert_rows(rows(drain_one(buffer)), [good])


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12),
    st.integers(1, 4000),
    st.booleans(),
    st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_several_batches_add_up_to_one(sizes: list[int], limit: int, per_minibatch: bool, seed: int):
    minibatches = [minibatch(n, seed + i) for i, n in enumerate(sizes)]
    whole = MinibatchBuffer(per_minibatch=per_minibatch)
    cut = MinibatchBuffer(limit_bytes=limit, per_minibatch=per_minibatch)
    for number, fields in enumerate(minibatches, 1):
        put(whole, fields, number)
        put(cut, fields, number)
    batches, one = drain(cut), drain_one(whole)
    assert_rows(rows(*batches), minibatches)
    assert [n.minibatch for batch in batches for n in batch.notes] == [n.minibatch for n in one.notes]
    statistics = [c for c in columns("minibatches") if c.name in one.ratios[0].statistics.names]
    merged, expected = merge(statistics, rows(*batches)), merge(statistics, rows(one))
    assert all(same(merged[name], expected[name], 1e3) for name in merged)
    if not per_minibatch:
        assert torch.stack([counts(batch) for batch in batches]).sum(dim=0).tolist() == counts(one).tolist()


def test_what_would_take_more_than_the_limit_is_reduced_early():
    limit = 3 * 5 * len(FIELDS) * 4  # bytes of three minibatches of five transitions
    buffer = MinibatchBuffer(limit_bytes=limit)
    for i in range(7):
        put(buffer, minibatch(5, i))
    put(buffer, minibatch(16, 7))  # larger than the limit, and alone
    assert [len(batch.notes) for batch in drain(buffer)] == [3, 3, 1, 1]


def test_no_tensor_is_kept_or_changed():
    buffer = MinibatchBuffer()
    fields = {name: x.requires_grad_() for name, x in minibatch(4, 1).items()}
    copies = {name: x.detach().clone() for name, x in fields.items()}
    with torch.no_grad():
        put(buffer, fields)
        for x in fields.values():
            x.fill_(1e9)
    assert_rows(rows(drain_one(buffer)), [copies])
