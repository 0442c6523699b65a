"""Where recorded rows go: `Sink` (write your own with one method), `MemorySink`, and `ParquetSink` on disk.

A sink is used by one thread. For each PPO update it receives the rows of some tables by `write`, then `commit`. It may
raise: the writer counts the dropped rows and continues with the next update.

Covers (`ParquetSink`):
* A committed update survives the death of the process at once, and the loss of power after the next fsync.
* A full disk, a folder that is removed, a file-size limit cost the updates they refuse, never one that is stored; if
  parts cannot be written, their rows stay in journals, which readers read.
* Stored rows that somebody deletes are reported, with their number and updates.

Does not cover: two sinks of one attempt and rank at once (the run's lock keeps them apart), file systems that report
an fsync they did not make.
"""

from __future__ import annotations

import contextlib
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from esper_recorder.contract.tables import TABLES
from esper_recorder.storage.arrow_batches import to_batch, to_table
from esper_recorder.storage.atomic import sync_folder
from esper_recorder.storage.joined_rows import JoinedRows, Piece
from esper_recorder.storage.journal import JournalWriter
from esper_recorder.storage.listing import JOURNAL_FOLDER, RowFileName, last_sequence
from esper_recorder.storage.rollover import roll
from esper_recorder.storage.row_codec import pack_row
from esper_recorder.storage.safe_files import make_folder
from esper_recorder.storage.update_record import UpdateRecord

log = logging.getLogger("esper_recorder")

ROLL_BYTES = 8 * 2**20
"""Making parts of a journal takes several times its size in memory, and a reader of a live run reads all of it."""
ROLL_SECONDS = 600.0
SYNC_SECONDS = 10.0
SYNC_UPDATES = 100
_BUSY_SYNC_SECONDS = 1.0
_RETRY_SECONDS = 10.0
_TRIES = 10


class DroppedRowsError(OSError):
    """Rows a sink had stored are gone: `rows` of them, between `first_update` and `last_update`.

    Raised by `commit`, it does not concern the update being committed unless `stored` is False.
    """

    def __init__(self, message: str, rows: int, first_update: int, last_update: int, *, stored: bool = True) -> None:
        super().__init__(message)
        self.rows = rows
        self.first_update = first_update
        self.last_update = last_update
        self.stored = stored


class Sink(ABC):
    """A destination of recorded rows."""

    @abstractmethod
    def write(self, table: str, columns: Mapping[str, Sequence[Any]]) -> None:
        """Take rows of the current update.

        Args:
            table: name of a table of the contract.
            columns: column name -> values, all of one length; an absent column is NULL. The columns that identify a
                row (run_id, attempt, rank, update, time, elapsed_s) are already there.

        Raises:
            Exception: none of these rows are stored.
        """

    def commit(self, update: int) -> None:
        """Make the rows of a complete update visible together. Raising means that none of them is stored."""
        return

    def flush(self) -> None:
        """Make everything committed as durable as this sink can."""
        return

    def tick(self) -> None:
        """Do periodic work; called about once a second, whether or not rows come."""
        return

    def close(self, how: str | None = None, error: str | None = None) -> None:
        """Store what is left. `how` the run ended is `finished`, `raised` (with `error`), or None if unknown."""
        return


class RecordSink(Sink):
    """A sink that stores an update's record as it is; others get its rows, table by table."""

    @abstractmethod
    def write_record(self, record: UpdateRecord) -> None:
        """Take a record of the current update. Raising means that none of its rows are stored."""


