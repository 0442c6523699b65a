"""What a trainer logged, value by value, as rows of our tables.

Values that were logged together, and that only an update brings, are one row of `ppo_updates`. Updates are counted from
1 as they were logged, or by the trainer's own number where it logs that. Where the steps go back, in another file or in
the same, the training was taken up again from an earlier point: there an attempt begins that takes the place of what
was logged from that point on, as that of a resumed recording does. Nothing is dropped: a value that has no column, or
whose column a later value of the same update took, is a row of `scalars`.
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

from esper_analytics.importers.libraries import Library, Recognised

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Logged:
    """One value under one tag."""

    tag: str
    step: int | None
    value: float
    line: int
    """Where it stood: the line of a text file, the record of an event file, counted from 1."""
    time: float | None = None
    """Wall clock, seconds since 1970; None where it was not kept."""
    elapsed: float | None = None
    """Seconds since the training began, where the trainer told that."""


@dataclass(frozen=True, slots=True)
class Session:
    """What one process logged."""

    values: Sequence[Logged]
    """In the order it logged them."""
    started: float | None = None
    """Wall clock when it opened its log, seconds since 1970."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """An attempt, as the logs show it."""

    attempt: int
    from_update: int
    started: datetime | None
    ended: datetime | None
    updates: int


@dataclass(slots=True)
class Arranged:
    """The rows of one run, without its run_id."""

    columns: dict[str, dict[int, dict[str, list[Any]]]] = field(default_factory=dict)
    """Table -> attempt -> column -> values; rows in the order of their updates."""
    stretches: list[Stretch] = field(default_factory=list)
    typed: Counter[str] = field(default_factory=Counter)
    """Tag -> values that became a column of `ppo_updates` or `episodes`."""
    kept: Counter[str] = field(default_factory=Counter)
    """Tag -> values that became a row of `scalars`."""
    repeated: int = 0
    """Values that an update logged again: the last one counts, the earlier ones are scalars."""
    superseded: int = 0
    """Updates that a later attempt made again."""


def arrange(
    sessions: Iterable[Session],
    recognised: Recognised | None,
    hyperparameters: Mapping[str, Any] | None = None,
    *,
    by_line: bool = False,
) -> Arranged:
    """The rows of one run.

    Args:
        sessions: the oldest first.
        recognised: the library that logged it; None where that is not known: everything becomes a scalar then, and
            its steps are counted as updates are.
        hyperparameters: where the library's `settings` and `total_steps` are looked up.
        by_line: what stands in one line was logged together; else what has one step.
    """
    sessions = list(sessions)
    result = Arranged()
    told = _Told(recognised, hyperparameters or {})
    numbering = _Numbering(recognised)
    rows: dict[str, list[dict[str, Any]]] = defaultdict(list)
    steps = sorted({one.step for session in sessions for one in session.values if one.step is not None})
    for session in sessions:
        values = session.values
        groups, left = _groups(values, recognised, by_line)
        result.repeated += sum(group.repeated for group in groups)
        numbering.number(groups)
        if recognised is None:
            places = [(1, bisect.bisect_left(steps, one.step) + 1 if one.step is not None else 1) for one in values]
        else:
            places = _places(values, groups, recognised.library, numbering)
        identify = _Identity(values, places, session.started)
        for group in groups:
            rows["ppo_updates"].append(
                identify.row(group.last, group.attempt, group.update) | _update(group, told, recognised)
            )
            result.typed.update(group.values.keys())
        if recognised is not None and recognised.library.episode_return is not None:
            before = Counter(values[index].tag for index in left)
            left = _episodes(values, left, recognised.library, identify, rows["episodes"])
            result.typed += before - Counter(values[index].tag for index in left)
        for index in left:
            one = values[index]
            row = {"name": one.tag, "step": one.step, "line": one.line, "value": one.value}
            rows["scalars"].append(identify.row(index) | row)
            result.kept[one.tag] += 1
    for table, of_table in rows.items():
        if of_table:
            of_table.sort(key=lambda row: (row["attempt"], row["update"]))
            result.columns[table] = {
                attempt: _columns(list(own)) for attempt, own in itertools.groupby(of_table, lambda row: row["attempt"])
            }
    result.stretches = _stretches(rows)
    result.superseded = _superseded(rows["ppo_updates"], result.stretches)
    return result


def moment(seconds: float | None) -> datetime | None:
    """Seconds since 1970 as a time in UTC; None where they are none that a calendar has."""
    try:
        return None if seconds is None else _EPOCH + timedelta(seconds=seconds)
    except (OverflowError, ValueError):
        return None


# --- which values make an update --------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Group:
    """Values of one update."""

    key: int | None
    step: int | None
    first: int
    last: int
    values: dict[str, Logged] = field(default_factory=dict)
    places: dict[str, int] = field(default_factory=dict)
    repeated: int = 0
    attempt: int = 1
    update: int = 0


def _groups(values: Sequence[Logged], recognised: Recognised | None, by_line: bool) -> tuple[list[_Group], list[int]]:
    """The updates among the values, and the positions of the values that are in none."""
    if recognised is None:
        return [], list(range(len(values)))
    groups: list[_Group] = []
    left: list[int] = []
    for index, one in enumerate(values):
        if one.tag not in recognised.columns:
            left.append(index)
            continue
        key = one.line if by_line else one.step
        if not groups or groups[-1].key != key:
            groups.append(_Group(key, one.step, index, index))
        group = groups[-1]
        if one.tag in group.values:
            left.append(group.places[one.tag])
            group.repeated += 1
        group.values[one.tag] = one
        group.places[one.tag] = index
        group.last = index
    updates = []
    for group in groups:
        if recognised.makes_update.isdisjoint(group.values):
            left += group.places.values()
        else:
            updates.append(group)
    return updates, sorted(left)


class _Numbering:
    """Numbers updates and attempts, file after file."""

    def __init__(self, recognised: Recognised | None) -> None:
        self.attempt = 0
        self.line: list[tuple[int | None, int]] = []
        """(step, update) of the updates that count so far."""
        self._own_numbers = recognised is not None and recognised.library.step_is_update

    def number(self, groups: Sequence[_Group]) -> None:
        """Number the updates of one file."""
        for place, group in enumerate(groups):
            step, last = group.step, self.line[-1][0] if self.line else None
            back = step is not None and last is not None and (step < last or (step == last and not place))
            if not place or back:
                self.attempt += 1
            if back:
                self.line = [one for one in self.line if one[0] is None or one[0] < step]  # type: ignore[operator]
            group.attempt = self.attempt
            group.update = self.line[-1][1] + 1 if self.line else 1
            if self._own_numbers and step is not None:
                group.update = step + 1
            self.line.append((step, group.update))


def _places(
    values: Sequence[Logged], groups: Sequence[_Group], library: Library, numbering: _Numbering
) -> list[tuple[int, int]]:
    """(attempt, update) of every value: the update it was logged with, or before."""
    find = bisect.bisect_right if library.late else bisect.bisect_left
    firsts = [group.first for group in groups]
    members = {attempt: list(own) for attempt, own in itertools.groupby(groups, lambda group: group.attempt)}
    axes = {
        attempt: ([g.step for g in own if g.step is not None], [g.update for g in own if g.step is not None])
        for attempt, own in members.items()
    }
    so_far = [one for one in numbering.line if one[0] is not None]
    axes[0] = ([step for step, _ in so_far if step is not None], [update for _, update in so_far])
    result = []
    for index, one in enumerate(values):
        following = bisect.bisect_right(firsts, index)
        before = groups[following - 1] if following else None
        after = groups[following] if following < len(groups) else None
        own_axis = one.step is not None and not (library.other_axis and one.tag.endswith(library.other_axis))
        near = before or after
        if before is not None and after is not None and after.attempt != before.attempt and own_axis:
            near = after if one.step < before.step else before  # type: ignore[operator]
        attempt = near.attempt if near is not None else max(numbering.attempt, 1)
        if not own_axis:
            result.append((attempt, near.update if near is not None else 1))
            continue
        if library.step_is_update:
            result.append((attempt, one.step + 1))  # type: ignore[operator]
            continue
        steps, updates = axes[attempt if near is not None else 0]
        place = find(steps, one.step)  # type: ignore[type-var]
        result.append((attempt, updates[place] if place < len(updates) else updates[-1] + 1 if updates else 1))
    return result


# --- rows -------------------------------------------------------------------------------------------------------------


class _Identity:
    """Fills in the columns every row begins with."""

    def __init__(self, values: Sequence[Logged], places: Sequence[tuple[int, int]], started: float | None) -> None:
        self._values = values
        self._places = places
        self._starts: dict[int, float] = {}
        if started is not None and places:
            self._starts[min(attempt for attempt, _ in places)] = started
        for one, (attempt, _) in zip(values, places, strict=True):
            if one.time is not None:
                self._starts[attempt] = min(one.time, self._starts.get(attempt, one.time))

    def row(self, index: int, attempt: int | None = None, update: int | None = None) -> dict[str, Any]:
        """The identity of a row made of the value there; its attempt and update where none are given."""
        one, place = self._values[index], self._places[index]
        attempt = place[0] if attempt is None else attempt
        elapsed = one.elapsed
        if elapsed is None and one.time is not None and attempt in self._starts:
            elapsed = one.time - self._starts[attempt]
        return {
            "attempt": attempt,
            "rank": 0,
            "update": place[1] if update is None else update,
            "time": moment(one.time),
            "elapsed_s": elapsed,
        }


class _Told:
    """What the hyperparameters tell of every update."""

    def __init__(self, recognised: Recognised | None, hyperparameters: Mapping[str, Any]) -> None:
        library = recognised.library if recognised is not None else None
        self.settings: dict[str, Any] = {}
        self.total_steps: float | None = None
        if library is None:
            return
        for setting in library.settings:
            value = _plain_number(hyperparameters.get(setting.name))
            if value is not None:
                self.settings[setting.column] = int(value) if setting.column == "epochs_planned" else value
        if library.total_steps is not None:
            self.total_steps = _plain_number(hyperparameters.get(library.total_steps))


def _plain_number(value: Any) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        return None
    return float(value)


def _update(group: _Group, told: _Told, recognised: Recognised | None) -> dict[str, Any]:
    assert recognised is not None
    row: dict[str, Any] = dict(told.settings)
    for name, one in group.values.items():
        tag = recognised.columns[name]
        row[tag.column] = one.value * tag.factor
    row["definition"] = recognised.library.definition
    row["nonfinite_fields"] = sorted(name for name, one in group.values.items() if not math.isfinite(one.value))
    if not recognised.library.step_is_update and group.step is not None:
        row["step"] = group.step
        if told.total_steps:
            row["progress"] = min(1.0, group.step / told.total_steps)
    return row


def _episodes(
    values: Sequence[Logged], left: Sequence[int], library: Library, identify: _Identity, rows: list[dict[str, Any]]
) -> list[int]:
    """Adds a row per finished episode; returns the positions that are left. Of an episode, the return comes first."""
    waiting: dict[int | None, list[dict[str, Any]]] = defaultdict(list)
    counts: dict[int, int] = defaultdict(int)
    for row in rows:
        counts[row["attempt"]] += 1
    rest = []
    for index in left:
        one = values[index]
        whole = math.isfinite(one.value) and one.value == int(one.value)
        if one.tag == library.episode_length and whole and waiting[one.step]:
            waiting[one.step].pop(0)["episode_length"] = int(one.value)
        elif one.tag == library.episode_return:
            row = identify.row(index) | {"step": one.step, "episode_return": one.value}
            counts[row["attempt"]] += 1
            row["episode"] = counts[row["attempt"]]
            waiting[one.step].append(row)
            rows.append(row)
        else:
            rest.append(index)
    return rest


def _columns(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    names = dict.fromkeys(name for row in rows for name in row)
    return {name: [row.get(name) for row in rows] for name in names}


def _stretches(rows: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Stretch]:
    found: dict[int, list[Mapping[str, Any]]] = defaultdict(list)
    for row in itertools.chain(*rows.values()):
        found[row["attempt"]].append(row)
    made: dict[int, set[int]] = defaultdict(set)
    for row in rows.get("ppo_updates", ()):
        made[row["attempt"]].add(row["update"])
    result = []
    for attempt in sorted(found):
        times = [row["time"] for row in found[attempt] if row["time"] is not None]
        first = min(made[attempt], default=1)
        result.append(Stretch(attempt, first, min(times, default=None), max(times, default=None), len(made[attempt])))
    return result


def _superseded(rows: Sequence[Mapping[str, Any]], stretches: Sequence[Stretch]) -> int:
    return sum(
        any(later.attempt > row["attempt"] and later.from_update <= row["update"] for later in stretches)
        for row in rows
    )
