"""Read one TensorBoard event file to its end, whatever is damaged in it.

An event file is a sequence of records: length (8 bytes), its checksum (4), an `Event` protobuf, its checksum (4), all
little endian; a checksum is a masked CRC-32C. The loader of the `tensorboard` package stops at the first damaged record
and does not say so; here a damaged record is counted and the next one is looked for. What a record holds is read with
the package's own protobufs. TensorFlow is not needed, and not loaded where it is there.
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
from esper_analytics.importers.logged import Logged

MARK = "tfevents"
"""What the name of every event file holds."""

_HEADER = 12
_FOOTER = 4
# A length that is not zero and below 4 GB, at any position: no record is longer, and none is empty.
_MAYBE_LENGTH = re.compile(rb"(?=(?!\0{4}).{4}\0{4})", re.DOTALL)
_KINDS = {"histo": "histograms", "image": "images", "scalars": "scalars that are no number"}
_TEXT_SUFFIX = "/text_summary"  # torch's SummaryWriter adds it to the tag of a text


@dataclass(frozen=True, slots=True)
class Text:
    """One text."""

    tag: str
    text: str
    record: int
    """Where it stood in its file, counted from 1."""


@dataclass(slots=True)
class EventFile:
    """What one event file held."""

    path: Path
    sha256: str
    """Of its content."""
    values: list[Logged] = field(default_factory=list)
    """The scalars, in the order they were written."""
    texts: list[Text] = field(default_factory=list)
    hparams: dict[str, Any] = field(default_factory=dict)
    """Hyperparameters, as `SummaryWriter.add_hparams` and SB3's `HParam` write them."""
    records: int = 0
    """Records that are whole."""
    kept_out: Counter[str] = field(default_factory=Counter)
    """Kind of summary that no table holds (histograms, images, ...) -> how many."""
    damaged: int = 0
    """Stretches of records that could not be read."""
    skipped_bytes: int = 0
    """Bytes in those."""
    unreadable: str | None = None
    """Why the file could not be opened."""
    torn_bytes: int = 0
    """Bytes of a last record that was not wholly written."""
    first_time: float | None = None
    """Wall clock of the first record, in seconds since 1970."""


def need_tensorboard() -> None:
    """Raises UsageError, saying what to install, where the package `tensorboard` is not there."""
    try:
        import tensorboard.compat.proto.event_pb2  # noqa: F401
    except ImportError as error:
        raise UsageError(
            f"Event files are read with the package tensorboard, which cannot be imported here ({error}). "
            "It comes with: pip install 'esper-analytics[tensorboard]'."
        ) from error


def read_event_file(path: Path, progress: Callable[[int], None] | None = None) -> EventFile:
    """Every scalar of one event file, and a count of all else.

    Args:
        path: the file. Its bytes up to the end it has now are read.
        progress: called with the number of bytes read, now and then.

    Raises:
        OSError: it cannot be read.
    """
    from google.protobuf.message import DecodeError
    from tensorboard.compat.proto.event_pb2 import Event

    data = path.read_bytes()
    found = EventFile(path, hashlib.sha256(data).hexdigest())
    for start, record in _records(data, found):
        event = Event()
        try:
            event.ParseFromString(record)
        except DecodeError:
            found.damaged += 1
            found.skipped_bytes += len(record) + _HEADER + _FOOTER
            continue
        found.records += 1
        if found.first_time is None:
            found.first_time = event.wall_time
        for value in event.summary.value:
            _take(value, event, found)
        if progress is not None and found.records % 1000 == 0:
            progress(start)
    if progress is not None:
        progress(len(data))
    return found


# --- records ----------------------------------------------------------------------------------------------------------


def _records(data: bytes, found: EventFile) -> Iterator[tuple[int, bytes]]:
    """(position, record) of every record whose checksums are right; what is between them is counted in `found`."""
    position = 0
    while position < len(data):
        length = _length_at(data, position)
        if length is None:
            # Without its length there is no telling where the record ends.
            following = _next_header(data, position + 1)
            if following is None and len(data) - position < _HEADER:
                found.torn_bytes += len(data) - position
                return
            found.damaged += 1
            following = len(data) if following is None else following
            found.skipped_bytes += following - position
            position = following
            continue
        end = position + _HEADER + length + _FOOTER
        if end > len(data):
            found.torn_bytes += len(data) - position
            return
        record = data[position + _HEADER : end - _FOOTER]
        if _checksum(record) == _unsigned(data, end - _FOOTER):
            yield position, record
        else:
            found.damaged += 1
            found.skipped_bytes += end - position
        position = end


def _length_at(data: bytes, position: int) -> int | None:
    """The length of the record that begins there; None where that is no header."""
    header = data[position : position + 8]
    if len(data) - position < _HEADER or _checksum(header) != _unsigned(data, position + 8):
        return None
    length: int = struct.unpack("<Q", header)[0]
    return length


def _next_header(data: bytes, start: int) -> int | None:
    """Where the next header begins, from `start` on; None where there is none."""
    places = (found.start() for found in _MAYBE_LENGTH.finditer(data, start))
    return next((place for place in places if _length_at(data, place) is not None), None)


def _unsigned(data: bytes, position: int) -> int:
    number: int = struct.unpack_from("<I", data, position)[0]
    return number


def _checksum(data: bytes) -> int:
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    checksum: int = masked_crc32c(data)
    return checksum


# --- what a record holds ----------------------------------------------------------------------------------------------


def _take(value: Any, event: Any, found: EventFile) -> None:
    kind = value.WhichOneof("value")
    plugin = value.metadata.plugin_data.plugin_name
    number = value.simple_value if kind == "simple_value" else None
    if kind == "tensor" and plugin == "scalars":
        number = _number(value.tensor)
    if plugin == "hparams":
        found.kept_out["hparams"] += 1
        found.hparams |= _hyperparameters(value.metadata.plugin_data.content)
    elif number is not None:
        found.values.append(Logged(value.tag, event.step, number, found.records, event.wall_time))
    elif kind == "tensor" and plugin == "text":
        tag = value.tag.removesuffix(_TEXT_SUFFIX)
        found.texts.append(Text(tag, _text(value.tensor), found.records))
    else:
        found.kept_out[_KINDS.get(plugin or kind or "", plugin or kind or "empty summaries")] += 1


def _number(tensor: Any) -> float | None:
    """The only element of a tensor of one number."""
    from tensorboard.util.tensor_util import make_ndarray

    try:
        return float(make_ndarray(tensor).item())
    except (TypeError, ValueError):
        return None


def _text(tensor: Any) -> str:
    return "\n".join(line.decode("utf-8", "replace") for line in tensor.string_val)


def _hyperparameters(content: bytes) -> dict[str, Any]:
    """The hyperparameters in the data of the hparams plugin; nothing where it holds none."""
    from google.protobuf.message import DecodeError
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    data = HParamsPluginData()
    try:
        data.ParseFromString(content)
    except DecodeError:
        return {}
    told = data.session_start_info.hparams
    return {name: getattr(told[name], told[name].WhichOneof("kind") or "number_value") for name in sorted(told)}
