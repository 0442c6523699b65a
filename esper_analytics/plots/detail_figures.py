"""Detailed figures of one run: its ratios, gradients, action heads, or phases of the loop.

Each takes frames and returns a `matplotlib.figure.Figure`, or raises UsageError with what the run has not recorded.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Final

import numpy as np
import polars as pl
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator
from numpy.typing import NDArray

from esper_analytics.errors import UsageError
from esper_analytics.formatting import format_list, printable
from esper_analytics.plots.drawing import draw, finish, floats, legend
from esper_analytics.plots.figures import RUN_COLOURS, in_style, page
from esper_analytics.plots.panels import FIRST, MUTED, SECOND, Line, Panel, measured
from esper_analytics.plots.run_frames import RunFrames
from esper_recorder.contract.histogram import log_ratio_bin_count, log_ratio_edges

MOST_LAYERS: Final = 48
"""Layers with a row: those with the largest norms."""

MOST_PHASES: Final = len(RUN_COLOURS)
"""Phases with a line: those that took the longest."""

_RATIOS: Final = (0.01, 0.5, 0.9, 0.99, 0.999, 1.0, 1.001, 1.01, 1.1, 2.0, 100.0)
"""Ratios the axis is labelled at."""

_NORMS: Final = Panel(
    "norms",
    "Gradient norm before and after clipping (one line if nothing was clipped)",
    "",
    (
        Line("grad_norm_max", "largest before", SECOND),
        Line("grad_norm", "mean before"),
        Line("grad_norm_clipped", "mean after", RUN_COLOURS[2]),
    ),
    frozenset({"grad_norm", "grad_norm_max", "grad_norm_clipped", "grad_norm_nonfinite"}),
    scale="auto",
    floor=1e-8,
    references=(("max_grad_norm", "clipped to"),),
)

_TIMES: Final = Panel(
    "times",
    "Where the time goes: seconds of each update spent collecting and learning",
    "",
    (Line("rollout_s", "collecting"), Line("update_s", "learning", SECOND)),
    frozenset({"rollout_s", "update_s"}),
    floor=0.0,
)

_HEADS: Final = (
    (
        "entropy_normalized",
        "entropy_normalized_all",
        "Entropy by head, normalised",
        {"floor": 0.0, "within": (0.0, 1.0)},
    ),
    ("ratio_max", None, "Largest ratio by head", {"scale": "auto", "ceiling": 1e6, "within": (0.9, 1.2)}),
    ("clip_fraction", None, "Clip fraction by head", {"floor": 0.0, "ceiling": 1.0, "within": (0.0, 0.3)}),
)
"""(column, the one to draw if it was never measured, title, axis) of each panel of `heads`."""


@in_style
def ratio(run: RunFrames, histograms: pl.DataFrame, exemplars: pl.DataFrame) -> Figure:
    """Draw the ratios of each update: their histogram as a heat map, extremes, clip range, worst transitions.

    Args:
        run: the run.
        histograms: rows of `ratio_histograms`; those of an update's minibatches are summed.
        exemplars: rows of `ratio_exemplars`.
    """
    updates, fractions = ratio_fractions(histograms)
    if not len(updates):
        raise _lacking(run, "histogram of its ratios (table ratio_histograms)", "--kind postmortem has their extremes")
    figure = page(6.2, f"{run.name}: Probability ratios")
    axes = figure.subplots()
    _heat_map(axes, run, updates, fractions, LogNorm(1e-5, 1.0), "Blues", "fraction of the update's transitions")
    x = floats(run.frame, "update")
    for column, colour, label in (("ratio_max", FIRST, "largest"), ("ratio_min", SECOND, "smallest")):
        if column in run.frame.columns:
            axes.plot(x, bin_position(_or_nan(run.frame, column)), color=colour, label=label, linewidth=1.4)
    if "clip_range" in run.frame.columns:
        clip = _or_nan(run.frame, "clip_range")
        for side, label in ((1 + clip, "clip range"), (1 - clip, "_lower")):
            axes.plot(x, bin_position(side), color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)), label=label)
    worst = worst_ratios(exemplars)
    if worst.height:
        style: dict[str, Any] = {"markersize": 3, "color": RUN_COLOURS[1], "label": "worst transitions"}
        axes.plot(floats(worst, "update"), bin_position(np.exp(_or_nan(worst, "log_ratio"))), ".", **style)
    axes.yaxis.set_major_locator(FixedLocator(bin_position(np.array(_RATIOS)).tolist()))
    axes.set_yticklabels([f"{ratio:g}" for ratio in _RATIOS])
    axes.set_ylabel("ratio")
    used = np.flatnonzero(np.nansum(fractions, axis=1))
    half, double = bin_position(np.array([0.5, 2.0]))
    axes.set_ylim(min(used[0], half) - 1, max(used[-1], double) + 1)
    legend(axes, above=11.0 if run.boundaries else 3.0)
    return figure


@in_style
def gradients(run: RunFrames, layers: pl.DataFrame) -> Figure:
    """Draw gradient norms: of all parameters before and after clipping, and of each layer as a heat map.

    Args:
        run: the run.
        layers: rows of `gradient_layers`.
    """
    names, updates, norms = layer_norms(layers)
    whole = measured(_NORMS, run.frame)
    if not names and not whole:
        raise _lacking(run, "gradient norm, neither of all parameters nor of a layer (table gradient_layers)")
    rows = 0.19 * min(len(names), MOST_LAYERS) + 0.9 if names else 0.0
    figure = page((3.8 if whole else 1.1) + rows, f"{run.name}: Gradients")
    heights = [*([2.6] if whole else []), *([rows] if names else [])]
    panels = [axes for (axes,) in figure.subplots(len(heights), 1, squeeze=False, height_ratios=heights)]
    if whole:
        axes = panels[0]
        draw(axes, _NORMS, run.frame, run.marks(_NORMS), run.boundaries)
        axes.set_title(_NORMS.title)
    if names:
        axes = panels[-1]
        positive = norms[np.isfinite(norms) & (norms > 0)]
        norm = LogNorm(positive.min(), positive.max()) if positive.size and positive.min() < positive.max() else None
        _heat_map(axes, run, updates, norms, norm, "viridis", "norm")
        axes.set_yticks(range(len(names)), [_end(name) for name in names], fontsize=6.5, parse_math=False)
        axes.invert_yaxis()
        omitted = layers.get_column("layer").n_unique() - len(names)
        more = f"; {omitted} more with smaller norms are omitted" if omitted else ""
        axes.set_title(f"Norm of each layer's gradient at the last step of the update{more}")
    return figure


@in_style
def heads(run: RunFrames, rows: pl.DataFrame) -> Figure:
    """Draw entropy, largest ratio and clip fraction of each action head, one line per head.

    Args:
        run: the run.
        rows: rows of `heads`.
    """
    panels = [drawn for declared in _HEADS if (drawn := _head_panel(rows, *declared)) is not None]
    if not panels:
        raise _lacking(run, "figure of an action head (table heads), as of a policy with several")
    return _stack(run, "Action heads", 2.5, panels)


@in_style
def phases(run: RunFrames, profiles: pl.DataFrame) -> Figure:
    """Draw where the time goes: collecting against learning, and the phases of the loop that the trainer timed.

    Args:
        run: the run.
        profiles: rows of `phase_profiles`.
    """
    panels = [(_TIMES, run.frame)] if measured(_TIMES, run.frame) else []
    names, times = phase_times(profiles)
    if names:
        more = profiles.get_column("phase").n_unique() - len(names)
        rest = f"; {more} shorter ones are omitted" if more else ""
        title = f"Where the time goes: seconds of each update by phase of the loop{rest}"
        panels.append((Panel("loop", title, "", _lines(names), frozenset(), floor=0.0), times))
    if not panels:
        raise _lacking(run, "time of its phases (rollout_s, update_s, table phase_profiles)")
    figure = _stack(run, "Phases of the loop", 2.9, panels)
    for axes in figure.axes:
        axes.set_ylabel("s")
        legend(axes, above=11.0 if run.boundaries else 3.0)
    return figure


def _stack(run: RunFrames, title: str, height: float, panels: Sequence[tuple[Panel, pl.DataFrame]]) -> Figure:
    figure = page(height * len(panels) + 0.8, f"{run.name}: {title}")
    for (axes,), (panel, frame) in zip(figure.subplots(len(panels), 1, squeeze=False), panels, strict=True):
        draw(axes, panel, frame, run.marks(panel), run.boundaries)
        axes.set_title(panel.title)
    return figure


def _heat_map(
    axes: Any, run: RunFrames, updates: NDArray[np.int64], values: NDArray[np.float64], norm: Any, cmap: str, label: str
) -> None:
    """Draw values by row and update: a column for each of `updates`, and an empty one for each hole between them."""
    holes = np.flatnonzero(np.diff(updates) > 1) + 1
    x = np.sort(np.concatenate([updates - 0.5, updates[[*(holes - 1), -1]] + 0.5]))
    y = np.arange(values.shape[0] + 1) - 0.5
    values = np.insert(values, holes, math.nan, axis=1)
    mesh = axes.pcolormesh(x, y, values, norm=norm, cmap=cmap, rasterized=True)
    axes.figure.colorbar(mesh, ax=axes, label=label, pad=0.01)
    axes.grid(False)
    finish(axes, updates.astype(np.float64), run.boundaries)


# --- the values drawn -------------------------------------------------------------------------------------------------


def ratio_fractions(histograms: pl.DataFrame) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Return (updates with a histogram, fraction of the transitions by bin and update)."""
    joint = histograms.filter((pl.col("head") == "") & pl.col("counts").is_not_null())
    if joint.is_empty():
        return np.array([], np.int64), np.empty((log_ratio_bin_count(), 0))
    whole = joint.filter(pl.col("minibatch").is_null())
    parts = joint.filter(~pl.col("update").is_in(whole.get_column("update").implode()))
    place = _places(joint)
    counts = np.zeros((log_ratio_bin_count(), len(place)))
    for update, histogram in pl.concat([whole, parts]).select("update", "counts").iter_rows():
        counts[:, place[update]] += histogram
    sums = counts.sum(axis=0)
    return np.array([*place]), counts / np.where(sums > 0, sums, math.nan)


