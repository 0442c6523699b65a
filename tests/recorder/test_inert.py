"""Training with the recorder is training without it, bit by bit, whatever goes wrong in the recording."""

from __future__ import annotations

import errno
import hashlib
import random
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime, timedelta, tzinfo
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor

from esper_recorder import MemorySink, Recorder, Sink
from esper_recorder.sb3 import RecorderCallback
from esper_recorder.storage.manifest import how_it_ended, read_manifest
from esper_recorder.storage.writer import Writer
from tests.recorder.sb3_runs import TinyEnv, assert_same_state
from tests.recorder.storage.stored_updates import read_rows

pytestmark = pytest.mark.trains

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=pytest.mark.skipif(
            not torch.cuda.is_available(), reason="no CUDA device: inertness is proven on the CPU alone"
        ),
    ),
]
LEVELS = ("off", "normal", "debug")

ALWAYS = """
[rules.always]
severity = "critical"
column = "n"
above = 0
"""
"""Fires at every update, so that the recorder escalates in the middle of the training."""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "rules.toml"
    file.write_text(ALWAYS)
    return file


class Trace:
    """What a training came through: every gradient at every step, and every random stream after every update."""

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.gradients: list[str] = []
        self.streams: list[str] = []
        self.weights: list[str] = []
        self._optimizer = optimizer
        optimizer.register_step_pre_hook(self._on_step)

    def end_update(self, *environments: np.random.Generator) -> None:
        states = [random.getstate(), repr(np.random.get_state()), [e.bit_generator.state for e in environments]]
        cuda = [_bytes(torch.cuda.get_rng_state())] if torch.cuda.is_available() else []
        self.streams.append(_digest(repr(states).encode(), _bytes(torch.get_rng_state()), *cuda))
        self.weights.append(_digest(*(_bytes(p.detach()) for p in self._parameters())))

    def _on_step(self, *_: Any) -> None:
        self.gradients.append(_digest(*(_bytes(p.grad) for p in self._parameters() if p.grad is not None)))

    def _parameters(self) -> Iterator[Tensor]:
        for group in self._optimizer.param_groups:
            yield from group["params"]

    def __eq__(self, other: object) -> bool:
        assert isinstance(other, Trace) and self.gradients and self.streams
        return (self.gradients, self.streams, self.weights) == (other.gradients, other.streams, other.weights)

    __hash__ = None  # type: ignore[assignment]


def _bytes(tensor: Tensor) -> bytes:
    return tensor.cpu().numpy().tobytes()


def _digest(*parts: bytes) -> str:
    return hashlib.sha256(b"".join(parts)).hexdigest()


