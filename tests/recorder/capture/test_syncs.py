"""The training thread never waits for the device in a call of the recorder."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import pytest
import torch

import examples.device_ppo
from esper_recorder import Recorder
from esper_recorder.capture.failures import Failures
from esper_recorder.storage.writer import Writer
from examples.device_ppo import train_ppo_vectorized
from tests.recorder.capture.no_sync import SINS, NoSync
from tests.recorder.storage.stored_updates import read_rows

CALLS = ("settings", "rollout", "minibatch", "gradients", "layers", "episodes", "recurrent", "end_update")
TINY: dict[str, Any] = {"n_episodes": 3, "n_envs": 4, "max_epochs": 12, "ppo_updates_per_batch": 2, "n_minibatches": 2}

needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device: host syncs are not tested")


@pytest.fixture
def strict(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """A recorder that raises what it would otherwise count, and what it hands to its writer is only listed."""

    def failed(self: Failures, what: str, error: Exception, cost: Any = None) -> None:
        raise error

    handed: list[int] = []
    monkeypatch.setattr(Failures, "report", failed)
    monkeypatch.setattr(Writer, "put", lambda self, update, rows, **_: handed.append(update))
    return handed


class TestTheNets:
    @pytest.mark.parametrize("sin", SINS.values(), ids=SINS.keys())
    def test_catch_what_waits(self, sin: Any):
        with pytest.raises((RuntimeError, NotImplementedError, TypeError, AssertionError)), NoSync():
            sin(torch.zeros(4, 3, device="meta"))

    def test_let_through_what_does_not(self):
        with NoSync():
            x = torch.rand(4, 3, device="meta")
            x[torch.tensor([1, 2], device="meta")] = 1.0
            assert torch.where(x > 0, x, 0.0).sum(-1).topk(2).values.shape == (2,)

    @pytest.mark.parametrize("call", ["minibatch", "end_update"])
    @pytest.mark.usefixtures("strict")
    def test_find_a_wait_within_a_recorder(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str):
        method = getattr(Recorder, call)

        def waits(self: Recorder, *args: Any, **kwargs: Any) -> None:
            method(self, *args, **kwargs)
            float(torch.zeros((), device="meta"))

        monkeypatch.setattr(Recorder, call, waits)
        with pytest.raises((RuntimeError, AssertionError)), NoSync():
            train_ppo_vectorized(**TINY, device="meta", runs=tmp_path)


class TestWithoutADevice:
    @pytest.mark.parametrize("level", ["normal", "debug"])
    def test_a_whole_training_reads_nothing_on_the_host(self, tmp_path: Path, strict: list[int], level: str):
        with NoSync():
            train_ppo_vectorized(**TINY, device="meta", level=level, runs=tmp_path)
        assert strict == [1, 2, 3]

    def test_nor_does_any_argument_of_any_call(self, tmp_path: Path, strict: list[int]):
        def tensor(*shape: int) -> torch.Tensor:
            return torch.rand(shape, device="meta")

        model = torch.nn.LSTM(3, 4, device="meta")
        optimizer = torch.optim.Adam(model.parameters())
        with NoSync(), Recorder(tmp_path, rules=None, level="debug", model=model, optimizer=optimizer) as rec:
            for rows in (6, 6, 4):
                names = ("values", "returns", "advantages", "rewards", "old_log_probs")
                rollout: dict[str, Any] = {name: tensor(5, 2) for name in names}
                rec.rollout(**rollout, actions=tensor(5, 2, 1), index_order="env_major")
                rec.minibatch(new_log_probs=tensor(rows), values=tensor(rows), index=torch.arange(rows, device="meta"))
                rec.recurrent(tensor(1, 2, 4), tensor(1, 2, 4))
                rec.episodes(returns=tensor(5, 2), lengths=tensor(5, 2), finished=tensor(5, 2) > 0.5)
                for dtype in (torch.float32, torch.bfloat16):
                    rec.minibatch(
                        new_log_probs=tensor(rows).to(dtype),
                        old_log_probs=tensor(rows).to(dtype),
                        raw_advantages=tensor(rows),
                        normalize_advantages=True,
                        entropy=tensor(rows),
                        entropy_max=tensor(rows),
                        values=tensor(rows),
                        returns=tensor(rows),
                        old_values=tensor(rows),
                        mask=tensor(rows) > 0.5,
                        clip_range=0.2,
                        value_clip_range=0.2,
                        epoch=1,
                        index=torch.arange(rows, device="meta"),
                        actions=tensor(rows, 2),
                    )
                    sum(out.sum() for out in model(tensor(2, 3))[1]).backward()
                    rec.layers()
                    rec.gradients(total_norm=tensor())
                    optimizer.step()
                rec.end_update(step=10, policy_std=tensor(2))
        assert strict == [1, 2, 3]


@needs_cuda
class TestOnAGpu:
    @pytest.fixture(autouse=True)
    def _raise(self, monkeypatch: pytest.MonkeyPatch):
        def failed(self: Failures, what: str, error: Exception, cost: Any = None) -> None:
            raise error

        monkeypatch.setattr(Failures, "report", failed)
        yield
        torch.cuda.set_sync_debug_mode("default")

    @pytest.mark.parametrize("level", ["minimal", "normal", "debug"])
    def test_no_call_of_a_whole_training_waits(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str):
        def watched(method: Any) -> Any:
            @functools.wraps(method)
            def call(*args: Any, **kwargs: Any) -> Any:
                torch.cuda.set_sync_debug_mode("error")
                try:
                    return method(*args, **kwargs)
                finally:
                    torch.cuda.set_sync_debug_mode("default")

            return call

        for name in CALLS:
            monkeypatch.setattr(Recorder, name, watched(getattr(Recorder, name)))
        train_ppo_vectorized(**TINY, device="cuda", level=level, runs=tmp_path)
        (run,) = tmp_path.iterdir()
        assert sorted(row["update"] for row in read_rows(run, "ppo_updates")) == [1, 2, 3]
        assert read_rows(run, "gaps") == []

    def test_nor_does_the_example_around_them(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        collect = examples.device_ppo.collect
        rollouts = 0

        def begins(*args: Any) -> Any:
            nonlocal rollouts
            rollouts += 1
            if rollouts == 2:  # the first update makes the optimizer's state
                torch.cuda.set_sync_debug_mode("error")
            return collect(*args)

        close = Recorder.close

        def ends(*args: Any, **kwargs: Any) -> None:
            torch.cuda.set_sync_debug_mode("default")
            close(*args, **kwargs)

        monkeypatch.setattr(examples.device_ppo, "collect", begins)
        monkeypatch.setattr(Recorder, "close", ends)
        train_ppo_vectorized(**TINY, device="cuda", runs=tmp_path)
        assert rollouts == 3
