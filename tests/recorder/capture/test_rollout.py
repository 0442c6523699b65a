"""What minibatches look up in the rollout by index: the same rows as if each had been given all its tensors."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback
from torch import Tensor

import esper_recorder.sb3
from esper_recorder import MemorySink, Recorder
from esper_recorder.arguments import MINIBATCH_FIELDS
from esper_recorder.capture.minibatch_buffer import BatchSummary, MinibatchBuffer, MinibatchNotes
from esper_recorder.capture.rollout import Rollout
from esper_recorder.contract.tables import TABLES
from esper_recorder.sb3 import RecorderCallback
from tests.recorder.sb3_runs import TinyEnv
from tests.recorder.storage.stored_updates import read_rows

ROLLOUT = ("old_log_probs", "advantages", "returns", "values")
NEW = ("new_log_prob", "entropy", "value")
FOUND = ("old_log_prob", "raw_advantage", "value_target", "old_value")
"""The fields of `ROLLOUT`, in its order."""
CLOCKED = {"run_id", "time", "elapsed_s", "rollout_s", "update_s"}


class TestStableBaselines3:
    def train(self, root: Path, level: str = "normal", *others: BaseCallback, **options: Any) -> dict[str, list[Any]]:
        """Every row of a training of 3 updates, without what a clock or chance gave."""
        model = PPO("MlpPolicy", TinyEnv(), n_steps=33, batch_size=16, n_epochs=2, seed=3, device="cpu", **options)
        callback = RecorderCallback(root, level=level)
        model.learn(99, callback=[callback, *others])
        assert callback.path is not None
        return {
            table: [{k: repr(v) for k, v in row.items() if k not in CLOCKED} for row in read_rows(callback.path, table)]
            for table in TABLES
        }

    @pytest.fixture
    def whole(self, monkeypatch: pytest.MonkeyPatch) -> Callable[..., dict[str, list[Any]]]:
        """`train`, with minibatches that are given all their tensors."""

        def train(*args: Any, **options: Any) -> dict[str, list[Any]]:
            with monkeypatch.context() as patch:
                patch.setattr(esper_recorder.sb3, "_has_rows_as_minibatches", lambda buffer: False)
                return self.train(*args, **options)

        return train

    @pytest.mark.filterwarnings("ignore::UserWarning")
    @pytest.mark.parametrize("level", ["normal", "debug"])
    def test_a_training_gives_the_rows_it_gives_with_all_tensors(self, tmp_path: Path, whole: Any, level: str):
        # 33 transitions in minibatches of 16: the last one has a single transition, which is not normalised.
        ours = self.train(tmp_path / "by_index", level, clip_range_vf=0.1, ent_coef=0.01)
        assert ours == whole(tmp_path / "whole", level, clip_range_vf=0.1, ent_coef=0.01)
        assert len(ours["minibatches"]) == 3 * 2 * 3 and not ours["gaps"]

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_a_callback_that_changes_the_rollout_before_the_update_is_recorded(self, tmp_path: Path, whole: Any):
        class Halve(BaseCallback):
            def _on_step(self) -> bool:
                return True

            def _on_rollout_end(self) -> None:
                self.model.rollout_buffer.advantages /= 2  # type: ignore[attr-defined]

        ours = self.train(tmp_path / "by_index", "normal", Halve(), normalize_advantage=False)
        assert ours == whole(tmp_path / "whole", "normal", Halve(), normalize_advantage=False)

    @pytest.mark.filterwarnings("ignore::UserWarning")
    def test_a_buffer_that_makes_other_minibatches_of_its_arrays_is_recorded_as_the_loss_saw_it(self, tmp_path: Path):
        class Halved(RolloutBuffer):
            """Its minibatches hold something else than its arrays do."""

            def _get_samples(self, batch_inds: Any, env: Any = None) -> Any:
                samples = super()._get_samples(batch_inds, env)
                return samples._replace(advantages=samples.advantages / 2)

        unchanged = self.train(tmp_path / "unchanged", normalize_advantage=False)
        halved = self.train(tmp_path / "halved", normalize_advantage=False, rollout_buffer_class=Halved)
        first, other = unchanged["minibatches"][0], halved["minibatches"][0]
        assert float(other["advantage_sum"]) == pytest.approx(float(first["advantage_sum"]) / 2, rel=1e-6)


def reduced(buffer: MinibatchBuffer) -> list[BatchSummary]:
    return [batch for batch in buffer.drain() if isinstance(batch, BatchSummary)]


def both_ways(
    rollout: dict[str, Tensor], minibatches: list[tuple[Tensor, dict[str, Tensor]]], **options: Any
) -> tuple[list[BatchSummary], list[BatchSummary]]:
    """The same minibatches reduced with fields found by index, and with all of them given."""
    stored = Rollout.of(rollout, index_order="time_major", actions=None)
    by_index, whole = MinibatchBuffer(**options), MinibatchBuffer(**options)
    order = tuple(field for field in MINIBATCH_FIELDS.values() if field in (*NEW, *FOUND))
    for number, (index, new) in enumerate(minibatches, 1):
        n = len(index)
        notes = [MinibatchNotes(number, 1, 0.2, 0.1, normalize=n > 1, entropy_max=math.log(3)) for _ in range(2)]
        by_index.append(NEW, [new[name] for name in NEW], notes[0], index=index, rollout=stored)
        every = new | {f: rollout[name].flatten()[index] for f, name in zip(FOUND, ROLLOUT, strict=True)}
        whole.append(order, [every[name] for name in order], notes[1], index=index)
    return reduced(by_index), reduced(whole)


def assert_bitwise_equal(ours: list[BatchSummary], theirs: list[BatchSummary]) -> None:
    assert len(ours) == len(theirs) == 1
    a, b = ours[0], theirs[0]
    assert a.outside is None or not bool(a.outside.any())
    left, right = a.tensors(), b.tensors()
    left.pop("outside", None)
    assert left.keys() == right.keys()
    exemplars = [batch.ratios[0].exemplars for batch in (a, b)]
    assert exemplars[0] is not None and exemplars[1] is not None and exemplars[0].names == exemplars[1].names
    severity = exemplars[0].values[..., exemplars[0].names.index("severity")]
    for name in left:
        x, y = left[name], right[name]
        if name == "0.exemplars":  # a place that no transition was left for has a severity of -1, and else no meaning
            x, y = x[severity >= 0], y[severity >= 0]
        assert x.dtype == y.dtype
        assert x.nan_to_num(7.0).numpy().tobytes() == y.nan_to_num(7.0).numpy().tobytes(), name
        assert torch.equal(x.isnan(), y.isnan()), name


@given(
    lengths=st.lists(st.integers(0, 40), min_size=1, max_size=6),
    dtypes=st.lists(st.sampled_from([torch.float32, torch.float64, torch.bfloat16]), min_size=7, max_size=7),
    seed=st.integers(0, 2**31),
    per_minibatch=st.booleans(),
    odd=st.sampled_from([None, math.nan, math.inf, -math.inf, 3e38, 100.0, 0.0]),
)
@settings(max_examples=80)
def test_what_an_index_finds_is_reduced_bit_for_bit_as_what_is_given(
    lengths: list[int], dtypes: list[torch.dtype], seed: int, per_minibatch: bool, odd: float | None
):
    random = np.random.default_rng(seed)

    def numbers(n: int, dtype: torch.dtype) -> Tensor:
        x = torch.from_numpy(random.normal(size=n))
        if odd is not None and n and random.random() < 0.3:
            x[random.integers(n)] = odd
        return x.to(dtype)

    rollout = {name: numbers(50, dtype).reshape(25, 2) for name, dtype in zip(ROLLOUT, dtypes[:4], strict=True)}
    minibatches = [
        (
            torch.from_numpy(random.integers(50, size=n)),
            {name: numbers(n, dtype) for name, dtype in zip(NEW, dtypes[4:], strict=True)},
        )
        for n in lengths
    ]
    assert_bitwise_equal(*both_ways(rollout, minibatches, per_minibatch=per_minibatch))


def recorded(root: Path, **options: Any) -> tuple[MemorySink, Recorder]:
    sink = MemorySink()
    return sink, Recorder(root, sink=sink, rules=None, **options)


def grid(*numbers: float) -> Tensor:
    """Three steps of two environments."""
    return torch.tensor(numbers).reshape(3, 2)


@pytest.mark.parametrize(
    "kind",
    [
        torch.tensor,
        np.array,
        list,
        lambda x: np.array(x, dtype=np.int32),
        lambda x: np.array(x, dtype=np.uint8),
        lambda x: np.array(x[::-1], dtype=np.int64)[::-1],
        lambda x: torch.tensor(x, dtype=torch.uint8),
        lambda x: torch.tensor(x, dtype=torch.float32),
        lambda x: torch.tensor([x]).t(),
    ],
)
@pytest.mark.parametrize(
    ("index_order", "returns"),
    # Positions 1 and 4. Time-major they are step 0 of env 1 and step 2 of env 0; env-major the other way about.
    [("time_major", 1.0 + 4.0), ("env_major", 2.0 + 3.0)],
)
def test_an_index_counts_as_the_rollout_says(tmp_path: Path, kind: Any, index_order: str, returns: float):
    sink, rec = recorded(tmp_path)
    with rec:
        rec.rollout(
            values=grid(0, 0, 0, 0, 0, 0),
            returns=grid(0, 1, 2, 3, 4, 5),
            old_log_probs=grid(0, 0, 0, 0, 0, 0),
            index_order=index_order,
        )
        rec.minibatch(new_log_probs=torch.zeros(2), values=torch.zeros(2), index=kind([1, 4]))
        rec.end_update()
    (row,) = sink.rows("minibatches")
    assert (row["return_sum"], row["n"]) == (returns, 2)
    places = {(e["index"], e["env_step"], e["env"]) for e in sink.rows("ratio_exemplars")}
    assert places == ({(1, 0, 1), (4, 2, 0)} if index_order == "time_major" else {(1, 1, 0), (4, 1, 1)})


def test_what_is_given_comes_before_what_the_index_finds(tmp_path: Path):
    sink, rec = recorded(tmp_path)
    with rec:
        rec.rollout(returns=torch.ones(4), old_log_probs=torch.zeros(4))
        rec.minibatch(log_ratio=torch.zeros(2), returns=torch.full((2,), 3.0), index=torch.tensor([0, 1]))
        rec.end_update()
    (row,) = sink.rows("minibatches")
    assert row["return_sum"] == 6.0
    assert [e["old_log_prob"] for e in sink.rows("ratio_exemplars")] == [0.0, 0.0]


@pytest.mark.parametrize(("normalize", "advantages"), [(None, None), (False, 3.0), (True, 0.0)])
def test_the_losses_advantages_are_known_only_if_the_call_says_how_they_were_normalised(
    tmp_path: Path, normalize: bool | None, advantages: float | None
):
    sink, rec = recorded(tmp_path)
    with rec:
        rec.rollout(advantages=torch.tensor([1.0, 2.0]), old_log_probs=torch.zeros(2))
        rec.minibatch(
            new_log_probs=torch.zeros(2), index=torch.tensor([0, 1]), normalize_advantages=normalize, clip_range=0.2
        )
        rec.end_update()
    (row,) = sink.rows("minibatches")
    assert row["raw_advantage_sum"] == 3.0
    assert row["advantage_sum"] == (None if advantages is None else pytest.approx(advantages, abs=1e-6))
    assert (row["policy_loss"] is None) == (advantages is None)


def test_the_trainers_tensors_and_arrays_may_change_after_the_call(tmp_path: Path):
    sink, rec = recorded(tmp_path)
    with rec:
        rollout: dict[str, Any] = {name: torch.ones(4) for name in ROLLOUT}
        rec.rollout(**rollout)
        new, index = torch.zeros(2), np.array([0, 3])
        rec.minibatch(new_log_probs=new, values=new, index=index)
        for x in (*rollout.values(), new):
            x.fill_(9.0)
        index[:] = 1
        rec.end_update()
    (row,) = sink.rows("minibatches")
    assert (row["value_sum"], row["return_sum"], row["log_ratio_sum"]) == (0.0, 2.0, -2.0)
    assert sorted(e["index"] for e in sink.rows("ratio_exemplars")) == [0, 3]


def test_positions_outside_the_rollout_are_left_out_and_reported_once_per_update(tmp_path: Path):
    sink, rec = recorded(tmp_path)
    with rec:
        rec.rollout(returns=torch.arange(4.0), old_log_probs=torch.zeros(4))
        for index in ([0, 4, -7, 1], [2, 3, 2, 3], [3, 9, 3, 3]):
            rec.minibatch(new_log_probs=torch.zeros(4), values=torch.zeros(4), index=torch.tensor(index))
        rec.end_update()
    assert [(row["n"], row["return_sum"]) for row in sink.rows("minibatches")] == [(2, 1.0), (4, 10.0), (3, 9.0)]
    (gap,) = sink.rows("gaps")
    assert (gap["reason"], gap["table_name"], gap["first_update"], gap["rows"]) == ("bad_call", "minibatches", 1, 0)
    assert "index of minibatch 1 and of 1 more has positions outside the rollout (2 in the first" in gap["detail"]


def test_padding_has_a_position_of_minus_one_and_is_left_out_silently(tmp_path: Path):
    sink, rec = recorded(tmp_path)
    with rec:
        rec.rollout(returns=torch.arange(4.0), old_log_probs=torch.zeros(4))
        rec.minibatch(new_log_probs=torch.zeros(3), values=torch.zeros(3), index=torch.tensor([3, -1, 1]))
        # What the mask leaves out may have any position.
        rec.minibatch(
            new_log_probs=torch.zeros(2), values=torch.zeros(2), index=torch.tensor([2, 99]), mask=torch.tensor([1, 0])
        )
        rec.end_update()
    assert [(row["n"], row["return_sum"]) for row in sink.rows("minibatches")] == [(2, 4.0), (1, 2.0)]
    assert sink.rows("gaps") == []


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({"new_log_probs": torch.zeros(2)}, "a minibatch needs log_ratio, or new_log_probs and old_log_probs"),
        ({"log_ratio": torch.zeros(2), "index": [0, 1, 2]}, "log_ratio has 2, index has 3"),
        ({"log_ratio": torch.zeros(2), "index": ["a", "b"]}, "index is a list; give a tensor"),
        ({"log_ratio": torch.zeros(2), "index": np.array(["a", "b"])}, "index is a ndarray; give a tensor"),
        ({"log_ratio": torch.zeros(2), "index": torch.zeros(2, device="meta")}, "index is on meta, the minibatch's"),
    ],
)
def test_an_index_that_cannot_find_enough_is_a_bad_call(tmp_path: Path, call: dict[str, Any], message: str):
    sink, rec = recorded(tmp_path)
    with rec:
        rec.rollout(returns=torch.zeros(4))
        rec.minibatch(log_ratio=torch.zeros(2))
        rec.minibatch(**call)
        rec.end_update()
    assert [row["minibatch"] for row in sink.rows("minibatches")] == [1]
    (gap,) = sink.rows("gaps")
    assert gap["reason"] == "bad_call" and message in gap["detail"]


def test_a_rollout_on_a_device_is_not_read_for_minibatches_of_the_host(tmp_path: Path):
    rollout = Rollout.of({"returns": torch.zeros(4, device="meta")}, index_order="time_major", actions=None)
    assert rollout.missing_from((), torch.device("cpu")) == ()
    assert rollout.missing_from((), torch.device("meta")) == ("value_target",)


def test_minibatches_before_a_second_rollout_look_up_the_first(tmp_path: Path):
    sink, rec = recorded(tmp_path)
    with rec:
        for value in (1.0, 2.0):
            rec.rollout(returns=torch.full((4,), value), old_log_probs=torch.zeros(4))
            rec.minibatch(new_log_probs=torch.zeros(2), values=torch.zeros(2), index=torch.tensor([0, 1]))
        rec.end_update()
    assert [row["return_sum"] for row in sink.rows("minibatches")] == [2.0, 4.0]
