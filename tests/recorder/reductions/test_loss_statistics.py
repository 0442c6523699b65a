"""Counts and sums of transitions against plain float64 arithmetic."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper_recorder.contract.merge import merge
from esper_recorder.contract.metrics import derive, derive_pooled
from esper_recorder.contract.tables import column_names, columns
from esper_recorder.reductions.loss_statistics import (
    clip_bounds,
    finite_quantiles,
    rollout_statistics,
    terms,
    transition_quantities,
)
from esper_recorder.reductions.statistics import reduce_quantities
from tests.recorder.reductions.arrays import finite, numbers, rows_of_numbers, same, total, total_sq

FIELDS = ("log_ratio", "advantage", "raw_advantage", "entropy", "entropy_max", "value", "value_target", "old_value")


def statistics(
    fields: dict[str, Tensor], mask: Tensor, clip: float | None = 0.2, value_clip: float | None = None, **options: Any
) -> list[dict[str, float]]:
    """Each row's statistics by name."""
    rows = mask.shape[0]

    def column(x: float) -> Tensor:
        return torch.full((rows,), x, dtype=torch.float64)

    quantities = transition_quantities(
        terms(fields, valid=mask),
        clip=None if clip is None else clip_bounds(column(clip)),
        value_clip_range=None if value_clip is None else column(value_clip),
        **options,
    )
    (packed,) = reduce_quantities(quantities)
    assert packed.values.dtype == torch.float64
    return [dict(zip(packed.names, row, strict=True)) for row in packed.values.tolist()]


def chosen(fields: dict[str, Tensor], mask: Tensor, row: int) -> dict[str, list[float]]:
    """The valid transitions of a row as Python numbers; a float32 value is exactly the number it stands for."""
    return {name: x[row][mask[row]].tolist() for name, x in fields.items()}


def exp(tensor: Tensor, mask: Tensor) -> list[float]:
    """Elementwise terms are computed in the trainer's own precision, so the reference takes torch's exp of it."""
    values: list[float] = torch.exp(tensor.contiguous())[mask].tolist()
    return values


@given(rows_of_numbers(FIELDS))
@settings(max_examples=150)
def test_moments_and_counts_are_those_of_the_valid_transitions(given_rows: tuple[dict[str, Tensor], Tensor]):
    fields, mask = given_rows
    for row, got in enumerate(statistics(fields, mask)):
        of = chosen(fields, mask, row)
        n = int(mask[row].sum())
        assert got["n"] == n
        for name, field in (
            ("log_ratio", "log_ratio"),
            ("advantage", "advantage"),
            ("value", "value"),
            ("return", "value_target"),
        ):
            x = of[field]
            assert got[f"{name}_nan"] == sum(map(math.isnan, x))
            assert got[f"{name}_posinf"] == x.count(math.inf)
            assert got[f"{name}_neginf"] == x.count(-math.inf)
            assert same(got[f"{name}_sum"], total(x), total(map(abs, x)))
            assert same(got[f"{name}_sum_sq"], total_sq(x))
            assert same(got[f"{name}_min"], min(numbers(x), default=math.nan))
            assert same(got[f"{name}_max"], max(numbers(x), default=math.nan))
        assert got["entropy_nan"] == sum(map(math.isnan, of["entropy"]))
        assert same(got["entropy_sum"], total(of["entropy"]), total(map(abs, of["entropy"])))
        assert got["advantage_positive_count"] == sum(x > 0 for x in of["advantage"])
        assert same(got["raw_advantage_sum"], total(of["raw_advantage"]), total(map(abs, of["raw_advantage"])))
        assert same(got["raw_advantage_sum_sq"], total_sq(of["raw_advantage"]))
        assert same(got["k1_sum"], -total(of["log_ratio"]), total(map(abs, of["log_ratio"])))
        products = [v * r for v, r in zip(of["value"], of["value_target"], strict=True)]
        assert same(got["value_return_sum"], total(products), total(map(abs, products)))


