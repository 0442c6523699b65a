"""A step's reward, broken down: the row of the table `rewards`, made from what Esper's trainer calls its components.

`RewardComponents` is the contract's own row, frozen and with slots: a column that is added there is a field here, and
the two cannot come apart. Whether the components add up to the total is the named question `reward_sums`:

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


def reward_components(told: Any, **context: Any) -> RewardComponents:
    """The row of a breakdown; a component it does not have is None: not told.

    Args:
        told: a mapping, or an object as Esper has it: components by its names of either generation
            (`probation_warning`, `holding_warning`), or by the columns' own.
        context: `env`, `step`, `episode`; what is given here counts.

    Raises ValueError for a component that has no column, or is told twice, by two names.
    """
    told = plain(told)
    if not isinstance(told, Mapping):
        raise ValueError(f"a reward's components are a mapping or an object that has a to_dict(), not {told!r}")
    known = column_names(RewardComponents.table)
    row: dict[str, Any] = {}
    for name, value in told.items():
        to = _NAMES.get(name, name if name in known else None)
        if not isinstance(to, str):
            hint = suggest(name, dict.fromkeys((*known, *_NAMES)), kind="components")
            raise ValueError(f"the reward has no component {name!r}. {hint}")
        if row.get(to) is not None and value is not None:
            raise ValueError(f"the reward's {to} is told twice, once as {name!r}")
        row[to] = value if value is not None else row.get(to)
    return RewardComponents(**(row | context))
