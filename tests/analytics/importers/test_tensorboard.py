"""`esper import tensorboard`: which folder is a run, what is said of damage, and that a source is imported once."""

from __future__ import annotations

import json
import math
import resource
import sys
from pathlib import Path

import pytest
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary, SummaryMetadata
from tensorboard.compat.proto.tensor_pb2 import TensorProto
from tensorboard.compat.proto.tensor_shape_pb2 import TensorShapeProto
from tensorboard.compat.proto.types_pb2 import DataType
from torch.utils.tensorboard import SummaryWriter

import esper_analytics as ea
from esper_analytics.importers.load_report import read_report
from tests.analytics.importers.event_logs import STARTED, UPDATE, framed, updates, write_log
from tests.support import esper


@pytest.fixture
def logs(tmp_path):
    return tmp_path / "logs"


@pytest.fixture
def to(tmp_path):
    return tmp_path / "runs"


def names(to):
    return sorted(ea.open(to).table("runs").collect()["name"])


def scalar_names(to):
    return set(ea.open(to).table("scalars").collect()["name"])


class TestRuns:
    def test_each_folder_with_event_files_is_a_run(self, logs, to):
        write_log(logs / "PPO_1", updates(20))
        write_log(logs / "deep" / "er" / "PPO_2", updates(20, 40), started=STARTED + 1)
        result = esper("import", "tensorboard", logs, "--to", to, "--format", "json")
        assert names(to) == ["PPO_1", "PPO_2"]
        report = {(row["run_id"][:5], row["kind"]): row for row in json.loads(result.stdout)}
        assert report["PPO_2", "train/loss"] == report["PPO_2", "train/loss"] | {"read": 2, "typed": 2, "kept": 0}
        assert result.stderr.count("imported from") == 2
        [run] = ea.open(to)["PPO_1"].table("runs").collect().to_dicts()
        assert str(run["started"]) == "2026-01-01 00:00:00+00:00"
        assert run["run_id"].startswith("PPO_1-20260101T000000Z-")
        assert (run["ended"], run["complete"], run["definition"]) == ("unknown", True, "sb3")

    def test_a_file_a_pattern_and_a_folder_mean_the_same_run(self, logs, to):
        file = write_log(logs / "PPO_1", updates(20))
        for source in (file, f"{logs}/PPO_*", f"{logs}/**/*tfevents*", logs):
            esper("import", "tensorboard", source, "--to", to)
        assert names(to) == ["PPO_1"]

    def test_folders_of_add_hparams_and_add_scalars_belong_to_the_run(self, logs, to):
        writer = SummaryWriter(str(logs / "run"))
        for tag in UPDATE:
            writer.add_scalar(tag, 0.5, 20)
        writer.add_hparams({"lr": 0.001, "env": "Pendulum"}, {"hparam/reward": 7.0})
        writer.add_scalars("eval/loss", {"left": 1.0, "right": 2.0}, 30)
        writer.add_text("note", "hello")
        writer.close()
        assert len([*logs.rglob("*tfevents*")]) == 4, "torch writes them into separate folders"
        esper("import", "tensorboard", logs, "--to", to, "--strict")
        assert names(to) == ["run"]
        assert scalar_names(to) == {"hparam/reward", "eval/loss/left", "eval/loss/right"}
        [run] = ea.open(to).table("runs").collect().to_dicts()
        assert json.loads(run["config"]) == {"env": "Pendulum", "lr": 0.001}
        raw = ea.open(to).table("raw_events").collect().to_dicts()
        assert [(row["key"], row["text"], row["reason"]) for row in raw] == [("note", "hello", "no_table")]

    def test_a_run_inside_a_folder_with_a_stray_file_stays_a_run(self, logs, to):
        write_log(logs, [("stray", 1, 1.0)])
        write_log(logs / "PPO_1", updates(20))
        esper("import", "tensorboard", logs, "--to", to)
        assert names(to) == ["PPO_1", "logs"]

    def test_a_resumed_training_is_one_run_of_two_attempts(self, logs, to):
        write_log(logs / "PPO_1", updates(20, 40, 60, value=0.1))
        write_log(logs / "PPO_1", updates(60, 80, value=0.2), started=STARTED + 100, suffix=".again")
        err = esper("import", "tensorboard", logs, "--to", to, "--strict").stderr
        assert "1 update made again" in err
        rows = ea.open(to).table("ppo_updates").sort("update").collect().to_dicts()
        assert [(row["attempt"], row["update"], row["step"]) for row in rows] == [
            (1, 1, 20),
            (1, 2, 40),
            (2, 3, 60),
            (2, 4, 80),
        ]
        assert ea.open(to).table("ppo_updates_all").collect().height == 5
        assert rows[2]["elapsed_s"] == 3.0, "the third record of the second file"

    def test_an_unknown_trainer_is_reported_and_its_values_are_kept(self, logs, to):
        write_log(logs / "DQN_1", [("train/loss", 10, 0.5), ("rollout/exploration_rate", 10, 0.9)])
        err = esper("import", "tensorboard", logs, "--to", to, "--strict").stderr
        assert "match no known trainer (Stable-Baselines3, CleanRL, rsl_rl and TorchRL)" in err
        assert scalar_names(to) == {"train/loss", "rollout/exploration_rate"}

    def test_a_training_killed_before_its_first_update_is_reported_as_such(self, logs, to):
        write_log(logs / "PPO_1", [("rollout/ep_rew_mean", 10, 20.5), ("time/fps", 10, 900.0)])
        err = esper("import", "tensorboard", logs, "--to", to, "--strict").stderr
        assert "no update was logged yet, only rollout/* and time/*" in err
        assert "no known trainer" not in err

    @pytest.mark.parametrize("name", ["'; DROP TABLE runs; --", "ünï cödé", "a\nb", "-x", "..."])
    def test_a_folder_may_have_any_name(self, tmp_path, to, name):
        write_log(tmp_path / "logs" / name, updates(20))
        esper("import", "tensorboard", tmp_path / "logs", "--to", to)
        assert names(to) == [name]
        assert ea.open(to).sql("SELECT count(*) AS n FROM ppo_updates")["n"].to_list() == [1]


