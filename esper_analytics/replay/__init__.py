"""Rules over recorded runs: what fires, the incidents it makes, what could not be judged, and what a change changes."""

from esper_analytics.replay.result import (
    DEFAULT_PROFILE,
    Result,
    diff,
    live,
    load_rules,
    replay,
    rules_of_all,
    since_live,
    without_rules,
    without_update,
)
from esper_analytics.replay.sweep import sweep
from esper_analytics.rooms import make_callable

__all__ = [
    "DEFAULT_PROFILE",
    "Result",
    "diff",
    "live",
    "load_rules",
    "replay",
    "rules_of_all",
    "since_live",
    "sweep",
    "without_rules",
    "without_update",
]

make_callable(__name__, replay)
