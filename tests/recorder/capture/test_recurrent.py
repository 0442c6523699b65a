"""The state of a recurrent layer: what is reduced from it, and what the recorder makes of it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sb3_contrib import RecurrentPPO
from stable_baselines3.common.callbacks import BaseCallback

from esper_recorder import MemorySink, Recorder
from esper_recorder.contract.metrics import derive_state
from esper_recorder.reductions.recurrent import state_statistics
from esper_recorder.sb3 import RecorderCallback

pytestmark = pytest.mark.trains


def statistics(state: torch.Tensor) -> dict[str, float]:
    packed = state_statistics(state)
    row = dict(zip(packed.names, packed.values.tolist(), strict=True))
    return row | {name: value for name, value in derive_state(row).items() if value is not None}


class TestStateStatistics:
    def test_two_environments_by_hand(self):
        # Environment 0: 3, 4 -> rms sqrt((9 + 16) / 2); environment 1: 0, 0 -> 0. Together sqrt(25 / 4).
        s = statistics(torch.tensor([[[3.0, 4.0], [0.0, 0.0]]]))
        assert s["n"] == 4
        assert s["sum_sq"] == 25.0
        assert s["rms"] == 2.5
        assert s["env_rms_max"] == pytest.approx(math.sqrt(12.5))
        assert s["env_rms_mean"] == pytest.approx(math.sqrt(12.5) / 2)
        assert (s["abs_max"], s["l2_norm"]) == (4.0, 5.0)

    def test_the_root_mean_square_does_not_depend_on_how_many_environments_there_are(self):
        one = torch.full((1, 1, 8), 0.5)
        assert statistics(one)["rms"] == statistics(one.expand(1, 64, 8))["rms"] == 0.5

    def test_elements_that_are_not_finite_are_counted_and_left_out(self):
        s = statistics(torch.tensor([[2.0, math.nan], [math.inf, -2.0]]))
        assert (s["nan_count"], s["inf_count"], s["n"]) == (1, 1, 4)
        assert (s["rms"], s["abs_max"]) == (2.0, 2.0)

    def test_a_state_of_nothing_but_nan_has_no_number(self):
        s = statistics(torch.full((1, 2, 3), math.nan))
        assert all(math.isnan(s[name]) for name in ("rms", "env_rms_mean", "env_rms_max", "abs_max", "l2_norm"))

    def test_half_precision_is_squared_without_overflow(self):
        # 300^2 = 90,000 is beyond float16's 65,504.
        assert statistics(torch.full((2, 4), 300.0, dtype=torch.float16))["rms"] == 300.0

    def test_a_bare_vector_is_one_environment(self):
        assert statistics(torch.tensor([3.0, 4.0]))["env_rms_max"] == pytest.approx(math.sqrt(12.5))


def rows_of(tmp_path: Path, *states: Any, **options: Any) -> list[dict[str, Any]]:
    sink = MemorySink()
    with Recorder(tmp_path, rules=None, sink=sink) as rec:
        for h, c in states:
            rec.recurrent(h, c, **options)
        rec.minibatch(log_ratio=torch.zeros(4))
        rec.end_update()
    return sink.rows("recurrent_state")


def test_recurrent_ppo_records_the_states_its_rollout_met(tmp_path):
    sink = MemorySink()
    seen: list[np.ndarray] = []

    class Look(BaseCallback):
        def _on_step(self) -> bool:
            return True

        def _on_rollout_end(self) -> None:
            seen.append(self.model.rollout_buffer.hidden_states_pi.copy())  # type: ignore[attr-defined]

    model = RecurrentPPO("MlpLstmPolicy", "CartPole-v1", n_steps=32, batch_size=16, n_epochs=1, seed=1, device="cpu")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("esper_recorder.recording.ParquetSink", lambda *_: sink)
        model.learn(64, callback=[Look(), RecorderCallback(tmp_path, rules=None)])
    rows = sink.rows("recurrent_state")
    layers = ["rollout_lstm_actor", "rollout_lstm_critic"]
    assert [(r["update"], r["layer"], r["kind"]) for r in rows] == [
        (u, layer, kind) for u in (1, 2) for layer in layers for kind in "hc"
    ]
    for row, states in zip([r for r in rows if (r["layer"], r["kind"]) == (layers[0], "h")], seen, strict=True):
        assert row["rms"] == pytest.approx(float(np.sqrt(np.mean(states.astype(np.float64) ** 2))), rel=1e-9)
        assert row["abs_max"] == pytest.approx(float(np.abs(states).max()))


class TestRecorder:
    def test_there_is_a_row_for_each_kind(self, tmp_path):
        rows = rows_of(tmp_path, (torch.ones(1, 2, 3), torch.full((1, 2, 3), math.nan)))
        assert [(r["update"], r["layer"], r["kind"], r["nan_found"]) for r in rows] == [
            (1, "lstm", "h", False),
            (1, "lstm", "c", True),
        ]

    def test_a_gru_has_no_cell_state(self, tmp_path):
        assert [r["kind"] for r in rows_of(tmp_path, (torch.ones(1, 2, 3), None), layer="gru")] == ["h"]

    def test_the_last_state_of_an_update_is_kept(self, tmp_path):
        (row,) = rows_of(tmp_path, (torch.ones(1, 2, 3), None), (torch.full((1, 2, 3), 2.0), None))
        assert row["rms"] == 2.0
