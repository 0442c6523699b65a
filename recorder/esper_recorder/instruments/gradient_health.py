"""Gradient health of a set of parameters, collected without waiting for the device and looked at later."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from esper_recorder.contract.metrics import derive_layer
from esper_recorder.instruments.measurement import Figures, Measurement

VANISHING: Final = 1e-7
"""A tensor whose gradient has a smaller norm has a vanishing one."""

EXPLODING: Final = 5.0
"""A tensor whose gradient has a larger norm has an exploding one: ten times the norm of 0.5 that PPO clips to."""

VANISHING_WEIGHT: Final = 0.5
EXPLODING_WEIGHT: Final = 0.8
"""The health score is 1 less these times the shares of tensors with a vanishing and an exploding gradient."""

LARGEST_NORM_RATIO: Final = 1000.0
LARGEST_ZERO_FRACTION: Final = 0.5
LEAST_NORM: Final = 1e-10
"""The norm ratio is that of the largest norm to the smallest, which counts as at least this."""


@dataclass(frozen=True, slots=True)
class GradientHealth:
    """The gradients of some parameters; every figure but the counts is None where none of them has a gradient.

    Attributes:
        tensors: parameters with a gradient.
        without_gradient: parameters without one.
        elements: elements of those gradients.
        norm: L2 norm of all of them together; NaN where one of them is not finite, as are the next three.
        min_norm, max_norm: of the single tensors.
        norm_ratio: the larger divided by the smaller, or by `LEAST_NORM`.
        zero_fraction: share of the elements that are exactly zero.
        vanishing, exploding: tensors with a norm below, or above, the threshold, strictly. One that holds a NaN or an
            infinity counts as exploding.
        score: 1 is healthy, 0 is not; see `VANISHING_WEIGHT`.
    """

    tensors: int
    without_gradient: int
    elements: int
    nan_count: int
    inf_count: int
    vanishing: int
    exploding: int
    norm: float | None
    min_norm: float | None
    max_norm: float | None
    norm_ratio: float | None
    zero_fraction: float | None
    score: float | None

    @property
    def is_healthy(self) -> bool | None:
        """Finite, no tensor exploding, norm ratio and share of zeros strictly below their limits; None: no gradient."""
        if self.norm_ratio is None or self.zero_fraction is None:
            return None
        return (
            not (self.nan_count or self.inf_count or self.exploding)
            and self.norm_ratio < LARGEST_NORM_RATIO
            and self.zero_fraction < LARGEST_ZERO_FRACTION
        )


@dataclass(frozen=True, slots=True)
class DualGradientHealth:
    """The gradients of a host network and of a seed grown in it.

    Attributes:
        host, seed: of each by itself.
        normalized_ratio: root mean square of the seed's gradient divided by the host's, so that sizes do not count:
            1.0 where they are equal; None where one of the two has no gradient; NaN where both are zero or one is not
            finite; infinite where the host's alone is zero.
    """

    host: GradientHealth
    seed: GradientHealth
    normalized_ratio: float | None


class PendingGradients:
    """Gradients that were collected; their figures are on their way to the host."""

    def __init__(self, parameters: Sequence[Tensor], vanishing: float, exploding: float) -> None:
        self._limits = vanishing, exploding
        self._without = sum(p.grad is None for p in parameters)
        self._measured = Measurement(_gradients(0, parameters))

    @property
    def ready(self) -> bool:
        """Whether `materialise` need not wait."""
        return self._measured.done

    def materialise(self) -> GradientHealth:
        """The figures; waits for them if need be."""
        return _health([own for _, own in self._measured.figures()], self._without, *self._limits)


class PendingDualGradients:
    """Gradients of a host and a seed that were collected; their figures are on their way, in one transfer."""

    def __init__(self, host: Sequence[Tensor], seed: Sequence[Tensor], vanishing: float, exploding: float) -> None:
        self._limits = vanishing, exploding
        self._without = [sum(p.grad is None for p in side) for side in (host, seed)]
        self._measured = Measurement(_gradients(0, host) | _gradients(1, seed))

    @property
    def ready(self) -> bool:
        """Whether `materialise` need not wait."""
        return self._measured.done

    def materialise(self) -> DualGradientHealth:
        """The figures; waits for them if need be."""
        found = list(self._measured.figures())
        host, seed = (
            _health([own for (side, _), own in found if side == place], self._without[place], *self._limits)
            for place in (0, 1)
        )
        return DualGradientHealth(host, seed, _ratio(host, seed))


def collect_gradients(
    parameters: Iterable[Tensor], *, vanishing: float = VANISHING, exploding: float = EXPLODING
) -> PendingGradients:
    """Begin to collect the gradients of some parameters as they stand, on any devices.

    Nothing the size of the model is allocated, and no gradient is held on to.

    Raises:
        TypeError: one of `parameters` is no tensor, its gradient is complex, or a threshold is no number.
    """
    return PendingGradients(_checked("parameters", parameters), *_limits(vanishing, exploding))


def collect_dual_gradients(
    host: Iterable[Tensor], seed: Iterable[Tensor], *, vanishing: float = VANISHING, exploding: float = EXPLODING
) -> PendingDualGradients:
    """Begin to collect the gradients of a host and of a seed; raises as `collect_gradients`."""
    limits = _limits(vanishing, exploding)
    return PendingDualGradients(_checked("host", host), _checked("seed", seed), *limits)


def _checked(what: str, parameters: Any) -> list[Tensor]:
    try:
        found = list(parameters)
    except TypeError:
        raise TypeError(f"{what} is a {type(parameters).__name__}; give an iterable of parameters") from None
    for place, p in enumerate(found):
        if not isinstance(p, Tensor):
            raise TypeError(f"{what}[{place}] is a {type(p).__name__}; give tensors, as model.parameters() does")
        if p.grad is not None and p.grad.is_complex():
            raise TypeError(f"the gradient of {what}[{place}] is {p.grad.dtype}; give torch.view_as_real parameters")
    return found


def _limits(vanishing: Any, exploding: Any) -> tuple[float, float]:
    for name, value in (("vanishing", vanishing), ("exploding", exploding)):
        if isinstance(value, bool) or not isinstance(value, float | int):
            raise TypeError(f"{name} is a {type(value).__name__}; give a number")
    return float(vanishing), float(exploding)


def _gradients(side: int, parameters: Sequence[Tensor]) -> dict[tuple[int, int], Tensor]:
    return {(side, place): p.grad.detach() for place, p in enumerate(parameters) if p.grad is not None}


def _health(found: Sequence[Figures], without: int, vanishing: float, exploding: float) -> GradientHealth:
    elements = int(sum(own["n"] for own in found))
    nan, inf = (int(sum(own[name] for own in found for name in names)) for names in (_NAN, _INF))
    norms = [_norm(own) for own in found]
    low = sum(norm < vanishing for norm in norms)
    high = sum(norm > exploding or math.isnan(norm) for norm in norms)
    counts = (len(found), without, elements, nan, inf, low, high)
    if not elements:
        return GradientHealth(*counts, None, None, None, None, None, None)
    finite = not (nan or inf)
    smallest, largest = (min(norms), max(norms)) if finite else (math.nan, math.nan)
    score = 1.0 - VANISHING_WEIGHT * low / len(found) - EXPLODING_WEIGHT * high / len(found)
    return GradientHealth(
        *counts,
        norm=math.hypot(*norms) if finite else math.nan,
        min_norm=smallest,
        max_norm=largest,
        norm_ratio=largest / max(smallest, LEAST_NORM) if finite else math.nan,
        zero_fraction=sum(own["grad_zero"] for own in found) / elements,
        score=min(max(score, 0.0), 1.0),
    )


_NAN: Final = ("grad_nan",)
_INF: Final = ("grad_posinf", "grad_neginf")


def _norm(own: Figures) -> float:
    """Of one tensor; NaN where it is not finite, 0 where it has no elements."""
    if not own["n"]:
        return 0.0
    if any(own[name] for name in (*_NAN, *_INF)):
        return math.nan
    norm: float = derive_layer(own)["grad_norm"]
    return norm


def _ratio(host: GradientHealth, seed: GradientHealth) -> float | None:
    if host.norm is None or seed.norm is None:
        return None
    of_host, of_seed = (one.norm / math.sqrt(one.elements) for one in (host, seed) if one.norm is not None)
    if of_host == 0.0:
        return math.inf if of_seed > 0.0 else math.nan
    return of_seed / of_host
