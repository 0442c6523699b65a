"""The command `esper`: data on stdout, narration on stderr, a message and an exit code for every error."""

from __future__ import annotations

import dataclasses
import json
import os
import re
import signal
import subprocess
import time
from importlib.metadata import version
from pathlib import Path

import polars as pl
import pytest

import esper_analytics as ea
from esper_analytics.cli.options import VIEWS
from esper_analytics.cli.output import FORMATS
from esper_analytics.plots.registry import PLOTS
from esper_analytics.postmortem.recording import describe_endings
from esper_analytics.runs import open as open_runs
from esper_analytics.sql.files import views
from esper_analytics.sql.named_queries import named_queries
from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.rules.ruleset import profiles
from esper_recorder.contract.tables import TABLES, all_columns
from tests.builders import run_id_of, write_run
from tests.support import ESPER, esper, run_process

HEAVY = {"duckdb", "polars", "pyarrow", "matplotlib", "torch", "numpy"}


def cpu_seconds(pid):
    """Return the CPU time of a process and its children, over all their threads."""
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK") + sum(map(cpu_seconds, children))


@pytest.fixture
def root(tmp_path):
    root = tmp_path / "runs"
    gaps = [{"update": 2, "table_name": "minibatches", "reason": "queue_full", "rows": 3}]
    updates = [{"ratio_max": 1.5}, {"ratio_max": float("nan")}]
    write_run(root, "a", updates=updates, total_updates=4, rules="# the rules\n", profile="default")
    write_run(root, "b", updates=[{"ratio_max": 3.0}], tables={"gaps": gaps}, ended="raised")
    return root


class TestRuns:
    def test_it_prints_one_row_per_run(self, root):
        rows = json.loads(esper("runs", root, "--format", "json").stdout)
        assert [*rows[0]] == ["run_id", "trainer", "started", "updates", "progress", "ended", "alarms", "complete"]
        assert [(r["run_id"], r["updates"], r["progress"], r["ended"], r["complete"]) for r in rows] == [
            (run_id_of("a"), 2, 0.5, "finished", True),
            (run_id_of("b"), 1, None, "raised", False),
        ]

    def test_what_is_left_out_is_reported_on_stderr(self, root):
        [part] = root.glob("a-*/ppo_updates/*")
        part.write_bytes(b"PAR1")
        result = esper("runs", root)
        assert "left out" in result.stderr and part.name in result.stderr
        assert "left out" not in result.stdout
        strict = esper("runs", root, "--strict", code=3)
        assert "1 thing had to be left out" in strict.stderr
        assert strict.stdout == result.stdout


class TestShow:
    def test_a_card_shows_config_rules_and_tables(self, root):
        card = esper("show", root, "--run", "a").stdout
        for line in (
            "  ended          finished",
            "  learning_rate  0.0003",
            "  profile  default",
            "  ppo_updates  2",
        ):
            assert line in card
        assert "gaps\n  none" in card

    def test_a_card_shows_gaps_and_the_error(self, root):
        card = esper("show", root, "--run", "b").stdout
        assert "ValueError: wrecked" in card
        [gap] = re.findall(r"^gaps\n +(.+)\n +(.+)\n", card, flags=re.MULTILINE)
        assert "reason" in gap[0] and "run_id" not in gap[0] and "queue_full" in gap[1]
        assert "1.reason" not in card and "1.run_id" not in card
        [first] = re.findall(r"^attempts\n +(.+)\n", card, flags=re.MULTILINE)
        assert first.startswith("attempt ")
        assert "none: it was recorded without rules" in card

    def test_an_incomplete_run_says_why_instead_of_that_it_has_no_problems(self, tmp_path):
        write_run(tmp_path, "cut", updates=[{"update": 1}, {"update": 4}], ended=None)
        card = esper("show", tmp_path).stdout
        assert re.search(r"complete +false", card)
        assert "not complete\n" in card and "2 updates of 4 not recorded: 2–3." in card
        assert "problems\n" not in card

    def test_a_card_can_be_printed_as_data(self, root):
        card = json.loads(esper("show", root, "--run", "b", "--format", "json").stdout)
        assert card["run"]["run_id"] == run_id_of("b")
        assert card["tables"] == {"ppo_updates": 1, "gaps": 1}
        assert card["config"] == {"learning_rate": 0.0003, "seed": 1}
        assert card["gaps"][0]["rows"] == 3
        assert "gaps,1.reason,queue_full" in esper("show", root, "--run", "b", "--format", "csv").stdout

    def test_only_one_of_several_runs_needs_a_name(self, root):
        assert run_id_of("a") in esper("show", root / run_id_of("a")).stdout
        assert "There are 2 runs: a-" in esper("show", root, code=2).stderr
        assert "no run 'c'" in esper("show", root, "--run", "c", code=2).stderr


