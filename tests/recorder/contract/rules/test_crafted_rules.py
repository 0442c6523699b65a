"""Rules files as a stranger may send them: each is rules, or an error that names the file."""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from esper_recorder.contract.rules.ruleset import MOST_BYTES, RuleError, RuleSet, load_file, load_profile, profiles
from esper_recorder.contract.rules.toml_writer import to_toml
from esper_recorder.contract.rules.unit_tests import read_tests
from tests.crafted_manifests import Place, places

TEXT = """
description = "All that a file of rules may contain."
format = 1
[phases]
early = 0.0
late = 0.5
[rules.plain]
column = "ratio_max"
above = 5.0
severity = "critical"
for = 2
keep = true
reset = 2.0
unless = [{ column = "n", below = 10 }]
evidence = "made up"
[rules.phased]
expr = "clip_fraction if approx_kl > 0.03 else 0.0"
severity = "info"
above = { phase = { early = 1.0, late = 2.0 }, otherwise = 3.0 }
inhibited_by = "plain"
[rules.drifting]
column = "entropy"
severity = "warning"
below = -0.5
drift = { momentum = 0.9, bias_correction = true, warmup = 3, epsilon = 0.1, signed = true }
[rules.rolling]
column = "explained_variance"
severity = "warning"
above = 0.2
rolling = { window = 10, trend = "drop" }
[rules.heads]
table = "heads"
key = "head"
take = "only"
column = "ratio_max"
min_n = 5
severity = "warning"
above = { key = { op = 1.0 }, otherwise = 2.0 }
[rules.several]
severity = "warning"
any_of = [{ column = "ratio_max", above = 9.0 }, { column = "ratio_min", below = 0.1 }]
[[tests]]
name = "fires"
progress = "0.1x4"
series."ppo_updates.ratio_max" = "1.0x2 9.0x2"
fires = { plain = [4] }
abstains = { drifting = 4 }
"""

VALUES = (
    *("0", "1", "-1", "1.5", "1e999", "-inf", "nan", "300000000", str(2**63 - 1), str(2**64), "9" * 4299, "9" * 5000),
    *(
        "true",
        "false",
        '""',
        '"x"',
        '"plain"',
        '"ratio_max"',
        '"info"',
        '"a/b\\u0000\\u001b[31m"',
        "'" + "y" * 5000 + "'",
    ),
    *("[]", "[[]]", "[1, 2]", '["x"]', "{}", "{ a = 1 }", "[{}]", "[{ column = 1 }]", "{ phase = {} }", "{ key = 1 }"),
    *("2026-01-01", "9999-12-31T23:59:59-14:00", "0000-01-01", "07:32:00", "[" * 2000 + "]" * 2000),
    *(
        '"1.0x1000000000"',
        '"1.0x99999999999999999999"',
        '"1.0x²"',
        '"' + "-" * 900 + 'ratio_max"',
        '"' + "(" * 900 + '"',
    ),
    *('"' + "ratio_max+" * 300 + '1"', '"not ' + "-" * 450 + 'ratio_max"', '"9999' * 1 + "9" * 5000 + ' * ratio_max"'),
)


def crafted() -> Iterator[tuple[Place, str]]:
    """Text of a rules file for each value at each place."""
    whole = tomllib.loads(TEXT)
    for place in places(whole):
        data = json.loads(json.dumps(whole))
        if place:
            container = data
            for key in place[:-1]:
                container = container[key]
            container[place[-1]] = "THE PLACE"
        template = to_toml(data) if place else '"" = "THE PLACE"'
        for value in VALUES:
            yield place, template.replace('"THE PLACE"', value)


def check(text: str) -> bool:
    """Whether a text is rules; everything of them is computed once."""
    try:
        rules = RuleSet.parse(text, "crafted.toml")
        for test in read_tests(rules):
            test.run(rules)
        assert all(name.isprintable() for name in (rule.name for rule in rules.rules))
        assert len(rules.sha256) == 64 and rules.tables
    except RuleError as error:
        assert str(error).startswith("crafted.toml") and len(str(error)) < 1500
        return False
    return True


@pytest.mark.parametrize("every", [7, pytest.param(1, marks=pytest.mark.slow)])
def test_every_value_at_every_place_of_a_rules_file_is_allowed_or_an_error_that_names_the_file(every: int) -> None:
    assert check(TEXT)
    outcomes = [check(text) for _, text in itertools.islice(crafted(), 0, None, every)]
    assert outcomes.count(True) > 200 // every and outcomes.count(False) > 2000 // every


def test_a_file_that_is_no_rules_file_is_an_error_that_says_why(tmp_path: Path) -> None:
    path = tmp_path / "rules.toml"
    for content, reason in (
        (b"", "no rules"),
        (b"\xff\xfe[\x00", "not UTF-8"),
        (b"\xef\xbb\xbf" + TEXT.encode(), "not TOML"),
        (TEXT.encode()[:-3], "not TOML"),
        (TEXT.encode() + b"[rules.plain]\n", "not TOML"),
        (b"a = " + b"[" * 100_000, "not TOML"),
        (b"#" * (MOST_BYTES + 1), "more than 4,194,304 bytes"),
    ):
        path.write_bytes(content)
        with pytest.raises(RuleError, match=reason):
            load_file(path)


@pytest.mark.parametrize("name", profiles())
def test_a_profile_cut_off_or_with_a_line_twice_is_rules_or_an_error(name: str) -> None:
    lines = load_profile(name).text.splitlines(keepends=True)
    for at in range(0, len(lines), max(len(lines) // 25, 1)):
        for text in ("".join(lines[:at]), "".join(lines[:at] + lines[at:][1:]), "".join(lines[: at + 1] + lines[at:])):
            try:
                RuleSet.parse(text, "crafted.toml")
            except RuleError as error:
                assert str(error).startswith("crafted.toml")


def test_the_tests_of_this_file_reach_every_place() -> None:
    reached: set[Any] = {place for place, _ in crafted()}
    assert {("rules", "drifting", "drift", "warmup"), ("rules", "several", "any_of", 1, "below")} <= reached
