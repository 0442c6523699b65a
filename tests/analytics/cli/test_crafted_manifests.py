"""A run.json of a stranger costs its own run: every command reads the others, and says what it left out."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from pathlib import Path

import pytest

from esper_recorder.storage.manifest import ManifestError, read_manifest
from tests.builders import add_part, complete_rows, run_id_of, write_run
from tests.crafted_manifests import crafted, whole_files
from tests.support import ESPER, esper, run_process


@dataclass(frozen=True)
class Strangers:
    """A sound run beside crafted ones."""

    root: Path
    read: int
    """How many run.json are allowed; each of these runs has one row."""
    refused: list[str]
    """Names of the folders whose run.json is not."""


@pytest.fixture(scope="module", params=[35, pytest.param(3, marks=pytest.mark.slow)])
def strangers(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Strangers:
    """Runs with every value of every field that is allowed, every third or every 35th, and some that is not."""
    root = tmp_path_factory.mktemp("runs")
    write_run(root, "sound", updates=[{"ratio_max": 5.5}], minibatches=[{}], total_updates=1)
    refused = []
    for number, (_, content) in enumerate(whole_files()):
        (root / f"whole-{number}").mkdir()
        (root / f"whole-{number}" / "run.json").write_bytes(content)
        refused.append(f"whole-{number}")
    read = 0
    for name, text in itertools.islice(crafted(), 0, None, request.param):
        folder = root / name
        folder.mkdir()
        (folder / "run.json").write_text(text)
        try:
            run_id = read_manifest(folder).run_id
        except ManifestError:
            refused.append(name)
            continue
        if run_id == "crafted":  # each needs its own
            run_id = f"run-{name}"
            (folder / "run.json").write_text(text.replace('"run_id": "crafted"', f'"run_id": "{run_id}"'))
        add_part(folder, "ppo_updates", complete_rows("ppo_updates", [{"ratio_max": 1.5}], run_id=run_id))
        read += 1
    return Strangers(root, read, refused)


@pytest.mark.parametrize(
    "command",
    [
        ("runs", "--format", "json"),
        ("runs",),
        ("show", "--run", "sound"),
        ("sql", "SELECT * FROM runs"),
        ("sql", "SELECT config->>'$.a', versions->>'$.torch' FROM runs"),
        ("query", "ratio_exceeded"),
        ("replay", "--rules", "default"),
        ("sweep", "--rule", "ratio_explosion", "--field", "above", "--values", "1:3:1"),
        ("forensics", "--run", "sound", "--update", "1"),
        ("plot", "--run", "sound", "-o", "plot.png"),
        ("report", "--rules", "default", "-o", "report.json"),
        ("verify",),
        ("recover",),
        ("compact",),
    ],
    ids=" ".join,
)
def test_every_command_reads_all_other_runs_and_names_each_that_it_left_out(
    strangers: Strangers, command: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    if command[0] == "report" and strangers.read > 100:
        command += ("--run", "sound")  # each run takes some tenths of a second
    result = esper(command[0], strangers.root, *command[1:])
    assert "Traceback" not in result.output
    for name in strangers.refused if command[0] in ("runs", "sql", "replay", "verify", "recover", "compact") else ():
        assert str(Path(name) / "run.json") in result.stderr.replace("\n", ""), name


def test_the_rows_of_every_run_that_can_be_read_are_counted(strangers: Strangers) -> None:
    question = "SELECT count(*) AS n, count(DISTINCT run_id) AS runs, max(ratio_max) AS worst FROM ppo_updates"
    result = esper("sql", strangers.root, question, "--format", "csv")
    assert result.stdout.split() == ["n,runs,worst", f"{strangers.read + 1},{strangers.read + 1},5.5"]


def test_the_installed_command_names_each_run_that_it_left_out(tmp_path: Path) -> None:
    write_run(tmp_path, "sound", updates=[{}])
    for number, (_, content) in enumerate(whole_files()):
        (tmp_path / f"whole-{number}").mkdir()
        (tmp_path / f"whole-{number}" / "run.json").write_bytes(content)
    done = run_process(ESPER, "runs", tmp_path)
    assert run_id_of("sound") in done.stdout and "Traceback" not in done.stderr
    assert all(f"whole-{number}/run.json" in done.stderr for number in range(number + 1))
    (tmp_path / "progress.csv").write_text("time/total_timesteps,train/approx_kl,train/loss\n64,0.1,0.2\n")
    assert (
        "imported from" in run_process(ESPER, "import", "sb3-csv", tmp_path / "progress.csv", "--to", tmp_path).stderr
    )
