"""Parsing rules from TOML: what a rule can say, and the error of each mistake."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from esper_recorder.contract.rules.ruleset import RuleError, RuleSet, load_file, load_profile, profiles
from tests.support import DATA

GOOD = """
[phases]
warmup = 0.0
early = 0.10
late = 0.75

[rules.ratio]
severity = "critical"
column = "ratio_max"
above = 5.0
"""


def rule(body: str) -> str:
    """A file with one rule of this body."""
    return f'[phases]\nstart = 0.0\nend = 0.5\n[rules.r]\nseverity = "info"\n{body}\n'


def test_a_phase_ends_where_the_next_one_begins() -> None:
    rules = RuleSet.parse(GOOD)
    assert [rules.phase(p) for p in (0.0, 0.0999, 0.10, 0.75, 1.0, 1.5)] == [
        "warmup",
        "warmup",
        "early",
        "late",
        "late",
        "late",
    ]
    assert [rules.phase(p) for p in (None, math.nan, -0.1)] == [None, None, None]
    assert RuleSet.parse(rule('column = "ratio_max"\nabove = 1')).phase(0.7) == "end"


def test_a_rule_set_lists_the_columns_it_reads() -> None:
    text = rule(
        'table = "minibatches"\ntake = "first"\ncolumn = "ratio_max"\nmin_n = 8\n'
        'above = { column = "clip_range", times = 2 }\n'
        'unless = { table = "ppo_updates", column = "return_std", below = 1 }'
    )
    assert RuleSet.parse(text).tables == {
        "ppo_updates": {"progress", "clip_range", "return_std"},
        "minibatches": {"ratio_max", "minibatch", "n", "backfilled"},
    }


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not toml", "rules.toml is not TOML"),
        ("", "contains no rules"),
        ("rules = 3", "contains no rules"),
        ('[rules.r]\nseverty = "info"', "unknown key 'severty'. Did you mean severity"),
        (
            '[rule.r]\nseverity = "info"',
            "unknown key 'rule'. Did you mean rules?",
        ),
        ('[rules."a b"]\nseverity = "info"', "letters, digits"),
        ("[rules]\nr = 3", "must be a table"),
        ("format = 2\n" + GOOD, "this version reads format 1"),
        ("[phases]\nlate = 0.5\n" + GOOD.split("\n\n")[1], "first phase must begin at 0"),
        ("[phases]\na = 0\nb = 0\n" + GOOD.split("\n\n")[1], "'a' and 'b' both begin at 0"),
        (rule('column = "ratio_max"\nabove = "5"'), "rule r, above: must be a number, not '5'"),
        (rule('column = "ratio_max"\nabove = true'), "must be a number, not true"),
        (rule('column = "ratio_max"\nabove = nan'), "must be a number, not nan"),
        (rule('column = "ratio_mx"\nabove = 5'), "table ppo_updates has no column 'ratio_mx'. Did you mean ratio_max"),
        (rule('column = "definition"\nabove = 5'), "is a string, and a rule reads numbers"),
        (rule('table = "minibatch"\ncolumn = "ratio_max"\nabove = 5'), "Did you mean minibatches"),
        (rule('table = "alarms"\ncolumn = "value"\nabove = 5'), "rules read no table 'alarms'"),
        (rule('table = "minibatches"\ncolumn = "ratio_max"\nabove = 5'), "take is missing"),
        (rule('table = "minibatches"\ncolumn = "ratio_max"\ntake = "frist"\nabove = 5'), "Did you mean first"),
        (
            rule('table = "minibatches"\ncolumn = "ratio_max"\ntake = "max"\nkey = "head"\nabove = 5'),
            "one of epoch, minibatch",
        ),
        (rule('column = "ratio_max"\nkey = "layer"\nabove = 5'), "one row per update"),
        (rule('column = "ratio_max"'), "exactly one of above, below, nonfinite, and has none"),
        (rule('column = "ratio_max"\nabove = 1\nbelow = 0'), "has above and below"),
        (rule('column = "ratio_max"\nnonfinite = false'), "can only be true"),
        (rule('column = "ratio_max"\nnonfinite = true\nreset = 1'), "nonfinite cannot be combined"),
        (rule('column = "ratio_max"\nexpr = "ratio_max"\nabove = 1'), "either column or expr"),
        (rule('expr = "ratio_max ** 2"\nabove = 1'), "is not allowed"),
        (rule('expr = "ratio_max - ratio_mn"\nabove = 1'), "Did you mean ratio_min"),
        (rule('column = "ratio_max"\nabove = 5\nreset = 6'), "reset: must lie at or below the threshold"),
        (rule('column = "ratio_max"\nbelow = 5\nreset = { times = 0.5 }'), "reset: must lie at or above the threshold"),
        (
            rule('column = "ratio_max"\nabove = 5\nfor = 0'),
            "for: must be a whole number from 1 to 1,000,000,000, not 0",
        ),
        (rule('column = "ratio_max"\nabove = 5\nfor = 1.5'), "for: must be a whole number"),
        (rule('column = "ratio_max"\nabove = 5\nkeep = "yes"'), "keep: must be true or false"),
        (rule('column = "ratio_max"\nabove = { phase = { start = 1 } }'), "has no number for end"),
        (rule('column = "ratio_max"\nabove = { phase = { start = 1, middle = 2 } }'), "unknown key 'middle'"),
        (rule('column = "ratio_max"\nabove = { key = { a = 1 } }'), "the rule has no key column"),
        (rule('column = "ratio_max"\nabove = { times = 2 }'), "exactly one of phase, key, column"),
        (rule('column = "ratio_max"\nabove = { column = "target_k" }'), "Did you mean target_kl"),
        (rule('column = "ratio_max"\nabove = 1\ndrift = { momentum = 1 }'), "must lie in [0, 1)"),
        (rule('column = "ratio_max"\nabove = 1\ndrift = { momentm = 0.9 }'), "Did you mean momentum"),
        (rule('column = "ratio_max"\nabove = 1\ndrift = {}\nstep = true'), "has one of drift, step and rolling"),
        (rule("any_of = []"), "must be a list of tables"),
        (rule('any_of = [{ column = "ratio_max" }]'), "any_of.1: needs exactly one of"),
        (rule('any_of = [{ column = "n", above = 1 }]\nabove = 2'), "unknown key 'above'"),
        (rule('column = "ratio_max"\nabove = 1\nunless = { column = "return_std" }'), "unless: needs exactly one of"),
        (rule('column = "ratio_max"\nabove = 1\ninhibited_by = "rr"'), "there is no rule 'rr'"),
        (rule('column = "ratio_max"\nabove = 1\ninhibited_by = "r"'), "is itself inhibited"),
        (rule('column = "ratio_max"\nabove = 1\nevidence = 3'), "evidence: must be text"),
        ('[rules.r]\ncolumn = "ratio_max"\nabove = 1', "severity is missing"),
        ('[rules.r]\nseverity = "criticle"\ncolumn = "ratio_max"\nabove = 1', "Did you mean critical"),
        (rule('column = "ratio_max"\nabove = 1\nmin_n = 0'), "from 1 to 1,000,000,000"),
        (rule('table = "episodes"\ntake = "max"\ncolumn = "episode_return"\nmin_n = 1\nabove = 1'), "has no column n"),
    ],
)
def test_an_error_names_its_location_and_the_mistake(text: str, message: str) -> None:
    with pytest.raises(RuleError) as caught:
        RuleSet.parse(text, "rules.toml")
    assert message in str(caught.value)
    assert str(caught.value).startswith("rules.toml")


def test_an_unknown_profile_is_an_error_that_suggests_one() -> None:
    with pytest.raises(RuleError, match=r"no rule profile 'defalt'. Did you mean default"):
        load_profile("defalt")
    assert {"default", "esper-review"} <= set(profiles())


def test_an_unreadable_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RuleError, match="there is no file"):
        load_file(tmp_path / "none.toml")
    with pytest.raises(RuleError, match="cannot be read"):
        load_file(tmp_path)
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(RuleError, match="not UTF-8"):
        load_file(tmp_path / "binary.toml")


def test_the_former_key_of_inhibited_by_is_read_unless_both_are_given() -> None:
    [path, *_] = (DATA / "schema_2").glob("runs/*/rules/*.toml")
    text = path.read_text()
    assert "inhibited_by" not in text
    inhibited = {rule.name: rule.inhibited_by for rule in RuleSet.parse(text).rules if rule.inhibited_by}
    assert inhibited["kl_high"] == "kl_extreme" and len(inhibited) == 3
    with pytest.raises(RuleError, match="rule kl_high: unknown key"):
        RuleSet.parse(text.replace("[rules.kl_high]", '[rules.kl_high]\ninhibited_by = "kl_extreme"'))
