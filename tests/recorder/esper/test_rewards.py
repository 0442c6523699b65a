"""The row of a reward's components is the contract's, and takes what both reviews' component sets hold."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import esper_analytics as ea
from esper_recorder import Recorder
from esper_recorder.contract.tables import TABLES, column_names
from esper_recorder.esper import EnvironmentEmitter, RewardComponents, reward_components

# The fields of Esper's RewardComponentsTelemetry at the first review, what the second added, and what came later.
FIRST = (
    *("base_acc_delta", "seed_contribution", "bounded_attribution", "progress_since_germination", "ratio_penalty"),
    *("attribution_discount", "compute_rent", "blending_warning", "probation_warning", "stage_bonus", "pbrs_bonus"),
    *("action_shaping", "terminal_bonus", "fossilize_terminal_bonus", "num_fossilized_seeds", "action_name", "epoch"),
    *("num_contributing_fossilized", "action_success", "seed_stage", "val_acc", "acc_at_germination", "growth_ratio"),
    *("host_baseline_acc", "total_reward"),
)
SECOND = (
    *(name for name in FIRST if name != "probation_warning"),
    *("holding_warning", "alpha_shock", "synergy_bonus", "hindsight_credit", "shaped_reward_ratio"),
)
LATER = (
    *("stable_val_acc", "escrow_credit_prev", "escrow_credit_target", "escrow_delta", "escrow_credit_next"),
    *("escrow_forfeit", "occupancy_rent", "fossilized_rent", "n_active_seeds", "timing_discount", "drip_this_epoch"),
    *("drip_immediate_bonus", "drip_deferred_total", "num_drip_sources", *SECOND),
)


def test_reward_components_are_the_row_of_the_table() -> None:
    assert RewardComponents is TABLES["rewards"]
    assert {f.name for f in dataclasses.fields(RewardComponents)} == set(column_names("rewards"))


@pytest.mark.parametrize("names", [FIRST, SECOND, LATER], ids=["first", "second", "later"])
def test_each_component_has_a_field(names: tuple[str, ...]) -> None:
    row = reward_components({name: place for place, name in enumerate(names)})
    assert sorted(value for value in dataclasses.asdict(row).values() if value is not None) == [*range(len(names))]


def test_the_trainers_own_object_is_accepted() -> None:
    @dataclasses.dataclass(slots=True)
    class Telemetry:
        total_reward: float
        epoch: int = 3
        stage_bonus: float | None = None

    assert reward_components(Telemetry(0.5)) == RewardComponents(total_reward=0.5, step=3)
    assert reward_components(Telemetry(0.5), step=4).step == 4
    with pytest.raises(ValueError, match="not 5"):
        reward_components(5)


def test_a_missing_component_is_none_and_zero_is_zero() -> None:
    row = reward_components({"total_reward": 0.0, "synergy_bonus": None}, env=1, step=2)
    assert (row.total_reward, row.synergy_bonus, row.alpha_shock, row.env) == (0.0, None, None, 1)


def test_reward_components_are_frozen_and_have_no_other_attribute() -> None:
    row: Any = RewardComponents(total_reward=1.0)
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.total_reward = 2.0
    assert not hasattr(row, "__dict__")
    with pytest.raises(TypeError):
        RewardComponents(total=1.0)  # type: ignore[call-arg]


@pytest.mark.parametrize(
    ("components", "why"),
    [
        ({"compute_rnt": 1.0}, "no component 'compute_rnt'. Did you mean compute_rent?"),
        ({"probation_warning": 1.0, "holding_warning": 2.0}, "holding_warning has two values"),
        ({"qqq": 1.0}, "no component 'qqq'. The components are: run_id, "),
    ],
)
def test_an_unknown_or_repeated_component_is_refused(components: dict[str, Any], why: str) -> None:
    with pytest.raises(ValueError, match=why.replace("?", r"\?")):
        reward_components(components)


def test_a_named_query_checks_that_components_add_up(tmp_path: Path) -> None:
    with Recorder(tmp_path, rules=None) as rec:
        emitter = EnvironmentEmitter(rec).of(env=0)
        emitter.rewarded(1, {"total_reward": 0.25, "bounded_attribution": 0.5, "compute_rent": -0.25})
        emitter.rewarded(2, {"total_reward": 1.0, "stage_bonus": 0.25})
        emitter.rewarded(3, {"total_reward": math.nan, "stage_bonus": 0.25})
        emitter.rewarded(4, {"stage_bonus": 0.25})
        rec.minibatch(log_ratio=torch.zeros(2), clip_range=0.2)
        rec.end_update()
    # Of the three steps with a total, 0.5 - 0.25 is 0.25, 0.25 is not 1.0, and nothing is NaN.
    [answer] = ea.open(tmp_path).query("reward_sums").to_dicts()
    assert (answer["steps"], answer["steps_mismatched"], answer["largest_difference"]) == (3, 2, 0.75)
