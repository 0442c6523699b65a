"""Rows of a vectorised trainer's environments, and rows that any trainer records by itself."""

from __future__ import annotations

import dataclasses
import inspect
import logging
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esper_recorder import MemorySink, Recorder
from esper_recorder.arguments import FILLED
from esper_recorder.capture.user_rows import MOST_ROWS, UserRows
from esper_recorder.contract.tables.esper import Decision, EpochRow, SlotEvent
from esper_recorder.esper import EnvironmentEmitter, Intervals, RowEmitter
from esper_recorder.storage.manifest import read_manifest


class Run:
    """A recorder into memory, and what it recorded."""

    def __init__(self, root: Path, **options: Any) -> None:
        self.sink = MemorySink()
        self.recorder = Recorder(root, sink=self.sink, **{"rules": None, **options})
        self.emitter = EnvironmentEmitter(self.recorder, slots=("r0c0", "r0c1", "r1c0"))

    def update(self) -> None:
        self.recorder.minibatch(log_ratio=torch.zeros(4), clip_range=0.2)
        self.recorder.end_update()

    def rows(self, table: str) -> list[dict[str, Any]]:
        self.recorder.close()
        return self.sink.rows(table)

    def measured(self, table: str) -> list[dict[str, Any]]:
        """The measurements of each row, without its identity."""
        own = ("run_id", "attempt", "rank", "update", "time", "elapsed_s", "line")
        return [{k: v for k, v in row.items() if v is not None and k not in own} for row in self.rows(table)]

    def gaps(self) -> list[tuple[str, str, int | None]]:
        return [(gap["table_name"], gap["reason"], gap["rows"]) for gap in self.rows("gaps")]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return Run(tmp_path)


class TestUserRows:
    def test_a_row_belongs_to_the_update_being_collected_and_is_stored_with_it(self, run: Run) -> None:
        run.recorder.row("epochs", env=0, epoch=1, val_accuracy=50.0)
        run.update()
        run.recorder.row("epochs", env=0, epoch=2, val_accuracy=np.float32(0.5), val_loss=math.nan)
        run.update()
        run.recorder.row("slots", env=0, slot="r0c0", event="germinated")  # no update follows
        rows = run.rows("epochs")
        assert [(row["update"], row["epoch"], row["val_accuracy"]) for row in rows] == [(1, 1, 50.0), (2, 2, 0.5)]
        assert math.isnan(rows[1]["val_loss"]) and rows[0]["val_loss"] is None
        assert rows[0]["run_id"] == run.recorder.run_id and rows[0]["elapsed_s"] >= 0
        assert [(row["update"], row["line"]) for row in run.rows("slots")] == [(3, 1)]
        assert run.sink.updates == [1, 2, 3]
        assert {table for table, count in run.sink.tables().items() if count} - {"epochs", "slots"} <= FILLED
        assert run.gaps() == []

    @pytest.mark.parametrize(
        ("table", "columns", "why"),
        [
            ("epoch", {}, "Did you mean epochs"),
            ("ppo_updates", {"n": 1}, "is filled by the recorder itself"),
            ("epochs", {"env": 0, "epoch": 1, "val_acuracy": 1.0}, "Did you mean val_accuracy"),
            ("epochs", {"env": 0, "epoch": 1, "run_id": "other"}, "has no column run_id"),
            ("epochs", {"env": 0, "epoch": None}, "a row of epochs needs epoch"),
            ("epochs", {"env": 0, "epoch": "first"}, "a value of epochs.epoch is not"),
            ("epochs", {"env": 0, "epoch": 1, "val_loss": torch.tensor(1.0)}, "is a tensor; give a number"),
        ],
    )
    def test_a_row_outside_the_contract_is_a_gap_with_the_reason(
        self, table: str, columns: dict[str, Any], why: str, run: Run
    ) -> None:
        run.recorder.row(table, **columns)
        run.recorder.row("epochs", env=1, epoch=1)
        run.update()
        [gap] = run.rows("gaps")
        assert (gap["table_name"], gap["reason"], gap["rows"]) == (table, "bad_call", 1)
        assert why in gap["detail"]
        assert [row["env"] for row in run.rows("epochs")] == [1]

    def test_a_wrong_call_does_not_raise(self, run: Run) -> None:
        run.recorder.row()  # type: ignore[call-arg]
        assert [reason for _, reason, _ in run.gaps()] == ["bad_call"]

    def test_a_trainer_that_never_ends_an_update_does_not_fill_the_memory(self) -> None:
        buffer = UserRows()
        buffer._count = MOST_ROWS
        with pytest.raises(ValueError, match="end it with end_update"):
            buffer.add("epochs", {"env": 0, "epoch": 1}, {})

    def test_nothing_is_emitted_without_a_recording(self, tmp_path: Path) -> None:
        emitter = EnvironmentEmitter(Recorder(tmp_path, level="off"))
        emitter.of(env=0).germinated("r0c0")
        emitter.collect("epochs", lambda: pytest.fail("collected for nothing"))


