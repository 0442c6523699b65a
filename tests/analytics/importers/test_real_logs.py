"""What four libraries really log arrives whole, under columns that mean the same.

The files are written in the test run: by Stable-Baselines3, rsl_rl and TorchRL as they come from PyPI, and by the
training loop of CleanRL's `ppo.py`, which is a script to copy and no package, as `trainings.py` has it.
"""

from __future__ import annotations

import json
import math
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest
from stable_baselines3 import PPO
from stable_baselines3.common.logger import configure

import esper_analytics as ea
from esper_analytics.importers import library_tags, sb3_csv, tensorboard
from esper_recorder.sb3 import RecorderCallback
from tests.recorder.sb3_runs import TinyEnv

pytestmark = pytest.mark.trains

TRAININGS = Path(__file__).with_name("trainings.py")


@pytest.fixture(scope="module")
def logs(tmp_path_factory):
    """(folder of the event files, library -> everything it logged as (tag, value, step))."""
    folder = tmp_path_factory.mktemp("logs")
    command = [sys.executable, "-W", "ignore", str(TRAININGS), "cleanrl", "rsl_rl", "torchrl", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-4000:]
    line = next(line for line in done.stdout.splitlines() if line.startswith("LOGGED "))
    return folder, json.loads(line.removeprefix("LOGGED "))


@pytest.fixture(scope="module")
def imported(logs, tmp_path_factory):
    """Library -> (its imported run, its load report)."""
    folder, said = logs
    runs = {}
    for name in said:
        root = tmp_path_factory.mktemp("runs")
        [outcome] = tensorboard.import_files([str(folder / name)], root)
        assert outcome.status == "imported"
        runs[name] = (ea.open(root), outcome.report)
    return runs


def rows(runs, table):
    return runs.table(table).sort("attempt", "update").collect().to_dicts()


def by_tag(said):
    found = defaultdict(list)
    for tag, value, step in said:
        found[tag].append((step, float(np.float32(value))))
    return found


@pytest.mark.parametrize("library", library_tags.LIBRARIES[1:], ids=lambda library: library.definition)
def test_every_value_that_was_logged_is_in_one_place(logs, imported, library):
    said = by_tag(logs[1][library.definition])
    runs, report = imported[library.definition]
    found = defaultdict(list)
    mapped = library_tags.match_library(said)
    assert mapped is not None and mapped.library is library
    for row in rows(runs, "ppo_updates_all"):
        for tag, column in mapped.by_name.items():
            step = row["update"] - 1 if library.step_is_update else row["step"]
            found[tag].append((step, row[column.column] / column.factor))
    for row in rows(runs, "scalars_all"):
        found[row["name"]].append((row["step"], row["value"]))
    for row in runs.table("episodes_all").sort("episode").collect().to_dicts():
        found[str(library.episode_return)].append((row["step"], row["episode_return"]))
        found[str(library.episode_length)].append((row["step"], row["episode_length"]))
    assert found == said
    assert sum(len(values) for values in said.values()) == sum(t.typed + t.kept for t in report.tallies.values()) - (
        1 if library is library_tags.CLEANRL else 0  # the text with the hyperparameters
    )
    assert report.problems == []
    assert {row["definition"] for row in rows(runs, "ppo_updates")} == {library.definition}


class TestCleanRl:
    def test_updates_have_their_steps_and_the_columns_of_the_hyperparameters(self, imported):
        runs, _ = imported["cleanrl"]
        updates = rows(runs, "ppo_updates")
        assert [(row["update"], row["step"]) for row in updates] == [(1, 128), (2, 256), (3, 384)]
        assert [row["progress"] for row in updates] == [128 / 400, 256 / 400, 384 / 400]
        settings = {
            "clip_range": 0.2,
            "entropy_coef": 0.01,
            "value_coef": 0.5,
            "max_grad_norm": 0.5,
            "epochs_planned": 2,
        }
        assert all(row[name] == value for row in updates for name, value in settings.items())
        assert all(row["target_kl"] is None for row in updates)
        [run] = runs.table("runs").collect().to_dicts()
        assert (run["trainer"], run["ended"], run["total_steps"]) == ("CleanRL", "unknown", 400)
        assert json.loads(run["config"])["num_envs"] == 2

    def test_an_episode_belongs_to_the_update_it_was_collected_for(self, logs, imported):
        episodes = rows(imported["cleanrl"][0], "episodes")
        said = by_tag(logs[1]["cleanrl"])
        assert len(episodes) == len(said["charts/episodic_return"]) > 10
        # Two environments of 64 steps: update 1 learns from steps 1 to 128.
        assert all(row["update"] == math.ceil(row["step"] / 128) for row in episodes)
        assert all(row["episode_return"] == row["episode_length"] for row in episodes), "CartPole pays 1 a step"


PLACES = [(1, 1), (1, 2), (1, 3), (2, 3), (2, 4)]
"""(attempt, update) of iterations 0, 1 and 2; then, from the checkpoint after them, of 2 again and 3."""


