"""A training loop's mistakes: none reaches the training, each is logged, counted and a row of `gaps`."""

from __future__ import annotations

import inspect
import logging
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from esper_recorder import MemorySink, Recorder, reduce
from esper_recorder.arguments import BadCall, host_value
from esper_recorder.storage.manifest import read_manifest

ZEROS = torch.zeros(2, 3)

GOOD: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "settings": ((), {"entropy_coef": 0.1}),
    "rollout": (
        (),
        dict.fromkeys(("values", "returns", "advantages", "rewards", "old_log_probs", "actions", "mask"), ZEROS)
        | {"index_order": "time_major"},
    ),
    "minibatch": (
        (),
        dict.fromkeys(
            ("log_ratio", "new_log_probs", "old_log_probs", "advantages", "raw_advantages", "entropy", "entropy_max"),
            ZEROS,
        )
        | dict.fromkeys(("values", "returns", "old_values", "mask", "index"), ZEROS)
        | {"actions": torch.zeros(2, 3, 1), "clip_range": 0.2, "value_clip_range": 0.2, "epoch": 1}
        | {"normalize_advantages": False, "stepped": True, "heads": {"op": {"log_ratio": ZEROS}}},
    ),
    "push": ((reduce(log_ratio=torch.zeros(3)),), {"epoch": 1, "stepped": True}),
    "gradients": ((), {"total_norm": 1.0}),
    "layers": ((), {"after_clipping": True}),
    "episode": ((), {"return_": 1.0, "length": 1, "env": 0, "step": 0}),
    "episodes": ((), {"returns": ZEROS, "lengths": ZEROS, "finished": ZEROS, "step": 0}),
    "recurrent": ((ZEROS,), {"c": ZEROS, "layer": "lstm"}),
    "row": (("slots",), {"env": 0, "slot": "r0c0"}),
    "end_update": ((), {"step": 1, "stopped_early": False, "epochs": 1, "policy_std": 1.0}),
    "flush": ((), {"timeout": 5.0}),
    "close": ((), {"how": "finished"}),
}
"""A call of each public method with every argument."""
NEEDED = {
    ("gradients", "total_norm"),
    ("episode", "return_"),
    ("episodes", "returns"),
    ("episodes", "finished"),
    ("row", "env"),
    ("row", "slot"),
    ("recurrent", "layer"),
    ("rollout", "index_order"),
    ("close", "how"),
}
"""Arguments that may not be None; elsewhere it means: not given."""


def public_methods() -> set[str]:
    return {name for name, _ in inspect.getmembers(Recorder, inspect.isfunction) if not name.startswith("_")}


def wrong_calls() -> list[Any]:
    """Each method with an unknown keyword, with too many positional arguments, and with each argument wrong."""
    found = []
    for method, (args, kwargs) in GOOD.items():
        found.append(pytest.param(method, args, {**kwargs, "nonsense": 1}, "nonsense", id=f"{method}(nonsense=1)"))
        found.append(pytest.param(method, (*args, 1, 2, 3, 4, 5), {}, "positional", id=f"{method}(1, 2, 3, 4, 5)"))
        for i in range(len(args)):
            for wrong in (None, "x"):
                changed = (*args[:i], wrong, *args[i + 1 :])
                found.append(pytest.param(method, changed, kwargs, "", id=f"{method}({wrong!r})"))
        for name in kwargs:
            if (method, name) in NEEDED:
                found.append(pytest.param(method, args, {**kwargs, name: None}, "", id=f"{method}({name}=None)"))
            if (method, name) not in {("recurrent", "layer"), ("row", "slot")}:
                found.append(pytest.param(method, args, {**kwargs, name: "x"}, name, id=f"{method}({name}='x')"))
    return found


def test_every_public_method_is_among_them():
    assert set(GOOD) == public_methods()
    for method, (args, kwargs) in GOOD.items():
        parameters = inspect.signature(getattr(Recorder, method)).parameters
        named = [n for n, p in parameters.items() if n != "self" and p.kind is not p.VAR_KEYWORD]
        assert set(named[len(args) :]) <= set(kwargs) | {"error"}, method


