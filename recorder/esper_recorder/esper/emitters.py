"""What happens in the environments of a vectorised trainer, as rows of the tables, through its recorder.

    emitter = EnvironmentEmitter(recorder, slots=config.slots)
    emitters = [emitter.of(env=env, device=str(device)) for env, device in enumerate(devices)]
    emitters[2].germinated("r0c1", blueprint="conv_light")
    emitters[2].epoch_completed(7, val_accuracy=61.5)

A payload is a frozen row of the contract: its fields are the table's columns, and a missing one is stored as NULL. The
context (environment, device) is filled in by making a new row. A group of an A/B test is a separate run, so its
recorder names it: `Recorder(..., trainer={"name": "esper", "group_id": "A"})`.

Nothing here raises into the trainer: a row that could not be recorded is logged and becomes a row of `gaps`, and Ctrl-C
is handled once the row is recorded. Whether a training gets worse is for the rules to decide, such as
`return_degradation` of the profile `default`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Self, TypeVar

from esper_recorder.arguments import BadCall
from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import IDENTITY, Row
from esper_recorder.contract.tables.esper import Counterfactual, EpochRow, SlotEpoch, SlotEvent
from esper_recorder.esper.rewards import reward_components
from esper_recorder.esper.slots import check_slot, ordered_slots
from esper_recorder.recorder import Recorder
from esper_recorder.storage.interrupts import signals_deferred

log = logging.getLogger("esper_recorder")

R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Intervals:
    """Record only the first and then every n-th row of a table, per environment.

    1 records each. Events of slots are always recorded.
    """

    epochs: int = 1
    decisions: int = 1
    rewards: int = 1
    counterfactuals: int = 1

    def __post_init__(self) -> None:
        for name, every in dataclasses.asdict(self).items():
            if isinstance(every, bool) or not isinstance(every, int) or every < 1:
                raise ValueError(f"{name} is {every!r}; give of how many one is recorded, a whole number from 1")

    def of(self, table: str) -> int:
        """Return the interval of a table."""
        return int(getattr(self, table, 1))


@dataclass(frozen=True, slots=True)
class RowEmitter:
    """Gives rows to a recorder, with the context they were made in.

    Attributes:
        recorder: of their run; they belong to the update it is collecting.
        env, device: filled into rows that have such a column and leave it None.
        intervals: how many are recorded; the others are left out on purpose and make no gap.
    """

    recorder: Recorder
    env: int | None = None
    device: str | None = None
    intervals: Intervals = Intervals()
    _seen: Counter[tuple[str, int | None]] = field(default_factory=Counter, repr=False, compare=False)
    _failed: set[str] = field(default_factory=set, repr=False, compare=False)

    def of(self, *, env: int, device: str | None = None) -> Self:
        """Return a new emitter in the context of an environment."""
        return dataclasses.replace(self, env=env, device=device if device is not None else self.device)

    def emit(self, row: Row) -> None:
        """Record a row of the contract (`esper_recorder.contract.tables`), if its table is due."""
        with self._guarded(getattr(row, "table", "ppo_updates")):
            if not isinstance(row, Row):
                raise BadCall(f"emit() takes a row of a table, and was given a {type(row).__name__}")
            self._record_if_due(self._in_context(row))

    def collect(self, table: str, make: Callable[[], Row]) -> None:
        """Record the row of `table` that `make` returns; it is called only if the table is due.

        If it raises, the row is a gap, and the traceback of a table's first failure is logged.
        """
        with self._guarded(table):
            if self.recorder.run_id is not None and self._is_due(table, self.env):
                self._record(self._in_context(make()))

    def _in_context(self, row: R) -> R:
        context: dict[str, Any] = {"env": self.env, "device": self.device}
        columns = {f.name for f in dataclasses.fields(row)}
        missing = {name: value for name, value in context.items() if name in columns and getattr(row, name) is None}
        return dataclasses.replace(row, **missing) if missing else row

    def _is_due(self, table: str, env: int | None) -> bool:
        self._seen[table, env] += 1
        return (self._seen[table, env] - 1) % self.intervals.of(table) == 0

    def _record_if_due(self, row: Row) -> bool:
        due = self._is_due(row.table, getattr(row, "env", None))
        if due:
            self._record(row)
        return due

    def _record(self, row: Row) -> None:
        columns = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name not in IDENTITY}
        self.recorder.row(row.table, **{name: value for name, value in columns.items() if value is not None})

    @contextlib.contextmanager
    def _guarded(self, table: str) -> Iterator[None]:
        """Turn a failure into a gap of the table; the first of a table is logged with its traceback."""
        with signals_deferred, self.recorder.adapter.guarded("emit", table):
            try:
                yield
            except Exception as error:
                if table not in self._failed:
                    self._failed.add(table)
                    message = "A row of %s could not be collected (environment %s); the table gaps counts all of them."
                    log.warning(message, table, self.env, exc_info=error)
                raise


@dataclass(frozen=True, slots=True)
class EnvironmentEmitter(RowEmitter):
    """Records what happens in an environment and in the slots of its network.

    Attributes:
        slots: the ids of the network's slots; any other id is an error that lists them.

    The further arguments of a method are columns of its table, listed by `esper tables slots`.
    """

    slots: Sequence[str] | None = None

    def germinated(self, slot: str, **columns: Any) -> None:
        """Record that a module (seed) began to grow in a slot: `seed`, `blueprint`, `params`, ..."""
        self._slot_event("germinated", slot, columns)

    def stage_changed(self, slot: str, from_stage: str, to_stage: str, **columns: Any) -> None:
        """Record a change of its stage: `alpha`, `accuracy_delta`, ..."""
        self._slot_event("stage_changed", slot, {"from_stage": from_stage, "to_stage": to_stage, **columns})

    def gate_evaluated(self, slot: str, gate: str, passed: bool, **columns: Any) -> None:
        """Record that it passed a gate or did not: `to_stage`, `checks_passed`, `checks_failed`, `message`."""
        self._slot_event("gate_evaluated", slot, {"gate": gate, "passed": passed, **columns})

    def pruned(self, slot: str, **columns: Any) -> None:
        """Record its removal: `reason`, `initiator`, `auto_pruned`, `improvement`, ..."""
        self._slot_event("pruned", slot, columns)

    def fossilized(self, slot: str, **columns: Any) -> None:
        """Record that it became a permanent part of the network: `improvement`, `counterfactual`, `params`, ..."""
        self._slot_event("fossilized", slot, columns)

    def epoch_completed(
        self, epoch: int, *, in_slots: Mapping[str, Mapping[str, Any]] | None = None, **columns: Any
    ) -> None:
        """Record an epoch of the environment's network.

        Args:
            epoch: of the episode, counted from 1.
            in_slots: slot -> columns of `slot_epochs` (`stage`, `alpha`, `grad_ratio`, ...) of the module in it.
            columns: of `epochs`: `episode`, `train_loss`, `val_accuracy`, ...
        """
        with self._guarded("epochs"):
            row = self._in_context(_row(EpochRow, {"epoch": epoch, **columns}))
            if not self._record_if_due(row):
                return
            for slot in self._ordered(in_slots or {}):
                with self._guarded("slot_epochs"):
                    self._record(
                        _row(SlotEpoch, {"env": row.env, "epoch": epoch, "slot": slot, **(in_slots or {})[slot]})
                    )

    def counterfactuals(
        self, accuracies: Mapping[tuple[str, ...], float | None] | Mapping[frozenset[str], float | None], **columns: Any
    ) -> None:
        """Record the accuracies of the environment's network with some of its modules switched off.

        Args:
            accuracies: the slots whose modules were on (a tuple or frozenset, `()` for the host alone) -> accuracy, %.
            columns: `strategy`, `compute_ms`.
        """
        with self._guarded("counterfactuals"):
            matrix = {self._ordered(active): accuracy for active, accuracy in accuracies.items()}
            slots = self._ordered({slot for active in matrix for slot in active} | set(self.slots or ()))
            if not self._is_due("counterfactuals", self.env):
                return
            for number, (active, accuracy) in enumerate(matrix.items(), 1):
                key = {"configuration": number, "slots": list(slots), "active": list(active), "accuracy": accuracy}
                self._record(self._in_context(_row(Counterfactual, {**key, **columns})))

    def rewarded(self, step: int, components: Any, **columns: Any) -> None:
        """Record a reward by its components, `total_reward` among them; see `reward_components`."""
        with self._guarded("rewards"):
            self._record_if_due(self._in_context(reward_components(components, step=step, **columns)))

    def _slot_event(self, event: str, slot: str, columns: Mapping[str, Any]) -> None:
        with self._guarded("slots"):
            row = _row(SlotEvent, {"event": event, "slot": check_slot(slot, self.slots), **columns})
            self._record(self._in_context(row))

    def _ordered(self, slots: Iterable[str]) -> tuple[str, ...]:
        return ordered_slots(slots, self.slots)


def _row(kind: type[R], columns: Mapping[str, Any]) -> R:
    """Make a row of a table. Raises BadCall for an unknown column."""
    names = [f.name for f in dataclasses.fields(kind)]
    for name in columns:
        if name not in names:
            raise BadCall(f"table {kind.table} has no column {name}. {suggest(name, names, kind='columns')}")
    return kind(**columns)
