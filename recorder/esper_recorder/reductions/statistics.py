"""Named statistics in one float64 tensor, and the elementary reductions they are made of."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

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
"""Which elements count, bool of their shape. None: all do, and every number and all that is computed from it is finite.
A caller on the host that has checked so saves most of the work, which is to separate the numbers from the rest."""

FAR = 1e12
"""Numbers up to it have finite squares, as have their differences, in float32 too."""


def within(x: Tensor, limit: float) -> bool:
    """Whether all numbers, at least one, are finite and between -limit and limit. Waits for a tensor on a device."""
    lowest, highest = torch.aminmax(x)
    return -limit <= float(lowest) and float(highest) <= limit  # false for NaN


def count(condition: Tensor, valid: Valid = None) -> Tensor:
    """Count the (valid) elements of the last dimension that are true."""
    return (condition if valid is None else valid & condition).sum(dim=-1)


def count_valid(x: Tensor, valid: Valid) -> Tensor:
    """Count the valid elements of the last dimension."""
    return _all(x) if valid is None else valid.sum(dim=-1)


def count_finite(x: Tensor, valid: Valid) -> Tensor:
    """Count the finite valid elements of the last dimension."""
    return _all(x) if valid is None else (valid & torch.isfinite(x)).sum(dim=-1)


def finite_sum(x: Tensor, valid: Valid) -> Tensor:
    """Sum the finite valid elements of the last dimension in float64."""
    return _finite(x, valid).sum(dim=-1, dtype=torch.float64)


def finite_sums(x: Tensor, valid: Valid) -> tuple[Tensor, Tensor]:
    """Sum the finite valid elements of the last dimension, and their squares, in float64."""
    wide = _finite(x, valid).to(torch.float64)
    return wide.sum(dim=-1), (wide * wide).sum(dim=-1)


def extremes(x: Tensor, valid: Valid) -> tuple[Tensor, Tensor]:
    """Smallest and largest valid number of the last dimension, infinities included; NaN if there is not one."""
    if x.shape[-1] == 0:
        nan = torch.full(x.shape[:-1], torch.nan, dtype=torch.float64, device=x.device)
        return nan, nan
    if valid is None:
        return x.amin(dim=-1), x.amax(dim=-1)
    number = valid & ~torch.isnan(x)
    lowest = torch.where(number, x, torch.inf).amin(dim=-1)
    highest = torch.where(number, x, -torch.inf).amax(dim=-1)
    has_number = number.any(dim=-1)
    return torch.where(has_number, lowest, torch.nan), torch.where(has_number, highest, torch.nan)


def count_nonfinite(into: StatisticsBuilder, name: str, x: Tensor, valid: Valid) -> None:
    """Add `<name>_nan`, `<name>_posinf` and `<name>_neginf`."""
    if valid is None:
        for kind in ("nan", "posinf", "neginf"):
            into.add(f"{name}_{kind}", _none(x))
        return
    into.add(f"{name}_nan", count(torch.isnan(x), valid))
    into.add(f"{name}_posinf", count(x == torch.inf, valid))
    into.add(f"{name}_neginf", count(x == -torch.inf, valid))


def _finite(x: Tensor, valid: Valid) -> Tensor:
    return x if valid is None else torch.where(valid & torch.isfinite(x), x, 0)


def _all(x: Tensor) -> Tensor:
    return torch.full(x.shape[:-1], x.shape[-1], dtype=torch.float64, device=x.device)


def _none(x: Tensor) -> Tensor:
    return torch.zeros(x.shape[:-1], dtype=torch.float64, device=x.device)


def exponent(x: Tensor) -> Tensor:
    """floor(log2 |x|), read from the bits of float32 or float64.

    Zero and subnormals have less than any normal number, infinities and NaN 128 (float64: 1024).
    """
    if x.dtype == torch.float64:
        return ((x.view(torch.int64) >> 52) & 0x7FF) - 1023
    return ((x.view(torch.int32) >> 23) & 0xFF) - 127


def from_host(values: Sequence[float | bool | int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """Make a tensor on a device of a small list on the host, without waiting for the device."""
    return to_device(torch.tensor(values, dtype=dtype, device="cpu"), device)  # the trainer may have another default


def to_device(x: Tensor, device: torch.device) -> Tensor:
    """Move a tensor to a device, without waiting if it comes from the host."""
    if x.device.type != "cpu" or device.type != "cuda":
        return x.to(device)
    return x.pin_memory().to(device, non_blocking=True)


def wide_enough(x: Tensor) -> Tensor:
    """Convert half types to float32: the precision that elementwise terms are computed in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
