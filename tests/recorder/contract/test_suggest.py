"""Suggestions for a name that does not exist: the closest names, else all of them."""

from __future__ import annotations

from esper_recorder.contract.suggest import closest, did_you_mean, suggest


def test_the_most_likely_name_comes_first():
    assert closest("ratio_mx", ["update", "ratio_sum", "ratio_max"])[0] == "ratio_max"
    assert closest("KL", ["approx_kl", "loss"]) == ["approx_kl"]
    assert closest("zzz", ["approx_kl", "loss"]) == []
    assert closest("", ["loss"]) == []


def test_a_value_that_is_not_text_is_compared_as_text():
    assert closest(12, ["120", "loss"]) == ["120"]


def test_without_a_close_name_all_names_are_listed():
    assert suggest("lss", ["loss", "x"], kind="columns") == "Did you mean loss?"
    assert suggest("zzz", ["a", "b"], kind="rules") == "The rules are: a, b."
    assert suggest("zzz", [], kind="runs") == "There are no runs."
    assert suggest("zzz", [f"run{i}" for i in range(25)], kind="runs").endswith("run19 and 5 more.")


def test_several_close_names_are_joined_by_or():
    assert did_you_mean(["a", "b", "c"]) == "Did you mean a, b or c?"
