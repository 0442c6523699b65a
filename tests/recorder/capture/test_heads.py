"""Action heads: what a minibatch is given of them, and the rows that become of it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper_recorder import MemorySink, Recorder
from esper_recorder.contract.histogram import log_ratio_bin_count
from esper_recorder.contract.merge import merge
from esper_recorder.contract.metrics import derive_head
from esper_recorder.contract.tables import Reducer, columns
from esper_recorder.reductions.loss_statistics import clip_bounds, head_quantities, head_terms
from esper_recorder.reductions.statistics import Statistics, reduce_quantities
from tests.recorder.reductions.arrays import finite, rows_of_numbers, same, total

T = torch.tensor


def recorded(root: Path, *minibatches: dict[str, Any], level: str = "normal") -> MemorySink:
    sink = MemorySink()
    with Recorder(root, sink=sink, rules=None, level=level) as rec:
        for minibatch in minibatches:
            rec.minibatch(**minibatch)
        rec.end_update()
    return sink


def by_head(sink: MemorySink) -> dict[str, dict[str, Any]]:
    return {row["head"]: row for row in sink.rows("heads")}


class TestTwoHeadsByHand:
    """Four transitions, the last one padding. `op` always mattered; `slot` where the mask says so.

    op:   ratio 1, 1.5, 0.5; entropy 0.2, 0.4, 0.6 of at most 0.8
    slot: ratio 2 at the first, masked out at the second, 1 at the third, where it had no choice
    """

    @pytest.fixture(scope="class")
    @staticmethod
    def sink(tmp_path_factory: pytest.TempPathFactory) -> MemorySink:
        return recorded(
            tmp_path_factory.mktemp("runs"),
            {
                "log_ratio": torch.zeros(4, dtype=torch.float64),
                "advantages": T([1.0, 2.0, -1.0, 5.0], dtype=torch.float64),
                "mask": T([1, 1, 1, 0]),
                "clip_range": 0.2,
                "index": torch.arange(4) + 10,
                "heads": {
                    "op": {
                        "new_log_probs": torch.log(T([1.0, 1.5, 0.5, 9.0], dtype=torch.float64)),
                        "old_log_probs": torch.zeros(4, dtype=torch.float64),
                        "entropy": T([0.2, 0.4, 0.6, math.nan], dtype=torch.float64),
                        "entropy_max": 0.8,
                    },
                    "slot": {
                        "log_ratio": torch.log(T([2.0, 7.0, 1.0, 1.0], dtype=torch.float64)),
                        "entropy": T([0.3, 0.3, 0.0, 0.3], dtype=torch.float64),
                        "entropy_max": T([0.6, 0.6, 0.0, 0.6], dtype=torch.float64),
                        "mask": T([True, False, True, True]),
                    },
                },
            },
        )

    def test_what_was_counted(self, sink: MemorySink):
        op, slot = by_head(sink)["op"], by_head(sink)["slot"]
        assert (op["n"], op["transition_n"], op["learnable_count"], op["learnable_fraction"]) == (3, 3, 3, 1.0)
        assert (slot["n"], slot["transition_n"], slot["learnable_count"]) == (2, 3, 1)
        assert slot["learnable_fraction"] == 1 / 3
        assert (op["clip_low_count"], op["clip_high_count"], op["clip_fraction"]) == (1, 1, 2 / 3)
        # 0.5 with an advantage of -1, and 1.5 with one of 2.
        assert (op["clip_low_active_count"], op["clip_high_active_count"]) == (1, 1)
        assert (slot["clip_low_count"], slot["clip_high_count"], slot["clip_fraction"]) == (0, 1, 0.5)
        assert op["entropy_nan"] == slot["entropy_nan"] == op["log_ratio_nan"] == 0

    def test_ratios_and_divergences(self, sink: MemorySink):
        op, slot = by_head(sink)["op"], by_head(sink)["slot"]
        assert (op["ratio_min"], op["ratio_max"]) == (pytest.approx(0.5), pytest.approx(1.5))
        assert (slot["ratio_min"], slot["ratio_max"]) == (pytest.approx(1.0), pytest.approx(2.0))
        assert op["ratio_mean"] == pytest.approx(1.0)
        assert op["ratio_std"] == pytest.approx(math.sqrt((0.25 + 0.25) / 3))
        assert op["approx_kl_k1"] == pytest.approx(-(math.log(1.5) + math.log(0.5)) / 3)
        assert slot["approx_kl_k3"] == pytest.approx((1 - math.log(2)) / 2)

    def test_entropies(self, sink: MemorySink):
        op, slot = by_head(sink)["op"], by_head(sink)["slot"]
        assert op["entropy"] == pytest.approx((0.2 + 0.4 + 0.6) / 3)
        assert op["entropy_normalized"] == op["entropy_normalized_all"] == pytest.approx(0.4 / 0.8)
        # One choice, with half of the entropy there could be; over all three transitions it is a third of that.
        assert (slot["entropy_normalized_n"], slot["entropy_normalized"]) == (1, pytest.approx(0.5))
        assert slot["entropy_normalized_all"] == pytest.approx(0.5 / 3)

    def test_each_has_its_histogram_and_its_worst_transitions(self, sink: MemorySink):
        histograms = {row["head"]: row for row in sink.rows("ratio_histograms")}
        assert {head: sum(row["counts"]) for head, row in histograms.items()} == {"": 3, "op": 3, "slot": 2}
        assert histograms["op"]["counts"][log_ratio_bin_count() // 2] == 1, "one ratio of exactly 1"
        worst = {head: [r for r in sink.rows("ratio_exemplars") if r["head"] == head] for head in histograms}
        assert [(r["place"], r["index"]) for r in worst["op"]] == [(1, 12), (2, 11), (3, 10)]
        assert worst["op"][0]["log_ratio"] == worst["op"][0]["new_log_prob"] == pytest.approx(math.log(0.5))
        assert (worst["op"][0]["advantage"], worst["op"][0]["old_log_prob"]) == (-1.0, 0.0)
        assert [(r["index"], r["new_log_prob"]) for r in worst["slot"]] == [(10, None), (12, None)]
        assert [r["log_ratio"] for r in worst[""]] == [0.0, 0.0, 0.0]


def test_at_debug_each_minibatch_has_the_heads_histograms_and_exemplars(tmp_path: Path):
    minibatch = {"log_ratio": torch.zeros(3), "heads": {"op": {"log_ratio": T([0.1, 0.2, 0.3])}}}
    sink = recorded(tmp_path, minibatch, minibatch, level="debug")
    found = [(row["minibatch"], row["head"]) for row in sink.rows("ratio_histograms")]
    assert sorted(found) == [(1, ""), (1, "op"), (2, ""), (2, "op")]
    op = [row for row in sink.rows("ratio_exemplars") if row["head"] == "op"]
    assert [row["place"] for row in op if row["scope"] == "update"] == [1, 2, 3, 4, 5, 6]
    assert [(row["minibatch"], row["place"]) for row in op if row["scope"] == "minibatch"] == [
        (1, 1),
        (1, 2),
        (1, 3),
        (2, 1),
        (2, 2),
        (2, 3),
    ]


def test_its_row_says_of_which_run_and_update_it_is(tmp_path: Path):
    sink = recorded(tmp_path, {"log_ratio": torch.zeros(2), "heads": {"op": {"log_ratio": torch.zeros(2)}}})
    (row,), (update,) = sink.rows("heads"), sink.rows("ppo_updates")
    keys = ("run_id", "attempt", "rank", "update", "time", "elapsed_s")
    assert {key: row[key] for key in keys} == {key: update[key] for key in keys}
    assert row["update"] == 1


def test_what_a_head_is_not_given_is_null(tmp_path: Path):
    x = torch.zeros(3)
    sink = recorded(tmp_path, {"log_ratio": x, "heads": {"ratio": {"log_ratio": x}, "entropy": {"entropy": x + 0.5}}})
    ratio, entropy = by_head(sink)["ratio"], by_head(sink)["entropy"]
    for name in ("entropy_sum", "entropy", "learnable_count", "learnable_fraction", "clip_fraction", "entropy_nan"):
        assert ratio[name] is None, name
    for name in ("ratio_sum", "ratio_max", "log_ratio_nan", "approx_kl_k3", "entropy_normalized"):
        assert entropy[name] is None, name
    assert (ratio["ratio_mean"], entropy["entropy"], entropy["n"]) == (1.0, 0.5, 3)
    assert {row["head"] for row in sink.rows("ratio_histograms")} == {"", "ratio"}


def test_a_head_that_never_mattered_counts_nothing_and_has_no_extremes(tmp_path: Path):
    head = {"log_ratio": T([1.0, 2.0]), "mask": T([0, 0]), "entropy": T([1.0, 1.0]), "entropy_max": 1.0}
    row = by_head(recorded(tmp_path, {"log_ratio": torch.zeros(2), "heads": {"op": head}}))["op"]
    assert (row["n"], row["transition_n"], row["learnable_fraction"]) == (0, 2, 0.0)
    assert (row["ratio_min"], row["ratio_mean"], row["entropy"], row["entropy_normalized"]) == (None,) * 4
    assert row["entropy_normalized_all"] == 0.0, "it was hardly ever asked: never"


def test_minibatches_with_other_heads_are_reduced_apart_and_merged(tmp_path: Path):
    def of(**heads: Any) -> dict[str, Any]:
        return {"log_ratio": torch.zeros(2), "heads": heads}

    sink = recorded(
        tmp_path,
        of(op={"log_ratio": T([0.0, math.log(2.0)])}),
        of(op={"log_ratio": T([0.0, math.log(4.0)])}, slot={"entropy": T([0.5, 0.5])}),
        of(op={"log_ratio": T([0.0, 0.0])}),
    )
    assert by_head(sink)["op"]["n"] == 6 and by_head(sink)["slot"]["n"] == 2
    assert by_head(sink)["op"]["ratio_max"] == pytest.approx(4.0)
    assert by_head(sink)["op"]["ratio_sum"] == pytest.approx(1 + 2 + 1 + 4 + 1 + 1)


@pytest.mark.parametrize(
    ("heads", "words"),
    [
        ({"op": {"log_ration": torch.zeros(3)}}, "head 'op' has no 'log_ration'. Did you mean log_ratio"),
        ({"op": {"zzz": torch.zeros(3)}}, "head 'op' has no 'zzz'. The fields are: log_ratio, new_log_probs"),
        ({"op": {"log_ratio": torch.zeros(4)}}, "log_ratio has 3, log_ratio of head 'op' has 4"),
        ({"op": {"new_log_probs": torch.zeros(3)}}, "head 'op' needs both of new_log_probs and old_log_probs"),
        ({"op": {"mask": torch.zeros(3)}}, "head 'op' needs log_ratio, or new_log_probs and old_log_probs, or entropy"),
        ({"op": {"log_ratio": [1.0, 2.0, 3.0]}}, "log_ratio of head 'op' is a list; give a tensor"),
        ({"op": torch.zeros(3)}, "head 'op' is a Tensor; give a mapping with log_ratio"),
        ({"": {"log_ratio": torch.zeros(3)}}, "a head is called ''"),
        ([torch.zeros(3)], "heads is a list; give a mapping of head name to its tensors"),
        ({"op": {"log_ratio": torch.zeros(3, device="meta")}}, "head 'op' is on meta; move them to one"),
    ],
)
def test_an_invalid_head_is_a_bad_call_and_costs_that_minibatch_alone(tmp_path: Path, heads: Any, words: str):
    sink = recorded(
        tmp_path,
        {"log_ratio": torch.zeros(3)},
        {"log_ratio": torch.zeros(3), "heads": heads},
        {"log_ratio": torch.zeros(3)},
    )
    assert len(sink.rows("minibatches")) == 2
    (gap,) = sink.rows("gaps")
    assert gap["reason"] == "bad_call" and words in gap["detail"]


FIELDS = ("log_ratio", "advantage", "entropy", "entropy_max", "mask")


def reduced(fields: Mapping[str, Tensor], valid: Tensor) -> Statistics:
    own = {name: x[None] for name, x in fields.items() if name != "advantage"}
    t = head_terms(own, valid=valid[None], advantage=fields["advantage"][None])
    clip = torch.full((1, 1), 0.2, dtype=torch.float64)
    (statistics,) = reduce_quantities(head_quantities(t, every=valid[None], has_mask=True, clip=clip_bounds(clip)))
    return statistics


def named(packed: Statistics) -> list[dict[str, float]]:
    return [dict(zip(packed.names, row, strict=True)) for row in packed.values[0].tolist()]


@given(rows_of_numbers(FIELDS))
@settings(max_examples=60)
def test_counts_and_sums_are_those_of_the_transitions_that_mattered(given_rows: tuple[dict[str, Tensor], Tensor]):
    fields, valid = given_rows
    fields["entropy_max"] = torch.nan_to_num(fields["entropy_max"]).clamp(0, 3)
    fields["mask"] = (fields["mask"] > 0).float()
    for row, got in enumerate(named(reduced(fields, valid))):
        keep = valid[row] & (fields["mask"][row] != 0)
        x = {name: f[row][keep] for name, f in fields.items()}
        assert (got["n"], got["transition_n"]) == (int(keep.sum()), int(valid[row].sum()))
        assert got["learnable_count"] == int((x["entropy_max"] > 0).sum())
        ratio = torch.exp(x["log_ratio"])
        assert got["ratio_nonfinite"] == len(ratio) - len(finite(ratio.tolist()))
        assert same(got["ratio_sum"], total(ratio.tolist()), total(ratio.tolist()))
        outside = (ratio - 1).abs() > 0.2
        assert got["clip_high_count"] == int((outside & (ratio > 1)).sum())
        assert got["clip_low_active_count"] == int((outside & (ratio < 1) & (x["advantage"] < 0)).sum())
        entropy = x["entropy"].tolist()
        assert same(got["entropy_sum"], total(entropy), total(map(abs, entropy)))
        choice = (x["entropy_max"] > 0) & torch.isfinite(x["entropy"])
        share = (x["entropy"][choice] / x["entropy_max"][choice]).tolist()
        assert got["entropy_normalized_n"] == len(share)
        assert same(got["entropy_normalized_sum"], total(share), total(map(abs, share)))


@given(rows_of_numbers(FIELDS), st.integers(0, 12))
@settings(max_examples=40)
def test_two_groups_merged_by_the_contract_are_the_whole(given_rows: tuple[dict[str, Tensor], Tensor], cut: int):
    fields, valid = given_rows
    parts = [
        named(reduced({name: x[:, part] for name, x in fields.items()}, valid[:, part]))
        for part in (slice(0, cut), slice(cut, None))
    ]
    size = 12 * max((abs(v) for x in fields.values() for v in finite(x.flatten().tolist())), default=0.0)
    for first, second, whole in zip(*parts, named(reduced(fields, valid)), strict=True):
        merged = merge([c for c in columns("heads") if c.name in whole], [first, second])
        assert all(same(merged[name], whole[name], size) for name in whole)


def test_every_derived_column_is_computed():
    declared = {c.name for c in columns("heads") if c.reducer is Reducer.DERIVED}
    assert set(derive_head({})) == declared
