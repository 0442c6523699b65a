"""Esper's hub writes runs as ours: every event arrives, and is what an import of the same events makes of it."""

from __future__ import annotations

import json
import logging
import math
import os
import subprocess
import sys
import threading
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import Enum, IntEnum
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import esper_analytics as ea
from esper_recorder.contract.tables import TABLES
from esper_recorder.esper import HubBackend, hub
from esper_recorder.esper.field_map.event_values import plain, plain_event
from esper_recorder.storage.run_folder import RunFolder
from esper_recorder.storage.sink import ParquetSink
from tests.esper_files import ALL_KINDS, EXCERPTS, WHOLE, content, event, events, import_run, lines

IDENTITY = {"run_id", "attempt", "rank", "elapsed_s"}


def recorded(all_events: list[Any], root: Path) -> ea.Runs:
    backend = HubBackend(root)
    backend.start()
    for sent in all_events:
        backend.emit(sent)
    backend.close()
    assert backend.dropped == 0
    return ea.open(root)


def rows(runs: ea.Runs, table: str) -> list[str]:
    """The rows of a table without their identity, sorted; texts of raw events as JSON values."""
    frame = runs.table(table).collect()
    frame = frame.drop([name for name in frame.columns if name in IDENTITY])
    texts = []
    for row in frame.iter_rows(named=True):
        if table == "raw_events":
            row["text"] = json.loads(row["text"])
        texts.append(repr(row))
    return sorted(texts)


class TestAgainstTheImport:
    @pytest.mark.parametrize("path", [*ALL_KINDS, *EXCERPTS], ids=lambda path: path.name)
    def test_the_tables_equal_those_of_an_import_of_the_same_events(self, path: Path, tmp_path: Path) -> None:
        self.compare(path, tmp_path)

    @pytest.mark.slow
    @pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.name)
    def test_the_tables_of_a_whole_run_equal_those_of_an_import(self, path: Path, tmp_path: Path) -> None:
        self.compare(path, tmp_path)

    def compare(self, path: Path, tmp_path: Path) -> None:
        all_events = events(path)
        ours = recorded(all_events, tmp_path / "hub")
        kinds = Counter(event["event_type"] for event in all_events)
        assert dict(ours.sql("SELECT event_type, count(*) FROM events GROUP BY 1").rows()) == kinds
        folder, report = import_run(content(path), tmp_path)
        theirs = ea.open(folder)
        assert report.problems == []
        for table in TABLES:
            one, other = rows(ours, table), rows(theirs, table)
            assert one == other, table
        assert ours.table("gaps").collect().is_empty()
        columns = ("trainer", "definition", "config", "total_updates", "rules_profile")
        frames = [runs.table("runs").select(columns).collect() for runs in (ours, theirs)]
        assert frames[0].equals(frames[1])
        texts = [runs.rules_text(runs.ids[0]) for runs in (ours, theirs)]
        assert texts[0] == texts[1]


STARTED = event("TRAINING_STARTED", 0, {"n_episodes": 8, "n_envs": 4, "max_batches": 2})


class Kind(Enum):
    EPOCH_COMPLETED = 1


class Level(IntEnum):
    LOW = 3


class Curve(Enum):
    LINEAR = "linear"


@dataclass(frozen=True, slots=True)
class Seed:
    stage: str
    alpha: float

    def to_dict(self) -> dict[str, Any]:
        return {"stage": self.stage, "alpha": self.alpha}


@dataclass(frozen=True)
class Payload:
    env_id: int
    inner_epoch: int
    val_loss: Any
    val_accuracy: Any
    seeds: dict[str, Seed] = field(default_factory=dict)
    train_loss: float | None = None


@dataclass
class TelemetryEvent:
    event_type: Any
    data: Any
    event_id: str = "e1"
    timestamp: Any = datetime(2026, 1, 1, 12, tzinfo=UTC)
    seed_id: str | None = None
    slot_id: str | None = None
    epoch: int | None = 2
    group_id: str = "default"
    message: str = ""
    severity: str = "info"


