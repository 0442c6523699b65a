"""Suggestions for a name that does not exist, in one phrasing for both distributions."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


def suggest(name: object, names: Iterable[str], kind: str) -> str:
    """Ask `Did you mean ...?` with the closest names, or list all names if none is close.

    >>> suggest("ratio_mx", ["ratio_max", "update"], kind="columns")
    'Did you mean ratio_max?'
    """
    names = list(names)
    if similar := closest(name, names):
        return did_you_mean(similar)
    if not names:
        return f"There are no {kind}."
    listed = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    return f"The {kind} are: {listed}."


def closest(name: object, names: Iterable[str], *, at_most: int = 3) -> list[str]:
    """Return the names that `name` may be a typo or a part of, most likely first; case is ignored."""
    by_lower = {candidate.lower(): candidate for candidate in names}
    typed = str(name).lower()
    similar = difflib.get_close_matches(typed, by_lower, n=at_most, cutoff=0.6)
    similar += [lower for lower in by_lower if typed and typed in lower and lower not in similar]
    return [by_lower[lower] for lower in similar[:at_most]]


def did_you_mean(names: Sequence[str]) -> str:
    """Return the question `Did you mean a, b or c?`."""
    *first, last = names
    return f"Did you mean {', '.join(first)} or {last}?" if first else f"Did you mean {last}?"