class TestMissingArguments:
    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (("sql", "select 1"), "esper: esper sql needs SELECT (One SELECT over the views"),
            (
                ("report", "runs"),
                "esper: esper report needs -o FILE (FILE.html, FILE.md (plots in a folder) or FILE.json)",
            ),
            (("import", "tensorboard", "logs"), "esper: esper import tensorboard needs --to RUNS ("),
            (
                ("replay",),
                "esper: esper replay needs RUNS (A folder of runs, or one run's folder). Such as: esper replay",
            ),
        ],
    )
    def test_the_message_has_what_is_missing_and_an_example(self, words, message):
        stderr = esper(*words, code=2).stderr
        assert stderr.startswith(message) and ". Such as: esper " in stderr
        assert stderr.count("\n") == 1

    def test_an_unknown_option_is_refused(self, root):
        assert "No such option" in esper("runs", root, "--nope", code=2).stderr

    def test_the_closest_name_of_a_run_is_suggested(self, tmp_path):
        write_run(tmp_path, "hot", updates=[{}])
        write_run(tmp_path, "healthy", updates=[{}])
        assert "There is no run 'ht'. Did you mean hot" in esper("show", tmp_path, "--run", "ht", code=2).stderr

    def test_nan_is_not_a_value_of_a_parameter(self, root):
        stderr = esper("query", root, "ratio_exceeded", "-p", "above=nan", code=2).stderr
        assert "above must be a number, not 'nan'" in stderr


class TestSql:
    QUERY = "SELECT run_id, max(finite(ratio_max)) AS worst FROM ppo_updates GROUP BY 1 ORDER BY 1"

    def test_only_the_answer_is_on_stdout(self, root):
        result = esper("sql", root, self.QUERY, "--format", "csv")
        assert result.stdout == f"run_id,worst\n{run_id_of('a')},1.5\n{run_id_of('b')},3.0\n"
        assert result.stderr == ""

    def test_an_answer_can_be_saved_to_a_file(self, root, tmp_path):
        result = esper("sql", root, self.QUERY, "-o", tmp_path / "x.parquet")
        assert result.stdout == ""
        assert "2 rows written to" in result.stderr
        assert pl.read_parquet(tmp_path / "x.parquet")["worst"].to_list() == [1.5, 3.0]

    def test_an_error_is_a_message_and_exit_code_2(self, root):
        result = esper("sql", root, "SELECT ratio_mx FROM ppo_updates", code=2)
        assert result.stdout == ""
        assert result.stderr.startswith("esper: There is no column ratio_mx (line 1, column 8). Did you mean ratio_max")

    def test_a_damaged_file_is_reported_and_the_rest_answered(self, root):
        [part] = root.glob("a-*/ppo_updates/*")
        part.write_bytes(part.read_bytes()[:-5])
        result = esper("sql", root, "SELECT count(*) AS n FROM ppo_updates", "--format", "csv")
        assert result.stdout == "n\n1\n"
        assert part.name in result.stderr

    def test_a_query_is_stopped_after_its_timeout(self, root):
        endless = "SELECT sum(a.i * b.i) FROM range(10000000) a(i), range(10000000) b(i)"
        assert "stopped after" in esper("sql", root, endless, "--timeout", "0.2", code=2).stderr


class TestQuery:
    def test_a_parameter_is_passed_to_the_query(self, root):
        result = esper("query", root, "ratio_exceeded", "-p", "above=2", "--format", "csv")
        assert result.stdout.splitlines()[1].startswith(f"{run_id_of('b')},1,1,,3.0,")
        assert result.stderr == ""
        assert esper("query", root, "ratio_exceeded", "-p", "above=9").stderr == "no rows\n"

    def test_it_can_be_restricted_to_one_run_and_saved(self, root, tmp_path):
        stderr = esper("query", root, "ratio_exceeded", "-p", "above=1", "--run", "a", "-o", tmp_path / "x.csv").stderr
        assert "1 row written to" in stderr
        assert run_id_of("b") not in (tmp_path / "x.csv").read_text()

    def test_the_list_needs_no_runs(self):
        names = {line.split(",")[0] for line in esper("query", "--list", "--format", "csv").stdout.splitlines()[1:]}
        assert {*named_queries()} <= names
        described = json.loads(esper("query", "--list", "--format", "json").stdout)
        assert {query["query"] for query in described} == {*named_queries()}
        assert all(parameter["meaning"] for query in described for parameter in query["parameters"])

    def test_the_sql_it_shows_runs_as_sql(self, root):
        text = esper("query", "--show", "early_stops").stdout
        assert esper("sql", root, text, "--format", "csv").stdout.startswith("run_id,updates,stopped")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["ratio_exceded"], "There is no query 'ratio_exceded'. Did you mean ratio_exceeded?"),
            (["ratio_exceeded", "-p", "above"], "'above' is not a parameter. Write KEY=VALUE."),
            (["ratio_exceeded", "-p", "above=1", "-p", "above=2"], "The parameter above is given twice"),
            (["ratio_exceeded", "-p", "below=1"], "The query ratio_exceeded has no parameter 'below'."),
            (["ratio_exceeded", "-p", "timeout_s=1"], "The query ratio_exceeded has no parameter 'timeout_s'."),
            ([], "Give RUNS and the NAME of a query; `esper query --list` has them all."),
        ],
    )
    def test_an_error_is_a_message_and_exit_code_2(self, root, words, message):
        assert esper("query", root, *words, code=2).stderr.startswith(f"esper: {message}")


