"""Instruments: what a trainer can ask of its model and its minibatches by hand, each over the recorder's reductions.

    from esper_recorder.instruments import collect_per_layer_gradients, check_numerical_stability

The names below are loaded when they are first used. `docs/instruments.md` describes each.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper_recorder.contract.anomalies import Abstention, Anomaly, AnomalyDetector, AnomalyReport
    from esper_recorder.contract.ratio_diagnostic import RatioDiagnostic, RatioOfHead, WorstTransition
    from esper_recorder.instruments.collection import CollectionConfig, TelemetryLevel
    from esper_recorder.instruments.diagnostics import (
        DiagnosticConfig,
        GradientDiagnostics,
        LayerDiagnosis,
        ModelDiagnostics,
    )
    from esper_recorder.instruments.gradient_drift import GradientDrift, GradientEMATracker
    from esper_recorder.instruments.gradient_health import (
        DualGradientHealth,
        GradientHealth,
        PendingDualGradients,
        PendingGradients,
        collect_dual_gradients,
        collect_gradients,
    )
    from esper_recorder.instruments.layer_gradients import (
        GradientState,
        LayerGradients,
        LayerGradientStats,
        collect_per_layer_gradients,
    )
    from esper_recorder.instruments.lstm_health import LSTMHealth, StateHealth, compute_lstm_health
    from esper_recorder.instruments.ratios import diagnose_ratios
    from esper_recorder.instruments.stability import NumericalStabilityReport, check_numerical_stability
    from esper_recorder.profiler import ProfilerFolderError, profile

_HOMES = {
    "contract.anomalies": ("Abstention", "Anomaly", "AnomalyDetector", "AnomalyReport"),
    "contract.ratio_diagnostic": ("RatioDiagnostic", "RatioOfHead", "WorstTransition"),
    "instruments.collection": ("CollectionConfig", "TelemetryLevel"),
    "instruments.diagnostics": ("DiagnosticConfig", "GradientDiagnostics", "LayerDiagnosis", "ModelDiagnostics"),
    "instruments.gradient_drift": ("GradientDrift", "GradientEMATracker"),
    "instruments.gradient_health": (
        "DualGradientHealth",
        "GradientHealth",
        "PendingDualGradients",
        "PendingGradients",
        "collect_dual_gradients",
        "collect_gradients",
    ),
    "instruments.layer_gradients": (
        "GradientState",
        "LayerGradientStats",
        "LayerGradients",
        "collect_per_layer_gradients",
    ),
    "instruments.lstm_health": ("LSTMHealth", "StateHealth", "compute_lstm_health"),
    "instruments.ratios": ("diagnose_ratios",),
    "instruments.stability": ("NumericalStabilityReport", "check_numerical_stability"),
    "profiler": ("ProfilerFolderError", "profile"),
}
_MODULE_OF = {name: home for home, names in _HOMES.items() for name in names}

__all__ = [
    "Abstention",
    "Anomaly",
    "AnomalyDetector",
    "AnomalyReport",
    "CollectionConfig",
    "DiagnosticConfig",
    "DualGradientHealth",
    "GradientDiagnostics",
    "GradientDrift",
    "GradientEMATracker",
    "GradientHealth",
    "GradientState",
    "LSTMHealth",
    "LayerDiagnosis",
    "LayerGradientStats",
    "LayerGradients",
    "ModelDiagnostics",
    "NumericalStabilityReport",
    "PendingDualGradients",
    "PendingGradients",
    "ProfilerFolderError",
    "RatioDiagnostic",
    "RatioOfHead",
    "StateHealth",
    "TelemetryLevel",
    "WorstTransition",
    "check_numerical_stability",
    "collect_dual_gradients",
    "collect_gradients",
    "collect_per_layer_gradients",
    "compute_lstm_health",
    "diagnose_ratios",
    "profile",
]


def __getattr__(name: str) -> Any:
    home = _MODULE_OF.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"esper_recorder.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
