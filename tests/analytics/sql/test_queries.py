"""The named queries, over runs of SB3 and of Esper, with values computed another way.

Each has a test whose name begins with it, as the last test here checks.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

import esper_analytics as ea
from esper_analytics.errors import UsageError
from esper_analytics.importers.esper_jsonl import import_file
from esper_analytics.runs import VIEWS
from esper_analytics.sql.files import views
from esper_analytics.sql.named_queries import named_queries
from tests.analytics.sql.asked_runs import (
    ALL_NEW,
    ALL_OLD,
    COMPONENTS,
    NEW,
    OLD,
    data_of,
    near,
    raised,
    rewards_of,
    rows,
    run_of,
)
from tests.builders import run_id_of, write_run
from tests.esper_files import WHOLE, content, events, import_run

# --- named queries: the policy ----------------------------------------------------------------------------------------


def test_ratio_exceeded_counts_the_updates_above_a_limit(sb3):
    expected = {}
    for run_id, updates in rows(sb3).items():
        above = [row for row in updates if row["ratio_max"] > 1.5]
        if above:
            worst = max(above, key=lambda row: row["ratio_max"])
            first = min(row["update"] for row in above)
            expected[run_id] = (len(above), first, worst["ratio_max"], worst["update"])
    answer = sb3.query("ratio_exceeded", above=1.5)
    found = answer.select("run_id", "updates", "first_update", "worst_ratio", "worst_update").rows()
    assert expected and {row[0]: row[1:] for row in found} == expected
    assert answer["worst_ratio"].is_sorted(descending=True)
    assert sb3.query("ratio_exceeded", above="inf").is_empty()


def test_ratio_exceeded_never_counts_nan_nor_null(tmp_path):
    write_run(tmp_path, "a", updates=[{"ratio_max": v} for v in (math.nan, None, 5.0, math.inf)])
    [row] = ea.open(tmp_path).query("ratio_exceeded").to_dicts()
    assert (row["updates"], row["first_update"], row["worst_ratio"]) == (1, 4, math.inf)


def test_moved_first_orders_metrics_by_the_update_they_left_their_range(sb3):
    answer = sb3.query("moved_first", sigmas=4, baseline=5)
    scales = {"approx_kl": 0.01, "clip_fraction": 0.1, "explained_variance": 1.0}
    expected = {}
    for run_id, updates in rows(sb3).items():
        for metric in ("approx_kl", "clip_fraction", "value_loss", "grad_norm", "explained_variance", "advantage_std"):
            series = [(r["update"], r[metric]) for r in sorted(updates, key=lambda r: r["update"])]
            head = [v for _, v in series[:5]]
            usual = statistics.median(head)
            off = statistics.median(abs(v - usual) for v in head)
            spread = max(1.4826 * off, 0.05 * max(abs(usual), scales.get(metric, 0.0)))
            left = [u for u, v in series if v is not None and (math.isnan(v) or abs(v - usual) > 4 * spread)]
            if left:
                expected[run_id, metric] = left[0]
    found = {(r["run_id"], r["metric"]): r["update"] for r in answer.to_dicts()}
    assert expected and {key: found.get(key) for key in expected} == expected
    assert all(group["update"].is_sorted() for _, group in answer.group_by("run_id", maintain_order=True))


# Of two trainings of PPO on CartPole, the second one with a learning rate that rose a hundredfold at update 8.
LEARNING = {
    "approx_kl": [0.00644, 0.00856, 0.00659, 0.00621, 0.00464, 0.00345, 0.00348, 0.00301, 0.00651, 0.0031, 0.00547],
    "ratio_max": [1.3, 1.22, 1.15, 1.22, 1.12, 1.18, 1.3, 1.22, 1.2, 1.23, 1.52],
    "grad_norm_clipped": [0.5] * 11,
    "advantage_std": [0.992] * 11,
    "learning_rate": [3e-4] * 11,
}
WRECKED = LEARNING | {
    "approx_kl": [*LEARNING["approx_kl"][:7], 8.81, 1.1, 1.48, 2.53],
    "ratio_max": [*LEARNING["ratio_max"][:7], 8.46, 3.8, 6.03, 14.7],
    "learning_rate": [3e-4] * 7 + [3e-2] * 4,
}


def test_moved_first_names_the_policy_of_a_wrecked_run_and_nothing_that_did_not_move(tmp_path):
    for name, columns in (("learning", LEARNING), ("wrecked", WRECKED)):
        updates = [dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)]
        write_run(tmp_path, name, updates=updates)
    answer = ea.open(tmp_path).query("moved_first", baseline=7, fraction=0.7).filter(pl.col("note").is_null())
    moved = {(row["run_id"].partition("-")[0], row["metric"]): row["update"] for row in answer.to_dicts()}
    assert moved == {("wrecked", metric): 8 for metric in ("approx_kl", "ratio_max", "learning_rate")}


def still_then(values, metric="grad_norm_clipped"):
    return [{metric: value} for value in values]


def test_moved_first_ignores_float_noise(tmp_path):
    # 0.5 +- 1e-8 for 40 updates; 40 / 4 = 10 make the range, the floor is 5 % of 0.5 = 0.025, and 6 of it are 0.15
    noise = [0.5 + 1e-8 * (-1) ** n for n in range(40)]
    write_run(tmp_path, "still", updates=still_then([*noise, 0.5000001, 0.64]))
    write_run(tmp_path, "moves", updates=still_then([*noise, 0.66]))
    [row] = ea.open(tmp_path).query("moved_first").to_dicts()
    assert row["run_id"].startswith("moves") and (row["metric"], row["update"]) == ("grad_norm_clipped", 41)
    assert row["sigmas"] == pytest.approx(0.16 / 0.025, rel=1e-6)


def test_moved_first_keeps_a_failure_out_of_its_range(tmp_path):
    # 30 updates: 7 make the range, two of them wrecked; the median is 1.2 all the same, its distances 0.1 or less
    ratios = [1.2, 1.1, 1.3, 1.2, 1.1, 90.0, 80.0] + [1.2] * 23
    write_run(tmp_path, "a", updates=still_then(ratios, "ratio_max"))
    [row] = ea.open(tmp_path).query("moved_first").to_dicts()
    assert (row["metric"], row["update"], row["usual"], row["value"]) == ("ratio_max", 6, 1.2, 90.0)


def test_moved_first_says_what_it_could_not_evaluate(tmp_path):
    write_run(tmp_path, "short", updates=still_then([0.5] * 10 + [9.0] * 9))  # 19 / 4 = 4 updates, and 5 are needed
    write_run(tmp_path, "sparse", updates=still_then([None] * 4 + [math.nan] + [0.5] * 15 + [9.0] * 10))  # 2 of 7
    runs = ea.open(tmp_path)
    short, sparse = runs.query("moved_first").to_dicts()
    assert short["metric"] is None and "4 of 19 updates may define the range, and 5 are needed" in short["note"]
    assert sparse["metric"] == "grad_norm_clipped" and sparse["update"] is None
    assert "2 finite values among the first 7 updates" in sparse["note"]
    write_run(tmp_path, "zero", updates=still_then([0.0] * 30 + [1.0]))  # no level, and no scale to compare with
    [zero] = ea.open(tmp_path)["zero"].query("moved_first").to_dicts()
    assert "it was constant at first" in zero["note"] and zero["update"] is None
    # Of 15 updates, NaN is the first to leave.
    assert runs.query("moved_first", fraction=0.5)["update"].to_list() == [11, 5, None]


def test_worst_transitions_are_sorted_by_how_much_the_probability_changed(sb3):
    found = sb3.query("worst_transitions", n=7)
    everything = [r for own in rows(sb3, "ratio_exemplars").values() for r in own]
    own = [r for r in everything if r["scope"] == "update" and r["head"] == ""]
    expected = sorted((abs(r["log_ratio"]) for r in own), reverse=True)[:7]
    assert [abs(v) for v in found["log_ratio"]] == expected
    assert found["ratio"].to_list() == near([math.exp(v) for v in found["log_ratio"]])
    assert found["action"].null_count() == 0
    assert sb3.query("worst_transitions", head="no such head").is_empty()


def test_worst_transitions_have_non_finite_ones_first(tmp_path):
    exemplars = [
        {"scope": "update", "head": "", "place": place, "log_ratio": value}
        for place, value in enumerate((math.nan, -math.inf, 800.0, 2.0), 1)
    ]
    write_run(tmp_path, "a", updates=[{}], tables={"ratio_exemplars": exemplars})
    answer = ea.open(tmp_path).query("worst_transitions")
    assert answer["ratio"].to_list() == near([math.nan, 0.0, math.inf, math.exp(2)])


def test_hotspot_actions_count_what_the_worst_transitions_have_in_common(sb3):
    expected: Counter[Any] = Counter()
    for run_id, own in rows(sb3, "ratio_exemplars").items():
        for r in own:
            if r["scope"] == "update" and abs(r["log_ratio"]) >= math.log(1.2):
                expected[run_id, tuple(r["action"])] += 1
    found = sb3.query("hotspot_actions", at_least=1.2)
    assert expected and {(r["run_id"], tuple(r["action"])): r["transitions"] for r in found.to_dicts()} == expected


def test_clip_fraction_by_phase_has_half_open_phases(sb3):
    expected: dict[Any, list[Any]] = defaultdict(list)
    for run_id, updates in rows(sb3).items():
        for r in updates:
            p = r["progress"]
            phase = "warmup" if p < 0.1 else "early" if p < 0.25 else "mid" if p < 0.75 else "late"
            expected[run_id, phase].append(r["clip_fraction"])
    found = {(r["run_id"], r["phase"]): r for r in sb3.query("clip_fraction_by_phase").to_dicts()}
    assert found.keys() == expected.keys() and len(expected) == 8
    for key, values in expected.items():
        own = found[key]
        assert (own["updates"], own["clip_fraction_max"]) == (len(values), max(values))
        assert own["clip_fraction"] == near(statistics.fmean(values))


def test_collapsed_heads_stayed_below_for_updates_in_a_row(esper):
    updates = data_of(NEW, "PPO_UPDATE_COMPLETED")
    heads = {m[1] for name in updates[0] if (m := re.fullmatch(r"head_(\w+)_entropy", name))}
    expected = {}
    for head in heads:
        low = [u["batch"] for u in updates if u[f"head_{head}_entropy"] < 0.1]
        stretches: list[list[int]] = []
        for number in low:
            if stretches and stretches[-1][-1] == number - 1:
                stretches[-1].append(number)
            else:
                stretches.append([number])
        kept = [stretch for stretch in stretches if len(stretch) >= 4]
        if kept:
            expected[head] = (kept[0][0], kept[-1][-1], len(kept), sum(map(len, kept)), max(map(len, kept)))
    answer = esper[run_of(esper, NEW)].query("collapsed_heads", below=0.1, in_a_row=4)
    names = ("first_update", "last_update", "collapses", "updates", "longest")
    assert expected and {r["head"]: tuple(r[n] for n in names) for r in answer.to_dicts()} == expected
    assert answer["learnable_fraction"].is_between(0, 1).all()


def test_explained_variance_unreliable_is_where_returns_barely_vary(esper):
    updates = data_of(NEW, "PPO_UPDATE_COMPLETED")
    expected = [u["batch"] for u in updates if u["ev_low_return_variance"] or u["return_std"] < 1]
    answer = esper[run_of(esper, NEW)].query("explained_variance_unreliable", below=1)
    assert expected and answer["update"].to_list() == expected
    assert answer["explained_variance"].is_nan().sum() == sum(math.isnan(u["explained_variance"]) for u in updates)


def test_entropy_decline_is_of_the_first_and_the_last_updates(sb3):
    found = {r["run_id"]: r for r in sb3.query("entropy_decline", updates=3).to_dicts()}
    for run_id, updates in rows(sb3).items():
        values = [r["entropy"] for r in sorted(updates, key=lambda r: r["update"])]
        first, last = statistics.fmean(values[:3]), statistics.fmean(values[-3:])
        own = found[run_id]
        assert (own["at_first"], own["at_last"], own["change"]) == near((first, last, last - first))
        assert (own["smallest"], own["of_column"]) == (min(values), "entropy")


def test_kl_against_target_uses_the_target_of_the_run_or_the_parameter(sb3, tmp_path):
    answer = {r["run_id"]: r for r in sb3.query("kl_against_target", target=0.005, factor=2).to_dicts()}
    for run_id, updates in rows(sb3).items():
        target = updates[0]["target_kl"] or 0.005
        beyond = [r["update"] for r in updates if r["approx_kl"] > 2 * target]
        own = answer[run_id]
        assert (own["updates"], own["exceeded"], own["first_update"]) == (
            len(updates),
            len(beyond),
            min(beyond, default=None),
        )
    values = [{"approx_kl": v, "target_kl": 0.02} for v in (0.01, 0.05, math.nan, None)]
    write_run(tmp_path, "a", updates=values)
    [row] = ea.open(tmp_path).query("kl_against_target").to_dicts()
    assert (row["updates"], row["exceeded"], row["largest"], row["times_target"]) == (3, 1, 0.05, near(2.5))


def test_early_stops_are_counted_where_they_were_recorded(sb3):
    found = {r["run_id"]: r for r in sb3.query("early_stops").to_dicts()}
    for run_id, updates in rows(sb3).items():
        stopped = sum(r["stopped_early"] for r in updates)
        assert (found[run_id]["updates"], found[run_id]["stopped"]) == (len(updates), stopped)
        assert found[run_id]["epochs"] == near(statistics.fmean(r["epochs"] for r in updates))


# --- named queries: values, gradients, non-finite ---------------------------------------------------------------------


def test_value_loss_spikes_are_compared_with_the_updates_before(esper):
    updates = data_of(OLD, "PPO_UPDATE_COMPLETED")
    losses = {u["batch"]: u["value_loss"] for u in updates}
    expected = [
        number
        for number, loss in losses.items()
        if number > 10 and loss > 3 * statistics.median(losses[n] for n in range(number - 10, number))
    ]
    answer = esper[run_of(esper, OLD)].query("value_loss_spikes", factor=3, before=10)
    assert expected and answer["update"].to_list() == expected


def test_value_bias_compares_the_mean_residual_with_its_size(sb3):
    found = {r["run_id"]: r for r in sb3.query("value_bias", fraction=0.3).to_dicts()}
    for run_id, updates in rows(sb3).items():
        biased = sum(abs(r["residual_mean"]) >= 0.3 * r["residual_rms"] for r in updates)
        assert (found[run_id]["updates"], found[run_id]["updates_biased"]) == (len(updates), biased)


def test_gradient_norms_have_numpys_percentiles(sb3):
    found = {r["run_id"]: r for r in sb3.query("gradient_norms").to_dicts()}
    for run_id, updates in rows(sb3).items():
        norms = [r["grad_norm"] for r in updates]
        own = found[run_id]
        assert (own["p50"], own["p90"], own["p99"]) == near(tuple(np.percentile(norms, (50, 90, 99))))
        assert own["largest"] == max(r["grad_norm_max"] for r in updates)
        assert own["clipped_fraction"] == near(np.mean([r["grad_norm"] > r["max_grad_norm"] for r in updates]))


def test_dead_layers_are_those_with_zeros(sb3):
    dead = {  # at level debug an update has one row per step, and counts once
        (run_id, r["layer"], r["update"])
        for run_id, layers in rows(sb3, "gradient_layers").items()
        for r in layers
        if not r["has_grad"] or r["grad_zero"] / r["n"] >= 0.05
    }
    expected = Counter((run_id, layer) for run_id, layer, _ in dead)
    answer = sb3.query("dead_layers", zero_fraction=0.05).to_dicts()
    found = {(r["run_id"], r["layer"]): r["updates_dead"] for r in answer}
    assert found == expected


def test_dead_layers_without_a_gradient_are_dead(tmp_path):
    layers = [
        {"layer": "a", "minibatch": 1, "has_grad": False, "n": 4},
        {"layer": "b", "minibatch": 1, "has_grad": True, "n": 4, "grad_zero": 4},
        {"layer": "c", "minibatch": 1, "has_grad": True, "n": 4, "grad_zero": 3},
    ]
    write_run(tmp_path, "a", updates=[{}], tables={"gradient_layers": layers})
    assert ea.open(tmp_path).query("dead_layers")["layer"].to_list() == ["a", "b"]


def test_layer_updates_are_medians_of_gradient_against_weight(sb3):
    expected: dict[Any, list[Any]] = defaultdict(list)
    for run_id, layers in rows(sb3, "gradient_layers").items():
        for r in layers:
            expected[run_id, r["layer"]].append(r["grad_norm"] / r["weight_norm"] if r["weight_norm"] else None)
    found = {(r["run_id"], r["layer"]): r["update_ratio"] for r in sb3.query("layer_updates").to_dicts()}
    assert found.keys() == expected.keys()
    for key, ratios in expected.items():
        measured = [ratio for ratio in ratios if ratio is not None]
        assert found[key] == (near(statistics.median(measured)) if measured else None)


def test_first_nonfinite_names_what_was_not_finite_first(esper, tmp_path):
    updates = data_of(NEW, "PPO_UPDATE_COMPLETED")
    expected = [u["batch"] for u in updates if math.isnan(u["explained_variance"])]
    [row] = esper[run_of(esper, NEW)].query("first_nonfinite").to_dicts()
    assert (row["what"], row["first_update"], row["updates"]) == ("explained_variance", expected[0], len(expected))
    counts = dict.fromkeys(("return_nan", "return_posinf", "return_neginf"), 0)
    broken = [counts, counts | {"return_posinf": 2}, counts | {"return_nan": 1}]
    layers = [{"update": 3, "layer": "w", "minibatch": 1, "grad_nan": 4, "grad_posinf": 0, "grad_neginf": 1}]
    write_run(tmp_path, "a", updates=broken, tables={"gradient_layers": layers})
    found = ea.open(tmp_path).query("first_nonfinite").select("what", "first_update", "updates", "nonfinite_values")
    assert found.rows() == [("return", 2, 2, 3), ("w", 3, 1, 5)]


# --- named queries: gaps, alarms, comparing ---------------------------------------------------------------------------


def test_updates_with_gaps_are_those_of_the_recorder_and_skipped_numbers(sb3, tmp_path):
    assert sb3.query("updates_with_gaps").is_empty()
    gaps = [{"table_name": "minibatches", "reason": "queue_full", "first_update": 2, "last_update": 3, "rows": 8}]
    write_run(tmp_path, "a", updates=[{"update": n} for n in (1, 2, 6)], tables={"gaps": gaps})
    found = ea.open(tmp_path).query("updates_with_gaps").select("first_update", "last_update", "reason", "rows")
    assert found.rows() == [(2, 3, "queue_full", 8), (3, 5, "not_recorded", None)]


def test_compare_runs_aligns_two_runs_by_progress(sb3):
    a, b = sb3.ids
    sums: dict[str, dict[int, list[float]]] = {run_id: defaultdict(list) for run_id in (a, b)}
    for run_id, updates in rows(sb3).items():
        for r in updates:
            sums[run_id][min(int(r["progress"] * 4), 3)].append(r["value_loss"])
    answer = sb3.query("compare_runs", a=a, b=b, metric="value_loss", bins=4)
    assert answer["progress_from"].to_list() == [0, 0.25, 0.5, 0.75]
    for name, run_id in (("a", a), ("b", b)):
        assert answer[name].to_list() == near([statistics.fmean(sums[run_id][place]) for place in range(4)])
    assert answer["difference"].to_list() == near((answer["b"] - answer["a"]).to_list())


def test_returns_by_progress_average_the_finished_episodes(sb3):
    progress = {run_id: {r["update"]: r["progress"] for r in own} for run_id, own in rows(sb3).items()}
    expected: dict[Any, list[Any]] = defaultdict(list)
    for run_id, episodes in rows(sb3, "episodes").items():
        for r in episodes:
            expected[run_id, min(int(progress[run_id][r["update"]] * 5), 4) / 5].append(r["episode_return"])
    found = {(r["run_id"], r["progress_from"]): r for r in sb3.query("returns_by_progress", bins=5).to_dicts()}
    assert found.keys() == expected.keys()
    for key, returns in expected.items():
        assert (found[key]["episodes"], found[key]["return_max"]) == (len(returns), max(returns))
        assert found[key]["return_mean"] == near(statistics.fmean(returns))


def test_slowest_updates_are_those_that_took_longest(sb3):
    seconds = {(run_id, r["update"]): r["rollout_s"] + r["update_s"] for run_id, own in rows(sb3).items() for r in own}
    answer = sb3.query("slowest_updates", n=5)
    assert answer["seconds"].to_list() == near(sorted(seconds.values(), reverse=True)[:5])
    for r in answer.to_dicts():
        median = statistics.median(value for (run_id, _), value in seconds.items() if run_id == r["run_id"])
        assert r["times_median"] == near(seconds[r["run_id"], r["update"]] / median)


def test_alarms_by_phase_add_up_to_what_was_raised(esper):
    raised = Counter(d["anomaly_type"] for e in events(NEW) if "anomaly_type" in (d := e["data"] or {}))
    answer = esper[run_of(esper, NEW)].query("alarms_by_phase")
    found: Counter[Any] = Counter()
    for r in answer.to_dicts():
        found[f"{r['rule']}_{r['key']}" if r["key"] else r["rule"]] += r["alarms"]
    assert found == raised
    assert set(answer["training_phase"]) <= {"warmup", "early", "mid", "late"}


def test_false_nan_alarms_are_about_a_mark_of_the_trainer(esper):
    raised = data_of(NEW, "NUMERICAL_INSTABILITY_DETECTED")
    [row] = esper[run_of(esper, NEW)].query("false_nan_alarms").to_dicts()
    assert (row["alarms"], row["about_a_sentinel"], row["first_real_update"]) == (len(raised), len(raised), None)


def test_confounders_are_listed_with_the_blocking_ones_first(esper, sb3):
    answer = esper.query("confounders")
    assert {"nan_sentinel", "ratio_blind"} <= set(answer.filter(pl.col.run_id == run_of(esper, NEW))["confounder"])
    assert answer.height == esper.table("run_confounders").collect().height
    assert esper.query("confounders", blocking=True)["blocking"].all()


def test_kept_raw_lists_the_lines_without_a_column(esper, tmp_path):
    assert esper.query("kept_raw").is_empty()
    damaged = content(ALL_NEW) + b"no JSON\nno JSON either\n"
    import_run(damaged, tmp_path)
    answer = ea.open(tmp_path / "runs").query("kept_raw")
    assert (answer["times"].sum(), answer["first_line"].min()) == (2, content(ALL_NEW).count(b"\n") + 1)


# --- named queries: Esper's tables ------------------------------------------------------------------------------------


def test_reward_sums_find_the_steps_whose_components_do_not_add_up(esper):
    for path in (ALL_NEW, ALL_OLD):
        differences = []
        for d, own in zip(
            (d for d in data_of(path, "ANALYTICS_SNAPSHOT") if d["kind"] == "last_action"),
            rewards_of(path),
            strict=True,
        ):
            total = own.get("total_reward", d.get("total_reward"))
            differences.append(abs(total - sum(own.get(name) or 0 for name in COMPONENTS)))
        [row] = esper[run_of(esper, path)].query("reward_sums").to_dicts()
        assert (row["steps"], row["steps_mismatched"]) == (len(differences), sum(d > 1e-5 for d in differences))
        assert row["largest_difference"] == pytest.approx(max(differences), abs=1e-9)


def test_reward_components_list_those_that_vary(esper):
    answer = esper[run_of(esper, ALL_NEW)].query("reward_components", at_least=0.01)
    assert answer["size_fraction"].sum() <= 1 + 1e-9
    assert answer["size_fraction"].is_sorted(descending=True)
    found = dict(answer.select("component", "mean").rows())
    for component, mean in found.items():
        assert mean == near(statistics.fmean(own[component] for own in rewards_of(ALL_NEW)))


def test_action_shift_fractions_add_up_to_one(esper):
    answer = esper[run_of(esper, ALL_NEW)].query("action_shift", bins=2)
    counted: Counter[Any] = Counter()
    for d in data_of(ALL_NEW, "ANALYTICS_SNAPSHOT"):
        if d["kind"] == "action_distribution":
            counted.update(d["action_counts"])
    times = answer.group_by("action").agg(pl.col.times.sum())
    assert dict(times.rows()) == counted
    shares = answer.group_by("progress_from").agg(pl.col.fraction.sum())
    assert shares["fraction"].to_list() == near([1.0] * shares.height)


def test_seed_durations_count_how_the_modules_ended(esper):
    answer = esper[run_of(esper, ALL_NEW)].query("seed_durations")
    ended = Counter(d["blueprint_id"] for d in data_of(ALL_NEW, "SEED_PRUNED"))
    pruned = answer.filter(pl.col.ended == "pruned")
    assert ended and {r["blueprint"]: r["modules"] for r in pruned.to_dicts()} == ended
    lives = {
        d["blueprint_id"]: [e["epochs_total"] for e in data_of(ALL_NEW, "SEED_PRUNED") if e["blueprint_id"] == b]
        for d in data_of(ALL_NEW, "SEED_PRUNED")
        for b in [d["blueprint_id"]]
    }
    assert {r["blueprint"]: r["epochs_median"] for r in pruned.to_dicts()} == {
        blueprint: statistics.median(epochs) for blueprint, epochs in lives.items()
    }


def test_blocked_changes_are_those_without_a_commit(esper):
    steps = data_of(ALL_NEW, "MORPHOLOGY_CAUSAL_LOG")
    proposed = {d["action_id"]: d["operation"] for d in steps}
    committed = {d["action_id"] for d in steps if d["phase"] == "commit"}
    expected = Counter(proposed.values())
    found = esper[run_of(esper, ALL_NEW)].query("blocked_changes").to_dicts()
    assert {r["operation"]: r["proposed"] for r in found} == expected
    assert sum(r["committed"] for r in found) == len(committed)


def test_time_by_phase_is_the_time_of_the_profiles(esper):
    answer = esper[run_of(esper, ALL_NEW)].query("time_by_phase", kind="loop")
    seconds: Counter[Any] = Counter()
    for d in data_of(ALL_NEW, "PHASE_PROFILE_COMPLETED"):
        for phase, times in d["phases"].items():
            seconds[phase] += times["wall_ms"] / 1000
    assert seconds and dict(answer.select("phase", "amount").rows()) == {k: near(v) for k, v in seconds.items()}
    assert answer["fraction"].sum() == near(1.0)
    assert set(esper.query("time_by_phase")["kind"]) == {"loop", "ppo", "stage"}


@pytest.mark.slow
@pytest.mark.skipif(len(WHOLE) < 2, reason="ESPER_TEST_DATA names no folder with the whole files")
def test_the_whole_files_give_the_figures_that_are_in_them(tmp_path):
    for path in WHOLE:
        import_file(path, tmp_path)
    runs = ea.open(tmp_path)
    for path in WHOLE:
        run = runs[run_of(runs, path)]
        counts = Counter(event["event_type"] for event in events(path))
        alarms = dict(run.sql("SELECT rule, count(*) FROM anomalies GROUP BY 1").rows())
        assert alarms == Counter("entropy_collapse" if "entropy_collapse" in rule else rule for rule in raised(path))
        lives = run.sql("SELECT count(*), count_if(ended = 'pruned'), sum(gates_failed) FROM seed_lifecycle").row(0)
        failed = sum(not d["passed"] for d in data_of(path, "SEED_GATE_EVALUATED"))
        assert lives == (counts["SEED_GERMINATED"], counts["SEED_PRUNED"], failed)
        episodes = run.sql("SELECT count(*), sum(episode_return) FROM episode_outcomes").row(0)
        returns = math.fsum(d["episode_reward"] for d in data_of(path, "EPISODE_OUTCOME"))
        assert episodes == (counts["EPISODE_OUTCOME"], near(returns))
    # The two files are known: the confounders of each, and whose rewards add up.
    new, old = (runs[run_of(runs, path)] for path in sorted(WHOLE, reverse=True))
    found = dict(new.query("confounders").group_by("confounder").agg(pl.col.updates.sum()).rows())
    assert (found["nan_sentinel"], found["gradient_norm_drift"], found["entropy_collapse"]) == (237, 66, 825)
    assert old.query("confounders").select("confounder", "updates").rows() == [("value_collapse", 322)]
    assert new.query("reward_sums")["steps_mismatched"].item() == 0


# --- asking -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", named_queries())
def test_every_named_query_runs_over_runs_without_any_rows(name, tmp_path):
    write_run(tmp_path, "a")
    write_run(tmp_path, "b")
    parameters = named_queries()[name].parameters
    values = {p.name: run for p, run in zip(parameters, "ab", strict=False) if p.default == "required"}
    answer = ea.open(tmp_path).query(name, **values)
    assert answer.is_empty()
    assert all(parameter.meaning for parameter in parameters)
    assert named_queries()[name].description.endswith(".")


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("ratio_exceded", {}, "There is no query 'ratio_exceded'. Did you mean ratio_exceeded?"),
        ("../views/layers", {}, "There is no query '../views/layers'"),
        ("ratio_exceeded", {"abov": 2}, "The query ratio_exceeded has no parameter 'abov'. Did you mean above?"),
        ("early_stops", {"n": 2}, "The query early_stops has no parameter 'n'. It takes none."),
        ("ratio_exceeded", {"above": "x"}, "above must be a number, not 'x' (limit of the ratio)."),
        ("moved_first", {"baseline": 1.5}, "baseline must be a whole number, not '1.5'"),
        ("moved_first", {"baseline": 10**30}, "baseline must be a whole number, not"),
        ("confounders", {"blocking": "maybe"}, "blocking must be true or false, not 'maybe'"),
        ("compare_runs", {"a": "a"}, "The query compare_runs needs b: the second run. Add -p b=ID."),
        ("compare_runs", {"a": "a", "b": "zzz"}, "There is no run 'zzz'."),
        (
            "compare_runs",
            {"a": "a", "b": "a", "metric": "aprox_kl"},
            "ppo_updates has no numeric column 'aprox_kl'. Did you mean approx_kl",
        ),
    ],
)
def test_a_wrong_name_or_value_ends_in_a_message_with_what_there_is(name, values, message, tmp_path):
    write_run(tmp_path, "a")
    with pytest.raises(UsageError) as caught:
        ea.open(tmp_path).query(name, **values)
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    "text", ["' OR 1 = 1 --", "'; DROP VIEW runs; --", "$n", "(SELECT 1)", "'' UNION SELECT * FROM read_text('x')"]
)
def test_sql_in_a_parameter_is_only_a_text(text, tmp_path):
    exemplars = [{"scope": "update", "head": head, "place": 1, "log_ratio": 1.0} for head in ("", text)]
    write_run(tmp_path, "a", updates=[{}], tables={"ratio_exemplars": exemplars})
    assert ea.open(tmp_path).query("worst_transitions", head=text).height == 1
    assert ea.open(tmp_path).query("worst_transitions", head=text + " ").height == 0


def test_a_parameter_names_a_run_as_everywhere(tmp_path):
    write_run(tmp_path, "a", updates=[{"approx_kl": 0.5}], total_updates=1)
    write_run(tmp_path, "b", updates=[{"approx_kl": 1.5}], total_updates=1)
    by_name = ea.open(tmp_path).query("compare_runs", a="a", b="b", bins=1)
    assert by_name.rows() == [(0.0, 1.0, 0.5, 1.5, 1.0)]
    assert by_name.equals(ea.open(tmp_path).query("compare_runs", a=run_id_of("a"), b=run_id_of("b"), bins=1))


def test_every_view_and_named_query_has_a_test():
    texts = [path.read_text(encoding="utf-8") for path in (Path(__file__), Path(__file__).with_name("test_views.py"))]
    tests = [name for text in texts for name in re.findall(r"^def (test_\w+)", text, flags=re.MULTILINE)]
    names = [*named_queries(), *views()]
    assert [name for name in names if not any(test.startswith(f"test_{name}_") for test in tests)] == []
    assert len(named_queries()) >= 20
    assert set(views()) <= set(VIEWS)