class TestRslRl:
    def test_an_update_is_its_iteration_plus_one_and_a_resumed_one_supersedes_it(self, logs, imported):
        runs, report = imported["rsl_rl"]
        losses = [value for _, value in by_tag(logs[1]["rsl_rl"])["Loss/surrogate"]]
        every = [(row["attempt"], row["update"], row["policy_loss"]) for row in rows(runs, "ppo_updates_all")]
        assert every == [(*place, loss) for place, loss in zip(PLACES, losses, strict=True)]
        assert [row["policy_loss"] for row in rows(runs, "ppo_updates")] == [*losses[:2], *losses[3:]]
        assert [note for note in report.notes if "1 update made again" in note]
        assert all(row["step"] is None for row in rows(runs, "ppo_updates")), "it logs no environment steps"

    def test_a_value_logged_over_seconds_belongs_to_its_update(self, imported):
        of = defaultdict(list)
        for row in rows(imported["rsl_rl"][0], "scalars_all"):
            of[row["name"]].append((row["attempt"], row["update"], row["value"]))
        assert of["Train/mean_reward"] == of["Train/mean_reward/time"]
        assert len(of["Train/mean_reward"]) == len(PLACES)


class TestTorchRl:
    def test_a_metric_of_another_meaning_stays_a_scalar_and_hyperparameters_are_found(self, imported):
        runs, report = imported["torchrl"]
        assert [row["step"] for row in rows(runs, "ppo_updates")] == [32, 64, 96]
        names = {row["name"] for row in rows(runs, "scalars")}
        # Explained variance of the minibatches, not of the rollout; a mean of maxima is not a maximum.
        assert {"train/explained_variance", "train/max_ratio", "train/loss_entropy", "train/ESS"} <= names
        assert rows(runs, "ppo_updates")[0]["explained_variance"] is None
        [run] = runs.table("runs").collect().to_dicts()
        assert json.loads(run["config"]) == {"clip_epsilon": 0.2, "env": "walk"}
        assert report.tally("hparams").left_out == 3


@pytest.fixture(scope="module")
def three_ways(tmp_path_factory):
    """One SB3 training, recorded by our callback and imported from its event file and its progress.csv."""
    root = tmp_path_factory.mktemp("sb3")
    model = PPO("MlpPolicy", TinyEnv(), n_steps=32, batch_size=16, n_epochs=2, seed=1, device="cpu")
    model.set_logger(configure(str(root / "logs" / "PPO_1"), ["tensorboard", "csv"]))
    model.learn(32 * 5, callback=RecorderCallback(root / "native"))
    model.logger.close()
    tensorboard.import_files([str(root / "logs")], root / "events")
    sb3_csv.import_files([str(root / "logs")], root / "csv")
    return {name: ea.open(root / name) for name in ("native", "events", "csv")}


class TestStableBaselines3:
    def test_an_import_has_the_metrics_of_a_recording(self, three_ways):
        native, events, lines = (rows(three_ways[name], "ppo_updates") for name in ("native", "events", "csv"))
        # SB3 logs an update when the next rollout is there: its last one never.
        assert (len(native), len(events), len(lines)) == (5, 4, 4)
        columns = {tag.column for tag in library_tags.SB3.tags} - {"policy_std", "value_clip_range"}
        for recorded, of_events, of_lines in zip(native, events, lines, strict=False):
            for column in columns:
                assert of_lines[column] == pytest.approx(recorded[column], rel=1e-4, abs=1e-6), column
                assert of_events[column] == pytest.approx(of_lines[column], rel=1e-6), column
            assert of_events["update"] == of_lines["update"] == recorded["update"]
            assert of_events["step"] == of_lines["step"] == recorded["step"] + 32, "one rollout late"
            assert of_events["definition"] == of_lines["definition"] == recorded["definition"] == "sb3"

    def test_both_files_have_the_same_scalars(self, three_ways):
        def scalars(name):
            return {
                (row["name"], row["step"], row["update"]): row["value"] for row in rows(three_ways[name], "scalars")
            }

        events, lines = scalars("events"), scalars("csv")
        assert {name for name, _, _ in lines} - {name for name, _, _ in events} == {
            "time/iterations",
            "time/time_elapsed",
            "time/total_timesteps",
            "train/n_updates",
        }, "which SB3 keeps out of event files"
        assert events.keys() <= lines.keys()
        assert all(value == pytest.approx(lines[key], nan_ok=True) for key, value in events.items())
        # The figures of a rollout belong to the update that learns from it.
        assert {update for name, step, update in events if name == "time/fps" and step == 64} == {2}

    def test_rules_are_replayed_over_an_import_and_report_what_was_never_evaluated(self, three_ways):
        coverage = ea.replay(three_ways["events"], "default").coverage.to_dicts()
        evaluated = {row["rule"]: row["evaluated"] for row in coverage}
        assert evaluated["kl_high"] == 4
        assert evaluated["ratio_explosion"] == 0
