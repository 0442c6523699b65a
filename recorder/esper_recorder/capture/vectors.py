"""Columns with NULLs as tensors, to compute the metrics of many minibatches at once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor


@dataclass(slots=True)
class Vector:
    """A column of float64 numbers [n], and whether each is valid, bool [n], or NULL; None if none is NULL."""

    values: Tensor
    valid: Tensor | None = None
    _zeros: bool | None = None

    @property
    def has_zeros(self) -> bool:
        """Whether one of the numbers is zero; computed once."""
        if self._zeros is None:
            self._zeros = not bool(self.values.all())
        return self._zeros

    @property
    def measured(self) -> Tensor:
        """The numbers that are not NULL."""
        return self.values if self.valid is None else self.values[self.valid]

    def to_list(self) -> list[float | None]:
        """The numbers, and None for NULL."""
        values: list[float | None] = self.values.tolist()
        if self.valid is None:
            return values
        return [x if valid else None for x, valid in zip(values, self.valid.tolist(), strict=True)]

    def to_arrow(self, *, whole: bool = False) -> pa.Array:
        """Convert to an Arrow array: of int64 if `whole`, else of float64."""
        kind = pa.int64() if whole else pa.float64()
        values = array((self.values.to(torch.int64) if whole else self.values).contiguous())
        if isinstance(values, list):
            values = pa.array(values, type=kind).buffers()[1]
        # Not pa.array, which looks for masked arrays and so imports a part of NumPy that nothing else needs.
        return pa.Array.from_buffers(kind, len(self.values), [bitmap(self.valid), pa.py_buffer(values)])


class VectorArithmetic:
    """`contract.metrics.Arithmetic` of vectors and numbers."""

    def subtract(self, a: Any, b: Any) -> Any:
        return self._combine(a, b, lambda x, y: x - y)

    def multiply(self, a: Any, b: Any) -> Any:
        return self._combine(a, b, lambda x, y: x * y)

    def divide(self, a: Any, b: Any, of: Any = None) -> Any:
        if a is None or b is None:
            return None
        counted = b if of is None else of
        values = a.values / b.values
        if b.has_zeros:
            values = torch.where(b.values != 0, values, torch.nan)
        valid = _both(_both(a.valid, b.valid), counted.valid)
        return Vector(values, _both(valid, counted.values != 0) if counted.has_zeros else valid)

    def root(self, a: Any) -> Any:
        if a is None:
            return None
        # Not torch's: that, and its power of 0.5, use MKL, which starts a pool of threads for a few numbers.
        values = array(a.values.clamp(min=0.0).contiguous())
        roots = [math.sqrt(x) for x in values] if isinstance(values, list) else values**0.5
        return Vector(torch.as_tensor(roots, dtype=torch.float64), a.valid)

    def ratio(self, a: Any, b: Any, least: Any) -> Any:
        if a is None or b is None or least is None:
            return None
        values = torch.where(b.values > least.values, a.values / b.values, torch.nan)
        return Vector(values, _both(_both(a.valid, b.valid), least.valid))

    @staticmethod
    def _combine(a: Any, b: Any, operation: Any) -> Any:
        if a is None or b is None:
            return None
        if isinstance(a, Vector) and isinstance(b, Vector):
            return Vector(operation(a.values, b.values), _both(a.valid, b.valid))
        if isinstance(a, Vector):
            return Vector(operation(a.values, b), a.valid)
        if isinstance(b, Vector):
            return Vector(operation(a, b.values), b.valid)
        return operation(a, b)


def bitmap(valid: Tensor | None) -> pa.Buffer | None:
    """Convert the validity of a column, bool [n], to Arrow's; None if all of it is valid."""
    if valid is None or bool(valid.all()):
        return None
    return pa.array(valid.tolist(), type=pa.bool_()).buffers()[1]


def vector_of(values: Sequence[float | None]) -> Vector:
    """Make a column of a list, None for NULL."""
    valid = None if None not in values else torch.tensor([v is not None for v in values])
    return Vector(torch.tensor([0.0 if v is None else v for v in values], dtype=torch.float64), valid)


def _both(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    if a is None or a is b:
        return b
    return a if b is None else a & b


def array(tensor: Tensor) -> Any:
    """A NumPy array without copying; a list if torch was built without NumPy."""
    try:
        return tensor.numpy()
    except RuntimeError:
        return tensor.tolist()
