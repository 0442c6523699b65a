"""What the numbers of an update's record are: names and shapes, apart from how many minibatches or steps there were.

Most often one layout serves a whole run, so a journal holds it once, as JSON.

Covers: a layout that somebody made up, or that a newer version wrote, is refused with a message.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import types
import typing
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Any, Final, NamedTuple

from esper_recorder.contract.metrics import DEFINITIONS
from esper_recorder.contract.tables import column_names, former_names

_VERSION: Final = 1
SETTINGS: Final = ("clip_range", "value_clip_range", "learning_rate")
"""Columns that are noted with each minibatch; an update has the last one's."""
MINIBATCH_NOTES: Final = ("minibatch", "epoch", "stepped", "norm_seen", *SETTINGS)
STEP_NOTES: Final = ("minibatch", "epoch", "after_clipping")
_EXEMPLAR_FIELDS: Final = frozenset(("severity", "position"))


class Noted(IntEnum):
    """How a note of each minibatch or step is stored."""

    ABSENT = 0
    """It is NULL for all of them."""
    WHOLE = 1
    """A number each."""
    WITH_NULLS = 2
    """The numbers, then 1 or 0 for valid or NULL."""


@dataclass(frozen=True, slots=True)
class RatioLayout:
    """The joint ratio or some heads, as `reductions.minibatches.RatioSummary` has them."""

    names: tuple[str, ...]
    statistics: tuple[str, ...]
    """Counts and sums of each minibatch and ratio."""
    bins: int = 0
    """Of the histogram of each scope and ratio; 0 without one. The count of NaN follows."""
    exemplars: tuple[str, ...] = ()
    """Fields of the worst transitions of each scope and ratio."""
    places: int = 0
    """How many of these there are."""
    actions: int = 0
    """Numbers in the action of each; 0 without one."""


@dataclass(frozen=True, slots=True)
class BatchLayout:
    """Minibatches that were reduced together."""

    notes: tuple[int, ...]
    """How each of `MINIBATCH_NOTES` is stored."""
    per_minibatch: bool
    """A scope is each minibatch, else all of them."""
    ratios: tuple[RatioLayout, ...]
    """The joint ratio, then the heads."""


@dataclass(frozen=True, slots=True)
class LayerPartLayout:
    """Layers of a block that were measured together."""

    places: tuple[int, ...]
    """Which of the block's layers they are."""
    statistics: tuple[str, ...]
    bins: int


@dataclass(frozen=True, slots=True)
class BlockLayout:
    """All layers of a model at some steps."""

    notes: tuple[int, ...]
    """How each of `STEP_NOTES` is stored."""
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    has_grad: tuple[bool, ...]
    parts: tuple[LayerPartLayout, ...]


@dataclass(frozen=True, slots=True)
class StateLayout:
    """One kind of state of a recurrent layer."""

    layer: str
    kind: str
    statistics: tuple[str, ...]


class NumberArray(NamedTuple):
    """One array of a record."""

    name: str
    group: int | None
    """Its first dimension is the count of this group; None if that is 1."""
    shape: tuple[int, ...]
    """Its other dimensions."""


@dataclass(frozen=True)
class RecordLayout:
    """What the values and the numbers of a record are. Hashable, so that equal layouts are one."""

    run_id: str
    attempt: int
    rank: int
    definition: str
    columns: tuple[str, ...]
    """Columns of `ppo_updates` whose values the host gave."""
    batches: tuple[BatchLayout, ...] = ()
    blocks: tuple[BlockLayout, ...] = ()
    states: tuple[StateLayout, ...] = ()
    rollout: tuple[str, ...] = ()
    """Columns of `ppo_updates` that are numbers of the record."""
    rollout_shape: tuple[int, int, bool] | None = None
    """Steps, environments, and whether an index counts env * steps + step."""

    def __hash__(self) -> int:
        return self._hash

    @functools.cached_property
    def _hash(self) -> int:
        return hash(tuple([getattr(self, field.name) for field in dataclasses.fields(self)]))

    @property
    def groups(self) -> int:
        """How many counts a record begins with: one for each batch, then one for each block."""
        return len(self.batches) + len(self.blocks)

    @functools.cached_property
    def arrays(self) -> tuple[NumberArray, ...]:
        """The arrays of a record in their order."""
        return tuple(_arrays(self))

    def to_json(self) -> bytes:
        """Encode."""
        return json.dumps({"version": _VERSION, **dataclasses.asdict(self)}, separators=(",", ":")).encode()

    @staticmethod
    def from_json(encoded: bytes) -> RecordLayout:
        """Decode. Raises ValueError for what is not a layout that this version can read."""
        try:
            data = json.loads(encoded)
            if data["version"] != _VERSION:
                raise ValueError(f"a record of version {data['version']} is unknown to this version")
            layout: RecordLayout = _decode(RecordLayout, data)
            _check(layout)
        except (KeyError, TypeError, AttributeError, RecursionError) as error:
            raise ValueError(f"the layout of a record is invalid ({type(error).__name__}: {error})") from error
        return layout


