"""Which rules a replay evaluates: a shipped profile, a TOML file, or those a run was recorded with."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import polars as pl

from esper_analytics.catalog.discovery import Problem
from esper_analytics.errors import DataError, UsageError
from esper_analytics.runs import Runs
from esper_recorder.contract.rules.ruleset import RuleError, RuleSet, load_file, load_profile, profiles
from esper_recorder.contract.rules.unit_tests import read_tests

DEFAULT_PROFILE: Final = "default"
"""The rules for a run that was recorded without any."""

Rules = RuleSet | str | os.PathLike[str]
Values = Mapping[str, float | bool | str]


def load_rules(rules: Rules) -> RuleSet:
    """Load a shipped profile by name or a TOML file by path; return a RuleSet unchanged.

    Raises:
        UsageError: there is no such profile or file, or the file is invalid; the message says where and why.
    """
    if isinstance(rules, RuleSet):
        return rules
    try:
        if isinstance(rules, str) and rules in profiles():
            return load_profile(rules)
        is_path = not isinstance(rules, str) or rules.endswith(".toml") or os.sep in rules
        return load_file(Path(rules)) if is_path or Path(rules).is_file() else load_profile(os.fspath(rules))
    except RuleError as error:
        hint = f" There is a file {rules}.toml: write that." if Path(f"{rules}.toml").is_file() else ""
        raise UsageError(_message(error) + hint) from error


def recorded_rules(runs: Runs) -> dict[str, RuleSet]:
    """Parse the rules each run was recorded with; `default` for a run recorded without any.

    A run whose rules cannot be used is left out, and added to `runs.problems_met`.

    Raises DataError: those of no run can be used.
    """
    by_run: dict[str, RuleSet] = {}
    parsed: dict[tuple[str | None, str] | None, RuleSet] = {}
    unusable: DataError | None = None
    for run, source in runs.rules_texts():
        try:
            if isinstance(source, DataError):
                raise source
            if source not in parsed:
                parsed[source] = load_rules(DEFAULT_PROFILE) if source is None else _parse(run.run_id, *source)
        except DataError as error:
            unusable = error
            runs.leave_out(Problem(run.path / "rules", str(error).rstrip("."), "The run was not replayed"))
            continue
        by_run[run.run_id] = parsed[source]
    if unusable is not None and not by_run:
        raise unusable
    return by_run


def common_rules(runs: Runs) -> RuleSet:
    """Return the rules all runs were recorded with, or `default` if they had none or different ones.

    Raises DataError: as `recorded_rules`.
    """
    distinct = {rules.sha256: rules for rules in recorded_rules(runs).values()}
    return next(iter(distinct.values())) if len(distinct) == 1 else load_rules(DEFAULT_PROFILE)


def with_values(rules: RuleSet, values: Values) -> RuleSet:
    """Change numbers of the rules, by RULE.FIELD. Raises UsageError."""
    try:
        return rules.with_values(values)
    except RuleError as error:
        raise UsageError(_message(error)) from error


def profile_table() -> pl.DataFrame:
    """One row per shipped profile: profile, rules, tests, sha256, description."""
    rows = []
    for rules in map(load_profile, profiles()):
        description = " ".join(rules.description.split())
        rows.append((rules.name, len(rules.rules), len(rules.tests), rules.sha256, description))
    return pl.DataFrame(rows, schema=("profile", "rules", "tests", "sha256", "description"), orient="row")


def run_unit_tests(rules: Rules) -> pl.DataFrame:
    """Run the unit tests in a rules file: one row per test, with test, passed, problem.

    Raises UsageError: there is no such file, or it or a test in it is invalid.
    """
    rule_set = load_rules(rules)
    try:
        tests = read_tests(rule_set)
    except RuleError as error:
        raise UsageError(_message(error)) from error
    rows = [(test.name, not problems, "; ".join(problems)) for test in tests for problems in [test.run(rule_set)]]
    return pl.DataFrame(rows, schema={"test": pl.String, "passed": pl.Boolean, "problem": pl.String}, orient="row")


def _parse(run_id: str, profile: str | None, text: str) -> RuleSet:
    try:
        return RuleSet.parse(text, profile or f"the rules of {run_id}")
    except RuleError as error:
        raise DataError(f"The rules that {run_id} ran with cannot be used: {_message(error)} Give others.") from error


def _message(error: RuleError) -> str:
    text = str(error)
    return text if text.endswith(("?", ".", "!")) else f"{text}."
