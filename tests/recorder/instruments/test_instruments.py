"""Layers, stability, gradient health, drift and recurrent state, measured by hand."""

from __future__ import annotations

import gc
import math
import subprocess
import sys
import weakref
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from esper_recorder.capture import transfer
from esper_recorder.contract.rules.ruleset import load_profile
from esper_recorder.contract.rules.trend import Average, Drift
from esper_recorder.instruments import (
    GradientDrift,
    GradientEMATracker,
    GradientState,
    LayerGradientStats,
    check_numerical_stability,
    collect_dual_gradients,
    collect_gradients,
    collect_per_layer_gradients,
    compute_lstm_health,
    measurement,
)
from esper_recorder.instruments import gradient_health as health_module
from esper_recorder.instruments import layer_gradients as layers_module
from esper_recorder.instruments import lstm_health as lstm_module
from esper_recorder.reductions.gradients import CPU_CHUNK, copy_all
from tests.recorder.capture.no_sync import NoSync

NAN, INF = math.nan, math.inf


class Holder(nn.Module):
    """Parameters by name, each with a gradient or without."""

    def __init__(self, **gradients: Tensor | None) -> None:
        super().__init__()
        for name, grad in gradients.items():
            like = torch.zeros(2) if grad is None else grad
            dense = like if like.layout is torch.strided else like.to_dense()
            parameter = nn.Parameter(torch.zeros_like(dense))
            parameter.grad = grad
            self.register_parameter(name, parameter)


def sparse(places: list[list[int]], values: list[Any], size: tuple[int, ...]) -> Tensor:
    return torch.sparse_coo_tensor(torch.tensor(places), torch.tensor(values), size, check_invariants=True)


def one(grad: Tensor) -> LayerGradientStats:
    (stats,) = collect_per_layer_gradients(Holder(w=grad)).layers
    return stats