def _arrays(layout: RecordLayout) -> Iterator[NumberArray]:
    for i, batch in enumerate(layout.batches):
        yield from _notes(f"{i}.", i, batch.notes, MINIBATCH_NOTES)
        yield NumberArray(f"{i}.grad_norms", i, ())
        group = i if batch.per_minibatch else None
        for j, ratio in enumerate(batch.ratios):
            n = len(ratio.names)
            yield NumberArray(f"{i}.{j}.statistics", i, (n, len(ratio.statistics)))
            if ratio.exemplars:
                yield NumberArray(f"{i}.{j}.histogram", group, (n, ratio.bins))
                yield NumberArray(f"{i}.{j}.histogram_nan", group, (n,))
                yield NumberArray(f"{i}.{j}.exemplars", group, (n, ratio.places, len(ratio.exemplars)))
            if ratio.actions:
                yield NumberArray(f"{i}.{j}.actions", group, (n, ratio.places, ratio.actions))
    for i, block in enumerate(layout.blocks):
        group = len(layout.batches) + i
        yield from _notes(f"layers.{i}.", group, block.notes, STEP_NOTES)
        for j, part in enumerate(block.parts):
            n = len(part.places)
            yield NumberArray(f"layers.{i}.{j}.statistics", group, (n, len(part.statistics)))
            yield NumberArray(f"layers.{i}.{j}.histograms", group, (n, part.bins))
    for i, state in enumerate(layout.states):
        yield NumberArray(f"states.{i}", None, (len(state.statistics),))
    if layout.rollout:
        yield NumberArray("rollout", None, (len(layout.rollout),))


def _notes(prefix: str, group: int, stored: Sequence[int], names: Sequence[str]) -> Iterator[NumberArray]:
    for how, name in zip(stored, names, strict=True):
        if how != Noted.ABSENT:
            yield NumberArray(prefix + name, group, ())
        if how == Noted.WITH_NULLS:
            yield NumberArray(f"{prefix}{name}.valid", group, ())


def _decode(kind: Any, value: Any) -> Any:
    """A value of JSON as a layout's field. Raises KeyError or TypeError."""
    if dataclasses.is_dataclass(kind):
        hints = _hints(typing.cast(Any, kind))
        return typing.cast(Any, kind)(**{name: _decode(hint, value[name]) for name, hint in hints.items()})
    arguments = typing.get_args(kind)
    if isinstance(kind, types.UnionType):
        return None if value is None else _decode(arguments[0], value)
    if typing.get_origin(kind) is tuple:
        if type(value) is not list:
            raise TypeError(f"{value!r:.50} is not a list")
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) != len(value):
            raise TypeError(f"a list has {len(value)} entries, not {len(kinds)}")
        return tuple([_decode(inner, item) for inner, item in zip(kinds, value, strict=True)])
    if type(value) is not kind or (kind is int and not 0 <= value < 1 << 62):
        raise TypeError(f"{value!r:.50} is not a {kind.__name__}")
    if kind is str:
        value.encode()  # raises ValueError for what is not text
    return value


@functools.cache
def _hints(kind: Any) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _check(layout: RecordLayout) -> None:
    """Raise TypeError for a layout whose fields contradict each other, or name columns that are not declared."""
    if layout.definition not in DEFINITIONS:
        raise TypeError(f"definition {layout.definition!r:.50} is unknown")
    _check_columns("ppo_updates", (*layout.columns, *layout.rollout))
    for batch in layout.batches:
        _check_stored(batch.notes, MINIBATCH_NOTES)
        joint = batch.ratios[0] if batch.ratios else RatioLayout((), ())
        if len(joint.names) != 1 or "n" not in joint.statistics:
            raise TypeError("minibatches have no joint ratio")
        for ratio in batch.ratios:
            _check_columns("minibatches" if ratio is joint else "heads", ratio.statistics)
            if ratio.exemplars and not set(ratio.exemplars) >= _EXEMPLAR_FIELDS:
                raise TypeError("the worst transitions have no severity and position")
            _check_columns("ratio_exemplars", set(ratio.exemplars) - _EXEMPLAR_FIELDS)
            if "n" not in ratio.statistics or (ratio.actions and not ratio.exemplars):
                raise TypeError("a ratio has no count, or actions of no transitions")
    for block in layout.blocks:
        _check_stored(block.notes, STEP_NOTES)
        if not len(block.names) == len(block.sizes) == len(block.has_grad):
            raise TypeError("the layers have names, sizes and flags of different numbers")
        for part in block.parts:
            _check_columns("gradient_layers", part.statistics)
            if part.statistics != block.parts[0].statistics or part.bins != block.parts[0].bins:
                raise TypeError("the layers of a block have different statistics")
            if not all(place < len(block.names) for place in part.places):
                raise TypeError("a layer that is not there was measured")
    for state in layout.states:
        _check_columns("recurrent_state", state.statistics)


def _check_stored(stored: Sequence[int], names: Sequence[str]) -> None:
    if len(stored) != len(names) or not set(stored) <= set(Noted) or stored[0] != Noted.WHOLE:
        raise TypeError("the notes of minibatches are not those of this version")


def _check_columns(table: str, names: typing.Iterable[str]) -> None:
    unknown = sorted(set(names).difference(column_names(table), former_names(table)))
    if unknown:
        raise TypeError(f"{table} declares no column {unknown[0]!r:.50}, which a newer version may have")
