"""Every scalar of an event file is read, and what is damaged is counted, wherever the damage is."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest
from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader
from tensorboard.compat.proto.event_pb2 import Event
from tensorboard.compat.proto.summary_pb2 import HistogramProto, Summary, SummaryMetadata
from tensorboard.util.tensor_util import make_tensor_proto

from esper_analytics.importers.event_files import read_event_file
from tests.analytics.importers.event_logs import STARTED, framed, write_log

VALUES = [("a", 1, 0.5), ("b", 1, math.nan), ("a", 2, math.inf), ("b", 2, -math.inf), ("a", 3, 1e-30)]
FOUR = VALUES[:-1]


def said(file):
    return [(one.tag, one.step, struct.pack("<f", one.value)) for one in file.scalars]


def as_said(values):
    return [(tag, step, struct.pack("<f", value)) for tag, step, value in values]


def record_starts(data):
    starts, position = [], 0
    while position < len(data):
        starts.append(position)
        position += 12 + struct.unpack("<Q", data[position : position + 8])[0] + 4
    return starts


class TestWhole:
    def test_the_scalars_equal_those_of_tensorboards_loader(self, tmp_path):
        path = write_log(tmp_path, VALUES)
        theirs = [
            (value.tag, event.step, struct.pack("<f", value.simple_value))
            for event in LegacyEventFileLoader(str(path)).Load()
            for value in event.summary.value
        ]
        file = read_event_file(path)
        assert said(file) == as_said(VALUES) == theirs
        assert (file.damaged, file.skipped_bytes, file.torn_bytes, file.records) == (0, 0, 0, 6)
        assert [one.line for one in file.scalars] == [2, 3, 4, 5, 6], "record 1 is the version of the format"
        assert file.first_time == STARTED

    def test_scalars_of_the_newer_kind_are_read_as_well(self, tmp_path):
        path = write_log(tmp_path, [])
        metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
        with path.open("ab") as file:
            for data in (1.5, np.float64(2.5), [1.0, 2.0]):
                value = Summary.Value(tag="x", tensor=make_tensor_proto(data), metadata=metadata)
                file.write(framed(Event(step=7, summary=Summary(value=[value])).SerializeToString()))
        found = read_event_file(path)
        assert [(one.tag, one.step, one.value) for one in found.scalars] == [("x", 7, 1.5), ("x", 7, 2.5)]
        assert found.left_out == {"scalars that are not a number": 1}

    def test_summaries_that_are_not_scalars_are_counted_by_kind(self, tmp_path):
        path = write_log(tmp_path, [("a", 1, 1.0)])
        pictures = Summary(
            value=[
                Summary.Value(tag="h", histo=HistogramProto(min=0, max=1, num=1, sum=1, sum_squares=1)),
                Summary.Value(tag="i", image=Summary.Image(height=1, width=1, colorspace=1)),
                Summary.Value(tag="nothing"),
            ]
        )
        with path.open("ab") as file:
            file.write(framed(Event(step=1, summary=pictures).SerializeToString()))
        found = read_event_file(path)
        assert len(found.scalars) == 1
        assert found.left_out == {"histograms": 1, "images": 1, "empty summaries": 1}

    def test_an_empty_file_holds_nothing(self, tmp_path):
        (tmp_path / "tfevents").touch()
        found = read_event_file(tmp_path / "tfevents")
        assert (found.records, found.scalars, found.damaged, found.torn_bytes) == (0, [], 0, 0)


NO_TENSORFLOW = """
import sys
from pathlib import Path
from esper_analytics.importers.event_files import read_event_file
file = read_event_file(Path(sys.argv[1]))
print(len(file.scalars), "tensorflow" in sys.modules, "torch" in sys.modules)
"""


def test_tensorflow_is_not_loaded_even_if_installed(tmp_path, run_python):
    path = write_log(tmp_path / "log", VALUES)
    metadata = SummaryMetadata(plugin_data=SummaryMetadata.PluginData(plugin_name="scalars"))
    with path.open("ab") as file:
        value = Summary.Value(tag="x", tensor=make_tensor_proto(1.5), metadata=metadata)
        file.write(framed(Event(step=7, summary=Summary(value=[value])).SerializeToString()))
    (tmp_path / "tensorflow").mkdir()
    (tmp_path / "tensorflow" / "__init__.py").write_text("raise RuntimeError('it was loaded')\n")
    there = f"import sys; sys.path.insert(0, {str(tmp_path)!r})"
    assert run_python(there + NO_TENSORFLOW, str(path)).split() == ["6", "False", "False"]


class TestDamaged:
    def test_a_last_record_cut_anywhere_costs_that_record_alone(self, tmp_path):
        path = write_log(tmp_path, VALUES)
        data = path.read_bytes()
        last = record_starts(data)[-1]
        for end in range(last + 1, len(data)):
            path.write_bytes(data[:end])
            found = read_event_file(path)
            assert said(found) == as_said(FOUR)
            assert (found.torn_bytes, found.damaged) == (end - last, 0), f"cut after {end} bytes"

    def test_a_flipped_byte_anywhere_costs_its_record_alone(self, tmp_path):
        path = write_log(tmp_path, VALUES)
        data = path.read_bytes()
        starts = record_starts(data)
        for position in range(len(data)):
            path.write_bytes(data[:position] + bytes([data[position] ^ 0x55]) + data[position + 1 :])
            damaged = sum(start <= position for start in starts) - 1
            found = read_event_file(path)
            left = as_said(VALUES) if damaged == 0 else as_said(VALUES[: damaged - 1] + VALUES[damaged:])
            assert said(found) == left, f"byte {position}"
            assert found.damaged == 1 and found.torn_bytes == 0
            ends = [*starts, len(data)]
            assert found.skipped_bytes == ends[damaged + 1] - ends[damaged], f"byte {position}"

    @pytest.mark.parametrize("filling", [b"\0" * 999, b"\xff" * 999, bytes(range(256)) * 4], ids=["0", "ff", "any"])
    def test_bytes_between_records_are_one_damaged_stretch(self, tmp_path, filling):
        path = write_log(tmp_path, VALUES)
        data = path.read_bytes()
        place = record_starts(data)[3]
        path.write_bytes(data[:place] + filling + data[place:])
        found = read_event_file(path)
        assert said(found) == as_said(VALUES)
        assert (found.damaged, found.skipped_bytes, found.torn_bytes) == (1, len(filling), 0)

    def test_a_complete_record_that_is_not_an_event_is_damaged(self, tmp_path):
        path = write_log(tmp_path, VALUES)
        with path.open("ab") as file:
            file.write(framed(b"\xff\xff\xff\xff"))
        found = read_event_file(path)
        assert said(found) == as_said(VALUES)
        assert (found.damaged, found.skipped_bytes) == (1, 20)

    def test_a_text_file_holds_no_record(self, tmp_path):
        path = tmp_path / "events.out.tfevents.txt"
        path.write_text("step,value\n1,2\n" * 100)
        found = read_event_file(path)
        assert (found.records, found.scalars, found.damaged, found.skipped_bytes) == (0, [], 1, 1500)
