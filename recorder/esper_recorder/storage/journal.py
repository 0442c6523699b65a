"""The crash journal: one append-only file that holds the newest updates of one process until they are Parquet.

    file   = b"ESPERJ1\\n" frame*
    frame  = marker u16, kind u8, 0 u8, table u16, 0 u16, length u32, crc32 of payload u32, crc32 of these 16 bytes u32,
             0 u32, payload, zeros up to a multiple of 8; numbers are little-endian
    kind 1 = schema: table name, b"\\0", Arrow IPC schema; gives its `table` number the meaning for this file
    kind 2 = rows: one Arrow IPC record batch of the schema numbered `table`, its buffers compressed (LZ4) if large
    kind 3 = commit: update i64, rows i64
    kind 4 = one row, packed (see `row_codec`) by the layout whose schema is numbered `table`
    kind 5 = layout of records, as JSON (see `record_layout`); gives its `table` number the meaning for this file
    kind 6 = record of an update (see `update_record`) of the layout numbered `table`

Rows count only once a commit follows them, so all tables of an update appear together. A schema is written once per
file and set of columns.

Covers:
* What `commit` returned from is with the operating system: it survives the death of the process, without an fsync.
* After `sync` it survives the loss of power.
* A commit that fails leaves nothing of its update behind.
* The file can be read at any moment while it is written: a reader ignores what follows the last commit.
* A damaged frame is reported and costs itself (a schema: the rows that need it); the frames after it are still read.

Does not cover:
* Several writers of one file, changed or deleted rows, look-up by update. A reader reads the whole file, so the sink
  starts another after some megabytes.
* A tail that the loss of power cut off looks like an update that was being written: it is counted, not an error.

Why not SQLite's journal, or a database: an update is one `write` of the numbers that are there, where SQLite would fill
B-tree pages, and checkpoint its WAL in the trainer's process; and no reader can hold a lock the trainer waits for.
"""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import pyarrow as pa

from esper_recorder.storage.atomic import sync_folder
from esper_recorder.storage.ipc_sizes import decompressed_size
from esper_recorder.storage.joined_rows import JoinedRows, Piece
from esper_recorder.storage.record_layout import RecordLayout
from esper_recorder.storage.row_codec import Layout, PackedRow
from esper_recorder.storage.safe_files import read_regular
from esper_recorder.storage.update_record import UpdateRecord

MAGIC = b"ESPERJ1\n"
_MARKER = 0x4AE5
_MARKER_BYTES = _MARKER.to_bytes(2, "little")
_FIXED = struct.Struct("<HBBHHII")
_HEADER = struct.Struct("<HBBHHIIII")
_COMMIT = struct.Struct("<qq")
_SCHEMA, _ROWS, _COMMITTED, _PACKED, _LAYOUT, _RECORD = 1, 2, 3, 4, 5, 6
_LONGEST = 2**32 - 1
_LARGE = 1 << 20
"""Bytes of a batch from which on it is compressed."""
_MOST_TIMES = 256
"""What LZ4 compresses at most, in which compressed batches are written."""
_Key = tuple[str, tuple[str, ...] | Layout | RecordLayout, int]  # table, columns, kind of frame
_Schemas = dict[_Key, tuple[pa.Schema | RecordLayout, int]]


@dataclass(frozen=True, slots=True)
class Damage:
    """A stretch of a journal that cannot be read although committed updates follow it."""

    offset: int
    length: int
    reason: str


@dataclass(frozen=True, slots=True)
class JournalContent:
    """The committed rows of a journal, and the size of what was left out."""

    batches: dict[str, list[pa.RecordBatch]] = field(default_factory=dict)
    updates: tuple[int, ...] = ()
    """The committed updates, in the order they were written."""
    rows: int = 0
    bytes_read: int = 0
    bytes_ignored: int = 0
    """Bytes after the last commit: an update that was being written, or a torn tail."""
    damage: tuple[Damage, ...] = ()