class MemorySink(RecordSink):
    """Keeps rows in memory: for tests and notebooks."""

    def __init__(self) -> None:
        self.updates: list[int] = []
        """The committed updates."""
        self.closed: tuple[str | None, str | None] | None = None
        """(how, error) once the sink is closed."""
        self._pieces: list[tuple[int, Piece]] = []
        self._schemas: dict[tuple[str, ...], int] = {}
        self._pending: list[Piece] = []

    def write(self, table: str, columns: Mapping[str, Sequence[Any]]) -> None:
        self._pending.append((table, to_batch(table, columns)))

    def write_record(self, record: UpdateRecord) -> None:
        self._pending.append(record)

    def commit(self, update: int) -> None:
        self._take_pending()
        self.updates.append(update)

    def close(self, how: str | None = None, error: str | None = None) -> None:
        self._take_pending()
        self.closed = (how, error)

    def table(self, table: str) -> pa.Table:
        """Return the committed rows of a table, with all the contract's columns."""
        return to_table(table, self._batches().get(table, ()))

    def rows(self, table: str) -> list[dict[str, Any]]:
        """Return the committed rows of a table, each a dict of all the contract's columns."""
        rows: list[dict[str, Any]] = self.table(table).to_pylist()
        return rows

    def tables(self) -> dict[str, int]:
        """Count the committed rows of every table of the contract."""
        batches = self._batches()
        return {table: sum(batch.num_rows for batch in batches.get(table, ())) for table in TABLES}

    def _batches(self) -> dict[str, list[pa.RecordBatch]]:
        joined = JoinedRows()
        joined.add(self._pieces)
        return joined.batches()

    def _take_pending(self) -> None:
        pending, self._pending = self._pending, []
        for piece in pending:
            columns: tuple[str, ...] = ()
            if not isinstance(piece, UpdateRecord) and isinstance(piece[1], pa.RecordBatch):
                columns = (piece[0], *piece[1].schema.names)
            self._pieces.append((self._schemas.setdefault(columns, len(self._schemas)), piece))


