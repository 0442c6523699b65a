"""The folder of a run that is being recorded: its name, manifest, rules, lock and heartbeat."""

from __future__ import annotations

import dataclasses
import hashlib
import os
import platform as platform_module
import re
import secrets
import socket
import string
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import SCHEMA_VERSION
from esper_recorder.storage.listing import last_update
from esper_recorder.storage.lock import acquire_lock, changing, release_lock
from esper_recorder.storage.manifest import (
    HEARTBEAT_FILE,
    MANIFEST_FILE,
    Attempt,
    Lost,
    Manifest,
    ManifestError,
    heartbeat_is_young,
    how_it_ended,
    plain_json,
    read_manifest,
    write_manifest,
)
from esper_recorder.storage.parquet import sync_folder

HEARTBEAT_SECONDS = 5.0
_ALPHABET = string.ascii_lowercase + string.digits
_LONGEST_NAME = 100


class RunFolderError(ValueError):
    """What was asked of a run's folder cannot be; the message is a sentence for a person."""


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
        self._pid = os.getpid()
        self._beaten = -HEARTBEAT_SECONDS
        self._finished = False

    @classmethod
    def create(
        cls,
        root: str | Path,
        name: str = "run",
        *,
        trainer: Mapping[str, Any] | None = None,
        definition: str = "pooled",
        config: Any = None,
        versions: Mapping[str, str] | None = None,
        level: str | None = "normal",
        rules: tuple[str | None, str] | None = None,
        total_updates: int | None = None,
        total_steps: int | None = None,
        rank: int = 0,
        run_id: str | None = None,
    ) -> RunFolder:
        """Make the folder of a new run under `root` (made if it is not there) and take its lock.

        Args:
            name: first part of the run's id; what a file name should not hold becomes `-`.
            run_id: the whole id, in place of one made of the name.
            trainer: `{"name": ...}` and whatever else tells the trainer.
            config: anything; what JSON cannot hold is kept as its text.
            rules: (profile or None, the full text of the rules), or None for a run that is not watched.

        Raises:
            RunFolderError: there is a run of this run_id, or it is no name for a folder.
            OSError: the folder or a file in it cannot be written.
        """
        root = Path(root)
        if run_id is not None and _plain(run_id) != run_id:
            raise RunFolderError(f"run_id {run_id!r} is no name for a folder; {_plain(run_id)!r} would be one")
        root.mkdir(parents=True, exist_ok=True)
        now = datetime.now(UTC)
        path = _make_folder(root, name, now) if run_id is None else _make_named_folder(root, run_id)
        lock = acquire_lock(path, rank)
        if lock is None:
            raise OSError(f"{path} was locked by another process the moment it was made")
        try:
            sync_folder(root)
            host = socket.gethostname()
            attempt = Attempt(attempt=1, rank=rank, pid=os.getpid(), host=host, started=now)
            manifest = Manifest(
                run_id=path.name,
                name=name,
                started=now,
                trainer=dict(trainer or {}),
                definition=definition,
                config=plain_json(config),
                versions=dict(versions or {}),
                host=host,
                platform=platform_module.platform(),
                level=level,
                total_updates=total_updates,
                total_steps=total_steps,
                attempts=(attempt,),
                schema_version=SCHEMA_VERSION,
            )
            return cls._opened(path, manifest, attempt, rules, lock)
        except BaseException:
            release_lock(lock)
            raise

    @classmethod
    def resume(
        cls,
        root: str | Path,
        run_id: str,
        *,
        from_update: int | None = None,
        trainer: Mapping[str, Any] | None = None,
        definition: str | None = None,
        config: Any = None,
        versions: Mapping[str, str] | None = None,
        level: str | None = None,
        rules: tuple[str | None, str] | None = None,
        total_updates: int | None = None,
        total_steps: int | None = None,
        rank: int = 0,
    ) -> RunFolder:
        """Open the next attempt of a run under `root` and take its lock. An argument that is None keeps what was.

        Args:
            run_id: the run's id (or its folder's name, where that was changed).
            from_update: the update the attempt begins with; rows of earlier attempts from there on are superseded.
                The default continues after the last update that is recorded.

        Raises:
            RunFolderError: there is no such run, it is being recorded, or `from_update` is below 1.
            ManifestError: its run.json is damaged.
            OSError: the folder cannot be written.
        """
        if from_update is not None and from_update < 1:
            raise RunFolderError(f"from_update is {from_update}, but updates count from 1")
        path = _find_run(Path(root), run_id)
        lock = acquire_lock(path, rank)
        try:
            manifest = read_manifest(path)
            previous = manifest.last_attempt
            if lock is None or _recorded_elsewhere(path, manifest):
                who = f" by process {previous.pid} on {previous.host}" if previous and previous.pid else ""
                raise RunFolderError(
                    f"the run {run_id} is still being recorded{who}, so it cannot be resumed; end that process first"
                )
            host = socket.gethostname()
            attempt = Attempt(
                attempt=1 + (previous.attempt if previous else 0),
                rank=rank,
                pid=os.getpid(),
                host=host,
                started=datetime.now(UTC),
                from_update=from_update if from_update is not None else last_update(path) + 1,
            )
            changes = {
                "trainer": trainer,
                "definition": definition,
                "config": plain_json(config),
                "versions": versions,
                "level": level,
                "total_updates": total_updates,
                "total_steps": total_steps,
            }
            manifest = dataclasses.replace(
                manifest,
                **{key: value for key, value in changes.items() if value is not None},
                host=host,
                platform=platform_module.platform(),
                schema_version=SCHEMA_VERSION,
                attempts=(*manifest.attempts, attempt),
            )
            return cls._opened(path, manifest, attempt, rules, lock)
        except BaseException:
            if lock is not None:
                release_lock(lock)
            raise

    @classmethod
    def join(
        cls,
        root: str | Path,
        run_id: str,
        *,
        rank: int,
        rules: tuple[str | None, str] | None = None,
        patience: float,
    ) -> RunFolder:
        """Record as another rank into the attempt that rank 0 has opened, and wait for it to do so if need be.

        Args:
            run_id: the run's id, as rank 0 gave it or was given it.
            rules: (profile or None, their text) this rank watches itself with; the manifest tells rank 0's.
            patience: seconds to wait for rank 0.

        Raises:
            RunFolderError: this rank records to the run already.
            TimeoutError: rank 0 did not open it.
            OSError: the folder cannot be written.
        """
        path = Path(root) / run_id
        opened = _wait_for_attempt(path, rank, patience)
        lock = acquire_lock(path, rank)
        if lock is None:
            raise RunFolderError(f"rank {rank} of the run {run_id} is recorded by another process already")
        try:
            if rules is not None:
                keep_rules(path, rules[1])
            attempt = dataclasses.replace(
                opened, rank=rank, pid=os.getpid(), host=socket.gethostname(), started=datetime.now(UTC)
            )
            folder = cls(path, read_manifest(path), attempt, lock)
            folder._write(lambda manifest: dataclasses.replace(manifest, attempts=(*manifest.attempts, attempt)))
        except BaseException:
            release_lock(lock)
            raise
        folder.beat()
        return folder

    def change(self, **fields: Any) -> None:
        """Change top-level fields of the manifest (definition, level, total_updates, ...). Raises OSError."""
        if self._mine:
            self._write(lambda manifest: dataclasses.replace(manifest, **fields))

    def beat(self) -> None:
        """Tell other hosts that the run is alive; does something every few seconds only. Raises OSError."""
        now = time.monotonic()
        if self._mine and now - self._beaten >= HEARTBEAT_SECONDS:
            self._beaten = now
            path = self.path / HEARTBEAT_FILE
            try:
                os.utime(path)
            except FileNotFoundError:
                path.touch()

    def finish(self, how: str, error: str | None = None, updates: int | None = None, lost: Lost | None = None) -> None:
        """Write how the attempt ended and release the lock. Later calls do nothing.

        Args:
            how: `finished`, or `raised` with the error in words.
            updates: number of updates the trainer made in this attempt.
            lost: what could not be recorded.

        Raises:
            OSError: run.json could not be written (the lock is released all the same).
        """
        if how not in ("finished", "raised"):
            raise ValueError(f"how is {how!r}; a recorder can tell finished or raised")
        if not self._mine:
            return
        self._finished = True
        now = datetime.now(UTC)
        ends = {"ended": now, "how": how, "error": error, "updates": updates, "lost": lost or Lost()}

        def ended(manifest: Manifest) -> Manifest:
            attempts = tuple(
                dataclasses.replace(a, **ends) if (a.attempt, a.rank) == (self.attempt, self.rank) else a  # type: ignore[arg-type]
                for a in manifest.attempts
            )
            return dataclasses.replace(manifest, attempts=attempts)

        try:
            self._write(ended)
        finally:
            self.release()

    def release(self) -> None:
        """Release the lock without writing an end: an attempt without one counts as killed."""
        if os.getpid() == self._pid:
            self._finished = True
            release_lock(self._lock)

    @property
    def _mine(self) -> bool:
        return not self._finished and os.getpid() == self._pid

    def _write(self, change: Callable[[Manifest], Manifest]) -> None:
        """Change run.json, which other ranks change too."""
        with changing(self._lock):
            try:
                newest = read_manifest(self.path)
            except ManifestError:
                newest = self.manifest
            self.manifest = change(newest)
            write_manifest(self.path, self.manifest)

    @classmethod
    def _opened(
        cls, path: Path, manifest: Manifest, attempt: Attempt, rules: tuple[str | None, str] | None, lock: int
    ) -> RunFolder:
        if rules is not None:
            profile, text = rules
            sha256 = keep_rules(path, text)
            manifest = dataclasses.replace(manifest, rules_profile=profile, rules_sha256=sha256)
        folder = cls(path, manifest, attempt, lock)
        folder.beat()
        write_manifest(path, manifest)
        return folder


