"""The folder of a run that is being recorded: its name, manifest, rules, lock and heartbeat.

Covers:
* Two runs never share a folder: it is made exclusively. Two recorders never share an attempt and rank: it is locked.
* run.json is the old one or the new one at any moment, whatever rank changes it.
* A forked child changes nothing: every call checks that this process opened the folder.
* On a disk that has filled up meanwhile, the end can still be written: space for it is reserved.

Does not cover: a folder that is moved or deleted while it is recorded to (an OSError), and the rows: those are the
sink's.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import logging
import os
import platform as platform_module
import re
import secrets
import socket
import string
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import SCHEMA_VERSION
from esper_recorder.storage.atomic import atomic_file, make_folders, sync_folder
from esper_recorder.storage.jsonable import describe_error, to_jsonable
from esper_recorder.storage.listing import irregular_files, last_update
from esper_recorder.storage.lock import acquire_lock, manifest_lock, release_lock
from esper_recorder.storage.manifest import (
    HEARTBEAT_FILE,
    MANIFEST_FILE,
    Attempt,
    DropCounts,
    Manifest,
    ManifestError,
    how_it_ended,
    is_recorded_elsewhere,
    read_manifest,
    write_manifest,
)
from esper_recorder.storage.reserve import Reserve
from esper_recorder.storage.safe_files import folders_in, is_regular, make_folder, open_regular

log = logging.getLogger("esper_recorder")

HEARTBEAT_SECONDS = 5.0
_ALPHABET = string.ascii_lowercase + string.digits
_LONGEST_NAME = 100

_NO_END = {"ended": None, "how": None, "error": None}

RulesText = tuple[str | None, str]
"""(profile or None, the full text of the rules)"""


class RunFolderError(ValueError):
    """A run's folder cannot be made, resumed or joined; the message says why."""


