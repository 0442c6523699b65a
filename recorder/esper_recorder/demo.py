"""Record two real PPO runs on CartPole: one that learns, and one that a broken learning rate schedule wrecks.

    python -m esper_recorder.demo --out runs/

Progress goes to stdout as lines `<run> <steps> <of>`, for a program that shows a bar.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from esper_recorder.sb3 import RecorderCallback

LEARNING_RATE = 3e-4


def broken_schedule(remaining: float) -> float:
    """Return a learning rate that is a hundred times too large from half of the training on.

    That wrecks the policy with every seed tried, and until then the run is the healthy one's twin.
    """
    return LEARNING_RATE if remaining > 0.5 else 100 * LEARNING_RATE


RUNS: dict[str, float | Callable[[float], float]] = {"healthy": LEARNING_RATE, "wrecked": broken_schedule}
"""Name of each run and its learning rate, or its schedule over the fraction of the training that remains."""


class _Progress(BaseCallback):
    def __init__(self, name: str, total: int) -> None:
        super().__init__()
        self._name, self._total = name, total

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        print(self._name, min(self.num_timesteps, self._total), self._total, flush=True)


def record(
    out: Path, name: str, learning_rate: float | Callable[[float], float], *, steps: int, seed: int = 7
) -> Path | None:
    """Train PPO on CartPole-v1 with Stable-Baselines3 and record it under `out`.

    Args:
        out: folder of runs.
        name: name of the run.
        learning_rate: Adam's learning rate, or a schedule of it.
        steps: environment steps.
        seed: seed of the environment, the network and the minibatches.

    Returns:
        The run's folder; None if it could not be created.
    """
    callback = RecorderCallback(out, name=name)
    model = PPO("MlpPolicy", "CartPole-v1", learning_rate=learning_rate, n_steps=1024, seed=seed, device="cpu")
    model.learn(steps, callback=[_Progress(name, steps), callback])
    return callback.path


def main() -> None:
    """Record the runs of `RUNS`."""
    parser = argparse.ArgumentParser(prog="python -m esper_recorder.demo", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder of runs (default: runs)")
    parser.add_argument("--steps", type=int, default=30_000, help="environment steps of each run (default: 30000)")
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore", module="gymnasium")
    torch.set_num_threads(1)  # a small network is trained fastest on one core
    for name, learning_rate in RUNS.items():
        record(arguments.out, name, learning_rate, steps=arguments.steps)


if __name__ == "__main__":
    main()
