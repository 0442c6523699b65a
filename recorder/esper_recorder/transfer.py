"""Small tensors from the device to the host, polled and never waited for by the training thread."""

from __future__ import annotations

import time
from collections.abc import Mapping

import torch
from torch import Tensor

_POLL_S = 0.0005


class Transfer:
    """A set of tensors on their way to the host.

    Tensors on the host are taken as they are. Those on a CUDA device are copied to pinned memory on the current
    stream, behind the work that makes them, and an event marks the end.
    """

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._host: dict[str, Tensor] = {}
        self._events: list[torch.cuda.Event] = []
        devices = set()
        for name, tensor in tensors.items():
            if tensor.device.type != "cuda":
                self._host[name] = tensor
                continue
            pinned = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            pinned.copy_(tensor, non_blocking=True)
            self._host[name] = pinned
            devices.add(tensor.device)
        for device in devices:
            event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            event.record(torch.cuda.current_stream(device))
            self._events.append(event)

    @property
    def done(self) -> bool:
        """Whether everything has arrived."""
        return all(event.query() for event in self._events)  # type: ignore[no-untyped-call]

    def wait(self) -> dict[str, Tensor]:
        """The tensors on the host. For the writer thread: sleeps between looks, so that the device is not spun on."""
        while not self.done:
            time.sleep(_POLL_S)
        return self._host
