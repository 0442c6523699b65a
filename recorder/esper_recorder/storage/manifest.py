"""`run.json`: who a run was, what it ran with, and how it ended.

Reading is tolerant: a key that is missing is None (or empty), a key that is not known is ignored.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from esper_recorder.storage.lock import is_locked
from esper_recorder.storage.parquet import sync_folder

FORMAT = 1
MANIFEST_FILE = "run.json"
HEARTBEAT_FILE = "heartbeat"
HEARTBEAT_DEAD_SECONDS = 60.0

Ended = Literal["finished", "raised", "killed", "live", "unknown"]


class ManifestError(ValueError):
    """run.json is not there, or is not what a run's manifest is; the message says which."""


@dataclass(frozen=True, slots=True)
class Lost:
    """What could not be recorded."""

    rows: int = 0
    """Rows known to be lost; those of updates that were never evaluated are not among them."""
    updates: int = 0
    """Updates of which nothing was stored."""
    writes: int = 0
    """Writes to the sink that failed."""
    message: str | None = None
    """The last error's own words."""
    calls: int = 0
    """Calls of the recorder that failed, or were given what cannot be recorded."""

    def __bool__(self) -> bool:
        return bool(self.rows or self.updates or self.writes or self.calls)

    def __str__(self) -> str:
        """What it was, in words: `2 failed calls, 1 known lost row`."""
        numbers = (
            (self.calls, "failed call"),
            (self.updates, "lost update"),
            (self.rows, "known lost row"),
            (self.writes, "failed write"),
        )
        return ", ".join(f"{n} {what}{'' if n == 1 else 's'}" for n, what in numbers if n) or "nothing"


@dataclass(frozen=True, slots=True)
class Attempt:
    """One process's stretch of a run: from its start, or from where it was resumed, to its end."""

    attempt: int = 1
    rank: int = 0
    pid: int | None = None
    host: str | None = None
    started: datetime | None = None
    from_update: int = 1
    ended: datetime | None = None
    how: str | None = None
    """`finished`, `raised`, None: still running or killed, or `unknown`: imported from what does not tell."""
    error: str | None = None
    updates: int | None = None
    lost: Lost = Lost()


@dataclass(frozen=True, slots=True)
class Manifest:
    """The content of run.json."""

    run_id: str
    name: str = "run"
    started: datetime | None = None
    trainer: Mapping[str, Any] = field(default_factory=dict)
    definition: str | None = None
    config: Any = None
    versions: Mapping[str, str] = field(default_factory=dict)
    host: str | None = None
    platform: str | None = None
    level: str | None = None
    rules_profile: str | None = None
    rules_sha256: str | None = None
    total_updates: int | None = None
    total_steps: int | None = None
    source: Mapping[str, Any] | None = None
    """Where an imported run came from; None for a run that was recorded."""
    attempts: tuple[Attempt, ...] = ()
    schema_version: int | None = None
    format: int = FORMAT

    @property
    def last_attempt(self) -> Attempt | None:
        """The attempt opened last (its lowest rank), or None where none is told."""
        return self.last_attempts[0] if self.attempts else None

    @property
    def last_attempts(self) -> list[Attempt]:
        """The attempt opened last, of every rank that told of it."""
        newest = max((a.attempt for a in self.attempts), default=0)
        return sorted((a for a in self.attempts if a.attempt == newest), key=lambda a: a.rank)


def read_manifest(folder: str | Path) -> Manifest:
    """The manifest of a run's folder.

    Raises:
        ManifestError: run.json is missing, cannot be read, is no JSON object, or tells no run_id.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        data = json.loads(path.read_bytes())
    except FileNotFoundError:
        raise ManifestError(f"{path} is not there, so {folder} is not a run's folder") from None
    except OSError as error:
        raise ManifestError(f"{path} could not be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ManifestError(f"{path} is damaged: it is no JSON ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("run_id"), str):
        raise ManifestError(f"{path} is no manifest of a run: it tells no run_id")
    if isinstance(data.get("format"), int) and data["format"] > FORMAT:
        raise ManifestError(
            f"{path} has format {data['format']}; this version reads up to {FORMAT}. Upgrade esper-recorder to read it"
        )
    try:
        return _manifest(data)
    except (TypeError, ValueError, AttributeError) as error:
        raise ManifestError(f"{path} is damaged: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace run.json as a whole, durably: it is the old one or the new one at any moment. Raises OSError."""
    path = folder / MANIFEST_FILE
    temporary = folder / f".{MANIFEST_FILE}.{os.getpid()}.tmp"
    try:
        with temporary.open("w", encoding="utf-8") as file:
            json.dump(_as_json(manifest), file, indent=1, allow_nan=False, ensure_ascii=False)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(folder)


