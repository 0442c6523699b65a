"""Statistics of gradients, layer by layer."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from esper_recorder.contract.histogram import gradient_bin_count, gradient_edges
from esper_recorder.contract.tables import column_names
from esper_recorder.reductions.gradients import layer_statistics
from tests.recorder.arrays import numbers, random_tensor, same, total, total_sq

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
