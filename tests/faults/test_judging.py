"""The arithmetic of the detection benchmark, on made-up runs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import pytest
from faults.judging import (
    Incident,
    JudgedRun,
    by_class,
    confusion,
    false_incidents,
    is_harmful,
    judge,
    rate,
    summary,
)


def manifest(returns: Sequence[float | None], *, onset: int = 11, crashed: str | None = None) -> dict[str, Any]:
    witness = [{"update": i, "true_return": value} for i, value in enumerate(returns, 1)]
    return {
        "name": "reward_sign",
        "cause": "reward_sign",
        "key": "k",
        "onset": onset,
        "crashed": crashed,
        "witness": witness,
    }


def run(name: str, *, cause: str = "a", causes: tuple[str, ...] | None = None, **changed: Any) -> JudgedRun:
    fields: dict[str, Any] = {"harmful": True, "warned": True, "critical": False, "latency": 1, "first_rule": "r"}
    return JudgedRun(name, cause, f"{name}-key", causes=causes, **(fields | changed))


CONTROL = manifest([20.0, 40.0, 80.0, 100.0, 110.0, 120.0, 120.0, 120.0])  # a quarter is 2 updates: 30 to 120
WARNING, CRITICAL, INFO = "warning", "critical", "info"


class TestBecauseOfTheFault:
    def test_an_incident_before_the_onset_is_not(self):
        found = judge(CONTROL, CONTROL, [Incident("kl_high", "", WARNING, 10)], [])
        assert (found.warned, found.latency, found.first_rule) == (False, None, None)

    def test_one_at_the_onset_is_with_latency_zero(self):
        found = judge(CONTROL, CONTROL, [Incident("kl_high", "", WARNING, 11)], [])
        assert (found.warned, found.critical, found.latency, found.first_rule) == (True, False, 0, "kl_high")

    def test_one_that_the_control_has_too_is_not_whenever_it_has_it(self):
        usual = [Incident("kl_high", "", INFO, 2)]
        found = judge(CONTROL, CONTROL, [Incident("kl_high", "", CRITICAL, 12)], usual)
        assert (found.warned, found.critical) == (False, False)

    def test_the_same_rule_for_another_key_is(self):
        usual = [Incident("layer_without_gradient", "a", WARNING, 2)]
        same, other = (Incident("layer_without_gradient", key, WARNING, 12) for key in ("a", "b"))
        assert not judge(CONTROL, CONTROL, [same], usual).warned
        assert judge(CONTROL, CONTROL, [same, other], usual).latency == 12 - 11

    def test_an_info_is_no_warning(self):
        assert not judge(CONTROL, CONTROL, [Incident("clip_fraction_high", "", INFO, 11)], []).warned

    def test_of_two_at_one_update_the_worse_is_first(self):
        both = [Incident("kl_high", "", WARNING, 13), Incident("nonfinite_loss", "", CRITICAL, 13)]
        found = judge(CONTROL, CONTROL, both, [])
        assert (found.first_rule, found.latency, found.critical) == ("nonfinite_loss", 2, True)


class TestHarm:
    # The control gains 120 - 30 = 90; half of it is 45, so an end at 75 or below is harmful.
    @pytest.mark.parametrize(("end", "harmful"), [(75.0, True), (75.5, False), (130.0, False)])
    def test_half_of_the_controls_gain_must_be_lost(self, end: float, harmful: bool):
        assert is_harmful(manifest([20.0] * 6 + [end, end]), CONTROL) is harmful

    def test_a_crash_is_harmful_however_good_the_return_was(self):
        assert is_harmful(manifest([500.0] * 8, crashed="ValueError: nan"), CONTROL) is True

    # From -50: a tenth is 5, so a control that ends at -45 gained too little, one that ends at -44 enough.
    @pytest.mark.parametrize(("end", "harmful"), [(-50.0, None), (-45.0, None), (-44.0, True)])
    def test_nothing_can_be_said_if_the_control_gained_too_little(self, end: float, harmful: bool | None):
        assert is_harmful(manifest([-90.0] * 8), manifest([-50.0] * 6 + [end] * 2)) is harmful

    def test_updates_in_which_no_episode_ended_do_not_count(self):
        # The last two updates have no episode: the last known return, 40, counts.
        assert is_harmful(manifest([20.0, None, 20.0, 30.0, 30.0, 40.0, None, None]), CONTROL) is True

    def test_a_run_without_any_episode_earned_nothing(self):
        assert is_harmful(manifest([None] * 8), CONTROL) is True


class TestRates:
    def test_a_rate_is_over_runs(self):
        # 2 of 4 runs, though both are of one class.
        runs = [run("x"), run("x"), run("y", warned=False), run("y", warned=False)]
        found = rate(runs, lambda each: each.warned)
        assert (found.value, found.n) == (0.5, 4)

    def test_its_interval_is_of_classes_as_their_runs_are_alike(self):
        # Resampling 2 classes gives 0, 1/2 or 1, with probabilities 1/4, 1/2, 1/4.
        runs = [run("x")] * 50 + [run("y", warned=False)] * 50
        found = rate(runs, lambda each: each.warned)
        assert (found.low, found.high) == (0.0, 1.0)

    def test_without_runs_it_is_not_a_number(self):
        found = rate([], lambda each: each.warned)
        assert math.isnan(found.value) and found.n == 0

    def test_false_incidents_are_per_thousand_updates_of_all_runs(self):
        # 1 incident in 24 + 96 + 80 = 200 updates: 5 in 1,000.
        found = false_incidents([(0, 24), (1, 96), (0, 80)])
        assert found.value == pytest.approx(5.0) and found.low == 0.0 and found.high > 5.0

    def test_no_updates_are_no_incidents(self):
        assert false_incidents([(0, 0)]).value == 0.0

    def test_the_same_runs_have_the_same_interval(self):
        runs = [run(str(i), warned=i % 3 == 0) for i in range(20)]
        assert rate(runs, lambda each: each.warned) == rate(runs, lambda each: each.warned)


class TestResults:
    RUNS = (
        run("x", cause="a", causes=("a", "b"), latency=0, critical=True),
        run("x", cause="a", causes=("b", "a"), latency=3),
        run("y", cause="c", causes=(), warned=False, latency=None, first_rule=None),
        run("z", cause="b", causes=("b",), harmful=None),
    )

    def value(self, measure: str, of: str) -> Any:
        rows = summary(self.RUNS, {"critical": [(1, 1000)]})
        (row,) = [row for row in rows if (row["measure"], row["of"]) == (measure, of)]
        return row["value"], row["n"]

    def test_harmful_and_harmless_runs_are_apart(self):
        assert self.value("warning or worse", "harmful") == (pytest.approx(2 / 3, abs=1e-4), 3)
        assert self.value("warning or worse", "harmless") == (1.0, 1)
        assert self.value("warning or worse", "all") == (0.75, 4)
        assert self.value("critical", "harmful") == (pytest.approx(1 / 3, abs=1e-4), 3)

    def test_the_true_cause_is_first_or_among_the_first_two(self):
        assert self.value("true cause first", "harmful") == (pytest.approx(1 / 3, abs=1e-4), 3)
        assert self.value("true cause among the first two", "harmful") == (pytest.approx(2 / 3, abs=1e-4), 3)

    def test_latency_is_of_the_runs_that_were_warned_of(self):
        assert self.value("median latency", "harmful") == (1.5, 2)  # of 0 and 3

    def test_false_incidents_have_a_row_for_each_severity(self):
        assert self.value("critical incidents per 1,000 updates", "healthy") == (1.0, 1)

    def test_without_a_diagnosis_there_are_no_rows_of_causes(self):
        assert not [row for row in summary([run("x")], {}) if "cause" in row["measure"]]

    def test_a_class_has_one_row(self):
        first = by_class(self.RUNS)[0]
        assert (first["fault"], first["runs"], first["warned"], first["critical"]) == ("x", 2, 2, 1)
        assert (first["latency"], first["first rules"]) == (1.5, ["r 2"])

    def test_the_confusion_counts_what_was_named_first(self):
        assert [tuple(row.values()) for row in confusion(self.RUNS)] == [
            *(("a", "a", 1), ("a", "b", 1), ("b", "b", 1), ("c", "nothing", 1))
        ]

    def test_without_a_diagnosis_it_counts_the_first_rules(self):
        runs = [run("x", first_rule="kl_high"), run("x", first_rule=None)]
        assert [tuple(row.values()) for row in confusion(runs)] == [("a", "kl_high", 1), ("a", "nothing", 1)]
