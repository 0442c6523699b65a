"""What several ranks recorded, read as one: the same in SQL and in Polars, and as the contract merges rows."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import Any

import polars as pl
import pytest

import esper_analytics as ea
from esper_analytics.catalog.rank_merge import merged_sql
from esper_analytics.runs import Runs
from esper_recorder.contract import metrics
from esper_recorder.contract.histogram import log_ratio_bin_count
from esper_recorder.contract.merge import merge
from esper_recorder.contract.tables import TABLES, AcrossRanks, Reducer, column_names, columns
from tests.builders import add_journal, complete_rows, run_id_of, write_run


def both(runs: Runs, table: str = "ppo_updates", order: str = '"update"') -> list[dict[str, object]]:
    """The rows of a view, after checking that SQL and Polars have the same."""
    from_sql = runs.sql(f"SELECT * FROM {table} ORDER BY {order}")
    by = [name.strip('" ') for name in order.split(",")]
    from_frame = runs.table(table).sort(by, nulls_last=True).collect()
    assert from_sql.schema == from_frame.schema
    for one, other in zip(from_sql.to_dicts(), from_frame.to_dicts(), strict=True):
        assert_same(one, other)
    return from_frame.to_dicts()


def assert_same(one: dict[str, object], other: dict[str, object]) -> None:
    """Equal but for the rounding of sums in another order."""
    assert [*one] == [*other]
    for name, a in one.items():
        b = other[name]
        if isinstance(a, float) and isinstance(b, float):
            same = (math.isnan(a) and math.isnan(b)) or a == b or math.isclose(a, b, rel_tol=1e-9, abs_tol=1e-9)
            assert same, (name, a, b)
        else:
            assert a == b, (name, a, b)


def test_two_ranks_are_one_row_per_update_merged_by_each_columns_reducer(tmp_path):
    rows = [
        {"update": 1, "rank": 0, "n": 4, "ratio_sum": 4.0, "ratio_nonfinite": 0, "ratio_max": 1.5, "ratio_min": 0.5},
        {"update": 1, "rank": 1, "n": 12, "ratio_sum": 18.0, "ratio_nonfinite": 2, "ratio_max": 9.0, "ratio_min": 0.75},
    ]
    rows[0] |= {"step": 100, "epochs_planned": 3, "progress": 0.1}
    rows[1] |= {"step": 120, "epochs_planned": 4, "progress": 0.2}
    runs = ea.open(write_run(tmp_path, updates=rows))
    [row] = both(runs)
    assert (row["n"], row["ratio_max"], row["ratio_min"], row["ratio_sum"]) == (16, 9.0, 0.5, 22.0)
    assert row["ratio_mean"] == 22.0 / (16 - 2)  # from the merged sums: not the mean of 1.0 and 1.8
    assert (row["step"], row["epochs_planned"], row["rank"]) == (120, 3, 0)  # last, first, lowest
    assert [r["rank"] for r in both(runs, "ppo_updates_all", '"rank"')] == [0, 1]
    assert runs.list()["updates"].to_list() == [1]


def random_row(table: str, chance: random.Random) -> dict[str, object]:
    """Values for the columns other than keys: measured or not, NaN and infinite among them."""
    row: dict[str, object] = {}
    for column in columns(table):
        if column.reducer is Reducer.KEY or column.name in ("time", "definition") or chance.random() < 0.2:
            continue
        if column.type == "float64":
            odd = chance.choice([math.nan, math.inf, -math.inf, 0.0])
            row[column.name] = odd if chance.random() < 0.2 else chance.uniform(-1e6, 1e6)
        elif column.type == "int64":
            row[column.name] = chance.choice([0, 0, 1, 7, 50])
        elif column.type == "bool":
            row[column.name] = chance.random() < 0.5
    return row


KEYS: dict[str, dict[str, object]] = {
    "minibatches": {"epoch": None, "minibatch": 1},
    "heads": {"head": "slot"},
    "recurrent_state": {"layer": "lstm", "kind": "h"},
}
DERIVE: dict[str, Callable[..., dict[str, Any]]] = {
    "ppo_updates": metrics.derive_pooled,
    "minibatches": metrics.derive,
    "heads": metrics.derive_head,
    "recurrent_state": metrics.derive_state,
}


@pytest.mark.parametrize("table", [*DERIVE])
@pytest.mark.parametrize("seed", range(6))
def test_sql_and_polars_merge_any_rows_as_the_contract_does(tmp_path, table, seed):
    """Against `contract.merge` and `contract.metrics` on plain Python rows; keys that are NULL among them."""
    chance = random.Random(seed)
    recorded = []
    for update in range(1, 16):
        for rank in range(2 if update == 1 else chance.choice([1, 2, 3])):
            key = {"epoch": None, "minibatch": 1} if table == "minibatches" else {}
            recorded.append({**random_row(table, chance), **key, "update": update, "rank": rank})
    path = write_run(tmp_path, tables={table: recorded})
    merged = both(ea.open(path), table)
    derive = DERIVE[table]
    complete = complete_rows(table, recorded, run_id=path.name)
    assert len(merged) == 15
    for row in merged:
        own = [r for r in complete if r["update"] == row["update"]]
        expected = {**dict.fromkeys(column_names(table)), **own[0]}
        if len(own) > 1:
            expected = {**dict.fromkeys(column_names(table)), **merge(columns(table), own)}
            expected |= {name: value for name, value in derive(expected).items() if name in expected}
            if table == "ppo_updates":
                expected["definition"] = "pooled"
        assert_same({name: expected[name] for name in row}, row)


def test_histograms_of_ranks_are_added_bin_by_bin(tmp_path):
    bins = log_ratio_bin_count()
    rows = [
        {"update": 1, "rank": rank, "head": "", "counts": [rank + place for place in range(bins)], "nan_count": 1}
        for rank in (0, 1, 2)
    ]
    rows += [{"update": 2, "rank": rank, "head": ""} for rank in (0, 1)]
    merged = both(ea.open(write_run(tmp_path, tables={"ratio_histograms": rows})), "ratio_histograms")
    assert merged[0]["counts"] == [3 * place + 3 for place in range(bins)]  # (0 + p) + (1 + p) + (2 + p)
    assert merged[0]["nan_count"] == 3
    assert (merged[1]["counts"], merged[1]["nan_count"]) == (None, None)  # not measured is not zero


def test_a_layer_with_a_copy_on_each_rank_is_not_counted_twice(tmp_path):
    rows = [
        {"update": 1, "rank": rank, "layer": "w", "minibatch": 4, "has_grad": True, "n": 10, "grad_norm": 2.0 + rank}
        for rank in (1, 0)
    ]
    rows.append({"update": 2, "rank": 1, "layer": "w", "minibatch": 4, "has_grad": True, "n": 10, "grad_norm": 7.0})
    merged = both(ea.open(write_run(tmp_path, tables={"gradient_layers": rows})), "gradient_layers")
    assert [(r["update"], r["rank"], r["n"], r["grad_norm"]) for r in merged] == [(1, 0, 10, 2.0), (2, 1, 10, 7.0)]


def test_what_belongs_to_one_rank_is_not_merged(tmp_path):
    episodes = [{"rank": rank, "env": 0, "episode": 1, "episode_return": 5.0 + rank} for rank in (0, 1)]
    gaps = [{"rank": rank, "table_name": "*", "reason": "queue_full", "rows": 3} for rank in (0, 1)]
    runs = ea.open(write_run(tmp_path, tables={"episodes": episodes, "gaps": gaps}))
    assert [r["episode_return"] for r in both(runs, "episodes", '"rank"')] == [5.0, 6.0]
    assert [r["rank"] for r in both(runs, "gaps", '"rank"')] == [0, 1]


def test_ranks_merge_over_parts_journals_and_attempts_beside_runs_of_one_rank(tmp_path):
    rows = [{"update": u, "rank": r, "attempt": 1, "n": 1} for u in (1, 2, 3) for r in (0, 1)]
    again = [{"update": u, "rank": r, "attempt": 2, "n": 10} for u in (3, 4) for r in (0, 1)]
    attempts = [
        {"attempt": a, "rank": r, "from_update": {1: 1, 2: 3}[a], "how": "finished"} for a in (1, 2) for r in (0, 1)
    ]
    path = write_run(tmp_path, "many", updates=rows, manifest={"attempts": attempts})
    for rank in (0, 1):
        own = [r for r in complete_rows("ppo_updates", again, run_id=path.name) if r["rank"] == rank]
        add_journal(path, {"ppo_updates": own}, attempt=2, rank=rank)
    write_run(tmp_path, "one", updates=[{"n": 5}, {"n": 6}])
    runs = ea.open(tmp_path)
    found = {(r["run_id"], r["update"]): r["n"] for r in both(runs, order='"run_id", "update"')}
    many, one = run_id_of("many"), run_id_of("one")
    assert found == {
        (many, 1): 2,
        (many, 2): 2,
        (many, 3): 20,  # attempt 2 recorded update 3 again
        (many, 4): 20,
        (one, 1): 5,
        (one, 2): 6,
    }
    assert runs.sql("SELECT count(*) AS n FROM ppo_updates_all")["n"].to_list() == [6 + 4 + 2]
    assert runs.problems == ()


def test_a_run_of_one_rank_pays_nothing_for_ranks(tmp_path):
    runs = ea.open(write_run(tmp_path, updates=[{}, {}]))
    scan = runs._scan(["ppo_updates"], runs._entries())["ppo_updates"]
    assert "GROUP BY" not in scan.view([], superseded=False)
    assert "GROUP BY" in merged_sql("ppo_updates", "SELECT 1")
    assert "AGGREGATE" not in runs.table("ppo_updates").explain()


def test_a_rank_that_ended_early_is_a_problem_and_the_run_incomplete(tmp_path):
    rows = [{"update": u, "rank": 0, "n": 1} for u in (1, 2, 3)] + [{"update": 1, "rank": 1, "n": 1}]
    attempts = [{"attempt": 1, "rank": 0, "how": "finished"}, {"attempt": 1, "rank": 1}]
    runs = ea.open(write_run(tmp_path, updates=rows, manifest={"attempts": attempts}))
    assert [row["n"] for row in both(runs)] == [2, 1, 1]
    [problem] = runs.problems
    assert "rank 0 to 3 and rank 1 to 1" in problem.message
    assert runs.list().select("ended", "complete").rows() == [("killed", False)]


def test_a_rank_that_never_recorded_is_a_problem(tmp_path):
    attempts = [{"attempt": 1, "rank": 0, "how": "finished"}, {"attempt": 1, "rank": 1}]
    runs = ea.open(write_run(tmp_path, updates=[{}, {}], manifest={"attempts": attempts}))
    [problem] = runs.problems
    assert "rank 0 to 2 and rank 1 to 0" in problem.message


def test_a_replay_evaluates_the_merged_update(tmp_path):
    """Ranks with 2 of 10 and 8 of 10 transitions clipped: 10 of 20 together, and the worse ratio of the two."""
    rows = []
    for update in (1, 2, 3):
        rows += [
            {"update": update, "rank": 0, "n": 10, "clip_low_count": 0, "clip_high_count": 2, "ratio_max": 1.1},
            {"update": update, "rank": 1, "n": 10, "clip_low_count": 0, "clip_high_count": 8, "ratio_max": 50.0},
        ]
    runs = ea.open(write_run(tmp_path, updates=rows))
    firings = ea.replay(runs, "esper-2025-12").firings.filter(pl.col("rule") == "ratio_explosion")
    assert firings.select("update", "value").rows() == [(1, 50.0), (2, 50.0), (3, 50.0)]
    assert [row["clip_fraction"] for row in both(runs)] == [0.5, 0.5, 0.5]


def test_every_table_declares_how_its_ranks_merge():
    merged = {name for name, table in TABLES.items() if table.across_ranks is AcrossRanks.MERGED}
    assert merged == {"ppo_updates", "minibatches", "heads", "ratio_histograms", "recurrent_state"}
    lists = [(t, c.name) for t in merged for c in columns(t) if c.type.startswith("list<") and c.reducer is Reducer.SUM]
    assert lists == [("ratio_histograms", "counts")]  # the one list that is added up has the contract's bins
