"""The ring of minibatches: what goes in comes out, however it grew and however many pieces it was reduced in."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper_recorder.arguments import FieldKey
from esper_recorder.capture.minibatch_buffer import MinibatchNotes, MinibatchRing, Piece
from esper_recorder.contract.merge import merge
from esper_recorder.contract.tables import columns
from esper_recorder.reductions.minibatches import with_actions
from esper_recorder.reductions.ratios import EXEMPLARS, log_ratio_histogram
from esper_recorder.reductions.transitions import terms, transition_statistics
from tests.recorder.reductions.arrays import same

Fields = dict[FieldKey, Tensor]

FIELDS = ("log_ratio", "advantage", "value")


def minibatch(n: int, seed: int, names: tuple[str, ...] = FIELDS, dtype: torch.dtype = torch.float32) -> Fields:
    random = np.random.default_rng(seed)
    return {name: torch.from_numpy(random.normal(size=n)).to(dtype) for name in names}


def put(ring: MinibatchRing, fields: Fields, number: int = 1, **more: Any) -> list[Piece]:
    """Append as the recorder does: what does not fit is reduced first."""
    n = len(next(iter(fields.values())))
    notes = MinibatchNotes(number, clip_range=more.pop("clip_range", 0.2))
    pieces = []
    if not ring.fits(fields, n, notes, **more):
        piece = ring.reduce()
        assert piece is not None
        pieces.append(piece)
    ring.append(fields, n, notes, **more)
    return pieces


def rest(ring: MinibatchRing) -> Piece:
    piece = ring.reduce()
    assert piece is not None and len(ring) == 0
    return piece


def rows(piece: Piece) -> list[dict[str, float]]:
    joint = piece.reduced[0].statistics
    return [dict(zip(joint.names, row, strict=True)) for row in joint.values[:, 0].tolist()]


def worst(piece: Piece, name: str) -> list[float]:
    """A field of the worst transitions by the joint ratio, scope after scope."""
    exemplars = piece.reduced[0].exemplars
    assert exemplars is not None
    values: list[float] = exemplars.values[..., exemplars.names.index(name)].flatten().tolist()
    return values


def counts(piece: Piece) -> Tensor:
    """Histograms of the joint ratio [scopes, bins]."""
    histogram = piece.reduced[0].histogram
    assert histogram is not None
    return histogram[:, 0]


def directly(fields: Fields) -> dict[str, float]:
    """The same minibatch reduced on its own, without a ring."""
    n = len(next(iter(fields.values())))
    packed = transition_statistics(
        terms({str(k): x for k, x in fields.items()}, valid=torch.ones(n, dtype=torch.bool)),
        clip_range=torch.tensor(0.2, dtype=torch.float64),
    )
    return dict(zip(packed.names, packed.values.tolist(), strict=True))


def assert_rows(found: list[dict[str, float]], minibatches: list[Fields]) -> None:
    assert len(found) == len(minibatches)
    for row, fields in zip(found, minibatches, strict=True):
        expected = directly(fields)
        assert row.keys() == expected.keys()
        assert all(same(row[name], expected[name], 1e3) for name in expected)


class TestGrowth:
    def test_more_minibatches_than_rows_keep_what_is_there(self):
        ring = MinibatchRing()
        given_ = [minibatch(5, seed) for seed in range(70)]  # it begins with 32 rows
        for fields in given_:
            assert put(ring, fields) == []
        assert_rows(rows(rest(ring)), given_)

    def test_a_wider_minibatch_keeps_the_narrower_ones(self):
        ring = MinibatchRing()
        given_ = [minibatch(n, n) for n in (3, 5, 2, 40, 4, 1)]
        for fields in given_:
            assert put(ring, fields) == []
        assert_rows(rows(rest(ring)), given_)

    def test_norms_stay_with_their_minibatches_while_it_grows(self):
        ring = MinibatchRing()
        for i in range(40):
            put(ring, minibatch(2 + i % 5, i), i + 1)
            if i % 3:
                ring.set_grad_norm(torch.tensor(float(i)) if i % 2 else float(i))
        piece = rest(ring)
        seen = [notes.norm_seen for notes in piece.notes]
        assert seen == [bool(i % 3) for i in range(40)]
        assert [norm for norm, s in zip(piece.grad_norms.tolist(), seen, strict=True) if s] == [
            i for i in range(40) if i % 3
        ]

    def test_an_empty_minibatch_counts_nothing(self):
        ring = MinibatchRing()
        put(ring, minibatch(0, 0))
        put(ring, minibatch(3, 1))
        assert [row["n"] for row in rows(rest(ring))] == [0, 3]

    def test_only_empty_minibatches(self):
        ring = MinibatchRing()
        put(ring, minibatch(0, 0))
        piece = rest(ring)
        assert rows(piece)[0]["n"] == 0
        assert max(worst(piece, "severity")) < 0, "nothing is worst of nothing"


class TestPadding:
    def test_nothing_of_an_earlier_larger_minibatch_shows(self):
        ring = MinibatchRing()
        loud: Fields = {name: torch.full((9,), 1e6) for name in FIELDS}
        put(ring, loud)
        rest(ring)
        given_ = [minibatch(4, 1), minibatch(9, 2), minibatch(2, 3)]
        for fields in given_:
            put(ring, fields)
        piece = rest(ring)
        assert_rows(rows(piece), given_)
        assert max(map(abs, worst(piece, "log_ratio"))) < 1e5

    def test_a_mask_leaves_transitions_out(self):
        ring = MinibatchRing()
        fields = minibatch(6, 1)
        keep = torch.tensor([1, 0, 1, 1, 0, 1], dtype=torch.bool)
        put(ring, fields | {"mask": keep})
        assert_rows(rows(rest(ring)), [{name: x[keep] for name, x in fields.items()}])


class TestExemplars:
    def test_index_and_action_stay_with_their_transition(self):
        ring = MinibatchRing()
        for number, n in enumerate((7, 30, 4), 1):  # grows twice on the way
            index = torch.arange(n) + 100 * number
            fields = minibatch(n, number)
            put(
                ring,
                fields | {"value": index.float()},
                number,
                index=index,
                actions=index[:, None] * torch.tensor([1.0, -1.0]),
            )
        piece = rest(ring)
        actions = piece.reduced[0].actions
        assert actions is not None
        found = worst(piece, "index")
        assert worst(piece, "value") == found
        assert actions[0, 0].tolist() == [[i, -i] for i in found]
        assert [i // 100 - 1 for i in found] == worst(piece, "position")
        assert len(found) == EXEMPLARS

    def test_the_actions_of_an_earlier_update_do_not_come_back(self):
        ring = MinibatchRing()
        put(ring, minibatch(3, 1), index=torch.arange(3), actions=torch.ones(3, 1))
        assert rest(ring).reduced[0].actions is not None
        put(ring, minibatch(3, 2))
        piece = rest(ring)
        exemplars = piece.reduced[0].exemplars
        assert exemplars is not None and "index" not in exemplars.names
        assert piece.reduced[0].actions is None

    def test_a_minibatch_without_actions_is_reduced_apart_from_those_with(self):
        ring = MinibatchRing()
        put(ring, minibatch(3, 1), actions=torch.ones(3, 1))
        (first,) = put(ring, minibatch(3, 2), 2)
        assert first.reduced[0].actions is not None and rest(ring).reduced[0].actions is None

    def test_per_minibatch_each_has_its_own(self):
        ring = MinibatchRing(per_minibatch=True)
        given_ = [minibatch(n, n) for n in (20, 3)]
        for number, fields in enumerate(given_, 1):
            put(ring, fields, number)
        piece = rest(ring)
        valid = [s >= 0 for s in worst(piece, "severity")]
        positions = [p for p, v in zip(worst(piece, "position"), valid, strict=True) if v]
        assert (positions.count(0), positions.count(1)) == (16, 3)
        for i, fields in enumerate(given_):
            own, _ = log_ratio_histogram(fields["log_ratio"], torch.ones(len(fields["log_ratio"]), dtype=torch.bool))
            assert counts(piece)[i].tolist() == own.tolist()

    @pytest.mark.parametrize("order", ["time_major", "env_major"])
    def test_an_action_is_looked_up_in_the_rollout_as_its_index_counts(self, order: str):
        ring = MinibatchRing()
        put(ring, minibatch(5, 1), index=torch.tensor([0, 1, 5, -1, 6]))
        # 3 steps of 2 environments; an action says its step and its environment.
        actions = torch.stack(torch.meshgrid(torch.arange(3), torch.arange(2), indexing="ij"), dim=-1)
        piece = rest(ring)
        (reduced,) = (with_actions(one, actions, order) for one in piece.reduced)
        assert reduced.actions is not None
        by_index = dict(zip(worst(piece, "index"), map(repr, reduced.actions[0, 0].tolist()), strict=True))
        second = "[0.0, 1.0]" if order == "time_major" else "[1.0, 0.0]"
        unknown = {-1: "[nan, nan]", 6: "[nan, nan]"}
        assert by_index == {0: "[0.0, 0.0]", 1: second, 5: "[2.0, 1.0]", **unknown}


class TestChange:
    def test_other_fields_begin_another_piece(self):
        ring = MinibatchRing()
        first, second = minibatch(4, 1), minibatch(4, 2, ("log_ratio", "entropy"))
        put(ring, first)
        (piece,) = put(ring, second)
        assert_rows(rows(piece), [first])
        assert_rows(rows(rest(ring)), [second])

    def test_the_order_of_the_fields_is_theirs_too(self):
        ring = MinibatchRing()
        first = minibatch(4, 1)
        second = dict(reversed(minibatch(4, 2).items()))
        pieces = [*put(ring, first), *put(ring, second), rest(ring)]
        assert_rows([row for piece in pieces for row in rows(piece)], [first, second])

    def test_float64_is_not_squeezed_into_a_float32_buffer(self):
        ring = MinibatchRing()
        wide = minibatch(4, 1, dtype=torch.float64)
        put(ring, minibatch(4, 0))
        assert len(put(ring, wide)) == 1
        assert_rows(rows(rest(ring)), [wide])

    def test_a_minibatch_without_a_clip_range_is_reduced_apart(self):
        ring = MinibatchRing()
        put(ring, minibatch(4, 1))
        (first,) = put(ring, minibatch(4, 2), clip_range=None)
        assert "clip_low_count" in first.reduced[0].statistics.names
        assert "clip_low_count" not in rest(ring).reduced[0].statistics.names

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
    def test_other_types_are_kept_exactly(self, dtype: torch.dtype):
        ring = MinibatchRing()
        fields = minibatch(6, 1, dtype=dtype)
        put(ring, fields)
        wide = {name: x.to(torch.float64 if dtype == torch.float64 else torch.float32) for name, x in fields.items()}
        assert_rows(rows(rest(ring)), [wide])

    def test_different_lengths_are_an_error_and_leave_the_ring_as_it_was(self):
        ring = MinibatchRing()
        good = minibatch(4, 1)
        put(ring, good)
        for bad in (good | {"value": torch.zeros(3)}, good | {"value": torch.zeros(1, dtype=torch.float64)}):
            with pytest.raises(ValueError, match="log_ratio has 4, values has"):
                ring.append(bad, 4, MinibatchNotes(2, clip_range=0.2))
        with pytest.raises(ValueError, match="index has 5"):
            ring.append(good, 4, MinibatchNotes(2, clip_range=0.2), index=torch.arange(5))
        assert_rows(rows(rest(ring)), [good])


@given(
    st.lists(st.integers(0, 40), min_size=1, max_size=12),
    st.integers(1, 4000),
    st.booleans(),
    st.integers(0, 2**31),
)
@settings(max_examples=60)
def test_several_pieces_add_up_to_what_one_piece_says(sizes: list[int], limit: int, per_minibatch: bool, seed: int):
    given_ = [minibatch(n, seed + i) for i, n in enumerate(sizes)]
    whole, cut = (
        MinibatchRing(per_minibatch=per_minibatch),
        MinibatchRing(limit_bytes=limit, per_minibatch=per_minibatch),
    )
    pieces = []
    for number, fields in enumerate(given_, 1):
        assert put(whole, fields, number) == []
        pieces += put(cut, fields, number)
    pieces.append(rest(cut))
    one = rest(whole)
    found = [row for piece in pieces for row in rows(piece)]
    assert_rows(found, given_)
    assert [n.minibatch for piece in pieces for n in piece.notes] == [n.minibatch for n in one.notes]
    statistics = [c for c in columns("minibatches") if c.name in one.reduced[0].statistics.names]
    merged, expected = merge(statistics, found), merge(statistics, rows(one))
    assert all(same(merged[name], expected[name], 1e3) for name in merged)
    if not per_minibatch:
        assert sum(map(counts, pieces)).tolist() == counts(one).tolist()  # type: ignore[union-attr]


def test_a_small_limit_really_cuts():
    ring = MinibatchRing(limit_bytes=1)
    pieces = [piece for i in range(70) for piece in put(ring, minibatch(5, i))]
    assert len(pieces) == 2, "the first 32 rows are there from the beginning"


def test_no_tensor_is_kept_or_changed():
    ring = MinibatchRing()
    fields = {name: x.requires_grad_() for name, x in minibatch(4, 1).items()}
    copies = {name: x.detach().clone() for name, x in fields.items()}
    put(ring, fields)
    for x in fields.values():
        with torch.no_grad():
            x.fill_(1e9)
    assert_rows(rows(rest(ring)), [copies])
