"""`esper demo`: with a stand-in for the training, and once for real."""

from __future__ import annotations

import json
import shlex
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

import esper_analytics as ea
from esper_analytics.cli import demo
from esper_analytics.errors import DataError, UsageError
from tests.builders import write_run
from tests.support import ESPER, ROOT, esper, run_process

TRAINER = """
import sys
from pathlib import Path
sys.path.insert(0, {root!r})
from tests.builders import write_run
runs = Path(sys.argv[sys.argv.index("--out") + 1])
print("noise", flush=True)
for name in ("healthy", "wrecked"):
    for steps in (50, 100):
        print(name, steps, 100, flush=True)
    number = len(list(runs.iterdir()))
    write_run(runs, name, updates=[{{"ratio_max": 1.0}}], manifest={{"run_id": f"{{name}}-{{number}}"}})
{then}
"""


def trainer(then: str = "") -> list[str]:
    """A command that records runs at once, in place of `python -m esper_recorder.demo`."""
    return [sys.executable, "-c", TRAINER.format(root=str(ROOT), then=then)]


def ignore(name: str, done: int, total: int) -> None:
    pass


class TestRecord:
    def test_progress_is_reported_as_the_training_prints_it(self, tmp_path):
        progress: list[tuple[str, int, int]] = []
        run_ids = demo.record(tmp_path / "demo", lambda *step: progress.append(step), command=trainer())
        assert progress == [("healthy", 50, 100), ("healthy", 100, 100), ("wrecked", 50, 100), ("wrecked", 100, 100)]
        assert run_ids == ["healthy-0", "wrecked-1"]
        assert ea.open(tmp_path / "demo" / "runs").ids == run_ids

    def test_a_second_demo_replaces_the_runs_of_the_first_and_leaves_others_alone(self, tmp_path):
        demo.record(tmp_path, ignore, command=trainer())
        write_run(tmp_path / "runs", "mine", manifest={"run_id": "mine"})
        run_ids = demo.record(tmp_path, ignore, command=trainer())
        assert run_ids == ["healthy-3", "wrecked-4"]
        assert ea.open(tmp_path / "runs").ids == ["healthy-3", "mine", "wrecked-4"]

    def test_the_next_demo_replaces_what_a_failed_one_left(self, tmp_path):
        with pytest.raises(DataError, match=r"exit status 3: ValueError: no luck"):
            demo.record(tmp_path, ignore, command=trainer("sys.stderr.write('ValueError: no luck'); sys.exit(3)"))
        assert len(ea.open(tmp_path / "runs").ids) == 2
        demo.record(tmp_path, ignore, command=trainer())
        assert ea.open(tmp_path / "runs").ids == ["healthy-2", "wrecked-3"]

    @pytest.mark.parametrize("text", ["", "[]", '{"runs": 3}', '{"runs": ["../mine", "..", "a/b", "", "."]}'])
    def test_a_malformed_list_of_runs_deletes_nothing(self, tmp_path, text):
        write_run(tmp_path / "mine", "x", manifest={"run_id": "x"})
        (tmp_path / "demo").mkdir()
        (tmp_path / "demo" / "demo.json").write_text(text)
        demo.record(tmp_path / "demo", ignore, command=trainer())
        assert ea.open(tmp_path / "mine").ids == ["x"]
        assert len(ea.open(tmp_path / "demo" / "runs").ids) == 2

    def test_without_the_trainers_libraries_it_says_what_to_install(self, tmp_path, monkeypatch):
        monkeypatch.setattr(demo, "NEEDS", ("torch", "no_such_trainer"))
        with pytest.raises(
            UsageError, match=r"not installed here: no_such_trainer.*pip install 'esper-analytics\[demo\]'"
        ):
            demo.record(tmp_path, ignore)

    def test_a_folder_that_cannot_be_created_is_a_usage_error(self, tmp_path):
        (tmp_path / "file").write_text("")
        with pytest.raises(UsageError, match="cannot be written"):
            demo.record(tmp_path / "file", ignore, command=trainer())


class VisibleText(HTMLParser):
    def __init__(self, html: str) -> None:
        super().__init__()
        self.text = ""
        self.feed(html)

    def handle_data(self, data):
        self.text += data


@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.trains
def test_the_command_records_30_000_steps_of_each_run_and_reports_them(tmp_path):
    done = run_process(ESPER, "demo", "--out", "demo", cwd=tmp_path, timeout=900)
    runs = ea.open(tmp_path / "demo" / "runs")
    assert runs.list().select("ended", "updates", "complete").rows() == [("finished", 30, True)] * 2
    critical = ea.replay(runs, "default").incidents.filter(severity="critical")
    assert {"ratio_explosion", "kl_extreme"} <= {*critical["rule"]}
    assert [run_id.split("-")[0] for run_id in critical["run_id"].unique()] == ["wrecked"]
    text = VisibleText((tmp_path / "demo" / "report.html").read_text(encoding="utf-8")).text
    assert text.index("wrecked: First failure: ") < text.index("healthy: Nothing")
    assert "The report: demo/report.html" in done.stdout and "esper report demo/runs" in done.stdout


class TestForReal:
    """On the folder of a demo."""

    def test_it_writes_two_runs_and_a_report(self, demo_folder):
        runs = ea.open(demo_folder / "runs")
        assert [run_id.split("-")[0] for run_id in runs.ids] == ["healthy", "wrecked"]
        assert set(runs.list().get_column("ended")) == {"finished"}
        assert json.loads((demo_folder / "demo.json").read_text())["runs"] == runs.ids

    def test_the_report_finds_the_wrecked_run_and_nothing_in_the_healthy_one(self, demo_folder):
        text = VisibleText((demo_folder / "report.html").read_text(encoding="utf-8")).text
        assert "Post-mortem of 2 runs: 1 failed" in text
        assert text.index("wrecked: First failure: ") < text.index("healthy: Nothing")

    def test_another_threshold_changes_the_outcome(self, demo_folder):
        runs = ea.open(demo_folder / "runs")
        table = demo.differences(ea.replay(runs, "default"), ea.replay(runs, "default", values=demo.CHANGED))
        assert table.get_column("run").to_list() == ["healthy", "wrecked"]
        counts = runs.sql(
            "SELECT name, count(*) FILTER (ratio_max > 3 AND ratio_max <= 10) AS n "
            "FROM ppo_updates JOIN runs USING (run_id) GROUP BY name ORDER BY name"
        )
        assert table.get_column("new firings").to_list() == counts["n"].to_list()

    def test_the_commands_it_suggests_run_as_written(self, demo_folder, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        (tmp_path / "demo").symlink_to(demo_folder)
        for line in demo.next_commands(Path("demo")):
            words = [
                word.replace("demo/wrecked.png", "w.png").replace("demo/review.html", "s.html")
                for word in shlex.split(line)
            ]
            esper(*words[1:])
