"""What lies deeper in Esper's events: heads, recurrent states, rewards, slots, phases.

A function of `EXTRA_ROWS` takes the keys it knows by their pattern out of the rest of an event, makes rows of other
tables, and returns columns for the event's own row. A function of `NESTED` makes rows of what lies under one key.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from esper_recorder.esper.field_map import event_kinds
from esper_recorder.esper.field_map.event_batch import DIFFERS, NO_COLUMN, WRONG_TYPE, Block, EventBatch, Rest
from esper_recorder.esper.field_map.event_kinds import Kind
from esper_recorder.esper.field_map.event_values import fraction, is_nonfinite, misfits, same

_HEAD = re.compile(rf"head_(.+)_({'|'.join(event_kinds.HEAD_COLUMNS)})")
_STATE = re.compile(rf"((?:rollout_)?lstm)_([hc])_({'|'.join(event_kinds.STATE_COLUMNS)})")
_STATE_FLAG = re.compile(rf"((?:rollout_)?lstm)_({'|'.join(event_kinds.STATE_FLAGS)})")
_HEAD_TELEMETRY = {"confidence": "confidence", "entropy": "entropy_normalized"}


# --- whole events -----------------------------------------------------------------------------------------------------


def map_update(batch: EventBatch, rest: Rest) -> Block:
    """Add heads, recurrent states and the two tables beside `ppo_updates`; derive columns of the whole event."""
    for kind in (event_kinds.ESPER_UPDATE, event_kinds.SYSTEM):
        columns, _ = batch.take(kind, [(key, rest.pop(key)) for key in kind.columns if key in rest])
        if columns:
            batch.add(kind.table, columns)
    _add_heads(batch, rest)
    _add_states(batch, rest)
    derived: Block = {
        "nonfinite_fields": [
            sorted(key for key, value in payload.items() if is_nonfinite(value)) for payload in batch.payloads
        ],
        "progress": _progress(batch),
    }
    if "early_stop_epoch" in batch.payloads[0]:
        # Here null is an answer: the update was not stopped.
        derived["stopped_early"] = [payload["early_stop_epoch"] is not None for payload in batch.payloads]
    return derived


def add_skipped_update(batch: EventBatch) -> None:
    """Add the rows of an update that the trainer skipped (its rollout was thrown away): they have measured nothing.

    The numbers of its event are placeholders (losses and gradients 0.0, ratios 1.0) that no detector evaluated live.
    As measurements they would look like a healthy update, so they are kept in `raw_events` alone.
    """
    definition = [event_kinds.DEFINITION] * len(batch)
    batch.add("ppo_updates", {"definition": definition, "progress": _progress(batch)})
    batch.add("esper_updates", {"update_skipped": [True] * len(batch)})
    for index, payload in enumerate(batch.payloads):
        batch.keep(index, "data", NO_COLUMN, payload)


def _progress(batch: EventBatch) -> list[float | None]:
    total = batch.training.total_episodes
    return [fraction(epoch, total) for epoch in batch.of_envelope("epoch")]


def map_alarm(batch: EventBatch, rest: Rest) -> Block:
    """Split an alarm's `anomaly_type` into rule and key."""
    types = batch.fit("alarms", "rule", "anomaly_type", rest.pop("anomaly_type", [None] * len(batch)))
    names = [_rule_and_key(name) for name in types]
    progress = [fraction(payload.get("episode") or None, payload.get("total_episodes")) for payload in batch.payloads]
    return {"rule": [rule for rule, _ in names], "key": [key for _, key in names], "progress": progress}


def _rule_and_key(anomaly_type: str | None) -> tuple[str | None, str]:
    for rule in event_kinds.KEYED_ALARMS:
        if anomaly_type is not None and anomaly_type.startswith(f"{rule}_"):
            return rule, anomaly_type.removeprefix(f"{rule}_")
    return anomaly_type, ""


def map_decision(batch: EventBatch, rest: Rest) -> Block:
    """Add masks and telemetry of the heads, and the reward with its terms; list slots and alternatives."""
    _add_decision_heads(batch, rest)
    _add_rewards(batch, rest)
    return {**_slot_labels(batch, rest), **_alternatives(batch, rest)}


EXTRA_ROWS: dict[str, Callable[[EventBatch, Rest], Block]] = {
    "ppo_updates": map_update,
    "alarms": map_alarm,
    "decisions": map_decision,
}
"""Table of an event's own row -> what makes its other rows and the remaining columns."""


def _add_heads(batch: EventBatch, rest: Rest) -> None:
    keys_of_head: dict[str, dict[str, str]] = {}
    for key in rest:
        if match := _HEAD.fullmatch(key):
            keys_of_head.setdefault(match[1], {})[key] = event_kinds.HEAD_COLUMNS[match[2]]
    flags = {column: _flags(batch, key, rest.pop(key)) for key, column in event_kinds.HEAD_FLAGS.items() if key in rest}
    for flags_of_event in (flag_by_head for column in flags.values() for flag_by_head in column):
        for head in flags_of_event:
            keys_of_head.setdefault(head, {})
    for head, keys in keys_of_head.items():
        columns, _ = batch.take(Kind("heads", keys), [(key, rest.pop(key)) for key in keys])
        for column, by_event in flags.items():
            columns[column] = [flag_by_head.get(head) for flag_by_head in by_event]
        _add_measured(batch, "heads", columns, {"head": head})


