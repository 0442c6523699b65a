"""The examples run, and do what they say."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import esper_analytics as ea
from examples.device_ppo import Agent, CartPole, Rollout, advantages_of, main, train_ppo_vectorized

pytestmark = pytest.mark.trains

TINY: dict[str, Any] = {"n_episodes": 3, "n_envs": 4, "max_epochs": 12, "ppo_updates_per_batch": 2, "n_minibatches": 2}


class TestPpoOnADevice:
    def test_it_learns_and_is_recorded(self, tmp_path: Path):
        _, lengths = train_ppo_vectorized(n_episodes=14, runs=tmp_path)
        untrained, trained = torch.stack(lengths[:2]).mean(), torch.stack(lengths[-4:]).nanmean()
        assert untrained < 30, "an untrained policy drops the pole after some 20 steps"
        assert trained > 90
        runs = ea.open(tmp_path)
        (run,) = runs.list().to_dicts()
        assert (run["updates"], run["ended"], run["progress"], run["complete"]) == (14, "finished", 1.0, True)
        episodes = runs.sql(
            "SELECT avg(episode_return) AS length, count(*) AS n, max(step) AS step FROM episodes WHERE update = 14"
        ).to_dicts()[0]
        assert episodes["length"] == pytest.approx(float(lengths[-1])) and episodes["n"] > 0
        assert episodes["step"] <= 14 * 32 * 64
        update = runs.sql("SELECT * FROM ppo_updates WHERE update = 1").to_dicts()[0]
        assert (update["n"], update["minibatch_count"], update["epochs"]) == (4 * 32 * 64, 16, 4)
        assert update["entropy_normalized"] == pytest.approx(1.0, abs=0.05)
        (first,) = runs.sql("SELECT ratio_min, ratio_max FROM minibatches WHERE update = 1 AND minibatch = 1").rows()
        assert first == pytest.approx((1.0, 1.0), abs=1e-5)

    @pytest.mark.parametrize("level", ["minimal", "normal", "debug"])
    def test_its_weights_are_those_of_a_training_without_recorder(self, tmp_path: Path, level: str):
        plain, _ = train_ppo_vectorized(**TINY, use_telemetry=False, runs=tmp_path)
        assert list(tmp_path.iterdir()) == []
        recorded, _ = train_ppo_vectorized(**TINY, level=level, runs=tmp_path)
        assert all(torch.equal(a, b) for a, b in zip(plain.parameters(), recorded.parameters(), strict=True))

    def test_the_entropys_weight_moves_between_its_ends_and_stays_above_the_floor(self, tmp_path: Path):
        train_ppo_vectorized(
            **{**TINY, "n_episodes": 4},
            entropy_coef_start=0.4,
            entropy_coef_end=0.0,
            entropy_anneal_episodes=2,
            entropy_coef_min=0.1,
            runs=tmp_path,
        )
        rows = ea.open(tmp_path).sql("SELECT entropy_coef FROM ppo_updates ORDER BY update").rows()
        assert [value for (value,) in rows] == pytest.approx([0.4, 0.2, 0.1, 0.1])

    def test_half_precision_trains_and_is_recorded(self, tmp_path: Path):
        agent, _ = train_ppo_vectorized(**TINY, amp=True, runs=tmp_path)
        assert all(bool(p.isfinite().all()) for p in agent.parameters())
        assert ea.open(tmp_path).list()["complete"].to_list() == [True]

    def test_the_command_takes_the_functions_own_arguments(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ):
        import typer

        words = ["--n-episodes", "1", "--max-epochs", "30", "--clip-ratio", "0.1", "--runs", str(tmp_path)]
        monkeypatch.setattr(sys, "argv", ["device_ppo.py", *words])
        with pytest.raises(SystemExit) as end:
            typer.run(main)
        assert end.value.code == 0 and "rollout 1: episodes end after" in capsys.readouterr().out
        assert ea.open(tmp_path).sql("SELECT clip_range FROM ppo_updates").rows() == [(0.1,)]


class TestItsParts:
    def test_a_pole_follows_the_equations_of_gymnasiums(self):
        import gymnasium as gym

        torch.manual_seed(1)
        ours, theirs = CartPole(1, torch.device("cpu")), gym.make("CartPole-v1")
        theirs.reset(seed=1)
        theirs.unwrapped.state = ours.state[0].double().numpy()  # type: ignore[attr-defined]
        for step in range(200):
            push = step % 3 % 2
            reached, reward, fell, late = ours.step(torch.tensor([push]))
            observation, their_reward, terminated, truncated, _ = theirs.step(push)
            assert reached[0].numpy() == pytest.approx(observation, abs=1e-4)
            assert (float(reward), bool(fell), bool(late)) == (their_reward, terminated, truncated)
            if terminated:
                break
        else:
            pytest.fail("the pole never fell")
        assert float(ours.lengths) == 0 and float(ours.state.abs().max()) <= 0.05

    def test_the_time_is_up_after_five_hundred_steps(self):
        env = CartPole(2, torch.device("cpu"))
        env.lengths = torch.tensor([498.0, 499.0])
        _, _, fell, late = env.step(torch.tensor([0, 1]))
        assert fell.tolist() == [False, False] and late.tolist() == [False, True]
        assert env.lengths.tolist() == [499.0, 0.0]

    def test_advantages_by_hand(self):
        zero = torch.zeros(3, 1)
        rollout = Rollout(
            zero,
            zero,
            zero,
            zero,
            torch.ones(3, 1),
            torch.tensor([[0], [1], [0]]) == 1,
            torch.tensor([[0], [1], [1]]) == 1,
            zero,
        )
        values, after = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2.0], [9.0], [4.0]])
        # Errors: 1 + 0.5 * 2 - 1 = 1; the pole fell: 1 - 2 = -1; the time was up: 1 + 0.5 * 4 - 3 = 0.
        # Carried by 0.5 * 0.8 if the episode continued: 1 + 0.4 * -1 = 0.6.
        found = advantages_of(rollout, values, after, gamma=0.5, gae_lambda=0.8)
        assert found.flatten().tolist() == pytest.approx([0.6, -1.0, 0.0])

    def test_log_probabilities_are_normalised(self):
        log_probs = Agent(4, 2).log_probs(torch.randn(5, 4))
        assert log_probs.exp().sum(-1).tolist() == pytest.approx([1.0] * 5)
        assert math.isclose(float(-log_probs.detach().mean()), math.log(2), rel_tol=0.01), (
            "nearly uniform before training"
        )
