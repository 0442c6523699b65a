"""Detailed figures: what is drawn on their axes, and the message if a run has not recorded it."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest

from esper_analytics.errors import UsageError
from esper_analytics.plots import detail_figures
from esper_analytics.plots.run_frames import RunFrames
from esper_recorder.contract.histogram import log_ratio_bin_count, log_ratio_bins
from tests.builders import write_run
from tests.support import esper

NAN = math.nan
MIDDLE = log_ratio_bin_count() // 2  # the bin of ratio 1
HISTOGRAMS = {"update": pl.Int64, "minibatch": pl.Int64, "head": pl.String, "counts": pl.List(pl.Int64)}
EXEMPLARS = {
    "update": pl.Int64,
    "head": pl.String,
    "scope": pl.String,
    "place": pl.Int64,
    "log_ratio": pl.Float64,
}
LAYERS = {"update": pl.Int64, "minibatch": pl.Int64, "layer": pl.String, "grad_norm": pl.Float64}
PROFILES = {"update": pl.Int64, "phase": pl.String, "wall_ms": pl.Float64}


def table(rows: list[tuple[Any, ...]], schema: dict[str, Any]) -> pl.DataFrame:
    return pl.DataFrame(rows, schema=schema, orient="row")


def run_of(**columns: list[float | None]) -> RunFrames:
    n = len(next(iter(columns.values())))
    return RunFrames("r", pl.DataFrame({"update": list(range(1, n + 1))} | columns, strict=False))


def counts(**bins: int) -> list[int]:
    """A histogram with these counts in the bins `at_N`, N above that of ratio 1, or `under_N` below it."""
    histogram = [0] * log_ratio_bin_count()
    for name, count in bins.items():
        side, place = name.split("_")
        histogram[MIDDLE + int(place) * (1 if side == "at" else -1)] = count
    return histogram


def lines(axes) -> dict[str, list[float]]:
    return {str(one.get_label()): list(map(float, one.get_ydata())) for one in axes.get_lines()}


class TestRatio:
    def test_histograms_of_minibatches_are_summed_and_a_missing_update_is_empty(self):
        rows = [
            (1, None, "", counts(at_0=3, at_5=1)),
            (1, 1, "", counts(at_0=100)),  # already counted in the whole update's
            (3, 1, "", counts(at_0=1)),
            (3, 2, "", counts(under_2=1)),
            (3, 2, "slot", counts(at_9=50)),  # of one head, not of the joint ratio
        ]
        updates, fractions = detail_figures.ratio_fractions(table(rows, HISTOGRAMS))
        assert updates.tolist() == [1, 3]
        assert (fractions[MIDDLE, 0], fractions[MIDDLE + 5, 0]) == (0.75, 0.25)
        assert (fractions[MIDDLE, 1], fractions[MIDDLE - 2, 1], fractions[:, 1].sum()) == (0.5, 0.5, 1.0)
        axes = detail_figures.ratio(run_of(ratio_max=[1.5]), table(rows, HISTOGRAMS), table([], EXEMPLARS)).axes[0]
        [mesh] = axes.collections
        drawn: Any = np.ma.filled(np.ma.asarray(mesh.get_array()), NAN)
        assert drawn.shape[1] == 3 and np.isnan(drawn[:, 1]).all() and drawn[MIDDLE, 2] == 0.5

    def test_a_hole_of_any_length_is_one_empty_column(self):
        rows = [(update, None, "", counts(at_0=1)) for update in (1, 2, 300_000_000)]
        axes = detail_figures.ratio(run_of(ratio_max=[1.5]), table(rows, HISTOGRAMS), table([], EXEMPLARS)).axes[0]
        [mesh] = axes.collections
        assert np.ma.asarray(mesh.get_array()).shape[1] == 4

    def test_a_ratio_is_drawn_within_its_bin(self):
        bins = log_ratio_bins()
        for log_ratio in (-40.0, -3.0, -0.25, -1e-9, 0.0, 1e-9, 1e-5, 0.3, 31.0, 40.0):
            [place] = detail_figures.bin_position(np.exp(np.array([log_ratio])))
            low, high = bins[round(float(place))]
            assert low <= log_ratio <= high, log_ratio
        inf, zero, nan = detail_figures.bin_position(np.array([math.inf, 0.0, NAN]))
        assert (inf, zero) == (log_ratio_bin_count() - 1, 0) and math.isnan(nan)

    def test_extremes_clip_range_and_worst_transitions_are_drawn_at_their_bins(self):
        run = run_of(ratio_max=[1.5, math.inf], ratio_min=[0.5, None], clip_range=[0.2, 0.2])
        exemplars = [(1, "", "update", 1, 0.4), (1, "", "update", 2, 0.1), (2, "", "minibatch", 1, 9.0)]
        histograms = table([(1, None, "", counts(at_0=1)), (2, None, "", counts(at_0=1))], HISTOGRAMS)
        axes = detail_figures.ratio(run, histograms, table(exemplars, EXEMPLARS)).axes[0]
        place = detail_figures.bin_position
        drawn = lines(axes)
        np.testing.assert_allclose(drawn["largest"], place(np.array([1.5, math.inf])))
        np.testing.assert_allclose(drawn["smallest"], place(np.array([0.5, NAN])))
        np.testing.assert_allclose(drawn["clip range"], place(np.array([1.2, 1.2])))
        np.testing.assert_allclose(drawn["_lower"], place(np.array([0.8, 0.8])))
        np.testing.assert_allclose(drawn["worst transitions"], place(np.exp(np.array([0.4]))))
        [mesh] = axes.collections
        cells = mesh.get_array()
        assert cells is not None and cells.shape == (log_ratio_bin_count(), 2)


class TestGradients:
    ROWS = (
        (1, 1, "a", 5.0),
        (1, 2, "a", 2.0),
        (1, 2, "b", 0.5),
        (3, 1, "a", NAN),
        (3, 1, "b", 0.25),
        (3, 1, "c", None),
    )

    def test_layers_are_in_network_order_with_the_norm_of_the_last_step(self):
        names, updates, norms = detail_figures.layer_norms(table([*self.ROWS], LAYERS))
        assert (names, updates.tolist()) == (["a", "b"], [1, 3])
        np.testing.assert_equal(norms, [[2.0, NAN], [0.5, 0.25]])

    def test_the_norms_before_and_after_clipping_are_drawn_above_the_layers(self):
        run = run_of(grad_norm=[3.0, 1.0], grad_norm_clipped=[0.5, 0.5])
        upper, lower, *_ = detail_figures.gradients(run, table([*self.ROWS], LAYERS)).axes
        assert lines(upper)["mean before"] == [3.0, 1.0] and lines(upper)["mean after"] == [0.5, 0.5]
        assert [text.get_text() for text in lower.get_yticklabels()] == ["a", "b"]

    def test_layers_with_small_norms_are_omitted_and_counted_in_the_title(self):
        many = [(1, 1, f"l{n}", float(n + 1)) for n in range(detail_figures.MOST_LAYERS + 2)]
        axes = detail_figures.gradients(run_of(policy_loss=[0.0]), table(many, LAYERS)).axes[0]
        assert "; 2 more with smaller norms are omitted" in axes.get_title(loc="left")
        assert axes.get_yticklabels()[0].get_text() == "l2"


class TestHeads:
    COLUMNS = ("entropy_normalized", "entropy_normalized_all", "ratio_max", "clip_fraction")

    def rows(self, *rows: tuple[Any, ...]) -> pl.DataFrame:
        schema = {"update": pl.Int64, "head": pl.String} | dict.fromkeys(self.COLUMNS, pl.Float64)
        return table(list(rows), schema)

    def test_each_head_is_a_line_of_each_panel_that_was_measured(self):
        rows = self.rows(
            (1, "op", 0.9, 0.8, 1.5, None), (1, "slot", 0.3, 0.1, 1.1, None), (2, "op", 0.7, 0.6, NAN, None)
        )
        entropy, ratio = detail_figures.heads(run_of(policy_loss=[0.0, 0.0]), rows).axes
        assert lines(entropy)["op"] == [0.9, 0.7] and lines(entropy)["slot"][0] == 0.3
        assert lines(ratio)["op"][0] == 1.5

    def test_the_title_says_if_the_entropy_is_over_all_transitions(self):
        rows = self.rows((1, "op", None, 0.8, None, None), (2, "op", None, 0.6, None, None))
        [axes] = detail_figures.heads(run_of(policy_loss=[0.0, 0.0]), rows).axes
        assert lines(axes)["op"] == [0.8, 0.6]
        assert axes.get_title(loc="left") == "Entropy by head, normalised, over all transitions"


class TestPhases:
    def test_times_of_a_phase_are_summed_by_update_and_the_longest_phase_comes_first(self):
        rows = [(1, "val", 500.0), (1, "train", 1500.0), (1, "train", 500.0), (2, "train", 3000.0), (2, "val", None)]
        names, times = detail_figures.phase_times(table(rows, PROFILES))
        assert names == ["train", "val"]
        assert times.select("update", "train", "val").rows() == [(1, 2.0, 0.5), (2, 3.0, None)]

    def test_collecting_and_learning_are_drawn_in_seconds(self):
        run = run_of(rollout_s=[2.0, 3.0], update_s=[1.0, None])
        [axes] = detail_figures.phases(run, table([], PROFILES)).axes
        assert lines(axes)["collecting"] == [2.0, 3.0]
        assert axes.get_title(loc="left").startswith("Where the time goes")


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("ratio", "has recorded no histogram of its ratios (table ratio_histograms)"),
        ("gradients", "has recorded no gradient norm, neither of all parameters nor of a layer"),
        ("heads", "has recorded no figure of an action head (table heads)"),
        ("phases", "has recorded no time of its phases (rollout_s, update_s, table phase_profiles)"),
    ],
)
def test_a_run_that_lacks_the_table_ends_with_a_message_and_exit_code_2(
    tmp_path: Path, kind: str, message: str
) -> None:
    write_run(tmp_path / "runs", "bare", updates=[{"approx_kl": 0.01}])
    done = esper("plot", str(tmp_path / "runs"), "--kind", kind, "-o", str(tmp_path / "p.png"), code=2)
    assert message in done.stderr
    assert not (tmp_path / "p.png").exists()


def test_a_detailed_figure_is_of_one_run(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write_run(tmp_path, name, updates=[{"rollout_s": 1.0, "update_s": 2.0}])
    arguments = ["plot", str(tmp_path), "--kind", "phases", "-o", str(tmp_path / "p.png")]
    done = esper(*arguments, code=2)
    assert "A plot of kind phases is of one run, and there are 2" in done.stderr
    esper(*arguments, "--run", "a")
    assert (tmp_path / "p.png").read_bytes().startswith(b"\x89PNG")


def test_the_message_names_the_run() -> None:
    with pytest.raises(UsageError, match=r"^r has recorded no histogram"):
        detail_figures.ratio(run_of(ratio_max=[1.0]), table([], HISTOGRAMS), table([], EXEMPLARS))
