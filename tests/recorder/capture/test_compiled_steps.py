"""`esper_recorder.reduce` and `Recorder.push`: minibatches of training steps that Python does not run in."""

from __future__ import annotations

import importlib
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import esper_recorder
from esper_recorder import MemorySink, Recorder, reduce
from esper_recorder.arguments import BadCall
from esper_recorder.capture.compiled_steps import same_layout, unpack

TABLES = ("ppo_updates", "minibatches", "heads", "ratio_histograms", "ratio_exemplars")
APART = {"run_id", "time", "elapsed_s", "rollout_s", "update_s"}


def minibatch(seed: int, n: int = 40, **more: Any) -> dict[str, Any]:
    random = torch.Generator().manual_seed(seed)

    def numbers() -> Tensor:
        return torch.randn(n, generator=random)

    return {
        "new_log_probs": numbers(),
        "old_log_probs": numbers(),
        "raw_advantages": numbers(),
        "normalize_advantages": True,
        "entropy": numbers().abs(),
        "entropy_max": 0.7,
        "values": numbers(),
        "returns": numbers(),
        "old_values": numbers(),
        "mask": numbers() > -1,
        "clip_range": 0.2,
        "value_clip_range": 0.3,
        "index": torch.arange(n),
        "actions": torch.stack([numbers(), numbers()], dim=1),
        "heads": {
            "op": {"log_ratio": numbers(), "entropy": numbers().abs(), "entropy_max": 1.5},
            "slot": {"log_ratio": numbers(), "entropy": numbers().abs(), "mask": numbers() > 0},
        },
        **more,
    }


def rows(sink: MemorySink, table: str) -> list[str]:
    """NaN equals NaN, and NULL NULL."""
    return [repr({k: v for k, v in row.items() if k not in APART}) for row in sink.rows(table)]


def recorded(root: Path, minibatches: list[dict[str, Any]], *, pushed: bool, level: str = "normal") -> MemorySink:
    sink = MemorySink()
    with Recorder(root, sink=sink, rules=None, level=level) as rec:
        for own in minibatches:
            norm = torch.tensor(2.0)
            if pushed:
                rec.push(reduce(**own, total_norm=norm), epoch=1, stepped=True)
            else:
                rec.minibatch(**own, epoch=1, stepped=True)
                rec.gradients(total_norm=norm)
        rec.end_update(step=7)
    return sink


class TestTheSameRows:
    @pytest.mark.parametrize("level", ["normal", "debug"])
    def test_as_the_tensors_themselves(self, tmp_path: Path, level: str):
        given = [minibatch(seed) for seed in range(3)]
        own = recorded(tmp_path, given, pushed=False, level=level)
        pushed = recorded(tmp_path, given, pushed=True, level=level)
        for table in TABLES:
            assert rows(pushed, table) == rows(own, table), table
        assert pushed.rows("gaps") == []

    @pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
    def test_of_any_type_and_with_what_is_not_finite(self, tmp_path: Path, dtype: torch.dtype):
        x = torch.tensor([0.1, math.nan, -math.inf, math.inf, 30.0, -0.2], dtype=dtype)
        given = [{"log_ratio": x, "values": x, "returns": torch.ones(6), "heads": {"a": {"log_ratio": x}}}]
        own, pushed = (recorded(tmp_path, given, pushed=p) for p in (False, True))
        for table in TABLES:
            if table != "ratio_exemplars":  # of two infinities either may come first
                assert rows(pushed, table) == rows(own, table), table

    @pytest.mark.parametrize("n", [0, 1])
    def test_of_nothing_and_of_one(self, tmp_path: Path, n: int):
        given = [minibatch(1, n), minibatch(2, 3)]
        own, pushed = (recorded(tmp_path, given, pushed=p) for p in (False, True))
        for table in TABLES:
            assert rows(pushed, table) == rows(own, table), table

    def test_beside_minibatches_of_the_other_kind(self, tmp_path: Path):
        sink = MemorySink()
        with Recorder(tmp_path, sink=sink, rules=None) as rec:
            for seed in range(4):
                own = minibatch(seed, 5 + seed)
                rec.push(reduce(**own)) if seed % 2 else rec.minibatch(**own)
            rec.end_update()
        assert [row["minibatch"] for row in sink.rows("minibatches")] == [1, 2, 3, 4]
        assert [row["grad_norm"] for row in sink.rows("minibatches")] == [None] * 4

    def test_many_of_them(self, tmp_path: Path):
        given = [{"log_ratio": torch.full((4,), 0.01 * i)} for i in range(70)]  # more than the buffer begins with
        own, pushed = (recorded(tmp_path, given, pushed=p) for p in (False, True))
        assert rows(pushed, "minibatches") == rows(own, "minibatches")


