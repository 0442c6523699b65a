"""Minibatches of known transitions: the same rows as if each had brought all its tensors."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.buffers import RolloutBuffer

from esper_recorder.arguments import BadCall, FieldKey
from esper_recorder.capture.known_minibatches import NEW, KnownRing
from esper_recorder.capture.minibatch_buffer import MinibatchNotes, MinibatchRing, Piece
from esper_recorder.contract.tables import TABLES
from esper_recorder.sb3 import RecorderCallback, _UpdateListener
from tests.recorder.sb3_runs import TinyEnv
from tests.recorder.storage.stored_updates import read_rows

pytestmark = pytest.mark.trains

ROLLOUT = ("old_log_prob", "raw_advantage", "value_target", "old_value")
CLOCKED = {"run_id", "time", "elapsed_s", "rollout_s", "update_s"}


def train(root: Path, level: str, **options: Any) -> dict[str, list[dict[str, Any]]]:
    """Every row of a training of 3 updates, without what a clock or chance gave."""
    model = PPO("MlpPolicy", TinyEnv(), n_steps=33, batch_size=16, n_epochs=2, seed=3, device="cpu", **options)
    callback = RecorderCallback(root, level=level)
    model.learn(99, callback=callback)
    assert callback.path is not None
    return {
        table: [{k: repr(v) for k, v in row.items() if k not in CLOCKED} for row in read_rows(callback.path, table)]
        for table in TABLES
    }


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("level", ["normal", "debug"])
def test_a_training_gives_the_rows_it_gives_when_each_minibatch_brings_all_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    # 33 transitions in minibatches of 16: the last one has a single transition, which is not normalised.
    ours = train(tmp_path / "known", level, clip_range_vf=0.1, ent_coef=0.01)
    monkeypatch.setattr(_UpdateListener, "_tell_known", lambda self, samples: False)
    assert ours == train(tmp_path / "general", level, clip_range_vf=0.1, ent_coef=0.01)
    assert len(ours["minibatches"]) == 3 * 2 * 3 and not ours["gaps"]


class Halved(RolloutBuffer):
    """Its minibatches hold something else than its arrays do."""

    def _get_samples(self, batch_inds: Any, env: Any = None) -> Any:
        samples = super()._get_samples(batch_inds, env)
        return samples._replace(advantages=samples.advantages / 2)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_buffer_that_makes_other_minibatches_of_its_arrays_is_recorded_as_the_loss_saw_it(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", "normal", normalize_advantage=False)
    halved = train(tmp_path / "halved", "normal", normalize_advantage=False, rollout_buffer_class=Halved)
    first, other = plain["minibatches"][0], halved["minibatches"][0]
    assert float(other["advantage_sum"]) == pytest.approx(float(first["advantage_sum"]) / 2, rel=1e-6)


def filled(lengths: list[int], odd: dict[str, float], *, per_minibatch: bool) -> tuple[Piece, Piece]:
    """The same minibatches reduced in both ways; `odd` puts a number in the first minibatch's field of that name."""
    random = np.random.default_rng(7)
    rollout = {name: torch.from_numpy(random.normal(size=100).astype(np.float32)) for name in ROLLOUT}
    for name in ROLLOUT:
        if name in odd:
            rollout[name].fill_(odd[name])
    known, general = KnownRing(per_minibatch=per_minibatch), MinibatchRing(per_minibatch=per_minibatch)
    known.begin(rollout)
    for i, n in enumerate(lengths):
        index = random.permutation(100)[:n]
        new = {name: torch.from_numpy(random.normal(size=n).astype(np.float32)) for name in NEW}
        if not i:
            for name, value in odd.items():
                if name in new:
                    new[name][0] = value
        notes = MinibatchNotes(i + 1, 1, 0.2, 0.1, normalize=n > 1, entropy_max=math.log(3))
        at = torch.from_numpy(index)
        known.append(new["new_log_prob"], new["entropy"], new["value"], index, notes)
        every: dict[FieldKey, torch.Tensor] = {name: x[at] for name, x in rollout.items()}
        every.update(new.items())
        general.append(every, n, notes, index=at)
    pieces = known.reduce(), general.reduce()
    assert pieces[0] is not None and pieces[1] is not None and len(known) == 0
    return pieces[0], pieces[1]


@pytest.mark.parametrize("per_minibatch", [False, True])
@pytest.mark.parametrize("lengths", [[8, 8, 8], [8, 8, 3], [1], [8, 1], [5]])
@pytest.mark.parametrize(
    "odd",
    [
        {},
        {"new_log_prob": math.nan},
        {"entropy": -math.inf},
        {"value": 3e38},  # its squared error is infinite
        {"new_log_prob": 100.0},  # its ratio is infinite
        {"raw_advantage": math.inf},
        {"raw_advantage": 2.0},  # no deviation
    ],
)
def test_both_ways_reduce_to_the_same_numbers(lengths: list[int], odd: dict[str, float], per_minibatch: bool) -> None:
    ours, theirs = filled(lengths, odd, per_minibatch=per_minibatch)
    assert ours.reduced[0].statistics.names == theirs.reduced[0].statistics.names
    known, general = ours.tensors(), theirs.tensors()
    assert known.keys() == general.keys()
    named = ours.reduced[0].exemplars, theirs.reduced[0].exemplars
    assert named[0] is not None and named[1] is not None and set(named[0].names) == set(named[1].names)
    for name in known.keys() - {"0.exemplars"}:  # the fields of those come in another order
        torch.testing.assert_close(known[name], general[name], rtol=1e-12, atol=0, equal_nan=True, msg=name)
    severity = named[0].values[..., named[0].names.index("severity")]
    for name in named[0].names:
        # A place that no transition was left for has a severity of -1, and else no meaning.
        a, b = (e.values[..., e.names.index(name)][severity >= 0] for e in named if e is not None)
        torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True, msg=name)
    assert torch.equal(severity, named[1].values[..., named[1].names.index("severity")])


def test_the_trainers_tensors_and_arrays_may_change_once_they_were_told() -> None:
    ring = KnownRing()
    rollout = {name: torch.ones(4) for name in ROLLOUT}
    ring.begin(rollout)
    new, index = [torch.ones(2) for _ in NEW], np.array([0, 3])
    ring.append(new[0], new[1], new[2], index, MinibatchNotes(1))
    for x in (*rollout.values(), *new):
        x.fill_(9.0)
    index[:] = 1
    piece = ring.reduce()
    assert piece is not None
    joint = piece.reduced[0]
    row = dict(zip(joint.statistics.names, joint.statistics.values[0, 0].tolist(), strict=True))
    assert (row["value_sum"], row["return_sum"], row["entropy_sum"]) == (2.0, 2.0, 2.0)
    assert joint.exemplars is not None
    places = joint.exemplars.values[0, 0, :, joint.exemplars.names.index("index")]
    assert sorted(places.tolist()) == [0.0, 3.0]


def test_tensors_that_are_not_of_the_indexs_length_are_refused_in_words() -> None:
    ring = KnownRing()
    ring.begin({name: torch.ones(4) for name in ROLLOUT})
    with pytest.raises(BadCall, match="index has 3, new_log_prob has 2, entropy has 2, value has 2"):
        ring.append(torch.ones(2), torch.ones(2), torch.ones(2), np.arange(3), MinibatchNotes(1))
    assert len(ring) == 0 and ring.reduce() is None