def _recorded_elsewhere(path: Path, manifest: Manifest) -> bool:
    """Whether another host's heartbeat is young: its locks may not be seen from here."""
    here = socket.gethostname()
    last = manifest.last_attempts
    open_elsewhere = any(a.how is None and a.host not in (None, here) for a in last)
    return open_elsewhere and heartbeat_is_young(path)


def _wait_for_attempt(path: Path, rank: int, patience: float) -> Attempt:
    """The open attempt of rank 0 that this rank has no part in yet."""
    until = time.monotonic() + patience
    told = f"rank 0 did not open the run {path} within {patience:.0f} s"
    while True:
        try:
            manifest = read_manifest(path)
        except ManifestError:
            pass  # not there yet
        else:
            last = manifest.last_attempts
            opened = next((a for a in last if a.rank == 0 and a.how is None), None)
            if opened and how_it_ended(path, manifest) == "live":
                if all(a.rank != rank for a in last):
                    return opened
                told = (
                    f"another process records, or has recorded, rank {rank} of this attempt of {path}, and rank 0 "
                    f"opened no further one within {patience:.0f} s"
                )
        if time.monotonic() >= until:
            raise TimeoutError(told)
        time.sleep(0.05)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip(".-")[:_LONGEST_NAME] or "run"


def _make_named_folder(root: Path, run_id: str) -> Path:
    path = root / run_id
    try:
        path.mkdir()
    except FileExistsError:
        raise RunFolderError(
            f"there is a run {run_id} under {root} already; give another run_id, or resume={run_id!r} to go on with it"
        ) from None
    return path


