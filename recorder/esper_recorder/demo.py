"""Records two real PPO runs on CartPole side by side: one that learns, and one whose learning rate wrecks it.

    python -m esper_recorder.demo --out runs/

Progress goes to stdout as lines `<run> <steps> <of>`, for a program that shows a bar.
"""

from __future__ import annotations

import argparse
import warnings
from pathlib import Path

import torch
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback

from esper_recorder.sb3 import RecorderCallback

RUNS = {"healthy": 3e-4, "wrecked": 3e-2}
"""Name of each run and its learning rate."""


class _Progress(BaseCallback):
    def __init__(self, name: str, total: int) -> None:
        super().__init__()
        self._name, self._total = name, total

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        print(self._name, min(self.num_timesteps, self._total), self._total, flush=True)


def record(out: Path, name: str, learning_rate: float, *, steps: int, seed: int = 7) -> Path | None:
    """Train PPO on CartPole-v1 with Stable-Baselines3 and record it under `out`.

    Args:
        out: folder of runs.
        name: of the run.
        learning_rate: of Adam.
        steps: environment steps.
        seed: of everything.

    Returns:
        The run's folder; None where it could not be made.
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