def test_a_buffer_written_over_by_the_next_replay_does_not_change_what_was_pushed(tmp_path: Path):
    sink = MemorySink()
    with Recorder(tmp_path, sink=sink, rules=None) as rec:
        static = reduce(log_ratio=torch.full((3,), 0.5))
        rec.push(static)
        static.fill_(math.nan)
        rec.end_update()
    assert [row["log_ratio_sum"] for row in sink.rows("minibatches")] == [1.5]


def test_it_compiles_without_a_graph_break_and_gives_what_it_gives_eagerly(tmp_path: Path):
    given = minibatch(3)
    weight = torch.nn.Parameter(torch.ones(40))

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(own: dict[str, Any]) -> tuple[Tensor, Tensor]:
        loss = (torch.exp(own["new_log_probs"] - own["old_log_probs"]) * weight).mean()
        return loss, esper_recorder.reduce(**own, total_norm=loss)

    loss, packed = step(given)
    assert torch.equal(packed.nan_to_num(-1), reduce(**given, total_norm=loss).nan_to_num(-1))
    assert loss.requires_grad and not packed.requires_grad
    again = minibatch(4)
    assert torch.equal(step(again)[1][-500:].nan_to_num(-1), reduce(**again, total_norm=loss)[-500:].nan_to_num(-1))


def test_a_range_may_be_a_tensor(tmp_path: Path):
    own, as_tensor = (
        recorded(tmp_path, [minibatch(1, clip_range=clip)], pushed=True) for clip in (0.25, torch.tensor(0.25))
    )
    assert rows(own, "minibatches") == rows(as_tensor, "minibatches")
    assert own.rows("minibatches")[0]["clip_range"] == 0.25


def test_a_tensor_says_what_is_in_it():
    names = tuple(f"a head with a long name, and an ü, number {i}" for i in range(3))
    given: list[dict[str, Any]] = [
        {"log_ratio": torch.zeros(2), "heads": {name: {"entropy": torch.ones(2)} for name in names}}
    ] * 2
    packed = torch.stack([reduce(**own) for own in given])
    (joint, heads), _ = unpack(packed)
    assert (joint.names, heads.names) == (("",), names)
    assert heads.statistics.values[:, :, heads.statistics.names.index("entropy_sum")].tolist() == [[2.0] * 3] * 2
    assert heads.exemplars is None
    assert same_layout(packed) == [range(2)]


@pytest.mark.parametrize("wrong", [torch.zeros(9), torch.zeros(9, dtype=torch.float64), 3.0, torch.zeros(2, 9)])
def test_what_reduce_did_not_make_is_a_gap(tmp_path: Path, wrong: Any):
    sink = MemorySink()
    with Recorder(tmp_path, sink=sink, rules=None) as rec:
        rec.push(wrong)
        rec.end_update()
    (gap,) = sink.rows("gaps")
    assert "what was pushed is not what esper_recorder.reduce returned" in gap["detail"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"values": torch.zeros(3)}, "a minibatch needs log_ratio"),
        ({"log_ratio": torch.zeros(3), "values": torch.zeros(4)}, "log_ratio has 3, values has 4"),
        ({"log_ratio": torch.zeros(3), "heads": {"op": {"entropi": torch.zeros(3)}}}, "Did you mean entropy"),
    ],
)
def test_an_invalid_call_raises_where_it_is_made(given: dict[str, Any], words: str):
    with pytest.raises(BadCall, match=words):
        reduce(**given)


def test_the_public_name_is_the_function_whatever_is_imported_beside_it():
    importlib.import_module("esper_recorder.reductions.gradients")
    assert esper_recorder.reduce is reduce and callable(reduce)
