"""The documentation is true: its code runs, its output is real, its lists are complete, its links lead somewhere.

Covers, by the language of a fenced block:
- `bash` and `python` (README): run as written, in their order, each in a new process, in one folder where `demo/` is
  what `make demo` leaves. A block that calls `make` is not run.
- `console`, if it begins with `$ ` (every page): lines that begin with `$ ` are commands, the lines below are exactly
  what they print to stdout and stderr. A line `...` stands for any number of lines. The commands of a page run in their
  order in one folder, where `examples/runs/` is a copy of the recorded runs of that name: no output rests on a
  training. ESPER_WRITE_GOLDEN=1 writes the output into the pages; read the difference.

Does not cover: blocks of any other kind (`text` is output, other `console` blocks need something a test has not).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import typer

from esper_recorder.contract.tables import TABLES, column_names
from tests.support import ROOT, run_process

README = ROOT / "README.md"
REPOSITORY = (
    r"https://(github\.com/esper-analytics/esper-analytics/(blob|tree)|raw\.githubusercontent\.com/[\w-]+/[\w-]+)/main/"
)
"""What the address of a file of this project begins with."""
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "recorder/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@dataclass(frozen=True)
class Block:
    language: str
    line: int
    code: str


@dataclass(frozen=True)
class ConsoleCommand:
    line: int
    command: str
    output: str


def fenced(text: str) -> list[Block]:
    """The fenced blocks of a page."""
    return [
        Block(match[1], text.count("\n", 0, match.start()) + 1, match[2])
        for match in re.finditer(r"^```(\w+)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    ]


def blocks_to_run(text: str) -> list[Block]:
    return [
        block
        for block in fenced(text)
        if block.language in ("bash", "python") and not re.search(r"^make\b", block.code, flags=re.MULTILINE)
    ]


def console_commands(text: str) -> list[ConsoleCommand]:
    """The commands of the `console` blocks that begin with `$ `, each with the output shown below it."""
    commands: list[ConsoleCommand] = []
    for block in fenced(text):
        if block.language == "console" and block.code.startswith("$ "):
            for number, line in enumerate(block.code.splitlines(), block.line + 1):
                if line.startswith("$ "):
                    commands.append(ConsoleCommand(number, line.removeprefix("$ "), ""))
                else:
                    commands[-1] = replace(commands[-1], output=f"{commands[-1].output}{line}\n")
    return commands


def shows(expected: str, actual: str) -> bool:
    """Whether an output is the expected one, in which a line `...` stands for any number of lines."""
    lines = ("(?:.*\n)*" if line == "...\n" else re.escape(line) for line in expected.splitlines(keepends=True))
    return re.fullmatch("".join(lines), actual) is not None


def documented_environment() -> dict[str, str]:
    """This environment, with the installed programs first in PATH and output in the order it is written."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    return os.environ | {"PATH": path, "PYTHONUNBUFFERED": "1"}


