"""Copies of an open update's minibatches on their way to the host, for the case that the device fails.

After a device-side assert nothing on a CUDA device can be read any more, the minibatches that wait there for the end of
the update included. So each is also copied to pinned memory, behind the work that makes it and without a wait, and
after it a mark: what has its mark has arrived, and can be read whatever became of the device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from esper_recorder.arguments import FieldKey
from esper_recorder.capture.minibatch_buffer import MinibatchNotes

DEVICES = ("cuda",)
"""Types of devices that fail as a whole. What is on the host needs no second copy."""


@dataclass(frozen=True, slots=True)
class _Staged:
    names: Sequence[FieldKey]
    values: Tensor
    """[fields, n] on the host, without a meaning before it has arrived."""
    mark: Tensor
    """[1] on the host: 1 once `values` have arrived."""
    notes: MinibatchNotes


@dataclass(slots=True)
class Staging:
    """The minibatches of the open update."""

    _staged: list[_Staged] = field(default_factory=list)

    def add(self, names: Sequence[FieldKey], values: Tensor, notes: MinibatchNotes) -> None:
        """Send a minibatch off: its fields [fields, n] by name. Does nothing where its device cannot fail."""
        if values.device.type in DEVICES:
            host = to_pinned(values)
            self._staged.append(_Staged(names, host, to_pinned(torch.ones_like(values[0, :1])), notes))

    def clear(self) -> None:
        """The update is over."""
        self._staged.clear()

    def arrived(self) -> Iterator[tuple[dict[FieldKey, Tensor], MinibatchNotes]]:
        """The minibatches that are on the host: fields by name, each [n], and their notes.

        Gradient norms that are only on the device count as not seen. Fields of action heads are left out.
        """
        for staged in self._staged:
            if bool(staged.mark.all()):
                norm_seen = staged.notes.grad_norm is not None
                named = zip(staged.names, staged.values.unbind(), strict=True)
                fields: dict[FieldKey, Tensor] = {name: x for name, x in named if isinstance(name, str)}
                yield fields, replace(staged.notes, norm_seen=norm_seen)


def to_pinned(tensor: Tensor) -> Tensor:
    """A copy in pinned memory that arrives when the device gets to it; zeros until then."""
    host = torch.zeros(tensor.shape, dtype=tensor.dtype, device="cpu", pin_memory=True)
    return host.copy_(tensor, non_blocking=True)
