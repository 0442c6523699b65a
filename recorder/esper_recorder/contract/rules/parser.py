"""Parsing of rules files: TOML in, checked rules out, or an error that names the location.

Covers: every key and value a rules file may contain, and what must fit together across them.
Does not cover: the unit tests of a file (`unit_tests`), which are checked when they are run.
"""

from __future__ import annotations

import itertools
import math
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from esper_recorder.contract.rules.expression import Expression, ExpressionError
from esper_recorder.contract.rules.location import Location, as_toml
from esper_recorder.contract.rules.model import Condition, Gate, Reset, Rule, RuleError, Severity, Test, Threshold
from esper_recorder.contract.rules.signal import UPDATE_TABLE, Signal, Take, own_keys
from esper_recorder.contract.rules.trend import Drift, Rolling, TrendOf
from esper_recorder.contract.suggest import suggest
from esper_recorder.contract.tables import TABLES, columns, former_names

FORMAT: Final = 1

_FILE_KEYS = ("format", "description", "phases", "rules", "tests")
_SIGNAL_KEYS = ("table", "column", "expr", "take", "key", "min_n", "where")
_TEST_KEYS = tuple(str(test) for test in Test)
_CONDITION_KEYS = (*_SIGNAL_KEYS, *_TEST_KEYS, "reset", "drift", "step", "rolling")
_RULE_KEYS = ("severity", "for", "keep", "unless", "inhibited_by", "evidence", "any_of")
_FORMER_KEYS = {"yields_to": "inhibited_by"}  # in the rules that runs of schema 2 keep
_SHARED_KEYS = ("table", "key", "where")  # of a rule with any_of: for all alternatives
_UNREADABLE = ("alarms", "gaps")  # written after the rules are evaluated
_LONGEST_WINDOW = 10_000  # a replay's work grows with it
_NAME = re.compile(r"[A-Za-z0-9_-]+")
_COLUMN_NAME = re.compile(r"\b[A-Za-z_]\w*")


@dataclass(frozen=True)
class RulesFile:
    """The content of a rules file.

    Attributes:
        rules: in the order of the file.
        phases: (name, start) with ascending starts from 0; a phase ends where the next one begins.
        description: what the file says it is for.
        tests: its unit tests, as parsed from TOML.
    """

    rules: tuple[Rule, ...]
    phases: tuple[tuple[str, float], ...]
    description: str = ""
    tests: tuple[Mapping[str, Any], ...] = ()


def parse_text(text: str, name: str) -> RulesFile:
    """Parse TOML text; errors call it `name`. Raises RuleError."""
    try:
        data = tomllib.loads(text)
    except (ValueError, RecursionError) as error:  # ValueError: also a number of thousands of digits, or no date
        raise RuleError(f"{name} is not TOML: {error}") from None
    return parse_data(data, name)


def parse_data(data: dict[str, Any], name: str) -> RulesFile:
    """Check what TOML was parsed into. Raises RuleError."""
    location = Location(name)
    location.table(data, _FILE_KEYS)
    if data.get("format", FORMAT) != FORMAT:
        raise location.error(f"format is {as_toml(data['format'])}; this version reads format {FORMAT}")
    description = location.at("description").text(data.get("description", ""))
    phases = _phases(data.get("phases", {}), location.at("phases"))
    raw_rules = data.get("rules", {})
    if not isinstance(raw_rules, dict) or not raw_rules:
        raise location.error("contains no rules; a rule is a table [rules.NAME]")
    rules = tuple(_rule(rule, raw, dict(phases), location) for rule, raw in raw_rules.items())
    _check_inhibitions({rule.name: rule for rule in rules}, location)
    tests = data.get("tests", [])
    if not isinstance(tests, list) or not all(isinstance(test, dict) for test in tests):
        raise location.error("tests must be written as [[tests]]")
    return RulesFile(rules, phases, description, tuple(tests))


