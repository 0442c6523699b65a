"""Statistics of gradients, layer by layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from esper_recorder.contract.histogram import gradient_bin_count, gradient_edges
from esper_recorder.contract.merge import merge
from esper_recorder.contract.tables import column_names, columns
from esper_recorder.reductions.gradients import NAMES, LayerReducer, layer_statistics
from tests.recorder.reductions.arrays import numbers, random_tensor, same, total, total_sq

DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]


def with_grad(weight: Tensor, grad: Tensor) -> Tensor:
    parameter = torch.nn.Parameter(weight)
    parameter.grad = grad
    return parameter


def one(weight: Tensor, grad: Tensor) -> dict[str, float]:
    packed, histograms = layer_statistics([with_grad(weight, grad)])
    assert histograms.shape == (1, gradient_bin_count())
    assert set(packed.names) <= set(column_names("gradient_layers"))
    return dict(zip(packed.names, packed.values[0].tolist(), strict=True))


def histogram(grad: Tensor) -> list[int]:
    _, histograms = layer_statistics([with_grad(torch.zeros_like(grad), grad)])
    counts: list[int] = histograms[0].tolist()
    return counts


@st.composite
def gradients(draw: st.DrawFn) -> Tensor:
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shape = (draw(st.integers(1, 4)), draw(st.integers(0, 6)))
    return random_tensor(random, shape, draw(st.sampled_from([torch.float32, torch.float64])), odd=0.3)


@given(gradients())
def test_counts_and_sums_are_those_of_plain_arithmetic(grad: Tensor):
    weight = torch.arange(grad.numel(), dtype=grad.dtype).reshape(grad.shape)
    got = one(weight, grad)
    x = grad.reshape(-1).tolist()
    assert got["grad_nan"] == sum(map(math.isnan, x))
    assert (got["grad_posinf"], got["grad_neginf"]) == (x.count(math.inf), x.count(-math.inf))
    assert got["grad_zero"] == x.count(0.0)
    assert same(got["grad_sum"], total(x), total(map(abs, x)))
    assert same(got["grad_sum_sq"], total_sq(x))
    assert same(got["grad_min"], min(numbers(x), default=math.nan))
    assert same(got["grad_max"], max(numbers(x), default=math.nan))
    assert got["weight_sum_sq"] == sum(i * i for i in range(grad.numel()))


@given(gradients())
def test_every_element_is_in_its_bin(grad: Tensor):
    counts = histogram(grad)
    expected = [0] * gradient_bin_count()
    for x in map(abs, grad.reshape(-1).tolist()):
        if x == 0:
            expected[0] += 1
        elif not math.isnan(x):
            expected[1 + sum(edge <= x for edge in gradient_edges())] += 1
    assert counts == expected


@pytest.mark.parametrize("dtype", DTYPES)
def test_an_exact_power_of_two_is_in_the_bin_it_begins(dtype: torch.dtype):
    for place, edge in enumerate(gradient_edges()):
        if float(torch.tensor(edge, dtype=dtype)) != edge:
            continue  # float16 cannot hold the outer ones
        _, histograms = layer_statistics([with_grad(torch.zeros(1, dtype=dtype), torch.tensor([-edge], dtype=dtype))])
        assert histograms[0].tolist().index(1) == place + 2


def test_the_smallest_number_there_is_is_not_zero():
    assert histogram(torch.tensor([5e-324, 0.0], dtype=torch.float64))[:2] == [1, 1]
    assert histogram(torch.tensor([1e-45]))[:2] == [0, 1]


@pytest.mark.parametrize("dtype", DTYPES[2:])
def test_half_types_are_added_up_without_overflow(dtype: torch.dtype):
    grad = torch.full((5,), 30_000.0, dtype=dtype)
    held = float(grad[0])
    got = one(grad.clone(), grad)
    assert (got["grad_sum"], got["grad_sum_sq"], got["weight_sum_sq"]) == (5 * held, 5 * held**2, 5 * held**2)


def test_a_parameter_without_dimensions():
    got = one(torch.tensor(3.0), torch.tensor(-2.0))
    assert (got["grad_sum"], got["grad_sum_sq"], got["weight_sum_sq"]) == (-2.0, 4.0, 9.0)


def test_a_parameter_without_elements_counts_nothing():
    got = one(torch.zeros(0, 4), torch.zeros(0, 4))
    assert (got["grad_sum"], got["grad_zero"], got["grad_nan"]) == (0.0, 0.0, 0.0)
    assert math.isnan(got["grad_min"]) and math.isnan(got["grad_max"])


def test_layers_of_different_shape_keep_their_order():
    packed, histograms = layer_statistics(
        [with_grad(torch.zeros(2, 3), torch.ones(2, 3)), with_grad(torch.zeros(()), torch.tensor(4.0))]
    )
    assert packed.values[:, packed.names.index("grad_sum")].tolist() == [6.0, 4.0]
    assert histograms.sum(dim=1).tolist() == [6, 1]


def test_the_gradient_and_the_weight_are_left_as_they_are():
    weight, grad = torch.randn(3, 3), torch.randn(3, 3)
    before = weight.clone(), grad.clone()
    layer_statistics([with_grad(weight, grad)])
    assert torch.equal(weight, before[0]) and torch.equal(grad, before[1])


class TestChunks:
    """However the tensors are laid out, each has the statistics it has alone."""

    SHAPES = ((3, 5), (), (64,), (130,), (0, 4), (40, 40), (1, 257))

    def layers(self, dtype: torch.dtype = torch.float32) -> list[Tensor]:
        random = np.random.default_rng(5)
        return [
            with_grad(
                random_tensor(random, shape, dtype, odd=0.1) if shape else torch.tensor(2.0, dtype=dtype),
                random_tensor(random, shape, dtype, odd=0.3) if shape else torch.tensor(-3.0, dtype=dtype),
            )
            for shape in self.SHAPES
        ]

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("chunk", [128, 512, 4096, 1 << 16])
    def test_of_any_size_give_what_each_tensor_gives_alone(self, chunk: int, dtype: torch.dtype):
        layers = self.layers(dtype)
        reducer = LayerReducer(layers, chunk=chunk)
        reducer.take(layers)
        statistics, histograms = reducer.drain()
        assert statistics.names == NAMES
        for i, layer in enumerate(layers):
            alone, histogram = layer_statistics([layer])
            assert histograms[0, i].tolist() == histogram[0].tolist()
            for ours, reference, name in zip(
                statistics.values[0, i].tolist(), alone.values[0].tolist(), NAMES, strict=True
            ):
                assert same(ours, reference, 1e41), name

    @pytest.mark.parametrize("chunk", [128, 4096])
    def test_of_one_step_do_not_show_in_the_next(self, chunk: int):
        layers = self.layers()
        reducer = LayerReducer(layers, chunk=chunk)
        reducer.take(layers)
        for layer in layers:
            assert layer.grad is not None
            layer.grad.fill_(1.0)
        reducer.take(layers)
        statistics, histograms = reducer.drain()
        assert statistics.values.shape == (2, len(layers), len(NAMES))
        assert statistics.values[1, :, NAMES.index("grad_sum")].tolist() == [p.numel() for p in layers]
        assert statistics.values[1, :, NAMES.index("grad_nan")].tolist() == [0.0] * len(layers)
        assert histograms[1].sum(dim=1).tolist() == [p.numel() for p in layers]

    @pytest.mark.parametrize("chunk", [128, 4096])
    def test_many_steps_keep_their_order(self, chunk: int):
        layer = with_grad(torch.zeros(70), torch.zeros(70))
        reducer = LayerReducer([layer], chunk=chunk)
        for i in range(100):
            assert layer.grad is not None
            layer.grad.fill_(i)
            reducer.take([layer])
        statistics, _ = reducer.drain()
        assert statistics.values[:, 0, NAMES.index("grad_max")].tolist() == list(range(100))

    def test_a_large_gradient_that_is_not_contiguous_is_read_where_it_is(self):
        grad = torch.arange(600.0).reshape(20, 30).t()
        reducer = LayerReducer([with_grad(torch.zeros(30, 20), grad)], chunk=128)
        reducer.take([with_grad(torch.zeros(30, 20), grad)])
        statistics, histograms = reducer.drain()
        got = dict(zip(NAMES, statistics.values[0, 0].tolist(), strict=True))
        assert (got["grad_sum"], got["grad_max"], got["grad_zero"]) == (600 * 599 / 2, 599.0, 1.0)
        assert histograms.sum() == 600


class TestWhatAStepChanged:
    @pytest.mark.parametrize("chunk", [128, 4096])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
    def test_is_the_difference_of_the_weights(self, chunk: int, dtype: torch.dtype):
        layers = [with_grad(torch.ones(n, dtype=dtype), torch.ones(n, dtype=dtype)) for n in (3, 100, 300)]
        reducer = LayerReducer(layers, chunk=chunk)
        for change in (0.5, 0.25):
            reducer.take(layers)
            reducer.keep(layers)
            for layer in layers:
                layer.data -= change
            reducer.changed(layers)
        found = reducer.drain()[0].values[..., NAMES.index("step_sum_sq")].tolist()
        assert found == [[n * 0.5**2 for n in (3, 100, 300)], [n * 0.25**2 for n in (3, 100, 300)]]

    def test_is_measured_from_the_weights_of_the_next_step_too(self):
        # The 8 weights fill a row of 64 numbers, so 4 steps fit a chunk of 256: the fifth is reduced by itself.
        layer = with_grad(torch.zeros(8), torch.ones(8))
        reducer = LayerReducer([layer], chunk=256)
        for step in range(5):
            reducer.take([layer], after_step=step > 0)
            reducer.keep_taken()
            layer.data += step + 1
        reducer.changed([layer])
        found = reducer.drain()[0].values[:, 0, NAMES.index("step_sum_sq")].tolist()
        assert found == [8.0 * 1, 8.0 * 4, 8.0 * 9, 8.0 * 16, 8.0 * 25]

    def test_of_some_steps_is_not_measured(self):
        # Two steps fit a chunk of 16: the third one has the first two reduced.
        layer = with_grad(torch.zeros(8), torch.ones(8))
        reducer = LayerReducer([layer], chunk=16)
        for step in range(3):
            reducer.take([layer])
            if step == 0:
                reducer.keep_taken()
                layer.data += 3
                reducer.changed([layer])
        found = reducer.drain()[0].values[:, 0, NAMES.index("step_sum_sq")].tolist()
        assert found == [8.0 * 9, -1, -1]

    def test_is_not_measured_without_a_copy_from_before(self):
        layer = with_grad(torch.ones(3), torch.ones(3))
        reducer = LayerReducer([layer])
        reducer.take([layer])
        reducer.changed([layer])
        assert reducer.drain()[0].values[0, 0, NAMES.index("step_sum_sq")] == -1

    def test_is_not_measured_of_what_is_too_large_to_keep(self):
        layers = [with_grad(torch.ones(200), torch.ones(200)) for _ in range(3)]
        reducer = LayerReducer(layers, chunk=256, keep_bytes=1600)
        reducer.take(layers)
        reducer.keep(layers)
        for layer in layers:
            layer.data += 1
        reducer.changed(layers)
        assert reducer.drain()[0].values[0, :, NAMES.index("step_sum_sq")].tolist() == [200.0, 200.0, -1.0]

    def test_weights_that_became_nan_are_left_out(self):
        layer = with_grad(torch.ones(3), torch.ones(3))
        reducer = LayerReducer([layer])
        reducer.take([layer])
        reducer.keep([layer])
        layer.data.copy_(torch.tensor([math.nan, 3.0, math.inf]))
        reducer.changed([layer])
        assert reducer.drain()[0].values[0, 0, NAMES.index("step_sum_sq")] == 4.0


@pytest.mark.parametrize("broken", ["missing", "declines"])
def test_without_torchs_own_way_of_copying_many_tensors_they_are_copied_one_by_one(
    monkeypatch: pytest.MonkeyPatch, broken: str
):
    def decline(*_: object) -> None:
        raise RuntimeError("not for these")

    layers = TestChunks().layers()
    expected = layer_statistics(layers)
    if broken == "missing":
        monkeypatch.delattr(torch, "_foreach_copy_")
    else:
        monkeypatch.setattr(torch, "_foreach_copy_", decline)
    found = layer_statistics(layers)
    assert torch.equal(found[0].values.nan_to_num(7), expected[0].values.nan_to_num(7))
    assert torch.equal(found[1], expected[1])


@given(gradients(), st.integers(0, 6))
@settings(max_examples=25)
def test_two_halves_merged_by_the_contract_are_the_whole(grad: Tensor, cut: int):
    def row(part: Tensor) -> dict[str, object]:
        packed, histograms = layer_statistics([with_grad(torch.zeros_like(part), part.contiguous())])
        own = dict(zip(packed.names, packed.values[0].tolist(), strict=True))
        return own | {"n": part.numel(), "grad_histogram": histograms[0].tolist()}

    declared = [c for c in columns("gradient_layers") if c.name in row(grad)]
    merged, whole = merge(declared, [row(grad[:, :cut]), row(grad[:, cut:])]), row(grad)
    assert merged["grad_histogram"] == whole["grad_histogram"]
    size = 24 * max((abs(v) for v in grad.flatten().tolist() if math.isfinite(v)), default=0.0)
    for name in set(merged) - {"grad_histogram", "step_sum_sq"}:
        assert same(merged[name], whole[name], size), name  # type: ignore[arg-type]
