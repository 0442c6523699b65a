"""The report on runs of every kind, in each format."""

from __future__ import annotations

import json
import math
import os
import re
from html.parser import HTMLParser
from pathlib import Path

import polars as pl
import pytest

import esper_analytics as ea
from esper_analytics.errors import EsperError, UsageError
from esper_analytics.postmortem.findings import findings
from esper_recorder.contract.rules.ruleset import RuleSet
from tests.analytics.postmortem.recorded_runs import RULES, WRECKED, healthy, wrecked
from tests.builders import write_run
from tests.support import GOLDEN

REPORT = GOLDEN / "report.md"


def html_of(root: Path, rules: RuleSet = RULES, **options) -> str:
    out = root.parent / "report.html"
    ea.report(ea.replay(root, rules), out, **options)
    return out.read_text(encoding="utf-8")


def text_of(html: str) -> str:
    """The text of a page, without its figures."""
    html = re.sub(r"<style>.*?</style>|<svg.*?</svg>", "", html, flags=re.DOTALL)
    return " ".join(re.sub(r"<[^>]+>", " ", html).split())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "runs").mkdir()
    return tmp_path / "runs"


class Page(HTMLParser):
    """Every element with its attributes, and whether each that opens also closes."""

    VOID = ("meta", "img", "br", "link")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.found.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, f"</{tag}> closes nothing"


def test_the_markdown_report_is_the_golden_file(root):
    """Write it again after an intended change: ESPER_WRITE_GOLDEN=1 pytest tests/analytics/postmortem/test_report.py"""
    wrecked(root)
    healthy(root)
    write_run(root, "killed", updates=[{"ratio_max": 1.0}, {"ratio_max": 7.0}], total_updates=10, ended=None)
    other = ea.replay(root, RULES.with_values({"ratio_explosion.above": 20.0}))
    out = root.parent / "report.md"
    ea.report(ea.replay(root, RULES), out, against=other, command="esper report runs --rules tests.toml -o report.md")
    text = re.sub(r"Written .* by esper-analytics .*\.", "Written TODAY by esper-analytics VERSION.", out.read_text())
    if os.environ.get("ESPER_WRITE_GOLDEN"):
        REPORT.parent.mkdir(exist_ok=True)
        REPORT.write_text(text, encoding="utf-8", newline="\n")
    assert text == REPORT.read_text(encoding="utf-8")
    assert sorted(path.name for path in (root.parent / "report-plots").iterdir()) == [
        "healthy-20260101T000000Z-abc123.png",
        "killed-20260101T000000Z-abc123.png",
        "wrecked-20260101T000000Z-abc123.png",
    ]


class TestVerdict:
    def test_the_first_critical_firing_is_the_first_failure_and_earlier_firings_are_signs(self, root):
        wrecked(root)
        run = findings(ea.replay(root, RULES)).runs[0]
        assert run.verdict.startswith(
            "First failure: ratio_explosion at update 3 (38 % of training, phase early): ratio_max was 9.5, above 5."
        )
        assert "Earlier signs: kl_spike (warning) at update 2." in run.verdict
        assert run.severity == "critical"

    def test_a_run_without_a_critical_incident_has_not_failed(self, root):
        healthy(root, updates=[{"approx_kl": 0.2, "policy_std": 1.0}], total_updates=1, tables={})
        run = findings(ea.replay(root, RULES)).runs[0]
        assert run.verdict.startswith("Nothing critical in 1 update. 1 incident; the first was kl_spike (warning)")

    def test_a_rule_without_data_is_named_in_the_verdict(self, root):
        wrecked(root)
        run = findings(ea.replay(root, RULES)).runs[0]
        assert run.verdict.endswith("1 of 5 rules had no data: policy_std_gone.")

    def test_a_run_without_data_for_any_rule_is_not_called_healthy(self, root):
        write_run(root, updates=[{"value_loss": 1.0}])
        run = findings(ea.replay(root, RULES)).runs[0]
        assert run.verdict == "Nothing could be evaluated: none of the 5 rules had data."
        assert not run.evaluated
        assert "not evaluated" in text_of(html_of(root))
        assert "nothing fired" not in text_of(html_of(root)).lower()
        healthy(root)
        text = text_of(html_of(root))
        assert "Post-mortem of 2 runs: 1 not evaluated" in text
        assert "not evaluated – – –" in text  # not 0 incidents: no rule was evaluated

    def test_a_healthy_verdict_counts_the_rules_without_data(self, root):
        write_run(root, updates=[{"ratio_max": 1.0}])
        text = text_of(html_of(root))
        assert "nothing fired, 3 of 5 rules without data" in text
        assert "1 of 5 rules did not apply: layer_gradient" in text

    def test_a_run_without_updates_is_not_evaluated(self, root):
        write_run(root)
        run = findings(ea.replay(root, RULES)).runs[0]
        assert run.verdict == "No PPO update was recorded, so no rule could be evaluated."
        assert not run.evaluated
        html_of(root)

    def test_several_runs_come_worst_first_and_those_of_one_name_with_the_end_of_their_run_id(self, root):
        healthy(root, "a")
        wrecked(root, name="b")
        healthy(root, "a", manifest={"run_id": "a-2"})
        runs = findings(ea.replay(root, RULES)).runs
        assert [run.name for run in runs] == ["b", "a 2", "a abc123"]


