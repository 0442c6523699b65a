"""The recorder as a training script holds it: what it records, and that it changes nothing in the training."""

from __future__ import annotations

import gc
import logging
import math
import random
import re
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from esper_recorder import MemorySink, Recorder
from esper_recorder.contract.histogram import log_ratio_bins
from esper_recorder.storage.manifest import read_manifest
from tests.recorder.recorders import recorder, small_minibatch
from tests.recorder.storage.stored_updates import read_rows

T = torch.tensor


def approx(x: float) -> Any:
    return pytest.approx(x, rel=1e-6)


@pytest.fixture(scope="module")
def sink(tmp_path_factory: pytest.TempPathFactory) -> MemorySink:
    sink = MemorySink()
    weight = torch.nn.Parameter(T([3.0, 4.0]))
    model = torch.nn.Module()
    model.register_parameter("weight", weight)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    with recorder(tmp_path_factory.mktemp("runs"), sink, model=model, optimizer=optimizer, total_updates=4) as rec:
        rec.settings(entropy_coef=0.1, value_coef=0.5, max_grad_norm=1.0, epochs_planned=2)
        rec.rollout(
            values=T([[1.0], [2.0], [0.0], [4.0]]),
            returns=T([[2.0], [2.0], [1.0], [0.0]]),
            advantages=T([[1.0], [2.0], [-1.0], [3.0]]),
            rewards=T([[1.0], [0.0], [0.0], [-2.0]]),
        )
        for ratio, advantage, entropy, value, target, gradient in (
            ([1.0, 1.5], [1.0, 2.0], [0.5, 0.6], [1.0, 2.0], [2.0, 2.0], [3.0, 4.0]),
            ([0.5, 1.0], [-1.0, 3.0], [0.7, 0.4], [0.0, 4.0], [1.0, 0.0], [0.3, 0.4]),
        ):
            rec.minibatch(
                log_ratio=torch.log(T(ratio, dtype=torch.float64)),
                advantages=T(advantage),
                entropy=T(entropy, dtype=torch.float64),
                entropy_max=1.0,
                values=T(value),
                returns=T(target),
                clip_range=0.2,
                epoch=1,
            )
            weight.grad = T(gradient)
            rec.gradients(total_norm=torch.nn.utils.clip_grad_norm_([weight], 1.0))
            optimizer.step()
        rec.episode(return_=7.5, length=12, env=3)
        rec.end_update(step=4, stopped_early=False)
    return sink