class JournalWriter:
    """Appends updates to one new journal file. Used by one thread of the process that made it."""

    def __init__(self, path: Path) -> None:
        """Create the file, which must not exist. Raises OSError and leaves no file if that fails."""
        self.path = path
        self.updates = 0
        self.rows = 0
        self.first_update: int | None = None
        self.last_update: int | None = None
        self.broken = False
        """A write failed and could not be undone: nothing more may be appended."""
        self._schemas: _Schemas = {}
        self._numbers = 0  # schemas written to this file; no number is used twice
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC
        self._descriptor = os.open(path, flags, 0o666)
        self.size = 0
        try:
            _write_all(self._descriptor, MAGIC)
            sync_folder(path.parent)
        except BaseException:
            self.close()
            path.unlink(missing_ok=True)
            raise
        self.size = len(MAGIC)
        self.unsynced = 0
        """Updates that would not survive the loss of power."""

    def commit(self, update: int, content: Iterable[Piece]) -> None:
        """Append the rows of one update, all or none.

        Raises:
            OSError: nothing of the update is in the file (or the journal is `broken`; what was committed stays).
        """
        if self.broken:
            raise OSError(f"{self.path} took no further rows after a write that failed")
        pieces: list[pa.Buffer | bytes] = []
        fresh: _Schemas = {}
        rows = 0
        for piece in content:
            if isinstance(piece, UpdateRecord):
                number = self._number(("", piece.layout, _LAYOUT), piece.layout, fresh, pieces)
                pieces += _frame(_RECORD, number, piece.data)
                rows += piece.rows
                continue
            table, batch = piece
            if isinstance(batch, PackedRow):
                layout = batch.layout
                number = self._number((table, layout, _PACKED), layout.schema, fresh, pieces)
                pieces += _frame(_PACKED, number, batch.data)
                rows += 1
            else:
                # Keyed by the columns' names: hashing a schema of a hundred columns costs more than writing its row.
                number = self._number((table, tuple(batch.schema.names), _ROWS), batch.schema, fresh, pieces)
                pieces += _frame(_ROWS, number, _encode(batch))
                rows += batch.num_rows
        pieces += _frame(_COMMITTED, 0, _COMMIT.pack(update, rows))
        data = b"".join(pieces)  # in one piece, for one write
        try:
            _write_all(self._descriptor, data)
        except OSError:
            try:
                os.ftruncate(self._descriptor, self.size)
            except OSError:
                self.broken = True
            raise
        self._schemas.update(fresh)
        self._numbers += len(fresh)
        self.size += len(data)
        self.updates += 1
        self.rows += rows
        self.first_update = update if self.first_update is None else self.first_update
        self.last_update = update
        self.unsynced += 1

    def sync(self) -> None:
        """Make what is committed survive the loss of power. Raises OSError."""
        if self.unsynced:
            os.fsync(self._descriptor)
            self.unsynced = 0

    @property
    def removed(self) -> bool:
        """The file was deleted while it was being written: what it held is gone."""
        return self._descriptor >= 0 and os.fstat(self._descriptor).st_nlink == 0

    def close(self) -> None:
        """Close the file. Idempotent."""
        if self._descriptor >= 0:
            descriptor, self._descriptor = self._descriptor, -1
            os.close(descriptor)

    def _number(
        self, key: _Key, schema: pa.Schema | RecordLayout, fresh: _Schemas, pieces: list[pa.Buffer | bytes]
    ) -> int:
        """The number of a schema or layout; one that the file does not have yet is added to `fresh` and `pieces`."""
        written = fresh.get(key) or self._schemas.get(key)
        if written is not None and (written[0] is schema or written[0] == schema):
            return written[1]
        number = self._numbers + len(fresh)
        fresh[key] = (schema, number)
        if isinstance(schema, RecordLayout):
            pieces += _frame(_LAYOUT, number, schema.to_json())
        else:
            pieces += _frame(_SCHEMA, number, key[0].encode() + b"\0" + schema.serialize().to_pybytes())
        return number


def read_journal(path: Path) -> JournalContent:
    """Read the committed rows of a journal, which another process may be appending to.

    Raises:
        OSError: the file does not exist, cannot be read, or is a link or a special file.
        ValueError: it is not a journal of ours.
    """
    return parse_journal(read_regular(path), str(path))


