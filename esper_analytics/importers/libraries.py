"""What each library calls the figures it logs of a PPO update, and which of our columns mean the same.

    found = recognise(tags)
    found.columns["train/entropy_loss"]        # Tag(column="entropy", factor=-1.0, ...)

A library is recognised by its tags alone. A tag is mapped only where the column means the same, at most after a factor;
`definition` says whose definition a figure follows where libraries differ. Every other tag is kept as a scalar.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tag:
    """One tag that has a column of `ppo_updates`."""

    tag: str
    column: str
    meaning: str
    """What exactly the library logs under it."""
    factor: float = 1.0
    """The column is the logged value times this."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One hyperparameter that has a column of `ppo_updates`: the same in every update."""

    name: str
    column: str


@dataclass(frozen=True, slots=True)
class Library:
    """What one library logs."""

    definition: str
    """The value of `definition` in the rows of an imported run."""
    name: str
    needs: frozenset[str]
    """Tags that nobody else writes: it is this library where all of them are. Each makes an update when it is met."""
    tags: tuple[Tag, ...]
    step_is_update: bool = False
    """It logs at the number of its update, from 0; all others log at environment steps."""
    late: bool = False
    """It logs an update's figures when the next rollout has been collected, together with figures of that rollout."""
    any_prefix: bool = False
    """Its users choose what stands before the last slash of a tag."""
    episode_return: str | None = None
    """The tag that has each finished episode's return, where there is one."""
    episode_length: str | None = None
    other_axis: str | None = None
    """Tags that end in this are logged at steps of another kind."""
    hyperparameters: str | None = None
    """The text that holds its hyperparameters, a Markdown table of two columns."""
    total_steps: str | None = None
    """The hyperparameter that tells how many environment steps the training has."""
    settings: tuple[Setting, ...] = ()


SB3 = Library(
    definition="sb3",
    name="Stable-Baselines3",
    needs=frozenset({"train/approx_kl", "train/clip_fraction"}),
    late=True,
    tags=(
        Tag("train/approx_kl", "approx_kl", "k3, mean over the minibatches of the last epoch"),
        Tag("train/clip_fraction", "clip_fraction", "mean over the minibatches of all epochs"),
        Tag("train/entropy_loss", "entropy", "minus the mean entropy, mean over the minibatches of all epochs", -1.0),
        Tag("train/policy_gradient_loss", "policy_loss", "mean over the minibatches of all epochs"),
        Tag("train/value_loss", "value_loss", "mean squared error, mean over the minibatches of all epochs"),
        Tag("train/loss", "loss", "that of the last minibatch"),
        Tag("train/explained_variance", "explained_variance", "of the rollout, by the values predicted in it"),
        Tag("train/learning_rate", "learning_rate", "of the optimizer"),
        Tag("train/clip_range", "clip_range", "of the ratio"),
        Tag("train/clip_range_vf", "value_clip_range", "of the value prediction"),
        Tag("train/std", "policy_std", "mean standard deviation after the update"),
    ),
)

CLEANRL = Library(
    definition="cleanrl",
    name="CleanRL",
    needs=frozenset({"losses/old_approx_kl", "losses/clipfrac"}),
    tags=(
        Tag("losses/approx_kl", "approx_kl", "k3 of the last minibatch"),
        Tag("losses/clipfrac", "clip_fraction", "mean over the minibatches of all epochs"),
        Tag("losses/entropy", "entropy", "mean entropy of the last minibatch"),
        Tag("losses/policy_loss", "policy_loss", "of the last minibatch"),
        Tag("losses/value_loss", "value_loss", "of the last minibatch, half the (clipped) squared error"),
        Tag("losses/explained_variance", "explained_variance", "of the rollout, by the values predicted in it"),
        Tag("charts/learning_rate", "learning_rate", "of the optimizer"),
    ),
    episode_return="charts/episodic_return",
    episode_length="charts/episodic_length",
    hyperparameters="hyperparameters",
    total_steps="total_timesteps",
    settings=(
        Setting("clip_coef", "clip_range"),
        Setting("ent_coef", "entropy_coef"),
        Setting("vf_coef", "value_coef"),
        Setting("max_grad_norm", "max_grad_norm"),
        Setting("target_kl", "target_kl"),
        Setting("update_epochs", "epochs_planned"),
    ),
)

RSL_RL = Library(
    definition="rsl_rl",
    name="rsl_rl",
    needs=frozenset({"Loss/surrogate"}),
    step_is_update=True,
    other_axis="/time",
    tags=(
        Tag("Loss/surrogate", "policy_loss", "mean over the minibatches of all epochs"),
        Tag("Loss/value", "value_loss", "(clipped) squared error, mean over the minibatches of all epochs"),
        Tag("Loss/value_function", "value_loss", "the same, in older versions"),
        Tag("Loss/entropy", "entropy", "mean over the minibatches of all epochs"),
        Tag("Loss/learning_rate", "learning_rate", "after the update, where it is adapted"),
        Tag("Policy/mean_std", "policy_std", "mean standard deviation, as the last minibatch met it"),
        Tag("Policy/mean_noise_std", "policy_std", "the same, in older versions"),
    ),
)

TORCHRL = Library(
    definition="torchrl",
    name="TorchRL",
    needs=frozenset({"loss_objective", "loss_critic"}),
    any_prefix=True,
    tags=(
        Tag("kl_approx", "approx_kl", "k1, averaged as the user's loop does"),
        Tag("clip_fraction", "clip_fraction", "averaged as the user's loop does"),
        Tag("entropy", "entropy", "mean entropy, of samples where it has no closed form"),
        Tag("loss_objective", "policy_loss", "averaged as the user's loop does"),
        Tag("loss_critic", "value_loss", "times critic_coeff; smooth L1 where loss_critic_type was not changed"),
        Tag("grad_norm", "grad_norm", "mean norm before clipping (torchrl.trainers)"),
        Tag("lr", "learning_rate", "as the user's loop gives it"),
        Tag("clip_epsilon", "clip_range", "as the user's loop gives it"),
    ),
)

LIBRARIES = (SB3, CLEANRL, RSL_RL, TORCHRL)


@dataclass(frozen=True, slots=True)
class Recognised:
    """A library as one run's tags show it."""

    library: Library
    columns: Mapping[str, Tag] = field(default_factory=dict)
    """Tag as written -> what it is, for the tags that have a column."""
    makes_update: frozenset[str] = frozenset()
    """The tags, as written, that only an update brings."""


def recognise(tags: Collection[str]) -> Recognised | None:
    """The library that wrote a run with these tags; None where it is none of those that are known.

    Where tags of several are there (one folder for two trainings), it is the one with more of its tags.
    """
    found = [one for library in LIBRARIES for one in _fits(library, set(tags))]
    return max(found, key=lambda one: len(one.columns), default=None)


def _fits(library: Library, tags: set[str]) -> list[Recognised]:
    prefixes = [""]
    if library.any_prefix:
        prefixes = sorted({tag.rpartition("/")[0] + "/" if "/" in tag else "" for tag in tags})
    return [
        Recognised(
            library,
            {prefix + tag.tag: tag for tag in library.tags if prefix + tag.tag in tags},
            frozenset(prefix + tag for tag in library.needs),
        )
        for prefix in prefixes
        if all(prefix + tag in tags for tag in library.needs)
    ]
