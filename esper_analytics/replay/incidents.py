"""Incidents: firings of one rule and key folded into onset, peak, last and recovery."""

from __future__ import annotations

from typing import Final

import polars as pl

from esper_analytics.replay.engine import Evaluation

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
        says that the rule looked again after the last firing and did not fire.
    """
    ends = (
        found.coverage.group_by("series")
        .agg(pl.col("evaluated").first(), pl.col("looked").first().alias("end"))
        .with_columns(merge=pl.max_horizontal(pl.lit(MERGE_LOOKS), (pl.col("evaluated") * MERGE_SHARE).cast(pl.Int64)))
    )
    firings = found.firings.sort("series", maintain_order=True).join(
        ends, on="series", how="left", maintain_order="left"
    )
    quiet = pl.col("looked") - pl.col("looked").shift() - 1
    begins = ((quiet > pl.col("merge")) | (pl.col("series") != pl.col("series").shift())).fill_null(True)
    peak = pl.col("worse").fill_nan(None).arg_max().fill_null(0)
    return (
        firings.with_columns(begins.cast(pl.Int64).cum_sum().alias("incident"))
        .group_by("incident", maintain_order=True)
        .agg(
            *(pl.col(name).first() for name in ("run_id", "rule", "key", "severity")),
            pl.col("update").first().alias("onset_update"),
            pl.col("update").last().alias("last_update"),
            pl.len().cast(pl.Int64).alias("updates"),
            pl.col("update").get(peak).alias("peak_update"),
            pl.col("value").get(peak).alias("peak_value"),
            pl.col("threshold").get(peak),
            pl.col("phase").get(peak),
            (pl.col("end").first() > pl.col("looked").last()).alias("recovered"),
        )
        .select(pl.col(name).cast(type_) for name, type_ in INCIDENT_COLUMNS.items())
        .sort("run_id", "onset_update", "rule", "key")
    )