class RunFolder:
    """A run's folder in the hands of the process that records it. Make one by `create`, `resume` or `join`."""

    def __init__(self, path: Path, manifest: Manifest, attempt: Attempt, lock: int) -> None:
        self.path = path
        self.manifest = manifest
        self.run_id = manifest.run_id
        self.attempt = attempt.attempt
        self.rank = attempt.rank
        self.from_update = attempt.from_update
        self._lock = lock
        self._reserve = Reserve(path, attempt.rank)
        self._pid = os.getpid()
        self._last_beat = -HEARTBEAT_SECONDS
        self._finished = False

    @classmethod
    def create(
        cls,
        root: str | Path,
        name: str = "run",
        *,
        rules: RulesText | None = None,
        rank: int = 0,
        run_id: str | None = None,
        **about: Any,
    ) -> RunFolder:
        """Make the folder of a new run under `root` (made if it does not exist) and take its lock.

        Args:
            name: first part of the run's id; characters that a file name should not have become `-`.
            rules: those the run is watched with, if it is.
            run_id: the whole id, instead of one made from the name.
            about: fields of the manifest: trainer, definition, config (what JSON cannot hold becomes its text),
                versions, level, total_updates, total_steps.

        Raises:
            RunFolderError: the run_id is taken, or is not a name for a folder.
            OSError: the folder or a file in it cannot be written.
        """
        root = Path(root)
        if run_id is not None and _file_name(run_id) != run_id:
            raise RunFolderError(f"run_id {run_id!r} is not a name for a folder; {_file_name(run_id)!r} would be one")
        make_folders(root)
        path = _make_folder(root, name, datetime.now(UTC)) if run_id is None else _make_named_folder(root, run_id)
        with _locked(path, rank) as lock:
            if lock is None:
                raise OSError(f"{path} was locked by another process the moment it was made")
            sync_folder(root)
            attempt = _open_attempt(rank=rank)
            about = {"definition": "pooled", "level": "normal", **about}
            jsonable = {key: to_jsonable(value) for key, value in about.items()}
            manifest = Manifest(path.name, name, attempt.started, **jsonable)
            return cls._opened(path, manifest, attempt, rules, lock)

    @classmethod
    def resume(
        cls,
        root: str | Path,
        run_id: str,
        *,
        from_update: int | None = None,
        rules: RulesText | None = None,
        rank: int = 0,
        **about: Any,
    ) -> RunFolder:
        """Open the next attempt of a run under `root` and take its lock.

        Args:
            run_id: the run's id (or its folder's name, if that was changed).
            from_update: the update the attempt begins with; rows of earlier attempts from there on are superseded.
                The default continues after the last update that is recorded.
            rules: those the attempt is watched with; None keeps the old ones.
            about: fields of the manifest, as for `create`; None keeps the old value.

        Raises:
            RunFolderError: the run does not exist, it is being recorded, its folder is a link or holds one, or
                `from_update` is below 1.
            ManifestError: its run.json is damaged.
            OSError: the folder cannot be written.
        """
        if from_update is not None and from_update < 1:
            raise RunFolderError(f"from_update is {from_update}, but updates count from 1")
        path = _find_run(Path(root), run_id)
        for file in irregular_files(path):
            raise RunFolderError(f"{file.path}: {file.reason}. Move it out of the run's folder, then resume the run")
        with _locked(path, rank) as lock:
            manifest = read_manifest(path)
            previous = manifest.last_attempt
            if lock is None or is_recorded_elsewhere(path, manifest):
                who = f" by process {previous.pid} on {previous.host}" if previous and previous.pid else ""
                raise RunFolderError(
                    f"the run {run_id} is still being recorded{who}, so it cannot be resumed; end that process first"
                )
            attempt = _open_attempt(
                attempt=1 + (previous.attempt if previous else 0),
                rank=rank,
                from_update=from_update if from_update is not None else last_update(path) + 1,
            )
            changes = {key: to_jsonable(value) for key, value in about.items() if value is not None}
            return cls._opened(path, dataclasses.replace(manifest, **changes), attempt, rules, lock)

    @classmethod
    def join(
        cls, root: str | Path, run_id: str, *, rank: int, rules: RulesText | None = None, patience: float
    ) -> RunFolder:
        """Record as another rank into the attempt of rank 0; wait for rank 0 to open it if need be.

        Args:
            run_id: the run's id, as rank 0 published it or received it.
            rules: those this rank is watched with; the manifest names rank 0's.
            patience: seconds to wait for rank 0.

        Raises:
            RunFolderError: this rank records to the run already.
            TimeoutError: rank 0 did not open it.
            OSError: the folder cannot be written.
        """
        path = Path(root) / run_id
        opened = _wait_for_attempt(path, rank, patience)
        with _locked(path, rank) as lock:
            if lock is None:
                raise RunFolderError(f"rank {rank} of the run {run_id} is recorded by another process already")
            if rules is not None:
                keep_rules(path, rules[1])
            attempt = _open_attempt(attempt=opened.attempt, rank=rank, from_update=opened.from_update)
            folder = cls(path, read_manifest(path), attempt, lock)
            folder._write(lambda manifest: dataclasses.replace(manifest, attempts=(*manifest.attempts, attempt)))
        folder.beat()
        folder._reserve_space()
        return folder

    def change(self, **fields: Any) -> None:
        """Change top-level fields of the manifest (definition, level, total_updates, ...). Raises OSError."""
        if self._mine:
            self._write(lambda manifest: dataclasses.replace(manifest, **fields))

    def beat(self) -> None:
        """Show other hosts that the run is alive; touches its file every few seconds only. Raises OSError."""
        now = time.monotonic()
        if self._mine and now - self._last_beat >= HEARTBEAT_SECONDS:
            self._last_beat = now
            descriptor = open_regular(self.path / HEARTBEAT_FILE, os.O_WRONLY | os.O_CREAT)
            try:
                os.utime(descriptor)
            finally:
                os.close(descriptor)

    def make_space_for_gaps(self) -> None:
        """Give free the space that is reserved for the last gaps, before they are written. Raises OSError."""
        if self._mine:
            self._reserve.make_space_for_gaps()

    def finish(
        self, how: str, error: str | None = None, updates: int | None = None, dropped: DropCounts | None = None
    ) -> None:
        """Write how the attempt ended and release the lock. Later calls do nothing.

        Args:
            how: `finished`, or `raised` with the error's text.
            updates: number of updates the trainer made in this attempt.
            dropped: what could not be recorded.

        Raises:
            OSError: run.json could not be written (the lock is released all the same).
        """
        if how not in ("finished", "raised"):
            raise ValueError(f"how is {how!r}; a recorder ends as finished or raised")
        if not self._mine:
            return
        self._finished = True
        end: dict[str, Any] = {"ended": datetime.now(UTC), "how": how, "error": error, "updates": updates}
        end["dropped"] = dropped or DropCounts()
        try:
            with contextlib.suppress(OSError):  # the folder is gone: the next line says so
                self._reserve.release()
            self._write(lambda manifest: self._with_end(manifest, **end))
        finally:
            self.release()

    def reopen(self, **fields: Any) -> bool:
        """Continue the attempt after it has finished, and change fields of the manifest, as `create` takes them.

        Returns False, and changes nothing, if it did not finish, was resumed meanwhile, or its folder has gone.
        """
        if not self._finished or os.getpid() != self._pid or self._is_resumed():
            return False
        try:
            with _locked(self.path, self.rank) as lock:
                if lock is None:
                    return False
                self._lock, self._finished = lock, False
                changes = {key: to_jsonable(value) for key, value in fields.items()}
                self._write(lambda manifest: dataclasses.replace(self._with_end(manifest, **_NO_END), **changes))
        except OSError:
            self._finished = True
            return False
        self._reserve_space()
        return True

    def abandon(self, error: BaseException) -> None:
        """Write that recording could not begin, as far as that is possible, and release the lock."""
        with contextlib.suppress(Exception):
            self.finish("raised", error=f"the recording did not begin: {describe_error(error)}", updates=0)

    def release(self) -> None:
        """Release the lock without writing an end: an attempt without one counts as killed."""
        if os.getpid() == self._pid:
            self._finished = True
            release_lock(self._lock)

    def _with_end(self, manifest: Manifest, **end: Any) -> Manifest:
        process = self.attempt, self.rank
        attempts = (dataclasses.replace(a, **end) if a.process == process else a for a in manifest.attempts)
        return dataclasses.replace(manifest, attempts=tuple(attempts))

    def _is_resumed(self) -> bool:
        """Whether the attempt is no longer the last, or did not finish; also if nobody can say."""
        try:
            newest = read_manifest(self.path).last_attempts
        except ManifestError:
            return True
        return [a.how for a in newest if a.process == (self.attempt, self.rank)] != ["finished"]

    def _reserve_space(self) -> None:
        try:
            self._reserve.fill((self.path / MANIFEST_FILE).stat().st_size)
        except OSError as error:
            message = "No space is reserved for the end of run %s (%s): if the disk is full, it cannot be written."
            log.warning(message, self.run_id, error)

    @property
    def _mine(self) -> bool:
        return not self._finished and os.getpid() == self._pid

    def _write(self, change: Callable[[Manifest], Manifest]) -> None:
        """Change run.json, which other ranks change too."""
        with manifest_lock(self._lock):
            try:
                newest = read_manifest(self.path)
            except ManifestError:
                newest = self.manifest
            self.manifest = change(newest)
            write_manifest(self.path, self.manifest)

    @classmethod
    def _opened(cls, path: Path, manifest: Manifest, attempt: Attempt, rules: RulesText | None, lock: int) -> RunFolder:
        """Write the manifest with a further attempt."""
        if rules is not None:
            profile, text = rules
            manifest = dataclasses.replace(manifest, rules_profile=profile, rules_sha256=keep_rules(path, text))
        manifest = dataclasses.replace(
            manifest,
            host=attempt.host,
            platform=platform_module.platform(),
            schema_version=SCHEMA_VERSION,
            attempts=(*manifest.attempts, attempt),
        )
        folder = cls(path, manifest, attempt, lock)
        folder.beat()
        write_manifest(path, manifest)
        folder._reserve_space()
        return folder


