"""How one panel is drawn on its axes.

A line has a gap where nothing was measured. What was measured and is not a number, or lies beyond the axis, has a mark
at its edge: a cross for NaN, a triangle for what is above or below.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
import polars as pl
from matplotlib.axes import Axes
from matplotlib.ticker import Formatter, MaxNLocator
from matplotlib.transforms import ScaledTranslation
from numpy.typing import NDArray

from esper_analytics.formatting import format_number
from esper_analytics.plots.panels import BAND, FAINT, MUTED, Panel
from esper_recorder.contract.rules.model import Severity

SEVERITY_COLOURS: Final = {Severity.CRITICAL: "#b3261e", Severity.WARNING: "#d98200", Severity.INFO: "#4b7f9e"}
"""Told apart by lightness too, and never without the word."""

THRESHOLD_DASHES: Final = (0, (6, 2, 1, 2))
_RETURN_BAND: Final = ("episode_return_min", "episode_return_max")

Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Mark:
    """An incident as a panel shows it: the updates it lasted, and its peak where the panel draws that very column."""

    severity: str
    onset: int
    last: int
    peak_update: int | None = None
    peak_value: float | None = None
    rule: str = ""
    threshold: float | None = None
    """What the rule fires beyond, where the panel draws that very column and it is one number throughout."""


def draw(
    axes: Axes,
    panel: Panel,
    frame: pl.DataFrame,
    marks: Iterable[Mark] = (),
    boundaries: Sequence[tuple[str, int]] = (),
    *,
    beneath: Axes | None = None,
) -> None:
    """Draw one panel.

    Args:
        axes: where.
        panel: what.
        frame: one row per update in ascending order, with `update` and the panel's columns as far as there are any.
        marks: the incidents to shade.
        boundaries: (phase, first update) of each phase met.
        beneath: the axes for the panel's second, lower line.
    """
    updates = floats(frame, "update")
    lines = [line for line in panel.lines if _has(frame, line.column)]
    drawn = [*lines, *([panel.beneath] if panel.beneath and beneath is not None else [])]
    marks = list(marks)
    _shade(axes, marks)
    if not lines:
        axes.text(0.5, 0.5, "not measured", transform=axes.transAxes, ha="center", va="center", color=MUTED)
        axes.set_yticks([])
    else:
        values = [floats(frame, line.column) for line in lines]
        others = [*(column for column, _ in panel.references), *(_RETURN_BAND if panel.name == "return" else ())]
        thresholds = [np.asarray([mark.threshold for mark in marks if mark.threshold is not None], dtype=np.float64)]
        low, high, log = limits(panel, values, thresholds + [floats(frame, c) for c in others if _has(frame, c)])
        if log:
            axes.set_yscale("log")
        else:
            plain_numbers(axes)
        axes.set_ylim(low, high)
        _background(axes, panel, frame, updates)
        for line, value in zip(lines, values, strict=True):
            draw_line(axes, updates, value, colour=line.colour, label=line.label, span=(low, high))
            _cut(axes, updates, value, cut_short(frame), line.colour)
        _thresholds(axes, marks, (low, high), values)
        for mark in marks:
            if mark.peak_update is not None and mark.peak_value is not None and low <= mark.peak_value <= high:
                axes.plot(
                    [mark.peak_update],
                    [mark.peak_value],
                    "o",
                    markersize=6,
                    markerfacecolor="none",
                    markeredgecolor=SEVERITY_COLOURS[Severity(mark.severity)],
                    label="_peak",
                )
    _onsets(axes, marks)
    if beneath is not None and panel.beneath is not None:
        std = floats(frame, panel.beneath.column)
        finite = std[np.isfinite(std)]
        top = float(finite.max()) * 1.15 if finite.size and finite.max() > 0 else 1.0
        beneath.set_ylim(0.0, top)
        plain_numbers(beneath)
        draw_line(beneath, updates, std, colour=panel.beneath.colour, label=panel.beneath.label, span=(0.0, top))
        finish(beneath, updates, boundaries, named=False)
        axes.tick_params(labelbottom=False)
    finish(axes, updates, boundaries, xlabel=beneath is None)
    if len(drawn) > 1 or any(_has(frame, column) for column, _ in panel.references) or panel.clip_band:
        legend(axes, beneath, above=11.0 if boundaries else 3.0)


def legend(axes: Axes, beneath: Axes | None = None, *, above: float) -> None:
    """A line of labels so many points above the axes, of what is drawn here and beneath."""
    handles, labels = axes.get_legend_handles_labels()
    if beneath is not None:
        more, names = beneath.get_legend_handles_labels()
        handles, labels = [*handles, *more], [*labels, *names]
    if labels:
        figure = axes.get_figure(root=True)
        assert figure is not None
        place = axes.transAxes + ScaledTranslation(0, above / 72, figure.dpi_scale_trans)
        axes.legend(handles, labels, loc="lower right", bbox_to_anchor=(1.0, 1.0), bbox_transform=place, ncols=4)


def draw_line(
    axes: Axes, updates: Floats, values: Floats, *, colour: str, label: str, span: tuple[float, float]
) -> None:
    """One line with its gaps, its lone points, and marks for what is beyond the axis or no number.

    `values` is NaN where a NaN was measured and masked (see `floats`) where nothing was.
    """
    absent = np.ma.getmaskarray(values)
    data = np.ma.getdata(values)
    low, high = span
    drawable = ~absent & np.isfinite(data) & ((data > 0) if axes.get_yscale() == "log" else True)
    x, y = _broken(updates, np.where(drawable, data, np.nan))
    axes.plot(x, y, color=colour, label=label)
    if lone := _lone(y):
        axes.plot(x[lone], y[lone], "o", color=colour, markersize=3, label="_lone")
    edge = axes.get_xaxis_transform()
    for which, marker, height, name in (
        (~absent & np.isnan(data), "x", 0.97, "_nan"),
        (~absent & (data > high), "^", 0.97, "_above"),
        (~absent & ((data < low) | ((data <= 0) & (axes.get_yscale() == "log"))), "v", 0.03, "_below"),
    ):
        if which.any():
            at = updates[which]
            axes.plot(
                at,
                np.full(at.shape, height),
                marker,
                color=colour,
                markersize=4.5,
                transform=edge,
                clip_on=False,
                label=name,
                linestyle="none",
            )


def finish(
    axes: Axes,
    updates: Floats,
    boundaries: Sequence[tuple[str, int]],
    *,
    named: bool = True,
    xlabel: bool = True,
    letter: float = 0.018,
) -> None:
    """Limits and ticks of the x axis, and where the phases of the training begin.

    A phase is named where its name has room; a letter takes the share `letter` of the axis.
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
            axes.text(left, 1.01, f" {phase}", transform=axes.get_xaxis_transform(), fontsize=6.5, color=MUTED)


