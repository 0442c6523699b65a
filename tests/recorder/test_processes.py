"""Several processes and sudden ends: ranks of one run, forked and spawned workers, signals, exceptions."""

from __future__ import annotations

import json
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import esper_analytics as ea
from esper_recorder import MemorySink, Recorder
from esper_recorder.rendezvous import Rendezvous, current_rank
from esper_recorder.storage.manifest import how_it_ended, read_manifest
from esper_recorder.storage.run_folder import RunFolder, RunFolderError
from tests.recorder.storage.stored_updates import read_rows

DDP = """
import sys, torch, torch.distributed as distributed
from torch.nn.parallel import DistributedDataParallel
from esper_recorder import Recorder

distributed.init_process_group("gloo")
rank = distributed.get_rank()
torch.manual_seed(1)
model = DistributedDataParallel(torch.nn.Linear(3, 2))
optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
torch.manual_seed(100 + rank)  # each rank collects its own transitions
with Recorder(sys.argv[1], name="ddp", model=model.module, optimizer=optimizer, total_updates=3) as rec:
    for update in range(3):
        x = torch.randn(8, 3)
        for _ in range(2):
            log_ratio = 0.1 * torch.log_softmax(model(x), dim=1)[:, 0]
            rec.minibatch(log_ratio=log_ratio, clip_range=0.2)
            optimizer.zero_grad()
            log_ratio.sum().backward()
            optimizer.step()
        rec.end_update(step=8 * (update + 1))
print(rec.run_id)
distributed.destroy_process_group()
"""


