"""A run that is being imported: written to a hidden folder of RUNS, and made visible by a rename.

Covers: a run appears as a whole or not at all; the same content is imported once; a source that has grown replaces its
run; what a killed import left behind is removed by the next one.
Does not cover: two imports of one run at the same time, of which either may win.
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
from esper_recorder.storage.atomic import make_folders, sync_folder
from esper_recorder.storage.listing import RowFileName, parts_in
from esper_recorder.storage.lock import LOCK_FILE, acquire_lock, is_locked, release_lock
from esper_recorder.storage.manifest import MANIFEST_FILE, Manifest, ManifestError, read_manifest, write_manifest
from esper_recorder.storage.parquet import arrow_schema, write_part
from esper_recorder.storage.run_folder import keep_rules
from esper_recorder.storage.safe_files import check_folder, folders_in

PART_BYTES = 256 * 2**20
"""Size of the rows in memory at which they become parts."""

_WRITERS = 4
"""Parts written in parallel."""

_HIDDEN = ".import-"
_UNKNOWN_START = "00000000T000000Z"


def imported_run_id(name: str, started: datetime | None, identity: bytes) -> str:
    """Return the run_id of an imported run: the same each time it is imported, also after its file has grown.

    Args:
        name: the run's name; characters that a file name should not hold become `-`.
        started: when it began, if that is known.
        identity: what distinguishes the run from all others and stays the same as it grows, such as its first event.
    """
    safe_name = re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:100] or "run"
    moment = f"{started.astimezone(UTC):%Y%m%dT%H%M%SZ}" if started else _UNKNOWN_START
    characters = base64.b32encode(hashlib.sha256(identity).digest()).decode().lower()[:6]
    return f"{safe_name}-{moment}-{characters}"


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
    """The number of the run in its source, from 1."""

    def as_json(self) -> dict[str, Any]:
        """Return what `run.json` holds."""
        return dataclasses.asdict(self) | {"importer": f"esper-analytics {version('esper-analytics')}"}


@dataclass(frozen=True, slots=True)
class ImportOutcome:
    """What became of one run of a source."""

    run_id: str
    """Empty if there was nothing to import."""
    status: Literal["imported", "replaced", "unchanged", "shorter", "empty"]
    """`replaced`: its source has grown. `unchanged`: RUNS has this content. `shorter`: RUNS has more of the run."""
    report: LoadReport


@contextlib.contextmanager
def data_errors(source: Path) -> Iterator[None]:
    """Raise an OSError as a DataError that names the source."""
    try:
        yield
    except OSError as error:
        raise DataError(f"{source} could not be imported: {error}. Nothing of it was stored.") from error


class RunWriter:
    """Writes one imported run. End it with `publish`; leaving the block without that discards everything.

    Raises UsageError if RUNS cannot be written to.
    """

    def __init__(self, root: Path, run_id: str) -> None:
        self.root = root
        self.run_id = run_id
        self.rows: dict[str, int] = {}
        self._buffered: dict[tuple[str, int], list[pa.Table]] = {}
        self._bytes = 0
        self._seq = 0
        self._published = False
        if (root / MANIFEST_FILE).is_file():
            raise UsageError(f"{root} is one run's folder. --to RUNS is the folder that runs lie in.")
        try:
            make_folders(root)
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
        """Add rows of a table; run_id, attempt and rank are filled in.

        Args:
            table: name of a table of the contract.
            rows: columns by name, of one length; a missing column is NULL.
            attempt: the attempt they belong to.

        Raises OSError if they cannot be written.
        """
        data = rows if isinstance(rows, pa.Table) else columns_to_table(table, rows)
        if not data.num_rows:
            return
        self.rows[table] = self.rows.get(table, 0) + data.num_rows
        self._buffered.setdefault((table, attempt), []).append(data)
        self._bytes += data.nbytes
        if self._bytes >= PART_BYTES:
            self._flush()

    def publish(
        self, manifest: Manifest, origin: Origin, report: LoadReport, *, rules: tuple[str | None, str] | None = None
    ) -> ImportOutcome:
        """Make the run visible, with its manifest, its load report and the rules its trainer ran with.

        Args:
            manifest: of the run; run_id, schema version, source and rules are filled in.
            rules: (profile or None, text of the rules).

        Raises OSError if it cannot be written; DataError if the disk does not hold what was written to it.
        """
        previous = find_imported(self.root, self.run_id)
        if previous is not None and previous[1].get("sha256") == origin.sha256:
            return ImportOutcome(self.run_id, "unchanged", report)
        entries = None if previous is None else previous[1].get("entries")
        if isinstance(entries, int) and entries > origin.entries:
            return ImportOutcome(self.run_id, "shorter", report)
        self._flush()
        self._check()
        report.rows = dict(self.rows)
        write_report(self.folder, report)
        manifest = dataclasses.replace(
            manifest,
            run_id=self.run_id,
            schema_version=SCHEMA_VERSION,
            source=origin.as_json(),
            rules_profile=rules[0] if rules else None,
            rules_sha256=keep_rules(self.folder, rules[1]) if rules else None,
        )
        write_manifest(self.folder, manifest)
        self._move_into_place(self.root / self.run_id if previous is None else previous[0])
        return ImportOutcome(self.run_id, "imported" if previous is None else "replaced", report)

    def _flush(self) -> None:
        """Write the buffered rows as one part per table and attempt."""
        buffered, self._buffered, self._bytes = self._buffered, {}, 0
        if not buffered:
            return
        self._seq += 1
        with ThreadPoolExecutor(_WRITERS) as writers:
            for write in [writers.submit(self._write, *key, pieces) for key, pieces in buffered.items()]:
                write.result()

    def _write(self, table: str, attempt: int, pieces: Sequence[pa.Table]) -> None:
        """Write one part; compression and the disk run in parallel with the other parts."""
        rows = pa.concat_tables(pieces, promote_options="default")
        path = self.folder / table / RowFileName(attempt, 0, self._seq).part
        write_part(path, table, _complete(table, rows, self.run_id, attempt), compact=True)

    def _check(self) -> None:
        """Raise DataError unless the parts have as many rows as were written."""
        import pyarrow.parquet as pq

        counts: dict[str, int] = {}
        for table, parts in parts_in(self.folder)[0].items():
            counts[table] = sum(int(pq.read_metadata(path).num_rows) for path in parts.values())
        if counts != self.rows:
            raise DataError(f"{self.folder} does not hold the rows that were written to it. Check the disk and retry.")

    def _move_into_place(self, final: Path) -> None:
        aside = self.root / f"{self.folder.name}.before"
        check_folder(final)
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
    """Return the folder under RUNS that holds an imported run, and its manifest's `source`, or None."""
    for folder in sorted(folders_in(root)):
        if folder.name.startswith("."):
            continue
        with contextlib.suppress(ManifestError):
            manifest = read_manifest(folder)
            if manifest.run_id == run_id:
                return folder, dict(manifest.source or {})
    return None


