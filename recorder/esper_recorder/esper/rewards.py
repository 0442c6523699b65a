"""A step's reward, broken down: a row of the table `rewards` from the components of Esper's trainer.

`RewardComponents` is the contract's own row, so a column added there is a field here. Whether the components add up to
the total is a named query:

    esper query RUNS reward_sums
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import column_names
from esper_recorder.contract.tables.esper import Reward as RewardComponents
from esper_recorder.esper.field_map.event_kinds import REWARD_COLUMNS
from esper_recorder.esper.field_map.event_values import plain

__all__ = ["RewardComponents", "reward_components"]

_NAMES = {**REWARD_COLUMNS, "epoch": "step"}


def reward_components(components: Any, **context: Any) -> RewardComponents:
    """Make the row of a breakdown; a missing component is None.

    Args:
        components: a mapping or an object of Esper's, with the names of either generation (`probation_warning`,
            `holding_warning`) or those of the columns.
        context: `env`, `step`, `episode`; overrides the components.

    Raises ValueError for a component that has no column, or has two values under two names.
    """
    components = plain(components)
    if not isinstance(components, Mapping):
        raise ValueError(f"a reward's components are a mapping or an object with a to_dict(), not {components!r}")
    columns = column_names(RewardComponents.table)
    row: dict[str, Any] = {}
    for name, value in components.items():
        column = _NAMES.get(name, name if name in columns else None)
        if not isinstance(column, str):
            hint = suggest(name, dict.fromkeys((*columns, *_NAMES)), kind="components")
            raise ValueError(f"the reward has no component {name!r}. {hint}")
        if row.get(column) is not None and value is not None:
            raise ValueError(f"the reward's {column} has two values, one as {name!r}")
        row[column] = value if value is not None else row.get(column)
    return RewardComponents(**(row | context))
