"""Every value of every event of Esper is in a column, and the right one."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

from esper_recorder.esper.field_map import event_kinds
from esper_recorder.esper.field_map.event_batch import EventRows, column_types
from esper_recorder.esper.field_map.event_mapping import PlacedEvent, map_events
from esper_recorder.esper.field_map.event_values import microseconds, misfits
from esper_recorder.esper.field_map.update_clock import Clock
from tests.esper_files import ALL_KINDS, EXCERPTS, WHOLE, Event, event, events

Rows = list[dict[str, Any]]


def mapped(all_events: list[Event], clock: Clock | None = None) -> EventRows:
    clock = clock or Clock()
    return map_events([PlacedEvent(line, event, *clock.place(event)) for line, event in enumerate(all_events, 1)])


def rows(result: EventRows, table: str) -> Rows:
    found = []
    for block in result.blocks.get(table, ()):
        assert len({len(values) for values in block.values()}) == 1, "columns of different lengths"
        found += [dict(zip(block, values, strict=True)) for values in zip(*block.values(), strict=True)]
    return found


def leaves(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, value) of everything that is not a mapping or list, and not null."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from leaves(inner, (*path, key))
    elif isinstance(value, list):
        for place, inner in enumerate(value):
            yield from leaves(inner, (*path, place))
    elif value is not None:
        yield path, value


def exact(value: Any) -> Any:
    """What distinguishes a value from all others: NaN is NaN, -0.0 is not 0.0, True is not 1."""
    return (type(value), repr(value)) if isinstance(value, float | bool) else value


def findable(result: EventRows) -> dict[Any, set[Any]]:
    """Time of an event -> every value in the rows that were made of it, those of `raw_events` included."""
    found: dict[Any, set[Any]] = {}
    for blocks in result.blocks.values():
        for block in blocks:
            for place, time in enumerate(block["time"]):
                held = found.setdefault(time, set())
                for values in block.values():
                    value = values[place]
                    held.update(map(exact, value) if isinstance(value, list) else [exact(value)])
    return found


def forms(path: tuple[Any, ...], value: Any) -> list[Any]:
    """The forms in which a value may stand in a column, by what is documented."""
    name = path[-1]
    if name in ("episode_idx", "batch_idx") and isinstance(value, int):
        return [value, value + 1]
    if name == "rng_seed":
        return [str(value)]
    if name == "decision_entropy":
        return [exact(float(value))]
    if name == "update_time_ms":
        return [exact(value / 1000)]
    if name == "anomaly_type":
        return [value, *(value.removeprefix(f"{rule}_") for rule in event_kinds.KEYED_ALARMS)]
    if "op_valid_mask" in path:
        return [int(value)]
    if "seed_mask" in path:
        return [exact(value), None] if value is False else []  # see the test of the matrices
    if isinstance(value, int) and not isinstance(value, bool):
        return [value, exact(float(value))]
    return [exact(value)]


NOT_CHECKED = ("timestamp", "group_id", "seed_mask", "num_slots")


SMALL_AND_WHOLE = [*ALL_KINDS, *EXCERPTS, *(pytest.param(path, marks=pytest.mark.slow) for path in WHOLE)]


@pytest.mark.parametrize("path", SMALL_AND_WHOLE, ids=lambda path: path.name)
def test_every_value_of_every_event_is_in_one_of_its_rows(path: Path) -> None:
    all_events = events(path)
    [started] = [event for event in all_events if event["event_type"] == "TRAINING_STARTED"]
    config = {exact(value) for _, value in leaves(started["data"])}
    result = mapped(all_events)
    assert not result.reasons, "something was not typed"
    held = findable(result)
    checked = 0
    for sent in all_events:
        if sent is started:
            continue
        found = held[microseconds(sent["timestamp"])]
        found = found | config if "anomaly_type" in sent["data"] else found
        for where, value in leaves(sent):
            if any(name in NOT_CHECKED for name in where):
                continue
            checked += 1
            assert any(form in found for form in forms(where, value)), (sent["event_type"], where, value)
    assert checked > 3 * len(all_events)


@pytest.mark.parametrize("path", ALL_KINDS, ids=lambda path: path.name)
def test_no_value_is_found_only_because_another_equals_it(path: Path) -> None:
    """Each event again with every number and text replaced by a unique one: each is found, typed or kept."""
    seen = set()
    unique = 1_000_003
    for sent in events(path):
        data = sent["data"]
        shape = (sent["event_type"], data.get("kind"), data.get("phase"), bool(data.get("seeds")), data.get("style"))
        if sent["event_type"] == "TRAINING_STARTED" or shape in seen:
            continue
        seen.add(shape)
        changed = deepcopy(sent)
        expected: list[tuple[Any, Any]] = []
        for where, value in leaves(sent["data"]):
            if where[-1] in ("kind", "batch", "batch_idx", "anomaly_type") or isinstance(value, bool):
                continue
            unique += 1
            new: Any = f"text {unique}" if isinstance(value, str) else type(value)(unique)
            if where[-1] == "decision_entropy":
                new = str(float(unique))
            inner = changed["data"]
            for step in where[:-1]:
                inner = inner[step]
            inner[where[-1]] = new
            expected.append((where, new))
        result = mapped([changed])
        held = set().union(*findable(result).values())
        kept = "\n".join(row["text"] for row in rows(result, "raw_events"))
        for where, new in expected:
            is_found = any(form in held for form in forms(where, new)) or str(new) in kept
            assert is_found, (sent["event_type"], where, new)


@pytest.mark.parametrize("path", ALL_KINDS, ids=lambda path: path.name)
def test_stored_values_fit_the_declared_columns(path: Path) -> None:
    result = mapped(events(path))
    for table, blocks in result.blocks.items():
        types = column_types(table)
        for block in blocks:
            assert set(block) <= set(types), table
            for name, values in block.items():
                assert name == "time" or misfits(values, types[name]) == [], (table, name)


def test_every_column_of_the_mapping_is_declared() -> None:
    kinds = [kind for kind in vars(event_kinds).values() if isinstance(kind, event_kinds.Kind)]
    assert len(kinds) > 8
    for kind in [*kinds, *event_kinds.KINDS.values()]:
        columns = [to if isinstance(to, str) else to.column for to in kind.columns.values()]
        assert {*columns, *kind.envelope.values(), *kind.constants} <= set(column_types(kind.table)), kind.table


class TestMeaning:
    def test_espers_grad_norm_is_after_clipping_and_its_entropy_a_weighted_sum(self) -> None:
        payload = {
            "grad_norm": 0.5,
            "pre_clip_grad_norm": 7.0,
            "entropy": 8.0,
            "kl_divergence": 0.01,
            "lr": 1e-4,
            "batch": 3,
        }
        [row] = rows(mapped([event("PPO_UPDATE_COMPLETED", 1, payload | {"batch": 3})]), "ppo_updates")
        assert (row["grad_norm_clipped"], row["grad_norm"], row["entropy_weighted_sum"]) == (0.5, 7.0, 8.0)
        assert (row["approx_kl"], row["learning_rate"], row["update"], row["definition"]) == (0.01, 1e-4, 3, "esper")
        assert "entropy" not in row and "ratio_max" not in row, "an absent key is NULL"

    def test_a_null_key_and_an_absent_key_are_both_null(self) -> None:
        payload = {"batch": 1, "ratio_max": None, "never_heard_of": None}
        result = mapped([event("PPO_UPDATE_COMPLETED", 1, payload)])
        assert "ratio_max" not in rows(result, "ppo_updates")[0]
        assert not result.reasons

    def test_nan_and_infinities_stay_what_they_are_and_are_named(self) -> None:
        payload = {"batch": 1, "explained_variance": math.nan, "ratio_max": math.inf, "value_loss": 1.0}
        [row] = rows(mapped([event("PPO_UPDATE_COMPLETED", 1, payload)]), "ppo_updates")
        assert math.isnan(row["explained_variance"]) and row["ratio_max"] == math.inf
        assert row["nonfinite_fields"] == ["explained_variance", "ratio_max"]

    def test_progress_is_the_fraction_of_planned_episodes_and_null_without_a_plan(self) -> None:
        update = event("PPO_UPDATE_COMPLETED", 1, {"batch": 1}, epoch=30)
        [row] = rows(mapped([event("TRAINING_STARTED", 1, {"n_episodes": 120}), update]), "ppo_updates")
        assert row["progress"] == 30 / 120
        [row] = rows(mapped([update]), "ppo_updates")
        assert row["progress"] is None

    def test_an_update_was_stopped_early_only_if_the_trainer_says_so(self) -> None:
        payloads: list[dict[str, Any]] = [
            {"batch": 1, "early_stop_epoch": None},
            {"batch": 2, "early_stop_epoch": 3},
            {"batch": 3},
        ]
        result = mapped([event("PPO_UPDATE_COMPLETED", 1, data) for data in payloads])
        stopped = {row["update"]: row.get("stopped_early") for row in rows(result, "ppo_updates")}
        assert stopped == {1: False, 2: True, 3: None}

    def test_a_skipped_update_measured_nothing(self) -> None:
        placeholders = {"value_loss": 0.0, "grad_norm": 0.0, "ratio_max": 1.0, "update_skipped": False}
        payloads: list[dict[str, Any]] = [
            {**placeholders, "batch": 1, "skipped": False, "update_skipped": True},  # the optimizer was not asked
            {**placeholders, "batch": 2, "skipped": True},
        ]
        result = mapped([event("PPO_UPDATE_COMPLETED", 1, data, epoch=4) for data in payloads])
        updates = {row["update"]: row for row in rows(result, "ppo_updates")}
        assert updates[1]["grad_norm_clipped"] == 0.0 and updates[1]["nonfinite_fields"] == []
        assert set(updates[2]) == {"update", "time", "definition", "progress"}
        skipped = {row["update"]: row["update_skipped"] for row in rows(result, "esper_updates")}
        assert skipped == {1: True, 2: True}
        [raw] = rows(result, "raw_events")
        assert (raw["key"], raw["reason"], json.loads(raw["text"])) == ("data", "no_column", payloads[1])
        assert result.typed == {"PPO_UPDATE_COMPLETED": 2} and not result.values_rejected

    def test_a_float_without_a_fraction_fits_a_column_of_integers(self) -> None:
        epochs = [2.0, 1.5, math.nan, math.inf, 2.0**60, 3]
        events_ = [
            event("PPO_UPDATE_COMPLETED", 1, {"batch": batch, "early_stop_epoch": epoch})
            for batch, epoch in enumerate(epochs, 1)
        ]
        result = mapped(events_)
        assert [row["early_stop_epoch"] for row in rows(result, "esper_updates")] == [2, None, None, None, None, 3]
        assert [raw["text"] for raw in rows(result, "raw_events")] == [
            "1.5",
            "NaN",
            "Infinity",
            "1.152921504606847e+18",
        ]
        assert result.values_rejected == {"PPO_UPDATE_COMPLETED": 4}

    def test_heads_of_any_name_and_heads_of_flags_are_rows(self) -> None:
        payload = {
            "batch": 1,
            "head_my_head_entropy": 0.5,
            "head_my_head_gradient_state": "finite",
            "head_op_ratio_max": 2.0,
            "head_nan_detected": {"op": True, "third": False},
            "head_value_grad_norm": 1.5,
        }
        result = mapped([event("PPO_UPDATE_COMPLETED", 1, payload)])
        heads = {row["head"]: row for row in rows(result, "heads")}
        assert set(heads) == {"my_head", "op", "third"}
        assert heads["my_head"]["entropy_normalized_all"] == 0.5 and heads["my_head"]["nan_found"] is None
        assert heads["op"]["nan_found"] is True and heads["third"]["nan_found"] is False
        assert rows(result, "esper_updates")[0]["value_head_grad_norm"] == 1.5

    @pytest.mark.parametrize(
        ("anomaly_type", "rule", "key"),
        [
            ("ratio_explosion", "ratio_explosion", ""),
            ("entropy_collapse_alpha_curve", "entropy_collapse", "alpha_curve"),
            ("entropy_nan_inf_op", "entropy_nan_inf", "op"),
            ("entropy_collapse", "entropy_collapse", ""),
        ],
    )
    def test_an_alarm_of_a_head_has_the_head_as_its_key(self, anomaly_type: str, rule: str, key: str) -> None:
        data = {"anomaly_type": anomaly_type, "batch": 4, "episode": 8, "total_episodes": 80, "detail": "d"}
        result = mapped([event("RATIO_EXPLOSION_DETECTED", 1, data, epoch=8, severity="warning")])
        [row] = rows(result, "alarms")
        assert (row["rule"], row["key"], row["update"], row["severity"]) == (rule, key, 4, "warning")
        assert (row["progress"], row["detail"]) == (0.1, "d")

    def test_an_alarm_without_an_update_belongs_to_the_batch_being_collected(self) -> None:
        data = {"anomaly_type": "ppo_finiteness_skip", "batch": 0, "episode": 0, "total_episodes": 80}
        closed = event("BATCH_EPOCH_COMPLETED", 1, {"batch_idx": 6}, epoch=24)
        result = mapped([closed, event("NUMERICAL_INSTABILITY_DETECTED", 1, data)])
        [row] = rows(result, "alarms")
        assert (row["rule"], row["update"], row["progress"]) == ("ppo_finiteness_skip", 7, None)
        assert not result.values_rejected

    def test_the_diagnostic_of_a_ratio_explosion_is_kept_and_not_rejected(self) -> None:
        diagnostic = {"worst_ratio_values": [6.4], "logit_diff_max": 1.8}
        data = {"anomaly_type": "ratio_explosion", "batch": 1, "ratio_diagnostic": diagnostic}
        result = mapped([event("RATIO_EXPLOSION_DETECTED", 1, data)])
        [raw] = rows(result, "raw_events")
        assert (raw["key"], raw["reason"], json.loads(raw["text"])) == (
            "data.ratio_diagnostic",
            "no_column",
            diagnostic,
        )
        assert not result.values_rejected

    def test_a_matrix_names_the_modules_that_were_on(self) -> None:
        data = {
            "env_id": 1,
            "slot_ids": ["a", "b"],
            "configs": [{"seed_mask": [False, False], "accuracy": 1.0}, {"seed_mask": [False, True], "accuracy": 2.0}],
            "strategy": "full",
            "compute_time_ms": 0.5,
        }
        first, second = rows(mapped([event("COUNTERFACTUAL_MATRIX_COMPUTED", 1, data)]), "counterfactuals")
        assert (first["configuration"], first["slots"], first["active"], first["accuracy"]) == (1, ["a", "b"], [], 1.0)
        assert (second["configuration"], second["active"], second["accuracy"]) == (2, ["b"], 2.0)

    def test_a_fossilised_module_is_an_event_of_its_slot(self) -> None:
        data = {
            "slot_id": "r0c0",
            "env_id": 0,
            "blueprint_id": "norm",
            "improvement": 1.5,
            "params_added": 9,
            "more": 1,
        }
        result = mapped([event("SEED_FOSSILIZED", 1, data, seed_id="s", slot_id="r0c0")])
        [row] = rows(result, "slots")
        assert (row["event"], row["seed"], row["params"], row["improvement"]) == ("fossilized", "s", 9, 1.5)
        assert [(raw["key"], raw["reason"]) for raw in rows(result, "raw_events")] == [("data.more", "no_column")]


class TestWhatFitsNoColumn:
    def kept(self, *all_events: Event) -> dict[str, tuple[str, Any]]:
        found = rows(mapped(list(all_events)), "raw_events")
        return {row["key"]: (row["reason"], json.loads(row["text"])) for row in found}

    def test_an_unknown_key_is_kept_and_the_rest_is_mapped(self) -> None:
        update = event("PPO_UPDATE_COMPLETED", 1, {"batch": 1, "ratio_max": 2.0, "new": [1, {"a": math.inf}]}, also="x")
        assert self.kept(update) == {
            "data.new": ("unknown_key", [1, {"a": math.inf}]),
            "also": ("unknown_key", "x"),
        }
        assert rows(mapped([update]), "ppo_updates")[0]["ratio_max"] == 2.0

    def test_a_value_of_the_wrong_type_is_kept_and_null_in_its_column(self) -> None:
        data = {"batch": 1, "ratio_max": "2", "value_loss": True, "usable_actor_timesteps": 2**53 + 1, "skipped": 1}
        update = event("PPO_UPDATE_COMPLETED", 1, data, timestamp="yesterday")
        assert self.kept(update) == {
            "data.ratio_max": ("wrong_type", "2"),
            "data.value_loss": ("wrong_type", True),
            "data.usable_actor_timesteps": ("wrong_type", 2**53 + 1),
            "data.skipped": ("differs", 1),
            "timestamp": ("wrong_type", "yesterday"),
        }
        [row] = rows(mapped([update]), "ppo_updates")
        assert (row["ratio_max"], row["value_loss"], row["time"]) == (None, None, None)

    @pytest.mark.parametrize(
        ("text", "time"),
        [
            ("1969-12-31T23:59:59.999999+00:00", -1),
            ("2026-01-01T00:00:00.000001+00:00", 1_767_225_600_000_001),
            ("2026-01-01T02:00:00.000001+02:00", 1_767_225_600_000_001),
            ("2026-01-01 00:00:00.000001+00:00", 1_767_225_600_000_001),
            ("2026-01-01T00:00:00.000001", 1_767_225_600_000_001),
            ("2026-01-01T00:00:00+00:00", 1_767_225_600_000_000),
            ("2111-07-15T06:53:20.997069+00:00", 4_466_386_400_997_069),  # float seconds are wrong by one here
        ],
    )
    def test_a_time_is_exact_to_the_microsecond(self, text: str, time: int) -> None:
        assert microseconds(text) == time

    @pytest.mark.parametrize(
        "text",
        [
            "2026-01-01T00:00:60.000000+00:00",
            "2026-02-30T00:00:00.000000+00:00",
            "1900-01-01T00:00:00.000000+00:00",
            "2026-01-01T00:00.00.000000+00:00",
            "2026-01-01T00:00:00.00000\u0660+00:00",
            "2026-01-01T00:00:00.000_00+00:00",
            "2026-01-01T00:00:00.0000000+00:00",
        ],
    )
    def test_an_invalid_or_too_fine_time_is_refused(self, text: str) -> None:
        with pytest.raises(ValueError, match=r"."):
            microseconds(text)

    @pytest.mark.parametrize("data", [None, [], "text", 3, {}])
    @pytest.mark.parametrize(
        "kind", [*sorted({name.partition("/")[0] for name in event_kinds.KINDS}), "GOVERNOR_ROLLBACK", "?"]
    )
    def test_an_event_of_any_kind_may_be_empty_or_nonsense(self, kind: str, data: Any) -> None:
        result = mapped([event(kind) | {"data": data}])
        assert len(rows(result, "events")) == 1
        kept = [row["reason"] for row in rows(result, "raw_events") if row["key"] == "data"]
        assert kept == (["wrong_type"] if data not in (None, {}) else [])

    @pytest.mark.parametrize("path", ALL_KINDS, ids=lambda path: path.name)
    @pytest.mark.parametrize("nonsense", [[], {}, {"a": {"b": 1}}, "text", -1, True, [[1]], [{"seed_mask": 1}]])
    def test_nonsense_anywhere_is_kept_and_never_an_error(self, path: Path, nonsense: Any) -> None:
        """Of one event of each kind every key's value in turn is replaced."""
        seen = set()
        for one in events(path):
            kind = (one["event_type"], one["data"].get("kind"))
            if kind in seen or one["event_type"] == "TRAINING_STARTED":
                continue
            seen.add(kind)
            changed = []
            for key in one["data"]:
                if key not in ("kind", "anomaly_type"):
                    changed.append(one | {"data": one["data"] | {key: nonsense}})
            result = mapped(changed)
            assert len(rows(result, "events")) == len(changed)

    def test_a_known_kind_without_a_table_is_kept_and_an_unknown_one_rejected(self) -> None:
        result = mapped([event("GOVERNOR_ROLLBACK", 1, {"a": 1}), event("NEW_THING", 1, {"b": 2})])
        kept = {row["event_type"]: (row["key"], row["reason"]) for row in rows(result, "raw_events")}
        assert kept == {"GOVERNOR_ROLLBACK": ("", "no_table"), "NEW_THING": ("", "unknown_event")}
        assert (dict(result.kept), dict(result.rejected)) == ({"GOVERNOR_ROLLBACK": 1}, {"NEW_THING": 1})