class TestContent:
    def test_a_firing_is_listed_with_value_threshold_and_evidence(self, root):
        wrecked(root)
        text = text_of(html_of(root))
        assert "ratio_max: 9.5 &gt; 5 Five times as likely as when it was taken." in text
        assert "grad_norm" in text
        assert "12 &gt; 10" in text

    def test_an_infinite_peak_is_reported_as_infinite(self, root):
        wrecked(root)
        incident = next(i for i in findings(ea.replay(root, RULES)).runs[0].incidents if i.rule == "ratio_explosion")
        assert (incident.peak_update, incident.peak_value, incident.comparison) == (5, math.inf, "∞ > 5")

    def test_rules_without_data_are_listed_with_the_reason(self, root):
        wrecked(root)
        run = findings(ea.replay(root, RULES)).runs[0]
        assert [(rule.rule, rule.abstained) for rule in run.never_evaluated] == [("policy_std_gone", 8)]
        partly = {rule.rule: rule for rule in run.partly_evaluated}
        assert "not measured" in partly["kl_spike"].reason
        assert "return_std below 0.1" in partly["value_collapse"].reason
        assert "1 of 5 rules had no data." in text_of(html_of(root))

    def test_the_worst_transitions_are_those_of_the_update_that_failed(self, root):
        wrecked(root)
        exemplars = findings(ea.replay(root, RULES)).runs[0].exemplars
        assert exemplars is not None
        assert exemplars.update == 3
        assert exemplars.summary == (
            "2 of the 3 worst transitions, those that became more likely: all took action 1; from epoch 2."
        )
        assert exemplars.missing == ""  # the largest ratio is that of the first
        assert exemplars.rows[0]["ratio"] == pytest.approx(9.5)
        assert exemplars.rows[0]["value"] is None
        assert "not measured" in text_of(html_of(root))

    def test_a_gap_in_the_recording_is_reported(self, root):
        wrecked(root)
        text = text_of(html_of(root))
        assert "Gap: minibatches, updates 6–7, 20 rows: queue full." in text

    def test_updates_that_are_missing_are_named(self, root):
        write_run(root, updates=[{"update": u, "ratio_max": 1.0} for u in (1, 2, 5, 9)], total_updates=9)
        assert "5 updates of 9 not recorded: 3–4 and 6–8." in text_of(html_of(root))

    def test_a_killed_run_says_what_is_unknown(self, root):
        wrecked(root, ended=None, total_updates=16)
        text = text_of(html_of(root))
        assert "The process was killed after update 8." in text
        assert "Killed: the process recorded no end. Recorded up to update 8 (50 % of training)" in text

    def test_a_resumed_run_says_from_where_and_what_the_recorder_dropped(self, root):
        lost = {"rows": 12, "updates": 1, "writes": 2, "message": "No space left on device"}
        attempts = [
            {"attempt": 1, "from_update": 1, "how": None, "lost": lost},
            {"attempt": 2, "from_update": 6, "how": "finished"},
        ]
        wrecked(root, manifest={"attempts": attempts})
        text = text_of(html_of(root))
        assert "Resumed 1 time, from update 6." in text
        dropped = "1 update, 12 rows and 2 failed writes (\u201cNo space left on device\u201d)"
        assert f"Dropped by the recorder: {dropped}." in text

    def test_a_run_that_raised_quotes_the_error(self, root):
        wrecked(root, ended="raised")
        assert "Ended with an error after update 8 (100 % of training): ValueError: wrecked." in text_of(html_of(root))

    def test_what_other_rules_change_is_listed(self, root):
        wrecked(root)
        other = ea.replay(root, RULES.with_values({"ratio_explosion.above": 20.0}))
        found = findings(ea.replay(root, RULES), other)
        assert found.against == "tests with ratio_explosion.above = 20"
        # above 5 fire updates 3, 4 and 5; above 20 only 4 and 5
        (change,) = found.runs[0].differences
        expected = {"rule": "ratio_explosion", "key": "", "change": "new"}
        assert change == expected | {"updates": 1, "first_update": 3, "last_update": 3}

    def test_a_comparison_without_differences_says_so(self, root):
        wrecked(root)
        text = text_of(html_of(root, against=ea.replay(root, RULES)))
        assert "No difference: the same rules fire at the same updates." in text

    def test_the_comparison_with_the_live_alarms_lists_new_and_gone_firings(self, root):
        wrecked(root, tables={"alarms": [{"update": 3, "rule": "ratio_explosion", "key": "", "severity": "critical"}]})
        found = findings(ea.replay(root, RULES), "live")
        changes = {(d["rule"], d["change"]): d["updates"] for d in found.runs[0].differences}
        # the ratio fires at 3, 4 and 5, the KL at 2, 3 and 4; explained variance at 6 (-0.2, late)
        assert changes == {("kl_spike", "new"): 3, ("ratio_explosion", "new"): 2, ("value_collapse", "new"): 1}

    def test_the_provenance_lists_the_rules_and_the_changes(self, root):
        wrecked(root)
        changed = RULES.with_values({"kl_spike.above": 0.3})
        text = text_of(html_of(root, changed))
        assert changed.sha256 in text
        assert "kl_spike.above = 0.3" in text
        assert "Recorded without rules." in text
        assert "torch 2.13.0" in text

    def test_an_unreadable_file_is_reported_prominently(self, root):
        path = wrecked(root)
        (path / "ppo_updates" / "part-a1-r0-000009.parquet").write_bytes(b"PAR1")
        text = text_of(html_of(root))
        assert "Some data could not be read." in text
        assert "part-a1-r0-000009.parquet" in text

    def test_runs_beyond_the_last_section_are_in_the_overview(self, root, monkeypatch):
        monkeypatch.setattr("esper_analytics.postmortem.render.MOST_RUNS", 2)
        for n in range(4):
            healthy(root, f"run-{n}")
        html = html_of(root)
        assert html.count('<section class="run"') == 2
        assert "run-3" in html
        assert "2 more are in the table above only" in text_of(html)

    @pytest.mark.parametrize("value", [None, math.nan, math.inf, -math.inf])
    def test_any_column_may_be_null_or_nonfinite_throughout(self, root, value):
        wrecked(root, updates=[dict.fromkeys(row, value) for row in WRECKED])
        html_of(root)

    def test_one_update_makes_a_report(self, root):
        wrecked(root, updates=WRECKED[2:3], total_updates=None, tables={})
        text = text_of(html_of(root))
        assert "First failure: ratio_explosion at update 1: ratio_max was 9.5, above 5." in text
        assert "unknown" in text


