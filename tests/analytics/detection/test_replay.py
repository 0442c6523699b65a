"""Replaying rules over runs on disk, from Python and from the command line."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path
from typing import Any

import polars as pl
import pytest

import esper_analytics as ea
from esper_analytics.postmortem.findings import findings
from esper_recorder.contract.rules.evaluator import RuleEvaluator
from esper_recorder.contract.rules.ruleset import RuleSet, load_profile
from tests.builders import add_journal, complete_rows, run_id_of, write_run
from tests.support import esper

OWN = '[rules.ratio]\nseverity = "warning"\ncolumn = "ratio_max"\nabove = 2.0\n'
A, B = run_id_of("a"), run_id_of("b")


def updates(*ratios: float | None, **more: Any) -> list[dict[str, Any]]:
    return [{"ratio_max": ratio, **more} for ratio in ratios]


def alarms(rules: str, rows: list[dict[str, Any]], total: int | None = None) -> list[dict[str, Any]]:
    """What a watcher with these rules would have raised."""
    evaluator = RuleEvaluator(RuleSet.parse(rules))
    found = []
    for update, row in enumerate(rows, 1):
        progress = update / total if total else None
        for f in evaluator.update(update, progress, {"ppo_updates": [row]}):
            found.append({"update": f.update, "rule": f.rule, "key": f.key, "severity": f.severity, "value": f.value})
    return found


def fired(result: ea.Result, rule: str) -> list[tuple[str, int]]:
    return result.firings.filter(pl.col("rule") == rule).select("run_id", "update").rows()


def test_each_run_is_evaluated_with_the_rules_it_ran_with_else_with_default(tmp_path: Path) -> None:
    write_run(tmp_path, "a", updates=updates(1.0, 3.0, 11.0), rules=OWN, profile="mine")
    write_run(tmp_path, "b", updates=updates(1.0, 3.0, 11.0))
    result = ea.replay(ea.open(tmp_path))
    assert fired(result, "ratio") == [(A, 2), (A, 3)]
    assert fired(result, "ratio_explosion") == [(B, 3)]
    assert [(p["run_id"], p["rules"], p["ran_with"]) for p in result.provenance()] == [
        (A, "mine", "mine"),
        (B, "default", None),
    ]
    with pytest.raises(ea.UsageError, match="different rules"):
        _ = result.rules


def test_other_thresholds_change_what_fires_and_the_difference_lists_it(tmp_path: Path) -> None:
    write_run(tmp_path, "a", updates=updates(1.0, 4.0, 6.0, math.nan, None), total_updates=5)
    runs = ea.open(tmp_path)
    shipped = ea.replay(runs, "esper-review")
    rules = ea.load_rules("esper-review").with_values({"ratio_explosion.above": 3.0})
    changed = ea.replay(runs, rules)
    assert ea.diff(shipped, changed).rows() == [(A, "ratio_explosion", "", 2, "new")]
    assert ea.diff(changed, shipped).rows() == [(A, "ratio_explosion", "", 2, "gone")]
    assert changed.rules == rules
    (provenance,) = changed.provenance()
    assert RuleSet.parse(provenance["text"]).rules == rules.rules
    assert (provenance["sha256"], provenance["overrides"]) == (rules.sha256, {"ratio_explosion.above": 3.0})
    row = changed.coverage.filter(pl.col("rule") == "ratio_explosion").row(0, named=True)
    assert (row["evaluated"], row["abstained"]) == (3, 2)
    assert row["reason"] in ("not finite (1), not measured (1)", "not measured (1), not finite (1)")


def test_replaying_a_run_with_its_own_rules_gives_its_alarms(tmp_path: Path) -> None:
    rows = updates(1.0, 3.0, 1.0, 2.5)
    write_run(tmp_path, "a", updates=rows, rules=OWN, profile="mine", tables={"alarms": alarms(OWN, rows)})
    done = esper("replay", str(tmp_path), "--against", "live", "--format", "json")
    assert json.loads(done.stdout) == []
    done = esper("replay", str(tmp_path), "--against", "live", "--set", "ratio.above=2.7", "--format", "json")
    assert [(row["update"], row["change"]) for row in json.loads(done.stdout)] == [(4, "gone")]


def test_a_run_without_rules_is_left_out_of_the_comparison_with_live_alarms_and_named(tmp_path: Path) -> None:
    rows = updates(1.0, 3.0, 1.0, 2.5)
    write_run(tmp_path, "a", updates=rows, rules=OWN, profile="mine", tables={"alarms": alarms(OWN, rows)})
    write_run(tmp_path, "bare", updates=updates(1.0, 99.0))  # default fires at 99, and nothing was there to raise it
    done = esper("replay", str(tmp_path), "--against", "live", "--format", "json")
    assert json.loads(done.stdout) == []
    assert "bare-20260101T000000Z-abc123: not compared: it ran without rules" in done.stderr
    found = findings(ea.replay(tmp_path), "live")
    assert {run.name: (run.compared, run.differences) for run in found.runs} == {"a": (True, []), "bare": (False, [])}
    assert any("not compared" in problem for problem in found.problems)
    write_run(tmp_path / "others", "b", updates=rows)
    write_run(tmp_path / "others", "c", updates=rows)
    done = esper("replay", str(tmp_path / "others"), "--against", "live", code=2)
    assert "None of the 2 runs ran with rules" in done.stderr


def test_a_resumed_run_is_judged_by_its_visible_rows(tmp_path: Path) -> None:
    first = [{"update": u, "attempt": 1, "ratio_max": 9.0} for u in (1, 2, 3)]
    again = [{"update": u, "attempt": 2, "ratio_max": 1.0} for u in (3, 4)]
    manifest = {"attempts": [{"attempt": 1, "from_update": 1}, {"attempt": 2, "from_update": 3}]}
    write_run(tmp_path, "a", updates=[*first, *again], manifest=manifest)
    assert fired(ea.replay(ea.open(tmp_path), "esper-review"), "ratio_explosion") == [(A, 1), (A, 2)]


def test_a_run_without_updates_is_not_passed_over(tmp_path: Path) -> None:
    write_run(tmp_path, "a", updates=[], ended=None)
    result = ea.replay(ea.open(tmp_path), "esper-review")
    assert result.firings.is_empty() and result.incidents.is_empty()
    assert set(result.never_evaluated["reason"]) == {"no update recorded"}
    assert result.never_evaluated.height == len(load_profile("esper-review").rules)


def test_updates_lost_after_the_last_one_recorded_are_a_gap(tmp_path: Path) -> None:
    gap = {"table_name": "*", "reason": "queue_full", "first_update": 3, "last_update": 7, "rows": None}
    other = {"table_name": "minibatches", "reason": "write_failed", "first_update": 1, "last_update": 99}
    write_run(tmp_path, "a", updates=updates(1.0, 1.0), tables={"gaps": [gap, other]})
    coverage = ea.replay(ea.open(tmp_path), "esper-review").coverage
    row = coverage.filter(pl.col("rule") == "ratio_explosion").row(0, named=True)
    assert (row["evaluated"], row["abstained"], row["reason"]) == (2, 5, "recording gap")


def test_a_rule_that_was_never_evaluated_is_reported_with_every_view(tmp_path: Path) -> None:
    write_run(tmp_path, "a", updates=updates(1.0, 1.0))
    for what in ("incidents", "firings", "coverage"):
        done = esper("replay", str(tmp_path), "--rules", "esper-review", "--show", what)
        assert f"{A}: never evaluated (not measured): ratio_collapse, value_collapse" in done.stderr
        assert "never" not in done.stdout


def test_runs_whose_rules_lack_data_for_the_same_reason_share_a_line(tmp_path: Path) -> None:
    for name, length in (("a", 2), ("b", 3), ("c", 4)):
        write_run(tmp_path, name, updates=updates(*[1.0] * length))
    reported = esper("replay", str(tmp_path), "--rules", "esper-review").stderr
    assert reported.count("never evaluated (not measured): ratio_collapse, value_collapse") == 1
    assert "3 runs: never evaluated (not measured): ratio_collapse" in reported


def test_rules_on_tables_that_a_run_does_not_record_share_one_line(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path, name, updates=updates(1.0, 1.0))
    text = (
        OWN
        + '[rules.heads]\nseverity = "info"\ntable = "heads"\nkey = "head"\ncolumn = "ratio_max"\nabove = 2\n'
        + '[rules.state]\nseverity = "info"\ntable = "recurrent_state"\ntake = "max"\ncolumn = "rms"\nabove = 2\n'
    )
    (tmp_path / "own.toml").write_text(text)
    done = esper("replay", str(tmp_path), "--rules", str(tmp_path / "own.toml"))
    assert "2 runs record no heads and no recurrent_state: 2 rules had no data\n" in done.stderr
    assert "never evaluated" not in done.stderr
    never = ea.replay(ea.open(tmp_path), tmp_path / "own.toml").never_evaluated
    assert never.select("rule", "evaluated", "abstained", "reason").unique().sort("rule").rows() == [
        ("heads", 0, 2, "table not recorded by this run"),
        ("state", 0, 2, "table not recorded by this run"),
    ]


def test_a_gap_in_one_table_is_a_recording_gap_to_the_rules_on_it(tmp_path: Path) -> None:
    gap = {"table_name": "heads", "reason": "write_failed", "first_update": 2, "last_update": 3, "update": 3}
    heads = [{"update": u, "head": "op", "ratio_max": 1.0} for u in (1, 4)]
    write_run(tmp_path, "a", updates=updates(1.0, 1.0, 1.0, 1.0, 1.0), tables={"gaps": [gap], "heads": heads})
    write_run(tmp_path, "b", updates=updates(1.0, 1.0, 1.0), tables={"gaps": [gap]})
    rules = RuleSet.parse(
        OWN + '[rules.h]\nseverity = "info"\ntable = "heads"\nkey = "head"\ncolumn = "ratio_max"\nabove = 2\n'
    )
    runs = ea.open(tmp_path)
    of_heads = ea.replay(runs, rules).coverage.filter(pl.col("rule") == "h").drop("rule")
    assert of_heads.rows() == [
        (A, "op", 2, 3, "recording gap (2), not recorded (1)"),
        (B, "", 0, 3, "recording gap (2), not recorded (1)"),
    ]
    reported = esper("replay", str(tmp_path), "--run", B, "--rules", "default").stderr
    assert f"{B}: never evaluated (recording gap (2), not recorded (1)): nonfinite_head" in reported


def test_fail_on_ends_with_exit_code_one_if_an_incident_is_that_severe(tmp_path: Path) -> None:
    write_run(tmp_path, "a", updates=updates(1.0, 3.0), rules=OWN)
    codes = [
        esper("replay", str(tmp_path), "--fail-on", s, code=None).exit_code for s in ("info", "warning", "critical")
    ]
    assert codes == [1, 1, 0]


def test_only_the_selected_runs_are_replayed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path, name, updates=updates(9.0))
    done = esper(
        "replay", str(tmp_path), "--rules", "esper-review", "--run", A, "--show", "firings", "--format", "json"
    )
    assert {row["run_id"] for row in json.loads(done.stdout)} == {A}


def test_many_runs_in_small_batches_give_the_same_as_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(5):
        write_run(tmp_path, f"r{number}", updates=updates(1.0, 6.0 + number, 1.0, 7.0), total_updates=4)
    runs = ea.open(tmp_path)
    at_once = ea.replay(runs, "esper-review")
    reported: list[tuple[int, int]] = []
    monkeypatch.setattr("esper_analytics.detection.batching.UPDATES_AT_ONCE", 8)
    batched = ea.replay(runs, "esper-review", progress=lambda done, total: reported.append((done, total)))
    assert reported == [(8, 20), (16, 20), (20, 20)]
    for name in ("firings", "incidents", "coverage"):
        assert getattr(batched, name).equals(getattr(at_once, name))


def layers_of(count: int) -> dict[str, list[dict[str, Any]]]:
    norms = [{"update": u, "minibatch": 4, "layer": n, "grad_norm": 1.0 + u} for u in range(1, count + 1) for n in "ab"]
    return {"gradient_layers": norms}


def test_a_long_run_read_in_windows_gives_the_same_as_in_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rows = updates(*(6.0 if update % 7 < 3 else 1.0 for update in range(40)), approx_kl=0.01)
    write_run(tmp_path, "a", updates=rows, tables=layers_of(40), total_updates=40, rows_per_part=15)
    rules = RuleSet.parse(
        '[rules.streak]\nseverity = "warning"\ncolumn = "ratio_max"\nabove = 5\nfor = 3\n'
        '[rules.drift]\nseverity = "info"\ntable = "gradient_layers"\ntake = "only"\nkey = "layer"\n'
        'column = "grad_norm"\ndrift = { momentum = 0.9 }\nabove = 0.3\n'
    )
    runs = ea.open(tmp_path)
    at_once = ea.replay(runs, rules)
    reported: list[int] = []
    monkeypatch.setattr("esper_analytics.detection.batching.CELLS_AT_ONCE", 60)  # (40 + 80) * 3 cells: 6 windows
    windows = ea.replay(runs, rules, progress=lambda done, _: reported.append(done))
    assert len(reported) == 6 and reported[-1] == 40
    assert at_once.firings.get_column("rule").value_counts().height == 2
    for name in ("firings", "incidents", "coverage"):
        assert getattr(windows, name).equals(getattr(at_once, name))


def test_runs_with_different_files_are_read_together(tmp_path: Path) -> None:
    """A resumed run, one still in its journal, one without layers and ordinary ones: each as if it were alone."""
    for name in "abc":
        write_run(tmp_path, name, updates=updates(1.0, 6.0, 7.0), tables=layers_of(3), rows_per_part=2)
    write_run(tmp_path, "d", updates=updates(6.0, 1.0))
    again = [{"update": 2, "attempt": 2, "ratio_max": 1.0}]
    manifest = {"attempts": [{"attempt": 1, "from_update": 1}, {"attempt": 2, "from_update": 2}]}
    write_run(tmp_path, "e", updates=[*updates(6.0, 6.0, 6.0), *again], manifest=manifest)
    path = write_run(tmp_path, "f", updates=[])
    live = [{"update": u, "ratio_max": 8.0} for u in (1, 2)]
    add_journal(path, {"ppo_updates": complete_rows("ppo_updates", live, run_id=run_id_of("f"))})
    runs = ea.open(tmp_path)
    together = ea.replay(runs, "default")
    alone = [ea.replay(runs[run_id], "default") for run_id in runs.ids]
    for name in ("firings", "incidents", "coverage"):
        assert getattr(together, name).equals(pl.concat([getattr(result, name) for result in alone]))
    fired = ea.replay(runs, "esper-review").firings.filter(pl.col("rule") == "ratio_explosion")
    assert dict(fired.group_by("run_id").agg("update").iter_rows()) == {
        **{run_id_of(name): [2, 3] for name in "abc"},
        run_id_of("d"): [1],
        run_id_of("e"): [1],
        run_id_of("f"): [1, 2],
    }


def test_the_provenance_of_a_result_is_enough_to_reproduce_it(tmp_path: Path) -> None:
    write_run(tmp_path, "a", updates=updates(1.0, 3.0, 6.0), rules=OWN, profile="mine")
    write_run(tmp_path, "b", updates=updates(1.0, 3.0, 11.0))
    runs = ea.open(tmp_path)
    result = ea.replay(runs, values={})
    changed = ea.replay(runs["a"], values={"ratio.above": 4.0})
    for first in (result, changed):
        for row in json.loads(json.dumps(first.provenance())):  # as a file would hold it
            rules = RuleSet.parse(row["text"], row["rules"])
            assert rules.sha256 == row["sha256"]
            again = ea.replay(runs[row["run_id"]], rules)
            for name in ("firings", "incidents", "coverage"):
                own = getattr(first, name).filter(pl.col("run_id") == row["run_id"])
                assert getattr(again, name).equals(own)
    assert fired(changed, "ratio") == [(A, 3)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rules", "esper-reviw"], "there is no rule profile 'esper-reviw'. Did you mean esper-review"),
        (["--rules", "none.toml"], "there is no file none.toml"),
        (["--rules", "FOREIGN"], "is not TOML"),
        (["--set", "rato.above=3"], "has no rule 'rato'. "),
        (["--set", "ratio_explosin.above=3"], "has no rule 'ratio_explosin'. Did you mean ratio_explosion"),
        (["--set", "zzz.above=3"], "has no rule 'zzz'. The rules are: "),
        (["--set", "ratio_explosion.abov=3"], "Did you mean above"),
        (["--set", "ratio_explosion.above=high"], "must be a number, not 'high'"),
        (["--set", "ratio_explosion.above"], "Write it as RULE.FIELD=VALUE"),
        (["--set", "ratio_explosion.above=1", "--set", "ratio_explosion.above=2"], "is given twice"),
        (["--against", "esper-reviw"], "there is no rule profile 'esper-reviw'"),
        (["--against", "live"], "ran with no rules"),
        (["--show", "diff"], "Add --against live"),
        (["--show", "incident"], "Did you mean incidents"),
        (["--run", "zzz"], "zzz"),
    ],
)
def test_an_invalid_argument_is_reported_with_exit_code_two(tmp_path: Path, arguments: list[str], message: str) -> None:
    write_run(tmp_path / "runs", "a", updates=updates(1.0))
    foreign = tmp_path / "foreign.toml"
    foreign.write_text("root:x:0:0\n")
    arguments = [str(foreign) if word == "FOREIGN" else word for word in arguments]
    done = esper("replay", str(tmp_path / "runs"), *arguments, code=2)
    assert message in done.stderr
    assert done.stdout == "" and "Traceback" not in done.stderr


def test_rules_are_listed_shown_and_checked(tmp_path: Path) -> None:
    listed = esper("rules", "list", "--format", "json")
    assert {"default", "esper-review"} <= {row["profile"] for row in json.loads(listed.stdout)}
    shown = esper("rules", "show", "default")
    assert shown.stdout == load_profile("default").text
    mine = tmp_path / "mine.toml"
    mine.write_text(OWN + '[[tests]]\nname = "t"\nseries."ppo_updates.ratio_max" = "3"\nfires.ratio = [1]\n')
    esper("rules", "check", mine)
    mine.write_text(OWN + '[[tests]]\nname = "t"\nseries."ppo_updates.ratio_max" = "3"\nfires.ratio = []\n')
    failed = esper("rules", "check", str(mine), "--format", "json", code=1)
    assert json.loads(failed.stdout) == [
        {"test": "t", "passed": False, "problem": "ratio must fire at none, and fires at 1"}
    ]
    mine.write_text(OWN.replace("above", "abov"))
    off = esper("rules", "check", str(mine), code=2)
    assert "mine.toml, rule ratio: unknown key 'abov'" in off.stderr and "Did you mean above" in off.stderr


def test_importing_the_module_replay_does_not_shadow_the_function_replay(run_python: Any) -> None:
    code = """
