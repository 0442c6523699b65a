"""The error tree: every class is in the drawing, with its exit code."""

from __future__ import annotations

import inspect

import pytest

from esper_analytics import errors
from esper_analytics.errors import EsperError

TREE = [kind for _, kind in inspect.getmembers(errors, inspect.isclass) if issubclass(kind, EsperError)]


@pytest.mark.parametrize("kind", TREE, ids=lambda kind: kind.__name__)
def test_every_error_is_in_the_drawn_tree_with_its_exit_code(kind):
    [line] = [line for line in errors.__doc__.splitlines() if kind.__name__ in line.split()]
    codes = [int(word) for word in line.split() if word.isdigit()]
    assert codes in ([], [kind.exit_code])
    assert kind.__doc__
