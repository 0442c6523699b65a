"""The two wheels: what they contain, and that they work in environments with only what they declare to need.

No network: the environments borrow the dependencies of this one, each with everything it requires and nothing else.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
import venv
import zipfile
from collections.abc import Iterable
from email.parser import Parser
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import esper_analytics
import esper_recorder
from tests.support import DATA, ROOT, project_files, run_process

FIXTURE = DATA / "schema_2" / "runs"
FOLDERS = {"esper-recorder": "recorder", "esper-analytics": "."}


def required(distribution: str) -> set[str]:
    """The distributions that one requires without extras, and that these require in turn."""
    names: set[str] = set()
    waiting = [distribution]
    while waiting:
        for line in importlib.metadata.requires(waiting.pop()) or ():
            requirement = Requirement(line)
            if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
                if requirement.name not in names:
                    waiting.append(requirement.name)
                names.add(requirement.name)
    return names


def environment(folder: Path, dependencies: Iterable[str], wheels: Iterable[Path]) -> Path:
    """Make an environment of these wheels and links to these dependencies; return its folder of programs."""
    venv.create(folder, with_pip=False)
    programs = folder / "bin"
    [site] = folder.glob("lib/python*/site-packages")
    for name in dependencies:
        for file in importlib.metadata.files(name) or ():
            top = file.parts[0]
            if top not in ("..", "__pycache__") and not (site / top).exists():
                (site / top).symlink_to(Path(str(importlib.metadata.distribution(name).locate_file(top))))
    pip = (sys.executable, "-m", "pip", "--python", programs / "python")
    run_process(*pip, "install", "--no-index", "--no-deps", *wheels)
    return programs


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Both wheels by the name of their distribution, built from a copy of the checkout."""
    source, target = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheels")
    parts = ("esper_analytics", "recorder", "queries", "reports", "pyproject.toml", "README.md", "LICENSE")
    for path in project_files(*parts):
        copy = source / path.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copy)
    built = {}
    for name, folder in FOLDERS.items():
        pip = (sys.executable, "-m", "pip", "wheel", "-v", "--no-build-isolation", "--no-deps", "--no-index")
        # The tests disable compiling to bytecode, and setuptools warns about that.
        environment = os.environ | {"PYTHONDONTWRITEBYTECODE": ""}
        done = run_process(*pip, "-w", target, source / folder, env=environment)
        output = done.stdout + done.stderr
        assert [line for line in output.splitlines() if "warning" in line.lower()] == []
        [built[name]] = target.glob(f"{name.replace('-', '_')}-*.whl")
    return built


def test_the_version_is_that_of_the_installed_distribution():
    assert esper_analytics.__version__ == importlib.metadata.version("esper-analytics")
    assert esper_recorder.__version__ == importlib.metadata.version("esper-recorder")


def test_both_distributions_have_the_same_license():
    assert (ROOT / "recorder" / "LICENSE").read_bytes() == (ROOT / "LICENSE").read_bytes()


@pytest.mark.slow
class TestWheels:
    def test_they_contain_every_file_of_their_packages(self, wheels):
        contents = {name: {*zipfile.ZipFile(wheel).namelist()} for name, wheel in wheels.items()}
        recorder = {path.relative_to(ROOT / "recorder") for path in project_files("recorder/esper_recorder")}
        analytics = {path.relative_to(ROOT) for path in project_files("esper_analytics")}
        analytics |= {"esper_analytics" / path.relative_to(ROOT) for path in project_files("queries", "reports")}
        for name, files in (("esper-recorder", recorder), ("esper-analytics", analytics)):
            assert {file for file in contents[name] if ".dist-info/" not in file} == {*map(str, files)}

    def test_their_metadata_is_complete(self, wheels):
        for wheel in wheels.values():
            archive = zipfile.ZipFile(wheel)
            [path] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
            metadata = Parser().parsestr(archive.read(path).decode())
            for field in ("Author", "Keywords", "Classifier", "Project-URL", "Summary", "License-Expression"):
                assert metadata[field], f"{wheel.name}: no {field}"
            assert path.replace("METADATA", "licenses/LICENSE") in archive.namelist()

    def test_the_recorder_works_with_pyarrow_alone(self, wheels, tmp_path):
        programs = environment(tmp_path / "env", required("esper-recorder"), [wheels["esper-recorder"]])
        code = """
import importlib.util, sys
assert not [name for name in ("torch", "numpy", "duckdb", "polars") if importlib.util.find_spec(name)]
import esper_recorder
from esper_recorder import MemorySink, ParquetSink, Sink
from esper_recorder.contract.rules.ruleset import load_profile, profiles
from esper_recorder.contract.tables import TABLES
from esper_recorder.storage.manifest import read_manifest
assert [load_profile(name).rules for name in profiles()] and "ppo_updates" in TABLES
print(esper_recorder.__version__, read_manifest(__import__("pathlib").Path(sys.argv[1])).name)
"""
        [run] = FIXTURE.glob("finished-*")
        done = run_process(programs / "python", "-c", code, run, cwd=tmp_path)
        assert done.stdout.split() == [esper_recorder.__version__, "finished"]

    def test_analytics_reads_a_recorded_run_without_torch(self, wheels, tmp_path):
        dependencies = required("esper-analytics") - {"esper-recorder"}
        programs = environment(tmp_path / "env", dependencies, wheels.values())
        shutil.copytree(FIXTURE, tmp_path / "runs")

        def run(program: str, *words: str) -> str:
            return run_process(programs / program, *words, cwd=tmp_path).stdout

        find = "import importlib.util as u; print(u.find_spec('torch'), u.find_spec('esper_analytics').origin)"
        torch, origin = run("python", "-c", find).split()
        assert torch == "None" and Path(origin).is_relative_to(tmp_path / "env")

        listed = json.loads(run("esper", "runs", "runs", "--format", "json"))
        assert {row["run_id"].split("-")[0] for row in listed} == {"finished", "killed"}
        query = "SELECT count(*) AS n FROM ppo_updates"
        assert run("esper", "sql", "runs", query, "--format", "csv").splitlines()[0] == "n"
        assert json.loads(
            run("esper", "replay", "runs", "--rules", "default", "--show", "coverage", "--format", "json")
        )
        run("esper", "report", "runs", "--rules", "default", "-o", "report.html")
        assert "</html>" in (tmp_path / "report.html").read_text(encoding="utf-8")
        assert run("esper", "query", "runs", "ratio_exceeded", "-p", "above=0.5", "--format", "csv").startswith(
            "run_id,"
        )
