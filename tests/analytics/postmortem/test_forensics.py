"""`esper forensics`: what happened around an update, and what was not recorded."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

import esper_analytics as ea
from esper_analytics.errors import UsageError
from esper_analytics.postmortem.forensics import as_frame, as_lines, examine
from esper_recorder import Recorder
from tests.builders import write_run
from tests.support import esper

NAN = float("nan")


@pytest.fixture(scope="module")
def exploded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A script with two heads: at update 2 the head `slot` explodes in minibatch 3, and a KL early stop ends it."""
    root = tmp_path_factory.mktemp("runs")
    model = torch.nn.Linear(2, 2)
    with Recorder(root, name="hot", total_updates=3, model=model, rules="default") as recorder:
        for update in (1, 2, 3):
            recorder.settings(epochs_planned=4)
            for minibatch in range(1, 4):
                hot = update == 2 and minibatch == 3
                op = torch.tensor([0.0, 0.01, 0.02, -0.01])
                slot = torch.tensor([0.0, 20.0, -3.0, NAN]) if hot else torch.tensor([0.0, 0.02, -0.02, 0.0])
                model.zero_grad()
                model(torch.ones(1, 2)).sum().backward()
                if hot:
                    model.bias.grad[0] = NAN  # type: ignore[index]
                recorder.minibatch(
                    log_ratio=op + slot,
                    actions=torch.arange(4),
                    heads={"op": {"log_ratio": op}, "slot": {"log_ratio": slot}},
                    advantages=torch.ones(4),
                    clip_range=0.2,
                    epoch=minibatch,
                )
                recorder.gradients(total_norm=torch.tensor(1.0))
            recorder.end_update(stopped_early=update == 2, epochs=3)
    return root


def test_the_update_of_the_ratio_explosion_is_chosen_and_the_guilty_head_named(exploded: Path):
    found = examine(ea.open(exploded), "hot")
    assert found.update == 2
    story = " ".join(found.story)
    assert "stopped early in epoch 3 of 4 planned" in story
    assert "Minibatch 3 of 3 is the worst" in story
    assert "The head 'slot' has log ratios that are not finite" in story
    assert "The first minibatch with a non-finite value is 3." in story
    assert "the gradient of bias" in story
    assert {"ratio_explosion", "nonfinite_log_ratio"} <= {one["rule"] for one in found.fired}


def test_an_update_that_stopped_early_has_the_worst_transitions_of_each_head(exploded: Path):
    found = examine(ea.open(exploded), "hot", 2)
    slot = [one for one in found.transitions if one["head"] == "slot"]
    assert math.isnan(slot[0]["log_ratio"]) and slot[0]["action"] == (3.0,)
    assert [one["log_ratio"] for one in slot[1:3]] == [20.0, -3.0]
    assert [one["action"] for one in slot[1:3]] == [(1.0,), (2.0,)]
    assert {one["minibatch"] for one in slot[:3]} == {3}
    assert [one["head"] for one in found.ratios] == ["(joint)", "op", "slot"]
    op = next(one for one in found.ratios if one["head"] == "op")
    assert op["ratio_max"] == pytest.approx(math.exp(0.02), rel=1e-6)


def test_a_ratio_at_a_clamp_is_reported_as_censored(exploded: Path):
    story = examine(ea.open(exploded), "hot", 2).story
    assert any("head 'slot'" in text and "±20" in text and "may be larger" in text for text in story)
    assert not any("±" in text for text in examine(ea.open(exploded), "hot", 1).story)


def test_the_updates_before_and_after_are_shown(exploded: Path):
    assert [one["update"] for one in examine(ea.open(exploded), "hot", 2).around] == [1, 2, 3]
    assert [one["update"] for one in examine(ea.open(exploded), "hot", 1).around] == [1, 2, 3]


def test_a_layer_that_is_not_finite_comes_first(exploded: Path):
    layers = examine(ea.open(exploded), "hot", 2).layers
    assert layers[0]["layer"] == "bias" and layers[0]["grad_nan"] == 1


def test_what_was_not_recorded_is_listed(tmp_path: Path):
    write_run(tmp_path, "bare", updates=[{"ratio_max": 1.0}, {"ratio_max": 50.0}], rules=None)
    found = examine(ea.open(tmp_path), "bare")
    assert found.update == 2 and found.minibatches == found.transitions == found.layers == ()
    absent = " ".join(found.absent)
    assert "No minibatch rows" in absent and "No action head rows" in absent
    assert "No worst transitions" in absent and "No layer gradients" in absent
    assert "Whether the update stopped early was not recorded." in absent
    assert found.story == ()


def test_a_head_that_did_not_move_is_not_called_guilty(tmp_path: Path):
    heads = [{"head": name, "ratio_min": 1.0, "ratio_max": 1.0000001} for name in ("op", "slot")]
    write_run(tmp_path, "calm", updates=[{"ratio_max": 1.0}], tables={"heads": heads})
    assert examine(ea.open(tmp_path), "calm", 1).story == ("No head's ratio lies above 5 or below 0.1.",)


