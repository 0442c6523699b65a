"""Text of a stranger's run reaches a terminal or a page as nothing but text, whatever field it stands in.

Covers: every command over a run whose every text, in the manifest and in each table, has control characters,
bidirectional overrides, line breaks and markup; the bytes of stdout and stderr, and the files that are written.

Does not cover: the colours that rich draws on a terminal.
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from pathlib import Path
from typing import Any

import pytest

import esper_analytics as ea
from esper_recorder.contract.tables import TABLES, columns
from tests.analytics.cli.test_output import on_a_terminal
from tests.builders import write_run
from tests.support import ESPER, esper, run_process

CONTROL = "\x1b]0;pwned\x07\x1b[2J\x7f\x9b31m\x85\u202e\u2066\u200b\u061c\u2028\ufeff\U000e0041\r\nesper: all is well\n"
MARKUP = (
    "<script>alert(1)</script> ![i](http://evil/i) [l](javascript:x) <http://evil> `c` a|b $\\frac{ $\n# heading\n---\n"
)
HOSTILE = f"x{CONTROL}{MARKUP}"

RULES = """
[rules.kl]
severity = "critical"
column = "approx_kl"
above = 0.01
evidence = "a \u202e b \u009b2J <script>alert(1)</script>"

[rules.layers]
severity = "warning"
table = "gradient_layers"
column = "grad_norm"
key = "layer"
take = "max"
above = 0.01

