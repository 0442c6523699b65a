"""The parts of Esper's events that are no plain values: heads, recurrent states, rewards, slots, phases.

A function for an event takes the keys it knows by their pattern out of the rest, makes rows of other tables, and
returns columns for the event's own. A function for a part makes rows of what lies under one key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from esper_recorder.esper.field_map import fields as layout
from esper_recorder.esper.field_map.event_columns import (
    DIFFERS,
    NO_COLUMN,
    WRONG_TYPE,
    Block,
    Entries,
    is_nonfinite,
    misfits,
    same,
)
from esper_recorder.esper.field_map.field_columns import Rest, envelope, keep_rest, map_rows, take_columns
from esper_recorder.esper.field_map.fields import Kind

_HEAD = re.compile(rf"head_(.+)_({'|'.join(layout.HEAD_COLUMNS)})")
_STATE = re.compile(rf"((?:rollout_)?lstm)_([hc])_({'|'.join(layout.STATE_COLUMNS)})")
_STATE_FLAG = re.compile(rf"((?:rollout_)?lstm)_({'|'.join(layout.STATE_FLAGS)})")
_NOTHING = {type(None)}
_TOLD_OF_HEAD = {"confidence": "confidence", "entropy": "entropy_normalized"}


# --- whole events -----------------------------------------------------------------------------------------------------


def of_ppo_update(entries: Entries, rest: Rest) -> Block:
    """Heads, recurrent states and the two tables beside `ppo_updates`; what is derived from the whole event."""
    for kind in (layout.ESPER_UPDATE, layout.SYSTEM):
        own, _ = take_columns(entries, kind, [(key, rest.pop(key)) for key in kind.columns if key in rest])
        if own:
            entries.out.add(kind.table, entries.block(kind.table, own))
    _heads(entries, rest)
    _states(entries, rest)
    total = entries.training.total_episodes
    derived: Block = {
        "nonfinite_fields": [
            sorted(key for key, value in data.items() if is_nonfinite(value)) for data in entries.datas
        ],
        "progress": [_share(epoch, total) for epoch in envelope(entries, "epoch")],
    }
    if "early_stop_epoch" in entries.datas[0]:
        # Here null is an answer: the update was not stopped.
        derived["stopped_early"] = [data["early_stop_epoch"] is not None for data in entries.datas]
    return derived


def of_alarm(entries: Entries, rest: Rest) -> Block:
    """Rule and key of an alarm, from its `anomaly_type`."""
    types = entries.fitted("alarms", "rule", "anomaly_type", rest.pop("anomaly_type", [None] * len(entries)))
    split = [_rule_and_key(name) for name in types]
    progress = [_share(data.get("episode") or None, data.get("total_episodes")) for data in entries.datas]
    return {"rule": [rule for rule, _ in split], "key": [key for _, key in split], "progress": progress}


def of_decision(entries: Entries, rest: Rest) -> Block:
    """The masks and the telemetry of the heads, and the reward with its terms, in a breakdown or beside it."""
    _decision_heads(entries, rest)
    _rewards(entries, rest)
    return {**_slot_labels(entries, rest), **_alternatives(entries, rest)}


def skipped_update(entries: Entries) -> None:
    """An update the trainer did not make (its rollout was thrown away) is a row that measured nothing.

    The numbers of its event are placeholders (losses and gradients 0.0, ratios 1.0), and no detector looked at them
    live; they are kept in `raw_events`.
    """
    total = entries.training.total_episodes
    told: Block = {
        "definition": [layout.DEFINITION] * len(entries),
        "progress": [_share(epoch, total) for epoch in envelope(entries, "epoch")],
    }
    entries.out.add("ppo_updates", entries.block("ppo_updates", told))
    entries.out.add("esper_updates", entries.block("esper_updates", {"update_skipped": [True] * len(entries)}))
    for place, data in enumerate(entries.datas):
        entries.keep(place, "data", NO_COLUMN, data)


WHOLE: dict[str, Callable[[Entries, Rest], Block]] = {
    "ppo_updates": of_ppo_update,
    "alarms": of_alarm,
    "decisions": of_decision,
}
"""Table of an event's own row -> what else its event makes."""


def _share(done: Any, total: Any) -> float | None:
    numbers = (int, float)
    return done / total if type(done) in numbers and type(total) in numbers and total else None


def _rule_and_key(name: str | None) -> tuple[str | None, str]:
    for rule in layout.KEYED_ALARMS:
        if name is not None and name.startswith(f"{rule}_"):
            return rule, name.removeprefix(f"{rule}_")
    return name, ""


def _heads(entries: Entries, rest: Rest) -> None:
    heads: dict[str, dict[str, str]] = {}
    for key in rest:
        if match := _HEAD.fullmatch(key):
            heads.setdefault(match[1], {})[key] = layout.HEAD_COLUMNS[match[2]]
    flags = {column: _flags(entries, key, rest.pop(key)) for key, column in layout.HEAD_FLAGS.items() if key in rest}
    for told in (told for of_events in flags.values() for told in of_events):
        for head in told:
            heads.setdefault(head, {})
    for head, keys in heads.items():
        rows, _ = take_columns(entries, Kind("heads", keys), [(key, rest.pop(key)) for key in keys])
        for column, of_events in flags.items():
            rows[column] = [told.get(head) for told in of_events]
        _add_where_told(entries, "heads", rows, {"head": head})