class TestEnvironments:
    def test_slot_events_are_recorded_with_their_environment(self, run: Run) -> None:
        one = run.emitter.of(env=1)
        one.germinated("r0c1", seed="s1", blueprint="conv_light", params=72)
        one.stage_changed("r0c1", "GERMINATED", "TRAINING", alpha=0.0)
        one.gate_evaluated("r0c1", "G2", False, checks_failed=["gain"], to_stage="BLENDING")
        run.emitter.of(env=0).pruned("r0c0", reason="", auto_pruned=True)
        one.fossilized("r0c1", counterfactual=1.5)
        run.update()
        assert run.measured("slots") == [
            {"env": 1, "slot": "r0c1", "event": "germinated", "seed": "s1", "blueprint": "conv_light", "params": 72},
            {
                "env": 1,
                "slot": "r0c1",
                "event": "stage_changed",
                "from_stage": "GERMINATED",
                "to_stage": "TRAINING",
                "alpha": 0.0,
            },
            {
                "env": 1,
                "slot": "r0c1",
                "event": "gate_evaluated",
                "to_stage": "BLENDING",
                "gate": "G2",
                "passed": False,
                "checks_failed": ["gain"],
            },
            {"env": 0, "slot": "r0c0", "event": "pruned", "reason": "", "auto_pruned": True},
            {"env": 1, "slot": "r0c1", "event": "fossilized", "counterfactual": 1.5},
        ]
        assert [row["line"] for row in run.rows("slots")] == [1, 2, 3, 4, 5]
        assert run.gaps() == []

    def test_an_epoch_is_recorded_with_the_modules_in_its_slots(self, run: Run) -> None:
        in_slots: dict[str, dict[str, Any]] = {
            "r1c0": {"stage": "BLENDING", "alpha": 0.5},
            "r0c0": {"stage": "TRAINING"},
        }
        run.emitter.of(env=2).epoch_completed(3, episode=1, val_accuracy=61.5, in_slots=in_slots)
        run.update()
        assert run.measured("epochs") == [{"env": 2, "epoch": 3, "episode": 1, "val_accuracy": 61.5}]
        assert run.measured("slot_epochs") == [
            {"env": 2, "epoch": 3, "slot": "r0c0", "stage": "TRAINING"},
            {"env": 2, "epoch": 3, "slot": "r1c0", "stage": "BLENDING", "alpha": 0.5},
        ]

    def test_a_matrix_is_recorded_by_configuration(self, run: Run) -> None:
        matrix: dict[tuple[str, ...], float | None] = {(): 50.0, ("r1c0",): 55.0, ("r1c0", "r0c0"): None}
        run.emitter.of(env=0).counterfactuals(matrix, strategy="full", compute_ms=2.0)
        run.update()
        whole = {"env": 0, "slots": ["r0c0", "r0c1", "r1c0"], "strategy": "full", "compute_ms": 2.0}
        assert run.measured("counterfactuals") == [
            {**whole, "configuration": 1, "active": [], "accuracy": 50.0},
            {**whole, "configuration": 2, "active": ["r1c0"], "accuracy": 55.0},
            {**whole, "configuration": 3, "active": ["r0c0", "r1c0"]},
        ]

    def test_a_reward_is_recorded_with_its_components(self, run: Run) -> None:
        run.emitter.of(env=3).rewarded(7, {"total_reward": 0.5, "probation_warning": -0.1, "action_name": "WAIT"})
        run.update()
        [row] = run.measured("rewards")
        assert row == {"env": 3, "step": 7, "total_reward": 0.5, "holding_warning": -0.1, "action": "WAIT"}

    def test_an_unknown_slot_is_a_gap_that_lists_the_slots(self, run: Run) -> None:
        run.emitter.of(env=0).germinated("r9c9")
        run.emitter.of(env=0).germinated("r0c0")
        run.update()
        [gap] = run.rows("gaps")
        assert "slot 'r9c9' is not known. The slots are: r0c0, r0c1, r1c0." in gap["detail"]
        assert (gap["table_name"], gap["rows"]) == ("slots", 1)
        assert len(run.rows("slots")) == 1

    def test_an_unknown_column_is_a_gap_that_suggests_the_closest(self, run: Run) -> None:
        run.emitter.of(env=0).germinated("r0c0", blueprnt="conv")
        assert [gap["detail"] for gap in run.rows("gaps")] == [
            "table slots has no column blueprnt. Did you mean blueprint?"
        ]


