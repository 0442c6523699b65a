"""The views, over runs of SB3 and of Esper, with values computed another way.

Each has a test whose name begins with it, as the last test of `test_queries` checks.
"""

from __future__ import annotations

import math
from collections import Counter

import polars as pl
import pytest

import esper_analytics as ea
from esper_analytics.catalog.scan import polars_type
from esper_analytics.sql.files import views
from tests.analytics.sql.asked_runs import (
    ALL_NEW,
    ALL_OLD,
    OLD,
    data_of,
    near,
    rows,
    run_of,
)
from tests.builders import write_run


def test_layers_add_fractions_to_the_gradients(sb3):
    own = [r for found in rows(sb3, "gradient_layers").values() for r in found]
    answer = sb3.sql("SELECT sum(zero_fraction) AS z, sum(update_ratio) AS u, count_if(dead) AS d FROM layers").row(0)
    zero = sum(r["grad_zero"] / r["n"] for r in own)
    ratio = sum(r["grad_norm"] / r["weight_norm"] for r in own if r["weight_norm"])
    assert answer == (near(zero), near(ratio), sum(r["grad_zero"] == r["n"] for r in own))


def test_exemplars_have_their_ratio_and_progress(sb3):
    answer = sb3.sql("SELECT count(*), sum(ratio), count(progress) FROM exemplars").row(0)
    own = [r for found in rows(sb3, "ratio_exemplars").values() for r in found]
    assert answer == (len(own), near(sum(math.exp(r["log_ratio"]) for r in own)), len(own))


def test_episode_outcomes_are_the_episodes_with_progress(esper):
    outcomes = data_of(ALL_NEW, "EPISODE_OUTCOME")
    answer = esper[run_of(esper, ALL_NEW)].table("episode_outcomes").collect()
    assert sorted(answer["final_accuracy"]) == sorted(d["final_accuracy"] for d in outcomes)
    assert answer["progress"].null_count() == 0


def test_action_distribution_has_fractions_of_each_update(esper):
    frame = esper.table("action_distribution").collect()
    sums = frame.group_by("run_id", "update").agg(pl.col.fraction.sum())
    assert sums["fraction"].to_list() == near([1.0] * sums.height)


def test_anomalies_mark_the_first_and_count_consecutive_updates(esper):
    raised = sorted(d["batch"] for d in data_of(OLD, "VALUE_COLLAPSE_DETECTED"))
    expected, streak, before = [], 0, None
    for number in raised:
        streak = streak + 1 if before == number - 1 else 1
        expected.append((number, number == raised[0], streak))
        before = number
    answer = esper[run_of(esper, OLD)].sql("SELECT update, first_of_run, in_a_row FROM anomalies ORDER BY update")
    assert expected and answer.rows() == expected


def test_run_confounders_name_what_is_unusable_and_what_is_questionable(tmp_path):
    gaps = [{"table_name": "*", "reason": "queue_full", "first_update": 4, "last_update": 5, "rows": None}]
    alarms = [
        {"update": 2, "rule": "numerical_instability", "key": "", "severity": "warning"},
        {"update": 3, "rule": "numerical_instability", "key": "", "severity": "warning"},
    ]
    updates = [
        {"ratio_max": 1.0, "ratio_min": 1.0, "nonfinite_fields": []},
        {"ratio_max": 1.0, "ratio_min": 1.0, "nonfinite_fields": ["explained_variance"], "return_variance_low": True},
        {"ratio_max": 1.0, "ratio_min": 1.0, "nonfinite_fields": ["value_loss"], "nonfinite_count": 7},
    ]
    write_run(tmp_path, "a", updates=updates, tables={"gaps": gaps, "alarms": alarms}, ended="raised")
    answer = ea.open(tmp_path).sql(
        "SELECT confounder, key, blocking, updates, first_update, last_update FROM run_confounders ORDER BY 1"
    )
    assert answer.rows() == [
        ("gap", "queue_full", True, 2, 4, 5),
        ("nan_sentinel", "", False, 1, 2, 2),
        ("nonfinite", "", True, 1, 3, 3),
        ("not_finished", "raised", False, None, None, None),
        ("numerical_instability", "", True, 1, 3, 3),
        ("ratio_blind", "", False, None, None, None),
    ]


