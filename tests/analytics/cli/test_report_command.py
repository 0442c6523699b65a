"""`esper report` and `esper plot`: what they write, and their messages for invalid arguments."""

from __future__ import annotations

import json
import shlex
from pathlib import Path

import pytest

from tests.analytics.postmortem.recorded_runs import RULES, healthy, wrecked
from tests.support import esper


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with two runs in `runs`, and the rules in `rules.toml`; it is the current one."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "runs").mkdir()
    wrecked(tmp_path / "runs")
    healthy(tmp_path / "runs")
    (tmp_path / "rules.toml").write_text(RULES.text)
    return tmp_path


def run(line: str):
    """Run a command line without `esper`; its exit code is not checked."""
    return esper(*shlex.split(line), code=None)


class TestReport:
    @pytest.mark.parametrize("name", ["r.html", "r.md", "r.json"])
    def test_it_writes_the_format_of_the_suffix_and_names_the_file(self, root, name):
        done = run(f"report runs --rules rules.toml -o {name}")
        assert done.exit_code == 0, done.stderr
        assert done.stdout == ""
        assert f"report written to {name}" in done.stderr
        text = (root / name).read_text()
        assert "ratio_explosion" in text
        assert "healthy" in text

    def test_a_rule_that_was_never_evaluated_is_reported_on_stderr_too(self, root):
        assert "policy_std_gone" in run("report runs --rules rules.toml -o r.json").stderr

    def test_the_command_in_it_makes_the_same_report_again(self, root):
        line = "report runs --run wrecked --rules rules.toml --set kl_spike.above=0.3 --against esper-review -o r.json"
        assert run(line).exit_code == 0
        one = json.loads((root / "r.json").read_text())
        assert one["command"] == f"esper {line}"
        assert [run["name"] for run in one["runs"]] == ["wrecked"]
        assert one["against"] == "esper-review"
        assert run(one["command"].removeprefix("esper ")).exit_code == 0
        again = json.loads((root / "r.json").read_text())
        assert one | {"written": ""} == again | {"written": ""}

    @pytest.mark.parametrize(
        ("line", "message"),
        [
            ("report runs -o r.docx", "r.docx ends in .docx; a report is written to FILE.html, FILE.md, FILE.json."),
            ("report runs --run wreked -o r.html", "There is no run 'wreked'."),
            ("report nowhere -o r.html", "nowhere"),
            ("report runs --rules esper-reveiw -o r.html", "Did you mean esper-review"),
            ("report runs --set kl_spike -o r.html", "has no value"),
            ("report runs --rules rules.toml --set kl_spik.above=1 -o r.html", "Did you mean kl_spike"),
            ("report runs --against live -o r.html", "None of the 2 runs ran with rules"),
            ("plot runs -o p.png", "Say which by --run ID."),
            ("plot runs --run wrecked --kind gradiens -o p.png", "There is no plot of kind 'gradiens'."),
            (
                "plot runs --run wrecked -o p.bmp",
                "p.bmp ends in .bmp; a plot is written to FILE.png, FILE.svg, FILE.pdf",
            ),
            ("plot runs --run wrecked -o nowhere/p.png", "nowhere"),
        ],
    )
    def test_invalid_arguments_are_refused_with_the_valid_ones(self, root, line, message):
        done = run(line)
        assert done.exit_code == 2
        assert message in " ".join(done.stderr.split())
        assert "Traceback" not in done.stderr
        assert not list(root.glob("r.*")) and not list(root.glob("p.*"))

    def test_a_folder_without_runs_is_a_data_error(self, root):
        (root / "empty").mkdir()
        done = run("report empty -o r.html")
        assert done.exit_code == 3
        assert "empty" in done.stderr

    def test_a_damaged_file_is_reported_and_with_strict_ends_with_3(self, root):
        (next((root / "runs").glob("wrecked*")) / "ppo_updates" / "part-a1-r0-000009.parquet").write_bytes(b"PAR1")
        assert run("report runs --rules rules.toml -o r.html").exit_code == 0
        done = run("report runs --rules rules.toml -o r.html --strict")
        assert done.exit_code == 3
        assert "part-a1-r0-000009.parquet" in done.stderr
        assert (root / "r.html").exists()

    def test_a_report_in_markdown_names_the_folder_of_its_plots(self, root):
        done = run("report runs --rules rules.toml -o r.md")
        assert "report written to r.md, its plots to r-plots" in done.stderr
        assert list((root / "r-plots").glob("*.png"))

    @pytest.mark.skipif(not Path("/proc").is_dir(), reason="no folder that nobody can write to")
    @pytest.mark.parametrize("line", ["report runs -o /proc/r.html", "plot runs --run wrecked -o /proc/p.png"])
    def test_a_file_that_cannot_be_written_is_refused_before_any_work(self, root, monkeypatch, line):
        monkeypatch.setattr(
            "esper_analytics.cli.report_arguments.replay", lambda *_, **__: pytest.fail("it worked first")
        )
        done = run(line)
        assert done.exit_code == 2 and "cannot be written: " in done.stderr


class TestPlot:
    @pytest.mark.parametrize(("name", "begins"), [("p.png", b"\x89PNG"), ("p.svg", b"<?xml"), ("p.pdf", b"%PDF")])
    def test_a_post_mortem_is_drawn_in_the_format_of_the_suffix(self, root, name, begins):
        done = run(f"plot runs --run wrecked --rules rules.toml -o {name}")
        assert done.exit_code == 0, done.stderr
        assert (root / name).read_bytes().startswith(begins)

    def test_it_shows_the_incidents_of_the_given_rules(self, root):
        run("plot runs --run wrecked --rules rules.toml -o p.svg")
        assert "ratio_explosion (critical)" in (root / "p.svg").read_text()
        run("plot runs --run wrecked --rules rules.toml --set ratio_explosion.above=1e300 --kind postmortem -o q.svg")
        assert "kl_spike (warning)" in (root / "q.svg").read_text()

    def test_a_recorded_run_is_not_written_to(self, root):
        folder = next((root / "runs").glob("wrecked-*"))
        done = run(f"plot runs --run wrecked -o {folder / 'p.png'}")
        assert done.exit_code == 2 and "lies in the recorded run wrecked-" in done.stderr

    def test_compare_draws_several_runs(self, root):
        done = run("plot runs --kind compare -o p.svg")
        assert done.exit_code == 0, done.stderr
        assert ">wrecked<" in (root / "p.svg").read_text()
        assert ">healthy<" in (root / "p.svg").read_text()

    def test_more_runs_than_colours_are_refused(self, root):
        for n in range(7):
            healthy(root / "runs", f"more-{n}")
        done = run("plot runs --kind compare -o p.svg")
        assert done.exit_code == 2
        assert "9 runs are too many for one figure; it holds 8." in done.stderr
        assert run("plot runs --kind compare --run more-1 --run more-2 -o p.svg").exit_code == 0
