"""Records of updates as rows of the tables: many at once, or only the columns of one that somebody reads.

What a row has does not depend on the updates that are decoded beside its own, so a run reads the same live, from its
journal and from its parts. The tables: `minibatch_rows` (and `ppo_updates`), `ratio_rows`, `layer_rows`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Final

import numpy as np
import pyarrow as pa

from esper_recorder.storage.arrow_batches import as_rows
from esper_recorder.storage.columns import Array, NumberColumn, column_of
from esper_recorder.storage.layer_rows import layer_rows, state_rows
from esper_recorder.storage.minibatch_rows import head_rows, minibatch_rows, update_rows
from esper_recorder.storage.parquet import arrow_schema
from esper_recorder.storage.ratio_rows import exemplar_rows, histogram_rows
from esper_recorder.storage.record_layout import RecordLayout
from esper_recorder.storage.record_numbers import RecordNumbers
from esper_recorder.storage.table_rows import Found, TableRows
from esper_recorder.storage.update_record import Contents, UpdateRecord

_BUILD: Final[Mapping[str, Callable[[RecordNumbers], TableRows | None]]] = {
    "heads": head_rows,
    "ratio_histograms": histogram_rows,
    "ratio_exemplars": exemplar_rows,
    "recurrent_state": state_rows,
    "gradient_layers": layer_rows,
}
_TABLES: Final = {
    Contents.ALL: ("ppo_updates", "minibatches", *_BUILD),
    Contents.WITHOUT_MINIBATCHES: ("ppo_updates", *_BUILD),
    Contents.LEAD_UP: ("minibatches",),
}


class UpdateRows:
    """The rows of updates of one layout and the same contents.

    Args:
        records: in their order; at least one.
    """

    def __init__(self, records: Sequence[UpdateRecord]) -> None:
        self._numbers = RecordNumbers(records)
        self._layout, self._contents = records[0].layout, records[0].contents
        times, elapsed, *host = zip(*[record.values for record in records], strict=True)
        self._host = dict(zip(self._layout.columns, host, strict=True))
        self._identity = _Identity(records, times, elapsed)
        self._rows: dict[str, TableRows | None] = {}

    @property
    def tables(self) -> tuple[str, ...]:
        """The tables that they may have rows of."""
        return _TABLES[self._contents]

    def rows(self, table: str) -> TableRows | None:
        """Return the rows of a table; None without any."""
        if table not in self._rows:
            with np.errstate(all="ignore"):
                self._rows[table] = self._build(table) if table in self.tables else None
        return self._rows[table]

    def to_batch(self, table: str) -> pa.RecordBatch | None:
        """Return all columns of a table that were measured; None without rows."""
        rows = self.rows(table)
        if rows is None:
            return None
        with np.errstate(all="ignore"):
            return rows.to_batch(table)

    def heights(self, table: str) -> list[int]:
        """Count the rows of each update."""
        rows = self.rows(table)
        updates = np.zeros(0, np.int64) if rows is None else rows.updates
        heights: list[int] = np.bincount(updates, minlength=self._numbers.height).tolist()
        return heights

    def read(self, table: str, wanted: Iterable[str], *, ends: bool = False) -> list[dict[str, Any]]:
        """Read some columns: one mapping per row, without columns that were not measured.

        Args:
            table: of the contract.
            wanted: the columns.
            ends: read the first and the last row only.
        """
        rows = self.rows(table)
        if rows is None:
            return []
        with np.errstate(all="ignore"):
            places = np.array([0, len(rows.updates) - 1]) if ends and len(rows.updates) > 2 else None
            columns = {name: v for name in wanted if (v := rows.to_list(table, name, places)) is not None}
        return as_rows(columns, len(rows.updates) if places is None else len(places))

    def _build(self, table: str) -> TableRows | None:
        numbers = self._numbers
        if table == "minibatches":
            rows = minibatch_rows(numbers, self._host)
        elif table == "ppo_updates":
            every = self.rows("minibatches") if "minibatches" in self.tables else minibatch_rows(numbers, self._host)
            rows = update_rows(numbers, self._host, every)
        else:
            rows = _BUILD[table](numbers)
        if rows is None or not len(rows.updates):
            return None
        rows.identify = functools.partial(self._identity.find, rows.updates)
        return rows


class _Identity:
    """Finds the columns that rows of any table have."""

    def __init__(self, records: Sequence[UpdateRecord], times: Sequence[Any], elapsed: Sequence[Any]) -> None:
        self._layout, self._contents = records[0].layout, records[0].contents
        self._updates = [record.update for record in records]
        self._times, self._elapsed = times, elapsed

    def find(self, updates: Array, name: str) -> Found | None:
        """Find a column of rows.

        Args:
            updates: which of the updates each row is of.
            name: of `GIVEN`.
        """
        match name:
            case "run_id":
                return pa.repeat(pa.scalar(self._layout.run_id), len(updates))
            case "attempt" | "rank":
                return NumberColumn(np.full(len(updates), getattr(self._layout, name), dtype=np.int64))
            case "update":
                return NumberColumn(np.array(self._updates, dtype=np.int64)[updates])
            case "time":
                times = pa.array(self._times, type=pa.int64()).cast(arrow_schema("ppo_updates").field("time").type)
                return times.take(pa.array(updates))
            case "elapsed_s":
                return column_of(self._elapsed).take(updates)
        return NumberColumn(np.ones(len(updates))) if self._contents is Contents.LEAD_UP else None


def decode(records: Sequence[UpdateRecord]) -> dict[str, list[tuple[pa.RecordBatch, list[int], list[int]]]]:
    """Make the rows of records by table: batches, each with which of the records it has rows of, and how many."""
    groups: dict[tuple[RecordLayout, Contents], list[int]] = {}
    for place, record in enumerate(records):
        groups.setdefault((record.layout, record.contents), []).append(place)
    result: dict[str, list[tuple[pa.RecordBatch, list[int], list[int]]]] = {}
    for places in groups.values():
        rows = UpdateRows([records[place] for place in places])
        for table in rows.tables:
            batch = rows.to_batch(table)
            if batch is not None:
                result.setdefault(table, []).append((batch, places, rows.heights(table)))
    return result
