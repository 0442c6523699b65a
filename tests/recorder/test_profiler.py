"""The profiler: its traces lie in the run's folder and are named by the run's card and report."""

from __future__ import annotations

import gzip
import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch

import esper_analytics as ea
from esper_analytics.cli.run_card import card_lines, card_of
from esper_recorder import Recorder
from esper_recorder.profiler import ProfilerFolderError, profile
from esper_recorder.storage.traces import traces_of


def work(steps: int, folder: Path | None, **options: Any) -> None:
    with profile(folder, wait=0, warmup=1, active=1, **options) as profiler:
        for _ in range(steps):
            torch.ones(4, 4).matmul(torch.ones(4, 4))
            profiler.step()


def recorded(root: Path) -> Path:
    with Recorder(root, name="profiled", total_updates=1, rules=None) as recorder:
        assert recorder.path is not None
        work(2, recorder.path)
        recorder.minibatch(log_ratio=torch.zeros(4))
        recorder.end_update()
        return recorder.path


def operations(trace: Path) -> list[dict[str, object]]:
    with gzip.open(trace, "rt") as file:
        events: list[dict[str, object]] = json.load(file)["traceEvents"]
    return events


def test_a_trace_lies_in_the_runs_folder_and_is_one(tmp_path: Path):
    path = recorded(tmp_path / "runs")
    [trace] = traces_of(path)
    assert trace.startswith("traces/trace-") and trace.endswith(".json.gz")
    assert any(event.get("name") == "aten::matmul" for event in operations(path / trace))


def test_the_card_and_the_report_name_it_and_the_run_stays_whole(tmp_path: Path):
    path = recorded(tmp_path / "runs")
    runs = ea.open(tmp_path / "runs")
    [trace] = traces_of(path)
    assert any(str(path / trace) in line for line in card_lines(card_of(runs, "profiled")))
    assert runs.problems == ()
    for name in ("report.html", "report.md", "report.json"):
        ea.report(ea.replay(runs, "esper-review"), tmp_path / name)
        assert trace in (tmp_path / name).read_text(encoding="utf-8")
    html = (tmp_path / "report.html").read_text(encoding="utf-8")
    assert f'href="runs/{path.name}/{trace}"' in html
    assert f"(runs/{path.name}/{trace})" in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_stacks_are_kept_only_where_asked_for(tmp_path: Path):
    work(2, tmp_path / "without")
    work(2, tmp_path / "with", stacks=True)

    def calls(folder: Path) -> list[object]:
        return [e for e in operations(folder / traces_of(folder)[0]) if e.get("cat") == "python_function"]

    assert not calls(tmp_path / "without") and calls(tmp_path / "with")


def test_a_folder_that_cannot_be_written_is_said_before_anything_is_profiled(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(ProfilerFolderError, match=r"traces cannot be written to .*file/traces: Not a directory\. Give"):
        work(2, tmp_path / "file")


def test_a_trace_that_cannot_be_written_is_logged_and_training_goes_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    done = 0
    with caplog.at_level(logging.ERROR), profile(tmp_path, wait=0, warmup=1, active=1) as profiler:
        (tmp_path / "traces").rmdir()
        (tmp_path / "traces").touch()
        for _ in range(2):
            torch.ones(2).sum()
            profiler.step()
            done += 1
    assert done == 2
    assert "could not be written" in caplog.text


def test_a_recorder_that_is_off_has_no_traces(tmp_path: Path):
    recorder = Recorder(tmp_path / "runs", level="off")
    work(2, recorder.path)
    assert not (tmp_path / "runs").exists()


def test_a_run_without_traces_lists_none(tmp_path: Path):
    assert traces_of(tmp_path) == []
    (tmp_path / "traces").mkdir()
    (tmp_path / "traces" / "notes.txt").touch()
    (tmp_path / "traces" / ".1.tmp").touch()
    assert traces_of(tmp_path) == []
