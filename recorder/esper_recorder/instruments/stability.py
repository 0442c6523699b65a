"""Which weights and gradients are not finite, by name, at one transfer to the host."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from esper_recorder.instruments.measurement import Figures, Measurement, gradients_of, named_parameters


@dataclass(frozen=True, slots=True)
class NumericalStabilityReport:
    """Where a model holds NaN and infinities.

    Attributes:
        nan_weights, inf_weights, nan_gradients, inf_gradients: names of parameters, in the model's order.
        without_gradient: names of the parameters that have none.
        max_weight, max_gradient: the largest absolute number, infinity included; NaN where all are NaN, None where
            there is no element.
        loss_value, loss_is_finite: None where no loss was given.
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
        """A weight, a gradient or the loss is NaN."""
        loss = self.loss_value is not None and math.isnan(self.loss_value)
        return bool(self.nan_weights or self.nan_gradients) or loss

    @property
    def has_inf(self) -> bool:
        """A weight, a gradient or the loss is infinite."""
        loss = self.loss_value is not None and math.isinf(self.loss_value)
        return bool(self.inf_weights or self.inf_gradients) or loss


def check_numerical_stability(model: torch.nn.Module, loss: Tensor | float | None = None) -> NumericalStabilityReport:
    """Look for NaN and infinities in a model's weights and gradients as they stand.

    Any number of parameters, of any type (complex included), layout and device.

    Args:
        model: its `named_parameters()` are looked at.
        loss: a tensor of one element, or a number.

    Raises:
        TypeError: `model` is no module, or `loss` is neither.
        ValueError: `loss` is a tensor of several elements.
    """
    parameters = named_parameters(model)
    gradients = gradients_of(parameters)
    tensors = {("weight", name): p.detach() for name, p in parameters}
    tensors |= {("gradient", name): g for name, g in gradients.items()}
    besides = {"loss": loss.detach().reshape(1)} if isinstance(loss, Tensor) and _is_one(loss) else {}
    if loss is not None and not besides and not isinstance(loss, float | int):
        raise TypeError(f"loss is a {type(loss).__name__}; give a tensor of one element, or a number")
    measured = Measurement({key: _real(x) for key, x in tensors.items()}, besides=besides)
    found = dict(measured.figures())
    loss_value = float(measured.besides("loss")) if besides else None if loss is None else float(loss)
    weights = {name: found["weight", name] for name, _ in parameters}
    of_gradients = {name: found["gradient", name] for name in gradients}
    return NumericalStabilityReport(
        nan_weights=_with(weights, "grad_nan"),
        inf_weights=_with(weights, "grad_posinf", "grad_neginf"),
        nan_gradients=_with(of_gradients, "grad_nan"),
        inf_gradients=_with(of_gradients, "grad_posinf", "grad_neginf"),
        without_gradient=tuple([name for name, _ in parameters if name not in gradients]),
        max_weight=_largest(weights.values()),
        max_gradient=_largest(of_gradients.values()),
        loss_value=loss_value,
        loss_is_finite=None if loss_value is None else math.isfinite(loss_value),
    )


def _is_one(loss: Tensor) -> bool:
    if loss.numel() != 1:
        raise ValueError(f"loss has {loss.numel()} elements; give the one number that backward() was called on")
    return True


def _real(x: Tensor) -> Tensor:
    """Real and imaginary parts side by side."""
    if not x.is_complex():
        return x
    return torch.view_as_real((x if x.layout is torch.strided else x.to_dense()).resolve_conj())


def _with(figures: dict[str, Figures], *counts: str) -> tuple[str, ...]:
    return tuple([name for name, own in figures.items() if any(own[count] for count in counts)])


def _largest(figures: Iterable[Figures]) -> float | None:
    sizes = [abs(own[name]) for own in figures if own["n"] for name in ("grad_min", "grad_max")]
    return max((size for size in sizes if not math.isnan(size)), default=math.nan) if sizes else None
