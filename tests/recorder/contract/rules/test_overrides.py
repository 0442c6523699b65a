"""Overrides: what can be set, what is refused, and that the changed text and its hash are reproducible."""

from __future__ import annotations

import math
import tomllib
from typing import Any

import pytest

from esper_recorder.contract.rules.overrides import read_value
from esper_recorder.contract.rules.ruleset import RuleError, RuleSet, load_profile, profiles
from esper_recorder.contract.rules.toml_writer import to_toml

TEXT = """
description = "of a test"
[phases]
warmup = 0.0
late = 0.5

[rules.ratio]
severity = "critical"
column = "ratio_max"
above = 5.0   # a comment

[rules.value]
severity = "warning"
column = "explained_variance"
below = { phase = { warmup = -0.5, late = 0.1 } }
unless = { column = "return_std", below = 0.1 }

[rules.any]
severity = "warning"
any_of = [
    { column = "value_loss", above = 5.0 },
    { column = "ratio_max", above = { column = "clip_range", times = 9.0 } },
]

[rules.drift]
severity = "warning"
column = "grad_norm"
drift = { momentum = 0.99 }
above = 0.5

[rules.layer]
severity = "info"
table = "gradient_layers"
take = "last"
key = "layer"
column = "grad_norm"
above = { key = { "mlp.0.weight" = 1.0, warmup = 2.0 }, otherwise = 3.0 }

[[tests]]
name = "t"
series."ppo_updates.ratio_max" = "6"
fires.ratio = [1]
"""
RULES = RuleSet.parse(TEXT, "mine.toml")


def threshold(rules: RuleSet, name: str, condition: int = 0) -> Any:
    return next(r for r in rules.rules if r.name == name).conditions[condition].threshold


def test_only_the_named_number_changes() -> None:
    changed = RULES.with_values({"ratio.above": 3})
    assert threshold(changed, "ratio").number == 3.0
    assert changed.rules[1:] == RULES.rules[1:]
    assert changed.overrides == {"ratio.above": 3.0}


def test_a_threshold_per_phase_is_replaced_in_part_or_as_a_whole() -> None:
    assert threshold(RULES.with_values({"value.below.phase.warmup": -0.6}), "value").values == {
        "warmup": -0.6,
        "late": 0.1,
    }
    assert threshold(RULES.with_values({"value.below": 0.2}), "value").number == 0.2


def test_alternatives_and_gates_are_counted_from_one() -> None:
    assert threshold(RULES.with_values({"any.any_of.1.above": 7}), "any", 0).number == 7.0
    assert threshold(RULES.with_values({"any.any_of.2.above.times": 7}), "any", 1).times == 7.0
    assert threshold(RULES.with_values({"any.any_of.2.above": 7}), "any", 1).number == 7.0
    assert RULES.with_values({"value.unless.below": 0.5}).rules[1].unless[0].number == 0.5


def test_names_of_layers_may_contain_dots_and_keys_of_the_format() -> None:
    changed = RULES.with_values({"layer.above.key.mlp.0.weight": 9, "layer.above.key.warmup": 8.5})
    assert threshold(changed, "layer").values == {"mlp.0.weight": 9.0, "warmup": 8.5}


def test_a_field_with_a_default_can_be_set() -> None:
    changed = RULES.with_values(
        {"ratio.for": 3.0, "ratio.reset": 2, "ratio.keep": True, "ratio.severity": "info", "drift.drift.warmup": 10}
    )
    ratio, drift = changed.rules[0], changed.rules[3]
    assert (ratio.streak, ratio.keep, ratio.severity, ratio.conditions[0].reset.number) == (3, True, "info", 2.0)  # type: ignore[union-attr]
    assert drift.conditions[0].drift is not None and drift.conditions[0].drift.warmup == 10


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("rato.above", 3.0, "mine.toml has no rule 'rato'. Did you mean ratio"),
        ("ratio.abov", 3.0, "no field 'abov' to set. Did you mean above"),
        ("ratio.below", 3.0, "no field 'below' to set. The fields are: above, for, keep, reset, severity"),
        ("ratio.column", 3.0, "no field 'column' to set"),
        ("ratio.above", "abc", "rule ratio, above: must be a number, not 'abc'"),
        ("ratio.above", math.nan, "must be a number, not nan"),
        ("ratio.above", True, "must be a number, not true"),
        ("ratio.for", 1.5, "must be a whole number from 1 to 1,000,000,000, not 1.5"),
        ("ratio.keep", 1.0, "must be true or false, not 1.0"),
        ("ratio.severity", "bad", "must be one of info, warning, critical, not 'bad'"),
        ("ratio.reset", 6.0, "must lie at or below the threshold"),
        ("ratio", 3.0, "names no field; write RULE.FIELD, such as ratio.for"),
        ("value.below.phase.early", 3.0, "no field 'below.phase.early' to set"),
        ("any.any_of.3.above", 3.0, "no field 'any_of.3.above' to set"),
    ],
)
def test_an_invalid_override_is_an_error_that_names_it(path: str, value: Any, message: str) -> None:
    with pytest.raises(RuleError, match=message):
        RULES.with_values({path: value})


def test_the_text_of_changed_rules_parses_to_the_same_rules_and_hash() -> None:
    changed = RULES.with_values({"ratio.above": 3.0, "value.below.phase.late": 0.0})
    again = RuleSet.parse(changed.text, "again")
    assert again.rules == changed.rules and again.phases == changed.phases and again.description == "of a test"
    assert again.sha256 == changed.sha256
    assert RULES.text == TEXT
    assert changed.tests == ()


def test_the_hash_depends_on_the_values_and_not_on_how_they_are_written() -> None:
    once = RULES.with_values({"ratio.above": 3, "drift.above": 1.0})
    twice = RULES.with_values({"drift.above": 1}).with_values({"ratio.above": 3.0})
    assert once.sha256 == twice.sha256
    assert once.overrides == twice.overrides
    assert once.sha256 != RULES.sha256
    assert RULES.with_values({}) is RULES


@pytest.mark.parametrize("name", profiles())
def test_shipped_rules_survive_being_written_as_toml(name: str) -> None:
    rules = load_profile(name)
    changed = rules.with_values({f"{rules.rules[0].name}.severity": "info"})
    assert RuleSet.parse(changed.text).rules[1:] == rules.rules[1:]


def test_a_typed_value_is_a_number_a_boolean_or_text() -> None:
    assert [read_value(t) for t in ("3", "-1e-3", "true", "false", "info", "inf")] == [
        3.0,
        -1e-3,
        True,
        False,
        "info",
        math.inf,
    ]


def test_toml_keeps_quotes_control_characters_and_special_numbers() -> None:
    data = {"a": 'say "x"\n\\ \u00e9 \x7f', "t": {"b": [1, 2.5, math.inf, True], "c d": {"e": {}, "f": {"g": -0.0}}}}
    assert tomllib.loads(to_toml(data)) == data
    with pytest.raises(TypeError, match="cannot express None"):
        to_toml({"a": None})