def _background(axes: Axes, panel: Panel, frame: pl.DataFrame, updates: Floats) -> None:
    if panel.clip_band and _has(frame, "clip_range"):
        x, clip = _broken(updates, np.ma.filled(floats(frame, "clip_range"), np.nan))
        lowest = np.maximum(1 - clip, 1e-12)
        axes.fill_between(x, lowest, 1 + clip, color=BAND, linewidth=0, label="clip range", zorder=0.8, step="mid")
    if panel.name == "return" and _has(frame, _RETURN_BAND[0]):
        x, lowest = _broken(updates, np.ma.filled(floats(frame, _RETURN_BAND[0]), np.nan))
        _, highest = _broken(updates, np.ma.filled(floats(frame, _RETURN_BAND[1]), np.nan))
        axes.fill_between(x, lowest, highest, color=BAND, linewidth=0, label="worst to best", zorder=0.8)
    if panel.centre is not None:
        axes.axhline(panel.centre, color=FAINT, linewidth=1.0, zorder=0.9)
    for column, label in panel.references:
        if _has(frame, column):
            x, y = _broken(updates, np.ma.filled(floats(frame, column), np.nan))
            axes.plot(x, y, color=MUTED, linewidth=1.0, linestyle=(0, (4, 2)), label=label)


def _shade(axes: Axes, marks: Iterable[Mark]) -> None:
    """Shade the updates of the incidents, the worst severity of each update."""
    worst: dict[int, Severity] = {}
    for mark in sorted(marks, key=lambda m: Severity(m.severity).rank):
        worst |= dict.fromkeys(range(mark.onset, mark.last + 1), Severity(mark.severity))
    stretches: list[tuple[int, int, Severity]] = []
    for update, severity in sorted(worst.items()):
        if stretches and stretches[-1][1:] == (update - 1, severity):
            stretches[-1] = (stretches[-1][0], update, severity)
        else:
            stretches.append((update, update, severity))
    for start, end, severity in stretches:
        colour = SEVERITY_COLOURS[severity]
        axes.axvspan(start - 0.5, end + 0.5, color=colour, alpha=0.11, linewidth=0, zorder=0.4)