class TestOnce:
    def test_the_same_source_again_changes_nothing_and_a_grown_one_replaces_the_run(self, logs, to):
        path = write_log(logs / "PPO_1", updates(20))
        esper("import", "tensorboard", logs, "--to", to)
        before = {file: file.read_bytes() for file in to.rglob("*") if file.is_file()}
        assert "is in" in esper("import", "tensorboard", logs, "--to", to).stderr
        assert {file: file.read_bytes() for file in to.rglob("*") if file.is_file()} == before
        short = path.read_bytes()
        for tag in UPDATE:
            value = Summary.Value(tag=tag, simple_value=0.5)
            with path.open("ab") as file:
                file.write(framed(Event(step=40, summary=Summary(value=[value])).SerializeToString()))
        assert "imported again" in esper("import", "tensorboard", logs, "--to", to).stderr
        assert ea.open(to).table("ppo_updates").collect().height == 2
        path.write_bytes(short)
        assert "has less of this run" in esper("import", "tensorboard", logs, "--to", to).stderr
        assert ea.open(to).table("ppo_updates").collect().height == 2

    def test_runs_may_lie_inside_the_source(self, logs):
        write_log(logs / "PPO_1", updates(20))
        for _ in range(2):
            esper("import", "tensorboard", logs, "--to", logs / "runs")
        assert names(logs / "runs") == ["PPO_1"]


class TestDamage:
    def test_damage_is_reported_kept_with_the_run_and_an_error_if_strict(self, logs, to):
        path = write_log(logs / "PPO_1", updates(20, 40))
        data = bytearray(path.read_bytes())
        data[-10] ^= 0xFF  # in what the last record holds
        path.write_bytes(bytes(data) + b"\x09\0\0\0\0\0\0\0")
        err = esper("import", "tensorboard", logs, "--to", to).stderr
        assert f"{path.name}: 1 damaged stretch" in err and "last record is cut off (8 bytes)" in err
        assert ea.open(to).table("ppo_updates").collect().height == 2
        [run_id] = ea.open(to).ids
        report = read_report(ea.open(to).folder(run_id))
        assert report is not None and "damaged" in report["damage"]
        assert "--strict" in esper("import", "tensorboard", logs, "--to", to, "--strict", code=3).stderr

    def test_an_empty_file_does_not_keep_others_out(self, logs, to):
        write_log(logs / "PPO_1", updates(20))
        write_log(logs / "PPO_2", [])
        (logs / "other").mkdir()
        (logs / "other" / "events.out.tfevents.1").write_text("no event file\n")
        err = esper("import", "tensorboard", logs, "--to", to).stderr
        assert err.count("has nothing to import") == 2 and "events.out.tfevents.1 is not an event file" in err
        assert names(to) == ["PPO_1"]

    @pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="no /proc: it has a file that nobody can read")
    def test_a_file_that_cannot_be_read_is_named_and_the_rest_is_imported(self, logs, to):
        (logs / "PPO_2").mkdir(parents=True)
        (logs / "PPO_2" / "events.out.tfevents.1").symlink_to("/proc/self/mem")
        message = "events.out.tfevents.1 cannot be read ("
        assert message in esper("import", "tensorboard", logs, "--to", to, code=3).stderr
        write_log(logs / "PPO_1", updates(20))
        assert message in esper("import", "tensorboard", logs, "--to", to).stderr
        assert names(to) == ["PPO_1"]


