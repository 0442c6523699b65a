"""The tables of some runs at one moment: their files with checked footers, and what had to be left out."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import pyarrow.compute as pc

from esper_analytics.catalog.cache import FileCache
from esper_analytics.catalog.discovery import Problem, RunEntry
from esper_analytics.catalog.footers import Footer
from esper_analytics.catalog.rank_merge import merges
from esper_analytics.catalog.scan import Cuts, PartLayout, TableScan
from esper_analytics.formatting import format_list
from esper_recorder.contract.tables import TABLES
from esper_recorder.storage.listing import RowFileName, RowFiles
from esper_recorder.storage.manifest import how_it_ended

_MOVE = "Move it out of the run's folder"
_RESTORE = "Restore it from a copy, or move it away"
_UPGRADE = "Upgrade esper-analytics to read it"


def scan_tables(
    tables: Iterable[str], runs: Iterable[RunEntry], cache: FileCache
) -> tuple[dict[str, TableScan], list[Problem]]:
    """List the files and journal rows of the tables, and the files that are left out or not wholly read."""
    scans = {table: TableScan(table) for table in tables}
    problems: list[Problem] = []
    for run in runs:
        files, footers = cache.files(run, scans)
        cuts = _cuts(run, files)
        problems += (Problem(file.path, file.reason, partly=True) for file in files.problems)
        problems += (Problem(path, "it is not named like a part", _MOVE) for path in files.foreign)
        problems += (Problem(file.path, file.reason, _MOVE) for file in files.irregular)
        for table in sorted(files.parts.keys() - TABLES.keys()):
            problems.append(Problem(run.path / table, f"this version knows no table {table}", _UPGRADE))
        if "ppo_updates" in scans:
            problems += _uneven_ranks(run, files, footers)
        for table, scan in scans.items():
            ranks = len(files.ranks) > 1 and merges(table)
            for path in files.parts.get(table, ()):
                footer = footers[path]
                if footer.problem is None:
                    scan.add_part(path, PartLayout(footer.present, footer.float_statistics, cuts, ranks), footer.rows)
                else:
                    problems.append(Problem(path, footer.problem, _RESTORE))
            if table in files.journal_rows:
                scan.add_journal(files.journal_rows[table], cuts=cuts, ranks=ranks)
    return scans, problems


def _cuts(run: RunEntry, files: RowFiles) -> Cuts:
    """Where the attempts that have rows are superseded: a query names each, and run.json may list any number."""
    names = (RowFileName.of_part(path.name) for paths in files.parts.values() for path in paths)
    attempts = {name.attempt for name in names if name is not None}
    attempts.update(*(pc.unique(rows.column("attempt")).to_pylist() for rows in files.journal_rows.values()))
    return tuple(cut for cut in run.superseded_from() if cut[0] in attempts)


def _uneven_ranks(run: RunEntry, files: RowFiles, footers: Mapping[Path, Footer]) -> Iterator[Problem]:
    """Report ranks of a run that end at different updates; those of a live run are an update or two apart."""
    ranks: Sequence[int] = sorted(files.ranks | {attempt.rank for attempt in run.manifest.last_attempts})
    if len(ranks) < 2 or how_it_ended(run.path, run.manifest) == "live":
        return
    ends = dict.fromkeys(ranks, 0)
    for path in files.parts.get("ppo_updates", ()):
        if (name := RowFileName.of_part(path.name)) is not None:
            ends[name.rank] = max(ends.get(name.rank, 0), footers[path].last_update)
    if (rows := files.journal_rows.get("ppo_updates")) is not None:
        for rank, update in zip(rows.column("rank").to_pylist(), rows.column("update").to_pylist(), strict=True):
            if rank is not None and update is not None:
                ends[rank] = max(ends.get(rank, 0), update)
    if len(set(ends.values())) > 1:
        listed = format_list([f"rank {rank} to {end}" for rank, end in ends.items()])
        reason = (
            f"its ranks recorded different numbers of updates ({listed}); later updates are those of the others alone"
        )
        yield Problem(run.path, reason, partly=True)
