"""What the figures of one run are drawn from: its frames, and which incident belongs to which panel."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import polars as pl

from esper_analytics.plots.drawing import Mark
from esper_analytics.plots.panels import PANELS, Panel, measured
from esper_recorder.contract.rules.model import Condition
from esper_recorder.contract.rules.ruleset import RuleSet


@dataclass(frozen=True, slots=True)
class RunFrames:
    """What the figures of one run are drawn from.

    Attributes:
        name: how the run is called in titles.
        updates: rows of `ppo_updates`, one per update.
        episodes: rows of `episodes`; None where none were recorded.
        incidents: rows of `Result.incidents` of this run.
        rules: the rules of the incidents: they tell which panel an incident belongs to, and the phases.
        label: how the run is called in legends; the name where it is not given.
    """

    name: str
    updates: pl.DataFrame
    episodes: pl.DataFrame | None = None
    incidents: pl.DataFrame | None = None
    rules: RuleSet | None = None
    label: str = ""
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
            mark = Mark(row["severity"], row["onset_update"], row["last_update"], rule=rule.name)
            condition = rule.conditions[0]
            plain = len(signals) == 1 and signals[0].column in {line.column for line in panel.lines}
            if plain and signals[0].table == "ppo_updates" and not condition.moves:
                mark = replace(
                    mark,
                    peak_update=row["peak_update"],
                    peak_value=row["peak_value"],
                    threshold=self._one_threshold(condition),
                )
            found.append((row, mark))
        return found

    def _one_threshold(self, condition: Condition) -> float | None:
        """The threshold where it is the same number at every update."""
        threshold = condition.threshold
        if threshold is None or threshold.by == "number":
            return None if threshold is None else threshold.number
        if threshold.by != "column" or threshold.signal is None:
            return None
        # Relative to a setting that this run does not have, it is the number that holds otherwise.
        names = [name for name in threshold.signal.inputs if name in self.frame.columns]
        absent = all(self.frame.get_column(name).null_count() == self.frame.height for name in names)
        return threshold.number if absent else None


def short_names(names: Mapping[str, str]) -> dict[str, str]:
    """How runs are called in a legend, by run_id: their name, and where several have it the end of their run_id too."""
    often = Counter(names.values())
    found = {}
    for run_id, name in names.items():
        alike = [other for other, its in names.items() if its == name and other != run_id]
        end = run_id.rsplit("-", 1)[-1]
        if any(other.rsplit("-", 1)[-1] == end for other in alike):
            end = run_id
        found[run_id] = name if often[name] == 1 else f"{name} {end}" if end != run_id else run_id
    return found