def _flags(entries: Entries, key: str, values: Sequence[Any]) -> list[dict[str, bool]]:
    """For each event a mapping of head to flag; empty where there is none."""
    result: list[dict[str, bool]] = []
    for place, value in enumerate(values):
        told = value if isinstance(value, dict) else {}
        if value is not None and (value is not told or misfits([*told.values()], "bool")):
            entries.keep(place, key, WRONG_TYPE, value)
            told = {}
        result.append(told)
    return result


def _states(entries: Entries, rest: Rest) -> None:
    states: dict[tuple[str, str], dict[str, str]] = {}
    for key in rest:
        if match := _STATE.fullmatch(key):
            states.setdefault((match[1], match[2]), {})[key] = layout.STATE_COLUMNS[match[3]]
        elif match := _STATE_FLAG.fullmatch(key):
            states.setdefault((match[1], ""), {})[key] = layout.STATE_FLAGS[match[2]]
    for (layer, kind), keys in states.items():
        rows, _ = take_columns(entries, Kind("recurrent_state", keys), [(key, rest.pop(key)) for key in keys])
        _add_where_told(entries, "recurrent_state", rows, {"layer": layer, "kind": kind})


def _add_where_told(entries: Entries, table: str, rows: Block, key: Mapping[str, str]) -> None:
    """Rows of a table, but not where they would hold nothing beside their key."""
    if any(set(map(type, values)).isdisjoint(_NOTHING) for values in rows.values()):
        places: Sequence[int] = range(len(entries))
    else:
        told = zip(*rows.values(), strict=True)
        places = [place for place, values in enumerate(told) if values.count(None) < len(values)]
    if not places:
        return
    whole = entries.block(table, rows | {name: [value] * len(entries) for name, value in key.items()})
    if len(places) < len(entries):
        whole = {name: [values[place] for place in places] for name, values in whole.items()}
    entries.out.add(table, whole)


def _decision_heads(entries: Entries, rest: Rest) -> None:
    masks = {
        head: entries.fitted("decision_heads", "masked", key, rest.pop(key))
        for key, head in layout.MASKS.items()
        if key in rest
    }
    if not masks and "head_telemetry" not in rest:
        return
    everyone = range(len(entries))
    told = [value or {} for value in _mappings(entries, "head_telemetry", rest.pop("head_telemetry", ()))]
    given = {f"masked {head}": values for head, values in masks.items()}  # no column's name: for the rows below
    for below in entries.below("head_telemetry", everyone, told or [{}] * len(entries), **given):
        heads: dict[str, Block] = {head: {"masked": below.given[f"masked {head}"]} for head in masks}
        left: Rest = {}
        for key, values in below.values():
            head, _, what = key.rpartition("_")
            if head and what in _TOLD_OF_HEAD:
                column = _TOLD_OF_HEAD[what]
                fitted = below.fitted("decision_heads", column, key, values)
                heads.setdefault(layout.HEAD_NAMES.get(head, head), {})[column] = fitted
            else:
                left[key] = values
        keep_rest(below, left, layout.DECISION)
        for head, rows in heads.items():
            _add_where_told(below, "decision_heads", rows, {"head": head})


def _rewards(entries: Entries, rest: Rest) -> None:
    breakdowns = [*_mappings(entries, "reward_components", rest.pop("reward_components", ()))]
    beside = {key: rest.pop(key) for key in layout.TOP_LEVEL_REWARDS if key in rest}
    if not breakdowns:
        columns, _ = take_columns(entries, layout.REWARD, beside.items())
        _add_where_told(entries, "rewards", columns, {})
        return
    # A term that stands beside the breakdown too is taken from there where the breakdown has none.
    for key, values in beside.items():
        for place, (value, breakdown) in enumerate(zip(values, breakdowns, strict=True)):
            told = breakdown.get(key) if breakdown else None
            if value is None or same(value, told):
                continue
            if told is not None:
                entries.keep(place, key, DIFFERS, value)
            else:
                breakdowns[place] = {**(breakdown or {}), key: value}
    places = [place for place, breakdown in enumerate(breakdowns) if breakdown]
    for below in entries.below("reward_components", places, [breakdowns[place] or {} for place in places]):
        map_rows(below, layout.REWARD)


def _slot_labels(entries: Entries, rest: Rest) -> Block:
    """`slot_states`: slot -> what is in it, as two lists of one order."""
    if "slot_states" not in rest:
        return {}
    found = [*_mappings(entries, "slot_states", rest.pop("slot_states"))]
    return {
        "slots": [None if told is None else [*told] for told in found],
        "slot_labels": entries.fitted(
            "decisions", "slot_labels", "slot_states", [None if told is None else [*told.values()] for told in found]
        ),
    }


