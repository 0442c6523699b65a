"""Recorded PPO runs, opened: SQL, frames, anomaly replay and post-mortems.

    import esper_analytics as ea
    runs = ea.open("runs/")

Importing this loads no engine; the first use of a name loads what it needs.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper_analytics.errors import DataError as DataError
    from esper_analytics.errors import EsperError as EsperError
    from esper_analytics.errors import QueryError as QueryError
    from esper_analytics.errors import UsageError as UsageError
    from esper_analytics.folders import Problem as Problem
    from esper_analytics.replay import Result as Result
    from esper_analytics.replay import diff as diff
    from esper_analytics.replay import load_rules as load_rules
    from esper_analytics.replay import replay as replay
    from esper_analytics.replay.sweep import sweep as sweep
    from esper_analytics.report import report as report
    from esper_analytics.store import Runs as Runs
    from esper_analytics.store import open as open  # noqa: A004 - the package's own open

# Public name -> module that has it. A room adds its names here, and above for type checkers.
_HOMES = {
    "DataError": "esper_analytics.errors",
    "EsperError": "esper_analytics.errors",
    "Problem": "esper_analytics.folders",
    "QueryError": "esper_analytics.errors",
    "Result": "esper_analytics.replay",
    "Runs": "esper_analytics.store",
    "UsageError": "esper_analytics.errors",
    "diff": "esper_analytics.replay",
    "load_rules": "esper_analytics.replay",
    "open": "esper_analytics.store",
    "sweep": "esper_analytics.replay",
}

_ROOMS = {"replay", "report"}
"""Public functions that share their name with the module they live in, which can be called itself."""

__all__ = [
    "DataError",
    "EsperError",
    "Problem",
    "QueryError",
    "Result",
    "Runs",
    "UsageError",
    "diff",
    "load_rules",
    "open",
    "replay",
    "report",
    "sweep",
]


def __getattr__(name: str) -> Any:
    if name in _ROOMS:
        return importlib.import_module(f"esper_analytics.{name}")
    try:
        home = _HOMES[name]
    except KeyError:
        raise AttributeError(f"module 'esper_analytics' has no attribute {name!r}") from None
    value = getattr(importlib.import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