def _phases(raw: Any, location: Location) -> tuple[tuple[str, float], ...]:
    if not isinstance(raw, dict):
        raise location.error("must be a table of names and the progress each begins at")
    starts = {name: location.at(name).number(start) for name, start in raw.items()}
    phases = sorted(starts.items(), key=lambda phase: phase[1])
    if phases and phases[0][1] != 0.0:
        raise location.error(f"the first phase must begin at 0, and {phases[0][0]!r} begins at {phases[0][1]:g}")
    for (name, start), (next_name, next_start) in itertools.pairwise(phases):
        if start == next_start:
            raise location.error(f"{name!r} and {next_name!r} both begin at {start:g}")
    return tuple(phases)


def _rule(name: str, raw: Any, phases: dict[str, float], file: Location) -> Rule:
    if not _NAME.fullmatch(name):
        raise file.error(f"rule name {name!r}: letters, digits, _ and - only")
    location = Location(file.file, name)
    if not isinstance(raw, dict):
        raise location.error(f"must be a table, not {as_toml(raw)}")
    if "inhibited_by" not in raw:
        raw = {_FORMER_KEYS.get(key, key): value for key, value in raw.items()}
    conditions = _conditions(raw, phases, location)
    keys = {condition.signal.key for condition in conditions}
    if len(keys) > 1:
        raise location.at("any_of").error("every alternative must have the same key column")
    if "severity" not in raw:
        raise location.error(f"severity is missing; it is one of {', '.join(Severity)}")
    inhibited_by = raw.get("inhibited_by")
    return Rule(
        name=name,
        severity=Severity(location.at("severity").choice(raw["severity"], Severity)),
        conditions=conditions,
        streak=location.at("for").count(raw.get("for", 1), 1),
        keep=location.at("keep").boolean(raw.get("keep", False)),
        unless=_gates(raw.get("unless", []), conditions[0].signal, location),
        inhibited_by=None if inhibited_by is None else location.at("inhibited_by").text(inhibited_by, "a rule's name"),
        evidence=location.at("evidence").text(raw.get("evidence", ""), "where the number comes from"),
    )


def _conditions(raw: dict[str, Any], phases: dict[str, float], location: Location) -> tuple[Condition, ...]:
    if "any_of" not in raw:
        return (_condition(location.table(raw, (*_RULE_KEYS, *_CONDITION_KEYS)), phases, location),)
    location.table(raw, (*_RULE_KEYS, *_SHARED_KEYS))
    alternatives = raw["any_of"]
    if not isinstance(alternatives, list) or not alternatives:
        raise location.at("any_of").error("must be a list of tables, each with a column and a comparison")
    shared = {key: raw[key] for key in _SHARED_KEYS if key in raw}
    conditions = []
    for number, alternative in enumerate(alternatives, 1):
        here = location.at(f"any_of.{number}")
        conditions.append(_condition(shared | here.table(alternative, _CONDITION_KEYS), phases, here))
    return tuple(conditions)


def _condition(raw: dict[str, Any], phases: dict[str, float], location: Location) -> Condition:
    signal = _signal(raw, location)
    test = _test(raw, location)
    step = location.at("step").boolean(raw.get("step", False))
    trends = [name for name in ("drift", "step", "rolling") if (step if name == "step" else name in raw)]
    if len(trends) > 1:
        raise location.error(f"has both {' and '.join(trends)}; a rule has one of drift, step and rolling")
    if test is Test.NONFINITE:
        if trends or "reset" in raw:
            raise location.error("nonfinite cannot be combined with drift, step, rolling or reset")
        return Condition(signal, test)
    threshold = _threshold(raw[test], phases, signal, location.at(test))
    return Condition(
        signal,
        test,
        threshold,
        _reset(raw["reset"], threshold, test, location.at("reset")) if "reset" in raw else None,
        _drift(raw["drift"], location.at("drift")) if "drift" in raw else None,
        step,
        _rolling(raw["rolling"], location.at("rolling")) if "rolling" in raw else None,
    )


