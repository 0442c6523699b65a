"""Performance that degrades, from the recorder to the rule to the report, through the commands people type."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

import esper_analytics as ea
from esper_recorder import Recorder
from esper_recorder.esper import EnvironmentEmitter
from tests.support import esper

JSON = ("--format", "json")
RULE = "return_degradation"
# Three updates at 40 in a row lie more than half below the average of those before them, which is 100, 91 and 84 or so:
# (40 - 84) / 84 is -0.52. The third of them, update 14, fires.
FALLING = [100.0] * 11 + [40.0] * 3 + [90.0] * 2
HOLDING = [100.0] * 16


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("runs")
    for name, returns in (("falling", FALLING), ("holding", HOLDING)):
        with Recorder(root, name=name, total_updates=len(returns), rules="default") as rec:
            for update, mean in enumerate(returns, 1):
                for env in range(2):
                    rec.episode(return_=mean - 5 + 10 * env, length=10, env=env)
                rec.minibatch(log_ratio=torch.zeros(64), entropy=torch.full((64,), 0.6), clip_range=0.2)
                rec.end_update(step=64 * update)
    return root


def run_id(runs: Path, name: str) -> str:
    [found] = [path.name for path in runs.iterdir() if path.name.startswith(name)]
    return found


def test_it_was_an_alarm_while_the_run_was_recorded(runs: Path) -> None:
    rows = json.loads(
        esper("sql", runs, f"SELECT run_id, update, severity FROM alarms WHERE rule = '{RULE}'", *JSON).stdout
    )
    assert rows == [{"run_id": run_id(runs, "falling"), "update": 14, "severity": "warning"}]


def test_the_replay_finds_the_incident_and_its_recovery(runs: Path) -> None:
    incidents = json.loads(esper("replay", runs, "--show", "incidents", *JSON).stdout)
    [incident] = [found for found in incidents if found["rule"] == RULE]
    assert (incident["run_id"], incident["onset_update"], incident["updates"]) == (run_id(runs, "falling"), 14, 1)
    assert incident["recovered"] is True
    assert -0.55 < incident["peak_value"] < -0.5


def test_the_report_names_the_degradation_and_nothing_for_a_run_without_it(runs: Path, tmp_path: Path) -> None:
    said = {"falling": f"1 incident; the first was {RULE} (warning) at update 14", "holding": "Nothing fired"}
    for name, text in said.items():
        report = tmp_path / f"{name}.md"
        esper("report", runs, "--run", run_id(runs, name), "-o", report)
        assert text in report.read_text()


ACCURACY_RULE = """
[rules.accuracy_falls]
severity = "warning"
table = "epochs"
take = "mean"
column = "val_accuracy"
drift = { momentum = 0.9, bias_correction = true, warmup = 2, signed = true }
below = -0.1
evidence = "A tenth below the average so far."
"""


def test_an_emitted_accuracy_fires_live_as_in_the_replay(tmp_path: Path) -> None:
    rules = tmp_path / "rules.toml"
    rules.write_text(ACCURACY_RULE)
    with Recorder(tmp_path / "runs", rules=rules) as rec:
        emitter = EnvironmentEmitter(rec)
        # The mean over the environments is 60 four times; 54.5 is 9.2 % below that. The average then is
        # (0.9 * 0.3439 * 60 + 0.1 * 54.5) / 0.40951 = 58.66, and 50 is 14.8 % below.
        for accuracy in (60.0, 60.0, 60.0, 60.0, 54.5, 50.0):
            for env in range(2):
                emitter.of(env=env).epoch_completed(1, val_accuracy=accuracy - 2 + 4 * env)
            rec.minibatch(log_ratio=torch.zeros(4), clip_range=0.2)
            rec.end_update()
    runs = ea.open(tmp_path / "runs")
    alarms = runs.sql("SELECT update, rule, value FROM alarms").rows()
    assert [(update, rule) for update, rule, _ in alarms] == [(6, "accuracy_falls")]
    assert ea.replay(runs).firings.select("update", "rule", "value").rows() == alarms
