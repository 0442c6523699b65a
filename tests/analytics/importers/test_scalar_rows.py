"""Values become updates, attempts, episodes and scalars, and none is dropped."""

from __future__ import annotations

import math

import pytest

from esper_analytics.importers.library_tags import LIBRARIES, TORCHRL, match_library
from esper_analytics.importers.scalar_rows import ScalarValue, Session, arrange, utc_time
from esper_recorder.contract.tables import column_names

KL, CLIP, LOSS = "train/approx_kl", "train/clip_fraction", "train/loss"


def session(*values, started=None):
    """Values as (tag, step, value); the n-th is in record n, n seconds after the start."""
    return Session(
        [ScalarValue(tag, step, value, line, time=float(line)) for line, (tag, step, value) in enumerate(values, 1)],
        started,
    )


def update(step, kl=0.5):
    """What SB3 logs of an update."""
    return [(KL, step, kl), (CLIP, step, 0.25), (LOSS, step, 1.0)]


def arranged(*sessions, hyperparameters=None):
    tags = {one.tag for each in sessions for one in each.scalars}
    return arrange(sessions, match_library(tags), hyperparameters)


def table(result, name, *columns):
    """The rows of a table as tuples, in order."""
    rows: list[tuple[object, ...]] = []
    for attempt, values in sorted(result.columns.get(name, {}).items()):
        height = len(values["update"])
        values = values | {"attempt": [attempt] * height}
        rows += zip(*(values.get(column, [None] * height) for column in columns), strict=True)
    return rows


class TestRecognising:
    @pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.definition)
    def test_each_library_by_its_own_tags(self, library):
        tags = {tag.tag for tag in library.tags} | library.signature
        found = match_library(tags)
        assert found is not None and found.library is library

    def test_no_library_matches_without_its_signature(self):
        assert match_library([]) is None
        assert match_library(["train/loss", "train/value_loss", "rollout/ep_rew_mean"]) is None, "SB3, but not its PPO"
        assert match_library(["charts/episodic_return", "losses/qf1_loss"]) is None, "CleanRL, but not its PPO"

    @pytest.mark.parametrize("prefix", ["", "losses/", "ppo/train/"])
    def test_torchrl_matches_under_any_prefix(self, prefix):
        found = match_library([prefix + "loss_objective", prefix + "loss_critic", prefix + "kl_approx", "eval/entropy"])
        assert found is not None and found.library is TORCHRL
        assert {tag: one.column for tag, one in found.by_name.items()} == {
            prefix + "loss_objective": "policy_loss",
            prefix + "loss_critic": "value_loss",
            prefix + "kl_approx": "approx_kl",
        }

    @pytest.mark.parametrize("library", LIBRARIES, ids=lambda library: library.definition)
    def test_every_mapped_column_is_declared(self, library):
        columns = {tag.column for tag in library.tags} | {setting.column for setting in library.settings}
        assert columns <= set(column_names("ppo_updates"))


class TestUpdates:
    def test_values_of_one_step_are_one_update_counted_from_one(self):
        result = arranged(session(*update(20, kl=0.1), *update(40, kl=0.2)))
        assert table(result, "ppo_updates", "update", "step", "approx_kl", "clip_fraction", "loss") == [
            (1, 20, 0.1, 0.25, 1.0),
            (2, 40, 0.2, 0.25, 1.0),
        ]
        assert (result.typed, result.kept) == ({KL: 2, CLIP: 2, LOSS: 2}, {})

    def test_the_sign_of_a_logged_loss_is_turned(self):
        result = arranged(session(*update(20), ("train/entropy_loss", 20, -0.6)))
        assert table(result, "ppo_updates", "entropy") == [(0.6,)]

    def test_nan_and_infinities_are_stored_and_named(self):
        result = arranged(session((KL, 1, math.nan), (CLIP, 1, 0.0), (LOSS, 1, -math.inf)))
        [(kl, loss, names)] = table(result, "ppo_updates", "approx_kl", "loss", "nonfinite_fields")
        assert math.isnan(kl) and loss == -math.inf
        assert names == [KL, LOSS]

    def test_a_repeated_value_replaces_the_earlier_one_which_is_a_scalar(self):
        result = arranged(session(*update(20, kl=0.1), (KL, 20, 0.3)))
        assert table(result, "ppo_updates", "approx_kl") == [(0.3,)]
        assert table(result, "scalars", "name", "step", "value", "line") == [(KL, 20, 0.1, 1)]
        assert (result.repeated, result.typed[KL], result.kept[KL]) == (1, 1, 1)

    def test_a_learning_rate_alone_is_not_an_update(self):
        result = arranged(session(("train/learning_rate", 5, 1e-3), *update(20)))
        assert table(result, "ppo_updates", "step", "learning_rate") == [(20, None)]
        assert table(result, "scalars", "name", "step") == [("train/learning_rate", 5)]

    def test_the_length_of_the_training_gives_the_progress(self):
        values = [(tag, 50, 0.5) for tag in ("losses/old_approx_kl", "losses/clipfrac", "losses/approx_kl")]
        hyperparameters = {"total_timesteps": 200, "clip_coef": 0.1, "target_kl": None, "update_epochs": 4}
        result = arranged(session(*values), hyperparameters=hyperparameters)
        assert table(result, "ppo_updates", "progress", "clip_range", "target_kl", "epochs_planned") == [
            (0.25, 0.1, None, 4)
        ]
        result = arranged(session(*values), hyperparameters={"total_timesteps": "many", "clip_coef": True})
        assert table(result, "ppo_updates", "progress", "clip_range") == [(None, None)]