def _make_folder(root: Path, name: str, now: datetime) -> Path:
    plain = _plain(name)
    while True:
        # `secrets` leaves the trainer's random streams alone.
        characters = "".join(secrets.choice(_ALPHABET) for _ in range(6))
        path = root / f"{plain}-{now:%Y%m%dT%H%M%SZ}-{characters}"
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def _find_run(root: Path, run_id: str) -> Path:
    if (root / run_id / MANIFEST_FILE).is_file():
        return root / run_id
    found = sorted(path.parent.name for path in root.glob(f"*/{MANIFEST_FILE}"))
    for name in found:
        try:
            if read_manifest(root / name).run_id == run_id:
                return root / name
        except ValueError:
            continue
    if not found:
        raise RunFolderError(f"there is no run {run_id} to resume: {root} holds no runs")
    raise RunFolderError(f"there is no run {run_id} under {root} to resume. {suggest(run_id, found, kind='runs')}")


def keep_rules(path: Path, text: str) -> str:
    """Keep the text of a run's rules as `rules/<sha256>.toml` in its folder; returns the sha256. Raises OSError."""
    data = text.encode()
    sha256 = hashlib.sha256(data).hexdigest()
    folder = path / "rules"
    folder.mkdir(exist_ok=True)
    file = folder / f"{sha256}.toml"
    if not file.exists():
        temporary = folder / f".{sha256}.tmp"
        with temporary.open("wb") as stream:
            stream.write(data)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.replace(file)
        sync_folder(folder)
    return sha256
