"""The tags under which each library logs a PPO update, and the columns that mean the same.

    match = match_library(tags)
    match.columns["train/entropy_loss"]        # Tag(column="entropy", factor=-1.0, ...)

A library is recognised by its tags alone. A tag is mapped only to a column of the same meaning, at most after a factor;
`definition` says whose definition a metric follows if libraries differ. Every other tag is kept as a scalar.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class Tag:
    """A tag that has a column of `ppo_updates`."""

    tag: str
    column: str
    meaning: str
    """What exactly the library logs."""
    factor: float = 1.0
    """The column is the logged value times this."""


@dataclass(frozen=True, slots=True)
class Setting:
    """A hyperparameter that has a column of `ppo_updates`, the same in every update."""

    name: str
    column: str


@dataclass(frozen=True, slots=True)
class Library:
    """What one library logs."""

    definition: str
    """The value of `definition` in the rows of an imported run."""
    name: str
    signature: frozenset[str]
    """Tags of no other library: a run with all of them is this library's, and values with one of them are an update."""
    tags: tuple[Tag, ...]
    step_is_update: bool = False
    """It logs at the number of its update, from 0; all others log at environment steps."""
    late: bool = False
    """It logs an update after the next rollout was collected, together with the statistics of that rollout."""
    any_prefix: bool = False
    """Its users choose the part of a tag before the last slash."""
    episode_return: str | None = None
    """The tag of each finished episode's return."""
    episode_length: str | None = None
    other_axis: str | None = None
    """The ending of tags that are logged at steps of another kind."""
    hyperparameters: str | None = None
    """The tag of the text with its hyperparameters, a Markdown table of two columns."""
    total_steps: str | None = None
    """The hyperparameter with the number of environment steps of the training."""
    settings: tuple[Setting, ...] = ()


SB3 = Library(
    definition="sb3",
    name="Stable-Baselines3",
    signature=frozenset({"train/approx_kl", "train/clip_fraction"}),
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
    signature=frozenset({"losses/old_approx_kl", "losses/clipfrac"}),
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
    signature=frozenset({"Loss/surrogate"}),
    step_is_update=True,
    other_axis="/time",
    tags=(
        Tag("Loss/surrogate", "policy_loss", "mean over the minibatches of all epochs"),
        Tag("Loss/value", "value_loss", "(clipped) squared error, mean over the minibatches of all epochs"),
        Tag("Loss/value_function", "value_loss", "the same, in older versions"),
        Tag("Loss/entropy", "entropy", "mean over the minibatches of all epochs"),
        Tag("Loss/learning_rate", "learning_rate", "after the update, if it is adapted"),
        Tag("Policy/mean_std", "policy_std", "mean standard deviation, as the last minibatch met it"),
        Tag("Policy/mean_noise_std", "policy_std", "the same, in older versions"),
    ),
)

TORCHRL = Library(
    definition="torchrl",
    name="TorchRL",
    signature=frozenset({"loss_objective", "loss_critic"}),
    any_prefix=True,
    tags=(
        Tag("kl_approx", "approx_kl", "k1, averaged as the user's loop does"),
        Tag("clip_fraction", "clip_fraction", "averaged as the user's loop does"),
        Tag("entropy", "entropy", "mean entropy, of samples if it has no closed form"),
        Tag("loss_objective", "policy_loss", "averaged as the user's loop does"),
        Tag("loss_critic", "value_loss", "times critic_coeff; smooth L1 unless loss_critic_type was changed"),
        Tag("grad_norm", "grad_norm", "mean norm before clipping (torchrl.trainers)"),
        Tag("lr", "learning_rate", "as the user's loop gives it"),
        Tag("clip_epsilon", "clip_range", "as the user's loop gives it"),
    ),
)

LIBRARIES = (SB3, CLEANRL, RSL_RL, TORCHRL)


@dataclass(frozen=True, slots=True)
class LibraryMatch:
    """A library, and its tags as one run has them."""

    library: Library
    by_name: Mapping[str, Tag] = field(default_factory=dict)
    """Tag as the run wrote it, prefix included -> its `Tag`. Only tags that have a column."""
    update_tags: frozenset[str] = frozenset()
    """The library's signature, as written."""


def match_library(tags: Collection[str]) -> LibraryMatch | None:
    """Return the library that wrote a run with these tags; None for any other.

    If the folder has the logs of two libraries, the one with more tags in it wins.
    """
    matches = [match for library in LIBRARIES for match in _matches(library, set(tags))]
    return max(matches, key=lambda match: len(match.by_name), default=None)


def _matches(library: Library, tags: set[str]) -> list[LibraryMatch]:
    prefixes = [""]
    if library.any_prefix:
        prefixes = sorted({tag.rpartition("/")[0] + "/" if "/" in tag else "" for tag in tags})
    return [
        LibraryMatch(
            library,
            {prefix + tag.tag: tag for tag in library.tags if prefix + tag.tag in tags},
            frozenset(prefix + tag for tag in library.signature),
        )
        for prefix in prefixes
        if all(prefix + tag in tags for tag in library.signature)
    ]