def _flags(batch: EventBatch, key: str, values: Sequence[Any]) -> list[dict[str, bool]]:
    """Return head -> flag for each event; empty if an event has none."""
    flags: list[dict[str, bool]] = []
    for index, value in enumerate(values):
        by_head = value if isinstance(value, dict) else {}
        if value is not None and (value is not by_head or misfits([*by_head.values()], "bool")):
            batch.keep(index, key, WRONG_TYPE, value)
            by_head = {}
        flags.append(by_head)
    return flags


def _add_states(batch: EventBatch, rest: Rest) -> None:
    states: dict[tuple[str, str], dict[str, str]] = {}
    for key in rest:
        if match := _STATE.fullmatch(key):
            states.setdefault((match[1], match[2]), {})[key] = event_kinds.STATE_COLUMNS[match[3]]
        elif match := _STATE_FLAG.fullmatch(key):
            states.setdefault((match[1], ""), {})[key] = event_kinds.STATE_FLAGS[match[2]]
    for (layer, kind), keys in states.items():
        columns, _ = batch.take(Kind("recurrent_state", keys), [(key, rest.pop(key)) for key in keys])
        _add_measured(batch, "recurrent_state", columns, {"layer": layer, "kind": kind})


def _add_measured(batch: EventBatch, table: str, columns: Block, key: Mapping[str, str]) -> None:
    """Add rows of a table, except those with nothing but the key."""
    indices: list[int] | None = None
    if not any(type(None) not in set(map(type, values)) for values in columns.values()):
        rows = zip(*columns.values(), strict=True)
        indices = [index for index, values in enumerate(rows) if values.count(None) < len(values)]
        if not indices:
            return
    batch.add(table, columns | {name: [value] * len(batch) for name, value in key.items()}, indices)


def _add_decision_heads(batch: EventBatch, rest: Rest) -> None:
    masks = {
        head: batch.fit("decision_heads", "masked", key, rest.pop(key))
        for key, head in event_kinds.MASKS.items()
        if key in rest
    }
    if not masks and "head_telemetry" not in rest:
        return
    telemetry = [value or {} for value in _mappings(batch, "head_telemetry", rest.pop("head_telemetry", ()))]
    # Masks pass through the context, under names that no column has, so that they are split like the telemetry.
    context = {f"masked {head}": values for head, values in masks.items()}
    for part in batch.nested("head_telemetry", range(len(batch)), telemetry or [{}] * len(batch), **context):
        heads: dict[str, Block] = {head: {"masked": part.context[f"masked {head}"]} for head in masks}
        unknown: Rest = {}
        for key, values in part.columns():
            head, _, metric = key.rpartition("_")
            if head and metric in _HEAD_TELEMETRY:
                column = _HEAD_TELEMETRY[metric]
                columns = heads.setdefault(event_kinds.HEAD_NAMES.get(head, head), {})
                columns[column] = part.fit("decision_heads", column, key, values)
            else:
                unknown[key] = values
        part.keep_rest(unknown, event_kinds.DECISION)
        for head, columns in heads.items():
            _add_measured(part, "decision_heads", columns, {"head": head})


def _add_rewards(batch: EventBatch, rest: Rest) -> None:
    breakdowns = [*_mappings(batch, "reward_components", rest.pop("reward_components", ()))]
    top_level = {key: rest.pop(key) for key in event_kinds.TOP_LEVEL_REWARDS if key in rest}
    if not breakdowns:
        columns, _ = batch.take(event_kinds.REWARD, top_level.items())
        _add_measured(batch, "rewards", columns, {})
        return
    # A term of the top level fills the breakdown if that lacks it, and must agree with it otherwise.
    for key, values in top_level.items():
        for index, (value, breakdown) in enumerate(zip(values, breakdowns, strict=True)):
            term = breakdown.get(key) if breakdown else None
            if value is None or same(value, term):
                continue
            if term is not None:
                batch.keep(index, key, DIFFERS, value)
            else:
                breakdowns[index] = {**(breakdown or {}), key: value}
    indices = [index for index, breakdown in enumerate(breakdowns) if breakdown]
    for part in batch.nested("reward_components", indices, [breakdowns[index] or {} for index in indices]):
        part.add_kind(event_kinds.REWARD)


def _slot_labels(batch: EventBatch, rest: Rest) -> Block:
    """`slot_states`: slot -> what is in it, as two lists of one order."""
    if "slot_states" not in rest:
        return {}
    states = [*_mappings(batch, "slot_states", rest.pop("slot_states"))]
    labels = [None if labels is None else [*labels.values()] for labels in states]
    return {
        "slots": [None if labels is None else [*labels] for labels in states],
        "slot_labels": batch.fit("decisions", "slot_labels", "slot_states", labels),
    }


