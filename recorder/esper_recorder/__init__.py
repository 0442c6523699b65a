"""Records PPO training runs to Parquet from inside the trainer, without disturbing it.

    from esper_recorder import Recorder                  # any script
    from esper_recorder.sb3 import RecorderCallback      # Stable-Baselines3
    from esper_recorder import reduce                    # compiled and captured steps: see Recorder.push

The names below are loaded when they are first used: importing `esper_recorder.contract` needs neither torch nor
pyarrow.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esper_recorder.levels import Level
    from esper_recorder.recorder import Recorder
    from esper_recorder.reductions.packing import reduce
    from esper_recorder.sink import MemorySink, ParquetSink, Sink

__version__ = "0.1.0"

__all__ = ["Level", "MemorySink", "ParquetSink", "Recorder", "Sink", "reduce"]

_HOMES = {
    "Level": "levels",
    "MemorySink": "sink",
    "ParquetSink": "sink",
    "Recorder": "recorder",
    "Sink": "sink",
    "reduce": "reductions.packing",
}


def __getattr__(name: str) -> Any:
    home = _HOMES.get(name)
    if home is None:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"{__name__}.{home}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
