"""Real PPO runs with a known fault, and healthy ones: what the rules and causes are calibrated and judged on.

    python benchmarks/train_faults.py --out ../fault-runs --jobs 2     # trains what is missing
    python benchmarks/bench_detection.py ../fault-runs                 # replays rules over them and judges

    registry.py      every fault class: name, cause, onset, trainers, tasks, and the proof that it was injected
    *_faults.py      the faults themselves, by where their chain begins
    healthy.py       the healthy runs
    seams.py         the steps of PPO that a fault replaces; as they are there they are right
    harness.py       calls the fault's steps from its onset on, the right ones before
    witness.py       what the trainer itself measured of each update, kept beside the recording
    tasks.py         environments
    sb3_trainer.py  script_trainer.py  device_trainer.py
    plan.py          which runs there are, and in which half
    training.py      train one of them; proving.py: was the fault injected?; judging.py: how good is a detection?

A fault is put into the trainer, never into the recorder, and the recorded run holds no trace of its name.
"""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
if str(ROOT) not in sys.path:
    sys.path.append(str(ROOT))  # for examples/
