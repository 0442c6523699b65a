"""Logged scalars as rows of the tables.

Values that were logged together, one of them a tag that only an update has, are one row of `ppo_updates`. Updates count
from 1 as they were logged, or by the trainer's number if it logs that. If the steps go back, in another file or in the
same, the training was resumed from an earlier point: a new attempt begins there and supersedes what was logged after
that point, like the attempt of a resumed recording. Nothing is dropped: a value without a column, and one whose column
a later value of the same update has taken, is a row of `scalars`.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from esper_analytics.importers.library_tags import Library, LibraryMatch
from esper_recorder.storage.manifest import EARLIEST, LATEST, Attempt

MOST_STEPS = 2**53
"""The largest step: up to it a float holds every whole number, and the number after it is one for a column too."""
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)

Place = tuple[int, int]
"""(attempt, update)."""


@dataclass(frozen=True, slots=True)
class ScalarValue:
    """One value under one tag."""

    tag: str
    step: int | None
    value: float
    line: int
    """The line of a text file, or the record of an event file, counted from 1."""
    time: float | None = None
    """Wall clock, seconds since 1970, if the file has it."""
    elapsed: float | None = None
    """Seconds since the training began, if the file has it."""


@dataclass(frozen=True, slots=True)
class Session:
    """What one process logged."""

    scalars: Sequence[ScalarValue]
    """In the order it logged them."""
    started: float | None = None
    """Wall clock when it opened its log, seconds since 1970."""


@dataclass(slots=True)
class ScalarRows:
    """The rows of one run, without its run_id."""

    columns: dict[str, dict[int, dict[str, list[Any]]]] = field(default_factory=dict)
    """Table -> attempt -> column -> values; rows in the order of their updates."""
    attempts: list[Attempt] = field(default_factory=list)
    typed: Counter[str] = field(default_factory=Counter)
    """Tag -> values in a column of `ppo_updates` or `episodes`."""
    kept: Counter[str] = field(default_factory=Counter)
    """Tag -> values in a row of `scalars`."""
    repeated: int = 0
    """Values that an update logged again: the last is in its column, the earlier ones are scalars."""
    superseded: int = 0
    """Updates that a later attempt made again."""


def arrange(
    sessions: Iterable[Session],
    match: LibraryMatch | None,
    hyperparameters: Mapping[str, Any] | None = None,
    *,
    by_line: bool = False,
) -> ScalarRows:
    """Turn the scalars of one run into rows.

    Args:
        sessions: the oldest first.
        match: the library that logged it; without one every value becomes a scalar, and its steps count as updates.
        hyperparameters: source of the library's `settings` and `total_steps`.
        by_line: whether the values of one line were logged together, instead of those of one step.
    """
    sessions = list(sessions)
    result = ScalarRows()
    settings, total_steps = _settings(match, hyperparameters or {})
    numbering = _Numbering(match)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    steps = sorted({scalar.step for session in sessions for scalar in session.scalars if scalar.step is not None})
    for session in sessions:
        scalars = session.scalars
        groups, rest = _group(scalars, match, by_line)
        result.repeated += sum(group.repeated for group in groups)
        numbering.number(groups)
        if match is None:
            places = [(1, 1 if s.step is None else bisect.bisect_left(steps, s.step) + 1) for s in scalars]
        else:
            places = _places(scalars, groups, match.library, numbering)
        identity = _Identity(scalars, places, session.started)
        for group in groups:
            assert match is not None  # without a library there are no groups
            columns = settings | _update_columns(group, scalars, total_steps, match)
            rows["ppo_updates"].append(identity.row(group.last, (group.attempt, group.update)) | columns)
            result.typed.update(group.indices.keys())
        if match is not None and match.library.episode_return is not None:
            candidates = rest
            rest = _add_episodes(scalars, candidates, match.library, identity, rows["episodes"])
            result.typed.update(scalars[index].tag for index in {*candidates} - {*rest})
        for index in rest:
            scalar = scalars[index]
            row = {"name": scalar.tag, "step": scalar.step, "line": scalar.line, "value": scalar.value}
            rows["scalars"].append(identity.row(index) | row)
            result.kept[scalar.tag] += 1
    for table, table_rows in rows.items():
        table_rows.sort(key=lambda row: (row["attempt"], row["update"]))
        by_attempt = itertools.groupby(table_rows, lambda row: row["attempt"])
        columns_by_attempt = {attempt: _columns(list(attempt_rows)) for attempt, attempt_rows in by_attempt}
        if columns_by_attempt:
            result.columns[table] = columns_by_attempt
    result.attempts = _attempts(rows)
    result.superseded = sum(
        any(later.attempt > row["attempt"] and later.from_update <= row["update"] for later in result.attempts)
        for row in rows["ppo_updates"]
    )
    return result


def utc_time(seconds: float | None) -> datetime | None:
    """Convert seconds since 1970 to a time; None if a run cannot have it."""
    try:
        moment = None if seconds is None else _EPOCH + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return None
    return moment if moment is not None and EARLIEST <= moment < LATEST else None


def whole_step(number: float) -> int | None:
    """Read a step; None if it is not a whole number from 0 to `MOST_STEPS`."""
    return int(number) if 0 <= number <= MOST_STEPS and number == int(number) else None


# --- which values are an update ---------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    """The values of one update."""

    key: int | None
    """The line or the step that they share."""
    step: int | None
    first: int
    last: int
    indices: dict[str, int] = field(default_factory=dict)
    """Tag -> index of its last value."""
    repeated: int = 0
    attempt: int = 1
    update: int = 0


def _group(scalars: Sequence[ScalarValue], match: LibraryMatch | None, by_line: bool) -> tuple[list[_Group], list[int]]:
    """Return the updates among the values, and the indices of all other values."""
    if match is None:
        return [], list(range(len(scalars)))
    groups: list[_Group] = []
    rest: list[int] = []
    for index, scalar in enumerate(scalars):
        if scalar.tag not in match.by_name:
            rest.append(index)
            continue
        key = scalar.line if by_line else scalar.step
        if not groups or groups[-1].key != key:
            groups.append(_Group(key, scalar.step, index, index))
        group = groups[-1]
        if scalar.tag in group.indices:
            rest.append(group.indices[scalar.tag])
            group.repeated += 1
        group.indices[scalar.tag] = index
        group.last = index
    updates = []
    for group in groups:
        if match.update_tags.isdisjoint(group.indices):
            rest += group.indices.values()
        else:
            updates.append(group)
    return updates, sorted(rest)


class _Numbering:
    """Numbers updates and attempts, file after file."""

    def __init__(self, match: LibraryMatch | None) -> None:
        self.attempt = 0
        self.current: list[tuple[int | None, int]] = []
        """(step, update) of the updates that no later attempt has superseded so far."""
        self._step_is_update = match is not None and match.library.step_is_update

    def number(self, groups: Sequence[_Group]) -> None:
        """Number the updates of one file."""
        for index, group in enumerate(groups):
            step, last = group.step, self.current[-1][0] if self.current else None
            # A new file may also begin at the last step of the one before: then it trains that update again.
            if step is not None and last is not None and (step < last or (step == last and index == 0)):
                self.attempt += 1
                self.current = [(at, update) for at, update in self.current if at is None or at < step]
            elif index == 0:
                self.attempt += 1
            group.attempt = self.attempt
            group.update = self.current[-1][1] + 1 if self.current else 1
            if self._step_is_update and step is not None:
                group.update = step + 1
            self.current.append((step, group.update))


def _places(
    scalars: Sequence[ScalarValue], groups: Sequence[_Group], library: Library, numbering: _Numbering
) -> list[Place]:
    """Return the place of every value: the update it was logged with, or before."""
    find = bisect.bisect_right if library.late else bisect.bisect_left
    firsts = [group.first for group in groups]
    no_attempt = _axis(numbering.current)  # of a file without an update
    axes = {
        attempt: _axis([(group.step, group.update) for group in members])
        for attempt, members in itertools.groupby(groups, lambda group: group.attempt)
    }
    places = []
    for index, scalar in enumerate(scalars):
        following = bisect.bisect_right(firsts, index)
        before = groups[following - 1] if following else None
        after = groups[following] if following < len(groups) else None
        step = None if library.other_axis and scalar.tag.endswith(library.other_axis) else scalar.step
        closest = before or after
        if before and before.step is not None and step is not None and step < before.step:
            # Between two attempts, a step before the end of the first one belongs to the second.
            closest = after if after and after.attempt != before.attempt else before
        attempt = closest.attempt if closest is not None else max(numbering.attempt, 1)
        if step is None:
            update = closest.update if closest is not None else 1
        elif library.step_is_update:
            update = step + 1
        else:
            steps, updates = axes[attempt] if closest is not None else no_attempt
            position = find(steps, step)
            update = updates[position] if position < len(updates) else updates[-1] + 1 if updates else 1
        places.append((attempt, update))
    return places


def _axis(updates: Sequence[tuple[int | None, int]]) -> tuple[list[int], list[int]]:
    """Split (step, update) into steps and updates, of those that have a step."""
    known = [(step, update) for step, update in updates if step is not None]
    return [step for step, _ in known], [update for _, update in known]


# --- rows -------------------------------------------------------------------------------------------------------------


class _Identity:
    """Makes the columns that every row begins with."""

    def __init__(self, scalars: Sequence[ScalarValue], places: Sequence[Place], started: float | None) -> None:
        self._scalars = scalars
        self._places = places
        self._starts: dict[int, float] = {}
        if started is not None and places:
            self._starts[min(attempt for attempt, _ in places)] = started
        for scalar, (attempt, _) in zip(scalars, places, strict=True):
            if scalar.time is not None:
                self._starts[attempt] = min(scalar.time, self._starts.get(attempt, scalar.time))

    def row(self, index: int, place: Place | None = None) -> dict[str, Any]:
        """Begin the row of the value at an index, at its own place or another."""
        scalar = self._scalars[index]
        attempt, update = place or self._places[index]
        elapsed = scalar.elapsed
        if elapsed is None and scalar.time is not None and attempt in self._starts:
            elapsed = scalar.time - self._starts[attempt]
        return {"attempt": attempt, "update": update, "time": utc_time(scalar.time), "elapsed_s": elapsed}


def _settings(
    match: LibraryMatch | None, hyperparameters: Mapping[str, Any]
) -> tuple[dict[str, float | int], float | None]:
    """Return the columns that hyperparameters give every update, and the total of environment steps."""
    settings: dict[str, float | int] = {}
    if match is None:
        return settings, None
    for setting in match.library.settings:
        value = _finite_number(hyperparameters.get(setting.name))
        if value is not None:
            number = whole_step(value) if setting.column == "epochs_planned" else value
            settings |= {} if number is None else {setting.column: number}
    total_steps = match.library.total_steps
    return settings, None if total_steps is None else _finite_number(hyperparameters.get(total_steps))


def _finite_number(value: Any) -> float | None:
    try:
        number = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else math.nan
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def _update_columns(
    group: _Group, scalars: Sequence[ScalarValue], total_steps: float | None, match: LibraryMatch
) -> dict[str, Any]:
    values = {tag: scalars[index].value for tag, index in group.indices.items()}
    tags = match.by_name
    row: dict[str, Any] = {tags[tag].column: value * tags[tag].factor for tag, value in values.items()}
    row["definition"] = match.library.definition
    row["nonfinite_fields"] = sorted(tag for tag, value in values.items() if not math.isfinite(value))
    if not match.library.step_is_update and group.step is not None:
        row["step"] = group.step
        if total_steps:
            row["progress"] = min(1.0, group.step / total_steps)
    return row


def _add_episodes(
    scalars: Sequence[ScalarValue],
    candidates: Sequence[int],
    library: Library,
    identity: _Identity,
    rows: list[dict[str, Any]],
) -> list[int]:
    """Add one row per finished episode; return the other indices. An episode's return is logged before its length."""
    waiting: dict[int | None, list[dict[str, Any]]] = defaultdict(list)
    counts = Counter(row["attempt"] for row in rows)
    rest = []
    for index in candidates:
        scalar = scalars[index]
        length = whole_step(scalar.value) if scalar.tag == library.episode_length else None
        if length is not None and waiting[scalar.step]:
            waiting[scalar.step].pop(0)["episode_length"] = length
        elif scalar.tag == library.episode_return:
            row = identity.row(index) | {"step": scalar.step, "episode_return": scalar.value}
            counts[row["attempt"]] += 1
            row["episode"] = counts[row["attempt"]]
            waiting[scalar.step].append(row)
            rows.append(row)
        else:
            rest.append(index)
    return rest


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row if name != "attempt")
    return {name: [row.get(name) for row in rows] for name in names}


def _attempts(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Attempt]:
    times: dict[int, list[datetime]] = defaultdict(list)
    for row in itertools.chain(*rows.values()):
        times[row["attempt"]] += [] if row["time"] is None else [row["time"]]
    updates: dict[int, set[int]] = defaultdict(set)
    for row in rows.get("ppo_updates", ()):
        updates[row["attempt"]].add(row["update"])
    return [
        Attempt(
            attempt=attempt,
            started=min(times[attempt], default=None),
            from_update=min(updates[attempt], default=1),
            ended=max(times[attempt], default=None),
            how="unknown",
            updates=len(updates[attempt]),
        )
        for attempt in sorted(times)
    ]