def script(device: str = "cpu", updates: int = 5, **options: Any) -> tuple[Trace, Recorder | None]:
    """A small PPO with an environment of random numbers, recorded where `options` say so."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    environment = np.random.default_rng(1)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Dropout(0.1), torch.nn.Linear(4, 3)).to(device)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    rec = Recorder(**options, model=model, optimizer=optimizer, total_updates=updates) if options else None
    trace = Trace(optimizer)
    for update in range(updates):
        x = torch.from_numpy(environment.normal(size=(8, 3)).astype(np.float32)).to(device)
        output = model(x).detach()
        old, values = torch.log_softmax(output[:, :2], 1)[:, 0], output[:, 2]
        returns = values + random.random() + np.random.random() + torch.randn(8, device=device)
        if rec is not None:
            rec.rollout(values=values, returns=returns, advantages=returns - values, rewards=x[:, 0])
            rec.episode(return_=float(update), length=3)
        for epoch in (1, 2):
            for index in torch.randperm(8, device=device).chunk(2):
                output = model(x[index])
                new = torch.log_softmax(output[:, :2], 1)[:, 0]
                advantages = (returns - values)[index]
                loss = -(torch.exp(new - old[index]) * advantages).mean()
                loss = loss + (returns[index] - output[:, 2]).square().mean()
                if rec is not None:
                    rec.minibatch(
                        new_log_probs=new,
                        old_log_probs=old[index],
                        advantages=advantages,
                        values=output[:, 2],
                        returns=returns[index],
                        clip_range=0.2,
                        epoch=epoch,
                        index=index,
                    )
                optimizer.zero_grad()
                loss.backward()
                norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
                if rec is not None:
                    rec.gradients(total_norm=norm)
                    rec.layers()
                optimizer.step()
        if rec is not None:
            rec.end_update(step=8 * (update + 1))
        trace.end_update(environment)
    if rec is not None:
        rec.close()
    return trace, rec


class TestAScript:
    @pytest.mark.parametrize("device", DEVICES)
    @pytest.mark.parametrize("level", ["minimal", *LEVELS])
    def test_has_the_same_gradients_weights_and_random_streams(
        self, tmp_path: Path, rules: Path, device: str, level: str
    ):
        plain, _ = script(device)
        assert len(plain.gradients) == 5 * 4 and len(set(plain.gradients)) == 5 * 4
        recorded, rec = script(device, root=tmp_path / "runs", rules=rules, level=level)
        assert recorded == plain
        assert rec is not None and (rec.path is None) == (level == "off")
        if rec.path is not None:
            assert len(read_rows(rec.path, "alarms")) == 5 and read_rows(rec.path, "gaps") == []

    def test_would_be_found_out_if_the_recorder_drew_a_number(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        plain, _ = script()
        gradients = Recorder.gradients

        def drawing(self: Recorder, **given: Any) -> None:
            torch.rand(1)
            gradients(self, **given)

        monkeypatch.setattr(Recorder, "gradients", drawing)
        recorded, _ = script(root=tmp_path, rules=None)
        assert recorded != plain


def sb3(device: str, root: Path | None = None, **options: Any) -> tuple[PPO, Trace]:
    """PPO of Stable-Baselines3 on two tiny environments."""
    random.seed(1)
    np.random.seed(1)
    environments = [TinyEnv(), TinyEnv()]
    made = DummyVecEnv([lambda env=env: env for env in environments])  # type: ignore[misc]
    model = PPO(
        "MlpPolicy", made, n_steps=16, batch_size=16, n_epochs=2, seed=3, device=device, policy_kwargs={"net_arch": [8]}
    )
    trace = Trace(model.policy.optimizer)
    update = model.train

    def traced() -> None:
        update()
        trace.end_update(*(env._random for env in environments))

    model.train = traced  # type: ignore[method-assign]
    model.learn(96, callback=None if root is None else RecorderCallback(root, **options))
    del model.__dict__["train"]
    return model, trace


class TestStableBaselines3:
    @pytest.mark.parametrize("device", DEVICES)
    def test_has_the_same_gradients_weights_and_random_streams(self, tmp_path: Path, rules: Path, device: str):
        plain_model, plain = sb3(device)
        assert len(plain.gradients) == 3 * 2 * 2
        for level in LEVELS:
            model, recorded = sb3(device, tmp_path / level, level=level, rules=rules)
            assert recorded == plain, level
            assert_same_state(model, plain_model)
        (run,) = (tmp_path / "normal").iterdir()
        assert len(read_rows(run, "alarms")) == 3


class Hanging(MemorySink):
    """A disk that does not answer any more from the second update on."""

    def __init__(self) -> None:
        super().__init__()
        self.answer = threading.Event()

    def commit(self, update: int) -> None:
        if update > 1:
            self.answer.wait(60)
        super().commit(update)


class Raising(Sink):
    """A disk that is full from the second update on."""

    def __init__(self) -> None:
        self.stored: list[int] = []

    def write(self, table: str, columns: Mapping[str, Sequence[Any]]) -> None:
        if self.stored:
            raise OSError(errno.ENOSPC, "No space left on device")

    def commit(self, update: int) -> None:
        if self.stored:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.stored.append(update)


def jumping(clock: Any) -> Any:
    """A clock that is set a day forward and two days back every few looks."""
    looks = 0

    def look() -> float:
        nonlocal looks
        looks += 1
        jumps: float = clock() + (86_400.0, 0.0, -172_800.0)[looks // 5 % 3]
        return jumps

    return look


class TestWhatGoesWrong:
    def test_a_sink_that_hangs_changes_nothing_and_what_was_dropped_is_logged(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        monkeypatch.setattr(Writer.close, "__defaults__", (0.2,))
        sink = Hanging()
        plain, _ = script(updates=80)
        recorded, rec = script(updates=80, root=tmp_path, rules=None, sink=sink)
        assert recorded == plain
        assert rec is not None and rec.path is not None
        (attempt,) = read_manifest(rec.path).attempts
        # 1 is stored, 2 hangs, 64 wait; what came before these was dropped, and at the end they are lost as well.
        assert attempt.dropped.updates >= 80 - 2
        assert "did not finish within 0.2 s" in (attempt.dropped.message or "")
        assert "queue full" in caplog.text and "The recording is not complete" in caplog.text
        sink.answer.set()
        assert rec._run is not None
        rec._run.writer._thread.join(60)

    def test_a_sink_that_raises_changes_nothing_and_what_was_dropped_is_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        plain, _ = script()
        recorded, rec = script(root=tmp_path, rules=None, sink=Raising())
        assert recorded == plain
        assert rec is not None and rec.path is not None
        (attempt,) = read_manifest(rec.path).attempts
        assert attempt.dropped.updates == 4 and "No space left" in (attempt.dropped.message or "")
        assert "The recording is not complete" in caplog.text

    def test_clocks_that_jump_change_and_lose_nothing(
        self, tmp_path: Path, rules: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        class Jumping(datetime):
            clock = staticmethod(jumping(lambda: 0.0))

            @classmethod
            def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
                return datetime.now(tz) + timedelta(seconds=cls.clock())

        plain, _ = script(updates=12)
        with monkeypatch.context() as patch:
            patch.setattr(time, "monotonic", jumping(time.monotonic))
            patch.setattr(time, "time", jumping(time.time))
            for module in ("recording", "storage.run_folder", "storage.writer"):
                patch.setattr(f"esper_recorder.{module}.datetime", Jumping)
            recorded, rec = script(updates=12, root=tmp_path / "runs", rules=rules)
        assert recorded == plain
        assert rec is not None and rec.path is not None and how_it_ended(rec.path) == "finished"
        rows = sorted(read_rows(rec.path, "ppo_updates"), key=lambda row: row["update"])
        assert [row["update"] for row in rows] == list(range(1, 13))
        assert len(read_rows(rec.path, "alarms")) == 12
        moments = [row["time"] for row in rows]
        assert moments != sorted(moments), "the clock did jump"
        assert all(moment.replace(tzinfo=UTC).year >= 2020 for moment in moments)
        assert read_rows(rec.path, "gaps") == []
        [line] = caplog.messages
        assert line.startswith("critical alarm always at update 1:"), "the rule's onset, and nothing else"
