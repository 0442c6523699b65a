"""The import boundaries of the architecture, and the limits of its files.

import-linter reads the source; here every module is imported in a fresh interpreter, which also shows what is loaded
through other libraries.
"""

from __future__ import annotations

import ast
import importlib.util
import json
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support import ROOT, project_files

TRAINER_LIBRARIES = {"torch", "stable_baselines3", "sb3_contrib", "gymnasium"}
ANALYTICS_LIBRARIES = {"duckdb", "polars", "matplotlib"}
LIBRARIES = TRAINER_LIBRARIES | ANALYTICS_LIBRARIES | {"numpy", "pyarrow", "pydantic"}
COMPILER = {"torch._dynamo", "torch._inductor", "torch.distributed.tensor", "sympy"}
"""A second of CPU time, which torch and Stable-Baselines3 spend only if something is compiled."""
# What analytics imports of the recorder; without the dot, the module and its packages alone.
FOR_ANALYTICS = ("esper_recorder.contract.", "esper_recorder.storage.", "esper_recorder.esper.field_map.")
DISTRIBUTIONS = {"esper_recorder": 20, "esper_analytics": 12}
"""Package -> how many modules and packages its top level may have."""


def modules_of(package: str) -> dict[str, Path]:
    """Every module of a package and its file, found without importing any."""
    spec = importlib.util.find_spec(package)
    assert spec is not None and spec.origin is not None
    folder = Path(spec.origin).parent
    paths = {
        ".".join((package, *path.relative_to(folder).with_suffix("").parts)): path for path in folder.rglob("*.py")
    }
    return {name.removesuffix(".__init__"): path for name, path in sorted(paths.items())}


RECORDER, ANALYTICS = map(modules_of, DISTRIBUTIONS)


def within(package: str) -> list[str]:
    """The modules of a package, and the package."""
    return [name for name in (*RECORDER, *ANALYTICS) if name == package or name.startswith(f"{package}.")]


CONTRACT, STORAGE, PLOTS = map(within, ("esper_recorder.contract", "esper_recorder.storage", "esper_analytics.plots"))

LOADED_BY_ANALYTICS = [
    *("pyarrow.parquet", "pyarrow.compute", "duckdb", "polars", "matplotlib.backends.backend_agg", "matplotlib.figure"),
    *("jinja2", "rich.console", "typer.rich_utils"),
]
# An interpreter that forks once per module: each child starts at once and has loaded only what is named to be loaded
# first, which its modules may load in any case (torch alone takes a second).
IMPORT_EACH = """
import json, os, sys, traceback
libraries, first, modules = json.loads(sys.argv[1])
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
        loaded = [m for m in sys.modules if m in libraries or m.startswith(("esper_recorder", "esper_analytics"))]
        print(json.dumps({"module": name, "loaded": loaded, "error": None}))
    except BaseException:
        print(json.dumps({"module": name, "loaded": [], "error": traceback.format_exc()}))
    sys.stdout.flush()
    os._exit(0)
"""


@pytest.fixture(scope="module")
def loaded(run_python: Callable[..., str]) -> Callable[[str], set[str]]:
    """Return what importing a module loads: our modules, and those of `LIBRARIES`."""
    no_library = ["esper_recorder", *CONTRACT, *within("esper_recorder.esper")]
    groups: tuple[tuple[list[str], list[str]], ...] = (
        ([], no_library),
        (["pyarrow.parquet", "pyarrow.compute"], STORAGE),
        (["pyarrow.parquet", "torch"], [name for name in RECORDER if name not in {*no_library, *STORAGE}]),
        (LOADED_BY_ANALYTICS, [*ANALYTICS]),
    )
    imports: dict[str, Any] = {}
    for first, modules in groups:
        lines = run_python(IMPORT_EACH, json.dumps([[*LIBRARIES, *COMPILER], first, modules]), timeout=240)
        imports |= {line["module"]: line for line in map(json.loads, lines.splitlines())}

    def of(module: str) -> set[str]:
        assert module in imports, f"importing {module} ended the interpreter"
        assert imports[module]["error"] is None, imports[module]["error"]
        return set(imports[module]["loaded"])

    return of


