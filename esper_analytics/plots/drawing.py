"""How one panel is drawn on its axes.

A line has a gap if nothing was measured. A value that is NaN or lies beyond the axis has a mark at the edge: a cross
for NaN, a triangle for what is above or below.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any, Final

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from esper_analytics.formatting import format_number
from esper_analytics.plots.panels import BAND, FAINT, MUTED, Line, Panel, has_values
from esper_analytics.plots.run_frames import Mark
from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.spans import Spans, join, without

SEVERITY_COLOURS: Final = {Severity.CRITICAL: "#b3261e", Severity.WARNING: "#d98200", Severity.INFO: "#4b7f9e"}
"""Distinct in lightness too, and never without the word."""

THRESHOLD_DASHES: Final = (0, (6, 2, 1, 2))
_RETURN_BAND: Final = ("episode_return_min", "episode_return_max")

Floats = NDArray[np.float64]


def draw(
    axes: Axes,
    panel: Panel,
    frame: pl.DataFrame,
    marks: Sequence[Mark] = (),
    boundaries: Sequence[tuple[str, int]] = (),
    *,
    beneath: Axes | None = None,
) -> None:
    """Draw one panel.

    Args:
        axes: where to draw.
        panel: what to draw.
        frame: one row per update in ascending order, with `update` and those of the panel's columns that it has.
        marks: the incidents to shade.
        boundaries: (phase, first update) of each phase.
        beneath: the axes for the panel's second, lower line.
    """
    updates = floats(frame, "update")
    lines = [line for line in panel.lines if has_values(frame, line.column)]
    _shade(axes, marks)
    if lines:
        _draw_lines(axes, panel, lines, frame, marks)
    else:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=MUTED)
        axes.set_yticks([])
    _draw_onsets(axes, marks)
    if beneath is not None and panel.beneath is not None:
        values = floats(frame, panel.beneath.column)
        finite = values[np.isfinite(values)]
        top = float(finite.max()) * 1.15 if finite.size and finite.max() > 0 else 1.0
        beneath.set_ylim(0.0, top)
        write_out_numbers(beneath)
        draw_line(beneath, updates, values, colour=panel.beneath.colour, label=panel.beneath.label, span=(0.0, top))
        finish(beneath, updates, boundaries, named=False)
        axes.tick_params(labelbottom=False)
    finish(axes, updates, boundaries, xlabel=beneath is None)
    n = len(lines) + (beneath is not None)
    if n > 1 or any(has_values(frame, column) for column, _ in panel.references) or panel.clip_band:
        legend(axes, beneath, above=11.0 if boundaries else 3.0)


def _draw_lines(axes: Axes, panel: Panel, lines: Sequence[Line], frame: pl.DataFrame, marks: Sequence[Mark]) -> None:
    updates = floats(frame, "update")
    values = [floats(frame, line.column) for line in lines]
    others = [*(column for column, _ in panel.references), *(_RETURN_BAND if panel.name == "return" else ())]
    references = [floats(frame, column) for column in others if has_values(frame, column)]
    references.append(np.asarray([mark.threshold for mark in marks if mark.threshold is not None], dtype=np.float64))
    low, high = set_limits(axes, panel, values, references)
    _draw_background(axes, panel, frame, updates)
    for line, value in zip(lines, values, strict=True):
        draw_line(axes, updates, value, colour=line.colour, label=line.label, span=(low, high))
        _draw_cut_short(axes, updates, value, cut_short(frame), line.colour)
    _draw_thresholds(axes, marks, (low, high), values)
    for mark in marks:
        if mark.peak_update is not None and mark.peak_value is not None and low <= mark.peak_value <= high:
            style: dict[str, Any] = {"markersize": 6, "markerfacecolor": "none", "label": "_peak"}
            colour = SEVERITY_COLOURS[Severity(mark.severity)]
            axes.plot([mark.peak_update], [mark.peak_value], "o", markeredgecolor=colour, **style)


def legend(axes: Axes, beneath: Axes | None = None, *, above: float) -> None:
    """Label what is drawn here and beneath, in one line `above` points over the axes."""
    handles, labels = axes.get_legend_handles_labels()
    if beneath is not None:
        more, names = beneath.get_legend_handles_labels()
        handles, labels = [*handles, *more], [*labels, *names]
    if labels:
        figure = axes.get_figure(root=True)
        assert figure is not None
        place = axes.transAxes + ScaledTranslation(0, above / 72, figure.dpi_scale_trans)
        drawn = axes.legend(
            handles, labels, loc="lower right", bbox_to_anchor=(1.0, 1.0), bbox_transform=place, ncols=4
        )
        for text in drawn.get_texts():
            text.set_parse_math(False)


def draw_line(
    axes: Axes, updates: Floats, values: Floats, *, colour: str, label: str, span: tuple[float, float]
) -> None:
    """Draw a line with its gaps, its isolated points, and marks for NaN and what is beyond the axis.

    `values` is NaN if a NaN was measured, and masked (see `floats`) if nothing was.
    """
    measured = ~np.ma.getmaskarray(values)
    data = np.ma.getdata(values)
    low, high = span
    log = axes.get_yscale() == "log"
    drawable = measured & np.isfinite(data) & ((data > 0) if log else True)
    x, y = _with_breaks(updates, np.where(drawable, data, np.nan))
    axes.plot(x, y, color=colour, label=label)
    finite = np.pad(np.isfinite(y), 1)
    isolated = finite[1:-1] & ~finite[:-2] & ~finite[2:]
    if isolated.any():
        axes.plot(x[isolated], y[isolated], "o", color=colour, markersize=3, label="_isolated")
    edge = axes.get_xaxis_transform()
    for which, marker, height, name in (
        (measured & np.isnan(data), "x", 0.97, "_nan"),
        (measured & (data > high), "^", 0.97, "_above"),
        (measured & ((data < low) | ((data <= 0) & log)), "v", 0.03, "_below"),
    ):
        if which.any():
            at = updates[which]
            style: dict[str, Any] = {"markersize": 4.5, "clip_on": False, "linestyle": "none", "label": name}
            axes.plot(at, np.full(at.shape, height), marker, color=colour, transform=edge, **style)


def finish(
    axes: Axes,
    updates: Floats,
    boundaries: Sequence[tuple[str, int]],
    *,
    named: bool = True,
    xlabel: bool = True,
    letter: float = 0.018,
) -> None:
    """Set limits and ticks of the x axis, and mark the start of each training phase.

    A phase is named if its name fits; a letter takes the fraction `letter` of the axis.
    """
    first, last = (float(updates[0]), float(updates[-1])) if len(updates) else (1.0, 1.0)
    margin = max(0.5, 0.015 * (last - first))
    axes.set_xlim(first - margin, last + margin)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
    if xlabel:
        axes.set_xlabel("PPO update")
    ends = [float(start) for _, start in boundaries[1:]] + [last]
    for (phase, start), end in zip(boundaries, ends, strict=False):
        if start > first:
            axes.axvline(start - 0.5, color=FAINT, linewidth=0.8, linestyle=(0, (2, 2)), zorder=0.5)
        if named and end - start >= letter * (len(phase) + 1) * (last - first):
            left = max(float(start), first) - 0.5
            style: dict[str, Any] = {"fontsize": 6.5, "color": MUTED, "parse_math": False}
            axes.text(left, 1.01, f" {phase}", transform=axes.get_xaxis_transform(), **style)


def _draw_background(axes: Axes, panel: Panel, frame: pl.DataFrame, updates: Floats) -> None:
    def broken(column: str) -> tuple[Floats, Floats]:
        return _with_breaks(updates, np.ma.filled(floats(frame, column), np.nan))

    style: dict[str, Any] = {"color": BAND, "linewidth": 0, "zorder": 0.8}
    if panel.clip_band and has_values(frame, "clip_range"):
        x, clip = broken("clip_range")
        axes.fill_between(x, np.maximum(1 - clip, 1e-12), 1 + clip, label="clip range", step="mid", **style)
    if panel.name == "return" and has_values(frame, _RETURN_BAND[0]):
        (x, lowest), (_, highest) = (broken(column) for column in _RETURN_BAND)
        axes.fill_between(x, lowest, highest, label="worst to best", **style)
    if panel.centre is not None:
        axes.axhline(panel.centre, color=FAINT, linewidth=1.0, zorder=0.9)
    for column, label in panel.references:
        if has_values(frame, column):
            axes.plot(*broken(column), color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)), label=label)


def _shade(axes: Axes, marks: Iterable[Mark]) -> None:
    """Shade the updates of the incidents in the colour of the worst severity of each update."""
    spans = [(mark.onset, mark.last, Severity(mark.severity)) for mark in marks]
    covered: Spans = []
    shades: list[tuple[int, int, Severity]] = []
    for severity in sorted(Severity, key=lambda severity: -severity.rank):
        own = join((onset, last) for onset, last, of_mark in spans if of_mark is severity)
        shades += ((*span, severity) for span in without(own, covered))
        covered = join([*covered, *own])
    for start, end, severity in sorted(shades):
        colour = SEVERITY_COLOURS[severity]
        axes.axvspan(start - 0.5, end + 0.5, color=colour, alpha=0.11, linewidth=0, zorder=0.4)


def _draw_onsets(axes: Axes, marks: Iterable[Mark]) -> None:
    """Draw a vertical at each onset, above everything; of two at one update the more severe is wider and beneath."""
    for update, severity in sorted({(mark.onset, Severity(mark.severity)) for mark in marks}):
        milder = len({m.severity for m in marks if m.onset == update and Severity(m.severity).rank < severity.rank})
        style: dict[str, Any] = {"linewidth": 1.1 + 1.8 * milder, "zorder": 2.9 - 0.1 * milder, "label": "_onset"}
        axes.axvline(update - 0.5, color=SEVERITY_COLOURS[severity], **style)


def _draw_thresholds(axes: Axes, marks: Iterable[Mark], span: tuple[float, float], curves: Sequence[Floats]) -> None:
    """Draw the thresholds that were crossed, each labelled in the third of the axis where the curves leave most space.

    Labels at similar heights are put into different thirds, so that they do not overlap.
    """
    log = axes.get_yscale() == "log"
    heights = [_heights(curve, span, log=log) for curve in curves]
    placed: list[tuple[float, int]] = []
    by_threshold = {(mark.rule, mark.threshold): mark for mark in marks if mark.threshold is not None}
    for (rule, threshold), mark in by_threshold.items():
        if threshold is None or not span[0] <= threshold <= span[1] or (log and threshold <= 0):
            continue
        colour = SEVERITY_COLOURS[Severity(mark.severity)]
        style: dict[str, Any] = {"linewidth": 0.8, "linestyle": THRESHOLD_DASHES, "label": "_threshold"}
        axes.axhline(threshold, color=colour, zorder=1.6, **style)
        [height] = _heights(np.array([threshold]), span, log=log)
        below = height > 0.9
        free = [third for third in range(3) if all(abs(height - h) > 0.1 or third != t for h, t in placed)]
        middle = height + (-0.04 if below else 0.04)  # of the label
        third = max(free or (0,), key=lambda third: _clearance(heights, third, middle))
        placed.append((height, third))
        axes.annotate(
            f"{rule} {format_number(threshold)}",
            ((0.995, 0.01, 0.5)[third], threshold),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, -2 if below else 1.5),
            textcoords="offset points",
            ha=("right", "left", "center")[third],
            va="top" if below else "bottom",
            fontsize=6,
            color=colour,
            zorder=3.2,
            parse_math=False,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )


def _heights(values: Floats, span: tuple[float, float], *, log: bool) -> Floats:
    """Return where values lie between the ends of the axis, 0 to 1; NaN if nothing is drawn."""
    data = np.where(np.ma.getmaskarray(values), math.nan, np.ma.getdata(values))
    low, high = np.log(span) if log else span
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.log(data) if log else data
    return np.asarray(np.clip((scaled - low) / (high - low), 0.0, 1.0), np.float64)


def _clearance(heights: Sequence[Floats], third: int, middle: float) -> float:
    """Return the least distance of any curve to a height, in the right, the left or the middle third of the axis."""
    distances = [1.0]
    for curve in heights:
        n = max(len(curve) // 3, 1)
        part = (curve[-n:], curve[:n], curve[n : max(len(curve) - n, n + 1)])[third]
        distances += np.abs(part[np.isfinite(part)] - middle).tolist()
    return min(distances)


def cut_short(frame: pl.DataFrame) -> NDArray[np.bool_]:
    """Return which updates the training did not finish."""
    if "interrupted" not in frame.columns:
        return np.zeros(frame.height, dtype=np.bool_)
    return frame.get_column("interrupted").cast(pl.Boolean).fill_null(False).to_numpy()


def _draw_cut_short(axes: Axes, updates: Floats, values: Floats, which: NDArray[np.bool_], colour: str) -> None:
    """Draw hollow points at the updates that were cut short."""
    data = np.ma.getdata(values)
    which = which & ~np.ma.getmaskarray(values) & np.isfinite(data)
    if which.any():
        style: dict[str, Any] = {"markersize": 5, "markerfacecolor": "white", "label": "_cut", "zorder": 2.6}
        axes.plot(updates[which], data[which], "D", linestyle="none", markeredgecolor=colour, **style)


class _WrittenOut(Formatter):
    """Tick labels written out; matplotlib's own set a power of ten or an offset apart from them."""

    def __call__(self, x: float, pos: int | None = None) -> str:
        low, high = self.axis.get_view_interval()  # type: ignore[union-attr]
        size, span = max(abs(low), abs(high)), abs(high - low)
        if abs(x) < 1e-9 * size:
            return "0"
        digits = 3 + max(0, math.ceil(math.log10(size / span))) if 0 < span < math.inf else 6
        text = f"{x:.{min(digits, 15)}g}"
        if "e" in text:
            mantissa, exponent = text.split("e")
            text = f"{mantissa}e{int(exponent)}" if abs(x) >= 1e6 or abs(x) < 1e-4 else f"{x:.0f}"
        return text.replace("-", "−")