class TestAttempts:
    def test_another_file_from_an_earlier_step_supersedes_later_updates(self):
        first = session(*update(20), *update(40), *update(60))
        again = session(*update(40), *update(60), *update(80))
        result = arranged(first, again)
        assert table(result, "ppo_updates", "attempt", "update", "step") == [
            (1, 1, 20),
            (1, 2, 40),
            (1, 3, 60),
            (2, 2, 40),
            (2, 3, 60),
            (2, 4, 80),
        ]
        assert [(one.attempt, one.from_update, one.updates) for one in result.attempts] == [(1, 1, 3), (2, 2, 3)]
        assert result.superseded == 2

    def test_another_file_from_a_later_step_continues(self):
        result = arranged(session(*update(20), *update(40)), session(*update(60)))
        assert table(result, "ppo_updates", "attempt", "update") == [(1, 1), (1, 2), (2, 3)]
        assert result.superseded == 0

    def test_steps_that_go_back_within_a_file_begin_an_attempt_too(self):
        result = arranged(session(*update(20), *update(40), ("time/fps", 10, 1.0), *update(20)))
        assert table(result, "ppo_updates", "attempt", "update") == [(1, 1), (1, 2), (2, 1)]
        assert table(result, "scalars", "attempt", "update") == [(2, 1)], "the rollout of the second beginning"

    def test_a_file_without_an_update_is_not_an_attempt(self):
        result = arranged(session(("eval/mean_reward", 5, 1.0)), session(*update(20)), session(("late", 30, 1.0)))
        assert [(one.attempt, one.updates) for one in result.attempts] == [(1, 1)]
        assert table(result, "scalars", "name", "attempt", "update") == [("eval/mean_reward", 1, 1), ("late", 1, 2)]

    def test_rsl_rl_numbers_its_updates_itself(self):
        values = [("Loss/surrogate", iteration, 0.1) for iteration in (500, 501)]
        result = arranged(session(*values))
        assert table(result, "ppo_updates", "update", "step") == [(501, None), (502, None)]
        assert [(one.from_update, one.updates) for one in result.attempts] == [(501, 2)]


class TestScalars:
    def test_sb3_logs_a_rollout_with_the_update_before_it(self):
        values = [("time/fps", 20, 1.0), ("time/fps", 40, 2.0), *update(40), ("time/fps", 60, 3.0), *update(60)]
        result = arranged(session(*values, ("time/fps", 80, 4.0)))
        assert table(result, "ppo_updates", "update", "step") == [(1, 40), (2, 60)]
        # Rollout k ends at 20 k, and update k learns from it; the last update is never logged.
        assert table(result, "scalars", "step", "update") == [(20, 1), (40, 2), (60, 3), (80, 3)]

    def test_every_value_of_an_unknown_trainer_is_a_scalar(self):
        result = arranged(session(("a", 10, 1.0), ("b", 10, 2.0), ("a", 20, 3.0)))
        assert table(result, "scalars", "name", "step", "update", "value") == [
            ("a", 10, 1, 1.0),
            ("b", 10, 1, 2.0),
            ("a", 20, 2, 3.0),
        ]
        assert "ppo_updates" not in result.columns

    def test_an_empty_session_has_no_rows(self):
        result = arranged(session())
        assert (result.columns, result.attempts) == ({}, [])


class TestEpisodes:
    RETURN, LENGTH = "charts/episodic_return", "charts/episodic_length"

    def arranged(self, *values):
        marks = [(tag, 100, 0.5) for tag in ("losses/old_approx_kl", "losses/clipfrac")]
        return arranged(session(*values, *marks))

    def test_two_episodes_of_one_step_keep_their_lengths(self):
        result = self.arranged((self.RETURN, 8, 1.5), (self.LENGTH, 8, 5), (self.RETURN, 8, 2.5), (self.LENGTH, 8, 7))
        assert table(result, "episodes", "episode", "update", "step", "episode_return", "episode_length") == [
            (1, 1, 8, 1.5, 5),
            (2, 1, 8, 2.5, 7),
        ]

    def test_a_return_without_a_length_is_an_episode_and_a_length_without_a_return_is_a_scalar(self):
        result = self.arranged((self.RETURN, 8, math.nan), (self.LENGTH, 9, 5), (self.LENGTH, 8, math.nan))
        [(reward, length)] = table(result, "episodes", "episode_return", "episode_length")
        assert math.isnan(reward) and length is None
        kept = [(name, step) for name, step in table(result, "scalars", "name", "step") if name == self.LENGTH]
        assert kept == [(self.LENGTH, 9), (self.LENGTH, 8)]

    def test_an_episode_after_the_last_update_belongs_to_the_next(self):
        marks = [(tag, 100, 0.5) for tag in ("losses/old_approx_kl", "losses/clipfrac")]
        result = arranged(session(*marks, (self.RETURN, 120, 1.0)))
        assert table(result, "episodes", "update") == [(2,)]


def test_elapsed_time_begins_with_the_file():
    result = arranged(session(*update(20), started=-3.0))
    assert table(result, "ppo_updates", "time", "elapsed_s") == [(utc_time(3.0), 6.0)]
    assert utc_time(1e300) is None and utc_time(math.nan) is None and utc_time(None) is None
