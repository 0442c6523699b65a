"""Checks of what a training loop passes to the recorder: an invalid argument raises `BadCall`, which names it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from esper_recorder.contract.suggest import suggest

ARGUMENTS = {
    "new_log_prob": "new_log_probs",
    "old_log_prob": "old_log_probs",
    "advantage": "advantages",
    "raw_advantage": "raw_advantages",
    "value": "values",
    "value_target": "returns",
    "old_value": "old_values",
}
"""Field -> the argument of `Recorder.minibatch` it comes from, where they differ."""

_HEAD_FIELDS = {
    "log_ratio": "log_ratio",
    "new_log_probs": "new_log_prob",
    "old_log_probs": "old_log_prob",
    "entropy": "entropy",
    "entropy_max": "entropy_max",
    "mask": "mask",
}
"""Key of a head's mapping -> field."""

FieldKey = str | tuple[str, str]
"""A minibatch's field, or (field, head)."""


class BadCall(ValueError):
    """What a training loop handed over cannot be recorded as it is; the message says why."""


class BadType(BadCall, TypeError):
    """An argument is of a type that the call does not take."""


@dataclass(frozen=True, slots=True)
class HeadLayout:
    """Action heads that bring the same fields."""

    names: tuple[str, ...]
    fields: tuple[str, ...]
    entropy_max: tuple[float, ...] | None = None
    """Of each head, where it is a number; else it is among the fields, or not known."""


def argument(key: FieldKey) -> str:
    """What the user called a field."""
    if isinstance(key, str):
        return ARGUMENTS.get(key, key)
    field, head = key
    return f"{ARGUMENTS.get(field, field)} of head {head!r}"


def flat_actions(actions: Tensor, n: int) -> Tensor:
    """Actions [..., size] of n transitions as [n, size]; as they are where they are not of so many."""
    flat = actions.detach()
    size = flat.shape[-1] if n == 0 else flat.numel() // n
    return flat.reshape(n, size) if n * size == flat.numel() else flat


def check_log_ratio(fields: Mapping[Any, Tensor]) -> None:
    """Raises BadCall where the log ratio of a minibatch cannot be told."""
    if "log_ratio" not in fields and not ("new_log_prob" in fields and "old_log_prob" in fields):
        raise BadCall("a minibatch needs log_ratio, or new_log_probs and old_log_probs")


def head_fields(
    heads: Mapping[str, Mapping[str, Any]],
) -> tuple[tuple[HeadLayout, ...], dict[FieldKey, Tensor]]:
    """Heads grouped by what they bring, and their tensors flattened: group by group, field by field, head by head.

    Args:
        heads: name -> `log_ratio`, or `new_log_probs` and `old_log_probs`; `entropy`; `entropy_max`, a tensor or a
            number; `mask`. At least one of the log ratio and the entropy.

    Raises:
        BadCall: a name or a key is not one of these, or too little is given.
    """
    if not isinstance(heads, Mapping):
        raise BadCall(f"heads is a {type(heads).__name__}; give a mapping of head name to its tensors")
    groups: dict[tuple[tuple[str, ...], bool], list[tuple[str, dict[str, Any]]]] = {}
    for name, given in heads.items():
        own = _checked(name, given)
        bound = own.get("entropy_max")
        fields = tuple(f for f in own if f != "entropy_max" or isinstance(bound, Tensor))
        groups.setdefault((fields, bound is not None and not isinstance(bound, Tensor)), []).append((name, own))
    layouts = []
    tensors: dict[FieldKey, Tensor] = {}
    for (fields, constant), members in groups.items():
        bounds = tuple([float(own["entropy_max"]) for _, own in members]) if constant else None
        layouts.append(HeadLayout(tuple([name for name, _ in members]), fields, bounds))
        for field in fields:
            for name, own in members:
                tensors[field, name] = own[field].detach().reshape(-1)
    return tuple(layouts), tensors