@given(rows_of_numbers(FIELDS))
@settings(max_examples=150)
def test_ratios_clips_and_losses_are_those_of_the_valid_transitions(given_rows: tuple[dict[str, Tensor], Tensor]):
    fields, mask = given_rows
    dtype = fields["log_ratio"].dtype
    # The logs of 1, 2, 3, ... valid actions.
    fields["entropy_max"] = torch.log(1 + torch.nan_to_num(fields["entropy_max"]).abs().clamp(max=5).floor())

    def rounded(x: Tensor) -> list[float]:
        values: list[float] = x.tolist()
        return values

    for row, got in enumerate(statistics(fields, mask, value_clip=0.1)):
        valid = mask[row]
        x = {name: f[row][valid] for name, f in fields.items()}
        ratio = torch.exp(x["log_ratio"])
        ratios = rounded(ratio)
        assert got["ratio_nonfinite"] == len(ratios) - len(finite(ratios))
        assert same(got["ratio_sum"], total(ratios), total(ratios))
        if dtype == torch.float32:  # the square of a float64 ratio may be more than float64 holds
            assert same(got["ratio_sum_sq"], total_sq(ratios))
        assert same(got["ratio_min"], min(numbers(ratios), default=math.nan))
        assert same(got["ratio_max"], max(numbers(ratios), default=math.nan))
        k3 = rounded((ratio - 1) - x["log_ratio"])
        assert same(got["k3_sum"], total(k3), total(map(abs, k3)))
        outside = [bool(b) for b in (ratio - 1).abs() > 0.2]
        advantage = rounded(x["advantage"])
        low = [i for i, r in enumerate(ratios) if outside[i] and r < 1]
        high = [i for i, r in enumerate(ratios) if outside[i] and r > 1]
        assert (got["clip_low_count"], got["clip_high_count"]) == (len(low), len(high))
        assert got["clip_low_active_count"] == sum(advantage[i] < 0 for i in low)
        assert got["clip_high_active_count"] == sum(advantage[i] > 0 for i in high)
        # As Stable-Baselines3 and CleanRL write it.
        loss = rounded(-torch.min(x["advantage"] * ratio, x["advantage"] * torch.clamp(ratio, 1 - 0.2, 1 + 0.2)))
        assert got["policy_loss_n"] == len(finite(loss))
        assert same(got["policy_loss_sum"], total(loss), total(map(abs, loss)))
        residual = rounded(x["value_target"] - x["value"])
        assert got["residual_n"] == len(finite(residual))
        assert same(got["residual_sum"], total(residual), total(map(abs, residual)))
        assert same(got["residual_abs_max"], max(numbers(map(abs, residual)), default=math.nan))
        plain = (x["value_target"] - x["value"]) ** 2
        moved = x["old_value"] + torch.clamp(x["value"] - x["old_value"], -0.1, 0.1)
        clipped = rounded(torch.max(plain, (x["value_target"] - moved) ** 2))
        assert got["value_loss_n"] == len(finite(clipped))
        assert same(got["value_loss_sum"], total(clipped), total(map(abs, clipped)))
        choice = (x["entropy_max"] > 0) & torch.isfinite(x["entropy"])
        normalized = rounded((x["entropy"] / x["entropy_max"])[choice])
        assert got["entropy_normalized_n"] == len(normalized)
        assert same(got["entropy_normalized_sum"], total(normalized), total(map(abs, normalized)))


