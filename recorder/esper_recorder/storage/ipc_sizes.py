"""How large an Arrow IPC record batch becomes when it is decompressed, from its metadata alone.

pyarrow has no call for it: it allocates what each buffer declares. The metadata is a FlatBuffer, which pyarrow has
verified when it has read a message; its layout is that of the Arrow format's Message.fbs. Source:
https://arrow.apache.org/docs/format/Columnar.html#compression
"""

from __future__ import annotations

import struct

import pyarrow as pa

_HEADER, _BUFFERS, _COMPRESSION = 2, 2, 3
"""Places of fields in the tables Message (the first) and RecordBatch (the others)."""


def decompressed_size(message: pa.Message) -> int:
    """Return the bytes that the buffers of a record batch take; those in the message if they are not compressed.

    Raises ValueError or struct.error if it is another message, or its metadata contradicts its body.
    """
    if message.type != "record batch":
        raise ValueError(f"it is a {message.type}, not a record batch")
    metadata, body = message.metadata.to_pybytes(), message.body
    size = 0 if body is None else len(body)
    batch = _table(metadata, _field(metadata, _root(metadata), _HEADER))
    buffers = _field(metadata, batch, _BUFFERS)
    if body is None or not _field(metadata, batch, _COMPRESSION) or not buffers:
        return size
    vector = _table(metadata, buffers)
    (count,) = struct.unpack_from("<I", metadata, vector)
    if 16 * count > len(metadata):
        raise ValueError("more buffers are declared than there are")
    total = 0
    for i in range(count):
        offset, length = struct.unpack_from("<qq", metadata, vector + 4 + 16 * i)
        if offset < 0 or length < 0 or offset + length > size:
            raise ValueError("a buffer lies outside of its message")
        if length:
            (declared,) = struct.unpack_from("<q", body, offset)
            total += length if declared < 0 else declared  # -1: this buffer is stored as it is
    return total


def _root(data: bytes) -> int:
    return _table(data, 0)


def _table(data: bytes, place: int) -> int:
    """Follow the reference that lies at a place."""
    (offset,) = struct.unpack_from("<I", data, place)
    return place + int(offset)


def _field(data: bytes, table: int, number: int) -> int:
    """Return where a field of a table lies; 0 if it is absent."""
    (back,) = struct.unpack_from("<i", data, table)
    vtable = table - back
    (length,) = struct.unpack_from("<H", data, vtable)
    if 4 + 2 * number >= length:
        return 0
    (offset,) = struct.unpack_from("<H", data, vtable + 4 + 2 * number)
    return table + int(offset) if offset else 0
