"""Named statistics in one float64 tensor, and how many quantities are reduced to them together.

Covers: any number of quantities of one length, stacked and reduced by the same few operations; a device is not waited
for. Does not cover: quantities whose squares overflow float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Statistics:
    """Statistics by name: `values[..., i]` is the one called `names[i]`.

    Counts are whole numbers, exact in float64 up to 2^53.
    """

    names: tuple[str, ...]
    values: Tensor


@dataclass(slots=True)
class StatisticsBuilder:
    """Collects statistics by name and stacks them at the end."""

    names: list[str] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def add(self, name: str, value: Tensor) -> None:
        self.names.append(name)
        self.values.append(value.to(torch.float64))

    def build(self) -> Statistics:
        """Stack along a new last dimension."""
        return Statistics(tuple(self.names), torch.stack(self.values, dim=-1))


Valid = Tensor | None
"""Which elements count, bool of their shape; None: all do."""


def moments(name: str) -> dict[str, str]:
    """The columns of a quantity of which everything is recorded, see `Quantities.measure`."""
    return {f"{name}_{kind}": kind for kind in ("nan", "posinf", "neginf", "sum", "sum_sq", "min", "max")}


def sums(name: str) -> dict[str, str]:
    """The columns of a quantity whose finite elements are counted and summed, see `Quantities.measure`."""
    return {f"{name}_{kind}": kind for kind in ("n", "sum", "sum_sq")}


class Quantities:
    """Elementwise quantities of one shape [..., n] and what is recorded of them over the last dimension.

    Args:
        valid: which elements count, of that shape or one that expands to it.
    """

    def __init__(self, valid: Valid) -> None:
        self.valid = valid
        self.rows: list[Tensor] = []
        self.conditions: list[Tensor] = []
        self.pair: tuple[int, int] | None = None
        self.reduced: Tensor | None = None
        self.columns: list[tuple[str, str, int]] = []
        """(name, kind, which row or condition)"""

    def measure(self, x: Tensor, columns: Mapping[str, str]) -> int:
        """Record columns of a quantity: name -> kind. Return the quantity's place, for `product`.

        Kinds are `nan`, `posinf`, `neginf`; of the finite elements `n`, `nonfinite` (those beside them), `sum`,
        `negative_sum` and `sum_sq` in float64; `min` and `max`, infinities included, NaN if there is not a number.
        """
        self.columns += [(name, kind, len(self.rows)) for name, kind in columns.items()]
        self.rows.append(x)
        return len(self.rows) - 1

    def count(self, name: str, condition: Tensor) -> None:
        """Record how many valid elements meet a condition."""
        self.columns.append((name, "count", len(self.conditions)))
        self.conditions.append(condition)

    def product(self, name: str, first: int, second: int) -> None:
        """Record the sum of the products of two quantities where both are finite, computed in float64; once."""
        self.columns.append((name, "product", 0))
        self.pair = (first, second)

    def count_valid(self, name: str) -> None:
        """Record how many elements are valid."""
        self.columns.append((name, "valid", 0))

    def add(self, name: str, reduced: Tensor) -> None:
        """Record what is reduced already, float64 [...]; once."""
        self.columns.append((name, "reduced", 0))
        self.reduced = reduced


def reduce_quantities(*sets: Quantities) -> list[Statistics]:
    """Reduce the quantities of all sets, which have one length, by the same operations."""
    stacks = [torch.stack(q.rows) for q in sets]
    masked = [x if q.valid is None else torch.where(q.valid, x, torch.nan) for x, q in zip(stacks, sets, strict=True)]
    width = stacks[0].shape[-1]
    if not width:  # there is no extreme of nothing: one that does not count
        masked = [x.new_full((*x.shape[:-1], 1), torch.nan) for x in stacks]
    flat = [x.reshape(-1, x.shape[-1]) for x in masked]
    totals, wide = _reduce(flat[0] if len(flat) == 1 else torch.cat(flat), all(q.valid is None for q in sets))
    found, start = [], 0
    for q, x in zip(sets, masked, strict=True):
        rows = slice(start, start := start + x.shape[:-1].numel())
        of_set = {kind: total[rows].view(x.shape[:-1]) for kind, total in totals.items()}
        found.append(_columns(q, of_set, wide[rows].view(x.shape), width))
    return found


def _columns(q: Quantities, totals: dict[str, Tensor], wide: Tensor, width: int) -> Statistics:
    """Choose the columns of a set from the totals of its quantities, [quantities, ...] of each kind."""
    shape = totals["n"].shape[1:]
    if q.valid is None:
        valid = totals["n"].new_full((1, *shape), width)
    else:
        valid = q.valid.sum(dim=-1, dtype=torch.float64).expand(1, *shape)
    if q.valid is not None or not width:
        totals["nan"] = totals["nan"] - (wide.shape[-1] - valid)  # what does not count is NaN
    kinds = dict.fromkeys([kind for _, kind, _ in q.columns])
    if "nonfinite" in kinds:
        totals["nonfinite"] = valid - totals["n"]
    if "negative_sum" in kinds:
        totals["negative_sum"] = -totals["sum"]
    if q.conditions:
        conditions = torch.stack(q.conditions)
        counted = conditions if q.valid is None else conditions & q.valid
        totals["count"] = counted.sum(dim=-1, dtype=torch.float64)
    if q.pair is not None:
        first, second = q.pair
        totals["product"] = (wide[first] * wide[second]).sum(dim=-1)[None]
    if q.reduced is not None:
        totals["reduced"] = q.reduced[None]
    totals["valid"] = valid
    tables = [totals[kind] for kind in kinds]
    ends = dict(zip(kinds, accumulate(map(len, tables)), strict=True))
    places = tuple([ends[kind] - len(totals[kind]) + place for _, kind, place in q.columns])
    return Statistics(tuple([name for name, _, _ in q.columns]), _select(tables, places))


def _select(tables: Sequence[Tensor], places: tuple[int, ...]) -> Tensor:
    """Choose rows of the tables, counted through, and make them the last dimension."""
    if tables[0].device.type == "cpu" and not torch.compiler.is_compiling():
        return torch.cat(list(tables)).index_select(0, _index(places)).movedim(0, -1)
    rows = [row for table in tables for row in table.unbind()]
    return torch.stack([rows[place] for place in places], dim=-1)


@functools.lru_cache(maxsize=64)
def _index(places: tuple[int, ...]) -> Tensor:
    return torch.tensor(places, device="cpu")


def _reduce(x: Tensor, complete: bool) -> tuple[dict[str, Tensor], Tensor]:
    """Reduce the rows of x, [rows, n], to float64 [rows] by kind; and return their finite elements, others as zeros.

    Args:
        x: NaN where an element does not count.
        complete: all elements count: on the host, rows without a NaN or an infinity are then not searched for them.
    """
    if complete and x.device.type == "cpu":
        lowest, highest = x.amin(dim=-1), x.amax(dim=-1)  # NaN if there is one
        if math.isfinite(float((highest - lowest).sum())):
            wide = x.to(torch.float64)
            none = wide.new_zeros(x.shape[0])
            totals = dict.fromkeys(("nan", "posinf", "neginf"), none) | {"n": none + x.shape[-1]}
            return totals | _sums(wide) | {"min": lowest.to(torch.float64), "max": highest.to(torch.float64)}, wide
    conditions = torch.stack([torch.isnan(x), x == torch.inf, x == -torch.inf])
    odd = conditions.sum(dim=-1, dtype=torch.float64)
    lowest = torch.nan_to_num(x, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(dim=-1)
    highest = torch.nan_to_num(x, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(dim=-1)
    extremes = torch.stack([lowest, highest]).to(torch.float64)
    lowest, highest = extremes.masked_fill_(odd[0] == x.shape[-1], torch.nan).unbind()
    wide = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0).to(torch.float64)
    nan, posinf, neginf = odd.unbind()
    totals = {"nan": nan, "posinf": posinf, "neginf": neginf, "n": x.shape[-1] - odd.sum(dim=0)}
    return totals | _sums(wide) | {"min": lowest, "max": highest}, wide


def _sums(wide: Tensor) -> dict[str, Tensor]:
    return {"sum": wide.sum(dim=-1), "sum_sq": (wide * wide).sum(dim=-1)}


def from_host(values: Sequence[Any], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make a tensor on a device of a small list on the host, nested or not, without waiting for the device."""
    return to_device(torch.tensor(values, dtype=dtype, device="cpu"), device)  # the trainer may have another default


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device, without waiting if it comes from the host."""
    if x.device.type != "cpu" or device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def wide_enough(x: Tensor) -> Tensor:
    """Convert half types to float32: the precision that elementwise terms are computed in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
