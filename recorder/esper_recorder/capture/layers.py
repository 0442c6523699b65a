"""What an update records of a model's parameters: their gradients, their weights, and what a step changed in them."""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from esper_recorder.reductions.gradients import LayerReducer, precision
from esper_recorder.reductions.statistics import Statistics

_COMPLEX = frozenset((torch.complex32, torch.complex64, torch.complex128))


@dataclass(slots=True)
class LayerBlock:
    """Rows of `gradient_layers`: every parameter of a model at each of some steps."""

    names: list[str]
    sizes: list[int]
    has_grad: list[bool]
    steps: list[dict[str, Any]]
    """`epoch`, `minibatch` and `after_clipping` of each."""
    parts: list[LayerPart] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """All its tensors by name."""
        tensors = {}
        for i, part in enumerate(self.parts):
            tensors[f"{i}.statistics"], tensors[f"{i}.histograms"] = part.statistics.values, part.histograms
        return tensors


@dataclass(frozen=True, slots=True)
class LayerPart:
    """The measured parameters of a block that are on one device."""

    places: list[int]
    """Which of the block's parameters they are."""
    statistics: Statistics
    """[steps, places, k]"""
    histograms: Tensor
    """int64 [steps, places, bins]"""


class LayerLog:
    """The steps of an update whose gradients were measured.

    What a step changed is known if the weights were kept before it. They are kept before the steps that the loop calls
    `take` for; before others only while `keeps_always`, which costs a copy of the weights at each.

    Args:
        model: its `named_parameters()` are the layers; None measures nothing. It is not kept alive.
    """

    def __init__(self, model: torch.nn.Module | None = None) -> None:
        self.keeps_always = True
        # Weak: after a failed training its model must be free to go, whatever becomes of the recorder.
        self._model = None if model is None else weakref.ref(model)
        self._names: list[str] = []
        self._references: list[weakref.ref[Tensor]] = []
        self._gradients: list[str] = []  # of each parameter: dense, other or none
        self._reducers: list[tuple[list[int], LayerReducer]] = []
        self._sizes: list[int] = []
        self._steps: list[dict[str, Any]] = []
        self._blocks: list[LayerBlock] = []
        self._listed = self._kept = self._open = False

    def __len__(self) -> int:
        return len(self._steps) + len(self._blocks)

    @property
    def model(self) -> torch.nn.Module | None:
        """The model, if there is one and it is still alive."""
        return None if self._model is None else self._model()

    @property
    def awaits_step(self) -> bool:
        """Whether `before_step` has something to do."""
        return self._open or self.keeps_always

    def take(self, notes: dict[str, Any], *, only: bool = False) -> None:
        """Measure the gradients as they are; `only` forgets what was measured before in this update."""
        model = self.model
        if model is None:
            return
        if only:
            self._settle()
            self._forget()
        parameters = self._parameters(model)
        after_step = self._open and self._kept
        for places, reducer in self._reducers:
            reducer.take([parameters[i] for i in places], after_step=after_step)
        self._steps.append(notes)
        self._open, self._kept = True, False

    def take_after_step(self, notes: dict[str, Any]) -> None:
        """Measure the gradients that the last step left, and what that step changed."""
        kept = self._kept
        self._open = False
        self.take(notes)
        self._kept = kept
        self._settle()

    def before_step(self) -> None:
        """Keep the weights: the optimizer is about to make a step."""
        model = self.model
        if model is None:
            return
        if self._open and self._kept:
            self._settle()  # of the step before
        if self._open and all(reducer.holds_weights for _, reducer in self._reducers):
            for _, reducer in self._reducers:
                reducer.keep_taken()
            self._kept = True
        elif self._open or self.keeps_always:
            parameters = self._parameters(model)
            for places, reducer in self._reducers:
                reducer.keep([parameters[i] for i in places])
            self._kept = True

    def drain(self) -> list[LayerBlock]:
        """Return what was measured in this update; the next one begins."""
        self._close_block()
        blocks, self._blocks = self._blocks, []
        self._listed = self._kept = False
        return blocks

    def clear(self) -> None:
        """Forget what was measured."""
        self._forget()
        self._listed = self._kept = False

    def _settle(self) -> None:
        """Measure what the step changed that followed the newest `take`."""
        if self._open and self._kept:
            parameters = [reference() for reference in self._references]
            for places, reducer in self._reducers:
                alive = [p for i in places if (p := parameters[i]) is not None]
                if len(alive) == len(places):  # else the model has gone
                    reducer.changed(alive)
        self._open = self._kept = False

    def _parameters(self, model: torch.nn.Module) -> list[Tensor]:
        """The parameters, listed once per update. Which of them have a gradient is examined each time."""
        parameters = [p for reference in self._references if (p := reference()) is not None]
        if not self._listed or len(parameters) < len(self._references):
            named = list(model.named_parameters())
            names = [name for name, _ in named]
            listed: list[Tensor] = [p for _, p in named]
            if names != self._names or [id(p) for p in listed] != [id(p) for p in parameters]:
                self._close_block()
                self._names, self._references, self._gradients = names, [weakref.ref(p) for p in listed], []
            parameters, self._listed = listed, True
        # A sparse gradient has no dense statistics, a complex one no order: recorded as present and not measured.
        gradients = [
            "none"
            if (g := p.grad) is None
            else "dense"
            if g.layout is torch.strided and g.dtype not in _COMPLEX
            else "other"
            for p in parameters
        ]
        if gradients != self._gradients:
            self._close_block()
            self._gradients = gradients
            self._sizes = [p.numel() for p in parameters]
            groups: dict[Any, list[int]] = {}
            for i, p in enumerate(parameters):
                if gradients[i] == "dense":
                    groups.setdefault((p.device, precision(p)), []).append(i)
            self._reducers = [(places, LayerReducer([parameters[i] for i in places])) for places in groups.values()]
        return parameters

    def _forget(self) -> None:
        for _, reducer in self._reducers:
            reducer.forget()
        self._steps, self._blocks, self._open = [], [], False

    def _close_block(self) -> None:
        self._settle()
        if self._steps:
            parts = [LayerPart(places, *reducer.drain()) for places, reducer in self._reducers]
            has_grad = [kind != "none" for kind in self._gradients]
            self._blocks.append(LayerBlock(self._names, self._sizes, has_grad, self._steps, parts))
        self._steps, self._open = [], False