class ParquetSink(RecordSink):
    """Writes the rows of one process into a run's folder: to the crash journal at each commit, to Parquet parts later.

    A commit is fsynced after `sync_seconds`, or once `sync_updates` wait and a second has passed. One second for all
    would do too, but an fsync costs as much as writing five rows, and most trainings make less than one row a second.
    The journal becomes one part per table when it exceeds `roll_bytes` or `roll_seconds`, and at `close`.

    Args:
        folder: the run's folder, `runs/<run_id>`; it must exist.
        attempt, rank: whose rows these are.
        roll_bytes, roll_seconds: size and age at which a journal becomes Parquet parts.
        sync_seconds, sync_updates: how long, and how many, committed updates may wait for their fsync (that many
            updates wait a second at least). `sync_seconds` 0 syncs at every commit.
    """

    def __init__(
        self,
        folder: str | Path,
        attempt: int = 1,
        rank: int = 0,
        *,
        roll_bytes: int = ROLL_BYTES,
        roll_seconds: float = ROLL_SECONDS,
        sync_seconds: float = SYNC_SECONDS,
        sync_updates: int = SYNC_UPDATES,
    ) -> None:
        self.folder = Path(folder)
        self.attempt = attempt
        self.rank = rank
        self.roll_bytes = roll_bytes
        self.roll_seconds = roll_seconds
        self.sync_seconds = sync_seconds
        self.sync_updates = sync_updates
        self._pending: list[Piece] = []
        self._journal: JournalWriter | None = None
        self._journal_began = 0.0
        self._synced = time.monotonic()
        self._unrolled: list[JournalWriter] = []  # closed journals whose parts are not written yet
        self._deleted: list[JournalWriter] = []  # by somebody else
        self._retry_at = 0.0
        self._warned: set[str] = set()
        self._closed = False
        self._last_update = 0
        self._seq = last_sequence(self.folder, attempt, rank)

    def write(self, table: str, columns: Mapping[str, Sequence[Any]]) -> None:
        self._pending.append((table, pack_row(table, columns) or to_batch(table, columns)))

    def write_record(self, record: UpdateRecord) -> None:
        self._pending.append(record)

    def commit(self, update: int) -> None:
        pending, self._pending = self._pending, []
        self._last_update = update
        if self._journal is not None and self._journal.removed:
            self._seal()
        try:
            self._append(update, pending)
        except OSError as error:
            if self._deleted:
                raise self._dropped_rows(stored=False) from error
            raise
        self.tick()

    def tick(self) -> None:
        """Do what is due: fsync, change to a new journal, make parts of closed ones. Raises DroppedRowsError only."""
        now = time.monotonic()
        journal = self._journal
        if journal is not None:
            if journal.updates and (journal.size >= self.roll_bytes or now - self._journal_began >= self.roll_seconds):
                self._seal()
                self._roll_sealed()
            elif journal.unsynced and now - self._synced >= self._sync_delay(journal):
                self._sync(journal)
        if self._unrolled and now >= self._retry_at:
            self._roll_sealed()
        if self._deleted:
            raise self._dropped_rows()

    def flush(self) -> None:
        if self._journal is not None:
            self._sync(self._journal)

    def close(self, how: str | None = None, error: str | None = None) -> None:
        if self._closed:
            return
        if self._pending:
            self.commit(self._last_update)
        self._closed = True
        self._seal()
        self._roll_sealed()
        with contextlib.suppress(OSError):  # another process's journal, or one whose parts could not be written
            (self.folder / JOURNAL_FOLDER).rmdir()
        if self._deleted:
            raise self._dropped_rows()

    def reopen(self) -> None:
        """Take rows again after `close`."""
        self._closed = False

    # --- one journal after the other --------------------------------------------------------------------------------

    def _append(self, update: int, content: list[Piece]) -> None:
        journal = self._journal if self._journal is not None else self._open()
        try:
            journal.commit(update, content)
        except OSError:
            # An empty journal is kept for the next update. One with rows is closed: parts are far smaller than their
            # journal, and a new file may take what the old one would not.
            if not journal.updates:
                if journal.broken:
                    self._seal()
                raise
            self._seal()
            self._roll_sealed()
            self._open().commit(update, content)

    def _open(self) -> JournalWriter:
        folder = self.folder / JOURNAL_FOLDER
        self._seq += 1
        path = folder / RowFileName(self.attempt, self.rank, self._seq).journal
        try:
            self._journal = self._new_journal(path)
        except (FileNotFoundError, NotADirectoryError, FileExistsError) as error:
            raise OSError(f"the run's folder {self.folder} no longer exists, or is not a folder ({error})") from error
        self._journal_began = self._synced = time.monotonic()
        return self._journal

    def _new_journal(self, path: Path) -> JournalWriter:
        """Create a journal, and its folder, which another rank that ends removes whenever it is empty."""
        for _ in range(_TRIES):
            make_folder(path.parent)
            sync_folder(self.folder)  # another rank may have made it just now: it is durable before any row in it is
            with contextlib.suppress(FileNotFoundError):
                return JournalWriter(path)
        raise FileNotFoundError(f"{path.parent} was removed again and again")

    def _sync_delay(self, journal: JournalWriter) -> float:
        """How many seconds committed updates may wait for their fsync."""
        many = journal.unsynced >= self.sync_updates
        return min(self.sync_seconds, _BUSY_SYNC_SECONDS) if many else self.sync_seconds

    def _sync(self, journal: JournalWriter) -> None:
        self._synced = time.monotonic()  # also if it fails, so that it is not tried at every commit
        try:
            journal.sync()
        except OSError as error:
            self._warn("sync", "%s: fsync failed (%s), so the newest rows may not survive a loss of power.", error)

    def _seal(self) -> None:
        """Close the journal: it takes no more rows and waits for its parts."""
        journal, self._journal = self._journal, None
        if journal is None:
            return
        if journal.removed:
            self._deleted.append(journal)
        elif journal.updates:
            self._sync(journal)
            self._unrolled.append(journal)
        else:
            journal.path.unlink(missing_ok=True)
        journal.close()

    def _roll_sealed(self) -> None:
        """Write the parts of closed journals. If that fails the rows stay in their journals, which readers read."""
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        while self._unrolled:
            journal = self._unrolled[0]
            try:
                roll(self.folder, journal.path)
            except (OSError, ValueError, pa.ArrowException) as error:
                if journal.path.exists():
                    self._warn(
                        "roll",
                        "No Parquet part could be made of %s (%s). All its rows stay there and can be read; "
                        "it is tried again later.",
                        error,
                        journal.path,
                    )
                    return
                self._deleted.append(journal)
            self._unrolled.pop(0)
            pa.default_memory_pool().release_unused()  # the memory is the trainer's

    def _dropped_rows(self, *, stored: bool = True) -> DroppedRowsError:
        journals = [journal for journal in self._deleted if journal.updates]
        self._deleted = []
        return DroppedRowsError(
            f"{self.folder / JOURNAL_FOLDER} was moved or deleted while the run was being recorded",
            sum(journal.rows for journal in journals),
            min((journal.first_update or 0 for journal in journals), default=self._last_update),
            max((journal.last_update or 0 for journal in journals), default=self._last_update),
            stored=stored,
        )

    def _warn(self, kind: str, message: str, error: Exception, path: Path | None = None) -> None:
        if kind not in self._warned:
            self._warned.add(kind)
            log.warning(message, path or self.folder, error)