def parse_journal(data: bytes, name: str = "journal") -> JournalContent:
    """Parse the committed rows of a journal's bytes. Raises ValueError if they are not a journal of ours."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise ValueError(f"{name} is not a journal of esper-recorder (or of a newer version): it begins otherwise")
    buffer = pa.py_buffer(data)
    schemas: dict[int, tuple[str, pa.Schema]] = {}
    layouts: dict[int, Layout] = {}
    record_layouts: dict[int, RecordLayout] = {}
    joined = JoinedRows()
    pending: list[tuple[int, Piece]] = []
    damage: list[Damage] = []
    unsure: list[Damage] = []  # damage once a commit follows; else part of the torn tail
    updates: list[int] = []
    committed = min(len(MAGIC), len(data))
    for frame in _frames(data):
        if isinstance(frame, Damage):
            unsure.append(frame)
            continue
        kind, number, start, length, end = frame
        payload = buffer.slice(start, length)
        try:
            if kind == _COMMITTED:
                updates.append(_COMMIT.unpack(payload)[0])
                joined.add(pending)
                damage += unsure
                pending, unsure = [], []
                committed = end
            elif kind == _PACKED:
                table, schema = schemas[number]
                if number not in layouts:
                    layouts[number] = Layout(schema)
                pending.append((number, (table, PackedRow(layouts[number], payload.to_pybytes()))))
            elif kind == _ROWS:
                table, schema = schemas[number]
                message = pa.ipc.read_message(payload)
                size = decompressed_size(message)
                if size > _MOST_TIMES * length:
                    raise ValueError(f"{length} bytes declare {size} bytes of rows")
                batch = pa.ipc.read_record_batch(message, schema)
                batch.validate(full=True)  # a fitting checksum says nothing of what a stranger wrote
                pending.append((number, (table, batch)))
            elif kind == _RECORD:
                record = UpdateRecord(record_layouts[number], payload.to_pybytes())
                record.check()
                pending.append((number, record))
            elif kind == _LAYOUT:
                record_layouts[number] = RecordLayout.from_json(payload.to_pybytes())
            elif kind == _SCHEMA:
                encoded_name, _, encoded = payload.to_pybytes().partition(b"\0")
                table = encoded_name.decode()
                if not table.isidentifier():  # parts go to a folder of this name
                    raise ValueError(f"{table!r} is not the name of a table")
                schemas[number] = (table, _checked(pa.ipc.read_schema(pa.py_buffer(encoded))))
            else:
                raise ValueError(f"kind {kind} is unknown to this version")
        except KeyError:
            unsure.append(Damage(start - _HEADER.size, end - start + _HEADER.size, "its schema was damaged"))
        except (pa.ArrowException, ValueError, OSError, struct.error) as error:
            unsure.append(Damage(start - _HEADER.size, end - start + _HEADER.size, f"it cannot be read: {error}"))
    batches = joined.batches()
    return JournalContent(
        batches,
        tuple(updates),
        sum(batch.num_rows for table_batches in batches.values() for batch in table_batches),
        bytes_read=committed,
        bytes_ignored=len(data) - committed,
        damage=tuple(damage),
    )


def _checked(schema: pa.Schema) -> pa.Schema:
    """Return a schema all of whose columns take bytes for each row: others hold a billion rows in a few bytes."""
    for column in schema:
        kind = column.type.value_type if pa.types.is_list(column.type) else column.type
        plain = pa.types.is_primitive(kind) or pa.types.is_string(kind) or pa.types.is_large_string(kind)
        if not plain or pa.types.is_null(kind):
            raise ValueError(f"its column {column.name!r} has the type {column.type}, which no table has")
    if not len(schema):
        raise ValueError("it has no columns")
    return schema


class _Frame(NamedTuple):
    kind: int
    number: int
    """Of the schema."""
    start: int
    """Of the payload."""
    length: int
    end: int


def _frames(data: bytes) -> Iterator[_Frame | Damage]:
    """The whole frames of a journal in their order, with the stretches between them that are damaged."""
    view = memoryview(data)
    offset = len(MAGIC)
    while offset < len(data):
        header = _header(data, offset)
        if header is None:
            following = _next_header(data, offset + 1)
            if following is None:
                return
            yield Damage(offset, following - offset, "no frame begins here")
            offset = following
            continue
        kind, number, length, crc = header
        start = offset + _HEADER.size
        end = start + length + -length % 8
        if end > len(data):
            return
        if zlib.crc32(view[start : start + length]) == crc:
            yield _Frame(kind, number, start, length, end)
        else:
            yield Damage(offset, end - offset, "the checksum does not fit")
        offset = end


def _encode(batch: pa.RecordBatch) -> pa.Buffer:
    """Encode a batch as an IPC message; compress a large one, since fresh memory to hold it would cost more."""
    if batch.nbytes < _LARGE:
        return batch.serialize()
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as stream:
        stream.write_batch(batch)
    written = sink.getvalue()  # the schema, which the journal holds once, the batch, and 8 bytes that end the stream
    start = batch.schema.serialize().size
    return written.slice(start, written.size - start - 8)


def _frame(kind: int, number: int, payload: pa.Buffer | bytes) -> list[pa.Buffer | bytes]:
    length = len(payload)
    if length > _LONGEST:
        raise ValueError(f"one update's rows of one table take {length} bytes; a frame of the journal holds 4 GiB")
    fixed = _FIXED.pack(_MARKER, kind, 0, number, 0, length, zlib.crc32(payload))
    return [fixed, zlib.crc32(fixed).to_bytes(4, "little"), b"\0\0\0\0", payload, bytes(-length % 8)]


def _header(data: bytes, offset: int) -> tuple[int, int, int, int] | None:
    """Return kind, schema number, payload length and crc of the frame at `offset`; None if no frame begins there."""
    if offset + _HEADER.size > len(data):
        return None
    marker, kind, _, number, _, length, crc, header_crc, _ = _HEADER.unpack_from(data, offset)
    if marker != _MARKER or header_crc != zlib.crc32(data[offset : offset + _FIXED.size]):
        return None
    return kind, number, length, crc


def _next_header(data: bytes, offset: int) -> int | None:
    while (offset := data.find(_MARKER_BYTES, offset)) >= 0:
        if _header(data, offset) is not None:
            return offset
        offset += 1
    return None


def _write_all(descriptor: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(descriptor, view) :]