@pytest.fixture
def transfers(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """How many tensors each transfer to the host was made of."""
    made: list[int] = []
    plain = transfer.Transfer

    def counted(tensors: Any) -> Any:
        made.append(len(tensors))
        return plain(tensors)

    for module in (measurement, lstm_module):
        monkeypatch.setattr(module, "Transfer", counted)
    return made


class TestLayerGradients:
    def test_the_twelve_statistics_equal_plain_arithmetic(self):
        got = one(torch.tensor([0.0, 5e-7, -1e-6, 3.0, -11.0, 10.0, NAN, INF], dtype=torch.float64))
        finite = [0.0, 5e-7, -1e-6, 3.0, -11.0, 10.0]
        mean = sum(finite) / 6
        assert got.layer_name == "w" and got.param_count == 8
        assert got.grad_norm == pytest.approx(math.sqrt(sum(x * x for x in finite)), rel=1e-12)
        assert got.grad_mean == pytest.approx(mean, rel=1e-12)
        assert got.grad_std == pytest.approx(math.sqrt(sum((x - mean) ** 2 for x in finite) / 6), rel=1e-12)
        assert (got.grad_min, got.grad_max) == (-11.0, INF)
        assert got.zero_fraction == 1 / 8
        assert got.small_fraction == 2 / 8  # 0 and 5e-7; 1e-6 is not less than 1e-6
        assert got.large_fraction == 2 / 8  # -11 and the infinity; 10 is not more than 10
        assert (got.nan_count, got.inf_count) == (1, 1)

    @pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
    def test_any_floating_type_is_measured(self, dtype: torch.dtype):
        got = one(torch.tensor([[3.0, -4.0], [0.0, 0.0]], dtype=dtype))
        assert (got.grad_norm, got.grad_min, got.grad_max, got.zero_fraction) == (5.0, -4.0, 3.0, 0.5)

    def test_small_and_large_are_strict_in_float32_too(self):
        # The limits as float32 has them: the adjacent numbers lie on either side, the limit itself on neither.
        for limit, count in ((1e-6, "small_fraction"), (10.0, "large_fraction")):
            at = torch.tensor(limit)
            outside = torch.nextafter(at, torch.tensor(0.0 if count == "small_fraction" else INF))
            assert getattr(one(torch.stack([at, outside])), count) == 0.5

    def test_a_layout_that_is_not_contiguous_changes_nothing(self):
        whole = torch.arange(24.0).reshape(4, 6)
        assert one(whole.t()) == one(whole.clone().t().contiguous())
        grad = whole[:, ::2]
        assert one(grad) == one(grad.contiguous())

    def test_a_sparse_gradient_sums_duplicates_and_has_implied_zeros(self):
        grad = sparse([[1, 1, 3]], [[2.0], [3.0], [-1.0]], (5, 1))
        got = one(grad)
        assert got == one(torch.tensor([[0.0], [5.0], [0.0], [-1.0], [0.0]]))
        assert (got.zero_fraction, got.small_fraction, got.grad_max) == (0.6, 0.6, 5.0)

    def test_a_sparse_gradient_of_nan_alone_still_has_zeros(self):
        got = one(sparse([[0]], [NAN], (2,)))
        assert (got.grad_min, got.grad_max, got.nan_count, got.zero_fraction) == (0.0, 0.0, 1, 0.5)

    @pytest.mark.filterwarnings("ignore:Sparse CSR tensor support is in beta")
    def test_compressed_rows_are_measured(self):
        dense = torch.tensor([[0.0, 2.0], [0.0, 0.0]])
        model = Holder(w=dense)
        values = collect_per_layer_gradients(model).layers[0]
        measured = measurement.Measurement({"w": dense.to_sparse_csr()})
        [(_, statistics)] = measured.statistics()
        assert statistics.zeros == 3 and values.zero_fraction == 0.75 and statistics.max == 2.0

    def test_a_complex_gradient_is_refused_with_a_message(self):
        with pytest.raises(TypeError, match=r"the gradient of w is torch\.complex64: complex numbers have no order"):
            one(torch.ones(2, dtype=torch.complex64))

    def test_no_gradients_is_not_an_empty_model(self):
        none, empty = collect_per_layer_gradients(Holder(a=None, b=None)), collect_per_layer_gradients(nn.ReLU())
        assert (none.state, none.without_gradient, none.layers) == (GradientState.NO_GRADIENTS, ("a", "b"), ())
        assert (empty.state, empty.without_gradient, empty.layers) == (GradientState.NO_PARAMETERS, (), ())
        some = collect_per_layer_gradients(Holder(a=None, b=torch.ones(1)))
        assert (some.state, some.without_gradient) == (GradientState.MEASURED, ("a",))

    def test_a_parameter_without_elements_has_counts_and_no_statistics(self):
        got = one(torch.zeros(0, 3))
        assert (got.param_count, got.nan_count) == (0, 0)
        assert got.grad_norm is got.grad_mean is got.grad_min is got.zero_fraction is None

    def test_a_gradient_of_nan_alone_has_statistics_of_nan(self):
        got = one(torch.tensor([NAN, NAN]))
        assert all(math.isnan(x) for x in (got.grad_norm, got.grad_mean, got.grad_std, got.grad_min, got.grad_max))  # type: ignore[arg-type]
        assert (got.nan_count, got.zero_fraction) == (2, 0.0)

    def test_there_is_one_transfer_whatever_the_model(self, transfers: list[int]):
        mixed = {
            f"p{i}": torch.ones(i + 1, dtype=(torch.float32, torch.float64, torch.float16)[i % 3]) for i in range(60)
        }
        found = collect_per_layer_gradients(Holder(**mixed))
        assert len(transfers) == 1
        assert [one.layer_name for one in found.layers] == list(mixed)
        assert [one.grad_norm for one in found.layers] == [pytest.approx(math.sqrt(i + 1)) for i in range(60)]

    def test_large_and_small_layers_are_measured_separately(self):
        grads = {"a": torch.ones(3), "b": torch.full((CPU_CHUNK + 5,), 2.0), "c": torch.full((70, 10), 20.0)}
        found = {one.layer_name: one for one in collect_per_layer_gradients(Holder(**grads)).layers}
        assert found["b"].grad_norm == pytest.approx(2.0 * math.sqrt(CPU_CHUNK + 5), rel=1e-12)
        assert [found[name].large_fraction for name in "abc"] == [0.0, 0.0, 1.0]

    def test_anything_but_a_model_is_a_type_error(self):
        with pytest.raises(TypeError, match=r"model is a dict; give a torch\.nn\.Module"):
            collect_per_layer_gradients({})  # type: ignore[arg-type]

    def test_no_graph_is_held(self):
        x = torch.tensor([2.0], requires_grad=True)
        (grad,) = torch.autograd.grad((x**3).sum(), x, create_graph=True)
        assert grad.requires_grad
        held = weakref.ref(grad)
        model = Holder(w=grad.detach())
        model.w.grad = grad
        pending = collect_gradients(model.parameters())
        assert collect_per_layer_gradients(model).layers[0].grad_norm == 12.0  # 3 * 2^2
        del model, grad
        gc.collect()
        assert held() is None and pending.materialise().norm == 12.0

    def test_the_gradients_are_left_as_they_are(self):
        grad = torch.tensor([1.0, NAN, -2.0])
        model = Holder(w=grad.clone())
        collect_per_layer_gradients(model)
        assert torch.equal(model.w.grad.nan_to_num(7.0), grad.nan_to_num(7.0))  # type: ignore[union-attr,operator]


class TestStability:
    def test_each_place_is_named(self):
        model = Holder(a=torch.tensor([1.0, NAN]), b=torch.tensor([INF, 0.0]), c=torch.ones(2), d=None)
        with torch.no_grad():
            model.c[0], model.d[1], model.a[0] = NAN, -INF, -7.0  # type: ignore[operator]
        report = check_numerical_stability(model, torch.tensor(NAN))
        assert (report.nan_weights, report.inf_weights) == (("c",), ("d",))
        assert (report.nan_gradients, report.inf_gradients) == (("a",), ("b",))
        assert report.without_gradient == ("d",)
        assert (report.max_weight, report.max_gradient) == (INF, INF)
        assert report.loss_is_finite is False and report.has_nan and report.has_inf

    def test_a_finite_model_is_healthy(self):
        model = Holder(a=torch.tensor([1.0, -3.0]))
        report = check_numerical_stability(model, 0.5)
        assert not (report.has_nan or report.has_inf)
        assert (report.max_weight, report.max_gradient, report.loss_value, report.loss_is_finite) == (
            0.0,
            3.0,
            0.5,
            True,
        )

    def test_a_missing_measurement_is_none_and_not_zero(self):
        report = check_numerical_stability(Holder(a=None))
        assert report.max_gradient is None and report.loss_value is None and report.loss_is_finite is None
        assert check_numerical_stability(nn.ReLU()).max_weight is None

    def test_there_is_one_transfer_for_any_number_of_parameters(self, transfers: list[int]):
        model = Holder(**{f"p{i}": torch.ones(3) for i in range(200)})
        model.p150.grad[1] = NAN  # type: ignore[index,operator]
        assert check_numerical_stability(model, torch.tensor(1.0)).nan_gradients == ("p150",)
        assert len(transfers) == 1

    def test_complex_weights_are_checked_by_their_parts(self):
        model = Holder(z=torch.tensor([complex(1.0, NAN), complex(0.0, 2.0)]))
        report = check_numerical_stability(model)
        assert report.nan_gradients == ("z",) and report.max_gradient == 2.0

    @pytest.mark.parametrize(
        ("loss", "error", "words"),
        [("1", TypeError, "loss is '1'; give a tensor"), (torch.ones(2), ValueError, "loss has 2 elements")],
    )
    def test_an_invalid_loss_is_refused(self, loss: Any, error: type[Exception], words: str):
        with pytest.raises(error, match=words):
            check_numerical_stability(Holder(a=None), loss)


class Allocations(TorchDispatchMode):
    """The largest piece of memory that an operation made, in bytes, beside what was there before."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__()
        self.largest = 0
        self._known = {x.untyped_storage().data_ptr() for x in known}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, list | tuple) else [result]:
            if isinstance(x, Tensor) and x.untyped_storage().data_ptr() not in self._known:
                self.largest = max(self.largest, x.untyped_storage().nbytes())
        return result


class TestGradientHealth:
    def test_the_score_weighs_vanishing_and_exploding_tensors(self):
        # Norms 0 (vanishing), 3, 6 and 8 (exploding): 1 - 0.5 * 1/4 - 0.8 * 2/4 = 0.475.
        model = Holder(a=torch.zeros(1), b=torch.tensor([3.0]), c=torch.tensor([6.0]), d=torch.tensor([8.0]), e=None)
        got = collect_gradients(model.parameters()).materialise()
        assert (got.tensors, got.without_gradient, got.elements) == (4, 1, 4)
        assert (got.vanishing, got.exploding) == (1, 2) and got.score == pytest.approx(0.475)
        assert got.norm == pytest.approx(math.sqrt(9 + 36 + 64))
        assert (got.min_norm, got.max_norm) == (0.0, 8.0) and got.norm_ratio == pytest.approx(8.0 / 1e-10)
        assert got.zero_fraction == 0.25 and got.is_healthy is False

    def test_a_norm_at_a_threshold_is_on_neither_side(self):
        at = collect_gradients(Holder(a=torch.tensor([5.0], dtype=torch.float64)).parameters()).materialise()
        assert (at.vanishing, at.exploding, at.score) == (0, 0, 1.0)
        low = collect_gradients(Holder(a=torch.tensor([1e-7], dtype=torch.float64)).parameters()).materialise()
        assert (low.vanishing, low.score) == (0, 1.0)

    def test_health_is_strict_at_its_limits(self):
        def of(*values: float) -> Any:
            own = {f"p{i}": torch.tensor([x], dtype=torch.float64) for i, x in enumerate(values)}
            return collect_gradients(Holder(**own).parameters()).materialise()

        assert of(4.0, 0.0041).is_healthy and not of(4.0, 0.004).is_healthy  # 1,000 is not below 1,000
        half = collect_gradients(Holder(a=torch.tensor([1.0, 0.0])).parameters()).materialise()
        assert half.zero_fraction == 0.5 and not half.is_healthy

    def test_a_gradient_that_is_not_finite_counts_as_exploding_and_has_no_norm(self):
        got = collect_gradients(Holder(a=torch.tensor([1.0, NAN, INF]), b=torch.ones(1)).parameters()).materialise()
        assert (got.nan_count, got.inf_count, got.exploding) == (1, 1, 1) and got.score == pytest.approx(0.6)
        assert math.isnan(got.norm) and math.isnan(got.norm_ratio) and got.is_healthy is False  # type: ignore[arg-type]

    def test_without_a_gradient_there_are_no_statistics(self):
        nothing: list[list[nn.Parameter]] = [list(Holder(a=None).parameters()), []]
        for parameters in nothing:
            got = collect_gradients(parameters).materialise()
            assert got.norm is got.score is got.is_healthy is got.zero_fraction is None
            assert got.tensors == 0

    def test_collecting_waits_for_no_device(self):
        model = Holder(a=torch.ones(3, device="meta"), b=torch.ones(2, 2, device="meta", dtype=torch.float64))
        on_host = Holder(c=torch.ones(1))
        with NoSync():
            collect_gradients([*model.parameters(), *on_host.parameters()])
            collect_dual_gradients(model.parameters(), on_host.parameters())

    def test_nothing_the_size_of_the_model_is_allocated(self):
        model = Holder(a=torch.ones(3_000_000), b=torch.ones(10))
        known = [x for p in model.parameters() for x in (p.data, p.grad) if x is not None]
        with Allocations(known) as made:
            collect_gradients(model.parameters())
        assert 0 < made.largest <= 8 * 4 * CPU_CHUNK < 4 * 3_000_000

    @pytest.mark.parametrize(
        ("host", "seed", "ratio"),
        [
            ([2.0, 2.0], [2.0], 1.0),  # equal, whatever the sizes
            ([1.0], [0.5, 0.5], 0.5),
            (None, [1.0], None),
            ([1.0], None, None),
            ([0.0], [1.0], INF),
            ([1.0], [0.0], 0.0),
            ([0.0], [0.0], NAN),
            ([NAN], [1.0], NAN),
        ],
    )
    def test_no_gradient_and_equal_ones_differ(self, host: Any, seed: Any, ratio: float | None, transfers: list[int]):
        models = [Holder(w=None if x is None else torch.tensor(x)) for x in (host, seed)]
        got = collect_dual_gradients(models[0].parameters(), models[1].parameters()).materialise()
        assert got.normalized_ratio == (
            ratio if ratio is None or not math.isnan(ratio) else pytest.approx(NAN, nan_ok=True)
        )
        assert len(transfers) == 1
        assert got.host.tensors == int(host is not None) and got.seed.tensors == int(seed is not None)

    def test_types_are_checked_with_assertions_disabled(self):
        code = """
import torch
from esper_recorder.instruments import collect_gradients, collect_dual_gradients, compute_lstm_health
from esper_recorder.instruments import check_numerical_stability, collect_per_layer_gradients
assert False, "assertions are on"
"""
        calls = [
            "collect_gradients(3)",
            "collect_gradients([1.0])",
            "collect_gradients([], exploding='5')",
            "collect_dual_gradients([], [None])",
            "compute_lstm_health(torch.ones(2))",
            "check_numerical_stability(None)",
            "collect_per_layer_gradients([])",
        ]
        tries = "".join(f"\ntry:\n    {call}\nexcept TypeError as e:\n    print(e)\n" for call in calls)
        done = subprocess.run([sys.executable, "-O", "-c", code + tries], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert len(done.stdout.splitlines()) == len(calls)
        assert "exploding is '5'; give a number" in done.stdout

    def test_the_private_torch_function_is_optional(self, monkeypatch: pytest.MonkeyPatch):
        model = Holder(a=torch.tensor([3.0]), b=torch.tensor([4.0, 0.0]))
        with_it = collect_gradients(model.parameters()).materialise()
        monkeypatch.delattr(torch, "_foreach_copy_")
        assert collect_gradients(model.parameters()).materialise() == with_it
        target = torch.zeros(2)
        copy_all([target], [torch.ones(2)])
        assert target.tolist() == [1.0, 1.0]


class TestDrift:
    @given(st.lists(st.floats(0.01, 1e6), min_size=2, max_size=40))
    def test_the_plain_form_is_the_reviews_formula(self, norms: list[float]):
        tracker = GradientEMATracker()
        ema = norms[0]
        assert tracker.update(norms[0], 1.0) == GradientDrift(None, None)
        for norm in norms[1:]:
            expected = abs(norm - ema) / (ema + 1e-8)
            ema = 0.99 * ema + (1 - 0.99) * norm
            got = tracker.update(norm, 1.0)
            assert got.norm_drift == pytest.approx(expected, rel=1e-12) and got.health_drift == 0.0
            assert tracker.ema_norm == pytest.approx(ema, rel=1e-12)
        assert tracker.update_count == len(norms)

    def test_bias_correction_forgets_an_unusual_first_value(self):
        plain, corrected = GradientEMATracker(momentum=0.9), GradientEMATracker(momentum=0.9, bias_correction=True)
        for norm in (100.0, 1.0, 1.0):
            plain.update(norm, 1.0)
            corrected.update(norm, 1.0)
        assert plain.ema_norm == pytest.approx(0.9 * (0.9 * 100 + 0.1) + 0.1)
        # (0.1 * 100 * 0.81 + 0.1 * 0.9 + 0.1) / (1 - 0.9^3)
        assert corrected.ema_norm == pytest.approx((8.1 + 0.09 + 0.1) / 0.271)

    def test_values_of_the_warm_up_have_no_drift(self):
        tracker = GradientEMATracker(warmup=2)
        drifts = [tracker.update(x, 1.0).norm_drift for x in (1.0, 2.0, 3.0, 4.0)]
        assert drifts[:3] == [None, None, None] and drifts[3] is not None

    def test_it_is_the_drift_that_rules_see(self):
        tracker, average = GradientEMATracker(momentum=0.7, warmup=1), Average(Drift(momentum=0.7, warmup=1))
        for x in (1.0, 3.0, 0.2, 9.0):
            assert tracker.update(x, 1.0).norm_drift == average.push(x)

    @pytest.mark.parametrize("odd", [NAN, INF, -INF])
    def test_a_value_that_is_not_finite_neither_enters_nor_raises(self, odd: float):
        with_it, without = GradientEMATracker(), GradientEMATracker()
        for tracker in (with_it, without):
            tracker.update(2.0, 1.0)
        assert with_it.update(odd, odd) == GradientDrift(None, None)
        assert with_it.update(3.0, 0.5) == without.update(3.0, 0.5)
        assert with_it.update_count == 3 and without.update_count == 2

    @pytest.mark.parametrize("corrected", [False, True])
    def test_a_restored_tracker_continues_to_the_last_bit(self, corrected: bool):
        import json

        one = GradientEMATracker(momentum=0.95, bias_correction=corrected, warmup=3)
        for i in range(10):
            one.update(1.0 + i / 7, 1.0)
        other = GradientEMATracker(momentum=0.95, bias_correction=corrected, warmup=3)
        other.load_state_dict(json.loads(json.dumps(one.state_dict())))
        assert [one.update(x, 0.3) for x in (2.0, 5.0)] == [other.update(x, 0.3) for x in (2.0, 5.0)]
        assert one.state_dict() == other.state_dict()

    def test_a_state_of_another_tracker_is_refused(self):
        with pytest.raises(ValueError, match=r"momentum': 0\.9"):
            GradientEMATracker().load_state_dict(GradientEMATracker(momentum=0.9).state_dict())
        with pytest.raises(ValueError, match=r"this is not a state of a GradientEMATracker: settings, .*is missing"):
            GradientEMATracker().load_state_dict({"update_count": 0})

    def test_two_trackers_share_no_state(self):
        one, other = GradientEMATracker(), GradientEMATracker()
        one.update(1.0, 1.0)
        assert (other.update_count, other.ema_norm) == (0, None)

    def test_it_begins_without_averages(self):
        assert GradientEMATracker().ema_norm is None and GradientEMATracker().ema_health is None

    @pytest.mark.parametrize("words", [{"momentum": 1.0}, {"momentum": NAN}, {"epsilon": 0.0}, {"warmup": -1}])
    def test_invalid_settings_are_refused(self, words: dict[str, Any]):
        with pytest.raises(ValueError, match=next(iter(words))):
            GradientEMATracker(**words)


class TestLSTM:
    @pytest.mark.parametrize("envs", [1, 4, 64])
    def test_the_batch_size_changes_nothing(self, envs: int):
        got = compute_lstm_health((torch.full((1, envs, 8), 3.0), torch.full((1, envs, 8), -0.5)))
        assert got is not None
        assert (got.hidden.rms, got.hidden.env_rms_max, got.cell.rms) == (3.0, 3.0, 0.5)
        assert got.is_healthy

    def test_exactly_at_a_threshold_it_is_healthy(self):
        def of(h: float, c: float) -> Any:
            return compute_lstm_health(tuple(torch.full((1, 2, 4), x, dtype=torch.float64) for x in (h, c)))  # type: ignore[arg-type]

        assert of(10.0, 1e-6).is_healthy
        assert of(math.nextafter(10.0, 11.0), 1.0).exploding == ("h",)
        assert of(1.0, math.nextafter(1e-6, 0.0)).vanishing == ("c",)
        assert not of(0.0, 1.0).is_healthy

    def test_one_environment_that_explodes_is_enough(self):
        h = torch.zeros(1, 100, 4)
        h[0, 7] = 11.0
        got = compute_lstm_health((h, torch.ones(1, 100, 4)))
        assert got is not None and got.hidden.rms < 10.0 and got.exploding == ("h",)

    def test_values_that_are_not_finite_are_counted(self):
        got = compute_lstm_health((torch.tensor([[[NAN, INF, 2.0]]]), torch.ones(1, 1, 3)))
        assert got is not None and got.has_nan and got.has_inf and not got.is_healthy
        assert (got.hidden.nan_count, got.hidden.inf_count, got.hidden.rms, got.hidden.abs_max) == (1, 1, 2.0, 2.0)
        whole = compute_lstm_health((torch.full((1, 1, 2), NAN), torch.ones(1, 1, 2)))
        assert whole is not None and math.isnan(whole.hidden.rms) and not whole.is_healthy

    def test_there_is_one_transfer(self, transfers: list[int]):
        compute_lstm_health((torch.ones(2, 3, 4), torch.ones(2, 3, 4)))
        assert transfers == [2]

    def test_no_state_is_none_and_an_invalid_state_is_an_error(self):
        assert compute_lstm_health(None) is None
        with pytest.raises(TypeError, match=r"state is \(Tensor, NoneType\); give the pair"):
            compute_lstm_health((torch.ones(1), None))  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="the state h has no elements"):
            compute_lstm_health((torch.zeros(1, 0, 4), torch.zeros(1, 0, 4)))

    def test_the_thresholds_are_those_of_the_rules(self):
        rules = {rule.name: rule.conditions[0].threshold for rule in load_profile("default").rules}
        high, low = rules["recurrent_state_explosion"], rules["recurrent_state_vanishing"]
        assert high is not None and low is not None
        assert (high.number, low.number) == (lstm_module.MAX_RMS, lstm_module.MIN_RMS)


def test_the_constants_are_the_reviews():
    assert (layers_module.SMALL, layers_module.LARGE) == (1e-6, 10.0)
    assert (health_module.VANISHING, health_module.EXPLODING) == (1e-7, 10 * 0.5)