[rules.heads]
severity = "warning"
table = "heads"
column = "ratio_max"
key = "head"
above = 1.0
"""


def hostile_row(table: str) -> dict[str, Any]:
    """A row in which every text is hostile and every number is 1."""
    values = {"string": HOSTILE, "list<string>": [HOSTILE], "int64": 1, "float64": 1.0, "bool": True}
    values |= {"list<int64>": [1], "list<float64>": [1.0]}
    identity = ("run_id", "attempt", "rank", "update", "time", "elapsed_s")
    return {c.name: values[c.type] for c in columns(table) if c.name not in identity and c.type in values}


@pytest.fixture(scope="module")
def root(tmp_path_factory) -> Path:
    root: Path = tmp_path_factory.mktemp("hostile") / "runs"
    rows = {table: [hostile_row(table)] for table in TABLES}
    rows["ppo_updates"] = [rows["ppo_updates"][0] | {"update": update, "progress": update / 3} for update in (1, 2, 3)]
    attempt = {"attempt": 1, "rank": 0, "pid": 1, "host": HOSTILE, "how": "raised", "error": HOSTILE, "updates": 3}
    attempt |= {"started": "2026-01-01T00:00:00+00:00", "lost": {"rows": 1, "message": HOSTILE}}
    manifest = {
        "run_id": "hostile",
        "trainer": {"name": HOSTILE, HOSTILE: HOSTILE},
        "config": {HOSTILE: HOSTILE, "list": [HOSTILE], "nested": {HOSTILE: {HOSTILE: HOSTILE}}},
        "versions": {"esper_recorder": HOSTILE, HOSTILE: HOSTILE},
        **dict.fromkeys(("definition", "host", "platform", "level"), HOSTILE),
        "rules": {"profile": HOSTILE, "sha256": "0" * 64},
        "attempts": [attempt],
        "source": {"file": HOSTILE, HOSTILE: HOSTILE},
    }
    path = write_run(root, HOSTILE, tables=rows, manifest=manifest, folder="hostile", total_updates=3)
    (path / "rules").mkdir()
    (path / "rules" / f"{'0' * 64}.toml").write_text(RULES, encoding="utf-8")
    (path / "ppo_updates" / "part-a1-r0-000009.parquet").write_bytes(b"damaged")
    damaged = root / f"folder {CONTROL}"
    damaged.mkdir()
    (damaged / "run.json").write_text("{")
    return root


def assert_harmless(text: str, keep: str = "\n") -> None:
    """Check that a text has none of the characters a terminal acts on or hides, and no line that a run forged."""
    bad = {c: unicodedata.name(c, hex(ord(c))) for c in text if not c.isprintable() and c not in keep}
    assert not bad, (bad, text[:2000])
    assert not re.search(r"^(esper: all is well|# heading)", text, flags=re.MULTILINE), text[:2000]


COMMANDS = [
    ("runs",),
    ("show",),
    ("sql", f'SELECT run_id, definition AS "{CONTROL}" FROM ppo_updates'),
    ("sql", "SELECT {'a': definition} AS struct, [definition] AS list, definition::BLOB AS blob FROM ppo_updates"),
    ("sql", f"SELECT '{CONTROL}"),
    ("sql", f"SELECT {CONTROL}"),
    ("sql", f'SELECT "{CONTROL}" FROM ppo_updates'),
    ("sql", f"SELECT * FROM read_csv('/{CONTROL}')"),
    ("sql", "SELECT definition::INTEGER FROM ppo_updates"),
    ("sql", "SELECT error(definition) FROM ppo_updates"),
    ("query", "ratio_exceeded"),
    ("query", CONTROL),
    ("query", "ratio_exceeded", "-p", f"above={CONTROL}"),
    ("query", "ratio_exceeded", "-p", CONTROL),
    ("replay",),
    ("replay", "--rules", "default"),
    ("replay", "--show", "firings"),
    ("replay", "--show", "coverage"),
    ("replay", "--against", "default"),
    ("replay", "--against", "live"),
    ("replay", "--rules", CONTROL),
    ("replay", "--set", f"{CONTROL}={CONTROL}"),
    ("replay", "--fail-on", CONTROL),
    ("sweep", "--rule", "kl", "--values", "0.5,1"),
    ("sweep", "--rule", CONTROL, "--values", CONTROL),
    ("forensics",),
    ("verify",),
    ("verify", "--strict"),
    ("runs", "--run", CONTROL),
    ("show", "--run", CONTROL),
    ("plot", "-o", f"/nowhere/{CONTROL}.png"),
    ("report", "-o", f"/nowhere/{CONTROL}.html"),
    ("report", "-o", f"/nowhere/{CONTROL}"),
]


OTHER_FORMS = ("markdown", "json")


def of_command(words: tuple[str, ...]) -> str:
    return " ".join(words).encode("unicode_escape").decode()[:60]


@pytest.mark.parametrize("words", COMMANDS, ids=of_command)
@pytest.mark.parametrize(
    "form", ["table", *(pytest.param(form, marks=pytest.mark.slow) for form in ("markdown", "json"))]
)
def test_what_a_command_prints_is_harmless(root, words, form):
    command, *rest = words
    formats = [] if command in ("plot", "report") else ["--format", form]
    result = esper(command, root, *rest, *formats, code=None)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert_harmless(result.stdout)
    assert_harmless(result.stderr)


TYPED = [(CONTROL,), ("rules", CONTROL), ("runs", "a", CONTROL), ("runs", f"--{CONTROL}"), ("sql", "--format", CONTROL)]


@pytest.mark.parametrize("words", TYPED, ids=of_command)
def test_an_argument_is_repeated_harmlessly(words):
    assert_harmless(esper(*words, code=2).stderr)


@pytest.mark.parametrize("command", ["recover", "compact"])
def test_what_maintenance_prints_is_harmless(root, tmp_path, command):
    import shutil

    shutil.copytree(root, tmp_path / "runs")
    (tmp_path / "runs" / "hostile" / "journal").mkdir()
    (tmp_path / "runs" / "hostile" / "journal" / "a1-r0-000001.journal").write_bytes(b"damaged")
    result = esper(command, tmp_path / "runs", code=None)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert_harmless(result.stdout + result.stderr)


def test_what_an_import_prints_is_harmless(tmp_path):
    source = tmp_path / f"log {CONTROL}"
    source.mkdir()
    (source / "progress.csv").write_text(f"time/iterations,train/approx_kl,{CONTROL!r}\n1,0.5,x\n2,\x1b[2J,y\n")
    (source / "events.jsonl").write_text('{"event_type": "\\u001b[2J\\u202e"}\nnot json \x1b[2J\n')
    for kind in ("sb3-csv", "esper-jsonl", "tensorboard"):
        result = esper("import", kind, source, "--to", tmp_path / "runs", code=None)
        assert result.exception is None or isinstance(result.exception, SystemExit)
        assert_harmless(result.stdout + result.stderr)


def test_rules_are_printed_exactly_to_a_program_and_harmlessly_to_a_terminal(root, tmp_path):
    file = tmp_path / "rules.toml"
    file.write_text(RULES, encoding="utf-8")
    assert run_process(ESPER, "rules", "show", file).stdout == RULES
    code = (
        f"import sys\nsys.argv[1:] = ['rules', 'show', {str(file)!r}]\nfrom esper_analytics.cli.app import main\nmain()"
    )
    assert_harmless(on_a_terminal("", 160, code.replace("{", "{{").replace("}", "}}")))
    result = esper("rules", "check", tmp_path / f"{CONTROL}.toml", code=2)
    assert_harmless(result.stderr)


@pytest.mark.parametrize("form", ["table", "csv", "json", "ndjson", "markdown"])
def test_a_terminal_receives_no_character_that_it_acts_on(form):
    code = (
        "import polars as pl, os; os.environ['NO_COLOR'] = '1'\n"
        "from esper_analytics.cli import output\n"
        f"output.show(pl.DataFrame({{{{{CONTROL!r}: [{CONTROL!r}], 'b': [[{CONTROL!r}]]}}}}), output.FORMATS['{form}'])"
    )
    assert_harmless(on_a_terminal("", 200, code))


@pytest.mark.parametrize("form", ["csv", "json", "ndjson", "parquet"])
def test_formats_for_programs_keep_every_value(root, tmp_path, form):
    import polars as pl

    file = tmp_path / f"x.{form}"
    esper(
        "sql",
        root,
        "SELECT definition AS text, [definition] AS list FROM ppo_updates LIMIT 1",
        "--format",
        form,
        "-o",
        file,
    )
    if form == "csv":
        rows = [*csv.DictReader(io.StringIO(file.read_bytes().decode(), newline=""))]
        rows = [{"text": row["text"], "list": json.loads(row["list"])} for row in rows]
    elif form == "parquet":
        rows = pl.read_parquet(file).to_dicts()
    else:
        text = file.read_text(encoding="utf-8")
        assert_harmless(text)
        rows = json.loads(text) if form == "json" else [json.loads(line) for line in text.splitlines()]
    assert rows == [{"text": HOSTILE, "list": [HOSTILE]}]


@pytest.mark.parametrize("suffix", ["md", "html", "json"])
def test_a_report_is_harmless(root, tmp_path, suffix):
    file = tmp_path / f"report.{suffix}"
    result = esper("report", root, "--rules", "default", "-o", file)
    assert_harmless(result.stderr)
    text = file.read_text(encoding="utf-8")
    assert_harmless(text.replace("\n", " ") if suffix == "html" else text)  # HTML has no lines
    if suffix == "md":
        assert_no_markup(text)
    if suffix == "html":
        assert "<script" not in text and "<img" not in text and "<http" not in text


def test_a_forensic_page_is_harmless(root, tmp_path):
    esper("forensics", root, "--format", "markdown", "-o", tmp_path / "x.md")
    text = (tmp_path / "x.md").read_text(encoding="utf-8")
    assert_harmless(text)
    assert_no_markup(text)


def assert_no_markup(text: str) -> None:
    assert "alert(1)" in text
    text = re.sub(r"^ {4}.*", "", text, flags=re.MULTILINE)  # code, in which nothing is markup
    for pattern in (r"<(?:script|http)", r"(?<!\\)!\[i(?<!\\)\]", r"(?<!\\)\[l(?<!\\)\]", r"(?<!\\)`c"):
        assert not re.search(pattern, text), pattern


@pytest.mark.parametrize("kind", [*__import__("esper_analytics.plots.registry", fromlist=["PLOTS"]).PLOTS])
def test_a_figure_is_harmless(root, tmp_path, kind):
    file = tmp_path / "x.svg"
    result = esper("plot", root, "--kind", kind, "-o", file, code=None)
    assert result.exception is None or isinstance(result.exception, SystemExit)
    assert_harmless(result.stderr)
    if result.exit_code == 0:
        import xml.etree.ElementTree as ET

        assert_harmless("".join(ET.parse(file).getroot().itertext()))


def test_the_python_side_keeps_every_value(root):
    assert ea.open(root).table("ppo_updates").collect()["definition"].to_list() == [HOSTILE] * 3
