"""The unit tests in a rules file, and those of the shipped profiles."""

from __future__ import annotations

import pytest

from esper_recorder.contract.rules.ruleset import RuleError, RuleSet, load_profile, profiles
from esper_recorder.contract.rules.unit_tests import read_tests

RULE = '[rules.ratio]\nseverity = "info"\ncolumn = "ratio_max"\nabove = 5.0\n'
LAYER = (
    '[rules.layer]\nseverity = "info"\ntable = "gradient_layers"\ntake = "last"\nkey = "layer"\n'
    'column = "grad_norm"\nabove = 5.0\n'
)


def run(test: str, rules: str = RULE) -> list[str]:
    loaded = RuleSet.parse(f"{rules}[[tests]]\n{test}", "mine.toml")
    return [problem for unit in read_tests(loaded) for problem in unit.run(loaded)]


@pytest.mark.parametrize("profile", profiles())
def test_the_unit_tests_of_a_shipped_profile_pass(profile: str) -> None:
    rules = load_profile(profile)
    assert {test.name: test.run(rules) for test in read_tests(rules)} == {test.name: [] for test in read_tests(rules)}


@pytest.mark.parametrize("profile", profiles())
def test_every_shipped_rule_has_evidence_and_a_unit_test_in_which_it_fires(profile: str) -> None:
    rules = load_profile(profile)
    fired = {rule for test in read_tests(rules) for (rule, _), updates in test.fires.items() if updates}
    assert fired == {rule.name for rule in rules.rules}
    assert [rule.name for rule in rules.rules if not rule.evidence.endswith(".")] == []


def test_a_word_may_repeat_be_null_be_no_row_or_be_several_rows() -> None:
    assert run('name = "t"\nseries."ppo_updates.ratio_max" = "6x2 nan null inf 1"\nfires.ratio = [1, 2, 5]') == []
    rows = 'series."gradient_layers.grad_norm{layer=a}" = "6 1,6 6,1 _"\n'
    assert run(f'name = "t"\n{rows}fires."layer{{a}}" = [1, 2]\nabstains.layer = 1', LAYER) == []


def test_a_failed_test_reports_expected_and_actual_firings() -> None:
    problems = run('name = "t"\nseries."ppo_updates.ratio_max" = "6 1 null"\nfires.ratio = [2]\nabstains.ratio = 0')
    assert problems == [
        "ratio must fire at 2, and fires at 1",
        "ratio must abstain 0 times, and abstains 1 times",
    ]
    never = run('name = "t"\nseries."ppo_updates.ratio_max" = "6"\nfires.ratio = []')
    assert never == ["ratio must fire at none, and fires at 1"]


@pytest.mark.parametrize(
    ("test", "message"),
    [
        ('series."ppo_updates.ratio_max" = "1"\nfires.ratio = []', "test 1: name must be text"),
        ('name = "t"\nfires.ratio = []', "needs series"),
        ('name = "t"\nseries."ppo_updates.ratio_max" = "1"', "expects nothing"),
        (
            'name = "t"\nseries."ppo_updates.ratio_max" = "1"\nfires.rato = []',
            "there is no rule 'rato'. Did you mean ratio",
        ),
        ('name = "t"\nseries."ppo_updates.ratio_max" = "1"\nfires.ratio = 3', "must be a list of updates"),
        ('name = "t"\nseries."ppo_updates.ratio_mx" = "1"\nfires.ratio = []', "Did you mean ratio_max"),
        ('name = "t"\nseries."updates.ratio_max" = "1"\nfires.ratio = []', "there is no table 'updates'"),
        ('name = "t"\nseries."ratio_max" = "1"\nfires.ratio = []', "a series is named table.column"),
        ('name = "t"\nseries."ppo_updates.ratio_max" = "one"\nfires.ratio = []', "'one' is not a value"),
        ('name = "t"\nseries."ppo_updates.ratio_max" = "1xx"\nfires.ratio = []', "repeat one as 1.0x5"),
        ('name = "t"\nseries."ppo_updates.ratio_max" = "1,2"\nfires.ratio = []', "exactly one row per update"),
        ('name = "t"\nseries."ppo_updates.ratio_max" = 1\nfires.ratio = []', "one word per update"),
        (
            'name = "t"\nseries."ppo_updates.ratio_max{layer=a}" = "1"\nfires.ratio = []',
            "table ppo_updates has no key 'layer'",
        ),
        ('name = "t"\nseries."ppo_updates.ratio_max" = "[]"\nfires.ratio = []', "is a float64; write numbers"),
        ('name = "t"\nseries."ppo_updates.nonfinite_fields" = "1"\nfires.ratio = []', "write [a;b]"),
        ('name = "t"\nprogress = "[]"\nseries."ppo_updates.ratio_max" = "1"\nfires.ratio = []', "must be numbers"),
        (
            'name = "t"\nprogress = "0.1"\nseries."ppo_updates.ratio_max" = "1 2"\nfires.ratio = []',
            "same number of words",
        ),
        ('name = "t"\nseries."ppo_updates.update" = "2 1"\nfires.ratio = []', "must ascend"),
        ('name = "t"\nseries."ppo_updates.update" = "nan"\nfires.ratio = []', "nan is not the number of an update"),
        ('name = "t"\nserie."ppo_updates.ratio_max" = "1"\nfires.ratio = []', "Did you mean series"),
    ],
)
def test_an_invalid_test_is_an_error_that_names_the_mistake(test: str, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        run(test)
    assert message in str(caught.value)
    assert str(caught.value).startswith("mine.toml")
