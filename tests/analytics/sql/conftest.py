"""Runs shared by the tests of named queries and views."""

from __future__ import annotations

import pytest

import esper_analytics as ea
from esper_analytics.importers.esper_jsonl import import_file
from tests.esper_files import ALL_KINDS, EXCERPTS


@pytest.fixture(scope="session")
def esper(tmp_path_factory):
    """Four runs of Esper's trainer, imported: two with what rules read, two with a little of everything."""
    root = tmp_path_factory.mktemp("imported")
    for path in (*EXCERPTS, *ALL_KINDS):
        import_file(path, root)
    return ea.open(root)


@pytest.fixture(scope="session")
def sb3(demo_folder):
    """The two runs of the demo: PPO of Stable-Baselines3 on CartPole, one of them wrecked by its learning rate."""
    return ea.open(demo_folder / "runs")
