"""Record the two runs kept in `examples/runs`: PPO on CartPole, one of them with a broken learning rate schedule.

    python examples/record_runs.py OUT

The documentation quotes these runs. What a training gives depends on the CPU, so they are kept, not recorded again.
"""

from __future__ import annotations

import sys
from pathlib import Path

from stable_baselines3 import PPO

from esper_recorder.demo import RUNS
from esper_recorder.sb3 import RecorderCallback

UPDATES, STEPS = 24, 256


def main(out: Path) -> None:
    """Train and record both runs under `out`."""
    for name, learning_rate in RUNS.items():
        model = PPO(
            "MlpPolicy",
            "CartPole-v1",
            learning_rate=learning_rate,
            n_steps=STEPS,
            batch_size=64,
            n_epochs=4,
            seed=7,
            device="cpu",
        )
        model.learn(UPDATES * STEPS, callback=RecorderCallback(out, name=name))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
