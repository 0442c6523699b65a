"""Which weights and gradients are not finite, by name, with one transfer to the host."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from esper_recorder.arguments import BadCall, check_type
from esper_recorder.instruments.measurement import Measurement, TensorStatistics, gradients_of, named_parameters


@dataclass(frozen=True, slots=True)
class NumericalStabilityReport:
    """Where a model has NaN and infinities.

    Attributes:
        nan_weights, inf_weights, nan_gradients, inf_gradients: names of parameters, in the model's order.
        without_gradient: names of the parameters without one.
        max_weight, max_gradient: the largest absolute value, infinity included; NaN if all are NaN, None if there are
            no elements.
        loss_value, loss_is_finite: None without a loss.
    """

    nan_weights: tuple[str, ...]
    inf_weights: tuple[str, ...]
    nan_gradients: tuple[str, ...]
    inf_gradients: tuple[str, ...]
    without_gradient: tuple[str, ...]
    max_weight: float | None
    max_gradient: float | None
    loss_value: float | None
    loss_is_finite: bool | None

    @property
    def has_nan(self) -> bool:
        """Whether a weight, a gradient or the loss is NaN."""
        loss = self.loss_value is not None and math.isnan(self.loss_value)
        return bool(self.nan_weights or self.nan_gradients) or loss

    @property
    def has_inf(self) -> bool:
        """Whether a weight, a gradient or the loss is infinite."""
        loss = self.loss_value is not None and math.isinf(self.loss_value)
        return bool(self.inf_weights or self.inf_gradients) or loss


def check_numerical_stability(model: torch.nn.Module, loss: Tensor | float | None = None) -> NumericalStabilityReport:
    """Find NaN and infinities in a model's current weights and gradients.

    Parameters may have any type (complex included) and layout, and lie on any devices.

    Args:
        loss: a tensor of one element, or a number.

    Raises:
        TypeError: `model` is not a module, or `loss` is neither a tensor nor a number.
        ValueError: `loss` is a tensor of several elements.
    """
    parameters = named_parameters(model)
    gradients = gradients_of(parameters)
    tensors = {("weight", name): p.detach() for name, p in parameters}
    tensors |= {("gradient", name): gradient for name, gradient in gradients.items()}
    extra = {}
    if isinstance(loss, Tensor):
        if loss.numel() != 1:
            raise BadCall(f"loss has {loss.numel()} elements; give the one number that backward() was called on")
        extra["loss"] = loss.detach().reshape(1)
    elif loss is not None:
        check_type("loss", loss, (float, int), "a tensor of one element, or a number")
    measurement = Measurement({key: _real(x) for key, x in tensors.items()}, extra=extra)
    statistics = dict(measurement.statistics())
    weights = {name: statistics["weight", name] for name, _ in parameters}
    by_gradient = {name: statistics["gradient", name] for name in gradients}
    loss_value = float(measurement.extra("loss")) if extra else None if loss is None else float(loss)
    return NumericalStabilityReport(
        nan_weights=tuple([name for name, weight in weights.items() if weight.nan_count]),
        inf_weights=tuple([name for name, weight in weights.items() if weight.inf_count]),
        nan_gradients=tuple([name for name, gradient in by_gradient.items() if gradient.nan_count]),
        inf_gradients=tuple([name for name, gradient in by_gradient.items() if gradient.inf_count]),
        without_gradient=tuple([name for name, _ in parameters if name not in gradients]),
        max_weight=_largest(weights),
        max_gradient=_largest(by_gradient),
        loss_value=loss_value,
        loss_is_finite=None if loss_value is None else math.isfinite(loss_value),
    )


def _real(x: Tensor) -> Tensor:
    """View a complex tensor as its real and imaginary parts."""
    if not x.is_complex():
        return x
    return torch.view_as_real((x if x.layout is torch.strided else x.to_dense()).resolve_conj())


def _largest(tensors: Mapping[str, TensorStatistics]) -> float | None:
    sizes = [abs(x) for tensor in tensors.values() for x in (tensor.min, tensor.max) if x is not None]
    return max((size for size in sizes if not math.isnan(size)), default=math.nan) if sizes else None