class TestBoundaries:
    def test_the_modules_of_both_distributions_are_found(self):
        assert {"esper_recorder", "esper_recorder.storage.parquet", "esper_recorder.contract.tables"} <= set(RECORDER)
        assert {"esper_analytics", "esper_analytics.detection.replay"} <= set(ANALYTICS)

    @pytest.mark.parametrize("module", ["esper_recorder", *CONTRACT])
    def test_the_contract_loads_no_library_and_nothing_else_of_ours(self, module, loaded):
        assert loaded(module) - {"esper_recorder", *CONTRACT} == set()

    @pytest.mark.parametrize("module", STORAGE)
    def test_storage_loads_only_pyarrow_and_the_contract(self, module, loaded):
        assert loaded(module) - {"esper_recorder", *CONTRACT, *STORAGE} <= {"pyarrow", "numpy"}  # pyarrow loads numpy

    @pytest.mark.parametrize("module", RECORDER)
    def test_the_recorder_never_loads_analytics_or_its_libraries(self, module, loaded):
        assert loaded(module) & {*ANALYTICS_LIBRARIES, *ANALYTICS} == set()

    @pytest.mark.parametrize("module", RECORDER)
    def test_the_recorder_loads_no_compiler_at_import(self, module, loaded):
        assert loaded(module) & COMPILER == set()

    @pytest.mark.parametrize("module", ANALYTICS)
    def test_analytics_never_loads_a_trainers_library(self, module, loaded):
        assert loaded(module) & TRAINER_LIBRARIES == set()

    @pytest.mark.parametrize("module", ANALYTICS)
    def test_analytics_loads_of_the_recorder_only_the_contract_storage_and_esper_field_map(self, module, loaded):
        recorder = loaded(module) & set(RECORDER)
        assert [name for name in sorted(recorder) if not any(f"{name}.".startswith(p) for p in FOR_ANALYTICS)] == [
            package for package in ("esper_recorder", "esper_recorder.esper") if package in recorder
        ]

    @pytest.mark.parametrize("module", PLOTS)
    def test_plots_never_open_runs(self, module, loaded):
        opening = {"esper_analytics.runs", *within("esper_analytics.sql"), *within("esper_analytics.catalog")}
        assert loaded(module) & opening == set()

    def test_the_package_esper_loads_nothing_until_a_name_is_used(self, loaded):
        assert loaded("esper_recorder.esper") <= {"esper_recorder", "esper_recorder.esper", *CONTRACT}
        assert loaded("esper_recorder.esper.hub") & {"torch", "pydantic"} == set()
        assert loaded("esper_recorder.esper.config") & {"torch", "pyarrow"} == set()

    def test_esper_help_loads_no_library(self, run_python):
        *text, libraries = run_python(f"""
import json, sys
sys.argv = ["esper", "--help"]
from esper_analytics.cli.app import main
try:
    main()
except SystemExit as stop:
    assert stop.code in (0, None), stop.code
print()
print(json.dumps([name for name in {LIBRARIES!r} if name in sys.modules]))
""").splitlines()
        assert "Usage" in "\n".join(text)
        assert json.loads(libraries) == []


class TestFiles:
    @pytest.mark.parametrize("package", DISTRIBUTIONS)
    def test_no_two_modules_of_a_distribution_share_a_file_name(self, package):
        names = defaultdict(list)
        for module, path in modules_of(package).items():
            names[path.name].append(module)
        assert {name: modules for name, modules in names.items() if len(modules) > 1 and name != "__init__.py"} == {}

    @pytest.mark.parametrize(("package", "most"), DISTRIBUTIONS.items())
    def test_the_top_level_of_a_package_stays_small(self, package, most):
        names = {module.split(".")[1] for module in modules_of(package) if module != package} | {"__init__"}
        assert len(names) <= most, sorted(names)

    def test_no_file_has_more_than_650_lines_and_no_class_more_than_350(self):
        long = []
        for path in project_files("*.py"):
            text = path.read_text(encoding="utf-8")
            lengths = {str(path.relative_to(ROOT)): (len(text.splitlines()), 650)}
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.ClassDef):
                    lengths[f"{path.relative_to(ROOT)}: {node.name}"] = ((node.end_lineno or 0) - node.lineno + 1, 350)
            long += [f"{name}: {lines} lines" for name, (lines, most) in lengths.items() if lines > most]
        assert long == []
