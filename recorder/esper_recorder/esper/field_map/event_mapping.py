"""Esper's events as rows of the tables: whole columns at a time, each value accounted for.

    clock = Clock()
    events = [PlacedEvent(line, event, *clock.place(event)) for line, event in ...]
    rows = map_events(events)               # of one run
    rows.blocks["ppo_updates"]              # blocks of columns

A block's `time` is in microseconds since 1970, UTC. A value without a column is in the blocks of `raw_events`, with
the reason (`event_batch`). A key that is absent and a key whose value is null are NULL alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from esper_recorder.esper.field_map.event_batch import (
    NO_TABLE,
    UNKNOWN_EVENT,
    UNKNOWN_KEY,
    WRONG_TYPE,
    Block,
    EventBatch,
    EventRows,
)
from esper_recorder.esper.field_map.event_kinds import ALARM, KINDS, WITHOUT_TABLE, Kind
from esper_recorder.esper.field_map.event_values import microseconds
from esper_recorder.esper.field_map.nested_values import EXTRA_ROWS, NESTED, add_skipped_update
from esper_recorder.esper.field_map.update_clock import SNAPSHOT, STARTED, UPDATED, Training

_ENVELOPE_COLUMNS = ("event_id", "severity", "epoch", "message")
"""Keys of the envelope that are columns of `events` under the same name."""
_MAPPED_ELSEWHERE = ("event_type", "group_id", "seed_id", "slot_id")  # the kind, the run, and see `_map_payloads`
_SHARED_COLUMNS = ("env", "step", "epoch", "episode")
"""Columns of an event's own row that the rows of its nested values have too."""


class PlacedEvent(NamedTuple):
    """An event, its line, and the place that `Clock.place` gives it."""

    line: int
    event: Mapping[str, Any]
    training: Training
    update: int


def is_event(value: Any) -> bool:
    """Whether a decoded line is an event: a mapping that names its type."""
    return isinstance(value, dict) and type(value.get("event_type")) is str


def map_events(events: Iterable[PlacedEvent]) -> EventRows:
    """Map events of one run to rows. Rows of one kind keep the events' order; rows of different kinds do not."""
    rows = EventRows()
    shapes: dict[tuple[Any, ...], list[PlacedEvent]] = {}
    for placed in events:
        event = placed[1]
        data = event.get("data")
        event_type = event["event_type"]
        kind = None
        if type(data) is not dict:
            data = {}
        elif event_type == SNAPSHOT:
            kind = data.get("kind")
            kind = kind if type(kind) is str else None
        # Events of one shape become columns together: a cost per shape instead of one per event.
        shape = (event_type, kind, tuple(data), tuple(event), id(placed[2]), data.get("skipped") is True)
        members = shapes.get(shape)
        if members is None:
            shapes[shape] = [placed]
        else:
            members.append(placed)
    for (event_type, kind, *_), members in shapes.items():
        _map_shape(event_type, kind, members, rows)
    return rows


def _map_shape(event_type: str, kind: str | None, members: Sequence[PlacedEvent], rows: EventRows) -> None:
    lines, events, trainings, updates = zip(*members, strict=True)
    envelope = dict(zip(events[0], zip(*(event.values() for event in events), strict=True), strict=True))
    payloads = [data if type(data) is dict else {} for data in envelope.get("data", [None] * len(events))]
    label = f"{event_type}/{kind}" if kind is not None else event_type
    context: dict[str, Sequence[Any]] = {"line": lines, "update": updates}
    batch = EventBatch(label, event_type, trainings[0], context, payloads, envelope, "", rows)
    _map_envelope(batch, kind)
    if event_type == UPDATED and payloads[0].get("skipped") is True:
        rows.typed[label] += len(batch)
        add_skipped_update(batch)
        return
    batch.path = "data."
    spec = KINDS.get(label)
    if spec is None and "anomaly_type" in payloads[0]:
        spec = ALARM
    if event_type == STARTED or spec is not None:
        rows.typed[label] += len(batch)
        if spec is not None:
            _map_payloads(batch, spec)
        return
    expected = event_type in WITHOUT_TABLE
    (rows.kept if expected else rows.rejected)[label] += len(batch)
    for index, event in enumerate(events):
        batch.keep(index, "", NO_TABLE if expected else UNKNOWN_EVENT, event, whole=True)


def _map_envelope(batch: EventBatch, kind: str | None) -> None:
    """Add rows of `events`, and the times to the context."""
    count = len(batch)
    batch.context["time"] = [None] * count  # for a value that is kept before the times are read
    columns: dict[str, Sequence[Any]] = {"event_type": [batch.event_type] * count, "kind": [kind] * count}
    for key, values in batch.envelope.items():
        if key in _ENVELOPE_COLUMNS:
            columns[key] = batch.fit("events", key, key, values)
        elif key == "timestamp":
            batch.context["time"] = batch.convert(key, values, microseconds)
        elif key == "data":
            batch.keep_all(key, [None if type(value) is dict else value for value in values], WRONG_TYPE)
        elif key not in _MAPPED_ELSEWHERE:
            batch.keep_all(key, values, UNKNOWN_KEY)
    batch.add("events", columns)


def _map_payloads(batch: EventBatch, kind: Kind) -> None:
    """Add the rows of a kind: its own and those of its nested values."""
    columns: Block = {
        column: batch.fit(kind.table, column, f"envelope.{key}", batch.of_envelope(key))
        for key, column in kind.envelope.items()
    }
    _check_context(batch, kind)
    taken, rest = batch.take(kind)
    columns |= taken
    if batch.event_type == SNAPSHOT:
        rest.pop("kind", None)
    for name, values in columns.items():
        if kind.nested_only or name in _SHARED_COLUMNS:
            batch.context[name] = values
    nested = {key: rest.pop(key) for key in kind.nested if key in rest}
    if kind.table in EXTRA_ROWS:
        columns |= EXTRA_ROWS[kind.table](batch, rest)
    for key, values in nested.items():
        NESTED[key](batch, values)
    batch.keep_rest(rest, kind)
    if not kind.nested_only:
        batch.add(kind.table, columns)


def _check_context(batch: EventBatch, kind: Kind) -> None:
    """Check `seed_id` and `slot_id` of the envelope: they are columns, repetitions of the data, or kept."""
    path, batch.path = batch.path, ""
    for key in ("seed_id", "slot_id"):
        values = batch.of_envelope(key)
        if key not in kind.envelope and values.count(None) < len(values):
            if f"envelope.{key}" in kind.repeats:
                batch.check_repeat(key, values, kind.repeats[f"envelope.{key}"])
            else:
                batch.keep_all(key, values, UNKNOWN_KEY)
    batch.path = path
