"""A closer look at a model, configured in detail: gradient percentiles, chosen layers, weight norms, a history."""

from __future__ import annotations

import fnmatch
import math
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor

from esper_recorder.contract.histogram import gradient_quantile
from esper_recorder.contract.metrics import derive_layer
from esper_recorder.instruments.measurement import Measurement, named_parameters
from esper_recorder.reductions.gradients import NAMES, layer_statistics, precision

HISTORY: Final = (5, 100)
"""The shortest and the longest history."""


@dataclass(frozen=True, slots=True)
class GradientDiagnostics:
    """What is told of gradients.

    Attributes:
        layers: shell patterns of parameter names, such as `policy.*`.
        std: whether standard deviations are told.
        percentiles: of the absolute values, in [0, 100]; each is told as the bounds that a histogram gives.
        vanishing, exploding: a norm below, or above, is called so, strictly.
        histogram: whether histograms are told.
    """

    layers: tuple[str, ...] = ("*",)
    std: bool = False
    percentiles: tuple[float, ...] = (1.0, 50.0, 99.0)
    vanishing: float = 1e-7
    exploding: float = 1e3
    histogram: bool = False

    def __post_init__(self) -> None:
        for name in ("layers", "percentiles"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        outside = [p for p in self.percentiles if not 0.0 <= p <= 100.0]
        if outside:
            raise ValueError(f"percentiles lie in [0, 100], and {outside[0]!r} does not")
        if not 0.0 <= self.vanishing < self.exploding:
            raise ValueError(f"vanishing ({self.vanishing!r}) must lie below exploding ({self.exploding!r}), from 0 on")


@dataclass(frozen=True, slots=True)
class DiagnosticConfig:
    """How closely a model is looked at. Not to be taken for `CollectionConfig`, which says how much a run records.

    Attributes:
        history_length: so many looks are kept, the newest.
        gradients: None where they are not looked at.
        weight_norms: whether the norm of each parameter is told.
    """

    history_length: int = 10
    gradients: GradientDiagnostics | None = field(default_factory=GradientDiagnostics)
    weight_norms: bool = False

    def __post_init__(self) -> None:
        low, high = HISTORY
        if isinstance(self.history_length, bool) or not isinstance(self.history_length, int):
            raise TypeError(f"history_length is a {type(self.history_length).__name__}; give a whole number")
        if not low <= self.history_length <= high:
            raise ValueError(f"history_length must lie in [{low}, {high}], and {self.history_length} does not")

    @classmethod
    def profile(cls, name: str, /, **changes: Any) -> DiagnosticConfig:
        """A shipped profile, perhaps with other values. Raises ValueError that lists the names."""
        if name not in DIAGNOSTIC_PROFILES:
            raise ValueError(f"there is no diagnostic profile {name!r}; there are: {', '.join(DIAGNOSTIC_PROFILES)}")
        return replace(DIAGNOSTIC_PROFILES[name], **changes)


DIAGNOSTIC_PROFILES: Final[Mapping[str, DiagnosticConfig]] = MappingProxyType(
    {
        "minimal": DiagnosticConfig(history_length=5, gradients=None, weight_norms=True),
        "standard": DiagnosticConfig(),
        "diagnostic": DiagnosticConfig(history_length=50, gradients=GradientDiagnostics(std=True), weight_norms=True),
        "research": DiagnosticConfig(
            history_length=100,
            gradients=GradientDiagnostics(
                std=True, percentiles=(1.0, 5.0, 25.0, 50.0, 75.0, 95.0, 99.0), histogram=True
            ),
            weight_norms=True,
        ),
    }
)


@dataclass(frozen=True, slots=True)
class LayerDiagnosis:
    """One parameter at one look; None is what was not asked for, or has no gradient to be told of.

    Attributes:
        percentiles: percentile -> (at least, at most), of |g|.
        vanishing, exploding: by the norm; a norm that is NaN is neither.
        histogram: counts by power of two, `contract.histogram.gradient_edges`.
    """

    layer: str
    has_grad: bool
    grad_norm: float | None = None
    grad_std: float | None = None
    percentiles: Mapping[float, tuple[float, float]] = field(default_factory=dict)
    vanishing: bool | None = None
    exploding: bool | None = None
    histogram: tuple[int, ...] | None = None
    weight_norm: float | None = None


class ModelDiagnostics:
    """Looks at models as configured, and keeps the newest looks."""

    def __init__(self, config: DiagnosticConfig) -> None:
        self.config = config
        self.history: deque[tuple[LayerDiagnosis, ...]] = deque(maxlen=config.history_length)

    def look(self, model: torch.nn.Module) -> tuple[LayerDiagnosis, ...]:
        """Look at a model's parameters and gradients as they stand, at one transfer to the host.

        Raises:
            TypeError: `model` is no module, or a gradient that is looked at is sparse or complex.
        """
        gradients, chosen = self.config.gradients, []
        for name, p in named_parameters(model):
            asked = gradients is not None and any(fnmatch.fnmatchcase(name, pattern) for pattern in gradients.layers)
            if asked or (gradients is None and self.config.weight_norms):
                chosen.append((name, p))
        measured = self._measured(chosen) if gradients is not None else {}
        sent: dict[str, Tensor] = {}
        for i, (_, statistics, histograms) in enumerate(measured.values()):
            sent |= {f"{i}.statistics": statistics, f"{i}.histograms": histograms}
        weights = Measurement(dict(chosen) if self.config.weight_norms else {}, besides=sent)
        norms = {name: derive_layer(figures)["grad_norm"] for name, figures in weights.figures()}
        found: dict[str, LayerDiagnosis] = {}
        for i, (names, _, _) in enumerate(measured.values()):
            own = (weights.besides(f"{i}.{what}").tolist() for what in ("statistics", "histograms"))
            for name, values, counts in zip(names, *own, strict=True):
                found[name] = self._diagnosis(name, dict(zip(NAMES, values, strict=True)), counts)
        told = tuple(
            [
                replace(
                    found.get(name) or LayerDiagnosis(name, has_grad=p.grad is not None),
                    weight_norm=norms.get(name),
                )
                for name, p in chosen
            ]
        )
        self.history.append(told)
        return told

    def _measured(self, chosen: list[tuple[str, Tensor]]) -> dict[Any, tuple[list[str], Tensor, Tensor]]:
        """(names, statistics, histograms) of the parameters with a gradient, by device and precision."""
        groups: dict[Any, list[tuple[str, Tensor]]] = {}
        for name, p in chosen:
            if p.grad is None:
                continue
            if p.grad.layout is not torch.strided or p.grad.is_complex():
                kind = p.grad.dtype if p.grad.is_complex() else p.grad.layout
                raise TypeError(f"the gradient of {name} is {kind}; leave it out of `layers`")
            groups.setdefault((p.device, precision(p)), []).append((name, p))
        result = {}
        for key, members in groups.items():
            packed, histograms = layer_statistics([p for _, p in members])
            result[key] = ([name for name, _ in members], packed.values, histograms)
        return result

    def _diagnosis(self, name: str, statistics: dict[str, float], counts: list[int]) -> LayerDiagnosis:
        config = self.config.gradients
        assert config is not None  # else nothing was measured
        row = statistics | {"n": sum(counts) + statistics["grad_nan"]}
        derived = derive_layer(row)
        norm = derived["grad_norm"]
        bounds = {p: gradient_quantile(counts, p / 100.0) for p in config.percentiles}
        return LayerDiagnosis(
            layer=name,
            has_grad=True,
            grad_norm=norm,
            grad_std=derived["grad_std"] if config.std else None,
            percentiles={p: bound for p, bound in bounds.items() if bound is not None},
            vanishing=None if norm is None else norm < config.vanishing,
            exploding=None if norm is None else norm > config.exploding or math.isinf(norm),
            histogram=tuple(counts) if config.histogram else None,
        )
