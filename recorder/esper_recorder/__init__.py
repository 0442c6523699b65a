"""Records PPO training runs to Parquet from inside the trainer, without disturbing it.

    from esper_recorder import Recorder                  # any script
    from esper_recorder.sb3 import RecorderCallback      # Stable-Baselines3
    from esper_recorder import reduce                    # compiled and captured steps: see Recorder.push

The names below are loaded when they are first used: importing `esper_recorder.contract` needs neither torch nor
pyarrow.
"""

from typing import TYPE_CHECKING

from esper_recorder.contract.lazy import lazy_names

if TYPE_CHECKING:
    from esper_recorder.alarms import AlarmOnset
    from esper_recorder.capture.compiled_steps import reduce
    from esper_recorder.levels import Level
    from esper_recorder.recorder import Recorder
    from esper_recorder.storage.sink import MemorySink, ParquetSink, Sink

__version__: str

__all__ = ["AlarmOnset", "Level", "MemorySink", "ParquetSink", "Recorder", "Sink", "reduce"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "esper_recorder.alarms": ("AlarmOnset",),
        "esper_recorder.capture.compiled_steps": ("reduce",),
        "esper_recorder.levels": ("Level",),
        "esper_recorder.recorder": ("Recorder",),
        "esper_recorder.storage.sink": ("MemorySink", "ParquetSink", "Sink"),
    },
    distribution="esper-recorder",
)
