"""Figures of recorded runs. Takes frames and returns a `matplotlib.figure.Figure`; never opens a run.

`postmortem` is one run on a page, `compare` lays several over each other, `timeline` shows when which rule fired, and
`single` is one panel alone, as the report has them. `as_svg` and `save` write a figure the same way every time.
"""

from __future__ import annotations

import base64
import io
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache, wraps
from importlib import resources
from pathlib import Path
from typing import Any, Final, ParamSpec, TypeVar

import matplotlib as mpl
import polars as pl
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from esper_analytics.drawing import SEVERITY_COLOURS, Mark, draw, draw_line, finish, floats, limits
from esper_analytics.panels import FAINT, INK, MUTED, PANELS, Panel, measured
from esper_recorder.contract.rule import Severity
from esper_recorder.contract.rules import RuleSet

SUFFIXES: Final = (".png", ".svg", ".pdf")
"""The formats `save` writes."""

RUN_COLOURS: Final = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#5a6775", "#7a5195")
"""Okabe and Ito's, without black and yellow: told apart by colour-blind readers. `compare` shows as many runs."""

COMPARED: Final = ("return", "ratio", "kl", "entropy", "explained_variance", "gradients")
"""The panels of `compare`."""

_TIMELINE_ROWS: Final = 16
_INLINE_LIMIT: Final = 160_000

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class RunFrames:
    """What the figures of one run are drawn from.

    Attributes:
        name: how the run is called in titles and legends.
        updates: rows of `ppo_updates`, one per update.
        episodes: rows of `episodes`; None where none were recorded.
        incidents: rows of `Result.incidents` of this run.
        rules: the rules of the incidents: they tell which panel an incident belongs to, and the phases.
    """

    name: str
    updates: pl.DataFrame
    episodes: pl.DataFrame | None = None
    incidents: pl.DataFrame | None = None
    rules: RuleSet | None = None
    frame: pl.DataFrame = field(init=False)
    """`updates` by update, with the episodes' returns beside them."""

    def __post_init__(self) -> None:
        frame = self.updates.sort("update").unique("update", keep="last", maintain_order=True)
        episodes = self.episodes
        if episodes is not None and episodes.height and "episode_return" in episodes.columns:
            value = pl.col("episode_return")
            returns = (
                episodes.filter(value.is_not_null())
                .group_by("update")
                .agg(
                    value.mean(),
                    value.filter(value.is_finite()).min().alias("episode_return_min"),
                    value.filter(value.is_finite()).max().alias("episode_return_max"),
                )
            )
            frame = frame.join(returns, on="update", how="left", maintain_order="left")
        object.__setattr__(self, "frame", frame)

    @property
    def boundaries(self) -> list[tuple[str, int]]:
        """(phase, its first update) of each phase the run was in; empty where progress was not recorded."""
        if self.rules is None or "progress" not in self.frame.columns:
            return []
        found: dict[str, int] = {}
        for update, progress in self.frame.select("update", "progress").iter_rows():
            phase = self.rules.phase(progress)
            if phase is not None:
                found.setdefault(phase, update)
        return sorted(found.items(), key=lambda item: item[1])

    @property
    def panels(self) -> tuple[Panel, ...]:
        """The panels something was measured for."""
        there = [panel for panel in PANELS if measured(panel, self.frame)]
        names = {panel.name for panel in there}
        return tuple(panel for panel in there if not (panel.name == "entropy_nats" and "entropy" in names))

    @property
    def unmeasured(self) -> tuple[Panel, ...]:
        """The panels there is nothing to draw for."""
        names = {panel.name for panel in self.panels}
        if names & {"entropy", "entropy_nats"}:
            names |= {"entropy"}
        return tuple(p for p in PANELS if p.name not in names and p.name != "entropy_nats")

    def marks(self, panel: Panel) -> list[Mark]:
        """The incidents that belong to a panel."""
        return [mark for _, mark in self.marked(panel)]

    def marked(self, panel: Panel) -> list[tuple[Mapping[str, Any], Mark]]:
        """The incidents that belong to a panel, with their rows, by onset."""
        if self.incidents is None or self.rules is None:
            return []
        rules = {rule.name: rule for rule in self.rules.rules}
        found: list[tuple[Mapping[str, Any], Mark]] = []
        for row in self.incidents.sort("onset_update", maintain_order=True).iter_rows(named=True):
            rule = rules.get(row["rule"])
            if rule is None:
                continue
            signals = [condition.signal for condition in rule.conditions]
            if not any(panel.reads & set(signal.inputs) for signal in signals):
                continue
            mark = Mark(row["severity"], row["onset_update"], row["last_update"])
            plain = len(signals) == 1 and signals[0].column in {line.column for line in panel.lines}
            if (
                plain
                and signals[0].table == "ppo_updates"
                and not (rule.conditions[0].drift or rule.conditions[0].step)
            ):
                mark = replace(mark, peak_update=row["peak_update"], peak_value=row["peak_value"])
            found.append((row, mark))
        return found


