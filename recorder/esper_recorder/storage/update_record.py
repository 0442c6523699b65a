"""One update as a trainer's process keeps it, and its journal: float64 numbers, and a layout that says what they are.

    record  = update i64, rows u32, contents u32, length of the values u32, 0 u32, values, spaces up to a multiple of 8,
              numbers f64
    values  = JSON, a list: time in microseconds, elapsed_s, then those of `RecordLayout.columns`
    numbers = for each batch the number of its minibatches, for each block of layers that of its steps; then the arrays
              that `RecordLayout.arrays` lists, one after the other

Rows are made of many records at once, by `update_rows`: at rollover, and if somebody reads the journal.

Covers: a record that does not fit its layout is refused by `check`, before anything larger than itself is allocated.
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import TYPE_CHECKING, Any, Final

from esper_recorder.contract.tables import columns
from esper_recorder.storage.record_layout import RecordLayout

if TYPE_CHECKING:
    from esper_recorder.storage.columns import Array

WHOLE_NOTES: Final = ("minibatch", "epoch")
"""Notes that are stored as the bits of int64: float64 counts to 2^53 only."""
_HEADER = struct.Struct("<qIIII")
_MOST_LAYER_ROWS: Final = 1 << 18
"""The most rows of layers of a record that has fewer numbers: those of parameters without gradients have none."""
_PYTHON_TYPES: Final[Mapping[str, type]] = {"int64": int, "float64": float, "bool": bool, "string": str}
_TYPES: Final = {c.name: _PYTHON_TYPES.get(c.type) for c in columns("ppo_updates")}


class Contents(IntEnum):
    """Which rows a record stands for."""

    ALL = 0
    WITHOUT_MINIBATCHES = 1
    LEAD_UP = 2
    """Only its minibatches, after the update was stored without them."""


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """One update; `data` is what a journal holds of it."""

    layout: RecordLayout
    data: bytes

    @classmethod
    def pack(cls, layout: RecordLayout, update: int, rows: int, values: Sequence[Any], numbers: Array) -> UpdateRecord:
        """Pack an update.

        Args:
            layout: of the numbers.
            update: its number.
            rows: how many rows it has in all tables.
            values: time in microseconds, elapsed_s, then the value of each of the layout's columns.
            numbers: float64, the counts and the arrays.
        """
        encoded = json.dumps(values, separators=(",", ":")).encode()
        header = _HEADER.pack(update, rows, Contents.ALL, len(encoded), 0)
        return cls(layout, b"".join((header, encoded, b" " * (-len(encoded) % 8), numbers.tobytes())))

    def standing_for(self, contents: Contents) -> UpdateRecord:
        """A record of ALL rows with other contents."""
        update, rows, _, length, _ = _HEADER.unpack_from(self.data)
        rows = self.minibatches if contents is Contents.LEAD_UP else rows - self.minibatches
        header = _HEADER.pack(update, rows, contents, length, 0)
        return UpdateRecord(self.layout, header + self.data[_HEADER.size :])

    @property
    def update(self) -> int:
        return int(_HEADER.unpack_from(self.data)[0])

    @property
    def rows(self) -> int:
        """How many rows it stands for."""
        return int(_HEADER.unpack_from(self.data)[1])

    @property
    def contents(self) -> Contents:
        return Contents(_HEADER.unpack_from(self.data)[2])

    @property
    def values(self) -> list[Any]:
        """Time in microseconds, elapsed_s, then the value of each of the layout's columns."""
        length = _HEADER.unpack_from(self.data)[3]
        try:
            values: list[Any] = json.loads(self.data[_HEADER.size : _HEADER.size + length])
        except RecursionError as error:
            raise ValueError("a record has values nested too deep") from error
        return values

    @property
    def numbers(self) -> Array:
        """float64: the counts, then the arrays."""
        import numpy as np  # the trainer's own, as torch is: what only stores rows of Python values needs none

        return np.frombuffer(self.data, np.float64, offset=self._start)

    @property
    def counts(self) -> list[int]:
        """The number of minibatches of each batch, then of steps of each block."""
        return [int(n) for n in self.numbers[: self.layout.groups].tolist()]

    @property
    def minibatches(self) -> int:
        return sum(self.counts[: len(self.layout.batches)])

    def sizes(self) -> list[int]:
        """How many numbers each of the layout's arrays has."""
        counts = self.counts
        return [math.prod(a.shape) * (1 if a.group is None else counts[a.group]) for a in self.layout.arrays]

    def check(self) -> None:
        """Raise ValueError if the record does not fit its layout."""
        if len(self.data) < _HEADER.size:
            raise ValueError("a record is shorter than its header")
        if self._start > len(self.data) or (len(self.data) - self._start) % 8:
            raise ValueError("a record is shorter than its values")
        contents = _HEADER.unpack_from(self.data)[2]
        if contents not in set(Contents):
            raise ValueError(f"a record's contents {contents} are unknown to this version")
        layout, numbers = self.layout, self.numbers
        counts: list[float] = numbers[: layout.groups].tolist()
        whole = [1 <= count <= len(numbers) and count.is_integer() for count in counts]
        if len(counts) < layout.groups or not all(whole):
            raise ValueError("a record's counts are not whole numbers of its minibatches and steps")
        declared = layout.groups + sum(self.sizes())
        if declared != len(numbers):
            raise ValueError(f"a record has {len(numbers)} numbers, and its layout declares {declared}")
        steps = self.counts[len(layout.batches) :]
        layer_rows = sum(n * len(block.names) for n, block in zip(steps, layout.blocks, strict=True))
        if layer_rows > max(_MOST_LAYER_ROWS, len(numbers)):
            raise ValueError(f"a record of {len(numbers)} numbers declares {layer_rows} rows of layers")
        values = self.values
        types = (int, float, *[_TYPES.get(name) for name in layout.columns])
        if not isinstance(values, list) or len(values) != len(types):
            raise ValueError("a record's values are not those of its layout's columns")
        for value, type_ in zip(values, types, strict=True):
            if value is not None and type(value) is not type_:
                raise ValueError(f"a record's value {value!r:.50} is not of its column's type")
            if isinstance(value, str):
                value.encode()  # raises for what is not text
            if isinstance(value, int) and not -(2**63) <= value < 2**63:
                raise ValueError(f"a record's value {value!r:.50} is too large")

    @property
    def _start(self) -> int:
        """Of the numbers."""
        length: int = _HEADER.unpack_from(self.data)[3]
        return _HEADER.size + length + -length % 8
