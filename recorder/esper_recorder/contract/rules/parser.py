"""Reading a file of rules: TOML in, checked rules out, every mistake met with a sentence that names its place."""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from esper_recorder.contract.rules.ema import Drift
from esper_recorder.contract.rules.expression import Expression, ExpressionError
from esper_recorder.contract.rules.location import Place, shown
from esper_recorder.contract.rules.model import Condition, Gate, Reset, Rule, RuleError, Severity, Test, Threshold
from esper_recorder.contract.rules.rolling_mean import Rolling, TrendOf
from esper_recorder.contract.rules.signal import UPDATE_TABLE, Signal, Take, own_keys
from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import TABLES, columns, former_names

FORMAT: Final = 1

_FILE_KEYS = ("format", "description", "phases", "rules", "tests")
_SIGNAL_KEYS = ("table", "column", "expr", "take", "key", "min_n", "where")
_TEST_KEYS = ("above", "below", "nonfinite")
_CONDITION_KEYS = (*_SIGNAL_KEYS, *_TEST_KEYS, "reset", "drift", "step", "rolling")
_RULE_KEYS = ("severity", "for", "keep", "unless", "inhibited_by", "evidence", "any_of")
_UNREADABLE = ("alarms", "gaps")  # written from what the rules and the writer found, after the rules have looked
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_NAME_IN_EXPRESSION = re.compile(r"\b[A-Za-z_]\w*")


@dataclass(frozen=True, slots=True)
class Content:
    """What a file of rules holds; the attributes are those of `RuleSet`."""

    rules: tuple[Rule, ...]
    phases: tuple[tuple[str, float], ...]
    description: str = ""
    tests: tuple[Mapping[str, Any], ...] = ()


def parse(text: str, name: str) -> Content:
    """Read rules from TOML text; `name` is what errors call it. Raises RuleError."""
    try:
        data = tomllib.loads(text)
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise RuleError(f"{name} is no TOML: {error}") from None
    return read(data, name)


def read(data: dict[str, Any], name: str) -> Content:
    """Check what TOML gave. Raises RuleError."""
    place = Place(name)
    place.known(data, _FILE_KEYS)
    if data.get("format", FORMAT) != FORMAT:
        raise place.error(f"format is {data['format']!r}; this version reads format {FORMAT}")
    description = data.get("description", "")
    if not isinstance(description, str):
        raise place.error("description must be text")
    phases = _phases(data.get("phases", {}), place)
    raw_rules = data.get("rules", {})
    if not isinstance(raw_rules, dict) or not raw_rules:
        raise place.error("holds no rules; a rule is a table [rules.NAME]")
    rules = tuple(_rule(rule, raw, dict(phases), place) for rule, raw in raw_rules.items())
    _check_inhibitions({rule.name: rule for rule in rules}, place)
    tests = data.get("tests", [])
    if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
        raise place.error("tests must be written as [[tests]]")
    return Content(rules, phases, description, tuple(tests))


def _phases(raw: Any, place: Place) -> tuple[tuple[str, float], ...]:
    place = place.at("phases")
    if not isinstance(raw, dict):
        raise place.error("must be a table of names and the progress each begins at")
    phases = sorted(((name, place.at(name).number(start)) for name, start in raw.items()), key=lambda phase: phase[1])
    if phases and phases[0][1] != 0.0:
        raise place.error(f"the first phase must begin at 0, and {phases[0][0]!r} begins at {phases[0][1]:g}")
    for (one, a), (other, b) in itertools.pairwise(phases):
        if a == b:
            raise place.error(f"{one!r} and {other!r} both begin at {a:g}")
    return tuple(phases)