import types
import esper_analytics as ea
import esper_analytics.detection.replay, esper_analytics.detection.diff, esper_analytics.detection.sweep
assert ea.replay is esper_analytics.detection.replay.replay
print({type(f) for f in (ea.replay, ea.diff, ea.sweep, ea.report, ea.load_rules)} == {types.FunctionType})
"""
    assert run_python(code).strip() == "True"


def test_a_run_whose_own_rules_are_broken_is_left_out_and_can_be_judged_by_others(tmp_path):
    write_run(tmp_path, "broken", updates=[{"ratio_max": 1.0}], rules="[rules.broken]\nno = 'rule'\n")
    runs = ea.open(tmp_path)
    with pytest.raises(ea.DataError, match="cannot be used"):
        ea.replay(runs)
    lost = write_run(tmp_path, "lost", updates=[{"ratio_max": 1.0}], rules="x = 1")
    shutil.rmtree(lost / "rules")
    sound = write_run(tmp_path, "sound", updates=[{"ratio_max": 1.0}])
    assert list(ea.replay(runs).rules_by_run) == [sound.name]
    broken, unreadable = runs.problems_met
    assert "cannot be used" in str(broken) and "cannot be read" in str(unreadable)
    assert ea.replay(runs, "default").firings.height == 0


def test_a_part_whose_rows_polars_cannot_read_is_named(tmp_path):
    write_run(tmp_path, "sound", updates=[{}])
    path = write_run(tmp_path, updates=[{"ratio_max": 1.0}])
    [part] = path.glob("ppo_updates/*")
    data = part.read_bytes()
    part.write_bytes(data[:4] + b"\xff" * 2000 + data[2004:])
    with pytest.raises(ea.DataError, match=f"{part.name} is damaged: its rows cannot be read"):
        ea.replay(tmp_path, "default")
    for command in (["replay", "--rules", "default"], ["forensics", "--run", "run", "--update", "1"], ["runs"]):
        done = esper(command[0], tmp_path, *command[1:], code=3)
        assert part.name in done.stderr and "is damaged" in done.stderr
