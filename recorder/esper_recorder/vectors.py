"""Whole columns as one tensor with its NULLs: what the metrics of many minibatches are computed with at once."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Vector:
    """A float64 column of numbers [n] and where it is not NULL, bool [n]."""

    values: Tensor
    valid: Tensor

    def to_arrow(self, *, whole: bool = False) -> pa.Array:
        """As an Arrow array: of int64 where `whole`, else of float64."""
        values = array((self.values.to(torch.int64) if whole else self.values).contiguous())
        if bool(self.valid.all()):
            if isinstance(values, list):
                return pa.array(values, type=pa.int64() if whole else pa.float64())
            kind = pa.int64() if whole else pa.float64()
            return pa.Array.from_buffers(kind, len(values), [None, pa.py_buffer(values)])
        return pa.array(values, mask=array(~self.valid))


class Vectors:
    """`contract.metrics.Arithmetic` of vectors and plain numbers."""

    def subtract(self, a: Any, b: Any) -> Any:
        return self._combine(a, b, lambda x, y: x - y)

    def multiply(self, a: Any, b: Any) -> Any:
        return self._combine(a, b, lambda x, y: x * y)

    def divide(self, a: Any, b: Any, of: Any = None) -> Any:
        if a is None or b is None:
            return None
        counted = b if of is None else of
        values = torch.where(b.values != 0, a.values / b.values, torch.nan)
        return Vector(values, _both(_both(a.valid, b.valid), counted.valid) & (counted.values != 0))

    def root(self, a: Any) -> Any:
        # Not torch.sqrt: that goes through MKL, which raises a pool of threads in the writer's thread for it.
        return None if a is None else Vector(a.values.clamp(min=0.0).pow(0.5), a.valid)

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


def vector(values: Tensor) -> Vector:
    """A column without NULLs."""
    return Vector(values, torch.ones(values.shape[0], dtype=torch.bool))


def vector_of(values: Sequence[float | None]) -> Vector:
    """A column from a list, None for NULL."""
    return Vector(
        torch.tensor([0.0 if v is None else v for v in values], dtype=torch.float64),
        torch.tensor([v is not None for v in values]),
    )


def _both(a: Tensor, b: Tensor) -> Tensor:
    return a if a is b else a & b


def array(tensor: Tensor) -> Any:
    """What Arrow takes without copying where torch has NumPy to hand, and a list where it has not."""
    try:
        return tensor.numpy()
    except RuntimeError:
        return tensor.tolist()
