"""Plain data as TOML text, in one canonical form, so that equal data has equal text and an equal hash.

Python reads TOML and does not write it. This writes what a file of rules holds: tables of strings, numbers, booleans,
arrays and tables.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from typing import Any

_BARE = re.compile(r"[A-Za-z0-9_-]+")


def to_toml(data: Mapping[str, Any]) -> str:
    """The text; keys stay in their order. Raises TypeError for what TOML has no form for."""
    return "\n".join(_table(data, ())) + "\n"


def _table(data: Mapping[str, Any], path: tuple[str, ...]) -> list[str]:
    lines = []
    plain = {k: v for k, v in data.items() if not (isinstance(v, Mapping) and len(path) < 2)}
    if path and (plain or not data):
        lines.append(f"[{'.'.join(_key(part) for part in path)}]")
    lines += [f"{_key(k)} = {_value(v)}" for k, v in plain.items()]
    for k, v in data.items():
        if k not in plain:
            lines += ["", *_table(v, (*path, k))] if lines else _table(v, (*path, k))
    return lines


def _key(name: str) -> str:
    return name if _BARE.fullmatch(name) else _string(name)


def _value(value: Any) -> str:
    match value:
        case bool():
            return "true" if value else "false"
        case int():
            return str(value)
        case float():
            if math.isnan(value):
                return "nan"
            return repr(value) if math.isfinite(value) else ("inf" if value > 0 else "-inf")
        case str():
            return _string(value)
        case list() | tuple():
            return "[" + ", ".join(_value(item) for item in value) + "]"
        case Mapping():
            return "{ " + ", ".join(f"{_key(k)} = {_value(v)}" for k, v in value.items()) + " }" if value else "{}"
    raise TypeError(f"TOML has no form for {value!r}")


def _string(text: str) -> str:
    # JSON's escapes are TOML's but for DEL, and for surrogate pairs, which ensure_ascii would write
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")