@given(rows_of_numbers(FIELDS), st.integers(1, 5))
def test_padding_changes_nothing_whatever_it_holds(given_rows: tuple[dict[str, Tensor], Tensor], extra: int):
    fields, mask = given_rows
    junk = torch.tensor([math.nan, math.inf, -math.inf, 1e30, -7.0])[:extra]
    padded = {n: torch.cat([x, junk.to(x.dtype).expand(x.shape[0], extra)], dim=1) for n, x in fields.items()}
    longer = torch.cat([mask, torch.zeros(mask.shape[0], extra, dtype=torch.bool)], dim=1)
    for ours, reference in zip(statistics(padded, longer), statistics(fields, mask), strict=True):
        assert all(same(ours[name], reference[name], 1e30) for name in reference)
        exact = [
            name for name in reference if name.endswith(("_nan", "_posinf", "_neginf", "_count", "_n", "_min", "_max"))
        ]
        assert [repr(ours[name]) for name in exact] == [repr(reference[name]) for name in exact]


def test_every_statistic_is_a_column_of_minibatches_and_of_updates():
    fields = {name: torch.ones(1, 2) for name in FIELDS}
    (got,) = statistics(fields, torch.ones(1, 2, dtype=torch.bool))
    assert got.keys() <= set(column_names("minibatches")) & set(column_names("ppo_updates"))


def test_what_is_not_given_is_not_there():
    (got,) = statistics({"log_ratio": torch.zeros(1, 2)}, torch.ones(1, 2, dtype=torch.bool), clip=None)
    assert not [
        n for n in got if n.startswith(("clip", "policy", "entropy", "advantage", "value", "return", "residual"))
    ]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_types_are_added_up_without_overflow(dtype: torch.dtype):
    # 40,000 squared is far beyond the 65,504 float16 ends at, and so is the sum of four of them.
    value = torch.full((1, 4), 40_000.0, dtype=dtype)
    held = float(value[0, 0])
    mask = torch.ones(1, 4, dtype=torch.bool)
    (got,) = statistics(
        {"log_ratio": torch.zeros(1, 4, dtype=dtype), "value": value, "value_target": -value, "advantage": value}, mask
    )
    assert got["value_sum"] == 4 * held
    assert got["value_sum_sq"] == 4 * held * held
    assert got["residual_sum"] == -8 * held
    assert got["value_loss_sum"] == 4 * (2 * held) ** 2
    assert got["return_posinf"] == got["value_posinf"] == 0


def test_half_log_ratios_are_exponentiated_in_float32():
    # exp(12) = 162,755 is infinite in float16.
    (got,) = statistics(
        {"log_ratio": torch.full((1, 1), 12.0, dtype=torch.float16)}, torch.ones(1, 1, dtype=torch.bool)
    )
    assert got["ratio_nonfinite"] == 0
    assert got["ratio_max"] == pytest.approx(math.exp(12), rel=1e-6)


def test_log_probabilities_are_subtracted_new_minus_old():
    fields = {"new_log_prob": torch.tensor([[-1.0, -2.0]]), "old_log_prob": torch.tensor([[-1.5, -1.0]])}
    (got,) = statistics(fields, torch.ones(1, 2, dtype=torch.bool))
    assert (got["log_ratio_min"], got["log_ratio_max"]) == (-1.0, 0.5)


def test_neither_log_ratio_nor_both_log_probabilities_is_an_error():
    with pytest.raises(ValueError, match="needs log_ratio, or new_log_probs and old_log_probs"):
        terms({"new_log_prob": torch.zeros(1, 1)}, valid=torch.ones(1, 1, dtype=torch.bool))


