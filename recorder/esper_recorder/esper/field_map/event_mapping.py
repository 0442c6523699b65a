"""Esper's events as rows of the tables: whole columns at a time, each value accounted for.

    clock = Clock()
    entries = [Entry(line, event, *clock.place(event)) for line, event in ...]
    mapped = map_events(entries)            # of one run
    mapped.blocks["ppo_updates"]            # blocks of columns

A block's `time` is in microseconds since 1970, UTC. What an event says and no column holds is in the blocks of
`raw_events`, with the reason; see `entries`. A key that is absent and a key whose value is null are NULL alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from esper_recorder.esper.field_map.event_columns import (
    NO_TABLE,
    UNKNOWN_EVENT,
    UNKNOWN_KEY,
    WRONG_TYPE,
    Block,
    Entries,
    Mapped,
    microseconds,
)
from esper_recorder.esper.field_map.field_columns import check_repeat, envelope, keep_all, keep_rest, take_columns
from esper_recorder.esper.field_map.fields import ALARM, KINDS, WITHOUT_TABLE, Kind
from esper_recorder.esper.field_map.nested_values import PARTS, WHOLE, skipped_update
from esper_recorder.esper.field_map.update_clock import SNAPSHOT, STARTED, UPDATED, Training

ENVELOPE = ("event_id", "severity", "epoch", "message")
"""Keys of the envelope that are columns of `events` under the same name."""
_ELSEWHERE = ("event_type", "group_id", "seed_id", "slot_id")  # the kind, the run, and see `map_data`
_SHARED = ("env", "step", "epoch", "episode")  # what the rows of an event's parts have in common with its own


class Entry(NamedTuple):
    """An event, where it stood, and where `Clock.place` puts it."""

    line: int
    event: Mapping[str, Any]
    training: Training
    update: int


def is_event(value: Any) -> bool:
    """Whether a decoded line is an event: a mapping that names its type."""
    return isinstance(value, dict) and type(value.get("event_type")) is str


def map_events(entries: Iterable[Entry]) -> Mapped:
    """The rows of some events of one run. Rows of an event are in its order; rows of different kinds are not."""
    out = Mapped()
    shapes: dict[tuple[Any, ...], list[Entry]] = {}
    for entry in entries:
        event = entry[1]
        data = event.get("data")
        event_type = event["event_type"]
        kind = None
        if type(data) is not dict:
            data = {}
        elif event_type == SNAPSHOT:
            kind = data.get("kind")
            kind = kind if type(kind) is str else None
        # Events of one shape become columns together, which is what makes it fast.
        shape = (event_type, kind, tuple(data), tuple(event), id(entry[2]), data.get("skipped") is True)
        members = shapes.get(shape)
        if members is None:
            shapes[shape] = [entry]
        else:
            members.append(entry)
    for (event_type, kind, *_), members in shapes.items():
        _map_shape(event_type, kind, members, out)
    return out


def _map_shape(event_type: str, kind: str | None, members: Sequence[Entry], out: Mapped) -> None:
    lines, events, trainings, updates = zip(*members, strict=True)
    envelopes = dict(zip(events[0], zip(*(event.values() for event in events), strict=True), strict=True))
    datas = [data if type(data) is dict else {} for data in envelopes.get("data", [None] * len(events))]
    label = f"{event_type}/{kind}" if kind is not None else event_type
    given: dict[str, Sequence[Any]] = {"line": lines, "update": updates}
    entries = Entries(label, event_type, trainings[0], given, datas, envelopes, "", out)
    _map_envelope(entries, kind)
    if event_type == UPDATED and datas[0].get("skipped") is True:
        out.typed[label] += len(entries)
        skipped_update(entries)
        return
    entries.path = "data."
    spec = KINDS.get(label)
    if spec is None and "anomaly_type" in datas[0]:
        spec = ALARM
    if event_type == STARTED or spec is not None:
        out.typed[label] += len(entries)
        if spec is not None:
            map_data(entries, spec)
        return
    known = event_type in WITHOUT_TABLE
    (out.kept if known else out.rejected)[label] += len(entries)
    for place, event in enumerate(events):
        entries.keep(place, "", NO_TABLE if known else UNKNOWN_EVENT, event, whole=True)


def _map_envelope(entries: Entries, kind: str | None) -> None:
    """Rows of `events`; the times go into `entries.given`."""
    count = len(entries)
    entries.given["time"] = [None] * count  # for what is kept on the way
    columns: dict[str, Sequence[Any]] = {"event_type": [entries.event_type] * count, "kind": [kind] * count}
    for key, values in entries.envelope.items():
        if key in ENVELOPE:
            columns[key] = entries.fitted("events", key, key, values)
        elif key == "timestamp":
            entries.given["time"] = entries.converted(key, values, microseconds)
        elif key == "data":
            for place, value in enumerate(values):
                if value is not None and type(value) is not dict:
                    entries.keep(place, key, WRONG_TYPE, value)
        elif key not in _ELSEWHERE:
            keep_all(entries, key, values, UNKNOWN_KEY)
    entries.out.add("events", entries.block("events", columns))


def map_data(entries: Entries, kind: Kind) -> None:
    """Rows of what the events of one kind and shape say, and of what lies deeper in them."""
    columns: Block = {
        column: entries.fitted(kind.table, column, f"envelope.{key}", envelope(entries, key))
        for key, column in kind.envelope.items()
    }
    _check_context(entries, kind)
    taken, rest = take_columns(entries, kind)
    columns |= taken
    if entries.event_type == SNAPSHOT:
        rest.pop("kind", None)
    for name, values in columns.items():
        if kind.hollow or name in _SHARED:
            entries.given[name] = values
    deeper = {key: rest.pop(key) for key in kind.parts if key in rest}
    if kind.table in WHOLE:
        columns |= WHOLE[kind.table](entries, rest)
    for part, values in deeper.items():
        PARTS[part](entries, values)
    keep_rest(entries, rest, kind)
    if not kind.hollow:
        entries.out.add(kind.table, entries.block(kind.table, columns))


def _check_context(entries: Entries, kind: Kind) -> None:
    """`seed_id` and `slot_id` of the envelope are columns, repetitions of the data, or kept."""
    path, entries.path = entries.path, ""
    for key in ("seed_id", "slot_id"):
        told = envelope(entries, key)
        if key not in kind.envelope and told.count(None) < len(told):
            if f"envelope.{key}" in kind.repeats:
                check_repeat(entries, key, told, kind.repeats[f"envelope.{key}"])
            else:
                keep_all(entries, key, told, UNKNOWN_KEY)
    entries.path = path