class TestHtml:
    def test_it_loads_nothing_from_elsewhere(self, root):
        wrecked(root)
        healthy(root)
        page = Page(html_of(root))
        assert page.open == []
        for tag, attributes in page.found:
            assert tag not in ("script", "link", "iframe", "object", "embed", "base")
            for name, value in attributes.items():
                assert not name.startswith("on")
                if name in ("src", "href", "xlink:href", "action", "data", "poster"):
                    assert value is not None
                    assert value.startswith(("#", "data:image/png;base64,")), f"<{tag} {name}={value[:60]}>"

    def test_its_style_loads_nothing(self, root):
        healthy(root)
        style = re.findall(r"<style.*?</style>", html_of(root), flags=re.DOTALL)
        assert style
        assert not re.search(r"@import|url\((?!#)", "".join(style))

    def test_ids_are_unique_and_every_reference_has_its_target(self, root):
        wrecked(root)
        healthy(root)
        html = html_of(root)
        ids = re.findall(r'\sid="([^"]+)"', html)
        assert len(ids) == len(set(ids))
        assert set(re.findall(r'(?:href="#|url\(#)([^")]+)', html)) <= set(ids)

    def test_text_of_a_run_is_never_markup(self, root):
        evil = "<script>alert('x')</script>&\"|`*"
        wrecked(
            root,
            name="evil",
            ended="raised",
            manifest={
                "name": evil,
                "config": {evil: evil},
                "host": evil,
                "trainer": {"name": evil},
                "versions": {evil: evil},
                "definition": evil,
            },
            tables={
                "gaps": [{"update": 1, "table_name": evil, "reason": evil, "first_update": 1, "last_update": 1}],
                "gradient_layers": [{"update": 2, "minibatch": 1, "layer": f"{evil}$x^2$", "grad_norm": 99.0}],
            },
        )
        healthy(root)
        html = html_of(root)
        assert "<script" not in html
        assert "&lt;script&gt;alert" in html
        ea.report(ea.replay(root, RULES), root.parent / "report.md")
        assert "<script" not in (root.parent / "report.md").read_text()

    def test_a_run_id_never_leads_a_plot_out_of_its_folder(self, root):
        healthy(root, manifest={"run_id": "../../../out"}, folder="inside")
        try:
            ea.report(ea.replay(root, RULES), root.parent / "report.md")
        except EsperError:
            return  # such a run is refused when it is opened
        assert [path.name for path in (root.parent / "report-plots").iterdir()] == ["---------out.png"]

    def test_the_same_runs_make_the_same_page(self, root):
        wrecked(root)
        one, two = (re.sub(r"Written [^<]*", "", html_of(root)) for _ in range(2))
        assert one == two

    def test_it_stays_small(self, root):
        wrecked(root)
        healthy(root)
        assert len(html_of(root)) < 500_000

    def test_a_plot_with_very_many_points_is_embedded_as_png(self, root):
        values = [1.0 + (n * 7919 % 1000) / 500 for n in range(20_000)]
        write_run(root, updates=[{"ratio_max": value, "ratio_min": 1 / value} for value in values])
        html = html_of(root)
        assert "data:image/png;base64," in html
        assert len(html) < 2_000_000