def _rule(name: str, raw: Any, phases: dict[str, float], place: Place) -> Rule:
    if not _NAME.fullmatch(name):
        raise place.error(f"rule name {name!r}: letters, digits, _ and - only")
    place = Place(place.file, name)
    if not isinstance(raw, dict):
        raise place.error(f"must be a table, not {raw!r}")
    if "yields_to" in raw and "inhibited_by" not in raw:  # the key's name in the rules that runs of schema 2 keep
        raw = {"inhibited_by" if key == "yields_to" else key: value for key, value in raw.items()}
    if "any_of" in raw:
        place.known(raw, (*_RULE_KEYS, "table", "key", "where"))
        alternatives = raw["any_of"]
        if not isinstance(alternatives, list) or not alternatives:
            raise place.at("any_of").error("must be a list of tables, each with a column and a comparison")
        shared = {key: raw[key] for key in ("table", "key", "where") if key in raw}
        conditions = []
        for number, alternative in enumerate(alternatives, 1):
            here = place.at(f"any_of.{number}")
            conditions.append(_condition(shared | here.known(alternative, _CONDITION_KEYS), phases, here))
    else:
        place.known(raw, (*_RULE_KEYS, *_CONDITION_KEYS))
        conditions = [_condition(raw, phases, place)]
    keys = {condition.signal.key for condition in conditions}
    if len(keys) > 1:
        raise place.at("any_of").error("every alternative must have the same key column")
    gates = raw.get("unless", [])
    if "severity" not in raw:
        raise place.error(f"severity is missing; it is one of {', '.join(Severity)}")
    evidence = raw.get("evidence", "")
    if not isinstance(evidence, str):
        raise place.at("evidence").error("must be text: one sentence on where the number comes from")
    inhibited_by = raw.get("inhibited_by")
    if inhibited_by is not None and not isinstance(inhibited_by, str):
        raise place.at("inhibited_by").error(f"must be the name of a rule, not {shown(inhibited_by)}")
    rule_key = keys.pop()
    own_table = conditions[0].signal.table
    return Rule(
        name=name,
        severity=Severity(place.at("severity").word(raw["severity"], Severity)),
        conditions=tuple(conditions),
        streak=place.at("for").count(raw.get("for", 1), 1),
        keep=place.at("keep").switch(raw.get("keep", False)),
        unless=tuple(
            _gate(gate, own_table, rule_key, place.at(f"unless.{number}" if isinstance(gates, list) else "unless"))
            for number, gate in enumerate(gates if isinstance(gates, list) else [gates], 1)
        ),
        inhibited_by=inhibited_by,
        evidence=evidence,
    )


def _condition(raw: dict[str, Any], phases: dict[str, float], place: Place) -> Condition:
    signal = _signal(raw, place)
    test = _test(raw, place)
    step = place.at("step").switch(raw.get("step", False))
    moved = [name for name in ("drift", "step", "rolling") if (step if name == "step" else name in raw)]
    if len(moved) > 1:
        raise place.error(f"has both {' and '.join(moved)}; a rule has one of drift, step and rolling")
    drift = _drift(raw["drift"], place.at("drift")) if "drift" in raw else None
    rolling = _rolling(raw["rolling"], place.at("rolling")) if "rolling" in raw else None
    if test is Test.NONFINITE:
        if moved or "reset" in raw:
            raise place.error("nonfinite goes with no drift, step, rolling or reset")
        return Condition(signal, test)
    here = place.at(str(test))
    threshold = _threshold(raw[str(test)], phases, signal, here)
    reset = _reset(raw["reset"], place.at("reset")) if "reset" in raw else None
    if reset is not None:
        _check_reset(reset, threshold, test, place.at("reset"))
    return Condition(signal, test, threshold, reset, drift, step, rolling)


