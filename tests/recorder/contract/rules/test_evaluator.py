"""The state of a rule over the updates of one run: streaks, resets, gates, gaps and abstentions."""

from __future__ import annotations

import math
from typing import Any

import pytest

from esper_recorder.contract.rules.evaluator import RuleEvaluator
from esper_recorder.contract.rules.ruleset import RuleSet


def evaluator(body: str) -> RuleEvaluator:
    text = '[phases]\nstart = 0.0\nend = 0.5\n[rules.r]\nseverity = "warning"\n' + body
    return RuleEvaluator(RuleSet.parse(text))


def fires(body: str, values: list[Any], column: str = "ratio_max") -> list[int]:
    """Return the updates, counted from 1, at which one rule on a column of `ppo_updates` fires."""
    rule = evaluator(f'column = "{column}"\n{body}')
    return [u for u, value in enumerate(values, 1) if rule.update(u, None, {"ppo_updates": [{column: value}]})]


def abstained(rule: RuleEvaluator) -> dict[str, int]:
    (coverage,) = rule.coverage()
    return {str(reason): times for reason, times in coverage.abstained.items()}


def test_a_firing_carries_value_threshold_phase_and_progress() -> None:
    (firing,) = evaluator('column = "ratio_max"\nabove = 5').update(7, 0.5, {"ppo_updates": [{"ratio_max": 6}]})
    assert (firing.update, firing.rule, firing.key, firing.severity) == (7, "r", "", "warning")
    assert (firing.value, firing.threshold, firing.phase, firing.progress) == (6.0, 5.0, "end", 0.5)
    assert isinstance(firing.value, float)


def test_it_fires_from_the_nth_breach_of_a_streak_on() -> None:
    assert fires("above = 5\nfor = 3", [6, 6, 6, 6, 1, 6, 6, 6]) == [3, 4, 8]


def test_without_a_reset_level_any_value_that_does_not_breach_ends_the_streak() -> None:
    assert fires("above = 5\nfor = 2", [6, 5, 6, 6]) == [4]


def test_the_streak_stays_between_threshold_and_reset_level_and_ends_beyond_it() -> None:
    # 4 and 3 do not breach and are not below 3: the streak stays at one; 2.9 is below
    assert fires("above = 5\nfor = 2\nreset = 3", [6, 4, 3, 6, 2.9, 6, 6]) == [4, 7]
    assert fires("below = 0.1\nfor = 2\nreset = { times = 1.5 }", [0.05, 0.15, 0.05, 0.16, 0.05]) == [3]


def test_null_and_nan_neither_fire_nor_change_the_streak() -> None:
    assert fires("above = 5\nfor = 2", [6, None, math.nan, 6, None, 6]) == [4, 6]


def test_a_kept_rule_fires_until_a_value_is_beyond_reset_but_not_without_data() -> None:
    assert fires("above = 5\nreset = 3\nkeep = true", [6, 4, None, 3, 2, 4, 6]) == [1, 2, 4, 7]
    assert fires("above = 5\nreset = 3\nkeep = true\nfor = 2", [6, 4, 6, 4, 2]) == [3, 4]


def test_infinities_breach_thresholds_and_nan_only_breaches_nonfinite() -> None:
    values = [math.inf, -math.inf, math.nan, 1.0, None]
    assert fires("above = 5", values) == [1]
    assert fires("below = 0", values) == [2]
    assert fires("nonfinite = true", values) == [1, 2, 3]


def test_a_threshold_per_phase_needs_a_phase() -> None:
    rule = evaluator('column = "ratio_max"\nabove = { phase = { start = 1, end = 9 } }')
    rows = {"ppo_updates": [{"ratio_max": 5.0}]}
    assert [bool(rule.update(u, p, rows)) for u, p in enumerate((0.4999, 0.5, None), 1)] == [True, False, False]
    assert abstained(rule) == {"no threshold": 1}


def test_a_threshold_relative_to_a_column_is_absolute_if_the_column_is_null() -> None:
    rule = evaluator('column = "approx_kl"\nabove = { column = "target_kl", times = 1.5, otherwise = 0.1 }')
    rows = [(0.016, 0.01), (0.015, 0.01), (0.016, None), (0.11, None), (0.11, math.nan)]
    firings_by_update = [
        rule.update(u, None, {"ppo_updates": [{"approx_kl": k, "target_kl": t}]}) for u, (k, t) in enumerate(rows, 1)
    ]
    assert [[f.threshold for f in firings] for firings in firings_by_update] == [[0.015], [], [], [0.1], []]
    assert abstained(rule) == {"no threshold": 1}


