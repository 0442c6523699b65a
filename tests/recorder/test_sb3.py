"""The Stable-Baselines3 adapter: what it leaves behind, how failures pass through it, other callbacks beside it."""

from __future__ import annotations

import gc
import json
import logging
import math
import subprocess
import sys
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gymnasium import spaces
from sb3_contrib import MaskablePPO, RecurrentPPO
from stable_baselines3 import A2C, DQN, PPO
from stable_baselines3.common.buffers import RolloutBuffer
from stable_baselines3.common.callbacks import BaseCallback, CheckpointCallback, EvalCallback
from stable_baselines3.common.env_util import make_vec_env

from esper_recorder.sb3 import RecorderCallback
from esper_recorder.storage.manifest import how_it_ended, read_manifest
from tests.recorder.sb3_runs import TinyEnv, assert_same_state, callback, ppo, rows
from tests.recorder.storage.stored_updates import read_rows
from tests.support import ROOT

pytestmark = pytest.mark.trains

CLIP = torch.nn.utils.clip_grad_norm_
SHADOWED = {"get", "_get_samples", "reset", "evaluate_actions"}


def assert_untouched(model: Any) -> None:
    """No call of the trainer is listened to any more."""
    assert not SHADOWED & model.policy.__dict__.keys()
    assert not SHADOWED & model.rollout_buffer.__dict__.keys()
    assert torch.nn.utils.clip_grad_norm_ is CLIP


class Each(BaseCallback):
    """Calls a function at a moment of the training."""

    def __init__(self, *, rollout_end: Callable[[Any], None] | None = None, step: Callable[[Any], bool] | None = None):
        super().__init__()
        self._at_rollout_end, self._at_step = rollout_end, step

    def _on_step(self) -> bool:
        return True if self._at_step is None else self._at_step(self.model)

    def _on_rollout_end(self) -> None:
        if self._at_rollout_end is not None:
            self._at_rollout_end(self.model)


class TestWhatIsLeftBehind:
    def test_nothing_is_shadowed_after_learn(self, tmp_path: Path):
        model = ppo()
        model.learn(64, callback=callback(tmp_path))
        assert_untouched(model)
        assert not model.policy.optimizer._optimizer_step_pre_hooks

    def test_nothing_is_shadowed_while_a_rollout_is_collected(self, tmp_path: Path):
        model = ppo()
        seen: list[int] = []

        def look(model: Any) -> bool:
            assert_untouched(model)
            seen.append(model.num_timesteps)
            return True

        model.learn(96, callback=[callback(tmp_path), Each(step=look)])
        assert len(seen) == 96

    def test_a_saved_model_holds_the_same_entries_and_data_with_and_without(self, tmp_path: Path):
        def saved(name: str, recorder: list[RecorderCallback]) -> list[Path]:
            model = ppo()
            files = [tmp_path / f"{name}-middle.zip", tmp_path / f"{name}-update.zip", tmp_path / f"{name}-after.zip"]

            def save_in_the_middle(model: Any) -> bool:
                if model.num_timesteps == 40:
                    model.save(files[0])
                return True

            # Behind ours, at the end of a rollout: that is while our listeners are in place.
            save = Each(step=save_in_the_middle, rollout_end=lambda model: model.save(files[1]))
            model.learn(64, callback=[*recorder, save])
            model.save(files[2])
            return files

        recorded, plain = saved("with", [callback(tmp_path / "runs")]), saved("without", [])
        for ours, theirs in zip(recorded, plain, strict=True):
            with zipfile.ZipFile(ours) as a, zipfile.ZipFile(theirs) as b:
                assert a.namelist() == b.namelist()
                left, right = json.loads(a.read("data")), json.loads(b.read("data"))
            assert left.keys() == right.keys()
            assert b"esper" not in json.dumps(left).lower().encode()
            for key in left.keys() - {"start_time", "ep_info_buffer"}:  # these hold the clock
                # A pickled object carries its address in its text form; what is pickled must be the same.
                assert _plain(left[key]) == _plain(right[key]), key
            assert_same_state(PPO.load(ours, device="cpu"), PPO.load(theirs, device="cpu"))

    def test_a_users_own_wrapper_of_evaluate_actions_is_there_again(self, tmp_path: Path):
        model = ppo()
        original = model.policy.evaluate_actions
        calls: list[int] = []

        def own(*args: Any, **kwargs: Any) -> Any:
            calls.append(1)
            return original(*args, **kwargs)

        model.policy.__dict__["evaluate_actions"] = own
        recorded = callback(tmp_path)
        model.learn(64, callback=recorded)
        assert model.policy.__dict__["evaluate_actions"] is own
        assert len(calls) == 2 * 2 * 2  # updates, epochs, minibatches
        assert len(rows(recorded, "minibatches")) == 8

    def test_a_shadow_somebody_put_over_ours_stays_and_ours_below_it_is_inert(self, tmp_path: Path):
        model = ppo()
        below: list[Any] = []

        def cover(model: Any) -> None:
            below.append(torch.nn.utils.clip_grad_norm_)
            if len(below) == 1:
                ours = below[0]
                torch.nn.utils.clip_grad_norm_ = lambda *args, **kwargs: ours(*args, **kwargs)

        try:
            recorded = callback(tmp_path)
            model.learn(64, callback=[recorded, Each(rollout_end=cover)])
            assert torch.nn.utils.clip_grad_norm_ is not CLIP
            before = [row["grad_norm"] for row in rows(recorded, "minibatches")]
            assert len(before) == 8 and None not in before
            weight = torch.nn.Parameter(torch.ones(2))
            weight.grad = torch.tensor([3.0, 4.0])
            assert torch.nn.utils.clip_grad_norm_([weight], 1.0) == 5.0
        finally:
            torch.nn.utils.clip_grad_norm_ = CLIP


