"""What a recorder notes of a model's parameters: their gradients, their weights, and what a step changed in them."""

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
        found = {}
        for i, part in enumerate(self.parts):
            found[f"{i}.statistics"], found[f"{i}.histograms"] = part.statistics.values, part.histograms
        return found


@dataclass(frozen=True, slots=True)
class LayerPart:
    """The measured ones of a block's parameters that live on one device."""

    places: list[int]
    """Which of the block's parameters they are."""
    statistics: Statistics
    """[steps, places, k]"""
    histograms: Tensor
    """int64 [steps, places, bins]"""


class LayerLog:
    """The steps of an update whose gradients were taken.

    A step's change is known where the weights were kept before it. Steps that the loop tells of (`take` before the
    step) are; of others only where `keeps_always`, which costs a copy of the weights at each.
    """

    def __init__(self) -> None:
        self.keeps_always = True
        self._names: list[str] = []
        self._references: list[weakref.ref[Tensor]] = []  # a failed training's model must be free to go
        self._gradients: list[str] = []  # of each: dense, other or none
        self._reducers: list[tuple[list[int], LayerReducer]] = []
        self._sizes: list[int] = []
        self._steps: list[dict[str, Any]] = []
        self._blocks: list[LayerBlock] = []
        self._listed = self._kept = self._open = False

    def __len__(self) -> int:
        return len(self._steps) + len(self._blocks)

    @property
    def waits_for_step(self) -> bool:
        """Whether `before_step` has something to do."""
        return self._open or self.keeps_always

    def take(self, model: torch.nn.Module, notes: dict[str, Any], *, only: bool) -> None:
        """Take the gradients as they stand; `only` these, what was taken before in this update is forgotten."""
        if only:
            self._settle()
            self._forget()
        parameters = self._look(model)
        after_step = self._open and self._kept
        for places, reducer in self._reducers:
            reducer.take([parameters[i] for i in places], after_step=after_step)
        self._steps.append(notes)
        self._open, self._kept = True, False

    def take_after_step(self, model: torch.nn.Module, notes: dict[str, Any]) -> None:
        """Take the gradients that are left of the step made last, and what that step changed."""
        kept = self._kept
        self._open = False
        self.take(model, notes, only=False)
        self._kept = kept
        self._settle()

    def before_step(self, model: torch.nn.Module) -> None:
        """The optimizer is about to make a step."""
        if self._open and self._kept:
            self._settle()  # of the step before
        if self._open and all(reducer.holds_weights for _, reducer in self._reducers):
            for _, reducer in self._reducers:
                reducer.keep_taken()
            self._kept = True
        elif self._open or self.keeps_always:
            parameters = self._look(model)
            for places, reducer in self._reducers:
                reducer.keep([parameters[i] for i in places])
            self._kept = True

    def drain(self) -> list[LayerBlock]:
        """What was taken in this update; the next one begins."""
        self._close_block()
        blocks, self._blocks = self._blocks, []
        self._listed = self._kept = False
        return blocks

    def clear(self) -> None:
        """Forget what was taken."""
        self._forget()
        self._listed = self._kept = False

    def _settle(self) -> None:
        """Note what the step changed that followed the newest taking."""
        if self._open and self._kept:
            parameters = [reference() for reference in self._references]
            for places, reducer in self._reducers:
                own = [p for i in places if (p := parameters[i]) is not None]
                if len(own) == len(places):  # else the model has gone
                    reducer.changed(own)
        self._open = self._kept = False

    def _look(self, model: torch.nn.Module) -> list[Tensor]:
        """The parameters, listed anew once per update; which of them have a gradient is looked at each time."""
        parameters = [p for reference in self._references if (p := reference()) is not None]
        if not self._listed or len(parameters) < len(self._references):
            named = list(model.named_parameters())
            names = [name for name, _ in named]
            listed: list[Tensor] = [p for _, p in named]
            if names != self._names or [id(p) for p in listed] != [id(p) for p in parameters]:
                self._close_block()
                self._names, self._references, self._gradients = names, [weakref.ref(p) for p in listed], []
            parameters, self._listed = listed, True
        # A sparse gradient has no dense statistics, a complex one no order; it is told as present and not measured.
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
