"""What a vectorised trainer tells of its environments, as rows of the tables, through its recorder.

    emitter = EnvironmentEmitter(recorder, slots=config.slots)
    of_env = [emitter.of(env=env, device=str(device)) for env, device in enumerate(devices)]
    of_env[2].germinated("r0c1", blueprint="conv_light")
    of_env[2].epoch_completed(7, val_accuracy=61.5)

A payload is the contract's own frozen row: its fields are the table's columns, and one that is not given is None and is
stored as NULL. The context (environment, device) is added by making a new row, never by changing one. A group of an A/B
test is a run of its own, so its recorder tells it: `Recorder(..., trainer={"name": "esper", "group_id": "A"})`.

Nothing here raises into the trainer: what could not be told is logged and becomes a row of `gaps`. Whether a training
gets worse is for the rules to judge, on what is recorded: `return_degradation` of the profile `default`, on
`Recorder.episode`.
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

log = logging.getLogger("esper_recorder")

R = TypeVar("R", bound=Row)


@dataclass(frozen=True, slots=True)
class Intervals:
    """Of how many rows that an environment tells of a table one is recorded, the first and then every n-th.

    1 records each. What happens to slots is always recorded.
    """

    epochs: int = 1
    decisions: int = 1
    rewards: int = 1
    counterfactuals: int = 1

    def __post_init__(self) -> None:
        for name in (f.name for f in dataclasses.fields(self)):
            every = getattr(self, name)
            if isinstance(every, bool) or not isinstance(every, int) or every < 1:
                raise ValueError(f"{name} is {every!r}; give of how many one is recorded, a whole number from 1")

    def of(self, table: str) -> int:
        """That of a table."""
        every: int = getattr(self, table, 1)
        return every


@dataclass(frozen=True, slots=True)
class RowEmitter:
    """Hands rows to a recorder, with the context they were made in.

    Attributes:
        recorder: of the run they belong to; they go to the update it is collecting.
        env, device: filled into rows that have such a column and leave it None.
        intervals: how many are recorded; rows that are not are left out on purpose and make no gap.
    """

    recorder: Recorder
    env: int | None = None
    device: str | None = None
    intervals: Intervals = Intervals()
    _seen: Counter[tuple[str, int | None]] = field(default_factory=Counter, repr=False, compare=False)
    _told: set[str] = field(default_factory=set, repr=False, compare=False)

    def of(self, *, env: int, device: str | None = None) -> Self:
        """The same emitter in the context of an environment: a new one; this one stays as it is."""
        return dataclasses.replace(self, env=env, device=device if device is not None else self.device)

    def emit(self, row: Row) -> None:
        """Record a row of the contract (`esper_recorder.contract.tables`), if one of its table is due."""
        with self._guarded(getattr(row, "table", "ppo_updates")):
            if not isinstance(row, Row):
                raise BadCall(f"emit() takes a row of a table, and was given a {type(row).__name__}")
            whole = self._in_context(row)
            if self._is_due(whole):
                self._record(whole)

    def collect(self, table: str, make: Callable[[], Row]) -> None:
        """Record what `make` returns, a row of `table`; it is called only if one is due.

        Where it raises, the traceback is logged (of the first failure of each table), and the row is counted as lost.
        """
        with self._guarded(table):
            if self.recorder.run_id is None or not self._is_due_of(table, self.env):
                return
            self._record(self._in_context(make()))

    def _in_context(self, row: R) -> R:
        context: dict[str, Any] = {"env": self.env, "device": self.device}
        own = {f.name for f in dataclasses.fields(row)}
        added = {name: value for name, value in context.items() if name in own and getattr(row, name) is None}
        return dataclasses.replace(row, **added) if added else row

    def _is_due(self, row: Row) -> bool:
        return self._is_due_of(row.table, getattr(row, "env", None))

    def _is_due_of(self, table: str, env: int | None) -> bool:
        seen = self._seen[table, env]
        self._seen[table, env] += 1
        return seen % self.intervals.of(table) == 0

    def _record(self, *rows: Row) -> None:
        for row in rows:
            told = {f.name: getattr(row, f.name) for f in dataclasses.fields(row) if f.name not in IDENTITY}
            self.recorder.row(row.table, **{name: value for name, value in told.items() if value is not None})

    @contextlib.contextmanager
    def _guarded(self, table: str) -> Iterator[None]:
        """Keep a failure from the trainer: it is a gap of the table, and the first is logged with its traceback."""
        with self.recorder.guarded("emit", table):
            try:
                yield
            except Exception as error:
                if table not in self._told:
                    self._told.add(table)
                    message = "A row of %s could not be collected (environment %s); the table gaps counts all of them."
                    log.warning(message, table, self.env, exc_info=error)
                raise


@dataclass(frozen=True, slots=True)
class EnvironmentEmitter(RowEmitter):
    """What happens in an environment and in the slots of its network.

    Attributes:
        slots: the ids of the network's slots. One that is not among them is told as a mistake, with those there are.

    What a method takes beside its arguments are columns of its table; `esper tables slots` lists them.
    """

    slots: Sequence[str] | None = None

    def germinated(self, slot: str, **told: Any) -> None:
        """A module (seed) began to grow in a slot: `seed`, `blueprint`, `params`, ..."""
        self._slot_event("germinated", slot, told)

    def stage_changed(self, slot: str, from_stage: str, to_stage: str, **told: Any) -> None:
        """It went from one stage of its life to another: `alpha`, `accuracy_delta`, ..."""
        self._slot_event("stage_changed", slot, {"from_stage": from_stage, "to_stage": to_stage, **told})

    def gate_evaluated(self, slot: str, gate: str, passed: bool, **told: Any) -> None:
        """It stood before a gate: `to_stage`, `checks_passed`, `checks_failed`, `message`."""
        self._slot_event("gate_evaluated", slot, {"gate": gate, "passed": passed, **told})

    def pruned(self, slot: str, **told: Any) -> None:
        """It was taken out: `reason`, `initiator`, `auto_pruned`, `improvement`, ..."""
        self._slot_event("pruned", slot, told)

    def fossilized(self, slot: str, **told: Any) -> None:
        """It became a part of the network for good: `improvement`, `counterfactual`, `params`, ..."""
        self._slot_event("fossilized", slot, told)

    def epoch_completed(
        self, epoch: int, *, in_slots: Mapping[str, Mapping[str, Any]] | None = None, **told: Any
    ) -> None:
        """An epoch of the environment's network is done.

        Args:
            epoch: of the episode, counted from 1.
            in_slots: slot -> columns of `slot_epochs` (`stage`, `alpha`, `grad_ratio`, ...) of the module in it.
            told: columns of `epochs`: `episode`, `train_loss`, `val_accuracy`, ...
        """
        with self._guarded("epochs"):
            row = self._in_context(_made(EpochRow, {"epoch": epoch, **told}))
            if not self._is_due(row):
                return
            self._record(row)
            for slot in self._ordered(in_slots or {}):
                with self._guarded("slot_epochs"):
                    columns = {"env": row.env, "epoch": epoch, "slot": slot, **(in_slots or {})[slot]}
                    self._record(_made(SlotEpoch, columns))

    def counterfactuals(
        self, accuracies: Mapping[tuple[str, ...], float | None] | Mapping[frozenset[str], float | None], **told: Any
    ) -> None:
        """The accuracies of the environment's network with some of its modules switched off: a whole matrix.

        Args:
            accuracies: the slots whose modules were on (a tuple or frozenset, `()` for the host alone) -> accuracy, %.
            told: `strategy`, `compute_ms`.
        """
        with self._guarded("counterfactuals"):
            matrix = {self._ordered(active): accuracy for active, accuracy in accuracies.items()}
            slots = ordered_slots({slot for active in matrix for slot in active} | set(self.slots or ()), self.slots)
            if not self._is_due_of("counterfactuals", self.env):
                return
            for number, (active, accuracy) in enumerate(matrix.items(), 1):
                own = {"configuration": number, "slots": list(slots), "active": list(active), "accuracy": accuracy}
                self._record(self._in_context(_made(Counterfactual, {**own, **told})))

    def rewarded(self, step: int, components: Any, **told: Any) -> None:
        """A reward was given: its components by their names, `total_reward` among them; see `reward_components`."""
        with self._guarded("rewards"):
            row = self._in_context(reward_components(components, step=step, **told))
            if self._is_due(row):
                self._record(row)

    def _slot_event(self, event: str, slot: str, told: Mapping[str, Any]) -> None:
        with self._guarded("slots"):
            row = _made(SlotEvent, {"event": event, "slot": check_slot(slot, self.slots), **told})
            self._record(self._in_context(row))

    def _ordered(self, slots: Iterable[str]) -> tuple[str, ...]:
        return ordered_slots(slots, self.slots)


def _made(kind: type[R], columns: Mapping[str, Any]) -> R:
    """A row of a table. Raises BadCall for a column it has not, naming the nearest."""
    known = [f.name for f in dataclasses.fields(kind)]
    for name in columns:
        if name not in known:
            raise BadCall(f"table {kind.table} has no column {name}. {suggest(name, known, kind='columns')}")
    return kind(**columns)
