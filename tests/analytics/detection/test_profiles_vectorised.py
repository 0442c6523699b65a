"""The unit tests of the shipped rules, run by the replay's evaluator; `tests/contract` runs them by the watcher's."""

from __future__ import annotations

from typing import Any

import polars as pl
import pytest

from esper_recorder.contract.rules.ruleset import load_profile, profiles
from esper_recorder.contract.rules.unit_tests import RuleTest, read_tests
from esper_recorder.contract.tables import columns
from tests.analytics.detection.evaluation import evaluate

CASES = [(profile, test) for profile in profiles() for test in read_tests(load_profile(profile))]
TYPES: dict[str, Any] = {
    "int64": pl.Float64,
    "float64": pl.Float64,
    "bool": pl.Float64,
    "string": pl.String,
    "list<string>": pl.List(pl.String),
}


def frames(test: RuleTest) -> dict[str, pl.LazyFrame]:
    tables = {table for _, _, rows in test.updates for table in rows}
    result = {}
    for table in tables:
        schema = {c.name: TYPES[c.type] for c in columns(table) if c.type in TYPES} | {"update": pl.Int64}
        rows = [
            {"run_id": "run", "progress": progress, **row, "update": number}
            for number, progress, by_table in test.updates
            for row in by_table.get(table, ())
        ]
        result[table] = pl.DataFrame(rows, schema=schema, strict=False).lazy()
    return result


@pytest.mark.parametrize(("profile", "test"), CASES, ids=[f"{profile}: {test.name}" for profile, test in CASES])
def test_the_replay_passes_the_unit_tests_of_the_shipped_rules(profile: str, test: RuleTest) -> None:
    found = evaluate(load_profile(profile), frames(test))
    fired = {
        series: tuple(found.firings.filter(pl.col("rule") == series[0], pl.col("key") == series[1])["update"])
        for series in test.fires
    }
    assert fired == dict(test.fires)
    abstained = {rule: int(found.coverage.filter(pl.col("rule") == rule)["abstained"].sum()) for rule in test.abstains}
    assert abstained == dict(test.abstains)
