"""Statistics of each layer's gradient, with one transfer to the host."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch

from esper_recorder.instruments.measurement import Measurement, TensorStatistics, gradients_of, named_parameters

SMALL: Final = 1e-6
"""An element is small if its absolute value is below this."""

LARGE: Final = 10.0
"""An element is large if its absolute value is above this."""


class GradientState(StrEnum):
    """Whether there was something to measure."""

    MEASURED = "measured"
    NO_GRADIENTS = "no gradients"
    NO_PARAMETERS = "no parameters"


@dataclass(frozen=True, slots=True)
class LayerGradientStats:
    """The gradient of one parameter tensor.

    Moments are over its finite elements, NaN if it has none. A parameter without elements has only its name and counts;
    all else is None.

    Attributes:
        grad_std: over the population (divided by n, not by n - 1).
        grad_min, grad_max: infinities included; NaN if all elements are NaN.
        zero_fraction: of elements that are exactly zero.
        small_fraction: of elements with |g| < `SMALL`, strictly, zeros included. They are counted, because the
            recorded histogram could only bound them: its edges are powers of two.
        large_fraction: of elements with |g| > `LARGE`, strictly, infinities included.
    """

    layer_name: str
    param_count: int
    grad_norm: float | None
    grad_mean: float | None
    grad_std: float | None
    grad_min: float | None
    grad_max: float | None
    zero_fraction: float | None
    small_fraction: float | None
    large_fraction: float | None
    nan_count: int
    inf_count: int


@dataclass(frozen=True, slots=True)
class LayerGradients:
    """The gradients of a model.

    Attributes:
        layers: of the parameters with a gradient, in the model's order.
        without_gradient: the names of the others.
    """

    layers: tuple[LayerGradientStats, ...]
    without_gradient: tuple[str, ...]

    @property
    def state(self) -> GradientState:
        """Distinguishes a model whose parameters have no gradient from one without parameters."""
        if self.layers:
            return GradientState.MEASURED
        return GradientState.NO_GRADIENTS if self.without_gradient else GradientState.NO_PARAMETERS


def collect_per_layer_gradients(model: torch.nn.Module) -> LayerGradients:
    """Measure the current gradients of a model.

    Gradients may have any floating type and layout, and lie on several devices; all statistics come to the host in one
    transfer, and nothing the size of the model is allocated.

    Raises:
        TypeError: `model` is not a module, or a gradient is complex.
    """
    parameters = named_parameters(model)
    gradients = gradients_of(parameters)
    measurement = Measurement(
        {f"the gradient of {name}": gradient for name, gradient in gradients.items()}, below=SMALL, above=LARGE
    )
    statistics = (of_tensor for _, of_tensor in measurement.statistics())
    return LayerGradients(
        layers=tuple([_layer(name, of_tensor) for name, of_tensor in zip(gradients, statistics, strict=True)]),
        without_gradient=tuple([name for name, _ in parameters if name not in gradients]),
    )


def _layer(name: str, gradient: TensorStatistics) -> LayerGradientStats:
    return LayerGradientStats(
        layer_name=name,
        param_count=gradient.n,
        grad_norm=gradient.norm,
        grad_mean=gradient.mean,
        grad_std=gradient.std,
        grad_min=gradient.min,
        grad_max=gradient.max,
        zero_fraction=gradient.fraction(gradient.zeros),
        small_fraction=gradient.fraction(gradient.below),
        large_fraction=gradient.fraction(gradient.above),
        nan_count=gradient.nan_count,
        inf_count=gradient.inf_count,
    )
