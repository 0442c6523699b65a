"""Minibatches of a rollout whose transitions are known beforehand: only what is new of them is copied.

What a minibatch holds of the rollout (old log-probabilities, advantages, returns, old values) is told by the positions
of its transitions. Looking it up once for a whole update costs a few operations; copying it from every minibatch costs
as much as all else that is done there.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from esper_recorder.arguments import BadCall
from esper_recorder.capture.minibatch_buffer import MinibatchNotes, Piece, reduce_held

NEW = ("new_log_prob", "entropy", "value")
"""What a minibatch brings itself, in the order it is held."""

_Index = np.ndarray[tuple[int], np.dtype[np.int64]]


@dataclass(slots=True)
class KnownRing:
    """The minibatches of one rollout on the host, copied and not yet reduced.

    Attributes:
        limit: how many transitions are held before they are to be reduced.
        pessimistic_value_clip, per_minibatch: as for `MinibatchRing`.
    """

    limit: int = 1 << 21
    pessimistic_value_clip: bool = True
    per_minibatch: bool = False
    _rollout: Mapping[str, Tensor] = field(default_factory=dict)
    _held: list[Tensor] = field(default_factory=list)
    _index: list[_Index] = field(default_factory=list)
    _notes: list[MinibatchNotes] = field(default_factory=list)
    _transitions: int = 0

    def __len__(self) -> int:
        return len(self._notes)

    @property
    def last(self) -> MinibatchNotes | None:
        """The notes of the newest minibatch."""
        return self._notes[-1] if self._notes else None

    @property
    def full(self) -> bool:
        """Whether what is there should be reduced before more comes."""
        return self._transitions >= self.limit

    def begin(self, rollout: Mapping[str, Tensor]) -> None:
        """Take note of what is known of every transition: float tensors [transitions] by field, copied."""
        self._rollout = {name: x.detach().clone() for name, x in rollout.items()}

    def append(
        self, new_log_prob: Tensor, entropy: Tensor, value: Tensor, index: _Index, notes: MinibatchNotes
    ) -> None:
        """Copy a minibatch in.

        Args:
            new_log_prob, entropy, value: what `NEW` names, [n], of which the last may be [n, 1]; on the host.
            index: position of each transition in the rollout, [n].
            notes: what else is known.

        Raises:
            BadCall: the lengths differ; the minibatch is not taken.
        """
        held = torch.cat((new_log_prob.detach(), entropy.detach(), value.detach().reshape(-1)))
        n = len(index)
        if len(held) != len(NEW) * n:
            new = zip(NEW, (new_log_prob, entropy, value), strict=True)
            lengths = ", ".join(f"{name} has {x.numel()}" for name, x in new)
            raise BadCall(f"the tensors of a minibatch have different lengths: index has {n}, {lengths}")
        self._held.append(held)
        self._index.append(index.copy())
        self._notes.append(notes)
        self._transitions += n

    def clear(self) -> None:
        """Forget the minibatches and the rollout."""
        self._rollout = {}
        self._forget()

    @torch.no_grad()
    def reduce(self) -> Piece | None:
        """Reduce all minibatches and forget them; None where there are none."""
        if not self._notes:
            return None
        lengths = [len(index) for index in self._index]
        width = max(*lengths, 1)
        held = _wide(self._held)
        if min(lengths) == width:
            index = torch.from_numpy(np.stack(self._index))
            new = torch.stack(held).view(len(held), len(NEW), width)
        else:
            index = torch.full((len(lengths), width), -1, dtype=torch.int64)
            new = torch.zeros((len(lengths), len(NEW), width), dtype=held[0].dtype)
            for row, (n, own, values) in enumerate(zip(lengths, self._index, held, strict=True)):
                index[row, :n] = torch.from_numpy(own)
                new[row, :, :n] = values.view(len(NEW), n)
        at = index.clamp(min=0).flatten()
        fields = {name: x.index_select(0, at).view(index.shape) for name, x in self._rollout.items()}
        fields |= dict(zip(NEW, new.unbind(dim=1), strict=True))
        piece = reduce_held(
            fields,
            [],
            tuple(self._notes),
            lengths,
            index=index,
            pessimistic_value_clip=self.pessimistic_value_clip,
            per_minibatch=self.per_minibatch,
        )
        self._forget()
        return piece

    def _forget(self) -> None:
        self._held, self._index, self._notes, self._transitions = [], [], [], 0


def _wide(tensors: list[Tensor]) -> list[Tensor]:
    """All of one type: float32, or float64 where one is of it."""
    dtypes = {x.dtype for x in tensors}
    if dtypes == {torch.float32}:
        return tensors
    dtype = torch.float64 if torch.float64 in dtypes else torch.float32
    return [x.to(dtype) for x in tensors]
