"""The levels: how an alarm raises them, for how long, and what is kept of the time before it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

import esper_analytics as ea
from esper_recorder import MemorySink, Recorder
from esper_recorder.contract.rules.evaluator import Firing
from esper_recorder.contract.rules.model import Severity
from esper_recorder.escalation import COOLDOWN, LEAD_UP_UPDATES, Escalation
from esper_recorder.levels import COLLECTED, Level
from esper_recorder.storage.update_content import columns_of
from tests.recorder.storage.records import minibatch_record

RULES = """
[rules.far_off]
severity = "critical"
column = "ratio_max"
above = 2.0

[rules.high]
severity = "warning"
column = "ratio_max"
above = 1.5

[rules.first_far_off]
severity = "info"
table = "minibatches"
column = "ratio_max"
take = "first"
above = 2.0
"""
"""e^1 = 2.718 is far off, e^0.5 = 1.649 is high."""


@pytest.fixture
def rules(tmp_path: Path) -> Path:
    file = tmp_path / "rules.toml"
    file.write_text(RULES)
    return file


def record(rec: Recorder, log_ratios: Sequence[float]) -> None:
    """An update each, of two minibatches of three transitions; each is stored before the next one's first call.

    The next update begins where `end_update` closes the one before, so an alarm changes the level of the one after.
    """
    for log_ratio in log_ratios:
        for minibatch in (0.0, log_ratio):
            rec.minibatch(log_ratio=torch.tensor([0.0, 0.0, minibatch]), clip_range=0.2, epoch=1)
        rec.end_update()
        assert rec.flush()


def levels(sink: MemorySink) -> list[str]:
    return [row["level"] for row in sink.rows("ppo_updates")]


def of_minibatches(sink: MemorySink) -> Mapping[int, int]:
    return Counter(row["update"] for row in sink.rows("minibatches"))


def test_every_level_says_what_it_collects_and_each_collects_what_the_one_below_does():
    assert list(COLLECTED) == list(Level)
    table = [(c.minibatch_rows, c.each_minibatch, c.each_step) for c in COLLECTED.values()]
    assert table == [(False, False, False), (False, False, False), (True, False, False), (True, True, True)]


class TestAnAlarm:
    def test_raises_the_level_for_some_updates_and_then_it_falls_again(self, tmp_path: Path, rules: Path):
        sink = MemorySink()
        with Recorder(tmp_path / "runs", sink=sink, rules=rules, escalate_updates=2) as rec:
            record(rec, [0.0, 1.0, 0.0, 0.0, 0.0, 0.0])
            assert rec.level is Level.NORMAL
        # Update 3 had begun when the alarm of update 2 was stored.
        assert levels(sink) == ["normal", "normal", "normal", "debug", "debug", "normal"]
        histograms = Counter(row["update"] for row in sink.rows("ratio_histograms"))
        assert histograms == {1: 1, 2: 1, 3: 1, 4: 2, 5: 2, 6: 1}, "one of each minibatch at debug"
        assert of_minibatches(sink) == dict.fromkeys(range(1, 7), 2)

    def test_milder_than_asked_for_changes_nothing(self, tmp_path: Path, rules: Path):
        sink = MemorySink()
        with Recorder(tmp_path / "runs", sink=sink, rules=rules) as rec:
            record(rec, [0.5, 0.5, 0.0, 0.0])
        assert [row["rule"] for row in sink.rows("alarms")] == ["high", "high"]
        assert set(levels(sink)) == {"normal"}

    def test_of_the_severity_asked_for_does(self, tmp_path: Path, rules: Path):
        sink = MemorySink()
        with Recorder(tmp_path / "runs", sink=sink, rules=rules, escalate="warning", escalate_updates=1) as rec:
            record(rec, [0.5, 0.0, 0.0, 0.0])
        assert levels(sink) == ["normal", "normal", "debug", "normal"]

    def test_does_nothing_if_escalation_is_disabled(self, tmp_path: Path, rules: Path):
        sink = MemorySink()
        with Recorder(tmp_path / "runs", sink=sink, rules=rules, escalate=None, level="minimal") as rec:
            record(rec, [1.0, 1.0, 1.0, 0.0])
        assert len(sink.rows("alarms")) == 2 * 3
        assert set(levels(sink)) == {"minimal"} and sink.rows("minibatches") == []

    def test_at_every_update_escalates_once(self, tmp_path: Path, rules: Path):
        sink = MemorySink()
        with Recorder(tmp_path / "runs", sink=sink, rules=rules, escalate_updates=1) as rec:
            record(rec, [1.0] * 30)
        assert Counter(levels(sink)) == {"normal": 29, "debug": 1}


def fired(update: int, rule: str = "r", key: str = "", severity: str = "critical") -> list[Firing]:
    return [Firing(update, rule, key, severity, 1.0, 0.0, None, None)]


class TestOnsets:
    def test_a_rule_that_flickers_escalates_once_and_again_after_it_did_not_fire_for_long(self):
        escalation = Escalation(Level.NORMAL, Severity.CRITICAL, 2)
        assert COOLDOWN * 2 == 20
        onsets = [update for update in (1, 2, 4, 10, 30, 31, 52, 72) if escalation.note_firings(fired(update))]
        # No firing for 29 - 10 = 19 updates at 30 (no onset), for 20 at 52 (onset), for 19 at 72 (no onset).
        assert onsets == [1, 52]

    def test_each_rule_and_each_key_is_counted_separately(self):
        escalation = Escalation(Level.NORMAL, Severity.WARNING, 2)
        assert escalation.note_firings(fired(1, "r", "a"))
        assert escalation.note_firings(fired(2, "r", "b"))
        assert escalation.note_firings(fired(3, "s", "a", "warning"))
        assert not escalation.note_firings(fired(4, "s", "a", "warning"))
        assert not escalation.note_firings(fired(5, "t", "a", "info"))

    def test_a_new_onset_sets_the_updates_left_and_does_not_add_to_them(self):
        escalation = Escalation(Level.NORMAL, Severity.CRITICAL, 3)
        escalation.raise_level()
        assert [escalation.next_level().name for _ in range(2)] == ["DEBUG"] * 2
        escalation.raise_level()
        escalation.raise_level()
        assert [escalation.next_level().name for _ in range(5)] == ["DEBUG"] * 3 + ["NORMAL"] * 2

    def test_a_run_at_debug_stays_there_and_one_that_is_off_stays_off(self):
        for base in (Level.DEBUG, Level.OFF):
            escalation = Escalation(base, Severity.CRITICAL, 3)
            assert escalation.next_level() is base


class TestTheTimeBefore:
    def test_at_minimal_the_minibatches_before_an_alarm_are_stored_with_it(self, tmp_path: Path, rules: Path):
        sink = MemorySink()
        with Recorder(tmp_path / "runs", sink=sink, rules=rules, level="minimal", escalate_updates=2) as rec:
            record(rec, [0.0] * 7)
            assert sink.rows("minibatches") == []
            record(rec, [1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
        # The alarm is of update 8; update 9 had begun when it was stored; 10 and 11 were recorded at debug.
        assert levels(sink) == ["minimal"] * 9 + ["debug"] * 2 + ["minimal"] * 2
        assert LEAD_UP_UPDATES == 5
        assert of_minibatches(sink) == dict.fromkeys((4, 5, 6, 7, 8, 9, 10, 11), 2)
        rows = sink.rows("minibatches")
        assert [(row["update"], row["minibatch"]) for row in rows] == [(u, m) for u in range(4, 12) for m in (1, 2)]
        assert {row["update"] for row in rows if row["backfilled"]} == {4, 5, 6, 7, 8}
        assert {row["backfilled"] for row in rows if row["update"] > 8} == {None}
        assert sink.rows("gaps") == []

    def test_backfilled_rows_are_the_same_as_rows_stored_at_once(self, tmp_path: Path, rules: Path):
        recorded = {}
        for level in ("minimal", "normal"):
            sink = MemorySink()
            with Recorder(tmp_path / "runs", sink=sink, rules=rules, level=level) as rec:
                record(rec, [0.1, 0.2, 1.0])
            varying = {"run_id", "time", "elapsed_s", "backfilled"}
            recorded[level] = [{k: v for k, v in row.items() if k not in varying} for row in sink.rows("minibatches")]
        assert len(recorded["normal"]) == 6
        assert recorded["minimal"] == recorded["normal"]

    def test_a_second_alarm_stores_nothing_twice(self, tmp_path: Path, rules: Path):
        sink = MemorySink()
        with Recorder(
            tmp_path / "runs", sink=sink, rules=rules, level="minimal", escalate="info", escalate_updates=1
        ) as rec:
            record(rec, [0.5, 1.0, 0.0, 0.0, 1.0] + [0.0] * 12 + [0.5, 0.0])
        counted = of_minibatches(sink)
        assert set(counted.values()) == {2}
        assert set(counted) >= {1, 2, 3, 14, 15, 16, 17, 18}

    def test_updates_that_wait_behind_the_alarm_are_stored_too(self, tmp_path: Path, rules: Path):
        class Slow(MemorySink):
            """Holds the writer's thread up until the trainer is some updates ahead."""

            ahead = threading.Event()

            def commit(self, update: int) -> None:
                if update == 1:
                    assert self.ahead.wait(60)
                super().commit(update)

        sink = Slow()
        with Recorder(tmp_path / "runs", sink=sink, rules=rules, level="minimal", escalate_updates=1) as rec:
            for log_ratio in (0.0, 1.0, 0.0, 0.0):
                rec.minibatch(log_ratio=torch.tensor([0.0, log_ratio]))
                rec.end_update()
            sink.ahead.set()
            assert rec.flush()
            record(rec, [0.0, 0.0, 0.0])
        # Updates 3 and 4 waited, and 5 had begun.
        assert levels(sink) == ["minimal"] * 5 + ["debug", "minimal"]
        assert of_minibatches(sink) == {1: 1, 2: 1, 3: 1, 4: 1, 5: 2, 6: 2}

    def test_the_number_of_rows_kept_is_bounded(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr("esper_recorder.escalation.LEAD_UP_ROWS", 5)
        escalation = Escalation(Level.MINIMAL, Severity.CRITICAL, 1)
        for update in range(1, 5):
            stored = escalation.stored(minibatch_record(update, [1.0, 1.5]), Level.MINIMAL)
            assert "minibatches" not in dict(columns_of(stored))
        tables = [dict(columns_of(record)) for record in escalation.raise_level()]
        assert [set(of_update) for of_update in tables] == [{"minibatches"}] * 2
        assert [of_update["minibatches"]["update"] for of_update in tables] == [[3, 3], [4, 4]]
        assert all(of_update["minibatches"]["backfilled"] == [True, True] for of_update in tables)
        assert escalation.raise_level() == []

    def test_replaying_the_runs_own_rules_gives_its_own_alarms(self, tmp_path: Path, rules: Path):
        # `first_far_off` looks at minibatches. At minimal it sees those of debug updates only, live and replayed.
        with Recorder(
            tmp_path / "runs", rules=rules, level="minimal", escalate_updates=2, total_updates=20, name="m"
        ) as rec:
            for log_ratio in (0.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0):
                for _ in range(2):
                    rec.minibatch(log_ratio=torch.tensor([0.0, log_ratio]))
                rec.end_update()
                rec.flush()
        runs = ea.open(tmp_path / "runs")
        live = runs.table("alarms").select("update", "rule").collect().rows()
        assert ("first_far_off" in {rule for _, rule in live}) and (2, "first_far_off") not in live
        replayed = ea.replay(runs, ea.load_rules(rules)).firings.select("update", "rule").rows()
        assert sorted(replayed) == sorted(live)
        stored = runs.sql("SELECT update, count(*) AS n FROM minibatches WHERE backfilled GROUP BY 1 ORDER BY 1").rows()
        assert stored == [(1, 2), (2, 2)]

    def test_a_resumed_run_knows_what_fired_before(self, tmp_path: Path, rules: Path):
        root = tmp_path / "runs"
        with Recorder(root, rules=rules) as rec:
            record(rec, [1.0])
        with Recorder(root, rules=rules, resume=rec.run_id) as again:
            record(again, [1.0, 1.0, 1.0])
        found = ea.open(root).sql("SELECT update, level FROM ppo_updates ORDER BY update").rows()
        assert found == [(1, "normal"), (2, "normal"), (3, "normal"), (4, "normal")]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"escalate": "loud"}, "escalate is 'loud'; give the severity that raises the level .info, warning, critical"),
        ({"escalate": 3}, "escalate is 3"),
        ({"escalate_updates": 0}, "escalate_updates is 0; give a whole number of PPO updates from 1"),
        ({"escalate_updates": True}, "escalate_updates is True"),
        ({"escalate_updates": 2.5}, "escalate_updates is 2.5"),
    ],
)
def test_invalid_options_are_refused_with_a_message(tmp_path: Path, options: dict[str, Any], words: str):
    with pytest.raises(ValueError, match=words):
        Recorder(tmp_path, **options)
    assert list(tmp_path.iterdir()) == []
