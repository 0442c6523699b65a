"""A packed result: many statistics in one float64 tensor, with their names."""

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
    """Gathers statistics under their names and packs them at the end."""

    names: list[str] = field(default_factory=list)
    values: list[Tensor] = field(default_factory=list)

    def add(self, name: str, value: Tensor) -> None:
        self.names.append(name)
        self.values.append(value.to(torch.float64))

    def build(self) -> Statistics:
        """Stack along a new last dimension."""
        return Statistics(tuple(self.names), torch.stack(self.values, dim=-1))


Valid = Tensor | None
"""Which elements count, bool of their shape; None where all do, and every number is finite, and so is what comes of it:
then there is nothing to tell apart, and a caller on the host who has looked saves most of the work."""


FAR = 1e12
"""Numbers up to it have finite squares, and so have their differences, in float32 too."""


def within(x: Tensor, limit: float) -> bool:
    """Whether all numbers, at least one, are finite and between -limit and limit. It waits for what is on a device."""
    lowest, highest = torch.aminmax(x)
    return -limit <= float(lowest) and float(highest) <= limit  # never so for NaN


def count(where: Tensor, valid: Valid = None) -> Tensor:
    """How many (valid) elements of the last dimension are true."""
    return (where if valid is None else valid & where).sum(dim=-1)


def count_valid(x: Tensor, valid: Valid) -> Tensor:
    """How many elements of the last dimension are valid."""
    return _all(x) if valid is None else valid.sum(dim=-1)


def count_finite(x: Tensor, valid: Valid) -> Tensor:
    """How many elements of the last dimension are finite and valid."""
    return _all(x) if valid is None else (valid & torch.isfinite(x)).sum(dim=-1)


def finite_sum(x: Tensor, valid: Valid) -> Tensor:
    """Float64 sum over the last dimension of the elements that are finite and valid."""
    return _finite(x, valid).sum(dim=-1, dtype=torch.float64)


def finite_sums(x: Tensor, valid: Valid) -> tuple[Tensor, Tensor]:
    """Float64 sum and sum of squares over the last dimension of the elements that are finite and valid."""
    wide = _finite(x, valid).to(torch.float64)
    return wide.sum(dim=-1), (wide * wide).sum(dim=-1)


def extremes(x: Tensor, valid: Valid) -> tuple[Tensor, Tensor]:
    """Smallest and largest valid number of the last dimension, infinities included; NaN where there is none."""
    if x.shape[-1] == 0:
        nothing = torch.full(x.shape[:-1], torch.nan, dtype=torch.float64, device=x.device)
        return nothing, nothing
    if valid is None:
        return x.amin(dim=-1), x.amax(dim=-1)
    number = valid & ~torch.isnan(x)
    lowest = torch.where(number, x, torch.inf).amin(dim=-1)
    highest = torch.where(number, x, -torch.inf).amax(dim=-1)
    some = number.any(dim=-1)
    return torch.where(some, lowest, torch.nan), torch.where(some, highest, torch.nan)


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
    """floor(log2 |x|), read from the bits of float32 or float64; less than any normal number's for zero and subnormals.

    Infinities and NaN have 128 (float64: 1024).
    """
    if x.dtype == torch.float64:
        return ((x.view(torch.int64) >> 52) & 0x7FF) - 1023
    return ((x.view(torch.int32) >> 23) & 0xFF) - 127


def from_host(values: Sequence[float | bool | int], dtype: torch.dtype, device: torch.device) -> Tensor:
    """A small host list as a tensor on the device, without waiting for the device."""
    tensor = torch.tensor(values, dtype=dtype, device="cpu")  # whatever the trainer's default device is
    if device.type != "cuda":
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def wide_enough(x: Tensor) -> Tensor:
    """Half types as float32, others as they are: the precision elementwise terms are computed in."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x
