"""`run.json`: who a run was, what it ran with, and how it ended.

Reading is tolerant: a missing key takes its default, an unknown key is ignored.
"""

from __future__ import annotations

import json
import socket
import stat
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, is_dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from esper_recorder.storage.atomic import atomic_file
from esper_recorder.storage.lock import is_locked
from esper_recorder.storage.safe_files import NotRegularError, read_regular

FORMAT = 1
MANIFEST_FILE = "run.json"
HEARTBEAT_FILE = "heartbeat"
HEARTBEAT_DEAD_SECONDS = 60.0
_DEEPEST = 32

Ended = Literal["finished", "raised", "killed", "live", "unknown"]


class ManifestError(ValueError):
    """run.json is missing or is not the manifest of a run; the message says which."""


@dataclass(frozen=True, slots=True)
class DropCounts:
    """How much could not be recorded (`lost` in run.json)."""

    rows: int = 0
    """Rows known to be dropped; those of updates that were never evaluated are not among them."""
    updates: int = 0
    """Updates of which nothing was stored."""
    writes: int = 0
    """Writes to the sink that failed."""
    message: str | None = None
    """The last error."""
    calls: int = 0
    """Calls of the recorder that failed, or whose arguments cannot be recorded."""

    def __bool__(self) -> bool:
        return bool(self.rows or self.updates or self.writes or self.calls)

    def __str__(self) -> str:
        """Describe the counts: `2 failed calls, 1 dropped row`."""
        numbers = (
            (self.calls, "failed call"),
            (self.updates, "dropped update"),
            (self.rows, "dropped row"),
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
    """`finished`, `raised`, None: still running or killed, or `unknown`: the source of an import does not say."""
    error: str | None = None
    updates: int | None = None
    dropped: DropCounts = DropCounts()

    @property
    def process(self) -> tuple[int, int]:
        """(attempt, rank)"""
        return self.attempt, self.rank


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
        """The attempt opened last (its lowest rank), or None if there is not one."""
        return self.last_attempts[0] if self.attempts else None

    @property
    def last_attempts(self) -> list[Attempt]:
        """The attempt opened last, of every rank that recorded it."""
        newest = max((a.attempt for a in self.attempts), default=0)
        return sorted((a for a in self.attempts if a.attempt == newest), key=lambda a: a.rank)


def read_manifest(folder: str | Path) -> Manifest:
    """Read the manifest of a run's folder.

    Raises:
        ManifestError: run.json is missing, cannot be read, is not a JSON object, or has no run_id.
    """
    path = Path(folder) / MANIFEST_FILE
    try:
        data = json.loads(read_regular(path))
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist, so {folder} is not a run's folder") from None
    except NotRegularError as error:
        raise ManifestError(str(error)) from error
    except OSError as error:
        raise ManifestError(f"{path} could not be read: {error.strerror or error}") from error
    except ValueError as error:
        raise ManifestError(f"{path} is damaged: it is not JSON ({error})") from error
    if not isinstance(data, dict) or not isinstance(data.get("run_id"), str):
        raise ManifestError(f"{path} is not the manifest of a run: it has no run_id")
    if isinstance(data.get("format"), int) and data["format"] > FORMAT:
        raise ManifestError(
            f"{path} has format {data['format']}; this version reads up to {FORMAT}. Upgrade esper-recorder to read it"
        )
    try:
        return _parse_manifest(data)
    except (TypeError, ValueError, AttributeError) as error:
        raise ManifestError(f"{path} is damaged: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace run.json as a whole, durably. Raises OSError."""
    text = json.dumps(_dump_manifest(manifest), indent=1, allow_nan=False, ensure_ascii=False)
    with atomic_file(folder / MANIFEST_FILE, durable=True) as file:
        file.write(f"{text}\n".encode())


def how_it_ended(folder: str | Path, manifest: Manifest | None = None) -> Ended:
    """Return how a run ended, or `live` while it is being recorded.

    An attempt without an end is live while its process holds the lock (same host) or its heartbeat is young (another
    host), else it was killed. An imported run may say `unknown`: its source does not say. Raises ManifestError if no
    manifest is passed and none can be read.
    """
    folder = Path(folder)
    manifest = read_manifest(folder) if manifest is None else manifest
    ends = {attempt.how for attempt in manifest.last_attempts}
    if None in ends or not ends:
        return "live" if is_locked(folder) or is_recorded_elsewhere(folder, manifest) else "killed"
    return "raised" if "raised" in ends else "unknown" if "unknown" in ends else "finished"


def is_live(folder: Path) -> bool:
    """Return whether a run's folder is being recorded to, as far as its lock and heartbeat show."""
    if is_locked(folder):
        return True
    try:
        return how_it_ended(folder) == "live"
    except ManifestError:
        return _heartbeat_is_young(folder)


def is_recorded_elsewhere(folder: Path, manifest: Manifest) -> bool:
    """Return whether another host records to the folder: its locks may be invisible here, its heartbeat is not."""
    here = socket.gethostname()
    return any(a.how is None and a.host != here for a in manifest.last_attempts) and _heartbeat_is_young(folder)


def _heartbeat_is_young(folder: Path) -> bool:
    try:
        status = (folder / HEARTBEAT_FILE).lstat()
    except OSError:
        return False
    touched = status.st_mtime if stat.S_ISREG(status.st_mode) else 0
    # A heartbeat from the future dates from before a clock was set back: not a sign of life either.
    return abs(time.time() - touched) < HEARTBEAT_DEAD_SECONDS


def loaded_versions() -> dict[str, str]:
    """Return the versions of the loaded libraries that matter to a recording."""
    modules = ("torch", "numpy", "pyarrow", "stable_baselines3", "sb3_contrib", "gymnasium", "rsl_rl", "torchrl")
    versions = {name: getattr(sys.modules.get(name), "__version__", None) for name in modules}
    return {name: str(version) for name, version in versions.items() if version is not None}


# --- JSON -----------------------------------------------------------------------------------------------------------


def _parse_manifest(data: dict[str, Any]) -> Manifest:
    rules = data.get("rules") or {}
    attempts = tuple(_parse(Attempt, attempt) for attempt in data.get("attempts") or ())
    named = {"rules_profile": rules.get("profile"), "rules_sha256": rules.get("sha256"), "attempts": attempts}
    manifest = _parse(Manifest, {**data, **named})
    assert isinstance(manifest, Manifest)
    return manifest


def _parse(kind: Any, data: Mapping[str, Any]) -> Any:
    """Make a dataclass of the entries of `data` that are named like its fields and are not null."""
    values = {("dropped" if key == "lost" else key): value for key, value in data.items() if value is not None}
    names = [f.name for f in fields(kind) if f.name in values]
    return kind(**{name: _PARSERS.get(name, _unchanged)(values[name]) for name in names})


def _parse_time(text: str) -> datetime:
    moment = datetime.fromisoformat(text)
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _unchanged(value: Any) -> Any:
    return value


_PARSERS: dict[str, Callable[[Any], Any]] = {
    **dict.fromkeys(("attempt", "rank", "from_update", "rows", "updates", "writes", "calls"), int),
    **dict.fromkeys(("trainer", "versions"), dict),
    "name": lambda name: str(name) or "run",
    "started": _parse_time,
    "ended": _parse_time,
    "dropped": lambda counts: _parse(DropCounts, counts),
}


def _dump_manifest(manifest: Manifest) -> dict[str, Any]:
    data = asdict(manifest)
    first = {key: data.pop(key) for key in ("format", "schema_version", "run_id", "name")}
    data["rules"] = {"profile": data.pop("rules_profile"), "sha256": data.pop("rules_sha256")}
    attempts = data.pop("attempts")
    for attempt in attempts:
        attempt["lost"] = attempt.pop("dropped")
    jsonable = to_jsonable({**first, **data, "attempts": attempts})
    assert isinstance(jsonable, dict)
    return jsonable


def to_jsonable(value: Any, depth: int = 0, *, key: str = "", texts: list[str] | None = None) -> Any:
    """Convert any value to one that JSON can hold; what it cannot hold (NaN included) becomes its text.

    Args:
        depth: how deep in the whole the value lies; what lies too deep becomes its text.
        key: where it lies, as `optimizer.betas[1]`.
        texts: receives the keys of all that became text.
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

    def convert(item: Any, item_key: str) -> Any:
        return to_jsonable(item, depth + 1, key=item_key, texts=texts)

    def convert_all(items: Iterable[tuple[Any, Any]]) -> dict[str, Any]:
        return {str(name): convert(item, f"{key}.{name}" if key else str(name)) for name, item in items}

    if depth < _DEEPEST:
        if isinstance(value, Mapping):
            return convert_all(value.items())
        if isinstance(value, list | tuple):
            return [convert(item, f"{key}[{i}]") for i, item in enumerate(value)]
        if isinstance(value, set | frozenset):
            return sorted((convert(item, f"{key}[]") for item in value), key=str)
        if callable(getattr(value, "model_dump", None)) and not isinstance(value, type):  # pydantic's
            return convert(value.model_dump(mode="json"), key)
        if is_dataclass(value) and not isinstance(value, type):
            return convert_all((f.name, getattr(value, f.name)) for f in fields(value))
    if texts is not None:
        texts.append(key or "the whole of it")
    return repr(float(value)) if isinstance(value, float) else repr(value)
