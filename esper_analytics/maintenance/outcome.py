"""What a command of this room hands back: a row a run, and what has to be said beside it."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl

from esper_analytics.catalog.discovery import Problem


@dataclass(frozen=True, slots=True)
class Outcome:
    """The answer of `recover`, `compact` or `verify`."""

    frame: pl.DataFrame
    problems: tuple[Problem, ...] = ()
    """What is damaged, incomplete, or could not be done."""
