"""Instruments: what a trainer can ask of its model and its minibatches by hand, each over the recorder's reductions.

    from esper_recorder.instruments import collect_per_layer_gradients, check_numerical_stability

The names below are loaded when they are first used. `docs/instruments.md` describes each.
"""

from typing import TYPE_CHECKING

from esper_recorder.contract.lazy import lazy_names

if TYPE_CHECKING:
    from esper_recorder.contract.rules.anomaly_detector import Abstention, Anomaly, AnomalyDetector, AnomalyReport
    from esper_recorder.contract.worst_transitions import RatioDiagnostic, RatioOfHead, WorstTransition
    from esper_recorder.instruments.collection import CollectionConfig, TelemetryLevel
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
    from esper_recorder.instruments.model_diagnostics import (
        DiagnosticConfig,
        GradientDiagnostics,
        LayerDiagnosis,
        ModelDiagnostics,
    )
    from esper_recorder.instruments.ratio_diagnostic import diagnose_ratios
    from esper_recorder.instruments.stability import NumericalStabilityReport, check_numerical_stability
    from esper_recorder.profiler import ProfilerFolderError, profile

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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "esper_recorder.contract.rules.anomaly_detector": ("Abstention", "Anomaly", "AnomalyDetector", "AnomalyReport"),
        "esper_recorder.contract.worst_transitions": ("RatioDiagnostic", "RatioOfHead", "WorstTransition"),
        "esper_recorder.instruments.collection": ("CollectionConfig", "TelemetryLevel"),
        "esper_recorder.instruments.gradient_drift": ("GradientDrift", "GradientEMATracker"),
        "esper_recorder.instruments.gradient_health": (
            "DualGradientHealth",
            "GradientHealth",
            "PendingDualGradients",
            "PendingGradients",
            "collect_dual_gradients",
            "collect_gradients",
        ),
        "esper_recorder.instruments.layer_gradients": (
            "GradientState",
            "LayerGradientStats",
            "LayerGradients",
            "collect_per_layer_gradients",
        ),
        "esper_recorder.instruments.lstm_health": ("LSTMHealth", "StateHealth", "compute_lstm_health"),
        "esper_recorder.instruments.model_diagnostics": (
            "DiagnosticConfig",
            "GradientDiagnostics",
            "LayerDiagnosis",
            "ModelDiagnostics",
        ),
        "esper_recorder.instruments.ratio_diagnostic": ("diagnose_ratios",),
        "esper_recorder.instruments.stability": ("NumericalStabilityReport", "check_numerical_stability"),
        "esper_recorder.profiler": ("ProfilerFolderError", "profile"),
    },
)
