"""Checks of what a training loop passes to the recorder: an invalid argument raises `BadCall`, which names it.

Covers: the arguments of every public call, of `esper_recorder.reduce` and of `Recorder(...)`, without waiting for a
device. Does not cover: the contents of tensors, which are counted and stored unchanged.
"""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor

from esper_recorder.contract.metrics import DEFINITIONS
from esper_recorder.contract.rules.model import Severity
from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import IDENTITY, TABLES, column_names, columns, key_columns
from esper_recorder.storage.jsonable import encodable
from esper_recorder.storage.sink import Sink

MINIBATCH_FIELDS: Final = {
    "log_ratio": "log_ratio",
    "new_log_probs": "new_log_prob",
    "old_log_probs": "old_log_prob",
    "advantages": "advantage",
    "raw_advantages": "raw_advantage",
    "entropy": "entropy",
    "entropy_max": "entropy_max",
    "values": "value",
    "returns": "value_target",
    "old_values": "old_value",
    "mask": "mask",
}
"""Argument of `Recorder.minibatch` and `esper_recorder.reduce` -> the field of the reductions."""

MINIBATCH_VALUES: Final = {
    "epoch": "int64",
    "clip_range": "float64",
    "value_clip_range": "float64",
    "entropy_max": "float64",
    "normalize_advantages": "bool",
    "stepped": "bool",
}
"""Argument of `Recorder.minibatch` -> the type of a value on the host. `entropy_max` may be a tensor as well."""

_MINIBATCH_OTHERS = ("index", "actions", "heads")

_ARGUMENTS = {field: argument for argument, field in MINIBATCH_FIELDS.items()}
_HEAD_ARGUMENTS = ("log_ratio", "new_log_probs", "old_log_probs", "entropy", "entropy_max", "mask")
ROLLOUT_TENSORS: Final = ("values", "returns", "advantages", "rewards", "old_log_probs")
"""Arguments of `Recorder.rollout` of which one has to be given."""

_NEEDS_LOG_RATIO = "a minibatch needs log_ratio, or new_log_probs and old_log_probs"

FILLED: Final = frozenset(
    {
        *("ppo_updates", "minibatches", "heads", "ratio_histograms", "ratio_exemplars", "gradient_layers"),
        *("recurrent_state", "episodes", "alarms", "gaps", "events", "raw_events"),
    }
)
"""Tables that the recorder or an importer fills; the rows of the others come from the training loop."""

_SETTINGS = {c.name: c.type for c in columns("ppo_updates") if c.name not in IDENTITY}

FieldKey = str | tuple[str, str]
"""A minibatch's field, or (field, head)."""


class BadCall(ValueError):
    """An argument cannot be recorded; the message says which, why, and what to give instead."""


class BadType(BadCall, TypeError):
    """An argument is of a type that the call does not take."""


# --- tensors of a minibatch -------------------------------------------------------------------------------------------


class MinibatchKind:
    """What calls of `Recorder.minibatch` have in common that have the same arguments of the same types.

    Names and types are checked once per kind: to check them in each call costs as much as to copy the minibatch.

    Args:
        arguments: of one such call, by name.
    """

    def __init__(self, arguments: Mapping[str, Any]) -> None:
        self.names, self.types = tuple(arguments), tuple(map(type, arguments.values()))
        for name, x in arguments.items():
            if name not in MINIBATCH_FIELDS and name not in MINIBATCH_VALUES and name not in _MINIBATCH_OTHERS:
                raise TypeError(f"a minibatch has no {name!r}")
            if name in MINIBATCH_FIELDS and name != "entropy_max":
                check_tensors({name: x})
        self.tensors = tuple([name for name in MINIBATCH_FIELDS if isinstance(arguments.get(name), Tensor)])
        self.fields: tuple[FieldKey, ...] = tuple([MINIBATCH_FIELDS[name] for name in self.tensors])
        """What the tensors are, in their order."""
        self.values = tuple(["" if name in self.tensors else name for name in MINIBATCH_VALUES])
        """The names in `MINIBATCH_VALUES`; an empty one for an argument that is a tensor."""
        self.exact = all(
            arguments.get(name) is None or type(arguments[name]) is _EXACT[type_]
            for name, type_ in zip(self.values, MINIBATCH_VALUES.values(), strict=True)
        )
        """Whether no value needs a conversion."""
        self.given = tuple([arguments.get(name) is not None for name in self.values])
        """Which of the values are not None."""
        index = arguments.get("index")
        self.index_dtype = index.dtype if index is not None and flat_index(index) is index else None
        """The type of whole numbers of an index that needs no conversion."""

    def fields_of(self, arguments: Mapping[str, Any]) -> dict[FieldKey, Tensor]:
        """The tensors of a call by field, flattened and not detached."""
        return {field: arguments[name].ravel() for field, name in zip(self.fields, self.tensors, strict=True)}


