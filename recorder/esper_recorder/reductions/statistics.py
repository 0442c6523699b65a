"""Named statistics in one float64 tensor, and how many quantities are reduced to them together.

Covers: any number of quantities of one length, stacked and reduced by the same few operations; a device is not waited
for. Does not cover: quantities whose squares overflow float64.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    if len(sets) == 1:
        table, wide = _reduce(masked[0].flatten(0, -2), sets[0].valid is None)
        return [_columns(sets[0], table.view(len(_KINDS), *masked[0].shape[:-1]), wide.view(masked[0].shape), width)]
    flat = [x.reshape(-1, x.shape[-1]) for x in masked]
    table, wide = _reduce(torch.cat(flat), all(q.valid is None for q in sets))
    sizes = [x.shape[0] for x in flat]
    parts = zip(sets, masked, torch.split(table, sizes, dim=1), torch.split(wide, sizes), strict=True)
    return [
        _columns(q, of_set.reshape(len(_KINDS), *x.shape[:-1]), wide_of_set.view(x.shape), width)
        for q, x, of_set, wide_of_set in parts
    ]


_KINDS = ("nan", "posinf", "neginf", "n", "sum", "sum_sq", "min", "max")
_N, _SUM = _KINDS.index("n"), _KINDS.index("sum")


def _columns(q: Quantities, table: Tensor, wide: Tensor, width: int) -> Statistics:
    """Choose the columns of a set from what its quantities were reduced to, [kinds, quantities, ...]."""
    rows, shape = table.shape[1], table.shape[2:]
    if q.valid is None:
        valid = table.new_full((1, *shape), width)
    else:
        valid = q.valid.sum(dim=-1, dtype=torch.float64).expand(1, *shape)
    if q.valid is not None or not width:
        table[0].sub_(wide.shape[-1] - valid)  # what does not count is NaN
    tables, starts = [table.flatten(0, 1)], {kind: i * rows for i, kind in enumerate(_KINDS)}
    end = rows * len(_KINDS)

    def append(kind: str, rows: int, reduced: Tensor) -> None:
        nonlocal end
        tables.append(reduced)
        starts[kind], end = end, end + rows

    append("valid", 1, valid)
    kinds = {kind for _, kind, _ in q.columns}
    if "nonfinite" in kinds:
        append("nonfinite", rows, valid - table[_N])
    if "negative_sum" in kinds:
        append("negative_sum", rows, -table[_SUM])
    if q.conditions:
        conditions = torch.stack(q.conditions)
        counted = conditions if q.valid is None else conditions & q.valid
        append("count", len(q.conditions), counted.sum(dim=-1, dtype=torch.float64))
    if q.pair is not None:
        first, second = q.pair
        append("product", 1, (wide[first] * wide[second]).sum(dim=-1)[None])
    if q.reduced is not None:
        append("reduced", 1, q.reduced[None])
    places = tuple([starts[kind] + place for _, kind, place in q.columns])
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


def _reduce(x: Tensor, complete: bool) -> tuple[Tensor, Tensor]:
    """Reduce the rows of x, [rows, n], to float64 [kinds, rows]; and return their finite elements, others as zeros.

    Args:
        x: NaN where an element does not count.
        complete: all elements count: on the host, rows without a NaN or an infinity are then not searched for them.
    """
    if complete and x.device.type == "cpu":
        lowest, highest = x.amin(dim=-1), x.amax(dim=-1)  # NaN if there is one
        if math.isfinite(float((highest - lowest).sum())):
            wide = x.to(torch.float64)
            table = wide.new_zeros(len(_KINDS), x.shape[0])
            table[_N].fill_(x.shape[-1])
            torch.sum(wide, dim=-1, out=table[_SUM])
            torch.sum(wide * wide, dim=-1, out=table[_SUM + 1])
            table[-2].copy_(lowest)
            table[-1].copy_(highest)
            return table, wide
    odd = torch.stack([torch.isnan(x), x == torch.inf, x == -torch.inf]).sum(dim=-1, dtype=torch.float64)
    lowest = torch.nan_to_num(x, nan=torch.inf, posinf=torch.inf, neginf=-torch.inf).amin(dim=-1)
    highest = torch.nan_to_num(x, nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf).amax(dim=-1)
    extremes = torch.stack([lowest, highest]).to(torch.float64).masked_fill_(odd[0] == x.shape[-1], torch.nan)
    wide = torch.nan_to_num(x, nan=0.0, posinf=0.0, neginf=0.0).to(torch.float64)
    n = x.shape[-1] - odd.sum(dim=0)
    return torch.cat([odd, torch.stack([n, wide.sum(dim=-1), (wide * wide).sum(dim=-1)]), extremes]), wide


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
