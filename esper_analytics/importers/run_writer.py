"""A run that is being imported: written out of sight, and made visible as a whole or not at all.

The rows go to a hidden folder in RUNS, which is renamed when all of them, `run.json` and the load report are on disk.
What an import that was killed left behind is removed by the next one.
"""

from __future__ import annotations

import base64
import contextlib
import dataclasses
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from esper_analytics.errors import DataError, UsageError
from esper_analytics.importers.load_report import LoadReport, write_report
from esper_recorder.contract.tables import SCHEMA_VERSION
from esper_recorder.storage.arrow_batches import columns_to_table
from esper_recorder.storage.atomic import sync_folder
from esper_recorder.storage.listing import RowFileName
from esper_recorder.storage.lock import LOCK_FILE, acquire_lock, is_locked, release_lock
from esper_recorder.storage.manifest import MANIFEST_FILE, Manifest, ManifestError, read_manifest, write_manifest
from esper_recorder.storage.parquet import arrow_schema, write_part
from esper_recorder.storage.run_folder import keep_rules

PART_BYTES = 256 * 2**20
"""Rows held in memory before they become a part."""

_WRITERS = 4
"""Parts written at a time."""

_HIDDEN = ".import-"
_UNKNOWN_START = "00000000T000000Z"


def imported_run_id(name: str, started: datetime | None, identity: bytes) -> str:
    """The run_id of an imported run: the same whenever the same run is imported, also when its file has grown.

    Args:
        name: what the run is called; what a file name should not hold becomes `-`.
        started: when it began, None where that is not known.
        identity: what tells the run from all others and does not change as it grows, such as its first event.
    """
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100] or "run"
    moment = f"{started.astimezone(UTC):%Y%m%dT%H%M%SZ}" if started else _UNKNOWN_START
    characters = base64.b32encode(hashlib.sha256(identity).digest()).decode().lower()[:6]
    return f"{plain}-{moment}-{characters}"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where an imported run came from; `run.json` keeps it under `source`."""

    format: str
    """The word of the command, such as `esper-jsonl`."""
    path: str
    sha256: str
    """Of the whole content of the source."""
    entries: int
    """Lines, events or scalars of this run."""
    part: int = 1
    """Which of the source's runs, counted from 1."""

    def as_json(self) -> dict[str, Any]:
        """As `run.json` holds it."""
        return dataclasses.asdict(self) | {"importer": f"esper-analytics {version('esper-analytics')}"}


@dataclass(frozen=True, slots=True)
class Stored:
    """What became of a run that was handed in."""

    run_id: str
    what: Literal["imported", "replaced", "unchanged", "shorter", "empty"]
    """`replaced`: its source has grown. `unchanged`: it was there. `shorter`: what is there holds more, and stays.
    `empty`: there is nothing to import, and no run_id."""


