"""How far a gradient's norm and health have drifted from their averages."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from esper_recorder.contract.rules.ema import Average, Drift


@dataclass(frozen=True, slots=True)
class GradientDrift:
    """The drift of one update; None where there is nothing to compare with yet, or the value was not finite."""

    norm_drift: float | None
    health_drift: float | None


class GradientEMATracker:
    """Exponential moving averages of a gradient's norm and health, and the drift of each new value from them.

    drift = |x - average| / (|average| + epsilon), against the average before x enters; then
    average = momentum * average + (1 - momentum) * x. It is the accumulator that rules use (`contract.ema`), so a
    drift told here is the drift a rule sees.

    A value that is not finite neither enters nor drifts, and nothing is raised.

    Args:
        momentum: in [0, 1).
        epsilon: above 0.
        bias_correction: begin at zero and divide by 1 - momentum^t, t values in, instead of beginning at the first
            value: an unusual first value is then soon forgotten.
        warmup: so many values after the first have no drift.

    Raises:
        ValueError: an argument is off.
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
        self._form = Drift(momentum, bias_correction, warmup, epsilon)
        self._norm, self._health = Average(self._form), Average(self._form)
        self._updates = 0

    @property
    def update_count(self) -> int:
        """How often `update` was called; bias correction and warm-up go by the values of it that were finite."""
        return self._updates

    @property
    def ema_norm(self) -> float | None:
        """The average of the norm; None before the first value."""
        return _average(self._norm, self._form)

    @property
    def ema_health(self) -> float | None:
        """The average of the health; None before the first value."""
        return _average(self._health, self._form)

    def update(self, grad_norm: float, grad_health: float) -> GradientDrift:
        """Take in the next update's values and return how far they lie from those before."""
        self._updates += 1
        return GradientDrift(self._norm.push(grad_norm), self._health.push(grad_health))

    def state_dict(self) -> dict[str, Any]:
        """All that `load_state_dict` needs to go on to the last bit; plain numbers."""
        averages = {"norm": self._norm, "health": self._health}
        return {
            "settings": asdict(self._form),
            "update_count": self._updates,
            **{name: {key: getattr(one, key) for key in _STATE} for name, one in averages.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a state. Raises ValueError where it is not of a tracker with these settings."""
        missing = [key for key in ("settings", "update_count", "norm", "health") if key not in state]
        if missing:
            raise ValueError(f"this is no state of a GradientEMATracker: {', '.join(missing)} is missing")
        if state["settings"] != asdict(self._form):
            raise ValueError(f"the state is of a tracker with {state['settings']}, this one has {asdict(self._form)}")
        self._updates = int(state["update_count"])
        for name, one in (("norm", self._norm), ("health", self._health)):
            for key in _STATE:
                setattr(one, key, state[name][key])


_STATE = ("seen", "total", "weight")


def _average(one: Average, form: Drift) -> float | None:
    if not one.seen:
        return None
    return one.total / (1.0 - one.weight) if form.bias_correction else one.total