class TestOneUpdateByHand:
    """Two minibatches of two transitions, in float64, every figure worked out.

    minibatch 1: ratio 1, 1.5; advantage 1, 2; entropy 0.5, 0.6; value 1, 2; return 2, 2
    minibatch 2: ratio 0.5, 1; advantage -1, 3; entropy 0.7, 0.4; value 0, 4; return 1, 0
    """

    def test_the_minibatches(self, sink: MemorySink):
        first, second = sink.rows("minibatches")
        assert (first["minibatch"], second["minibatch"]) == (1, 2)
        assert (first["n"], first["epoch"], first["stepped"], first["learning_rate"]) == (2, 1, True, 0.1)
        assert (first["ratio_sum"], first["ratio_max"]) == (approx(2.5), approx(1.5))
        # k3 = (ratio - 1) - log ratio: 0 and 0.5 - log 1.5.
        assert first["approx_kl"] == approx((0.5 - math.log(1.5)) / 2)
        assert second["approx_kl"] == approx((-0.5 + math.log(2.0)) / 2)
        assert (first["clip_high_count"], first["clip_low_count"], first["clip_fraction"]) == (1, 0, 0.5)
        assert (second["clip_high_count"], second["clip_low_count"], second["clip_fraction"]) == (0, 1, 0.5)
        # 1.5 with an advantage of 2, and 0.5 with one of -1: the clip takes both gradients away.
        assert (first["clip_high_active_count"], second["clip_low_active_count"]) == (1, 1)
        # -min(1 * 1, 1 * 1) and -min(1.5 * 2, 1.2 * 2) = -2.4; -min(0.5 * -1, 0.8 * -1) = 0.8 and -3.
        assert first["policy_loss"] == approx((-1.0 - 2.4) / 2)
        assert second["policy_loss"] == approx((0.8 - 3.0) / 2)
        assert first["value_loss"] == approx((1.0 + 0.0) / 2)
        assert second["value_loss"] == approx((1.0 + 16.0) / 2)
        assert first["entropy"] == approx(0.55)
        # policy_loss - 0.1 * entropy + 0.5 * value_loss
        assert first["loss"] == approx(-1.7 - 0.055 + 0.25)
        assert (first["grad_norm"], second["grad_norm"]) == (approx(5.0), approx(0.5))

    def test_the_update(self, sink: MemorySink):
        (row,) = sink.rows("ppo_updates")
        assert (row["update"], row["attempt"], row["rank"], row["definition"]) == (1, 1, 0, "pooled")
        assert (row["n"], row["minibatch_count"], row["stepped_count"], row["epochs"]) == (4, 2, 2, 1)
        assert (row["step"], row["progress"], row["stopped_early"]) == (4, 0.25, False)
        assert row["approx_kl"] == approx((0.5 - math.log(1.5) - 0.5 + math.log(2.0)) / 4)
        assert row["approx_kl_k1"] == approx(-(math.log(1.5) + math.log(0.5)) / 4)
        assert row["clip_fraction"] == 0.5
        assert (row["ratio_min"], row["ratio_max"], row["ratio_mean"]) == (approx(0.5), approx(1.5), approx(1.0))
        assert row["ratio_std"] == approx(math.sqrt((0.25 + 0.25) / 4))
        assert row["policy_loss"] == approx((-1.0 - 2.4 + 0.8 - 3.0) / 4)
        assert row["value_loss"] == approx((1.0 + 0.0 + 1.0 + 16.0) / 4)
        assert row["entropy"] == approx((0.5 + 0.6 + 0.7 + 0.4) / 4)
        assert row["entropy_normalized"] == approx(0.55)
        assert row["loss"] == approx(-1.4 - 0.055 + 0.5 * 4.5)
        assert (row["advantage_mean"], row["advantage_positive_count"]) == (approx(1.25), 3)
        assert row["grad_norm"] == approx(2.75)
        assert (row["grad_norm_n"], row["grad_norm_max"]) == (2, approx(5.0))
        assert row["grad_norm_clipped"] == approx(0.5), "the last one was below the limit"
        # returns 2, 2, 1, 0: mean 1.25, variance (9 - 4 * 1.5625) / 4; residuals 1, 0, 1, -4: mean -0.5.
        returns, residuals = (4 + 4 + 1 + 0) / 4 - 1.25**2, (1 + 0 + 1 + 16) / 4 - 0.5**2
        assert row["explained_variance"] == approx(1 - residuals / returns)
        assert (row["rollout_n"], row["rollout_reward_sum"], row["rollout_reward_min"]) == (4, -1.0, -2.0)
        assert row["nonfinite_count"] == 0
        assert row["update_s"] >= 0 and row["rollout_s"] >= 0 and row["elapsed_s"] >= 0

    def test_the_histogram_and_the_worst_transitions(self, sink: MemorySink):
        (histogram,) = sink.rows("ratio_histograms")
        counts = {bins: n for bins, n in zip(log_ratio_bins(), histogram["counts"], strict=True) if n}
        # log 1.5 = 0.405 and log 0.5 = -0.693
        assert counts == {(0.0, 0.0): 2, (0.25, 0.5): 1, (-1.0, -0.5): 1}
        worst = sink.rows("ratio_exemplars")
        assert [row["place"] for row in worst] == [1, 2, 3, 4]
        assert [row["log_ratio"] for row in worst] == [approx(math.log(0.5)), approx(math.log(1.5)), 0.0, 0.0]
        assert (worst[0]["minibatch"], worst[0]["advantage"], worst[0]["value"]) == (2, -1.0, 0.0)
        assert (worst[1]["minibatch"], worst[1]["advantage"], worst[1]["value_target"]) == (1, 2.0, 2.0)

    def test_the_layer_and_the_episode(self, sink: MemorySink):
        (layer,) = sink.rows("gradient_layers")
        assert (layer["layer"], layer["minibatch"], layer["n"], layer["after_clipping"]) == ("weight", 2, 2, True)
        assert (layer["grad_norm"], layer["grad_max"]) == (approx(0.5), approx(0.4))
        (episode,) = sink.rows("episodes")
        assert (episode["episode_return"], episode["episode_length"], episode["env"]) == (7.5, 12, 3)
        assert (episode["episode"], episode["update"]) == (1, 1)

    def test_nothing_else(self, sink: MemorySink):
        tables = {"ppo_updates", "minibatches", "ratio_histograms", "ratio_exemplars", "gradient_layers", "episodes"}
        assert {table for table, n in sink.tables().items() if n} == tables
        assert sink.closed == ("finished", None)


