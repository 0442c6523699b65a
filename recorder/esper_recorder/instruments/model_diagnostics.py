"""A detailed examination of a model, as configured: gradient percentiles, some layers, weight norms, a history."""

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

from esper_recorder.arguments import BadCall, BadType, check_type
from esper_recorder.contract.histogram import gradient_quantile
from esper_recorder.contract.metrics import derive_layer
from esper_recorder.contract.suggest import suggest
from esper_recorder.instruments.measurement import Measurement, named_parameters
from esper_recorder.reductions.gradients import NAMES, layer_statistics, precision

HISTORY: Final = (5, 100)
"""The shortest and the longest history."""


@dataclass(frozen=True, slots=True)
class GradientDiagnostics:
    """What is reported of gradients.

    Attributes:
        layers: shell patterns of parameter names, such as `policy.*`.
        std: whether to report standard deviations.
        percentiles: of the absolute values, in [0, 100]; each is reported as the bounds that a histogram gives.
        vanishing, exploding: limits of the norm, strict.
        histogram: whether to report histograms.
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
            raise BadCall(f"percentiles lie in [0, 100], and {outside[0]!r} does not")
        if not 0.0 <= self.vanishing < self.exploding:
            raise BadCall(f"vanishing ({self.vanishing!r}) must lie below exploding ({self.exploding!r}), from 0 on")


@dataclass(frozen=True, slots=True)
class DiagnosticConfig:
    """How closely a model is examined. Not to be confused with `CollectionConfig`: how much a run records.

    Attributes:
        history_length: how many examinations are kept, the newest.
        gradients: what is reported of gradients; None for nothing.
        weight_norms: whether to report the norm of each parameter.
    """

    history_length: int = 10
    gradients: GradientDiagnostics | None = field(default_factory=GradientDiagnostics)
    weight_norms: bool = False

    def __post_init__(self) -> None:
        low, high = HISTORY
        check_type("history_length", self.history_length, int, "a whole number")
        if not low <= self.history_length <= high:
            raise BadCall(f"history_length must lie in [{low}, {high}], and {self.history_length} does not")

    @classmethod
    def profile(cls, name: str, /, **changes: Any) -> DiagnosticConfig:
        """Return a shipped profile, with changes. Raises BadCall for an unknown name."""
        if name not in DIAGNOSTIC_PROFILES:
            hint = suggest(name, DIAGNOSTIC_PROFILES, kind="profiles")
            raise BadCall(f"there is no diagnostic profile {name!r}. {hint}")
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
    """One parameter in one examination; None is what was not configured, or needs a gradient that is missing.

    Attributes:
        percentiles: percentile -> (at least, at most), of |g|.
        vanishing, exploding: by the norm; a norm of NaN is neither.
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
    """Examines models as configured, and keeps the newest examinations."""

    def __init__(self, config: DiagnosticConfig) -> None:
        self.config = config
        self.history: deque[tuple[LayerDiagnosis, ...]] = deque(maxlen=config.history_length)

    def look(self, model: torch.nn.Module) -> tuple[LayerDiagnosis, ...]:
        """Examine a model's current parameters and gradients, with one transfer to the host.

        Raises:
            TypeError: `model` is not a module, or one of the gradients to report is sparse or complex.
        """
        config = self.config.gradients
        patterns = ("*",) if config is None and self.config.weight_norms else () if config is None else config.layers
        chosen = [
            (name, p)
            for name, p in named_parameters(model)
            if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)
        ]
        groups = [] if config is None else _reduce_gradients(chosen)
        extra = {f"{i}.statistics": statistics for i, (_, statistics, _) in enumerate(groups)}
        extra |= {f"{i}.histograms": histograms for i, (_, _, histograms) in enumerate(groups)}
        weights = Measurement(dict(chosen) if self.config.weight_norms else {}, extra=extra)
        norms = {name: weight.norm for name, weight in weights.statistics()}
        diagnoses: dict[str, LayerDiagnosis] = {}
        for i, (names, _, _) in enumerate(groups):
            assert config is not None  # else nothing was reduced
            rows, counts = (weights.extra(f"{i}.{part}").tolist() for part in ("statistics", "histograms"))
            for name, values, histogram in zip(names, rows, counts, strict=True):
                diagnoses[name] = _diagnose(name, dict(zip(NAMES, values, strict=True)), histogram, config)
        examination = tuple(
            [
                replace(
                    diagnoses.get(name) or LayerDiagnosis(name, has_grad=p.grad is not None),
                    weight_norm=norms.get(name),
                )
                for name, p in chosen
            ]
        )
        self.history.append(examination)
        return examination


def _reduce_gradients(parameters: list[tuple[str, Tensor]]) -> list[tuple[list[str], Tensor, Tensor]]:
    """Return (names, statistics, histograms) of the parameters with a gradient, by device and precision."""
    groups: dict[Any, list[tuple[str, Tensor]]] = {}
    for name, p in parameters:
        if p.grad is None:
            continue
        if p.grad.layout is not torch.strided or p.grad.is_complex():
            kind = p.grad.dtype if p.grad.is_complex() else p.grad.layout
            raise BadType(f"the gradient of {name} is {kind}; leave it out of `layers`")
        groups.setdefault((p.device, precision(p)), []).append((name, p))
    reduced = []
    for members in groups.values():
        statistics, histograms = layer_statistics([p for _, p in members])
        reduced.append(([name for name, _ in members], statistics.values, histograms))
    return reduced


def _diagnose(
    name: str, statistics: dict[str, float], counts: list[int], config: GradientDiagnostics
) -> LayerDiagnosis:
    derived = derive_layer(statistics | {"n": sum(counts) + statistics["grad_nan"]})
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
