"""What a figure of one run shows: one panel per question, declared as a row of `PANELS`."""

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
        name: a word for file names and anchors.
        title: what it shows.
        caption: how to read it, one sentence.
        lines: what is drawn; a line whose column was never measured is left out.
        reads: columns whose rules' incidents are marked here.
        scale: `auto` is logarithmic where the positive values span more than two orders of magnitude.
        floor: the axis begins no lower; what is lower has a mark.
        ceiling: the axis ends no higher.
        within: the axis shows at least this range.
        references: (column, label) of settings drawn as dashed lines.
        centre: a line drawn at this value.
        clip_band: the clip range around 1 is shaded.
        beneath: a second, lower axis for this line.
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
        own = [line.column for line in self.lines] + [column for column, _ in self.references]
        own += ["clip_range"] if self.clip_band else []
        return (*own, *([self.beneath.column] if self.beneath else ()))


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
        "Share of transitions whose ratio left the clip range.",
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
        "1 is a perfect value function, 0 no better than a constant. It means little where the returns hardly vary: "
        "see their standard deviation beneath.",
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


def measured(panel: Panel, frame: pl.DataFrame) -> bool:
    """Whether the frame holds a value (be it NaN) for one of the panel's lines."""
    return any(
        line.column in frame.columns and frame.get_column(line.column).null_count() < frame.height
        for line in panel.lines
    )