class TestTables:
    def test_it_lists_all_tables(self):
        shown = esper("tables").stdout
        assert all(table in shown for table in ("runs", *TABLES))

    def test_it_lists_the_columns_of_a_table(self):
        shown = esper("tables", "alarms", "--format", "csv").stdout
        assert shown.splitlines()[0] == "column,type,unit,meaning,null,reducer,since"
        assert esper("tables", "alarms_all", "--format", "csv").stdout == shown

    def test_as_json_it_describes_everything(self):
        described = json.loads(esper("tables", "--format", "json").stdout)
        found = {(table["table"], column["column"]) for table in described for column in table["columns"]}
        assert {(table, column.name) for table, column in all_columns()} <= found
        assert described[0]["table"] == "runs"
        assert all(column["meaning"] for table in described for column in table["columns"])

    def test_find_searches_names_and_meanings_names_first(self):
        found = esper("tables", "ppo_updates", "--find", "KL", "--format", "csv").stdout.splitlines()
        names = [line.split(",")[0] for line in found]
        assert names[:2] == ["column", "approx_kl"] and "k1_sum" in names
        assert names.index("target_kl") < names.index("k1_sum")
        everywhere = esper("tables", "--find", "kl", "--format", "csv").stdout.splitlines()
        assert everywhere[0].startswith("table,column,")
        assert any(line.startswith("minibatches,approx_kl,") for line in everywhere)
        assert esper("tables", "gaps", "--find", "kl").stderr == "no column of gaps has 'kl' in its name or meaning\n"

    def test_views_are_listed_and_described_like_tables(self):
        assert all(view in esper("tables").stdout for view in views())
        shown = esper("tables", "run_confounders", "--format", "csv").stdout.splitlines()
        assert shown[1].startswith("run_id,string,")
        assert any(
            line.startswith("run_confounders,")
            for line in esper("tables", "--find", "confounder", "--format", "csv").stdout.splitlines()
        )

    def test_an_unknown_table_is_refused_with_the_closest(self):
        assert "no table 'alarm'. Did you mean alarms" in esper("tables", "alarm", code=2).stderr


class TestSeveralRunsOfOneName:
    def test_the_newest_is_used_and_reported(self, root):
        manifest = {"started": "2026-02-01T00:00:00Z", "run_id": "a-20260201T000000Z-abc124"}
        write_run(root, "a", updates=[{}], manifest=manifest)
        notice = "2 runs are named a; using the newest, a-20260201T000000Z-abc124\n"
        result = esper("show", root, "--run", "a", "--format", "json")
        assert json.loads(result.stdout)["run"]["run_id"] == manifest["run_id"]
        assert result.stderr == notice
        assert esper("replay", root, "--run", "a", "--rules", "default").stderr.startswith(notice)
        assert "using the newest" not in esper("show", root, "--run", "b").stderr


