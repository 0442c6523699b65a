"""What the figures of one run are drawn from: its frames, and which incident belongs to which panel.

Loads no matplotlib.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from esper_analytics.plots.panels import PANELS, Panel, has_values, measured
from esper_recorder.contract.rules.model import Condition
from esper_recorder.contract.rules.ruleset import RuleSet


@dataclass(frozen=True, slots=True)
class Mark:
    """An incident in a panel.

    Attributes:
        onset, last: its first and last update.
        peak_update, peak_value: its peak, if the panel draws the very column that the rule reads.
        threshold: what the rule fires beyond, if the panel draws that column and it is one number throughout.
    """

    severity: str
    onset: int
    last: int
    rule: str = ""
    peak_update: int | None = None
    peak_value: float | None = None
    threshold: float | None = None


@dataclass(frozen=True, slots=True)
class RunFrames:
    """What the figures of one run are drawn from.

    Attributes:
        name: the run's name in titles and legends; see `short_names`.
        updates: rows of `ppo_updates`, one per update.
        episodes: rows of `episodes`; None if none were recorded.
        incidents: rows of `Result.incidents` of this run.
        rules: the rules of the incidents: they define which panel an incident belongs to, and the phases.
    """

    name: str
    updates: pl.DataFrame
    episodes: pl.DataFrame | None = None
    incidents: pl.DataFrame | None = None
    rules: RuleSet | None = None
    frame: pl.DataFrame = field(init=False)
    """`updates` by update, joined with the episodes' returns."""

    def __post_init__(self) -> None:
        frame = self.updates.drop_nulls("update").sort("update").unique("update", keep="last", maintain_order=True)
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
        """(phase, its first update) of each phase the run reached; empty if progress was not recorded."""
        if self.rules is None or "progress" not in self.frame.columns:
            return []
        starts: dict[str, int] = {}
        for update, progress in self.frame.select("update", "progress").iter_rows():
            phase = self.rules.phase(progress)
            if phase is not None:
                starts.setdefault(phase, update)
        return sorted(starts.items(), key=lambda item: item[1])

    @property
    def panels(self) -> tuple[Panel, ...]:
        """The panels with measured values; entropy in nats only if it was not normalised."""
        panels = [panel for panel in PANELS if measured(panel, self.frame)]
        names = {panel.name for panel in panels}
        return tuple(panel for panel in panels if not (panel.name == "entropy_nats" and "entropy" in names))

    @property
    def unmeasured(self) -> tuple[Panel, ...]:
        """The panels without measured values."""
        names = {panel.name.removesuffix("_nats") for panel in self.panels}
        return tuple(p for p in PANELS if p.name not in names and p.name != "entropy_nats")

    def marks(self, panel: Panel) -> list[Mark]:
        """The incidents that belong to a panel."""
        return [mark for _, mark in self.marked(panel)]

    def marked(self, panel: Panel) -> list[tuple[Mapping[str, Any], Mark]]:
        """The incidents that belong to a panel, with their rows, by onset."""
        if self.incidents is None or self.rules is None:
            return []
        rules = {rule.name: rule for rule in self.rules.rules}
        marked: list[tuple[Mapping[str, Any], Mark]] = []
        for row in self.incidents.sort("onset_update", maintain_order=True).iter_rows(named=True):
            conditions = rules[row["rule"]].conditions if row["rule"] in rules else ()
            if not any(panel.reads & set(condition.signal.inputs) for condition in conditions):
                continue
            mark = Mark(row["severity"], row["onset_update"], row["last_update"], row["rule"])
            signal = conditions[0].signal
            drawn = signal.table == "ppo_updates" and signal.column in {line.column for line in panel.lines}
            if len(conditions) == 1 and drawn and not conditions[0].has_trend:
                threshold = self._constant_threshold(conditions[0])
                peak = {"peak_update": row["peak_update"], "peak_value": row["peak_value"]}
                mark = replace(mark, **peak, threshold=threshold)
            marked.append((row, mark))
        return marked

    def _constant_threshold(self, condition: Condition) -> float | None:
        """The threshold if it is the same number at every update."""
        threshold = condition.threshold
        if threshold is None or threshold.by == "number":
            return None if threshold is None else threshold.number
        if threshold.by != "column" or threshold.signal is None:
            return None
        # Relative to a setting that this run does not have, its fallback holds throughout.
        absent = not any(has_values(self.frame, name) for name in threshold.signal.inputs)
        return threshold.number if absent else None


def short_names(names: Mapping[str, str]) -> dict[str, str]:
    """Name runs for people, by run_id: by name, and if several share it with the end of the run_id too."""
    ends = {run_id: run_id.rsplit("-", 1)[-1] for run_id in names}
    of_name = Counter(names.values())
    of_both = Counter((name, ends[run_id]) for run_id, name in names.items())
    short = {}
    for run_id, name in names.items():
        distinct = of_both[name, ends[run_id]] == 1 and ends[run_id] != run_id
        short[run_id] = name if of_name[name] == 1 else f"{name} {ends[run_id]}" if distinct else run_id
    return short
