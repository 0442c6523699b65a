"""Which runs there are: fault or healthy variant, trainer, task, seed, and the half they belong to."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

from faults.fault_class import FaultClass
from faults.healthy import HEALTHY
from faults.registry import FAULTS, HEALTHY_SEEDS, SEEDS
from faults.seams import Settings
from faults.tasks import TASKS

# How long a run takes on one core of the machine that `benchmarks/results` are from, next to CartPole's 24 updates.
_COST = {"sb3": 1.0, "script": 1.0, "device": 1.6}


@dataclass(frozen=True)
class PlannedRun:
    """One run.

    Attributes:
        name: of the fault class or of the healthy variant.
        faulty: which of the two.
        half: `training` or `held-out`.
        onset: first update with the fault; 1 for a healthy run.
        cause: true cause; `healthy` for a healthy run.
        control: key of the healthy run it is compared with; None for a healthy run.
        updates: length of the training, if not the settings' own.
    """

    name: str
    faulty: bool
    trainer: str
    task: str
    seed: int
    half: str
    onset: int
    cause: str
    control: str | None
    updates: int | None = None

    @property
    def key(self) -> str:
        """A name for it that is unique among the planned runs."""
        kind = "fault" if self.faulty else "healthy"
        return f"{kind}-{self.name}-{self.trainer}-{self.task}-{self.seed}"

    @property
    def settings(self) -> Settings:
        """The settings it begins with."""
        own = FAULTS[self.name].settings if self.faulty else HEALTHY[self.name].settings
        settings = Settings(**{**TASKS[self.task].settings, **own})
        settings.updates = self.updates or settings.updates
        return settings

    @property
    def cost(self) -> float:
        """Estimate of how long it takes, in trainings of CartPole by Stable-Baselines3."""
        settings = self.settings
        epochs = 6 * settings.epochs if self.name == "too_many_epochs" else settings.epochs
        minibatches = epochs * settings.envs * settings.steps / settings.batch_size
        wide = 2 if settings.hidden > 256 else 1
        if not self.faulty and HEALTHY[self.name].library == "RecurrentPPO":
            return 5.0
        return _COST[self.trainer] * wide * settings.updates / 24 * (0.3 + 0.7 * minibatches / 80)

    def fingerprint(self) -> str:
        """Changes with everything the run is made from."""
        content = json.dumps([asdict(self), vars(self.settings), _sources()], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@cache
def _sources() -> str:
    """A hash of the files whose change makes other runs; those that only plan, prove and judge are not among them."""
    digest = hashlib.sha256()
    folder = Path(__file__).parent
    for path in sorted(folder.glob("*.py")):
        if path.stem not in ("plan", "training", "proving", "judging", "registry", "__init__"):
            digest.update(path.read_bytes())
    return digest.hexdigest()


def tasks_of(trainers: Iterable[str], tasks: tuple[str, ...] | None) -> Iterator[tuple[str, str]]:
    """Trainers and tasks that go together."""
    for trainer in trainers:
        for name, task in TASKS.items():
            if trainer in task.trainers and (tasks is None or name in tasks):
                yield trainer, name


def healthy_runs() -> Iterator[PlannedRun]:
    """The healthy runs."""
    for name, variant in HEALTHY.items():
        for trainer, task in tasks_of(variant.trainers, variant.tasks):
            for half, seed in _seeds(task, HEALTHY_SEEDS if name == "plain" else SEEDS):
                yield PlannedRun(name, False, trainer, task, seed, half, variant.onset, "healthy", None)


def runs_of(fault: FaultClass) -> Iterator[PlannedRun]:
    """The runs of a fault class."""
    for trainer, task in tasks_of(fault.trainers, fault.tasks):
        for half, seed in _seeds(task, SEEDS):
            yield faulty_run(fault, trainer, task, seed, half)


def faulty_run(
    fault: FaultClass,
    trainer: str,
    task: str,
    seed: int,
    half: str,
    *,
    onset: int | None = None,
    updates: int | None = None,
) -> PlannedRun:
    """One run of a fault class."""
    control = PlannedRun(fault.control, False, trainer, task, seed, half, 1, "healthy", None)
    return PlannedRun(
        fault.name, True, trainer, task, seed, half, onset or fault.onset, fault.cause, control.key, updates
    )


def planned_runs() -> list[PlannedRun]:
    """All runs, the controls first."""
    return [*healthy_runs(), *(run for fault in FAULTS.values() for run in runs_of(fault))]


def _seeds(task: str, seeds: dict[str, Any]) -> Iterator[tuple[str, int]]:
    for half, numbers in seeds.items():
        if half == "held-out" or not TASKS[task].held_out:
            for seed in numbers:
                yield half, seed
