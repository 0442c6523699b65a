"""Rules as text."""

from __future__ import annotations

import math

import pytest

from esper_recorder.contract.rules.describe import (
    describe_comparison,
    describe_inputs,
    describe_rule,
    describe_rules,
    describe_value,
)
from esper_recorder.contract.rules.model import Rule
from esper_recorder.contract.rules.ruleset import RuleSet


def rule(body: str) -> Rule:
    return RuleSet.parse(f'[phases]\nstart = 0.0\nend = 0.5\n[rules.r]\nseverity = "info"\n{body}').rules[0]


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('column = "ratio_max"\nabove = 5', "`ppo_updates.ratio_max` is above 5"),
        ('column = "ratio_max"\nnonfinite = true', "`ppo_updates.ratio_max` is not finite"),
        (
            'column = "ratio_max"\nbelow = { phase = { start = -0.5, end = 0.1 } }\nfor = 3\nreset = 0.2',
            "`ppo_updates.ratio_max` is below -0.5 (start), 0.1 (end), 3 times (until beyond 0.2)",
        ),
        (
            'column = "approx_kl"\nreset = { times = 0.5 }\n'
            'above = { column = "target_kl", times = 3, otherwise = 0.05 }',
            "`ppo_updates.approx_kl` is above 3 times `ppo_updates.target_kl`, 0.05 otherwise "
            "(until beyond 0.5 times the threshold)",
        ),
        (
            'table = "recurrent_state"\nkey = "layer"\nwhere = { kind = "h" }\ncolumn = "rms"\nbelow = 1e-6',
            "`recurrent_state{kind=h}.rms` is below 1e-06, for each layer",
        ),
        (
            'table = "minibatches"\ntake = "first"\nexpr = "ratio_max - ratio_min"\nabove = 1\n'
            'unless = { column = "n", take = "first", below = 5 }',
            "`first of minibatches: ratio_max - ratio_min` is above 1; unless `first of minibatches.n below 5`",
        ),
        (
            'any_of = [{ column = "n", step = true, above = 1 }, { column = "grad_norm", drift = {}, below = 2 }]',
            "the step of `ppo_updates.n` is above 1 or the drift of `ppo_updates.grad_norm` is below 2",
        ),
        (
            'column = "ratio_max"\nrolling = { window = 5, trend = "drop" }\nabove = 0.1',
            "the fraction by which `ppo_updates.ratio_max` lies below its mean over 5 is above 0.1",
        ),
        (
            'column = "n"\nabove = 1\ninhibited_by = "s"\n[rules.s]\nseverity = "info"\ncolumn = "n"\nabove = 2',
            "`ppo_updates.n` is above 1; inhibited by `s`",
        ),
    ],
)
def test_a_rule_says_when_it_fires(body: str, text: str) -> None:
    assert describe_rule(rule(body)) == text
    assert describe_rules([rule(body)]) == f"r (info): {text}"


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ('column = "ratio_max"\nabove = 5', "ratio_max"),
        ('expr = ".5 * ratio_max"\nabove = 5', ".5 * ratio_max"),
        ('column = "grad_norm"\ndrift = {}\nabove = 5', "drift of grad_norm"),
        ('column = "n"\nrolling = { trend = "change" }\nabove = 5', "change of the mean of n over 10"),
        ('any_of = [{ column = "n", above = 1 }, { column = "n", nonfinite = true }]', "n"),
    ],
)
def test_the_inputs_of_a_rule_are_named_briefly(body: str, text: str) -> None:
    assert describe_inputs(rule(body)) == text


class TestComparison:
    def test_the_sign_is_that_of_the_test(self) -> None:
        above, below = rule('column = "n"\nabove = 5'), rule('column = "n"\nbelow = 5')
        assert describe_comparison(above, 9.35, 5.0) == "9.35 > 5"
        assert describe_comparison(below, 1.0, 5.0) == "1 < 5"

    def test_a_value_that_is_no_longer_beyond_the_threshold_has_no_sign(self) -> None:
        assert describe_comparison(rule('column = "n"\nabove = 5\nreset = 3\nkeep = true'), 4.0, 5.0) == "4 vs 5"

    def test_without_a_threshold_it_is_the_value(self) -> None:
        nonfinite = rule('column = "n"\nnonfinite = true')
        assert describe_comparison(nonfinite, math.inf, None) == "inf"
        assert describe_comparison(nonfinite, None, math.nan) == "not finite"

    def test_numbers_can_be_formatted_otherwise(self) -> None:
        assert describe_comparison(rule('column = "n"\nabove = 5'), 9.35, 5.0, "{:.0f}".format) == "9 > 5"


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (5.0, "5"),
        (3, "3"),
        (0.123456789, "0.123456789"),
        (True, "true"),
        ("info", "info"),
        ({"times": 1.5}, "1.5 times the threshold"),
        ({"key": {"a": 1.0}, "otherwise": 2.0}, "1 (a), 2 otherwise"),
        ({"column": "target_kl", "times": 3.0}, "3 times target_kl"),
    ],
)
def test_a_value_of_a_rules_file_is_written_as_text(value: object, text: str) -> None:
    assert describe_value(value) == text
