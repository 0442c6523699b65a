"""What changed between two replays: the firings that came and those that went."""

from __future__ import annotations

from typing import Final

import polars as pl

DIFF_COLUMNS: Final = {
    "run_id": pl.String,
    "rule": pl.String,
    "key": pl.String,
    "update": pl.Int64,
    "change": pl.String,
}

_SAME: Final = ["run_id", "rule", "key", "update"]


def difference(before: pl.DataFrame, after: pl.DataFrame) -> pl.DataFrame:
    """Firings (or alarms) before and after, by run, update, rule and key.

    Returns:
        The columns of `DIFF_COLUMNS`: `new` where only `after` has it, `gone` where only `before` has.
    """
    old, new = (frame.select(_SAME).unique() for frame in (before, after))
    return (
        pl.concat(
            [
                new.join(old, on=_SAME, how="anti").with_columns(change=pl.lit("new")),
                old.join(new, on=_SAME, how="anti").with_columns(change=pl.lit("gone")),
            ]
        )
        .select(pl.col(name).cast(type_) for name, type_ in DIFF_COLUMNS.items())
        .sort("run_id", "update", "rule", "key")
    )
