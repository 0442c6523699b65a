"""Signals, each compiled once into a function that reads every update.

`Signal.read` defines what the value is; these functions are shortcuts for the common forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esper_recorder.contract.rules.signal import UPDATE_TABLE, Reading, Reason, Signal, Take

Row = Mapping[str, Any]
Rows = Mapping[str, Sequence[Row]]
"""One update's rows by table, each a mapping of column to value; a missing column is NULL."""

Read = Callable[[Row, Rows], Reading]
"""From the update's row of `ppo_updates` and its rows of every table."""

ReadKeys = Callable[[Row, Rows], Mapping[str, Reading]]
"""The same by key; a key without a row is absent."""


def compile_signal(signal: Signal) -> Read | ReadKeys:
    """Return the function that reads a signal."""
    return _compile_whole(signal) if signal.key is None else _compile_keyed(signal)


def _compile_whole(signal: Signal) -> Read:
    table, column, where = signal.table, signal.column, signal.where
    simple = column is not None and signal.min_n is None and not signal.counts
    if table != UPDATE_TABLE:
        single = simple and signal.take is not Take.SUM  # a sum turns -0.0 into 0.0; the others return the value

        def read_rows(row: Row, rows: Rows) -> Reading:
            matching = rows.get(table, ())
            for name, text in where:
                matching = [candidate for candidate in matching if candidate.get(name) == text]
            if single and len(matching) == 1:
                value = matching[0].get(column)  # type: ignore[arg-type]  # `simple`: there is a column
                return Reason.NOT_MEASURED if value is None else float(value)
            return signal.value_of(matching)

        return read_rows
    if simple:

        def read_column(row: Row, rows: Rows) -> Reading:
            value = row.get(column)  # type: ignore[arg-type]  # `simple`: there is a column
            return Reason.NOT_MEASURED if value is None else float(value)

        return read_column
    return lambda row, rows: signal.value_of((row,))


def _compile_keyed(signal: Signal) -> ReadKeys:
    table, column, key = signal.table, signal.column, signal.key
    if column is None or signal.counts or signal.min_n is not None or signal.where or signal.take is not Take.ONLY:
        return lambda row, rows: signal.read(rows.get(table, ()))
    assert key is not None

    def read_column(row: Row, rows: Rows) -> dict[str, Reading]:
        readings: dict[str, Reading] = {}
        for candidate in rows.get(table, ()):
            name, value = candidate.get(key), candidate.get(column)
            name = "" if name is None else str(name)
            reading = Reason.NOT_MEASURED if value is None else float(value)
            readings[name] = Reason.SEVERAL_ROWS if name in readings else reading
        return readings

    return read_column
