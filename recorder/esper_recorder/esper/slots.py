"""The slots of a host network in one canonical order.

A slot is `early`, `mid` or `late`, or `r<row>c<column>` of a grid. The three named slots come first, from the input to
the output; those of a grid follow row by row. Features, masks and matrices built slot by slot rely on this order.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Final

from esper_recorder.contract.suggest import suggest

CANONICAL_SLOTS: Final = ("early", "mid", "late")

_GRID = re.compile(r"r(0|[1-9][0-9]{0,3})c(0|[1-9][0-9]{0,3})")


class UnknownSlotError(ValueError):
    """There is no such slot; the message lists those there are."""


def ordered_slots(enabled: Iterable[str], known: Sequence[str] | None = None) -> tuple[str, ...]:
    """Return the enabled slots, each once, in canonical order.

    Args:
        enabled: ids of slots, in any order and with repetitions.
        known: the slots of the host; the default accepts the named ones and those of any grid.

    Raises UnknownSlotError for any other id.
    """
    return tuple(sorted({check_slot(slot, known) for slot in enabled}, key=_position))


def check_slot(slot: str, known: Sequence[str] | None = None) -> str:
    """Return the id. Raises UnknownSlotError if there is no such slot."""
    if isinstance(slot, str) and (slot in known if known is not None else _is_slot(slot)):
        return slot
    names = CANONICAL_SLOTS if known is None else known
    grid = " A slot of a grid is r<row>c<column>, such as r0c1." if known is None else ""
    raise UnknownSlotError(f"slot {slot!r} is not known. {suggest(slot, names, kind='slots')}{grid}")


def _is_slot(slot: str) -> bool:
    return slot in CANONICAL_SLOTS or _GRID.fullmatch(slot) is not None


def _position(slot: str) -> tuple[int, int, int, str]:
    if slot in CANONICAL_SLOTS:
        return 0, CANONICAL_SLOTS.index(slot), 0, slot
    grid = _GRID.fullmatch(slot)
    return (1, int(grid[1]), int(grid[2]), slot) if grid else (2, 0, 0, slot)