def how_it_ended(folder: str | Path, manifest: Manifest | None = None) -> Ended:
    """How a run ended, or `live` while it is being recorded.

    An attempt that told no end is live while its process holds the lock (same host) or its heartbeat is young (another
    host), else it was killed. An imported run may say `unknown`: what it came from does not tell. Raises ManifestError
    where no manifest is given and none can be read.
    """
    folder = Path(folder)
    manifest = read_manifest(folder) if manifest is None else manifest
    last = manifest.last_attempts
    if any(attempt.how is None for attempt in last) or not last:
        here = socket.gethostname()
        if is_locked(folder) or (any(a.host != here for a in last if a.how is None) and heartbeat_is_young(folder)):
            return "live"
        return "killed"
    return next((how for how in ("raised", "unknown") if any(attempt.how == how for attempt in last)), "finished")


def heartbeat_is_young(folder: Path) -> bool:
    """Whether the heartbeat file was touched within the last minute, by the clock of whoever asks."""
    try:
        touched = (folder / HEARTBEAT_FILE).stat().st_mtime
    except OSError:
        return False
    # A heartbeat from the future is left from before a clock was set back: no sign of life either.
    return abs(time.time() - touched) < HEARTBEAT_DEAD_SECONDS


def loaded_versions() -> dict[str, str]:
    """Versions of what is loaded and matters to a recording."""
    modules = ("torch", "numpy", "pyarrow", "stable_baselines3", "sb3_contrib", "gymnasium", "rsl_rl", "torchrl")
    found: dict[str, Any] = {name: getattr(sys.modules.get(name), "__version__", None) for name in modules}
    return {name: str(version) for name, version in found.items() if version is not None}


# --- JSON -----------------------------------------------------------------------------------------------------------


def _manifest(data: dict[str, Any]) -> Manifest:
    rules = data.get("rules") or {}
    return Manifest(
        run_id=data["run_id"],
        name=str(data.get("name") or "run"),
        started=_time(data.get("started")),
        trainer=data.get("trainer") or {},
        definition=data.get("definition"),
        config=data.get("config"),
        versions=data.get("versions") or {},
        host=data.get("host"),
        platform=data.get("platform"),
        level=data.get("level"),
        rules_profile=rules.get("profile"),
        rules_sha256=rules.get("sha256"),
        total_updates=data.get("total_updates"),
        total_steps=data.get("total_steps"),
        source=data.get("source"),
        attempts=tuple(_attempt(attempt) for attempt in data.get("attempts") or ()),
        schema_version=data.get("schema_version"),
        format=data.get("format") or FORMAT,
    )


def _attempt(data: dict[str, Any]) -> Attempt:
    lost = data.get("lost") or {}
    return Attempt(
        attempt=int(data.get("attempt") or 1),
        rank=int(data.get("rank") or 0),
        pid=data.get("pid"),
        host=data.get("host"),
        started=_time(data.get("started")),
        from_update=int(data.get("from_update") or 1),
        ended=_time(data.get("ended")),
        how=data.get("how"),
        error=data.get("error"),
        updates=data.get("updates"),
        lost=Lost(
            rows=int(lost.get("rows") or 0),
            updates=int(lost.get("updates") or 0),
            writes=int(lost.get("writes") or 0),
            message=lost.get("message"),
            calls=int(lost.get("calls") or 0),
        ),
    )


def _as_json(manifest: Manifest) -> dict[str, Any]:
    data = asdict(manifest)
    first = {key: data.pop(key) for key in ("format", "schema_version", "run_id", "name")}
    data["rules"] = {"profile": data.pop("rules_profile"), "sha256": data.pop("rules_sha256")}
    attempts = data.pop("attempts")
    plain = plain_json({**first, **data, "attempts": attempts})
    assert isinstance(plain, dict)
    return plain


def plain_json(value: Any, depth: int = 0, *, key: str = "", texts: list[str] | None = None) -> Any:
    """The value as JSON can hold it: what it cannot hold (NaN included) becomes its text.

    Args:
        value: anything.
        depth: how deep in the whole it lies; what lies too deep becomes its text.
        key: where it lies, as `optimizer.betas[1]`.
        texts: the keys of what became its text are added to it.
    """
    if value is None or isinstance(value, bool | str):
        return value
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float) and value - value == 0:
        return float(value)
    if isinstance(value, datetime):
        return value.astimezone(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    if isinstance(value, Path):
        return str(value)

    def inner(value: Any, own: str) -> Any:
        return plain_json(value, depth + 1, key=own, texts=texts)

    def named(items: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
        return {str(name): inner(one, f"{key}.{name}" if key else str(name)) for name, one in items}

    if depth < 32:
        if isinstance(value, Mapping):
            return named(value.items())
        if isinstance(value, list | tuple):
            return [inner(one, f"{key}[{i}]") for i, one in enumerate(value)]
        if isinstance(value, set | frozenset):
            return sorted((inner(one, f"{key}[]") for one in value), key=str)
        if callable(getattr(value, "model_dump", None)) and not isinstance(value, type):  # pydantic's
            return inner(value.model_dump(mode="json"), key)
        if is_dataclass(value) and not isinstance(value, type):
            return named((f.name, getattr(value, f.name)) for f in fields(value))
    if texts is not None:
        texts.append(key or "the whole of it")
    return repr(float(value)) if isinstance(value, float) else repr(value)


def _time(value: Any) -> datetime | None:
    if value is None:
        return None
    moment = datetime.fromisoformat(value)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
