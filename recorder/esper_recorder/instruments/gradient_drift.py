"""The drift of a gradient's norm and health from their moving averages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from esper_recorder.contract.rules.trend import Average, Drift


@dataclass(frozen=True, slots=True)
class GradientDrift:
    """The drift of one update; None if there is no average yet, or the value is not finite."""

    norm_drift: float | None
    health_drift: float | None


class GradientEMATracker:
    """Exponential moving averages of a gradient's norm and health, and the drift of each new value from them.

    drift = |x - average| / (|average| + epsilon), against the average before x enters; then
    average = momentum * average + (1 - momentum) * x. The accumulator is that of the rules, so a rule sees the same
    drift to the last bit.

    A value that is not finite neither enters nor drifts, and raises nothing.

    Args:
        momentum: in [0, 1).
        epsilon: above 0.
        bias_correction: begin at zero and divide by 1 - momentum^t after t values, instead of beginning at the first
            value: an unusual first value is then soon forgotten.
        warmup: values after the first that have no drift.

    Raises:
        ValueError: an argument is outside its range.
    """

    def __init__(
        self, *, momentum: float = 0.99, epsilon: float = 1e-8, bias_correction: bool = False, warmup: int = 0
    ) -> None:
        if not 0.0 <= momentum < 1.0:
            raise ValueError(f"momentum must lie in [0, 1), and {momentum!r} does not")
        if not epsilon > 0.0:
            raise ValueError(f"epsilon must be above 0, and {epsilon!r} is not")
        if warmup < 0:
            raise ValueError(f"warmup must be at least 0, and {warmup!r} is not")
        self._drift = Drift(momentum, bias_correction, warmup, epsilon)
        self._averages = {"norm": Average(self._drift), "health": Average(self._drift)}
        self._updates = 0

    @property
    def update_count(self) -> int:
        """How often `update` was called; bias correction and warm-up count only its finite values."""
        return self._updates

    @property
    def ema_norm(self) -> float | None:
        """The average of the norm; None before the first value."""
        return self._averages["norm"].value

    @property
    def ema_health(self) -> float | None:
        """The average of the health; None before the first value."""
        return self._averages["health"].value

    def update(self, grad_norm: float, grad_health: float) -> GradientDrift:
        """Add the next update's values, and return their drift from those before."""
        self._updates += 1
        return GradientDrift(self._averages["norm"].push(grad_norm), self._averages["health"].push(grad_health))

    def state_dict(self) -> dict[str, Any]:
        """Return plain numbers from which `load_state_dict` continues to the last bit."""
        return {
            "settings": asdict(self._drift),
            "update_count": self._updates,
            **{name: {key: getattr(a, key) for key in _STATE} for name, a in self._averages.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from a state. Raises ValueError if it is not one of a tracker with these settings."""
        missing = [key for key in ("settings", "update_count", *self._averages) if key not in state]
        if missing:
            raise ValueError(f"this is not a state of a GradientEMATracker: {', '.join(missing)} is missing")
        if state["settings"] != asdict(self._drift):
            raise ValueError(f"the state is of a tracker with {state['settings']}, this one has {asdict(self._drift)}")
        self._updates = int(state["update_count"])
        for name, average in self._averages.items():
            for key in _STATE:
                setattr(average, key, state[name][key])


_STATE = ("seen", "total", "weight")