def _onsets(axes: Axes, marks: Iterable[Mark]) -> None:
    """A vertical where each incident begins, above everything; of two at one update the severer is the wider."""
    begins: dict[int, set[Severity]] = {}
    for mark in marks:
        begins.setdefault(mark.onset, set()).add(Severity(mark.severity))
    for update, severities in sorted(begins.items()):
        for place, severity in enumerate(sorted(severities, key=lambda s: s.rank)):
            axes.axvline(
                update - 0.5,
                color=SEVERITY_COLOURS[severity],
                linewidth=1.1 + 1.8 * place,
                zorder=2.9 - 0.1 * place,
                label="_onset",
            )


def _thresholds(axes: Axes, marks: Iterable[Mark], span: tuple[float, float], curves: Sequence[Floats]) -> None:
    """The thresholds of the rules that fired as thin lines, each with its rule and number where most room is left."""
    low, high = span
    known = {(mark.rule, mark.threshold): mark for mark in marks if mark.threshold is not None}
    taken: list[tuple[float, int]] = []
    heights = [_heights(curve, span, log=axes.get_yscale() == "log") for curve in curves]
    for (rule, threshold), mark in known.items():
        if threshold is None or not low <= threshold <= high or (axes.get_yscale() == "log" and threshold <= 0):
            continue
        colour = SEVERITY_COLOURS[Severity(mark.severity)]
        words: dict[str, Any] = {"linewidth": 0.8, "linestyle": THRESHOLD_DASHES, "label": "_threshold"}
        axes.axhline(threshold, color=colour, zorder=1.6, **words)
        scale = math.log if axes.get_yscale() == "log" else float
        height = (scale(threshold) - scale(low)) / (scale(high) - scale(low))
        below = height > 0.9
        free = [place for place in range(3) if all(abs(height - h) > 0.1 or place != p for h, p in taken)]
        middle = height + (-0.04 if below else 0.04)  # of the words
        rooms = {place: _room(heights, place, middle) for place in free or (0,)}
        place = max(rooms, key=lambda p: rooms[p])
        taken.append((height, place))
        axes.annotate(
            f"{rule} {format_number(threshold)}",
            ((0.995, 0.01, 0.5)[place], threshold),
            xycoords=axes.get_yaxis_transform(),
            xytext=(0, -2 if below else 1.5),
            textcoords="offset points",
            ha=("right", "left", "center")[place],
            va="top" if below else "bottom",
            fontsize=6,
            color=colour,
            zorder=3.2,
            parse_math=False,
            bbox={"boxstyle": "square,pad=0.1", "facecolor": "white", "edgecolor": "none", "alpha": 0.75},
        )


def _heights(values: Floats, span: tuple[float, float], *, log: bool) -> Floats:
    """Where values lie between the ends of the axis, 0 to 1; NaN where nothing is drawn."""
    data = np.where(np.ma.getmaskarray(values), math.nan, np.ma.getdata(values))
    low, high = np.log(span) if log else span
    with np.errstate(divide="ignore", invalid="ignore"):
        scaled = np.log(data) if log else data
    return np.asarray(np.clip((scaled - low) / (high - low), 0.0, 1.0), np.float64)


