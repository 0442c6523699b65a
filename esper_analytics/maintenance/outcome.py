"""The result of a maintenance command."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from esper_analytics.catalog.discovery import Problem

MOVE = "Move it out of the run's folder"


@dataclass(frozen=True, slots=True)
class Outcome:
    """The result of `recover`, `compact` or `verify`."""

    frame: pl.DataFrame
    """One row per run's folder."""
    problems: tuple[Problem, ...] = ()
    """What is damaged, incomplete, or could not be done."""