def test_heads_without_a_ratio_are_not_called_unrecorded(tmp_path: Path):
    heads = [{"head": "op", "entropy_normalized_all": 0.5}]
    write_run(tmp_path, "old", updates=[{"ratio_max": 1.0}], tables={"heads": heads})
    absent = examine(ea.open(tmp_path), "old", 1).absent
    assert "The action heads have rows but no ratio, so no head can be blamed." in absent
    assert not any(text.startswith("No action head rows") for text in absent)


def test_nonfinite_metrics_of_the_trainer_are_named(tmp_path: Path):
    row = {"nonfinite_fields": ["explained_variance"], "return_variance_low": True}
    write_run(tmp_path, "esper", updates=[row])
    assert examine(ea.open(tmp_path), "esper", 1).story == (
        "Not finite among the trainer's metrics: explained_variance.",
        "The returns hardly vary, so the explained variance means nothing.",
    )


def test_dropped_rows_are_not_called_unrecorded(tmp_path: Path):
    gap = {"update": 1, "table_name": "minibatches", "reason": "queue_full", "first_update": 1, "last_update": 1}
    write_run(tmp_path, "gap", updates=[{"ratio_max": 50.0}], tables={"gaps": [gap]})
    assert any(
        text == "Rows of minibatches around the update were dropped: queue full."
        for text in examine(ea.open(tmp_path), "gap").absent
    )


def test_only_the_minibatches_around_the_worst_are_shown_of_many(tmp_path: Path):
    minibatches = [
        {"minibatch": i, "log_ratio_max": 4.0 if i == 50 else 0.01, "log_ratio_min": 0.0, "ratio_max": 1.0}
        for i in range(1, 101)
    ]
    write_run(tmp_path, "long", updates=[{"ratio_max": 54.6}], minibatches=minibatches)
    found = examine(ea.open(tmp_path), "long")
    shown = [one["minibatch"] for one in found.minibatches]
    assert len(shown) == 24 and 50 in shown and shown == sorted(shown)
    assert "24 of 100 minibatches are shown: those around the worst." in found.absent


def test_a_run_in_which_nothing_fired_asks_for_an_update(tmp_path: Path):
    write_run(tmp_path, "calm", updates=[{"ratio_max": 1.0}, {"ratio_max": 1.1}])
    with pytest.raises(UsageError, match=r"No rule fired in the run .*--update N; it has 1–2\."):
        examine(ea.open(tmp_path), "calm")
    assert examine(ea.open(tmp_path), "calm", 2).update == 2


def test_an_unknown_update_lists_the_recorded_ones(tmp_path: Path):
    write_run(tmp_path, "calm", updates=[{"ratio_max": 1.0}, {"ratio_max": 1.1}])
    with pytest.raises(UsageError, match=r"no recorded update 9; it has 1–2\."):
        examine(ea.open(tmp_path), "calm", 9)


def test_a_run_without_updates_cannot_be_examined(tmp_path: Path):
    write_run(tmp_path, "empty")
    with pytest.raises(UsageError, match="has no recorded update"):
        examine(ea.open(tmp_path), "empty")


class TestCommand:
    def run(self, *arguments: str) -> str:
        return esper("forensics", *arguments).stdout

    def test_it_prints_text_and_tables(self, exploded: Path):
        text = self.run(str(exploded))
        assert "What happened" in text and "The worst transitions" in text and "slot" in text

    def test_json_holds_everything(self, exploded: Path):
        found = json.loads(self.run(str(exploded), "--update", "2", "--format", "json"))
        assert found["update"] == 2 and found["transitions"][0]["log_ratio"] == "NaN"

    def test_markdown_has_tables(self, exploded: Path, tmp_path: Path):
        self.run(str(exploded), "-o", str(tmp_path / "hot.md"))
        text = (tmp_path / "hot.md").read_text(encoding="utf-8")
        assert text.startswith("# hot-") and "| head |" in text

    def test_csv_has_one_row_per_value(self, exploded: Path):
        lines = self.run(str(exploded), "--format", "csv").splitlines()
        assert lines[0] == "section,number,name,value"
        assert "update,1,stopped_early,true" in lines

    def test_an_unknown_update_ends_with_exit_code_2(self, exploded: Path):
        result = esper("forensics", str(exploded), "--update", "99", code=2)
        assert "no recorded update 99" in result.output


def test_every_section_is_in_every_form(exploded: Path):
    found = examine(ea.open(exploded), "hot", 2)
    sections = {"why", "story", "absent", "update", "fired", "around", "minibatches", "ratios", "transitions", "layers"}
    assert set(as_frame(found).get_column("section")) <= sections
    assert set(as_frame(found).get_column("section")) >= sections - {"absent"}
    text = "\n".join(as_lines(found))
    assert all(f"\n{title}\n" in text for title in ("What fired", "Minibatches", "Ratios", "Layers"))
