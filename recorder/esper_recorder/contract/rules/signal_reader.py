"""Reading signals from one update's rows: for each signal a function made for it once, that meets every update.

What a signal's value is, `Signal.read` says; the functions here are its short ways for the common forms.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from esper_recorder.contract.rules.signal import UPDATE_TABLE, Reading, Reason, Signal, Take

Row = Mapping[str, Any]
Rows = Mapping[str, Sequence[Row]]
"""One update's rows by table, each a mapping of column to value; what is not there is NULL."""

Read = Callable[[Row, Rows], Reading]
"""From the update's own row and all its rows."""

ReadKeys = Callable[[Row, Rows], Mapping[str, Reading]]
"""The same by key; a key without a row is not there."""


def reader(signal: Signal) -> Read | ReadKeys:
    """How to read a signal."""
    return _whole_reader(signal) if signal.key is None else _key_reader(signal)


def _whole_reader(signal: Signal) -> Read:
    table, column, where, minimum = signal.table, signal.column, signal.where, signal.min_n
    plain = column is not None and minimum is None and not signal.counts

    if table != UPDATE_TABLE:

        def read_rows(row: Row, rows: Rows) -> Reading:
            chosen = rows.get(table, ())
            for name, text in where:
                chosen = [one for one in chosen if one.get(name) == text]
            if single and len(chosen) == 1:
                value = chosen[0].get(column)  # type: ignore[arg-type]  # `single` says there is one
                return Reason.NOT_MEASURED if value is None else float(value)
            return signal.value_of(chosen)

        single = plain and signal.take is not Take.SUM  # but for its negative zero, each way gives the value itself
        return read_rows

    if plain:

        def read_column(row: Row, rows: Rows) -> Reading:
            value = row.get(column)  # type: ignore[arg-type]  # `plain` says there is one
            return Reason.NOT_MEASURED if value is None else float(value)

        return read_column
    return lambda row, rows: signal.value_of((row,))


def _key_reader(signal: Signal) -> ReadKeys:
    table, column, key = signal.table, signal.column, signal.key
    if column is None or signal.counts or signal.min_n is not None or signal.where or signal.take is not Take.ONLY:
        return lambda row, rows: signal.read(rows.get(table, ()))
    assert key is not None

    def read_column(row: Row, rows: Rows) -> dict[str, Reading]:
        found: dict[str, Reading] = {}
        for one in rows.get(table, ()):
            name, value = one.get(key), one.get(column)
            name = "" if name is None else str(name)
            reading = Reason.NOT_MEASURED if value is None else float(value)
            found[name] = Reason.SEVERAL_ROWS if name in found else reading
        return found

    return read_column