class TestWhatIsNotThere:
    def test_what_was_not_given_is_null(self, tmp_path: Path):
        sink = MemorySink()
        with recorder(tmp_path, sink) as rec:
            rec.minibatch(log_ratio=torch.zeros(3))
            rec.end_update()
        (row,) = sink.rows("minibatches")
        not_measured = (
            *("clip_fraction", "policy_loss", "value_loss", "loss", "entropy", "entropy_normalized", "advantage_mean"),
            *("advantage_nan", "return_mean", "value_sum", "residual_n", "explained_variance", "grad_norm"),
            *("learning_rate", "clip_range", "stepped", "epoch"),
        )
        assert {name: row[name] for name in not_measured} == dict.fromkeys(not_measured)
        assert (row["n"], row["approx_kl"], row["ratio_mean"], row["nonfinite_count"]) == (3, 0.0, 1.0, 0)
        (update,) = sink.rows("ppo_updates")
        for name in (
            *not_measured[:-2],
            "progress",
            "step",
            "stepped_count",
            "rollout_n",
            "stopped_early",
            "policy_std",
        ):
            if name in update:
                assert update[name] is None, name
        assert sink.rows("gradient_layers") == sink.rows("episodes") == []

    def test_an_update_with_nothing_in_it_is_a_row_all_the_same(self, tmp_path: Path):
        sink = MemorySink()
        with recorder(tmp_path, sink) as rec:
            rec.end_update(step=10)
        (row,) = sink.rows("ppo_updates")
        assert (row["step"], row["minibatch_count"], row["n"], row["approx_kl"]) == (10, 0, None, None)
        assert sink.rows("gaps") == []

    def test_what_is_not_finite_is_counted_and_kept_out_of_the_sums(self, tmp_path: Path):
        sink = MemorySink()
        with recorder(tmp_path, sink) as rec:
            rec.minibatch(
                log_ratio=T([math.nan, math.inf, -math.inf, 0.0, 100.0]),
                advantages=T([1.0, math.nan, 1.0, 1.0, 1.0]),
                entropy=T([0.5, 0.5, 0.5, math.nan, 0.5]),
                values=T([math.inf, 1.0, 1.0, 1.0, 1.0]),
                returns=T([1.0, 1.0, 1.0, 1.0, -math.inf]),
                clip_range=0.2,
            )
            rec.gradients(total_norm=T(math.nan))
            rec.end_update()
        (row,) = sink.rows("ppo_updates")
        assert (row["log_ratio_nan"], row["log_ratio_posinf"], row["log_ratio_neginf"]) == (1, 1, 1)
        assert row["log_ratio_sum"] == 100.0
        assert row["ratio_nonfinite"] == 3, "NaN, and exp of +infinity and of 100 in float32"
        assert (row["ratio_min"], row["ratio_max"]) == (0.0, math.inf)
        assert (row["advantage_nan"], row["entropy_nan"], row["value_posinf"], row["return_neginf"]) == (1, 1, 1, 1)
        assert row["advantage_sum"] == 4.0
        assert row["nonfinite_count"] == 3 + 1 + 1 + 1 + 1 + 1
        assert (row["grad_norm_n"], row["grad_norm_nonfinite"], row["grad_norm_sum"]) == (1, 1, 0.0)
        worst = [row["log_ratio"] for row in sink.rows("ratio_exemplars")]
        assert math.isnan(worst[0])
        assert worst[1:3] in ([math.inf, -math.inf], [-math.inf, math.inf])
        assert worst[3:] == [100.0, 0.0]
        (histogram,) = sink.rows("ratio_histograms")
        assert (histogram["nan_count"], histogram["counts"][0], histogram["counts"][-1]) == (1, 1, 2)

    def test_shapes_do_not_matter_and_masked_transitions_do_not_count(self, tmp_path: Path):
        sink = MemorySink()
        grid = torch.arange(6.0).reshape(2, 3).t() / 100  # not contiguous
        with recorder(tmp_path, sink) as rec:
            rec.minibatch(
                log_ratio=grid, values=grid, mask=T([[1, 1], [1, 0], [0, 0]]), index=T([[0, 1], [2, -1], [-1, -1]])
            )
            rec.end_update()
        (row,) = sink.rows("minibatches")
        # rows of the grid: (0, .03), (.01, .04), (.02, .05); the mask keeps 0, .03 and .01
        assert (row["n"], row["value_sum"]) == (3, approx(0.04))
        assert [(r["index"], r["log_ratio"]) for r in sink.rows("ratio_exemplars")] == [
            (1, approx(0.03)),
            (2, approx(0.01)),
            (0, 0.0),
        ]


