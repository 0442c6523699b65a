"""The evaluators of the watcher and of the replay give the same firings and coverage, whatever the rules and rows."""

from __future__ import annotations

import math
import struct
from typing import Any

import polars as pl
import pytest
from hypothesis import HealthCheck, given, settings

from esper_analytics.detection.block import Block
from esper_analytics.detection.engine import Engine, Evaluation
from esper_analytics.detection.signal_columns import stretches
from esper_recorder.contract.rules.evaluator import ALL_TABLES, RuleEvaluator
from tests.analytics.detection.evaluation import evaluate, numbered, tables_of
from tests.analytics.detection.random_cases import Case, cases

COLUMNS: dict[str, dict[str, Any]] = {
    "ppo_updates": {
        "progress": pl.Float64,
        "ratio_max": pl.Float64,
        "approx_kl": pl.Float64,
        "grad_norm": pl.Float64,
        "target_kl": pl.Float64,
        "n": pl.Int64,
        "nonfinite_fields": pl.List(pl.String),
    },
    "minibatches": {
        "minibatch": pl.Int64,
        "ratio_max": pl.Float64,
        "approx_kl": pl.Float64,
        "grad_norm": pl.Float64,
        "n": pl.Int64,
    },
    "gradient_layers": {
        "minibatch": pl.Int64,
        "layer": pl.String,
        "grad_norm": pl.Float64,
        "weight_norm": pl.Float64,
        "n": pl.Int64,
    },
}


def frames(case: Case) -> dict[str, pl.LazyFrame]:
    """The rows as a store would give them."""
    result = {}
    for table, columns in COLUMNS.items():
        schema: dict[str, Any] = {"run_id": pl.String, "update": pl.Int64, **columns}
        rows = [
            {"run_id": run, "update": update, **row}
            for run, updates in case.runs.items()
            for update, tables in updates
            for row in tables[table]
        ]
        result[table] = pl.DataFrame(rows, schema=schema).lazy()
    return result


def bits(value: float | None) -> Any:
    """A float as something equal only to itself, NaN included."""
    if value is None or math.isnan(value):
        return value if value is None else "nan"
    return struct.pack("<d", value + 0.0)


def row_by_row(case: Case) -> tuple[list[Any], list[Any]]:
    firings: list[Any] = []
    coverage: list[Any] = []
    for run, updates in sorted(case.runs.items()):
        evaluator = RuleEvaluator(case.rules)
        for gap in case.gaps[run]:
            evaluator.add_gap(*gap)
        last = max((update for update, tables in updates if tables["ppo_updates"]), default=None)
        if last is None:
            continue
        for update, tables in updates:
            if update > last:
                break  # the replay knows no update after the last one recorded
            progress = tables["ppo_updates"][0]["progress"] if tables["ppo_updates"] else None
            for f in evaluator.update(update, progress, tables):
                firings.append(
                    (
                        run,
                        f.update,
                        f.rule,
                        f.key,
                        f.severity,
                        bits(f.value),
                        bits(f.threshold),
                        f.phase,
                        bits(f.progress),
                    )
                )
        ends = [end for table, _, end in case.gaps[run] if table in (ALL_TABLES, "ppo_updates")]
        if max(ends, default=0) > last:  # except up to the end of a recorded gap
            evaluator.update(max(ends), None, {})
        for c in evaluator.coverage():
            coverage.append((run, c.rule, c.key, c.evaluated, {str(k): v for k, v in c.abstained.items()}))
    return firings, sorted(coverage, key=lambda c: c[:3])


def one_by_one(case: Case) -> Evaluation:
    """Each run in a separate block."""
    by_run = [
        {table: frame.filter(pl.col("run_id") == run) for table, frame in frames(case).items()}
        for run in sorted(case.runs)
    ]
    return joined([evaluate(case.rules, own, case.gaps) for own in by_run])


def all_at_once(case: Case) -> Evaluation:
    """All runs in one block."""
    return evaluate(case.rules, frames(case), case.gaps)


def in_stretches(case: Case) -> Evaluation:
    """Each run in blocks of two updates."""
    found = []
    for run in sorted(case.runs):
        engine = Engine(case.rules, [run])
        for stretch in stretches(tables_of(case.rules, frames(case), [run]), 2):
            engine.feed(Block(case.rules, stretch, numbered(case.gaps, [run])))
        found.append(engine.finish())
    return joined(found)


def joined(evaluations: list[Evaluation]) -> Evaluation:
    """One evaluation of all runs; the numbers of their series are no longer unique."""
    parts = zip(*((e.firings, e.coverage, e.inhibited) for e in evaluations), strict=True)
    return Evaluation(*(pl.concat(frames) for frames in parts))


def listed(found: Evaluation) -> tuple[list[Any], list[Any]]:
    firings = [
        (*row[:5], bits(row[5]), bits(row[6]), row[7], bits(row[8]))
        for row in found.firings.drop("evaluation", "signed_value", "series").rows()
    ]
    coverage: dict[Any, Any] = {}
    for run, rule, key, evaluated, reason, abstained, _ in found.coverage.rows():
        entry = coverage.setdefault((run, rule, key), (evaluated, {}))
        if reason:
            entry[1][reason] = abstained
    return firings, sorted([(*k, *v) for k, v in coverage.items()], key=lambda c: c[:3])


def check(case: Case) -> None:
    live_firings, live_coverage = row_by_row(case)
    results = {way.__name__: way(case) for way in (one_by_one, all_at_once, in_stretches)}
    for name, evaluation in results.items():
        firings, coverage = listed(evaluation)
        assert firings == live_firings, f"{name}\n{case.rules.text}"
        assert coverage == live_coverage, f"{name}\n{case.rules.text}"
        counted = evaluation.firings.join(evaluation.coverage, on=["run_id", "rule", "key"])
        assert counted["evaluation"].is_between(1, counted["evaluated"]).all()
    at_once, cut = (
        results[name].firings.select("evaluation", "signed_value") for name in ("all_at_once", "in_stretches")
    )
    assert at_once.equals(cut, null_equal=True), case.rules.text


@given(cases())
@settings(max_examples=100, suppress_health_check=list(HealthCheck))
def test_random_rules_on_random_runs_fire_the_same_in_both(case: Case) -> None:
    check(case)


@pytest.mark.slow
@given(cases())
@settings(max_examples=2000, suppress_health_check=list(HealthCheck))
def test_two_thousand_random_rule_sets_fire_the_same_in_both(case: Case) -> None:
    check(case)
