"""The panels of a run's figures: one per question about the run, declared in `PANELS`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

import polars as pl

INK: Final = "#1c2733"
MUTED: Final = "#5a6775"
FAINT: Final = "#c3ccd5"
FIRST: Final = "#1f6aa5"
SECOND: Final = "#8a4f9e"
BAND: Final = "#dfe9f2"

Limit = float | None


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a panel."""

    column: str
    label: str
    colour: str = FIRST


@dataclass(frozen=True, slots=True)
class Panel:
    """One question about a run and the columns that answer it.

    Attributes:
        name: identifies it in file names and anchors.
        title: what it shows.
        caption: how to read it.
        lines: the lines; one whose column was never measured is omitted.
        reads: columns whose rules' incidents are marked here.
        scale: `auto` is logarithmic if the positive values span more than two orders of magnitude.
        floor: the lowest end of the axis; what is lower gets a mark.
        ceiling: the highest end of the axis.
        within: a range that the axis shows at least.
        references: (column, label) of settings drawn as dashed lines.
        centre: a value marked by a line.
        clip_band: whether to shade the clip range around 1.
        beneath: a line on a second, lower axis.
    """

    name: str
    title: str
    caption: str
    lines: tuple[Line, ...]
    reads: frozenset[str]
    scale: Literal["linear", "log", "auto"] = "linear"
    floor: Limit = None
    ceiling: Limit = None
    within: tuple[Limit, Limit] = (None, None)
    references: tuple[tuple[str, str], ...] = ()
    centre: Limit = None
    clip_band: bool = False
    beneath: Line | None = None

    @property
    def columns(self) -> tuple[str, ...]:
        """Every column it can draw."""
        names = [line.column for line in self.lines] + [column for column, _ in self.references]
        names += ["clip_range"] if self.clip_band else []
        return (*names, *([self.beneath.column] if self.beneath else ()))


def _ratio_columns() -> frozenset[str]:
    return frozenset(
        f"{kind}_{what}" for kind in ("ratio", "log_ratio") for what in ("min", "max", "std", "mean", "sum", "sum_sq")
    ) | {"ratio_nonfinite", "log_ratio_nan", "log_ratio_posinf", "log_ratio_neginf", "log_ratio"}


PANELS: Final[tuple[Panel, ...]] = (
    Panel(
        "return",
        "Episode return",
        "Mean over the episodes that ended in an update, with the range from worst to best.",
        (Line("episode_return", "mean"),),
        frozenset({"episode_return", "episode_length"}),
    ),
    Panel(
        "ratio",
        "Probability ratio",
        "Largest and smallest new/old probability of an action within an update. The band is the clip range around 1.",
        (Line("ratio_max", "largest"), Line("ratio_min", "smallest", SECOND)),
        _ratio_columns(),
        scale="log",
        floor=1e-4,
        ceiling=1e6,
        within=(0.5, 2.0),
        centre=1.0,
        clip_band=True,
    ),
    Panel(
        "kl",
        "Approximate KL",
        "How far an update moved the policy, in nats.",
        (Line("approx_kl", "approx. KL"),),
        frozenset({"approx_kl", "approx_kl_k1", "approx_kl_k3", "k1_sum", "k3_sum"}),
        scale="auto",
        floor=1e-6,
        references=(("target_kl", "target"),),
    ),
    Panel(
        "clip",
        "Clip fraction",
        "Fraction of transitions whose ratio left the clip range.",
        (Line("clip_fraction", "clip fraction"),),
        frozenset({"clip_fraction", "clip_low_count", "clip_high_count"}),
        floor=0.0,
        ceiling=1.0,
        within=(0.0, 0.3),
    ),
    Panel(
        "entropy",
        "Policy entropy",
        "Normalised: 1 is a uniform choice, 0 a deterministic one.",
        (Line("entropy_normalized", "normalised"),),
        frozenset({"entropy_normalized", "entropy", "entropy_normalized_sum", "entropy_sum"}),
        floor=0.0,
        within=(0.0, 1.0),
    ),
    Panel(
        "entropy_nats",
        "Policy entropy (nats)",
        "Not normalised: the actions are continuous, or the number of valid ones was not recorded.",
        (Line("entropy", "entropy"),),
        frozenset({"entropy", "entropy_sum"}),
    ),
    Panel(
        "explained_variance",
        "Explained variance",
        "1 is a perfect value function, 0 no better than a constant. It means little if the returns hardly vary: see "
        "their standard deviation beneath.",
        (Line("explained_variance", "explained variance"),),
        frozenset({"explained_variance", "return_std", "rollout_return_std"}),
        floor=-1.0,
        ceiling=1.0,
        within=(-1.0, 1.0),
        centre=0.0,
        beneath=Line("return_std", "std of returns", SECOND),
    ),
    Panel(
        "value",
        "Value loss and residual",
        "The loss as the trainer defines it, and the root mean square of return minus value.",
        (Line("value_loss", "value loss"), Line("residual_rms", "residual (rms)", SECOND)),
        frozenset({"value_loss", "residual_rms", "residual_mean", "residual_abs_max", "value_mean", "value_loss_sum"}),
        scale="auto",
        floor=1e-8,
    ),
    Panel(
        "gradients",
        "Gradient norm before clipping",
        "Mean and largest over the steps of an update.",
        (Line("grad_norm_max", "largest", SECOND), Line("grad_norm", "mean")),
        frozenset({"grad_norm", "grad_norm_max", "grad_norm_sum", "grad_norm_nonfinite", "grad_norm_clipped"}),
        scale="auto",
        floor=1e-8,
        references=(("max_grad_norm", "clipped to"),),
    ),
)


def has_values(frame: pl.DataFrame, column: str) -> bool:
    """Whether the frame holds a value, NaN included, in the column."""
    return column in frame.columns and frame.get_column(column).null_count() < frame.height


def measured(panel: Panel, frame: pl.DataFrame) -> bool:
    """Whether the frame holds a value for one of the panel's lines."""
    return any(has_values(frame, line.column) for line in panel.lines)