@contextmanager
def styled() -> Iterator[None]:
    """The style of `reports/esper.mplstyle`; what the caller has set is left as it was."""
    with mpl.rc_context(_style()):
        yield


def _in_style(function: Callable[P, R]) -> Callable[P, R]:
    @wraps(function)
    def wrapped(*args: P.args, **kwargs: P.kwargs) -> R:
        with styled():
            return function(*args, **kwargs)

    return wrapped


@_in_style
def postmortem(run: RunFrames) -> Figure:
    """One run on a page: when which rule fired, and every panel something was measured for."""
    panels = run.panels
    rows = math.ceil(len(panels) / 2)
    timeline_height = 0.0 if run.incidents is None or run.incidents.is_empty() else _timeline_height(run.incidents)
    below = 2.3 * max(rows, 1)
    figure = Figure(figsize=(10.5, 0.9 + timeline_height + below), layout="constrained")
    figure.suptitle(run.name, x=0.01, ha="left", fontsize=13, fontweight="bold", color=INK, parse_math=False)
    body: Any = figure
    if timeline_height:
        parts: Any = figure.subfigures(2, 1, height_ratios=[timeline_height, below])
        top, body = parts
        _draw_timeline(top.subplots(), run)
    if not panels:
        body.text(0.5, 0.5, "Nothing that could be drawn was measured.", ha="center", color=MUTED)
    grid = body.add_gridspec(max(rows, 1), 2)
    for place, panel in enumerate(panels):
        _draw_panel(body, grid[place // 2, place % 2], panel, run, titled=True)
    return figure


@_in_style
def single(run: RunFrames, panel: Panel) -> Figure:
    """One panel without a title."""
    figure = Figure(figsize=(4.7, 2.35 if panel.beneath is None else 2.7), layout="constrained")
    _draw_panel(figure, figure.add_gridspec(1, 1)[0, 0], panel, run, titled=False)
    return figure


@_in_style
def timeline(run: RunFrames) -> Figure:
    """When which rule fired: a bar per incident, a row per rule and key."""
    incidents = run.incidents if run.incidents is not None else pl.DataFrame()
    figure = Figure(figsize=(8.2, _timeline_height(incidents)), layout="constrained")
    _draw_timeline(figure.subplots(), run)
    return figure


@_in_style
def compare(runs: Sequence[RunFrames]) -> Figure:
    """Several runs over each other, a panel per question; at most as many as there are `RUN_COLOURS`."""
    panels = [p for p in PANELS if p.name in COMPARED and any(measured(p, run.frame) for run in runs)]
    rows = max(math.ceil(len(panels) / 2), 1)
    figure = Figure(figsize=(10.5, 0.7 + 2.3 * rows), layout="constrained")
    grid = figure.add_gridspec(rows, 2)
    for place, panel in enumerate(panels):
        _draw_compared(figure.add_subplot(grid[place // 2, place % 2]), panel, runs, titled=True)
    if not panels:
        figure.text(0.5, 0.5, "Nothing that could be drawn was measured.", ha="center", color=MUTED)
    _name_runs(figure, runs, loc="outside upper left", fontsize=8.5)
    return figure


@_in_style
def compare_single(runs: Sequence[RunFrames], panel: Panel) -> Figure:
    """One panel of `compare`, without a title."""
    figure = Figure(figsize=(4.7, 2.35), layout="constrained")
    axes = figure.subplots()
    _draw_compared(axes, panel, runs, titled=False)
    _name_runs(axes, runs, loc="lower left", bbox_to_anchor=(0.0, 1.01))
    return figure


@_in_style
def save(figure: Figure, path: str | Path) -> None:
    """Write a figure; the suffix, one of `SUFFIXES`, says how. The same figure gives the same bytes."""
    path = Path(path)
    suffix = path.suffix.lower()
    nothing: dict[str, dict[str, None]] = {
        ".png": {"Software": None},
        ".svg": {"Date": None},
        ".pdf": {"CreationDate": None, "Producer": None, "Creator": None},
    }
    figure.savefig(path, format=suffix[1:], metadata=nothing[suffix])


@_in_style
def as_svg(figure: Figure, prefix: str, alt: str) -> str:
    """The figure as an `<svg>` element to stand inside a page, its ids beginning with `prefix`.

    A figure that would be large as SVG comes as an `<img>` with its PNG in it.
    """
    out = io.StringIO()
    figure.savefig(out, format="svg", transparent=True, metadata={"Date": None})
    text = out.getvalue()
    if len(text) > _INLINE_LIMIT:
        png = io.BytesIO()
        figure.savefig(png, format="png", dpi=170, metadata={"Software": None})
        data = base64.b64encode(png.getvalue()).decode("ascii")
        return f'<img class="plot" alt="{_attribute(alt)}" src="data:image/png;base64,{data}">'
    return _inline(text, prefix, alt)


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
    own = panel.lines[0]
    shown = [(run, colour) for run, colour in zip(runs, RUN_COLOURS, strict=False) if measured(panel, run.frame)]
    values = [floats(run.frame, own.column) for run, _ in shown]
    low, high, log = limits(panel, values, [])
    if log:
        axes.set_yscale("log")
    axes.set_ylim(low, high)
    if panel.centre is not None:
        axes.axhline(panel.centre, color=FAINT, linewidth=1.0, zorder=0.9)
    for (run, colour), value in zip(shown, values, strict=True):
        draw_line(axes, floats(run.frame, "update"), value, colour=colour, label=f"run {run.name}", span=(low, high))
    spans = [run.frame.get_column("update") for run, _ in shown if run.frame.height]
    ends = pl.concat([pl.Series([s.min(), s.max()], dtype=pl.Int64) for s in spans]) if spans else pl.Series([1])
    finish(axes, floats(pl.DataFrame({"update": [ends.min(), ends.max()]}), "update"), ())
    if titled:
        axes.set_title(panel.title if len(panel.lines) == 1 else f"{panel.title}, {own.label}")


def _name_runs(where: Any, runs: Sequence[RunFrames], **words: Any) -> None:
    """A legend of the runs, their names as they are: no mathematics, no name hidden for a leading underscore."""
    handles = [Line2D([], [], color=colour, linewidth=2) for _, colour in zip(runs, RUN_COLOURS, strict=False)]
    legend = where.legend(handles, [str(n) for n in range(len(handles))], ncols=4, **words)
    for text, run in zip(legend.get_texts(), runs, strict=False):
        text.set_parse_math(False)
        text.set_text(run.name)


def _rows_of(incidents: pl.DataFrame) -> list[tuple[str, list[dict[str, Any]]]]:
    """Incidents by rule and key, the earliest first."""
    rows: dict[str, list[dict[str, Any]]] = {}
    for row in incidents.sort("onset_update", maintain_order=True).iter_rows(named=True):
        rows.setdefault(row["rule"] + (f" · {row['key']}" if row["key"] else ""), []).append(row)
    return list(rows.items())


def _timeline_height(incidents: pl.DataFrame) -> float:
    rows = 0 if incidents.is_empty() else min(len(_rows_of(incidents)), _TIMELINE_ROWS)
    return 0.75 + 0.36 * max(rows, 1)


def _draw_timeline(axes: Any, run: RunFrames) -> None:
    assert run.incidents is not None
    rows = [] if run.incidents.is_empty() else _rows_of(run.incidents)
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
        axes.set_xlabel(f"PPO update (and {left_out} more rows, which began later)")


# --- SVG in a page --------------------------------------------------------------------------------------------------

_VARIABLES: Final = {INK: "--ink", MUTED: "--muted", FAINT: "--faint", "#e6eaee": "--grid"}


def _inline(text: str, prefix: str, alt: str) -> str:
    """The `<svg>` element alone: no XML head, no metadata, ids of its own, colours that follow the page."""
    svg = text[text.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', svg))
    svg = re.sub(r' id="([^"]+)"', lambda m: f' id="{prefix}-{m[1]}"' if m[1] in used else "", svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{prefix}-", svg)
    for colour, name in _VARIABLES.items():
        svg = svg.replace(colour, f"var({name})")
    width, height = re.findall(r'(?:width|height)="([\d.]+)pt"', svg)[:2]
    size = f'width="{width}pt" height="{height}pt"'
    svg = re.sub(r"\n\s*", "\n", svg)
    return svg.replace(size, f'class="plot" role="img" aria-label="{_attribute(alt)}"', 1).strip()


def _attribute(text: str) -> str:
    return text.replace("&", "&amp;").replace('"', "&quot;").replace("<", "&lt;")


@cache
def _style() -> Any:
    with resources.as_file(resources.files("esper_analytics.reports") / "esper.mplstyle") as path:
        return mpl.rc_params_from_file(path, use_default_template=False)


__all__ = [
    "COMPARED",
    "RUN_COLOURS",
    "SUFFIXES",
    "RunFrames",
    "as_svg",
    "compare",
    "compare_single",
    "postmortem",
    "save",
    "single",
    "styled",
    "timeline",
]