def argument(key: FieldKey) -> str:
    """Return what the caller called a field."""
    if isinstance(key, str):
        return _ARGUMENTS.get(key, key)
    field, head = key
    return f"{argument(field)} of head {head!r}"


def check_log_ratio(fields: Iterable[Any]) -> None:
    """Raise BadCall if the log ratio of a minibatch with these fields cannot be computed."""
    if "log_ratio" not in fields and not ("new_log_prob" in fields and "old_log_prob" in fields):
        raise BadCall(_NEEDS_LOG_RATIO)


def check_alike(fields: Mapping[FieldKey, Tensor], **others: Tensor | None) -> None:
    """Raise BadCall if tensors of a minibatch differ in their length or their device.

    Args:
        fields: one-dimensional tensors; the first one decides.
        others: tensors by argument that may lie on another device and have further dimensions.
    """
    if not fields:
        raise BadCall(_NEEDS_LOG_RATIO)
    first, like = next(iter(fields.items()))
    n = like.shape[0]
    lengths = {argument(key): x.shape[0] for key, x in fields.items()}
    lengths |= {name: x.shape[0] for name, x in others.items() if x is not None}
    odd = [f"{name} has {length}" for name, length in lengths.items() if length != n]
    if odd:
        raise BadCall(f"the tensors of a minibatch have different lengths: {argument(first)} has {n}, {', '.join(odd)}")
    away = [f"{argument(key)} is on {x.device}" for key, x in fields.items() if x.device != like.device]
    if away:
        raise BadCall(
            f"the tensors of a minibatch are on different devices: {argument(first)} is on {like.device}, "
            f"{', '.join(away)}; move them to one"
        )


def flat_index(index: Any) -> Any:
    """Return a one-dimensional index: a NumPy array of whole numbers unchanged, anything else as an int64 tensor."""
    if type(index).__name__ == "ndarray" and index.ndim == 1 and index.dtype.kind == "i" and index.dtype.isnative:
        return index
    if isinstance(index, Tensor) and index.dim() == 1 and index.dtype is torch.int64:
        return index
    return as_tensor("index", index).reshape(-1).to(torch.int64)


