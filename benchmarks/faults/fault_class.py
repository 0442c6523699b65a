"""What the registry says of a fault class, and the decorator that enters one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, Literal, TypeVar

from faults.seams import Seams

START: Final = 1
MIDWAY: Final = 11
"""Onsets: the update whose rollout is the first with the fault."""

TRAINERS: Final = ("sb3", "script", "device")
CHAIN: Final = (
    *("observation", "reward", "return", "advantage", "ratio"),
    *("loss", "gradient", "weights", "setting", "resume"),
)
"""Where the chain of a fault can begin, upstream first."""

WITNESS: Final = "witness"


@dataclass(frozen=True)
class Proof:
    """What shows that a fault was injected: it holds soon after the onset, and not in the control.

    Attributes:
        source: a table of the recorded run, or `witness`.
        expression: a Polars SQL expression over its columns.
        relation, value: what must hold of the expression in at least one row of these updates.
        of_control: the value is a multiple of the control's largest (or, for `<`, smallest) in the same updates.
        within: how many updates, the onset's included.
        first: only the first minibatch of each update.
    """

    source: str
    expression: str
    relation: Literal[">", "<"]
    value: float
    of_control: bool = False
    within: int = 2
    first: bool = False


def shown(expression: str, relation: Literal[">", "<"], value: float, **options: Any) -> Proof:
    """A proof in the table of updates."""
    return Proof("ppo_updates", expression, relation, value, **options)


def witnessed(column: str, relation: Literal[">", "<"] = ">", value: float = 0.0, **options: Any) -> Proof:
    """A proof by what the trainer itself measured: no table shows it, or none shows it as surely."""
    return Proof(WITNESS, column, relation, value, **options)


def first_ratio(above: float, **options: Any) -> Proof:
    """A proof by the first minibatch: no step was taken, and yet its ratios are not 1."""
    return Proof("minibatches", "ratio_max", ">", 1 + above, first=True, **options)


@dataclass(frozen=True)
class FaultClass:
    """One way to be wrong.

    Attributes:
        cause: the true cause as a user would name it; several classes may share it.
        chain: where the chain begins.
        seams: the steps with the fault in them.
        proof: what shows that it was injected.
        onset: first update with the fault.
        trainers: those it applies to.
        tasks: those it applies to; all if None.
        settings: what else differs from the task's settings.
        control: the healthy variant it is compared with.
    """

    name: str
    cause: str
    chain: str
    seams: type[Seams]
    proof: Proof
    onset: int = START
    trainers: tuple[str, ...] = TRAINERS
    tasks: tuple[str, ...] | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    control: str = "plain"

    @property
    def description(self) -> str:
        """What is wrong, in one line."""
        return (self.seams.__doc__ or "").strip().splitlines()[0]


FAULTS: Final[dict[str, FaultClass]] = {}

_S = TypeVar("_S", bound=type[Seams])


def fault(name: str, *, cause: str, chain: str, proof: Proof, **options: Any) -> Callable[[_S], _S]:
    """Enter steps of a training with a fault in them into the registry."""

    def enter(seams: _S) -> _S:
        if name in FAULTS:
            raise ValueError(f"There are two fault classes named {name}.")
        FAULTS[name] = FaultClass(name, cause, chain, seams, proof, **options)
        return seams

    return enter