def headings_of(page: Path) -> set[str]:
    """The anchors of a page's headings: lower case, without punctuation, spaces as hyphens."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


class TestBlocks:
    def test_blocks_to_run_have_their_line_and_do_not_call_make(self):
        text = (
            "intro\n```bash\nmake demo\n```\n```bash\nesper runs demo/runs\n```\n```text\nout\n```\n```python\nx\n```\n"
        )
        assert blocks_to_run(text) == [Block("bash", 5, "esper runs demo/runs\n"), Block("python", 11, "x\n")]

    def test_console_commands_have_the_lines_below_them_as_output(self):
        text = "```console\n$ echo 1\n1\n$ true\n$ echo 2\n2\n3\n```\n```console\nnot run\n```\n"
        assert console_commands(text) == [
            ConsoleCommand(2, "echo 1", "1\n"),
            ConsoleCommand(4, "true", ""),
            ConsoleCommand(5, "echo 2", "2\n3\n"),
        ]

    def test_a_line_of_three_dots_stands_for_any_number_of_lines(self):
        assert shows("a\n...\nd\n", "a\nb\nc\nd\n") and shows("a\n...\n", "a\n") and shows("1.5\n", "1.5\n")
        assert not shows("a\n...\nd\n", "a\nb\n")
        assert not shows("a\n", "a\nb\n")
        assert not shows("1.5\n", "1x5\n")


class TestReadme:
    def test_it_shows_recording_sql_replay_and_report_in_code(self):
        text = README.read_text(encoding="utf-8")
        everything = "\n".join([b.code for b in blocks_to_run(text)] + [c.command for c in console_commands(text)])
        for word in ("esper_recorder", "esper sql", "esper replay", "esper report"):
            assert word in everything, f"no block of README.md shows {word}"

    @pytest.mark.timeout(900)
    def test_its_blocks_run_as_written_and_in_their_order(self, demo_folder, tmp_path):
        shutil.copytree(demo_folder, tmp_path / "demo")
        (tmp_path / ".venv").symlink_to(sys.prefix)
        for name in ("examples", "queries"):
            (tmp_path / name).symlink_to(ROOT / name)
        for block in blocks_to_run(README.read_text(encoding="utf-8")):
            script = tmp_path / f".readme_line_{block.line}"
            script.write_text(block.code, encoding="utf-8")
            runner = ["bash", "-euo", "pipefail"] if block.language == "bash" else [sys.executable]
            options = {"cwd": tmp_path, "env": documented_environment(), "stdin": subprocess.DEVNULL}
            done = run_process(*runner, script.name, code=None, timeout=900, **options)
            output = f"{block.code}\n{done.stdout}\n{done.stderr}"
            assert done.returncode == 0, f"README.md, line {block.line}, ended with {done.returncode}:\n{output}"


PAGES_WITH_OUTPUT = [page for page in PAGES if console_commands(page.read_text(encoding="utf-8"))]


@pytest.mark.parametrize("page", PAGES_WITH_OUTPUT, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_output_that_a_page_shows_is_what_its_commands_print(page, tmp_path):
    shutil.copytree(ROOT / "examples" / "runs", tmp_path / "examples" / "runs")
    text = page.read_text(encoding="utf-8")
    for shown in console_commands(text):
        done = subprocess.run(
            ["bash", "-c", shown.command],
            cwd=tmp_path,
            env=documented_environment(),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        if os.environ.get("ESPER_WRITE_GOLDEN") and "...\n" not in shown.output:
            command = f"$ {shown.command}\n"
            text = text.replace(command + shown.output, command + done.stdout)
            page.write_text(text, encoding="utf-8")
        else:
            assert shows(shown.output, done.stdout), f"{page.name}, line {shown.line}: {shown.command}\n{done.stdout}"


class TestCompleteness:
    def test_every_command_is_shown_in_the_documentation(self):
        from esper_analytics.cli.app import app

        group = typer.main.get_command(app)
        written = "\n".join(page.read_text(encoding="utf-8") for page in PAGES)
        names = sorted(getattr(group, "commands", {}))
        assert len(names) >= 5
        assert [name for name in names if f"esper {name}" not in written] == []

    @pytest.mark.parametrize("table", TABLES)
    def test_every_column_of_every_table_is_listed(self, table):
        page = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "docs").glob("tables*.md"))
        sections = {part.splitlines()[0]: part for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]}
        listed = set(
            re.findall(r"^\| \**(\w+)\** \|", sections["Columns of every table"] + sections[table], flags=re.MULTILINE)
        )
        assert set(column_names(table)) <= listed

    @pytest.mark.parametrize("writer", sorted(ROOT.glob("docs/write_*.py")), ids=lambda writer: writer.stem)
    def test_the_generated_pages_are_up_to_date(self, writer):
        run_process(sys.executable, writer, "--check")


def test_the_rules_that_are_shown_pass_their_unit_tests():
    from esper_recorder.contract.rules.ruleset import RuleSet
    from esper_recorder.contract.rules.unit_tests import read_tests

    shown = re.findall(r"^```toml\n(.*?)^```$", (ROOT / "docs" / "rules.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown
    for text in shown:
        rules = RuleSet.parse(text)
        assert [problem for test in read_tests(rules) for problem in test.run(rules)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_an_existing_file_or_heading(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"<img[^>]* src=\"([^\"]+)\"", text)
    broken = []
    for link in targets:
        target = re.sub(REPOSITORY, "", link)
        if target == link and page == README and not re.match(r"[a-z]+:|#", link):
            broken.append(f"{link} (a package index shows README alone: link to the repository)")
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in headings_of(file)):
            broken.append(target)
    assert broken == []


def test_no_page_names_a_path_of_one_machine():
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(tmp|root|home|work)/", page.read_text(encoding="utf-8")), page.name
