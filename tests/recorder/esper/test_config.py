"""The configuration of an Esper training: what it takes, what it refuses and why, and where it goes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

import esper_analytics as ea
from esper_recorder import Recorder
from esper_recorder.esper import RewardFamily, RewardMode, TrainingConfig
from esper_recorder.esper.config import ConfigError
from esper_recorder.storage.manifest import read_manifest
from examples.device_ppo import train_ppo_vectorized

ELSEWHERE = {"device", "level", "runs"}
"""Where a training runs and is recorded is not its configuration."""


class TestTaking:
    def test_it_is_the_same_after_json(self) -> None:
        config = TrainingConfig.for_tinystories(slots=["late", "early"], reward_mode="sparse", max_epochs=30)
        assert TrainingConfig.from_json(config.model_dump_json()) == config
        assert json.loads(config.model_dump_json())["reward_mode"] == "sparse"

    @pytest.mark.parametrize("mode", ["sparse", "SPARSE", "Sparse", RewardMode.SPARSE])
    def test_enumerations_come_from_their_texts(self, mode: Any) -> None:
        assert TrainingConfig(reward_mode=mode).reward_mode is RewardMode.SPARSE
        assert TrainingConfig(reward_family="LOSS").reward_family is RewardFamily.LOSS

    def test_slots_are_kept_in_their_canonical_order(self) -> None:
        assert TrainingConfig(slots=["late", "early", "late"]).slots == ("early", "late")
        assert TrainingConfig(slots=("r0c10", "r0c2")).slots == ("r0c2", "r0c10")

    def test_an_integer_is_a_number_and_the_default_chunk_is_an_episode(self) -> None:
        config = TrainingConfig(lr=1, max_epochs=7)
        assert (config.lr, config.chunk_length) == (1.0, 7)

    def test_it_cannot_be_changed(self) -> None:
        config = TrainingConfig()
        with pytest.raises(ValueError, match="frozen"):
            config.lr = 1.0

    def test_every_field_has_a_description(self) -> None:
        assert [name for name, field in TrainingConfig.model_fields.items() if not field.description] == []

    def test_a_file_is_read_and_an_error_names_it(self, tmp_path: Path) -> None:
        path = tmp_path / "config.json"
        path.write_text('{"n_envs": 8}')
        assert TrainingConfig.load(path).n_envs == 8
        path.write_text('{"n_envs": 8')
        with pytest.raises(ConfigError, match=r"config\.json: the configuration is not JSON"):
            TrainingConfig.load(path)
        with pytest.raises(FileNotFoundError):
            TrainingConfig.load(tmp_path / "nothing.json")


class TestRefusing:
    @pytest.mark.parametrize(
        ("values", "why"),
        [
            ({"learning_rate": 1e-3, "lrr": 1}, "lrr: there is no such field. Did you mean lr?"),
            ({"entropy_coeff": 0.1}, "entropy_coeff: there is no such field. Did you mean entropy_coef"),
            ({"lr": "0.1"}, "lr: Input should be a valid number (given: '0.1')"),
            ({"lr": 0}, "lr: Input should be greater than 0 (given: 0)"),
            ({"lr": math.nan}, "lr: Input should be a finite number (given: nan)"),
            ({"lr": math.inf}, "lr: Input should be a finite number (given: inf)"),
            ({"n_envs": 0}, "n_envs: Input should be greater than or equal to 1 (given: 0)"),
            ({"n_envs": 1.5}, "n_envs: Input should be a valid integer"),
            ({"n_envs": True}, "n_envs: Input should be a valid integer (given: True)"),
            ({"n_envs": None}, "n_envs: Input should be a valid integer (given: None)"),
            ({"amp": 1}, "amp: Input should be a valid boolean (given: 1)"),
            ({"gamma": 1.01}, "gamma: Input should be less than or equal to 1 (given: 1.01)"),
            ({"entropy_coef": -0.1}, "entropy_coef: Input should be greater than or equal to 0"),
            ({"reward_mode": "spars"}, "reward_mode: 'spars' is not known; there are: shaped, sparse, minimal"),
            ({"slots": []}, "slots: Value should have at least 1 item"),
            ({"slots": "mid"}, "slots: give a list of slot ids, such as ['mid']"),
            ({"slots": ["mid", "middle"]}, "slots: slot 'middle' is not known. Did you mean mid?"),
            ({"chunk_length": 10}, "chunk_length is 10 and max_epochs is 25, which must be equal: the recurrent state"),
            ({"chunk_length": 25, "max_epochs": 10}, "chunk_length is 25 and max_epochs is 10, which must be equal"),
            ({"reward_family": "loss", "reward_mode": "sparse"}, "reward_family loss needs reward_mode shaped"),
            ({"plateau_threshold": 2.0}, "a change would be both a plateau and an improvement"),
        ],
    )
    def test_an_error_names_the_field_and_the_reason(self, values: dict[str, Any], why: str) -> None:
        with pytest.raises(ConfigError) as refused:
            TrainingConfig(**values)
        assert why in str(refused.value)
        assert "pydantic" not in str(refused.value)

    def test_limits_are_inclusive_where_documented(self) -> None:
        config = TrainingConfig(gamma=1.0, clip_ratio=1.0, entropy_coef=0.0, n_envs=1, entropy_anneal_episodes=0)
        assert config.gamma == 1.0

    def test_all_errors_are_reported_at_once(self) -> None:
        with pytest.raises(ConfigError) as refused:
            TrainingConfig(lr=-1, n_envs=0)
        assert len(str(refused.value).splitlines()) == 2

    @pytest.mark.parametrize(("text", "what"), [("[1]", "list"), ("null", "null"), ("true", "truth"), ('"a"', "text")])
    def test_the_top_level_must_be_an_object(self, text: str, what: str) -> None:
        with pytest.raises(ConfigError, match=f"must be a JSON object, and is a {what}"):
            TrainingConfig.from_json(text)


@pytest.mark.parametrize(
    ("config", "entropy", "plateau"),
    [
        (TrainingConfig(), 0.1, 0.5),
        (TrainingConfig.for_cifar10(), 0.1, 0.4),
        (TrainingConfig.for_cifar10_deep(), 0.08, 0.35),
        (TrainingConfig.for_tinystories(), 0.05, 0.3),
    ],
)
def test_presets_have_the_values_of_the_review(config: TrainingConfig, entropy: float, plateau: float) -> None:
    assert (config.entropy_coef, config.plateau_threshold) == (entropy, plateau)


def test_a_preset_can_be_changed() -> None:
    assert TrainingConfig.for_cifar10(plateau_threshold=0.1, n_envs=2).plateau_threshold == 0.1


class TestTraining:
    def test_the_keyword_arguments_are_those_of_the_training_function_and_no_others(self) -> None:
        takes = inspect.signature(train_ppo_vectorized).parameters
        kwargs = TrainingConfig().to_train_kwargs()
        assert set(kwargs) == set(takes) - ELSEWHERE
        inspect.signature(train_ppo_vectorized).bind(**kwargs)

    def test_it_trains(self, tmp_path: Path) -> None:
        config = TrainingConfig(n_episodes=1, n_envs=2, max_epochs=8, n_minibatches=1, entropy_anneal_episodes=2)
        threads = torch.get_num_threads()
        train_ppo_vectorized(**config.to_train_kwargs(), runs=tmp_path)
        assert torch.get_num_threads() == threads
        assert ea.open(tmp_path).table("ppo_updates").collect()["n"].to_list() == [16]

    def test_another_function_gets_the_fields_it_takes(self) -> None:
        def train(lr: float, *, slots: tuple[str, ...], max_seeds: int | None = 3, verbose: bool = False) -> None: ...

        kwargs = TrainingConfig().to_train_kwargs(train)
        assert kwargs == {"lr": 3e-4, "slots": ("mid",), "max_seeds": None}

        def needs(*, dataset: str) -> None: ...

        with pytest.raises(ConfigError, match=r"needs\(\) needs dataset, which is not a field"):
            TrainingConfig().to_train_kwargs(needs)

    def test_it_is_kept_in_the_run(self, tmp_path: Path) -> None:
        config = TrainingConfig(lr=1e-3)
        with Recorder(tmp_path, config=config, rules=None) as rec:
            assert rec.path is not None
            kept = json.loads((rec.path / "run.json").read_text())["config"]
        assert TrainingConfig(**kept) == config


def test_a_configuration_that_is_a_dataclass_is_kept_field_by_field(tmp_path: Path) -> None:
    @dataclasses.dataclass(frozen=True)
    class Mine:
        lr: float
        betas: tuple[float, float]

    with Recorder(tmp_path, config=Mine(1e-3, (0.9, 0.999)), rules=None) as rec:
        assert rec.path is not None
    assert read_manifest(rec.path).config == {"lr": 1e-3, "betas": [0.9, 0.999]}


def test_without_pydantic_the_message_says_what_to_install() -> None:
    code = """
import sys
sys.modules["pydantic"] = None
import esper_recorder.esper
try:
    esper_recorder.esper.TrainingConfig
except ModuleNotFoundError as error:
    print(error)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert "pip install 'esper-recorder[esper]'" in done.stdout
