"""All checks of a profile as one call."""

from __future__ import annotations

import math
from typing import Any

import pytest

from esper_recorder.contract.rules.anomaly_detector import AnomalyDetector, AnomalyReport
from esper_recorder.contract.rules.ruleset import RuleSet, load_profile

HEALTHY: dict[str, Any] = {
    "ratio_max": 1.1,
    "ratio_min": 0.9,
    "ratio_nonfinite": 0,
    "explained_variance": 0.5,
    "nonfinite_count": 0,
    "approx_kl": 0.01,
    "entropy_normalized": 0.9,
    "grad_norm": 1.0,
}
STATE = {"layer": "lstm", "nan_found": False, "inf_found": False, "l2_norm": 3.0}
TABLES: dict[str, list[dict[str, Any]]] = {
    "recurrent_state": [STATE | {"kind": "h"}, STATE | {"kind": "c"}],
    "batches": [{"avg_accuracy": 50.0}],
}


def check(progress: float | None = 0.5, tables: Any = TABLES, **changes: Any) -> AnomalyReport:
    """Check the second update, so that drift and trends have a value before it."""
    detector = AnomalyDetector()
    detector.check_all(HEALTHY, progress=0.5, tables=TABLES)
    return detector.check_all(HEALTHY | changes, progress=progress, tables=tables)


def test_every_check_evaluates_a_healthy_row():
    report = check()
    assert report.abstained == ()
    assert {one.type for one in report.anomalies} == {"plateau"}  # two batches of 50: the mean moved by 0


@pytest.mark.parametrize(
    ("changes", "type_", "detail"),
    [
        ({"ratio_max": 6.935}, "ratio_explosion", "ratio_max = 6.935 > 5"),
        ({"ratio_min": 0.05}, "ratio_collapse", "ratio_min = 0.05 < 0.1"),
        ({"explained_variance": -0.354}, "value_collapse", "explained_variance = -0.354 < 0 (in mid)"),
        ({"nonfinite_count": 2}, "numerical_instability", "nonfinite_count or ratio_nonfinite = 2 > 0"),
        ({"approx_kl": 0.2}, "kl_spike", "approx_kl = 0.2 > 0.1"),
        ({"approx_kl": 0.6}, "kl_extreme", "approx_kl = 0.6 > 0.5"),
        ({"entropy_normalized": 0.2}, "entropy_low", "entropy_normalized = 0.2 < 0.3"),
        ({"grad_norm": 2.0}, "gradient_norm_drift", "drift of grad_norm = 1 > 0.5"),
    ],
)
def test_each_check_fires_and_says_what_it_compared(changes: dict[str, Any], type_: str, detail: str):
    details = {anomaly.type: anomaly.detail for anomaly in check(**changes).anomalies}
    assert details[type_] == detail


def test_at_the_thresholds_nothing_fires():
    report = check(ratio_max=5.0, ratio_min=0.1, explained_variance=0.0, approx_kl=0.1, entropy_normalized=0.3)
    assert {one.type for one in report.anomalies} == {"plateau"}


def test_the_drift_of_the_gradient_is_among_all_checks():
    assert {"gradient_norm_drift", "gradient_health_drift"} <= {one.type for one in check(grad_norm=200.0).anomalies}


def test_what_was_not_measured_abstains_and_is_not_healthy():
    detector = AnomalyDetector()
    report = detector.check_all({}, progress=0.5, tables={})
    assert not report.has_anomaly
    reasons = {one.type: one.reason for one in report.abstained}
    assert set(reasons) == {rule.name for rule in detector.rules.rules}
    assert reasons["ratio_explosion"] == "not measured"
    assert reasons["lstm_nan"] == "table not recorded by this run"


def test_nan_abstains_and_is_not_healthy():
    report = check(ratio_max=math.nan, approx_kl=math.nan)
    assert {one.type: one.reason for one in report.abstained}["ratio_explosion"] == "not finite"


def test_without_a_progress_checks_with_phases_abstain():
    reasons = {one.type: one.reason for one in check(progress=None).abstained}
    assert reasons == {"value_collapse": "no threshold", "performance_degradation": "no threshold"}


def test_an_abstention_is_of_this_update_only():
    detector = AnomalyDetector()
    detector.check_all({}, progress=0.5, tables={})
    later = detector.check_all(HEALTHY, progress=0.5, tables=TABLES)
    assert {one.reason for one in later.abstained} == {"warming up"}


def test_two_anomalies_of_one_type_keep_both_details():
    norms = {"actor": 101.0, "critic": 300.0}
    states = [STATE | {"kind": "h", "layer": name, "l2_norm": norm} for name, norm in norms.items()]
    report = check(tables=TABLES | {"recurrent_state": states})
    assert report.details["lstm_h_explosion"] == (
        "recurrent_state{kind=h}.l2_norm of actor = 101 > 100",
        "recurrent_state{kind=h}.l2_norm of critic = 300 > 100",
    )


def test_every_argument_is_required():
    detector = AnomalyDetector()
    missing: list[dict[str, Any]] = [{}, {"progress": 0.5}, {"tables": {}}]
    for arguments in missing:
        with pytest.raises(TypeError, match="missing"):
            detector.check_all({}, **arguments)
    with pytest.raises(TypeError, match="row is a list; give a mapping"):
        detector.check_all([], progress=None, tables={})  # type: ignore[arg-type]


def test_it_lists_its_checks_with_the_numbers_of_its_profile():
    checks = AnomalyDetector().checks
    assert "ratio_explosion (critical): `ppo_updates.ratio_max` is above 5" in checks
    assert "below -0.5 (warmup), -0.2 (early), 0 (mid), 0.1 (late)" in checks
    changed = load_profile("esper-review").with_values({"ratio_explosion.above": 7.0})
    assert "`ppo_updates.ratio_max` is above 7" in AnomalyDetector(changed).checks


def test_importing_either_distribution_parses_no_rules(run_python):
    run_python(
        "import esper_recorder.contract.rules.parser as parser\n"
        "parser.parse_data = None  # any call fails\n"
        "import esper_recorder.contract.rules.anomaly_detector, esper_recorder.recorder, esper_recorder.esper.hub\n"
        "import esper_analytics.detection.replay, esper_analytics.importers.esper_jsonl\n"
    )


def test_other_rules_can_be_checked():
    rules = RuleSet.parse('[rules.r]\nseverity = "info"\ncolumn = "n"\nnonfinite = true', "own")
    report = AnomalyDetector(rules).check_all({"n": math.inf}, progress=None, tables={})
    assert report.details == {"r": ("n = inf",)}


def test_phases_are_half_open():
    below = {0.0999: "warmup", 0.1: "early", 0.25: "mid", 0.75: "late", 1.0: "late"}
    for progress, phase in below.items():
        anomalies = check(progress, explained_variance=-9.0).anomalies
        assert [one.phase for one in anomalies if one.type == "value_collapse"] == [phase]