class TestRanks:
    @pytest.mark.slow
    def test_of_a_distributed_training_record_into_one_run_as_torchrun_starts_them(self, tmp_path: Path):
        script = tmp_path / "train.py"
        script.write_text(DDP)
        torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
        done = subprocess.run(
            [*torchrun, str(script), str(tmp_path / "runs")], capture_output=True, text=True, timeout=300, check=False
        )
        assert done.returncode == 0, done.stderr
        (run,) = (tmp_path / "runs").iterdir()
        assert done.stdout.split() == [run.name] * 2
        rows = read_rows(run, "ppo_updates")
        assert sorted((row["rank"], row["update"], row["n"]) for row in rows) == [
            (rank, update, 16) for rank in (0, 1) for update in (1, 2, 3)
        ]
        sums = {(row["rank"], row["update"]): row["log_ratio_sum"] for row in rows}
        assert sums[0, 1] != sums[1, 1], "each rank recorded its transitions"
        manifest = read_manifest(run)
        assert [(a.attempt, a.rank, a.how, a.updates) for a in manifest.attempts] == [
            (1, 0, "finished", 3),
            (1, 1, "finished", 3),
        ]
        assert len({a.pid for a in manifest.attempts}) == 2 and how_it_ended(run) == "finished"
        assert ea.open(tmp_path / "runs").list()["ended"].to_list() == ["finished"]

    def test_started_by_hand_share_the_run_id_they_are_given(self, tmp_path: Path, run_python: Callable[..., str]):
        code = (
            "import sys, torch\nfrom esper_recorder import Recorder\n"
            "rec = Recorder(sys.argv[1], run_id='shared', rank=1, rules=None)\n"
            "rec.minibatch(log_ratio=torch.zeros(5))\nrec.end_update()\n"
            "assert rec.run_id == 'shared'\nrec.close('raised', 'rank 1 fell over')\n"
        )
        with Recorder(tmp_path, run_id="shared", rank=0, rules=None) as rec:
            rec.minibatch(log_ratio=torch.zeros(3))
            rec.end_update()
            run_python(code, str(tmp_path))
            assert rec.path is not None and how_it_ended(rec.path) == "live", "rank 0 still records"
            with pytest.raises(TimeoutError, match="another process records, or has recorded, rank 1 of this attempt"):
                RunFolder.join(tmp_path, "shared", rank=1, patience=0.1)
        assert {(row["rank"], row["n"]) for row in read_rows(rec.path, "ppo_updates")} == {(0, 3), (1, 5)}
        ends = {a.rank: (a.how, a.error) for a in read_manifest(rec.path).attempts}
        assert ends == {0: ("finished", None), 1: ("raised", "rank 1 fell over")}, "neither wrote over the other's end"
        assert how_it_ended(rec.path) == "raised"

    @pytest.mark.slow
    def test_resume_together_as_the_next_attempt(self, tmp_path: Path, run_python: Callable[..., str]):
        code = (
            "import sys, torch\nfrom esper_recorder import Recorder\n"
            "with Recorder(sys.argv[1], resume='shared', rank=1, rules=None) as rec:\n"
            "    print(rec.update)\n    rec.minibatch(log_ratio=torch.zeros(5))\n    rec.end_update()\n"
        )
        with Recorder(tmp_path, run_id="shared", rules=None) as rec:
            for _ in range(2):
                rec.end_update()
        with Recorder(tmp_path, resume="shared", rank=0, rules=None) as again:
            assert again.update == 3
            assert run_python(code, str(tmp_path)).split() == ["3"]
        assert rec.path is not None
        attempts = [(a.attempt, a.rank, a.from_update) for a in read_manifest(rec.path).attempts]
        assert attempts == [(1, 0, 1), (2, 0, 3), (2, 1, 3)]

    def test_that_find_no_run_train_on_without_one(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        monkeypatch.setattr("esper_recorder.rendezvous.JOIN_SECONDS", 0.1)
        rec = Recorder(tmp_path, run_id="nobody-made-it", rank=1, rules=None)
        rec.minibatch(log_ratio=torch.zeros(5))
        rec.end_update()
        rec.close()
        assert rec.run_id is None and list(tmp_path.iterdir()) == []
        assert "rank 0 did not open the run" in caplog.text and "Training continues" in caplog.text

    def test_a_run_that_is_over_is_not_joined(self, tmp_path: Path):
        with Recorder(tmp_path, run_id="over", rules=None):
            pass
        with pytest.raises(TimeoutError, match="rank 0 did not open the run"):
            RunFolder.join(tmp_path, "over", rank=1, patience=0.1)

    def test_without_a_rendezvous_each_has_a_separate_run_and_logs_it(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        monkeypatch.setenv("RANK", "2")
        monkeypatch.setenv("WORLD_SIZE", "4")
        with Recorder(tmp_path, rules=None) as rec:
            rec.end_update()
        assert rec.path is not None and [row["rank"] for row in read_rows(rec.path, "ppo_updates")] == [2]
        assert "Rank 2 records into a separate run" in caplog.text

    @pytest.mark.parametrize(("rank", "size"), [("3", "3"), ("-1", "2"), ("one", "2"), ("1", "")])
    def test_a_variable_that_torchrun_did_not_set_is_ignored(
        self, monkeypatch: pytest.MonkeyPatch, rank: str, size: str
    ):
        monkeypatch.setenv("RANK", rank)
        monkeypatch.setenv("WORLD_SIZE", size)
        assert current_rank() == 0

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"rank": -1}, "rank is -1; give the number of this process"),
            ({"rank": True}, "rank is True"),
            ({"run_id": "a/b"}, "run_id 'a/b' is not a name for a folder; 'a-b' would be one"),
            ({"run_id": "a", "resume": "b"}, "both run_id='a' and resume='b' are given"),
        ],
    )
    def test_invalid_options_are_refused_with_a_message(self, tmp_path: Path, options: dict[str, Any], words: str):
        with pytest.raises(ValueError, match=words):
            Recorder(tmp_path, rules=None, **options)

    def test_a_run_id_that_is_taken_is_refused(self, tmp_path: Path):
        Recorder(tmp_path, run_id="mine", rules=None).close()
        with pytest.raises(RunFolderError, match=r"there is a run mine under .* already; give another run_id"):
            Recorder(tmp_path, run_id="mine", rules=None)


@pytest.fixture
def one_process_group(tmp_path: Path):
    """torch.distributed, initialised with this process alone."""
    store = torch.distributed.FileStore(str(tmp_path / "store"), 1)  # type: ignore[attr-defined]
    torch.distributed.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


