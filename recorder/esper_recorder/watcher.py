"""The rules, run on each update as it is written: in the writer thread, behind the queue.

What was dropped before it is a gap to the watcher as it is to a replay, so replaying a run with its own rules gives
its own alarms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from esper_recorder.contract.rules.evaluator import RuleEvaluator
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import HELD_BACK, UPDATE_TABLE
from esper_recorder.contract.tables import IDENTITY
from esper_recorder.escalation import Escalation
from esper_recorder.storage.listing import list_row_files

Columns = Mapping[str, Sequence[Any]]

_NUMBERS = {pa.float64(): "d", pa.int64(): "q"}
"""Arrow's types whose values lie side by side, and what `memoryview` calls them."""


class Watcher:
    """Evaluates a rule set on the rows of one update after the other, and escalates where an alarm asks for it."""

    def __init__(self, rules: RuleSet, escalation: Escalation) -> None:
        self.rules = rules
        self._tables = rules.tables  # which is computed from all rules at each call
        self._evaluator = RuleEvaluator(rules)
        self._escalation = escalation

    def catch_up(self, folder: Path, rank: int, starts: Mapping[int, int]) -> None:
        """Look at what earlier attempts of a resumed run recorded, so that streaks and averages go on from there.

        Args:
            folder: the run's folder.
            rank: whose rows; those of other ranks are watched by their own recorders.
            starts: attempt -> its first update; rows an attempt recorded from a later one's first update on do not
                count any more.

        Raises:
            OSError, pyarrow.ArrowException: what was recorded cannot be read.
        """
        seen: dict[int, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
        for table, wanted in self._tables.items():
            for row in _recorded(folder, table, wanted | {"update", "attempt", "rank", "progress"}):
                if row["rank"] != rank or row.get(HELD_BACK):
                    continue
                later = [first for attempt, first in starts.items() if attempt > row["attempt"]]
                if row["update"] < min(later, default=row["update"] + 1):
                    seen[row["update"]].setdefault(table, []).append(row)
        for update in sorted(seen):
            own = seen[update].get(UPDATE_TABLE, [{}])
            self._escalation.met(self._evaluator.update(update, own[0].get("progress"), seen[update]))

    def alarms(self, update: int, tables: Mapping[str, Columns]) -> dict[str, Columns]:
        """What is to be stored with an update: a row of `alarms` for each rule that fires, and, where one of them
        escalates, the minibatches that led up to it.

        Args:
            update: its number.
            tables: its rows, column by column, as they are about to be written.
        """
        if UPDATE_TABLE not in tables:
            return {}
        progress = next(iter(tables.get(UPDATE_TABLE, {}).get("progress", ())), None)
        rows = {table: _rows(tables[table], wanted) for table, wanted in self._tables.items() if table in tables}
        firings = self._evaluator.update(update, progress, rows)
        if not firings:
            return {}
        own = tables[UPDATE_TABLE]
        alarms: dict[str, list[Any]] = {name: [own[name][0]] * len(firings) for name in IDENTITY if name in own}
        for name in ("rule", "key", "severity", "value", "threshold", "phase", "progress"):
            alarms[name] = [getattr(firing, name) for firing in firings]
        alarms["rules_sha256"] = [self.rules.sha256] * len(firings)
        lead_up = self._escalation.raise_level() if self._escalation.met(firings) else {}
        return {"alarms": alarms, **lead_up}


def _rows(columns: Columns, wanted: frozenset[str]) -> list[dict[str, Any]]:
    names = [name for name in columns if name in wanted]
    return [dict(zip(names, values, strict=True)) for values in zip(*(_plain(columns[n]) for n in names), strict=True)]


def _plain(values: Any) -> Any:
    """An Arrow array as Python values; a list as it is."""
    if not isinstance(values, pa.Array):
        return values
    code = _NUMBERS.get(values.type)
    if code is None or values.null_count or not len(values):
        return values.to_pylist()
    # Where nothing is NULL the memory can be read as it is: Arrow makes an object of its own of each value first.
    numbers: Any = memoryview(values.buffers()[1])
    return numbers.cast(code)[values.offset :][: len(values)].tolist()


def _recorded(folder: Path, table: str, wanted: frozenset[str]) -> Iterator[dict[str, Any]]:
    files = list_row_files(folder)
    for part in files.parts.get(table, ()):
        with pq.ParquetFile(part) as file:
            there = [name for name in file.schema_arrow.names if name in wanted]
            yield from file.read(columns=there).to_pylist()
    if table in files.journal_rows:
        rows = files.journal_rows[table]
        yield from rows.select([name for name in rows.column_names if name in wanted]).to_pylist()
