"""What the calls of a recorder are given, checked: a wrong one ends in a sentence that names the argument."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from esper_recorder.reductions.arguments import BadCall

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
