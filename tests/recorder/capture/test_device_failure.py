"""A device that fails in the middle of an update: what had arrived on the host is recorded.

The CPU stands in for a device: copies to the host are made by the test, some never arrive, and from the failure on
every reduction raises what CUDA raises. What pinned memory and a poisoned context really do shows on a GPU alone.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esper_recorder import MemorySink, Recorder
from esper_recorder.capture.minibatch_buffer import MinibatchBuffer
from esper_recorder.storage.manifest import how_it_ended, read_manifest
from tests.recorder.storage.stored_updates import read_rows

ASSERT = "CUDA error: device-side assert triggered"


class Device:
    """A stand-in for a device: it can fail, and copies from it arrive late or never."""

    def __init__(self) -> None:
        self.failed = False
        self.arriving = 1_000_000
        """How many more tensors arrive on the host: a minibatch takes two."""

    def to_host(self, tensor: Tensor) -> Tensor:
        self.arriving -= 1
        return tensor.clone() if self.arriving >= 0 else torch.zeros_like(tensor)

    def failing(self, work: Callable[..., Any]) -> Callable[..., Any]:
        """Work that needs the device, unless it is on what was salvaged."""

        def call(buffer: Any, *args: Any, **kwargs: Any) -> Any:
            if self.failed and not getattr(buffer, "on_host", False):
                raise RuntimeError(ASSERT)
            return work(buffer, *args, **kwargs)

        return call


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> Device:
    device = Device()
    salvage = MinibatchBuffer.salvage

    def salvaged(buffer: MinibatchBuffer) -> tuple[MinibatchBuffer, int]:
        device.failed = False  # it is not needed for what has arrived
        other, arrived = salvage(buffer)
        device.failed = True
        other.on_host = True  # type: ignore[attr-defined]
        return other, arrived

    for module in ("host_copies", "minibatch_buffer", "rollout"):
        monkeypatch.setattr(f"esper_recorder.capture.{module}.DEVICES", ("cpu",))
    monkeypatch.setattr("esper_recorder.capture.host_copies.to_pinned", device.to_host)
    monkeypatch.setattr(MinibatchBuffer, "_reduce", device.failing(MinibatchBuffer._reduce))
    monkeypatch.setattr(MinibatchBuffer, "salvage", salvaged)
    return device


def minibatch(rec: Recorder, log_ratio: float, n: int = 4) -> None:
    rec.minibatch(log_ratio=torch.full((n,), log_ratio), values=torch.ones(n), returns=torch.ones(n), clip_range=0.2)


def failing(device: Device, root: Path, sink: MemorySink | None = None, arriving: int = 1_000_000) -> Recorder:
    """A training whose device fails in its second update, after three minibatches; two tensors a minibatch."""
    with pytest.raises(RuntimeError, match="device-side assert"), Recorder(root, sink=sink, rules=None) as rec:
        minibatch(rec, 0.0)
        rec.end_update()
        rec.rollout(values=torch.zeros(4), returns=torch.zeros(4))
        device.arriving = arriving
        rec.episode(return_=5.0)
        for log_ratio, n in ((0.1, 4), (0.2, 4), (0.3, 6)):
            minibatch(rec, log_ratio, n)
            rec.gradients(total_norm=2.0)
        device.failed = True
        raise RuntimeError(ASSERT)
    return rec


def test_the_minibatches_before_the_failure_are_recorded(tmp_path: Path, device: Device):
    rec = failing(device, tmp_path)
    assert rec.path is not None and how_it_ended(rec.path) == "raised"
    assert ASSERT in str(read_manifest(rec.path).attempts[0].error)
    rows = [row for row in read_rows(rec.path, "minibatches") if row["update"] == 2]
    assert [(row["minibatch"], row["n"], row["grad_norm"]) for row in rows] == [(1, 4, 2.0), (2, 4, 2.0), (3, 6, 2.0)]
    assert [row["log_ratio_max"] for row in rows] == pytest.approx([0.1, 0.2, 0.3])
    (update,) = [row for row in read_rows(rec.path, "ppo_updates") if row["update"] == 2]
    assert (update["n"], update["minibatch_count"], update["interrupted"]) == (14, 3, True)
    assert update["rollout_n"] is None, "what was summed up on the device is lost"
    assert [row["episode_return"] for row in read_rows(rec.path, "episodes")] == [5.0]


def test_what_had_not_arrived_is_a_gap(tmp_path: Path, device: Device):
    sink = MemorySink()
    # Minibatch 1 and its mark arrive; of minibatch 2 the values arrive and the mark does not.
    failing(device, tmp_path, sink, arriving=3)
    assert [row["minibatch"] for row in sink.rows("minibatches") if row["update"] == 2] == [1]
    (gap,) = sink.rows("gaps")
    assert (gap["reason"], gap["table_name"], gap["rows"]) == ("device_failed", "minibatches", 2)
    assert ASSERT in gap["detail"]


def test_if_nothing_had_arrived_the_whole_update_is_a_gap(tmp_path: Path, device: Device):
    sink = MemorySink()
    failing(device, tmp_path, sink, arriving=0)
    assert sink.updates[0] == 1 and [row["update"] for row in sink.rows("ppo_updates")] == [1]
    (gap,) = sink.rows("gaps")
    assert (gap["reason"], gap["table_name"], gap["first_update"]) == ("reduce_failed", "*", 2)


def test_a_norm_that_was_only_on_the_device_is_not_measured_rather_than_nan(tmp_path: Path, device: Device):
    sink = MemorySink()
    with Recorder(tmp_path, sink=sink, rules=None) as rec:
        minibatch(rec, 0.1)
        assert rec._open._newest is not None
        rec._open._newest.norm_seen = True  # as `gradients` notes a norm that stays on the device
        device.failed = True
        rec.end_update()
    (row,) = sink.rows("minibatches")
    assert row["grad_norm"] is None and row["nonfinite_count"] == 0
    (gap,) = sink.rows("gaps")
    assert (gap["reason"], gap["table_name"]) == ("device_failed", "gradient_layers")


def test_a_minibatch_that_is_on_the_host_anyway_is_not_copied_twice(tmp_path: Path):
    with Recorder(tmp_path, rules=None) as rec:
        minibatch(rec, 0.1)
        assert rec._open._buffer._copies == []


def test_minibatches_with_an_index_are_recorded_with_the_fields_of_the_rollout(tmp_path: Path, device: Device):
    sink = MemorySink()
    with Recorder(tmp_path, sink=sink, rules=None) as rec:
        rec.rollout(values=torch.zeros(4), returns=torch.arange(4.0), old_log_probs=torch.zeros(4))
        for index in (torch.tensor([3, 1]), np.array([0, 2])):
            rec.minibatch(new_log_probs=torch.ones(2), values=torch.zeros(2), index=index)
        device.failed = True
        rec.end_update()
    assert [(row["return_sum"], row["log_ratio_sum"]) for row in sink.rows("minibatches")] == [(4.0, 2.0), (2.0, 2.0)]


def test_minibatches_whose_rollout_has_not_arrived_are_missing(tmp_path: Path, device: Device):
    sink = MemorySink()
    with Recorder(tmp_path, sink=sink, rules=None) as rec:
        device.arriving = 0
        rec.rollout(old_log_probs=torch.zeros(4))
        device.arriving = 100
        rec.minibatch(new_log_probs=torch.ones(2), index=torch.tensor([3, 1]))
        minibatch(rec, 0.1)
        device.failed = True
        rec.end_update()
    assert [row["minibatch"] for row in sink.rows("minibatches")] == [2]
    (gap,) = sink.rows("gaps")
    assert (gap["reason"], gap["rows"]) == ("device_failed", 1)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: a real device-side assert is not tried")
def test_a_real_device_side_assert(tmp_path: Path, run_python: Callable[..., str]):
    code = """
import sys, torch
from esper_recorder import Recorder
try:
    with Recorder(sys.argv[1], rules=None) as rec:
        for log_ratio in (0.1, 0.2):
            rec.minibatch(log_ratio=torch.full((4,), log_ratio, device="cuda"))
        torch.cuda.synchronize()
        torch.zeros(2, device="cuda")[torch.tensor([5], device="cuda")]
        torch.cuda.synchronize()
except RuntimeError:
    print("failed")
"""
    assert run_python(code, str(tmp_path)).split() == ["failed"]
    (run,) = tmp_path.iterdir()
    assert [row["log_ratio_max"] for row in read_rows(run, "minibatches")] == pytest.approx([0.1, 0.2])