class TestMistakes:
    def test_a_missing_source_or_one_without_event_files_is_an_error(self, logs, to):
        assert "There is no file or folder" in esper("import", "tensorboard", logs, "--to", to, code=2).stderr
        logs.mkdir()
        message = "There is no file whose name contains tfevents"
        assert message in esper("import", "tensorboard", logs, "--to", to, code=2).stderr
        assert "No file matches" in esper("import", "tensorboard", f"{logs}/*.x", "--to", to, code=2).stderr
        assert not to.exists()

    def test_a_file_of_another_kind(self, tmp_path, to):
        csv = tmp_path / "progress.csv"
        csv.write_text("time/total_timesteps,train/loss\n1,2\n")
        err = esper("import", "tensorboard", csv, "--to", to, code=3).stderr
        assert "nothing to import" in err and "progress.csv is not an event file" in err
        assert not to.exists()

    def test_a_destination_that_cannot_be_written(self, logs, to):
        write_log(logs / "PPO_1", updates(20))
        to.write_text("a file\n")
        assert "cannot be written to" in esper("import", "tensorboard", logs, "--to", to, code=2).stderr

    def test_without_the_package_one_message_says_what_to_install(self, logs, to, monkeypatch):
        write_log(logs / "PPO_1", updates(20))
        monkeypatch.setitem(sys.modules, "tensorboard.compat.proto.event_pb2", None)
        result = esper("import", "tensorboard", logs, "--to", to, code=2)
        assert result.stdout == ""
        assert "pip install 'esper-analytics[tensorboard]'" in result.stderr and len(result.stderr.splitlines()) == 1


def test_a_replay_and_a_comparison_warn_of_different_definitions(logs, to, tmp_path):
    cleanrl = [(tag, 20, 0.5) for tag in ("losses/old_approx_kl", "losses/clipfrac", "losses/approx_kl")]
    write_log(logs / "PPO_1", updates(20))
    write_log(logs / "PPO_2", updates(20), started=STARTED + 1)
    write_log(logs / "mine", cleanrl)
    esper("import", "tensorboard", logs, "--to", to)
    mixed = "follow different definitions here: cleanrl (1 run) and sb3 (2 runs)"
    assert mixed in esper("replay", to, "--rules", "default").stderr
    assert mixed in esper("plot", to, "--kind", "compare", "-o", tmp_path / "a.png").stderr
    assert "definitions" not in esper("replay", to, "--rules", "default", "--run", "PPO_1", "--run", "PPO_2").stderr


def test_what_a_file_only_declares_costs_itself(logs, to):
    path = write_log(logs / "PPO_1", updates(20))
    shape = TensorShapeProto(dim=[TensorShapeProto.Dim(size=10**9)])
    tensor = TensorProto(dtype=DataType.DT_FLOAT, tensor_shape=shape, float_val=[1.0])
    scalars = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    with path.open("ab") as file:
        huge = Summary(value=[Summary.Value(tag="train/loss", tensor=tensor, metadata=scalars)])
        file.write(framed(Event(wall_time=STARTED, step=30, summary=huge).SerializeToString()))
        for step, time in ((2**63 - 1, 1e300), (-1, math.nan), (40, -1e12)):
            value = Summary(value=[Summary.Value(tag="train/loss", simple_value=2.5)])
            file.write(framed(Event(wall_time=time, step=step, summary=value).SerializeToString()))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    error = " ".join(esper("import", "tensorboard", logs, "--to", to, "--strict").stderr.split())
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # KiB: not 4 GB
    assert "2 values have no step" in error
    [run] = ea.open(to)
    assert run.table("ppo_updates").collect()["step"].to_list() == [20]
    report = read_report(run.folder(run.ids[0]))
    assert report is not None
    kinds = {row["kind"]: row for row in report["kinds"]}
    assert kinds["scalars that are not a number"]["left_out"] == 1
    kept = run.table("scalars").sort("step", nulls_last=True).collect()
    assert (kept["step"].to_list(), kept["value"].to_list()) == ([40, None, None], [2.5, 2.5, 2.5])
