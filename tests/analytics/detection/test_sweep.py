"""One threshold at many values, compared with one replay per value."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import esper_analytics as ea
from esper_analytics.detection.sweep import read_values
from tests.builders import run_id_of, write_run
from tests.support import esper

A, B = run_id_of("a"), run_id_of("b")
LAYERED = '[rules.layer]\nseverity = "info"\ntable = "gradient_layers"\nkey = "layer"\ntake = "only"\n'


def two_runs(folder: Path) -> ea.Runs:
    write_run(folder, "a", updates=[{"ratio_max": r} for r in (1.0, 3.0, math.nan, None, 2.0)])
    write_run(folder, "b", updates=[{"ratio_max": r} for r in (1.5, 8.0, math.inf)])
    return ea.open(folder)


def test_each_value_has_runs_updates_their_fraction_first_firing_and_margins(tmp_path: Path) -> None:
    swept = ea.sweep(
        two_runs(tmp_path), "esper-review", rule="ratio_explosion", field="above", values=[3, 2, 1e9, math.inf]
    )
    # 8 updates in all. Run a: 3.0 is its worst, run b: inf.
    assert swept.rows() == [
        (3.0, 1, 2, 2 / 8, B, 2, 0.0, math.inf),
        (2.0, 2, 3, 3 / 8, A, 2, 1.0, math.inf),
        (1e9, 1, 1, 1 / 8, B, 3, 3.0 - 1e9, math.inf),
        pytest.approx((math.inf, 0, 0, 0.0, None, None, -math.inf, math.nan), nan_ok=True),
    ]


@pytest.mark.parametrize("test", ["above", "below"])
def test_a_sweep_counts_what_replays_of_each_value_count(tmp_path: Path, test: str) -> None:
    rows = [
        {"update": u, "layer": layer, "minibatch": 1, "grad_norm": (7 * u * n) % 11 / 2 if u % 4 else math.nan}
        for u in range(1, 30)
        for n, layer in ((1, "x"), (3, "y"))
    ]
    write_run(tmp_path, "a", updates=[{}] * 29, tables={"gradient_layers": rows})
    rules = tmp_path / "mine.toml"
    rules.write_text(f'{LAYERED}column = "grad_norm"\n{test} = 2.0\n')
    runs = ea.open(tmp_path / A)
    values = [0.0, 0.5, 2.5, 4.9, 5.0, 99.0]
    swept = ea.sweep(runs, rules, rule="layer", field=test, values=values)
    for value, row in zip(values, swept.rows(named=True), strict=True):
        firings = ea.replay(runs, rules, values={f"layer.{test}": value}).firings
        assert row["updates"] == firings["update"].n_unique()
        assert row["first_update"] == (firings["update"].min() if firings.height else None)


def test_a_number_that_is_not_a_plain_threshold_is_replayed_for_each_value(tmp_path: Path) -> None:
    write_run(tmp_path, "a", updates=[{"grad_norm": g} for g in (1.0, 2.0, 1.0, 9.0)])
    swept = ea.sweep(
        ea.open(tmp_path), "esper-review", rule="gradient_norm_drift", field="drift.momentum", values=[0.0, 0.99]
    )
    # momentum 0: against the value before: 1.0, 0.5, 8.0. momentum 0.99: 1.0, 0.0099, 7.9
    assert swept.select("value", "updates", "first_update").rows() == [(0.0, 2, 2), (0.99, 2, 2)]
    assert swept["margin_max"].null_count() == 2


def test_a_signal_that_was_never_measured_has_no_margin(tmp_path: Path) -> None:
    write_run(tmp_path, "a", updates=[{"ratio_max": None}])
    swept = ea.sweep(ea.open(tmp_path), "esper-review", rule="ratio_explosion", field="above", values=[1.0])
    assert swept.rows() == [(1.0, 0, 0, 0.0, None, None, None, None)]


@pytest.mark.parametrize(
    ("text", "values"),
    [
        ("1.5,2,3", [1.5, 2.0, 3.0]),
        ("5", [5.0]),
        ("0:1:0.25", [0.0, 0.25, 0.5, 0.75, 1.0]),
        ("0:1:0.3", [0.0, 0.3, 0.6, pytest.approx(0.9)]),
        ("2:2:1", [2.0]),
    ],
)
def test_values_are_a_list_or_start_stop_step(text: str, values: list[Any]) -> None:
    assert read_values(text) == values


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["--rule", "ratio_explosio", "--values", "1"],
            "There is no rule 'ratio_explosio' in esper-review. Did you mean",
        ),
        (["--rule", "ratio_explosion", "--field", "abov", "--values", "1"], "Did you mean above?"),
        (["--rule", "ratio_explosion", "--values", "1:2"], "START:STOP:STEP"),
        (["--rule", "ratio_explosion", "--values", "2:1:1"], "START:STOP:STEP"),
        (["--rule", "ratio_explosion", "--values", "0:1:0"], "START:STOP:STEP"),
        (["--rule", "ratio_explosion", "--values", "0:1:1e-9"], "Take a larger step"),
        (["--rule", "ratio_explosion", "--values", "1,nan"], "START:STOP:STEP"),
        (["--rule", "ratio_explosion", "--values", ""], "START:STOP:STEP"),
    ],
)
def test_an_invalid_argument_is_reported(tmp_path: Path, arguments: list[str], message: str) -> None:
    two_runs(tmp_path)
    done = esper("sweep", str(tmp_path), "--rules", "esper-review", *arguments, code=2)
    assert message in done.stderr and done.stdout == ""


def test_the_command_prints_one_row_per_value(tmp_path: Path) -> None:
    two_runs(tmp_path)
    arguments = [
        "--rules",
        "esper-review",
        "--rule",
        "ratio_explosion",
        "--field",
        "above",
        "--values",
        "2:6:2",
        "--format",
        "json",
    ]
    done = esper("sweep", str(tmp_path), *arguments)
    assert [(row["value"], row["updates"]) for row in json.loads(done.stdout)] == [(2.0, 3), (4.0, 2), (6.0, 2)]
    assert pl.DataFrame(json.loads(done.stdout)).height == 3
