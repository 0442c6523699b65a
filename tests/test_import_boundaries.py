"""The walls between the rooms, proven: each module is imported in an interpreter of its own.

import-linter reads the source; this looks at what was loaded in the end, through other libraries too.
"""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

HEAVY = (
    *("torch", "stable_baselines3", "sb3_contrib", "gymnasium", "numpy", "pyarrow", "pydantic"),
    *("duckdb", "polars", "matplotlib"),
)
TRAINERS = {"torch", "stable_baselines3", "sb3_contrib", "gymnasium"}
DESK = {"duckdb", "polars", "matplotlib"}
# What of the recorder works only inside a trainer.
IN_THE_TRAINER = {
    f"esper_recorder.{name}"
    for name in ("recorder", "arguments", "capture", "reductions", "watcher", "sb3", "esper.emitters", "instruments")
}


def modules_of(package: str) -> list[str]:
    """Every module of a package by its file, so that finding them imports nothing."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    names = [".".join((package, *path.relative_to(folder).with_suffix("").parts)) for path in folder.rglob("*.py")]
    return sorted(name.removesuffix(".__init__") for name in names)


WITHOUT_TORCH = ("esper_recorder.contract", "esper_recorder.esper")
RECORDER = modules_of("esper_recorder")
CONTRACT = [name for name in RECORDER if name.startswith("esper_recorder.contract")]
ANALYTICS = modules_of("esper_analytics")

# One interpreter forks once per module: each child is as fresh as it is, and starts at once. What its modules may load
# in any case it has loaded before, as torch alone takes a second each time.
IMPORT_EACH = """
import json, os, sys, traceback
heavy, first, modules = json.loads(sys.argv[1])
for name in first:
    __import__(name)
for name in modules:
    sys.stdout.flush()
    pid = os.fork()
    if pid:
        os.waitpid(pid, 0)
        continue
    try:
        __import__(name)
        loaded = [m for m in sys.modules if m in heavy or m.startswith(("esper_recorder", "esper_analytics"))]
        print(json.dumps({"module": name, "loaded": loaded, "error": None}))
    except BaseException:
        print(json.dumps({"module": name, "loaded": [], "error": traceback.format_exc()}))
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.fixture(scope="module")
def loaded(run_python: Callable[..., str]) -> Callable[[str], set[str]]:
    """The heavy libraries, and the modules of ours, that are there once a module is imported."""
    bare = [name for name in RECORDER if name == "esper_recorder" or name.startswith(WITHOUT_TORCH)]
    groups: tuple[tuple[list[str], list[str]], ...] = (
        ([], bare),
        (["pyarrow", "torch"], [name for name in RECORDER if name not in bare]),
        (["pyarrow", "duckdb", "matplotlib"], ANALYTICS),
    )
    found: dict[str, Any] = {}
    for first, modules in groups:
        answers = run_python(IMPORT_EACH, json.dumps([HEAVY, first, modules]), timeout=240)
        found |= {answer["module"]: answer for answer in map(json.loads, answers.splitlines())}

    def of(module: str) -> set[str]:
        assert module in found, f"importing {module} ended the interpreter"
        assert found[module]["error"] is None, found[module]["error"]
        return set(found[module]["loaded"])

    return of


def test_the_modules_of_both_packages_are_found():
    assert {"esper_recorder", "esper_recorder.storage.parquet", "esper_recorder.contract.tables"} <= set(RECORDER)
    assert {"esper_analytics", "esper_analytics.detection.replay"} <= set(ANALYTICS)


@pytest.mark.parametrize("module", ["esper_recorder", *CONTRACT])
def test_the_contract_loads_no_library_at_all(module, loaded):
    assert loaded(module) - {"esper_recorder", *CONTRACT} == set()


def test_what_only_esper_has_loads_nothing_until_it_is_used(loaded):
    bare = {"esper_recorder", "esper_recorder.esper", "esper_recorder.contract", "esper_recorder.contract.lazy"}
    assert loaded("esper_recorder.esper") <= bare
    assert loaded("esper_recorder.esper.hub") & {"torch", "pydantic"} == set()
    assert loaded("esper_recorder.esper.config") & {"torch", "pyarrow"} == set()


@pytest.mark.parametrize("module", RECORDER)
def test_the_recorder_never_loads_what_the_desk_needs(module, loaded):
    there = loaded(module)
    assert there & DESK == set()
    assert there & set(ANALYTICS) == set()


@pytest.mark.parametrize("module", ANALYTICS)
def test_the_desk_never_loads_a_trainer(module, loaded):
    assert loaded(module) & (TRAINERS | IN_THE_TRAINER) == set()


def test_esper_help_answers_without_loading_any_of_them(run_python):
    answer = run_python(f"""
import json, sys
sys.argv = ["esper", "--help"]
from esper_analytics.cli.app import main
try:
    main()
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
print()
print(json.dumps([h for h in {HEAVY!r} if h in sys.modules]))
""")
    *text, libraries = answer.splitlines()
    assert "Usage" in "\n".join(text)
    assert json.loads(libraries) == []
