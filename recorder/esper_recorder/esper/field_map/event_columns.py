"""The moving parts of the mapping: events of one shape, and what they become."""

from __future__ import annotations

import functools
import json
import math
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from operator import eq
from typing import Any, Final

from esper_recorder.contract.tables import columns
from esper_recorder.esper.field_map.update_clock import Training

Block = dict[str, Sequence[Any]]
"""Columns of one length by name: rows of one table."""

NO_EVENT: Final = "no_event"
NO_TABLE: Final = "no_table"
NO_COLUMN: Final = "no_column"
UNKNOWN_EVENT: Final = "unknown_event"
UNKNOWN_KEY: Final = "unknown_key"
WRONG_TYPE: Final = "wrong_type"
DIFFERS: Final = "differs"
AS_MEANT: Final = (NO_TABLE, NO_COLUMN)
"""Reasons that are no loss: what is known, and kept as it is."""

_TAKES: Final[dict[str, frozenset[type]]] = {
    "int64": frozenset({int, type(None)}),
    "float64": frozenset({float, int, type(None)}),
    "string": frozenset({str, type(None)}),
    "bool": frozenset({bool, type(None)}),
}
_LIMITS: Final = {"int64": 2**63 - 1, "float64": 2**53}
"""The largest whole number a column holds exactly."""
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_AS_WRITTEN: Final = "2026-01-01T00:00:00.000000+00:00"
_SECOND: Final = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.", re.ASCII)


def misfits(values: Sequence[Any], type_: str) -> list[int]:
    """The places of the values that a column of a contract type cannot hold as they are; None fits everywhere."""
    if type_.startswith("list<"):
        if set(map(type, values)) <= {type(None)}:
            return []
        inner = type_[5:-1]
        return [
            place
            for place, value in enumerate(values)
            if value is not None and (type(value) is not list or None in value or misfits(value, inner))
        ]
    takes = _TAKES[type_]
    kinds = set(map(type, values))
    if kinds <= takes and (int not in kinds or _within(values, _LIMITS[type_])):
        return []
    return [
        place
        for place, value in enumerate(values)
        if type(value) not in takes or (type(value) is int and not _within([value], _LIMITS[type_]))
    ]


def _within(values: Iterable[Any], limit: int) -> bool:
    whole = [value for value in values if type(value) is int]
    return max(whole) <= limit and min(whole) >= -limit


@dataclass(slots=True)
class Mapped:
    """Rows by table, and what became of the events they were made of."""

    blocks: dict[str, list[Block]] = field(default_factory=dict)
    typed: Counter[str] = field(default_factory=Counter)
    """By kind of event: those with a table of their own."""
    kept: Counter[str] = field(default_factory=Counter)
    """Those of a known kind without one, kept in `raw_events`."""
    rejected: Counter[str] = field(default_factory=Counter)
    """Those of an unknown kind, kept in `raw_events`."""
    values_rejected: Counter[str] = field(default_factory=Counter)
    """Values, of typed events, that fitted no column; kept in `raw_events`."""
    reasons: Counter[str] = field(default_factory=Counter)
    """Rows of `raw_events` by reason."""

    def add(self, table: str, block: Block) -> None:
        """Take rows."""
        self.blocks.setdefault(table, []).append(block)