class TestContext:
    def test_the_context_is_added_to_a_new_row(self, run: Run) -> None:
        row = Decision(step=1, action="WAIT")
        RowEmitter(run.recorder).of(env=2, device="cuda:1").emit(row)
        run.update()
        assert (row.env, row.device) == (None, None)
        assert run.measured("decisions") == [{"env": 2, "step": 1, "action": "WAIT", "device": "cuda:1"}]
        with pytest.raises(dataclasses.FrozenInstanceError):
            row.env = 3  # type: ignore[misc]

    def test_a_row_keeps_its_own_context_and_a_table_without_the_column_gets_none(self, run: Run) -> None:
        emitter = RowEmitter(run.recorder).of(env=2, device="cpu")
        emitter.emit(EpochRow(env=5, epoch=1))
        assert emitter.of(env=4).device == "cpu"
        run.update()
        assert run.measured("epochs") == [{"env": 5, "epoch": 1}]

    def test_anything_but_a_row_is_a_gap(self, run: Run) -> None:
        RowEmitter(run.recorder).emit({"env": 1})  # type: ignore[arg-type]
        [gap] = run.rows("gaps")
        assert gap["detail"] == "emit() takes a row of a table, and was given a dict"


def test_no_method_of_an_emitter_returns_anything() -> None:
    names = [name for name in vars(EnvironmentEmitter) if not name.startswith("_") and name != "slots"]
    assert len(names) >= 8
    for name in ["emit", "collect", *names]:
        assert inspect.signature(getattr(EnvironmentEmitter, name)).return_annotation == "None"


class TestIntervals:
    def test_the_first_and_every_nth_row_of_each_environment_is_recorded(self, run: Run) -> None:
        emitter = dataclasses.replace(run.emitter, intervals=Intervals(epochs=3))
        for epoch in range(1, 8):
            for env in (0, 1):
                emitter.of(env=env).epoch_completed(epoch, in_slots={"r0c0": {"alpha": 1.0}})
            emitter.of(env=0).germinated("r0c0")
        run.update()
        assert [(row["env"], row["epoch"]) for row in run.rows("epochs")] == [
            *((0, 1), (1, 1), (0, 4), (1, 4), (0, 7), (1, 7))
        ]
        assert len(run.rows("slot_epochs")) == 6
        assert len(run.rows("slots")) == 7
        assert run.gaps() == []

    @pytest.mark.parametrize("every", [0, -1, 1.5, True, None])
    def test_intervals_are_integers_from_1(self, every: Any) -> None:
        with pytest.raises(ValueError, match=r"decisions is .* a whole number from 1"):
            Intervals(decisions=every)


class TestFailedCollection:
    def test_a_failure_is_logged_with_its_traceback_and_counted(
        self, run: Run, caplog: pytest.LogCaptureFixture
    ) -> None:
        def fails() -> EpochRow:
            raise KeyError("val_accuracy")

        emitter = run.emitter.of(env=1)
        with caplog.at_level(logging.WARNING, "esper_recorder"):
            emitter.collect("epochs", fails)
            emitter.collect("epochs", fails)
            emitter.collect("epochs", lambda: EpochRow(epoch=2))
        run.update()
        assert run.measured("epochs") == [{"env": 1, "epoch": 2}]
        [gap] = run.rows("gaps")
        assert (gap["table_name"], gap["reason"], gap["rows"]) == ("epochs", "reduce_failed", 2)
        [record] = [record for record in caplog.records if record.exc_info]
        assert record.exc_info and record.exc_info[2] is not None and "environment 1" in record.message

    def test_a_row_that_is_not_due_is_not_collected(self, run: Run) -> None:
        made: list[int] = []

        def make() -> EpochRow:
            made.append(len(made) + 1)
            return EpochRow(epoch=made[-1])

        emitter = dataclasses.replace(run.emitter.of(env=0), intervals=Intervals(epochs=2))
        for _ in range(4):
            emitter.collect("epochs", make)
        assert made == [1, 2]


def test_the_recorder_names_the_group_of_an_ab_test(tmp_path: Path) -> None:
    with Recorder(tmp_path, trainer={"name": "esper", "group_id": "B"}, rules=None) as rec:
        assert rec.path is not None
    assert read_manifest(rec.path).trainer == {"name": "esper", "group_id": "B"}
    with pytest.raises(ValueError, match="trainer is a mapping without a name"):
        Recorder(tmp_path, trainer={"group_id": "B"})


def test_a_payload_is_the_row_of_its_table_and_a_missing_metric_is_none() -> None:
    row = SlotEvent(env=0, slot="r0c0", event="germinated")
    assert row.alpha is None
    with pytest.raises(TypeError):
        SlotEvent(env=0, slot="r0c0", alhpa=1.0)  # type: ignore[call-arg]