def _signal(raw: Mapping[str, Any], place: Place) -> Signal:
    table = raw.get("table", UPDATE_TABLE)
    if not isinstance(table, str) or table not in TABLES or table in _UNREADABLE:
        readable = [name for name in TABLES if name not in _UNREADABLE]
        raise place.at("table").error(f"rules read no table {table!r}. {suggest(table, readable, kind='tables')}")
    if ("column" in raw) == ("expr" in raw):
        raise place.error("needs either column or expr")
    column, expression = raw.get("column"), None
    if column is not None:
        column = _column(table, column, place.at("column"), lists=True)
    else:
        here = place.at("expr")
        if not isinstance(raw["expr"], str):
            raise here.error(f"must be text, not {shown(raw['expr'])}")
        try:
            expression = Expression(_NAME_IN_EXPRESSION.sub(lambda name: _present(table, name[0]), raw["expr"]))
        except ExpressionError as error:
            raise here.error(str(error)) from None
        for name in expression.columns:
            _column(table, name, here)
    key = raw.get("key")
    if key is not None:
        place.at("key").word(key, own_keys(table) or ("(no key: the table has one row per update)",))
    where = _where(raw.get("where", {}), table, key, place.at("where"))
    others = [name for name in own_keys(table) if name != key and name not in dict(where)]
    if "take" not in raw and others:
        raise place.error(
            f"take is missing: {table} has a row per {' and '.join(others)}; it is one of {', '.join(Take)}"
        )
    take = Take(place.at("take").word(raw.get("take", Take.ONLY), Take))
    min_n = None
    if "min_n" in raw:
        min_n = place.at("min_n").count(raw["min_n"], 1)
        if "n" not in {c.name for c in columns(table)}:
            raise place.at("min_n").error(f"table {table} has no column n")
    return Signal(table, column, expression, take, key, min_n, where)


def _where(raw: Any, table: str, key: str | None, place: Place) -> tuple[tuple[str, str], ...]:
    if raw == {}:
        return ()
    texts = [c.name for c in columns(table) if c.name in own_keys(table) and c.name != key and c.type == "string"]
    if raw and not texts:
        raise place.error(f"table {table} has no key column of text to choose rows by" + (f" but {key}" if key else ""))
    chosen = place.known(raw, texts)
    for name, text in chosen.items():
        if not isinstance(text, str):
            raise place.at(name).error(f"must be text, not {shown(text)}")
    return tuple(sorted(chosen.items()))


def _present(table: str, name: str) -> str:
    # A run keeps the text of the rules it ran with; it must replay although a column was renamed since.
    return former_names(table).get(name, name)


def _column(table: str, name: Any, place: Place, *, lists: bool = False) -> str:
    """The present name of a column that a rule may read. Raises RuleError."""
    declared = {c.name: c.type for c in columns(table)}
    if isinstance(name, str):
        name = _present(table, name)
    if not isinstance(name, str) or name not in declared:
        raise place.error(f"table {table} has no column {name!r}. {suggest(name, declared, kind='columns')}")
    if declared[name] not in ("int64", "float64", "bool") and not (lists and declared[name].startswith("list<")):
        raise place.error(f"column {name} of {table} holds {declared[name]}, and a rule reads numbers")
    return name


def _test(raw: Mapping[str, Any], place: Place) -> Test:
    given = [key for key in _TEST_KEYS if key in raw]
    if len(given) != 1:
        found = "none" if not given else " and ".join(given)
        raise place.error(f"needs exactly one of {', '.join(_TEST_KEYS)}, and has {found}")
    if given[0] == "nonfinite" and raw["nonfinite"] is not True:
        raise place.at("nonfinite").error(f"can only be true, not {shown(raw['nonfinite'])}")
    return Test(given[0])


def _threshold(raw: Any, phases: dict[str, float], signal: Signal, place: Place) -> Threshold:
    if not isinstance(raw, dict):
        return Threshold(place.number(raw))
    place.known(raw, ("phase", "key", "column", "times", "otherwise"))
    otherwise = place.at("otherwise").number(raw["otherwise"]) if "otherwise" in raw else None
    kinds = [kind for kind in ("phase", "key", "column") if kind in raw]
    if len(kinds) != 1:
        raise place.error("as a table, a threshold has exactly one of phase, key, column")
    kind = kinds[0]
    if kind == "column":
        column = _column(UPDATE_TABLE, raw["column"], place.at("column"))
        times = place.at("times").number(raw.get("times", 1.0))
        return Threshold(otherwise, "column", {}, Signal(UPDATE_TABLE, column), times)
    if "times" in raw:
        raise place.at("times").error("goes with column only")
    here = place.at(kind)
    if not isinstance(raw[kind], dict) or not raw[kind]:
        raise here.error(f"must be a table with a number for each {kind}")
    values = {name: here.at(name).number(value) for name, value in raw[kind].items()}
    if kind == "phase":
        here.known(values, phases)
        missing = [name for name in phases if name not in values]
        if missing and otherwise is None:
            raise here.error(f"names no number for {', '.join(missing)}; add it, or `otherwise`")
    elif signal.key is None:
        raise here.error("the rule has no key column; add key = ...")
    return Threshold(otherwise, kind, values)


