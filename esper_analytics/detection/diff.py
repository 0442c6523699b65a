"""What changed between two replays, or between the alarms a run raised live and a replay.

Covers: firings by run, update, rule and key. Does not cover: values (a firing with another value or threshold is the
same firing), runs that only one side has, runs recorded without rules, alarms at updates that were not recorded.
"""

from __future__ import annotations

from typing import Final

import polars as pl

from esper_analytics.detection.replay import Result
from esper_analytics.errors import UsageError
from esper_analytics.runs import Runs
from esper_recorder.contract.rules.signal import UPDATE_TABLE

DIFF_COLUMNS: Final = {
    "run_id": pl.String,
    "rule": pl.String,
    "key": pl.String,
    "update": pl.Int64,
    "change": pl.String,
}

_IDENTITY: Final = ["run_id", "rule", "key", "update"]


def diff(before: Result, after: Result) -> pl.DataFrame:
    """Compare the firings of the runs that both results have.

    Returns:
        The columns of `DIFF_COLUMNS`: change is `new` if only `after` has the firing, `gone` if only `before` has it.
    """
    both = list(set(before.rules_by_run) & set(after.rules_by_run))
    return diff_firings(*(result.firings.filter(pl.col("run_id").is_in(both)) for result in (before, after)))


def diff_with_live(result: Result, alarms: pl.DataFrame) -> pl.DataFrame:
    """Compare `live_alarms` with a result, as `diff` does, over the runs that were recorded with rules."""
    return diff_firings(alarms, result.firings.filter(~pl.col("run_id").is_in(runs_without_rules(result.runs))))


def diff_firings(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Compare two frames of firings or alarms; returns what `diff` returns."""
    old, new = (frame.select(_IDENTITY).unique() for frame in (before, after))
    changes = [
        new.join(old, on=_IDENTITY, how="anti").with_columns(change=pl.lit("new")),
        old.join(new, on=_IDENTITY, how="anti").with_columns(change=pl.lit("gone")),
    ]
    columns = (pl.col(name).cast(type_) for name, type_ in DIFF_COLUMNS.items())
    return pl.concat(changes).select(columns).sort("run_id", "update", "rule", "key")


def live_alarms(runs: Runs) -> pl.DataFrame:
    """Return the alarms raised while the runs were recorded: run_id, rule, key, update.

    Only those at recorded updates, since no other update can be replayed; see `alarms_without_update`.

    Raises:
        UsageError: no run has rules or alarms, so there is nothing to compare with.
    """
    without = runs_without_rules(runs)
    if without and len(without) == len(runs.ids):
        which = f"{without[0]} ran with no rules, so it has no alarms"
        if len(without) > 1:
            which = f"None of the {len(without)} runs ran with rules, so they have no alarms"
        raise UsageError(f"{which} to compare with. Compare with a profile, such as default.")
    return _alarms(runs).join(_recorded_updates(runs), on=["run_id", "update"], how="semi")


def alarms_without_update(runs: Runs) -> pl.DataFrame:
    """Return the alarms at updates that were not recorded: run_id, rule, key, update.

    Esper emits an update's alarms before the update itself, so a run can be killed between the two; and it raises an
    alarm for a batch that makes no update.
    """
    return _alarms(runs).join(_recorded_updates(runs), on=["run_id", "update"], how="anti")


def runs_without_rules(runs: Runs) -> list[str]:
    """List the runs recorded without rules and without alarms, whose silence means nothing."""
    raised = set(_alarms(runs).get_column("run_id").unique())
    manifests = runs.manifests().items()
    return [run_id for run_id, manifest in manifests if run_id not in raised and manifest.rules_sha256 is None]


def _alarms(runs: Runs) -> pl.DataFrame:
    return runs.table("alarms").select("run_id", "rule", pl.col("key").fill_null(""), "update").collect()


def _recorded_updates(runs: Runs) -> pl.DataFrame:
    return runs.table(UPDATE_TABLE).select("run_id", "update").unique().collect()