def flat_actions(actions: Tensor, n: int) -> Tensor:
    """Return actions [..., size] of n transitions as [n, size]; unchanged if their number does not fit."""
    check_tensors({"actions": actions})
    flat = actions.detach()
    size = flat.shape[-1] if n == 0 else flat.numel() // n
    return flat.reshape(n, size) if n * size == flat.numel() else flat


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Action heads with the same fields."""

    names: tuple[str, ...]
    fields: tuple[str, ...]
    entropy_max: tuple[float, ...] | None = None
    """Of each head, if it is a number; otherwise it is among the fields or was not given."""


def head_fields(
    heads: Mapping[str, Mapping[str, Any]],
) -> tuple[tuple[HeadLayout, ...], dict[FieldKey, Tensor]]:
    """Group heads by their fields, and flatten their tensors: group by group, field by field, head by head.

    Args:
        heads: name -> `log_ratio`, or `new_log_probs` and `old_log_probs`; `entropy`; `entropy_max`, a tensor or a
            number; `mask`. At least one of the log ratio and the entropy.
    """
    if not isinstance(heads, Mapping):
        raise BadCall(f"heads is {_shown(heads)}; give a mapping of head name to its tensors")
    groups: dict[tuple[tuple[str, ...], bool], list[tuple[str, dict[str, Any]]]] = {}
    for name, arguments in heads.items():
        head = _head(name, arguments)
        bound = head.get("entropy_max")
        fields = tuple(f for f in head if f != "entropy_max" or isinstance(bound, Tensor))
        groups.setdefault((fields, bound is not None and not isinstance(bound, Tensor)), []).append((name, head))
    layouts = []
    tensors: dict[FieldKey, Tensor] = {}
    for (fields, constant), members in groups.items():
        bounds = tuple([float(head["entropy_max"]) for _, head in members]) if constant else None
        layouts.append(HeadLayout(tuple([encodable(name) for name, _ in members]), fields, bounds))
        for field in fields:
            for name, head in members:
                tensors[field, name] = head[field].reshape(-1)
    return tuple(layouts), tensors


def _head(name: Any, arguments: Any) -> dict[str, Any]:
    """The fields of one head."""
    if not isinstance(name, str) or not name:
        raise BadCall(f"a head is called {_shown(name)}; give it a name that is not empty")
    if not isinstance(arguments, Mapping):
        raise BadCall(f"head {name!r} is {_shown(arguments)}; give a mapping with {', '.join(_HEAD_ARGUMENTS)}")
    for key in arguments:
        if key not in _HEAD_ARGUMENTS:
            raise BadCall(f"head {name!r} has no {key!r}. {suggest(key, _HEAD_ARGUMENTS, kind='fields')}")
    head = {MINIBATCH_FIELDS[key]: arguments[key] for key in _HEAD_ARGUMENTS if arguments.get(key) is not None}
    if ("new_log_prob" in head) != ("old_log_prob" in head) and "log_ratio" not in head:
        raise BadCall(f"head {name!r} needs both of new_log_probs and old_log_probs, or log_ratio")
    if not head.keys() & {"log_ratio", "new_log_prob", "entropy"}:
        raise BadCall(f"head {name!r} needs log_ratio, or new_log_probs and old_log_probs, or entropy")
    for field, x in head.items():
        if not isinstance(x, Tensor) and not (field == "entropy_max" and isinstance(x, (float, int))):
            raise BadCall(f"{argument((field, name))} is {_shown(x)}; give a tensor")
    return head


# --- tensors of other calls -------------------------------------------------------------------------------------------


def as_tensor(name: str, value: Any) -> Tensor:
    """Return a detached tensor of anything that torch can make one of, such as an array."""
    try:
        tensor: Tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadCall(f"{name} is {_shown(value)}; give a tensor") from error
    return tensor.detach()


def check_tensors(tensors: Mapping[str, Any]) -> None:
    """Raise BadCall for the first that is neither a tensor nor None."""
    for name, x in tensors.items():
        if x is not None and not isinstance(x, Tensor):
            raise BadCall(f"{name} is {_shown(x)}; give a tensor")


def check_type(name: str, value: Any, types: type | tuple[type, ...], wanted: str) -> None:
    """Raise BadType unless a value is of one of the types; True and False are not numbers."""
    if not isinstance(value, types) or isinstance(value, bool):
        raise BadType(f"{name} is {_shown(value)}; give {wanted}")


def rollout_tensors(arguments: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return the tensors of a rollout by argument, all of one size and on one device; None is left out."""
    given = {name: arguments.get(name) for name in (*ROLLOUT_TENSORS, "mask")}
    tensors = {name: as_tensor(name, x) for name, x in given.items() if x is not None}
    if not tensors.keys() - {"mask"}:
        raise BadCall(f"rollout() needs one of {', '.join(ROLLOUT_TENSORS)}")
    if len({x.numel() for x in tensors.values()}) > 1:
        shapes = ", ".join(f"{name} is {list(x.shape)}" for name, x in tensors.items())
        raise BadCall(f"the tensors of a rollout have different shapes: {shapes}")
    if len({x.device for x in tensors.values()}) > 1:
        devices = ", ".join(f"{name} is on {x.device}" for name, x in tensors.items())
        raise BadCall(f"the tensors of a rollout are on different devices: {devices}; move them to one")
    return tensors


def packed_minibatch(packed: Any) -> Tensor:
    """Return what `esper_recorder.reduce` returned, detached."""
    if not isinstance(packed, Tensor) or packed.dim() != 1 or packed.dtype != torch.float64:
        raise BadCall("what was pushed is not what esper_recorder.reduce returned")
    return packed.detach()


def gradient_norm(total_norm: Any) -> Tensor | float:
    """Return a gradient norm: a number, or a tensor of one element if it is on a device."""
    if not isinstance(total_norm, Tensor):
        return number("total_norm", total_norm)
    if total_norm.numel() != 1:
        raise BadCall(f"total_norm is a tensor {list(total_norm.shape)}; give the one number clip_grad_norm_ returned")
    return total_norm.item() if total_norm.is_cpu else total_norm.detach().reshape(()).clone()


