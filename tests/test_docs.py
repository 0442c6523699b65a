"""The documentation does what it says: its code runs as written, its lists are complete, its links lead somewhere.

README's fenced blocks of `bash` and `python` are run in their order, each in a process of its own, in one folder that
holds what `make demo` leaves: `demo/`. Blocks that call `make` are not run, nor are blocks of any other kind (output is
`text`, what needs a machine of its own is `console`).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from esper_recorder.contract.tables import TABLES, column_names
from tests.support import ROOT

README = ROOT / "README.md"
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md", "recorder/README.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]


@dataclass(frozen=True)
class Block:
    language: str
    line: int
    code: str


def blocks_of(text: str) -> list[Block]:
    """The fenced blocks that are to be run."""
    found = []
    for match in re.finditer(r"^```(bash|python)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL):
        if not re.search(r"^make\b", match[2], flags=re.MULTILINE):
            found.append(Block(match[1], text.count("\n", 0, match.start()) + 1, match[2]))
    return found


def headings_of(page: Path) -> set[str]:
    """The anchors of a page's headings, as they are made for Markdown: lower case, no punctuation, hyphens."""
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    titles = re.findall(r"^#+ +(.*)$", text, flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_blocks_are_found_with_their_line_and_those_that_call_make_are_not():
    text = "intro\n```bash\nmake demo\n```\n```bash\nesper runs demo/runs\n```\n```text\nout\n```\n```python\nx\n```\n"
    assert blocks_of(text) == [Block("bash", 5, "esper runs demo/runs\n"), Block("python", 11, "x\n")]


class TestReadme:
    def test_it_shows_recording_sql_replay_and_plotting_in_code(self):
        blocks = blocks_of(README.read_text(encoding="utf-8"))
        everything = "\n".join(block.code for block in blocks)
        assert len(blocks) >= 4, f"README.md has {len(blocks)} blocks that can be run; the four jobs need one each"
        for word in ("esper_recorder", "esper sql", "esper replay", "esper report"):
            assert word in everything, f"no block of README.md shows {word}"

    @pytest.mark.timeout(900)
    def test_its_blocks_run_as_written_and_in_their_order(self, demo_folder, tmp_path):
        blocks = blocks_of(README.read_text(encoding="utf-8"))
        assert blocks, "README.md has no block that can be run"
        shutil.copytree(demo_folder, tmp_path / "demo")
        (tmp_path / ".venv").symlink_to(sys.prefix)
        for name in ("examples", "queries"):
            if (ROOT / name).is_dir():
                (tmp_path / name).symlink_to(ROOT / name)
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"}
        for block in blocks:
            script = tmp_path / f".readme_line_{block.line}"
            script.write_text(block.code, encoding="utf-8")
            runner = ["bash", "-euo", "pipefail"] if block.language == "bash" else [sys.executable]
            done = subprocess.run(
                [*runner, script.name],
                cwd=tmp_path,
                env=environment,
                stdin=subprocess.DEVNULL,
                capture_output=True,
                text=True,
                check=False,
            )
            told = f"{block.code}\n{done.stdout}\n{done.stderr}"
            assert done.returncode == 0, f"README.md, line {block.line}, ended with {done.returncode}:\n{told}"


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
        page = (ROOT / "docs" / "tables.md").read_text(encoding="utf-8")
        sections = {part.splitlines()[0]: part for part in re.split(r"^## ", page, flags=re.MULTILINE)[1:]}
        listed = set(re.findall(r"^\| \**(\w+)\** \|", sections["every table"] + sections[table], flags=re.MULTILINE))
        assert set(column_names(table)) <= listed

    @pytest.mark.parametrize("writer", ["write_tables.py", "write_rules.py", "write_queries.py"])
    def test_the_generated_pages_are_up_to_date(self, writer):
        done = subprocess.run(
            [sys.executable, ROOT / "docs" / writer, "--check"], capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, done.stderr


def test_the_rules_that_are_shown_pass_their_own_test():
    from esper_recorder.contract.rules.ruleset import RuleSet
    from esper_recorder.contract.rules.unit_tests import read_tests

    shown = re.findall(r"^```toml\n(.*?)^```$", (ROOT / "docs" / "rules.md").read_text(), re.MULTILINE | re.DOTALL)
    assert shown
    for text in shown:
        rules = RuleSet.parse(text)
        assert [problem for test in read_tests(rules) for problem in test.run(rules)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_to_a_file_or_a_heading_that_is_there(page):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"<img[^>]* src=\"([^\"]+)\"", text)
    broken = []
    for target in targets:
        if re.match(r"[a-z]+:", target):
            continue
        name, _, anchor = target.partition("#")
        file = (page.parent / name) if name else page
        if not file.exists() or (anchor and file.suffix == ".md" and anchor not in headings_of(file)):
            broken.append(target)
    assert broken == []


def test_no_page_speaks_of_a_path_of_one_machine():
    for page in PAGES:
        assert not re.search(r"(?<![\w.])/(tmp|root|home|work)/", page.read_text(encoding="utf-8")), page.name
