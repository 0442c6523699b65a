"""`esper import sb3-csv`: a file whose columns grow, and that may be damaged anywhere."""

from __future__ import annotations

import gzip
import math

import pytest

import esper_analytics as ea
from esper_analytics.importers import sb3_csv
from esper_analytics.importers.sources import Source
from tests.support import esper

HEADER = "time/total_timesteps,time/time_elapsed,time/iterations,rollout/ep_rew_mean"
TRAIN = "train/approx_kl,train/clip_fraction,train/entropy_loss"
WHOLE = f"{HEADER},{TRAIN}\n64,1,1,20.5,,,\n128,2,2,21.5,0.01,0.1,-0.6\n192,4,3,,0.02,0.2,-0.5\n"


@pytest.fixture
def file(tmp_path):
    folder = tmp_path / "logs" / "run_1"
    folder.mkdir(parents=True)
    return folder / "progress.csv"


@pytest.fixture
def to(tmp_path):
    return tmp_path / "runs"


def rows(to, table):
    return ea.open(to).table(table).sort("update").collect().to_dicts()


def test_a_row_with_metrics_of_an_update_is_an_update(file, to):
    file.write_text(WHOLE)
    err = esper("import", "sb3-csv", file, "--to", to, "--strict").stderr
    assert "imported from" in err
    found = [
        (row["update"], row["step"], row["elapsed_s"], row["approx_kl"], row["clip_fraction"], row["entropy"])
        for row in rows(to, "ppo_updates")
    ]
    assert found == [(1, 128, 2.0, 0.01, 0.1, 0.6), (2, 192, 4.0, 0.02, 0.2, 0.5)]
    assert {(row["definition"], row["time"]) for row in rows(to, "ppo_updates")} == {("sb3", None)}
    rewards = [(r["update"], r["step"], r["value"], r["line"]) for r in rows(to, "scalars") if "rew" in r["name"]]
    # An empty cell is nothing. The rollout that ends at 128 is what update 2 learns from.
    assert rewards == [(1, 64, 20.5, 2), (2, 128, 21.5, 3)]
    [run] = rows_of_runs(to)
    assert (run["name"], run["trainer"], run["started"], run["ended"]) == (
        "run_1",
        "Stable-Baselines3",
        None,
        "unknown",
    )


def rows_of_runs(to):
    return ea.open(to).table("runs").collect().to_dicts()


def test_nan_and_infinities_are_stored(file, to):
    file.write_text(f"{HEADER},{TRAIN}\n128,2,2,,nan,inf,-inf\n")
    esper("import", "sb3-csv", file, "--to", to)
    [row] = rows(to, "ppo_updates")
    assert math.isnan(row["approx_kl"]) and row["clip_fraction"] == math.inf and row["entropy"] == math.inf
    assert row["nonfinite_fields"] == ["train/approx_kl", "train/clip_fraction", "train/entropy_loss"]


class TestDamage:
    @pytest.mark.parametrize("end", [1, 9, 21, 22])
    def test_a_torn_last_line_is_kept_as_it_is_and_not_read(self, file, to, end):
        torn = "192,4,3,,0.02,0.2,-0.5\n"[:end]
        file.write_text(WHOLE.removesuffix("192,4,3,,0.02,0.2,-0.5\n") + torn)
        err = esper("import", "sb3-csv", file, "--to", to, "--strict", code=3).stderr
        assert "1 of 12 entries not understood" in err
        assert [row["update"] for row in rows(to, "ppo_updates")] == [1]
        raw = [(row["line"], row["reason"], row["text"], row["update"]) for row in rows(to, "raw_events")]
        assert raw == [(4, "torn", torn, 2)]

    @pytest.mark.parametrize(
        "line", ["128,2,2,21.5", "128,2,2,21.5,0.01,0.1,-0.6,", "", '128,2,"2,21.5,0.01,0.1,-0.6', "\0\0\0"]
    )
    def test_a_line_that_does_not_fit_the_header_is_kept_as_it_is(self, file, to, line):
        file.write_text(WHOLE.replace("128,2,2,21.5,0.01,0.1,-0.6", line))
        esper("import", "sb3-csv", file, "--to", to)
        assert [(row["update"], row["step"]) for row in rows(to, "ppo_updates")] == [(1, 192)]
        assert [(row["line"], row["reason"], row["text"]) for row in rows(to, "raw_events")] == [(3, "no_event", line)]

    def test_text_in_a_cell_is_kept_and_not_rejected(self, file, to):
        file.write_text(WHOLE.replace("21.5", '"good, so far"'))
        esper("import", "sb3-csv", file, "--to", to, "--strict")
        raw = [(row["line"], row["key"], row["text"]) for row in rows(to, "raw_events")]
        assert raw == [(3, "rollout/ep_rew_mean", "good, so far")]

    @pytest.mark.parametrize(
        "content",
        [
            b"",
            b"\n",
            b"a,b\n1,2\n",
            b'#{"t_start": 1}\nr,l,t\n1,2,3\n',
            b"\xff\xfe\0\0" * 50,
            b"train/a,train/a\n1,2\n",
        ],
        ids=["empty", "line", "other", "monitor", "binary", "twice"],
    )
    def test_a_file_of_another_kind_is_refused(self, file, to, content):
        file.write_bytes(content)
        err = esper("import", "sb3-csv", file, "--to", to, code=3).stderr
        assert "There is nothing to import in" in err and len(err.splitlines()) == 1
        assert not to.exists()


