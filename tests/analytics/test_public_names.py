"""The public names of `esper_analytics`."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import esper_analytics as ea


def test_the_public_names_are_sorted_and_exist():
    assert ea.__all__ == sorted(ea.__all__)
    for name in ea.__all__:
        assert getattr(ea, name) is not None
    assert dir(ea) == ea.__all__


def test_type_checkers_see_the_same_names():
    tree = ast.parse(Path(ea.__file__).read_text(encoding="utf-8"))
    names = {
        alias.asname
        for node in tree.body
        if isinstance(node, ast.If)
        for statement in node.body
        if isinstance(statement, ast.ImportFrom)
        for alias in statement.names
    }
    assert names == set(ea.__all__)


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'opne'"):
        ea.opne  # noqa: B018


def test_importing_the_package_loads_no_engine(run_python):
    loaded = run_python("import sys, esper_analytics; print(*sys.modules)").split()
    assert not {"duckdb", "polars", "pyarrow", "matplotlib", "numpy", "torch", "typer"} & set(loaded)
