"""What the recorder measures of a model's parameters, step by step."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from esper_recorder import MemorySink, Recorder
from esper_recorder.capture.transfer import Transfer, join, split


def trained(
    root: Path, *, level: str, steps: int = 3, announce: bool = False, clear: bool = False
) -> list[dict[str, Any]]:
    """SGD at a rate of 0.5 whose gradient at step i is i: a step changes each of the four weights by i / 2."""
    sink = MemorySink()
    weight = torch.nn.Parameter(torch.zeros(4))
    model = torch.nn.Module()
    model.register_parameter("weight", weight)
    optimizer = torch.optim.SGD([weight], lr=0.5)
    with Recorder(root, sink=sink, rules=None, level=level, model=model, optimizer=optimizer) as rec:
        for _ in range(2):
            for i in range(1, steps + 1):
                rec.minibatch(log_ratio=torch.zeros(2), epoch=i)
                weight.grad = torch.full((4,), float(i))
                if announce:
                    rec.layers(after_clipping=False)
                rec.gradients(total_norm=2.0 * i)
                optimizer.step()
                if clear:
                    optimizer.zero_grad()
            rec.end_update()
    return sink.rows("gradient_layers")


@pytest.mark.parametrize("announce", [False, True])
class TestTheStep:
    def test_at_normal_what_the_last_one_changed_is_recorded(self, tmp_path: Path, announce: bool):
        rows = trained(tmp_path, level="normal", announce=announce)
        assert [(r["update"], r["minibatch"], r["epoch"], r["grad_max"]) for r in rows] == [
            (1, 3, 3, 3.0),
            (2, 3, 3, 3.0),
        ]
        # sqrt(4 * 1.5^2)
        assert [r["step_norm"] for r in rows] == [3.0, 3.0]
        assert [r["after_clipping"] for r in rows] == [not announce] * 2

    def test_at_debug_what_each_one_changed_is_recorded(self, tmp_path: Path, announce: bool):
        rows = trained(tmp_path, level="debug", announce=announce)
        assert [(r["update"], r["minibatch"]) for r in rows] == [(u, m) for u in (1, 2) for m in (1, 2, 3)]
        assert [r["step_norm"] for r in rows] == [1.0, 2.0, 3.0] * 2
        assert [r["grad_norm"] for r in rows] == [2.0, 4.0, 6.0] * 2
        # The weights before the step: 0, -0.5, -1.5, -3, -3.5, -4.5, each four times.
        assert [r["weight_norm"] for r in rows] == [0.0, 1.0, 3.0, 6.0, 7.0, 9.0]


def test_gradients_that_were_cleared_after_the_step_are_none(tmp_path: Path):
    rows = trained(tmp_path, level="normal", clear=True)
    assert [(r["has_grad"], r["grad_norm"], r["step_norm"]) for r in rows] == [(False, None, None)] * 2


def test_parameters_that_begin_to_have_gradients_are_measured_from_then_on(tmp_path: Path):
    sink = MemorySink()
    model = torch.nn.Module()
    for name, n in (("a", 3), ("b", 2), ("empty", 0)):
        model.register_parameter(name, torch.nn.Parameter(torch.ones(n)))
    model.register_parameter("wide", torch.nn.Parameter(torch.ones(2, dtype=torch.float64)))
    parameters = dict(model.named_parameters())
    with Recorder(tmp_path, sink=sink, rules=None, level="debug", model=model) as rec:
        rec.minibatch(log_ratio=torch.zeros(2))
        parameters["a"].grad = torch.ones(3)
        rec.layers()
        for parameter in parameters.values():
            parameter.grad = torch.full_like(parameter, 2.0)
        rec.layers()
        rec.end_update()
    rows = sink.rows("gradient_layers")
    found = [(r["layer"], r["has_grad"], r["n"], r["grad_sum"]) for r in rows]
    assert found[:4] == [
        ("a", True, 3, 3.0),
        ("b", False, 2, None),
        ("empty", False, 0, None),
        ("wide", False, 2, None),
    ]
    assert found[4:] == [("a", True, 3, 6.0), ("b", True, 2, 4.0), ("empty", True, 0, 0.0), ("wide", True, 2, 4.0)]
    assert [sum(r["grad_histogram"] or []) for r in rows[4:]] == [3, 2, 0, 2]
    assert (rows[6]["grad_min"], rows[6]["grad_mean"]) == (None, None)
    assert rows[1]["grad_histogram"] is None


def test_a_sparse_gradient_is_recorded_as_present_and_not_measured(tmp_path: Path):
    sink = MemorySink()
    model = torch.nn.Embedding(5, 2, sparse=True)
    model(torch.tensor([1, 3])).sum().backward()
    with Recorder(tmp_path, sink=sink, rules=None, model=model) as rec:
        rec.minibatch(log_ratio=torch.zeros(2))
        rec.end_update()
    (row,) = sink.rows("gradient_layers")
    assert (row["has_grad"], row["grad_sum"], row["weight_norm"]) == (True, None, None)


def test_a_complex_gradient_is_recorded_as_present_and_not_measured(tmp_path: Path):
    sink = MemorySink()
    model = torch.nn.Module()
    model.register_parameter("z", torch.nn.Parameter(torch.ones(2, dtype=torch.complex64)))
    model.z.grad = torch.ones(2, dtype=torch.complex64)
    with Recorder(tmp_path, sink=sink, rules=None, model=model) as rec:
        rec.minibatch(log_ratio=torch.zeros(2))
        rec.end_update()
    (row,) = sink.rows("gradient_layers")
    assert (row["has_grad"], row["grad_sum"], row["weight_norm"]) == (True, None, None)


def test_what_is_joined_for_the_transfer_is_split_again():
    tensors = {
        "counts": torch.tensor([[2**53 - 1, 3]]),
        "nothing": torch.zeros(0, 4),
        "flag": torch.tensor(True),
        "odd": torch.tensor([math.nan, math.inf, -0.0]),
        "half": torch.tensor([1.5], dtype=torch.bfloat16),
    }
    found = split(join(tensors), tensors)
    assert {name: (x.dtype, x.shape, repr(x.tolist())) for name, x in found.items()} == {
        name: (x.dtype, x.shape, repr(x.tolist())) for name, x in tensors.items()
    }
    assert Transfer(tensors).done and Transfer(tensors).wait() == tensors