class TestNormalisedAdvantages:
    def of(self, raw: list[float], mask: list[bool] | None = None, *, normalize: bool = True) -> list[float]:
        valid = torch.tensor([mask or [True] * len(raw)])
        t = terms(
            {"log_ratio": torch.zeros(1, len(raw)), "raw_advantage": torch.tensor([raw])},
            valid=valid,
            normalize=torch.tensor([normalize]),
        )
        assert t.advantage is not None
        values: list[float] = t.advantage[0].tolist()
        return values

    def test_mean_zero_and_unbiased_deviation_one(self):
        # 1, 2, 3: mean 2, squared distances 1 + 0 + 1 over n - 1 = 2: deviation 1.
        assert self.of([1.0, 2.0, 3.0]) == pytest.approx([-1.0, 0.0, 1.0], abs=1e-7)

    def test_padding_takes_no_part(self):
        assert self.of([1.0, 1e9, 2.0, 3.0], [True, False, True, True])[::3] == pytest.approx([-1.0, 1.0], abs=1e-7)

    def test_a_row_that_is_not_normalised_stays_as_it_is(self):
        assert self.of([1.0, 2.0], normalize=False) == [1.0, 2.0]

    def test_a_single_advantage_becomes_nan_as_torch_makes_it(self):
        assert math.isnan(self.of([5.0])[0])

    @given(st.lists(st.floats(-100, 100, width=32), min_size=2, max_size=40))
    def test_it_is_what_the_trainers_compute(self, raw: list[float]):
        x = torch.tensor(raw)
        theirs = (x - x.mean()) / (x.std() + 1e-8)
        if x.std() < 1e-3:
            return  # rounding is all that is left to normalise
        assert torch.allclose(torch.tensor(self.of(raw)), theirs, rtol=1e-3, atol=1e-4)


class TestClipRanges:
    def test_a_row_without_one_counts_no_clip_and_no_loss(self):
        fields = {"log_ratio": torch.full((2, 1), 1.0), "advantage": torch.ones(2, 1)}
        quantities = transition_quantities(
            terms(fields, valid=torch.ones(2, 1, dtype=torch.bool)),
            clip=clip_bounds(torch.tensor([0.2, math.nan], dtype=torch.float64)),
        )
        (packed,) = reduce_quantities(quantities)
        rows = [dict(zip(packed.names, row, strict=True)) for row in packed.values.tolist()]
        assert [r["clip_high_count"] for r in rows] == [1, 0]
        assert [r["policy_loss_n"] for r in rows] == [1, 0]

    def test_a_ratio_exactly_at_the_edge_is_not_clipped(self):
        # In float64, 1.25 - 1 = 0.25 exactly.
        fields = {"log_ratio": torch.log(torch.tensor([[1.25, 1.2500001, 0.75]], dtype=torch.float64))}
        (got,) = statistics(fields, torch.ones(1, 3, dtype=torch.bool), clip=0.25)
        ratios = torch.exp(fields["log_ratio"])
        assert got["clip_high_count"] == int(((ratios - 1) > 0.25).sum())

    def test_value_clipping_by_sb3_takes_the_clipped_error_alone(self):
        # value 2, old value 1, target 2, clip 0.5: clipped prediction 1.5, error 0.25; unclipped error 0.
        fields = {
            "log_ratio": torch.zeros(1, 1),
            "value": torch.tensor([[2.0]]),
            "value_target": torch.tensor([[2.0]]),
            "old_value": torch.tensor([[1.0]]),
        }
        mask = torch.ones(1, 1, dtype=torch.bool)
        assert statistics(fields, mask, value_clip=0.5)[0]["value_loss_sum"] == 0.25
        fields["value"] = torch.tensor([[1.4]])  # within the clip: both are 0.36
        fields["value_target"] = torch.tensor([[2.0]])
        (sb3,) = statistics(fields, mask, value_clip=0.5, pessimistic_value_clip=False)
        assert sb3["value_loss_sum"] == pytest.approx(0.36, rel=1e-6)
        fields["value"] = torch.tensor([[0.0]])  # clipped 0.5, error 2.25; unclipped error 4
        (sb3,) = statistics(fields, mask, value_clip=0.5, pessimistic_value_clip=False)
        (ppo2,) = statistics(fields, mask, value_clip=0.5)
        assert (sb3["value_loss_sum"], ppo2["value_loss_sum"]) == (2.25, 4.0)


