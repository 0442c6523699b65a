"""Random rules and random runs, preferably awkward ones, to compare the two evaluators."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

from esper_recorder.contract.rules.evaluator import ALL_TABLES
from esper_recorder.contract.rules.ruleset import RuleSet
from esper_recorder.contract.rules.toml_writer import to_toml

VALUES = st.one_of(
    st.sampled_from([None, math.nan, math.inf, -math.inf, 0.0, -0.0, 0.1, 0.5, 1.0, 1.5, 5.0, 100.0, 1e308, -1.0]),
    st.floats(-10, 10),
)
LEVELS = st.one_of(st.sampled_from([0.0, 0.1, 0.5, 1.0, 5.0, -1.0, math.inf]), st.floats(-5, 5))
COUNTS = st.one_of(st.none(), st.integers(0, 100))

FLOATS = {
    "ppo_updates": ("ratio_max", "approx_kl", "grad_norm", "target_kl"),
    "minibatches": ("ratio_max", "approx_kl", "grad_norm"),
    "gradient_layers": ("grad_norm", "weight_norm"),
}
WHOLE = {"ppo_updates": "n", "minibatches": "n", "gradient_layers": "n"}
KEYS = {"gradient_layers": "layer"}
LAYERS = ("a", "b.weight")
EXPRESSIONS = (
    "{0} / {1}",
    "abs({0} - {1}) * 2",
    "max({0}, {1}, 0.5)",
    "min({0}, -{1})",
    "{0} if {1} > 1 else 0.3",
    "0.3 if {0} < 0.1 or {0} >= 5 and {1} <= 1 else 1.0",
    "1 / ({0} - 1)",
)


@dataclass(frozen=True)
class Case:
    """Rules, and runs to evaluate with them.

    Attributes:
        rules: the rules.
        runs: run_id -> [(update, rows by table)].
        gaps: run_id -> [(table, first update, last update)] with missing rows.
    """

    rules: RuleSet
    runs: dict[str, list[tuple[int, dict[str, list[dict[str, Any]]]]]]
    gaps: dict[str, list[tuple[str, int, int]]]


@st.composite
def signals(draw: st.DrawFn, key: bool | None = None, table: str | None = None) -> dict[str, Any]:
    table = table or draw(st.sampled_from(["gradient_layers"] if key else list(FLOATS)))
    raw: dict[str, Any] = {"table": table}
    names = FLOATS[table]
    kinds = ["column", "column", "whole", "expr", *(["list"] if table == "ppo_updates" else [])]
    kind = draw(st.sampled_from(kinds))
    if kind == "expr":
        raw["expr"] = draw(st.sampled_from(EXPRESSIONS)).format(*draw(st.permutations(names)))
    elif kind == "list":
        raw["column"] = "nonfinite_fields"
    else:
        raw["column"] = WHOLE[table] if kind == "whole" else draw(st.sampled_from(names))
    if table != "ppo_updates":
        raw["take"] = draw(st.sampled_from(["first", "last", "max", "min", "sum", "mean", "only"]))
    if key is None:
        key = table in KEYS and draw(st.booleans())
    if key:
        raw["key"] = KEYS[table]
    elif table in KEYS and draw(st.booleans()):
        raw["where"] = {KEYS[table]: draw(st.sampled_from((*LAYERS, "c")))}
    if draw(st.integers(0, 4)) == 0:
        raw["min_n"] = draw(st.integers(1, 60))
    return raw


@st.composite
def conditions(draw: st.DrawFn, signal: dict[str, Any]) -> dict[str, Any]:
    raw = dict(signal)
    test = draw(st.sampled_from(["above", "above", "below", "below", "nonfinite"]))
    if test == "nonfinite":
        return raw | {"nonfinite": True}
    number = draw(LEVELS)
    kind = draw(st.sampled_from(["number", "number", "phase", "key", "column"]))
    if kind == "phase":
        raw[test] = {"phase": {"first": number, "second": number + 0.5, "third": number}}
    elif kind == "key" and "key" in raw:
        raw[test] = {"key": {LAYERS[0]: number}}
        if draw(st.booleans()):
            raw[test]["otherwise"] = number
    elif kind == "column":
        raw[test] = {"column": "target_kl", "times": draw(st.sampled_from([1.0, 1.5, -2.0]))}
        if draw(st.booleans()):
            raw[test]["otherwise"] = number
    else:
        raw[test] = number
        if draw(st.booleans()) and math.isfinite(number):
            raw["reset"] = number - draw(st.sampled_from([0.0, 0.5])) * (1 if test == "above" else -1)
    if kind == "column" and "otherwise" not in raw[test] and draw(st.booleans()):
        raw["reset"] = {"times": 1.5}
    match draw(st.integers(0, 5)):
        case 0:
            raw["drift"] = {
                "momentum": draw(st.sampled_from([0.0, 0.5, 0.99])),
                "bias_correction": draw(st.booleans()),
                "warmup": draw(st.integers(0, 3)),
                "epsilon": draw(st.sampled_from([1e-8, 0.5])),
                "signed": draw(st.booleans()),
            }
        case 1:
            raw["step"] = True
        case 2:
            raw["rolling"] = {
                "window": draw(st.sampled_from([1, 2, 3, 10])),
                "trend": draw(st.sampled_from(["change", "size", "drop"])),
            }
    return raw


@st.composite
def rules(draw: st.DrawFn) -> dict[str, Any]:
    first = draw(signals())
    if draw(st.integers(0, 2)) == 0:
        keyed = "key" in first
        others = [draw(signals(key=keyed)) for _ in range(draw(st.integers(0, 2)))]
        raw: dict[str, Any] = {"any_of": [draw(conditions(signal)) for signal in (first, *others)]}
    else:
        raw = draw(conditions(first))
    raw["severity"] = draw(st.sampled_from(["info", "warning", "critical"]))
    raw["for"] = draw(st.integers(1, 3))
    raw["keep"] = draw(st.booleans())
    if draw(st.integers(0, 2)) == 0:
        gates = []
        for _ in range(draw(st.integers(1, 2))):
            gate = draw(signals(key="key" in first and draw(st.booleans())))
            if "key" in gate and "key" not in first:
                del gate["key"]
            test = draw(st.sampled_from(["above", "below", "nonfinite"]))
            gates.append(gate | {test: True if test == "nonfinite" else draw(LEVELS)})
        raw["unless"] = gates
    return raw


def rows(table: str) -> st.SearchStrategy[dict[str, Any]]:
    columns: dict[str, st.SearchStrategy[Any]] = dict.fromkeys(FLOATS[table], VALUES) | {WHOLE[table]: COUNTS}
    return st.fixed_dictionaries(columns)


@st.composite
def runs(draw: st.DrawFn) -> list[tuple[int, dict[str, list[dict[str, Any]]]]]:
    updates = []
    number = 0
    regular, width = draw(st.booleans()), draw(st.integers(1, 3))
    absent = draw(st.sampled_from([(), (), ("minibatches",), ("gradient_layers",), ("gradient_layers", "minibatches")]))
    for _ in range(draw(st.integers(1, 8))):
        number += draw(st.sampled_from([1, 1, 1, 1, 3]))  # sometimes rows of updates are lost
        own = draw(rows("ppo_updates"))
        own["nonfinite_fields"] = draw(st.sampled_from([None, [], ["a"], ["a", "b"]]))
        own["progress"] = draw(st.sampled_from([None, 0.05, 0.1, 0.3, 0.75, 1.0, math.nan]))
        minibatches = draw(st.lists(rows("minibatches"), max_size=3))
        places: list[int | None] = list(draw(st.permutations(range(1, len(minibatches) + 1))))
        if places and draw(st.integers(0, 4)) == 0:
            places[draw(st.integers(0, len(places) - 1))] = None  # not recorded
        layers = [(row, draw(st.sampled_from(LAYERS))) for row in draw(st.lists(rows("gradient_layers"), max_size=4))]
        if regular:  # as most trainers write them: the same layers in every update
            names = (*LAYERS, *LAYERS[:1])[:width]
            layers = [(draw(rows("gradient_layers")), name) for name in names]
        tables = {
            "ppo_updates": [own] if draw(st.integers(0, 9)) != 5 else [],
            "minibatches": [row | {"minibatch": place} for row, place in zip(minibatches, places, strict=True)],
            "gradient_layers": [
                row | {"minibatch": place, "layer": layer} for place, (row, layer) in enumerate(layers)
            ],
        }
        # some runs never record a table, and some updates have no row of one
        gone = (
            absent if draw(st.integers(0, 3)) else (*absent, draw(st.sampled_from(["minibatches", "gradient_layers"])))
        )
        updates.append((number, {table: [] if table in gone else rows for table, rows in tables.items()}))
    return updates


@st.composite
def cases(draw: st.DrawFn) -> Case:
    named = {f"r{i}": draw(rules()) for i in range(draw(st.integers(1, 4)))}
    keys = {name: raw.get("key", (raw.get("any_of") or [raw])[0].get("key")) for name, raw in named.items()}
    names = list(named)
    if len(names) > 1 and keys[names[0]] == keys[names[1]] and draw(st.booleans()):
        named[names[0]]["inhibited_by"] = names[1]
    data = {"phases": {"first": 0.0, "second": 0.1, "third": 0.75}, "rules": named}
    found = {f"run{i}": draw(runs()) for i in range(draw(st.integers(1, 3)))}
    return Case(RuleSet.parse(to_toml(data), "random"), found, {run: draw(gaps()) for run in found})


@st.composite
def gaps(draw: st.DrawFn) -> list[tuple[str, int, int]]:
    found = []
    for _ in range(draw(st.sampled_from([0, 0, 1, 1, 3]))):
        first = draw(st.integers(1, 12))
        found.append((draw(st.sampled_from([*FLOATS, ALL_TABLES])), first, first + draw(st.integers(0, 3))))
    return found