def _reset(raw: Any, place: Place) -> Reset:
    if isinstance(raw, dict):
        place.known(raw, ("times",))
        return Reset(times=place.at("times").number(raw.get("times")))
    return Reset(number=place.number(raw))


def _check_reset(reset: Reset, threshold: Threshold, test: Test, place: Place) -> None:
    """A streak must not end at a value that is a hit."""
    numbers = [*threshold.values.values(), *([] if threshold.number is None else [threshold.number])]
    for number in numbers:
        level = reset.number if reset.number is not None else (reset.times or 0.0) * number
        if (level > number) if test is Test.ABOVE else (level < number):
            side = "at or below" if test is Test.ABOVE else "at or above"
            raise place.error(f"must lie {side} the threshold, and {level:g} does not for {number:g}")


def _drift(raw: Any, place: Place) -> Drift:
    place.known(raw, ("momentum", "bias_correction", "warmup", "epsilon", "signed"))
    plain = Drift()
    momentum = place.at("momentum").number(raw.get("momentum", plain.momentum))
    if not 0.0 <= momentum < 1.0:
        raise place.at("momentum").error(f"must lie in [0, 1), and {momentum:g} does not")
    epsilon = place.at("epsilon").number(raw.get("epsilon", plain.epsilon))
    if not 0.0 < epsilon < math.inf:
        raise place.at("epsilon").error(f"must be above 0, and {epsilon:g} is not")
    return Drift(
        momentum,
        place.at("bias_correction").switch(raw.get("bias_correction", plain.bias_correction)),
        place.at("warmup").count(raw.get("warmup", plain.warmup), 0),
        epsilon,
        place.at("signed").switch(raw.get("signed", plain.signed)),
    )


def _rolling(raw: Any, place: Place) -> Rolling:
    place.known(raw, ("window", "trend"))
    if "trend" not in raw:
        raise place.at("trend").error(f"is missing; it is one of {', '.join(TrendOf)}")
    window = place.at("window").count(raw.get("window", Rolling().window), 1)
    return Rolling(window, TrendOf(place.at("trend").word(raw["trend"], TrendOf)))


def _gate(raw: Any, table: str, key: str | None, place: Place) -> Gate:
    place.known(raw, (*_SIGNAL_KEYS, *_TEST_KEYS))
    signal = _signal({"table": table} | raw, place)
    if signal.key is not None and signal.key != key:
        raise place.at("key").error(f"must be the rule's own key column ({key or 'it has none'}), or be left out")
    test = _test(raw, place)
    return Gate(signal, test, None if test is Test.NONFINITE else place.at(str(test)).number(raw[str(test)]))


def _check_inhibitions(rules: Mapping[str, Rule], place: Place) -> None:
    for rule in rules.values():
        if rule.inhibited_by is None:
            continue
        here = Place(place.file, rule.name, "inhibited_by")
        if rule.inhibited_by not in rules:
            raise here.error(
                f"there is no rule {rule.inhibited_by!r}. {suggest(rule.inhibited_by, rules, kind='rules')}"
            )
        other = rules[rule.inhibited_by]
        if other.inhibited_by is not None or other is rule:
            raise here.error(f"{other.name} is itself inhibited; a rule is inhibited by one that is not")
        if other.key != rule.key:
            raise here.error(f"{other.name} has another key column ({other.key or 'none'})")