class TestEventsInMemory:
    def test_a_typed_event_is_recorded_as_its_line_would_be(self, tmp_path: Path) -> None:
        payload = Payload(1, 2, np.float32(0.5), math.nan, {"r0c1": Seed("BLENDING", 0.25)})
        runs = recorded([TelemetryEvent(Kind.EPOCH_COMPLETED, payload)], tmp_path)
        [row] = runs.table("epochs").collect().to_dicts()
        assert (row["env"], row["epoch"], row["val_loss"], row["train_loss"]) == (1, 2, 0.5, None)
        assert math.isnan(row["val_accuracy"])
        assert row["time"] == datetime(2026, 1, 1, 12, tzinfo=UTC)
        [seed] = runs.table("slot_epochs").collect().to_dicts()
        assert (seed["slot"], seed["stage"], seed["alpha"]) == ("r0c1", "BLENDING", 0.25)
        assert runs.table("raw_events").collect().is_empty()

    @pytest.mark.parametrize("path", ALL_KINDS, ids=lambda path: path.name)
    def test_objects_of_every_kind_of_event_give_the_rows_of_their_lines(self, path: Path, tmp_path: Path) -> None:
        class Data:
            def __init__(self, data: dict[str, Any]) -> None:
                self._data = data

            def to_dict(self) -> dict[str, Any]:
                return self._data

        all_events = events(path)
        kinds: Any = Enum("kinds", sorted({sent["event_type"] for sent in all_events}))  # type: ignore[misc]
        objects = [
            TelemetryEvent(
                **sent
                | {
                    "event_type": kinds[sent["event_type"]],
                    "timestamp": datetime.fromisoformat(sent["timestamp"]),
                    "data": Data(sent["data"]),
                }
            )
            for sent in all_events
        ]
        one, other = recorded(objects, tmp_path / "objects"), recorded(all_events, tmp_path / "lines")
        for table in TABLES:
            assert rows(one, table) == rows(other, table), table

    def test_an_event_is_copied_when_it_is_sent(self, tmp_path: Path) -> None:
        data = {"env_id": 1, "inner_epoch": 1, "val_loss": 1.0}
        backend = HubBackend(tmp_path)
        backend.emit(event("EPOCH_COMPLETED", 1, data))
        data["val_loss"] = 2.0
        backend.close()
        assert ea.open(tmp_path).table("epochs").collect()["val_loss"].to_list() == [1.0]

    def test_values_become_those_of_a_round_trip_through_json(self) -> None:
        values = [True, 1, 1.5, "a", None, np.int64(2), np.float64(0.1), np.bool_(True), np.array([1.0, 2.0]), (1, 2)]
        assert [plain(value) for value in values] == [
            *(True, 1, 1.5, "a", None, 2, 0.1, True),
            [1.0, 2.0],
            [1, 2],
        ]
        assert [type(plain(value)) for value in values[5:8]] == [int, float, bool]
        assert plain({1: Level.LOW, "curve": Curve.LINEAR, "set": {"b", "a"}}) == {
            "1": 3,
            "curve": "LINEAR",
            "set": ["a", "b"],
        }
        assert plain(Path("a/b")) == "a/b"

    def test_an_object_without_an_event_type_is_rejected(self) -> None:
        for value in (None, 5, "text", {}, {"event_type": None}, {"event_type": 5}, object(), TelemetryEvent(None, {})):
            assert plain_event(value) is None


class Hostile:
    event_type = "EPOCH_COMPLETED"

    @property
    def data(self) -> None:
        raise RuntimeError("no data today")