@pytest.mark.parametrize("method", ["rollout", "minibatch", "push", "layers", "episode", "episodes", "end_update"])
def test_an_argument_of_none_is_an_argument_that_was_not_given(tmp_path: Path, method: str):
    args, kwargs = GOOD[method]
    needed = {name for of, name in NEEDED if of == method} | {"log_ratio", "values"}
    optional = dict.fromkeys(kwargs.keys() - needed)

    def rows(arguments: dict[str, Any]) -> dict[str, list[str]]:
        sink = MemorySink()
        with Recorder(tmp_path, sink=sink, rules=None) as rec:
            getattr(rec, method)(*args, **{name: x for name, x in kwargs.items() if name in needed}, **arguments)
            if method == "rollout":
                rec.minibatch(log_ratio=torch.zeros(3))
            rec.end_update()
        clocked = {"run_id", "time", "elapsed_s", "rollout_s", "update_s"}
        return {
            table: [repr({k: v for k, v in row.items() if k not in clocked}) for row in sink.rows(table)]
            for table in sink.tables()
        }

    assert rows(optional) == rows({})
    assert not rows(optional).get("gaps")


@pytest.mark.parametrize(("method", "args", "kwargs", "words"), wrong_calls())
def test_a_wrong_call_never_raises_is_logged_and_is_a_gap(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, method: str, args: Any, kwargs: Any, words: str
):
    sink = MemorySink()
    with caplog.at_level(logging.WARNING, "esper_recorder"), Recorder(tmp_path, sink=sink, rules=None) as rec:
        rec.minibatch(log_ratio=torch.zeros(3), clip_range=0.2)
        getattr(rec, method)(*args, **kwargs)
        if method != "end_update":
            rec.end_update()
        rec.minibatch(log_ratio=torch.zeros(3), clip_range=0.2)
        rec.end_update(step=7)
    assert any("bad call" in r.message for r in caplog.records), caplog.text
    gaps = sink.rows("gaps")
    assert {gap["reason"] for gap in gaps} == {"bad_call"}, gaps
    assert any(words in gap["detail"] for gap in gaps), gaps
    updates = sink.rows("ppo_updates")
    assert [row["update"] for row in updates] == ([1] if method == "close" else [1, 2]), "no update is lost by it"
    assert updates[0]["n"] >= 3
    assert rec.path is not None
    attempt = read_manifest(rec.path).last_attempt
    assert attempt is not None and attempt.dropped.calls >= 1 and attempt.how is not None


def recorded(root: Path, *calls: Callable[[Recorder], object]) -> MemorySink:
    sink = MemorySink()
    with Recorder(root, sink=sink, rules=None) as rec:
        for call in calls:
            call(rec)
    return sink


def minibatch(rec: Recorder) -> None:
    rec.minibatch(log_ratio=torch.zeros(3))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"step": "x"}, "step is 'x'; give a whole number"),
        ({"step": math.nan}, "step is nan; give a whole number"),
        ({"step": 2**70}, f"step is {2**70}; give a whole number"),
        ({"step": torch.zeros(2)}, "step is a tensor [2] on cpu; give a number of the host"),
        ({"epochs": 1.5}, "epochs is 1.5; give a whole number"),
        ({"stopped_early": "no"}, "stopped_early is 'no'; give True or False"),
        ({"policy_std": [0.1]}, "policy_std is a list; give a number"),
        ({"steps": 5}, "end_update() has no argument 'steps'. Did you mean step?"),
    ],
)
def test_an_update_closed_with_an_invalid_argument_is_stored_without_it(
    tmp_path: Path, given: dict[str, Any], words: str
):
    (name,) = given
    right = {"step": 5, "stopped_early": True, "epochs": 2, "policy_std": 0.5}
    sink = recorded(
        tmp_path, minibatch, lambda rec: rec.end_update(**right | given), minibatch, lambda rec: rec.end_update(step=9)
    )
    first, second = sink.rows("ppo_updates")
    for known, value in right.items():
        assert first[known] == (None if known == name else value)
    assert (first["minibatch_count"], first["interrupted"], second["step"]) == (1, False, 9)
    (gap,) = sink.rows("gaps")
    assert (gap["table_name"], gap["reason"], gap["detail"]) == ("ppo_updates", "bad_call", words)


def test_numbers_of_other_types_are_converted():
    for seven in (np.int32(7), 7.0, torch.tensor(7)):
        assert host_value("step", seven, "int64") == 7
    for half in (np.float32(0.5), torch.tensor(0.5)):
        assert host_value("x", half, "float64") == 0.5
    assert math.isnan(host_value("x", math.nan, "float64"))
    assert host_value("x", np.bool_(True), "bool") is True
    for wrong in (True, np.bool_(True), "7", 7.5, math.inf):
        with pytest.raises(BadCall, match="give a whole number"):
            host_value("step", wrong, "int64")