class TestFailures:
    def test_an_error_of_the_environment_reaches_the_caller_and_the_run_says_raised_when_learning_goes_on(
        self, tmp_path: Path
    ):
        model = ppo(TinyEnv(fail_at=70, error=ZeroDivisionError("the simulator broke")))
        recorded = callback(tmp_path)
        with pytest.raises(ZeroDivisionError, match="the simulator broke"):
            model.learn(128, callback=recorded)
        assert_untouched(model)
        assert recorded.recorder is not None and recorded.path is not None
        recorded.recorder.flush()
        first = recorded.path
        assert [row["update"] for row in rows(recorded, "ppo_updates")] == [1, 2]
        assert how_it_ended(first) == "live"
        assert str(recorded.recorder.adapter.unclosed).startswith("learn() never came back"), "if the process ends now"
        model.learn(64, callback=recorded)  # the environment fails once only
        assert how_it_ended(first) == "raised"
        assert recorded.path != first and how_it_ended(recorded.path) == "finished"

    def test_nan_weights_raise_in_the_next_minibatch_and_the_one_before_is_recorded(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        # torch.compile, where another test used it, turns the validation of distributions off for the whole process.
        monkeypatch.setattr(torch.distributions.Distribution, "_validate_args", True)
        model = ppo(n_epochs=4)
        poisoned: list[int] = []

        def poison(optimizer: Any, *_: Any) -> None:
            poisoned.append(1)
            if len(poisoned) == 6:
                dict(model.policy.named_parameters())["action_net.weight"].grad.fill_(math.nan)  # type: ignore[union-attr]

        model.policy.optimizer.register_step_pre_hook(poison)
        recorded = callback(tmp_path)
        with pytest.raises(ValueError, match="logits"):
            model.learn(128, callback=recorded)
        assert_untouched(model)
        assert recorded.path is not None
        assert how_it_ended(recorded.path) == "raised"
        manifest = read_manifest(recorded.path)
        assert manifest.last_attempt is not None and "logits" in str(manifest.last_attempt.error)
        assert [row["minibatch"] for row in rows(recorded, "minibatches")] == [1, 2, 3, 4, 5, 6]
        assert all(row["stepped"] for row in rows(recorded, "minibatches"))
        layer = next(row for row in rows(recorded, "gradient_layers") if row["layer"] == "action_net.weight")
        assert (layer["minibatch"], layer["grad_nan"]) == (6, layer["n"])

    def test_ctrl_c_in_the_middle_of_an_update_leaves_listeners_that_end_with_the_next_rollout(self, tmp_path: Path):
        model = ppo()
        steps: list[int] = []

        def interrupt(*_: Any) -> None:
            steps.append(1)
            if len(steps) == 7:  # update 2, minibatch 3
                raise KeyboardInterrupt

        handle = model.policy.optimizer.register_step_pre_hook(interrupt)
        recorded = callback(tmp_path)
        with pytest.raises(KeyboardInterrupt):
            model.learn(96, callback=recorded)
        handle.remove()
        model.learn(64)  # without a recorder: not a word of it is recorded
        assert_untouched(model)
        assert recorded.recorder is not None
        recorded.recorder.close("raised", "interrupted")
        assert [(r["update"], r["minibatch_count"]) for r in rows(recorded, "ppo_updates")] == [(1, 4), (2, 3)]
        assert rows(recorded, "ppo_updates")[1]["step"] == 64

    def test_a_model_that_failed_can_be_collected_although_nobody_closed_its_recorder(self, tmp_path: Path):
        def fail() -> weakref.ref[Any]:
            model = ppo()

            def interrupt(*_: Any) -> None:
                raise MemoryError

            model.policy.optimizer.register_step_pre_hook(interrupt)
            with pytest.raises(MemoryError):
                model.learn(64, callback=callback(tmp_path))
            return weakref.ref(model.policy)

        policy = fail()
        gc.collect()
        assert policy() is None
        assert torch.nn.utils.clip_grad_norm_ is CLIP

    def test_a_process_that_dies_of_an_exception_closes_the_run_as_raised(self, tmp_path: Path):
        code = """
import sys
from stable_baselines3 import A2C, DQN, PPO
from esper_recorder.sb3 import RecorderCallback
from tests.recorder.sb3_runs import TinyEnv
env = TinyEnv(fail_at=50, error=ZeroDivisionError("the simulator broke"))
model = PPO("MlpPolicy", env, n_steps=16, batch_size=16, n_epochs=1, device="cpu")
model.learn(64, callback=RecorderCallback(sys.argv[1], rules=None))
"""
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )
        assert done.returncode == 1
        assert done.stderr.rstrip().endswith("ZeroDivisionError: the simulator broke")
        (run,) = tmp_path.iterdir()
        assert how_it_ended(run) == "raised"
        manifest = read_manifest(run)
        assert manifest.last_attempt is not None
        assert manifest.last_attempt.error == "ZeroDivisionError: the simulator broke"
        assert sorted(row["update"] for row in read_rows(run, "ppo_updates")) == [1, 2, 3]

    def test_a_buffer_the_recorder_does_not_understand_costs_rows_and_not_the_training(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        class Odd(RolloutBuffer):
            def get(self, batch_size: int | None = None) -> Any:
                for samples in super().get(batch_size):
                    yield samples._replace(old_log_prob=_Unreadable.of(samples.old_log_prob))

        plain = ppo(rollout_buffer_class=RolloutBuffer).learn(64)
        odd = ppo(rollout_buffer_class=Odd)
        recorded = callback(tmp_path)
        with caplog.at_level(logging.WARNING, logger="esper_recorder"):
            odd.learn(64, callback=recorded)
        assert_same_state(plain, odd)
        assert rows(recorded, "minibatches") == []
        assert recorded.recorder is not None
        assert [(r["update"], r["minibatch_count"]) for r in rows(recorded, "ppo_updates")] == [(1, 0), (2, 0)]
        gaps = [(r["table_name"], r["reason"], r["rows"]) for r in rows(recorded, "gaps")]
        assert gaps == [("minibatches", "reduce_failed", 4), ("minibatches", "reduce_failed", 4)]
        assert sum("reduce failed" in record.message for record in caplog.records) == 1, "said once"

    def test_a_folder_that_cannot_be_made_costs_the_recording_and_not_the_training(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        (tmp_path / "file").write_text("not a folder")
        plain = ppo().learn(64)
        model = ppo()
        recorded = callback(tmp_path / "file" / "runs")
        model.learn(64, callback=recorded)
        assert_same_state(plain, model)
        assert recorded.path is None and recorded.run_id is None
        assert "Nothing of this training is recorded" in caplog.text


class _Keep(BaseCallback):
    """Keeps a copy of every rollout."""

    def __init__(self) -> None:
        super().__init__()
        self.rollouts: list[dict[str, Any]] = []

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        buffer: Any = self.model.rollout_buffer  # type: ignore[attr-defined]
        names = ("actions", "advantages", "log_probs", "returns", "values", "rewards", "action_masks")
        self.rollouts.append({n: np.array(getattr(buffer, n)) for n in names if hasattr(buffer, n)})


MODELS: dict[str, Callable[[], Any]] = {
    "PPO": lambda: ppo(make_vec_env(TinyEnv, 3), n_steps=16, normalize_advantage=False, learning_rate=0.01),
    "PPO, continuous": lambda: ppo(TinyEnv(actions=spaces.Box(-1, 1, (2,), np.float32)), normalize_advantage=False),
    "MaskablePPO": lambda: MaskablePPO(
        "MlpPolicy",
        make_vec_env(TinyEnv, 2),
        n_steps=24,
        batch_size=16,
        normalize_advantage=False,
        device="cpu",
        seed=1,
    ),
    "RecurrentPPO": lambda: RecurrentPPO(
        "MlpLstmPolicy",
        make_vec_env(TinyEnv, 2),
        n_steps=24,
        batch_size=16,
        normalize_advantage=False,
        device="cpu",
        seed=1,
        policy_kwargs={"lstm_hidden_size": 8},
    ),
}


class TestExemplars:
    @pytest.mark.parametrize("kind", list(MODELS))
    def test_an_exemplar_is_the_transition_of_the_rollout_it_says(self, tmp_path: Path, kind: str):
        model = MODELS[kind]()
        keep, recorded = _Keep(), callback(tmp_path)
        model.learn(96, callback=[keep, recorded])
        exemplars = rows(recorded, "ratio_exemplars")
        assert len(exemplars) == 16 * len(keep.rollouts)
        for row in exemplars:
            rollout = keep.rollouts[row["update"] - 1]
            at = (row["env_step"], row["env"])
            assert row["index"] == row["env"] * model.n_steps + row["env_step"]
            assert row["action"] == rollout["actions"][at].reshape(-1).tolist()
            assert row["old_log_prob"] == rollout["log_probs"][at]
            assert row["advantage"] == rollout["advantages"][at]
            assert row["value_target"] == rollout["returns"][at]
            assert row["log_ratio"] == pytest.approx(row["new_log_prob"] - row["old_log_prob"], abs=1e-6)

    def test_they_are_the_largest_by_absolute_log_ratio(self, tmp_path: Path):
        model = ppo(learning_rate=0.02)
        recorded = callback(tmp_path)
        model.learn(64, callback=recorded)
        for update in rows(recorded, "ppo_updates"):
            own = [r for r in rows(recorded, "ratio_exemplars") if r["update"] == update["update"]]
            own.sort(key=lambda row: row["place"])
            sizes = [abs(r["log_ratio"]) for r in own]
            assert sizes == sorted(sizes, reverse=True)
            assert sizes[0] == max(abs(update["log_ratio_min"]), abs(update["log_ratio_max"]))

    def test_the_rollouts_own_sums_are_those_of_the_buffer(self, tmp_path: Path):
        model = MODELS["PPO"]()
        keep, recorded = _Keep(), callback(tmp_path)
        model.learn(96, callback=[keep, recorded])
        for row, rollout in zip(rows(recorded, "ppo_updates"), keep.rollouts, strict=True):
            assert row["rollout_n"] == 48
            for column, name in (("value", "values"), ("return", "returns"), ("advantage", "advantages")):
                wide = rollout[name].astype(np.float64)
                assert row[f"rollout_{column}_sum"] == pytest.approx(wide.sum(), rel=1e-12)
                assert row[f"rollout_{column}_sum_sq"] == pytest.approx((wide * wide).sum(), rel=1e-12)
            assert row["rollout_reward_min"] == rollout["rewards"].min()
            assert row["rollout_reward_max"] == rollout["rewards"].max()

    def test_masked_entropy_is_measured_against_the_actions_that_were_allowed(self, tmp_path: Path):
        model = MODELS["MaskablePPO"]()
        keep, recorded = _Keep(), callback(tmp_path)
        model.learn(96, callback=[keep, recorded])
        for row, rollout in zip(rows(recorded, "ppo_updates"), keep.rollouts, strict=True):
            allowed = rollout["action_masks"].sum(axis=-1)
            assert row["entropy_normalized_n"] == row["epochs"] * (allowed > 1).sum()
            assert row["entropy_normalized"] == pytest.approx(1.0, abs=0.02)
            # A policy that has hardly learnt is uniform over what is allowed.
            assert row["entropy"] == pytest.approx(np.log(allowed).mean(), abs=0.02)


class TestLayers:
    def test_an_update_without_a_step_has_no_gradients_of_its_own(self, tmp_path: Path):
        model = ppo(target_kl=1e-9, learning_rate=0.0, n_epochs=1, batch_size=32)
        # Ratios of a policy moved from outside: the first minibatch already stops the update.
        moved: list[int] = []

        def move(model: Any) -> None:
            moved.append(1)
            if len(moved) == 2:
                with torch.no_grad():
                    model.policy.action_net.bias[0] += 1.0

        recorded = callback(tmp_path)
        model.learn(64, callback=[recorded, Each(rollout_end=move)])
        assert [row["stepped_count"] for row in rows(recorded, "ppo_updates")] == [1, 0]
        assert {row["update"] for row in rows(recorded, "gradient_layers")} == {1}

    def test_after_an_early_stop_the_layers_are_those_of_the_last_step(self, tmp_path: Path):
        model = ppo(target_kl=1e-6, learning_rate=0.01, n_epochs=3)
        recorded = callback(tmp_path)
        model.learn(32, callback=recorded)
        (update,) = rows(recorded, "ppo_updates")
        assert update["stopped_early"] and update["stepped_count"] == update["minibatch_count"] - 1
        layers = rows(recorded, "gradient_layers")
        assert {row["minibatch"] for row in layers} == {update["stepped_count"]}
        assert all(row["after_clipping"] for row in layers)
        whole = math.sqrt(sum(row["grad_norm"] ** 2 for row in layers))
        norms = [row["grad_norm"] for row in rows(recorded, "minibatches")]
        assert whole == pytest.approx(min(norms[-2], model.max_grad_norm), rel=1e-4)

    def test_else_they_are_the_last_minibatchs_before_clipping(self, tmp_path: Path):
        model = ppo(max_grad_norm=0.01)
        recorded = callback(tmp_path)
        model.learn(32, callback=recorded)
        layers = rows(recorded, "gradient_layers")
        assert {(row["epoch"], row["minibatch"], row["after_clipping"]) for row in layers} == {(2, 4, False)}
        assert [row["layer"] for row in layers] == [name for name, _ in model.policy.named_parameters()]
        whole = math.sqrt(sum(row["grad_norm"] ** 2 for row in layers))
        (update,) = rows(recorded, "ppo_updates")
        assert whole == pytest.approx(rows(recorded, "minibatches")[-1]["grad_norm"], rel=1e-6)
        assert update["grad_norm_clipped"] == pytest.approx(0.01, rel=1e-3)


class _Unreadable(torch.Tensor):
    """A tensor that takes part in the loss and cannot be copied."""

    @staticmethod
    def of(tensor: torch.Tensor) -> Any:
        return tensor.as_subclass(_Unreadable)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.stack:
            raise RuntimeError("this tensor is for the loss alone")
        return super().__torch_function__(func, types, args, kwargs)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items() if k not in (":serialized:",) and " at 0x" not in str(v)}
    return value


class TestRuns:
    def test_the_manifest_names_the_trainer_and_its_hyperparameters(self, tmp_path: Path):
        model = ppo(learning_rate=lambda left: 1e-3 * left, clip_range_vf=0.3)
        recorded = callback(tmp_path, config={"note": "mine"})
        model.learn(32, callback=recorded)
        assert recorded.path is not None
        manifest = read_manifest(recorded.path)
        assert manifest.trainer == {"name": "stable-baselines3 PPO"}
        assert manifest.definition == "sb3"
        wanted = {"n_steps": 32, "learning_rate": 1e-3, "clip_range": 0.2, "clip_range_vf": 0.3, "note": "mine"}
        assert wanted.items() <= manifest.config.items()
        assert "stable_baselines3" in manifest.versions

    def test_a_training_stopped_within_a_rollout_leaves_no_update_of_it(self, tmp_path: Path):
        model = ppo()
        recorded = callback(tmp_path)
        model.learn(128, callback=[recorded, Each(step=lambda model: model.num_timesteps < 70)])
        assert_untouched(model)
        assert recorded.path is not None and how_it_ended(recorded.path) == "finished"
        assert [row["update"] for row in rows(recorded, "ppo_updates")] == [1, 2]

    @pytest.mark.parametrize("algorithm", [A2C, DQN])
    def test_an_algorithm_other_than_ppo_is_a_type_error(self, tmp_path: Path, algorithm: Any):
        model = algorithm("MlpPolicy", TinyEnv(), device="cpu")
        with pytest.raises(TypeError, match=f"records PPO, MaskablePPO and RecurrentPPO; {algorithm.__name__} has no"):
            model.learn(16, callback=callback(tmp_path))
        assert list(tmp_path.iterdir()) == []

    def test_an_unknown_level_or_profile_raises_before_the_training(self, tmp_path: Path):
        with pytest.raises(ValueError, match="level 'loud' is not known; there are: off, minimal, normal, debug"):
            RecorderCallback(tmp_path, level="loud", rules=None)
        with pytest.raises(ValueError, match="nonsense"):
            RecorderCallback(tmp_path, rules="nonsense")

    def test_at_level_off_nothing_is_written_and_the_training_is_the_same(self, tmp_path: Path):
        plain = ppo().learn(64)
        model = ppo()
        model.learn(64, callback=callback(tmp_path, level="off"))
        assert_same_state(plain, model)
        assert list(tmp_path.iterdir()) == []

    def test_at_level_debug_every_minibatch_has_its_histogram_exemplars_and_layers(self, tmp_path: Path):
        plain = ppo().learn(64)
        model = ppo()
        recorded = callback(tmp_path, level="debug")
        model.learn(64, callback=recorded)
        assert_same_state(plain, model)
        per_update = [(u, m) for u in (1, 2) for m in (1, 2, 3, 4)]
        histograms = rows(recorded, "ratio_histograms")
        assert sorted((r["update"], r["minibatch"]) for r in histograms) == per_update
        assert all(sum(r["counts"]) == 16 for r in histograms)
        layers = {(r["update"], r["minibatch"]) for r in rows(recorded, "gradient_layers")}
        assert sorted(layers) == per_update
        assert not any(r["after_clipping"] for r in rows(recorded, "gradient_layers"))
        scopes = [r["scope"] for r in rows(recorded, "ratio_exemplars")]
        assert (scopes.count("minibatch"), scopes.count("update")) == (8 * 16, 2 * 16)

    def test_it_gets_on_with_evaluation_checkpoints_and_lists_of_callbacks(self, tmp_path: Path):
        def others(name: str) -> list[BaseCallback]:
            return [
                EvalCallback(make_vec_env(TinyEnv, 1, seed=9), n_eval_episodes=2, eval_freq=20, verbose=0),
                CheckpointCallback(20, str(tmp_path / name)),
            ]

        plain = ppo().learn(96, callback=others("without"))
        model = ppo()
        recorded = callback(tmp_path / "runs")
        evaluation, checkpoint = others("with")
        model.learn(96, callback=[evaluation, recorded, checkpoint])
        assert_same_state(plain, model)
        assert len(rows(recorded, "ppo_updates")) == 3
        assert len(list((tmp_path / "with").glob("*.zip"))) == 4
