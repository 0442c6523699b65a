"""What an update stores: its record, and rows that are Python values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from esper_recorder.storage.arrow_batches import as_rows, row_count
from esper_recorder.storage.update_record import UpdateRecord

if TYPE_CHECKING:
    from esper_recorder.storage.update_rows import UpdateRows

Columns = Mapping[str, Sequence[Any]]
"""Column -> values"""
Rows = Mapping[str, Columns]
"""Table -> column -> values"""


@dataclass(slots=True)
class UpdateContent:
    """The rows of one update."""

    tables: dict[str, Columns] = field(default_factory=dict)
    """Rows that are Python values, by table."""
    records: list[UpdateRecord] = field(default_factory=list)
    """The record of the update, then those of updates before it whose minibatches are stored only now."""
    _decoded: UpdateRows | None = None

    @classmethod
    def of(cls, rows: Rows | UpdateContent) -> UpdateContent:
        """Make the content of an update that consists of Python values."""
        return rows if isinstance(rows, UpdateContent) else cls(dict(rows))

    def __bool__(self) -> bool:
        return bool(self.tables or self.records)

    def row_count(self) -> int:
        """Count the rows of all tables."""
        return sum(row_count(columns) or 0 for columns in self.tables.values()) + sum(r.rows for r in self.records)

    def read(self, table: str, wanted: Iterable[str], *, ends: bool = False) -> list[dict[str, Any]]:
        """Read some columns of the update's rows, one mapping per row; see `UpdateRows.read`."""
        if table in self.tables:
            columns = {name: self.tables[table][name] for name in wanted if name in self.tables[table]}
            return as_rows(columns, row_count(self.tables[table]) or 0)
        if not self.records:
            return []
        if self._decoded is None:
            from esper_recorder.storage.update_rows import UpdateRows  # loads NumPy, see `UpdateRecord.numbers`

            self._decoded = UpdateRows(self.records[:1])
        return self._decoded.read(table, wanted, ends=ends)

    def add(self, more: Rows | UpdateContent) -> None:
        """Add further rows; of a table that is there already they come after its rows."""
        added = UpdateContent.of(more)
        self.records += added.records
        for table, columns in added.tables.items():
            present = self.tables.get(table)
            if present is None:
                self.tables[table] = columns
                continue
            old, new = row_count(present) or 0, row_count(columns) or 0
            names = {**present, **columns}
            self.tables[table] = {n: [*present.get(n, [None] * old), *columns.get(n, [None] * new)] for n in names}


def columns_of(record: UpdateRecord) -> Iterator[tuple[str, Columns]]:
    """Convert a record to rows of Python values, by table."""
    from esper_recorder.storage.update_rows import UpdateRows

    rows = UpdateRows([record])
    for table in rows.tables:
        batch = rows.to_batch(table)
        if batch is not None:
            yield table, batch.to_pydict()
