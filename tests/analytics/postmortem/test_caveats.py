"""The caveats of a verdict: the report and the sweep quote `run_confounders`."""

from __future__ import annotations

import json
from pathlib import Path

import esper_analytics as ea
from esper_analytics.postmortem.caveats import reads_ratios, sweep_caveats
from esper_analytics.postmortem.findings import findings
from esper_recorder.contract.rules.ruleset import load_profile
from tests.builders import write_run

RATIO_RULES = {
    *("first_ratio_far_off", "first_ratio_off", "kl_extreme", "kl_high", "ratio_explosion", "ratio_collapse"),
    *("clip_fraction_high", "head_ratio_explosion"),
}


def sentinels(root: Path, name: str = "marked") -> None:
    """A run of three updates: every ratio is 1, and the NaN alarms at two of them are about the trainer's mark."""
    mark = {"ratio_max": 1.0, "ratio_min": 1.0, "nonfinite_fields": ["explained_variance"], "return_variance_low": True}
    plain = {"ratio_max": 1.0, "ratio_min": 1.0, "nonfinite_fields": [], "return_variance_low": False}
    alarms = [{"update": n, "rule": "numerical_instability", "key": "", "severity": "warning"} for n in (1, 3)]
    write_run(root, name, updates=[mark, plain, mark], tables={"alarms": alarms})


def meanings(runs: ea.Runs) -> dict[str, str]:
    return dict(runs.table("run_confounders").select("confounder", "meaning").unique().collect().iter_rows())


def test_the_verdict_quotes_the_caveats_of_the_view(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    sentinels(tmp_path / "runs")
    result = ea.replay(tmp_path / "runs", "esper-2026-06")
    [run] = findings(result).runs
    assert [(one.rule, one.updates) for one in run.incidents] == [("numerical_instability", 2)]
    caveats = {one.confounder: (one.updates, one.first_update, one.last_update, one.rules) for one in run.caveats}
    assert caveats == {
        "nan_sentinel": (2, 1, 3, ["numerical_instability"]),
        "ratio_blind": (None, None, None, ["ratio_nan_inf", "ratio_explosion", "ratio_collapse"]),
    }
    text_of = meanings(result.runs)
    sentinel = f"Caveat (nan_sentinel, 2 updates): {text_of['nan_sentinel']}; disregard numerical_instability there."
    blind = f"Caveat (ratio_blind): {text_of['ratio_blind']}; disregard ratio_nan_inf, ratio_explosion and"
    assert sentinel in run.verdict and blind in run.verdict
    for name in ("r.html", "r.md", "r.json"):
        ea.report(result, tmp_path / name)
        text = (tmp_path / name).read_text(encoding="utf-8")
        assert sentinel in text and blind in text, name
        assert "evaluated at every update." not in text
    [facts] = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))["runs"]
    assert {one["confounder"]: one["meaning"] for one in facts["caveats"]}.items() <= text_of.items()
    assert '<span class="badge unknown">caveats</span>' in (tmp_path / "r.html").read_text(encoding="utf-8")


def test_a_run_whose_ratios_move_has_no_caveats(tmp_path: Path) -> None:
    write_run(tmp_path, updates=[{"ratio_max": 1.0, "ratio_min": 1.0}, {"ratio_max": 1.2, "ratio_min": 0.9}])
    [run] = findings(ea.replay(tmp_path, "default")).runs
    assert run.caveats == [] and "Caveat" not in run.verdict


def test_rules_that_read_ratios_are_recognised_by_their_signals() -> None:
    assert {rule.name for rule in load_profile("default").rules if reads_ratios(rule)} == RATIO_RULES


def test_a_sweep_warns_once_for_all_runs_with_the_same_caveat(tmp_path: Path) -> None:
    sentinels(tmp_path, "one")
    sentinels(tmp_path, "two")
    runs = ea.open(tmp_path)
    rules = {rule.name: rule for rule in load_profile("default").rules}
    assert list(sweep_caveats(runs, rules["ratio_explosion"])) == [
        f"2 runs: ratio_blind: {meanings(runs)['ratio_blind']}"
    ]
    assert list(sweep_caveats(runs, rules["entropy_low"])) == []