def _signal(raw: Mapping[str, Any], location: Location) -> Signal:
    table = raw.get("table", UPDATE_TABLE)
    readable = [name for name in TABLES if name not in _UNREADABLE]
    if not isinstance(table, str) or table not in readable:
        raise location.at("table").error(f"rules read no table {table!r}. {suggest(table, readable, kind='tables')}")
    if ("column" in raw) == ("expr" in raw):
        raise location.error("needs either column or expr")
    column, expression = raw.get("column"), None
    if column is not None:
        column = _column(table, column, location.at("column"), lists=True)
    else:
        here = location.at("expr")
        try:
            expression = Expression(_COLUMN_NAME.sub(lambda name: _current(table, name[0]), here.text(raw["expr"])))
        except ExpressionError as error:
            raise here.error(str(error)) from None
        for name in expression.columns:
            _column(table, name, here)
    key = raw.get("key")
    if key is not None:
        location.at("key").choice(key, own_keys(table) or ("(no key: the table has one row per update)",))
    where = _where(raw.get("where", {}), table, key, location.at("where"))
    others = [name for name in own_keys(table) if name != key and name not in dict(where)]
    if "take" not in raw and others:
        raise location.error(
            f"take is missing: {table} has one row per {' and '.join(others)}; it is one of {', '.join(Take)}"
        )
    take = Take(location.at("take").choice(raw.get("take", Take.ONLY), Take))
    min_n = None
    if "min_n" in raw:
        min_n = location.at("min_n").count(raw["min_n"], 1)
        if "n" not in {c.name for c in columns(table)}:
            raise location.at("min_n").error(f"table {table} has no column n")
    return Signal(table, column, expression, take, key, min_n, where)


def _where(raw: Any, table: str, key: str | None, location: Location) -> tuple[tuple[str, str], ...]:
    if raw == {}:
        return ()
    texts = [c.name for c in columns(table) if c.name in own_keys(table) and c.name != key and c.type == "string"]
    if raw and not texts:
        raise location.error(
            f"table {table} has no key column of text to select rows by" + (f" except {key}" if key else "")
        )
    selected = {name: location.at(name).text(text) for name, text in location.table(raw, texts).items()}
    return tuple(sorted(selected.items()))


def _current(table: str, name: str) -> str:
    # A run keeps the text of its rules, and must replay although a column was renamed since.
    return former_names(table).get(name, name)


def _column(table: str, name: Any, location: Location, *, lists: bool = False) -> str:
    """Return the current name of a column that a rule may read. Raises RuleError."""
    declared = {c.name: c.type for c in columns(table)}
    name = _current(table, name) if isinstance(name, str) else name
    if not isinstance(name, str) or name not in declared:
        raise location.error(f"table {table} has no column {name!r}. {suggest(name, declared, kind='columns')}")
    if declared[name] not in ("int64", "float64", "bool") and not (lists and declared[name].startswith("list<")):
        raise location.error(f"column {name} of {table} is a {declared[name]}, and a rule reads numbers")
    return name


def _test(raw: Mapping[str, Any], location: Location) -> Test:
    keys = [key for key in _TEST_KEYS if key in raw]
    if len(keys) != 1:
        raise location.error(f"needs exactly one of {', '.join(_TEST_KEYS)}, and has {' and '.join(keys) or 'none'}")
    if keys[0] == Test.NONFINITE and raw[keys[0]] is not True:
        raise location.at(keys[0]).error(f"can only be true, not {as_toml(raw[keys[0]])}")
    return Test(keys[0])


def _threshold(raw: Any, phases: dict[str, float], signal: Signal, location: Location) -> Threshold:
    if not isinstance(raw, dict):
        return Threshold(location.number(raw))
    location.table(raw, ("phase", "key", "column", "times", "otherwise"))
    otherwise = location.at("otherwise").number(raw["otherwise"]) if "otherwise" in raw else None
    kinds = [kind for kind in ("phase", "key", "column") if kind in raw]
    if len(kinds) != 1:
        raise location.error("as a table, a threshold has exactly one of phase, key, column")
    kind = kinds[0]
    here = location.at(kind)
    if kind == "column":
        column = _column(UPDATE_TABLE, raw["column"], here)
        times = location.at("times").number(raw.get("times", 1.0))
        return Threshold(otherwise, "column", {}, Signal(UPDATE_TABLE, column), times)
    if "times" in raw:
        raise location.at("times").error("can only be combined with column")
    if not isinstance(raw[kind], dict) or not raw[kind]:
        raise here.error(f"must be a table with a number for each {kind}")
    values = {name: here.at(name).number(value) for name, value in raw[kind].items()}
    if kind == "phase":
        here.table(values, phases)
        missing = [name for name in phases if name not in values]
        if missing and otherwise is None:
            raise here.error(f"has no number for {', '.join(missing)}; add it, or `otherwise`")
    elif signal.key is None:
        raise here.error("the rule has no key column; add key = ...")
    return Threshold(otherwise, kind, values)


