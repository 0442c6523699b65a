"""The rules, evaluated on each update as it is written: in the writer's thread, behind the queue.

An update that was dropped before it came here is a gap to the watcher as it is to a replay, so replaying a run with its
own rules gives its own alarms.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from esper_recorder.alarms import Announcer
from esper_recorder.contract.rules.evaluator import RuleEvaluator
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.signal import BACKFILLED, UPDATE_TABLE
from esper_recorder.contract.tables import IDENTITY, stored_names
from esper_recorder.escalation import Escalation
from esper_recorder.storage.listing import list_row_files
from esper_recorder.storage.update_content import UpdateContent


class Watcher:
    """Evaluates a rule set on the rows of one update after the other, and escalates if an alarm asks for it."""

    def __init__(self, rules: RuleSet, escalation: Escalation, announcer: Announcer | None = None) -> None:
        self.rules = rules
        self._evaluator = RuleEvaluator(rules)
        self._ends = rules.read_at_ends
        self._escalation = escalation
        self._announcer = announcer or Announcer("")

    def catch_up(self, folder: Path, rank: int, starts: Mapping[int, int]) -> None:
        """Evaluate what earlier attempts of a resumed run recorded, so that streaks and averages continue.

        Args:
            folder: the run's folder.
            rank: whose rows to read; those of other ranks are watched by their recorders.
            starts: attempt -> its first update; from there on the rows of earlier attempts are superseded.

        Raises:
            OSError, pyarrow.ArrowException: the recorded rows cannot be read.
        """
        updates: dict[int, dict[str, list[dict[str, Any]]]] = defaultdict(dict)
        for table, columns in self.rules.tables.items():
            for row in _recorded_rows(folder, table, columns | {"update", "attempt", "rank", "progress"}):
                if row["rank"] != rank or row.get(BACKFILLED):
                    continue
                later = [first for attempt, first in starts.items() if attempt > row["attempt"]]
                if row["update"] < min(later, default=row["update"] + 1):
                    updates[row["update"]].setdefault(table, []).append(row)
        for update, tables in sorted(updates.items()):
            progress = tables[UPDATE_TABLE][0].get("progress") if UPDATE_TABLE in tables else None
            firings = self._evaluator.update(update, progress, tables)
            self._escalation.note_firings(firings)
            self._announcer.remember(firings)

    def alarms(self, update: int, content: UpdateContent) -> UpdateContent:
        """Evaluate an update. Returns what to store with it: one row of `alarms` per rule that fires and, if one of
        them escalates, the minibatches that led up to it.

        Args:
            update: its number.
            content: its rows, as they are about to be written.
        """
        tables = self.rules.tables
        rows = {table: content.read(table, names, ends=table in self._ends) for table, names in tables.items()}
        if not rows[UPDATE_TABLE]:
            return UpdateContent()
        firings = self._evaluator.update(update, rows[UPDATE_TABLE][0].get("progress"), rows)
        if not firings:
            return UpdateContent()
        self._announcer.announce(firings)
        (identity,) = content.read(UPDATE_TABLE, IDENTITY)
        alarms: dict[str, list[Any]] = {name: [value] * len(firings) for name, value in identity.items()}
        for name in ("rule", "key", "severity", "value", "threshold", "phase", "progress"):
            alarms[name] = [getattr(firing, name) for firing in firings]
        alarms["rules_sha256"] = [self.rules.sha256] * len(firings)
        escalates = self._escalation.note_firings(firings)
        return UpdateContent({"alarms": alarms}, self._escalation.raise_level() if escalates else [])


def _recorded_rows(folder: Path, table: str, wanted: frozenset[str]) -> Iterator[dict[str, Any]]:
    files = list_row_files(folder)
    for part in files.parts.get(table, ()):
        with pq.ParquetFile(part) as file:
            stored = stored_names(table, file.schema_arrow.names)
            names = {stored[name]: name for name in wanted if name in stored}
            yield from file.read(columns=[*names]).rename_columns(names).to_pylist()
    if table in files.journal_rows:
        rows = files.journal_rows[table]
        yield from rows.select([name for name in rows.column_names if name in wanted]).to_pylist()
