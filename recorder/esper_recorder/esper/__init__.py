"""What only Esper's trainer has: its events and how they become rows, its slots, rewards and configuration.

    from esper_recorder.esper import HubBackend              # next to the hub's JSONL, or instead of it
    from esper_recorder.esper import EnvironmentEmitter      # rows of a vectorised trainer's environments
    from esper_recorder.esper import TrainingConfig          # needs pydantic: pip install 'esper-recorder[esper]'

The names below are loaded when they are first used: importing this package loads no library.
"""

from typing import TYPE_CHECKING

from esper_recorder.contract.lazy import lazy_names

if TYPE_CHECKING:
    from esper_recorder.esper.config import RewardFamily, RewardMode, TrainingConfig
    from esper_recorder.esper.emitters import EnvironmentEmitter, Intervals, RowEmitter
    from esper_recorder.esper.hub import HubBackend
    from esper_recorder.esper.rewards import RewardComponents, reward_components
    from esper_recorder.esper.slots import CANONICAL_SLOTS, UnknownSlotError, ordered_slots

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

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "esper_recorder.esper.config": ("RewardFamily", "RewardMode", "TrainingConfig"),
        "esper_recorder.esper.emitters": ("EnvironmentEmitter", "Intervals", "RowEmitter"),
        "esper_recorder.esper.hub": ("HubBackend",),
        "esper_recorder.esper.rewards": ("RewardComponents", "reward_components"),
        "esper_recorder.esper.slots": ("CANONICAL_SLOTS", "UnknownSlotError", "ordered_slots"),
    },
)
