"""`run.json`: who a run was, what it ran with, and how it ended.

A missing key takes its default, an unknown key is ignored. A value of another type, or beyond the bounds of `_FIELDS`,
is an error that names it, so that whoever has a `Manifest` need not check it again.
"""

from __future__ import annotations

import json
import logging
import re
import socket
import stat
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from esper_recorder.storage.atomic import atomic_file
from esper_recorder.storage.json_files import JsonFileError, is_text, is_within_bounds, read_json
from esper_recorder.storage.jsonable import to_jsonable
from esper_recorder.storage.lock import is_locked
from esper_recorder.storage.safe_files import NotRegularError, TooLargeError

log = logging.getLogger("esper_recorder")

FORMAT = 1
MANIFEST_FILE = "run.json"
HEARTBEAT_FILE = "heartbeat"
HEARTBEAT_DEAD_SECONDS = 60.0
LARGEST = 2**63 - 1
"""The largest number that a column holds."""
EARLIEST, LATEST = datetime(1900, 1, 1, tzinfo=UTC), datetime(2200, 1, 1, tzinfo=UTC)
"""Between these, a time can be converted to any time zone, and written as a file name."""

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
        data = read_json(path)
    except FileNotFoundError:
        raise ManifestError(f"{path} does not exist, so {folder} is not a run's folder") from None
    except (NotRegularError, TooLargeError) as error:
        raise ManifestError(str(error)) from error
    except OSError as error:
        raise ManifestError(f"{path} could not be read: {error.strerror or error}") from error
    except JsonFileError as error:
        raise ManifestError(f"{path} is damaged: {error}") from error
    if not isinstance(data, dict) or not isinstance(data.get("run_id"), str):
        raise ManifestError(f"{path} is not the manifest of a run: it has no run_id")
    format_ = data.get("format")
    if isinstance(format_, int) and format_ > FORMAT:
        raise ManifestError(
            f"{path} has format {_shown(format_)}; this version reads up to {FORMAT}. Upgrade esper-recorder to read it"
        )
    try:
        return _parse_manifest(data)
    except FieldError as error:
        raise ManifestError(f"{path} is damaged: {error}") from error


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Replace run.json as a whole, durably, by a text that `read_manifest` reads. Raises OSError."""
    data = _dump_manifest(manifest)
    text = _as_json(data)
    if not is_within_bounds(text):
        log.warning("The config of %s is too large for %s: %d bytes.", folder, MANIFEST_FILE, len(text))
        text = _as_json(data | {"config": f"too large to be kept: {len(text):,} bytes"})
    with atomic_file(folder / MANIFEST_FILE, durable=True) as file:
        file.write(text)


def _as_json(data: Mapping[str, Any]) -> bytes:
    return f"{json.dumps(data, indent=1, allow_nan=False, ensure_ascii=False)}\n".encode()


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


class FieldError(ValueError):
    """A value is not one that its field may have; the message names both."""


_Parse = Callable[[Any, str], Any]
"""Converts a value of JSON, which lies at a place such as `attempts[1].rank`. Raises FieldError."""


def _parse_manifest(data: Mapping[str, Any]) -> Manifest:
    rules = _mapping(data.get("rules") or {}, "rules")
    named = {"rules_profile": rules.get("profile"), "rules_sha256": rules.get("sha256")}
    manifest = _parse_fields(Manifest, {**data, **named}, "")
    assert isinstance(manifest, Manifest)
    return manifest


def _parse_fields(kind: type, data: Any, place: str) -> Any:
    """Make a dataclass of the entries that are named like its fields and are not null."""
    values = {}
    for name, parse in _FIELDS[kind].items():
        key = _KEYS.get(name, name)
        if (value := _mapping(data, place).get(key)) is not None:
            values[name] = parse(value, f"{place}.{key}" if place else key)
    return kind(**values)


def _error(value: Any, place: str, expected: str) -> FieldError:
    return FieldError(f"{place} is {_shown(value)}; it must be {expected}")


def _shown(value: Any) -> str:
    text = ascii(value)
    return text if len(text) <= 60 else f"{text[:60]}..."


def _mapping(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _error(value, place, "an object")
    return value


def _whole(least: int = 0, most: int = LARGEST) -> _Parse:
    def parse(value: Any, place: str) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise _error(value, place, f"a whole number from {least} to {most}")
        return value

    return parse


def _text(value: Any, place: str) -> str:
    if not isinstance(value, str) or not is_text(value):
        raise _error(value, place, "text")
    return value


def _folder_name(value: Any, place: str) -> str:
    name = _text(value, place)
    if not 0 < len(name) <= 255 or not name.isprintable() or name in (".", "..") or set(name) & {"/", "\\"}:
        raise _error(value, place, "a name for a folder")
    return name


def _matching(pattern: str, expected: str) -> _Parse:
    compiled = re.compile(pattern)

    def parse(value: Any, place: str) -> str:
        if not isinstance(value, str) or not compiled.fullmatch(value):
            raise _error(value, place, expected)
        return value

    return parse


def _texts(value: Any, place: str) -> dict[str, str]:
    return {key: _text(item, f"{place}.{_shown(key)}") for key, item in _mapping(value, place).items()}


def _time(value: Any, place: str) -> datetime:
    try:
        moment = datetime.fromisoformat(value)
        moment = (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).astimezone(UTC)
        if EARLIEST <= moment < LATEST:
            return moment
    except (TypeError, ValueError, OverflowError):
        pass
    raise _error(value, place, f"a time from {EARLIEST.year} to {LATEST.year - 1}, such as 2026-01-31T12:00:00Z")


def _attempts(value: Any, place: str) -> tuple[Attempt, ...]:
    if not isinstance(value, list):
        raise _error(value, place, "a list")
    attempts = tuple(_parse_fields(Attempt, item, f"{place}[{number}]") for number, item in enumerate(value))
    if len({attempt.process for attempt in attempts}) < len(attempts):
        raise FieldError(f"{place} has an attempt twice")
    return attempts


def _dropped(value: Any, place: str) -> DropCounts:
    counts = _parse_fields(DropCounts, value, place)
    assert isinstance(counts, DropCounts)
    return counts


def _anything(value: Any, place: str) -> Any:
    return value


_MOST_PROCESSES = 2**31 - 1
_FIELDS: dict[type, dict[str, _Parse]] = {
    Manifest: {
        "run_id": _folder_name,
        "name": lambda value, place: _text(value, place) or "run",
        "started": _time,
        "trainer": _mapping,
        **dict.fromkeys(("definition", "host", "platform", "level", "rules_profile"), _text),
        "config": _anything,
        "versions": _texts,
        "rules_sha256": _matching("[0-9a-f]{64}", "64 hexadecimal digits"),
        **dict.fromkeys(("total_updates", "total_steps"), _whole()),
        "source": _mapping,
        "attempts": _attempts,
        "schema_version": _whole(1),
        "format": _whole(1, FORMAT),
    },
    Attempt: {
        "attempt": _whole(1, _MOST_PROCESSES),
        "rank": _whole(0, _MOST_PROCESSES),
        "pid": _whole(),
        "host": _text,
        **dict.fromkeys(("started", "ended"), _time),
        "from_update": _whole(1),
        "how": _matching("finished|raised|unknown", "finished, raised or unknown"),
        "error": _text,
        "updates": _whole(),
        "dropped": _dropped,
    },
    DropCounts: {**dict.fromkeys(("rows", "updates", "writes", "calls"), _whole()), "message": _text},
}
"""Class -> field -> what makes it of JSON. All fields of the classes are here, and only they are read."""
_KEYS = {"dropped": "lost"}
"""Field -> its key in run.json, if that is another."""


def _dump_manifest(manifest: Manifest) -> dict[str, Any]:
    data = to_jsonable(_fields_of(manifest), limited=False)
    assert isinstance(data, dict)
    first = {key: data.pop(key) for key in ("format", "schema_version", "run_id", "name")}
    data["rules"] = {"profile": data.pop("rules_profile"), "sha256": data.pop("rules_sha256")}
    return {**first, **data, "attempts": data.pop("attempts")}


def _fields_of(record: Manifest | Attempt | DropCounts) -> dict[str, Any]:
    """Return the fields under their keys; what `read_manifest` would refuse is left out, and logged."""
    values: dict[str, Any] = {}
    for name, parse in _FIELDS[type(record)].items():
        value = getattr(record, name)
        if isinstance(value, DropCounts):
            value = _fields_of(value)
        elif name == "attempts":
            value = [_fields_of(attempt) for attempt in value]
        elif value is not None:
            value = to_jsonable(value, limited=False)
            try:
                parse(value, name)
            except FieldError as error:
                log.warning("%s does not keep a value: %s.", MANIFEST_FILE, error)
                value = None
        values[_KEYS.get(name, name)] = value
    return values