def write_out_numbers(axes: Axes) -> None:
    """Label the y axis with numbers written out."""
    axes.yaxis.set_major_formatter(_WrittenOut())


def set_limits(
    axes: Axes, panel: Panel, values: Sequence[Floats], references: Sequence[Floats] = ()
) -> tuple[float, float]:
    """Set scale and limits of the y axis so that it shows the values and references; return (low, high)."""
    low, high, log = _limits(panel, [_measured(one) for one in (*values, *references)])
    if log:
        axes.set_yscale("log")
    else:
        write_out_numbers(axes)
    axes.set_ylim(low, high)
    return low, high


def _limits(panel: Panel, values: Sequence[Floats]) -> tuple[float, float, bool]:
    """Return (lowest, highest, logarithmic) of the y axis."""
    every = np.concatenate(values)
    finite = every[np.isfinite(every)]
    positive = finite[finite > 0]
    log = panel.scale == "log"
    if panel.scale == "auto":
        log = positive.size > 0 and positive.max() > 100 * max(positive.min(), panel.floor or 0.0)
        # A value barely below zero gets a mark at the edge; anything further below must be on the axis.
        log = log and finite.min() >= -0.01 * positive.max()
    finite = positive if log else finite
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (1.0 if log else 0.0, 1.0)
    within_low, within_high = panel.within
    low = low if within_low is None else min(low, within_low)
    high = high if within_high is None else max(high, within_high)
    if log:
        low, high = low / 1.4, high * 1.4
    else:
        margin = 0.06 * (high - low) or 0.06 * abs(high) or 0.5
        low, high = low - margin, high + margin
    slack = 0.0 if log else 0.03 * ((panel.ceiling or 1.0) - (panel.floor or 0.0))
    if panel.floor is not None and (log or panel.scale != "auto"):
        low = max(low, panel.floor - slack)
    if panel.ceiling is not None:
        high = min(high, panel.ceiling + slack)
    return (low, high, log) if low < high else (low, low * 10 if log else low + 1.0, log)


def floats(frame: pl.DataFrame, column: str) -> Floats:
    """Return the column with NULL masked and NaN kept; all masked if the frame lacks it."""
    if column not in frame.columns:
        return np.ma.MaskedArray(np.zeros(frame.height), mask=True)
    series = frame.get_column(column).cast(pl.Float64)
    values = series.fill_null(0.0).to_numpy()
    return np.ma.MaskedArray(values, mask=series.is_null().to_numpy()) if column != "update" else values


def _with_breaks(updates: Floats, values: Floats) -> tuple[Floats, Floats]:
    """Break the line wherever updates are missing."""
    holes = np.flatnonzero(np.diff(updates) > 1) + 1
    if not holes.size:
        return updates, values
    return np.insert(updates, holes, updates[holes] - 0.5), np.insert(values, holes, np.nan)


def _measured(values: Floats) -> Floats:
    return np.asarray(np.ma.getdata(values)[~np.ma.getmaskarray(values)], dtype=np.float64)
