"""Random tensors for the tests of the reductions, and plain float64 arithmetic to hold them against."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from hypothesis import strategies as st
from torch import Tensor

ODD = (
    0.0,
    -0.0,
    math.nan,
    math.inf,
    -math.inf,
    1.0,
    -1.0,
    2.0**-20,
    2.0**-21,
    -(2.0**5),
    33.0,
    1e-45,
    88.7,
    89.0,
    200.0,
    3e38,
)
"""Values where something turns: edges of bins, what exp cannot hold, the smallest number there is."""

number = st.one_of(
    st.floats(-3.0, 3.0, width=32),
    st.sampled_from(ODD),
    st.floats(width=32),
)


@st.composite
def rows_of_numbers(draw: st.DrawFn, names: Sequence[str], *, most: int = 12) -> tuple[dict[str, Tensor], Tensor]:
    """Fields of one shape [rows, n] (n may be zero) as float32 or float64, contiguous or not, and a mask."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    rows, n = draw(st.integers(1, 3)), draw(st.integers(0, most))
    dtype = draw(st.sampled_from([torch.float32, torch.float64]))
    share = draw(st.sampled_from([0.0, 0.1, 0.7]))
    fields = {name: random_tensor(random, (rows, n), dtype, odd=share) for name in names}
    return fields, torch.from_numpy(random.random((rows, n)) < random.choice([0.0, 0.5, 1.0, 1.0]))


def random_tensor(random: np.random.Generator, shape: tuple[int, ...], dtype: torch.dtype, *, odd: float) -> Tensor:
    """Normal numbers, a fraction of them odd, in one of three memory layouts."""
    values = np.where(random.random(shape) < odd, random.choice(ODD, shape), random.normal(size=shape))
    tensor = torch.from_numpy(values).to(dtype)
    layout = random.choice(["contiguous", "transposed", "strided"])
    if layout == "transposed":
        return tensor.t().contiguous().t()
    if layout == "strided":
        wide = torch.full((*shape[:-1], 2 * shape[-1]), math.nan, dtype=dtype)
        wide[..., ::2] = tensor
        return wide[..., ::2]
    return tensor


def finite(values: Iterable[float]) -> list[float]:
    return [v for v in values if math.isfinite(v)]


def numbers(values: Iterable[float]) -> list[float]:
    return [v for v in values if not math.isnan(v)]


def total(values: Iterable[float]) -> float:
    """The sum of the finite values, without rounding on the way. Infinite where float64 cannot hold it."""
    try:
        return math.fsum(finite(values))
    except OverflowError:
        return math.inf


def total_sq(values: Iterable[float]) -> float:
    return math.fsum(v * v for v in finite(values))


def same(ours: Any, reference: float, size: float = 0.0) -> bool:
    """Equal, NaN to NaN; finite numbers within rounding of a sum whose summands add up to `size` by absolute value."""
    ours = float(ours)
    if math.isnan(reference) or math.isinf(reference) or not math.isfinite(ours):
        return bool(repr(ours) == repr(float(reference)) or ours == reference)
    return bool(abs(ours - reference) <= 1e-12 * max(size, abs(reference)))
