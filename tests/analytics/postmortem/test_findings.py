"""Findings on runs that ended early, on changed or inhibited rules, and on what several keys or runs have in common."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

import esper_analytics as ea
from esper_analytics.postmortem.findings import findings
from esper_analytics.postmortem.model import RunFindings
from esper_recorder.contract.rules.ruleset import RuleSet, load_profile
from tests.analytics.postmortem.recorded_runs import RULES, WRECKED, healthy, wrecked
from tests.analytics.postmortem.test_report import html_of, text_of
from tests.builders import write_run


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


def only(root: Path, rules: Any = RULES, **options: Any) -> RunFindings:
    (run,) = findings(ea.replay(root, rules, **options)).runs
    return run


def attempts(error: str | None, how: str | None = "raised") -> dict[str, Any]:
    return {"attempts": [{"attempt": 1, "from_update": 1, "how": how, "error": error}]}


LONG = (
    "ValueError: Expected logits of Categorical "
    + "x " * 100
    + "values:\ntensor([[nan, nan],\n"
    + "        [nan],\n" * 400
)


class TestEnding:
    def test_an_error_is_a_failure_even_if_nothing_fired(self, root):
        healthy(root, manifest=attempts("ValueError: found invalid values:\ntensor(nan)"))
        healthy(root, "fine")
        found = findings(ea.replay(root, RULES))
        assert [run.failed for run in found.runs] == [True, False]
        assert found.runs[0].verdict == (
            "The training ended with an error after update 3: ValueError: found invalid values. "
            "Nothing fired in 3 updates."
        )
        html = html_of(root)
        assert "Post-mortem of 2 runs: 1 failed" in text_of(html)
        assert '<li class="verdict critical">' in html
        assert '<span class="badge critical">ended with an error</span>' in html
        assert "an error after 3" in text_of(html)

    def test_a_long_error_is_shortened_in_the_verdict_and_whole_in_a_block(self, root):
        healthy(root, manifest=attempts(LONG))
        run = only(root)
        line = run.verdict.split("update 3: ")[1].split(" Nothing fired")[0]
        assert len(line) <= 160
        assert line.endswith("…")
        assert run.error is not None and len(run.error) < 2_100
        assert run.error.endswith("more characters")
        html = html_of(root)
        assert '<pre class="error"><code>ValueError' in html
        ea.report(ea.replay(root, RULES), root.parent / "report.md")
        assert "\n    tensor([[nan, nan],\n" in (root.parent / "report.md").read_text()

    @pytest.mark.parametrize("error", ["KeyboardInterrupt: ", "KeyboardInterrupt"])
    def test_ctrl_c_is_an_interruption_not_an_error(self, root, error):
        healthy(root, manifest=attempts(error))
        healthy(root, "fine")
        run = findings(ea.replay(root, RULES)).runs[1]
        assert (run.ended, run.failed, run.error) == ("interrupted", False, None)
        assert run.verdict.endswith("The training was interrupted (Ctrl-C) after update 3.")
        assert run.recording[0] == "Interrupted (Ctrl-C) after update 3 (100 % of training)."
        html = html_of(root)
        assert "none failed, 1 interrupted" in text_of(html)
        assert '<li class="verdict ended">' in html

    def test_an_error_without_text_leaves_no_dangling_colon(self, root):
        healthy(root, manifest=attempts(None))
        assert "after update 3: the error was not recorded." in only(root).verdict

    def test_a_killed_run_is_neither_healthy_nor_failed(self, root):
        healthy(root, ended=None)
        html = html_of(root)
        assert '<li class="verdict ended">' in html
        assert '<span class="badge ended">killed</span>' in html
        assert '<span class="badge ">' not in html

    def test_an_error_before_the_first_update_is_reported(self, root):
        write_run(root, ended="raised")
        assert only(root).verdict == (
            "The training ended with an error: ValueError: wrecked. "
            "No PPO update was recorded, so no rule could be evaluated."
        )

    def test_an_update_that_was_cut_short_is_reported(self, root):
        rows = [dict(row) for row in WRECKED[:3]]
        rows[-1]["interrupted"] = True
        write_run(root, updates=rows, manifest=attempts("KeyboardInterrupt"))
        assert (
            "Update 3 cut short by the end of the training; its metrics cover the minibatches it got to."
            in only(root).recording
        )
        assert "A hollow point is an update that was cut short." in text_of(html_of(root))


class TestExemplars:
    def rows(self, *log_ratios: float) -> dict[str, Any]:
        common = {"update": 3, "scope": "update", "head": "", "minibatch": 1, "action": [0.0]}
        placed = enumerate(log_ratios, 1)
        return {"ratio_exemplars": [common | {"place": place, "log_ratio": one} for place, one in placed]}

    def test_a_rule_on_the_smallest_ratio_shows_transitions_below_1(self, root):
        rules = RuleSet.parse('[rules.low]\nseverity = "warning"\ncolumn = "ratio_min"\nbelow = 0.2')
        wrecked(root, tables=self.rows(2.25, math.log(0.1), -1.0))
        exemplars = only(root, rules).exemplars
        assert exemplars is not None
        assert [round(row["ratio"], 3) for row in exemplars.rows] == [0.1, 0.368]
        assert exemplars.missing == ""  # 0.1 is what it fired on

    def test_a_table_of_8_of_16_says_so(self, root):
        rules = RuleSet.parse('[rules.kl]\nseverity = "warning"\ncolumn = "approx_kl"\nabove = 0.3')
        wrecked(root, tables=self.rows(*(-2.0 - 0.1 * n for n in range(16))))
        exemplars = only(root, rules).exemplars
        assert exemplars is not None
        assert exemplars.summary == "8 of the 16 worst transitions: all became less likely; all took action 0."
        assert len(exemplars.rows) == 8

    def test_a_value_that_fired_but_was_not_recorded_is_reported(self, root):
        wrecked(root, tables=self.rows(-9.0, -8.0))
        exemplars = only(root).exemplars
        assert exemplars is not None
        assert "ratio_max = 9.5, is not among them" in exemplars.missing
        assert len(exemplars.rows) == 2  # none above 1 was recorded, so the others are shown

    def test_rules_on_other_signals_have_no_worst_transitions(self, root):
        rules = RuleSet.parse('[rules.v]\nseverity = "critical"\ncolumn = "explained_variance"\nabove = 0.25')
        wrecked(root, tables=self.rows(2.0))
        run = only(root, rules)
        assert run.incidents
        assert run.exemplars is None


class TestRules:
    def test_the_rules_and_every_change_come_before_what_failed(self, root):
        wrecked(root)
        ea.report(ea.replay(root, "default", values={"ratio_explosion.above": 2.0}), root.parent / "r.html")
        text = text_of((root.parent / "r.html").read_text())
        assert "Rules: default with ratio_explosion.above = 2 instead of 10." in text
        assert text.index("Rules: default") < text.index("What failed first")

    def test_the_evidence_for_a_changed_threshold_names_the_original(self, root):
        wrecked(root)
        run = only(root, "default", values={"ratio_explosion.above": 2.0, "ratio_collapse.for": 1.0})
        evidence = {one.rule: one.evidence for one in run.first_firings}
        assert evidence["ratio_explosion"].startswith("For the shipped threshold 10: TRL skips a batch")
        assert not evidence["ratio_collapse"].startswith("For the")

    def test_a_threshold_per_phase_or_relative_is_described(self, root):
        wrecked(root)
        run = only(root, "default", values={"value_collapse.below": -0.9, "kl_high.above": 0.2})
        assert "kl_high.above = 0.2 instead of 3 times target_kl, 0.05 otherwise" in run.evaluated_with
        assert "value_collapse.below = -0.9 instead of -1 (warmup), -0.5 (early)" in run.evaluated_with

    def test_changes_to_custom_rules_are_listed_without_the_original(self, root):
        wrecked(root)
        assert (
            only(root, RULES.with_values({"kl_spike.above": 0.3})).evaluated_with == "tests with kl_spike.above = 0.3"
        )

    def test_runs_evaluated_with_different_rules_are_listed_by_rules(self, root):
        wrecked(root, rules=RULES.text, profile="mine")
        healthy(root)
        ea.report(ea.replay(root), root.parent / "r.md")
        text = (root.parent / "r.md").read_text()
        assert "Rules: mine (for wrecked)." in text
        assert "Rules: default (for healthy)." in text

    def test_an_inhibited_rule_names_the_rule_that_inhibits_it(self, root):
        rows = [{"approx_kl": value} for value in (0.01, 0.1, 0.9, 0.01, 0.01)]
        write_run(root, updates=rows)
        run = only(root, "default")
        notes = {one.rule: one.note for one in run.first_firings}
        assert notes == {"kl_high": "kl_high is inhibited while kl_extreme fires.", "kl_extreme": ""}
        assert {one.rule: one.outcome for one in run.incidents} == {
            "kl_high": "inhibited by kl_extreme",
            "kl_extreme": "recovered",
        }

    def test_a_rule_that_inhibited_another_throughout_says_so(self, root):
        write_run(root, updates=[{"approx_kl": 0.9}, {"approx_kl": 0.9}])
        (first,) = only(root, "default").first_firings
        assert (first.rule, first.note) == ("kl_extreme", "kl_high is inhibited while kl_extreme fires.")


class TestManyKeys:
    def layers(self, norms: dict[str, float]) -> dict[str, Any]:
        rows = [
            {"update": u, "minibatch": 1, "layer": layer, "has_grad": True, "grad_norm": norm}
            for u in (1, 2)
            for layer, norm in norms.items()
        ]
        return {"gradient_layers": rows}

    def test_incidents_with_the_same_course_for_many_keys_are_one_row(self, root):
        names = {f"{'deep.' * 12}{n}.weight": 20.0 + n for n in range(10)}
        healthy(root, tables=self.layers(names | {"other": 1.0}))
        run = only(root)
        assert len(run.incidents) == 10
        (group,) = run.grouped
        assert group.what == "10 layers"
        assert group.incident.peak_value == 29.0  # the furthest beyond 10
        html = html_of(root)
        assert "and 7 more" in text_of(html)
        assert '<span class="keys">' in html
        assert "layer_gradient (10 layers) (info)" in html  # the timeline

    def test_keys_with_different_courses_stay_apart(self, root):
        tables = self.layers({"a": 20.0, "b": 20.0})
        tables["gradient_layers"][-1]["grad_norm"] = 1.0  # b at update 2
        healthy(root, tables=tables)
        assert [(group.keys, group.what) for group in only(root).grouped] == [(["a"], ""), (["b"], "")]


class TestSeveralRuns:
    def test_only_settings_that_differ_are_in_the_overview(self, root):
        healthy(root, "a", manifest={"config": {"learning_rate": 3e-4, "seed": 1}})
        healthy(root, "b", manifest={"config": {"learning_rate": 0.03, "seed": 1}})
        differing = {"learning_rate": {"0.0003": ["a"], "0.03": ["b"]}}
        assert findings(ea.replay(root, RULES)).settings == differing
        text = text_of(html_of(root))
        assert "Settings that differ: learning_rate 0.0003 (a) , 0.03 (b)" in text
        ea.report(ea.replay(root, RULES), root.parent / "r.md")
        assert "- learning_rate: 0.0003 (a), 0.03 (b)\n" in (root.parent / "r.md").read_text()
        ea.report(ea.replay(root, RULES), root.parent / "r.json")
        settings = json.loads((root.parent / "r.json").read_text())["settings"]
        assert settings == differing

    def test_a_setting_of_one_run_only_is_not_a_difference(self, root):
        healthy(root, "a", manifest={"config": {"gamma": 0.9, "seed": 1}})
        healthy(root, "b", manifest={"config": {"seed": 1}})
        assert findings(ea.replay(root, RULES)).settings == {}
        healthy(root, "c", manifest={"config": {"gamma": 0.8, "seed": 1}})
        (values,) = findings(ea.replay(root, RULES)).settings.values()
        assert list(values.items()) == [("0.9", ["a"]), ("0.8", ["c"]), ("not recorded", ["b"])]

    def test_differences_come_before_settings_that_some_run_lacks_and_the_rest_is_counted(self, root):
        half = {f"own_{n}": n for n in range(14)}
        healthy(root, "a", manifest={"config": {**half, "learning_rate": 3e-4}})
        healthy(root, "b", manifest={"config": {**{key: -n for key, n in half.items()}, "learning_rate": 0.03}})
        healthy(root, "c", manifest={"config": {"learning_rate": 3e-4}})
        found = findings(ea.replay(root, RULES)).settings
        # 14 settings, of which own_0 is 0 in both, and the learning rate
        assert list(found) == ["learning_rate", *(f"own_{n}" for n in range(1, 14))]
        ea.report(ea.replay(root, RULES), root.parent / "r.md")
        text = (root.parent / "r.md").read_text()
        assert "- learning_rate: " in text and "And 2 more settings; see the provenance" in text

    def test_runs_of_one_name_are_named_with_the_end_of_their_run_id(self, root):
        healthy(root, "hot", manifest={"run_id": "hot-20260101T000000Z-abc123"})
        healthy(root, "hot", manifest={"run_id": "hot-20260101T000001Z-def456"})
        html = html_of(root)
        assert "</span>hot abc123</li>" in html
        assert "</span>hot def456</li>" in html


class TestNotApplicable:
    def test_entropy_of_continuous_actions_quotes_the_contract_and_is_expected(self, root):
        rows = [{"approx_kl": 0.01, "entropy": 1.4}] * 8
        write_run(root, updates=rows)
        reasons = {one.rule: one.reason for one in only(root, "default").not_applicable}
        assert reasons["entropy_low"].endswith("not applicable to continuous actions")
        assert "callout calm" in html_of(root, load_profile("default"))

    def test_entropy_that_was_not_measured_at_all_is_missing_data(self, root):
        write_run(root, updates=[{"approx_kl": 0.01}] * 8)
        assert "entropy_low" in {one.rule for one in only(root, "default").without_data}

    def test_a_run_too_short_for_a_rule_is_expected(self, root):
        write_run(root, updates=[{"grad_norm": 1.0}] * 4)
        reasons = {one.rule: one.reason for one in only(root, "default").not_applicable}
        assert reasons["gradient_norm_drift"] == "warming up: the run is too short, with 4 updates"


def test_the_callout_of_unreadable_files_has_a_margin(root):
    path = healthy(root)
    healthy(root, "other")
    (path / "ppo_updates" / "part-a1-r0-000009.parquet").write_bytes(b"PAR1")
    html = html_of(root)
    assert '<div class="callout"><p><strong>Some data could not be read.' in html
    (rule,) = [line for line in html.splitlines() if line.startswith(".callout {")]
    assert "margin: 0 0 24px" in rule