def test_each_key_has_its_own_streak_and_threshold() -> None:
    rule = evaluator(
        'table = "gradient_layers"\ntake = "last"\nkey = "layer"\ncolumn = "grad_norm"\nfor = 2\n'
        "above = { key = { a = 1.0 }, otherwise = 5.0 }"
    )
    rows = [{"a": 2.0, "b": 6.0}, {"b": 6.0}, {"a": 2.0, "b": 2.0}]
    fired = []
    for u, layers in enumerate(rows, 1):
        layer_rows = [{"layer": k, "grad_norm": v} for k, v in layers.items()]
        fired += [(f.update, f.key) for f in rule.update(u, None, {"ppo_updates": [{}], "gradient_layers": layer_rows})]
    assert fired == [(2, "b"), (3, "a")]
    a, b = rule.coverage()
    assert (a.key, a.evaluated, a.abstained) == ("a", 2, {"not recorded": 1})
    assert (b.key, b.evaluated, b.abstained) == ("b", 3, {})


def test_a_keyed_rule_without_any_key_abstains_with_an_empty_key() -> None:
    rule = evaluator('table = "gradient_layers"\ntake = "last"\nkey = "layer"\ncolumn = "grad_norm"\nabove = 1')
    for u in (1, 2):
        assert rule.update(u, None, {"ppo_updates": [{}]}) == []
    (coverage,) = rule.coverage()
    assert (coverage.key, coverage.evaluated, coverage.abstained) == ("", 0, {"table not recorded by this run": 2})


def test_a_closed_gate_and_an_unmeasured_gate_abstain_with_different_reasons() -> None:
    rule = evaluator('column = "explained_variance"\nbelow = 0\nunless = { column = "return_std", below = 0.1 }')
    for u, std in enumerate((1.0, 0.05, None, math.nan, 0.1), 1):
        fired = rule.update(u, None, {"ppo_updates": [{"explained_variance": -1.0, "return_std": std}]})
        assert bool(fired) == (u in (1, 5))
    assert abstained(rule) == {"not applicable: ppo_updates.return_std below 0.1": 1, "gate not measured": 2}


def test_values_behind_a_closed_gate_do_not_enter_the_average() -> None:
    body = (
        'column = "grad_norm"\nabove = 0.5\ndrift = { momentum = 0.5 }\nunless = { column = "return_std", below = 1 }'
    )
    rule = evaluator(body)
    fired = []
    for u, (norm, std) in enumerate([(1.0, 2.0), (100.0, 0.5), (1.4, 2.0), (2.0, 2.0)], 1):
        fired += [f.update for f in rule.update(u, None, {"ppo_updates": [{"grad_norm": norm, "return_std": std}]})]
    assert fired == [4]  # 1.4 drifts by 0.4 from 1.0; then 2.0 by 0.67 from 1.2


def test_alternatives_fire_at_any_breach_and_abstain_if_one_has_no_data() -> None:
    rule = evaluator('any_of = [{ column = "value_loss", above = 5 }, { column = "residual_rms", above = 2 }]')
    rows = [(6, None), (1, 3), (1, None), (1, 1), (6, 3)]
    firings_by_update = [
        rule.update(u, None, {"ppo_updates": [{"value_loss": a, "residual_rms": b}]})
        for u, (a, b) in enumerate(rows, 1)
    ]
    compared = [[(f.value, f.threshold) for f in firings] for firings in firings_by_update]
    assert compared == [[(6, 5)], [(3, 2)], [], [], [(6, 5)]]
    assert abstained(rule) == {"not measured": 1}


def test_a_rule_is_inhibited_only_while_the_other_one_fires() -> None:
    rules = RuleSet.parse(
        '[rules.low]\nseverity = "info"\ncolumn = "approx_kl"\nabove = 0.1\ninhibited_by = "high"\n'
        '[rules.high]\nseverity = "critical"\ncolumn = "approx_kl"\nabove = 0.5\nfor = 2'
    )
    both = RuleEvaluator(rules)
    fired = [[f.rule for f in both.update(u, None, {"ppo_updates": [{"approx_kl": 0.6}]})] for u in (1, 2)]
    assert fired == [["low"], ["high"]]


