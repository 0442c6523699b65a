"""Figures: what is drawn on their axes, and that the same figure is the same file."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import polars as pl
import pytest

from esper_analytics.detection.incidents import INCIDENT_COLUMNS
from esper_analytics.plots import detail_figures, figures
from esper_analytics.plots.panels import PANELS
from esper_analytics.plots.registry import PLOTS, SUFFIXES
from esper_analytics.plots.run_frames import RunFrames, short_names
from esper_recorder.contract.rules.ruleset import load_profile
from tests.analytics.postmortem.recorded_runs import RULES

PANEL = {panel.name: panel for panel in PANELS}
NAN = math.nan
EPISODES = {"update": pl.Int64, "episode_return": pl.Float64}


def frame(**columns) -> pl.DataFrame:
    n = len(next(iter(columns.values())))
    columns = {"update": list(range(1, n + 1))} | columns
    types = {name: pl.Int64 if name == "update" else pl.Float64 for name in columns}
    return pl.DataFrame(columns, schema=types)


def incident(rule: str, onset: int, last: int, severity: str = "critical", **values) -> dict[str, Any]:
    row = {"run_id": "r", "rule": rule, "key": "", "severity": severity, "onset_update": onset, "last_update": last}
    row |= {"updates": last - onset + 1, "peak_update": onset, "peak_value": 9.0, "threshold": 5.0, "recovered": True}
    return row | values


def run_of(updates: pl.DataFrame, *incidents: dict[str, Any], **options) -> RunFrames:
    return RunFrames("r", updates, incidents=pl.DataFrame(incidents, schema=INCIDENT_COLUMNS), rules=RULES, **options)


def line(axes, label: str) -> list[list[float]]:
    """The points of the line with this label."""
    (found,) = [one for one in axes.get_lines() if one.get_label() == label]
    return [list(map(float, found.get_xdata())), list(map(float, found.get_ydata()))]


def labels(axes) -> list[str]:
    return [str(one.get_label()) for one in axes.get_lines()]


def axes_of(panel: str, run: RunFrames):
    return figures.single(run, PANEL[panel]).axes[0]


class TestLines:
    def test_a_value_that_was_not_measured_is_a_gap_not_a_zero(self):
        axes = axes_of("clip", run_of(frame(clip_fraction=[0.1, None, 0.3, 0.2])))
        x, y = line(axes, "clip fraction")
        assert x == [1, 2, 3, 4]
        np.testing.assert_equal(y, [0.1, NAN, 0.3, 0.2])

    def test_missing_updates_break_the_line(self):
        axes = axes_of("clip", run_of(frame(update=[1, 2, 5], clip_fraction=[0.1, 0.2, 0.3])))
        x, y = line(axes, "clip fraction")
        assert x == [1, 2, 4.5, 5]
        np.testing.assert_equal(y, [0.1, 0.2, NAN, 0.3])

    def test_an_isolated_value_is_drawn_as_a_point(self):
        axes = axes_of("clip", run_of(frame(clip_fraction=[None, 0.2, None])))
        assert line(axes, "_isolated") == [[2], [0.2]]

    def test_one_update_is_a_point(self):
        axes = axes_of("kl", run_of(frame(approx_kl=[0.02])))
        assert line(axes, "_isolated") == [[1], [0.02]]
        assert axes.get_xlim() == (0.5, 1.5)

    def test_nan_and_infinities_have_marks_at_the_edges(self):
        axes = axes_of("kl", run_of(frame(approx_kl=[0.02, NAN, math.inf, 0.03, -math.inf])))
        assert line(axes, "_nan") == [[2], [0.97]]
        assert line(axes, "_above") == [[3], [0.97]]
        assert line(axes, "_below") == [[5], [0.03]]

    def test_a_value_beyond_a_clipped_axis_has_a_mark(self):
        # the axis of explained variance ends at -1: two values are below
        axes = axes_of("explained_variance", run_of(frame(explained_variance=[0.5, -7.0, -1.5, 0.9])))
        assert line(axes, "_below")[0] == [2, 3]
        assert -1.1 < axes.get_ylim()[0] < -1.0

    def test_a_ratio_that_underflowed_to_zero_has_a_mark_on_the_logarithmic_axis(self):
        axes = axes_of("ratio", run_of(frame(ratio_max=[1.1, 2.0], ratio_min=[0.9, 0.0])))
        assert axes.get_yscale() == "log"
        assert line(axes, "_below") == [[2], [0.03]]
        np.testing.assert_equal(line(axes, "smallest")[1], [0.9, NAN])

    def test_a_recorded_setting_is_a_dashed_line(self):
        axes = axes_of("kl", run_of(frame(approx_kl=[0.01, 0.02], target_kl=[0.015, 0.015])))
        assert line(axes, "target")[1] == [0.015, 0.015]
        assert "target" not in labels(axes_of("kl", run_of(frame(approx_kl=[0.01], target_kl=[None]))))

    @pytest.mark.parametrize(
        ("values", "scale"), [([0.01, 0.5], "linear"), ([0.01, 5.0], "log"), ([0.0, 5.0], "linear")]
    )
    def test_the_kl_axis_is_logarithmic_only_over_two_orders_of_magnitude(self, values, scale):
        assert axes_of("kl", run_of(frame(approx_kl=values))).get_yscale() == scale

    def test_a_zero_among_values_of_many_magnitudes_does_not_flatten_them(self):
        axes = axes_of("kl", run_of(frame(approx_kl=[0.001, 0.0, 5.0])))
        assert axes.get_yscale() == "log"
        assert line(axes, "_below") == [[2], [0.03]]

    def test_a_value_far_below_zero_keeps_the_axis_linear(self):
        assert axes_of("kl", run_of(frame(approx_kl=[0.001, -3.0, 5.0]))).get_yscale() == "linear"

    @pytest.mark.parametrize("values", [[1e7, 3e7], [1e-9, 3e-9], [1e6, 1e6 + 1], [-2e8, 5e8]])
    def test_tick_labels_are_written_out_without_an_offset(self, values):
        figure = figures.single(
            run_of(frame(explained_variance=[0.1, 0.2], return_std=values)), PANEL["explained_variance"]
        )
        figure.draw_without_rendering()
        for axes in figure.axes:
            assert axes.yaxis.get_offset_text().get_text() == ""
        shown = [text.get_text() for text in figure.axes[1].get_yticklabels()]
        assert len(set(shown)) == len(shown)

    def test_an_update_cut_short_is_a_hollow_point(self):
        updates = frame(approx_kl=[0.1, 0.2, 0.3]).with_columns(interrupted=pl.Series([None, False, True]))
        axes = axes_of("kl", run_of(updates))
        assert line(axes, "_cut") == [[3], [0.3]]

    @pytest.mark.parametrize("value", [None, NAN, math.inf, -math.inf, 0.0, -3.0, 1e300, 1e-300])
    def test_any_value_throughout_can_be_drawn(self, value, tmp_path):
        names = {name for panel in PANELS for name in panel.columns} - {"episode_return"}
        episodes = pl.DataFrame({"update": [1, 2], "episode_return": [value, value]}, schema_overrides=EPISODES)
        run = run_of(frame(**{name: [value, value] for name in sorted(names)}), episodes=episodes)
        figures.save(figures.postmortem(run), tmp_path / "p.svg")


class TestEpisodes:
    def test_returns_are_averaged_over_the_episodes_of_an_update(self):
        episodes = pl.DataFrame({"update": [1, 1, 3], "episode_return": [10.0, 30.0, 7.0]})
        run = run_of(frame(ratio_max=[1.0, 1.0, 1.0]), episodes=episodes)
        np.testing.assert_equal(line(axes_of("return", run), "mean")[1], [20.0, NAN, 7.0])
        assert run.frame["episode_return_min"].to_list() == [10.0, None, 7.0]

    def test_a_return_that_is_nan_makes_the_mean_nan_and_is_marked(self):
        episodes = pl.DataFrame({"update": [1, 1, 2], "episode_return": [10.0, NAN, 7.0]})
        run = run_of(frame(ratio_max=[1.0, 1.0]), episodes=episodes)
        assert line(axes_of("return", run), "_nan")[0] == [1]

    def test_the_axis_shows_the_whole_range_from_worst_to_best(self):
        episodes = pl.DataFrame({"update": [1, 1, 2, 2], "episode_return": [-40.0, 60.0, 9.0, 11.0]})
        axes = axes_of("return", run_of(frame(ratio_max=[1.0, 1.0]), episodes=episodes))
        assert axes.get_ylim()[0] <= -40.0
        assert axes.get_ylim()[1] >= 60.0


class TestIncidents:
    def test_an_incident_is_marked_only_in_the_panel_of_its_rules_signal(self):
        run = run_of(frame(ratio_max=[1.0, 9.0, 9.0], approx_kl=[0.1, 0.1, 0.1]), incident("ratio_explosion", 2, 3))
        assert [(m.onset, m.last) for m in run.marks(PANEL["ratio"])] == [(2, 3)]
        assert run.marks(PANEL["kl"]) == []

    def test_its_updates_are_shaded_and_its_peak_is_circled(self):
        run = run_of(frame(ratio_max=[1.0, 9.0, 8.0, 1.0]), incident("ratio_explosion", 2, 3))
        axes = axes_of("ratio", run)
        span: Any
        (span,) = [patch for patch in axes.patches if patch.get_alpha()]
        assert (span.get_x(), span.get_width()) == (1.5, 2.0)
        assert line(axes, "_peak") == [[2], [9.0]]

    def test_the_more_severe_of_two_overlapping_incidents_is_shown(self):
        run = run_of(
            frame(ratio_max=[1.0] * 5),
            incident("ratio_explosion", 3, 3),
            incident("ratio_explosion", 2, 4, severity="warning"),
        )
        spans: list[Any] = [patch for patch in axes_of("ratio", run).patches if patch.get_alpha()]
        assert [(s.get_x(), s.get_width()) for s in spans] == [(1.5, 1.0), (2.5, 1.0), (3.5, 1.0)]
        assert spans[0].get_facecolor() == spans[2].get_facecolor() != spans[1].get_facecolor()

    def test_every_onset_has_a_vertical_above_the_shading(self):
        run = run_of(
            frame(ratio_max=[1.0] * 5),
            incident("ratio_explosion", 2, 5),
            incident("ratio_explosion", 4, 4, severity="warning"),
            incident("ratio_explosion", 2, 3, severity="info"),
        )
        axes = axes_of("ratio", run)
        onsets = [one for one in axes.get_lines() if one.get_label() == "_onset"]
        assert sorted(one.get_xdata()[0] for one in onsets) == [1.5, 1.5, 3.5]
        assert len({one.get_color() for one in onsets}) == 3
        assert min(one.get_zorder() for one in onsets) > max(patch.get_zorder() for patch in axes.patches)
        # of the two at update 2 the wider lies beneath
        wide, narrow = sorted((o for o in onsets if o.get_xdata()[0] == 1.5), key=lambda o: -o.get_linewidth())
        assert wide.get_zorder() < narrow.get_zorder()

    def test_the_threshold_of_a_rule_that_fired_is_a_line_with_its_name(self):
        axes = axes_of("ratio", run_of(frame(ratio_max=[1.0, 9.0]), incident("ratio_explosion", 2, 2)))
        assert line(axes, "_threshold")[1] == [5.0, 5.0]
        assert "ratio_explosion 5" in [text.get_text() for text in axes.texts]

    @pytest.mark.parametrize(
        ("ratios", "side"),
        [
            ([9.0] * 6 + [5.2] * 3, "left"),
            ([5.2] * 3 + [9.0] * 6, "right"),
            ([5.2] * 3 + [9.0] * 3 + [5.2] * 3, "center"),
        ],
    )
    def test_a_threshold_is_labelled_where_the_curve_is_far_away(self, ratios, side):
        axes = axes_of("ratio", run_of(frame(ratio_max=ratios), incident("ratio_explosion", 1, 9)))
        [label] = [text for text in axes.texts if text.get_text() == "ratio_explosion 5"]
        assert label.get_horizontalalignment() == side

    def test_a_threshold_per_phase_has_no_line(self):
        run = run_of(frame(explained_variance=[0.5, -0.9]), incident("value_collapse", 2, 2))
        assert "_threshold" not in labels(axes_of("explained_variance", run))

    @pytest.mark.parametrize(("target", "expected"), [(None, 1), (0.01, 0)])
    def test_a_threshold_relative_to_a_setting_is_a_line_only_without_the_setting(self, target, expected):
        run = RunFrames(
            "r",
            frame(approx_kl=[0.1, 0.9], target_kl=[target, target]),
            incidents=pl.DataFrame([incident("kl_extreme", 2, 2)], schema=INCIDENT_COLUMNS),
            rules=load_profile("default"),
        )
        assert labels(axes_of("kl", run)).count("_threshold") == expected

    def test_keys_with_the_same_course_share_a_row_of_the_timeline(self):
        run = run_of(
            frame(ratio_max=[1.0] * 9),
            *(incident("layer_gradient", 2, 3, key=key) for key in "abc"),
            incident("layer_gradient", 2, 4, key="d"),
        )
        texts = [text.get_text() for text in figures.timeline(run).axes[0].texts]
        assert "layer_gradient (3 layers) (critical)" in texts
        assert "layer_gradient · d (critical)" in texts

    def test_the_timeline_has_a_bar_per_incident_and_a_row_per_rule(self):
        run = run_of(
            frame(ratio_max=[1.0] * 9),
            incident("ratio_explosion", 2, 3),
            incident("ratio_explosion", 7, 9),
            incident("kl_spike", 5, 5, severity="warning"),
        )
        axes: Any = figures.timeline(run).axes[0]
        assert [(bar.get_x(), bar.get_width()) for bar in axes.patches] == [(1.5, 2.0), (6.5, 3.0), (4.5, 1.0)]
        texts = [text.get_text() for text in axes.texts]
        assert "ratio_explosion (critical)" in texts
        assert "kl_spike (warning)" in texts


class TestPhases:
    def test_a_phase_begins_at_its_first_update(self):
        # late begins at half of the training
        run = run_of(frame(ratio_max=[1.0] * 4, progress=[0.25, 0.49, 0.5, 1.0]))
        assert run.boundaries == [("early", 1), ("late", 3)]
        assert 2.5 in [one.get_xdata()[0] for one in axes_of("ratio", run).get_lines()]

    @pytest.mark.parametrize("progress", [None, NAN])
    def test_without_progress_there_are_no_boundaries(self, progress):
        assert run_of(frame(ratio_max=[1.0], progress=[progress])).boundaries == []


class TestPanels:
    def test_a_panel_without_values_is_omitted_and_named(self):
        run = run_of(frame(approx_kl=[0.1], clip_fraction=[None], entropy=[1.2]))
        assert [panel.name for panel in run.panels] == ["kl", "entropy_nats"]
        assert "clip" in [panel.name for panel in run.unmeasured]
        assert "entropy" not in [panel.name for panel in run.unmeasured]

    def test_a_column_that_is_nan_was_measured(self):
        assert [panel.name for panel in run_of(frame(approx_kl=[NAN])).panels] == ["kl"]

    def test_a_run_without_values_is_a_page_that_says_so(self):
        empty = RunFrames("r", pl.DataFrame(schema={"update": pl.Int64}))
        texts = [text.get_text() for text in figures.postmortem(empty).texts]
        assert "Nothing that could be drawn was measured." in texts
        figures.timeline(run_of(frame(ratio_max=[1.0])))

    def test_a_post_mortem_has_the_timeline_and_every_panel(self):
        run = run_of(frame(approx_kl=[0.1, 0.2], clip_fraction=[0.1, 0.2]), incident("kl_spike", 1, 2))
        titles = [axes.get_title(loc="left") for axes in figures.postmortem(run).findobj(mpl.axes.Axes)]
        assert titles == ["", "Approximate KL", "Clip fraction"]

    def test_a_post_mortem_explains_its_marks_within_its_margins(self):
        run = run_of(frame(ratio_max=[1.0, 9.0, NAN], approx_kl=[0.1] * 3), incident("ratio_explosion", 2, 2))
        figure = figures.postmortem(run)
        figure.draw_without_rendering()
        texts = [text.get_text() for text in figure.legends[0].get_texts()]
        assert texts == ["critical incident", "threshold", "peak", "NaN", "beyond the axis"]
        box = figure.legends[0].get_window_extent()
        assert box.x0 > 5 and box.x1 < figure.bbox.width - 5 and box.y0 > 5


class TestCompare:
    def test_each_run_has_its_line_and_its_colour(self):
        runs = [
            RunFrames("a", frame(approx_kl=[0.1, 0.2])),
            RunFrames("b", frame(approx_kl=[0.3, None, 0.5])),
        ]
        figure = figures.compare(runs)
        axes = next(a for a in figure.axes if a.get_title(loc="left") == "Approximate KL")
        assert line(axes, "run a")[1] == [0.1, 0.2]
        np.testing.assert_equal(line(axes, "run b")[1], [0.3, NAN, 0.5])
        assert axes.get_xlim()[1] >= 3
        assert [text.get_text() for text in figure.legends[0].get_texts()] == ["a", "b"]

    def test_a_run_without_values_is_not_in_the_panel(self):
        runs = [RunFrames("a", frame(approx_kl=[0.1])), RunFrames("b", frame(approx_kl=[None]))]
        figure = figures.compare(runs)
        assert labels(figure.axes[0]) == ["run a", "_isolated"]

    def test_long_names_take_more_lines_but_no_height_from_the_panels(self):
        heights, width = [], 0.0
        for name in ("a", "a-rather-long-name-of-a-run-on-some-environment-with-its-settings"):
            runs = [RunFrames(f"{name}-{n}", frame(approx_kl=[0.1, 0.2])) for n in range(8)]
            figure = figures.compare(runs)
            figure.draw_without_rendering()
            box = figure.axes[0].get_window_extent()
            heights.append(box.height)
            width = figure.bbox.width
            legend = figure.legends[0].get_window_extent()
            assert legend.x0 >= 0 and legend.x1 <= width
        assert heights[1] > 0.95 * heights[0]

    def test_a_single_panel_leaves_the_names_to_the_page(self):
        runs = [
            RunFrames("x", frame(approx_kl=[0.1])),
            RunFrames("b", frame(approx_kl=[0.1])),
        ]
        assert figures.compare_single(runs, PANEL["kl"]).axes[0].get_legend() is None
        assert [name for _, name in figures.run_colours(runs)] == ["x", "b"]

    def test_runs_of_one_name_are_named_with_the_end_of_their_id(self):
        names = {"hot-20260101T000000Z-abc123": "hot", "hot-20260102T000000Z-def456": "hot", "b-1": "b"}
        assert list(short_names(names).values()) == ["hot abc123", "hot def456", "b"]
        same_end = {"hot-1-x": "hot", "hot-2-x": "hot"}
        assert list(short_names(same_end).values()) == ["hot-1-x", "hot-2-x"]

    def test_a_name_is_shown_literally(self, tmp_path):
        names = ["_hidden", r"$\frac{$", "<b>&amp;"]
        figure = figures.compare([RunFrames(name, frame(approx_kl=[0.1, 0.2])) for name in names])
        figures.save(figure, tmp_path / "p.svg")
        assert [text.get_text() for text in figure.legends[0].get_texts()] == names
        figures.save(figures.postmortem(RunFrames(names[1], frame(approx_kl=[0.1]))), tmp_path / "q.svg")

    def test_runs_without_values_are_a_page_that_says_so(self):
        figure = figures.compare([RunFrames("a", pl.DataFrame(schema={"update": pl.Int64}))])
        assert [text.get_text() for text in figure.texts] == ["Nothing that could be drawn was measured."]


class TestFiles:
    @pytest.mark.parametrize("suffix", SUFFIXES)
    def test_the_same_figure_is_the_same_file(self, suffix, tmp_path: Path):
        run = run_of(frame(ratio_max=[1.0, 9.0], ratio_min=[0.5, 0.1]), incident("ratio_explosion", 2, 2))
        for name in ("one", "two"):
            figures.save(figures.postmortem(run), tmp_path / f"{name}{suffix}")
        assert (tmp_path / f"one{suffix}").read_bytes() == (tmp_path / f"two{suffix}").read_bytes()

    def test_the_suffix_may_be_upper_case(self, tmp_path: Path):
        figures.save(figures.postmortem(run_of(frame(approx_kl=[0.1]))), tmp_path / "A.PNG")
        assert (tmp_path / "A.PNG").read_bytes().startswith(b"\x89PNG")

    def test_an_svg_in_a_page_has_prefixed_ids_and_a_label(self):
        run = run_of(frame(ratio_max=[1.0, 9.0], ratio_min=[0.5, 0.1]))
        svg = figures.as_svg(figures.single(run, PANEL["ratio"]), "p1", 'A "ratio" <of> r')
        assert svg.startswith("<svg")
        assert 'aria-label="A &quot;ratio&quot; &lt;of> r"' in svg
        assert 'id="p1-' in svg
        assert "http" not in svg.replace("http://www.w3.org/", "")

    def test_drawing_restores_the_callers_style(self):
        before = dict(mpl.rcParams)
        figures.postmortem(run_of(frame(approx_kl=[0.1])))
        assert dict(mpl.rcParams) == before

    def test_pyplot_is_never_loaded(self, run_python):
        assert (
            run_python("import sys, esper_analytics.plots.figures; print('matplotlib.pyplot' in sys.modules)")
            == "False\n"
        )

    def test_the_registry_loads_neither_matplotlib_nor_polars(self, run_python):
        code = "import sys, esper_analytics.plots.registry; print({'matplotlib', 'polars'} & set(sys.modules))"
        assert run_python(code) == "set()\n"

    def test_every_kind_of_plot_names_the_function_that_draws_it(self):
        nothing = RunFrames("r", frame(approx_kl=[0.1]))
        assert PLOTS["postmortem"].draw(nothing).axes and PLOTS["compare"].draw([nothing]).axes
        for kind in ("ratio", "gradients", "heads", "phases"):
            assert callable(getattr(detail_figures, PLOTS[kind].name))