@pytest.mark.usefixtures("one_process_group")
class TestRendezvous:
    def test_a_rank_fetches_the_run_that_rank_0_published_for_the_recorder_of_the_same_order(
        self, monkeypatch: pytest.MonkeyPatch
    ):
        monkeypatch.setattr("esper_recorder.rendezvous._counters", {})
        for run_id in ("first", "second"):
            Rendezvous("name", 0).publish(run_id)
        monkeypatch.setattr("esper_recorder.rendezvous._counters", {})  # another process counts for itself
        assert [Rendezvous("name", 1).fetch() for _ in range(2)] == ["first", "second"]

    def test_rank_0_alone_waits_for_nobody_and_a_rank_that_waits_in_vain_raises(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("esper_recorder.rendezvous.JOIN_SECONDS", 0.1)
        Rendezvous("alone", 0).publish("run")
        with pytest.raises(TimeoutError, match="rank 0 made no recorder of this name within"):
            Rendezvous("another", 1).fetch()

    def test_a_run_that_rank_0_could_not_make_is_not_waited_for(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        (tmp_path / "runs").write_text("not a folder")
        Recorder(tmp_path / "runs", name="blocked", rules=None)
        with pytest.raises(OSError, match="rank 0 could not make the run"):
            rendezvous = Rendezvous("blocked", 1)
            rendezvous._key = rendezvous._key.replace("/1", "/0")
            rendezvous.fetch()
        assert "Nothing of this training is recorded" in caplog.text

    def test_a_torch_that_keeps_its_store_elsewhere_is_logged(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ):
        monkeypatch.delattr("torch.distributed.distributed_c10d._get_default_store")
        assert Rendezvous("name", 1).fetch() is None
        Rendezvous("name", 0).publish("run")
        assert "give each rank `run_id=`" in caplog.text


FORKS = """
import json, os, sys, torch
from pathlib import Path
from stable_baselines3 import PPO
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import SubprocVecEnv
from esper_recorder import Recorder
from esper_recorder.sb3 import RecorderCallback

root = Path(sys.argv[1])
torch.set_num_threads(1)

def listing(path):
    return sorted((str(p), p.stat().st_size) for p in path.rglob("*") if p.is_file())

if __name__ == "__main__":
    rec = Recorder(root / "script", rules=None)
    rec.minibatch(log_ratio=torch.zeros(3))
    rec.end_update()
    rec.minibatch(log_ratio=torch.zeros(4))  # an update is open when the process forks
    rec.episode(return_=1.0)
    assert rec.flush()
    before = listing(rec.path)
    if os.fork() == 0:
        rec.minibatch(log_ratio=torch.zeros(5))
        rec.end_update()
        rec.episode(return_=2.0)
        sys.exit(0)  # at-exit functions and destructors run
    assert os.wait()[1] == 0
    assert listing(rec.path) == before
    env = make_vec_env("CartPole-v1", 2, seed=1, vec_env_cls=SubprocVecEnv, vec_env_kwargs={"start_method": "fork"})
    callback = RecorderCallback(root / "sb3", rules=None)
    PPO("MlpPolicy", env, n_steps=32, batch_size=32, n_epochs=2, seed=1, device="cpu").learn(128, callback=callback)
    env.close()
    assert listing(rec.path) == before
    rec.end_update()
    rec.close()
    print(json.dumps([str(rec.path), str(callback.path)]))
"""


class TestWorkers:
    def test_that_were_forked_write_close_and_unlink_nothing_at_exit_either(
        self, tmp_path: Path, run_python: Callable[..., str]
    ):
        script, sb3 = map(Path, json.loads(run_python(FORKS, str(tmp_path)).splitlines()[-1]))
        rows = sorted(read_rows(script, "ppo_updates"), key=lambda row: row["update"])
        assert [(row["update"], row["n"]) for row in rows] == [(1, 3), (2, 4)]
        assert [row["episode_return"] for row in read_rows(script, "episodes")] == [1.0]
        assert sorted(row["update"] for row in read_rows(sb3, "ppo_updates")) == [1, 2]
        assert how_it_ended(script) == how_it_ended(sb3) == "finished"

    def test_that_are_spawned_get_a_recorder_that_records_nothing(self, tmp_path: Path):
        sink = MemorySink()
        with Recorder(tmp_path, sink=sink, rules=None) as rec:
            copy = pickle.loads(pickle.dumps(rec))
            copy.minibatch(log_ratio=torch.zeros(3))
            copy.end_update()
            copy.close()
            assert (copy.run_id, copy.flush()) == (None, True)
            rec.end_update()
        assert sink.updates == [1] and sink.closed == ("finished", None)


STOPPED = """
import sys, time, torch
from esper_recorder import Recorder
rec = Recorder(sys.argv[1], rules=None)
for update in range(3):
    rec.episode(return_=float(update))
    for _ in range(4):
        rec.minibatch(log_ratio=torch.zeros(3))
    rec.end_update()
rec.flush()
rec.episode(return_=9.0)
rec.minibatch(log_ratio=torch.zeros(3))
rec.minibatch(log_ratio=torch.zeros(3))
print("ready", flush=True)
time.sleep(60)
"""


class TestASuddenEnd:
    def stopped(self, root: Path, how: signal.Signals) -> tuple[Path, int]:
        """A training that was sent a signal in the middle of its fourth update."""
        with subprocess.Popen(
            [sys.executable, "-c", STOPPED, str(root)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        ) as process:
            assert process.stdout is not None and process.stdout.readline() == "ready\n"
            process.send_signal(how)
            code = process.wait(60)
        (run,) = root.iterdir()
        return run, code

    def test_by_ctrl_c_keeps_the_minibatches_of_the_open_update(self, tmp_path: Path):
        run, code = self.stopped(tmp_path, signal.SIGINT)
        assert code in (-signal.SIGINT, 128 + signal.SIGINT)
        rows = sorted(read_rows(run, "ppo_updates"), key=lambda row: row["update"])
        assert [(row["update"], row["minibatch_count"]) for row in rows] == [(1, 4), (2, 4), (3, 4), (4, 2)]
        assert [row["interrupted"] for row in rows] == [False, False, False, True]
        assert [row["episode_return"] for row in read_rows(run, "episodes")] == [0.0, 1.0, 2.0, 9.0]
        (attempt,) = read_manifest(run).attempts
        assert (attempt.how, attempt.error) == ("raised", "KeyboardInterrupt")

    def test_by_sigterm_ends_the_process_and_every_update_that_ended_is_there(self, tmp_path: Path):
        run, code = self.stopped(tmp_path, signal.SIGTERM)
        assert code == -signal.SIGTERM, "the recorder puts no handler in the trainer's way"
        assert sorted(row["update"] for row in read_rows(run, "ppo_updates")) == [1, 2, 3]
        assert how_it_ended(run) == "killed"

    def test_within_a_rollout_keeps_the_episodes_that_had_finished(self, tmp_path: Path):
        with pytest.raises(ZeroDivisionError), Recorder(tmp_path, rules=None) as rec:
            rec.minibatch(log_ratio=torch.zeros(3))
            rec.end_update()
            rec.episode(return_=3.0)
            rec.episodes(returns=torch.tensor([[4.0, 5.0]]), finished=torch.tensor([[False, True]]))
            raise ZeroDivisionError
        assert rec.path is not None and rec.run_id is not None
        assert [row["update"] for row in read_rows(rec.path, "ppo_updates")] == [1], "no update followed"
        episodes = [(row["update"], row["episode"], row["episode_return"]) for row in read_rows(rec.path, "episodes")]
        assert episodes == [(2, 1, 3.0), (2, 2, 5.0)]
        (attempt,) = read_manifest(rec.path).attempts
        assert attempt.updates == 1
        with Recorder(tmp_path, rules=None, resume=rec.run_id) as again:
            assert again.update == 2, "the update the episodes were collected for is still to come"
        assert ea.open(tmp_path).list()["complete"].to_list() == [True]

    def test_a_second_ctrl_c_while_the_end_is_written_gets_through(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ):
        rec = Recorder(tmp_path, rules=None)
        rec.end_update()

        def interrupted(*_: Any, **__: Any) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr("esper_recorder.storage.writer.Writer.close", interrupted)
            with pytest.raises(KeyboardInterrupt):
                rec.close()
        assert rec._run is not None and rec._run.writer.close()
        assert rec.path is not None and [row["update"] for row in read_rows(rec.path, "ppo_updates")] == [1]