class RunWriter:
    """Writes one imported run. End it with `publish`; leaving the block without one discards everything.

    Raises UsageError where RUNS cannot be written to.
    """

    def __init__(self, root: Path, run_id: str) -> None:
        self.root = root
        self.run_id = run_id
        self.rows: dict[str, int] = {}
        self._held: dict[tuple[str, int], list[pa.Table]] = {}
        self._bytes = 0
        self._seq = 0
        self._published = False
        if (root / MANIFEST_FILE).is_file():
            raise UsageError(f"{root} is one run's folder. --to RUNS is the folder that runs lie in.")
        try:
            root.mkdir(parents=True, exist_ok=True)
            _remove_abandoned(root)
            self.folder = root / f"{_HIDDEN}{run_id}-{os.getpid()}"
            shutil.rmtree(self.folder, ignore_errors=True)
            self.folder.mkdir()
            self._lock = acquire_lock(self.folder)
        except OSError as error:
            raise UsageError(f"{root} cannot be written to: {error.strerror or error}.") from error

    def __enter__(self) -> RunWriter:
        return self

    def __exit__(self, *_: object) -> None:
        self._release()
        if not self._published:
            shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, table: str, rows: pa.Table | Mapping[str, Sequence[Any]], *, attempt: int = 1) -> None:
        """Take rows of a table; run_id, attempt and rank are filled in.

        Args:
            table: name of a table of the contract.
            rows: columns by name, of one length; a column not given is NULL.
            attempt: the attempt they are of.

        Raises OSError where the disk does not take them.
        """
        data = rows if isinstance(rows, pa.Table) else _as_table(table, rows)
        if not data.num_rows:
            return
        self.rows[table] = self.rows.get(table, 0) + data.num_rows
        self._held.setdefault((table, attempt), []).append(data)
        self._bytes += data.nbytes
        if self._bytes >= PART_BYTES:
            self._flush()

    def publish(
        self,
        manifest: Manifest,
        origin: Origin,
        report: LoadReport,
        *,
        rules: tuple[str | None, str] | None = None,
    ) -> Stored:
        """Make the run visible, with its manifest, its load report and the rules its trainer ran with.

        Args:
            manifest: who the run was; run_id, schema version, source and rules are filled in.
            rules: (profile or None, text of the rules).

        Raises OSError where the disk does not take it; DataError where what is on disk is not what was handed in.
        """
        before = find_imported(self.root, self.run_id)
        if before is not None and before[1].get("sha256") == origin.sha256:
            return Stored(self.run_id, "unchanged")
        if before is not None and int(before[1].get("entries") or 0) > origin.entries:
            return Stored(self.run_id, "shorter")
        self._flush()
        self._check()
        sha256 = keep_rules(self.folder, rules[1]) if rules else None
        report.rows = dict(self.rows)
        write_report(self.folder, report)
        write_manifest(
            self.folder,
            dataclasses.replace(
                manifest,
                run_id=self.run_id,
                schema_version=SCHEMA_VERSION,
                source=origin.as_json(),
                rules_profile=rules[0] if rules else None,
                rules_sha256=sha256,
            ),
        )
        self._put_in_place(self.root / self.run_id if before is None else before[0])
        return Stored(self.run_id, "imported" if before is None else "replaced")

    # --- within -----------------------------------------------------------------------------------------------------

    def _flush(self) -> None:
        """Write what is held as one part per table and attempt."""
        held, self._held, self._bytes = self._held, {}, 0
        if not held:
            return
        self._seq += 1
        with ThreadPoolExecutor(_WRITERS) as writers:
            for written in [writers.submit(self._write, *key, pieces) for key, pieces in held.items()]:
                written.result()

    def _write(self, table: str, attempt: int, pieces: Sequence[pa.Table]) -> None:
        """Write one part. It compresses, and waits for the disk, while others are at it."""
        whole = pa.concat_tables(pieces, promote_options="default")
        path = self.folder / table / RowFileName(attempt, 0, self._seq).part
        write_part(path, table, _identified(table, whole, self.run_id, attempt), compact=True)

    def _check(self) -> None:
        """What the parts say they hold is what was handed in."""
        import pyarrow.parquet as pq

        there: dict[str, int] = {}
        for path in self.folder.glob("*/part-*.parquet"):
            there[path.parent.name] = there.get(path.parent.name, 0) + int(pq.read_metadata(path).num_rows)
        if there != self.rows:
            raise DataError(f"{self.folder} does not hold the rows that were written to it. Check the disk and retry.")

    def _put_in_place(self, final: Path) -> None:
        aside = self.root / f"{self.folder.name}.before"
        if final.exists():
            final.rename(aside)
        self.folder.rename(final)
        self.folder = final
        self._published = True
        self._release()
        (final / LOCK_FILE).unlink(missing_ok=True)
        sync_folder(self.root)
        shutil.rmtree(aside, ignore_errors=True)

    def _release(self) -> None:
        if self._lock is not None:
            release_lock(self._lock)
            self._lock = None


def find_imported(root: Path, run_id: str) -> tuple[Path, dict[str, Any]] | None:
    """The folder under RUNS that holds an imported run, and its manifest's `source`; None where there is none."""
    for folder in _run_folders(root):
        with contextlib.suppress(ManifestError):
            manifest = read_manifest(folder)
            if manifest.run_id == run_id:
                return folder, dict(manifest.source or {})
    return None


def _run_folders(root: Path) -> Iterator[Path]:
    if root.is_dir():
        yield from (path.parent for path in sorted(root.glob(f"*/{MANIFEST_FILE}")) if path.parent.name[:1] != ".")


def _as_table(table: str, columns: Mapping[str, Sequence[Any]]) -> pa.Table:
    given = {name: values for name, values in columns.items() if name not in ("run_id", "attempt", "rank")}
    return columns_to_table(table, given)


def _identified(table: str, rows: pa.Table, run_id: str, attempt: int) -> pa.Table:
    """The rows with all columns of the contract in their order, and who they are of."""
    known = {"run_id": run_id, "attempt": attempt, "rank": 0}
    have = set(rows.schema.names)
    columns = []
    for column in arrow_schema(table):
        if column.name in known:
            columns.append(pa.repeat(pa.scalar(known[column.name], column.type), rows.num_rows))
        elif column.name in have:
            columns.append(rows.column(column.name))
        else:
            columns.append(pa.nulls(rows.num_rows, column.type))
    whole = pa.Table.from_arrays(columns, schema=arrow_schema(table))
    return by_update(whole)


def by_update(rows: pa.Table) -> pa.Table:
    """The rows in the order of their updates: footers tell a part's first and last."""
    updates = rows.column("update").drop_null().to_numpy()
    return rows.sort_by([("update", "ascending")]) if (updates[1:] < updates[:-1]).any() else rows


def _remove_abandoned(root: Path) -> None:
    """Remove what imports left behind that were killed. Those still at work hold the lock of their folder."""
    for folder in root.glob(f"{_HIDDEN}*"):
        if folder.is_dir() and not is_locked(folder):
            # A run that was moved aside and not replaced any more goes back to where it was.
            with contextlib.suppress(ManifestError, OSError):
                if folder.name.endswith(".before"):
                    home = root / read_manifest(folder).run_id
                    if not home.exists():
                        folder.rename(home)
                        continue
            shutil.rmtree(folder, ignore_errors=True)