def _alternatives(batch: EventBatch, rest: Rest) -> Block:
    """`alternatives`: pairs of operation and probability, as two lists of one order."""
    if "alternatives" not in rest:
        return {}
    pairs = list(rest.pop("alternatives"))
    for index, value in enumerate(pairs):
        if value is not None and not _are_pairs(value):
            batch.keep(index, "alternatives", WRONG_TYPE, value)
            pairs[index] = None
    return {
        column: [None if value is None else [pair[position] for pair in value] for value in pairs]
        for position, column in enumerate(("alternatives", "alternative_probabilities"))
    }


def _are_pairs(value: Any) -> bool:
    """Whether a value is a list of [text, number]."""
    return type(value) is list and all(
        type(pair) is list and len(pair) == 2 and type(pair[0]) is str and type(pair[1]) is float for pair in value
    )


# --- values under one key ---------------------------------------------------------------------------------------------


def _named_rows(
    key: str, kind: Kind, name_column: str, number_column: str | None = None
) -> Callable[[EventBatch, Sequence[Any]], None]:
    """Make a function for a key that maps names to mappings, or to numbers if their column is named: a row for each."""

    def add_rows(batch: EventBatch, values: Sequence[Any]) -> None:
        indices, names, payloads = [], [], []
        for index, members in enumerate(_mappings(batch, key, values)):
            for name, member in (members or {}).items():
                payload = member if number_column is None else {number_column: member}
                if isinstance(payload, dict):
                    indices.append(index)
                    names.append(name)
                    payloads.append(payload)
                else:
                    batch.keep(index, f"{key}.{name}", WRONG_TYPE, member)
        for part in batch.nested(f"{key}.{{{name_column}}}", indices, payloads, **{name_column: names}):
            part.add_kind(kind)

    return add_rows


def _add_observations(batch: EventBatch, values: Sequence[Any]) -> None:
    statistics = [*_mappings(batch, "observation_stats", values)]
    steps = batch.context["step" if "step" in batch.context else "epoch"]
    indices = [index for index, value in enumerate(statistics) if value]
    payloads = [value for value in statistics if value]
    for part in batch.nested("observation_stats", indices, payloads, step=[steps[index] for index in indices]):
        part.add_kind(event_kinds.OBSERVATIONS)


def _add_configurations(batch: EventBatch, values: Sequence[Any]) -> None:
    indices, payloads, numbers, active = [], [], [], []
    slots = batch.context.get("slots", [None] * len(batch))
    for index, configurations in enumerate(values):
        if not _is_matrix(configurations, slots[index]):
            if configurations is not None:
                batch.keep(index, "configs", WRONG_TYPE, configurations)
            continue
        for number, configuration in enumerate(configurations, 1):
            indices.append(index)
            numbers.append(number)
            mask = configuration["seed_mask"]
            active.append([slot for slot, on in zip(slots[index], mask, strict=True) if on])
            payloads.append({key: value for key, value in configuration.items() if key != "seed_mask"})
    for part in batch.nested("configs.{configuration}", indices, payloads, configuration=numbers, active=active):
        part.add_kind(event_kinds.CONFIGURATION)


def _is_matrix(configurations: Any, slots: Any) -> bool:
    """Whether a value is a list of mappings, each with a flag for each slot."""
    return (
        type(configurations) is list
        and slots is not None
        and all(
            isinstance(configuration, dict)
            and type(configuration.get("seed_mask")) is list
            and len(configuration["seed_mask"]) == len(slots)
            and all(type(on) is bool for on in configuration["seed_mask"])
            for configuration in configurations
        )
    )


def _mappings(batch: EventBatch, key: str, values: Sequence[Any]) -> Iterator[Mapping[str, Any] | None]:
    """Yield the values; one that is not a mapping is kept in `raw_events`, and None."""
    for index, value in enumerate(values):
        if value is None or isinstance(value, dict):
            yield value
        else:
            batch.keep(index, key, WRONG_TYPE, value)
            yield None


NESTED: dict[str, Callable[[EventBatch, Sequence[Any]], None]] = {
    "action_counts": _named_rows("action_counts", Kind("action_counts", {"n": "n"}), "action", "n"),
    "layer_gradient_health": _named_rows(
        "layer_gradient_health", Kind("layer_health", {"health": "health"}), "layer", "health"
    ),
    "seeds": _named_rows("seeds", event_kinds.SLOT_EPOCH, "slot"),
    "phases": _named_rows("phases", event_kinds.PROFILE_PHASE, "phase"),
    "shapley_values": _named_rows("shapley_values", event_kinds.SHAPLEY, "slot"),
    "configs": _add_configurations,
    "observation_stats": _add_observations,
}
"""Key of the data -> what makes rows of the values under it."""
