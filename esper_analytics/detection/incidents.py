"""Incidents: firings of one rule and key folded into onset, peak, last firing and recovery."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl

from esper_analytics.detection.arrays import Flags, Floats, Ints
from esper_analytics.detection.engine import Evaluation

INCIDENT_COLUMNS: Final = {
    "run_id": pl.String,
    "rule": pl.String,
    "key": pl.String,
    "severity": pl.String,
    "onset_update": pl.Int64,
    "last_update": pl.Int64,
    "updates": pl.Int64,
    "peak_update": pl.Int64,
    "peak_value": pl.Float64,
    "threshold": pl.Float64,
    "phase": pl.String,
    "recovered": pl.Boolean,
}

MERGE_EVALUATIONS: Final = 3
"""Firings with at most this many evaluations between them that did not fire are one incident."""

MERGE_FRACTION: Final = 0.02
"""The same as a fraction of all evaluations of the rule on that run and key; the larger of the two applies."""


def incidents(evaluation: Evaluation) -> pl.DataFrame:
    """Fold the firings of an evaluation.

    Only updates at which the rule was evaluated can end an incident: if it had no data between two firings, nothing
    says that it recovered.

    Returns:
        The columns of `INCIDENT_COLUMNS`, by run and onset. `updates` is how many fired. The peak is the value furthest
        beyond the threshold, the earliest of equals; `threshold` and `phase` are those of the peak. `recovered` means
        that the rule was evaluated after the last firing and did not fire, though no other rule inhibited it.
    """
    firings = evaluation.firings
    if firings.is_empty():
        return pl.DataFrame(schema=INCIDENT_COLUMNS)
    ends = evaluation.coverage.group_by("series").agg(pl.col("evaluated").first())
    rows, series = _renumber(firings.get_column("series").to_numpy(), ends.get_column("series").to_numpy())
    evaluated = ends.get_column("evaluated").to_numpy()[rows]
    merge = np.maximum(MERGE_EVALUATIONS, (evaluated * MERGE_FRACTION).astype(np.int64))

    order = np.argsort(series, kind="stable")
    series, number, signed_value = (
        array[order] for array in (series, *(firings.get_column(n).to_numpy() for n in ("evaluation", "signed_value")))
    )
    begins = np.ones(len(order), bool)
    not_firing = number[1:] - number[:-1] - 1
    begins[1:] = (not_firing > merge[series[1:]]) | (series[1:] != series[:-1])
    onset = np.flatnonzero(begins)
    last = np.append(onset[1:], len(order)) - 1
    of_incident = series[onset]

    first, at_peak = firings[order[onset]], firings[order[_peaks(signed_value, onset, last)]]
    inhibited = _ends_inhibited(evaluation.inhibited, first["series"], number[last], merge[of_incident])
    return (
        first.select("run_id", "rule", "key", "severity", onset_update="update")
        .with_columns(
            firings.get_column("update").gather(order[last]).alias("last_update"),
            pl.Series("updates", last - onset + 1, pl.Int64),
            at_peak.get_column("update").alias("peak_update"),
            at_peak.get_column("value").alias("peak_value"),
            at_peak.get_column("threshold"),
            at_peak.get_column("phase"),
            pl.Series("recovered", (evaluated[of_incident] > number[last]) & ~inhibited),
        )
        .select(pl.col(name).cast(type_) for name, type_ in INCIDENT_COLUMNS.items())
        .sort("run_id", "onset_update", "rule", "key")
    )


def _ends_inhibited(inhibited: pl.DataFrame, series: pl.Series, last: Ints, merge: Ints) -> Flags:
    """Flag the incidents that would have continued after their last firing, had another rule not inhibited it."""
    if inhibited.is_empty():
        return np.zeros(len(series), bool)
    ended = pl.DataFrame({"place": np.arange(len(series)), "series": series, "last": last, "merge": merge})
    following = ended.sort("last").join_asof(
        inhibited.sort("evaluation"),
        left_on="last",
        right_on="evaluation",
        by="series",
        strategy="forward",
        check_sortedness=False,
    )
    continues = (pl.col("evaluation") - pl.col("last") - 1 <= pl.col("merge")).fill_null(False)
    flags: Flags = following.sort("place").select(continues).to_series().to_numpy()
    return flags


def _renumber(series: Ints, all_series: Ints) -> tuple[Ints, np.ndarray[Any, Any]]:
    """Return where in `all_series` those that fire are, and for each firing its position among these.

    Small numbers get a small type: a stable sort of 16-bit numbers is a radix sort, in one pass.
    """
    order = np.argsort(all_series)
    fires = np.zeros(int(all_series.max()) + 1, bool)
    fires[series] = True
    firing = np.flatnonzero(fires)
    rank = np.cumsum(fires, dtype=np.int64) - 1
    return order[np.searchsorted(all_series[order], firing)], rank.astype(np.min_scalar_type(len(firing)))[series]


def _peaks(signed_value: Floats, onset: Ints, last: Ints) -> Ints:
    """Return the worst firing of each incident: the earliest of equals; its onset if every value is NaN."""
    worst = np.repeat(np.fmax.reduceat(signed_value, onset), last - onset + 1)
    at = np.flatnonzero(signed_value == worst)
    if not len(at):
        return onset
    earliest = at[np.minimum(np.searchsorted(at, onset), len(at) - 1)]
    return np.where((earliest >= onset) & (earliest <= last), earliest, onset)