class TestRollouts:
    def test_sums_by_hand(self):
        packed = rollout_statistics(
            {
                "value": torch.tensor([1.0, 2.0, math.nan]),
                "return": torch.tensor([2.0, 4.0, 6.0]),
                "advantage": torch.tensor([1.0, -2.0, math.inf]),
                "reward": torch.tensor([0.5, 0.5, -1.0]),
            }
        )
        got = dict(zip(packed.names, packed.values.tolist(), strict=True))
        assert set(got) <= set(column_names("ppo_updates"))
        quantiles = {name: got.pop(name) for name in list(got) if name[-4:-2] == "_q"}
        # Of 2, 4, 6: a quarter of the way is half-way from 2 to 4. Of the advantages 1 and -2, residuals 1 and 2.
        assert [quantiles[f"rollout_return_q{q}"] for q in ("05", "25", "50", "75", "95")] == [2.2, 3, 4, 5, 5.8]
        assert [quantiles[f"rollout_{x}_q50"] for x in ("value", "advantage", "residual")] == [1.5, -0.5, 1.5]
        assert len(quantiles) == 4 * 5
        assert got == {
            "rollout_n": 3,
            "rollout_value_n": 2,
            "rollout_advantage_n": 2,
            "rollout_reward_n": 3,
            "rollout_nonfinite": 2,
            "rollout_value_sum": 3.0,
            "rollout_value_sum_sq": 5.0,
            "rollout_return_sum": 12.0,
            "rollout_return_sum_sq": 4.0 + 16.0 + 36.0,
            "rollout_return_n": 3,
            "rollout_advantage_sum": -1.0,
            "rollout_advantage_sum_sq": 5.0,
            "rollout_advantage_min": -2.0,
            "rollout_advantage_max": math.inf,
            "rollout_reward_sum": 0.0,
            "rollout_reward_sum_sq": 1.5,
            "rollout_reward_min": -1.0,
            "rollout_reward_max": 0.5,
            "rollout_residual_n": 2,
            "rollout_residual_sum": 1.0 + 2.0,
            "rollout_residual_sum_sq": 1.0 + 4.0,
            "rollout_value_return_sum": 2.0 + 8.0,
        }

    @given(rows_of_numbers(("value", "return", "advantage", "reward")))
    def test_against_plain_arithmetic(self, given_rows: tuple[dict[str, Tensor], Tensor]):
        fields = {name: x[0] for name, x in given_rows[0].items()}
        packed = rollout_statistics(fields)
        got = dict(zip(packed.names, packed.values.tolist(), strict=True))
        assert got["rollout_nonfinite"] == sum(len(x) - len(finite(x.tolist())) for x in fields.values())
        for name, x in fields.items():
            values = x.tolist()
            assert same(got[f"rollout_{name}_sum"], total(values), total(map(abs, values)))
            assert same(got[f"rollout_{name}_sum_sq"], total_sq(values))
        residual = (fields["return"] - fields["value"]).tolist()
        assert got["rollout_residual_n"] == len(finite(residual))
        assert same(got["rollout_residual_sum_sq"], total_sq(residual))

    def test_what_is_masked_out_takes_no_part(self):
        x = torch.tensor([1.0, math.nan, 3.0, 100.0])
        packed = rollout_statistics({"value": x, "return": x}, torch.tensor([1, 0, 1, 0]))
        got = dict(zip(packed.names, packed.values.tolist(), strict=True))
        assert (got["rollout_n"], got["rollout_nonfinite"], got["rollout_value_sum"]) == (2, 0, 4.0)
        assert (got["rollout_value_return_sum"], got["rollout_return_q50"]) == (10.0, 2.0)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
    def test_half_types_are_added_up_without_overflow(self, dtype: torch.dtype):
        x = torch.full((4,), 40_000.0, dtype=dtype)
        packed = rollout_statistics({"value": x, "return": -x})
        got = dict(zip(packed.names, packed.values.tolist(), strict=True))
        held = float(x[0])
        assert (got["rollout_value_sum_sq"], got["rollout_residual_sum"]) == (4 * held**2, -8 * held)
        assert got["rollout_residual_q25"] == -2 * held