def _complete(table: str, rows: pa.Table, run_id: str, attempt: int) -> pa.Table:
    """Add the run's identity and the missing columns, in the order of the contract."""
    identity = {"run_id": run_id, "attempt": attempt, "rank": 0}
    present = set(rows.schema.names)
    columns = []
    for column in arrow_schema(table):
        if column.name in identity:
            columns.append(pa.repeat(pa.scalar(identity[column.name], column.type), rows.num_rows))
        elif column.name in present:
            columns.append(rows.column(column.name))
        else:
            columns.append(pa.nulls(rows.num_rows, column.type))
    return by_update(pa.Table.from_arrays(columns, schema=arrow_schema(table)))


def by_update(rows: pa.Table) -> pa.Table:
    """Sort rows by update: the footer of a part says which updates it spans."""
    updates = rows.column("update").drop_null().to_numpy()
    return rows.sort_by([("update", "ascending")]) if (updates[1:] < updates[:-1]).any() else rows


def _remove_abandoned(root: Path) -> None:
    """Remove the folders of killed imports. A live import holds the lock of its folder."""
    for folder in folders_in(root):
        if folder.name.startswith(_HIDDEN) and not is_locked(folder):
            # Killed between its two renames, an import has moved a run aside and not replaced it: the run goes back.
            with contextlib.suppress(ManifestError, OSError):
                if folder.name.endswith(".before"):
                    original = root / read_manifest(folder).run_id
                    if not original.exists():
                        folder.rename(original)
                        continue
            shutil.rmtree(folder, ignore_errors=True)
