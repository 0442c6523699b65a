"""Event files for tests, written by the `tensorboard` package's own writer."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import Summary
from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c
from tensorboard.summary.writer.event_file_writer import EventFileWriter

UPDATE = ("train/approx_kl", "train/clip_fraction", "train/loss")
"""Tags by which Stable-Baselines3 is recognised, and one more."""

STARTED = 1_767_225_600.0
"""2026-01-01T00:00:00Z: the first record of what `write_log` writes; each value comes a second later."""

Value = tuple[str, int, float]


def write_log(folder: Path, values: Sequence[Value], *, started: float = STARTED, suffix: str = "") -> Path:
    """One event file with these (tag, step, value), a record each; its path."""
    before = set(folder.glob("*")) if folder.exists() else set()
    writer = EventFileWriter(str(folder), filename_suffix=suffix)
    for place, (tag, step, value) in enumerate(values, 1):
        summary = Summary(value=[Summary.Value(tag=tag, simple_value=value)])
        writer.add_event(Event(wall_time=started + place, step=step, summary=summary))
    writer.close()
    [path] = set(folder.glob("*")) - before
    # The writer's first record has the time of now: a test wants the same each time.
    whole = path.read_bytes()
    first = Event.FromString(whole[12 : 12 + struct.unpack("<Q", whole[:8])[0]])
    first.wall_time = started
    path.write_bytes(framed(first.SerializeToString()) + whole[12 + struct.unpack("<Q", whole[:8])[0] + 4 :])
    return path


def framed(record: bytes) -> bytes:
    """A record as an event file holds it."""
    length = struct.pack("<Q", len(record))
    return length + struct.pack("<I", masked_crc32c(length)) + record + struct.pack("<I", masked_crc32c(record))


def updates(*steps: int, value: float = 0.5) -> list[Value]:
    """What SB3 logs of an update, at each of the steps."""
    return [(tag, step, value) for step in steps for tag in UPDATE]
