"""SQL functions added to DuckDB's: they compare as the rules do. Documented in docs/sql.md."""

from __future__ import annotations

MACROS: dict[str, tuple[str, str]] = {
    "finite": ("finite(x)", "CASE WHEN isfinite(x) THEN x END"),
    "above": (
        "above(x, t)",
        "coalesce(x > t AND NOT isnan(CAST(x AS DOUBLE)) AND NOT isnan(CAST(t AS DOUBLE)), false)",
    ),
    "below": (
        "below(x, t)",
        "coalesce(x < t AND NOT isnan(CAST(x AS DOUBLE)) AND NOT isnan(CAST(t AS DOUBLE)), false)",
    ),
}
"""Name -> (signature, body)."""