def keep_rules(path: Path, text: str) -> str:
    """Keep the text of a run's rules as `rules/<sha256>.toml` in its folder; return the sha256. Raises OSError."""
    data = text.encode()
    sha256 = hashlib.sha256(data).hexdigest()
    folder = path / "rules"
    make_folder(folder)
    file = folder / f"{sha256}.toml"
    if not is_regular(file):
        with atomic_file(file, durable=True) as stream:
            stream.write(data)
    return sha256


@contextlib.contextmanager
def _locked(path: Path, rank: int) -> Iterator[int | None]:
    """Take a rank's lock and keep it unless the block raises; None if another recorder has it."""
    lock = acquire_lock(path, rank)
    try:
        yield lock
    except BaseException:
        if lock is not None:
            release_lock(lock)
        raise


def _open_attempt(*, attempt: int = 1, rank: int = 0, from_update: int = 1) -> Attempt:
    """An attempt of this process that begins now."""
    return Attempt(
        attempt=attempt,
        rank=rank,
        pid=os.getpid(),
        host=socket.gethostname(),
        started=datetime.now(UTC),
        from_update=from_update,
    )


def _wait_for_attempt(path: Path, rank: int, patience: float) -> Attempt:
    """Wait for an open attempt of rank 0 that this rank does not record yet."""
    until = time.monotonic() + patience
    reason = f"rank 0 did not open the run {path} within {patience:.0f} s"
    while True:
        with contextlib.suppress(ManifestError):  # the run does not exist yet
            manifest = read_manifest(path)
            last = manifest.last_attempts
            opened = next((a for a in last if a.rank == 0 and a.how is None), None)
            if opened and how_it_ended(path, manifest) == "live":
                if all(a.rank != rank for a in last):
                    return opened
                reason = (
                    f"another process records, or has recorded, rank {rank} of this attempt of {path}, and rank 0 "
                    f"opened no further one within {patience:.0f} s"
                )
        if time.monotonic() >= until:
            raise TimeoutError(reason)
        time.sleep(0.05)