def _places(rows: pl.DataFrame) -> dict[int, int]:
    """Number the updates of some rows in their order."""
    return {update: place for place, update in enumerate(rows.get_column("update").unique().sort())}


def bin_position(ratios: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return where ratios lie on the axis of `log_ratio_bins`; the bin of exactly 1 is in the middle."""
    edges = np.log2(log_ratio_edges())
    with np.errstate(divide="ignore", invalid="ignore"):
        logs = np.log(ratios)
        size = np.log2(np.abs(logs))
    # The bin from edge k on is k + 2 positions from the middle, and the edge half a position before it.
    away = np.clip(size - edges[0] + 1.5, 1.0, len(edges) + 1.0)
    away = np.where(np.isnan(logs), math.nan, np.where(logs == 0, 0.0, away))
    return np.asarray(log_ratio_bin_count() // 2 + np.sign(logs) * away, np.float64)


def worst_ratios(exemplars: pl.DataFrame) -> pl.DataFrame:
    """Return the transition furthest from ratio 1 of each update: update, log_ratio."""
    return (
        exemplars.filter((pl.col("head") == "") & (pl.col("scope") == "update"))
        .sort("update", "place")
        .unique("update", keep="first", maintain_order=True)
        .select("update", "log_ratio")
    )


def layer_norms(layers: pl.DataFrame) -> tuple[list[str], NDArray[np.int64], NDArray[np.float64]]:
    """Return (layers in network order, updates with a norm, norm by layer and update at the last step)."""
    recorded = layers.filter(pl.col("grad_norm").is_not_null())
    if recorded.is_empty():
        return [], np.array([], np.int64), np.empty((0, 0))
    last_step = recorded.sort("update", "minibatch").unique(["update", "layer"], keep="last", maintain_order=True)
    largest = last_step.group_by("layer", maintain_order=True).agg(pl.col("grad_norm").fill_nan(None).max())
    kept = set(largest.sort("grad_norm", descending=True, nulls_last=True).head(MOST_LAYERS)["layer"])
    names = [name for name in largest.get_column("layer") if name in kept]
    column = _places(recorded)
    norms = np.full((len(names), len(column)), math.nan)
    row = {name: n for n, name in enumerate(names)}
    for update, layer, norm in last_step.select("update", "layer", "grad_norm").iter_rows():
        if layer in row:
            norms[row[layer], column[update]] = norm
    return names, np.array([*column]), norms


def phase_times(profiles: pl.DataFrame) -> tuple[list[str], pl.DataFrame]:
    """Return (the longest phases, longest first; their seconds by update, one column per phase)."""
    timed = profiles.filter(pl.col("wall_ms").is_not_null())
    if timed.is_empty():
        return [], pl.DataFrame({"update": []}, schema={"update": pl.Int64})
    spent = timed.group_by("update", "phase").agg(pl.col("wall_ms").sum() / 1000)
    total = spent.group_by("phase").agg(pl.col("wall_ms").sum()).sort("wall_ms", "phase", descending=[True, False])
    names = total.head(MOST_PHASES).get_column("phase").to_list()
    wide = spent.filter(pl.col("phase").is_in(names)).pivot("phase", index="update", values="wall_ms").sort("update")
    return names, wide


def _head_panel(
    rows: pl.DataFrame, column: str, otherwise: str | None, title: str, axis: dict[str, Any]
) -> tuple[Panel, pl.DataFrame] | None:
    """Return a panel with one line per head, and its frame; None if nothing was measured."""
    if otherwise is not None and rows.get_column(column).null_count() == rows.height:
        column, title = otherwise, f"{title}, over all transitions"
    rows = rows.filter(pl.col(column).is_not_null())
    if rows.is_empty():
        return None
    names = rows.get_column("head").unique(maintain_order=True).to_list()
    shown = names[: len(RUN_COLOURS)]
    if len(names) > len(shown):
        title += f" (of {len(shown)} heads; omitted: {format_list(names[len(shown) :], most=4)})"
    last = rows.unique(["update", "head"], keep="last", maintain_order=True)
    wide = last.pivot("head", index="update", values=column).sort("update")
    return Panel(column, title, "", _lines(shown), frozenset(), **axis), wide


def _lines(names: Sequence[str]) -> tuple[Line, ...]:
    return tuple(Line(name, name, colour) for name, colour in zip(names, RUN_COLOURS, strict=False))


def _lacking(run: RunFrames, what: str, instead: str = "") -> UsageError:
    more = f" {instead}." if instead else ""
    return UsageError(f"{run.name} has recorded no {what}, so there is nothing to draw.{more}")


def _or_nan(frame: pl.DataFrame, column: str) -> NDArray[np.float64]:
    return frame.get_column(column).cast(pl.Float64).fill_null(math.nan).to_numpy()


def _end(name: str, longest: int = 44) -> str:
    name = printable(name)
    return name if len(name) <= longest else f"…{name[1 - longest :]}"