def episode_tensors(returns: Any, finished: Any, lengths: Any) -> list[Tensor]:
    """Return the tensors of a rollout's episodes, each [steps, envs]: returns, finished, and lengths if given."""
    for name, x in (("returns", returns), ("finished", finished)):
        if x is None:
            raise BadCall(f"{name} is None; give a tensor [steps, envs]")
    check_tensors({"returns": returns, "finished": finished, "lengths": lengths})
    tensors = [returns, finished] if lengths is None else [returns, finished, lengths]
    if finished.dim() != 2 or any(x.shape != finished.shape for x in tensors):
        shapes = ", ".join(str(list(x.shape)) for x in tensors)
        raise BadCall(f"episodes() takes tensors of one shape [steps, envs]; given were {shapes}")
    return [x.detach() for x in tensors]


# --- values on the host -----------------------------------------------------------------------------------------------

_LARGEST = 2**63 - 1
_EXACT = {"float64": float, "int64": int, "bool": bool}
"""Types that need no conversion, but for a whole number that is too large."""
_WANTED = {"int64": "a whole number", "float64": "a number", "bool": "True or False", "string": "a text"}


def host_value(name: str, value: Any, kind: str) -> Any:
    """Convert a value on the host to the contract's type `kind`; None stays None."""
    exact: bool = type(value) is _EXACT.get(kind)
    if value is None or (exact and (kind != "int64" or -_LARGEST <= value <= _LARGEST)):
        return value
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or value.numel() != 1:  # reading it would wait for its device
            raise BadCall(f"{name} is a tensor {list(value.shape)} on {value.device}; give a number of the host")
        return host_value(name, value.item(), kind)
    converted = _converted(value, kind)
    if converted is None:
        raise BadCall(f"{name} is {_shown(value)}; give {_WANTED.get(kind, kind)}")
    return converted


def number(name: str, value: Any) -> float:
    """Convert a number that may not be None."""
    if value is None:
        raise BadCall(f"{name} is None; give a number")
    return float(host_value(name, value, "float64"))


def text(name: str, value: Any, what: str) -> str:
    """Return a text that may not be None."""
    if not isinstance(value, str):
        raise BadCall(f"{name} is {_shown(value)}; give {what}")
    return encodable(value)


def setting(name: str, value: Any) -> Any:
    """Convert the value of a column of `ppo_updates` that `Recorder.settings` takes."""
    if name not in _SETTINGS:
        raise BadCall(f"ppo_updates has no setting {name}. {suggest(name, _SETTINGS, kind='settings')}")
    return host_value(name, value, _SETTINGS[name])


def check_row(table: Any, values: Mapping[str, Any]) -> None:
    """Raise BadCall for a row that the contract does not have or that the recorder fills."""
    text("table", table, "the name of a table")
    if table not in TABLES or table in FILLED:
        why = "is filled by the recorder itself" if table in FILLED else "is not declared"
        others = [name for name in TABLES if name not in FILLED]
        raise BadCall(f"table {table} {why}. {suggest(table, others, kind='tables')}")
    names = [name for name in column_names(table) if name not in IDENTITY]
    for name, value in values.items():
        if name not in names:
            raise BadCall(f"table {table} has no column {name}. {suggest(name, names, kind='columns')}")
        if isinstance(value, Tensor):  # reading it might wait for the device
            raise BadCall(f"{table}.{name} is a tensor; give a number that is on the host already")
    needed = [name for name in key_columns(table) if name not in IDENTITY and name != "line"]
    missing = [name for name in needed if values.get(name) is None]
    if missing:
        raise BadCall(f"a row of {table} needs {', '.join(missing)}")


def _converted(value: Any, kind: str) -> Any:
    """The value as one of Python's; None if it is not of the kind."""
    if type(value).__name__ in ("bool", "bool_"):  # NumPy's has the one name or the other
        return bool(value) if kind == "bool" else None
    if kind == "int64":
        whole = getattr(type(value), "__index__", None)
        if whole is not None:
            count = int(whole(value))
        elif isinstance(value, float) and math.isfinite(value) and value == int(value):
            count = int(value)
        else:
            return None
        return count if -_LARGEST <= count <= _LARGEST else None
    if kind == "float64":
        is_number = hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
        try:
            return float(value) if is_number else None
        except (TypeError, ValueError, OverflowError):
            return None
    return encodable(value) if kind == "string" and isinstance(value, str) else None


# --- the arguments of a recorder, and how calls are made --------------------------------------------------------------