def test_reward_calibration_correlates_components_with_the_outcome(tmp_path):
    # Two steps an episode; the bonus goes with the return (1, 3, 2 and 1, 3, 2), the rent against it.
    rewards, episodes = [], []
    for episode, (bonus, rent) in enumerate(((0.5, -1.0), (1.5, -3.0), (1.0, -2.0)), 1):
        for step in (1, 2):
            own = {"stage_bonus": bonus, "compute_rent": rent, "total_reward": bonus + rent, "pbrs_bonus": 0.0}
            rewards.append({"update": episode, "env": 0, "step": step, **own})
        episodes.append({"update": episode, "env": 0, "episode": episode, "episode_return": 2 * bonus})
    write_run(tmp_path, "a", updates=[{}] * 3, tables={"rewards": rewards, "episodes": episodes})
    answer = {r["component"]: r for r in ea.open(tmp_path).table("reward_calibration").collect().to_dicts()}
    # Sizes: bonus 2 * (0.5 + 1.5 + 1.0) = 6, rent 2 * (1 + 3 + 2) = 12.
    assert answer["stage_bonus"]["size_fraction"] == near(6 / 18)
    assert answer["compute_rent"]["size_fraction"] == near(12 / 18)
    assert answer["stage_bonus"]["return_correlation"] == near(1)
    assert answer["compute_rent"]["return_correlation"] == near(-1)
    assert answer["pbrs_bonus"]["return_correlation"] is None
    assert answer["stage_bonus"]["accuracy_correlation"] is None


def test_morphology_log_combines_the_steps_of_a_change(esper):
    steps = data_of(ALL_NEW, "MORPHOLOGY_CAUSAL_LOG")
    counted = Counter(d["action_id"] for d in steps)
    frame = esper[run_of(esper, ALL_NEW)].table("morphology_log").collect()
    assert dict(frame.select("action_id", "steps").rows()) == counted
    assert set(frame.filter(pl.col.committed)["action_id"]) == {d["action_id"] for d in steps if d["phase"] == "commit"}


def test_phase_occupancy_fractions_add_up_to_one_of_each_kind(esper, sb3):
    for runs in (esper, sb3):
        sums = runs.table("phase_occupancy").collect().group_by("run_id", "kind").agg(pl.col.fraction.sum())
        assert sums["fraction"].to_list() == near([1.0] * sums.height)
    updates = rows(sb3)
    for run_id, own in updates.items():
        amounts = sb3[run_id].query("time_by_phase", kind="ppo").select("phase", "amount")
        assert dict(amounts.rows())["update"] == near(math.fsum(r["update_s"] for r in own))


def test_seed_lifecycle_has_a_row_for_each_germination(esper):
    for path in (ALL_NEW, ALL_OLD):
        frame = esper[run_of(esper, path)].table("seed_lifecycle").collect()
        assert frame["first_update"].count() == len(data_of(path, "SEED_GERMINATED"))
        assert (frame["ended"] == "pruned").sum() == len(data_of(path, "SEED_PRUNED"))
        assert frame["stages"].list.len().sum() == len(data_of(path, "SEED_STAGE_CHANGED"))


@pytest.mark.parametrize("name", views())
def test_a_view_has_the_columns_of_its_header_and_no_rows_if_nothing_was_recorded(name, tmp_path):
    write_run(tmp_path, "empty")
    frame = ea.open(tmp_path).table(name).collect()
    declared = {column.name: polars_type(column) for column in views()[name].columns}
    assert frame.schema == declared
    assert frame.filter(pl.lit(True)).is_empty() or name == "run_confounders"
    assert len(views()[name].row) > 10 and all(column.meaning for column in views()[name].columns)


def test_a_view_is_created_only_if_a_query_or_another_view_names_it(esper):
    made = esper._sources(["run_confounders"])
    assert {"anomalies", "alarms", "ppo_updates", "runs"} <= made.keys()
    assert "layers" not in made and "gradient_layers" not in made
    assert list(esper._sources(["gaps"])) == ["gaps"]
