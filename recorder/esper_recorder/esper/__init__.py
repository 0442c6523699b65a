"""What only Esper's trainer has: its events and how they become rows, its slots, rewards and configuration.

    from esper_recorder.esper import HubBackend              # beside or instead of the hub's JSONL
    from esper_recorder.esper import EnvironmentEmitter      # rows of a vectorised trainer's environments
    from esper_recorder.esper import TrainingConfig          # needs pydantic: pip install 'esper-recorder[esper]'

The names below are loaded when they are first used: importing this package loads no library.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper_recorder.esper.config import RewardFamily, RewardMode, TrainingConfig
    from esper_recorder.esper.emitters import EnvironmentEmitter, Intervals, RowEmitter
    from esper_recorder.esper.hub import HubBackend
    from esper_recorder.esper.rewards import RewardComponents, reward_components
    from esper_recorder.esper.slots import CANONICAL_SLOTS, UnknownSlotError, ordered_slots

_HOMES = {
    "CANONICAL_SLOTS": "slots",
    "EnvironmentEmitter": "emitters",
    "HubBackend": "hub",
    "Intervals": "emitters",
    "RewardComponents": "rewards",
    "RewardFamily": "config",
    "RewardMode": "config",
    "RowEmitter": "emitters",
    "TrainingConfig": "config",
    "UnknownSlotError": "slots",
    "ordered_slots": "slots",
    "reward_components": "rewards",
}

__all__ = [
    "CANONICAL_SLOTS",
    "EnvironmentEmitter",
    "HubBackend",
    "Intervals",
    "RewardComponents",
    "RewardFamily",
    "RewardMode",
    "RowEmitter",
    "TrainingConfig",
    "UnknownSlotError",
    "ordered_slots",
    "reward_components",
]


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