def _room(heights: Sequence[Floats], place: int, middle: float) -> float:
    """How far curves stay from a height, in the third of the axis at the right, at the left or in the middle."""
    near = [1.0]
    for own in heights:
        third = max(len(own) // 3, 1)
        part = (own[-third:], own[:third], own[third : max(len(own) - third, third + 1)])[place]
        near += np.abs(part[np.isfinite(part)] - middle).tolist()
    return min(near)


def cut_short(frame: pl.DataFrame) -> NDArray[np.bool_]:
    """Which updates the training did not finish."""
    if "interrupted" not in frame.columns:
        return np.zeros(frame.height, dtype=np.bool_)
    return frame.get_column("interrupted").cast(pl.Boolean).fill_null(False).to_numpy()


def _cut(axes: Axes, updates: Floats, values: Floats, which: NDArray[np.bool_], colour: str) -> None:
    """Hollow points at the updates that were cut short."""
    data = np.ma.getdata(values)
    which = which & ~np.ma.getmaskarray(values) & np.isfinite(data)
    if which.any():
        words: dict[str, Any] = {"markersize": 5, "markerfacecolor": "white", "label": "_cut", "zorder": 2.6}
        axes.plot(updates[which], data[which], "D", linestyle="none", markeredgecolor=colour, **words)


class _PlainNumbers(Formatter):
    """Numbers written out, with no power of ten or offset apart from them."""

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


def plain_numbers(axes: Axes) -> None:
    """Label the y axis with numbers written out."""
    axes.yaxis.set_major_formatter(_PlainNumbers())


def limits(panel: Panel, values: Sequence[Floats], references: Sequence[Floats]) -> tuple[float, float, bool]:
    """(lowest, highest, logarithmic) of the y axis."""
    every = np.concatenate([_compressed(one) for one in (*values, *references)])
    finite = every[np.isfinite(every)]
    positive = finite[finite > 0]
    log = panel.scale == "log"
    if panel.scale == "auto":
        log = positive.size > 0 and positive.max() > 100 * max(positive.min(), panel.floor or 0.0)
        # What is hardly below zero has a mark at the edge; where much is, the axis must show it.
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


def _has(frame: pl.DataFrame, column: str) -> bool:
    return column in frame.columns and frame.get_column(column).null_count() < frame.height


def floats(frame: pl.DataFrame, column: str) -> Floats:
    """The column; NULL is masked, NaN stays NaN. All masked where there is no such column."""
    if column not in frame.columns:
        return np.ma.MaskedArray(np.zeros(frame.height), mask=True)
    series = frame.get_column(column).cast(pl.Float64)
    values = series.fill_null(0.0).to_numpy()
    return np.ma.MaskedArray(values, mask=series.is_null().to_numpy()) if column != "update" else values


def _broken(updates: Floats, values: Floats) -> tuple[Floats, Floats]:
    """The line with a break wherever updates are missing between two neighbours."""
    holes = np.flatnonzero(np.diff(updates) > 1) + 1
    if not holes.size:
        return updates, values
    return np.insert(updates, holes, updates[holes] - 0.5), np.insert(values, holes, np.nan)


def _lone(values: Floats) -> list[int]:
    """Places of points that have no neighbour to draw a line to."""
    there = [False, *np.isfinite(values).tolist(), False]
    return [i - 1 for i, (a, b, c) in enumerate(_triples(there), 1) if b and not a and not c]


def _triples(flags: Sequence[bool]) -> Iterable[tuple[bool, bool, bool]]:
    return zip(flags, itertools.islice(flags, 1, None), itertools.islice(flags, 2, None), strict=False)


def _compressed(values: Floats) -> Floats:
    """The values that were measured."""
    return np.asarray(np.ma.getdata(values)[~np.ma.getmaskarray(values)], dtype=np.float64)
