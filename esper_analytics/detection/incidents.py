"""Incidents: firings of one rule and key folded into onset, peak, last and recovery."""

from __future__ import annotations

from typing import Any, Final

import numpy as np
import polars as pl

from esper_analytics.detection.arrays import Floats, Ints
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

MERGE_LOOKS: Final = 3
"""Firings with at most this many quiet looks of the rule between them are one incident."""

MERGE_SHARE: Final = 0.02
"""The same as a share of all looks of the rule at that run and key; the larger of the two holds."""


def incidents(found: Evaluation) -> pl.DataFrame:
    """Fold the firings of an evaluation.

    Only updates at which the rule could look tell quiet from firing: where it abstained between two firings, nothing
    says that it recovered, and they stay one incident.

    Returns:
        The columns of `INCIDENT_COLUMNS`, by run and onset. `updates` is how many fired. The peak is the value
        furthest beyond, the earliest of equals; `threshold` and `phase` are those it was judged with. `recovered`
        says that the rule looked again after the last firing and did not fire; it has not recovered where it only gave
        way to the rule that it yields to.
    """
    if found.firings.is_empty():
        return pl.DataFrame(schema=INCIDENT_COLUMNS)
    ends = found.coverage.group_by("series").agg(pl.col("evaluated", "looked").first())
    numbers, series = _numbered(found.firings.get_column("series").to_numpy(), ends.get_column("series").to_numpy())
    evaluated, end = (ends.get_column(name).to_numpy()[numbers] for name in ("evaluated", "looked"))
    merge = np.maximum(MERGE_LOOKS, (evaluated * MERGE_SHARE).astype(np.int64))

    order = np.argsort(series, kind="stable")
    series, looked, worse = (
        array[order] for array in (series, *(found.firings.get_column(n).to_numpy() for n in ("looked", "worse")))
    )
    begins = np.ones(len(order), bool)
    quiet = looked[1:] - looked[:-1] - 1
    begins[1:] = (quiet > merge[series[1:]]) | (series[1:] != series[:-1])
    onset = np.flatnonzero(begins)
    last = np.append(onset[1:], len(order)) - 1
    peak = _peaks(worse, onset, last)
    own = series[onset]

    first, at_peak = found.firings[order[onset]], found.firings[order[peak]]
    return (
        first.select("run_id", "rule", "key", "severity", onset_update="update")
        .with_columns(
            found.firings.get_column("update").gather(order[last]).alias("last_update"),
            pl.Series("updates", last - onset + 1, pl.Int64),
            at_peak.get_column("update").alias("peak_update"),
            at_peak.get_column("value").alias("peak_value"),
            at_peak.get_column("threshold"),
            at_peak.get_column("phase"),
            pl.Series("recovered", (end[own] > looked[last]) & ~_gave_way(found, first, looked[last], merge[own])),
        )
        .select(pl.col(name).cast(type_) for name, type_ in INCIDENT_COLUMNS.items())
        .sort("run_id", "onset_update", "rule", "key")
    )


def _gave_way(found: Evaluation, first: pl.DataFrame, looked: Ints, merge: Ints) -> np.ndarray[Any, Any]:
    """Which incidents, the last firing of each at the look `looked`, would have gone on but for a louder rule."""
    if found.silenced.is_empty():
        return np.zeros(first.height, bool)
    ended = pl.DataFrame({"place": np.arange(first.height), "series": first["series"], "last": looked, "gap": merge})
    silenced = found.silenced.sort("looked")
    following = ended.sort("last").join_asof(
        silenced, left_on="last", right_on="looked", by="series", strategy="forward", check_sortedness=False
    )
    gave_way = (pl.col("looked") - pl.col("last") - 1 <= pl.col("gap")).fill_null(False)
    return following.sort("place").select(gave_way).to_series().to_numpy()


def _numbered(series: Ints, known: Ints) -> tuple[Ints, np.ndarray[Any, Any]]:
    """The places in `known` of the series that fire, and for each firing the place among these.

    Small numbers in a small type: a stable sort of 16-bit numbers takes one pass, not a logarithm of them.
    """
    order = np.argsort(known)
    firing = np.zeros(int(known.max()) + 1, bool)
    firing[series] = True
    there = np.flatnonzero(firing)
    rank = np.cumsum(firing, dtype=np.int64) - 1
    return order[np.searchsorted(known[order], there)], rank.astype(np.min_scalar_type(len(there)))[series]


def _peaks(worse: Floats, onset: Ints, last: Ints) -> Ints:
    """Where each incident is at its worst: the earliest of equals; its onset where every value is NaN."""
    worst = np.repeat(np.fmax.reduceat(worse, onset), last - onset + 1)
    at = np.flatnonzero(worse == worst)
    peak = np.searchsorted(at, onset)
    there = at[np.minimum(peak, len(at) - 1)] if len(at) else onset
    return np.where((there >= onset) & (there <= last), there, onset)
