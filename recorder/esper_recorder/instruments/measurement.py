"""Tensors of many devices, types and layouts measured together, with one transfer to the host."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esper_recorder.arguments import BadType, check_type
from esper_recorder.capture.transfer import Transfer
from esper_recorder.contract.metrics import derive_layer
from esper_recorder.reductions.gradients import MEASURED, measure, precision


def named_parameters(model: Any) -> list[tuple[str, Tensor]]:
    """Return the parameters of a model, each once. Raises BadType if it is not a model."""
    check_type("model", model, torch.nn.Module, "a torch.nn.Module")
    return list(model.named_parameters())


def gradients_of(parameters: Iterable[tuple[str, Tensor]]) -> dict[str, Tensor]:
    """Return the gradients of the parameters that have one, by name."""
    return {name: p.grad.detach() for name, p in parameters if p.grad is not None}


def stored_elements(tensor: Tensor) -> Tensor:
    """Return the elements a tensor stores: those of a sparse one that its layout does not imply, duplicates summed.

    Summing duplicates of a sparse tensor is the one operation here that makes its device wait: torch has to know how
    many are left.
    """
    if tensor.layout is torch.strided:
        return tensor.detach()
    if tensor.layout is torch.sparse_coo:
        return tensor.detach().coalesce().values()
    if tensor.layout in (torch.sparse_csr, torch.sparse_csc, torch.sparse_bsr, torch.sparse_bsc):
        return tensor.detach().values()
    return tensor.detach().to_dense()


@dataclass(frozen=True, slots=True)
class TensorStatistics:
    """One tensor. Without elements, all but its counts is None.

    Attributes:
        n: its elements, those that a sparse layout implies included.
        norm, mean, std: of the finite elements, over the population; NaN if no element is finite.
        min, max: infinities included; NaN if all are NaN.
        below, above: elements with an absolute value strictly below, or above, the limits of the measurement.
    """

    n: int
    nan_count: int
    inf_count: int
    zeros: int
    below: int
    above: int
    norm: float | None
    mean: float | None
    std: float | None
    min: float | None
    max: float | None

    def fraction(self, count: int) -> float | None:
        """Divide a count by the number of elements."""
        return count / self.n if self.n else None


class Measurement:
    """Tensors being measured, their statistics on the way to the host.

    Args:
        tensors: by name; real, of any floating type, layout and device.
        below, above: see `reductions.gradients.measure`.
        extra: other small tensors to transfer with them.
    """

    def __init__(
        self,
        tensors: Mapping[Any, Tensor],
        *,
        below: float = 0.0,
        above: float = math.inf,
        extra: Mapping[str, Tensor] | None = None,
    ) -> None:
        for name, tensor in tensors.items():
            if tensor.is_complex():
                raise BadType(f"{name} is {tensor.dtype}: complex numbers have no order; give torch.view_as_real of it")
        self._sizes = {name: tensor.numel() for name, tensor in tensors.items()}
        elements = {name: stored_elements(tensor) for name, tensor in tensors.items()}
        groups: dict[tuple[torch.device, torch.dtype], list[Any]] = {}
        for name, tensor in elements.items():
            groups.setdefault((tensor.device, precision(tensor)), []).append(name)
        self._groups = list(groups.values())
        self._stored = {name: tensor.numel() for name, tensor in elements.items()}
        sent = {f"extra.{name}": tensor.detach() for name, tensor in (extra or {}).items()}
        for i, names in enumerate(self._groups):
            sent[f"{i}"] = measure([elements[name] for name in names], below=below, above=above).values
        self._transfer = Transfer(sent)

    @property
    def done(self) -> bool:
        """Whether the statistics have arrived."""
        return self._transfer.done

    def extra(self, name: str) -> Tensor:
        """Return one of the extra tensors, on the host."""
        return self._transfer.wait()[f"extra.{name}"]

    def statistics(self) -> Iterator[tuple[Any, TensorStatistics]]:
        """Yield the statistics of each tensor, in the given order; waits for them."""
        host = self._transfer.wait()
        rows = {
            name: dict(zip(MEASURED, values, strict=True))
            for i, names in enumerate(self._groups)
            for name, values in zip(names, host[f"{i}"].tolist(), strict=True)
        }
        for name, n in self._sizes.items():
            yield name, _statistics(rows[name], n, implied_zeros=n - self._stored[name])


def _statistics(row: dict[str, float], n: int, implied_zeros: int) -> TensorStatistics:
    smallest, largest = row["grad_min"], row["grad_max"]
    if implied_zeros:
        # If all stored elements are NaN, the zeros of the layout are the only numbers.
        smallest = 0.0 if math.isnan(smallest) else min(smallest, 0.0)
        largest = 0.0 if math.isnan(largest) else max(largest, 0.0)
    derived = derive_layer(row | {"n": n, "grad_zero": row["grad_zero"] + implied_zeros})
    return TensorStatistics(
        n=n,
        nan_count=int(row["grad_nan"]),
        inf_count=int(row["grad_posinf"] + row["grad_neginf"]),
        zeros=int(row["grad_zero"]) + implied_zeros,
        below=int(row["below"]) + implied_zeros,
        above=int(row["above"]),
        norm=derived["grad_norm"],
        mean=derived["grad_mean"],
        std=derived["grad_std"],
        min=smallest if n else None,
        max=largest if n else None,
    )
