"""Plain values into columns, by a `Kind`: what parts of events and whole events have in common."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from esper_recorder.esper.field_map.event_columns import DIFFERS, NO_COLUMN, UNKNOWN_KEY, Block, Entries, same
from esper_recorder.esper.field_map.fields import Kind, To
from esper_recorder.esper.field_map.update_clock import PROFILE, batch_of

_FROM_ONE = ("update", "envelope.epoch")
"""What counts from 1: where it is not told, Esper writes a 0 for it."""

Rest = dict[str, Sequence[Any]]
"""Key -> values that no column has taken yet."""


def take_columns(
    entries: Entries, kind: Kind, told: Iterable[tuple[str, Sequence[Any]]] | None = None
) -> tuple[Block, Rest]:
    """The columns a kind names, and what is left over: of some keys and values, or else of all the data's."""
    columns: Block = {name: [value] * len(entries) for name, value in kind.constants.items()}
    rest: Rest = {}
    for key, values in entries.values() if told is None else told:
        to = kind.columns.get(key)
        if to is not None:
            name = to if isinstance(to, str) else to.column
            taken = _column(entries, kind.table, key, to, values)
            columns[name] = taken if name not in columns else _either(columns[name], taken)
        elif key in kind.repeats:
            check_repeat(entries, key, values, kind.repeats[key])
        elif key in kind.kept:
            keep_all(entries, key, values, NO_COLUMN)
        else:
            rest[key] = values
    return columns, rest


def map_rows(entries: Entries, kind: Kind) -> None:
    """Rows of what lies deeper in events: all its values are plain."""
    columns, rest = take_columns(entries, kind)
    keep_rest(entries, rest, kind)
    entries.out.add(kind.table, entries.block(kind.table, columns))


def keep_rest(entries: Entries, rest: Rest, kind: Kind) -> None:
    """Keep what no column took."""
    for key, values in rest.items():
        keep_all(entries, key, values, NO_COLUMN if kind.loose else UNKNOWN_KEY)


def keep_all(entries: Entries, key: str, values: Sequence[Any], reason: str) -> None:
    """Keep the values that are not None."""
    for place, value in enumerate(values):
        if value is not None:
            entries.keep(place, key, reason, value)


def envelope(entries: Entries, key: str) -> Sequence[Any]:
    """A key of the envelope, for each event."""
    return entries.envelope.get(key) or [None] * len(entries)


def check_repeat(entries: Entries, key: str, values: Sequence[Any], what: str) -> None:
    """Keep the values that do not repeat what they should; those that do have a column there."""
    for place, (value, other) in enumerate(zip(values, _repeated(entries, what), strict=True)):
        if value is None or same(value, other) or (other is None and what in _FROM_ONE and same(value, 0)):
            continue
        unknown = other is None and what.startswith("config.")
        entries.keep(place, key, NO_COLUMN if unknown else DIFFERS, value)


def _repeated(entries: Entries, what: str) -> Iterable[Any]:
    """What a value should repeat, for each event.

    `update` (which the training loop's profile counts from 0), `envelope.KEY`, `config.KEY` of the run's configuration,
    `size.KEY` for the number of things under another key, `false`, or another key itself.
    """
    if what == "false":
        return [False] * len(entries)
    if what == "update":
        first = 0 if entries.event_type == PROFILE else 1
        named = [batch_of(entries.event_type, data) for data in entries.datas]
        return [None if batch is None else batch - 1 + first for batch in named]
    source, dot, name = what.partition(".")
    if not dot:
        return [data.get(what) for data in entries.datas]
    if source == "size":
        return [len(data[name]) if isinstance(data.get(name), dict) else None for data in entries.datas]
    if source == "config":
        return [(entries.training.config or {}).get(name)] * len(entries)
    return envelope(entries, name)


def _column(entries: Entries, table: str, key: str, to: str | To, values: Sequence[Any]) -> Sequence[Any]:
    if isinstance(to, str):
        return entries.fitted(table, to, key, values)
    return entries.fitted(table, to.column, key, entries.converted(key, values, to.by))


def _either(before: Sequence[Any], values: Sequence[Any]) -> list[Any]:
    """One column of two names: a trainer writes the one or the other."""
    return [old if new is None else new for old, new in zip(before, values, strict=True)]
