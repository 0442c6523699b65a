"""The rank of this process, and how the recorders of a distributed trainer's ranks find the one run they share.

Rank 0 makes the run's folder and publishes its id in the key-value store that `torch.distributed` keeps anyway. That is
not a collective: a trainer that makes a recorder on rank 0 alone waits for nobody.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterator, Mapping
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch.distributed as distributed

from esper_recorder.storage.interrupts import signals_deferred
from esper_recorder.storage.jsonable import to_jsonable
from esper_recorder.storage.listing import last_update
from esper_recorder.storage.manifest import loaded_versions
from esper_recorder.storage.run_folder import RunFolder

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


def open_run_folder(
    root: Path,
    name: str,
    *,
    rank: int | None,
    run_id: str | None,
    resume: str | None,
    from_update: int | None,
    about: Mapping[str, Any],
) -> RunFolder:
    """Make the run's folder, or resume it; on another rank than 0 wait for it and join it.

    Args:
        root, name, run_id, resume, from_update: as for `Recorder`.
        rank: of this process; None asks torch.distributed.
        about: what run.json says of the run.
    """
    rank = current_rank() if rank is None else rank
    rendezvous = Rendezvous(name, rank)
    shared = run_id or rendezvous.fetch() or resume
    if rank and shared is not None:
        return RunFolder.join(root, shared, rank=rank, rules=about["rules"], patience=JOIN_SECONDS)
    if rank:
        log.warning(
            "Rank %d records into a separate run. To have one run for all ranks make the Recorder after "
            "torch.distributed is initialised, or give all of them the same run_id.",
            rank,
        )
    as_text: list[str] = []
    config = to_jsonable(about["config"], texts=as_text)
    if as_text:
        more = f" and {len(as_text) - 10} more" if len(as_text) > 10 else ""
        keys = ", ".join(as_text[:10]) + more
        log.warning("run.json keeps as text, or leaves out, what it cannot hold of config: %s.", keys)
    manifest = {**about, "config": config, "versions": loaded_versions()}
    folder: RunFolder | None = None
    try:
        with signals_deferred:  # a folder half made would stay locked by this process
            if resume is None:
                folder = RunFolder.create(root, name, rank=rank, run_id=run_id, **manifest)
            else:
                first = last_update(root / resume) + 1 if from_update is None else from_update
                folder = RunFolder.resume(root, resume, from_update=first, rank=rank, **manifest)
        rendezvous.publish(folder.run_id)
        return folder
    except BaseException as error:
        if folder is None:
            rendezvous.publish(None)
        else:
            folder.abandon(error)
        raise


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
