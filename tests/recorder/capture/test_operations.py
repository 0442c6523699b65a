"""How many tensor operations an update takes: on a device each is a launch, on the host each costs microseconds.

Counted is what ATen runs, except for views and allocations; a multi-tensor operation (`_foreach_*`) is one. The counts
do not depend on the sizes, so small tensors stand for large ones, and the device `meta`, which has no data, for a GPU.
What only CUDA does is not counted: copies to pinned memory, see `host_copies` and `transfer`.
"""

from __future__ import annotations

import functools
import tempfile
from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from esper_recorder import MemorySink, Recorder
from esper_recorder.capture.failures import Failures
from esper_recorder.storage.writer import Writer

MINIBATCHES, N = 20, 64
UNCOUNTED = frozenset(
    {
        *("view", "_unsafe_view", "unsqueeze", "squeeze", "select", "slice", "expand", "transpose", "permute", "t"),
        *("unbind", "split", "split_with_sizes", "chunk", "detach", "alias", "as_strided", "movedim", "lift_fresh"),
        *("_reshape_alias", "empty", "empty_like", "empty_strided", "new_empty"),
    }
)


class CountOperations(TorchDispatchMode):
    """Counts operations on tensors of a device, by the call of the recorder that makes them."""

    def __init__(self, device: str) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()
        self.call = ""
        self._device = device

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [x for x in tree_leaves((args, kwargs, result)) if isinstance(x, Tensor)]
        name = func._schema.name.removeprefix("aten::")
        if name not in UNCOUNTED and any(x.device.type == self._device for x in tensors):
            self.counts[self.call] += 1
        return result

    def by(self, call: str) -> CountOperations:
        self.call = call
        return self


@pytest.fixture(autouse=True)
def strict(monkeypatch: pytest.MonkeyPatch) -> None:
    """A recorder that raises what it would otherwise count, and hands nothing to its writer."""

    def failed(self: Failures, what: str, error: Exception, cost: Any = None) -> None:
        raise error

    monkeypatch.setattr(Failures, "report", failed)
    monkeypatch.setattr(Writer, "put", lambda *_, **__: None)


def fields(device: str, kind: str) -> dict[str, Any]:
    """What a minibatch is given."""

    def x() -> Tensor:
        return torch.zeros(N, device=device)

    few = {"log_ratio": x(), "advantages": x(), "values": x(), "returns": x(), "clip_range": 0.2}
    own = {"new_log_probs": x(), "entropy": x(), "entropy_max": 0.7, "values": x(), "clip_range": 0.2}
    own["normalize_advantages"] = True
    many = own | {"old_log_probs": x(), "raw_advantages": x(), "returns": x(), "old_values": x()}
    head = {"log_ratio": x(), "entropy": x(), "entropy_max": 0.7}
    return {
        "4 fields": few,
        "8 fields": many,
        "8 fields, mask": many | {"mask": torch.ones(N, dtype=torch.bool, device=device)},
        "8 fields, 1 head": many | {"heads": {"op": head}},
        "8 fields, 6 heads": many | {"heads": {f"head {i}": head for i in range(6)}},
        "index": own | {"index": torch.zeros(N, dtype=torch.int64, device=device)},
    }[kind]


@functools.cache
def operations(device: str, kind: str, layers: int = 50) -> Counter[str]:
    """The operations of the second update by call: in the first one, buffers are made."""
    model = torch.nn.ParameterList([torch.nn.Parameter(torch.zeros(i, 3, device=device)) for i in range(layers)])
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    count = CountOperations(device)
    rollout = {
        name: torch.zeros(16, 8, device=device)
        for name in ("values", "returns", "advantages", "rewards", "old_log_probs")
    }
    for parameter in model:
        parameter.grad = torch.zeros_like(parameter)
    with (
        tempfile.TemporaryDirectory() as root,
        Recorder(root, sink=MemorySink(), rules=None, model=model, optimizer=optimizer) as rec,
    ):
        rec.adapter.announce_layers()
        for update in (1, 2):
            count.counts.clear()
            with count.by("rollout"):
                rec.rollout(**rollout, index_order="env_major")
            for minibatch in range(1, MINIBATCHES + 1):
                given, norm = fields(device, kind), torch.zeros((), device=device)
                with count.by("minibatch"):
                    rec.minibatch(**given, epoch=1)
                    rec.gradients(total_norm=norm)
                if minibatch == MINIBATCHES:
                    with count.by("layers"):
                        rec.layers(after_clipping=True)
                optimizer.step()
            with count.by("end"):
                rec.end_update(step=update)
    return count.counts


MOST = {
    "4 fields": 225,
    "8 fields": 235,
    "8 fields, mask": 260,
    "8 fields, 1 head": 300,
    "8 fields, 6 heads": 300,
    "index": 290,
}


@pytest.mark.parametrize("kind", MOST)
def test_an_update_on_a_device_takes_no_more_operations_than_this(kind: str):
    found = operations("meta", kind)
    assert sum(found.values()) <= MOST[kind], found


@pytest.mark.parametrize(("kind", "most"), [("8 fields", 185), ("index", 220)])
def test_an_update_on_the_host_takes_no_more_operations_than_this(kind: str, most: int):
    found = operations("cpu", kind)
    assert sum(found.values()) <= most, found


@pytest.mark.parametrize(("kind", "each"), [("8 fields", 2), ("8 fields, 6 heads", 2), ("index", 3)])
def test_a_minibatch_takes_a_copy_of_its_fields_one_of_its_index_and_one_of_its_norm(kind: str, each: int):
    assert operations("meta", kind)["minibatch"] == each * MINIBATCHES


@pytest.mark.parametrize("device", ["meta", "cpu"])
def test_the_number_of_layers_does_not_matter(device: str):
    assert operations(device, "8 fields", 3) == operations(device, "8 fields")


def test_the_number_of_heads_with_the_same_fields_does_not_matter():
    one, six = (operations("meta", f"8 fields, {kind}") for kind in ("1 head", "6 heads"))
    assert one == six
