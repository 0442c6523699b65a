"""Analysis of recorded PPO runs: SQL, data frames, anomaly replay and post-mortems.

    import esper_analytics as ea
    runs = ea.open("runs/")

Importing this package loads no engine; a name loads what it needs when it is first used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from esper_recorder.contract.lazy import lazy_names

if TYPE_CHECKING:
    from esper_analytics.catalog.discovery import Problem as Problem
    from esper_analytics.detection.diff import diff as diff
    from esper_analytics.detection.replay import Result as Result
    from esper_analytics.detection.replay import replay as replay
    from esper_analytics.detection.rules import load_rules as load_rules
    from esper_analytics.detection.sweep import sweep as sweep
    from esper_analytics.errors import DataError as DataError
    from esper_analytics.errors import EsperError as EsperError
    from esper_analytics.errors import QueryError as QueryError
    from esper_analytics.errors import UsageError as UsageError
    from esper_analytics.postmortem.render import report as report
    from esper_analytics.runs import Runs as Runs
    from esper_analytics.runs import open as open  # noqa: A004 - opens runs, as `esper_analytics.open`

__version__: str

_NAMES = {
    "esper_analytics.catalog.discovery": ("Problem",),
    "esper_analytics.detection.diff": ("diff",),
    "esper_analytics.detection.replay": ("Result", "replay"),
    "esper_analytics.detection.rules": ("load_rules",),
    "esper_analytics.detection.sweep": ("sweep",),
    "esper_analytics.errors": ("DataError", "EsperError", "QueryError", "UsageError"),
    "esper_analytics.postmortem.render": ("report",),
    "esper_analytics.runs": ("Runs", "open"),
}
__all__ = sorted(name for names in _NAMES.values() for name in names)
__getattr__, __dir__ = lazy_names(__name__, _NAMES, distribution="esper-analytics")
