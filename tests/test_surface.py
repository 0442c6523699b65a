"""The public names of both packages: each exported once, loaded on first use, no two classes of one name."""

from __future__ import annotations

import ast
import importlib
import inspect
import pkgutil
import typing
from collections import defaultdict
from pathlib import Path
from types import ModuleType

import pytest

import esper_analytics
import esper_recorder
from esper_recorder import esper, instruments
from tests.support import ROOT

SURFACES = [esper_recorder, instruments, esper, esper_analytics]


def test_every_public_name_is_exported_once():
    homes: dict[str, list[str]] = defaultdict(list)
    for surface in SURFACES:
        for name in surface.__all__:
            homes[name].append(surface.__name__)
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


@pytest.mark.parametrize("surface", SURFACES, ids=lambda one: one.__name__)
def test_the_public_names_are_sorted_exist_and_are_listed_by_dir(surface: ModuleType):
    assert list(surface.__all__) == sorted(set(surface.__all__))
    for name in surface.__all__:
        assert getattr(surface, name) is not None
    assert set(surface.__all__) <= set(dir(surface))
    with pytest.raises(AttributeError, match="no attribute 'nothing_of_the_kind'"):
        surface.nothing_of_the_kind  # noqa: B018


def test_type_checkers_see_the_same_instruments():
    declared = set()
    for node in ast.walk(ast.parse(Path(instruments.__file__).read_text(encoding="utf-8"))):
        if isinstance(node, ast.If):
            declared |= {a.name for one in node.body if isinstance(one, ast.ImportFrom) for a in one.names}
    assert declared == set(instruments.__all__) == set(dir(instruments))


def test_no_two_public_classes_of_both_packages_share_a_name():
    homes: dict[str, set[str]] = defaultdict(set)
    for package in (esper_recorder, esper_analytics):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            module = importlib.import_module(found.name)
            for name, one in vars(module).items():
                if inspect.isclass(one) and one.__module__ == found.name and not name.startswith("_"):
                    homes[one.__name__].add(found.name)
    assert len(homes) > 100
    assert {name: places for name, places in homes.items() if len(places) > 1} == {}


@pytest.mark.parametrize(
    ("module", "light"),
    [
        ("esper_recorder.instruments", ("torch", "pyarrow", "numpy")),
        ("esper_recorder.contract.rules.anomaly_detector", ("torch", "pyarrow", "numpy")),
        ("esper_recorder.contract.worst_transitions", ("torch", "pyarrow", "numpy")),
        ("esper_recorder.storage.traces", ("torch", "pyarrow", "numpy")),
    ],
)
def test_heavy_modules_are_loaded_when_they_are_used(run_python, module: str, light: tuple[str, ...]):
    loaded = run_python(f"import sys, {module}; print(*sys.modules)").split()
    assert not set(light) & set(loaded)


def test_every_type_hint_of_an_instrument_resolves():
    for path in [*Path(instruments.__file__).parent.glob("*.py"), Path(esper_recorder.__file__).parent / "profiler.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            hint = getattr(node, "annotation", None) or getattr(node, "returns", None)
            for part in [] if hint is None else ast.walk(hint):
                quoted = isinstance(part, ast.Constant) and isinstance(part.value, str)
                assert not quoted, f"{path.name}: a hint in quotes, {ast.unparse(part)}"
    for name in instruments.__all__:
        one = getattr(instruments, name)
        if inspect.isfunction(one):
            assert typing.get_type_hints(one)


def test_every_instrument_is_described():
    page = (ROOT / "docs" / "instruments.md").read_text(encoding="utf-8")
    assert [name for name in instruments.__all__ if f"`{name}" not in page] == []
