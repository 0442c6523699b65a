"""What could not be recorded: it is counted, logged once and stored as a gap, and never raised into the trainer."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterator
from typing import Any

from esper_recorder.arguments import BadCall, host_value
from esper_recorder.storage.gaps import ALL_TABLES, BAD_CALL, DEVICE_FAILED, REDUCE_FAILED
from esper_recorder.storage.interrupts import signals_deferred
from esper_recorder.storage.jsonable import describe_error

log = logging.getLogger("esper_recorder")

Cost = tuple[str, int | None]
"""A table and how many rows of it were lost; None if that is not known."""

WHOLE_UPDATE: Cost = (ALL_TABLES, None)

_COSTS: dict[str, Cost] = {
    "minibatch": ("minibatches", 1),
    "push": ("minibatches", 1),
    "episode": ("episodes", 1),
    "episodes": ("episodes", None),
    "recurrent": ("recurrent_state", None),
    "layers": ("gradient_layers", None),
}
"""What a call costs that fails. Other calls cost columns of an update."""

_DETAIL_LENGTH = 500


class Failures:
    """The failures of one update.

    Args:
        update: its number.
        report_gap: `Writer.report_gap`; None if nothing is recorded.
    """

    def __init__(self, update: int, report_gap: Callable[..., None] | None) -> None:
        self._update, self._report_gap = update, report_gap

    def report(self, what: str, error: Exception, cost: Cost | None = None) -> None:
        """Count a failure of the call (or work) `what`."""
        bad_call = isinstance(error, BadCall)
        detail = str(error) if bad_call else f"{what}: {describe_error(error)}"
        self._count(BAD_CALL if bad_call else REDUCE_FAILED, detail, cost or _COSTS.get(what, ("ppo_updates", None)))
        log.debug("recorder call %s failed", what, exc_info=error)

    def report_device(self, error: Exception, minibatches: int) -> None:
        """Count what a failed device cost: that many minibatches, or else what was only on the device."""
        cost: Cost = ("minibatches", minibatches) if minibatches else ("gradient_layers", None)
        self._count(DEVICE_FAILED, describe_error(error), cost)

    @contextlib.contextmanager
    def guarded(self, what: str, table: str | None = None) -> Iterator[None]:
        """Report an exception instead of raising it.

        Args:
            what: what is done, for the log.
            table: the table that lacks a row if it fails.
        """
        try:
            yield
        except Exception as error:
            self.report(what, error, None if table is None else (table, 1))

    def checked(self, name: str, value: Any, kind: str, *, table: str = "minibatches") -> Any:
        """Convert a value for a column of `table`; report a value that is not of the column's type, and return None."""
        try:
            return host_value(name, value, kind)
        except BadCall as error:
            self.report(name, error, (table, 0))
            return None

    def end(self) -> None:
        """Count nothing any more: the recording is over."""
        self._report_gap = None

    def _count(self, reason: str, detail: str, cost: Cost) -> None:
        if self._report_gap is not None:
            table, rows = cost
            with signals_deferred:  # the writer's lock is taken
                self._report_gap(self._update, reason, table=table, rows=rows, detail=detail[:_DETAIL_LENGTH])