def _checked(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    if not isinstance(name, str) or not name:
        raise BadCall(f"a head is called {name!r}; give it a name that is not empty")
    if not isinstance(given, Mapping):
        raise BadCall(f"head {name!r} is a {type(given).__name__}; give a mapping with {', '.join(_HEAD_FIELDS)}")
    unknown = [key for key in given if key not in _HEAD_FIELDS]
    if unknown:
        raise BadCall(f"head {name!r} has no {unknown[0]!r}. {suggest(unknown[0], _HEAD_FIELDS, kind='fields')}")
    own = {field: given[key] for key, field in _HEAD_FIELDS.items() if given.get(key) is not None}
    if ("new_log_prob" in own) != ("old_log_prob" in own) and "log_ratio" not in own:
        raise BadCall(f"head {name!r} needs both of new_log_probs and old_log_probs, or log_ratio")
    if not own.keys() & {"log_ratio", "new_log_prob", "entropy"}:
        raise BadCall(f"head {name!r} needs log_ratio, or new_log_probs and old_log_probs, or entropy")
    for field, value in own.items():
        if not isinstance(value, Tensor) and not (field == "entropy_max" and isinstance(value, (float, int))):
            raise BadCall(f"{argument((field, name))} is a {type(value).__name__}; give a tensor")
    return own


_LARGEST = 2**63 - 1
_PLAIN = {"float64": float, "bool": bool, "string": str}
"""What needs no look; a whole number does, as Python's may be too large."""
_WANTED = {
    "int64": "a whole number",
    "float64": "a number",
    "bool": "True or False",
    "string": "a text",
}


def noted(name: str, value: Any, kind: str) -> Any:
    """A value of the host as a column of the contract's type `kind` takes it; None stays None.

    Raises:
        BadCall: it is none, or lies on a device, where reading it would be waiting.
    """
    if value is None or type(value) is _PLAIN.get(kind):
        return value
    if isinstance(value, Tensor):
        if value.device.type != "cpu" or value.numel() != 1:
            raise BadCall(f"{name} is a tensor {list(value.shape)} on {value.device}; give a number of the host")
        return noted(name, value.item(), kind)
    plain = _plain(value, kind)
    if plain is None:
        raise BadCall(f"{name} is {_shown(value)}; give {_WANTED.get(kind, kind)}")
    return plain


def tensor(name: str, value: Any) -> Tensor:
    """A tensor, or what torch can make one of, such as an array. Raises BadCall."""
    try:
        made: Tensor = torch.as_tensor(value)
    except (TypeError, ValueError, RuntimeError) as error:
        raise BadCall(f"{name} is {_shown(value)}; give a tensor") from error
    return made.detach()


def only_tensors(given: Mapping[str, Any]) -> None:
    """Raises BadCall for the first that is neither a tensor nor None."""
    for name, value in given.items():
        if value is not None and not isinstance(value, Tensor):
            raise BadCall(f"{name} is {_shown(value)}; give a tensor")


def check_type(name: str, value: Any, types: type | tuple[type, ...], wanted: str) -> None:
    """Raise BadType unless a value is of one of the types; True and False are not numbers."""
    if not isinstance(value, types) or isinstance(value, bool):
        raise BadType(f"{name} is {_shown(value)}; give {wanted}")


def _plain(value: Any, kind: str) -> Any:
    """The value as a plain Python one; None where it is not of the kind."""
    if type(value).__name__ in ("bool", "bool_"):  # NumPy's has the one name or the other
        return bool(value) if kind == "bool" else None
    if kind == "int64":
        whole = getattr(type(value), "__index__", None)
        if whole is not None:
            number = int(whole(value))
        elif isinstance(value, float) and math.isfinite(value) and value == int(value):
            number = int(value)
        else:
            return None
        return number if -_LARGEST <= number <= _LARGEST else None
    if kind == "float64":
        is_number = hasattr(type(value), "__float__") or hasattr(type(value), "__index__")
        try:
            return float(value) if is_number else None
        except (TypeError, ValueError, OverflowError):
            return None
    if kind == "string":
        return value if isinstance(value, str) else None
    return None


def _shown(value: Any) -> str:
    """A short value as it is, and else its type."""
    if value is None or isinstance(value, (str, bool, int, float)):
        text = repr(value)
        return text if len(text) <= 60 else f"{text[:57]}..."
    kind = type(value).__name__
    return f"{'an' if kind[:1].lower() in 'aeiou' else 'a'} {kind}"