def _reset(raw: Any, threshold: Threshold, test: Test, location: Location) -> Reset:
    if isinstance(raw, dict):
        reset = Reset(times=location.at("times").number(location.table(raw, ("times",)).get("times")))
    else:
        reset = Reset(number=location.number(raw))
    for number in [*threshold.values.values(), *([] if threshold.number is None else [threshold.number])]:
        level = reset.number if reset.number is not None else (reset.times or 0.0) * number
        if (level > number) if test is Test.ABOVE else (level < number):  # a breach would end the streak
            side = "at or below" if test is Test.ABOVE else "at or above"
            raise location.error(f"must lie {side} the threshold, and {level:g} does not for {number:g}")
    return reset


def _drift(raw: Any, location: Location) -> Drift:
    location.table(raw, ("momentum", "bias_correction", "warmup", "epsilon", "signed"))
    default = Drift()
    momentum = location.at("momentum").number(raw.get("momentum", default.momentum))
    if not 0.0 <= momentum < 1.0:
        raise location.at("momentum").error(f"must lie in [0, 1), and {momentum:g} does not")
    epsilon = location.at("epsilon").number(raw.get("epsilon", default.epsilon))
    if not 0.0 < epsilon < math.inf:
        raise location.at("epsilon").error(f"must be above 0 and finite, not {epsilon:g}")
    return Drift(
        momentum,
        location.at("bias_correction").boolean(raw.get("bias_correction", default.bias_correction)),
        location.at("warmup").count(raw.get("warmup", default.warmup), 0),
        epsilon,
        location.at("signed").boolean(raw.get("signed", default.signed)),
    )


def _rolling(raw: Any, location: Location) -> Rolling:
    location.table(raw, ("window", "trend"))
    if "trend" not in raw:
        raise location.at("trend").error(f"is missing; it is one of {', '.join(TrendOf)}")
    window = location.at("window").count(raw.get("window", Rolling().window), 1, _LONGEST_WINDOW)
    return Rolling(window, TrendOf(location.at("trend").choice(raw["trend"], TrendOf)))


def _gates(raw: Any, signal: Signal, location: Location) -> tuple[Gate, ...]:
    """Parse `unless`: one table, or a list of them; a gate reads the table of the rule unless it names another."""
    if not isinstance(raw, list):
        return (_gate(raw, signal, location.at("unless")),)
    return tuple(_gate(gate, signal, location.at(f"unless.{number}")) for number, gate in enumerate(raw, 1))


def _gate(raw: Any, rule_signal: Signal, location: Location) -> Gate:
    location.table(raw, (*_SIGNAL_KEYS, *_TEST_KEYS))
    signal = _signal({"table": rule_signal.table} | raw, location)
    if signal.key is not None and signal.key != rule_signal.key:
        raise location.at("key").error(f"must be the rule's key column ({rule_signal.key or 'none'}), or be omitted")
    test = _test(raw, location)
    return Gate(signal, test, None if test is Test.NONFINITE else location.at(test).number(raw[test]))


def _check_inhibitions(rules: Mapping[str, Rule], file: Location) -> None:
    for rule in rules.values():
        if rule.inhibited_by is None:
            continue
        location = Location(file.file, rule.name, "inhibited_by")
        if rule.inhibited_by not in rules:
            hint = suggest(rule.inhibited_by, rules, kind="rules")
            raise location.error(f"there is no rule {rule.inhibited_by!r}. {hint}")
        other = rules[rule.inhibited_by]
        if other.inhibited_by is not None or other is rule:
            raise location.error(f"{other.name} is itself inhibited; a rule is inhibited by one that is not")
        if other.key != rule.key:
            raise location.error(f"{other.name} has another key column ({other.key or 'none'})")