class TestTheTrainerIsTheHost:
    def test_an_unreadable_event_never_raises_and_is_counted_and_logged(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        deep: list[Any] = []
        deep.append(deep)
        backend = HubBackend(tmp_path)
        backend.start()
        backend.emit(STARTED)
        for strange in (Hostile(), Hostile(), event("EPOCH_COMPLETED", 2, {"deep": deep}), None, {"no": "event"}):
            backend.emit(strange)
        backend.emit(event("EPOCH_COMPLETED", 3, {"env_id": 0}))
        backend.close()
        assert backend.dropped == 3
        runs = ea.open(tmp_path)
        gaps = runs.table("gaps").sort("rows").collect().select("table_name", "rows").rows()
        assert gaps == [("events", 1), ("events", 2)], "one of each cause"
        raw = runs.table("raw_events").sort("line").collect().select("line", "reason", "text").rows()
        assert raw == [(5, "no_event", "null"), (6, "no_event", '{"no": "event"}')]
        assert runs.table("events").collect().height == 2
        assert [record.message for record in caplog.records if "no data today" in record.message] != []
        assert any(record.exc_info for record in caplog.records)

    def test_a_folder_that_cannot_be_made_is_logged_once_and_the_events_counted(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ) -> None:
        (tmp_path / "file").touch()
        backend = HubBackend(tmp_path / "file")
        backend.start()
        for number in range(5):
            backend.emit(event("EPOCH_COMPLETED", number))
        backend.close()
        assert (backend.dropped, backend.run_ids) == (5, ())
        assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 2

    def test_a_manifest_that_cannot_be_written_costs_no_event_and_is_tried_again(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(*_: Any, **__: Any) -> None:
            raise OSError(28, "No space left on device")

        backend = HubBackend(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(RunFolder, "change", full)
            backend.emit(STARTED)
        backend.emit(event("BATCH_EPOCH_COMPLETED", 1, {"batch_idx": 1}))
        backend.close()
        runs = ea.open(tmp_path)
        assert (backend.dropped, runs.table("events").collect().height) == (0, 2)
        [run] = runs.table("runs").collect().to_dicts()
        assert (run["rules_profile"], run["total_updates"]) == ("esper-2026-06", 2)

    def test_events_after_the_end_are_counted_and_a_new_start_makes_other_runs(self, tmp_path: Path) -> None:
        backend = HubBackend(tmp_path)
        backend.emit(STARTED)
        backend.close()
        backend.close()
        backend.emit(event("EPOCH_COMPLETED"))
        assert backend.dropped == 1
        backend.start()
        backend.emit(STARTED)
        backend.close()
        assert len(ea.open(tmp_path)) == 2

    def test_a_disk_that_hangs_costs_events_that_are_counted_as_gaps(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        goes_on = threading.Event()
        commit = ParquetSink.commit

        def hangs(self: ParquetSink, update: int) -> None:
            goes_on.wait(60)
            commit(self, update)

        monkeypatch.setattr(ParquetSink, "commit", hangs)
        monkeypatch.setattr(hub, "MOST_WAITING", 10)
        backend = HubBackend(tmp_path)
        sent = 100
        for batch in range(1, sent + 1):
            backend.emit(event("BATCH_EPOCH_COMPLETED", 1, {"batch_idx": batch}))
        goes_on.set()
        backend.close()
        runs = ea.open(tmp_path)
        stored = runs.table("events").collect().height
        lost = runs.table("gaps").collect()
        assert lost["reason"].unique().to_list() == ["queue_full"]
        assert stored < sent
        assert (
            stored + sum(last - first + 1 for first, last in lost.select("first_update", "last_update").rows()) == sent
        )

    def test_events_of_several_threads_all_arrive_each_with_its_line(self, tmp_path: Path) -> None:
        backend = HubBackend(tmp_path)
        backend.emit(STARTED)

        def send(env: int) -> None:
            for epoch in range(1, 201):
                backend.emit(event("EPOCH_COMPLETED", 1, {"env_id": env, "inner_epoch": epoch}))

        threads = [threading.Thread(target=send, args=(env,)) for env in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        backend.close()
        runs = ea.open(tmp_path)
        assert runs.table("epochs").collect().select("env", "epoch").n_unique() == 800
        assert sorted(runs.table("events").collect()["line"]) == [*range(1, 802)]

    def test_a_forked_process_sends_nothing(self, tmp_path: Path) -> None:
        backend = HubBackend(tmp_path)
        backend.emit(STARTED)
        pid = os.fork()
        if not pid:
            backend.emit(event("EPOCH_COMPLETED"))
            backend.close()
            os._exit(0)
        os.waitpid(pid, 0)
        backend.emit(event("EPOCH_COMPLETED"))
        backend.close()
        assert ea.open(tmp_path).table("events").collect().height == 2


KILLED = """
import os, signal, sys, time
from esper_recorder.esper import HubBackend, hub
backend = HubBackend(sys.argv[1])
backend.start()
backend.emit({"event_type": "TRAINING_STARTED", "event_id": "s", "timestamp": "2026-01-01T00:00:00+00:00", "data": {}})
for n in range(3):
    backend.emit({"event_type": "EPOCH_COMPLETED", "event_id": str(n), "data": {"env_id": n, "inner_epoch": 1}})
time.sleep(3)  # longer than events wait for the next batch
os.kill(os.getpid(), signal.SIGKILL)
"""


class TestRuns:
    def test_events_sent_a_second_before_a_kill_are_recorded(self, tmp_path: Path) -> None:
        done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], timeout=60, check=False)
        assert done.returncode == -9
        runs = ea.open(tmp_path)
        assert runs.list()["ended"].to_list() == ["killed"]
        assert runs.table("epochs").collect().height == 3

    def test_an_exception_that_ends_the_process_is_recorded_without_a_close(self, tmp_path: Path) -> None:
        code = KILLED[: KILLED.index("for n in")] + "raise ValueError('diverged')"
        done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], timeout=60, check=False, capture_output=True)
        assert done.returncode == 1
        [run] = ea.open(tmp_path).table("runs").collect().to_dicts()
        assert (run["ended"], run["error"]) == ("raised", "ValueError: diverged")

    def test_a_run_is_live_while_it_is_recorded_and_has_its_rows_after_a_flush(self, tmp_path: Path) -> None:
        backend = HubBackend(tmp_path)
        backend.emit(STARTED)
        assert backend.flush()
        runs = ea.open(tmp_path)
        assert runs.list()["ended"].to_list() == ["live"]
        assert runs.table("events").collect().height == 1
        backend.close()

    def test_each_group_and_each_training_is_a_run(self, tmp_path: Path) -> None:
        again = STARTED | {"event_id": "again"}
        sent = [STARTED, STARTED | {"group_id": "B", "event_id": "b"}, event("EPOCH_COMPLETED", group_id="B"), again]
        runs = recorded(sent, tmp_path)
        counts = runs.sql(
            "SELECT r.name, count(*) FROM runs r JOIN events e USING (run_id) GROUP BY 1 ORDER BY 1"
        ).rows()
        assert counts == [("esper", 1), ("esper-2", 1), ("esper-B", 2)]

    @pytest.mark.parametrize("last", ["TRAINING_COMPLETED", "BATCH_EPOCH_COMPLETED"])
    def test_a_completed_training_is_finished(self, last: str, tmp_path: Path) -> None:
        done = event(last, 2, {"batch_idx": 2, "episodes_completed": 8, "total_episodes": 8})
        runs = recorded([STARTED, done], tmp_path)
        assert runs.list()["ended"].to_list() == ["finished"]

    def test_a_training_that_ended_early_has_the_reason(self, tmp_path: Path) -> None:
        backend = HubBackend(tmp_path)
        backend.emit(STARTED)
        with pytest.raises(ZeroDivisionError):
            try:
                raise ZeroDivisionError("of the trainer")
            finally:
                backend.close()
        recorded([STARTED], tmp_path)
        runs = ea.open(tmp_path)
        assert runs.list()["ended"].to_list() == ["raised", "raised"]
        errors = runs.table("runs").collect()["error"].to_list()
        assert sorted(errors) == [
            "ZeroDivisionError: of the trainer",
            "the hub was closed before the training said that it was complete",
        ]

    def test_a_late_event_of_an_earlier_batch_belongs_to_that_batch(self, tmp_path: Path) -> None:
        sent = [
            STARTED,
            event("BATCH_EPOCH_COMPLETED", 1, {"batch_idx": 1}),
            event("EPOCH_COMPLETED", 2, {"env_id": 0}),
            event("PPO_UPDATE_COMPLETED", 3, {"batch": 1, "ratio_max": 1.5}),
        ]
        folder, _ = import_run(lines(*sent), tmp_path)
        runs = recorded(sent, tmp_path / "hub")
        for table in ("ppo_updates", "epochs", "events"):
            assert rows(runs, table) == rows(ea.open(folder), table)
        assert runs.table("ppo_updates").collect()["update"].to_list() == [1]


class TestEventsThatCannotBeStored:
    def test_cost_themselves_alone_and_texts_that_utf_8_cannot_encode_are_escaped(self, tmp_path: Path) -> None:
        class Broken:
            def __str__(self) -> str:
                raise RuntimeError("no text")

            __repr__ = __str__

        deep: Any = 1
        for _ in range(5000):
            deep = [deep]
        backend = HubBackend(tmp_path)
        epoch = {"event_type": "EPOCH_COMPLETED"}
        for sent in (
            {"event_type": "TRAINING_STARTED", "data": {"config": {"path": "caf\udce9"}}},
            {**epoch, "message": "caf\udce9", "data": {"env_id": 0, "caf\udce9": "\udce9"}},
            {**epoch, "data": {"env_id": 0, "x": Broken()}},
            {**epoch, "data": {"env_id": 0, "x": deep}},
            {"event_type": "caf\udce9"},
            {**epoch, "data": {"env_id": 0}},
        ):
            backend.emit(sent)
        backend.close()
        (run,) = ea.open(tmp_path)
        events = run.table("events").sort("line").collect()
        assert events["line"].to_list() == [1, 2, 5, 6]
        assert events["message"].to_list() == [None, "caf\\udce9", None, None]
        assert events["event_type"].to_list()[2] == "caf\\udce9"
        assert backend.dropped == 2
        assert sum(run.table("gaps").collect()["rows"]) == 2
