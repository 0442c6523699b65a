"""The rank of this process, and how the recorders of a distributed trainer's ranks find the one run they share.

Rank 0 makes the run's folder and publishes its id in the key-value store that `torch.distributed` keeps anyway. That is
not a collective: a trainer that makes a recorder on rank 0 alone waits for nobody.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import torch.distributed as distributed

log = logging.getLogger("esper_recorder")

JOIN_SECONDS = 60.0
"""How long a rank waits for rank 0 to make the run."""

_counters: dict[str, Iterator[int]] = {}  # name -> how many recorders of that name this process made before


def current_rank() -> int:
    """Return torch.distributed's rank; before it is initialised, RANK as torchrun sets it; else 0."""
    if _initialised():
        return distributed.get_rank()
    rank, size = os.environ.get("RANK", ""), os.environ.get("WORLD_SIZE", "")
    return int(rank) if rank.isdigit() and size.isdigit() and int(rank) < int(size) else 0


class Rendezvous:
    """Where rank 0 publishes the id of the run, and the others fetch it.

    Every rank must make its recorders of one name in the same order.
    """

    def __init__(self, name: str, rank: int) -> None:
        self._store = _store()
        if self._store is not None:
            self._key = f"esper_recorder/{name}/{next(_counters.setdefault(name, itertools.count()))}"
        self._rank = rank

    def publish(self, run_id: str | None) -> None:
        """Publish rank 0's run, or None if it could not be made. Other ranks publish nothing."""
        if self._store is not None and self._rank == 0:
            self._store.set(self._key, run_id or "")

    def fetch(self) -> str | None:
        """Wait for the run to join; None for rank 0, or if there is not a store.

        Raises OSError if rank 0 made no run.
        """
        if self._store is None or self._rank == 0:
            return None
        try:
            self._store.wait([self._key], timedelta(seconds=JOIN_SECONDS))
            run_id: str = self._store.get(self._key).decode()
        except RuntimeError as error:  # torch's DistStoreError is one
            raise TimeoutError(f"rank 0 made no recorder of this name within {JOIN_SECONDS:.0f} s") from error
        if not run_id:
            raise OSError("rank 0 could not make the run")
        return run_id


def _initialised() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _store() -> Any:
    """Return the store of the default process group; None without one, or if this torch keeps it elsewhere."""
    if not _initialised():
        return None
    try:
        from torch.distributed.distributed_c10d import _get_default_store

        return _get_default_store()
    except (ImportError, AttributeError, RuntimeError):
        log.warning("This version of torch hides the store that the ranks share: give each rank `run_id=`.")
        return None