class TestEmptyAnswers:
    def test_a_query_without_rows_says_so(self, root):
        result = esper("sql", root, "SELECT 1 AS x WHERE false", "--format", "csv")
        assert (result.stdout, result.stderr) == ("x\n", "no rows\n")

    def test_a_replay_without_incidents_or_difference_says_so(self, tmp_path):
        write_run(tmp_path, "calm", updates=[{"approx_kl": 0.001}] * 3)
        write_run(tmp_path, "still", updates=[{}] * 2)
        result = esper("replay", tmp_path, "--format", "csv")
        assert result.stdout.count("\n") == 1
        assert "no incidents in 5 updates of 2 runs with the rules default\n" in result.stderr
        assert (
            "no firings in 3 updates of 1 run" in esper("replay", tmp_path, "--run", "calm", "--show", "firings").stderr
        )
        assert "no difference\n" in esper("replay", tmp_path, "--against", "default").stderr

    def test_each_run_that_did_not_finish_is_reported_in_one_line(self, root):
        write_run(root, "c", updates=[{}], ended=None)
        lines = esper("replay", root, "--run", "b", "--run", "c").stderr.splitlines()
        assert f"{run_id_of('b')} ended with an error: ValueError: wrecked" in lines
        assert f"{run_id_of('c')} was killed; its last rows may be missing" in lines
        write_run(root, "d", updates=[{}])
        assert "ended" not in esper("replay", root, "--run", "d").stderr

    def test_that_line_fits_the_terminal(self, root):
        [line] = describe_endings(open_runs(root), 40)
        assert len(line) <= 40 and line.endswith("…")


class TestOptions:
    def test_an_option_given_twice_is_refused_if_only_one_counts(self, root):
        twice = esper("replay", root, "--rules", "default", "--rules", "esper-review", code=2)
        assert twice.stderr == "esper: --rules is given 2 times, and only one counts. Give it once.\n"
        esper("replay", root, "--rules", "default", "--run", "b", "--run", run_id_of("b"))

    def test_a_rules_file_without_its_suffix_is_suggested(self, root, tmp_path, monkeypatch):
        (tmp_path / "my.toml").touch()
        monkeypatch.chdir(tmp_path)
        stderr = esper("replay", root / run_id_of("b"), "--rules", "my", code=2).stderr
        assert stderr.endswith("There is a file my.toml: write that.\n")

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            (["replay", ".", "--show", "incidnts"], "--show incidnts is not known. Did you mean incidents?"),
            (["replay", ".", "--fail-on", "critcal"], "There is no severity 'critcal'. Did you mean critical?"),
            (["runs", ".", "--format", "jsn"], "There is no format 'jsn'. Did you mean json or ndjson?"),
            (
                ["plot", ".", "--kind", "compar", "-o", "x.png"],
                "There is no plot of kind 'compar'. Did you mean compare?",
            ),
        ],
    )
    def test_an_unknown_choice_is_refused_before_anything_is_read(self, words, message):
        assert esper(*words, code=2).stderr == f"esper: {message}\n"

    def test_every_view_is_a_frame_of_a_result_or_the_diff(self):
        assert set(VIEWS) - {"diff"} < {field.name for field in dataclasses.fields(ea.Result)}


