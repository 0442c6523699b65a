"""Gradient health of a set of parameters, collected without waiting for the device and read later."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Final

from torch import Tensor

from esper_recorder.arguments import check_type
from esper_recorder.instruments.measurement import Measurement, TensorStatistics, gradients_of

VANISHING: Final = 1e-7
"""The gradient of a tensor vanishes if its norm is below this."""

EXPLODING: Final = 5.0
"""It explodes if its norm is above this: ten times the norm of 0.5 that PPO clips to."""

VANISHING_WEIGHT: Final = 0.5
EXPLODING_WEIGHT: Final = 0.8
"""The health score is 1 less these times the fractions of tensors with a vanishing and an exploding gradient."""

MAX_NORM_RATIO: Final = 1000.0
MAX_ZERO_FRACTION: Final = 0.5
MIN_NORM: Final = 1e-10
"""The norm ratio divides the largest norm by the smallest, or by this if that is smaller still."""


@dataclass(frozen=True, slots=True)
class GradientHealth:
    """The gradients of some parameters; all but the counts is None if none of them has a gradient.

    Attributes:
        tensors: parameters with a gradient.
        without_gradient: parameters without one.
        elements: elements of those gradients.
        norm: L2 norm of all of them together; NaN if an element is not finite, like the next three.
        min_norm, max_norm: of single tensors.
        norm_ratio: the larger divided by the smaller, or by `MIN_NORM`.
        zero_fraction: of elements that are exactly zero.
        vanishing, exploding: tensors with a norm strictly below, or above, the threshold. One with a NaN or an infinity
            counts as exploding.
        score: 1 is healthy, 0 is not; see `VANISHING_WEIGHT`.
    """

    tensors: int
    without_gradient: int
    elements: int
    nan_count: int
    inf_count: int
    vanishing: int
    exploding: int
    norm: float | None = None
    min_norm: float | None = None
    max_norm: float | None = None
    norm_ratio: float | None = None
    zero_fraction: float | None = None
    score: float | None = None

    @property
    def is_healthy(self) -> bool | None:
        """Whether all is finite, no tensor explodes, and norm ratio and zero fraction are strictly below their limits.

        None without a gradient.
        """
        if self.norm_ratio is None or self.zero_fraction is None:
            return None
        return (
            not (self.nan_count or self.inf_count or self.exploding)
            and self.norm_ratio < MAX_NORM_RATIO
            and self.zero_fraction < MAX_ZERO_FRACTION
        )


@dataclass(frozen=True, slots=True)
class DualGradientHealth:
    """The gradients of a host network and of a seed grown in it.

    Attributes:
        normalized_ratio: root mean square of the seed's gradient divided by the host's, so that their sizes do not
            matter: 1.0 if they are equal, None if one of the two has no gradient, NaN if both are zero or one is not
            finite, infinite if only the host's is zero.
    """

    host: GradientHealth
    seed: GradientHealth
    normalized_ratio: float | None


class _Pending:
    """Collected gradients of named sets of parameters; their statistics are on the way to the host, in one transfer."""

    def __init__(self, vanishing: float, exploding: float, **parameters: Iterable[Tensor]) -> None:
        check_type("vanishing", vanishing, (float, int), "a number")
        check_type("exploding", exploding, (float, int), "a number")
        self._thresholds = float(vanishing), float(exploding)
        self._counts: list[tuple[int, int]] = []  # of each set: parameters with a gradient, and without one
        gradients: dict[str, Tensor] = {}
        for name, members in parameters.items():
            tensors = _numbered(name, members)
            of_set = gradients_of(tensors)
            gradients |= {f"the gradient of {number}": gradient for number, gradient in of_set.items()}
            self._counts.append((len(of_set), len(tensors) - len(of_set)))
        self._measurement = Measurement(gradients)

    @property
    def ready(self) -> bool:
        """Whether `materialise` need not wait."""
        return self._measurement.done

    def _health(self) -> Iterator[GradientHealth]:
        statistics = (gradient for _, gradient in self._measurement.statistics())
        for measured, without in self._counts:
            yield _health(list(itertools.islice(statistics, measured)), without, *self._thresholds)


class PendingGradients(_Pending):
    """Collected gradients whose statistics are on the way to the host."""

    def materialise(self) -> GradientHealth:
        """Return the health; waits for the statistics if need be."""
        [health] = self._health()
        return health


class PendingDualGradients(_Pending):
    """Collected gradients of a host and a seed, whose statistics are on the way to the host in one transfer."""

    def materialise(self) -> DualGradientHealth:
        """Return the health of both; waits for the statistics if need be."""
        host, seed = self._health()
        return DualGradientHealth(host, seed, _normalized_ratio(host, seed))


def collect_gradients(
    parameters: Iterable[Tensor], *, vanishing: float = VANISHING, exploding: float = EXPLODING
) -> PendingGradients:
    """Begin to collect the current gradients of some parameters, on any devices.

    Nothing the size of the model is allocated, and no gradient is kept.

    Raises:
        TypeError: one of `parameters` is not a tensor, its gradient is complex, or a threshold is not a number.
    """
    return PendingGradients(vanishing, exploding, parameters=parameters)


def collect_dual_gradients(
    host: Iterable[Tensor], seed: Iterable[Tensor], *, vanishing: float = VANISHING, exploding: float = EXPLODING
) -> PendingDualGradients:
    """Begin to collect the gradients of a host and of a seed; raises as `collect_gradients`."""
    return PendingDualGradients(vanishing, exploding, host=host, seed=seed)


def _numbered(name: str, parameters: Iterable[Tensor]) -> list[tuple[str, Tensor]]:
    check_type(name, parameters, Iterable, "an iterable of parameters")
    tensors = [(f"{name}[{i}]", parameter) for i, parameter in enumerate(parameters)]
    for number, parameter in tensors:
        check_type(number, parameter, Tensor, "tensors, as model.parameters() does")
    return tensors


def _health(gradients: Sequence[TensorStatistics], without: int, vanishing: float, exploding: float) -> GradientHealth:
    norms = [_norm(gradient) for gradient in gradients]
    low = sum(norm < vanishing for norm in norms)
    high = sum(norm > exploding or math.isnan(norm) for norm in norms)
    counts = GradientHealth(
        tensors=len(gradients),
        without_gradient=without,
        elements=sum(gradient.n for gradient in gradients),
        nan_count=sum(gradient.nan_count for gradient in gradients),
        inf_count=sum(gradient.inf_count for gradient in gradients),
        vanishing=low,
        exploding=high,
    )
    if not counts.elements:
        return counts
    finite = not (counts.nan_count or counts.inf_count)
    smallest, largest = (min(norms), max(norms)) if finite else (math.nan, math.nan)
    return replace(
        counts,
        norm=math.hypot(*norms) if finite else math.nan,
        min_norm=smallest,
        max_norm=largest,
        norm_ratio=largest / max(smallest, MIN_NORM) if finite else math.nan,
        zero_fraction=sum(gradient.zeros for gradient in gradients) / counts.elements,
        score=max(1.0 - (VANISHING_WEIGHT * low + EXPLODING_WEIGHT * high) / len(gradients), 0.0),
    )


def _norm(gradient: TensorStatistics) -> float:
    """The norm of one tensor; NaN if it is not finite, 0 if it has no elements."""
    if gradient.nan_count or gradient.inf_count:
        return math.nan
    return gradient.norm or 0.0


def _normalized_ratio(host: GradientHealth, seed: GradientHealth) -> float | None:
    if host.norm is None or seed.norm is None:
        return None
    host_rms, seed_rms = host.norm / math.sqrt(host.elements), seed.norm / math.sqrt(seed.elements)
    if host_rms == 0.0:
        return math.inf if seed_rms > 0.0 else math.nan
    return seed_rms / host_rms