@pytest.mark.parametrize("wrong", [[0.0] * 3, np.zeros(3), "x", 0.5])
@pytest.mark.parametrize(
    "name",
    ["log_ratio", "new_log_probs", "advantages", "values", "returns", "old_values", "entropy", "mask", "actions"],
)
def test_what_is_not_a_tensor_is_named_with_what_to_give(tmp_path: Path, name: str, wrong: Any):
    arguments = {"log_ratio": torch.zeros(3), name: wrong}
    sink = recorded(tmp_path, lambda rec: rec.minibatch(**arguments), lambda rec: rec.end_update())
    (gap,) = sink.rows("gaps")
    assert gap["reason"] == "bad_call" and re.fullmatch(rf"{name} is .*; give a tensor", gap["detail"])


def test_each_kind_of_wrong_call_is_logged_once_and_has_its_own_gap(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def wrong(rec: Any) -> None:
        rec.minibatch(log_ratio=torch.zeros(3), values=torch.zeros(4))
        rec.minibatch(log_ratios=torch.zeros(3))
        rec.minibatch(log_ratio=torch.zeros(3), values=torch.zeros(4))

    sink = recorded(tmp_path, *[wrong, lambda rec: rec.end_update()] * 3)
    found = [(gap["detail"], gap["first_update"], gap["last_update"], gap["rows"]) for gap in sink.rows("gaps")]
    details = {detail for detail, *_ in found}
    assert len(details) == 2
    assert sum(rows for *_, rows in found) == 3 * 3, "three calls in each of three updates"
    for detail in details:
        assert sum(detail in r.message for r in caplog.records if r.levelno == logging.WARNING) == 1


def test_of_very_many_kinds_the_first_are_logged_and_the_rest_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def wrong(i: int) -> Callable[[Recorder], None]:
        def call(rec: Any) -> None:
            rec.minibatch(log_ratio=f"wrong {i}")

        return call

    sink = recorded(tmp_path, *map(wrong, range(100)), lambda rec: rec.end_update())
    gaps = sink.rows("gaps")
    assert len(gaps) == 21 and sum(gap["rows"] for gap in gaps) == 100
    assert [gap["rows"] for gap in gaps if gap["detail"] == "further ones, of more than 20 kinds"] == [80]
    warnings = [r.message for r in caplog.records if r.levelno == logging.WARNING]
    assert len(warnings) == 21 and warnings[-1] == "More than 20 kinds of bad call: further ones are not logged."


def test_the_end_says_what_was_lost_and_what_to_do(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    def wrong(rec: Any) -> None:
        rec.end_update(step="x")
        rec.minibatch(log_ratio=[0.0])

    recorded(tmp_path, minibatch, wrong)
    (end,) = [r.message for r in caplog.records if r.levelno == logging.ERROR]
    assert "not complete: 2 failed calls, 1 dropped row (last: log_ratio is a list; give a tensor)" in end
    assert "Correct the call in the training loop, as its line in the log says" in end
    assert "has space" not in end, "that is the advice for a full disk"


def test_an_unknown_way_of_ending_is_reported_and_kept_as_the_error(tmp_path: Path):
    rec = Recorder(tmp_path, rules=None)
    rec.close("failed")
    assert rec.path is not None
    attempt = read_manifest(rec.path).last_attempt
    assert attempt is not None and (attempt.how, attempt.error) == ("raised", "close() was called with how='failed'")


def test_keys_of_config_that_are_kept_as_text_are_named_once(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    config = {
        "a": object,
        "seed": 1,
        "net": {"act": torch.nn.ReLU, "sizes": [64, 1j]},
        "path": tmp_path,
        "lr": math.nan,
    }
    with Recorder(tmp_path, rules=None, config=config) as rec:
        pass
    (line,) = [r.message for r in caplog.records]
    assert line == "run.json keeps as text, or leaves out, what it cannot hold of config: a, net.act, net.sizes[1], lr."
    assert rec.path is not None
    assert read_manifest(rec.path).config["net"]["sizes"] == [64, "1j"]


def test_a_config_that_json_can_hold_says_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    with Recorder(tmp_path, rules=None, config={"a": [1, 2.5, None, True, "x"]}):
        pass
    assert caplog.records == []
