"""What a training loop hands over of a minibatch, checked, and by the names the reductions use."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

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
        near = difflib.get_close_matches(str(unknown[0]), _HEAD_FIELDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"it takes {', '.join(_HEAD_FIELDS)}"
        raise BadCall(f"head {name!r} has no {unknown[0]!r}; {hint}")
    own = {field: given[key] for key, field in _HEAD_FIELDS.items() if given.get(key) is not None}
    if ("new_log_prob" in own) != ("old_log_prob" in own) and "log_ratio" not in own:
        raise BadCall(f"head {name!r} needs both of new_log_probs and old_log_probs, or log_ratio")
    if not own.keys() & {"log_ratio", "new_log_prob", "entropy"}:
        raise BadCall(f"head {name!r} needs log_ratio, or new_log_probs and old_log_probs, or entropy")
    for field, value in own.items():
        if not isinstance(value, Tensor) and not (field == "entropy_max" and isinstance(value, (float, int))):
            raise BadCall(f"{argument((field, name))} is a {type(value).__name__}; give a tensor")
    return own