class TestJson:
    def test_it_holds_the_findings_as_valid_json(self, root):
        wrecked(root)
        out = root.parent / "report.json"
        ea.report(ea.replay(root, RULES), out, command="again")
        facts = json.loads(out.read_text(), parse_constant=lambda name: pytest.fail(f"{name} is not JSON"))
        (run,) = facts["runs"]
        assert facts["command"] == "again"
        assert run["first_firings"][1]["rule"] == "ratio_explosion"
        assert run["incidents"][1]["peak_value"] == "Infinity"
        assert run["counts"] == {"critical": 1, "warning": 2, "info": 1}
        assert run["exemplars"]["rows"][0]["value"] is None
        assert run["rules_sha256"] == RULES.sha256
        assert "frames" not in run


class TestPath:
    def test_an_unknown_suffix_lists_the_known_ones(self, root):
        wrecked(root)
        with pytest.raises(UsageError, match=r"report\.pdf ends in \.pdf; a report is written to FILE\.html, FILE\.md"):
            ea.report(ea.replay(root, RULES), root.parent / "report.pdf")
        with pytest.raises(UsageError, match="has no ending"):
            ea.report(ea.replay(root, RULES), root.parent / "report")

    def test_a_missing_folder_is_named(self, root):
        wrecked(root)
        with pytest.raises(UsageError, match=r"There is no folder .*nowhere"):
            ea.report(ea.replay(root, RULES), root / "nowhere" / "report.html")

    def test_a_recorded_run_is_not_written_to(self, root):
        path = wrecked(root)
        with pytest.raises(UsageError, match="lies in the recorded run"):
            ea.report(ea.replay(root, RULES), path / "report.html")

    def test_the_suffix_may_be_upper_case(self, root):
        healthy(root)
        ea.report(ea.replay(root, RULES), root.parent / "REPORT.JSON")
        assert json.loads((root.parent / "REPORT.JSON").read_text())["runs"]


class TestCommand:
    def test_it_is_composed_for_shipped_rules(self, root):
        wrecked(root)
        healthy(root)
        runs = ea.open(root)
        out = root.parent / "r.json"
        result = ea.replay(runs["healthy"], "esper-review", values={"ratio_explosion.above": 3.0})
        ea.report(result, out, against=ea.replay(runs["healthy"], "default"))
        assert json.loads(out.read_text())["command"] == (
            f"esper report {root} --run healthy-20260101T000000Z-abc123 --rules esper-review "
            f"--set ratio_explosion.above=3.0 --against default -o {out}"
        )

    def test_it_is_omitted_for_rules_of_unknown_origin(self, root):
        wrecked(root)
        ea.report(ea.replay(root, RULES), root.parent / "r.json")
        assert json.loads((root.parent / "r.json").read_text())["command"] is None


def test_the_findings_count_what_the_result_holds(root):
    wrecked(root)
    result = ea.replay(root, RULES)
    run = findings(result).runs[0]
    assert len(run.incidents) == result.incidents.height
    assert {one.rule for one in run.first_firings} == set(result.firings.get_column("rule"))
    assert run.last_return == 70.5  # update 7: (70 + 71) / 2; none ended in update 8
    assert pl.DataFrame([run.counts]).sum_horizontal().item() == result.incidents.height
