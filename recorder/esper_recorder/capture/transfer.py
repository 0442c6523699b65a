"""Small tensors from the device to the host, without the training thread waiting for them.

Covers: tensors of the host and of any number of CUDA devices, in one transfer per device.
Does not cover: other kinds of devices, whose tensors stay where they are.
"""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

_POLL_S = 0.0005


class Transfer:
    """A set of tensors on their way to the host.

    Those of a CUDA device are joined into one buffer and copied to pinned memory on the current stream, behind the work
    that computes them, and an event marks the end. To pageable memory the copy would wait for the device; without an
    event nobody could know when the numbers are there.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._host = {name: x for name, x in tensors.items() if x.device.type != "cuda"}
        self._events: list[torch.cuda.Event] = []
        self._joined: list[tuple[Tensor, dict[str, Tensor]]] = []
        for device in {x.device for x in tensors.values() if x.device.type == "cuda"}:
            on_device = {name: x for name, x in tensors.items() if x.device == device}
            joined = join(on_device)
            pinned = torch.empty(joined.shape, dtype=joined.dtype, pin_memory=True)
            pinned.copy_(joined, non_blocking=True)
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self._events.append(event)
            self._joined.append((pinned, on_device))

    @property
    def done(self) -> bool:
        """Whether everything has arrived."""
        return all(event.query() for event in self._events)  # type: ignore[no-untyped-call]

    def wait(self) -> dict[str, Tensor]:
        """The tensors on the host. For the writer's thread: it sleeps between polls, and `synchronize` would spin."""
        while not self.done:
            time.sleep(_POLL_S)
        while self._joined:
            pinned, on_device = self._joined.pop()
            self._host |= split(pinned, on_device)
        return self._host


def join(tensors: Mapping[str, Tensor]) -> Tensor:
    """Join all numbers in one dimension, as float64: counts stay whole up to 2^53."""
    return torch.cat([x.reshape(-1).to(torch.float64) for x in tensors.values()])


def split(joined: Tensor, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Split what `join` joined; of the tensors in `like` only shapes and types are read."""
    parts = torch.split(joined, [x.numel() for x in like.values()])
    return {name: part.view(x.shape).to(x.dtype) for (name, x), part in zip(like.items(), parts, strict=True)}
