"""Stable-Baselines3 trained with and without the recorder: the same weights, and SB3's own scalars from our rows."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env

from esper_recorder.capture.minibatch_buffer import MinibatchBuffer
from tests.recorder.sb3_runs import TinyEnv, Training, assert_same_state, train

pytestmark = pytest.mark.trains

BOX = spaces.Box(-1.0, 1.0, (2,), np.float32)
DICT = spaces.Dict({"a": spaces.Box(-1, 1, (2,), np.float32), "b": spaces.Box(-1, 1, (3,), np.float32)})
SMALL = {"n_steps": 48, "batch_size": 16, "n_epochs": 2, "learning_rate": 3e-3, "seed": 3, "device": "cpu"}


def envs(n: int, **kwargs: Any) -> Any:
    return make_vec_env(lambda: TinyEnv(**kwargs), n)


def ppo(env: Any = None, policy: str = "MlpPolicy", cls: Any = PPO, **changes: Any) -> Any:
    policy_kwargs = {"net_arch": [8], **changes.pop("policy_kwargs", {})}
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="You have specified a mini-batch size")
        return cls(policy, env or TinyEnv(), **{**SMALL, **changes}, policy_kwargs=policy_kwargs)


def recurrent(env: Any = None, **changes: Any) -> Any:
    return ppo(env, "MlpLstmPolicy", RecurrentPPO, policy_kwargs={"lstm_hidden_size": 8}, **changes)


@dataclass(frozen=True)
class Case:
    make: Callable[[], Any]
    steps: int = 144


CASES = {
    "discrete actions": Case(lambda: ppo(ent_coef=0.01)),
    "value clipping": Case(lambda: ppo(clip_range_vf=0.05)),
    "early stop": Case(lambda: ppo(target_kl=1e-5, learning_rate=0.02)),
    "early stop later": Case(lambda: ppo(target_kl=0.004, learning_rate=0.006, n_epochs=4)),
    "odd last minibatch": Case(lambda: ppo(n_steps=37), 111),
    "one transition left over": Case(lambda: ppo(n_steps=33), 99),
    "one minibatch": Case(lambda: ppo(batch_size=48)),
    "advantages as they are": Case(lambda: ppo(normalize_advantage=False)),
    "clip range and learning rate by schedule": Case(
        lambda: ppo(clip_range=lambda left: 0.02 * left, clip_range_vf=lambda left: left, learning_rate=_falling)
    ),
    "three environments": Case(lambda: ppo(envs(3), n_steps=16)),
    "several discrete actions": Case(lambda: ppo(TinyEnv(actions=spaces.MultiDiscrete([3, 2])))),
    "binary actions": Case(lambda: ppo(TinyEnv(actions=spaces.MultiBinary(3)))),
    "continuous actions": Case(lambda: ppo(TinyEnv(actions=BOX))),
    "gSDE": Case(lambda: ppo(TinyEnv(actions=BOX), use_sde=True, sde_sample_freq=4)),
    "gSDE squashed, no entropy in closed form": Case(
        lambda: ppo(TinyEnv(actions=BOX), use_sde=True, policy_kwargs={"squash_output": True})
    ),
    "observations by name": Case(lambda: ppo(TinyEnv(DICT), "MultiInputPolicy")),
    "MaskablePPO": Case(lambda: ppo(cls=MaskablePPO, ent_coef=0.01)),
    "MaskablePPO, several actions, two environments": Case(
        lambda: ppo(envs(2, actions=spaces.MultiDiscrete([3, 2])), cls=MaskablePPO, n_steps=24)
    ),
    "MaskablePPO, one transition left over": Case(lambda: ppo(cls=MaskablePPO, n_steps=33, n_epochs=1), 33),
    "RecurrentPPO": Case(lambda: recurrent(ent_coef=0.01)),
    "RecurrentPPO, value clipping, two environments": Case(
        lambda: recurrent(envs(2), n_steps=24, clip_range_vf=0.05, target_kl=0.01)
    ),
}


def _falling(left: float) -> float:
    return 1e-3 + 4e-3 * left


@pytest.fixture(scope="module", params=list(CASES))
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Training, Training]:
    """The same training without and with the recorder."""
    case = CASES[request.param]
    root = tmp_path_factory.mktemp("runs")
    with warnings.catch_warnings():
        # MaskablePPO normalises a single advantage too, and so makes NaN of it; nothing is trained after that.
        warnings.filterwarnings("ignore", message=r"std\(\): degrees of freedom")
        return train(case.make, case.steps), train(case.make, case.steps, root)


OURS = {
    "train/approx_kl": "approx_kl",
    "train/clip_fraction": "clip_fraction",
    "train/policy_gradient_loss": "policy_loss",
    "train/value_loss": "value_loss",
    "train/loss": "loss",
}
EXACT = {
    "train/learning_rate": "learning_rate",
    "train/clip_range": "clip_range",
    "train/clip_range_vf": "value_clip_range",
}


def test_weights_and_optimizer_state_are_bitwise_those_without_a_recorder(pair: tuple[Training, Training]):
    plain, recorded = pair
    assert_same_state(plain.model, recorded.model)
    assert _scalars(plain) == _scalars(recorded)


def test_every_scalar_sb3_logged_is_ours(pair: tuple[Training, Training]):
    plain, recorded = pair
    rows = recorded.rows("ppo_updates")
    assert [row["update"] for row in rows] == list(range(1, len(recorded.trained) + 1))
    assert recorded.rows("gaps") == []
    n_updates = 0
    for logged, row, size in zip(recorded.trained, rows, plain.summands, strict=True):
        unknown = {name for name in logged if name.startswith("train/")} - set(OURS) - set(EXACT)
        assert unknown <= {"train/entropy_loss", "train/explained_variance", "train/std", "train/n_updates"}
        for name, column in OURS.items():
            _close(row[column], logged[name], 1e-6 * size[name], name)
        _close(-row["entropy"], logged["train/entropy_loss"], 1e-6 * size["train/entropy_loss"], "entropy_loss")
        _close(row["explained_variance"], logged["train/explained_variance"], 1e-6, "explained_variance")
        for name, column in EXACT.items():
            assert row[column] == logged.get(name), name
        if "train/std" in logged:
            _close(row["policy_std"], logged["train/std"], 1e-7, "std")
        else:
            assert row["policy_std"] is None
        n_updates += row["epochs"]
        assert n_updates == logged["train/n_updates"]


def test_episodes_give_sb3s_mean_return_and_length(pair: tuple[Training, Training]):
    _, recorded = pair
    dumps = [dump for dump in recorded.logged if "rollout/ep_rew_mean" in dump]
    assert len(dumps) == len(recorded.trained)
    for update, dump in enumerate(dumps, 1):
        so_far = [row for row in recorded.rows("episodes") if row["update"] <= update][-100:]
        assert np.mean([row["episode_return"] for row in so_far]) == pytest.approx(
            dump["rollout/ep_rew_mean"], abs=1e-9
        )
        assert np.mean([row["episode_length"] for row in so_far]) == dump["rollout/ep_len_mean"]


def test_minibatches_have_their_number_and_whether_the_optimizer_stepped(pair: tuple[Training, Training]):
    _, recorded = pair
    model = recorded.model
    per_epoch = math.ceil(model.n_steps * model.n_envs / model.batch_size)
    for row in recorded.rows("ppo_updates"):
        own = [m for m in recorded.rows("minibatches") if m["update"] == row["update"]]
        own.sort(key=lambda m: m["minibatch"])
        assert [m["minibatch"] for m in own] == list(range(1, len(own) + 1))
        assert [m["epoch"] for m in own] == [1 + i // per_epoch for i in range(len(own))]
        assert row["minibatch_count"] == len(own)
        # Only the last one evaluated can be one that was not stepped on: target_kl stops there.
        assert all(m["stepped"] for m in own[:-1])
        assert row["stopped_early"] == (not own[-1]["stepped"])
        assert row["stepped_count"] == len(own) - row["stopped_early"]
        assert row["grad_norm_n"] == row["stepped_count"]
        assert [m["grad_norm"] is not None for m in own] == [m["stepped"] for m in own]
        # n counts transitions: all of the rollout in each full epoch, padding of recurrent minibatches left out.
        full = [m["n"] for m in own[: len(own) // per_epoch * per_epoch]]
        assert sum(full) == model.n_steps * model.n_envs * (len(own) // per_epoch)
        # The policy of the very first minibatch is the one that acted.
        assert own[0]["ratio_max"] == pytest.approx(1.0, abs=1e-5)


def test_entropy_is_normalised_by_the_choice_there_was(pair: tuple[Training, Training]):
    _, recorded = pair
    discrete = not isinstance(recorded.model.action_space, spaces.Box)
    for row in recorded.rows("minibatches"):
        if discrete and not row["entropy_normalized_n"]:
            assert row["entropy_normalized"] is None  # one transition, with one valid action
        elif discrete:
            assert 0.9 < row["entropy_normalized"] <= 1.0 + 1e-6  # a policy that has hardly begun to learn
        else:
            assert row["entropy_normalized"] is None and row["entropy_normalized_n"] is None


def _scalars(training: Training) -> list[dict[str, str]]:
    """What was logged, but for the clock. As text, for NaN is not equal to itself."""
    return [{k: repr(v) for k, v in dump.items() if not k.startswith("time/")} for dump in training.logged]


def _close(ours: float | None, theirs: float, tolerance: float, name: str) -> None:
    assert ours is not None, name
    if math.isnan(theirs):
        assert math.isnan(ours), name
    else:
        assert abs(ours - float(theirs)) <= tolerance, f"{name}: {ours} and {theirs}, allowed {tolerance}"


class TestTheCasesAreWhatTheyClaim:
    def test_early_stop_comes_in_the_first_epoch(self, tmp_path: Path):
        recorded = train(CASES["early stop"].make, 144, tmp_path)
        assert [row["epochs"] for row in recorded.rows("ppo_updates")] == [1, 1, 1]
        assert all(row["stopped_early"] for row in recorded.rows("ppo_updates"))

    def test_the_squashed_policy_has_no_entropy_in_closed_form(self, tmp_path: Path):
        model = CASES["gSDE squashed, no entropy in closed form"].make()
        observation = model.policy.obs_to_tensor(np.zeros(3, np.float32))[0]
        assert model.policy.evaluate_actions(observation, observation[:, :2])[2] is None

    def test_the_left_over_minibatch_has_one_transition(self, tmp_path: Path):
        recorded = train(CASES["one transition left over"].make, 33, tmp_path)
        assert [row["n"] for row in recorded.rows("minibatches")] == [16, 16, 1, 16, 16, 1]

    def test_recurrent_minibatches_hold_padding(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        lengths = []
        append = MinibatchBuffer.append

        def measured(buffer: MinibatchBuffer, fields: Any, tensors: Any, *rest: Any) -> None:
            lengths.append(len(tensors[0]))
            append(buffer, fields, tensors, *rest)

        monkeypatch.setattr(MinibatchBuffer, "append", measured)
        recorded = train(CASES["RecurrentPPO"].make, 48, tmp_path)
        assert max(lengths) > 16, "sequences of unequal length are padded beyond the batch size"
        assert {row["n"] for row in recorded.rows("minibatches")} == {16}