class TestEpisodesOfARollout:
    def test_are_recorded_from_tensors_in_the_order_they_finished(self, tmp_path: Path):
        sink = MemorySink()
        finished = T([[0, 1, 0], [0, 0, 0], [1, 1, 0]], dtype=torch.bool)
        returns = torch.arange(9.0).reshape(3, 3) / 2
        with recorder(tmp_path, sink) as rec:
            rec.episode(return_=-1.0, length=4)
            rec.episodes(returns=returns, lengths=T([[1, 2, 3], [2, 1, 4], [3, 2, 5]]), finished=finished, step=90)
            returns.fill_(9e9)
            rec.end_update()
            rec.episodes(returns=T([[math.nan, 7.0]]), finished=T([[True, False]]))
            rec.end_update()
        names = ("update", "episode", "env", "step", "episode_return", "episode_length")
        assert [tuple(row[name] for name in names) for row in sink.rows("episodes")[:-1]] == [
            (1, 1, None, None, -1.0, 4),
            (1, 2, 1, 93, 0.5, 2),  # after the first step in three environments: 90 + 3
            (1, 3, 0, 99, 3.0, 3),
            (1, 4, 1, 99, 3.5, 2),
        ]
        last = sink.rows("episodes")[-1]
        assert math.isnan(last["episode_return"])
        assert (last["update"], last["episode"], last["step"], last["episode_length"]) == (2, 5, None, None)

    def test_none_finished_is_no_row(self, tmp_path: Path):
        sink = MemorySink()
        with recorder(tmp_path, sink) as rec:
            rec.episodes(returns=torch.zeros(2, 3), finished=torch.zeros(2, 3))
            rec.episodes(returns=torch.zeros(0, 3), finished=torch.zeros(0, 3))
            rec.end_update()
        assert sink.rows("episodes") == sink.rows("gaps") == []