def _file_name(name: str) -> str:
    """Replace what a file name should not have."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:_LONGEST_NAME] or "run"


def _make_named_folder(root: Path, run_id: str) -> Path:
    path = root / run_id
    try:
        path.mkdir()
    except FileExistsError:
        raise RunFolderError(
            f"there is a run {run_id} under {root} already; give another run_id, or resume={run_id!r} to continue it"
        ) from None
    return path


def _make_folder(root: Path, name: str, now: datetime) -> Path:
    while True:
        # `secrets` leaves the trainer's random streams alone.
        characters = "".join(secrets.choice(_ALPHABET) for _ in range(6))
        path = root / f"{_file_name(name)}-{now:%Y%m%dT%H%M%SZ}-{characters}"
        with contextlib.suppress(FileExistsError):
            path.mkdir()
            return path


def _find_run(root: Path, run_id: str) -> Path:
    if (root / run_id).is_symlink():
        raise RunFolderError(f"{root / run_id} is a link, which is not followed. Resume the run it leads to")
    if (root / run_id / MANIFEST_FILE).is_file():
        return root / run_id
    names = sorted(path.name for path in folders_in(root) if (path / MANIFEST_FILE).is_file())
    for name in names:
        with contextlib.suppress(ManifestError):
            if read_manifest(root / name).run_id == run_id:
                return root / name
    if not names:
        raise RunFolderError(f"there is no run {run_id} to resume: {root} holds no runs")
    raise RunFolderError(f"there is no run {run_id} under {root} to resume. {suggest(run_id, names, kind='runs')}")
