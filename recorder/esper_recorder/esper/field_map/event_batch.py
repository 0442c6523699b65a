"""Events of one shape as columns, and the table rows made of them.

Covers: the generic half of the mapping, as a `Kind` describes it. Every value ends in a column, is a repetition of
another value, or is kept in `raw_events` with the reason.
Does not cover: what lies deeper in an event (`nested_values`), and which kind an event is (`event_mapping`).
"""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import eq
from typing import Any, Final

from esper_recorder.contract.tables import columns
from esper_recorder.esper.field_map.event_kinds import Conversion, Kind
from esper_recorder.esper.field_map.event_values import EXACT_INTEGERS, json_text, misfits, same
from esper_recorder.esper.field_map.update_clock import PROFILE, Training, batch_of

Block = dict[str, Sequence[Any]]
"""Columns of one length by name: rows of one table."""
Rest = dict[str, Sequence[Any]]
"""Key -> values that no column has taken yet."""

NO_EVENT: Final = "no_event"
NO_TABLE: Final = "no_table"
NO_COLUMN: Final = "no_column"
UNKNOWN_EVENT: Final = "unknown_event"
UNKNOWN_KEY: Final = "unknown_key"
WRONG_TYPE: Final = "wrong_type"
DIFFERS: Final = "differs"

_EXPECTED: Final = (NO_TABLE, NO_COLUMN)
"""Reasons that do not count as a rejected value: it is understood, and `raw_events` is its place."""
_COUNTS_FROM_ONE: Final = ("update", "envelope.epoch")
"""Repeated values that Esper writes as 0 when it has none."""


@dataclass(slots=True)
class EventRows:
    """Rows by table, and the account of the events they were made of."""

    blocks: dict[str, list[Block]] = field(default_factory=dict)
    typed: Counter[str] = field(default_factory=Counter)
    """Kind of event -> events with a table."""
    kept: Counter[str] = field(default_factory=Counter)
    """Kind of event -> events of a known kind without a table, kept in `raw_events`."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Kind of event -> events of an unknown kind, kept in `raw_events`."""
    values_rejected: Counter[str] = field(default_factory=Counter)
    """Kind of event -> values of typed events that fitted no column; kept in `raw_events`."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Rows of `raw_events` by reason."""

    def add(self, table: str, block: Block) -> None:
        """Add rows of a table."""
        self.blocks.setdefault(table, []).append(block)


