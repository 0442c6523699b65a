"""Comparisons on Python values, the one home of what `>` means for a rule.

NULL (None) and NaN are never above and never below anything, as a value or as a threshold. Infinities compare as
numbers do. Both comparisons are strict: a value equal to the threshold is neither above nor below it.

The vectorised evaluator of the analysis follows these functions; SQL engines do not (`NaN > 5` is true in DuckDB and
Polars).
"""

from __future__ import annotations

import math


def above(value: float | None, threshold: float | None) -> bool:
    """value > threshold; False where either is None or NaN."""
    return value is not None and threshold is not None and value > threshold


def below(value: float | None, threshold: float | None) -> bool:
    """value < threshold; False where either is None or NaN."""
    return value is not None and threshold is not None and value < threshold


def nonfinite(value: float | None) -> bool:
    """NaN or an infinity; False for None, which was not measured."""
    return value is not None and not math.isfinite(value)
