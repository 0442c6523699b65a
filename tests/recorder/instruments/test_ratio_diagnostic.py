"""What made a ratio explode: from tensors, and from a recorded run, an early stop or not."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO

import esper_analytics as ea
from esper_analytics.postmortem.forensics import examine
from esper_recorder.contract.rules.ruleset import load_profile
from esper_recorder.contract.worst_transitions import ABOVE, BELOW, ratio_of_head
from esper_recorder.instruments import diagnose_ratios
from esper_recorder.reductions.ratio_histogram import EXEMPLARS
from esper_recorder.sb3 import RecorderCallback
from tests.recorder.capture.no_sync import NoSync
from tests.recorder.sb3_runs import TinyEnv

pytestmark = pytest.mark.trains

NAN, INF = math.nan, math.inf


def test_non_finite_transitions_come_first_then_the_furthest_to_either_side():
    got = diagnose_ratios(log_ratio=torch.tensor([0.5, NAN, -4.0, INF, 3.0, -INF]), actions=torch.arange(6))
    [joint] = got.ratios
    logs = [one.log_ratio for one in joint.worst]
    assert math.isnan(logs[0]) and {abs(x) for x in logs[1:3]} == {INF} and logs[3:] == [-4.0, 3.0, 0.5]
    assert [one.action for one in joint.worst][3:] == [(2,), (4,), (0,)]
    assert (joint.n, joint.nonfinite) == (6, 3)
    assert joint.worst[3].ratio == pytest.approx(math.exp(-4.0))


def test_only_the_worst_are_kept_and_they_are_the_recorders():
    got = diagnose_ratios(log_ratio=torch.linspace(-1.0, 2.0, 100))
    assert len(got.ratios[0].worst) == EXEMPLARS
    assert got.ratios[0].worst[0].log_ratio == pytest.approx(2.0)


def test_the_worst_head_is_named_though_the_joint_ratio_hides_it():
    up, down = torch.tensor([0.0, 3.0, 0.0]), torch.tensor([0.0, -3.5, 0.0])
    heads = {"op": {"log_ratio": up}, "slot": {"log_ratio": down}, "value": {"entropy": torch.ones(3)}}
    got = diagnose_ratios(log_ratio=up + down, heads=heads)
    assert got.worst_head is not None and got.worst_head.head == "slot"
    assert got.worst_head.worst[0].log_ratio == -3.5
    assert got.exploded == ("op", "slot")  # exp(3) > 5, exp(-3.5) < 0.1; the joint exp(-0.5) is neither
    assert [one.head for one in got.ratios] == ["", "op", "slot"]  # the third has no ratio


def test_a_head_that_is_not_finite_is_worse_than_one_that_moved_far():
    heads = {"far": {"log_ratio": torch.tensor([50.0, 0.0])}, "broken": {"log_ratio": torch.tensor([NAN, 0.0])}}
    got = diagnose_ratios(log_ratio=torch.zeros(2), heads=heads)
    assert got.worst_head is not None and got.worst_head.head == "broken"


def test_without_heads_and_at_a_ratio_of_one_there_is_no_worst_head():
    assert diagnose_ratios(log_ratio=torch.tensor([9.0])).worst_head is None
    assert diagnose_ratios(log_ratio=torch.zeros(1), heads={"a": {"log_ratio": torch.zeros(1)}}).worst_head is None


def test_a_ratio_at_a_threshold_has_not_exploded():
    assert diagnose_ratios(log_ratio=torch.tensor([math.log(5.0)]), above=5.5).exploded == ()
    assert not ratio_of_head("", {"ratio_max": 5.0, "ratio_min": 0.1}, []).is_beyond(5.0, 0.1)
    assert ratio_of_head("", {"ratio_max": 5.0001}, []).is_beyond(5.0, 0.1)


def test_masks_are_used():
    log_ratio = torch.tensor([9.0, 1.0, NAN])
    got = diagnose_ratios(log_ratio=log_ratio, mask=torch.tensor([False, True, False]))
    assert [one.log_ratio for one in got.ratios[0].worst] == [1.0] and got.ratios[0].n == 1
    heads = {"op": {"log_ratio": log_ratio, "mask": torch.tensor([1, 1, 0])}}
    assert [one.log_ratio for one in diagnose_ratios(log_ratio=log_ratio, heads=heads).ratios[1].worst] == [9.0, 1.0]


def test_log_probabilities_index_and_advantages_are_reported_and_missing_ones_are_none():
    got = diagnose_ratios(
        new_log_probs=torch.tensor([-1.0, -2.0]),
        old_log_probs=torch.tensor([-1.5, -5.0]),
        advantages=torch.tensor([1.0, -1.0]),
        index=torch.tensor([7, 3]),
    )
    worst = got.ratios[0].worst[0]
    assert (worst.old_log_prob, worst.new_log_prob, worst.log_ratio) == (-5.0, -2.0, 3.0)
    assert (worst.index, worst.advantage, worst.action, worst.env) == (3, -1.0, None, None)


def test_an_empty_minibatch_has_no_worst_and_no_ratio():
    [joint] = diagnose_ratios(log_ratio=torch.zeros(0)).ratios
    assert (joint.n, joint.worst, joint.ratio_max) == (0, (), None)


def test_the_ratio_of_a_log_ratio_beyond_float64_is_infinite():
    assert diagnose_ratios(log_ratio=torch.tensor([800.0], dtype=torch.float64)).ratios[0].worst[0].ratio == INF


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({}, "a minibatch needs log_ratio, or new_log_probs and old_log_probs"),
        ({"log_ratio": torch.ones(3), "advantages": torch.ones(2)}, "the log ratio has 3, advantages has 2"),
        ({"log_ratio": torch.ones(3), "actions": torch.ones(4)}, "different lengths"),
        ({"log_ratio": torch.ones(2), "heads": {"op": {"log_ration": torch.ones(2)}}}, "Did you mean log_ratio"),
        ({"log_ratio": torch.ones(2), "heads": {"op": {"log_ratio": torch.ones(5)}}}, "log_ratio of head 'op' has 5"),
    ],
)
def test_an_invalid_call_has_a_message(words: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        diagnose_ratios(**words)


def test_there_is_one_transfer(monkeypatch: pytest.MonkeyPatch):
    from esper_recorder.capture.transfer import Transfer as plain
    from esper_recorder.instruments import ratio_diagnostic

    made: list[int] = []
    monkeypatch.setattr(ratio_diagnostic, "Transfer", lambda tensors: made.append(1) or plain(tensors))  # type: ignore[func-returns-value]
    heads = {name: {"log_ratio": torch.ones(3)} for name in "abcd"}
    with NoSync():
        diagnose_ratios(log_ratio=torch.ones(3), heads=heads)
    assert made == [1]


def test_the_thresholds_are_those_of_the_profile():
    rules = {rule.name: rule.conditions[0].threshold for rule in load_profile("esper-review").rules}
    high, low = rules["ratio_explosion"], rules["ratio_collapse"]
    assert high is not None and low is not None and (high.number, low.number) == (ABOVE, BELOW)


def test_the_diagnostic_is_recorded_though_a_real_training_stops_early(tmp_path: Path):
    """Stable-Baselines3 leaves its epochs at target_kl, before the step; the minibatch that did it is on record."""
    shape: dict[str, Any] = {"n_steps": 32, "batch_size": 16, "n_epochs": 4, "policy_kwargs": {"net_arch": [8]}}
    model = PPO("MlpPolicy", TinyEnv(), seed=3, device="cpu", target_kl=1e-3, learning_rate=0.3, **shape)
    model.learn(32, callback=RecorderCallback(tmp_path, rules="esper-review"))
    runs = ea.open(tmp_path)
    [row] = runs.table("ppo_updates").collect().to_dicts()
    assert row["stopped_early"] and row["stepped_count"] == row["minibatch_count"] - 1
    found = examine(runs, runs.ids[0], 1)
    assert any("stopped early" in text for text in found.story)
    last = found.minibatches[-1]
    assert found.transitions[0]["minibatch"] == last["minibatch"] == row["minibatch_count"]
    extreme = max(abs(math.log(row["ratio_max"])), abs(math.log(row["ratio_min"])))
    assert abs(found.transitions[0]["log_ratio"]) == pytest.approx(extreme, rel=1e-4)
    assert found.transitions[0]["env"] is not None and found.transitions[0]["action"] is not None