class TestSources:
    def test_a_folder_and_a_pattern_find_only_progress_files(self, file, to):
        file.write_text(WHOLE)
        (file.parent / "monitor.csv").write_text("#{}\nr,l,t\n")
        packed = file.parents[1] / "run_2" / "progress.csv.gz"
        packed.parent.mkdir()
        packed.write_bytes(gzip.compress(WHOLE.replace("20.5", "30.5").encode()))
        esper("import", "sb3-csv", file.parents[1], "--to", to)
        assert "is in" in esper("import", "sb3-csv", f"{file.parents[1]}/run_*/progress.csv*", "--to", to).stderr
        assert sorted(run["name"] for run in rows_of_runs(to)) == ["run_1", "run_2"]

    def test_a_file_that_grew_a_row_and_a_column_replaces_its_run(self, file, to):
        file.write_text(WHOLE)
        esper("import", "sb3-csv", file, "--to", to)
        grown = [line + "," for line in WHOLE.splitlines()]
        grown[0] += "eval/mean_reward"
        file.write_text("\n".join([*grown, "256,5,4,22.5,0.03,0.3,-0.4,99.5"]) + "\n")
        assert "imported again" in esper("import", "sb3-csv", file, "--to", to).stderr
        assert len(rows_of_runs(to)) == 1
        assert [row["approx_kl"] for row in rows(to, "ppo_updates")] == [0.01, 0.02, 0.03]

    def test_progress_is_reported_in_bytes(self, file, to):
        file.write_text(WHOLE)
        calls = []
        sb3_csv.import_files([str(file)], to, lambda done, total: calls.append((done, total)))
        assert calls == [(len(WHOLE), len(WHOLE))]

    def test_log_interval_is_reported(self, file, to):
        file.write_text(f"{HEADER},{TRAIN}\n640,1,10,,0.01,0.1,-0.6\n1280,1,20,,0.02,0.1,-0.6\n")
        err = esper("import", "sb3-csv", file, "--to", to, "--strict").stderr
        assert "logged once in 10 iterations only" in err
        assert [row["update"] for row in rows(to, "ppo_updates")] == [1, 2]

    def test_steps_that_go_back_begin_another_attempt(self, file, to):
        file.write_text(WHOLE + "64,1,1,20.5,,,\n128,2,2,21.5,0.05,0.1,-0.6\n")
        esper("import", "sb3-csv", file, "--to", to)
        found = [(row["attempt"], row["update"], row["approx_kl"]) for row in rows(to, "ppo_updates")]
        assert found == [(2, 1, 0.05)], "the second training takes the place of the first"
        assert len(rows(to, "ppo_updates_all")) == 3


@pytest.mark.parametrize("step", ["1e300", "12345678901234567890", "-5", "1.5", "nan", "inf", "9" * 400])
def test_a_step_that_cannot_be_one_costs_itself_and_the_report_says_so(file, to, step):
    file.write_text(WHOLE + f"{step},5,4,,0.03,0.3,-0.4\n256,6,5,,0.04,0.4,-0.3\n")
    error = esper("import", "sb3-csv", file, "--to", to).stderr
    assert "6 values have no step: it is not a whole number from 0 to" in " ".join(error.split())
    assert [row["step"] for row in rows(to, "ppo_updates")] == [128, 192, None, 256]
    assert [row["approx_kl"] for row in rows(to, "ppo_updates")] == [0.01, 0.02, 0.03, 0.04]


def test_a_compressed_file_far_larger_than_any_log_is_read_to_a_bound(tmp_path, to):
    bomb = tmp_path / "progress.csv.gz"
    bomb.write_bytes(gzip.compress(WHOLE.encode() + b"\n" * 80_000_000))
    source = Source(bomb)
    read = sum(map(len, source.blocks()))
    assert 64 * 2**20 - 2**16 <= read <= 64 * 2**20 and "no log compresses" in str(source.damage)
