"""Rows that a training loop records one by one, of tables that no tensors fill, such as `slots`.

They are checked against the contract in the call that records them, so that a wrong row costs itself alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final

from esper_recorder.arguments import BadCall, check_row
from esper_recorder.contract.tables import column_names
from esper_recorder.storage.arrow_batches import to_batch
from esper_recorder.storage.jsonable import encodable

MOST_ROWS: Final = 100_000
"""Rows that one update keeps; a loop that records more, or never ends an update, loses the rest."""

Columns = Mapping[str, Sequence[Any]]


class UserRows:
    """The rows that were recorded one by one in an update."""

    def __init__(self, lines: Iterator[int] | None = None) -> None:
        self._lines = itertools.count(1) if lines is None else lines
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._count = 0

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, table: str, values: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        """Keep a row; a column that is missing or None is NULL. Raises BadCall if the contract does not allow it."""
        check_row(table, values)
        if self._count >= MOST_ROWS:
            raise BadCall(f"an update keeps {MOST_ROWS} rows recorded one by one; end it with end_update()")
        row = {name: _storable(value) for name, value in values.items()}
        if "line" in column_names(table):
            row.setdefault("line", next(self._lines))
        row |= identity
        try:
            to_batch(table, {name: [value] for name, value in row.items()})
        except ValueError as error:
            raise BadCall(str(error)) from error
        self._rows.setdefault(table, []).append(row)
        self._count += 1

    def columns(self) -> dict[str, Columns]:
        """The rows of each table, column by column."""
        return {table: _columns(rows) for table, rows in self._rows.items()}


def _storable(value: Any) -> Any:
    """A copy that later changes do not reach, with texts that can be encoded."""
    if isinstance(value, list | tuple):
        return [_storable(item) for item in value]
    return encodable(value) if isinstance(value, str) else value


def _columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
