"""A TOML writer with one canonical form, so that equal data has equal text and an equal hash.

Python's `tomllib` only reads. Covers what a rules file contains: tables of strings, numbers, booleans, arrays, tables.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(data: Mapping[str, Any]) -> str:
    """Write data as TOML text, with keys in their order. Raises TypeError for a value that TOML cannot express."""
    return "\n".join(_table(data, ())) + "\n"


def _table(data: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    inline = {k: v for k, v in data.items() if not (isinstance(v, Mapping) and len(path) < 2)}
    lines = [f"[{'.'.join(map(_key, path))}]"] if path and (inline or not data) else []
    lines += [f"{_key(k)} = {_value(v)}" for k, v in inline.items()]
    for k, v in data.items():
        if k not in inline:
            lines += ["", *_table(v, (*path, k))] if lines else _table(v, (*path, k))
    return lines


def _key(name: str) -> str:
    return name if _BARE_KEY.fullmatch(name) else _string(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            return repr(value) if math.isfinite(value) else f"{value:g}"  # nan, inf, -inf
        case str():
            return _string(value)
        case list() | tuple():
            return "[" + ", ".join(map(_value, value)) + "]"
        case Mapping():
            return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }" if value else "{}"
    raise TypeError(f"TOML cannot express {value!r}")


def _string(text: str) -> str:
    # TOML has JSON's escapes except for DEL, and no surrogate pairs, which ensure_ascii would write
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
