"""Alarms that somebody hears: one line at each onset, the callback, and the flag on which training stops."""

from __future__ import annotations

import logging
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

import esper_analytics as ea
from esper_recorder import AlarmOnset, MemorySink, Recorder
from esper_recorder.alarms import Announcer
from esper_recorder.contract.rules.evaluator import Firing
from esper_recorder.contract.rules.model import Severity
from esper_recorder.sb3 import RecorderCallback
from esper_recorder.storage.manifest import how_it_ended
from tests.recorder.sb3_runs import TinyEnv

RULES = """
[rules.far_off]
severity = "critical"
column = "ratio_max"
above = 2.0

[rules.high]
severity = "warning"
column = "ratio_max"
above = 1.5

[rules.of_heads]
severity = "info"
table = "heads"
column = "ratio_max"
key = "head"
above = 2.0
"""
"""e^1 = 2.718 is far off, e^0.5 = 1.649 is high."""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    return file


def record(rec: Recorder, log_ratios: Sequence[float], heads: Sequence[str] = ()) -> None:
    """An update each, stored before the next call."""
    for log_ratio in log_ratios:
        x = torch.tensor([0.0, log_ratio])
        rec.minibatch(log_ratio=x, clip_range=0.2, heads={head: {"log_ratio": x} for head in heads} or None)
        rec.end_update()
        assert rec.flush()


def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [r.message for r in caplog.records if r.levelno == logging.WARNING and " alarm " in r.message]


class TestTheLog:
    def test_has_one_line_at_each_onset_and_none_while_it_lasts(
        self, tmp_path: Path, rules: Path, caplog: pytest.LogCaptureFixture
    ):
        with Recorder(tmp_path / "runs", rules=rules, name="hot") as rec:
            record(rec, [0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
        assert lines(caplog) == [
            f"critical alarm far_off at update 2: 2.71828 (threshold 2), run {rec.run_id}",
            f"warning alarm high at update 2: 2.71828 (threshold 1.5), run {rec.run_id}",
        ]

    def test_has_one_line_per_rule_whatever_the_number_of_its_keys(
        self, tmp_path: Path, rules: Path, caplog: pytest.LogCaptureFixture
    ):
        heard: list[AlarmOnset] = []
        with Recorder(tmp_path / "runs", rules=rules, on_alarm=heard.append) as rec:
            record(rec, [1.0], heads=[f"head{i}" for i in range(8)])
        (line,) = [line for line in lines(caplog) if "of_heads" in line]
        assert "of head0 at update 1" in line and line.endswith(
            "likewise 7 more: head1, head2, head3, head4, head5, ..."
        )
        assert [alarm.key for alarm in heard if alarm.rule == "of_heads"] == [f"head{i}" for i in range(8)]

    def test_has_the_onsets_of_the_replay(self, tmp_path: Path, rules: Path, caplog: pytest.LogCaptureFixture):
        generator = torch.Generator().manual_seed(4)
        log_ratios = (torch.rand(120, generator=generator) * (torch.rand(120, generator=generator) < 0.2)).tolist()
        with Recorder(tmp_path / "runs", rules=rules) as rec:
            record(rec, [1.2 * x for x in log_ratios])
        incidents = ea.replay(ea.open(tmp_path / "runs")).incidents
        onsets = incidents.sort("onset_update", "rule").select("rule", "onset_update").rows()
        logged = [(line.split()[2], int(line.split("at update ")[1].split(":")[0])) for line in lines(caplog)]
        assert logged == onsets and len(logged) > 5

    def test_continues_over_a_resume(self, tmp_path: Path, rules: Path, caplog: pytest.LogCaptureFixture):
        with Recorder(tmp_path / "runs", rules=rules) as rec:
            record(rec, [1.0])
        assert len(lines(caplog)) == 2
        with Recorder(tmp_path / "runs", rules=rules, resume=rec.run_id) as rec:
            record(rec, [1.0])
        assert len(lines(caplog)) == 2, "the same incident"


class TestTheCallback:
    def test_is_called_in_the_training_thread_with_each_onset(self, tmp_path: Path, rules: Path):
        heard: list[tuple[AlarmOnset, int]] = []
        with Recorder(
            tmp_path / "runs", rules=rules, on_alarm=lambda alarm: heard.append((alarm, threading.get_ident()))
        ) as rec:
            record(rec, [0.0, 0.5, 1.0])
        assert {thread for _, thread in heard} == {threading.get_ident()}
        assert [(a.update, a.rule, a.severity, a.threshold, a.run_id) for a, _ in heard] == [
            (2, "high", "warning", 1.5, rec.run_id),
            (3, "far_off", "critical", 2.0, rec.run_id),
        ]
        assert str(heard[0][0]) == f"warning alarm high at update 2: 1.64872 (threshold 1.5), run {rec.run_id}"

    def test_hears_those_of_the_last_update_at_close(self, tmp_path: Path, rules: Path):
        heard: list[AlarmOnset] = []
        with Recorder(tmp_path / "runs", rules=rules, on_alarm=heard.append) as rec:
            rec.minibatch(log_ratio=torch.tensor([1.0]))
            rec.end_update()
        assert [alarm.rule for alarm in heard] == ["far_off", "high"]

    def test_that_raises_is_logged_and_nothing_is_lost(
        self, tmp_path: Path, rules: Path, caplog: pytest.LogCaptureFixture
    ):
        def fail(alarm: AlarmOnset) -> None:
            raise RuntimeError("no pager")

        sink = MemorySink()
        with Recorder(tmp_path / "runs", rules=rules, sink=sink, on_alarm=fail) as rec:
            record(rec, [1.0, 0.0])
        assert "on_alarm failed (RuntimeError: no pager) with the critical alarm far_off" in caplog.text
        assert sink.updates == [1, 2] and sink.rows("gaps") == []

    def test_may_call_the_recorder(self, tmp_path: Path, rules: Path):
        sink = MemorySink()

        def note(alarm: AlarmOnset) -> None:
            rec.row("epochs", env=0, epoch=alarm.update)

        with Recorder(tmp_path / "runs", rules=rules, sink=sink, on_alarm=note) as rec:
            record(rec, [1.0, 0.0])
        assert [row["epoch"] for row in sink.rows("epochs")] == [1, 1]


class TestStopping:
    @pytest.mark.parametrize(("stop_on", "stops_at"), [(None, None), ("critical", 3), ("warning", 2), ("info", 2)])
    def test_is_a_flag_for_scripts(self, tmp_path: Path, rules: Path, stop_on: str | None, stops_at: int | None):
        with Recorder(tmp_path / "runs", rules=rules, stop_on=stop_on) as rec:
            for update, log_ratio in enumerate([0.0, 0.5, 1.0, 0.0], 1):
                record(rec, [log_ratio])
                assert rec.should_stop == (stops_at is not None and update >= stops_at)

    def test_never_is_without_rules_or_at_level_off(self, tmp_path: Path):
        assert not Recorder(tmp_path, level="off", stop_on="info").should_stop
        with Recorder(tmp_path, rules=None, stop_on="info") as rec:
            record(rec, [5.0])
            assert not rec.should_stop

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            (
                {"stop_on": "bad"},
                r"stop_on is 'bad'; give the severity to stop on \(info, warning, critical\), or None",
            ),
            ({"on_alarm": "print"}, "on_alarm is 'print'; give a function that takes an alarm, or None"),
        ],
    )
    @pytest.mark.parametrize("kind", [Recorder, RecorderCallback])
    def test_options_that_are_invalid_are_errors(self, tmp_path: Path, options: dict[str, Any], words: str, kind: Any):
        with pytest.raises(ValueError, match=words):
            kind(tmp_path, **options)


