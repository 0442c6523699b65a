"""Figures of recorded runs: frames in, a `matplotlib.figure.Figure` out.

Covers: `postmortem` is one run on a page, `compare` overlays several, `timeline` shows when each rule fired, `single`
is one panel as the report has it. The same figure gives the same bytes; the caller's style is kept.
Does not cover: opening a run; `detail_figures` draws a run's ratios, gradients, heads and phases closely.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Sequence
from functools import cache, wraps
from importlib import resources
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import matplotlib as mpl
import numpy as np
import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.text import Text

from esper_analytics.formatting import printable
from esper_analytics.plots.drawing import (
    SEVERITY_COLOURS,
    THRESHOLD_DASHES,
    cut_short,
    draw,
    draw_line,
    finish,
    floats,
    set_limits,
)
from esper_analytics.plots.panels import FAINT, INK, MUTED, PANELS, Panel, measured
from esper_analytics.plots.run_frames import RunFrames
from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.storage.atomic import atomic_file

RUN_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5a6775", "#7a5195")
"""Okabe and Ito's without black and yellow, distinct to colour-blind readers. `compare` shows that many runs."""

COMPARED: Final = ("return", "ratio", "kl", "entropy", "explained_variance", "gradients")
"""The panels of `compare`."""

_TIMELINE_ROWS: Final = 16
_INLINE_LIMIT: Final = 160_000
_PAGE_COLOURS: Final = {INK: "--ink", MUTED: "--muted", FAINT: "--faint", "#e6eaee": "--grid"}
_NOTHING: Final = "Nothing that could be drawn was measured."

P = ParamSpec("P")
R = TypeVar("R")


def in_style(function: Callable[P, R]) -> Callable[P, R]:
    """Run a function in the style of `reports/esper.mplstyle`, and restore the caller's."""

    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with mpl.rc_context(_style()):
            return function(*args, **kwargs)

    return wrapped


@cache
def _style() -> Any:
    with resources.as_file(resources.files("esper_analytics.reports") / "esper.mplstyle") as path:
        return mpl.rc_params_from_file(path, use_default_template=False)


def page(height: float, title: str | None = None) -> Figure:
    """Return an empty figure of a page's width, with the same inner margin on every side."""
    figure = Figure(figsize=(10.5, height))
    # The edge is kept free by `rect`, and each panel has its padding within that.
    figure.set_layout_engine("constrained", w_pad=0.08, h_pad=0.06, rect=(0.01, 0.006, 0.98, 0.988))
    if title is not None:
        figure.suptitle(title, x=0.018, ha="left", fontsize=13, fontweight="bold", color=INK, parse_math=False)
    return figure