class TestLevels:
    def tables(self, root: Path, level: str) -> dict[str, int]:
        sink = MemorySink()
        model = torch.nn.Linear(2, 1)
        with recorder(root, sink, level=level, model=model) as rec:
            for _ in range(2):
                for _ in range(3):
                    rec.minibatch(**small_minibatch(5))
                    model(torch.ones(1, 2)).sum().backward()
                    if level == "debug":
                        rec.layers()
                rec.end_update()
        return {table: n for table, n in sink.tables().items() if n}

    def test_minimal_has_no_rows_of_minibatches(self, tmp_path: Path):
        expected = {"ppo_updates": 2, "ratio_histograms": 2, "ratio_exemplars": 2 * 15, "gradient_layers": 2 * 2}
        assert self.tables(tmp_path, "minimal") == expected

    def test_normal_has(self, tmp_path: Path):
        assert self.tables(tmp_path, "normal")["minibatches"] == 6

    def test_debug_has_histograms_exemplars_and_layers_of_each(self, tmp_path: Path):
        assert self.tables(tmp_path, "debug") == {
            "ppo_updates": 2,
            "minibatches": 6,
            "ratio_histograms": 6,
            "ratio_exemplars": 6 * 5 + 2 * 15,
            "gradient_layers": 6 * 2,
        }

    def test_off_makes_nothing_and_takes_every_call(self, tmp_path: Path):
        with recorder(tmp_path / "runs", level="off") as rec:
            rec.rollout(values=torch.zeros(2))
            rec.minibatch(**small_minibatch())
            rec.gradients(total_norm=1.0)
            rec.layers()
            rec.episode(return_=1.0)
            rec.end_update()
            assert rec.flush()
        assert (rec.run_id, rec.path) == (None, None)
        assert not (tmp_path / "runs").exists()


class TestWrongArguments:
    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ({"level": "loud"}, "level 'loud' is not known; there are: off, minimal, normal, debug"),
            ({"level": 2.5}, "level 2.5 is not known"),
            ({"definition": "keras"}, "definition 'keras' is not known; there are: pooled, sb3"),
            ({"total_updates": 0}, "total_updates is 0; give the length of the training as a whole number from 1"),
            ({"total_steps": "many"}, "total_steps is 'many'"),
            ({"total_steps": 1.5}, "total_steps is 1.5"),
            ({"model": [1]}, "model is a list"),
            ({"optimizer": "adam"}, "optimizer is 'adam'; give a torch Optimizer"),
            ({"sink": print}, "sink is a builtin_function_or_method; give a Sink"),
            ({"rules": "nonsense"}, "nonsense"),
            ({"resume": "no-such-run"}, "there is no run no-such-run to resume"),
        ],
    )
    def test_are_a_value_error_that_says_so(self, tmp_path: Path, options: dict[str, Any], words: str):
        with pytest.raises(ValueError, match=words):
            recorder(tmp_path, **options)
        assert list(tmp_path.iterdir()) == []

    def test_numpys_whole_numbers_are_whole_numbers(self, tmp_path: Path):
        with recorder(tmp_path, total_updates=np.int64(5)) as rec:
            pass
        assert rec.path is not None and read_manifest(rec.path).total_updates == 5


