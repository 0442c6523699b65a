"""Firings folded into incidents, and the difference of two sets of firings."""

from __future__ import annotations

import math
from typing import Any

import polars as pl

from esper_analytics.detection.diff import DIFF_COLUMNS, diff_firings
from esper_analytics.detection.incidents import INCIDENT_COLUMNS, incidents
from esper_recorder.contract.rules.ruleset import RuleSet
from tests.analytics.detection.evaluation import evaluate

RULE = '[phases]\nstart = 0.0\nend = 0.5\n[rules.r]\nseverity = "warning"\ncolumn = "ratio_max"\n'


def fold(rule: str, values: list[Any], progress: list[float] | None = None) -> list[dict[str, Any]]:
    frame = pl.DataFrame(
        {
            "run_id": ["a"] * len(values),
            "update": range(1, len(values) + 1),
            "ratio_max": pl.Series(values, dtype=pl.Float64),
            "progress": pl.Series(progress or [None] * len(values), dtype=pl.Float64),
        }
    )
    folded = incidents(evaluate(RuleSet.parse(RULE + rule), {"ppo_updates": frame.lazy()}))
    assert folded.schema == pl.Schema(INCIDENT_COLUMNS)
    return folded.rows(named=True)


def spans(rule: str, values: list[Any]) -> list[tuple[int, int, int, bool]]:
    return [(i["onset_update"], i["last_update"], i["updates"], i["recovered"]) for i in fold(rule, values)]


def test_firings_with_at_most_three_evaluations_between_them_are_one_incident() -> None:
    assert spans("above = 5", [6, 1, 1, 1, 6, 1]) == [(1, 5, 2, True)]
    assert spans("above = 5", [6, 1, 1, 1, 1, 6, 1]) == [(1, 1, 1, True), (6, 6, 1, True)]


def test_a_run_that_ends_firing_or_without_data_has_not_recovered() -> None:
    assert spans("above = 5", [1, 6, 6]) == [(2, 3, 2, False)]
    assert spans("above = 5", [1, 6, None, math.nan]) == [(2, 2, 1, False)]


def test_an_incident_that_another_rule_inhibits_has_not_recovered() -> None:
    worse = 'above = 2\ninhibited_by = "worse"\n[rules.worse]\nseverity = "critical"\ncolumn = "ratio_max"\nabove = 5'

    def listed(values: list[Any]) -> list[tuple[str, int, int, bool]]:
        return [(i["rule"], i["onset_update"], i["last_update"], i["recovered"]) for i in fold(worse, values)]

    assert listed([1, 3, 3, 9, 9, 1, 1]) == [("r", 2, 3, False), ("worse", 4, 5, True)]
    assert listed([1, 3, 1, 9, 9, 1, 1]) == [
        ("r", 2, 2, False),
        ("worse", 4, 5, True),
    ]  # one evaluation does not end it
    assert listed([1, 3, 1, 1, 1, 1, 9, 1]) == [("r", 2, 2, True), ("worse", 7, 7, True)]  # it had recovered by then
    assert listed([3, 9, 9, 9, 9, 9, 3, 1]) == [("r", 1, 1, False), ("worse", 2, 6, True), ("r", 7, 7, True)]


def test_updates_without_data_do_not_end_an_incident() -> None:
    assert spans("above = 5", [6, *[None] * 50, 6, 1]) == [(1, 52, 2, True)]


def test_a_long_run_merges_firings_within_two_percent_of_its_evaluations() -> None:
    values = [6.0 if update % 20 == 0 else 1.0 for update in range(1, 1001)]  # 19 between two firings, 2 % are 20
    assert spans("above = 5", values) == [(20, 1000, 50, False)]


def test_a_run_that_fires_at_998_updates_reads_as_three_lines() -> None:
    # 400 fire, 100 do not, of 500 every tenth does not, 48 do not, 148 fire; up to 2 % of 1,196, 23, are merged
    values = [6.0] * 400 + [1.0] * 100 + [1.0 if n % 10 == 9 else 6.0 for n in range(500)] + [1.0] * 48 + [6.0] * 148
    assert sum(value > 5 for value in values) == 998
    assert spans("above = 5", values) == [(1, 400, 400, True), (501, 999, 450, True), (1049, 1196, 148, False)]


def test_the_peak_is_the_furthest_beyond_and_the_earliest_of_equals() -> None:
    (one,) = fold("above = 5", [6, 9, 9, 7, 1], [0.1, 0.2, 0.6, 0.7, 0.8])
    assert (one["peak_update"], one["peak_value"], one["threshold"], one["phase"]) == (2, 9.0, 5.0, "start")
    (one,) = fold("below = 0.1", [0.05, 0.0, 0.01, 1])
    assert (one["peak_update"], one["peak_value"]) == (2, 0.0)
    (one,) = fold("nonfinite = true", [math.nan, math.inf, 1])
    assert one["peak_update"] == 1 and math.isnan(one["peak_value"]) and one["threshold"] is None
    (one,) = fold("above = { phase = { start = 1, end = 5 } }", [2, 9, 9.5], [0.1, 0.2, 0.6])
    assert (one["peak_value"], one["threshold"], one["phase"]) == (9.5, 5.0, "end")


def test_without_firings_there_are_no_incidents() -> None:
    assert fold("above = 5", [1, 2, 3]) == []
    assert fold("above = 5", []) == []


def test_runs_rules_and_keys_do_not_mix() -> None:
    rules = RuleSet.parse(
        '[rules.r]\nseverity = "info"\ntable = "gradient_layers"\ntake = "last"\nkey = "layer"\n'
        'column = "grad_norm"\nabove = 5'
    )
    rows = [("a", 1, "x", 6.0), ("a", 2, "y", 6.0), ("a", 3, "x", 6.0), ("b", 1, "x", 6.0), ("b", 2, "x", 1.0)]
    layers = pl.DataFrame(rows, schema=["run_id", "update", "layer", "grad_norm"], orient="row")
    updates = layers.select("run_id", "update").unique()
    folded = incidents(evaluate(rules, {"ppo_updates": updates.lazy(), "gradient_layers": layers.lazy()}))
    assert folded.select("run_id", "key", "onset_update", "last_update", "updates", "recovered").rows() == [
        ("a", "x", 1, 3, 2, False),
        ("a", "y", 2, 2, 1, False),
        ("b", "x", 1, 1, 1, True),
    ]


def test_a_difference_lists_new_and_gone_firings() -> None:
    schema = ["run_id", "update", "rule", "key"]
    before = pl.DataFrame([("a", 1, "r", ""), ("a", 2, "r", "")], schema=schema, orient="row")
    after = pl.DataFrame([("a", 2, "r", ""), ("a", 2, "r", "k"), ("b", 1, "s", "")], schema=schema, orient="row")
    changes = diff_firings(before, after)
    assert changes.schema == pl.Schema(DIFF_COLUMNS)
    assert changes.rows() == [
        ("a", "r", "", 1, "gone"),
        ("a", "r", "k", 2, "new"),
        ("b", "s", "", 1, "new"),
    ]
    assert diff_firings(after, after).is_empty()