class Flush(BaseCallback):
    """Waits for the rules after each update, so that a test is not about how fast the writer's thread is."""

    def __init__(self, callback: RecorderCallback) -> None:
        super().__init__()
        self._callback = callback

    def _on_step(self) -> bool:
        assert self._callback.recorder is not None and self._callback.recorder.flush()
        return True


ALWAYS = """
[rules.always]
severity = "critical"
column = "ratio_max"
above = 0.0
"""


class TestStableBaselines3:
    def train(self, tmp_path: Path, **options: Any) -> tuple[PPO, RecorderCallback]:
        rules = tmp_path / "always.toml"
        rules.write_text(ALWAYS)
        callback = RecorderCallback(tmp_path / "runs", rules=rules, **options)
        model = PPO("MlpPolicy", TinyEnv(), n_steps=32, batch_size=16, n_epochs=2, seed=1, device="cpu")
        model.learn(160, callback=[Flush(callback), callback])
        return model, callback

    def test_learn_ends_after_the_update_with_the_alarm_and_the_run_is_finished(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        model, callback = self.train(tmp_path, stop_on="critical")
        # The first step of the second rollout is the first at which the alarm of the first update is known.
        assert model.num_timesteps == 33
        assert callback.path is not None and how_it_ended(callback.path) == "finished"
        assert callback.recorder is not None and callback.recorder.should_stop
        assert "is asked to stop: stop_on is critical" in caplog.text
        assert ea.open(tmp_path / "runs").table("ppo_updates").collect()["update"].to_list() == [1]

    def test_by_default_an_alarm_changes_nothing_but_the_log(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        model, _ = self.train(tmp_path)
        assert model.num_timesteps == 160
        assert len(lines(caplog)) == 1

    def test_on_alarm_is_called_between_two_steps(self, tmp_path: Path):
        heard: list[tuple[str, int]] = []
        self.train(tmp_path, on_alarm=lambda alarm: heard.append((alarm.rule, alarm.update)))
        assert heard == [("always", 1)]


def test_a_pause_of_two_percent_of_the_updates_is_within_one_incident():
    announcer = Announcer("run", stop_on=Severity.CRITICAL)

    def firing(update: int) -> list[Firing]:
        return [Firing(update, "rule", "", "warning", 1.0, 0.5, None, None)]

    # At update 1,000 that is 20: from 979 on, 20 updates lie between; from 978 on, 21 do.
    assert announcer.remember(firing(979)) and not announcer.remember(firing(1000))
    announcer = Announcer("run", stop_on=Severity.CRITICAL)
    assert announcer.remember(firing(978)) and announcer.remember(firing(1000))
    announcer.announce(firing(1001))
    assert not announcer.should_stop, "a warning is milder than critical"
