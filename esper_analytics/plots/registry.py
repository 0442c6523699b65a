"""The kinds of plot: one row per kind; the choices of `esper plot --kind`, its help and its messages derive from it.

Loads neither matplotlib nor polars, so that `esper --help` may read it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from matplotlib.figure import Figure

SUFFIXES: Final = (".png", ".svg", ".pdf")
"""The file formats a plot is saved in."""


@dataclass(frozen=True, slots=True)
class PlotKind:
    """One kind of plot, drawn by the function of its name.

    Attributes:
        name: the value of `--kind`.
        shows: what it shows, for help and docs.
        module: the module of this package that draws it.
        tables: the tables whose rows the function takes after the run's frames, in this order.
        many_runs: it draws a list of runs; the others draw one.
    """

    name: str
    shows: str
    module: str
    tables: tuple[str, ...] = ()
    many_runs: bool = False

    def draw(self, *frames: Any) -> Figure:
        """Draw it; loads matplotlib. Raises UsageError if the run has not recorded what it shows."""
        figure: Figure = getattr(import_module(f"esper_analytics.plots.{self.module}"), self.name)(*frames)
        return figure


_KINDS: Final = (
    PlotKind("postmortem", "every curve of a run, with its incidents", "figures"),
    PlotKind("ratio", "the histogram of an update's ratios", "detail_figures", ("ratio_histograms", "ratio_exemplars")),
    PlotKind("gradients", "gradient norms, of all parameters and by layer", "detail_figures", ("gradient_layers",)),
    PlotKind("heads", "entropy, ratio and clip fraction by action head", "detail_figures", ("heads",)),
    PlotKind("phases", "seconds spent in each phase of the loop", "detail_figures", ("phase_profiles",)),
    PlotKind("compare", "the same curves of several runs", "figures", many_runs=True),
)
PLOTS: Final[Mapping[str, PlotKind]] = {kind.name: kind for kind in _KINDS}