class TestHelp:
    COMMANDS = ("runs", "show", "sql", "query", "tables", "replay", "sweep", "report", "plot", "demo")

    @pytest.mark.parametrize("command", COMMANDS)
    def test_it_fits_80_columns_with_examples_and_whole_words(self, command, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        text = esper(command, "--help").stdout
        assert max(map(len, text.splitlines())) <= 80
        assert f"esper {command}" in text.partition("Example")[2]
        assert " ." not in text
        words = {word.strip(",.()") for word in text.split()}
        choices = {"runs": FORMATS, "replay": [*VIEWS, *Severity, *profiles()], "plot": PLOTS}
        assert set(choices.get(command, ())) <= words

    def test_the_help_of_against_says_that_it_prints_the_difference(self):
        assert "prints diff" in " ".join(esper("replay", "--help").stdout.replace("│", " ").split())


class TestExitCodes:
    def test_a_missing_folder_is_a_usage_error(self, tmp_path):
        assert "There is no folder" in esper("runs", tmp_path / "no", code=2).stderr

    def test_a_folder_without_runs_is_a_data_error(self, tmp_path):
        assert "There are no runs" in esper("runs", tmp_path, code=3).stderr

    @pytest.mark.parametrize("words", [["nothing"], ["runs"], ["sql", "."], ["runs", ".", "--format", "xml"]])
    def test_invalid_arguments_are_usage_errors(self, words):
        esper(*words, code=2)

    def test_an_interrupted_command_ends_with_130(self, root):
        endless = "SELECT sum(a.i * b.i) FROM range(10000000) a(i), range(10000000) b(i)"
        process = subprocess.Popen(
            [ESPER, "sql", root, endless], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        # More CPU time than the imports need: it is computing.
        deadline = time.monotonic() + 60
        while cpu_seconds(process.pid) < 3 and time.monotonic() < deadline:
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
        assert (process.returncode, out) == (130, "")
        assert "interrupted" in err and "Traceback" not in err

    def test_an_interrupted_command_leaves_no_half_written_file(self, tmp_path):
        # Writing the file takes long enough to be interrupted in the middle.
        write_run(tmp_path / "runs", "a", updates=[{"ratio_max": 9.0, "update": n} for n in range(1, 40_001)])
        out = tmp_path / "out"
        out.mkdir()
        (out / "old.csv").write_text("old content\n")
        words = ["replay", tmp_path / "runs", "--rules", "esper-review", "--show", "firings", "-o", out / "old.csv"]
        process = subprocess.Popen([ESPER, *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        deadline = time.monotonic() + 60
        while not (begun := list(out.glob(".*.tmp*"))) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        assert begun, process.communicate()
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "interrupted" in err and "Traceback" not in err
        assert [(path.name, path.read_text()) for path in out.iterdir()] == [("old.csv", "old content\n")]

    def test_a_closed_pipe_is_not_an_error(self, root):
        command = (
            f"'{ESPER}' sql '{root}' 'SELECT * FROM range(1000000)' --format csv | head -1; echo ${{PIPESTATUS[0]}}"
        )
        done = run_process("bash", "-c", command)
        assert done.stdout == "range\n0\n"
        assert done.stderr == ""

    def test_a_query_beyond_duckdbs_memory_limit_meets_the_commands_own(self, root):
        done = run_process(ESPER, "sql", root, "SELECT list_sum(range(2000000000))", code=2)
        assert done.stderr.count("\n") == 1
        assert "needs more than" in done.stderr


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["runs", "-h"], ["show", "-h"], ["sql", "-h"]])
def test_help_and_versions_load_no_engine(run_python, arguments):
    code = (
        "import sys, json\n"
        "from esper_analytics.cli.app import app\n"
        "try:\n    app(sys.argv[1:], prog_name='esper')\n"
        "except SystemExit as end:\n    assert not end.code\n"
        "print(json.dumps([*sys.modules]))"
    )
    *lines, modules = run_python(code, *arguments).splitlines()
    assert HEAVY & set(json.loads(modules)) == set()
    if arguments == ["--version"]:
        assert lines == [f"{name} {version(name)}" for name in ("esper-analytics", "esper-recorder")]
    else:
        assert "Usage" in "\n".join(lines)


def test_the_command_is_installed():
    assert "queue_full" in run_process(ESPER, "tables", "gaps").stdout


NOT_UTF8 = os.fsdecode(b"runs\xff")


class TestPathsThatAreNotUtf8:
    @pytest.mark.parametrize(
        "command", [("runs",), ("sql", "SELECT 1"), ("replay",), ("report", "-o", "x.md"), ("verify",)]
    )
    def test_such_a_root_meets_a_message(self, tmp_path, command):
        write_run(tmp_path / NOT_UTF8, "a", updates=[{}])
        name, *rest = command
        stderr = esper(name, tmp_path / NOT_UTF8, *rest, code=2).stderr
        assert "runs\\udcff is not UTF-8" in stderr and "rename it" in stderr and stderr.count("\n") == 1

    def test_such_a_folder_of_a_run_is_left_out(self, tmp_path):
        write_run(tmp_path, "a", updates=[{}])
        write_run(tmp_path, "b", updates=[{}], folder=NOT_UTF8)
        result = esper("runs", tmp_path, "--format", "json")
        assert [run["run_id"] for run in json.loads(result.stdout)] == [run_id_of("a")]
        assert "runs\\udcff: its name is not UTF-8" in result.stderr

    @pytest.mark.parametrize("suffix", ["csv", "json", "md", "parquet"])
    def test_a_file_may_have_such_a_name(self, root, tmp_path, suffix):
        file = tmp_path / f"{NOT_UTF8}.{suffix}"
        esper("runs", root, "-o", file)
        assert file.stat().st_size
        if suffix == "md":
            esper("report", root, "--rules", "default", "-o", file)
            assert "runs%FF-plots" in file.read_text()

    def test_such_a_source_or_target_of_an_import_meets_a_message(self, tmp_path):
        source = tmp_path / NOT_UTF8
        source.mkdir()
        (source / "progress.csv").write_text("time/iterations,train/approx_kl\n1,0.5\n")
        assert "is not UTF-8" in esper("import", "sb3-csv", source, "--to", tmp_path / "to", code=2).stderr
        source.rename(tmp_path / "from")
        assert "is not UTF-8" in esper("import", "sb3-csv", tmp_path / "from", "--to", source, code=2).stderr

    def test_sql_that_is_not_unicode_meets_a_message(self, root):
        assert "not valid Unicode" in esper("sql", root, "SELECT '\udcff'", code=2).stderr
