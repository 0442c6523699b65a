"""Esper's hub writes runs as ours: every event arrives, and is what an import of the same events makes of it."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import esper_analytics as ea
from esper_recorder.contract.tables import TABLES
from esper_recorder.esper import HubBackend
from esper_recorder.esper.events import plain, plain_event
from tests.esper_files import ALL_KINDS, EXCERPTS, WHOLE, Event, content, events, imported, lines

IDENTITY = {"run_id", "attempt", "rank", "elapsed_s"}


def recorded(all_events: list[Any], root: Path) -> ea.Runs:
    backend = HubBackend(root)
    backend.start()
    for event in all_events:
        backend.emit(event)
    backend.close()
    assert backend.dropped == 0
    return ea.open(root)


def rows(runs: ea.Runs, table: str) -> list[str]:
    """The rows of a table but for whose they are, sorted; texts of raw events as the JSON they are."""
    frame = runs.table(table).collect()
    frame = frame.drop([name for name in frame.columns if name in IDENTITY])
    told = []
    for row in frame.iter_rows(named=True):
        if table == "raw_events":
            row["text"] = json.loads(row["text"])
        told.append(repr(row))
    return sorted(told)


class TestAgainstTheImport:
    @pytest.mark.parametrize("path", [*ALL_KINDS, *EXCERPTS], ids=lambda path: path.name)
    def test_the_tables_are_those_that_an_import_makes_of_the_same_events(self, path: Path, tmp_path: Path) -> None:
        self.compare(path, tmp_path)

    @pytest.mark.slow
    @pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.name)
    def test_so_they_are_of_a_whole_run(self, path: Path, tmp_path: Path) -> None:
        self.compare(path, tmp_path)

    def compare(self, path: Path, tmp_path: Path) -> None:
        all_events = events(path)
        ours = recorded(all_events, tmp_path / "hub")
        kinds = Counter(event["event_type"] for event in all_events)
        assert dict(ours.sql("SELECT event_type, count(*) FROM events GROUP BY 1").rows()) == kinds
        folder, report = imported(content(path), tmp_path)
        theirs = ea.open(folder)
        assert report.losses == []
        for table in TABLES:
            one, other = rows(ours, table), rows(theirs, table)
            assert one == other, table
        assert ours.table("gaps").collect().is_empty()
        told, asked = (runs.list().select("trainer", "definition", "updates", "ended") for runs in (ours, theirs))
        assert told.drop("ended").equals(asked.drop("ended"))
