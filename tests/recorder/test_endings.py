"""How a run ends: closed, by an exception, by the end of its script, by nobody."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

import esper_analytics as ea
from esper_recorder.storage.manifest import how_it_ended, read_manifest
from tests.recorder.recorders import recorder, small_minibatch
from tests.recorder.storage.stored_updates import read_rows

T = torch.tensor


def ended(root: Path, code: str, end: str) -> dict[str, tuple[str | None, str | None, int]]:
    """How the runs of a script ended that ends with `end`: by name, how, the error and the updates recorded."""
    script = f"{textwrap.dedent(code)}\n{end}\n"
    subprocess.run([sys.executable, "-c", script, str(root)], check=False, capture_output=True, timeout=120)
    found = {}
    for run in root.iterdir():
        manifest = read_manifest(run)
        (attempt,) = manifest.attempts
        found[manifest.name] = (attempt.how, attempt.error, len(read_rows(run, "ppo_updates")))
    return found


class TestTheEnd:
    def test_an_exception_inside_with_is_raised_and_the_open_update_is_kept(self, tmp_path: Path):
        with pytest.raises(ZeroDivisionError), recorder(tmp_path) as rec:
            rec.minibatch(**small_minibatch())
            raise ZeroDivisionError("division by nothing")
        assert rec.path is not None
        assert how_it_ended(rec.path) == "raised"
        attempt = read_manifest(rec.path).last_attempt
        assert attempt is not None and attempt.error == "ZeroDivisionError: division by nothing"
        assert [row["minibatch_count"] for row in read_rows(rec.path, "ppo_updates")] == [1]

    def test_a_second_close_changes_nothing(self, tmp_path: Path):
        rec = recorder(tmp_path)
        rec.close()
        rec.close("raised", "too late")
        assert rec.path is not None and how_it_ended(rec.path) == "finished"

    def test_scripts_that_end_without_closing(self, tmp_path: Path):
        code = """
            import sys, torch
            from esper_recorder import Recorder

            def two_updates(name, then=lambda rec: None, **options):
                rec = Recorder(sys.argv[1], name=name, rules=None, **options)
                for _ in range(2):
                    rec.minibatch(log_ratio=torch.zeros(3))
                    rec.end_update()
                then(rec)
                return rec

            def minibatch(rec):
                rec.minibatch(log_ratio=torch.zeros(3))

            kept = [
                two_updates("between-updates"),
                two_updates("as-planned", total_updates=2),
                two_updates("fewer-than-planned", total_updates=5),
                two_updates("within", minibatch),
                two_updates("within-planned", minibatch, total_updates=5),
                two_updates("beyond-planned", minibatch, total_updates=2),
                two_updates("adapter", lambda rec: setattr(rec.adapter, "unclosed", "left")),
            ]
        """
        within = ("raised", "the process ended within update 3, and close() was not called", 3)
        wanted = {
            "between-updates": ("finished", None, 2),
            "as-planned": ("finished", None, 2),
            "fewer-than-planned": ("finished", None, 2),
            "within": within,
            "within-planned": within,
            "beyond-planned": ("finished", None, 3),
            "adapter": ("raised", "left", 2),
        }
        assert ended(tmp_path / "normally", code, "sys.exit(1)") == wanted
        error = ("raised", "ZeroDivisionError: by nothing")
        raised = {name: (*error, updates) for name, (_, _, updates) in wanted.items()}
        assert ended(tmp_path / "raised", code, "raise ZeroDivisionError('by nothing')") == raised

    def test_a_resumed_run_goes_on_after_the_last_update(self, tmp_path: Path):
        with recorder(tmp_path, name="long") as rec:
            for _ in range(3):
                rec.minibatch(**small_minibatch())
                rec.end_update()
        with recorder(tmp_path, resume=rec.run_id) as again:
            assert (again.run_id, again.update) == (rec.run_id, 4)
            again.minibatch(**small_minibatch())
            again.end_update()
        with recorder(tmp_path, resume=rec.run_id, from_update=2) as third:
            assert third.update == 2
        assert rec.path is not None
        rows = read_rows(rec.path, "ppo_updates")
        assert sorted((row["attempt"], row["update"]) for row in rows) == [(1, 1), (1, 2), (1, 3), (2, 4)]

    def test_a_forked_child_writes_nothing_and_the_parent_goes_on(self, tmp_path: Path):
        with recorder(tmp_path) as rec:
            rec.minibatch(**small_minibatch())
            rec.end_update()
            rec.flush()
            child = os.fork()
            if child == 0:
                try:
                    rec.minibatch(**small_minibatch())
                    rec.end_update()
                    rec.close()
                finally:
                    os._exit(0)
            assert os.waitpid(child, 0)[1] == 0
            assert rec.path is not None and how_it_ended(rec.path) == "live"
            rec.minibatch(**small_minibatch())
            rec.end_update()
        assert sorted(row["update"] for row in read_rows(rec.path, "ppo_updates")) == [1, 2]
        assert how_it_ended(rec.path) == "finished"


class TestForgottenCalls:
    def test_of_end_update_are_one_line_at_close_and_the_run_is_not_complete(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        with recorder(tmp_path) as rec:
            for _ in range(40):
                rec.minibatch(**small_minibatch())
        assert rec.path is not None
        words = "end_update() was never called, so all 40 minibatches are in one update"
        assert [words in record.message for record in caplog.records if record.levelno == logging.WARNING] == [True]
        (gap,) = read_rows(rec.path, "gaps")
        assert (gap["reason"], gap["table_name"], gap["detail"]) == ("bad_call", "ppo_updates", words)
        assert ea.open(tmp_path).list()["complete"].to_list() == [False]
        ea.report(ea.replay(ea.open(tmp_path), "default"), tmp_path / "report.md")
        assert "was never called, so all 40 minibatches are in one update" in (tmp_path / "report.md").read_text()

    def test_of_minibatch_are_one_line_at_close_and_one_gap_over_the_updates(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        with recorder(tmp_path) as rec:
            rec.minibatch(**small_minibatch())
            rec.end_update()
            for _ in range(3):
                rec.rollout(values=T([0.5, 1.0]), returns=T([1.0, 1.0]))
                rec.end_update()
            rec.gradients(total_norm=0.5)
            rec.end_update()
        assert rec.path is not None
        (gap,) = read_rows(rec.path, "gaps")
        assert (gap["first_update"], gap["last_update"], gap["table_name"]) == (2, 5, "minibatches")
        assert gap["detail"] == "minibatch() was never called in 4 update(s) with a rollout or gradients"
        assert len([record for record in caplog.records if record.levelno == logging.WARNING]) == 1

    def test_are_not_suspected_of_a_loop_that_raised_ended_its_updates_or_records_none(self, tmp_path: Path):
        with recorder(tmp_path, name="rows") as rec:
            rec.episode(return_=1.0)
            rec.end_update()  # an update of which nothing is recorded
        with recorder(tmp_path, name="open") as rec:
            rec.minibatch(**small_minibatch())
            rec.end_update()
            rec.minibatch(**small_minibatch())
        with pytest.raises(ZeroDivisionError), recorder(tmp_path, name="raised") as rec:
            rec.minibatch(**small_minibatch())
            raise ZeroDivisionError
        for run in tmp_path.iterdir():
            assert read_rows(run, "gaps") == []
