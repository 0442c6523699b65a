"""The numbers of updates of one layout, side by side: each array of theirs as one array."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from esper_recorder.storage.columns import Array, NumberColumn
from esper_recorder.storage.update_record import WHOLE_NOTES, UpdateRecord


class RecordNumbers:
    """The arrays of some records, each joined when it is asked for.

    Args:
        records: of one layout; at least one.
    """

    def __init__(self, records: Sequence[UpdateRecord]) -> None:
        self.layout = records[0].layout
        self.height = len(records)
        counts = [record.counts for record in records]
        self._counts = np.array(counts, dtype=np.int64).reshape(self.height, self.layout.groups)
        # Most updates have the counts of the one before.
        starts: dict[tuple[int, ...], list[int]] = {}
        for record, of_record in zip(records, counts, strict=True):
            if tuple(of_record) not in starts:
                starts[tuple(of_record)] = list(itertools.accumulate(record.sizes(), initial=self.layout.groups))
        self._numbers = [(record.numbers, starts[tuple(c)]) for record, c in zip(records, counts, strict=True)]
        self._places = {array.name: place for place, array in enumerate(self.layout.arrays)}
        self._arrays: dict[str, Array] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._places

    def __getitem__(self, name: str) -> Array:
        """One array of all records: its first dimension counts minibatches or steps, or the records."""
        if name not in self._arrays:
            place = self._places[name]
            parts = [numbers[starts[place] : starts[place + 1]] for numbers, starts in self._numbers]
            joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
            array = self.layout.arrays[place]
            height = self.height if array.group is None else int(self._counts[:, array.group].sum())
            self._arrays[name] = joined.reshape(height, *array.shape)
        return self._arrays[name]

    def by_name(self, name: str, columns: Sequence[str]) -> dict[str, Array]:
        """The last dimension of an array as columns, over all its others: contiguous, in one array."""
        array = self[name]
        by_column = np.ascontiguousarray(array.reshape(-1, len(columns)).T)
        return dict(zip(columns, by_column, strict=True))

    def counts(self, group: int) -> Array:
        """int64 [records]: the minibatches of a batch, or the steps of a block."""
        return self._counts[:, group]

    def updates(self, group: int | None) -> Array:
        """int64 [rows of an array of this group]: which of the records each is of."""
        every = np.arange(self.height)
        return every if group is None else np.repeat(every, self._counts[:, group])

    def note(self, prefix: str, name: str) -> NumberColumn | None:
        """What was noted of each minibatch of a batch (`<i>.`) or step of a block (`layers.<i>.`)."""
        if prefix + name not in self:
            return None
        values = self[prefix + name]
        if name in WHOLE_NOTES:
            values = np.ascontiguousarray(values).view(np.int64)
        valid = f"{prefix}{name}.valid"
        return NumberColumn(values, self[valid] != 0 if valid in self else None)