class TestCallsThatFail:
    @pytest.mark.parametrize(
        ("call", "words", "reason"),
        [
            (
                lambda rec: rec.minibatch(log_ratio=torch.zeros(3), values=torch.zeros(4)),
                "log_ratio has 3, values has 4",
                "bad_call",
            ),
            (lambda rec: rec.minibatch(log_ratio=torch.zeros(3), index=[1]), "index has 1", "bad_call"),
            (lambda rec: rec.minibatch(log_ratio="no tensor"), "log_ratio is 'no tensor'; give a tensor", "bad_call"),
            (
                lambda rec: rec.minibatch(log_ratios=torch.zeros(3)),
                "minibatch.. has no argument 'log_ratios'. Did you mean log_ratio",
                "bad_call",
            ),
            (lambda rec: rec.minibatch(), "needs log_ratio, or new_log_probs and old_log_probs", "bad_call"),
            (lambda rec: rec.minibatch(values=torch.zeros(3)), "needs log_ratio", "bad_call"),
            (
                lambda rec: rec.rollout(values=torch.zeros(3), returns=torch.zeros(4)),
                r"different shapes: values is \[3\], returns is \[4\]",
                "bad_call",
            ),
            (
                lambda rec: rec.gradients(total_norm=torch.zeros(2)),
                r"total_norm is a tensor \[2\]; give the one number",
                "bad_call",
            ),
            (lambda rec: rec.episode(return_="high"), "return_ is 'high'; give a number", "bad_call"),
            (
                lambda rec: rec.episodes(returns=torch.zeros(2, 3), finished=torch.zeros(3, 2)),
                r"one shape \[steps, envs\]; given were \[2, 3\], \[3, 2\]",
                "bad_call",
            ),
            (
                lambda rec: rec.settings(entropy_coeff=0.1),
                "no setting entropy_coeff. Did you mean entropy_coef",
                "bad_call",
            ),
        ],
    )
    def test_do_not_raise_are_logged_once_and_leave_a_gap(
        self,
        tmp_path: Path,
        caplog: pytest.LogCaptureFixture,
        call: Callable[[Recorder], None],
        words: str,
        reason: str,
    ):
        sink = MemorySink()
        with caplog.at_level(logging.WARNING, logger="esper_recorder"), recorder(tmp_path, sink) as rec:
            rec.minibatch(**small_minibatch())
            call(rec)
            call(rec)
            rec.minibatch(**small_minibatch())
            rec.end_update()
            rec.minibatch(**small_minibatch())
            rec.end_update()
        assert [row["minibatch_count"] for row in sink.rows("ppo_updates")] == [2, 1], "the others are as they would be"
        assert [row["n"] for row in sink.rows("minibatches")] == [4, 4, 4]
        gaps = sink.rows("gaps")
        assert len(gaps) == 1 and gaps[0]["reason"] == reason
        assert (gaps[0]["first_update"], gaps[0]["last_update"]) == (1, 1)
        assert re.search(words, gaps[0]["detail"])
        assert sum(reason.replace("_", " ") in record.message for record in caplog.records) == 1

    def test_an_update_the_training_did_not_finish_is_marked(self, tmp_path: Path):
        sink = MemorySink()
        with pytest.raises(KeyboardInterrupt), recorder(tmp_path, sink) as rec:
            rec.minibatch(**small_minibatch())
            rec.end_update()
            rec.minibatch(**small_minibatch())
            raise KeyboardInterrupt
        assert [row["interrupted"] for row in sink.rows("ppo_updates")] == [False, True]
        assert rec.path is not None
        attempt = read_manifest(rec.path).last_attempt
        assert attempt is not None and (attempt.how, attempt.error) == ("raised", "KeyboardInterrupt")

    def test_a_norm_or_step_after_a_minibatch_that_failed_is_not_the_one_befores(self, tmp_path: Path):
        sink = MemorySink()
        weight = torch.nn.Parameter(torch.ones(1))
        optimizer = torch.optim.SGD([weight], lr=0.1)
        with recorder(tmp_path, sink, optimizer=optimizer) as rec:
            rec.minibatch(**small_minibatch())
            rec.minibatch(log_ratio=torch.zeros(3), values=torch.zeros(4))
            rec.gradients(total_norm=5.0)
            optimizer.step()
            rec.end_update()
        (row,) = sink.rows("minibatches")
        assert (row["grad_norm"], row["stepped"]) == (None, False)

    def test_a_failure_after_the_end_says_nothing(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        sink = MemorySink()
        rec = recorder(tmp_path, sink)
        rec.close()
        rec.minibatch(log_ratio=torch.zeros(3), values=torch.zeros(4))
        rec.end_update()
        rec.close()
        assert sink.rows("ppo_updates") == [] and caplog.records == []


def trained(rec: Recorder | None, *, device: str = "cpu") -> list[Tensor]:
    """A small training loop with its own randomness, recorded or not."""
    torch.manual_seed(1)
    random.seed(1)
    np.random.seed(1)
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for step in range(3):
        x = torch.randn(8, 3)
        old = torch.log_softmax(model(x), dim=1)[:, 0].detach()
        if rec is not None:
            rec.rollout(values=x[:, 0], returns=x[:, 1], advantages=x[:, 2], rewards=x[:, 0])
        for _ in range(2):
            new = torch.log_softmax(model(x), dim=1)[:, 0]
            advantages = x[:, 2] + 0.1 * torch.randn(8)
            loss = -(torch.exp(new - old) * advantages).mean()
            if rec is not None:
                rec.minibatch(
                    new_log_probs=new, old_log_probs=old, advantages=advantages, values=x[:, 0], returns=x[:, 1]
                )
            optimizer.zero_grad()
            loss.backward()
            norm = torch.nn.utils.clip_grad_norm_(model.parameters(), 0.5)
            if rec is not None:
                rec.gradients(total_norm=norm)
            optimizer.step()
        if rec is not None:
            rec.end_update(step=step)
    rest = [torch.tensor([random.random(), np.random.random()]), torch.randn(2)]
    return [p.detach().clone() for p in model.parameters()] + rest


class TestInertness:
    def test_making_and_closing_one_leaves_the_random_streams_alone(self, tmp_path: Path):
        torch.manual_seed(3)
        before = torch.get_rng_state(), random.getstate(), repr(np.random.get_state())
        with recorder(tmp_path) as rec:
            rec.minibatch(**small_minibatch())
            rec.end_update()
        assert torch.equal(torch.get_rng_state(), before[0])
        assert random.getstate() == before[1]
        assert repr(np.random.get_state()) == before[2]

    def test_a_root_that_is_a_file_costs_the_recording_and_not_the_training(
        self, tmp_path: Path, caplog: pytest.LogCaptureFixture
    ):
        (tmp_path / "runs").write_text("not a folder")
        plain = trained(None)
        with recorder(tmp_path / "runs") as rec:
            recorded = trained(rec)
        assert all(torch.equal(a, b) for a, b in zip(plain, recorded, strict=True))
        assert rec.path is None and "Nothing of this training is recorded" in caplog.text

    def test_no_tensor_of_the_trainers_is_kept(self, tmp_path: Path):
        with recorder(tmp_path, level="debug") as rec:
            tensors: dict[str, Any] = {
                name: torch.zeros(4, requires_grad=True) * 1
                for name in ("log_ratio", "advantages", "entropy", "values", "returns", "old_values", "mask")
            }
            rollout: dict[str, Any] = {
                name: torch.zeros(4, 1) for name in ("values", "returns", "advantages", "rewards", "actions")
            }
            norm, std = torch.tensor(1.0), torch.ones(3)
            rec.rollout(**rollout)
            rec.minibatch(**tensors, actions=torch.zeros(4, 2), index=torch.arange(4), clip_range=0.2)
            rec.gradients(total_norm=norm)
            references = [weakref.ref(x) for x in (*tensors.values(), *rollout.values(), norm)]
            del tensors, rollout, norm
            gc.collect()
            assert [reference() for reference in references] == [None] * len(references)
            reference = weakref.ref(std)
            rec.end_update(policy_std=std)
            del std
            gc.collect()
            assert reference() is None

    def test_what_the_trainer_writes_over_after_a_call_does_not_change_the_rows(self, tmp_path: Path):
        sink = MemorySink()
        with recorder(tmp_path, sink) as rec:
            x = torch.full((2, 2), 2.0)
            action = torch.full((2, 2, 1), 7.0)
            rec.rollout(values=x, returns=x, advantages=x, rewards=x, actions=action)
            flat = x.reshape(-1)
            rec.minibatch(log_ratio=flat, values=flat, index=torch.arange(4), clip_range=0.2)
            norm = torch.tensor(3.0)
            rec.gradients(total_norm=norm)
            x.fill_(9e9)
            action.fill_(-1)
            norm.fill_(-1)
            rec.end_update()
        (row,) = sink.rows("ppo_updates")
        assert (row["value_sum"], row["rollout_value_sum"], row["grad_norm"], row["log_ratio_max"]) == (
            8.0,
            8.0,
            3.0,
            2.0,
        )
        assert [r["action"] for r in sink.rows("ratio_exemplars")] == [[7.0]] * 4

    def test_the_model_is_not_kept_alive(self, tmp_path: Path):
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        rec = recorder(tmp_path, model=model, optimizer=optimizer)
        references = weakref.ref(model), weakref.ref(optimizer)
        del model, optimizer
        gc.collect()
        assert [reference() for reference in references] == [None, None]
        rec.minibatch(**small_minibatch())
        rec.end_update()
        rec.close()
        assert rec.path is not None and read_rows(rec.path, "gaps") == []

    def test_an_optimizer_has_no_hook_of_ours_after_the_end(self, tmp_path: Path):
        model = torch.nn.Linear(2, 2)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        recorder(tmp_path, model=model, optimizer=optimizer).close()
        assert not optimizer._optimizer_step_pre_hooks


def test_the_snippet_of_the_interface_runs_as_written(tmp_path: Path):
    cfg, n, num_envs, global_step = {"lr": 0.1}, 2, 2, 0
    agent = torch.nn.Linear(3, 1)
    optimizer = torch.optim.Adam(agent.parameters())
    with Recorder(
        tmp_path / "runs/",
        name="my-run",
        config=cfg,
        total_updates=n,
        model=agent,
        optimizer=optimizer,
        level="normal",
        rules="default",
        resume=None,
    ) as rec:
        for _ in range(n):
            values, returns, advantages, rewards = torch.randn(4, 8, num_envs)
            rec.rollout(values=values, returns=returns, advantages=advantages, rewards=rewards)
            for i, r, l in ((0, 3.0, 5), (1, 4.0, 6)):  # noqa: E741
                rec.episode(return_=r, length=l, env=i)
            loss = agent(torch.randn(8, 3)).squeeze(1)
            log_ratio, adv, entropy, v, ret, old_v = (loss - loss.detach(), *torch.rand(5, 8))
            rec.minibatch(
                log_ratio=log_ratio,
                advantages=adv,
                entropy=entropy,
                values=v,
                returns=ret,
                old_values=old_v,
                clip_range=0.2,
            )
            optimizer.zero_grad()
            loss.sum().backward()
            norm = torch.nn.utils.clip_grad_norm_(agent.parameters(), 0.5)
            rec.gradients(total_norm=norm)
            optimizer.step()
            global_step += 16
            rec.end_update(step=global_step)
        assert rec.flush()
    assert rec.path is not None and rec.run_id == rec.path.name and rec.run_id.startswith("my-run-")
    rows = sorted(read_rows(rec.path, "ppo_updates"), key=lambda row: row["update"])
    assert [(row["update"], row["step"], row["progress"]) for row in rows] == [(1, 16, 0.5), (2, 32, 1.0)]
    assert len(read_rows(rec.path, "episodes")) == 4
    assert len(read_rows(rec.path, "gradient_layers")) == 4
    assert read_rows(rec.path, "gaps") == []
    manifest = read_manifest(rec.path)
    assert (manifest.config, manifest.rules_profile, manifest.total_updates) == (cfg, "default", n)