class TestQuantiles:
    @given(rows_of_numbers(("x",), most=40))
    def test_are_numpys_of_the_finite_valid_ones(self, given_rows: tuple[dict[str, Tensor], Tensor]):
        x, mask = given_rows[0]["x"].to(torch.float64), given_rows[1][0]
        found = finite_quantiles(x, mask).tolist()
        for row, ours in zip(x, found, strict=True):
            of = finite(row[mask].tolist())
            expected = np.quantile(of, [0.05, 0.25, 0.5, 0.75, 0.95]) if of else [math.nan] * 5
            size = max(map(abs, of), default=0.0)
            assert all(same(a, float(b), size) for a, b in zip(ours, expected, strict=True))


class TestCorrelation:
    def of(self, value: list[float], target: list[float]) -> float | None:
        fields = {"log_ratio": torch.zeros(1, len(value)), "value": torch.tensor([value])}
        (row,) = statistics(
            fields | {"value_target": torch.tensor([target])}, torch.ones(1, len(value), dtype=torch.bool)
        )
        found: float | None = derive(row)["value_return_correlation"]
        return found

    def test_by_hand(self):
        # Deviations -1, 0, 1 and -1, 1, 0: their products add up to 1; 1 / sqrt(2 * 2).
        assert self.of([1.0, 2.0, 3.0], [5.0, 7.0, 6.0]) == pytest.approx(0.5)
        assert self.of([1.0, 2.0], [9.0, 5.0]) == pytest.approx(-1.0)

    @pytest.mark.parametrize(
        ("value", "target"), [([1.0, 1.0], [1.0, 2.0]), ([1.0, math.nan], [1.0, 2.0]), ([1.0, 2.0], [math.inf, 0.0])]
    )
    def test_is_nan_where_it_has_no_meaning(self, value: list[float], target: list[float]):
        found = self.of(value, target)
        assert found is not None and math.isnan(found)

    def test_of_a_rollout(self):
        x = torch.tensor([1.0, 2.0, 4.0])
        packed = rollout_statistics({"value": x, "return": 3 * x + 1})
        row = dict(zip(packed.names, packed.values.tolist(), strict=True))
        assert derive_pooled(row)["rollout_value_return_correlation"] == pytest.approx(1.0)

    def test_the_other_new_metrics_by_hand(self):
        fields = {name: torch.tensor([[1.0, -1.0, 3.0, 5.0]]) for name in ("advantage", "raw_advantage", "value")}
        (row,) = statistics({"log_ratio": torch.zeros(1, 4), **fields}, torch.ones(1, 4, dtype=torch.bool))
        found = derive(row)
        # Mean 2; deviations -1, -3, 1, 3: variance 20 / 4.
        assert (found["raw_advantage_mean"], found["advantage_positive_fraction"]) == (2.0, 0.75)
        assert found["raw_advantage_std"] == found["value_std"] == pytest.approx(math.sqrt(5))


@given(rows_of_numbers(FIELDS), st.integers(0, 12))
@settings(max_examples=40)
def test_two_groups_merged_by_the_contract_are_the_whole(given_rows: tuple[dict[str, Tensor], Tensor], cut: int):
    fields, mask = given_rows
    parts = [
        statistics({name: x[:, part] for name, x in fields.items()}, mask[:, part])
        for part in (slice(0, cut), slice(cut, None))
    ]
    largest = max((abs(v) for x in fields.values() for v in finite(x.flatten().tolist())), default=0.0)
    declared = columns("minibatches")
    for first, second, whole in zip(*parts, statistics(fields, mask), strict=True):
        merged = merge([c for c in declared if c.name in whole], [first, second])
        for name in whole:
            # Sums of products and of losses are of the square of what went in, times a ratio.
            size = 12 * max(largest, 1.0) * (largest if name in ("value_return_sum", "policy_loss_sum") else 1.0)
            assert same(merged[name], whole[name], size * max(1.0, whole["ratio_max"])), name
