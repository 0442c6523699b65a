"""Rules as text: the only module that writes a rule, a condition, a threshold or a reading of one as words."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from esper_recorder.contract.rules.model import Condition, Gate, Rule, Test, Threshold
from esper_recorder.contract.rules.signal import UPDATE_TABLE, Signal, Take
from esper_recorder.contract.rules.trend import TrendOf

Format = Callable[[float], str]

_TRENDS = {
    TrendOf.CHANGE: "change of the mean of {signal} over {window}",
    TrendOf.SIZE: "size of the change of the mean of {signal} over {window}",
    TrendOf.DROP: "fraction by which {signal} lies below its mean over {window}",
}


def describe_rule(rule: Rule) -> str:
    """Say when a rule fires: `ppo_updates.ratio_max is above 5, 3 times`."""
    text = " or ".join(describe_condition(condition) for condition in rule.conditions)
    if rule.key is not None:
        text += f", for each {rule.key}"
    if rule.streak > 1:
        text += f", {rule.streak} times"
    reset = rule.conditions[0].reset
    if reset is not None:
        text += f" (until beyond {_times_threshold(reset.times) if reset.number is None else f'{reset.number:g}'})"
    if rule.unless:
        text += "; unless " + " or ".join(f"`{describe_gate(gate)}`" for gate in rule.unless)
    return text + (f"; inhibited by `{rule.inhibited_by}`" if rule.inhibited_by is not None else "")


def describe_rules(rules: Iterable[Rule]) -> str:
    """Return one line per rule, with its severity and its numbers."""
    return "\n".join(f"{rule.name} ({rule.severity}): {describe_rule(rule)}" for rule in rules)


def describe_condition(condition: Condition) -> str:
    """Say when a condition breaches: `the drift of ppo_updates.grad_norm is above 0.5`."""
    value = _trend(condition, f"`{describe_signal(condition.signal)}`")
    value = f"the {value}" if condition.has_trend else value
    if condition.threshold is None:
        return f"{value} is not finite"
    return f"{value} is {condition.test} {describe_threshold(condition.threshold)}"


def describe_threshold(threshold: Threshold) -> str:
    """List the numbers of a threshold: `-0.5 (warmup), 0.1 (late)`, ``3 times `target_kl`, 0.05 otherwise``."""
    column = None if threshold.signal is None else f"`{describe_signal(threshold.signal)}`"
    return _numbers(threshold.number, threshold.values, column, threshold.times)


def describe_value(value: Any) -> str:
    """Write one value of a rules file, as TOML holds it: a number, a switch, a word, a threshold or a reset level."""
    if isinstance(value, bool):
        return str(value).lower()
    if not isinstance(value, Mapping):
        return f"{value:.12g}" if isinstance(value, float) else str(value)
    by_name = value.get("phase") or value.get("key") or {}
    if not by_name and "column" not in value:
        return _times_threshold(value.get("times"))
    return _numbers(value.get("otherwise"), by_name, value.get("column"), value.get("times", 1.0))


def describe_signal(signal: Signal) -> str:
    """Name a signal: `ppo_updates.ratio_max`, `first of minibatches.ratio_max`."""
    table = signal.table
    if signal.where:
        table += "{" + ", ".join(f"{column}={text}" for column, text in signal.where) + "}"
    name = f"{table}.{signal.column}" if signal.expression is None else f"{table}: {signal.expression.text}"
    return name if signal.take is Take.ONLY else f"{signal.take} of {name}"


def describe_gate(gate: Gate) -> str:
    """Say when a gate is closed: `ppo_updates.return_std below 0.1`."""
    return f"{describe_signal(gate.signal)} {gate.test}" + ("" if gate.number is None else f" {gate.number:g}")


def describe_inputs(rule: Rule) -> str:
    """Name what a rule compares, briefly: `ratio_max`, `drift of grad_norm`."""
    names = []
    for condition in rule.conditions:
        signal = describe_signal(condition.signal).removeprefix(f"{UPDATE_TABLE}.").removeprefix(f"{UPDATE_TABLE}: ")
        names.append(_trend(condition, signal))
    return " or ".join(dict.fromkeys(names))


def describe_comparison(
    rule: Rule, value: float | None, threshold: float | None, format_number: Format = "{:.6g}".format
) -> str:
    """Compare the value of a firing with its threshold: `9.35 > 5`.

    The sign is that of the rule's test. A rule that is kept after its breach also fires at values that are no longer
    beyond the threshold: these are `4 vs 5`.
    """
    tests = {condition.test for condition in rule.conditions}
    if threshold is None or math.isnan(threshold) or tests == {Test.NONFINITE}:
        return "not finite" if value is None else format_number(value)
    tests -= {Test.NONFINITE}
    sign = "vs"
    if value is not None and tests == {Test.ABOVE} and value > threshold:
        sign = ">"
    elif value is not None and tests == {Test.BELOW} and value < threshold:
        sign = "<"
    return f"{'not measured' if value is None else format_number(value)} {sign} {format_number(threshold)}"


def _trend(condition: Condition, signal: str) -> str:
    if condition.rolling is not None:
        return _TRENDS[condition.rolling.trend].format(signal=signal, window=condition.rolling.window)
    if condition.drift is not None:
        return f"drift of {signal}"
    return f"step of {signal}" if condition.step else signal


def _numbers(number: float | None, by_name: Mapping[str, float], column: str | None, times: float) -> str:
    parts = [f"{value:g} ({name})" for name, value in by_name.items()]
    if column is not None:
        parts.append(f"{times:g} times {column}")
    if number is not None:
        parts.append(f"{number:g}" + (" otherwise" if parts else ""))
    return ", ".join(parts)


def _times_threshold(times: float | None) -> str:
    return f"{times or 0.0:g} times the threshold"