def check_recorder(
    root: Any,
    name: Any,
    model: Any,
    optimizer: Any,
    definition: Any,
    rank: Any,
    run_id: Any,
    resume: Any,
    from_update: Any,
    trainer: Any,
    sink: Any,
    rules: Any,
) -> None:
    """Raise BadCall for an argument of `Recorder(...)` that is not valid."""
    if not isinstance(root, (str, os.PathLike)) or "\0" in os.fsdecode(root) or not os.fsdecode(root):
        raise BadCall(f"root is {_shown(root)}; give the folder that the run's folder is made in")
    for what, value in (("run_id", run_id), ("resume", resume)):
        if value is not None and (not isinstance(value, str) or "\0" in value):
            raise BadCall(f"{what} is {_shown(value)}; give the id of a run, or None")
    if not isinstance(name, str):
        raise BadCall(f"name is {_shown(name)}; give a text")
    if definition not in tuple(DEFINITIONS):
        raise BadCall(f"definition {_shown(definition)} is not known; there are: {', '.join(DEFINITIONS)}")
    if model is not None and not hasattr(model, "named_parameters"):
        raise BadCall(f"model is {_shown(model)}, which has no named_parameters(); give a torch Module")
    if optimizer is not None and not hasattr(optimizer, "register_step_pre_hook"):
        raise BadCall(f"optimizer is {_shown(optimizer)}; give a torch Optimizer")
    if rank is not None and (isinstance(rank, bool) or not isinstance(rank, int) or rank < 0):
        raise BadCall(f"rank is {_shown(rank)}; give the number of this process among the trainer's, from 0")
    if from_update is not None and (isinstance(from_update, bool) or not isinstance(from_update, int)):
        raise BadCall(f"from_update is {_shown(from_update)}; give the number of a PPO update, from 1")
    if run_id is not None and resume is not None:
        raise BadCall(f"both run_id={run_id!r} and resume={resume!r} are given; resume alone names the run")
    if not isinstance(trainer, (str, Mapping)):
        raise BadCall(f"trainer is {_shown(trainer)}; give its name, or a mapping with its name")
    if not isinstance(trainer, str) and not isinstance(trainer.get("name"), str):
        raise BadCall("trainer is a mapping without a name; give at least {'name': ...}")
    if sink is not None and not isinstance(sink, Sink):
        raise BadCall(f"sink is {_shown(sink)}; give a Sink, for instance a MemorySink")
    if rules is not None and not isinstance(rules, (str, Path)):
        raise BadCall(f"rules is {_shown(rules)}; give the name of a profile, the path of a rules file, or None")


def training_length(name: str, length: Any) -> int | None:
    """Return the length of a training, NumPy's whole numbers included; None if it is not known."""
    if length is None:
        return None
    whole = getattr(type(length), "__index__", None)
    if whole is None or isinstance(length, bool) or whole(length) < 1:
        raise BadCall(f"{name} is {_shown(length)}; give the length of the training as a whole number from 1, or None")
    return int(length)


def check_escalation(escalate: Any, updates: Any) -> None:
    """Raise BadCall for options of an escalation that are not valid."""
    if escalate is not None and escalate not in list(Severity):
        severities = ", ".join(Severity)
        raise BadCall(
            f"escalate is {_shown(escalate)}; give the severity that raises the level ({severities}), or None"
        )
    if isinstance(updates, bool) or not isinstance(updates, int) or updates < 1:
        raise BadCall(f"escalate_updates is {_shown(updates)}; give a whole number of PPO updates from 1")


def check_alarms(on_alarm: Any, stop_on: Any) -> None:
    """Raise BadCall for a callback that cannot be called, or for a severity that does not exist."""
    if on_alarm is not None and not callable(on_alarm):
        raise BadCall(f"on_alarm is {_shown(on_alarm)}; give a function that takes an alarm, or None")
    if stop_on is not None and stop_on not in list(Severity):
        severities = ", ".join(Severity)
        raise BadCall(f"stop_on is {_shown(stop_on)}; give the severity to stop on ({severities}), or None")


def wrong_arguments(method: Callable[..., Any], error: TypeError, keywords: Iterable[str]) -> BadCall:
    """Return the error for a call that the method's signature does not allow."""
    names = [name for name in inspect.signature(method).parameters if name != "self"]
    unknown = next((name for name in keywords if name not in names), None)
    if unknown is None:
        return BadCall(f"{error}; it takes {', '.join(names) or 'no arguments'}")
    hint = suggest(unknown, names, kind="arguments")
    return BadCall(f"{method.__name__}() has no argument {unknown!r}. {hint}")


def _shown(value: Any) -> str:
    """A short value itself, and of any other its type."""
    if value is None or isinstance(value, (str, bool, int, float)):
        shown = repr(value)
        return shown if len(shown) <= 60 else f"{shown[:57]}..."
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