@in_style
def postmortem(run: RunFrames) -> Figure:
    """Draw one run on a page: when each rule fired, every panel with measured values, and what the marks mean."""
    panels = run.panels
    rows = math.ceil(len(panels) / 2)
    timeline_height = 0.0 if run.incidents is None or run.incidents.is_empty() else _timeline_height(run.incidents)
    below = 2.3 * max(rows, 1)
    figure = page(0.9 + timeline_height + below + (0.3 if panels else 0.0), run.name)
    body: Any = figure
    if timeline_height:
        parts: Any = figure.subfigures(2, 1, height_ratios=[timeline_height, below])
        top, body = parts
        _draw_timeline(top.subplots(), run)
    if not panels:
        body.text(0.5, 0.5, _NOTHING, ha="center", color=MUTED)
    grid = body.add_gridspec(max(rows, 1), 2)
    for place, panel in enumerate(panels):
        _draw_panel(body, grid[place // 2, place % 2], panel, run, titled=True)
    if panels:
        _explain_marks(figure, run)
    return figure


def _explain_marks(figure: Figure, run: RunFrames) -> None:
    """Add a legend of the marks in the panels."""
    handles: list[Any] = []
    marks = [mark for panel in run.panels for mark in run.marks(panel)]
    for severity in reversed(Severity):
        if any(mark.severity == severity for mark in marks):
            handles.append(Patch(color=SEVERITY_COLOURS[severity], alpha=0.35, label=f"{severity} incident"))
    marker: dict[str, Any] = {"linestyle": "none", "color": MUTED}
    if any(mark.threshold is not None for mark in marks):
        handles.append(Line2D([], [], color=MUTED, linewidth=0.8, linestyle=THRESHOLD_DASHES, label="threshold"))
    if any(mark.peak_value is not None for mark in marks):
        handles.append(Line2D([], [], marker="o", markersize=6, markerfacecolor="none", label="peak", **marker))
    if cut_short(run.frame).any():
        handles.append(Line2D([], [], marker="D", markerfacecolor="none", label="update cut short", **marker))
    if run.boundaries:
        handles.append(Line2D([], [], color=MUTED, linewidth=0.8, linestyle=(0, (2, 2)), label="start of a phase"))
    handles.append(Line2D([], [], marker="x", label="NaN", **marker))
    handles.append(Line2D([], [], marker="^", label="beyond the axis", **marker))
    figure.legend(handles=handles, loc="outside lower left", ncols=len(handles), labelcolor=MUTED, borderaxespad=1.4)


@in_style
def single(run: RunFrames, panel: Panel) -> Figure:
    """Draw one panel without a title."""
    figure = Figure(figsize=(4.7, 2.35 if panel.beneath is None else 2.7), layout="constrained")
    _draw_panel(figure, figure.add_gridspec(1, 1)[0, 0], panel, run, titled=False)
    return figure


@in_style
def timeline(run: RunFrames) -> Figure:
    """Draw when each rule fired: a bar per incident, a row per rule and key."""
    incidents = run.incidents if run.incidents is not None else pl.DataFrame()
    figure = Figure(figsize=(8.2, _timeline_height(incidents)), layout="constrained")
    _draw_timeline(figure.subplots(), run)
    return figure


@in_style
def compare(runs: Sequence[RunFrames]) -> Figure:
    """Overlay several runs, at most as many as there are `RUN_COLOURS`."""
    panels = [p for p in PANELS if p.name in COMPARED and any(measured(p, run.frame) for run in runs)]
    rows = max(math.ceil(len(panels) / 2), 1)
    # As many legend columns as fit; its lines are added to the height of the panels.
    longest = max((len(_elided(run.name)) for run in runs), default=1)
    columns = max(min(int(9.8 / (0.5 + 0.085 * longest)), len(runs)), 1)
    figure = page(0.5 + 0.2 * math.ceil(len(runs) / columns) + 2.3 * rows)
    grid = figure.add_gridspec(rows, 2)
    for place, panel in enumerate(panels):
        _draw_compared(figure.add_subplot(grid[place // 2, place % 2]), panel, runs, titled=True)
    if not panels:
        figure.text(0.5, 0.5, _NOTHING, ha="center", color=MUTED)
    named = run_colours(runs)
    handles = [Line2D([], [], color=colour, linewidth=2) for colour, _ in named]
    # Matplotlib hides a label with a leading underscore, so the names are set afterwards, and not as mathematics.
    style: dict[str, Any] = {"fontsize": 8.5, "ncols": columns, "borderaxespad": 1.2}
    legend = figure.legend(handles, ["-"] * len(named), loc="outside upper left", **style)
    for text, (_, name) in zip(legend.get_texts(), named, strict=True):
        text.set_parse_math(False)
        text.set_text(_elided(name))
    return figure


@in_style
def compare_single(runs: Sequence[RunFrames], panel: Panel) -> Figure:
    """Draw one panel of `compare` without title and legend; the page shows `run_colours` once for all panels."""
    figure = Figure(figsize=(4.7, 2.35), layout="constrained")
    _draw_compared(figure.subplots(), panel, runs, titled=False)
    return figure


def run_colours(runs: Sequence[RunFrames]) -> list[tuple[str, str]]:
    """List the (colour, name) of each run that `compare_single` draws."""
    return [(colour, run.name) for run, colour in zip(runs, RUN_COLOURS, strict=False)]


@in_style
def save(figure: Figure, path: str | Path) -> None:
    """Write a figure in the format its suffix names (see `registry.SUFFIXES`). The same figure gives the same bytes."""
    path = Path(path)
    suffix = path.suffix.lower()
    _freeze_layout(figure)
    no_metadata: dict[str, dict[str, None]] = {
        ".png": {"Software": None},
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }
    with atomic_file(path) as file:
        figure.savefig(file, format=suffix[1:], metadata=no_metadata[suffix])


@in_style
def as_svg(figure: Figure, prefix: str, alt: str) -> str:
    """Return the figure as an `<svg>` element for a page, with ids that begin with `prefix`.

    A figure that would be large as SVG becomes an `<img>` with its PNG in it.
    """
    _freeze_layout(figure)
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    if len(text) > _INLINE_LIMIT:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=170, metadata={"Software": None})
        data = base64.b64encode(png.getvalue()).decode("ascii")
        return f'<img class="plot" alt="{_attribute(alt)}" src="data:image/png;base64,{data}">'
    return _inline(text, prefix, alt)


def _inline(text: str, prefix: str, alt: str) -> str:
    """Strip an SVG file to its element: no XML head or metadata, prefixed ids, colours that follow the page."""
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, name in _PAGE_COLOURS.items():
        svg = svg.replace(colour, f"var({name})")
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2]
    size = f'width="{width}pt" height="{height}pt"'
    svg = re.sub(r"\n\s*", "\n", svg)
    return svg.replace(size, f'class="plot" role="img" aria-label="{_attribute(alt)}"', 1).strip()


def _attribute(text: str) -> str:
    return printable(text).replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


def _freeze_layout(figure: Figure) -> None:
    """Lay the figure out and round every position: the solver's last digits differ from process to process.

    Its texts are made printable before: they have names from a run, and a control character breaks an SVG.
    """
    for text in figure.findobj(Text):
        text.set_text(printable(text.get_text(), keep="\n"))
    engine = figure.get_layout_engine()
    if engine is None or not figure.axes:
        return
    engine.execute(figure)
    figure.set_layout_engine("none")
    for part in figure.subfigs:
        part.bbox_relative.set_points(np.round(part.bbox_relative.get_points(), 6))
    for axes in figure.axes:  # includes those of the subfigures
        left, bottom, width, height = axes.get_position().bounds
        axes.set_position((round(left, 6), round(bottom, 6), round(width, 6), round(height, 6)))
    for text in figure.texts:
        x, y = text.get_position()
        text.set_position((round(x, 6), round(y, 6)))


# --- drawing --------------------------------------------------------------------------------------------------------


def _draw_panel(figure: Any, place: Any, panel: Panel, run: RunFrames, *, titled: bool) -> None:
    if panel.beneath is None or panel.beneath.column not in run.frame.columns:
        axes, beneath = figure.add_subplot(place), None
    else:
        parts = place.subgridspec(2, 1, height_ratios=[3, 1], hspace=0.08)
        axes = figure.add_subplot(parts[0])
        beneath = figure.add_subplot(parts[1], sharex=axes)
    draw(axes, panel, run.frame, run.marks(panel), run.boundaries, beneath=beneath)
    if beneath is not None:
        axes.tick_params(labelbottom=False)
        beneath.tick_params(labelbottom=True)
        beneath.set_xlabel("PPO update")
    if titled:
        axes.set_title(panel.title)


def _draw_compared(axes: Any, panel: Panel, runs: Sequence[RunFrames], *, titled: bool) -> None:
    line = panel.lines[0]
    shown = [(run, colour) for run, colour in zip(runs, RUN_COLOURS, strict=False) if measured(panel, run.frame)]
    values = [floats(run.frame, line.column) for run, _ in shown]
    span = set_limits(axes, panel, values)
    if panel.centre is not None:
        axes.axhline(panel.centre, color=FAINT, linewidth=1.0, zorder=0.9)
    for (run, colour), value in zip(shown, values, strict=True):
        draw_line(axes, floats(run.frame, "update"), value, colour=colour, label=f"run {run.name}", span=span)
    spans = [run.frame.get_column("update") for run, _ in shown if run.frame.height]
    ends = pl.concat([pl.Series([s.min(), s.max()], dtype=pl.Int64) for s in spans]) if spans else pl.Series([1])
    finish(axes, floats(pl.DataFrame({"update": [ends.min(), ends.max()]}), "update"), ())
    if titled:
        axes.set_title(panel.title if len(panel.lines) == 1 else f"{panel.title}, {line.label}")


def _elided(name: str) -> str:
    """Shorten a name that would not fit, without its middle."""
    return name if len(name) <= 100 else f"{name[:60]}…{name[-39:]}"


def _timeline_rows(incidents: pl.DataFrame, rules: RuleSet | None = None) -> list[tuple[str, list[dict[str, Any]]]]:
    """Fold incidents to rows by rule and key, the earliest first; keys of a rule with the same course share a row."""
    by_key: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in incidents.sort("onset_update", maintain_order=True).iter_rows(named=True):
        by_key.setdefault((row["rule"], row["key"] or ""), []).append(row)
    by_course: dict[tuple[Any, ...], list[str]] = {}
    for (rule, key), rows in by_key.items():
        course = tuple((row["onset_update"], row["last_update"], row["severity"]) for row in rows)
        by_course.setdefault((rule, course), []).append(key)
    kinds = {rule.name: rule.key for rule in rules.rules} if rules is not None else {}
    folded = []
    for (rule, _), keys in by_course.items():
        name = f"{rule} ({len(keys)} {kinds.get(rule) or 'key'}s)" if len(keys) > 1 else rule
        folded.append((f"{rule} · {keys[0]}" if keys[0] and len(keys) == 1 else name, by_key[(rule, keys[0])]))
    return folded


def _timeline_height(incidents: pl.DataFrame) -> float:
    rows = 0 if incidents.is_empty() else min(len(_timeline_rows(incidents)), _TIMELINE_ROWS)
    return 0.75 + 0.36 * max(rows, 1)


def _draw_timeline(axes: Any, run: RunFrames) -> None:
    assert run.incidents is not None
    rows = [] if run.incidents.is_empty() else _timeline_rows(run.incidents, run.rules)
    left_out = len(rows) - _TIMELINE_ROWS
    updates = floats(run.frame, "update")
    finish(axes, updates, run.boundaries, letter=0.008)
    left = axes.get_xlim()[0]
    for place, (name, incidents) in enumerate(rows[:_TIMELINE_ROWS]):
        for incident in incidents:
            colour = SEVERITY_COLOURS[Severity(incident["severity"])]
            start, width = incident["onset_update"] - 0.5, incident["last_update"] - incident["onset_update"] + 1
            axes.barh(place, width, left=start, height=0.34, color=colour, linewidth=0)
        severities = dict.fromkeys(incident["severity"] for incident in incidents)
        label = f"{name} ({', '.join(severities)})"
        axes.text(left, place - 0.26, label, va="bottom", fontsize=7.5, color=INK, parse_math=False)
    axes.set_ylim(min(len(rows), _TIMELINE_ROWS) - 0.5, -0.85)
    axes.set_yticks([])
    axes.grid(False)
    axes.spines["left"].set_visible(False)
    if left_out > 0:
        axes.set_xlabel(f"PPO update (and {left_out} more rows with a later onset)")