def _alternatives(entries: Entries, rest: Rest) -> Block:
    """`alternatives`: pairs of operation and probability, as two lists of one order."""
    if "alternatives" not in rest:
        return {}
    names: list[list[str] | None] = []
    probabilities: list[list[float] | None] = []
    for place, pairs in enumerate(rest.pop("alternatives")):
        if pairs is not None and not _are_pairs(pairs):
            entries.keep(place, "alternatives", WRONG_TYPE, pairs)
            pairs = None
        names.append(None if pairs is None else [name for name, _ in pairs])
        probabilities.append(None if pairs is None else [probability for _, probability in pairs])
    return {"alternatives": names, "alternative_probabilities": probabilities}


def _are_pairs(value: Any) -> bool:
    """A list of [text, number]."""
    return type(value) is list and all(
        type(pair) is list and len(pair) == 2 and type(pair[0]) is str and type(pair[1]) is float for pair in value
    )


# --- parts ------------------------------------------------------------------------------------------------------------


def _of_each(part: str, kind: Kind, name: str) -> Callable[[Entries, Sequence[Any]], None]:
    """A part that maps names to mappings: a row for each, its name in a column."""

    def rows(entries: Entries, values: Sequence[Any]) -> None:
        places, names, datas = [], [], []
        for place, members in enumerate(_mappings(entries, part, values)):
            for member, data in (members or {}).items():
                if isinstance(data, dict):
                    places.append(place)
                    names.append(member)
                    datas.append(data)
                else:
                    entries.keep(place, f"{part}.{member}", WRONG_TYPE, data)
        for below in entries.below(f"{part}.{{{name}}}", places, datas, **{name: names}):
            map_rows(below, kind)

    return rows


def _of_numbers(part: str, table: str, name: str, number: str) -> Callable[[Entries, Sequence[Any]], None]:
    """A part that maps names to numbers: a row for each, name and number in a column each."""

    def rows(entries: Entries, values: Sequence[Any]) -> None:
        places, names, datas = [], [], []
        for place, members in enumerate(_mappings(entries, part, values)):
            for member, value in (members or {}).items():
                places.append(place)
                names.append(member)
                datas.append({number: value})
        for below in entries.below(f"{part}.{{{name}}}", places, datas, **{name: names}):
            map_rows(below, Kind(table, {number: number}))

    return rows


def _observations(entries: Entries, values: Sequence[Any]) -> None:
    found = [(place, value) for place, value in enumerate(_mappings(entries, "observation_stats", values)) if value]
    steps = entries.given["step" if "step" in entries.given else "epoch"]
    places = [place for place, _ in found]
    told = {"step": [steps[place] for place in places]}
    for below in entries.below("observation_stats", places, [value for _, value in found], **told):
        map_rows(below, layout.OBSERVATIONS)


def _configurations(entries: Entries, values: Sequence[Any]) -> None:
    places, datas, numbers, active = [], [], [], []
    slots = entries.given.get("slots", [None] * len(entries))
    for place, configurations in enumerate(values):
        if not _is_matrix(configurations, slots[place]):
            if configurations is not None:
                entries.keep(place, "configs", WRONG_TYPE, configurations)
            continue
        for number, configuration in enumerate(configurations, 1):
            places.append(place)
            numbers.append(number)
            mask = configuration["seed_mask"]
            active.append([slot for slot, on in zip(slots[place], mask, strict=True) if on])
            datas.append({key: value for key, value in configuration.items() if key != "seed_mask"})
    for below in entries.below("configs.{configuration}", places, datas, configuration=numbers, active=active):
        map_rows(below, layout.CONFIGURATION)


def _is_matrix(configurations: Any, slots: Any) -> bool:
    """A list of mappings, each with a flag for each slot."""
    return (
        type(configurations) is list
        and slots is not None
        and all(
            isinstance(one, dict)
            and type(one.get("seed_mask")) is list
            and len(one["seed_mask"]) == len(slots)
            and all(type(on) is bool for on in one["seed_mask"])
            for one in configurations
        )
    )


def _mappings(entries: Entries, key: str, values: Sequence[Any]) -> Iterator[Mapping[str, Any] | None]:
    """The values; what is no mapping is kept in `raw_events` and None."""
    for place, value in enumerate(values):
        if value is None or isinstance(value, dict):
            yield value
        else:
            entries.keep(place, key, WRONG_TYPE, value)
            yield None


PARTS: dict[str, Callable[[Entries, Sequence[Any]], None]] = {
    "action_counts": _of_numbers("action_counts", "action_counts", "action", "n"),
    "layer_gradient_health": _of_numbers("layer_gradient_health", "layer_health", "layer", "health"),
    "seeds": _of_each("seeds", layout.SLOT_EPOCH, "slot"),
    "phases": _of_each("phases", layout.PROFILE_PHASE, "phase"),
    "shapley_values": _of_each("shapley_values", layout.SHAPLEY, "slot"),
    "configs": _configurations,
    "observation_stats": _observations,
}
"""Key of the data -> what makes rows of what lies under it."""
