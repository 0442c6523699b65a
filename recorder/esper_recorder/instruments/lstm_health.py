"""Health of a recurrent policy's hidden and cell state, at one transfer to the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Final

from torch import Tensor

from esper_recorder.capture.transfer import Transfer
from esper_recorder.contract.metrics import root_mean_square
from esper_recorder.reductions.recurrent import state_statistics

MAX_RMS: Final = 10.0
MIN_RMS: Final = 1e-6


@dataclass(frozen=True, slots=True)
class StateHealth:
    """One state. Root mean squares are over its finite elements and do not grow with batch or width.

    Attributes:
        rms: of the whole state; NaN where no element is finite.
        env_rms_max: the largest root mean square of one environment; NaN likewise.
        abs_max: the largest absolute finite element; NaN likewise.
    """

    rms: float
    env_rms_max: float
    abs_max: float
    nan_count: int
    inf_count: int


@dataclass(frozen=True, slots=True)
class LSTMHealth:
    """The hidden and the cell state.

    A state is healthy at exactly a threshold: it explodes where one environment's root mean square is above `max_rms`,
    and vanishes where that of the whole state is below `min_rms`, both strictly.
    """

    hidden: StateHealth
    cell: StateHealth
    max_rms: float = MAX_RMS
    min_rms: float = MIN_RMS

    @property
    def has_nan(self) -> bool:
        """A NaN in either state."""
        return bool(self.hidden.nan_count or self.cell.nan_count)

    @property
    def has_inf(self) -> bool:
        """An infinity in either state."""
        return bool(self.hidden.inf_count or self.cell.inf_count)

    @property
    def exploding(self) -> tuple[str, ...]:
        """Which of `h` and `c` explode."""
        return tuple([name for name, state in self._states if state.env_rms_max > self.max_rms])

    @property
    def vanishing(self) -> tuple[str, ...]:
        """Which of `h` and `c` vanish."""
        return tuple([name for name, state in self._states if state.rms < self.min_rms])

    @property
    def is_healthy(self) -> bool:
        """All finite, none exploding or vanishing."""
        return not (self.has_nan or self.has_inf or self.exploding or self.vanishing)

    @property
    def _states(self) -> tuple[tuple[str, StateHealth], ...]:
        return ("h", self.hidden), ("c", self.cell)


def compute_lstm_health(
    state: tuple[Tensor, Tensor] | None, *, max_rms: float = MAX_RMS, min_rms: float = MIN_RMS
) -> LSTMHealth | None:
    """Look at the state of an LSTM: (hidden, cell), each [layers, envs, width]. None where there is no state.

    Raises:
        TypeError: `state` is no pair of tensors.
        ValueError: a state has no elements, which is no health and no sickness.
    """
    if state is None:
        return None
    if not isinstance(state, tuple | list) or len(state) != 2 or not all(isinstance(one, Tensor) for one in state):
        raise TypeError(f"state is {_shown(state)}; give the pair (hidden, cell) of tensors")
    hidden, cell = (state_statistics(one) for one in state)
    host = Transfer({"h": hidden.values, "c": cell.values}).wait()
    states: dict[str, StateHealth] = {}
    for name, packed in (("h", hidden), ("c", cell)):
        own = dict(zip(packed.names, host[name].tolist(), strict=True))
        if not own["n"]:
            raise ValueError(f"the state {name} has no elements")
        finite = own["n"] - own["nan_count"] - own["inf_count"]
        states[name] = StateHealth(
            rms=root_mean_square(own["sum_sq"], finite, of=own["n"]),
            env_rms_max=own["env_rms_max"],
            abs_max=own["abs_max"],
            nan_count=int(own["nan_count"]),
            inf_count=int(own["inf_count"]),
        )
    return LSTMHealth(states["h"], states["c"], max_rms, min_rms)


def _shown(state: Any) -> str:
    if isinstance(state, tuple | list):
        return f"({', '.join(type(one).__name__ for one in state)})"
    return f"a {type(state).__name__}"
