"""Tensors of many devices, types and layouts measured together, with one transfer to the host."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from esper_recorder.capture.transfer import Transfer
from esper_recorder.reductions.gradients import MEASURED, measure, precision

Figures = dict[str, float]
"""What is known of a tensor by name: `n`, its elements, and `MEASURED`. Without elements there is no least or most."""


def named_parameters(model: Any) -> list[tuple[str, Tensor]]:
    """The parameters of a model, each once. Raises TypeError for what is no model."""
    if not isinstance(model, torch.nn.Module):
        raise TypeError(f"model is a {type(model).__name__}; give a torch.nn.Module")
    return list(model.named_parameters())


def gradients_of(parameters: Sequence[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """The gradients of those parameters that have one, by name."""
    return {name: p.grad.detach() for name, p in parameters if p.grad is not None}


def stored(tensor: Tensor) -> Tensor:
    """The elements a tensor stores: of a sparse one those that are not zero by its layout, duplicates added up.

    Adding up duplicates of a sparse tensor is the one thing here that makes its device wait: torch has to know how many
    are left.
    """
    if tensor.layout is torch.strided:
        return tensor.detach()
    if tensor.layout is torch.sparse_coo:
        return tensor.detach().coalesce().values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        return tensor.detach().values()
    return tensor.detach().to_dense()


class Measurement:
    """Tensors that are being measured: their figures are on their way to the host.

    Args:
        tensors: by name; real, of any floating type, layout and device.
        below, above: see `reductions.gradients.measure`.
        besides: other small tensors to take along.
    """

    def __init__(
        self,
        tensors: Mapping[Any, Tensor],
        *,
        below: float = 0.0,
        above: float = float("inf"),
        besides: Mapping[str, Tensor] | None = None,
    ) -> None:
        for name, tensor in tensors.items():
            if tensor.is_complex():
                raise TypeError(
                    f"{name} is {tensor.dtype}: complex numbers have no order; give torch.view_as_real of it"
                )
        self._sizes = {name: tensor.numel() for name, tensor in tensors.items()}
        elements = {name: stored(tensor) for name, tensor in tensors.items()}
        groups: dict[tuple[torch.device, torch.dtype], list[Any]] = {}
        for name, tensor in elements.items():
            groups.setdefault((tensor.device, precision(tensor)), []).append(name)
        self._groups = list(groups.values())
        self._counts = {name: tensor.numel() for name, tensor in elements.items()}
        sent = {f"besides.{name}": x.detach() for name, x in (besides or {}).items()}
        for i, names in enumerate(self._groups):
            sent[f"{i}"] = measure([elements[name] for name in names], below=below, above=above).values
        self._transfer = Transfer(sent)

    @property
    def done(self) -> bool:
        """Whether the figures have arrived."""
        return self._transfer.done

    def besides(self, name: str) -> Tensor:
        """A tensor that was taken along, on the host."""
        return self._transfer.wait()[f"besides.{name}"]

    def figures(self) -> Iterator[tuple[Any, Figures]]:
        """The figures of each tensor, in the order they were given; waits for them."""
        host = self._transfer.wait()
        found = {
            name: dict(zip(MEASURED, values, strict=True))
            for i, names in enumerate(self._groups)
            for name, values in zip(names, host[f"{i}"].tolist(), strict=True)
        }
        for name, size in self._sizes.items():
            own = found[name]
            left_out = size - self._counts[name]  # zeros of a sparse layout
            if left_out:
                own["grad_zero"] += left_out
                own["below"] += left_out
                # Of numbers only: where nothing is stored but NaN, the zeros are all the numbers there are.
                own["grad_min"] = min(own["grad_min"], 0.0) if own["grad_min"] == own["grad_min"] else 0.0
                own["grad_max"] = max(own["grad_max"], 0.0) if own["grad_max"] == own["grad_max"] else 0.0
            yield name, {"n": size} | own