@dataclass(slots=True)
class EventBatch:
    """Events of one run, one kind and one shape: their payloads have the same keys in the same order."""

    label: str
    """The kind, as the load report names it."""
    event_type: str
    training: Training
    context: dict[str, Sequence[Any]]
    """The columns that all rows made of an event share: `line`, `update` and `time` at least."""
    payloads: Sequence[Mapping[str, Any]]
    envelope: Mapping[str, Sequence[Any]]
    """The values of the events' envelopes, by key."""
    path: str
    """Where the payload stands in its event, with a dot at its end; `{slot}` in it is the slot of the context."""
    rows: EventRows

    def __len__(self) -> int:
        return len(self.payloads)

    def columns(self) -> Iterator[tuple[str, Sequence[Any]]]:
        """Each key with its values, unless all are None: an explicit null says no more than a missing key."""
        values_by_key = zip(*(payload.values() for payload in self.payloads), strict=True)
        for key, values in zip(self.payloads[0], values_by_key, strict=True):
            # The check of the first value spares most columns the count, which takes longer than mapping them.
            if values[0] is not None or values.count(None) < len(values):
                yield key, values

    def of_envelope(self, key: str) -> Sequence[Any]:
        """The value of a key of the envelope, for each event."""
        return self.envelope.get(key) or [None] * len(self)

    # --- rows ---------------------------------------------------------------------------------------------------------

    def add(self, table: str, columns: Mapping[str, Sequence[Any]], indices: Sequence[int] | None = None) -> None:
        """Add rows of a table: these columns and those of the context; with `indices`, of those events alone."""
        types = column_types(table)
        block = {name: values for name, values in self.context.items() if name in types} | dict(columns)
        if indices is not None:
            block = {name: _select(indices, values) for name, values in block.items()}
        self.rows.add(table, block)

    def add_kind(self, kind: Kind) -> None:
        """Add rows of a kind whose values are all plain."""
        columns, rest = self.take(kind)
        self.keep_rest(rest, kind)
        self.add(kind.table, columns)

    def take(self, kind: Kind, source: Iterable[tuple[str, Sequence[Any]]] | None = None) -> tuple[Block, Rest]:
        """Return the columns that a kind names, and the rest: of the keys and values in `source`, else of all."""
        columns: Block = {name: [value] * len(self) for name, value in kind.constants.items()}
        rest: Rest = {}
        for key, values in self.columns() if source is None else source:
            target = kind.columns.get(key)
            if target is not None:
                name = target if isinstance(target, str) else target.column
                taken = self.fit(kind.table, target, key, values)
                if name in columns:  # of two names for one column, a trainer writes one or the other
                    taken = [old if new is None else new for old, new in zip(columns[name], taken, strict=True)]
                columns[name] = taken
            elif key in kind.repeats:
                self.check_repeat(key, values, kind.repeats[key])
            elif key in kind.without_column:
                self.keep_all(key, values, NO_COLUMN)
            else:
                rest[key] = values
        return columns, rest

    def fit(self, table: str, target: str | Conversion, key: str, values: Sequence[Any]) -> Sequence[Any]:
        """Return the values as a column holds them; one that it cannot hold is kept, and is None in the column.

        A float without a fraction fits a column of integers: Esper averages counts over epochs (2 becomes 2.0).
        """
        if not isinstance(target, str):
            return self.fit(table, target.column, key, self.convert(key, values, target.convert))
        type_ = column_types(table)[target]
        wrong = misfits(values, type_)
        if not wrong:
            return values
        fitting = list(values)
        for index in wrong:
            value = values[index]
            if type_ == "int64" and type(value) is float and value.is_integer() and abs(value) <= _EXACT_FLOAT:
                fitting[index] = int(value)
            else:
                self.keep(index, key, WRONG_TYPE, value)
                fitting[index] = None
        return fitting

    def convert(self, key: str, values: Sequence[Any], convert: Callable[[Any], Any]) -> list[Any]:
        """Convert the values; one that `convert` refuses by a ValueError is kept, and None."""
        try:
            return [None if value is None else convert(value) for value in values]
        except ValueError:
            pass  # which one it was shows one by one, below
        converted: list[Any] = []
        for index, value in enumerate(values):
            try:
                converted.append(None if value is None else convert(value))
            except ValueError:
                self.keep(index, key, WRONG_TYPE, value)
                converted.append(None)
        return converted

    def nested(
        self, key: str, indices: Sequence[int], payloads: Sequence[Mapping[str, Any]], **context: Sequence[Any]
    ) -> Iterator[EventBatch]:
        """Yield the mappings found under a key as batches of one shape each.

        Args:
            indices: for each payload, the index of the event it came from.
            context: columns that their rows have in addition.
        """
        shapes: dict[tuple[str, ...], list[int]] = {}
        for position, payload in enumerate(payloads):
            shapes.setdefault(tuple(payload), []).append(position)
        everything = range(len(payloads))
        if len(indices) == len(self) and all(map(eq, indices, everything)):
            indices = everything
        inherited = {name: _select(indices, values) for name, values in self.context.items()} | context
        epochs = {key: _select(indices, values) for key, values in self.envelope.items() if key == "epoch"}
        for positions in shapes.values() if len(shapes) > 1 else [everything] * len(shapes):
            yield EventBatch(
                self.label,
                self.event_type,
                self.training,
                {name: _select(positions, values) for name, values in inherited.items()},
                _select(positions, payloads),
                {key: _select(positions, values) for key, values in epochs.items()},
                f"{self.path}{key}.",
                self.rows,
            )

    # --- values without a column --------------------------------------------------------------------------------------

    def keep(self, index: int, key: str, reason: str, value: Any, *, whole: bool = False) -> None:
        """Keep a value of one event (or, if `whole`, the event itself) in `raw_events`."""
        self.rows.reasons[reason] += 1
        if reason not in _EXPECTED and not whole:
            self.rows.values_rejected[self.label] += 1
        identity = {name: [self.context[name][index]] for name in ("line", "update", "time")}
        names = {name: values[index] for name, values in self.context.items()}
        path = "" if whole else self.path.format_map(names) + key
        raw = {"key": [path], "event_type": [self.event_type], "reason": [reason], "text": [json_text(value)]}
        self.rows.add("raw_events", {**identity, **raw})

    def keep_all(self, key: str, values: Sequence[Any], reason: str) -> None:
        """Keep the values that are not None."""
        for index, value in enumerate(values):
            if value is not None:
                self.keep(index, key, reason, value)

    def keep_rest(self, rest: Rest, kind: Kind) -> None:
        """Keep what no column took."""
        for key, values in rest.items():
            self.keep_all(key, values, NO_COLUMN if kind.open_ended else UNKNOWN_KEY)

    def check_repeat(self, key: str, values: Sequence[Any], source: str) -> None:
        """Keep the values that do not repeat their source; the others are in a column already."""
        for index, (value, other) in enumerate(zip(values, self._repeated(source), strict=True)):
            if value is None or same(value, other):
                continue
            if other is None and source in _COUNTS_FROM_ONE and same(value, 0):
                continue
            unknown = other is None and source.startswith("config.")
            self.keep(index, key, NO_COLUMN if unknown else DIFFERS, value)

    def _repeated(self, source: str) -> Iterable[Any]:
        """The values that another key should repeat, for each event.

        `source` is `update` (which the training loop's profile counts from 0), `envelope.KEY`, `config.KEY` of the
        run's configuration, `size.KEY` for the number of members under a key, `false`, or a key of the payload.
        """
        if source == "false":
            return [False] * len(self)
        if source == "update":
            first = 0 if self.event_type == PROFILE else 1
            batches = [batch_of(self.event_type, payload) for payload in self.payloads]
            return [None if batch is None else batch - 1 + first for batch in batches]
        prefix, dot, name = source.partition(".")
        if not dot:
            return [payload.get(source) for payload in self.payloads]
        if prefix == "size":
            return [len(data[name]) if isinstance(data.get(name), dict) else None for data in self.payloads]
        if prefix == "config":
            return [(self.training.config or {}).get(name)] * len(self)
        return self.of_envelope(name)


_EXACT_FLOAT: Final = EXACT_INTEGERS["float64"]


def _select(indices: Sequence[int], values: Sequence[Any]) -> Sequence[Any]:
    """The values at some indices; the same object if a range says that these are all of them.

    Arrow arrays are made once per object (`esper_jsonl._as_arrow`), so a copy here would cost an array there.
    """
    return values if indices == range(len(values)) else [values[index] for index in indices]


@functools.cache
def column_types(table: str) -> dict[str, str]:
    """Column -> contract type."""
    return {column.name: column.type for column in columns(table)}