def test_unrecorded_updates_are_gaps_and_fire_nothing() -> None:
    rule = evaluator('column = "ratio_max"\nabove = 5\nfor = 2')
    assert rule.update(2, None, {"ppo_updates": [{"ratio_max": 6}]}) == []  # update 1 was lost
    assert rule.update(3, None, {"minibatches": [{"ratio_max": 6}]}) == []  # its row of ppo_updates was lost
    assert len(rule.update(6, None, {"ppo_updates": [{"ratio_max": 6}]})) == 1
    assert abstained(rule) == {"recording gap": 4}


def test_rows_with_too_few_transitions_abstain() -> None:
    rule = evaluator('column = "ratio_max"\nabove = 5\nmin_n = 10')
    for u, n in enumerate((9, 10, None), 1):
        assert bool(rule.update(u, None, {"ppo_updates": [{"ratio_max": 6, "n": n}]})) == (n == 10)
    assert abstained(rule) == {"too little evidence": 2}


@pytest.mark.parametrize("rows", [{}, {"ppo_updates": []}, {"ppo_updates": [{}]}, {"other": [{"x": 1}]}])
def test_malformed_rows_raise_nothing_and_fire_nothing(rows: dict[str, Any]) -> None:
    rule = evaluator('column = "ratio_max"\nabove = 5')
    assert rule.update(1, math.nan, rows) == []
    assert rule.coverage()[0].evaluated == 0


LAYERS = 'table = "gradient_layers"\ntake = "last"\nkey = "layer"\ncolumn = "grad_norm"\nabove = 1\n'
FIRST = 'table = "minibatches"\ntake = "first"\ncolumn = "ratio_max"\nabove = 1\n'
NEVER = "table not recorded by this run"


@pytest.mark.parametrize("body", [LAYERS, FIRST, f"{FIRST}unless = {{ column = 'n', take = 'first', below = 5 }}"])
def test_a_table_that_the_run_never_recorded_has_its_own_reason(body: str) -> None:
    rule = evaluator(body)
    for u in (1, 2, 5):
        rule.update(u, None, {"ppo_updates": [{}], "minibatches": [], "gradient_layers": []})
    assert abstained(rule) == {NEVER: 3, "recording gap": 2}


def test_after_its_first_row_a_table_without_a_row_is_not_recorded() -> None:
    rule = evaluator(FIRST)
    for u, rows in enumerate(([], [{"ratio_max": 1.0}], []), 1):
        rule.update(u, None, {"ppo_updates": [{}], "minibatches": rows})
    assert abstained(rule) == {"not recorded": 2}


def test_rows_of_an_unrecorded_update_do_not_count_as_rows_of_their_table() -> None:
    rule = evaluator(FIRST)
    rule.update(1, None, {"minibatches": [{"ratio_max": 1.0}]})
    rule.update(2, None, {"ppo_updates": [{}]})
    assert abstained(rule) == {"recording gap": 1, NEVER: 1}


@pytest.mark.parametrize("body", [LAYERS, FIRST])
def test_lost_rows_are_a_recording_gap_and_show_that_the_table_is_recorded(body: str) -> None:
    rule = evaluator(body)
    rule.add_gap("gradient_layers", 2, 3)
    rule.add_gap("minibatches", 2, 3)
    for u in (1, 2, 3, 4):
        rule.update(u, None, {"ppo_updates": [{}]})
    assert abstained(rule) == {"not recorded": 2, "recording gap": 2}


def test_a_gap_in_all_tables_does_not_show_that_any_of_them_is_recorded() -> None:
    rule = evaluator(FIRST)
    rule.add_gap("*", 2, 2)
    for u in (1, 2):
        rule.update(u, None, {"ppo_updates": [{}]})
    assert abstained(rule) == {NEVER: 1, "recording gap": 1}


def test_a_gap_changes_nothing_if_there_are_rows() -> None:
    rule = evaluator(FIRST)
    rule.add_gap("minibatches", 1, 1)
    assert rule.update(1, None, {"ppo_updates": [{}], "minibatches": [{"ratio_max": 2.0}]})
    assert abstained(rule) == {}


def test_a_key_without_a_row_in_a_gap_of_its_table_is_a_recording_gap() -> None:
    rule = evaluator(LAYERS)
    rule.add_gap("gradient_layers", 2, 2)
    for u, layers in enumerate(("ab", "a", "a"), 1):
        rows = [{"layer": layer, "grad_norm": 0.5} for layer in layers]
        rule.update(u, None, {"ppo_updates": [{}], "gradient_layers": rows})
    a, b = rule.coverage()
    assert (a.abstained, b.abstained) == ({}, {"recording gap": 1, "not recorded": 1})
