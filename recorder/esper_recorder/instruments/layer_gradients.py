"""What each layer's gradient looks like, at one transfer to the host."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

import torch

from esper_recorder.contract.metrics import derive_layer
from esper_recorder.instruments.measurement import Figures, Measurement, gradients_of, named_parameters

SMALL: Final = 1e-6
"""Elements of less than this, by absolute value, are small."""

LARGE: Final = 10.0
"""Elements of more than this, by absolute value, are large."""


class GradientState(StrEnum):
    """Whether there was something to measure."""

    MEASURED = "measured"
    NO_GRADIENTS = "no gradients"
    NO_PARAMETERS = "no parameters"


@dataclass(frozen=True, slots=True)
class LayerGradientStats:
    """The gradient of one parameter tensor.

    Moments are over its finite elements, NaN where there is none. Of a parameter without elements nothing but its name
    and its counts is measured; the rest is None.

    Attributes:
        grad_std: over the population (divided by n, not by n - 1).
        grad_min, grad_max: of its numbers, infinities included; NaN where all are NaN.
        zero_fraction: share of the elements that are exactly zero.
        small_fraction: share with |g| < `SMALL`, strictly, zeros included. Counted, not read from the recorded
            histogram: `SMALL` and `LARGE` are no powers of two, so a histogram can only bound them.
        large_fraction: share with |g| > `LARGE`, strictly, infinities included.
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
        layers: of the parameters that have a gradient, in the model's order.
        without_gradient: the names of the others.
    """

    layers: tuple[LayerGradientStats, ...]
    without_gradient: tuple[str, ...]

    @property
    def state(self) -> GradientState:
        """A model of which no parameter has a gradient is not one without parameters."""
        if self.layers:
            return GradientState.MEASURED
        return GradientState.NO_GRADIENTS if self.without_gradient else GradientState.NO_PARAMETERS


def collect_per_layer_gradients(model: torch.nn.Module) -> LayerGradients:
    """Measure the gradients of a model as they stand.

    Gradients may be of any floating type and layout, and on several devices; all figures come to the host in one
    transfer, and nothing the size of the model is allocated.

    Raises:
        TypeError: `model` is no module, or a gradient is complex.
    """
    parameters = named_parameters(model)
    gradients = gradients_of(parameters)
    for name, gradient in gradients.items():
        if gradient.is_complex():
            raise TypeError(
                f"the gradient of {name} is {gradient.dtype}: complex numbers have no order, so neither a least nor a "
                "greatest; keep the parameter as torch.view_as_real of it"
            )
    measured = Measurement(gradients, below=SMALL, above=LARGE)
    return LayerGradients(
        layers=tuple([_stats(name, figures) for name, figures in measured.figures()]),
        without_gradient=tuple([name for name, _ in parameters if name not in gradients]),
    )


def _stats(name: str, figures: Figures) -> LayerGradientStats:
    derived = derive_layer(figures)
    n = int(figures["n"])

    def share(count: str) -> float | None:
        return figures[count] / n if n else None

    return LayerGradientStats(
        layer_name=name,
        param_count=n,
        grad_norm=derived["grad_norm"],
        grad_mean=derived["grad_mean"],
        grad_std=derived["grad_std"],
        grad_min=figures["grad_min"] if n else None,
        grad_max=figures["grad_max"] if n else None,
        zero_fraction=share("grad_zero"),
        small_fraction=share("below"),
        large_fraction=share("above"),
        nan_count=int(figures["grad_nan"]),
        inf_count=int(figures["grad_posinf"] + figures["grad_neginf"]),
    )
