"""Many small pieces of rows as few batches of each table, in their order.

Covers: records of updates, packed rows and Arrow batches, mixed, with the same or different columns.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Final, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

from esper_recorder.storage.row_codec import PackedRow, unpack_rows
from esper_recorder.storage.update_record import UpdateRecord

_CHUNK: Final = 1024
"""Pieces that become batches together: a column of a batch takes about a kilobyte more than its values, so a journal of
thousands of one-row batches would take many times its own size in memory."""

Piece = tuple[str, pa.RecordBatch | PackedRow] | UpdateRecord
"""Rows of a table, or a record of an update."""


class _Group(NamedTuple):
    """Rows of one table that have the same columns."""

    batch: pa.RecordBatch
    places: Sequence[int]
    """The places, among the pieces, of those with these rows."""
    heights: Sequence[int]
    """How many rows each has."""


class JoinedRows:
    """Pieces in their order, joined into few batches of many rows."""

    def __init__(self) -> None:
        self._joined: dict[str, list[pa.RecordBatch]] = {}
        self._loose: list[tuple[int, Piece]] = []

    def add(self, pieces: Sequence[tuple[int, Piece]]) -> None:
        """Append pieces, each with the number of its schema or layout."""
        for piece in pieces:
            self._loose.append(piece)
            if len(self._loose) >= _CHUNK:
                self._join()

    def batches(self) -> dict[str, list[pa.RecordBatch]]:
        """Return the rows by table."""
        self._join()
        return self._joined

    def _join(self) -> None:
        loose, self._loose = self._loose, []
        of_schema: dict[tuple[str, int], list[int]] = {}
        records: list[int] = []
        for place, (number, piece) in enumerate(loose):
            if isinstance(piece, UpdateRecord):
                records.append(place)
            else:
                of_schema.setdefault((piece[0], number), []).append(place)
        groups: dict[str, list[_Group]] = {}
        for (table, _), places in of_schema.items():
            rows = [piece[1] for place in places if not isinstance(piece := loose[place][1], UpdateRecord)]
            heights = [1 if isinstance(piece, PackedRow) else int(piece.num_rows) for piece in rows]
            groups.setdefault(table, []).append(_Group(_one_batch(rows), places, heights))
        updates = [piece for _, piece in loose if isinstance(piece, UpdateRecord)]
        if updates:
            # It loads NumPy, the trainer's own as torch is: what only stores rows of Python values needs none.
            from esper_recorder.storage.update_rows import decode

            for table, decoded in decode(updates).items():
                groups.setdefault(table, []).extend(
                    _Group(batch, [records[i] for i in of_records], heights) for batch, of_records, heights in decoded
                )
        for table, of_table in groups.items():
            self._joined.setdefault(table, []).extend(_in_order(of_table))


def _in_order(groups: Sequence[_Group]) -> list[pa.RecordBatch]:
    """Put the rows of one table back into their order: those with more columns lie among those with fewer."""
    if len(groups) == 1:
        return [groups[0].batch]
    try:
        tables = [pa.Table.from_batches([group.batch]) for group in groups]
        whole = pa.concat_tables(tables, promote_options="default")
    except pa.ArrowTypeError:  # a column changed its type, which the contract forbids: keep the pieces apart
        slices: list[tuple[int, pa.RecordBatch]] = []
        for batch, places, heights in groups:
            starts = itertools.accumulate(heights, initial=0)
            slices += [(p, batch.slice(start, n)) for p, start, n in zip(places, starts, heights, strict=False)]
        return [batch for _, batch in sorted(slices, key=lambda piece: piece[0])]
    place_of_row = itertools.chain.from_iterable(
        itertools.repeat(place, height)
        for group in groups
        for place, height in zip(group.places, group.heights, strict=True)
    )
    order = pc.sort_indices(pa.array(place_of_row, type=pa.int64()))  # stable: the rows of a piece keep their order
    batches: list[pa.RecordBatch] = whole.take(order).combine_chunks().to_batches()
    return batches


def _one_batch(rows: list[pa.RecordBatch | PackedRow]) -> pa.RecordBatch:
    """Join rows of one schema, which are all packed or all batches."""
    first = rows[0]
    if isinstance(first, PackedRow):
        return unpack_rows(first.layout, [row.data for row in rows if isinstance(row, PackedRow)])
    return pa.concat_batches([batch for batch in rows if not isinstance(batch, PackedRow)])