class TestClock:
    def updates(self, *all_events: Event) -> list[tuple[int, int]]:
        clock = Clock()
        placed = [clock.place(event) for event in all_events]
        return [(training.key[1], update) for training, update in placed]

    def test_an_event_without_a_batch_belongs_to_the_one_being_collected(self) -> None:
        closed = event("BATCH_EPOCH_COMPLETED", 1, {"batch_idx": 1})
        counts = event("ANALYTICS_SNAPSHOT", 1, {"kind": "action_distribution"})
        epoch = event("EPOCH_COMPLETED", 1, {})
        update = event("PPO_UPDATE_COMPLETED", 1, {"batch": 2})
        profile = event("PHASE_PROFILE_COMPLETED", 1, {"batch_idx": 1})
        assert self.updates(epoch, closed, counts, epoch, profile, update) == [(1, n) for n in (1, 1, 1, 2, 2, 2)]

    def test_a_second_training_begins_a_run_and_a_repeated_line_does_not(self) -> None:
        first = event("TRAINING_STARTED", 1, {}, event_id="a")
        closed = event("BATCH_EPOCH_COMPLETED", 1, {"batch_idx": 9})
        second = event("TRAINING_STARTED", 1, {}, event_id="b")
        assert self.updates(first, first, closed, second, event("EPOCH_COMPLETED", 1, {})) == [
            (1, 1),
            (1, 1),
            (1, 9),
            (2, 1),
            (2, 1),
        ]

    def test_groups_have_clocks_of_their_own(self) -> None:
        clock = Clock()
        clock.place(event("BATCH_EPOCH_COMPLETED", 1, {"batch_idx": 5}, group_id="a"))
        training, update = clock.place(event("EPOCH_COMPLETED", 1, {}, group_id="b"))
        assert (training.key, update) == (("b", 1), 1)

    @pytest.mark.parametrize("batch", [0, -1, 2**60, True, "3", 1.0, None])
    def test_a_batch_that_can_not_be_is_none(self, batch: Any) -> None:
        assert self.updates(event("PPO_UPDATE_COMPLETED", 1, {"batch": batch})) == [(1, 1)]