@dataclass(slots=True)
class Entries:
    """Some events of one run, one kind and one shape: whose data have the same keys in the same order.

    `line`, `update` and `time` of each are in `given`, with whatever else their rows have in common.
    """

    label: str
    """The kind, as the load report names it."""
    event_type: str
    training: Training
    given: dict[str, Sequence[Any]]
    datas: Sequence[Mapping[str, Any]]
    envelope: Mapping[str, Sequence[Any]]
    """The values of the events' envelopes, by key."""
    path: str
    """Where the data stands in its event, with a dot at its end; `{slot}` in it is the given slot."""
    out: Mapped

    def __len__(self) -> int:
        return len(self.datas)

    def values(self) -> Iterator[tuple[str, Sequence[Any]]]:
        """Each key with the values of all, where not all are None: an explicit null says no more than no key."""
        everything = zip(*(data.values() for data in self.datas), strict=True)
        for key, values in zip(self.datas[0], everything, strict=True):
            # Looking at the first saves comparing all of most columns with None, which takes longer than mapping them.
            if values[0] is not None or values.count(None) < len(values):
                yield key, values

    def keep(self, place: int, key: str, reason: str, value: Any, *, whole: bool = False) -> None:
        """Keep a value of one event (or the whole event, with an empty key) in `raw_events`."""
        self.out.reasons[reason] += 1
        if reason not in AS_MEANT and not whole:
            self.out.values_rejected[self.label] += 1
        identity = {name: [self.given[name][place]] for name in ("line", "update", "time")}
        names = {name: values[place] for name, values in self.given.items()}
        where = "" if whole else self.path.format_map(names) + key
        raw = {"key": [where], "event_type": [self.event_type], "reason": [reason], "text": [as_text(value)]}
        self.out.add("raw_events", {**identity, **raw})

    def fitted(self, table: str, column: str, key: str, values: Sequence[Any]) -> Sequence[Any]:
        """The values as a column takes them; what it cannot take is kept in `raw_events` and None in the column.

        A column of whole numbers takes a float that is one: Esper averages counts over epochs (2 becomes 2.0).
        """
        type_ = column_types(table)[column]
        wrong = misfits(values, type_)
        if not wrong:
            return values
        fitting = list(values)
        for place in wrong:
            value = values[place]
            if type_ == "int64" and type(value) is float and value.is_integer() and abs(value) <= _LIMITS["float64"]:
                fitting[place] = int(value)
            else:
                self.keep(place, key, WRONG_TYPE, value)
                fitting[place] = None
        return fitting

    def converted(self, key: str, values: Sequence[Any], convert: Callable[[Any], Any]) -> list[Any]:
        """The values converted; what `convert` refuses by a ValueError is kept in `raw_events` and None."""
        try:
            return [None if value is None else convert(value) for value in values]
        except ValueError:
            pass  # one by one tells which
        result: list[Any] = []
        for place, value in enumerate(values):
            try:
                result.append(None if value is None else convert(value))
            except ValueError:
                self.keep(place, key, WRONG_TYPE, value)
                result.append(None)
        return result

    def block(self, table: str, columns_: Mapping[str, Sequence[Any]]) -> Block:
        """Rows of a table: the given columns that it has, and these."""
        has = column_types(table)
        return {name: values for name, values in self.given.items() if name in has} | dict(columns_)

    def below(
        self, key: str, places: Sequence[int], datas: Sequence[Mapping[str, Any]], **given: Sequence[Any]
    ) -> Iterator[Entries]:
        """What lies deeper, as entries of one shape each.

        Args:
            key: the key it lies under.
            places: for each of `datas`, the place of the entry it came from.
            datas: the mappings found there.
            given: what their rows have besides.
        """
        shapes: dict[tuple[str, ...], list[int]] = {}
        for position, data in enumerate(datas):
            shapes.setdefault(tuple(data), []).append(position)
        whole = range(len(datas))
        if len(places) == len(self) and all(map(eq, places, whole)):
            places = whole
        inherited = {name: _at(places, values) for name, values in self.given.items()} | given
        epochs = {key: _at(places, values) for key, values in self.envelope.items() if key == "epoch"}
        for positions in shapes.values() if len(shapes) > 1 else [whole] * len(shapes):
            yield Entries(
                self.label,
                self.event_type,
                self.training,
                {name: _at(positions, values) for name, values in inherited.items()},
                _at(positions, datas),
                {key: _at(positions, values) for key, values in epochs.items()},
                f"{self.path}{key}.",
                self.out,
            )


def _at(places: Sequence[int], values: Sequence[Any]) -> Sequence[Any]:
    """The values at some places: where these are all of them, as a range, the very same object."""
    return values if places == range(len(values)) else [values[place] for place in places]


_types: dict[str, dict[str, str]] = {}


def column_types(table: str) -> dict[str, str]:
    """Column -> contract type."""
    if table not in _types:
        _types[table] = {column.name: column.type for column in columns(table)}
    return _types[table]


def as_text(value: Any) -> str:
    """A value as JSON (with the tokens NaN and Infinity, as Esper writes them)."""
    try:
        return json.dumps(value, ensure_ascii=False, default=str)
    except RecursionError:
        return f"a {type(value).__name__} that is nested too deeply"


def moment(value: Any) -> datetime:
    """A time as Esper writes it; UTC where no zone is told. Raises ValueError for what is none, or too fine for us."""
    if type(value) is not str or len(value) > len(_AS_WRITTEN):
        raise ValueError(value)
    time = datetime.fromisoformat(value)
    if not 1900 < time.year < 2200:
        raise ValueError(value)
    return time if time.tzinfo is not None else time.replace(tzinfo=UTC)


def microseconds(value: Any) -> int:
    """The same as microseconds since 1970, which is what a column of times holds. Raises ValueError."""
    # As Esper writes them, there are many in one second, which is looked at once.
    if type(value) is str and len(value) == len(_AS_WRITTEN) and value[26:] == "+00:00":
        second, fraction = _second(value[:20]), value[20:26]
        if second is not None and fraction.isascii() and fraction.isdigit():
            return second + int(fraction)
    return (moment(value) - _EPOCH) // timedelta(microseconds=1)


@functools.lru_cache(maxsize=1024)
def _second(text: str) -> int | None:
    """When a second of UTC begins, for `2026-01-01T00:00:00.`; None for what is written otherwise."""
    return microseconds(f"{text[:-1]}+00:00") if _SECOND.fullmatch(text) else None


def same(one: Any, other: Any) -> bool:
    """Of one type and equal; NaN is NaN."""
    return type(one) is type(other) and (one == other or (one != one and other != other))


def is_nonfinite(value: Any) -> bool:
    """A float that is NaN or infinite."""
    return type(value) is float and not math.isfinite(value)
