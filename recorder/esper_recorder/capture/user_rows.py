"""Rows that a trainer tells by itself: of tables that the recorder has no tensors to fill from, such as `slots`.

They are checked against the contract when they are told, so that a wrong one costs itself alone.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from torch import Tensor

from esper_recorder.arguments import BadCall
from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import IDENTITY, TABLES, column_names, key_columns
from esper_recorder.storage.arrow_batches import to_batch

MOST_ROWS: Final = 100_000
"""Rows of one update that wait for its end; a trainer that tells more, or never ends an update, loses the rest."""

FILLED: Final = frozenset(
    {
        *("ppo_updates", "minibatches", "heads", "ratio_histograms", "ratio_exemplars", "gradient_layers"),
        *("recurrent_state", "episodes", "alarms", "gaps", "events", "raw_events"),
    }
)
"""Tables that the recorder or an importer fills."""

Columns = Mapping[str, Sequence[Any]]


class ToldRows:
    """The rows of an update that the trainer told."""

    def __init__(self) -> None:
        self._rows: dict[str, list[dict[str, Any]]] = {}
        self._count = 0
        self._lines = itertools.count(1)

    def __bool__(self) -> bool:
        return self._count > 0

    def add(self, table: str, columns: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
        """Take a row. A column that is not given, or None, is NULL. Raises BadCall for what the contract has not."""
        _check(table, columns)
        if self._count >= MOST_ROWS:
            raise BadCall(f"an update takes {MOST_ROWS} rows that are told by themselves; end it with end_update()")
        row = {name: list(value) if isinstance(value, list | tuple) else value for name, value in columns.items()}
        if "line" in column_names(table):
            row.setdefault("line", next(self._lines))
        row |= identity
        try:
            to_batch(table, {name: [value] for name, value in row.items()})
        except ValueError as error:
            raise BadCall(str(error)) from error
        self._rows.setdefault(table, []).append(row)
        self._count += 1

    def take(self) -> dict[str, Columns]:
        """Column by column, what was told since the last time."""
        rows, self._rows, self._count = self._rows, {}, 0
        return {table: _columns(told) for table, told in rows.items()}


def with_told(told: Mapping[str, Columns], make: Callable[[], Mapping[str, Columns]]) -> dict[str, Columns]:
    """An update's rows and those told with it. For the writer's thread."""
    return {**make(), **told}


def _check(table: str, columns: Mapping[str, Any]) -> None:
    if table not in TABLES or table in FILLED:
        there = [name for name in TABLES if name not in FILLED]
        why = "is filled by the recorder itself" if table in FILLED else "is not declared"
        raise BadCall(f"table {table} {why}. {suggest(table, there, kind='tables')}")
    known = [name for name in column_names(table) if name not in IDENTITY]
    for name, value in columns.items():
        if name not in known:
            raise BadCall(f"table {table} has no column {name}. {suggest(name, known, kind='columns')}")
        if isinstance(value, Tensor):  # reading it might wait for the device
            raise BadCall(f"{table}.{name} was given a tensor; give a number that is on the host already")
    missing = [name for name in key_columns(table) if name not in IDENTITY and name != "line"]
    missing = [name for name in missing if columns.get(name) is None]
    if missing:
        raise BadCall(f"a row of {table} needs {', '.join(missing)}")


def _columns(rows: Sequence[Mapping[str, Any]]) -> Columns:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}
