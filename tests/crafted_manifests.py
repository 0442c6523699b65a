"""run.json as a stranger may send it: each value at each place, and files that are not a manifest."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

MANIFEST: dict[str, Any] = {
    "format": 1,
    "schema_version": 3,
    "run_id": "crafted",
    "name": "crafted",
    "started": "2026-01-01T00:00:00Z",
    "trainer": {"name": "PPO"},
    "definition": "pooled",
    "config": {"a": [1]},
    "versions": {"torch": "2"},
    "host": "h",
    "platform": "p",
    "level": "normal",
    "rules": {"profile": "default", "sha256": "0" * 64},
    "total_updates": 3,
    "total_steps": 4,
    "source": {"format": "sb3-csv", "sha256": "x", "entries": 5},
    "attempts": [
        {
            "attempt": 1,
            "rank": 0,
            "pid": 2,
            "host": "h",
            "started": "2026-01-01T00:00:00Z",
            "from_update": 1,
            "ended": "2026-01-01T00:00:09Z",
            "how": "finished",
            "error": None,
            "updates": 3,
            "lost": {"rows": 0, "updates": 0, "writes": 0, "message": None, "calls": 0},
        }
    ],
}

NUMBERS = (
    *("0", "1", "-1", "300000000", "1.5", "-0.0", "1e308", "1e999", "-1e999", "NaN", "Infinity", "true", "false"),
    *(str(2**63 - 1), str(2**63), str(-(2**63)), "1" + "0" * 30, "9" * 4299, "9" * 5000),
)
TEXTS = (
    *('""', '"x"', '"1"', '"a b/c"', '".."', '"../../x"', '"<script>=1+1|`$(x)`"', '"\\ud800"', '"x\\udfff"'),
    *('"\\u0000"', '"\\u001b[31m\\n"', '"\\u202e\\u2028"', '"' + "x" * 300 + '"', '"default"', '"finished"'),
    *(f'"{"0" * 64}"', f'"{"f" * 64}"', '"/etc/passwd"'),
)
TIMES = (
    *('"2026-01-01"', '"2026-01-01T00:00:00"', '"2026-01-01T00:00:00+05:30"', '"0000-01-01T00:00:00Z"'),
    *('"0001-01-01T00:00:00+14:00"', '"9999-12-31T23:59:59-14:00"', '"99999-01-01T00:00:00Z"', '"2026-W01-1"'),
)
CONTAINERS = (
    *("null", "[]", "{}", "[[]]", "[1, 2]", "[null]", '{"a": 1}', '{"name": [1]}', '{"\\ud800": 1}', '{"": {"": []}}'),
    *("[" * 50 + "]" * 50, "[" * 2000 + "]" * 2000, '{"a":' * 2000 + "1" + "}" * 2000, "[" * 200_000),
)
VALUES = (*NUMBERS, *TEXTS, *TIMES, *CONTAINERS)

Place = tuple[str | int, ...]


def places(value: Any, above: Place = ()) -> Iterator[Place]:
    """Every place in the manifest, and the whole."""
    yield above
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*above, key))


def crafted() -> Iterator[tuple[str, str]]:
    """(Name, text) of a run.json for each value at each place."""
    marker = "THE PLACE"
    for place in places(MANIFEST):
        data: Any = json.loads(json.dumps(MANIFEST))
        if place:
            container = data
            for key in place[:-1]:
                container = container[key]
            container[place[-1]] = marker
        template = json.dumps(data if place else marker)
        for number, value in enumerate(VALUES):
            name = "-".join(map(str, place)) or "everything"
            yield f"{name}-{number}", template.replace(f'"{marker}"', value)


def whole_files() -> Iterator[tuple[str, bytes]]:
    """(Reason, content) of files that cannot be read as a manifest."""
    text = json.dumps(MANIFEST)
    yield "not JSON", b""
    yield "not JSON", b"\0" * 20
    yield "not JSON", text.encode()[:-1]
    yield "not UTF-8", text.replace("PPO", "\xe9").encode("latin-1")
    yield "not UTF-8", text.encode("utf-16")
    yield "twice", text.replace('"name": "crafted"', '"name": "a", "name": "b"').encode()
    yield "twice", text.replace('"rank": 0', '"rank": 0, "rank": 1').encode()
    yield "nested deeper", text.replace('"PPO"', "[" * 500 + "]" * 500).encode()
    yield "nested deeper", b'{"run_id": "a", "config": ' + b"[" * 300_000 + b"]" * 300_000 + b"}"
    yield "more than", text.replace("[1]", str([0] * 1_000_001)).encode()
    yield "at most", text.encode() + b" " * 17_000_000
    yield "no run_id", b"[1]"
    yield "an attempt twice", text.replace('"attempts": [', '"attempts": [{},').encode()
