"""Metrics from sums: the arithmetic written out, and the same however the transitions are split."""

from __future__ import annotations

import math
import statistics
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from esper_recorder.contract.merge import merge
from esper_recorder.contract.metrics import (
    DEFINITIONS,
    clipped_norm,
    derive,
    derive_layer,
    derive_pooled,
    explained_variance,
    mean,
    root_mean_square,
    std,
)
from esper_recorder.contract.tables import Reducer, column_names, columns
from tests.recorder.contract.transitions import Transition, sums

LN2 = math.log(2.0)


def minibatch(transitions: list[Transition], **more: Any) -> dict[str, Any]:
    """A row of `minibatches`: sums and the metrics derived from them."""
    row = sums(transitions, **more)
    return row | derive(row)


def derive_update(row: Any, minibatches: Any, definition: str = "pooled") -> dict[str, Any]:
    """The metrics of an update by a library's definition."""
    return derive_pooled(row) | DEFINITIONS[definition](row, minibatches)


def as_columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Rows of `minibatches` column by column."""
    return {name: [row.get(name) for row in rows] for name in dict.fromkeys(name for row in rows for name in row)}


class TestBuildingStones:
    def test_a_mean_is_the_sum_over_the_count(self):
        assert mean(6.0, 4) == 1.5

    def test_without_a_sum_or_a_count_the_mean_is_null(self):
        assert mean(None, 4) is None
        assert mean(6.0, None) is None
        assert mean(0.0, 0) is None

    def test_a_standard_deviation_is_of_the_population(self):
        # 1, 2, 3, 6: mean 3, squared distances 4 + 1 + 0 + 9 = 14, over 4 values.
        assert std(12.0, 1.0 + 4.0 + 9.0 + 36.0, 4) == pytest.approx(math.sqrt(14.0 / 4.0), rel=1e-15)

    def test_a_variance_that_rounding_made_negative_is_zero(self):
        # Three times 0.1: 0.03 / 3 - 0.1^2 may come out below zero.
        assert std(0.3, 0.03 - 1e-17, 3) == 0.0

    def test_the_root_mean_square_of_3_and_4_is_the_root_of_12_and_a_half(self):
        assert root_mean_square(9.0 + 16.0, 2) == math.sqrt(12.5)


class TestExplainedVariance:
    def of(self, values: list[float], returns: list[float]) -> float | None:
        row = sums([Transition(value=v, return_=r) for v, r in zip(values, returns, strict=True)])
        result: float | None = derive(row)["explained_variance"]
        return result

    def test_a_perfect_prediction_explains_all(self):
        assert self.of([1.0, 2.0, 4.0], [1.0, 2.0, 4.0]) == 1.0

    def test_a_constant_offset_changes_nothing(self):
        assert self.of([11.0, 12.0, 14.0], [1.0, 2.0, 4.0]) == pytest.approx(1.0, abs=1e-12)

    def test_predicting_the_mean_explains_nothing(self):
        assert self.of([3.0, 3.0, 3.0], [1.0, 2.0, 6.0]) == pytest.approx(0.0, abs=1e-12)

    def test_predicting_the_opposite_is_worse_than_nothing(self):
        # returns 1, -1 (variance 1); return - value = 2, -2 (variance 4): 1 - 4 / 1.
        assert self.of([-1.0, 1.0], [1.0, -1.0]) == -3.0

    def test_it_is_nan_if_returns_do_not_vary(self):
        value = self.of([1.0, 2.0], [5.0, 5.0])
        assert value is not None and math.isnan(value)

    def test_null_stays_null(self):
        assert explained_variance((None, 1.0, 2), (1.0, 1.0, 2)) is None
        assert explained_variance((1.0, 1.0, 2), (None, 1.0, 2)) is None


class TestClippedNorm:
    def test_a_norm_below_the_limit_is_unchanged(self):
        assert clipped_norm(0.25, 0.5) == 0.25

    def test_a_norm_above_the_limit_is_scaled_as_torch_scales_it(self):
        # torch divides by norm + 1e-6, so the result is a little below the limit.
        assert clipped_norm(2.0, 0.5) == 2.0 * 0.5 / 2.000001

    def test_a_non_finite_norm_becomes_nan(self):
        assert math.isnan(clipped_norm(math.inf, 0.5) or 0.0)
        assert math.isnan(clipped_norm(math.nan, 0.5) or 0.0)

    def test_without_a_norm_or_a_limit_it_is_null(self):
        assert clipped_norm(None, 0.5) is None
        assert clipped_norm(1.0, None) is None


class TestDerive:
    def test_both_kl_estimators(self):
        # Log ratios log 2 and 0. k1: (-log 2 + 0) / 2. k3: ((2 - 1) - log 2 + 0) / 2.
        metrics = derive(sums([Transition(log_ratio=LN2), Transition()]))
        assert metrics["approx_kl_k1"] == pytest.approx(-LN2 / 2, rel=1e-14)
        assert metrics["approx_kl_k3"] == pytest.approx((1.0 - LN2) / 2, rel=1e-14)
        assert metrics["approx_kl"] == metrics["approx_kl_k3"]

    def test_the_clip_fraction_counts_both_sides_whatever_the_advantage(self):
        # Ratios 2, 0.5, 1 and 1.1 with clip range 0.2: two of four are beyond it.
        ratios = (2.0, 0.5, 1.0, 1.1)
        metrics = derive(sums([Transition(log_ratio=math.log(r), advantage=-1.0) for r in ratios]))
        assert metrics["clip_fraction"] == 2 / 4

    def test_the_ratios_mean_and_deviation(self):
        # 2, 0.5, 0.5: mean 1, squared distances 1 + 0.25 + 0.25.
        metrics = derive(sums([Transition(log_ratio=math.log(r)) for r in (2.0, 0.5, 0.5)]))
        assert metrics["ratio_mean"] == pytest.approx(1.0, rel=1e-14)
        assert metrics["ratio_std"] == pytest.approx(math.sqrt(1.5 / 3), rel=1e-14)

    def test_the_loss_weighs_its_three_terms(self):
        # One transition: ratio 1, A = 2, so policy loss -2; entropy 0.5; value loss (3 - 1)^2 = 4.
        row = sums([Transition(advantage=2.0, entropy=0.5, value=1.0, return_=3.0)])
        assert derive(row | {"entropy_coef": 0.01, "value_coef": 0.5})["loss"] == pytest.approx(
            -2.0 - 0.01 * 0.5 + 0.5 * 4.0, rel=1e-14
        )
        assert derive(row | {"value_coef": 0.5})["loss"] is None

    def test_entropy_is_normalised_over_the_transitions_that_had_a_choice(self):
        # Three transitions, one with a single valid action: the fractions 1 and 0.5 are over two.
        assert derive({"n": 3, "entropy_normalized_sum": 1.5, "entropy_normalized_n": 2})["entropy_normalized"] == 0.75
        assert derive({"n": 3})["entropy_normalized"] is None

    def test_the_residual_shows_a_bias_that_explained_variance_ignores(self):
        # return - value is 2 for both: mean 2, root mean square 2, and yet the variance is explained in full.
        metrics = derive(sums([Transition(value=1.0, return_=3.0), Transition(value=3.0, return_=5.0)]))
        assert (metrics["residual_mean"], metrics["residual_rms"], metrics["explained_variance"]) == (2.0, 2.0, 1.0)

    def test_non_finite_values_are_in_neither_sum_nor_count(self):
        # Of five: log 2 and 0 are finite; NaN; +inf has an infinite ratio; -inf has ratio 0 and an infinite k3.
        log_ratios = (LN2, 0.0, math.nan, math.inf, -math.inf)
        metrics = derive(sums([Transition(log_ratio=v) for v in log_ratios]))
        assert metrics["approx_kl_k1"] == pytest.approx(-LN2 / 2, rel=1e-14)
        assert metrics["approx_kl_k3"] == pytest.approx((1.0 - LN2) / 2, rel=1e-14)
        assert metrics["ratio_mean"] == pytest.approx((2.0 + 1.0 + 0.0) / 3, rel=1e-14)
        # Beyond the clip range: 2, infinity and 0, of all five.
        assert metrics["clip_fraction"] == 3 / 5

    def test_a_finite_log_ratio_whose_ratio_overflows_counts_for_k1_only(self):
        metrics = derive(sums([Transition(log_ratio=800.0), Transition()]))
        assert metrics["approx_kl_k1"] == -400.0
        assert metrics["approx_kl_k3"] == 0.0
        assert metrics["ratio_mean"] == 1.0

    def test_every_metric_of_a_row_without_sums_is_null(self):
        assert set(derive({}).values()) == {None}

    def test_a_row_with_log_ratios_only_has_only_the_metrics_of_the_policy(self):
        kept = {
            k: v for k, v in sums([Transition(log_ratio=LN2)]).items() if k.startswith(("n", "log_r", "ratio", "k"))
        }
        measured = {name for name, value in derive(kept).items() if value is not None}
        assert measured == {"approx_kl", "approx_kl_k1", "approx_kl_k3", "ratio_mean", "ratio_std"}


class TestStableBaselines3:
    """Two epochs of two minibatches, of 2 and 1 transitions, and what SB3 logs of them."""

    def update(self) -> list[dict[str, Any]]:
        def of(*log_ratios: float, **more: Any) -> dict[str, Any]:
            return minibatch([Transition(log_ratio=v, **more) for v in log_ratios])

        return [
            of(0.0, LN2, advantage=1.0, entropy=1.0, return_=1.0) | {"epoch": 1},
            of(0.0, advantage=1.0, entropy=2.0, return_=2.0) | {"epoch": 1},
            of(LN2, LN2, advantage=1.0, entropy=3.0, return_=3.0) | {"epoch": 2},
            of(0.0, advantage=1.0, entropy=4.0, return_=4.0) | {"epoch": 2},
        ]

    def derived(self, minibatches: list[dict[str, Any]], definition: str = "sb3") -> dict[str, float | None]:
        merged = merge(columns("minibatches"), minibatches)
        return derive_update(merged | {"entropy_coef": 0.1, "value_coef": 0.5}, as_columns(minibatches), definition)

    def test_approx_kl_is_the_mean_over_the_minibatches_of_the_last_epoch(self):
        # k3 of log 2 is 1 - log 2: minibatch 3 has it twice of two, minibatch 4 has 0.
        assert self.derived(self.update())["approx_kl"] == pytest.approx((1.0 - LN2 + 0.0) / 2, rel=1e-14)

    def test_pooled_approx_kl_gives_every_transition_the_same_weight(self):
        # Log 2 three times among six transitions.
        assert self.derived(self.update(), "pooled")["approx_kl"] == pytest.approx(3 * (1.0 - LN2) / 6, rel=1e-14)
        assert self.derived(self.update())["approx_kl_k3"] == pytest.approx(3 * (1.0 - LN2) / 6, rel=1e-14)

    def test_the_other_means_are_over_the_minibatches_of_all_epochs(self):
        sb3, pooled = self.derived(self.update()), self.derived(self.update(), "pooled")
        # Ratio 2 is beyond the clip range: 1 of 2, 0 of 1, 2 of 2, 0 of 1.
        assert sb3["clip_fraction"] == (0.5 + 0.0 + 1.0 + 0.0) / 4
        assert pooled["clip_fraction"] == 3 / 6
        assert sb3["entropy"] == (1.0 + 2.0 + 3.0 + 4.0) / 4
        assert pooled["entropy"] == pytest.approx((2 * 1.0 + 2.0 + 2 * 3.0 + 4.0) / 6, rel=1e-14)
        # Value losses are (return - 0)^2: 1, 4, 9, 16.
        assert sb3["value_loss"] == (1.0 + 4.0 + 9.0 + 16.0) / 4
        # Policy losses, the ratio clipped at 1.2: -(1 + 1.2) / 2, -1, -1.2, -1.
        assert sb3["policy_loss"] == pytest.approx(-(1.1 + 1.0 + 1.2 + 1.0) / 4, rel=1e-14)

    def test_the_loss_is_that_of_the_last_minibatch(self):
        assert self.derived(self.update())["loss"] == pytest.approx(-1.0 - 0.1 * 4.0 + 0.5 * 16.0, rel=1e-14)

    def test_after_an_early_stop_the_stopped_epoch_is_the_last(self):
        # Stopped at minibatch 2: the KL of the one stepped on and of the one that was only evaluated.
        assert self.derived(self.update()[:2])["approx_kl"] == pytest.approx(((1.0 - LN2) / 2 + 0.0) / 2, rel=1e-14)

    def test_a_minibatch_with_a_nan_makes_the_mean_nan_and_the_pooled_one_does_not(self):
        minibatches = self.update()
        minibatches[3] = minibatch([Transition(log_ratio=math.nan, entropy=4.0)]) | {"epoch": 2}
        sb3, pooled = self.derived(minibatches), self.derived(minibatches, "pooled")
        assert math.isnan(sb3["approx_kl"] or 0.0)
        assert math.isnan(sb3["policy_loss"] or 0.0)
        assert pooled["approx_kl"] == pytest.approx(3 * (1.0 - LN2) / 5, rel=1e-14)
        # `torch.abs(nan - 1) > 0.2` is false, so SB3's clip fraction stays a number; the entropy was finite.
        assert sb3["clip_fraction"] == (0.5 + 0.0 + 1.0 + 0.0) / 4
        assert sb3["entropy"] == 2.5

    def test_a_nan_in_an_earlier_epoch_does_not_reach_approx_kl(self):
        minibatches = self.update()
        minibatches[0] = minibatch([Transition(log_ratio=math.nan)]) | {"epoch": 1}
        assert self.derived(minibatches)["approx_kl"] == pytest.approx((1.0 - LN2) / 2, rel=1e-14)

    def test_without_minibatches_the_metrics_are_the_pooled_ones(self):
        row = sums([Transition(log_ratio=LN2, return_=1.0), Transition(return_=2.0)])
        assert derive_update(row, {}, "sb3") == derive_update(row, {}, "pooled")


class TestUpdate:
    def test_explained_variance_is_that_of_the_rollout_if_it_was_recorded(self):
        row = sums([Transition(value=-1.0, return_=1.0), Transition(value=1.0, return_=-1.0)])
        assert derive_update(row, {})["explained_variance"] == -3.0
        rollout = {
            "rollout_return_n": 2,
            "rollout_return_sum": 0.0,  # 1 and -1
            "rollout_return_sum_sq": 2.0,
            "rollout_residual_n": 2,
            "rollout_residual_sum": 0.0,  # 0.5 and -0.5
            "rollout_residual_sum_sq": 0.5,
        }
        metrics = derive_update(row | rollout, {})
        assert metrics["explained_variance"] == 0.75
        assert metrics["rollout_return_std"] == 1.0

    def test_the_gradient_norm_is_the_mean_of_the_finite_ones(self):
        row = {"grad_norm_n": 3, "grad_norm_nonfinite": 1, "grad_norm_sum": 5.0}
        assert derive_update(row, {})["grad_norm"] == 2.5

    def test_an_unknown_definition_is_refused(self):
        with pytest.raises(KeyError):
            derive_update({}, {}, "tensorflow")

    @pytest.mark.parametrize("definition", DEFINITIONS)
    def test_every_derived_column_of_an_update_is_computed_by_each_definition(self, definition):
        row = minibatch([Transition(log_ratio=LN2, return_=1.0)], epoch=1)
        computed = derive_update(row, as_columns([row]), definition)
        declared = {c.name for c in columns("ppo_updates") if c.reducer is Reducer.DERIVED}
        assert declared <= set(computed)
        assert set(computed) <= set(column_names("ppo_updates"))


class TestLayer:
    def test_norm_mean_and_deviation_of_a_gradient(self):
        # Elements 3, -4, 0 and a NaN: norm 5, mean -1/3, deviation sqrt(25/3 - 1/9).
        metrics = derive_layer(
            {
                "n": 4,
                "grad_nan": 1,
                "grad_posinf": 0,
                "grad_neginf": 0,
                "grad_sum": -1.0,
                "grad_sum_sq": 25.0,
                "weight_sum_sq": 16.0,
            }
        )
        assert metrics["grad_norm"] == 5.0
        assert metrics["grad_mean"] == -1.0 / 3
        assert metrics["grad_std"] == pytest.approx(math.sqrt(25 / 3 - 1 / 9), rel=1e-14)
        assert metrics["weight_norm"] == 4.0

    def test_a_parameter_without_a_gradient_has_no_gradient_statistics(self):
        metrics = derive_layer({"n": 4, "weight_sum_sq": 16.0})
        missing = dict.fromkeys(("grad_norm", "grad_mean", "grad_std", "step_norm"))
        assert metrics == {**missing, "weight_norm": 4.0}

    def test_every_derived_column_is_computed(self):
        declared = {c.name for c in columns("gradient_layers") if c.reducer is Reducer.DERIVED}
        assert set(derive_layer({})) == declared


nasty = st.sampled_from([math.nan, math.inf, -math.inf, 0.0])
transition = st.builds(
    Transition,
    log_ratio=st.one_of(st.floats(-8.0, 8.0), st.sampled_from([0.0, 710.0]), nasty),
    advantage=st.one_of(st.floats(-50.0, 50.0), nasty),
    value=st.one_of(st.floats(-50.0, 50.0), nasty),
    return_=st.one_of(st.floats(-50.0, 50.0), nasty),
    entropy=st.one_of(st.floats(-3.0, 3.0), nasty),
)
cut_up = st.lists(st.lists(transition, min_size=1, max_size=12), min_size=1, max_size=6)


def check_that_splitting_changes_nothing(minibatches: list[list[Transition]]) -> None:
    together = [t for part in minibatches for t in part]
    merged = merge(columns("minibatches"), [minibatch(part) for part in minibatches])
    expected = derive(sums(together))
    for name, value in derive(merged).items():
        if name in ("ratio_std", "advantage_std", "return_std", "explained_variance"):
            continue  # a difference of large sums: below
        assert (value is None) == (expected[name] is None), name
        if value is not None:
            assert value == pytest.approx(expected[name], rel=1e-9, abs=1e-9, nan_ok=True), name
    for name, mean_square in (
        ("ratio_std", "ratio_sum_sq"),
        ("advantage_std", "advantage_sum_sq"),
        ("return_std", "return_sum_sq"),
    ):
        # Both sums of squares are right to a few of 16 digits, and so is the variance to that fraction of their mean.
        tolerance = 1e-14 * merged[mean_square]
        before, after = expected[name], derive(merged)[name]
        assert (before is None) == (after is None)
        if before is not None:
            assert math.isnan(before) == math.isnan(after)
            assert math.isnan(before) or abs(after**2 - before**2) <= tolerance, name


@given(cut_up)
def test_minibatches_merged_and_then_derived_equal_all_transitions_at_once(minibatches):
    check_that_splitting_changes_nothing(minibatches)


@pytest.mark.slow
@settings(max_examples=2000, derandomize=False)
@given(cut_up)
def test_minibatches_merged_and_then_derived_equal_all_transitions_at_once_over_many_examples(minibatches):
    check_that_splitting_changes_nothing(minibatches)


finite = st.integers(-400, 400).map(lambda i: i / 16)


@given(st.lists(st.builds(Transition, advantage=finite, value=finite, return_=finite), min_size=2, max_size=30))
def test_moments_from_sums_are_those_of_the_values(transitions):
    metrics = derive(sums(transitions))
    returns = [t.return_ for t in transitions]
    residuals = [t.return_ - t.value for t in transitions]
    assert metrics["advantage_mean"] == pytest.approx(statistics.fmean(t.advantage for t in transitions), abs=1e-12)
    assert metrics["return_std"] == pytest.approx(statistics.pstdev(returns), abs=1e-6)
    spread = statistics.pvariance(returns)
    if spread:
        expected = 1.0 - statistics.pvariance(residuals) / spread
        assert metrics["explained_variance"] == pytest.approx(expected, rel=1e-9, abs=1e-9)
    else:
        assert math.isnan(metrics["explained_variance"])


class TestMeasuredButNotFinite:
    def test_metrics_without_a_finite_term_are_nan_and_not_null(self):
        row = derive(sums([Transition(log_ratio=math.nan, return_=math.nan)] * 3))
        for name in ("approx_kl", "approx_kl_k1", "ratio_mean", "return_mean", "residual_rms", "explained_variance"):
            assert math.isnan(row[name]), name
        assert row["value_mean"] == 0.0  # (0 + 0 + 0) / 3: the values are finite

    def test_nothing_counted_is_null(self):
        assert set(derive(sums([])).values()) == {None}

    def test_a_gradient_with_only_nan_has_a_nan_norm_and_not_zero(self):
        row = {"n": 4, "grad_nan": 4, "grad_posinf": 0, "grad_neginf": 0, "grad_sum": 0.0, "grad_sum_sq": 0.0}
        derived: dict[str, Any] = derive_layer(row)
        assert math.isnan(derived["grad_norm"]) and math.isnan(derived["grad_mean"])


def test_explained_variance_of_a_constant_return_that_is_no_binary_fraction_is_nan():
    # 100 times 1/3: the variance from the sums is rounding, -3e-17 or so, and not exactly zero.
    returns = [1 / 3] * 100
    row = derive(sums([Transition(return_=r, value=0.1 * i) for i, r in enumerate(returns)]))
    assert math.isnan(row["explained_variance"])


def test_the_sb3_definition_of_an_overflowing_ratio_is_infinite_as_in_torch():
    # exp(800) overflows; (inf - 1) - 800 = inf, and a mean with it is inf. With a NaN beside it, it is NaN.
    overflowing = [Transition(log_ratio=800.0), Transition(log_ratio=0.1)]
    row = {"epoch": 1, **sums(overflowing)}
    assert derive_update(sums(overflowing), as_columns([row | derive(row)]), "sb3")["approx_kl"] == math.inf
    with_nan = [*overflowing, Transition(log_ratio=math.nan)]
    row = {"epoch": 1, **sums(with_nan)}
    derived: dict[str, Any] = derive_update(sums(with_nan), as_columns([row | derive(row)]), "sb3")
    assert math.isnan(derived["approx_kl"])
