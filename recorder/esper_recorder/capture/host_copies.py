"""Copies of an open update on their way to the host, in case its device fails.

After a device-side assert nothing on a CUDA device can be read any more, the minibatches that wait there for the end of
the update included. So each is also copied to pinned memory, behind the work that computes it and without waiting, and
after it a mark: what has its mark has arrived and can be read whatever happened to the device.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

DEVICES = ("cuda",)
"""Types of devices that fail as a whole. What is on the host needs no second copy."""


class HostCopy:
    """A copy of some tensors of one device; None stands for a tensor that there is not."""

    def __init__(self, *tensors: Tensor | None) -> None:
        self._tensors = [None if x is None else to_pinned(x) for x in tensors]
        device = next(x.device for x in tensors if x is not None)
        # Copied last: a stream keeps the order of its work, so the mark does not arrive before the tensors.
        self._mark = to_pinned(torch.ones(1, dtype=torch.uint8, device=device))

    def arrived(self) -> Sequence[Tensor | None] | None:
        """The tensors on the host; None if they have not arrived."""
        return self._tensors if bool(self._mark.all()) else None


def to_pinned(tensor: Tensor) -> Tensor:
    """Copy to pinned memory without waiting; it holds zeros until the device gets to it."""
    host = torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
