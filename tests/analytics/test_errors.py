"""The error tree: drawn as it is, each with its exit code, near-by names by likeness."""

from __future__ import annotations

import inspect

import pytest

from esper_analytics import errors
from esper_analytics.errors import EsperError, did_you_mean, near

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EsperError)]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_drawn_tree_with_its_exit_code(kind):
    [line] = [line for line in errors.__doc__.splitlines() if kind.__name__ in line.split()]
    codes = [int(word) for word in line.split() if word.isdigit()]
    assert codes in ([], [kind.exit_code])
    assert kind.__doc__


def test_near_names_come_with_the_likeliest_first():
    assert near("ratio_mx", ["update", "ratio_sum", "ratio_max"])[0] == "ratio_max"
    assert near("KL", ["approx_kl", "loss"]) == ["approx_kl"]
    assert near("zzz", ["approx_kl", "loss"]) == []
    assert near("", ["loss"]) == []


def test_the_hint_names_what_there_is():
    assert did_you_mean("lss", ["loss", "x"], kind="columns") == "Did you mean loss?"
    assert did_you_mean("zzz", ["a", "b"], kind="rules") == "The rules are: a, b."
    assert did_you_mean("zzz", [], kind="runs") == "There are no runs."
    assert did_you_mean("zzz", [f"run{i}" for i in range(25)], kind="runs").endswith("run19 and 5 more.")
