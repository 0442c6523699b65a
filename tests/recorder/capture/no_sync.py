"""What makes the host wait for a device, found without one.

Two nets. On the device `meta`, where tensors have no data, everything that reads one on the host raises. What `meta`
lets through although a GPU would wait (writing by a boolean index) is refused by the mode `NoSync`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

WAITS = frozenset(
    {
        "_local_scalar_dense",  # .item(), float(), bool(), if
        "nonzero",
        "masked_select",
        "_unique2",
        "unique_dim",
        "unique_consecutive",
        "equal",
        "repeat_interleave",
        "bincount",
    }
)
"""Operations of ATen whose result or whose result's shape must be known on the host."""

_INDEXED = frozenset({"index", "index_put", "index_put_", "_index_put_impl_"})


class HostWaits(AssertionError):
    """An operation for which the host would wait for the device."""


class NoSync(TorchDispatchMode):
    """Refuses every operation the host waits for; on tensors that are on the host nothing waits."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        waits = name in WAITS or (name in _INDEXED and any(_is_mask(index) for index in args[1]))
        if waits and args[0].device.type != "cpu":
            raise HostWaits(f"the host waits for {name}")
        return func(*args, **(kwargs or {}))


def _is_mask(index: Any) -> bool:
    return isinstance(index, Tensor) and index.dtype in (torch.bool, torch.uint8)


SINS: dict[str, Callable[[Tensor], Any]] = {
    "item": lambda x: x.sum().item(),
    "float": lambda x: float(x.sum()),
    "if": lambda x: 1 if (x > 0).any() else 0,
    "tolist": lambda x: x.tolist(),
    "cpu": lambda x: x.cpu(),
    "numpy": lambda x: x.numpy(),
    "copy to the host": lambda x: torch.zeros(4, 3).copy_(x),
    "nonzero": lambda x: x.nonzero(),
    "boolean index": lambda x: x[x > 0],
    "write by a boolean index": lambda x: x.__setitem__(x > 0, 1.0),
    "masked_select": lambda x: x.masked_select(x > 0),
    "unique": lambda x: torch.unique(x),
    "equal": lambda x: torch.equal(x, x),
    "repeat_interleave": lambda x: torch.repeat_interleave(x.long().flatten()),
}
"""By name: what the nets must catch."""
