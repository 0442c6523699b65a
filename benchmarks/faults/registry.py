"""Every fault class, and which seeds are held out for judging; `tasks.py` says which tasks are."""

from __future__ import annotations

from typing import Final

# Importing a module enters its faults into the registry.
from faults import advantage_faults as _advantage
from faults import loss_faults as _loss
from faults import observation_faults as _observation
from faults import optimizer_faults as _optimizer
from faults import ratio_faults as _ratio
from faults import reward_faults as _reward
from faults import weight_faults as _weight
from faults.fault_class import FAULTS

_MODULES = (_observation, _reward, _advantage, _ratio, _loss, _optimizer, _weight)

SEEDS: Final = {"training": (1,), "held-out": (101,)}
"""By half. Thresholds and weights may look at runs of the first half only; results are of the second."""

HEALTHY_SEEDS: Final = {"training": (1, 2), "held-out": (101, 102)}
"""Of the plain healthy runs, which count false incidents."""

__all__ = ["FAULTS", "HEALTHY_SEEDS", "SEEDS"]
