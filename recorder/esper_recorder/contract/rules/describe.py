"""Rules in words, made from the rules themselves: what pages, docstrings and details say of a threshold."""

from __future__ import annotations

from esper_recorder.contract.rules.model import Condition, Rule, Test
from esper_recorder.contract.rules.rolling_mean import TrendOf

_TRENDS = {
    TrendOf.CHANGE: "the change of the mean over {} of {}",
    TrendOf.SIZE: "the size of the change of the mean over {} of {}",
    TrendOf.DROP: "the share that {1} lies below its mean over {0}",
}


def fires_where(rule: Rule) -> str:
    """As in `ppo_updates.ratio_max is above 5, 3 times`."""
    text = " or ".join(condition_in_words(condition) for condition in rule.conditions)
    if rule.key is not None:
        text += f", for each {rule.key}"
    if rule.streak > 1:
        text += f", {rule.streak} times"
    for condition in rule.conditions[:1]:
        if condition.reset is not None:
            number = condition.reset.number
            level = f"{number:g}" if number is not None else f"{condition.reset.times:g} times the threshold"
            text += f" (until beyond {level})"
    if rule.unless:
        text += "; unless " + " or ".join(f"`{gate.describe()}`" for gate in rule.unless)
    return text + (f"; not where `{rule.inhibited_by}` fires" if rule.inhibited_by is not None else "")


def condition_in_words(condition: Condition) -> str:
    """As in `the drift of ppo_updates.grad_norm is above 0.5`."""
    what = f"`{condition.signal.describe()}`"
    if condition.drift is not None:
        what = f"the drift of {what}"
    elif condition.rolling is not None:
        what = _TRENDS[condition.rolling.trend].format(condition.rolling.window, what)
    elif condition.step:
        what = f"the step of {what}"
    if condition.test is Test.NONFINITE:
        return f"{what} is not finite"
    threshold = condition.threshold
    assert threshold is not None  # only `nonfinite` has none
    parts = [f"{number:g} ({name})" for name, number in threshold.values.items()]
    if threshold.signal is not None:
        parts.append(f"{threshold.times:g} times `{threshold.signal.describe()}`")
    if threshold.number is not None:
        parts.append(f"{threshold.number:g}" + (" otherwise" if parts else ""))
    return f"{what} is {condition.test} {', '.join(parts)}"
