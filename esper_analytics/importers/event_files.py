"""Read one TensorBoard event file to its end, whatever is damaged in it.

An event file is a sequence of records: length (8 bytes), its checksum (4), an `Event` protobuf, its checksum (4), all
little endian; a checksum is a masked CRC-32C. The loader of the `tensorboard` package silently stops at the first
damaged record; this one counts it and finds the next. The content of a record is parsed with the package's protobufs.
TensorFlow is not needed, and not loaded even if it is installed.
"""

from __future__ import annotations

import hashlib
import re
import struct
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from esper_analytics.errors import UsageError
from esper_analytics.importers.scalar_rows import ScalarValue, whole_step

MARK = "tfevents"
"""Every event file has this in its name."""

_HEADER = 12
_FOOTER = 4
# At any position, a length between 1 byte and 4 GB: no record is empty or longer.
_MAYBE_LENGTH = re.compile(rb"(?=(?!\0{4}).{4}\0{4})", re.DOTALL)
_KINDS = {"histo": "histograms", "image": "images", "scalars": "scalars that are not a number"}
_TEXT_SUFFIX = "/text_summary"  # torch's SummaryWriter appends it to the tag of a text


@dataclass(frozen=True, slots=True)
class Text:
    """One text."""

    tag: str
    text: str
    record: int
    """The number of its record in the file, from 1."""


@dataclass(slots=True)
class EventFile:
    """What one event file held."""

    path: Path
    sha256: str
    """Of its content."""
    scalars: list[ScalarValue] = field(default_factory=list)
    """In the order they were written."""
    texts: list[Text] = field(default_factory=list)
    hparams: dict[str, Any] = field(default_factory=dict)
    """Hyperparameters of `SummaryWriter.add_hparams` and SB3's `HParam`."""
    records: int = 0
    """Complete records."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Kind of summary that no table is meant for (histograms, images, ...) -> how many."""
    damaged: int = 0
    """Stretches of bytes that are not readable records."""
    skipped_bytes: int = 0
    """Bytes in those."""
    unreadable: str | None = None
    """Why the file could not be opened."""
    torn_bytes: int = 0
    """Bytes of an incomplete last record."""
    unusable_steps: int = 0
    """Scalars whose step cannot be one."""
    first_time: float | None = None
    """Wall clock of the first record, in seconds since 1970."""


def need_tensorboard() -> None:
    """Raise UsageError, saying what to install, if the package `tensorboard` is missing."""
    try:
        import tensorboard.compat.proto.event_pb2  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"Event files are read with the package tensorboard, which cannot be imported here ({error}). "
            "It comes with: pip install 'esper-analytics[tensorboard]'."
        ) from error


def read_event_file(path: Path, progress: Callable[[int], None] | None = None) -> EventFile:
    """Read every scalar of one event file, and count all else.

    Args:
        progress: called from time to time with the number of bytes read.

    Raises:
        OSError: the file cannot be read.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    data = path.read_bytes()
    content = EventFile(path, hashlib.sha256(data).hexdigest())
    for start, record in _records(data, content):
        event = Event()
        try:
            event.ParseFromString(record)
        except DecodeError:
            content.damaged += 1
            content.skipped_bytes += len(record) + _HEADER + _FOOTER
            continue
        content.records += 1
        if content.first_time is None:
            content.first_time = event.wall_time
        for value in event.summary.value:
            _add_summary(value, event, content)
        if progress is not None and content.records % 1000 == 0:
            progress(start)
    if progress is not None:
        progress(len(data))
    return content


# --- records ----------------------------------------------------------------------------------------------------------


def _records(data: bytes, content: EventFile) -> Iterator[tuple[int, bytes]]:
    """Yield (position, record) of every record with valid checksums; count the bytes between them in `content`."""
    position = 0
    while position < len(data):
        length = _length_at(data, position)
        if length is None:
            # Without a valid length the end of the record is unknown: scan for the next header.
            following = _next_header(data, position + 1)
            if following is None and len(data) - position < _HEADER:
                content.torn_bytes += len(data) - position
                return
            content.damaged += 1
            following = len(data) if following is None else following
            content.skipped_bytes += following - position
            position = following
            continue
        end = position + _HEADER + length + _FOOTER
        if end > len(data):
            content.torn_bytes += len(data) - position
            return
        record = data[position + _HEADER : end - _FOOTER]
        if _checksum(record) == _unsigned(data, end - _FOOTER):
            yield position, record
        else:
            content.damaged += 1
            content.skipped_bytes += end - position
        position = end


def _length_at(data: bytes, position: int) -> int | None:
    """The length of the record that begins at a position; None if there is no valid header."""
    header = data[position : position + 8]
    if len(data) - position < _HEADER or _checksum(header) != _unsigned(data, position + 8):
        return None
    length: int = struct.unpack("<Q", header)[0]
    return length


def _next_header(data: bytes, start: int) -> int | None:
    """The position of the next valid header, from `start` on; None at the end."""
    positions = (candidate.start() for candidate in _MAYBE_LENGTH.finditer(data, start))
    return next((position for position in positions if _length_at(data, position) is not None), None)


def _unsigned(data: bytes, position: int) -> int:
    number: int = struct.unpack_from("<I", data, position)[0]
    return number


def _checksum(data: bytes) -> int:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    checksum: int = masked_crc32c(data)
    return checksum


# --- content of a record ----------------------------------------------------------------------------------------------


def _add_summary(value: Any, event: Any, content: EventFile) -> None:
    kind = value.WhichOneof("value")
    plugin = value.metadata.plugin_data.plugin_name
    number = value.simple_value if kind == "simple_value" else None
    if kind == "tensor" and plugin == "scalars":
        number = _number(value.tensor)
    if plugin == "hparams":
        content.left_out["hparams"] += 1
        content.hparams |= _hyperparameters(value.metadata.plugin_data.content)
    elif number is not None:
        step = whole_step(event.step)
        content.unusable_steps += step is None
        content.scalars.append(ScalarValue(value.tag, step, number, content.records, event.wall_time))
    elif kind == "tensor" and plugin == "text":
        tag = value.tag.removesuffix(_TEXT_SUFFIX)
        content.texts.append(Text(tag, _text(value.tensor), content.records))
    else:
        content.left_out[_KINDS.get(plugin or kind or "", plugin or kind or "empty summaries")] += 1


def _number(tensor: Any) -> float | None:
    """The only element of a tensor; None if it has several, or none that is a number."""
    from tensorboard.util.tensor_util import make_ndarray

    if any(dimension.size != 1 for dimension in tensor.tensor_shape.dim):
        return None  # NumPy would allocate what the shape declares
    try:
        return float(make_ndarray(tensor).item())
    except (TypeError, ValueError, KeyError, OverflowError):
        return None


def _text(tensor: Any) -> str:
    return "\n".join(line.decode("utf-8", "replace") for line in tensor.string_val)


def _hyperparameters(content: bytes) -> dict[str, Any]:
    """Read the data of the hparams plugin; empty if it has no hyperparameters."""
    from google.protobuf.message import DecodeError
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData()
    try:
        data.ParseFromString(content)
    except DecodeError:
        return {}
    hparams = data.session_start_info.hparams
    return {
        name: getattr(hparams[name], hparams[name].WhichOneof("kind") or "number_value") for name in sorted(hparams)
    }
