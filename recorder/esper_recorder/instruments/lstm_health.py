"""Health of a recurrent policy's hidden and cell state, with one transfer to the host."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from torch import Tensor

from esper_recorder.arguments import BadCall, BadType, check_type
from esper_recorder.capture.transfer import Transfer
from esper_recorder.contract.metrics import derive_state
from esper_recorder.reductions.recurrent import state_statistics

MAX_RMS: Final = 10.0
MIN_RMS: Final = 1e-6


@dataclass(frozen=True, slots=True)
class StateHealth:
    """One state. Root mean squares are over its finite elements, and independent of batch size and width.

    Attributes:
        rms: of the whole state; NaN if no element is finite, like the next two.
        env_rms_max: the largest root mean square of one environment.
        abs_max: the largest absolute value of a finite element.
    """

    rms: float
    env_rms_max: float
    abs_max: float
    nan_count: int
    inf_count: int


@dataclass(frozen=True, slots=True)
class LSTMHealth:
    """The hidden and the cell state.

    A state explodes if the root mean square of one environment is above `max_rms`, and vanishes if that of the whole
    state is below `min_rms`. Both are strict: at exactly a threshold it is healthy.
    """

    hidden: StateHealth
    cell: StateHealth
    max_rms: float = MAX_RMS
    min_rms: float = MIN_RMS

    @property
    def has_nan(self) -> bool:
        """Whether either state has a NaN."""
        return bool(self.hidden.nan_count or self.cell.nan_count)

    @property
    def has_inf(self) -> bool:
        """Whether either state has an infinity."""
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
        """Whether all is finite, and neither state explodes or vanishes."""
        return not (self.has_nan or self.has_inf or self.exploding or self.vanishing)

    @property
    def _states(self) -> tuple[tuple[str, StateHealth], ...]:
        return ("h", self.hidden), ("c", self.cell)


def compute_lstm_health(
    state: tuple[Tensor, Tensor] | None, *, max_rms: float = MAX_RMS, min_rms: float = MIN_RMS
) -> LSTMHealth | None:
    """Measure the state of an LSTM: (hidden, cell), each [layers, envs, width]. None without a state.

    Raises:
        TypeError: `state` is not a pair of tensors.
        ValueError: a state has no elements, and so is neither healthy nor sick.
    """
    if state is None:
        return None
    check_type("state", state, (tuple, list), "the pair (hidden, cell) of tensors")
    if len(state) != 2 or not all(isinstance(tensor, Tensor) for tensor in state):
        types = ", ".join(type(tensor).__name__ for tensor in state)
        raise BadType(f"state is ({types}); give the pair (hidden, cell) of tensors")
    statistics = {name: state_statistics(tensor) for name, tensor in zip("hc", state, strict=True)}
    host = Transfer({name: packed.values for name, packed in statistics.items()}).wait()
    states = []
    for name, packed in statistics.items():
        row = dict(zip(packed.names, host[name].tolist(), strict=True))
        if not row["n"]:
            raise BadCall(f"the state {name} has no elements")
        counts = {count: int(row[count]) for count in ("nan_count", "inf_count")}
        states.append(StateHealth(derive_state(row)["rms"], row["env_rms_max"], row["abs_max"], **counts))
    hidden, cell = states
    return LSTMHealth(hidden, cell, max_rms, min_rms)
